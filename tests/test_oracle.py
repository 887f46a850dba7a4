"""The oracle: right answers are right in any harmless form, nothing else is, and what it cannot judge it leaves."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stllava.data.phantom.answer_parser import understand
from stllava.data.phantom.language import answer, samples
from stllava.data.phantom.questions import NAMES
from stllava.data.phantom.truth import LEVELS, ORGANS, SIDES, SIZES, Truth, make_truth
from stllava.experts.expert import Expert, Verdict
from stllava.experts.rules.oracle import Oracle
from stllava.records import Answers, Sample, Sampling

SAMPLING = Sampling(temperature=1, top_k=0, top_p=1, max_new_tokens=8, seed=0)
TRUTHS = [make_truth(0, index, "unlabelled") for index in range(140)]
ORACLE = Oracle(TRUTHS)
NODULE = Truth(
    id="n", path="n.png", modality="ct", region="chest", finding="nodule", side="right", level="upper", size="small", count=1
)
NORMAL = Truth(id="0", path="0.png", modality="mr", region="head", finding="none", side=None, level=None, size=None, count=0)
WORDS = ["yes", "no", "there", "is", "the", "in", *SIDES, *LEVELS, *SIZES, *ORGANS.values(), *NAMES, "one", "two", "dog"]
WHERE, FINDING = "where is the nodule?", "what is the complete finding?"
cases = st.sampled_from([(sample, truth) for truth in TRUTHS for sample in samples(truth, seed=0, split="unlabelled")])


def judge(question: str, *completions: str, image: str = "n.png", expert: Expert | None = None) -> Verdict:
    """The verdict on completions to a question about one image."""
    answers = Answers(
        id="a",
        question_id="q",
        images=(image,),
        question=question,
        completions=completions,
        policy="p",
        sampling=SAMPLING,
    )
    return (expert or Oracle([NODULE, NORMAL])).judge(answers)


@pytest.mark.parametrize(
    ("question", "completion", "score"),
    [
        ("is there a nodule?", "Yes.", 1),
        ("is there a nodule?", "yes yes", 0),
        ("is there a nodule?", "yes and no", 0),
        ("is there a nodule?", "no", 0),
        ("is there a nodule?", "", 0),
        ("is there a nodule?", " . ", 0),
        ("on which side is the nodule?", "on the right side", 1),
        ("on which side is the nodule?", "right left", 0),
        ("how many nodules are there?", "1", 1),
        ("how many nodules are there?", "one nodule", 1),
        ("what is the imaging modality?", "CT scan", 1),
        (WHERE, "right upper lung", 1),
        (WHERE, "In the upper right lung.", 1),
        (WHERE, "right lower lung", 0.5),
        (WHERE, "right upper", 0.8),
        (WHERE, "left lower lung", 0),
        (WHERE, "right left upper lung", 0.25),
        (WHERE, "right upper brain", 0.55),
        (WHERE, "right upper lung dog", 0.55),
        (WHERE, "there is no nodule", 0),
        ("where is the mass?", "there is no mass", 1),
        ("where is the mass?", "No mass.", 1),
        ("where is the mass?", "right upper lung", 0),
        ("where is the mass?", "there is no nodule", 0),
        (FINDING, "a small nodule in the right upper lung", 1),
        (FINDING, "large nodule in the right upper lung", 0.75),
        (FINDING, "small mass in the left upper lung", 0.5),
        (FINDING, "small nodule small nodule in the right upper lung", 0),
        (FINDING, "no abnormality", 0),
    ],
)
def test_an_answer_gets_the_score_it_deserves(question: str, completion: str, score: float) -> None:
    scores = judge(question, completion).scores
    assert scores is not None
    assert scores[0] == pytest.approx(score)


@pytest.mark.parametrize(
    ("questions", "right"),
    [
        ("which side is the nodule?|what is the side of the nodule?|is the lesion on the left or the right?", "right"),
        ("what level is the nodule at?|how high are the nodules?", "upper"),
        ("how big is the nodule?|is the nodule large or small?", "small"),
        ("what is the finding?|what is abnormal?|what is in the right lung?", "nodule"),
        ("what is seen in the left lung?|what abnormality is on the left side?", "no abnormality"),
        ("is there one nodule?|is there a small nodule?|is there a nodule in the lung?|is there a right-sided nodule?", "yes"),
        ("are there two nodules?|is there a large nodule?|is there a nodule in the left lung?|is there one mass?", "no"),
        ("is the nodule at the upper level?|is the nodule in the upper third of the right lung?|is it a small nodule?", "yes"),
        ("is the nodule at the lower level?|is the nodule in the right brain?|is the nodule darker?", "no"),
        ("is the mass in the left lung?|is it a large mass?|is the mass darker?|is the mass at the upper level?", "no mass"),
        ("is the abnormality a nodule?|is this a chest ct?|is this the chest?|is the left lung normal?", "yes"),
        ("is the abnormality a mass?|is this a head ct?|is this a chest x-ray?|is this the head?|is the chest normal?", "no"),
    ],
)
def test_questions_in_other_words_are_judged_by_the_truth(questions: str, right: str) -> None:
    for question in questions.split("|"):
        assert judge(question, right, f"{right} dog", "").scores == (1, 0, 0), question


@settings(max_examples=150)
@given(case=cases)
def test_the_right_answer_to_any_question_is_right(case: tuple[Sample, Truth]) -> None:
    sample, truth = case
    question, right = sample.question, sample.targets[0]
    assert ORACLE.objection(question, (truth.path,)) is None
    verdict = judge(question, right, f" The {right.upper()}. ", image=truth.path, expert=ORACLE)
    assert (verdict.scores, verdict.cause) == ((1, 1), None)


@settings(max_examples=150)
@given(case=cases, said=st.lists(st.sampled_from(WORDS), max_size=8))
def test_rambling_is_never_right(case: tuple[Sample, Truth], said: list[str]) -> None:
    sample, truth = case
    question, right = sample.question, sample.targets[0]
    rambling = [f"yes {' '.join(said)} no", f"{right} {right}", f"{right} dog", f"{right} {' '.join(said)} elephant"]
    verdict = judge(question, *rambling, image=truth.path, expert=ORACLE)
    assert verdict.scores is not None
    assert all(0 <= score < 1 for score in verdict.scores)


@settings(max_examples=100)
@given(case=cases, said=st.lists(st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join), min_size=2, max_size=4))
def test_the_scores_follow_the_answers_when_they_change_places(case: tuple[Sample, Truth], said: list[str]) -> None:
    sample, truth = case
    question = sample.question
    scores = judge(question, *said, image=truth.path, expert=ORACLE).scores
    swapped = judge(question, *reversed(said), image=truth.path, expert=ORACLE).scores
    assert scores is not None
    assert swapped == scores[::-1]


@pytest.mark.parametrize(
    ("question", "image", "why"),
    [
        ("is it going to rain?", "n.png", "not understood"),
        ("", "n.png", "not understood"),
        ("is there a nodule?", "other.png", "image unknown"),
        ("what is seen in the left upper brain?", "n.png", "cannot decide"),
        ("is the brain normal?", "n.png", "cannot decide"),
    ],
    ids=["nonsense", "nothing", "unknown image", "another organ", "another organ's health"],
)
def test_it_abstains_and_says_why(question: str, image: str, why: str) -> None:
    verdict = judge(question, "yes", "no", image=image)
    assert verdict.scores is None
    assert verdict.cause == "abstained"
    assert why in verdict.reason
    assert Oracle([NODULE]).objection(question, (image,)) is not None


def test_it_abstains_on_two_images() -> None:
    answers = Answers(
        id="a",
        question_id="q",
        images=("n.png", "0.png"),
        question="is there a nodule?",
        completions=("yes",),
        policy="p",
        sampling=SAMPLING,
    )
    assert Oracle([NODULE, NORMAL]).judge(answers).cause == "abstained"


def test_on_a_normal_image_only_the_absence_is_right() -> None:
    for question in (
        "what is the complete finding?",
        "where is the abnormality?",
        "what abnormality is seen?",
        "is the abnormality a mass?",
    ):
        scores = judge(
            question, "no abnormality", "left upper brain", "small tumor in the left upper brain", image="0.png"
        ).scores
        assert scores == (1, 0, 0)


def test_it_explains_with_the_right_answer() -> None:
    query = understand(WHERE)
    assert query is not None
    assert answer(query, NODULE)[0] in judge(WHERE, "left").reason
    assert len(Oracle.prompt_hash) == 16
