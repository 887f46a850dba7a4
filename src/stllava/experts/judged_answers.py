"""Answers with the judgments of them, read from the folders of one round: what pairs, distilling and audits are made of."""

from pathlib import Path

from stllava.errors import StllavaError
from stllava.records import Answers, Judgment
from stllava.store import read_records

JudgedAnswers = tuple[Answers, Judgment]
"""Answers to a question with the judgment of them."""


def read_judged_answers(answers: Path, judgments: Path) -> list[JudgedAnswers]:
    """Every judgment of a folder with the answers that it is of, in the order of the judgments.

    Raises:
        StllavaError: Where a judgment is about answers that the folder `answers` does not hold.
    """
    given = {row.id: row for row in read_records(answers, "answers", Answers)}
    judged: list[JudgedAnswers] = []
    for judgment in read_records(judgments, "judgments", Judgment):
        if judgment.answers_id not in given:
            raise StllavaError(
                f"judgment {judgment.id} is about answers {judgment.answers_id}, which {answers} does not hold",
                expected="the judgments of these answers",
                remedy="Name the folders of one and the same round.",
            )
        judged.append((given[judgment.answers_id], judgment))
    return judged
