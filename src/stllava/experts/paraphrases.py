"""Questions that ask the same in other words, told by their answers, and what the expert said of those answers there. Pure.

An expert that errs seldom errs on the same fact in every wording. Borrowing asks the same of an image several times ("What
type of tumour is seen?", "How is this tumour classified?"), so an answer often has several verdicts, and together they say
more than each. Two questions count as the same where, of the images that were asked both, three things hold: their likeliest
answers agree beyond chance, by Cohen's kappa; where these differ, they differ in both directions, else one question only
implies the other; and verdicts on the same answer differ no more often than the expert's errors explain. How often they
differ also shows which of its errors come anew with every wording, and which it repeats in all.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import NamedTuple

from stllava.data.balance import opening_words
from stllava.data.borrowing import bare
from stllava.records import QuestionParaphrase, content_id

MIN_IMAGES = 10
"""Images that must have been asked two questions before these are compared."""
MIN_KAPPA = 0.4
"""The least lower bound of kappa at which two questions may ask the same: moderate agreement (Landis and Koch 1977)."""
MAX_DEVIATION = 3.0
"""Standard errors by which what is counted may differ from what is expected of the same question in other words."""
MIN_SHARE_ALIKE = 0.75
"""The least share of images in which an answer is right to both of two questions, or to neither, that ask the same."""
MAX_WORDINGS = 12
"""Wordings of a question that are reckoned with at most, the most reliable ones."""
MIN_COMPARISONS = 30
"""Verdicts in two wordings from which on a kind of question has a rate of its own of how often they differ."""


class AnswerVerdicts(NamedTuple):
    """What the policy and the expert say of the different answers to a question about an image."""

    votes: Mapping[str, int]
    """How often the policy gave each, in the form in which equal answers are equal."""
    called_right: Mapping[str, bool]
    """Whether the expert calls it right."""
    given: int
    """How many answers were given, those that say nothing included."""


class AnswerErrors(NamedTuple):
    """How often an expert is wrong about an answer, above 0 and below 1."""

    misses: float
    """Where the answer is right: share of verdicts that call it wrong."""
    false_alarms: float
    """Where it is wrong: share of verdicts that call it right."""

    @property
    def say_nothing(self) -> bool:
        """Whether it calls wrong answers right as often as right ones, or more often."""
        return self.misses + self.false_alarms >= 1

    @property
    def most_fresh(self) -> float:
        """The largest share that can come anew with every wording: what comes anew turns true beliefs round, and wrong ones."""
        return min(min(error, 1 - error) for error in self)


class Paraphrase(NamedTuple):
    """The same asked of the same image in other words."""

    reliability: float
    """How probably what is right there is right here and the other way round: `share_alike`."""
    question: str
    verdicts: AnswerVerdicts


Likeliest = Callable[[str, AnswerVerdicts], str | None]
"""The likeliest answer to a question by what is said of its answers alone; None where none is likely."""


@dataclass(frozen=True)
class Paraphrases:
    """What was asked of every image, and which questions are the same in other words."""

    verdicts: Mapping[tuple[str, ...], Mapping[str, AnswerVerdicts]] = field(default_factory=dict)
    """By images and question."""
    reliability: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """Of every two questions that ask the same, in both orders."""
    differing: Mapping[str, float] = field(default_factory=dict)
    """How often the verdicts on an answer differ between two wordings, by the questions' opening words."""
    differing_overall: float = 0.5
    """How often they do in all questions; one half, which is chance, where nothing was compared."""

    def of(self, images: tuple[str, ...], question: str) -> list[Paraphrase]:
        """What was said of the answers to the same question in other words about the same images, the most reliable first."""
        text = bare(question)
        found = [
            Paraphrase(reliability, other, verdicts)
            for other, verdicts in self.verdicts.get(images, {}).items()
            if (reliability := self.reliability.get((text, other))) is not None
        ]
        return sorted(found, key=lambda paraphrase: (-paraphrase.reliability, paraphrase.question))[:MAX_WORDINGS]

    def records(self) -> list[QuestionParaphrase]:
        """Every two questions that ask the same."""
        return [
            QuestionParaphrase(id=content_id("paraphrase", *both), questions=both, reliability=reliability)
            for both, reliability in sorted(self.reliability.items())
            if both[0] < both[1]
        ]

    def fresh_error(self, question: str, errors: AnswerErrors) -> float:
        """The share of verdicts that is wrong in one wording and not in every one, of an expert with these errors.

        Verdicts that are wrong independently with probability f differ between two wordings with d = 2 f (1 - f); what is
        wrong in all wordings adds nothing to d. Questions that are not quite the same make d larger: f is `most_fresh` at most.
        """
        differing = min(self.differing.get(opening_words(question), self.differing_overall), 0.5)
        return min((1 - sqrt(1 - 2 * differing)) / 2, errors.most_fresh)


NO_PARAPHRASES = Paraphrases()
"""Every question stands for itself."""


