"""Finds what training has seen of a benchmark: images, by their bytes or nearly, and questions about them.

    learned = {"conversations": [item for record in conversations for item in training_items(record)]}
    fingerprints = fingerprints_of(root, paths)
    overlap = find_overlap("vqa-rad", samples, fingerprints=fingerprints, learned=learned, learned_fingerprints=fingerprints)

Reads image files (`fingerprints_of` only); writes nothing. Copies that were cut, turned, mirrored or padded are not
found, nor are other images of the same patient.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, get_args

from stllava.data.benchmarks.own import read_samples
from stllava.data.conversations import PAIRS, TURNS, read_conversations
from stllava.data.images import open_image
from stllava.data.likeness import near, picture_hash
from stllava.data.tables import read_table
from stllava.errors import StllavaError
from stllava.metrics.robust import normalise, token_f1
from stllava.records import (
    Conversation,
    FingerprintRow,
    Image,
    Match,
    MatchKind,
    Message,
    Overlap,
    Preference,
    Question,
    Sample,
)
from stllava.store import file_hash, read_jsonl, stream_records

NEAR_QUESTION = 0.8
"""Least F1 of the words of two questions that are nearly the same: of five words each, four are shared."""
LISTED = 200
"""Matches that an `Overlap` lists at most; it says how many more there are."""


@dataclass(frozen=True, slots=True)
class ImageFingerprint:
    """What tells an image from others."""

    content: str
    """SHA-256 of the file's bytes."""
    picture: int | None
    """`picture_hash`; None for a plain picture, which is like nothing but its own bytes."""


@dataclass(frozen=True, slots=True)
class TrainingItem:
    """One thing that training sees: an image, alone or with a question about it."""

    image: str
    """Path relative to the image root of the training data."""
    question: str | None = None
    """What is asked about it; None where nothing is."""
    answer: str | None = None
    """What is answered; None where that is not known."""


_About = dict[str, list[tuple[str, TrainingItem]]]
"""What is learned about an image and from which source, by the image's content."""


def fingerprint(root: Path, relative: str) -> ImageFingerprint:
    """What tells one image from others; raises `ItemError` as `open_image` does."""
    picture = picture_hash(open_image(root, relative))
    return ImageFingerprint(content=file_hash(root / relative), picture=picture)


def fingerprints_of(root: Path, paths: Iterable[str]) -> dict[str, ImageFingerprint]:
    """The fingerprints of every path; an unusable image is an `ItemError`, so leave out those that are dropped elsewhere."""
    return {path: fingerprint(root, path) for path in sorted(set(paths))}


TrainingRecord = Conversation | Question | Preference | Image | Sample
"""What training learns from, or asks itself about."""
_MARKS: dict[str, type[TrainingRecord]] = {
    "chosen": Preference,
    "description": Question,
    "targets": Sample,
    "path": Image,
}
"""A key that only one kind of record has."""


def fingerprint_rows(fingerprints: Mapping[str, ImageFingerprint]) -> list[FingerprintRow]:
    """Fingerprints as records."""
    hexadecimal = {path: None if one.picture is None else f"{one.picture:x}" for path, one in fingerprints.items()}
    return [FingerprintRow(path=path, content=one.content, picture=hexadecimal[path]) for path, one in fingerprints.items()]


def read_fingerprints(path: Path) -> dict[str, ImageFingerprint]:
    """Fingerprints of a JSONL file of `FingerprintRow` records, by path of the image."""
    rows = read_jsonl(path, FingerprintRow)
    return {row.path: ImageFingerprint(row.content, None if row.picture is None else int(row.picture, 16)) for row in rows}


