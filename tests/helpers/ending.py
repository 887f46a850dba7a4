"""Whether processes have ended."""

import time
from collections.abc import Sequence
from pathlib import Path


def assert_all_end(pids: Sequence[int], *, seconds: float) -> None:
    """The processes end within so many seconds."""
    deadline = time.monotonic() + seconds
    while any(is_there(pid) for pid in pids):
        assert time.monotonic() < deadline, pids
        time.sleep(0.05)


def is_there(pid: int) -> bool:
    """Whether a process lives, or has only just begun to end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
