"""The layout of a run on disk: where its stages, policies and results lie. No path of a run is written out anywhere else.

    run = RunDir(Path("runs/phantom-0"))
    run.stage("round-1", "ask"), run.policy("round-2"), run.evaluation("round-2", "vqa-rad"), run.image_root

A run directory holds

    data/                                   the data set in one form, with phantoms' images
    model/  align/                          the starting model, where it is built here; the one that has learned captions
    sft/                                    policy 0
    round-1/{ask,answer,judge,pair,dpo}/    one round; dpo/ is its policy
    round-1/review/                         what readers were asked about its verdicts, and what they said (`stllava review`)
    round-1/image-gain/                     how much likelier its answers are with their image, where the run measures that
    round-1/describe/{ask,answer,judge,pair}/   descriptions of which the expert chooses, where `ask` wants several
    round-1/calibrate/{ask,answer}/         answers to labelled questions, by which the expert `itself` is calibrated
    expert-audit/{ask,answer,judge,result}/ the expert's verdicts on labelled questions, and how often they err (`judge.audit`)
    final/{data,sft}/                       what was found right in all rounds, and the policy that learned it
    own-judge/                              the judge that was made of the expert's verdicts, where the run makes one
    evaluate/<policy>/<benchmark>/          every answer and score
    review/<stage>/                         what readers were asked about a stage's answers or questions, and what they said
    judge-check/                            how far the expert can be trusted, where that was measured
    outcome.json  summary.json  report.html
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stllava.errors import StllavaError
from stllava.store import MANIFEST, PLAN, read_manifest

RoundStage = Literal["ask", "answer", "judge", "pair", "dpo"]
ROUND_STAGES: tuple[RoundStage, ...] = ("ask", "answer", "judge", "pair", "dpo")
"""The stages of a round in their order."""
AUDIT_STAGES: tuple[RoundStage, ...] = ("ask", "answer", "judge")
"""Those by which an expert is audited."""

SFT = "sft"
"""The policy that the rounds start from."""
FINAL = "final"
"""The policy of the last training on all that was found right in the rounds."""
BLIND = "blind-"
"""Before a policy's name: the question-only baseline, the same policy shown black images."""
REVIEW = "review"
"""The folder of readers' tasks and votes in a round, and in a run of those on its stages."""
IMAGE_GAIN = "image-gain"
"""The folder of how much likelier a round's answers are with their image."""
ROUND = "round-"
"""Before a round's number: the name of the round and of its policy."""


@dataclass(frozen=True)
class RunDir:
    """A run directory; nothing is read or written before a path of it is asked for."""

    path: Path

    @property
    def plan(self) -> Path:
        """What is being run: every option."""
        return self.path / PLAN

    @property
    def outcome(self) -> Path:
        """What the run came to."""
        return self.path / "outcome.json"

    @property
    def summary(self) -> Path:
        """The numbers of the report, for programs."""
        return self.path / "summary.json"

    @property
    def page(self) -> Path:
        """The report, for readers."""
        return self.path / "report.html"

    @property
    def data(self) -> Path:
        """The data set."""
        return self.path / "data"

    @property
    def model(self) -> Path:
        """The model that training starts from, where the run builds it."""
        return self.path / "model"

    @property
    def align(self) -> Path:
        """That model once it has learned captions, where the run has an alignment stage."""
        return self.path / "align"

    @property
    def judge_check(self) -> Path:
        """Where a check of the run's expert is looked for."""
        return self.path / "judge-check"

    @property
    def own_judge(self) -> Path:
        """The judge made of the expert's verdicts, where the run makes one."""
        return self.path / "own-judge"

    @property
    def final(self) -> Path:
        """What belongs to the policy of the last training."""
        return self.path / FINAL

    @property
    def final_data(self) -> Path:
        """The labels and all that was found right in the rounds: what the last training learns from."""
        return self.final / "data"

    def stage(self, round_name: str, stage: RoundStage) -> Path:
        """A stage of a round."""
        return self.path / round_name / stage

    def description_stage(self, round_name: str, stage: RoundStage) -> Path:
        """A stage of the descriptions with which a round begins, where the expert chooses among several."""
        return self.path / round_name / "describe" / stage

    def calibration_stage(self, round_name: str, stage: RoundStage) -> Path:
        """A stage of what the policy answers to labelled questions, where a round needs that."""
        return self.path / round_name / "calibrate" / stage

    @property
    def expert_audit(self) -> Path:
        """How often the expert errs, by labelled questions, where that was measured."""
        return self.path / "expert-audit" / "result"

    def audit_stage(self, stage: RoundStage) -> Path:
        """A stage of what the policy answers to labelled questions, and the expert says of that, before the first round."""
        return self.path / "expert-audit" / stage

    def image_gain(self, round_name: str) -> Path:
        """How much likelier a round's answers are with their image than with a black one, where a run measures that."""
        return self.path / round_name / IMAGE_GAIN

    def review(self, round_name: str) -> Path:
        """What readers were asked about a round's verdicts, and what they said."""
        return self.path / round_name / REVIEW

    def stage_review(self, folder: Path) -> Path:
        """What readers were asked about the answers or questions in a stage's folder, and what they said."""
        return self.path / REVIEW / self.name_of(folder)

    def policy(self, name: str) -> Path:
        """The folder of a policy by its name: sft, round-1, …, final."""
        if name == SFT:
            return self.path / SFT
        return self.final / SFT if name == FINAL else self.stage(name, "dpo")

    def evaluations(self, policy: str) -> Path:
        """The evaluations of a policy or baseline, one folder a benchmark."""
        return self.path / "evaluate" / policy

    def evaluation(self, policy: str, benchmark: str) -> Path:
        """The answers and scores of a policy or baseline on a benchmark."""
        return self.evaluations(policy) / benchmark

    def name_of(self, folder: Path) -> str:
        """What a stage's folder is called in this run: data, round-1/ask, …"""
        return folder.relative_to(self.path).as_posix()

    @property
    def image_root(self) -> Path:
        """What the image paths of the run's records are relative to, as the data stage noted it."""
        root = read_manifest(self.data).image_root
        if root is None:
            raise StllavaError(
                f"{self.data / MANIFEST} names no image root",
                expected="the manifest of a run's data stage",
                remedy="Restore it, or delete it and give the command that made it again: finished work is kept.",
            )
        return self.data / root


def round_name(number: int) -> str:
    """The name of a round, and of the policy that comes of it."""
    return f"{ROUND}{number}"
