"""The baselines that every score is read beside: rules that see neither image nor question."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from stllava.config import EvaluateOptions
from stllava.data.benchmarks.own import read_samples
from stllava.records import Prediction, QuestionKind, Sample, content_id
from stllava.stages.results import EvaluateResult
from stllava.stages.scored_predictions import finish_evaluation
from stllava.store import (
    Existing,
    Input,
    Inputs,
    file_hash,
    open_stage,
)


def majority(
    options: EvaluateOptions, *, known: Path, samples: Path, to: Path, existing: Existing = "resume"
) -> EvaluateResult:
    """Score the baseline that gives every sample the most frequent answer of its kind in the samples `known`."""

    def usual(kind: QuestionKind, answers: Counter[str], _: Sample) -> str:
        return min(answers, key=lambda text: (-answers[text], text), default="")

    return _baseline("majority", usual, options, known=known, samples=samples, to=to, existing=existing)


def guess(options: EvaluateOptions, *, known: Path, samples: Path, to: Path, existing: Existing = "resume") -> EvaluateResult:
    """Score the baseline that gives every sample a random answer of its kind, as often as each stands in `known`.

    Of a multiple-choice question it is one of the options. The draw hangs on the sample's id alone.
    """

    def drawn(kind: QuestionKind, answers: Counter[str], sample: Sample) -> str:
        draw = int(content_id("guess", sample.id), 16)
        if sample.choices:
            return sample.choices[draw % len(sample.choices)]
        every = sorted(answers.elements())
        return every[draw % len(every)] if every else ""

    return _baseline("random", drawn, options, known=known, samples=samples, to=to, existing=existing)


def _baseline(
    name: str,
    rule: Callable[[QuestionKind, Counter[str], Sample], str],
    options: EvaluateOptions,
    *,
    known: Path,
    samples: Path,
    to: Path,
    existing: Existing,
) -> EvaluateResult:
    """Score a rule that sees neither image nor question: only how often which answer was right elsewhere."""
    inputs: Inputs = {"known": Input(known, file_hash), "samples": Input(samples, file_hash), "name": name}
    with open_stage("evaluate", to, options, inputs=inputs, existing=existing) as stage:
        if stage.manifest is not None:
            return EvaluateResult(stage.to, stage.manifest)
        counts: dict[QuestionKind, Counter[str]] = {"open": Counter(), "closed": Counter()}
        for sample in read_samples(known)[0]:
            counts[sample.kind][sample.targets[0].lower()] += 1
        predictions = [
            Prediction.of(row, rule(row.kind, counts[row.kind], row), policy=name) for row in read_samples(samples)[0]
        ]
        return finish_evaluation(stage, predictions, options=options, name=name, benchmark=samples.stem, dropped=Counter())
