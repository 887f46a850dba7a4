"""The processes of one training: which of them leads, what they tell each other, and how a stage runs in all of them.

`accelerate launch -m stllava sft …` starts one process a device. The first leads: it alone holds the stage's folder and
writes there. The others compute what it computes, take their share of every step, and write nothing.
"""

import atexit
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, reduce

from stllava.dropped import Dropped
from stllava.errors import StllavaError
from stllava.model.device import best_device
from stllava.model.load import Policy
from stllava.progress import RANK, WORLD_SIZE, place_among_processes
from stllava.records import Manifest, Record
from stllava.store import Stage

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes that train together, seen from one of them."""

    index: int
    """Which one this is, from 0."""
    count: int
    """How many there are."""

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes."""
        return self.index == 0

    def share(self, value: T) -> T:
        """The value that the leading process has, in all of them; every process must ask."""
        if self.count == 1:
            return value
        values: list[Any] = [value]
        broadcast_object_list(values, from_process=0)
        return cast(T, values[0])

    def gather(self, values: Sequence[T]) -> list[T]:
        """The values of all processes, in their order; every process must ask."""
        return list(values) if self.count == 1 else cast("list[T]", gather_object(list(values)))

    def mean(self, figures: Mapping[str, float]) -> dict[str, float]:
        """The mean of each figure over all processes, which have figures of the same names; every process must ask."""
        if self.count == 1:
            return dict(figures)
        values = torch.tensor([figures[name] for name in sorted(figures)], dtype=torch.float64, device=PartialState().device)
        return dict(zip(sorted(figures), reduce(values, reduction="mean").tolist(), strict=True))


ALONE = Processes(0, 1)
"""One process, which shares nothing."""


@lru_cache(maxsize=1)
def current_processes() -> Processes:
    """The processes that were launched together, joined; one where none were launched.

    Raises:
        StllavaError: Where the environment names a number of processes, and not which of them this is.
    """
    _, count = place_among_processes()
    named = {name: os.environ.get(name) for name in (WORLD_SIZE, RANK)}
    if named[WORLD_SIZE] not in (None, str(count)):
        raise StllavaError(
            f"{WORLD_SIZE} is {named[WORLD_SIZE]!r} and {RANK} {named[RANK]!r}, which name no process of a training",
            expected="both as torchrun or accelerate launch set them, or neither",
            remedy=f"Launch with one of these, or unset {WORLD_SIZE} and {RANK}.",
        )
    if count == 1:
        return ALONE
    state = PartialState(cpu=best_device().type == "cpu")
    return Processes(state.process_index, state.num_processes)


@lru_cache(maxsize=1)
def leave_at_exit() -> None:
    """Let this process leave the others when it ends, all of them having finished what they did together.

    One that ends while still in the group can be aborted: PyTorch's gloo threads may hold its last messages then.
    """
    if current_processes().count > 1:
        atexit.register(PartialState().destroy_process_group)


def leave_and_end() -> None:
    """Leave the others and end this process at once, all being done; where it has not joined others, go on.

    Threads of gloo that are left can abort a process that ends in the usual way.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    PartialState().destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@dataclass(frozen=True)
class TrainedPolicy:
    """What a training came to, for its stage's manifest."""

    policy: Policy
    """The policy that learned."""
    counts_in: int
    """Items read."""
    counts_out: int
    """Items learned from."""
    dropped: Dropped
    """The others by cause."""
    measures: Mapping[str, float]
    """Figures."""
    curves: Mapping[str, list[tuple[float, float]]]
    """Loss and figures over steps."""
    device: str
    """Where it learned."""
    notes: Sequence[str] = ()
    """Sentences for the reader."""
    records: Mapping[str, Iterable[Record]] = field(default_factory=dict)
    """Files to write beside the policy, by name."""


def run_training(opened: AbstractContextManager[Stage], learn: Callable[[Mapping[str, str]], TrainedPolicy]) -> Manifest:
    """Run a training stage in all processes and return its manifest; where it is done already, only that.

    Args:
        opened: The stage's folder, which the leading process alone holds.
        learn: Trains, in every process; given the hashes of the stage's inputs.
    """
    processes = current_processes()
    if not processes.leads:
        inputs = processes.share(cast("Mapping[str, str] | None", None))
        if inputs is not None:
            learn(inputs)
        finished = processes.share(cast(Manifest, None))
        leave_at_exit()
        return finished
    with opened as stage:
        processes.share(stage.inputs if stage.manifest is None else None)
        manifest = stage.manifest
        if manifest is None:
            learned = learn(stage.inputs)
            for name, records in learned.records.items():
                stage.write_records(name, records)
            learned.policy.save(stage.to)
            manifest = stage.finish(
                counts_in=learned.counts_in,
                counts_out=learned.counts_out,
                dropped=learned.dropped,
                measures=learned.measures,
                curves=learned.curves,
                notes=learned.notes,
                device=learned.device,
            )
        processes.share(manifest)
    leave_at_exit()
    return manifest
