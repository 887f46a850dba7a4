"""The progress display: one live line on a terminal, one plain line now and then in a log file."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

from stllava.text import printable

T = TypeVar("T")

LIVE_SECONDS = 0.2
LOG_SECONDS = 10.0


def clock(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss from an hour on."""
    whole = int(seconds + 0.5)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def place_among_processes() -> tuple[int, int]:
    """Which of the processes that a launcher of trainings started this is, from 0, and how many there are."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class Progress:
    """Shows how far a stage is, its rate and the time left; use as a context manager."""

    def __init__(self, label: str, total: int, *, unit: str, done: int = 0, stream: TextIO | None = None) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done, self.resumed = done, done
        self.stream = stream if stream is not None else sys.stderr
        self.live = self.stream.isatty()
        self.silent = place_among_processes()[0] > 0
        self.started = self.shown = time.monotonic()
        self.extra = ""

    def __enter__(self) -> "Progress":
        if self.live:
            self._show(end=False)
        return self

    def __exit__(self, *_: object) -> None:
        self._show(end=True)

    def advance(self, n: int = 1, *, extra: str = "") -> None:
        """Count `n` more units as done; `extra` is shown behind the rate."""
        self.done += n
        self.extra = extra
        self.tick()

    def tick(self) -> float:
        """Show the line if it is time, though nothing more may be done; returns the seconds until it is time again."""
        now, pause = time.monotonic(), LIVE_SECONDS if self.live else LOG_SECONDS
        if now - self.shown >= pause:
            self.shown = now
            self._show(end=False)
        return self.shown + pause - now

    def line(self) -> str:
        """The line as shown now."""
        spent = time.monotonic() - self.started
        fresh = self.done - self.resumed
        rate = fresh / spent if spent > 0 else 0.0
        left = clock((self.total - self.done) / rate) if rate > 0 else "?"
        share = self.done / self.total if self.total else 1.0
        filled = int(20 * share)
        bar = "█" * filled + "░" * (20 - filled)
        tail = f"{clock(spent)} spent" if self.done >= self.total else f"{clock(spent)} spent, {left} left"
        extra = f" · {self.extra}" if self.extra else ""
        return f"{self.label:<18} {bar} {self.done}/{self.total} {self.unit} · {rate:.1f}/s · {tail}{extra}"

    def _show(self, *, end: bool) -> None:
        if self.silent:
            return  # Of processes that train together the first one tells.
        if self.live:
            self.stream.write("\r\033[2K" + printable(self.line()) + ("\n" if end else ""))
        else:
            self.stream.write(printable(self.line()) + "\n")
        self.stream.flush()


def track(items: Iterable[T], label: str, total: int, *, unit: str) -> Iterator[T]:
    """Yield the items while showing progress."""
    with Progress(label, total, unit=unit) as progress:
        for item in items:
            yield item
            progress.advance()
