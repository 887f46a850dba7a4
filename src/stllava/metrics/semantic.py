"""What an expert makes of open answers: whether each is as good as its reference, told without knowing which is which.

`compared` turns predictions into answers that `stllava judge` can be asked about, the policy's beside the reference;
`verdicts` reads its judgments. An answer is right where the expert calls it no worse than a reference; one that is a reference
word for word is right without a question. `agreement` leaves these out.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from stllava.metrics.agreement import kappa
from stllava.metrics.robust import medical_exact_match
from stllava.records import Answers, Judgment, Prediction, Rate, Sampling, content_id


def compared(predictions: Iterable[Prediction], sampling: Sampling) -> Iterator[Answers]:
    """Every open prediction as answers to its question: first what the policy said, then the references."""
    return (
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
    )


def verdicts(predictions: Iterable[Prediction], judgments: Iterable[Judgment]) -> list[float | None]:
    """For each open prediction 1 or 0; None where the expert gave no verdict, or one that hung on the order.

    Of each judgment only its verdict is held.
    """
    known = {judgment.answers_id: _verdict(judgment) for judgment in judgments}
    return [1.0 if row.final_answer in row.targets else known.get(_key(row)) for row in predictions if row.kind == "open"]


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


def agreement(predictions: Iterable[Prediction], said: Iterable[float | None]) -> ExpertAgreement:
    """How far an expert's verdicts agree with equality after medical normalisation, on answers that it was asked about.

    Args:
        predictions: All predictions.
        said: What `verdicts` made of the open ones.
    """
    whole, asked = 0, 0
    expert: list[int] = []
    words: list[int] = []
    images: list[str] = []
    for row, value in zip((row for row in predictions if row.kind == "open"), said, strict=True):
        whole += 1
        if row.final_answer in row.targets:
            continue
        asked += 1
        if value is not None:
            expert.append(int(value))
            words.append(int(medical_exact_match(row.final_answer, row.targets)))
            images.append(row.image)
    differs = len({*expert, *words}) > 1
    return ExpertAgreement(
        identical=whole - asked,
        asked=asked,
        verdicts=len(expert),
        expert_right=sum(expert),
        words_right=sum(words),
        kappa=kappa(expert, words, images) if differs else None,
    )


def _key(row: Prediction) -> str:
    return content_id("semantic", row.sample_id, row.completion, list(row.targets))


def _verdict(judgment: Judgment) -> float | None:
    """Whether the first answer is no worse than one of the others, as 1 or 0; None where nothing is known of it."""
    if judgment.scores is None:
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
