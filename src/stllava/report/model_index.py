"""The scores of a run's policy as the hub reads them from a model card: `model-index`."""

from pydantic import JsonValue

from stllava.records import Score
from stllava.report.model_card import Measured
from stllava.report.redaction import secrets_of


def model_index(measured: Measured, *, name: str) -> dict[str, JsonValue]:
    """The key `model-index` with every score of the policy, its rule and its interval in the metric's name.

    Args:
        measured: The run and its policy.
        name: What the model is called.
    """
    secrets = secrets_of(measured.run)
    scores = [score for score in measured.run.outcome.scores if score.policy == measured.policy]
    results: list[JsonValue] = []
    for benchmark in dict.fromkeys(score.benchmark for score in scores):
        told = secrets.redact(benchmark)
        results.append(
            {
                "task": {"type": "visual-question-answering"},
                "dataset": {"name": told, "type": told},
                "metrics": [_metric(score) for score in scores if score.benchmark == benchmark],
            }
        )
    return {"model-index": [{"name": name, "results": results}]}


def _metric(score: Score) -> JsonValue:
    interval = f"95 % [{100 * score.low:.1f}, {100 * score.high:.1f}], n = {score.n}"
    return {
        "type": score.metric,
        "name": f"{score.metric} ({score.rule}), {interval}",
        "value": round(100 * score.value, 2),
    }
