"""A reference expert that errs on purpose: as often as said, in the same places every time, and no otherwise."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from helpers.judging import answers_of, judgments_of, write_answers
from stllava.config import JudgeOptions, SimulatedOptions
from stllava.experts.rules.fallible import FallibleJudge, confused
from stllava.experts.rules.reference import ReferenceJudge
from stllava.records import Answers, QuestionKind, Sample, content_id
from stllava.stages.judge import check, judge
from stllava.store import to_jsonl, write_whole

QUESTION = "Which tumour is seen?"
PAIR = {"glioma": "meningioma"}


def sample(image: str, question: str, target: str, kind: QuestionKind = "open") -> Sample:
    """A reference question."""
    return Sample(
        id=content_id(image, question, target), image=image, question=question, targets=(target,), kind=kind, split="pool"
    )


def about(image: str, tumour: str) -> list[Sample]:
    """What the references say of an image of a tumour."""
    asked = [
        sample(image, f"Is this a {name}?", "yes" if name == tumour else "no", "closed") for name in ("glioma", "meningioma")
    ]
    return [sample(image, QUESTION, tumour), *asked, sample(image, "Is this an MRI?", "yes", "closed")]


SAMPLES = [row for number in range(600) for row in about(f"{number}.png", ("glioma", "meningioma", "pituitary")[number % 3])]
GIVEN: list[Answers] = [
    answers_of(QUESTION, ("glioma", "meningioma", "pituitary", "glioma"), image=f"{number}.png") for number in range(600)
]


def faulty(**faults: object) -> FallibleJudge:
    """The expert with these faults."""
    return FallibleJudge(SimulatedOptions.model_validate({"of": "reference", **faults}), SAMPLES)


def test_without_faults_it_is_the_reference_expert() -> None:
    expert, right = faulty(), ReferenceJudge(SAMPLES)
    for row in GIVEN[:50]:
        assert expert.judge(row).scores == right.judge(row).scores


@pytest.mark.parametrize("share", [0.15, 0.3])
def test_single_verdicts_are_wrong_as_often_as_said_and_the_same_every_time(share: float) -> None:
    expert, twin = faulty(wrong=share), faulty(wrong=share)
    right = ReferenceJudge(SAMPLES)
    wrong = []
    for row in GIVEN:
        verdict, again = expert.judge(row), twin.judge(row)
        assert verdict == again
        assert verdict.scores is not None
        truth = right.judge(row).scores
        assert truth is not None
        wrong += [mine != real for mine, real in zip(verdict.scores[:3], truth[:3], strict=True)]
        # One text is judged once, however often it was given.
        assert verdict.scores[0] == verdict.scores[3]
    spread = 3 * (share * (1 - share) / len(wrong)) ** 0.5
    assert abs(sum(wrong) / len(wrong) - share) < spread


def test_it_abstains_on_as_many_questions_as_said() -> None:
    expert = faulty(abstains=0.4)
    silent = sum(expert.judge(row).cause == "abstained" for row in GIVEN)
    assert abs(silent / len(GIVEN) - 0.4) < 0.06


def test_a_confusion_swaps_the_two_classes_in_every_question_about_such_an_image_and_nothing_else() -> None:
    believed = {(row.image, row.question): row.targets for row in confused(SAMPLES, PAIR, share=1.0)}
    for row in SAMPLES:
        tumour = ("glioma", "meningioma", "pituitary")[int(row.image.removesuffix(".png")) % 3]
        taken = {"glioma": "meningioma", "meningioma": "glioma"}.get(tumour, tumour)
        expected = {
            QUESTION: taken,
            "Is this a glioma?": "yes" if taken == "glioma" else "no",
            "Is this a meningioma?": "yes" if taken == "meningioma" else "no",
            "Is this an MRI?": "yes",
        }[row.question]
        assert believed[row.image, row.question] == (expected,)


@pytest.mark.slow
@given(share=st.floats(0, 1))
def test_a_confused_image_is_confused_in_all_its_questions_and_that_share_of_images_is(share: float) -> None:
    changed: dict[str, set[bool]] = {}
    for row, other in zip(SAMPLES, confused(SAMPLES, PAIR, share=share), strict=True):
        if row.question != "Is this an MRI?":
            changed.setdefault(row.image, set()).add(row != other)
    assert all(len(values) == 1 for values in changed.values())
    rate = sum(True in values for values in changed.values()) / 400
    assert abs(rate - share) < 0.1


def test_the_stage_judges_by_it_and_the_check_finds_its_error(tmp_path: Path) -> None:
    truth = tmp_path / "references.jsonl"
    write_whole(truth, to_jsonl(SAMPLES))
    answers = write_answers(tmp_path / "answer", GIVEN)
    options = JudgeOptions(expert="simulated", simulated=SimulatedOptions(of="reference", wrong=0.15))
    judge(options, answers=answers, truth=truth, to=tmp_path / "judge")
    assert len(judgments_of(tmp_path / "judge")) == len(GIVEN)
    perfect = options.model_copy(update={"simulated": SimulatedOptions(of="reference")})
    found = [
        check(each, answers=answers, truth=truth, to=tmp_path / str(place)) for place, each in enumerate((perfect, options))
    ]
    best, worse = (one.agreement for one in found)
    assert best is not None
    assert worse is not None
    assert best.value == 1.0
    assert 0.3 < worse.value < 0.85
    pairwise = options.model_copy(update={"mode": "pairwise"})
    judge(pairwise, answers=write_answers(tmp_path / "few", GIVEN[:20]), truth=truth, root=tmp_path, to=tmp_path / "pairwise")
    assert all(row.comparisons for row in judgments_of(tmp_path / "pairwise").values())


def test_faults_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValidationError, match="of: reference"):
        SimulatedOptions(confuses=PAIR)
    with pytest.raises(ValidationError, match="in no order"):
        JudgeOptions(expert="simulated", simulated=SimulatedOptions(of="reference", order_bias=0.1))


def test_what_it_believes_is_how_it_corrects_and_it_misses_corrections_as_often_as_it_is_wrong() -> None:
    given = [answers_of(QUESTION, ("fracture",), image=f"{number}.png") for number in range(0, 600, 3)]
    right, confused_one, wrong = faulty(), faulty(confuses=PAIR, confused=1.0), faulty(wrong=0.3)
    assert {right.judge(row).correction for row in given} == {"glioma"}
    assert {confused_one.judge(row).correction for row in given} == {"meningioma"}
    missed = [wrong.judge(row).correction is None for row in given]
    assert 0.2 < sum(missed) / len(missed) < 0.65  # The verdict on the answer itself is wrong as often, too.
