"""A judge distilled from verdicts: what it learns, how far it agrees with its teacher, and how it judges."""

import math
from pathlib import Path

import pytest
import torch
from pydantic import JsonValue

from helpers.judging import answers_of, judgments_of, pictures_of, write_answers, write_judged
from stllava.config import DistilledOptions, DistillOptions, GroupRates, JudgeOptions, ScriptedOptions, SftOptions, validate
from stllava.errors import ItemError, NothingLeftError, StllavaError
from stllava.experts.build import require_expert
from stllava.experts.distilled_judge import judging_prompt, right_shares
from stllava.model.load import load_policy
from stllava.recipe import RunOptions
from stllava.records import Answers, Conversation, Message
from stllava.stages.distill import JudgedAnswer, balanced_answers, distill, read_judged, split_by_image
from stllava.stages.judge import check, judge
from stllava.store import Stage, read_records
from stllava.tree.scoring import answer_log_probabilities

FAST = DistillOptions(
    epochs=30, batch_size=4, save_steps=0, held_out=0.3, learning_rate=GroupRates(language=3e-3, projector=3e-3, vision=3e-3)
)
TEACHER = JudgeOptions(expert="scripted", scripted=ScriptedOptions(prefer=("nodule",)))


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> tuple[Path, Path]:
    """Answers about every phantom, and the verdicts of a teacher that likes nodules."""
    return write_judged(
        tmp_path_factory.mktemp("judged"),
        TEACHER,
        images=pictures_of(phantoms / "images"),
        questions=("what is seen?", "what is the finding?"),
        completions=("a nodule", "a mass", "a nodule", "an effusion"),
    )


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, phantoms: Path, tiny_model: Path, judged: tuple[Path, Path]) -> Path:
    """A judge that learned from them."""
    to = tmp_path_factory.mktemp("student") / "judge"
    answers, judgments = judged
    options = FAST.model_copy(update={"threshold": 0.15})
    distill(options, policy=tiny_model, answers=[answers], judgments=[judgments], images=phantoms / "images", to=to)
    return to


def test_a_judge_says_what_its_teacher_says_of_images_it_has_not_learned(
    student: Path, judged: tuple[Path, Path], phantoms: Path, tmp_path: Path
) -> None:
    options = JudgeOptions(expert="distilled", distilled=DistilledOptions(model=str(student)))
    judge(options, answers=judged[0], root=phantoms / "images", to=tmp_path / "verdicts")
    teacher, own = judgments_of(judged[1]), judgments_of(tmp_path / "verdicts")
    assert own.keys() == teacher.keys()
    for key, judgment in own.items():
        assert judgment.scores is not None
        assert [score >= 0.5 for score in judgment.scores] == [score > 0.1 for score in teacher[key].scores or ()]
        assert judgment.expert.startswith("distilled ")


def test_how_far_it_agrees_is_measured_on_images_that_were_held_out(
    student: Path, judged: tuple[Path, Path], phantoms: Path, tiny_model: Path
) -> None:
    made = distill(
        FAST.model_copy(update={"threshold": 0.15}),
        policy=tiny_model,
        answers=[judged[0]],
        judgments=[judged[1]],
        images=phantoms / "images",
        to=student,
    )
    assert made.check.agreement is not None
    assert made.check.agreement.value == 1
    assert (made.check.teacher, made.check.images) == ("scripted", round(0.3 * len(pictures_of(phantoms / "images"))))
    assert made.check.answers == 2 * 3 * made.check.images
    assert made.check.truth_agreement is None
    learned = {row.images for row in read_records(student, "conversations", Conversation)}
    assert len(learned) == len(pictures_of(phantoms / "images")) - made.check.images
    assert made.manifest.measures["right_share"] == 0.5
    assert made.manifest.measures["kappa"] == 1
    assert "agreement" not in made.manifest.measures, "a kappa is called one"
    assert "Cohen's kappa 1.00" in made.notes[-1]


def test_unsure_of_an_answer_it_abstains(student: Path, judged: tuple[Path, Path], phantoms: Path, tmp_path: Path) -> None:
    sure = DistilledOptions(model=str(student), min_confidence=0.9999999)
    with pytest.raises(NothingLeftError, match="not sure of"):
        judge(JudgeOptions(expert="distilled", distilled=sure), answers=judged[0], root=phantoms / "images", to=tmp_path / "v")


