"""Several servers of one model as one: the least busy is asked, one that fails is left out until it answers again.

Requests that show the same images go to one server while it is up, which computes the images once (its prefix cache). A
request that fails at one server is sent to another, a reply that cannot be used included. A server counts as down when it
cannot be reached, or has failed `FAILURES` requests in a row (a status of 500 to everything, say); from then on it is looked
at again and again, after it was brought back by whoever runs it, if anybody does. Where none is up all requests wait
together, once: what has waited so long, or comes later, gets the failure by which the last server went.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from threading import Condition, Event, Thread

from pydantic import JsonValue

from stllava.config import ServerOptions
from stllava.remote.client import Client, Fault, NoReplyError, ServerReply
from stllava.remote.png import PngImage

logger = logging.getLogger(__name__)
FAILURES = 3
"""So many requests in a row that a server fails, though it can be reached, are taken for all."""
LOOK_SECONDS = 1.0
"""Between two looks whether a server is back; twice as long each time, up to `LONGEST_LOOK_SECONDS`."""
LONGEST_LOOK_SECONDS = 30.0
KEPT_PLACES = 4096
"""Images whose server is remembered."""
FIRST_LOOK = "/models"
"""What every OpenAI-compatible server answers while it is well."""


@dataclass
class PoolMember:
    """One server of a pool."""

    client: Client
    """How it is spoken to."""
    revive: Callable[[], None] | None = None
    """Brings it back after it went down; raises StllavaError where it cannot. None: somebody else does."""
    up: bool = True
    """Whether it is asked."""
    outstanding: int = 0
    """Requests under way."""
    failures: int = 0
    """Requests that it failed in a row."""
    reviving: bool = False
    """Whether it is being brought back, which has an end of its own."""
    error: Exception | None = field(default=None, repr=False)
    """Why it cannot be brought back; None while it may."""

    @property
    def host(self) -> str:
        """Host and port."""
        return self.client.address.host


class ServerPool:
    """Speaks to several servers as `Client` does to one; threads share it. Close it, or use it as a context manager."""

    def __init__(self, members: Sequence[PoolMember], options: ServerOptions, *, patience: float) -> None:
        """Wait up to `patience` seconds from when on none of the servers is up; for one that is brought back, until it is."""
        self.members, self._options, self._patience = tuple(members), options, patience
        self._changed, self._over = Condition(), Event()
        self._places: OrderedDict[Hashable, PoolMember] = OrderedDict()
        self._all_down: tuple[float, NoReplyError] | None = None

    def __enter__(self) -> "ServerPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all connections, and the looking after servers that are down."""
        self._over.set()
        with self._changed:
            self._changed.notify_all()
        for member in self.members:
            member.client.close()

    def post(
        self,
        path: str,
        body: JsonValue,
        *,
        images: Sequence[PngImage] = (),
        tokens: int = 0,
        stop: Event | None = None,
        fault: Callable[[bytes], Fault | None] = lambda _: None,
        sending: Callable[[], None] = lambda: None,
        retries: int | None = None,
    ) -> ServerReply:
        """Send a JSON body that holds `images` to one of the servers, and to another where it fails; raises NoReplyError."""
        key = tuple(image.path for image in images)
        limit = self._options.retries if retries is None else retries
        attempts = 0
        failed: list[PoolMember] = []
        last: NoReplyError | None = None
        while True:
            member = self._take(key, stop, failed)
            if isinstance(member, NoReplyError):
                raise _after(attempts, last if last is not None else member)
            try:
                reply = member.client.post(
                    path, body, images=images, tokens=tokens, stop=stop, fault=fault, sending=sending, retries=0
                )
            except NoReplyError as error:
                attempts += error.attempts
                if error.attempts or last is None:
                    last = error
                failed.append(member)
                # What was stopped before it was sent says nothing of the server.
                self._give_back(member, error=error, unknown=not error.attempts)
                if error.refused or attempts > limit + len(self.members) or (stop is not None and stop.is_set()):
                    raise _after(attempts, last) from None
            except BaseException:
                self._give_back(member, unknown=True)
                raise
            else:
                self._give_back(member)
                return ServerReply(reply.body, attempts + reply.attempts, reply.seconds)

    def _take(self, key: Hashable, stop: Event | None, failed: Sequence[PoolMember]) -> PoolMember | NoReplyError:
        """The server that is to be asked by a request that has `failed` at some; waits where none is up.

        Where none came back in time, the failure by which the last one went.
        """

        def failures(member: PoolMember) -> int:
            return sum(one is member for one in failed)

        with self._changed:
            while not (up := [member for member in self.members if member.up]):
                given_up = [member.error for member in self.members if member.error is not None]
                if len(given_up) == len(self.members):
                    raise given_up[0]
                if self._over.is_set() or (stop is not None and stop.is_set()):
                    break
                left = LOOK_SECONDS
                if self._all_down is not None and not any(member.reviving for member in self.members):
                    since, error = self._all_down
                    left = since + self._patience - time.monotonic()
                    if left <= 0:
                        return error
                self._changed.wait(min(left, LOOK_SECONDS))
            place = self._places.get(key) if key else None
            best = min(up or self.members, key=lambda member: (failures(member), member.outstanding))
            member = place if place is not None and place.up and failures(place) <= failures(best) else best
            if key:
                # A request that goes elsewhere because it failed there leaves the others where they are.
                self._places[key] = place if place is not None and place.up else member
                self._places.move_to_end(key)
                if len(self._places) > KEPT_PLACES:
                    self._places.popitem(last=False)
            member.outstanding += 1
            return member

    def _give_back(self, member: PoolMember, *, error: NoReplyError | None = None, unknown: bool = False) -> None:
        """Note what came of a request; a server that is down is looked after from here on."""
        fault = error if error is not None and not error.refused and not unknown else None
        gone = fault is not None and fault.status is None
        with self._changed:
            member.outstanding -= 1
            if not unknown:
                member.failures = member.failures + 1 if fault is not None else 0
            if member.up and fault is not None and (gone or member.failures >= FAILURES):
                member.up, member.reviving = False, member.revive is not None
                if not any(one.up for one in self.members):
                    self._all_down = time.monotonic(), fault
                how = "cannot be reached" if gone else f"failed {member.failures} requests in a row"
                logger.warning("%s %s; it is left out until it answers again.", member.host, how)
                Thread(target=self._look_after, args=(member,), name=f"look after {member.host}", daemon=True).start()

    def _look_after(self, member: PoolMember) -> None:
        """Wait until a server is back."""
        seconds = LOOK_SECONDS
        try:
            if member.revive is not None:
                member.revive()
                with self._changed:
                    member.reviving = False
                    if self._all_down is not None:
                        self._all_down = time.monotonic(), self._all_down[1]
            while not self._over.wait(0 if member.revive is not None and seconds == LOOK_SECONDS else seconds):
                try:
                    member.client.get(FIRST_LOOK, seconds=min(10.0, self._options.timeout), retries=0)
                except NoReplyError as error:
                    if not error.refused:
                        seconds = min(2 * seconds, LONGEST_LOOK_SECONDS)
                        continue
                    # It answers, if only that it has no such list: it is there.
                break
        except Exception as error:  # noqa: BLE001  (it is raised where a request waits for the server)
            member.error = error
        with self._changed:
            member.reviving = False
            if member.error is None and not self._over.is_set():
                member.up, member.failures, self._all_down = True, 0, None
                logger.warning("%s answers again.", member.host)
            self._changed.notify_all()


def _after(attempts: int, error: NoReplyError) -> NoReplyError:
    """The failure of a request that was sent so many times, the last of which, or another request's, ended with `error`."""
    return NoReplyError(str(error), attempts=attempts, status=error.status, refusal=error.refusal, where=error.where)
