"""Synthetic phantoms as a source: drawn from the run's seed into its data folder, with truths for the oracle."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from stllava.data.overlap import ImageFingerprint
from stllava.data.phantom.draw import draw, make_truth, png
from stllava.data.phantom.language import conversations, samples
from stllava.data.sources.source import SourceData, SourceOptions, register
from stllava.records import Image, content_id
from stllava.store import write_whole


class PhantomData(SourceOptions):
    """Synthetic phantoms with known truth, generated from the run's seed."""

    synthetic: ClassVar[bool] = True

    kind: Literal["phantom"] = "phantom"
    """Synthetic radiology phantoms."""
    labelled: PositiveInt = 100
    """Number of images with conversations for sft."""
    unlabelled: PositiveInt = 800
    """Number of images that the policy asks itself about."""
    validation: PositiveInt = 80
    """Number of held-out images that choose the best round."""
    test: PositiveInt = 200
    """Number of held-out images that measure it."""
    size: Annotated[int, Field(ge=32)] = 128
    """Width and height in pixels."""


class PhantomSource:
    """Draws what it reads."""

    def check(self, options: PhantomData) -> None:
        """Nothing is read."""

    def inputs(self, options: PhantomData) -> dict[str, str]:
        """The seed alone decides, which all sources have."""
        return {}

    def read(self, options: PhantomData, *, seed: int, max_bad: float, begin: Callable[[], Path]) -> SourceData:
        """Draw the images; every split has images of its own."""
        root = begin()
        sizes = {"labelled": options.labelled, "unlabelled": options.unlabelled}
        sizes |= {"validation": options.validation, "test": options.test}
        truths = {split: [make_truth(seed, index, split) for index in range(count)] for split, count in sizes.items()}
        fingerprints: dict[str, ImageFingerprint] = {}
        for truth in (truth for split in truths.values() for truth in split):
            drawn = png(draw(truth, size=options.size, seed=seed))
            write_whole(root / truth.path, drawn)
            # Drawn by chance from one truth, two phantoms may look alike: only the same bytes would be a copy.
            fingerprints[truth.path] = ImageFingerprint(sha256(drawn).hexdigest(), picture=None)
        talks = [talk for truth in truths["labelled"] for talk in conversations(truth, seed=seed)]
        images = [Image(id=content_id(truth.path), path=truth.path) for truth in truths["unlabelled"]]
        validation, test = (
            [sample for truth in truths[split] for sample in samples(truth, seed=seed, split=split)]
            for split in ("validation", "test")
        )
        read = len(talks) + len(images) + len(validation) + len(test)
        return SourceData(fingerprints, talks, images, validation, {"phantom": test}, truths=truths["unlabelled"], read=read)

    def image_root(self, options: PhantomData, to: Path) -> Path:
        """Where they are drawn."""
        return to / "images"

    def describe(self, options: PhantomData) -> str:
        """No patient is in them."""
        return "Synthetic phantoms, drawn by stllava: no patient data."


register(PhantomData, PhantomSource())
