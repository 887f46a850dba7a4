"""How much an image speaks for an answer: measured packed as unpacked, told in quadrants, and what pairs weigh by it."""

import math
from pathlib import Path

import pytest

from helpers.judging import answers_of, pictures_of, write_answers, write_judged
from stllava.config import ImageGainOptions, JudgeOptions, PairOptions, ScriptedOptions
from stllava.errors import StllavaError
from stllava.model.load import load_policy
from stllava.records import Answers, ImageGain, Message, Preference
from stllava.stages.image_gain import image_gain, quadrants_of
from stllava.stages.judge import judge
from stllava.stages.pair import pair, weighed
from stllava.store import read_records
from stllava.tree.scoring import answer_log_probabilities

JUDGE = JudgeOptions(expert="scripted", scripted=ScriptedOptions(prefer=("nodule",)))


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> tuple[Path, Path]:
    """Answers about some phantoms and their verdicts."""
    return write_judged(
        tmp_path_factory.mktemp("judged"),
        JUDGE,
        images=pictures_of(phantoms / "images")[:4],
        questions=("what is seen?", "is there a finding?"),
        completions=("a nodule", "an effusion", "a nodule", "left"),
    )


@pytest.mark.parametrize("packs", [True, False], ids=["packed", "unpacked"])
def test_a_gain_is_the_difference_of_two_log_probabilities(
    packs: bool, tiny_model: Path, phantoms: Path, judged: tuple[Path, Path], tmp_path: Path
) -> None:
    answers, judgments = judged
    root = phantoms / "images"
    image_gain(ImageGainOptions(), policy=tiny_model, answers=answers, judgments=judgments, root=root, to=tmp_path / "gain")
    found = {row.answers_id: row.gains for row in read_records(tmp_path / "gain", "gains", ImageGain)}
    policy = load_policy(tiny_model)
    policy.packs = packs
    for row in read_records(answers, "answers", Answers)[:3]:
        prompt = ((Message(role="user", content=row.question),), row.images)
        for text, gain in zip(row.completions, found[row.id], strict=True):
            seeing, blind = (
                answer_log_probabilities(policy, [prompt], [(text,)], images=root, max_tokens=512, blank=blank)[0]
                for blank in (False, True)
            )
            assert isinstance(seeing, tuple)
            assert isinstance(blind, tuple)
            assert gain == pytest.approx(seeing[0] - blind[0], abs=2e-3)


def test_what_answer_noted_is_used_and_a_cut_answer_has_no_gain(
    tiny_model: Path, phantoms: Path, judged: tuple[Path, Path], tmp_path: Path
) -> None:
    from stllava.model.load import fingerprint

    (first, *_) = read_records(judged[0], "answers", Answers)
    noted = first.model_copy(
        update={
            "policy": fingerprint(tiny_model),
            "log_probabilities": (-1.0, -2.0, -1.0, -3.0),
            "finished": (True, True, True, False),
        }
    )
    answers = write_answers(tmp_path / "answers", [noted])
    judge(JUDGE, answers=answers, to=tmp_path / "judgments")
    root = phantoms / "images"
    judgments = tmp_path / "judgments"
    image_gain(ImageGainOptions(), policy=tiny_model, answers=answers, judgments=judgments, root=root, to=tmp_path / "gain")
    ((gains,),) = [[row.gains for row in read_records(tmp_path / "gain", "gains", ImageGain)]]
    policy = load_policy(tiny_model)
    prompt = ((Message(role="user", content=noted.question),), noted.images)
    (blind,) = answer_log_probabilities(policy, [prompt], [("a nodule",)], images=root, max_tokens=512, blank=True)
    assert isinstance(blind, tuple)
    assert gains[0] == pytest.approx(-1.0 - blind[0], abs=1e-4)
    assert gains[0] == gains[2]
    assert gains[3] is None


