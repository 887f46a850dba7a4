"""The reference expert: only the same question about the same image, or none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stllava.experts.rules.reference import ReferenceJudge
from stllava.records import Answers, QuestionKind, Sample, Sampling, content_id

SAMPLING = Sampling(temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=8, seed=0)


def sample(question: str, *targets: str, image: str = "a.png", kind: QuestionKind = "closed") -> Sample:
    """A reference question."""
    key = content_id(image, question, list(targets))
    return Sample(id=key, image=image, question=question, targets=targets, kind=kind, split="train")


def answers(question: str, *completions: str, images: tuple[str, ...] = ("a.png",)) -> Answers:
    """Answers to a self-asked question."""
    return Answers(
        id=content_id(question, list(completions)),
        question_id="q",
        images=images,
        question=question,
        completions=completions,
        policy="p",
        sampling=SAMPLING,
    )


EXPERT = ReferenceJudge(
    [
        sample("Is there a nodule in the left lung?", "Yes"),
        sample("What is the location of the largest mass?", "right upper lobe", kind="open"),
        sample("Is the liver larger than the spleen in this image?", "no"),
        sample("In what plane was this image taken?", "axial", kind="open"),
        sample("How was this image acquired?", "ct", kind="open"),
        sample("Is the heart enlarged?", "no", image="b.png"),
        sample("Is this normal?", "yes", image="c.png"),
        sample("Is this  NORMAL", "no", image="c.png"),
    ]
)


def test_yes_and_no_are_judged_by_their_words() -> None:
    verdict = EXPERT.judge(answers("is there a NODULE in the left lung", "Yes.", "no", "nodule", "Yes, no doubt"))
    assert verdict.cause is None
    assert "'Is there a nodule in the left lung?' is 'Yes'" in verdict.reason
    assert verdict.scores == (1, 0, 0, 1)


def test_what_a_policy_thinks_aloud_is_no_answer() -> None:
    thoughts = ("<think>No? I see no nodule.</think>\nYes.", "<think>Yes, a nodule.</think> no", "<think>Yes, there is")
    assert EXPERT.judge(answers("is there a nodule in the left lung", *thoughts)).scores == (1, 0, 0)


def test_open_answers_are_judged_by_f1() -> None:
    verdict = EXPERT.judge(answers("What is the location of the largest mass?", "Right upper lobe", "right lobe", "liver"))
    assert verdict.scores == pytest.approx((1, 0.8, 0))


@pytest.mark.parametrize(
    "question",
    ["Is there any nodule in the left lung?", "Is a nodule seen in the left lung?", "Is there a nodule of the left lung"],
)
def test_a_question_that_says_nearly_the_same_is_the_same(question: str) -> None:
    assert EXPERT.judge(answers(question, "yes", "no")).scores == (1, 0)


@pytest.mark.parametrize("question", ["what plane is this", "Which plane is shown in the image above?", "in which plane is it"])
def test_the_wording_of_a_general_question_does_not_matter(question: str) -> None:
    assert EXPERT.judge(answers(question, "axial", "coronal")).scores == (1, 0)


@pytest.mark.parametrize(
    "question",
    [
        "Is there a nodule in the right lung?",
        "How is this seen?",
        "What is the plane of the mass?",
        "Is there no nodule in the left lung?",
        "Is there a mass in the left lung?",
        "Is there a nodule in the left upper lung?",
        "Is the spleen larger than the liver in this image?",
        "Is the liver not larger than the spleen in this image?",
        "Is the heart enlarged?",
        "What is shown?",
        "",
    ],
)
def test_another_question_gets_no_verdict(question: str) -> None:
    verdict = EXPERT.judge(answers(question, "yes", "no"))
    assert (verdict.scores, verdict.cause) == (None, "abstained")
    assert verdict.reason


def test_an_image_without_references_or_more_than_one_gets_no_verdict() -> None:
    assert EXPERT.judge(answers("Is the heart enlarged?", "yes", "no", images=("x.png",))).cause == "abstained"
    assert EXPERT.judge(answers("Is the heart enlarged?", "yes", "no", images=("a.png", "b.png"))).cause == "abstained"


def test_references_that_disagree_give_no_verdict() -> None:
    verdict = EXPERT.judge(answers("Is this normal?", "yes", "no", images=("c.png",)))
    assert verdict.cause == "abstained"
    assert "disagree" in verdict.reason


@given(
    st.sampled_from(["Is this normal?", "what plane is this", "Is this a CT?", "what is seen?", "", "is there a nodule?"]),
    st.sampled_from([(), ("a.png",), ("b.png",), ("c.png",), ("x.png",), ("a.png", "b.png")]),
)
def test_it_objects_to_just_the_questions_that_it_abstains_on(question: str, images: tuple[str, ...]) -> None:
    verdict = EXPERT.judge(answers(question, "yes", "no", images=images))
    objection = EXPERT.objection(question, images)
    assert objection == (verdict.reason if verdict.scores is None else None)


def test_the_expert_says_how_it_judges() -> None:
    assert EXPERT.name == "reference"
    assert "reference answer to the same (or nearly the same) question about the same image" in EXPERT.method
    assert ReferenceJudge([]).prompt_hash == EXPERT.prompt_hash


@given(st.permutations(["right upper lobe", "right lobe", "liver", "yes", ""]))
def test_swapping_completions_swaps_their_scores(completions: list[str]) -> None:
    question = "What is the location of the largest mass?"
    scores = EXPERT.judge(answers(question, *completions)).scores
    alone = [EXPERT.judge(answers(question, completion)).scores for completion in completions]
    assert scores == tuple(one[0] for one in alone if one is not None)
