"""Scores answers that were given elsewhere: by lmms-eval, by VLMEvalKit, or by whatever wrote a table of them.

Reads one file of answers (`data.exchange.sample_logs`); writes what `evaluate` writes, so that `compare`, `judge` and
`evaluate --rescore` read it.
"""

from collections import Counter
from pathlib import Path

from stllava.config import EvaluateOptions
from stllava.data.exchange.sample_logs import read_sample_log
from stllava.stages.results import EvaluateResult
from stllava.stages.scored_predictions import finish_evaluation
from stllava.store import Existing, Input, file_hash, open_stage

OPTIONS = EvaluateOptions()


def score_log(
    predictions: Path, *, to: Path, name: str = "policy", benchmark: str | None = None, existing: Existing = "resume"
) -> EvaluateResult:
    """Score a file of answers by every rule, with intervals, and write them into `to` as an evaluation.

    Args:
        predictions: A log of lmms-eval (`samples_*.jsonl`), a table of VLMEvalKit, or any table or JSON with the columns
            question, answer and prediction, and image, choices and kind where you have them.
        to: Folder for predictions and scores.
        name: What the model is called in the results.
        benchmark: Name of the benchmark; the file's where None.
        existing: What to do with output that is there: resume it, replace it, or end in an error.

    Raises:
        StllavaError: Where a row has no question, no reference or no answer.
    """
    inputs: dict[str, str | Input] = {"answers": Input(predictions, file_hash), "name": name}
    inputs |= {"benchmark": benchmark} if benchmark else {}
    with open_stage("evaluate", to, OPTIONS, inputs=inputs, existing=existing, items="answers") as stage:
        if stage.manifest is not None:
            return EvaluateResult(to, stage.manifest)
        log = read_sample_log(predictions, policy=name)
        return finish_evaluation(
            stage,
            log.predictions,
            options=OPTIONS,
            name=name,
            benchmark=benchmark or predictions.stem,
            dropped=Counter(),
            notes=(*log.notes, "The answers were given elsewhere: in which words was asked is not known here."),
        )