def read_training_items(path: Path) -> list[TrainingItem]:
    """What training sees of a file of conversations, samples or images, or of the folder of an ask or pair stage."""
    if path.is_dir():
        stages: dict[str, type[Question] | type[Preference]] = {"questions": Question, "preferences": Preference}
        for name, kind in stages.items():
            if (path / f"{name}.jsonl").is_file():
                return [item for record in stream_records(path, name, kind) for item in training_items(record)]
    elif path.is_file():
        records = _records(path)
        if records is not None:
            return [item for record in records for item in training_items(record)]
    raise StllavaError(
        f"{path} holds nothing that training learns from",
        expected="conversations, samples or images in a file that is read elsewhere too, or the folder of an ask or pair stage",
        remedy="Check the path.",
    )


def _records(path: Path) -> Sequence[TrainingRecord] | None:
    """What a file of records, or of others' conversations or questions, holds; None where its columns are of none."""
    if path.suffix == ".jsonl":
        with path.open("rb") as file:
            first = file.readline().decode("utf-8", "replace")
        for key, source in _MARKS.items():
            if re.search(r'"id"\s*:', first) and re.search(rf'"{key}"\s*:', first):
                return read_jsonl(path, source)
    columns = {name.strip().casefold() for name in read_table(path, kinds="what is learned", objects=False).columns()}
    if "question" in columns and columns & {"targets", "answer", "answers"}:
        return read_samples(path)[0]
    if columns & set(TURNS) or any(columns >= set(pair) for pair in PAIRS):
        return read_conversations(path)[0]
    return None


def refuse(overlap: Overlap) -> NoReturn:
    """Say what training has seen of a benchmark, and what can be done."""
    raise StllavaError(
        " ".join(describe(overlap)[:-1]).removesuffix("."),
        expected="a benchmark with images of its own",
        remedy="Take them out of the training data, or set allow_overlap: the report then says so.",
    )


def training_items(record: TrainingRecord) -> list[TrainingItem]:
    """What training sees in a record: of a preference the chosen answer, of a reference sample every target."""
    match record:
        case Image():
            return [TrainingItem(record.path)]
        case Sample():
            return [TrainingItem(record.image, record.question, target) for target in record.targets]
        case Question():
            return [TrainingItem(image, record.text) for image in record.images]
        case Conversation():
            turns = record.messages
        case Preference():
            turns = (*record.prompt, Message(role=record.speaker, content=record.chosen))
    asked: tuple[tuple[str | None, str | None], ...] = tuple(_asked(turns)) or ((None, None),)
    return [TrainingItem(image, question, answer) for image in record.images for question, answer in asked]


def find_overlap(
    benchmark: str,
    samples: Iterable[Sample],
    *,
    fingerprints: Mapping[str, ImageFingerprint],
    learned: Mapping[str, Sequence[TrainingItem]],
    learned_fingerprints: Mapping[str, ImageFingerprint],
) -> Overlap:
    """Compare a benchmark with all that is learned, given by the name of its source.

    `fingerprints` holds the samples' images by path, `learned_fingerprints` those that are learned; with one image root
    both may be one mapping. A path that they lack is a `KeyError`. The samples are gone through several times; none is kept.
    """
    about: _About = defaultdict(list)
    for source, items in learned.items():
        for item in dict.fromkeys(items):
            about[learned_fingerprints[item.image].content].append((source, item))
    images = sorted({sample.image for sample in samples})
    alike = _alike(
        [fingerprints[image] for image in images], [at for at in learned_fingerprints.values() if at.content in about]
    )
    like = {image: alike[fingerprints[image].content] for image in images}
    exact = sum(fingerprints[image].content in like[image] for image in images)
    sources = [{source for content in like[image] for source, _ in about[content]} for image in images]
    texts = {normalise(item.question) for items in learned.values() for item in items if item.question is not None}
    kinds: Counter[str] = Counter()
    matches: list[Match] = []
    for sample in samples:
        found = list(_questions(sample, like[sample.image], about))
        seen = {match.kind for match in found}
        kinds["samples"] += 1
        kinds["same"] += bool(seen & {"triplet", "same question"})
        kinds["near"] += seen == {"near question"}
        kinds["triplets"] += "triplet" in seen
        kinds["known"] += normalise(sample.question) in texts
        matches += found
    matches += (match for image in images for match in _near_images(image, fingerprints[image], like[image], about))
    matches.sort(key=lambda match: get_args(MatchKind).index(match.kind))
    return Overlap(
        benchmark=benchmark,
        samples=kinds["samples"],
        images=len(images),
        exact_images=exact,
        near_images=sum(bool(found) for found in like.values()) - exact,
        same_questions=kinds["same"],
        near_questions=kinds["near"],
        triplets=kinds["triplets"],
        known_texts=kinds["known"],
        by_source={name: sum(name in found for found in sources) for name in learned},
        matches=tuple(matches[:LISTED]),
        left_out=max(0, len(matches) - LISTED),
    )