def find_paraphrases(
    judged: Iterable[tuple[tuple[str, ...], str, AnswerVerdicts]],
    *,
    likeliest: Likeliest,
    errors: Callable[[str, str], AnswerErrors],
) -> Paraphrases:
    """Which questions ask the same, by the answers to them.

    Args:
        judged: Images, question and what was said of its answers; of the same question about the same images the last votes
            count, and the last verdict on each answer.
        likeliest: Which answer to a question is taken for its right one.
        errors: How often the expert is wrong about such an answer to a question.
    """
    about: dict[tuple[str, ...], dict[str, AnswerVerdicts]] = {}
    for images, question, verdicts in judged:
        asked, text = about.setdefault(images, {}), bare(question)
        if text in asked:
            verdicts = verdicts._replace(called_right={**asked[text].called_right, **verdicts.called_right})
        asked[text] = verdicts
    where: dict[str, list[tuple[str, ...]]] = {}
    for images, asked in about.items():
        for text in asked:
            where.setdefault(text, []).append(images)
    reliability: dict[tuple[str, str], float] = {}
    compared, differing = Counter[str](), Counter[str]()
    in_all, differing_in_all = 0, 0
    common = {text for text, images in where.items() if len(images) >= MIN_IMAGES}
    likely = {
        (images, text): likeliest(text, verdicts)
        for images, asked in about.items()
        for text, verdicts in asked.items()
        if text in common
    }
    # One question after another, so that no more is held than what is compared with one.
    for text in sorted(common):
        for other, table in _likely_together(text, where[text], about, likely).items():
            if table.total() < MIN_IMAGES or kappa_bound(table) < MIN_KAPPA or is_one_sided(table):
                continue
            both = [(about[images][text], about[images][other]) for images in where[text] if other in about[images]]
            compares = [
                (first.called_right[answer] != second.called_right[answer], errors(text, answer), errors(other, answer))
                for first, second in both
                for answer in sorted(first.called_right.keys() & second.called_right.keys())
            ]
            unequal = sum(differ for differ, *_ in compares)
            by_error = sum(differ_by_error(*told) for _, *told in compares) / max(1, len(compares))
            same = share_alike(unequal, len(compares), by_error=by_error)
            if same < MIN_SHARE_ALIKE:
                continue
            reliability[text, other] = reliability[other, text] = same
            in_all, differing_in_all = in_all + len(compares), differing_in_all + unequal
            for kind in {opening_words(text), opening_words(other)}:
                compared[kind] += len(compares)
                differing[kind] += unequal
    return Paraphrases(
        about,
        reliability,
        {kind: differing[kind] / count for kind, count in compared.items() if count >= MIN_COMPARISONS},
        differing_in_all / in_all if in_all else 0.5,
    )


def _likely_together(
    text: str,
    where: Sequence[tuple[str, ...]],
    about: Mapping[tuple[str, ...], Mapping[str, AnswerVerdicts]],
    likely: Mapping[tuple[tuple[str, ...], str], str | None],
) -> dict[str, Counter[tuple[str, str]]]:
    """For every question behind this one in the alphabet, how often each two answers are the likeliest ones of one image."""
    tables: dict[str, Counter[tuple[str, str]]] = {}
    for images in where:
        answer = likely[images, text]
        if answer is None:
            continue
        for other in about[images]:
            said = likely.get((images, other))
            if other > text and said is not None:
                tables.setdefault(other, Counter())[answer, said] += 1
    return tables


def kappa_bound(table: Mapping[tuple[str, str], int]) -> float:
    """Cohen's kappa of a table of pairs of answers, one standard error lower, as if two more images had disagreed.

    So a single image with a rare answer, or a few images that happen to agree, prove nothing. 0 where one of the two questions
    has one answer only: nothing can agree beyond chance then.
    """
    total = sum(table.values())
    rows, columns = Counter[str](), Counter[str]()
    for (first, second), count in table.items():
        rows[first] += count
        columns[second] += count
    if len(rows) == 1 or len(columns) == 1:
        return 0.0
    agreement = sum(count for (first, second), count in table.items() if first == second) / (total + 2)
    chance = sum(count * columns[answer] for answer, count in rows.items()) / total**2
    return (agreement - sqrt(agreement * (1 - agreement) / (total + 2)) - chance) / (1 - chance)


def is_one_sided(table: Mapping[tuple[str, str], int]) -> bool:
    """Whether two answers are exchanged in one direction more often than by chance: a sign test of each two (McNemar 1947)."""
    for (first, second), count in table.items():
        back = table.get((second, first), 0)
        if count - back > MAX_DEVIATION * sqrt(count + back) and first != second:
            return True
    return False


def differ_by_error(one: AnswerErrors, other: AnswerErrors) -> float:
    """How often two verdicts on the same fact differ whose errors come each by itself, one fact in two being right."""
    each = [first * (1 - second) + (1 - first) * second for first, second in zip(one, other, strict=True)]
    return sum(each) / len(each)


def share_alike(differing: int, compared: int, *, by_error: float) -> float:
    """The share of images in which an answer is right to both of two questions or to neither, less one standard error.

    An expert all of whose errors come anew with every wording differs from itself in a share d of its verdicts on the same
    answer, and in 1 - d where the answer is right to one question alone.

    Args:
        differing: Verdicts that differ.
        compared: Verdicts on the same answer to both questions, one more of each kind being reckoned with.
        by_error: Of these the share that differs by error alone, d: the mean of `differ_by_error`. From one half on verdicts
            tell nothing of the questions, and the share is 0.
    """
    if by_error >= 0.5:
        return 0.0
    share = (differing + 1) / (compared + 2)
    unlike = (share + sqrt(share * (1 - share) / (compared + 2)) - by_error) / (1 - 2 * by_error)
    return 1 - min(1.0, max(0.0, unlike))
