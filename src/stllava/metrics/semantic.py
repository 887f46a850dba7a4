"""What an expert makes of open answers: whether each is as good as its reference, told without knowing which is which.

`compared` turns predictions into answers that `stllava judge` can be asked about, the policy's beside the reference;
`verdicts` reads its judgments. An answer is right where the expert calls it no worse than a reference.
"""

from collections.abc import Iterable, Sequence

from stllava.metrics.agreement import kappa
from stllava.metrics.robust import medical_exact_match
from stllava.records import Answers, Judgment, Prediction, Rate, Sampling, content_id


def compared(predictions: Iterable[Prediction], sampling: Sampling) -> list[Answers]:
    """Every open prediction as answers to its question: first what the policy said, then the references."""
    return [
        Answers(
            id=_key(row),
            question_id=row.sample_id,
            images=(row.image,),
            question=row.question,
            completions=(row.completion, *dict.fromkeys(row.targets)),
            policy=row.policy,
            sampling=sampling,
        )
        for row in predictions
        if row.kind == "open"
    ]


def verdicts(predictions: Sequence[Prediction], judgments: Iterable[Judgment]) -> list[float | None]:
    """For each open prediction 1 or 0; None where the expert gave no verdict, or one that hung on the order."""
    known = {judgment.answers_id: judgment for judgment in judgments}
    return [_verdict(row, known.get(_key(row))) for row in predictions if row.kind == "open"]


def agreement(predictions: Sequence[Prediction], said: Sequence[float | None]) -> Rate | None:
    """Cohen's kappa of the expert's verdicts with equality after medical normalisation, where there is a verdict."""
    rows = [row for row in predictions if row.kind == "open"]
    both = [(row, value) for row, value in zip(rows, said, strict=True) if value is not None]
    words = [int(medical_exact_match(row.final_answer, row.targets)) for row, _ in both]
    return kappa([int(value) for _, value in both], words, [row.image for row, _ in both])


def _key(row: Prediction) -> str:
    return content_id("semantic", row.sample_id, row.completion, list(row.targets))


def _verdict(row: Prediction, judgment: Judgment | None) -> float | None:
    if row.final_answer in row.targets:
        return 1.0
    if judgment is None or judgment.scores is None:
        return None
    own, *others = judgment.scores
    against = {one.second: one for one in judgment.comparisons if one.first == 0}
    seen: list[float | None] = []
    for place, score in enumerate(others, 1):
        if place not in against:
            seen.append(float(own >= score))
        elif against[place].cause is not None or against[place].flipped:
            seen.append(None)
        else:
            seen.append(float(against[place].winner != place))
    decided = [value for value in seen if value is not None]
    return max(decided) if decided else None
