"""What training has seen of a benchmark."""

from typing import Literal

from stllava.records.record import Record

MatchKind = Literal["triplet", "same question", "near question", "near image"]


class FingerprintRow(Record):
    """What tells an image of a data set from others."""

    path: str
    """Relative to the image root."""
    content: str
    """SHA-256 of the file's bytes."""
    picture: str | None
    """The perceptual hash in hexadecimal; None for a plain picture, which is like nothing but its own bytes."""


class Match(Record):
    """One thing of a benchmark that training has seen."""

    kind: MatchKind
    """What is the same or nearly so; a triplet is a same question with an answer that equals a target."""
    sample_id: str | None = None
    """The benchmark's sample; None where only the images match."""
    image: str
    """The benchmark's image, relative to its image root."""
    question: str | None = None
    """The benchmark's question; None where only the images match."""
    other_image: str
    """The image in training, relative to its image root."""
    other_question: str | None = None
    """The question in training; None where only the images match."""
    source: str
    """Which part of training it is in."""
    distance: int
    """Bits between the picture hashes; 0 for the same bytes, and for a copy that hardly differs."""
    similarity: float | None = None
    """F1 of the two questions' words; None where only the images match."""


class Overlap(Record):
    """What training has seen of a benchmark."""

    benchmark: str
    """Name of the benchmark."""
    samples: int
    """Its questions."""
    images: int
    """Its images."""
    exact_images: int
    """Images that training has byte for byte."""
    near_images: int
    """Other images that training has nearly so: encoded again, resized, a little brighter."""
    same_questions: int
    """Samples whose question, normalised, training has about such an image."""
    near_questions: int
    """Other samples that training has a question of nearly the same words for, about such an image."""
    triplets: int
    """Those of `same_questions` that training answers with a target."""
    known_texts: int
    """Samples whose question, normalised, training has about any image; generic questions are."""
    by_source: dict[str, int]
    """Images, exact or near, that each part of training has."""
    matches: tuple[Match, ...]
    """Triplets first, then same and near questions, then near images."""
    left_out: int
    """Matches beyond those listed."""

    @property
    def serious(self) -> bool:
        """Whether a score no longer measures unseen images: any is shared, and with it perhaps a question about it."""
        return self.exact_images + self.near_images > 0
