"""What tests of reviews share: a judged round on disk, and readers who vote by rule."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from helpers.judging import answers_of, write_answers
from stllava.config import JudgeOptions
from stllava.records import Answers, Judgment, ReviewTask, ReviewVote, VoteChoice, content_id
from stllava.store import Stage

RIGHT, WRONG = "a nodule on the left", "no nodule at all"


def write_round(
    folder: Path, count: int, *, wrong: float = 0.15, side: int = 24, doubtful: float = 0.2, seed: int = 0
) -> list[Answers]:
    """A round of so many questions, three an image, with pictures in `folder/images`.

    Of each, one answer is right; the expert is wrong about a share, and its scores are close in a share, more often there.
    """
    draw = np.random.default_rng(seed)
    given, judgments = [], []
    for number in range(count):
        image = f"{number // 3:05}.png"
        path = folder / "images" / image
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (side, side), dtype=np.uint8)).save(path)
        texts = (f"{RIGHT} {number}", f"{WRONG} {number}")
        answers = answers_of(f"What is at place {number}?", texts if number % 2 else texts[::-1], image=image)
        given.append(answers)
        close = draw.random() < doubtful
        mistaken = draw.random() < (min(1.0, 2 * wrong) if close else wrong)
        right = answers.completions.index(texts[0])
        high, low = (0.6, 0.4) if close else (1.0, 0.0)
        scores = tuple(high if (place == right) != mistaken else low for place in range(2))
        judgments.append(
            Judgment(
                id=content_id("judgment", answers.id),
                answers_id=answers.id,
                scores=scores,
                cause=None,
                reason=f"I see it at place {number}.",
                expert="made up",
                prompt_hash="h",
            )
        )
    write_answers(folder / "answer", given)
    stage = Stage("judge", folder / "judge", JudgeOptions(), inputs={}, existing="resume")
    stage.write_records("judgments", judgments)
    stage.finish(counts_in=count, counts_out=count)
    return given


def right_choice(task: ReviewTask) -> VoteChoice:
    """What a reader who is right says of a task of `write_round`."""
    return "first" if task.texts[0].startswith(RIGHT) else "second"


def vote_on(
    task: ReviewTask, choice: VoteChoice, *, reader: str, number: int, turn: int = 0, correct_answer: str | None = None
) -> ReviewVote:
    """A reader's vote."""
    return ReviewVote(
        id=content_id(reader, number),
        number=number,
        event="vote",
        reader=reader,
        at=f"2026-11-28T00:{number // 60 % 60:02}:{number % 60:02}+00:00",
        task_id=task.id,
        turn=turn,
        seconds=float(number % 7 + 1),
        choice=choice,
        correct_answer=correct_answer,
    )


def votes_of(reader: str, tasks: Sequence[ReviewTask], *, wrong: float, seed: int) -> list[ReviewVote]:
    """The votes of a reader who is wrong about a share of the tasks."""
    draw = np.random.default_rng(seed)
    votes = []
    for number, task in enumerate(tasks, 1):
        right = right_choice(task)
        other: VoteChoice = "second" if right == "first" else "first"
        votes.append(vote_on(task, other if draw.random() < wrong else right, reader=reader, number=number))
    return votes
