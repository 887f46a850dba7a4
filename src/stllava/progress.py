"""The progress display: one live line on a terminal, one plain line now and then in a log file, or a line of JSON.

How much and in which form is told is in the environment, so that processes which this one starts tell it alike.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from importlib import import_module
from typing import TextIO, TypeVar

from stllava.text import printable

T = TypeVar("T")

LIVE_SECONDS, CELL_SECONDS = 0.2, 1.0
LOG_SECONDS = 30.0
RANK, WORLD_SIZE = "RANK", "WORLD_SIZE"
LOG_FORM, LOUDNESS = "STLLAVA_LOG", "STLLAVA_LOUDNESS"
"""Variables of the environment: text or json; quiet, normal or verbose."""


def clock(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss from an hour on."""
    whole = int(seconds + 0.5)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def place_among_processes() -> tuple[int, int]:
    """Which of the processes that a launcher of trainings started this is, from 0, and how many there are.

    One alone where the environment does not say both in numbers: other programs set such variables too.
    """
    rank, count = os.environ.get(RANK, ""), os.environ.get(WORLD_SIZE, "")
    if rank.isdecimal() and count.isdecimal() and int(rank) < int(count):
        return int(rank), int(count)
    return 0, 1


def is_plain() -> bool:
    """Whether tables for readers are wanted beside the progress: neither quiet nor in JSON."""
    return os.environ.get(LOUDNESS) != "quiet" and os.environ.get(LOG_FORM) != "json"


def in_notebook() -> bool:
    """Whether what is written stands below a cell, where the stream of errors is red and no line is written over."""
    return type(sys.stdout).__module__.startswith("ipykernel")


def progress_stream() -> TextIO:
    """Where progress and the tables beside it are written."""
    return sys.stdout if in_notebook() else sys.stderr


def _line_of_a_cell() -> Callable[[str], None]:
    """Shows a line below a notebook's cell, and the next one in its place."""
    handle = import_module("IPython.display").display({"text/plain": ""}, raw=True, display_id=True)
    return lambda line: handle.update({"text/plain": line}, raw=True)


def json_event(event: str, **facts: str | float) -> str:
    """A line of a log in JSON: what happened, when (ISO 8601, UTC), and the facts."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": now, "event": event, **facts}, ensure_ascii=False)


class Progress:
    """Shows how far a stage is, its rate and the time left; use as a context manager."""

    def __init__(self, label: str, total: int, *, unit: str, done: int = 0, stream: TextIO | None = None) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done, self.resumed = done, done
        self.stream = stream if stream is not None else progress_stream()
        self.live = self.stream.isatty()
        self.silent = place_among_processes()[0] > 0 or os.environ.get(LOUDNESS) == "quiet"
        self.json = os.environ.get(LOG_FORM) == "json"
        in_cell = stream is None and in_notebook() and not self.silent and not self.json
        self.cell = _line_of_a_cell() if in_cell else None
        self.live = (self.live or in_cell) and not self.json
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
        now, pause = time.monotonic(), CELL_SECONDS if self.cell else LIVE_SECONDS if self.live else LOG_SECONDS
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

    def json_line(self) -> str:
        """What is shown now, for programs."""
        spent = time.monotonic() - self.started
        figures: dict[str, str | float] = {
            "stage": self.label,
            "done": self.done,
            "total": self.total,
            "unit": self.unit,
            "seconds": round(spent, 1),
        }
        return json_event("progress", **(figures | ({"told": self.extra} if self.extra else {})))

    def _show(self, *, end: bool) -> None:
        if self.silent:
            return  # Of processes that train together the first one tells.
        if self.json:
            self.stream.write(self.json_line() + "\n")
        elif self.cell is not None:
            self.cell(printable(self.line()))
            return
        elif self.live:
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
