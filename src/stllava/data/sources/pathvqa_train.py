"""PathVQA as a source: its training images carved by the run's seed, its test split measured.

In the hub's parquet files the images are inside the rows: they are unpacked into the run's data folder. The validation split
is left alone: as for the other benchmarks, the images that choose the best round are drawn from train's.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import PositiveInt

from stllava.config.base import NamedPath
from stllava.data.benchmarks import compare_published, find_pathvqa, pathvqa_files
from stllava.data.benchmarks.hub import hub_files, unpack
from stllava.data.sources.source import SourceData, SourceOptions, register, require_folder
from stllava.data.sources.training_split import carve
from stllava.errors import StllavaError
from stllava.store import file_hash


class PathVqaData(SourceOptions):
    """PathVQA as published (qas/ and images/), or its copy on the hub (data/*.parquet)."""

    runtime_only = frozenset({"folder"})

    kind: Literal["pathvqa"]
    """The PathVQA folder."""
    folder: NamedPath
    """Folder that holds qas/ and images/, or the hub's parquet files; without a test split nothing is measured but
    validation."""
    labelled: PositiveInt | Literal["all"] = 60
    """Training images whose questions and answers sft sees; all: every one, and none is left to ask about."""
    validation: PositiveInt = 30
    """Training images held out to choose the best round."""


class PathVqaTrain:
    """Reads the folder."""

    def check(self, options: PathVqaData) -> None:
        """The folder is there."""
        require_folder("folder", options.folder)

    def inputs(self, options: PathVqaData) -> dict[str, str]:
        """The files of questions of both splits; of parquet there are several a split, which hold the images too."""
        files = pathvqa_files(options.folder)
        return {path.stem: file_hash(path) for path, split in files.items() if split in ("train", "test")}

    def read(self, options: PathVqaData, *, seed: int, max_bad: float, begin: Callable[[], Path]) -> SourceData:
        """Carve the training images, and say how the test split compares with the published one."""
        found = find_pathvqa(options.folder)
        train, test = found.splits.get("train", ()), found.splits.get("test", ())
        if not train:
            raise StllavaError(
                f"PathVQA in {options.folder} has no training questions",
                expected="qas/train/train_qa.pkl or data/train-….parquet with some",
                remedy="Get the files of that split too, or name another folder.",
            )
        root = options.folder
        if found.packed:
            root = begin()
            unpack(found.files, {row.image for row in (*train, *test)}, to=root)
        data = carve(
            options.kind,
            train,
            test,
            title="PathVQA",
            root=root,
            labelled=options.labelled,
            validation=options.validation,
            seed=seed,
            max_bad=max_bad,
        )
        data.notes += found.notes
        if test:
            data.notes += compare_published(options.kind, found.layout, {"test": test}, allow_changed=True)
        return data

    def image_root(self, options: PathVqaData, to: Path) -> Path:
        """Images stay where they are; those inside parquet files are unpacked into the data set's `images`."""
        return to if hub_files(options.folder) else options.folder

    def describe(self, options: PathVqaData) -> str:
        """Its name says it."""
        return "PathVQA."


register(PathVqaData, PathVqaTrain())