def test_an_image_that_is_gone_costs_its_own_verdict_alone(student: Path, phantoms: Path, tmp_path: Path) -> None:
    given = [
        answers_of("what is seen?", ("a nodule", "a mass"), image=image)
        for image in (pictures_of(phantoms / "images")[0], "gone.png")
    ]
    options = JudgeOptions(expert="distilled", distilled=DistilledOptions(model=str(student)), max_failed=0.5)
    judge(options, answers=write_answers(tmp_path / "answers", given), root=phantoms / "images", to=tmp_path / "verdicts")
    found = judgments_of(tmp_path / "verdicts")
    assert found[given[0].id].scores is not None
    assert found[given[1].id].cause == "failed"
    assert found[given[1].id].reason.startswith("image missing")


def test_packed_log_probabilities_are_those_of_every_answer_alone(student: Path, phantoms: Path) -> None:
    policy, root = load_policy(student), phantoms / "images"
    prompts = [
        ((judging_prompt(question, answer),), (image,))
        for image in pictures_of(phantoms / "images")[:2]
        for question, answer in (("what is seen?", "a nodule"), ("what is seen?", "an effusion in the left lung"))
    ]
    together = answer_log_probabilities(policy, prompts, [("yes", "no")] * len(prompts), images=root, max_tokens=4096)
    for posed, values in zip(prompts, together, strict=True):
        assert not isinstance(values, ItemError)
        for answer, value in zip(("yes", "no"), values, strict=True):
            policy.packs = False
            [alone] = answer_log_probabilities(policy, [posed], [(answer,)], images=root, max_tokens=4096)
            policy.packs = True
            assert not isinstance(alone, ItemError)
            assert math.isclose(alone[0], value, abs_tol=1e-4)


def test_a_share_is_yes_against_no(student: Path, phantoms: Path) -> None:
    policy, root, image = load_policy(student), phantoms / "images", pictures_of(phantoms / "images")[0]
    [share] = right_shares(policy, [((image,), "what is seen?", "a nodule")], images=root, max_tokens=4096)
    prompt = ((judging_prompt("what is seen?", "a nodule"),), (image,))
    [values] = answer_log_probabilities(policy, [prompt], [("yes", "no")], images=root, max_tokens=4096)
    assert not isinstance(values, ItemError)
    assert share == pytest.approx(torch.tensor(values).softmax(0)[0].item(), abs=1e-5)


def test_texts_without_an_image_are_scored_too(student: Path, phantoms: Path) -> None:
    policy = load_policy(student)
    asked = (Message(role="user", content="Is that right?"),)
    [values] = answer_log_probabilities(policy, [(asked, ())], [("yes", "no")], images=phantoms / "images", max_tokens=4096)
    assert not isinstance(values, ItemError)
    assert all(value < 0 for value in values)


def test_a_distilled_judge_can_be_checked_like_any_other(
    student: Path, judged: tuple[Path, Path], phantoms: Path, tmp_path: Path
) -> None:
    options = JudgeOptions(expert="distilled", distilled=DistilledOptions(model=str(student)))
    found = check(options, answers=judged[0], root=phantoms / "images", sample=10, to=tmp_path / "check")
    assert (found.questions, found.requests, found.flips) == (10, 0, None)
    assert found.longer_wins is not None


def rows_of(scores: list[float], *, question: str = "is there a mass here?") -> list[JudgedAnswer]:
    return [
        JudgedAnswer(answers_of(question, (f"answer {place}",), image=f"{place}.png"), f"answer {place}", score, score >= 0.5)
        for place, score in enumerate(scores)
    ]


def test_as_many_right_as_wrong_answers_are_learned_of_questions_that_begin_alike() -> None:
    rows = [*rows_of([1, 1, 1, 0]), *rows_of([0, 0], question="what is seen?")]
    kept, dropped = balanced_answers(rows)
    assert sorted(row.right for row in kept) == [False, True]
    assert dropped["surplus of right or wrong"] == 4


def test_held_out_images_are_learned_in_no_answer() -> None:
    rows = [*rows_of([1, 0, 1, 0, 1]), *rows_of([0, 1, 0, 1, 0], question="what is seen?")]
    learned, held_out = split_by_image(rows, share=0.4, seed=0)
    assert {row.answers.images for row in learned} & {row.answers.images for row in held_out} == set()
    assert (len(learned), len(held_out)) == (6, 4)


