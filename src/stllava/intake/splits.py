"""Puts whole patients, then whole studies, into splits, so that nobody is on both sides. Reads and writes nothing.

Whose a picture is says `patients.py`; patients who share nearly the same picture become one group. A group's place is
drawn from its hidden ids alone: it does not depend on the order of files, and pictures added later move nobody, unless they
join two groups.
"""

import hashlib
from collections.abc import Mapping, Sequence


class UnionFind:
    """Who belongs together; a union-find over hidden ids, whose memory grows with patients and studies, not pictures."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}

    def union_all(self, members: Sequence[str]) -> None:
        """Put all members, of which there is one at least, into one group."""
        for other in members[1:]:
            self.union(members[0], other)

    def union(self, first: str, second: str) -> None:
        """Put two members into one group, whose head is the smallest member."""
        low, high = sorted((self.find(first), self.find(second)))
        if low != high:
            self._above[high] = low

    def find(self, member: str) -> str:
        """The smallest member of the member's group, whatever the order of joining was."""
        top = member
        while (above := self._above.get(top)) is not None:
            top = above
        while member != top:
            self._above[member], member = top, self._above[member]
        return top


def split_of(group: str, shares: Mapping[str, float]) -> str:
    """The split of a group by its head; the shares sum to 1 and are taken in the order of their names."""
    drawn = int.from_bytes(hashlib.sha256(f"split:{group}".encode()).digest()[:8]) / 2**64
    below = 0.0
    taken = [name for name in sorted(shares) if shares[name] > 0]
    for name in taken:
        below += shares[name]
        if drawn < below:
            return name
    # The shares' sum may fall short of 1 by rounding.
    return taken[-1]