def describe(overlap: Overlap) -> list[str]:
    """The overlap in plain sentences, for notes and refusals."""
    what, images, samples = overlap.benchmark, overlap.images, overlap.samples
    known = (
        f"{overlap.known_texts} of {samples} test questions of {what} stand in training in the same words, about "
        "whatever image."
    )
    if not overlap.serious:
        return [f"None of {images} test images of {what} is among the training images, by its bytes or nearly.", known]
    held = ", ".join(f"{name} {count}" for name, count in overlap.by_source.items() if count)
    return [
        f"Of {images} test images of {what}, {overlap.exact_images} are byte for byte among the training images and "
        f"{overlap.near_images} more nearly so ({held}).",
        f"Of {samples} test questions of {what}, {overlap.same_questions} are also asked in training about such an "
        f"image, {overlap.triplets} of them with the same answer, and {overlap.near_questions} more are nearly asked.",
        known,
    ]


def _asked(turns: Sequence[Message]) -> Iterator[tuple[str, str | None]]:
    """Every question in the turns and the answer that follows it at once."""
    for number, turn in enumerate(turns):
        if turn.role in ("user", "virtual_user"):
            after = turns[number + 1 : number + 2]
            yield turn.content, after[0].content if after and after[0].role == "assistant" else None


def _alike(images: Iterable[ImageFingerprint], trained: Iterable[ImageFingerprint]) -> dict[str, dict[str, int]]:
    """Of every image's content the trained contents that are the same (0) or near, and by how many bits."""
    tested, others = ({at.content: at.picture for at in side} for side in (images, trained))
    found: dict[str, dict[str, int]] = {content: {content: 0} if content in others else {} for content in tested}
    for content, other, bits in near(_pictures(tested), _pictures(others)):
        found[content][other] = bits
    return found


def _pictures(fingerprints: Mapping[str, int | None]) -> dict[str, int]:
    return {content: picture for content, picture in fingerprints.items() if picture is not None}


def _near_images(image: str, at: ImageFingerprint, like: Mapping[str, int], about: _About) -> Iterator[Match]:
    """One match for every source of every near image with other bytes."""
    for content in sorted(like.keys() - {at.content}):
        # Backwards, so that the first of a source's items stays.
        for source, item in dict(reversed(about[content])).items():
            yield Match(kind="near image", image=image, other_image=item.image, source=source, distance=like[content])


def _questions(sample: Sample, like: Mapping[str, int], about: _About) -> Iterator[Match]:
    """One match for every question about these images that is the sample's, or nearly so."""
    text, targets = normalise(sample.question), {normalise(target) for target in sample.targets}
    for content, bits in like.items():
        for source, item in about[content]:
            if item.question is None:
                continue
            similarity = token_f1(item.question, [sample.question])
            if similarity < NEAR_QUESTION:
                continue
            same = normalise(item.question) == text
            answered = same and item.answer is not None and normalise(item.answer) in targets
            yield Match(
                kind="triplet" if answered else "same question" if same else "near question",
                sample_id=sample.id,
                image=sample.image,
                question=sample.question,
                other_image=item.image,
                other_question=item.question,
                source=source,
                distance=bits,
                similarity=similarity,
            )
