"""Which of many things readers are asked about: drawn by strata, with the probability of each on record. Pure.

What something speaks against is one stratum, all else the other. Within each the order is by chance, and the two alternate
as their sizes ask, so that whatever has been read, wherever reading stops, is a random sample of each stratum.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from stllava.config import ReviewOptions
from stllava.records import Stratum, content_id

STRATA: tuple[Stratum, ...] = ("uncertain", "random")
SIZE = "verdicts_{stratum}"
"""The figure of a drawing's manifest that counts what a stratum has in all."""


class Drawable(Protocol):
    """What may be drawn."""

    @property
    def key(self) -> str:
        """What makes it this one, whatever else is drawn."""

    @property
    def doubts(self) -> tuple[str, ...]:
        """What speaks against it; empty where nothing does."""


C = TypeVar("C", bound=Drawable)


@dataclass(frozen=True)
class Drawn(Generic[C]):
    """What was drawn, and how."""

    candidate: C
    stratum: Stratum
    inclusion: float
    """The probability with which one of that stratum was drawn."""
    readers: int
    """How many readers are to read it."""
    repeated: bool
    """Whether a reader is to read it a second time."""


def strata_of(candidates: Sequence[C]) -> dict[Stratum, list[C]]:
    """The candidates by stratum."""
    return {
        "uncertain": [one for one in candidates if one.doubts],
        "random": [one for one in candidates if not one.doubts],
    }


def sizes_of_strata(candidates: Sequence[C]) -> dict[str, float]:
    """The figures of a manifest that say how many candidates each stratum has."""
    return {SIZE.format(stratum=name): float(len(members)) for name, members in strata_of(candidates).items()}


def draw(candidates: Sequence[C], *, options: ReviewOptions, seed: int) -> Iterator[Drawn[C]]:
    """What readers are asked about, in the order in which it is read."""
    strata = strata_of(candidates)
    wanted = min(options.tasks, len(candidates))
    uncertain = min(len(strata["uncertain"]), round(options.uncertain_share * wanted))
    ordinary = min(len(strata["random"]), wanted - uncertain)
    counts: dict[Stratum, int] = {"uncertain": min(len(strata["uncertain"]), wanted - ordinary), "random": ordinary}
    placed: list[tuple[float, Stratum, C]] = []
    for stratum, members in strata.items():
        order = sorted(members, key=lambda one: content_id("drawn", seed, one.key))[: counts[stratum]]
        placed += [((place + 0.5) / len(order), stratum, one) for place, one in enumerate(order)]
    for _, stratum, one in sorted(placed, key=lambda row: row[:2]):
        yield Drawn(
            candidate=one,
            stratum=stratum,
            inclusion=counts[stratum] / len(strata[stratum]),
            readers=2 if _chance("overlap", seed, one.key) < options.overlap else 1,
            repeated=_chance("repeat", seed, one.key) < options.repeats,
        )


def _chance(*parts: str | int) -> float:
    """A number from 0 to 1 that depends on the parts alone."""
    return int(content_id(*parts), 16) / 16**16
