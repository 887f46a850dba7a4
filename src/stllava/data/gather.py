"""Collects a data set from where it comes from: phantoms that are drawn, the VQA-RAD folder, an imported
image set, or your own files.

Reads and checks everything, decoding every image once; writes nothing but phantoms. `prepare` writes the result.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stllava.config import DESCRIBE, FilesData, ImportedData, PhantomData, VqaRadData
from stllava.data.benchmarks import VQA_RAD_TEST, read_vqa_rad
from stllava.data.benchmarks.own import find_own, read_samples
from stllava.data.captions import caption
from stllava.data.conversations import read_conversation_file, singles
from stllava.data.folder import images_in
from stllava.data.headers import BENCHMARK, header_questions
from stllava.data.image_set import TRAIN, read_imported
from stllava.data.images import spelt_otherwise
from stllava.data.overlap import ImageFingerprint, Source, TrainingItem, fingerprint, training_items
from stllava.data.phantom.draw import generate
from stllava.data.turns import conversation
from stllava.errors import ItemError, StllavaError
from stllava.metrics.robust import normalise
from stllava.progress import track
from stllava.records import Conversation, Image, Message, Sample, content_id
from stllava.store import file_hash, read_jsonl

_NAMED = 5


@dataclass
class Gathered:
    """A data set in memory, with what was left out of it and why."""

    fingerprints: dict[str, ImageFingerprint]
    """What tells every usable image from others, by path."""
    conversations: list[Conversation]
    """What sft learns from."""
    images: list[Image]
    """What the policy asks itself about."""
    validation: list[Sample]
    """What chooses the best round."""
    benchmarks: dict[str, list[Sample]]
    """What measures it, by name."""
    captions: list[Conversation] = field(default_factory=list)
    """What an alignment stage learns from."""
    candidates: dict[str, list[str]] = field(default_factory=dict)
    """Answers that the published open accuracy of a benchmark chooses from: those of its open training questions."""
    references: list[Sample] | None = None
    """What the reference expert may look at."""
    read: int = 0
    """Rows and unlabelled images that were read."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Those of them that were left out, by cause."""
    notes: list[str] = field(default_factory=list)
    """Sentences for the reader of the results."""

    def learned(self) -> dict[str, list[TrainingItem]]:
        """What weights or verdicts depend on, by the part of the data it is in."""
        parts: dict[str, Sequence[Source]] = {
            "labelled conversations": self.conversations,
            "captions": self.captions,
            "images to ask about": self.images,
            "references": self.references or (),
        }
        return {name: [item for record in records for item in training_items(record)] for name, records in parts.items()}


def gather_phantoms(options: PhantomData, *, seed: int, to: Path) -> Gathered:
    """Draw phantoms into `to` and read them back."""
    generate(options, seed=seed, to=to)
    conversations, images = read_jsonl(to / "conversations.jsonl", Conversation), read_jsonl(to / "images.jsonl", Image)
    validation, test = (read_jsonl(to / f"{name}.jsonl", Sample) for name in ("validation", "phantom"))
    root = to / "images"
    # Drawn by chance from one truth, two phantoms may look alike: only the same bytes would be a copy.
    fingerprints = {
        path.relative_to(root).as_posix(): ImageFingerprint(file_hash(path), picture=None) for path in root.rglob("*.png")
    }
    read = len(conversations) + len(images) + len(validation) + len(test)
    return Gathered(fingerprints, conversations, images, validation, {"phantom": test}, read=read)


