"""What benches of several seeds share: runs as processes of one thread, several at a time, and figures over the seeds."""

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import JsonValue

from stllava.metrics.seeds import combine_seeds

A = TypeVar("A")
B = TypeVar("B")


class Job(NamedTuple):
    """A command to run."""

    name: str
    words: Sequence[str]
    log: Path
    """Where what it prints is kept."""


def run_jobs(
    jobs: Sequence[Job],
    *,
    at_once: int,
    environment: Mapping[str, str] | None = None,
    seconds_of: Callable[[Job], float] | None = None,
) -> list[float]:
    """Run every command with one thread and return the seconds that each took, or what `seconds_of` says it did."""

    def start(job: Job) -> float:
        clock = time.perf_counter()
        with job.log.open("w", encoding="utf-8") as log:
            settings = os.environ | {"OMP_NUM_THREADS": "1"} | dict(environment or {})
            subprocess.run(job.words, env=settings, stdout=log, stderr=log, check=True)
        seconds = seconds_of(job) if seconds_of is not None else time.perf_counter() - clock
        print(f"{job.name}: {seconds:.0f} s", flush=True)
        return seconds

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(start, jobs))


def in_this_process(run: Callable[[A, B], object], tasks: Sequence[tuple[A, B]]) -> list[float]:
    """Run every task here, one after another, and return the seconds that each took."""
    clocks = [time.perf_counter()]
    for task in tasks:
        run(*task)
        clocks.append(time.perf_counter())
    return [end - start for start, end in pairwise(clocks)]


def over_seeds(scores: Sequence[Sequence[float]], images: Sequence[Sequence[str]]) -> list[JsonValue]:
    """Mean, lower and upper end of scores, one row a seed, in percent."""
    return [100 * value for value in combine_seeds(scores, images)]


def gap_over_seeds(
    mine: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], images: Sequence[Sequence[str]]
) -> list[JsonValue]:
    """Mean, lower and upper end of paired differences, one row a seed, in points."""
    gaps = [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(mine, theirs, strict=True)]
    return [100 * value for value in combine_seeds(gaps, images, differences=True)]


def seed_means(scores: Sequence[Sequence[float]]) -> list[JsonValue]:
    """The mean of every seed, in percent."""
    return [100 * sum(row) / len(row) for row in scores]


def print_arms(arms: Mapping[str, JsonValue], metrics: Sequence[str]) -> None:
    """A line for each arm: score and, where there is one, the loop's gain over it, by metric."""
    for arm, row in arms.items():
        assert isinstance(row, dict)
        cells = []
        for metric in metrics:
            cell = row[metric]
            assert isinstance(cell, dict)
            cells.append("{:5.1f} [{:.1f}, {:.1f}]".format(*cell["score"]))  # type: ignore[misc]
            gap = cell.get("loop_minus_this")
            cells.append("{:+5.1f} [{:+.1f}, {:+.1f}]".format(*gap) if isinstance(gap, list) else "")  # type: ignore[str-format]
        print(f"{arm:<28}" + "".join(f"{text:>24}" for text in cells))
