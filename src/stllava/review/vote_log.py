"""One reader's file of votes: every line is on the disk, against power cuts too, before `append` returns.

The file is only ever added to. A line that a kill or a full disk tore is cut off; one reader is at work in it at a time.
"""

import fcntl
import os
from pathlib import Path

from stllava.errors import StllavaError
from stllava.records import ReviewVote
from stllava.store import disk_error, read_jsonl

VOTES = "votes"
"""Name of the folder of votes in a review folder."""
LONGEST_NAME = 64


def votes_path(folder: Path, reader: str) -> Path:
    """The file of a reader's votes in a review folder; a name that could lead elsewhere is refused."""
    fit = 0 < len(reader) <= LONGEST_NAME and all(letter.isalnum() or letter in "-_" for letter in reader)
    if not fit or reader[0] in "-_":
        raise StllavaError(
            f"{reader!r} as the name of a reader",
            expected=f"up to {LONGEST_NAME} letters, digits, - and _, a letter or digit first",
            remedy="Name the reader otherwise (--reader).",
        )
    return folder / VOTES / f"{reader}.jsonl"


def read_votes(folder: Path) -> dict[str, list[ReviewVote]]:
    """All that each reader of a review folder did, by reader; a torn last line, which `VoteLog` cuts off, is passed over."""
    return {path.stem: _votes_in(path) for path in sorted((folder / VOTES).glob("*.jsonl"))}


def _votes_in(path: Path) -> list[ReviewVote]:
    """The votes of a reader's file; those of another reader, under whose name nobody voted, are refused."""
    votes = read_jsonl(path, ReviewVote, may_be_torn=True)
    if (other := next((vote.reader for vote in votes if vote.reader != path.stem), None)) is not None:
        raise StllavaError(
            f"{path} holds votes of {other}",
            expected="the votes of one reader in the file of that name",
            remedy=f"Give it back its name ({other}.jsonl), or move it away.",
        )
    return votes


class VoteLog:
    """The file of one reader, held by this process."""

    def __init__(self, folder: Path, reader: str) -> None:
        """Open the file of a reader in a review folder, and read what is in it."""
        self.path = votes_path(folder, reader)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise StllavaError(
                f"{self.path} is in use by another process",
                expected="one review a reader at a time",
                remedy="End the other one, or name another reader (--reader).",
            ) from None
        self._cut_torn_line()
        try:
            self.votes = _votes_in(self.path)
        except StllavaError:
            self.close()
            raise

    def append(self, vote: ReviewVote) -> None:
        """Write a line, and return once it is on the disk; where that fails, the file is as it was."""
        line = vote.model_dump_json().encode() + b"\n"
        end = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) != len(line):
                raise OSError(28, "No space left on device", str(self.path))
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, end)
            told = disk_error(error, self.path)
            if told is not None:
                raise told from error
            raise
        self.votes.append(vote)

    def close(self) -> None:
        """Close the file, if it is open; another process may then go on with it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _cut_torn_line(self) -> None:
        """Cut off what stands behind the last whole line."""
        whole = self.path.read_bytes().rfind(b"\n") + 1
        if whole < os.fstat(self._file).st_size:
            os.ftruncate(self._file, whole)
