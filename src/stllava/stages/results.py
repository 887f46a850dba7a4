"""What each stage came to, typed: read off the manifest that it wrote, whether just now or by an earlier command."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stllava.records import DistilledCheck, Manifest, Score, asked_about
from stllava.store import CHECK, read_record, read_records

VERDICTS = "verdicts"
"""The figure of judge's manifest that counts verdicts."""
REPEATED: Literal["repeated"] = "repeated"
"""The cause by which ask counts questions that it asked of the same image before."""


@dataclass(frozen=True)
class StageResult:
    """A finished stage."""

    folder: Path
    """Where its output lies."""
    manifest: Manifest
    """All that it noted: options, hashes, counts, figures."""

    @property
    def dropped(self) -> dict[str, int]:
        """What went in and did not come out, by cause."""
        return self.manifest.dropped

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the reader of the report."""
        return self.manifest.notes


@dataclass(frozen=True)
class TrainingResult(StageResult):
    """What sft or dpo came to: the folder is a policy."""

    @property
    def learned(self) -> int:
        """Conversations or pairs that it learned from."""
        return self.manifest.counts_out


@dataclass(frozen=True)
class AskResult(StageResult):
    """What ask came to."""

    @property
    def asked(self) -> int:
        """Questions that the policy asked, those borrowed from other images included."""
        return self.manifest.counts_in

    @property
    def questions(self) -> int:
        """Questions kept."""
        return self.manifest.counts_out

    @property
    def distinct(self) -> int:
        """Questions asked, but for those that repeat another one about the same image."""
        return self.asked - self.dropped.get(REPEATED, 0)


@dataclass(frozen=True)
class AnswerResult(StageResult):
    """What answer came to."""

    @property
    def answered(self) -> int:
        """Questions that got answers."""
        return self.manifest.counts_out


@dataclass(frozen=True)
class JudgeResult(StageResult):
    """What judge came to."""

    @property
    def judged(self) -> int:
        """Sets of answers that the expert was given."""
        return self.manifest.counts_in

    @property
    def asked(self) -> int:
        """Sets of answers that the expert was asked about."""
        return asked_about(self.manifest)

    @property
    def verdicts(self) -> int:
        """Sets of answers that got a verdict."""
        return int(self.manifest.measures[VERDICTS])


@dataclass(frozen=True)
class ImageGainResult(StageResult):
    """What image_gain came to."""

    def reading(self, side: Literal["right", "wrong"]) -> float:
        """Of the right or of the wrong answers, the share that reads the image."""
        reads, guesses = (self.manifest.measures[f"{side}_{how}"] for how in ("reading", "guessing"))
        return reads / (reads + guesses) if reads + guesses else 0.0


@dataclass(frozen=True)
class PairResult(StageResult):
    """What pair came to."""

    @property
    def pairs(self) -> int:
        """Pairs to learn from."""
        return self.manifest.counts_out


@dataclass(frozen=True)
class FinalDataResult(StageResult):
    """What final_data came to."""

    @property
    def conversations(self) -> Path:
        """JSONL of the labels and of all that was found right: what the last training learns from."""
        return self.folder / "conversations.jsonl"

    @property
    def right(self) -> int:
        """Questions whose right answer is among them."""
        return self.manifest.counts_out

    @property
    def voted(self) -> int:
        """Of these, those whose answer readers voted for, or typed, against the expert."""
        return int(self.manifest.measures.get("voted", 0.0))

    @property
    def refused_by_readers(self) -> int:
        """Answers that the expert found right and readers' votes took out."""
        return sum(count for cause, count in self.manifest.dropped.items() if cause.startswith("readers"))


@dataclass(frozen=True)
class DistillResult(StageResult):
    """What distill came to: the folder is a judge for `judge.distilled.model`."""

    @property
    def learned(self) -> int:
        """Judged answers that it learned from."""
        return self.manifest.counts_out

    @property
    def check(self) -> DistilledCheck:
        """How far it agrees with its teacher."""
        return read_record(self.folder / CHECK, DistilledCheck)


@dataclass(frozen=True)
class EvaluateResult(StageResult):
    """What an evaluation came to."""

    @property
    def scores(self) -> list[Score]:
        """Every metric with its interval."""
        return read_records(self.folder, "scores", Score)


@dataclass(frozen=True)
class PredictResult(StageResult):
    """What predict came to."""

    @property
    def answered(self) -> int:
        """Questions that got an answer."""
        return self.manifest.counts_out