def test_of_the_same_answer_the_latest_verdict_counts(tmp_path: Path) -> None:
    given: list[Answers] = [answers_of("what is seen?", ("a nodule", "a mass"))]
    rounds = []
    for liked in ("nodule", "mass"):
        answers = write_answers(tmp_path / liked / "answers", given)
        options = TEACHER.model_copy(update={"scripted": ScriptedOptions(prefer=(liked,))})
        judge(options, answers=answers, to=tmp_path / liked / "judgments")
        rounds.append((answers, tmp_path / liked / "judgments"))
    teacher, rows = read_judged(rounds, threshold=0.15)
    assert teacher == "scripted"
    assert {row.text: row.right for row in rows} == {"a nodule": False, "a mass": True}


def test_verdicts_that_all_say_the_same_make_no_judge(tmp_path: Path, phantoms: Path, tiny_model: Path) -> None:
    given = [answers_of("what is seen?", ("a nodule", "a mass"), image=image) for image in pictures_of(phantoms / "images")[:4]]
    answers = write_answers(tmp_path / "answers", given)
    judge(TEACHER, answers=answers, to=tmp_path / "judgments")
    with pytest.raises(NothingLeftError, match="answers that were found right and others"):
        distill(
            FAST,
            policy=tiny_model,
            answers=[answers],
            judgments=[tmp_path / "judgments"],
            images=phantoms / "images",
            to=tmp_path / "judge",
        )


def test_a_distilled_expert_without_a_model_is_refused(tmp_path: Path) -> None:
    answers = write_answers(tmp_path / "answers", [answers_of("what is seen?", ("a", "b"))])
    with pytest.raises(StllavaError, match="the distilled expert has no model"):
        judge(JudgeOptions(expert="distilled"), answers=answers, root=tmp_path, to=tmp_path / "verdicts")


@pytest.mark.parametrize(
    ("name", "told"), [("gone", "is not there"), ("empty", "holds no config.json"), ("sft", "is what sft")]
)
def test_what_is_no_distilled_judge_is_refused_before_anything_is_asked(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "empty").mkdir()
    if name == "sft":
        Stage("sft", tmp_path / "sft", SftOptions(), inputs={}, existing="error").finish(counts_in=1, counts_out=1)
    options = JudgeOptions(expert="distilled", distilled=DistilledOptions(model=str(tmp_path / name)))
    with pytest.raises(StllavaError, match=told):
        require_expert(options, root=tmp_path, truth=None)


def test_a_run_makes_no_judge_of_the_verdicts_of_such_a_judge() -> None:
    values: dict[str, JsonValue] = {
        "name": "x",
        "data": {"kind": "phantom"},
        "distill_after": 1,
        "judge": {"expert": "distilled"},
    }
    with pytest.raises(StllavaError, match="it is such a judge already"):
        validate(RunOptions, values, source="recipe")


@pytest.mark.parametrize("judging", [{"distill_after": 1}, {"judge": {"expert": "distilled"}}])
def test_a_run_asks_no_certainty_of_a_judge_that_gives_probabilities(judging: dict[str, JsonValue]) -> None:
    values: dict[str, JsonValue] = {"name": "x", "data": {"kind": "phantom"}, "rounds": 2, **judging}
    with pytest.raises(StllavaError, match=r"min_chosen_score below 1"):
        validate(RunOptions, values | {"pair": {"min_chosen_score": 1.0}}, source="recipe")
    # The expert itself judges the only round.
    if "distill_after" in judging:
        validate(RunOptions, values | {"pair": {"min_chosen_score": 1.0}, "rounds": 1}, source="recipe")
    sure: dict[str, JsonValue] = {"pair": {"min_chosen_score": 0.9}}
    validate(RunOptions, values | sure, source="recipe")
    with pytest.raises(StllavaError, match=r"image_gain\.min_score below 1"):
        validate(RunOptions, values | sure | {"image_gain": {}}, source="recipe")
    validate(RunOptions, values | sure | {"image_gain": {"min_score": 0.5}}, source="recipe")


def test_the_training_of_a_judge_is_like_sft_but_for_what_is_given() -> None:
    values: dict[str, JsonValue] = {
        "name": "x",
        "data": {"kind": "phantom"},
        "sft": {"epochs": 7, "batch_size": 2, "self_question_ratio": 0.3},
        "distill": {"epochs": 3},
    }
    made = validate(RunOptions, values, source="recipe").distill
    assert (made.epochs, made.batch_size, made.held_out) == (3, 2, 0.1)
