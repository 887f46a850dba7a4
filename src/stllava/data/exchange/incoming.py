"""Brings others' training data in: a JSON or JSONL file becomes a folder of records with a manifest.

    import_conversations(Path("60k_inline_mention.json"), images=Path("pmc"), to=Path("instruct"))
    import_preferences(Path("dpo.json"), images=Path("pmc"), to=Path("pairs"))

Decodes every image once. Writes conversations.jsonl (for sft) or preferences.jsonl (for dpo), and missing.jsonl: each image
that was left out, and why. The file is read and the images are looked at before anything is written.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from pydantic import JsonValue

from stllava.config import Options
from stllava.config.base import Share, validate
from stllava.data.exchange.columns import layout_of, preference_of
from stllava.data.exchange.turns import conversation_of, id_of, read_table
from stllava.data.images import bad_images
from stllava.errors import ItemError, StllavaError
from stllava.records import Conversation, Manifest, Preference, Record, content_id
from stllava.store import Existing, Stage, file_hash, locked

R = TypeVar("R", Conversation, Preference)
Row = Mapping[str, object]

MAX_BAD = 0.5
"""Of 60k_inline_mention a third of the images may be gone; with more than half, the root is more likely wrong."""
_EXAMPLES = 3


class ExchangeOptions(Options):
    """What is brought in."""

    free: ClassVar[frozenset[str]] = frozenset({"source", "images", "max_bad"})
    kind: Literal["conversations", "preferences"]
    """What the rows are."""
    source: str
    """The file."""
    images: str
    """What its image paths are relative to; which of them are usable is among the inputs."""
    max_bad: Share = MAX_BAD
    """Share of rows left out above which the file is refused."""


class Missing(Record):
    """An image that a row was left out for."""

    id: str
    """The row's id."""
    image: str
    """Path relative to the image root."""
    cause: str
    """One of `data.images.CAUSES`."""


def import_conversations(
    source: Path, *, images: Path, to: Path, max_bad: float = MAX_BAD, existing: Existing = "resume"
) -> Manifest:
    """Write the conversations of a LLaVA-style file about images under `images` to the folder `to`."""
    options = _options("conversations", source, images, max_bad=max_bad)
    with locked(to):
        rows, root = read_table(source), images.resolve()
        return _bring(rows, lambda row, _: conversation_of(row, root=root), options, to=to, existing=existing)


def import_preferences(
    source: Path, *, images: Path, to: Path, max_bad: float = MAX_BAD, existing: Existing = "resume"
) -> Manifest:
    """Write the pairs of a preference file (`columns.LAYOUTS`) about images under `images` to the folder `to`.

    Prompts of several turns stay whole. A pair's lineage names the file and row that its verdict stands in.
    """
    options = _options("preferences", source, images, max_bad=max_bad)
    with locked(to):
        rows, root = read_table(source), images.resolve()
        layout = layout_of(rows[0], source=source)

        def read(row: Row, number: int) -> Preference:
            return preference_of(row, layout, root=root, origin=f"{source.name}, row {number}")

        return _bring(rows, read, options, to=to, existing=existing, notes=(f"Columns as in {layout.name}.",))


def _options(kind: str, source: Path, images: Path, *, max_bad: float) -> ExchangeOptions:
    values: dict[str, JsonValue] = {"kind": kind, "source": str(source), "images": str(images), "max_bad": max_bad}
    return validate(ExchangeOptions, values, source=f"import {kind}")


def _bring(
    rows: Sequence[Row],
    read: Callable[[Row, int], R],
    options: ExchangeOptions,
    *,
    to: Path,
    existing: Existing,
    notes: Sequence[str] = (),
) -> Manifest:
    """Read every row, leave out what cannot be used, and write the rest."""
    found: list[tuple[str | None, R]] = []
    dropped: Counter[str] = Counter()
    for number, row in enumerate(rows, 1):
        try:
            found.append((id_of(row), read(row, number)))
        except ItemError as error:
            dropped[error.cause] += 1
    distinct = _distinct(found)
    dropped["repeated"] = len(found) - len(distinct)
    bad = bad_images(Path(options.images), (path for one in distinct for path in one.images))
    kept: list[R] = []
    missing: list[Missing] = []
    for one in distinct:
        faults = [Missing(id=one.id, image=path, cause=bad[path]) for path in one.images if path in bad]
        missing += faults
        if faults:
            dropped[f"image {faults[0].cause}"] += 1
        else:
            kept.append(one)
    if not kept or dropped.total() > options.max_bad * len(rows):
        raise _too_few(options, dropped, missing, rows=len(rows))
    inputs = {"source": file_hash(Path(options.source)), "missing": content_id([one.model_dump() for one in missing])}
    stage = Stage("import", to, options, inputs=inputs, existing=existing)
    if stage.manifest is not None:
        return stage.manifest
    stage.write_records(options.kind, kept)
    stage.write_records("missing", missing)
    return stage.finish(
        counts_in=len(rows),
        counts_out=len(kept),
        dropped=+dropped,
        measures={"images": len({path for one in kept for path in one.images}), "unusable_images": len(bad)},
        notes=[f"Image paths are relative to {Path(options.images).resolve()}.", *notes],
    )


def _distinct(found: Sequence[tuple[str | None, R]]) -> list[R]:
    """Each record once, by the id its data set gives it where that is no other row's, else by its content."""
    times = Counter(given for given, _ in found)
    kept: dict[str, R] = {}
    for given, one in found:
        key = given if given is not None and times[given] == 1 else one.id
        kept[key] = one.model_copy(update={"id": key})
    return list(kept.values())


def _too_few(options: ExchangeOptions, dropped: Counter[str], missing: Sequence[Missing], *, rows: int) -> StllavaError:
    named = ", ".join(f"{count} × {cause}" for cause, count in sorted((+dropped).items()))
    examples = "".join(f"; {one.image} is {one.cause}" for one in missing[:_EXAMPLES])
    return StllavaError(
        f"{dropped.total()} of {rows} rows of {options.source} cannot be used: {named}{examples}",
        expected=f"some that can, and at most {options.max_bad:.0%} left out",
        remedy=f"Image paths are relative to {options.images}: name another root, or allow more with max_bad.",
    )