def gather_vqa_rad(options: VqaRadData, *, seed: int, max_bad: float) -> Gathered:
    """Split the training images by seed: labelled, validation, and the rest to ask about with reference answers.

    A training row that repeats another, or a test question about the same image, is left out.
    """
    both = read_vqa_rad(options.folder, split=options.split)
    fingerprints, bad = _check_images(options.folder, (row.image for row in (*both.train, *both.test)), max_bad=max_bad)
    dropped: Counter[str] = Counter()
    notes: list[str] = []
    train, test = _usable(both.train, bad, dropped), _usable(both.test, bad, dropped)
    asked = {(row.image, normalise(row.question)) for row in test}
    known = len(train)
    train = [row for row in train if (row.image, normalise(row.question)) not in asked]
    if len(train) < known:
        dropped["question of the test split"] = known - len(train)
        notes.append(
            f"Training questions left out because the test split asks them about the same image: {known - len(train)}."
        )
    # The later of two equal rows stands in the dict, at the place of the first.
    rows = list({(row.image, normalise(row.question), normalise(row.targets[0])): row for row in train}.values())
    if len(rows) < len(train):
        dropped["repeated"] = len(train) - len(rows)
    images = sorted({row.image for row in rows}, key=lambda image: content_id("split", seed, image))
    held, others = images[: options.validation], images[options.validation :]
    count = len(others) if options.labelled == "all" else options.labelled
    labelled, rest = others[:count], others[count:]
    if not labelled or (not rest and options.labelled != "all"):
        raise StllavaError(
            f"VQA-RAD has {len(images)} usable training images, {options.labelled} + {options.validation} are set aside",
            expected="some left to ask about",
            remedy="Lower data.labelled or data.validation.",
        )
    kinds = Counter(row.kind for row in test)
    if kinds != VQA_RAD_TEST:
        notes.append(
            f"The test split has {kinds['open']} open and {kinds['closed']} closed questions, the published one "
            f"{VQA_RAD_TEST['open']} and {VQA_RAD_TEST['closed']}."
        )
    return Gathered(
        fingerprints,
        _conversations(labelled, rows, seed=seed),
        [Image(id=content_id("image", image), path=image) for image in sorted(rest)],
        [row.model_copy(update={"split": "validation"}) for row in rows if row.image in set(held)],
        {"vqa-rad": test},
        captions=_captions(labelled, rows),
        candidates={"vqa-rad": sorted({row.targets[0] for row in both.train if row.kind == "open"})},
        references=[row for row in rows if row.image in set(rest)],
        read=len(both.train) + len(both.test),
        dropped=dropped,
        notes=notes,
    )


def gather_imported(options: ImportedData, *, seed: int, max_bad: float) -> Gathered:
    """Take the set's own splits: labelled pictures of train, the rest of train to ask about, validation, test.

    Questions come from your labels and from headers; a question that both ask of a picture is yours.
    """
    rows = read_imported(options.folder)
    split = {row.path: row.split for row in rows}
    own, notes = ([], []) if options.labels is None else _own_labels(options.labels, split)
    asked = {(row.image, normalise(row.question)) for row in own}
    made = header_questions(rows) if options.headers else []
    made = [row for row in made if (row.image, normalise(row.question)) not in asked]
    fingerprints, bad = _check_images(options.folder, split, max_bad=max_bad)
    dropped = Counter(bad[path].cause for path in bad)
    known = [row for row in _usable(own, bad, dropped) + made if row.image not in bad]
    mine = {row.image for row in own}
    train = sorted(
        (path for path in fingerprints if split[path] == TRAIN),
        key=lambda path: (path not in mine, content_id("split", seed, path)),
    )
    askable = {row.image for row in known}
    told = [path for path in train if path in askable]
    labelled = told if options.labelled == "all" else told[: options.labelled]
    rest = sorted(set(train) - set(labelled))
    parts = {name: [row for row in known if row.split == name] for name in ("validation", "test")}
    for what, left in (("train", labelled), *parts.items(), ("train beyond the labelled", rest or options.labelled == "all")):
        if not left:
            raise StllavaError(
                f"{options.folder} has no pictures with a question in the split {what}",
                expected="some in train, validation and test",
                remedy="Label more pictures (data.labels), import more patients, or import with other shares (--splits).",
            )
    notes += [f"{len(made)} of {len(known)} questions were made by rule from what the pictures' headers say."] if made else []
    return Gathered(
        fingerprints,
        _conversations(labelled, known, seed=seed),
        [Image(id=content_id("image", path), path=path) for path in rest],
        parts["validation"],
        {options.kind: parts["test"]},
        captions=_captions(labelled, known),
        references=[row for row in known if row.image in set(rest)],
        read=len(rows) + len(own),
        dropped=dropped,
        notes=notes,
    )


