"""Brings others' training data in: a file of JSON, JSON lines or a table becomes a folder of records with a manifest.

    import_conversations(Path("60k_inline_mention.json"), images=Path("pmc"), to=Path("instruct"))
    import_preferences(Path("dpo.json"), images=Path("pmc"), to=Path("pairs"))

Decodes every image once. Writes conversations.jsonl (for sft) or preferences.jsonl (for dpo), and missing.jsonl: each image
that was left out, and why. The file is read and the images are looked at before anything is written.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from pydantic import JsonValue

from stllava.config import Options
from stllava.config.base import Share, validate
from stllava.data.conversations import read_conversation_file, told_notes, unread_note
from stllava.data.exchange.columns import LAYOUTS, layout_of, preference_of
from stllava.data.images import bad_images
from stllava.data.tables import read_table
from stllava.data.turns import RecordFile, id_of
from stllava.errors import ItemError, StllavaError
from stllava.records import Conversation, Manifest, Preference, Record, content_id
from stllava.store import Existing, Stage, file_hash, locked

R = TypeVar("R", Conversation, Preference)

MAX_BAD = 0.5
"""Of 60k_inline_mention a third of the images may be gone; with more than half, the root is more likely wrong."""
_EXAMPLES = 3


class ExchangeOptions(Options):
    """What is brought in."""

    runtime_only: ClassVar[frozenset[str]] = frozenset({"source", "images", "max_bad"})
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
    """Write the conversations of a file, such as LLaVA's, about images under `images` to the folder `to`.

    Args:
        source: A file as LLaVA, ms-swift, LLaMA-Factory and others write it: JSON, JSON lines or a table.
        images: The image root of the paths in it.
        to: Folder for conversations.jsonl and missing.jsonl.
        max_bad: Largest share of rows that may be left out.
        existing: What to do with output that is there: resume it, replace it, or end in an error.

    Raises:
        StllavaError: Where the columns are not known, or more than `max_bad` of the rows cannot be used.
    """
    options = _options("conversations", source, images, max_bad=max_bad)
    with locked(to, source):
        return _bring(read_conversation_file(source, root=images), options, to=to, existing=existing)


def import_preferences(
    source: Path, *, images: Path, to: Path, max_bad: float = MAX_BAD, existing: Existing = "resume"
) -> Manifest:
    """Write the pairs of a preference file (`columns.LAYOUTS`) about images under `images` to the folder `to`.

    Prompts of several turns stay whole. A pair's lineage names the file and row that its verdict stands in.

    Args:
        source: JSON, JSON lines or a table in the columns of TRL, LLaVA-RLHF, RLHF-V, VLFeedback, ms-swift and others.
        images: The image root of the paths in it.
        to: Folder for preferences.jsonl and missing.jsonl.
        max_bad: Largest share of rows that may be left out.
        existing: What to do with output that is there: resume it, replace it, or end in an error.

    Raises:
        StllavaError: Where the columns are not known, or more than `max_bad` of the rows cannot be used.
    """
    options = _options("preferences", source, images, max_bad=max_bad)
    with locked(to, source):
        return _bring(_read_preferences(source, root=images.resolve()), options, to=to, existing=existing)


def _read_preferences(source: Path, *, root: Path) -> RecordFile[Preference]:
    table = read_table(source, names=frozenset().union(*(layout.read for layout in LAYOUTS)), kinds="pairs of answers")
    layout = layout_of(table.rows[0][1], source=source)
    made: RecordFile[Preference] = RecordFile()
    found: list[tuple[str | None, Preference]] = []
    told: Counter[str] = Counter()
    for number, row in table.rows:
        origin, counts = f"{source.name}, row {number}", Counter[str]()
        try:
            found.append((id_of(row), preference_of(row, layout, root=root, origin=origin, told=counts)))
        except ItemError as error:
            made.fault(number, error)
        else:
            told += counts
    made.take(found)
    unread = unread_note(source, table.columns(), layout.read)
    made.notes = (*table.notes, *told_notes(source, told, rows=made.rows), *unread, f"Columns as in {layout.name}.")
    return made


def _options(kind: str, source: Path, images: Path, *, max_bad: float) -> ExchangeOptions:
    values: dict[str, JsonValue] = {"kind": kind, "source": str(source), "images": str(images), "max_bad": max_bad}
    return validate(ExchangeOptions, values, source=f"import {kind}")


def _bring(read: RecordFile[R], options: ExchangeOptions, *, to: Path, existing: Existing) -> Manifest:
    """Leave out what shows an image that cannot be used, and write the rest."""
    rows = read.rows
    bad = bad_images(Path(options.images), (path for one in read.records for path in one.images))
    kept: list[R] = []
    missing: list[Missing] = []
    for one in read.records:
        faults = [Missing(id=one.id, image=path, cause=bad[path]) for path in one.images if path in bad]
        missing += faults
        if faults:
            read.dropped[f"image {faults[0].cause}"] += 1
        else:
            kept.append(one)
    if not kept or read.dropped.total() > options.max_bad * rows:
        raise _too_few(options, read, missing, rows=rows)
    inputs = {"source": file_hash(Path(options.source)), "missing": content_id([one.model_dump() for one in missing])}
    stage = Stage("import", to, options, inputs=inputs, existing=existing)
    if stage.manifest is not None:
        return stage.manifest
    stage.write_records(options.kind, kept)
    stage.write_records("missing", missing)
    return stage.finish(
        counts_in=rows,
        counts_out=len(kept),
        dropped=read.dropped,
        measures={"images": len({path for one in kept for path in one.images}), "unusable_images": len(bad)},
        notes=[f"Image paths are relative to {Path(options.images).resolve()}.", *read.notes],
    )


def _too_few(options: ExchangeOptions, read: RecordFile[R], missing: Sequence[Missing], *, rows: int) -> StllavaError:
    examples = "".join(f"; {one.image} is {one.cause}" for one in missing[:_EXAMPLES])
    return StllavaError(
        f"{read.dropped.total()} of {rows} rows of {options.source} cannot be used: {read.causes()}{examples}",
        expected=f"some that can, and at most {options.max_bad:.0%} left out",
        remedy=f"Image paths are relative to {options.images}: name another root, or allow more with max_bad.",
    )
