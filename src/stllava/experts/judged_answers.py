"""Answers with the judgments of them, read from the folders of one round: what pairs, distilling and audits are made of."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from stllava.data.borrowing import bare
from stllava.errors import StllavaError
from stllava.records import Answers, Judgment
from stllava.store import stream_records

JudgedAnswers = tuple[Answers, Judgment]
"""Answers to a question with the judgment of them."""
Asked = bytes
"""Sixteen bytes that stand for images and a question about them, the same for equal questions."""
STARTS = 4
"""Times that the answers are gone through before they are held in memory: judgments in any other order than theirs would have
them gone through for each."""


def read_judged_answers(answers: Path, judgments: Path) -> "JudgedAnswersFolder":
    """Every judgment of a folder with the answers that it is of, in the order of the judgments.

    Raises, while it is gone through:
        StllavaError: Where a judgment is about answers that the folder `answers` does not hold.
    """
    return JudgedAnswersFolder(answers, judgments)


def questions_judged(rounds: Sequence[tuple[Path, Path]]) -> set[Asked]:
    """What an expert gave a verdict on in any of the rounds, so that the policy's own votes on it count for nothing.

    Args:
        rounds: Folders of answers and of their judgments.
    """
    return {
        asked(answered.images, answered.question)
        for folders in rounds
        for answered, judgment in read_judged_answers(*folders)
        if judgment.scores is not None and not judgment.is_own_vote
    }


def asked(images: tuple[str, ...], question: str) -> Asked:
    """What a question about images has in common with the same one put in other letters."""
    return hash_of(images, bare(question))


def hash_of(images: tuple[str, ...], text: str) -> bytes:
    """Sixteen bytes that stand for images and a text."""
    return hashlib.blake2b(json.dumps([images, text]).encode(), digest_size=16).digest()


class JudgedAnswersFolder(Iterable[JudgedAnswers]):
    """Judgments with their answers, one by one, as often as they are gone through.

    `judge` writes judgments in the order of the answers, or those of the expert and then those of votes, so both files are read
    side by side and neither is held in memory.
    """

    def __init__(self, answers: Path, judgments: Path) -> None:
        self._folder = answers
        self._answers, self._judgments = (
            stream_records(answers, "answers", Answers),
            stream_records(judgments, "judgments", Judgment),
        )

    def __iter__(self) -> Iterator[JudgedAnswers]:
        rows, row, starts = iter(self._answers), None, 1
        held: dict[str, Answers] = {}
        for judgment in self._judgments:
            key, began = judgment.answers_id, starts
            while row is None or row.id != key:
                if starts > STARTS:
                    held = held or {one.id: one for one in self._answers}
                    row = held.get(key)
                    break
                row = next(rows, None)
                if row is None:
                    if starts > began:  # All of them were looked at since.
                        break
                    rows, starts = iter(self._answers), starts + 1
            if row is None:
                raise StllavaError(
                    f"judgment {judgment.id} is about answers {key}, which {self._folder} does not hold",
                    expected="the judgments of these answers",
                    remedy="Name the folders of one and the same round.",
                )
            yield row, judgment
