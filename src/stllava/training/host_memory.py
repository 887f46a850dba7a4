"""What the C library does with main memory that a training gives back, over and over, while a model learns on a CPU.

Every step asks for what the last one freed. glibc returns free memory to the system where more than twice its largest block
lies at the end, and the system clears every page before it gives it again: on two Xeon cores up to 72,000 pages a step at
LLaVA shape, a fiftieth of its time (docs/log.md).
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of malloc.h."""
LARGEST_KEPT = 32 << 20
"""Bytes from which a block is returned as soon as it is freed; the most that glibc chooses by itself."""
MOST_KEPT = 256 << 20
"""Bytes that may lie free at the end before they are returned."""


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """Let glibc keep up to `MOST_KEPT` bytes of what is freed, while a model learns on a CPU; then return it all.

    Afterwards it keeps as little as it does by itself at the end of such a training. Other C libraries, and a training on
    another device, are left as they are.
    """
    libc = ctypes.CDLL(None) if device.type == "cpu" else None
    if libc is None or not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
    libc.mallopt(M_TRIM_THRESHOLD, MOST_KEPT)
    try:
        yield
    finally:
        libc.mallopt(M_TRIM_THRESHOLD, 2 * LARGEST_KEPT)
        libc.malloc_trim(0)
