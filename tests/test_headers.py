"""What headers say of pictures as questions: every fact asked for, closed ones that cannot be guessed."""

from collections import Counter

import pytest

from stllava.data.headers import header_questions
from stllava.data.image_set import Imported
from stllava.experts.rules.reference import ReferenceJudge
from stllava.records import Answers, Sample, Sampling

HOW = Sampling(temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=8, seed=0)


def picture(
    number: int, *, modality: str = "", part: str = "", view: str = "", side: str = "", split: str = "train"
) -> Imported:
    """A line of an imported set."""
    return Imported(
        id=f"{number:016x}",
        path=f"images/{number}.png",
        width=64,
        height=64,
        modality=modality,
        body_part=part,
        view=view,
        laterality=side,
        labels={},
        source="s",
        patient="p",
        study="s",
        series="r",
        frame=None,
        done=(),
        masked=(),
        content=f"{number}",
        split=split,
        interval=None,
    )


def opens(samples: list[Sample]) -> dict[str, str]:
    return {row.question: row.targets[0] for row in samples if row.kind == "open"}


def test_every_fact_is_asked_for_in_words_and_nothing_else_is() -> None:
    rows = [picture(1, modality="CR", part="chest", view="PA", side="L", split="test"), picture(2), picture(3, modality="XYZ")]
    samples = header_questions(rows)
    assert opens(samples) == {
        "What imaging modality is this?": "X-ray",
        "Which projection is this?": "PA",
        "Which body part is shown?": "chest",
        "Which side of the body is shown?": "left",
    }
    assert {(row.image, row.split, row.kind) for row in samples} == {("images/1.png", "test", "open")}


def test_closed_questions_have_yes_and_no_alike_and_are_true() -> None:
    kinds = ("CT", "MR", "US", "CR")
    rows = [picture(number, modality=kinds[number % 4], part=("brain", "chest")[number % 2]) for number in range(400)]
    samples = header_questions(rows)
    closed = [row for row in samples if row.kind == "closed"]
    assert len(closed) == 800
    said = Counter(row.targets[0] for row in closed)
    assert 0.45 < said["yes"] / len(closed) < 0.55
    names = {"CT": "CT", "MR": "MRI", "US": "ultrasound", "CR": "X-ray", "brain": "head", "chest": "chest"}
    facts = {row.path: {names[row.modality], names[row.body_part]} for row in rows}
    for row in closed:
        named = row.question.rstrip("?").split()[-1]
        assert row.targets[0] == ("yes" if named in facts[row.image] else "no")


def test_no_closed_question_is_made_where_all_pictures_are_alike() -> None:
    assert {row.kind for row in header_questions([picture(1, modality="CT"), picture(2, modality="CT")])} == {"open"}


@pytest.mark.parametrize(
    ("question", "right", "wrong"),
    [
        ("What type of imaging modality is this?", "MRI", "CT"),
        ("Is this an MRI?", "yes", "no"),
        ("Is this a chest image?", "no", "yes"),
        ("In what plane was this image taken?", "axial", "coronal"),
    ],
)
def test_the_reference_expert_judges_other_words_for_the_same_facts(question: str, right: str, wrong: str) -> None:
    rows = [picture(1, modality="MR", part="brain", view="axial"), picture(2, modality="CT", part="chest")]
    given = Answers(
        id="a",
        question_id="q",
        images=("images/1.png",),
        question=question,
        completions=(right, wrong),
        policy="p",
        sampling=HOW,
    )
    assert ReferenceJudge(header_questions(rows)).judge(given).scores == (1, 0)
