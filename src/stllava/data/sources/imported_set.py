"""An image set that `stllava import images` wrote as a source: its own splits, with your labels and its headers'."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import PositiveInt

from stllava.config.base import NamedPath
from stllava.data.benchmarks.own import find_own
from stllava.data.headers import BENCHMARK, header_questions
from stllava.data.image_set import TRAIN, read_imported
from stllava.data.sources.source import SourceData, SourceOptions, register, require_file, require_folder
from stllava.data.sources.training_split import captions_of, check_images, conversations_of, usable
from stllava.errors import StllavaError
from stllava.metrics.robust import normalise
from stllava.records import Image, Sample, content_id
from stllava.store import file_hash, output_hash


class ImportedData(SourceOptions):
    """An image set that `stllava import images` wrote, with the labels you have; its own splits are used."""

    runtime_only = frozenset({"folder", "labels"})

    kind: Literal["imported"]
    """An imported image set."""
    folder: NamedPath
    """The set's folder."""
    labels: NamedPath | None = None
    """Your questions and answers: a table (CSV, TSV, JSON) with image (path in the set), question, answer."""
    headers: bool = True
    """Ask also what the headers say: modality, plane or view, body part, side."""
    labelled: PositiveInt | Literal["all"] = 60
    """Training pictures whose questions and answers sft sees, those with labels of yours first; the rest is asked about."""


class ImportedSet:
    """Reads the set."""

    def check(self, options: ImportedData) -> None:
        """The set and the labels are there."""
        require_folder("folder", options.folder)
        require_file("labels", options.labels)

    def inputs(self, options: ImportedData) -> dict[str, str]:
        """The whole set, and the labels."""
        labels = {"labels": file_hash(options.labels)} if options.labels is not None else {}
        return {"set": output_hash(options.folder), **labels}

    def read(self, options: ImportedData, *, seed: int, max_bad: float, begin: Callable[[], Path]) -> SourceData:
        """Take the set's own splits: labelled pictures of train, the rest of train to ask about, validation, test.

        Questions come from your labels and from headers; a question that both ask of a picture is yours.
        """
        rows = read_imported(options.folder)
        split = {row.path: row.split for row in rows}
        own, notes = ([], []) if options.labels is None else _own_labels(options.labels, split)
        asked = {(row.image, normalise(row.question)) for row in own}
        made = header_questions(rows) if options.headers else []
        made = [row for row in made if (row.image, normalise(row.question)) not in asked]
        fingerprints, bad = check_images(options.folder, split, max_bad=max_bad)
        dropped = Counter(bad[path].cause for path in bad)
        known = [row for row in usable(own, bad, dropped) + made if row.image not in bad]
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
        left_to_ask = rest or options.labelled == "all"
        for what, left in (("train", labelled), *parts.items(), ("train beyond the labelled", left_to_ask)):
            if not left:
                raise StllavaError(
                    f"{options.folder} has no pictures with a question in the split {what}",
                    expected="some in train, validation and test",
                    remedy="Label more pictures (data.labels), import more patients, or import with other shares (--splits).",
                )
        if made:
            notes += [f"{len(made)} of {len(known)} questions were made by rule from what the pictures' headers say."]
        return SourceData(
            fingerprints,
            conversations_of(labelled, known, seed=seed),
            [Image(id=content_id("image", path), path=path) for path in rest],
            parts["validation"],
            {options.kind: parts["test"]},
            captions=captions_of(labelled, known),
            references=[row for row in known if row.image in set(rest)],
            read=len(rows) + len(own),
            dropped=dropped,
            notes=notes,
        )

    def image_root(self, options: ImportedData, to: Path) -> Path:
        """Images stay in the set."""
        return options.folder

    def describe(self, options: ImportedData) -> str:
        """Whose images they are, and who labelled them."""
        return "The maker's own images, de-identified by stllava, with labels of the maker's own or from their headers."


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


register(ImportedData, ImportedSet())
