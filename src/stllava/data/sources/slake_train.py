"""SLAKE as a source: its training images carved by the run's seed, its test split measured, in English, Chinese or both.

validate.json is left alone: as for the other benchmarks, the images that choose the best round are drawn from train's.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import PositiveInt

from stllava.config.base import NamedPath
from stllava.data.benchmarks import Language, compare_published, find_slake, slake_files
from stllava.data.sources.source import SourceData, SourceOptions, register, require_folder
from stllava.data.sources.training_split import carve
from stllava.errors import StllavaError
from stllava.store import file_hash


class SlakeData(SourceOptions):
    """SLAKE as published: train.json, test.json and imgs/."""

    runtime_only = frozenset({"folder"})

    kind: Literal["slake"]
    """The SLAKE folder."""
    folder: NamedPath
    """Folder that holds train.json, test.json and imgs/; without test.json nothing is measured but validation."""
    language: Language = "en"
    """Which questions are taken: en (English), zh (Chinese) or both."""
    labelled: PositiveInt | Literal["all"] = 60
    """Training images whose questions and answers sft sees; all: every one, and none is left to ask about."""
    validation: PositiveInt = 30
    """Training images held out to choose the best round."""


class SlakeTrain:
    """Reads the folder."""

    def check(self, options: SlakeData) -> None:
        """The folder is there."""
        require_folder("folder", options.folder)

    def inputs(self, options: SlakeData) -> dict[str, str]:
        """Both files of questions."""
        files = slake_files(options.folder)
        return {split: file_hash(path) for path, split in files.items() if split in ("train", "test")}

    def read(self, options: SlakeData, *, seed: int, max_bad: float, begin: Callable[[], Path]) -> SourceData:
        """Carve the training images, and say how the test split compares with the published one."""
        splits = find_slake(options.folder, options.language).splits
        if not splits.get("train"):
            raise StllavaError(
                f"SLAKE in {options.folder} has no training questions in data.language {options.language}",
                expected="a train.json with some",
                remedy="Name another folder or another data.language.",
            )
        test = splits.get("test", ())
        data = carve(
            options.kind,
            splits["train"],
            test,
            title="SLAKE",
            root=options.folder,
            labelled=options.labelled,
            validation=options.validation,
            seed=seed,
            max_bad=max_bad,
        )
        if test:
            data.notes += compare_published(options.kind, options.language, {"test": test}, allow_changed=True)
        return data

    def image_root(self, options: SlakeData, to: Path) -> Path:
        """Images stay where they are."""
        return options.folder

    def describe(self, options: SlakeData) -> str:
        """Its name, and the languages."""
        languages = {"en": "English", "zh": "Chinese", "both": "English and Chinese"}
        return f"SLAKE, in {languages[options.language]}."


register(SlakeData, SlakeTrain())
