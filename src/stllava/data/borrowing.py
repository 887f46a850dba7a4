"""Lends questions between images that are alike, over the whole set: what is hardly ever asked of one is asked of another.

Two images are alike in what the policy said of them (words their descriptions share) and in what they look like
(`likeness.picture_hash`). Questions come from a pool of at most `POOL` images, so that time grows with the number of
images and not with its square. Reads pictures (`looks_of` only); writes nothing.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from stllava.data.images import open_image
from stllava.data.likeness import picture_hash
from stllava.data.overlap import ImageFingerprint
from stllava.errors import ItemError
from stllava.metrics.robust import normalise
from stllava.records import Conversation

POOL = 2048
"""Images whose questions are lent, spread evenly over the set."""
STEPS = 10
"""Grades of likeness: among questions of one grade, those asked of the fewest images so far come first."""
_BLOCK = 512
_HASH_BYTES = 128


@dataclass(frozen=True)
class AskedAbout:
    """An image, what was said of it and asked about it."""

    description: str
    """The policy's description."""
    questions: tuple[str, ...]
    """Its own questions."""
    look: int | None = None
    """Its `picture_hash`; None of a plain picture, which looks like no other."""


Fingerprints = Mapping[str, ImageFingerprint]


def looks_of(root: Path, paths: Sequence[str], known: Fingerprints = MappingProxyType({})) -> list[int | None]:
    """The `picture_hash` of every image, read where it is not known; None of one that is not there or cannot be read."""
    looks: list[int | None] = []
    for path in paths:
        try:
            looks.append(known[path].picture if path in known else picture_hash(open_image(root, path)))
        except ItemError:  # Counted where images are learned or asked about; what is said of it is lent all the same.
            looks.append(None)
    return looks


def labelled_donors(
    conversations: Iterable[Conversation], root: Path, known: Fingerprints = MappingProxyType({})
) -> list[AskedAbout]:
    """The labelled images with what their labels say and ask of them: a policy hardly asks what it saw asked a dozen times.

    A user's turn that ends in a question mark is a question; the answer to any other first turn is the description.
    """
    told: dict[str, str] = {}
    asked: dict[str, dict[str, str]] = {}
    for talk in conversations:
        if len(talk.images) != 1:
            continue
        questions = asked.setdefault(talk.images[0], {})
        turns = [turn for turn in talk.messages if turn.role != "system"]
        for turn, following in pairwise(turns):
            if turn.role == "assistant":
                continue
            if turn.content.rstrip().endswith("?"):
                questions.setdefault(bare(turn.content), turn.content.strip())
            elif turn is turns[0]:
                told.setdefault(talk.images[0], following.content)
    looks = looks_of(root, list(asked), known)
    return [
        AskedAbout(told.get(image, ""), tuple(questions.values()), look)
        for (image, questions), look in zip(asked.items(), looks, strict=True)
    ]


def lend(images: Sequence[AskedAbout], *, max_borrowed: int, donors: Sequence[AskedAbout] = ()) -> Iterator[list[str]]:
    """Each image's own questions, and so many of other images', or of `donors`, that it does not ask itself.

    First those asked about the images most alike; of equally good ones first what the fewest images were asked so far, so
    that rare questions reach as many images as common ones.
    """
    if not max_borrowed:
        yield from (list(image.questions) for image in images)
        return
    every = 1 + (len(images) + len(donors)) // POOL
    pool = [image for image in [*images[::every], *donors[::every]] if image.questions]
    texts: dict[str, str] = {}
    for image in pool:
        for text in image.questions:
            texts.setdefault(bare(text), text)
    number, names = {key: index for index, key in enumerate(texts)}, list(texts.values())
    if not names:
        yield from (list(image.questions) for image in images)
        return
    # Every question beside each image that asks it, those of one question together.
    asks = sorted((number[bare(text)], index) for index, image in enumerate(pool) for text in image.questions)
    asking = np.array([index for _, index in asks])
    starts = np.searchsorted([question for question, _ in asks], np.arange(len(names)))
    asked = Counter(bare(text) for image in images for text in image.questions)
    counts = np.array([asked[key] for key in texts], dtype=np.int64)
    for start in range(0, len(images), _BLOCK):
        block = images[start : start + _BLOCK]
        best = np.maximum.reduceat(_likeness(block, pool)[:, asking], starts, axis=1)
        for image, grades in zip(block, np.floor(best * STEPS), strict=True):
            own = {number[key] for key in map(bare, image.questions) if key in number}
            order = np.lexsort((counts, -grades))
            borrowed = [index for index in order[: max_borrowed + len(own)].tolist() if index not in own][:max_borrowed]
            counts[borrowed] += 1
            yield [*image.questions, *(names[index] for index in borrowed)]


def bare(text: str) -> str:
    """A question without what does not tell it from another: case and spaces."""
    return " ".join(text.lower().split())


def _likeness(images: Sequence[AskedAbout], pool: Sequence[AskedAbout]) -> npt.NDArray[np.float32]:
    """[image, pool] from 0 to 1: half of it the words their descriptions share (Dice), half what their looks do."""
    words = {word: index for index, word in enumerate({word for image in pool for word in _words(image)})}
    ours, theirs = _bags(images, words), _bags(pool, words)
    lengths = np.array([len(_words(image)) for image in images])[:, None] + theirs.sum(axis=1)[None, :]
    shared = 2 * (ours @ theirs.T) / np.maximum(lengths, 1)
    looks = np.clip(_signs(images) @ _signs(pool).T / (8 * _HASH_BYTES), 0, 1)
    return np.asarray((shared + looks) / 2, dtype=np.float32)


def _words(image: AskedAbout) -> set[str]:
    return set(normalise(image.description).split())


def _bags(images: Sequence[AskedAbout], words: dict[str, int]) -> npt.NDArray[np.float32]:
    """[image, word] 1 where the description holds the word."""
    bags = np.zeros((len(images), len(words)), dtype=np.float32)
    for row, image in zip(bags, images, strict=True):
        row[[words[word] for word in _words(image) if word in words]] = 1
    return bags


def _signs(images: Sequence[AskedAbout]) -> npt.NDArray[np.float32]:
    """[image, bit] ±1, or 0 for an image that looks like no other."""
    heads = b"".join((image.look or 0).to_bytes(_HASH_BYTES) for image in images)
    bits = np.unpackbits(np.frombuffer(heads, dtype=np.uint8)).reshape(len(images), -1).astype(np.float32) * 2 - 1
    bits[[image.look is None for image in images]] = 0
    return bits
