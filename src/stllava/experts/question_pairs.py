"""Pairs that teach a policy what to ask: a question that taught it something over one that did not. Pure.

What a question is worth shows once its answers are judged. Where some answers are right and some are wrong a pair comes of
it: it is informative. Where all are right the policy knows the answer already: it is settled. Where the expert abstains it is
invalid: nobody can say what is right. The other failures of an expert (a refusal, a reply that cannot be read) are no
fault of the question's, and where every answer is wrong nothing is known of it: such questions make no pairs.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from stllava.data.borrowing import bare
from stllava.errors import StllavaError
from stllava.experts.judged_answers import JudgedAnswers
from stllava.records import Answers, Judgment, Lineage, Message, Preference, Question, content_id

INVALID, SETTLED = 1.0, 0.5
"""By how much an informative question is better than an invalid and than a settled one."""


class AskedQuestion(NamedTuple):
    """A question with the judgment of its answers."""

    question: Question
    answers: Answers
    judgment: Judgment


def question_pairs(
    judged: Iterable[JudgedAnswers],
    questions: Mapping[str, Question],
    *,
    informative: Collection[str],
    opening: str,
    max_pairs: int,
    min_score: float,
) -> list[Preference]:
    """Pairs of questions about one image behind one description, each question in one pair at most.

    Chosen are informative questions, those of the rarest texts first, so that asking does not narrow; rejected are first
    invalid ones, then settled ones, those of the commonest texts first.

    Args:
        judged: Answers with the judgments of them.
        questions: The questions by id.
        informative: Ids of the judgments that made pairs.
        opening: The request for a description that stands before each question.
        max_pairs: Most pairs of questions an image.
        min_score: The score from which an answer counts as right.

    Raises:
        StllavaError: Where answers are to a question that is not among `questions`.
    """
    asked: dict[tuple[tuple[str, ...], str], list[AskedQuestion]] = {}
    times: Counter[str] = Counter()
    for answers, judgment in judged:
        question = questions.get(answers.question_id)
        if question is None:
            raise StllavaError(
                f"answers {answers.id} are to question {answers.question_id}, which is not among the questions",
                expected="the questions that were answered",
                remedy="Name the folders of one and the same round.",
            )
        asked.setdefault((question.images, question.description), []).append(AskedQuestion(question, answers, judgment))
        times[bare(question.text)] += 1

    def rarest(row: AskedQuestion) -> tuple[int, str]:
        return times[bare(row.question.text)], row.question.id

    made: list[Preference] = []
    for rows in asked.values():
        chosen = sorted((row for row in rows if row.judgment.id in informative), key=rarest)
        invalid = sorted((row for row in rows if row.judgment.cause == "abstained"), key=rarest, reverse=True)
        settled = sorted((row for row in rows if _is_settled(row.judgment, min_score)), key=rarest, reverse=True)
        rejected = [*((row, INVALID) for row in invalid), *((row, SETTLED) for row in settled)]
        both = list(zip(chosen, rejected, strict=False))[:max_pairs]
        made += [_preference(better, worse, opening=opening, margin=margin) for better, (worse, margin) in both]
    return made


def _is_settled(judgment: Judgment, min_score: float) -> bool:
    return judgment.scores is not None and min(judgment.scores) >= min_score


def _preference(better: AskedQuestion, worse: AskedQuestion, *, opening: str, margin: float) -> Preference:
    """One question over another, both behind the description that they were asked behind."""
    question, other = better.question, worse.question
    lineage = Lineage(question_id=question.id, answers_id=better.answers.id, judgment_id=better.judgment.id)
    return Preference(
        id=content_id("question preference", opening, question.description, question.text, other.text, lineage.model_dump()),
        images=question.images,
        prompt=(Message(role="user", content=opening), Message(role="assistant", content=question.description)),
        chosen=question.text,
        rejected=other.text,
        speaker="virtual_user",
        margin=margin,
        lineage=lineage,
    )
