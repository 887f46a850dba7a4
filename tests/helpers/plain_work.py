"""Plain functions as the work of a stage's chunks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from stllava.dropped import Dropped
from stllava.records import Keyed, Record

I = TypeVar("I", bound=Keyed)  # noqa: E741
O = TypeVar("O", bound=Record)  # noqa: E741


@dataclass(frozen=True)
class PlainWork(Generic[I, O]):
    """Work of a chunk that needs no policy."""

    function: Callable[[Sequence[I]], tuple[list[O], Dropped]]
    device: str = "cpu"
    notes: tuple[str, ...] = ()

    def __call__(self, chunk: Sequence[I], /) -> tuple[list[O], Dropped]:
        return self.function(chunk)

    def close(self) -> None:
        pass

    def set_aside(self, chunk: Sequence[I], detail: str, /) -> tuple[list[O], Dropped]:
        return [], Dropped.set_aside(len(chunk), detail)
