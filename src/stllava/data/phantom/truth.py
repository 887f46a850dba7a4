"""What is true of a phantom: `Truth`, and the words its fields may take.

Reads nothing and writes nothing; drawn by `phantom`, put into words by `phantom_language`, known to the oracle.
Sides follow the radiological convention: the patient's right is on the image's left.
"""

from typing import Literal

import numpy as np

from stllava.records import Keyed, content_id

Modality = Literal["x-ray", "ct", "mr"]
Region = Literal["chest", "abdomen", "head"]
Finding = Literal["none", "nodule", "mass", "effusion", "consolidation", "cyst", "hemorrhage", "tumor", "edema"]
Side = Literal["left", "right"]
Level = Literal["upper", "middle", "lower"]
Size = Literal["small", "large"]

COMBINATIONS: tuple[tuple[Region, Modality], ...] = (
    ("chest", "x-ray"),
    ("chest", "ct"),
    ("abdomen", "ct"),
    ("head", "ct"),
    ("head", "mr"),
)
FINDINGS: dict[Region, tuple[Finding, ...]] = {
    "chest": ("nodule", "mass", "effusion", "consolidation"),
    "abdomen": ("cyst", "mass"),
    "head": ("hemorrhage", "tumor", "edema"),
}
ORGANS: dict[Region, str] = {"chest": "lung", "abdomen": "abdomen", "head": "brain"}
MODALITIES: tuple[Modality, ...] = ("x-ray", "ct", "mr")
SIDES: tuple[Side, ...] = ("left", "right")
LEVELS: tuple[Level, ...] = ("upper", "middle", "lower")
SIZES: tuple[Size, ...] = ("small", "large")
COUNTED: tuple[Finding, ...] = ("nodule", "cyst")
DARK: tuple[Finding, ...] = ("cyst", "edema")


class Truth(Keyed):
    """All there is to know about one phantom."""

    id: str
    """Hash of everything else."""
    path: str
    """Relative to the image root: `<split>/<index>.png`."""
    modality: Modality
    """How the image looks to have been taken."""
    region: Region
    """Part of the body."""
    finding: Finding
    """What is abnormal, or none."""
    side: Side | None
    """The patient's side, so left is on the image's right; None without a finding."""
    level: Level | None
    """Third of the organ from the top of the image to its bottom; None without a finding."""
    size: Size | None
    """Size for a finding of its kind; None without a finding."""
    count: int
    """How many there are, all of one size at one place; 0 without a finding."""


def random(*parts: int | str) -> np.random.Generator:
    """A generator seeded by the parts' content."""
    return np.random.default_rng(int(content_id(*parts), 16))


def make_truth(seed: int, index: int, split: str) -> Truth:
    """The truth of one phantom of a split, whatever else is made.

    Every 25 indexes are a shuffled deck: each region and modality with no finding once and findings four times.
    """
    deck: list[tuple[Region, Modality, Finding]] = []
    block = index // (5 * len(COMBINATIONS))
    for region, modality in COMBINATIONS:
        choices = FINDINGS[region]
        deck += [(region, modality, "none")]
        deck += [(region, modality, choices[(block + number) % len(choices)]) for number in range(4)]
    order = random("deck", seed, split, block).permutation(len(deck))
    region, modality, finding = deck[order[index % len(deck)]]
    rng = random("truth", seed, split, index)
    side, level, size = SIDES[rng.integers(2)], LEVELS[rng.integers(3)], SIZES[rng.integers(2)]
    count = int(rng.choice((1, 1, 2, 3))) if finding in COUNTED else 1
    if count > 1:
        size = "small"
    if finding == "effusion":
        level = "lower"
    there = finding != "none"
    path = f"{split}/{index:05d}.png"
    where = (side, level, size, count) if there else (None, None, None, 0)
    return Truth(
        id=content_id(path, modality, region, finding, list(where)),
        path=path,
        modality=modality,
        region=region,
        finding=finding,
        side=where[0],
        level=where[1],
        size=where[2],
        count=where[3],
    )
