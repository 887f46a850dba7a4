"""When the next request may start: so many requests and tokens in any minute, and not while a server asked for a pause."""

import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Event, Lock

MINUTE = 60.0
FIRST_WAIT, LONGEST_WAIT, LONGEST_ASKED_WAIT = 0.5, 30.0, 600.0


class RateLimiter:
    """Lets requests start; threads share it."""

    def __init__(self, *, requests: int = 0, tokens: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        """At most `requests` and `tokens` in any minute; 0 sets no limit."""
        self._requests, self._tokens, self._clock = requests, tokens, clock
        self._started: deque[tuple[float, int]] = deque()
        self._spent = 0
        self._held_until = 0.0
        self._lock = Lock()

    def delay(self, tokens: int) -> float:
        """0 when a request of so many tokens may start now, which it then has; else seconds until it is worth asking again."""
        with self._lock:
            now = self._clock()
            if now < self._held_until:
                return self._held_until - now
            if not self._requests and not self._tokens:
                return 0.0
            while self._started and self._started[0][0] <= now - MINUTE:
                self._spent -= self._started.popleft()[1]
            full = bool(self._requests) and len(self._started) >= self._requests
            # A request larger than the whole budget goes alone.
            heavy = bool(self._tokens) and bool(self._started) and self._spent + tokens > self._tokens
            if full or heavy:
                return self._started[0][0] + MINUTE - now
            self._started.append((now, tokens))
            self._spent += tokens
            return 0.0

    def wait(self, tokens: int, *, stop: Event) -> bool:
        """Wait until a request may start; False when `stop` was set first."""
        while not stop.is_set():
            seconds = self.delay(tokens)
            if not seconds:
                return True
            stop.wait(seconds)
        return False

    def hold(self, seconds: float) -> None:
        """Let nothing start for so long."""
        with self._lock:
            self._held_until = max(self._held_until, self._clock() + seconds)


def pause(attempt: int, asked: float | None, *, share: float) -> float:
    """Seconds before the next attempt: twice as long each time, `share` of the second half by chance.

    `asked` is what the server asked for: it is not asked again earlier, unless that is far off.
    """
    backoff = min(FIRST_WAIT * 2.0**attempt, LONGEST_WAIT) * (1 + share) / 2
    return backoff if asked is None else max(backoff, min(asked, LONGEST_ASKED_WAIT))


def asked_pause(header: str | None) -> float | None:
    """Seconds in a Retry-After header, which holds seconds or a date; None where it says nothing that can be read."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        try:
            return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
        except (ValueError, TypeError):  # Neither a number nor a date with a zone.
            return None
