"""Predictions, however they came about, become scores: the end of every evaluation, of baselines and of logs of others."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from stllava.config import EvaluateOptions
from stllava.errors import StllavaError
from stllava.experts.judged_answers import JudgedAnswers
from stllava.metrics.score import score, summed
from stllava.metrics.semantic import agreement, compared
from stllava.metrics.semantic import verdicts as verdicts_of
from stllava.records import Prediction, Sampling
from stllava.stages.results import EvaluateResult
from stllava.store import (
    Input,
    Inputs,
    Stage,
    file_hash,
)


def candidates_input(path: Path | None) -> Inputs:
    """The input of candidates, where there is one."""
    return {"candidates": Input(path, file_hash)} if path is not None else {}


def read_candidates(path: Path | None) -> tuple[str, ...]:
    """The answers that the published open accuracy chooses from; none without a file."""
    if path is None:
        return ()
    try:
        answers = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StllavaError(f"{path}: {error}", expected="a JSON list of answers", remedy="Check the file.") from None
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise StllavaError(f"{path} holds no list of texts", expected="a JSON list of answers", remedy="Check the file.")
    return tuple(answers)


def finish_evaluation(
    stage: Stage,
    predictions: Iterable[Prediction],
    *,
    options: EvaluateOptions,
    name: str,
    benchmark: str,
    dropped: Counter[str],
    candidates: Sequence[str] = (),
    judged: Iterable[JudgedAnswers] = (),
    notes: Sequence[str] = (),
    device: str = "cpu",
) -> EvaluateResult:
    """Score predictions and write them, their scores and, for an expert, the open answers beside their references.

    Predictions and judgments are gone through several times, and only numbers of them are held.
    """
    scores = score(predictions, policy=name, benchmark=benchmark, candidates=candidates)
    measures = {row.metric: row.value for row in scores}
    judge = next((judgment.expert for _, judgment in judged), None)
    if judge is not None:
        verdicts = verdicts_of(predictions, (judgment for _, judgment in judged))
        images = (row.image for row in predictions if row.kind == "open")
        rule = f"expert-{judge}"
        scores.append(summed(images, verdicts, metric="open_semantic", rule=rule, policy=name, benchmark=benchmark))
        agreed = agreement(predictions, verdicts)
        measures["open_semantic"] = scores[-1].value
        measures |= {"open_semantic_asked": float(agreed.asked), "open_semantic_identical": float(agreed.identical)}
        if agreed.kappa is not None:
            measures["open_semantic_kappa_with_medical_match"] = agreed.kappa.value
        notes = [*notes, f"{judge} {agreed.sentence}"]
    count = stage.write_records("predictions", predictions)
    stage.write_records("scores", scores)
    stage.write_records("answers", compared(predictions, Sampling(**options.sampling.model_dump(), seed=0)))
    manifest = stage.finish(
        counts_in=count + dropped.total(),
        counts_out=count,
        dropped=dropped,
        measures=measures,
        notes=notes,
        device=device,
    )
    return EvaluateResult(stage.to, manifest)
