"""What a path means to `stllava review` and `judge-check`: a judged round, a benchmark's answers, questions, or pictures."""

from dataclasses import dataclass
from pathlib import Path

from stllava.config import ReviewOptions
from stllava.data.image_set import STAGE as IMPORTED
from stllava.errors import StllavaError
from stllava.records import ItemKind
from stllava.review.choices import ReviewKind
from stllava.review.items import draw_items
from stllava.review.open_task import AnyTask
from stllava.review.round_files import JudgedRound, find_round, root_of
from stllava.review.tasks import draw_tasks
from stllava.rundir import RunDir
from stllava.store import MANIFEST, read_manifest

_KINDS: dict[str, ItemKind] = {"evaluate": "predictions", "ask": "questions", IMPORTED: "pictures"}
"""What is read of a stage's folder, by the stage."""
_DEPTH = 3
"""So many folders above a stage's may be its run."""


@dataclass(frozen=True)
class ReviewedStage:
    """A stage's folder whose records are read one by one."""

    kind: ItemKind
    folder: Path
    run: Path | None
    """The run that it is of; None for a stage that was made by hand."""

    @property
    def review(self) -> Path:
        """What readers are asked about it, and what they say: in the run's folder `review`, or beside the stage's."""
        if self.run is None:
            return self.folder.with_name(f"{self.folder.name}-review")
        return RunDir(self.run).stage_review(self.folder)

    @property
    def title(self) -> str:
        """What the page calls it."""
        return self.folder.name if self.run is None else f"{self.run.name} · {RunDir(self.run).name_of(self.folder)}"

    def draw(self, options: ReviewOptions, *, seed: int, root: Path | None = None) -> list[AnyTask]:
        """Draw what readers are asked about; the image root, where it is known, is noted for the page."""
        return [*draw_items(options, kind=self.kind, source=self.folder, to=self.review, seed=seed, root=root)]

    def image_root(self, named: Path | None) -> Path:
        """What its image paths are relative to: as `named`, the imported set itself, or as its run has noted it."""
        return self.folder if self.kind == "pictures" and named is None else root_of(self.folder, self.run, named)


@dataclass(frozen=True)
class ReviewedRound:
    """A round whose verdicts are read."""

    round: JudgedRound
    kind: ReviewKind = "verdicts"

    @property
    def review(self) -> Path:
        """What readers are asked about it, and what they say."""
        return self.round.review

    @property
    def title(self) -> str:
        """What the page calls it."""
        name = self.round.folder.name
        return name if self.round.run is None else f"{self.round.run.name} · {name}"

    def draw(self, options: ReviewOptions, *, seed: int, root: Path | None = None) -> list[AnyTask]:
        """Draw what readers are asked about; the image root, where it is known, is noted for the page."""
        answers, judgments = self.round.answers, self.round.judgments
        return [*draw_tasks(options, answers=answers, judgments=judgments, to=self.review, seed=seed, root=root)]

    def image_root(self, named: Path | None) -> Path:
        """What its image paths are relative to: as `named`, or as its run has noted it."""
        return self.round.image_root(named)


def find_reviewed(path: Path, number: int | None = None) -> ReviewedRound | ReviewedStage:
    """What is read of a path: a round's verdicts, an evaluation's answers, ask's questions, or an imported set's pictures.

    Args:
        path: A run, a round's folder, the folder of an evaluation or of ask, or an imported set.
        number: Of a run, which round; the last one that was judged when not named.

    Raises:
        StllavaError: Where there is nothing to read, or a round's number stands beside the folder of a stage.
    """
    kind = _KINDS.get(read_manifest(path).stage) if (path / MANIFEST).is_file() else None
    if kind is None:
        return ReviewedRound(find_round(path, number))
    if number is not None:
        raise StllavaError(
            f"round {number} of {path}, which is the folder of one stage",
            expected="a round's number beside a run alone",
            remedy="Leave --round out.",
        )
    folder = path.absolute()
    above = list(folder.parents)[:_DEPTH]
    return ReviewedStage(kind, folder, next((run for run in above if (RunDir(run).data / MANIFEST).is_file()), None))