def test_the_four_quadrants_count_every_answer_once() -> None:
    gains = [ImageGain(id="g", answers_id="a", gains=(2.0, 0.1, None, -1.0, 0.8), policy="p")]
    found = quadrants_of(gains, {"a": (1.0, 1.0, 1.0, 0.0, 0.0)}, ImageGainOptions())
    assert found == {"right_reading": 1, "right_guessing": 1, "wrong_reading": 1, "wrong_guessing": 1}
    probabilities: dict[str, tuple[float, ...] | None] = {"a": (0.97, 0.6, 1.0, 0.4, 0.49)}
    assert quadrants_of(gains, probabilities, ImageGainOptions(min_score=0.5)) == found


def test_pairs_weigh_more_the_more_the_image_speaks_for_the_chosen_answer(judged: tuple[Path, Path], tmp_path: Path) -> None:
    answers, judgments = judged
    options = PairOptions(margin=0.05, min_chosen_score=0, balance=False)
    pair(options, answers=answers, judgments=judgments, to=tmp_path / "plain")
    plain = read_records(tmp_path / "plain", "preferences", Preference)
    given = {row.id: row for row in read_records(answers, "answers", Answers)}
    gains = [ImageGain(id=key, answers_id=key, gains=(float(place - 3),) * 4, policy="p") for place, key in enumerate(given)]
    found = weighed(plain, given, gains, strength=0.5)
    assert sum(row.weight for row in found) / len(found) == pytest.approx(1)
    by_gain = sorted(found, key=lambda row: list(given).index(row.lineage.answers_id))
    assert [row.weight for row in by_gain] == sorted(row.weight for row in found)
    assert weighed(plain, given, [], strength=0.5) == plain
    assert found[0].weight == pytest.approx(
        (1 + 0.5 * math.tanh(-3)) / (sum(1 + 0.5 * math.tanh(place - 3) for place in range(8)) / 8)
    )


def test_weights_without_gains_are_refused(judged: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(StllavaError, match="no image gains are named"):
        pair(PairOptions(gain_weight=0.5), answers=judged[0], judgments=judged[1], to=tmp_path / "pair")


def test_where_no_image_speaks_for_any_answer_all_weigh_alike(judged: tuple[Path, Path], tmp_path: Path) -> None:
    answers, judgments = judged
    pair(
        PairOptions(margin=0.05, min_chosen_score=0, balance=False), answers=answers, judgments=judgments, to=tmp_path / "pair"
    )
    plain = read_records(tmp_path / "pair", "preferences", Preference)
    given = {row.id: row for row in read_records(answers, "answers", Answers)}
    gains = [ImageGain(id=key, answers_id=key, gains=(-60.0,) * 4, policy="p") for key in given]
    assert {row.weight for row in weighed(plain, given, gains, strength=1.0)} == {1.0}


def test_gains_of_another_round_are_refused_by_a_sentence(
    judged: tuple[Path, Path], tiny_model: Path, phantoms: Path, tmp_path: Path
) -> None:
    other = write_answers(
        tmp_path / "answers", [answers_of("where?", ("a nodule", "left"), image=pictures_of(phantoms / "images")[:4][0])]
    )
    judge(JUDGE, answers=other, to=tmp_path / "judgments")
    root, gains = phantoms / "images", tmp_path / "gain"
    image_gain(ImageGainOptions(), policy=tiny_model, answers=other, judgments=tmp_path / "judgments", root=root, to=gains)
    options = PairOptions(gain_weight=0.5, margin=0.05, min_chosen_score=0, balance=False)
    with pytest.raises(StllavaError, match="one and the same round"):
        pair(options, answers=judged[0], judgments=judged[1], to=tmp_path / "pair", gains=gains)
    with pytest.raises(StllavaError, match="one and the same round"):
        image_gain(ImageGainOptions(), policy=tiny_model, answers=other, judgments=judged[1], root=root, to=tmp_path / "mixed")


def test_a_groups_weights_are_not_changed_by_hand_either() -> None:
    for wrong in ({"gain_weight": 0.5}, {"counter_pairs": True}, {"max_pairs_per_question": 1}):
        with pytest.raises(ValueError, match=r"advantages"):
            PairOptions.model_validate({"pairs": "group", **wrong})
