"""What an expert makes of open answers: whether each is as good as its reference, told without knowing which is which.

`compared` turns predictions into answers that `stllava judge` can be asked about, the policy's beside the reference;
`verdicts` reads its judgments. An answer is right where the expert calls it no worse than a reference; one that is a reference
word for word is right without a question. `agreement` leaves these out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class ExpertAgreement:
    """How far an expert agrees with our words on the open answers that it was asked about.

    It is not asked about an answer that is a reference word for word: both call that right, so it says nothing of the expert.
    """

    identical: int
    """Open answers that are a reference word for word."""
    asked: int
    """All other open answers."""
    verdicts: int
    """Of those asked about, the ones with a verdict."""
    expert_right: int
    """Of those with a verdict, the ones that the expert calls right."""
    words_right: int
    """Of those with a verdict, the ones that equal a reference after medical normalisation."""
    kappa: Rate | None
    """Cohen's kappa of the two, on answers with a verdict; None without any, or where both say the same of all of them."""

    @property
    def sentence(self) -> str:
        """What was found, without who the expert is, as in `was asked about …`."""
        whole = self.identical + self.asked
        told = f"was asked about {self.asked} of {whole} open answers: {self.identical} are the reference word for word"
        if not self.verdicts:
            return f"{told}. Without a verdict nothing is known of its agreement with open_medical_match."
        right = f"{self.expert_right} right and open_medical_match {self.words_right}"
        told += f". Of the {self.verdicts} with a verdict it calls {right}"
        if self.kappa is None:
            return f"{told}: where both say the same of all, Cohen's kappa is not defined."
        return (
            f"{told}; Cohen's kappa {self.kappa.value:.2f} [{self.kappa.low:.2f}, {self.kappa.high:.2f}], n = {self.kappa.n}."
        )


def agreement(predictions: Sequence[Prediction], said: Sequence[float | None]) -> ExpertAgreement:
    """How far an expert's verdicts agree with equality after medical normalisation, on answers that it was asked about.

    Args:
        predictions: All predictions.
        said: What `verdicts` made of the open ones.
    """
    rows = [row for row in predictions if row.kind == "open"]
    asked = [(row, value) for row, value in zip(rows, said, strict=True) if row.final_answer not in row.targets]
    both = [(row, int(value)) for row, value in asked if value is not None]
    expert = [value for _, value in both]
    words = [int(medical_exact_match(row.final_answer, row.targets)) for row, _ in both]
    differs = len({*expert, *words}) > 1
    return ExpertAgreement(
        identical=len(rows) - len(asked),
        asked=len(asked),
        verdicts=len(both),
        expert_right=sum(expert),
        words_right=sum(words),
        kappa=kappa(expert, words, [row.image for row, _ in both]) if differs else None,
    )


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
