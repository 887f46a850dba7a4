"""What the benches share: runs of one side in a process of its own, memory, medians with their spread, result files.

A bench calls itself once a side (`run_side`), so that each side's peak memory is its own; the side prints its figures
as the last line of its output (`report_side`). `write_result` writes bench/results/NAME.json (or into the folder that
STLLAVA_BENCH_RESULTS names) with the device, cores, versions, commit and command line beside the figures.
"""

import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from types import MappingProxyType

from pydantic import JsonValue

from stllava import store

RESULTS = Path(os.environ.get("STLLAVA_BENCH_RESULTS") or Path(__file__).resolve().parent.parent / "results")
PEERS = ("trl", "datasets", "vllm")
Figures = dict[str, float]


@dataclass(frozen=True)
class Spread:
    """The median of repeated figures, and the smallest and largest of them."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def spread(values: Sequence[float]) -> Spread:
    """Median, minimum and maximum."""
    return Spread(statistics.median(values), min(values), max(values))


def run_side(script: str, *arguments: str, settings: Mapping[str, str] = MappingProxyType({})) -> Figures:
    """Run `python script arguments` offline in a process of its own and return the figures it reported; exit where it fails.

    `settings` are environment variables of that process alone.
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"} | dict(settings)
    answer = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, env=environment, check=False)
    if answer.returncode != 0:
        sys.exit(f"{script} {' '.join(arguments)} ended with {answer.returncode}:\n{answer.stderr[-3000:]}")
    return {name: float(value) for name, value in json.loads(answer.stdout.splitlines()[-1]).items()}


def report_side(figures: Mapping[str, float]) -> None:
    """Hand a side's figures to `run_side`: the last line of the output."""
    print(json.dumps(figures), flush=True)


def peak_memory() -> int:
    """Bytes: the most that this process has held in main memory, or allocated on its GPU, since `forget_peak`."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return peak_resident()


def peak_resident() -> int:
    """Bytes: the most that this process has held in main memory; `getrusage` may say its parent's, from before exec."""
    return _status("VmHWM")


def forget_peak() -> int:
    """Start anew, and return the bytes held now: what training adds is measured from there.

    In main memory what was freed is first given back to the system, which glibc puts off.
    """
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    """A figure of this process's memory in bytes, from Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def finish_device() -> None:
    """Wait until the GPU has done what was asked of it, so that a clock read next is right."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def device_kind() -> str:
    """`cuda` or `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name() -> str:
    """The GPU's name, else the processor's."""
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.is_file() else []
    return models[0].partition(":")[2].strip() if models else platform.processor() or platform.machine()


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0))


def versions() -> dict[str, str]:
    """Versions of Python, of the packages that shape results and of the installed peers."""
    installed = {one.name for one in metadata.distributions()}
    return store.versions() | {name: metadata.version(name) for name in PEERS if name in installed}


def write_result(name: str, figures: Mapping[str, JsonValue]) -> Path:
    """Write bench/results/NAME.json: the figures and everything needed to judge and repeat them."""
    result = {
        "device": device_name(),
        "cores": cores(),
        "versions": versions(),
        "commit": store.commit(),
        "command": " ".join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        **figures,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return path


def as_json(value: Spread) -> dict[str, JsonValue]:
    """A spread for a result file."""
    return asdict(value)
