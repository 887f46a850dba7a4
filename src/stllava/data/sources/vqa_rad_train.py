"""VQA-RAD as a source: its training images carved by the run's seed, its test split measured."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import PositiveInt

from stllava.config.base import NamedPath
from stllava.data.benchmarks import VQA_RAD_TEST, read_vqa_rad, vqa_rad_files
from stllava.data.sources.source import SourceData, SourceOptions, register, require_folder
from stllava.data.sources.training_split import carve
from stllava.store import file_hash


class VqaRadData(SourceOptions):
    """VQA-RAD in its public JSON: train.json, test.json and images/."""

    runtime_only = frozenset({"folder"})

    kind: Literal["vqa-rad"]
    """The VQA-RAD folder."""
    folder: NamedPath
    """Folder that holds train.json, test.json and images/."""
    split: Literal["standard", "image-disjoint"] = "standard"
    """standard: nearly all test images are training images too; image-disjoint: the 111 training images that are not."""
    labelled: PositiveInt | Literal["all"] = 60
    """Training images whose questions and answers sft sees; all: every one, and none is left to ask about."""
    validation: PositiveInt = 30
    """Training images held out to choose the best round."""


class VqaRadTrain:
    """Reads the folder."""

    def check(self, options: VqaRadData) -> None:
        """The folder is there."""
        require_folder("folder", options.folder)

    def inputs(self, options: VqaRadData) -> dict[str, str]:
        """Both files of questions."""
        return {split: file_hash(path) for split, path in vqa_rad_files(options.folder, split=options.split).items()}

    def read(self, options: VqaRadData, *, seed: int, max_bad: float, begin: Callable[[], Path]) -> SourceData:
        """Carve the training images, and say where the test split is not the published one."""
        both = read_vqa_rad(options.folder, split=options.split)
        data = carve(
            options.kind,
            both.train,
            both.test,
            title="VQA-RAD",
            root=options.folder,
            labelled=options.labelled,
            validation=options.validation,
            seed=seed,
            max_bad=max_bad,
        )
        kinds = Counter(row.kind for rows in data.benchmarks.values() for row in rows)
        if kinds != VQA_RAD_TEST:
            data.notes.append(
                f"The test split has {kinds['open']} open and {kinds['closed']} closed questions, the published one "
                f"{VQA_RAD_TEST['open']} and {VQA_RAD_TEST['closed']}."
            )
        data.overlap_reason = "This is the standard split."
        return data

    def image_root(self, options: VqaRadData, to: Path) -> Path:
        """Images stay where they are."""
        return options.folder

    def describe(self, options: VqaRadData) -> str:
        """Its name says it."""
        return "VQA-RAD."


register(VqaRadData, VqaRadTrain())
