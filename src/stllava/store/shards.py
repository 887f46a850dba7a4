"""A stage cut into shards: each makes every n-th chunk in a folder of its own, and `stllava gather` makes the whole of them.

A stage's folder while shards work on it, on one machine or on many that share the disk:

    shards/2-of-8/plan.json        what is being made, and which shard of it
    shards/2-of-8/call.json        how the stage was called, so that gather can finish it
    shards/2-of-8/parts/           finished chunks, as of a stage that is not cut
    shards/2-of-8/manifest.json    written last: all chunks of this shard are there

Chunks are cut before they are shared out, so a chunk holds what it would hold in a stage that is not cut.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import ParamSpec, TypeVar

from pydantic import JsonValue, TypeAdapter

from stllava.errors import StllavaError
from stllava.records import Record

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
SHARD = "shard"
"""The input of a shard's plan by which it is told from the others, and the parameter of a stage that names it."""
_OWN = ("to", SHARD, "existing", "make")
"""What of a call is the shard's own business; what would `make` readers of files is not needed once they are read."""


@dataclass(frozen=True)
class Shard:
    """One of the equal parts of a stage's work."""

    number: int
    """Which one, from 1."""
    count: int
    """How many there are."""

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """The shard that `i/n` names; numbers begin at 1."""
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            zero = found is not None and int(found[1]) == 0
            raise StllavaError(
                f"shard is {text!r}",
                expected="i/n: the i-th of n shards, from 1/n to n/n",
                remedy="Count from 1: of a number that begins at 0, name one more." if zero else "Name it as 3/8, say.",
            )
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return f"{self.number}-of-{self.count}"

    def owns(self, index: int) -> bool:
        """Whether the chunk of that index, from 0, is made by this shard."""
        return index % self.count == self.number - 1


def planned_shard(folder: Path, inputs: Mapping[str, str]) -> Shard:
    """The shard that a folder is of, by the inputs in its plan.

    Raises:
        StllavaError: Where it is of none.
    """
    if SHARD not in inputs:
        raise StllavaError(
            f"{folder} is no shard, but the whole of a stage", expected="the folder of a shard", remedy="Do not name it."
        )
    return Shard.parse(inputs[SHARD])


@dataclass(frozen=True)
class ShardRows(Iterable[T]):
    """The rows in a shard's chunks, as often as they are gone through."""

    rows: Iterable[T]
    """All rows."""
    shard: Shard
    """Whose they are."""
    size: int
    """Rows a chunk."""

    def __iter__(self) -> Iterator[T]:
        for index, chunk in enumerate(in_chunks(self.rows, self.size)):
            if self.shard.owns(index):
                yield from chunk


def in_chunks(rows: Iterable[T], size: int) -> Iterator[list[T]]:
    """The rows in chunks of one size, the last of which may be shorter."""
    waiting = iter(rows)
    while chunk := list(islice(waiting, size)):
        yield chunk


class StageCall(Record):
    """How a shard's stage was called; `call.json` in its folder."""

    arguments: dict[str, JsonValue]
    """What it was given by name, but for the folder and what it was given as anyway; paths start where it was called."""

    @classmethod
    def of(cls, function: Callable[..., object], arguments: Mapping[str, object]) -> "StageCall":
        """The call of a stage's function with these arguments."""
        noted: dict[str, JsonValue] = {}
        for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
            if name in arguments and name not in _OWN and arguments[name] != parameter.default:
                noted[name] = TypeAdapter(parameter.annotation).dump_python(arguments[name], mode="json")
        return cls(arguments=noted)

    def read(self, function: Callable[..., object]) -> dict[str, object]:
        """The arguments as the function takes them."""
        parameters = inspect.signature(function, eval_str=True).parameters
        return {name: TypeAdapter(parameters[name].annotation).validate_python(value) for name, value in self.arguments.items()}


_CALL: ContextVar[StageCall | None] = ContextVar("call", default=None)


def shares_out(function: Callable[P, R]) -> Callable[P, R]:
    """A stage that may be cut into shards: how it is called is noted for gather where its argument `shard` is given."""

    @wraps(function)
    def noting(*args: P.args, **kwargs: P.kwargs) -> R:
        given = inspect.signature(function).bind(*args, **kwargs).arguments
        token = _CALL.set(StageCall.of(function, given) if given.get(SHARD) is not None else None)
        try:
            return function(*args, **kwargs)
        finally:
            _CALL.reset(token)

    return noting


def noted_call() -> StageCall:
    """How the stage at work was called."""
    call = _CALL.get()
    if call is None:
        raise RuntimeError("a stage that takes a shard lacks @shares_out")
    return call


@dataclass(frozen=True)
class Gathered:
    """What the shards of a stage say together beside their chunks."""

    measures: Mapping[str, float]
    """Figures that each of them found alike."""
    listed: bool = False
    """Of an import: whether the private list of files is theirs."""


_GATHERED: ContextVar[Gathered | None] = ContextVar("gathered", default=None)


@contextmanager
def from_shards(gathered: Gathered) -> Iterator[None]:
    """Let the stage that is called within be finished from its shards' chunks: it makes none itself."""
    token = _GATHERED.set(gathered)
    try:
        yield
    finally:
        _GATHERED.reset(token)


def gathered_now() -> Gathered | None:
    """What the shards said of the stage that is being gathered; None in every other."""
    return _GATHERED.get()


def not_in_shards(what: str, lacking: Sequence[int]) -> StllavaError:
    """The error of chunks that no shard has made, though all of them are done."""
    return StllavaError(
        f"{what}: chunk {lacking[0] + 1} and {len(lacking) - 1} others are in no shard",
        expected="every chunk of this input",
        remedy="Its input may have changed while shards worked: give all of their commands again, then gather.",
    )
