"""Logs that grow line by line and outlive kills."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import TypeVar

from stllava.records import Record
from stllava.store.disk import disk_error

R = TypeVar("R", bound=Record)

LOG_SYNC_SECONDS = 1.0
TAIL_BYTES = 1 << 16


class Log:
    """An append-only JSONL file that outlives kills: each line is there once `append` returns; threads may share it.

    A line that a kill tore is cut off when the file is opened again. Lines reach the disk itself, against power cuts,
    within a second of the next one.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._lock, self._synced = path, Lock(), time.monotonic()
        self._file = path.open("a+b")
        self._end = self._file.seek(0, os.SEEK_END)
        whole = self._whole()
        if whole < self._end:
            self._file.truncate(whole)
            self._end = whole

    def append(self, record: Record) -> int:
        """Write a line; returns where it begins."""
        line = record.model_dump_json().encode() + b"\n"
        with self._lock:
            at = self._end
            try:
                self._file.write(line)
                self._file.flush()
                if time.monotonic() - self._synced > LOG_SYNC_SECONDS:
                    os.fsync(self._file.fileno())
                    self._synced = time.monotonic()
            except OSError as error:
                told = disk_error(error, self.path)
                if told is not None:
                    raise told from error
                raise
            self._end += len(line)
            return at

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Every line with where it begins."""
        at = 0
        with self.path.open("rb") as file:
            for line in file:
                yield at, line
                at += len(line)

    def read(self, at: int, record_type: type[R]) -> R:
        """The record of the line that begins there."""
        with self._lock:
            self._file.seek(at)
            return record_type.model_validate_json(self._file.readline())

    def close(self) -> None:
        """Bring every line to the disk and close the file."""
        with self._lock:
            os.fsync(self._file.fileno())
            self._file.close()

    def _whole(self) -> int:
        """Where the last whole line ends."""
        end = self._end
        while end:
            start = max(0, end - TAIL_BYTES)
            self._file.seek(start)
            found = self._file.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
        return 0
