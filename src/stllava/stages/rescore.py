"""The answers of an evaluation scored by today's rules, or by an expert's verdicts too; nothing is generated."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from stllava.config import EvaluateOptions
from stllava.errors import StllavaError
from stllava.experts.judged_answers import JudgedAnswers, read_judged_answers
from stllava.records import Prediction, Score
from stllava.stages.results import EvaluateResult
from stllava.stages.scored_predictions import candidates_input, finish_evaluation, read_candidates
from stllava.store import (
    Existing,
    Input,
    Inputs,
    open_stage,
    output_hash,
    read_manifest,
    read_records,
    stream_records,
)


def rescore(
    options: EvaluateOptions,
    *,
    predictions: Path,
    to: Path,
    candidates: Path | None = None,
    verdicts: Path | None = None,
    existing: Existing = "resume",
) -> EvaluateResult:
    """Score the answers of the evaluation in the folder `predictions` again, by today's rules; nothing is generated.

    `verdicts` is what `stllava judge --answers PREDICTIONS` wrote: open answers are then scored by that expert too, and
    its agreement with our words is measured.

    Args:
        options: How questions were put; the prompts are those of the evaluation.
        predictions: Folder of the evaluation.
        to: Folder for the new scores.
        candidates: JSON list of answers that the published open accuracy chooses from.
        verdicts: What an expert said of its open answers: `stllava judge --answers FOLDER`.
        existing: What to do with output that is there: resume it, replace it, or end in an error.

    Raises:
        StllavaError: Where the folder is no evaluation, or the verdicts are about other answers.
    """
    before = read_manifest(predictions)
    name = before.inputs.get("name", "policy")
    inputs: Inputs = {"predictions": Input(predictions, output_hash), "name": name}
    inputs |= candidates_input(candidates) | ({"verdicts": Input(verdicts, output_hash)} if verdicts is not None else {})
    with open_stage("evaluate", to, options, inputs=inputs, existing=existing) as stage:
        if stage.manifest is not None:
            return EvaluateResult(stage.to, stage.manifest)
        return finish_evaluation(
            stage,
            stream_records(predictions, "predictions", Prediction),
            judged=_judged(predictions, verdicts) if verdicts is not None else (),
            options=options,
            name=name,
            benchmark=read_records(predictions, "scores", Score)[0].benchmark,
            dropped=Counter(before.dropped),
            candidates=read_candidates(candidates),
            notes=[
                *before.notes,
                f"Scored again from the answers of {before.started}, commit {before.commit[:10] or 'unknown'}.",
            ],
            device=before.device,
        )


def _judged(predictions: Path, verdicts: Path) -> Iterable[JudgedAnswers]:
    """What an expert said of an evaluation's answers, one judgment at least."""
    judged = read_judged_answers(predictions, verdicts)
    if next(iter(judged), None) is None:
        raise StllavaError(
            f"{verdicts} holds no judgment",
            expected="what an expert said of the evaluation's open answers",
            remedy=f"Judge them with `stllava judge --answers {predictions}`, or leave --verdicts out.",
        )
    return judged
