"""What a training on a CPU frees is kept for its next step, and given back when it is over."""

import ctypes
import subprocess
import sys
from typing import Any

import pytest
import torch

from stllava.training.host_memory import freed_memory_kept

STEPS = """
import resource, torch
from pathlib import Path
from stllava.training.host_memory import freed_memory_kept

def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(5 << 18) for _ in range(8)]
    del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmRSS:"))

with freed_memory_kept(torch.device("cpu")):
    kept = [step() for _ in range(12)][-5:]
    during = resident()
print(max(kept), during - resident())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library is not glibc")
def test_a_step_finds_the_memory_of_the_last_one_and_the_end_gives_it_back() -> None:
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    kept, returned = map(int, done.stdout.split())
    assert kept < 1_000  # Pages, where a step whose memory was given back asks for 10,240.
    assert returned >= 35  # Of 40 MB.


def test_a_training_elsewhere_and_another_c_library_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    class Glibc:
        def mallopt(self, *arguments: int) -> None:
            told.append(arguments)

        malloc_trim = mallopt

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Glibc())
    with freed_memory_kept(torch.device("cuda")):
        pass
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    with freed_memory_kept(torch.device("cpu")):
        pass
    assert not told
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Glibc())
    with freed_memory_kept(torch.device("cpu")):
        assert told == [(-3, 32 << 20), (-1, 256 << 20)]
    assert told[2:] == [(-1, 64 << 20), (0,)]
