"""Which round a path means: a round's own folder, or one of a run."""

from dataclasses import dataclass
from pathlib import Path

from stllava.errors import StllavaError
from stllava.rundir import ROUND, ROUND_STAGES, RoundStage, RunDir, round_name
from stllava.store import MANIFEST

_JUDGED = ROUND_STAGES[1:3]
"""The stages without which there is nothing to read: answers and their judgments."""


@dataclass(frozen=True)
class JudgedRound:
    """A round whose answers were judged."""

    folder: Path
    """Its folder, in which those of its stages lie."""
    run: Path | None
    """The run that it is of; None for a round that was made by hand."""

    @property
    def answers(self) -> Path:
        """The answers."""
        return _stage(self.folder, "answer")

    @property
    def judgments(self) -> Path:
        """What the expert said of them."""
        return _stage(self.folder, "judge")

    @property
    def review(self) -> Path:
        """What readers are asked about it, and what they say."""
        return RunDir(self.folder.parent).review(self.folder.name)

    def image_root(self, named: Path | None) -> Path:
        """What its image paths are relative to: as `named`, or as its run has noted it."""
        return root_of(self.folder, self.run, named)


def root_of(folder: Path, run: Path | None, named: Path | None) -> Path:
    """What a folder's image paths are relative to: as `named`, or as the run that it is of has noted it.

    Raises:
        StllavaError: Where neither says so, or the folder is not there.
    """
    root = named if named is not None else RunDir(run).image_root if run is not None else None
    if root is None:
        raise StllavaError(
            f"{folder} is no part of a run, so where its images lie is not known",
            expected="the image root",
            remedy="Name it (--root).",
        )
    if not root.is_dir():
        raise StllavaError(
            f"there is no folder {root}, in which the images of {folder} lie",
            expected="the image root",
            remedy="Name where it is now (--root).",
        )
    return root


def find_round(path: Path, number: int | None = None) -> JudgedRound:
    """The judged round that a path means: itself, or of a run the one of that number, the last one without.

    Raises:
        StllavaError: Where there is no such round, or its answers were not judged yet.
    """
    if _is_judged(path):
        folder = path.absolute()
        return JudgedRound(folder, folder.parent if (RunDir(folder.parent).data / MANIFEST).is_file() else None)
    rounds = [folder for folder in path.glob(f"{ROUND}*") if _is_judged(folder)]
    named = {folder.name: folder for folder in rounds}
    if number is not None and round_name(number) in named:
        return JudgedRound(named[round_name(number)], path)
    if number is None and rounds:
        return JudgedRound(max(rounds, key=lambda folder: (len(folder.name), folder.name)), path)
    found = f"{path} has no judged {round_name(number)}" if number is not None and rounds else f"{path} holds no judged round"
    raise StllavaError(
        found,
        expected="a run with a round whose answers were judged, or the folder of such a round",
        remedy="Check the path (and --round).",
    )


def _is_judged(folder: Path) -> bool:
    return all((_stage(folder, stage) / MANIFEST).is_file() for stage in _JUDGED)


def _stage(folder: Path, stage: RoundStage) -> Path:
    """The folder of a round's stage."""
    return RunDir(folder.parent).stage(folder.name, stage)