def _own_labels(path: Path, split: Mapping[str, str]) -> tuple[list[Sample], list[str]]:
    """A user's questions, each in the split of its picture, and notes; one about no picture of the set is refused."""
    own = find_own(BENCHMARK, path)
    found = [row for rows in own.splits.values() for row in rows]
    strange = [row.image for row in found if row.image not in split]
    if strange:
        raise StllavaError(
            f"{len(strange)} of {len(found)} rows of {path} are about no picture of the set: {strange[0]!r}",
            expected="images as images.jsonl of the set names them",
            remedy="Fix these rows, or point data.folder to their set.",
        )
    return [row.model_copy(update={"split": split[row.image]}) for row in found], list(own.notes)


def gather_files(options: FilesData, *, max_bad: float) -> Gathered:
    """Read your own files.

    When the whole image root is to be asked about, that means all images but those of validation and benchmarks. Every
    question of a conversation is learned by itself too, as in data of the other kinds, unless `single_questions` is off.
    """
    dropped: Counter[str] = Counter()
    notes: list[str] = []
    talks = _read_talks(options, options.conversations, dropped, notes, max_bad=max_bad)
    captions = _read_talks(options, options.captions, dropped, notes, max_bad=max_bad) if options.captions is not None else []
    found = images_in(options.images, options.unlabelled)
    sets = {"validation": options.validation, **{f"benchmark {name}": path for name, path in options.benchmarks.items()}}
    if options.references is not None:
        sets["references"] = options.references
    samples: dict[str, list[Sample]] = {}
    for name, path in sets.items():
        samples[name], told = read_samples(path, split=name.removeprefix("benchmark "))
        notes += told
    read = len(talks) + len(captions) + dropped.total() + len(found) + sum(map(len, samples.values()))
    every = [row.image for rows in samples.values() for row in rows] + [image.path for image in found]
    every += [path for talk in (*talks, *captions) for path in talk.images]
    fingerprints, bad = _check_images(options.images, every, max_bad=max_bad)
    for name, rows in samples.items():
        samples[name] = _usable(rows, bad, dropped)
        if len(samples[name]) < len(rows):
            notes.append(f"{len(rows) - len(samples[name])} of {len(rows)} samples of {name} cannot be used and are left out.")
    talks, captions = _shown(talks, bad, dropped), _shown(captions, bad, dropped)
    if options.single_questions and (alone := singles(talks)):
        notes.append(
            f"{len(alone)} questions of conversations with several are also learned by themselves, beside the whole "
            "(data.single_questions)."
        )
        talks = [*alone, *talks]
    dropped.update(bad[image.path].cause for image in found if image.path in bad)
    images = [image for image in found if image.path not in bad]
    if options.unlabelled is None:
        held = {fingerprints[row.image].content for name, rows in samples.items() if name != "references" for row in rows}
        kept = [image for image in images if fingerprints[image.path].content not in held]
        dropped["held out"] = len(images) - len(kept)
        images = kept
    for what, left in (("conversations", talks), ("images to ask about", images), *samples.items()):
        if not left:
            raise StllavaError(f"no usable {what} are left", expected="at least one", remedy="Check data's paths and files.")
    benchmarks = {name: samples[f"benchmark {name}"] for name in options.benchmarks}
    references = samples.get("references")
    return Gathered(
        fingerprints,
        talks,
        images,
        samples["validation"],
        benchmarks,
        captions=captions,
        references=references,
        read=read,
        dropped=+dropped,
        notes=notes,
    )


