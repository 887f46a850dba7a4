"""What reference answers say of an image in general, and what follows from it for questions nobody asked."""

import os
from collections import defaultdict
from pathlib import Path

import pytest

from stllava.data.benchmarks import read_vqa_rad
from stllava.experts.rules.image_facts import expected_answer, facts_of
from stllava.records import QuestionKind, Sample


def sample(question: str, answer: str, *, place: str = "", kind: QuestionKind = "open") -> Sample:
    """A reference question."""
    labels = {"location": place} if place else {}
    return Sample(id=question, image="a.png", question=question, targets=(answer,), kind=kind, split="train", labels=labels)


CHEST_FILM = facts_of(
    [
        sample("What type of image is this?", "Chest X-ray"),
        sample("Is this a lateral film?", "no", kind="closed"),
        sample("Is there a pneumothorax?", "no", place="CHEST", kind="closed"),
    ]
)
AXIAL_CT = facts_of(
    [sample("What kind of scan is this?", "CT"), sample("Is this a transverse section?", "Yes.", kind="closed")]
)


@pytest.mark.parametrize(
    ("question", "right", "wrong"),
    [
        ("Is this an MRI?", "no", "yes"),
        ("is this image a chest radiograph", "yes", "no"),
        ("Is this an abdominal x-ray?", "no", "yes"),
        ("Is this taken in the lateral view?", "no", "yes"),
        ("What imaging modality was used?", "x-ray", "CT"),
        ("Which imaging modality is this?", "a plain film", "x-ray or CT"),
        ("What organ system is shown?", "the lungs", "the brain"),
        ("What part of the body is pictured?", "thorax", "abdomen"),
    ],
)
def test_general_questions_have_a_right_answer_that_nobody_wrote(question: str, right: str, wrong: str) -> None:
    truth = expected_answer(question, CHEST_FILM)
    assert truth is not None
    assert (truth.score(right), truth.score(wrong), truth.score("blue")) == (1, 0, 0)


@pytest.mark.parametrize(
    "question",
    [
        "Is this a PA film?",
        "What plane is this?",
        "Is this a normal chest x-ray?",
        "Is this CT scan enhanced by IV contrast?",
        "Is there a fracture?",
        "How was this image taken?",
        "What type of imaging does this not represent?",
        "What is the modality of this MRI?",
        "In what plane is this MRI taken?",
        "Is the lung normal?",
        "Was this taken in the AP or PA plane?",
        "Where is the lung?",
        "",
    ],
)
def test_what_is_not_known_or_asks_for_more_is_left_alone(question: str) -> None:
    assert expected_answer(question, CHEST_FILM) is None


def test_planes_are_known_from_questions_that_were_confirmed() -> None:
    truth = expected_answer("In what plane was this CT taken?", AXIAL_CT)
    assert truth is not None
    assert (truth.score("Axial."), truth.score("coronal"), truth.score("axial and coronal")) == (1, 0, 0)
    denied = expected_answer("Is this a coronal CT?", AXIAL_CT)
    assert denied is not None
    assert denied.value == "no"


def test_references_that_disagree_say_nothing() -> None:
    known = facts_of([sample("What kind of scan is this?", "CT"), sample("What modality is this?", "MRI")])
    assert expected_answer("Is this a CT?", known) is None
    again = facts_of([sample("What kind of scan is this?", "CT"), sample("Is this a CT scan?", "no", kind="closed")])
    assert expected_answer("What kind of scan is this?", again) is None


def test_of_the_published_questions_all_that_follow_from_others_have_their_published_answer() -> None:
    folder = os.environ.get("STLLAVA_VQA_RAD")
    if not folder:
        pytest.skip("STLLAVA_VQA_RAD is not set: the published VQA-RAD is NOT tested; set it to its folder")
    images: dict[str, list[Sample]] = defaultdict(list)
    for row in read_vqa_rad(Path(folder)).train:
        images[row.image].append(row)
    scores = []
    for rows in images.values():
        for place, row in enumerate(rows):
            truth = expected_answer(row.question, facts_of([*rows[:place], *rows[place + 1 :]]))
            if truth is not None:
                scores.append(truth.score(row.targets[0]))
    assert len(scores) > 30
    assert sum(scores) == len(scores)
