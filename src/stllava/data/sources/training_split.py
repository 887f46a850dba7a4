"""What readers of questions about images share: which rows can be used, and how a training split is carved.

Decodes every image once; writes nothing.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from stllava.config import DESCRIBE
from stllava.data.captions import caption
from stllava.data.images import spelt_otherwise
from stllava.data.overlap import ImageFingerprint, fingerprint
from stllava.data.sources.source import SourceData
from stllava.data.turns import conversation
from stllava.errors import ItemError, StllavaError
from stllava.metrics.robust import normalise
from stllava.progress import track
from stllava.records import Conversation, Image, Message, Sample, content_id

_NAMED = 5


def carve(
    name: str,
    train: Sequence[Sample],
    test: Sequence[Sample],
    *,
    title: str,
    root: Path,
    labelled: int | Literal["all"],
    validation: int,
    seed: int,
    max_bad: float,
) -> SourceData:
    """Split the training images by seed: labelled, validation, and the rest to ask about with reference answers.

    A training row that repeats another, or a test question about the same image, is left out. The test split, where there
    is one, is measured as the benchmark `name`.
    """
    fingerprints, bad = check_images(root, (row.image for row in (*train, *test)), max_bad=max_bad)
    dropped: Counter[str] = Counter()
    notes: list[str] = []
    known, measured = usable(train, bad, dropped), usable(test, bad, dropped)
    asked = {(row.image, normalise(row.question)) for row in measured}
    new = [row for row in known if (row.image, normalise(row.question)) not in asked]
    if len(new) < len(known):
        dropped["question of the test split"] = len(known) - len(new)
        notes.append(
            f"Training questions left out because the test split asks them about the same image: {len(known) - len(new)}."
        )
    # The later of two equal rows stands in the dict, at the place of the first.
    rows = list({(row.image, normalise(row.question), normalise(row.targets[0])): row for row in new}.values())
    if len(rows) < len(new):
        dropped["repeated"] = len(new) - len(rows)
    images = sorted({row.image for row in rows}, key=lambda image: content_id("split", seed, image))
    held, others = images[:validation], images[validation:]
    count = len(others) if labelled == "all" else labelled
    told, rest = others[:count], others[count:]
    if not told or (not rest and labelled != "all"):
        raise StllavaError(
            f"{title} has {len(images)} usable training images, {labelled} + {validation} are set aside",
            expected="some left to ask about",
            remedy="Lower data.labelled or data.validation.",
        )
    return SourceData(
        fingerprints,
        conversations_of(told, rows, seed=seed),
        [Image(id=content_id("image", image), path=image) for image in sorted(rest)],
        [row.model_copy(update={"split": "validation"}) for row in rows if row.image in set(held)],
        {name: measured} if measured else {},
        captions=captions_of(told, rows),
        candidates={name: sorted({row.targets[0] for row in train if row.kind == "open"})} if measured else {},
        references=[row for row in rows if row.image in set(rest)],
        read=len(train) + len(test),
        dropped=dropped,
        notes=notes,
    )


def conversations_of(images: Sequence[str], rows: Sequence[Sample], *, seed: int) -> list[Conversation]:
    """For every image one conversation for each of its questions, and one of all in seeded order behind its caption."""
    by_image = _by_image(rows)
    made: list[Conversation] = []
    for image in sorted(images):
        about = by_image.get(image, [])
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


def captions_of(images: Sequence[str], rows: Sequence[Sample]) -> list[Conversation]:
    """For every image whose labels make one, the request to describe it and its caption."""
    by_image = _by_image(rows)
    turns = {image: _described(by_image.get(image, [])) for image in sorted(images)}
    return [conversation((image,), messages) for image, messages in turns.items() if messages]


def usable(rows: Iterable[Sample], bad: Mapping[str, ItemError], dropped: Counter[str]) -> list[Sample]:
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


def check_images(
    root: Path, paths: Iterable[str], *, max_bad: float
) -> tuple[dict[str, ImageFingerprint], dict[str, ItemError]]:
    """What tells the usable images from others, and the errors of those that cannot be used, both by path."""
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


def _by_image(rows: Sequence[Sample]) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for row in rows:
        found.setdefault(row.image, []).append(row)
    return found


def _described(rows: Sequence[Sample]) -> tuple[Message, ...]:
    text = caption(rows)
    return () if text is None else (Message(role="user", content=DESCRIBE), Message(role="assistant", content=text))


def _beside(root: Path, path: str, error: ItemError) -> str:
    """What to say of a missing image that is there under a name spelt otherwise."""
    other = spelt_otherwise(root, path) if error.cause == "missing" else None
    return f"; there is {other!a}" if other is not None else ""