def _read_talks(
    options: FilesData, path: Path, dropped: Counter[str], notes: list[str], *, max_bad: float
) -> list[Conversation]:
    """The usable conversations of a file; the others are counted, and too many of them refused."""
    read = read_conversation_file(path, root=options.images)
    bad = read.dropped.faults.total()
    if bad > max_bad * read.rows:
        raise StllavaError(
            f"{bad} of {read.rows} rows of {path} cannot be used: {read.causes()}",
            expected=f"at most {max_bad:.0%}",
            remedy="Fix these rows, or raise max_bad.",
        )
    dropped.update(read.dropped)
    notes += read.notes
    return read.records


def _shown(talks: Sequence[Conversation], bad: Mapping[str, ItemError], dropped: Counter[str]) -> list[Conversation]:
    """The conversations all of whose images can be used; the others are counted by the first cause."""
    for talk in talks:
        dropped.update([bad[path].cause for path in talk.images if path in bad][:1])
    return [talk for talk in talks if not any(path in bad for path in talk.images)]


def _conversations(images: Sequence[str], rows: Sequence[Sample], *, seed: int) -> list[Conversation]:
    """For every image one conversation for each of its questions, and one of all in seeded order behind its caption."""
    made: list[Conversation] = []
    for image in sorted(images):
        about = [row for row in rows if row.image == image]
        described = _described(about)
        turns = {
            row.id: (Message(role="user", content=row.question), Message(role="assistant", content=row.targets[0]))
            for row in about
        }
        made += [conversation((image,), pair) for pair in turns.values()]
        if len(about) > 1:
            order = sorted(turns, key=lambda key: content_id("turns", seed, key))
            made.append(conversation((image,), (*described, *(message for key in order for message in turns[key]))))
    return made


def _captions(images: Sequence[str], rows: Sequence[Sample]) -> list[Conversation]:
    """For every image whose labels make one, the request to describe it and its caption."""
    turns = {image: _described([row for row in rows if row.image == image]) for image in sorted(images)}
    return [conversation((image,), messages) for image, messages in turns.items() if messages]


def _described(rows: Sequence[Sample]) -> tuple[Message, ...]:
    text = caption(rows)
    return () if text is None else (Message(role="user", content=DESCRIBE), Message(role="assistant", content=text))


def _usable(rows: Iterable[Sample], bad: Mapping[str, ItemError], dropped: Counter[str]) -> list[Sample]:
    """The samples with a usable image, a question and a target; the others are counted by cause."""
    kept: list[Sample] = []
    for row in rows:
        if row.image in bad:
            dropped[bad[row.image].cause] += 1
        elif not row.question.strip() or not any(target.strip() for target in row.targets):
            dropped["empty text"] += 1
        else:
            kept.append(row)
    return kept


def _check_images(
    root: Path, paths: Iterable[str], *, max_bad: float
) -> tuple[dict[str, ImageFingerprint], dict[str, ItemError]]:
    """What the usable images look like and the errors of the others, both by path."""
    fingerprints: dict[str, ImageFingerprint] = {}
    bad: dict[str, ItemError] = {}
    every = sorted(set(paths))
    for path in track(every, "check", len(every), unit="images"):
        try:
            fingerprints[path] = fingerprint(root, path)
        except ItemError as error:
            bad[path] = error
    if len(bad) > max_bad * len(every):
        named = ", ".join(f"{path!r} ({error.cause}{_beside(root, path, error)})" for path, error in list(bad.items())[:_NAMED])
        raise StllavaError(
            f"{len(bad)} of {len(every)} images below {root} cannot be used: {named}{', …' if len(bad) > _NAMED else ''}",
            expected=f"at most {max_bad:.0%}",
            remedy="Fix these files or the rows that name them, or raise max_bad.",
        )
    return fingerprints, bad


def _beside(root: Path, path: str, error: ItemError) -> str:
    """What to say of a missing image that is there under a name spelt otherwise."""
    other = spelt_otherwise(root, path) if error.cause == "missing" else None
    return f"; there is {other!a}" if other is not None else ""
