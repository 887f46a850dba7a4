"""What tests of reviews share: a judged round on disk, and readers who vote by rule."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from helpers.intake_parts import import_folder, masks_white
from helpers.judging import SAMPLING, answers_of, write_answers
from stllava.config import AskOptions, EvaluateOptions, IntakeOptions, JudgeOptions
from stllava.data.image_set import STAGE, Imported, read_imported
from stllava.records import (
    Answers,
    ItemChoice,
    ItemTask,
    Judgment,
    Prediction,
    Question,
    ReviewTask,
    ReviewVote,
    Sample,
    VoteChoice,
    content_id,
)
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
    task: ReviewTask | ItemTask,
    choice: VoteChoice | ItemChoice,
    *,
    reader: str,
    number: int,
    turn: int = 0,
    correct_answer: str | None = None,
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


def write_pictures(root: Path, count: int, *, side: int = 24, seed: int = 0) -> list[str]:
    """So many pictures of noise below an image root, and their paths."""
    draw = np.random.default_rng(seed)
    names = [f"{number:05}.png" for number in range(count)]
    for name in names:
        root.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (side, side), dtype=np.uint8)).save(root / name)
    return names


def write_evaluation(folder: Path, count: int, *, images: Path, answer: str = "") -> list[Prediction]:
    """The folder of an evaluation: so many predictions, two an image, open and closed by turns.

    Every third closed answer denies what it should affirm. Of the open ones every fourth says the reference in a sentence,
    which the published rule counts right and ours does not, and every fifth says something else.
    """
    names, made = write_pictures(images, (count + 1) // 2), []
    for number in range(count):
        closed, turn = number % 2 == 0, number // 2
        target = "yes" if closed else f"nodule {number}"
        said = target
        if closed and turn % 3 == 0:
            said = "no"
        elif not closed and turn % 4 == 0:
            said = f"It is a nodule {number} there."
        elif not closed and turn % 5 == 0:
            said = "an effusion"
        sample = Sample(
            id=content_id("sample", number),
            image=names[number // 2],
            question=f"{'Is there something' if closed else 'What is'} at place {number}?",
            targets=(target,),
            kind="closed" if closed else "open",
            split="test",
        )
        made.append(Prediction.of(sample, answer or said, policy="p"))
    stage = Stage("evaluate", folder, EvaluateOptions(), inputs={}, existing="resume")
    stage.write_records("predictions", made)
    stage.finish(counts_in=count, counts_out=count)
    return made


def write_questions(folder: Path, count: int, *, images: Path, text: str = "") -> list[Question]:
    """The folder of ask: so many questions, one an image; every fourth is asked about several images."""
    made = [
        Question(
            id=content_id("question", number),
            images=(name,),
            text=text or ("Is this normal?" if number % 4 == 0 else f"What is at place {number}?"),
            description="An image.",
            policy="p",
            sampling=SAMPLING,
        )
        for number, name in enumerate(write_pictures(images, count))
    ]
    stage = Stage("ask", folder, AskOptions(), inputs={}, existing="resume")
    stage.write_records("questions", made)
    stage.finish(counts_in=count, counts_out=count)
    return made


def write_import(folder: Path, count: int, *, side: int = 48) -> list[Imported]:
    """An imported set of so many pictures in `folder/set`: every third had a white square, which was blacked out."""
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 200, (side, side), dtype=np.uint8)
        if number % 3 == 0:
            pixels[4:12, 6:30] = 255
        path = folder / "in" / f"p{number}_{number}_20200101_.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    import_folder(folder, to="set", make=masks_white)
    return read_imported(folder / "set")


def write_series(folder: Path, *, series: int = 3, slices: int = 5, side: int = 24) -> list[Imported]:
    """An imported set of so many series of slices, which stand in no order in its list, and a single picture."""
    stage = Stage(STAGE, folder, IntakeOptions(), inputs={"salt": "0" * 16}, existing="resume")
    rows = []
    for number, name in enumerate(write_pictures(folder, series * slices + 1, side=side)):
        of, frame = divmod(number, slices)
        rows.append(
            Imported(
                id=content_id("picture", number),
                path=name,
                width=side,
                height=side,
                modality="CT",
                body_part="",
                view="",
                laterality="",
                labels={},
                source=content_id("source", number),
                patient=content_id("patient", of),
                study=content_id("study", of),
                series=content_id("series", of),
                frame=frame if of < series else None,
                done=(),
                masked=(),
                content="",
                split="train",
                interval=0,
            )
        )
    listed = sorted(rows, key=lambda row: row.id)
    stage.write_records("images", listed)
    stage.finish(counts_in=len(rows), counts_out=len(rows), files=[folder / "images.jsonl"])
    return rows


def item_vote(task: ItemTask, choice: ItemChoice, *, reader: str = "anna", number: int, turn: int = 0) -> ReviewVote:
    """A reader's vote on one answer, or one question."""
    return vote_on(task, choice, reader=reader, number=number, turn=turn)
