"""Knowing the judge: biases that were planted are found, at their size, and shown."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import escape

from helpers.judging import answers_of, judgments_of, many_answers, write_answers, write_image
from stllava.config import JudgeOptions, ScriptedOptions, SimulatedOptions
from stllava.data.phantom.language import samples
from stllava.data.phantom.truth import Truth
from stllava.data.prepare import prepare
from stllava.data.sources import PhantomData
from stllava.errors import StllavaError
from stllava.experts.calibration import truths_of_votes
from stllava.metrics.agreement import balanced, cohen_kappa, kappa, krippendorff_alpha, rate
from stllava.records import Vote
from stllava.report.page import write_report
from stllava.stages.judge import check, judge
from stllava.store import read_jsonl
from test_report import build


def test_kappa_is_that_of_cohens_definition() -> None:
    ours, theirs = [1] * 20 + [1] * 5 + [0] * 10 + [0] * 15, [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    assert cohen_kappa(ours, theirs) == pytest.approx(0.4)
    assert cohen_kappa([1, 0, -1], [1, 0, -1]) == 1.0
    assert cohen_kappa([1, 1], [1, 1]) == 1.0
    assert cohen_kappa([1, 1, 0, 0], [0, 0, 1, 1]) == -1.0


@given(st.lists(st.tuples(st.sampled_from([-1, 0, 1]), st.sampled_from([-1, 0, 1]), st.sampled_from("abcdef")), min_size=1))
def test_kappas_interval_holds_it_and_labels_may_be_swapped(rows: list[tuple[int, int, str]]) -> None:
    ours, theirs, images = (list(column) for column in zip(*rows, strict=True))
    found = kappa(ours, theirs, images)
    assert found is not None
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert cohen_kappa([-one for one in ours], [-one for one in theirs]) == pytest.approx(found.value)


def test_kappas_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    draw, covered = np.random.default_rng(0), 0
    for _ in range(60):
        theirs = draw.integers(0, 2, 150)
        ours = np.where(draw.random(150) < 0.8, theirs, 1 - theirs)
        found = kappa(ours.tolist(), theirs.tolist(), [str(place) for place in range(150)])
        assert found is not None
        covered += found.low <= 0.6 <= found.high
    assert covered >= 51


def test_alpha_is_that_of_krippendorffs_example() -> None:
    """Krippendorff, Computing Krippendorff's alpha-reliability (2011), section C: nominal data of four observers, 0.743."""
    observers = (
        "1 2 3 3 2 1 4 1 2 . . .",
        "1 2 3 3 2 2 4 1 2 5 . 3",
        ". 3 3 3 2 3 4 2 2 5 1 .",
        "1 2 3 3 2 4 4 1 2 5 1 .",
    )
    columns = zip(*(row.split() for row in observers), strict=True)
    units = [[int(label) for label in column if label != "."] for column in columns]
    found = krippendorff_alpha(units, [str(place) for place in range(len(units))])
    assert found is not None
    assert found.value == pytest.approx(0.743, abs=0.0005)
    assert (found.n, found.low < found.value < found.high) == (11, True)
    assert krippendorff_alpha([[1], []], ["a", "b"]) is None
    same = krippendorff_alpha([[1, 1], [1, 1]], ["a", "b"])
    assert same is not None
    assert same.value == 1.0


def test_kappa_counts_each_pair_of_labels_by_its_weight() -> None:
    ours, theirs, images = [1, 1, 0, 0], [1, 0, 0, 1], ["a", "b", "c", "d"]
    plain, twice = kappa(ours, theirs, images), kappa(ours, theirs, images, weights=[3, 1, 3, 1])
    assert plain is not None
    assert twice is not None
    assert plain.value == 0.0
    assert twice.value == pytest.approx(0.5)


def test_a_balanced_share_is_fair_to_an_expert_that_judges_by_truth() -> None:
    longer_better = [True] * 80 + [False] * 20
    found = balanced(longer_better, longer_better, [str(place) for place in range(100)])
    assert found is not None
    assert found.value == 0.5
    always = balanced([True] * 100, longer_better, [str(place) for place in range(100)])
    assert always is not None
    assert always.value == 1.0
    assert balanced([True], [True], ["a"]) is None
    assert rate([], []) is None


def test_votes_of_several_people_are_counted_in_either_order() -> None:
    def vote(key: str, first: int, second: int, winner: int | None) -> Vote:
        return Vote(id=key, answers_id="x", first=first, second=second, winner=winner)

    votes = [vote("a", 0, 1, 0), vote("b", 1, 0, 0), vote("c", 0, 1, 1), vote("d", 2, 0, 2), vote("e", 1, 2, None)]
    assert truths_of_votes(votes) == {("x", 0, 1): 1, ("x", 0, 2): -1, ("x", 1, 2): 0}


def test_an_expert_without_faults_is_found_so(tmp_path: Path) -> None:
    folder = write_answers(tmp_path / "answers", many_answers(60))
    options = JudgeOptions(expert="scripted", scripted=ScriptedOptions(prefer=("effusion", "mass")))
    found = check(options, answers=folder, root=write_image(tmp_path / "i"), sample=40, to=tmp_path / "check")
    assert found.questions == 40
    assert found.requests == 160
    assert found.flips is not None
    assert found.flips.value == 0
    assert found.repeats is not None
    assert found.repeats.value == 1
    assert found.first_wins is not None
    assert found.first_wins.value == 0.5
    assert (found.agreement, found.truth, found.examples) == (None, "", ())
    assert check(options, answers=folder, root=tmp_path / "i", sample=40, to=tmp_path / "check") == found
    with pytest.raises(StllavaError, match="other options or inputs"):
        check(options, answers=folder, root=tmp_path / "i", sample=30, to=tmp_path / "check")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Answers about phantoms, a right and a wrong one each, the wrong one longer as often as not; and the truths."""
    folder = tmp_path_factory.mktemp("phantoms")
    prepare(PhantomData(labelled=1, unlabelled=60, validation=1, test=1, size=32), seed=1, to=folder)
    truths, made = folder / "truths.jsonl", []
    for number, truth in enumerate(read_jsonl(truths, Truth)):
        for sample in samples(truth, seed=0, split="test")[:3]:
            right, wrong = sample.targets[0], "no dog and no cat at all" if number % 2 else "x"
            made.append(answers_of(sample.question, (right, wrong) if number % 3 else (wrong, right), image=truth.path))
    return write_answers(folder / "answers", made), truths


def test_planted_faults_are_found_at_their_size(tmp_path: Path, asked: tuple[Path, Path]) -> None:
    answers, truths = asked
    faulty = JudgeOptions(expert="simulated", simulated=SimulatedOptions(wrong=0.2, order_bias=0.3))
    found = check(faulty, answers=answers, truth=truths, root=tmp_path, sample=1000, to=tmp_path / "check")
    assert found.truth == "the oracle"
    assert found.flips is not None
    assert found.first_wins is not None
    assert found.agreement is not None
    # Orders disagree when one reply follows the order and thereby contradicts the other: 0.3 and half of the chances.
    assert found.flips.low <= 0.3 <= found.flips.high
    assert found.first_wins.low <= 0.65 <= found.first_wins.high
    assert found.agreement.value < 0.6
    assert 0 < len(found.examples) <= 8
    assert found.longer_wins_adjusted is not None
    assert found.longer_wins_adjusted.low <= 0.5 <= found.longer_wins_adjusted.high
    perfect = check(JudgeOptions(expert="simulated"), answers=answers, truth=truths, to=tmp_path / "perfect", root=tmp_path)
    assert perfect.agreement is not None
    assert perfect.agreement.value == 1.0


def test_an_expert_that_the_order_decides_stops_the_stage(tmp_path: Path, asked: tuple[Path, Path]) -> None:
    answers, truths = asked
    biased = JudgeOptions(expert="simulated", simulated=SimulatedOptions(order_bias=0.8))
    with pytest.raises(StllavaError, match=r"in \d+ of \d+ comparisons the order of the answers decided"):
        judge(biased, answers=answers, truth=truths, root=tmp_path, to=tmp_path / "out")
    manifest = judge(
        biased.model_copy(update={"max_flips": 1.0}), answers=answers, truth=truths, root=tmp_path, to=tmp_path / "out"
    ).manifest
    assert manifest.measures["flip_share"] > 0.5


def test_simulated_verdicts_are_wrong_as_often_as_said(tmp_path: Path, asked: tuple[Path, Path]) -> None:
    answers, truths = asked
    judge(JudgeOptions(expert="oracle"), answers=answers, truth=truths, to=tmp_path / "oracle")
    right = judgments_of(tmp_path / "oracle")
    for share in (0.0, 0.3):
        options = JudgeOptions(expert="simulated", simulated=SimulatedOptions(wrong=share))
        judge(options, answers=answers, truth=truths, root=tmp_path, to=tmp_path / f"wrong-{share}")
        found = judgments_of(tmp_path / f"wrong-{share}")
        wrong = [
            (one.scores[0] > one.scores[1]) != (right[key].scores[0] > right[key].scores[1])  # type: ignore[index]
            for key, one in found.items()
            if one.scores is not None
        ]
        assert len(wrong) > 100
        assert abs(sum(wrong) / len(wrong) - share) < 0.1


def test_a_check_in_a_runs_folder_is_shown_in_its_report(tmp_path: Path, asked: tuple[Path, Path]) -> None:
    answers, truths = asked
    run = tmp_path / "run"
    build(run, images=3, rounds=1)
    assert "How far the expert can be trusted" not in write_report(run).read_text()
    faulty = JudgeOptions(expert="simulated", simulated=SimulatedOptions(order_bias=0.5))
    found = check(faulty, answers=answers, truth=truths, root=tmp_path, to=run / "judge-check")
    page = write_report(run).read_text()
    assert "How far the expert can be trusted" in page
    assert "Flipped by the order" in page
    assert escape(found.examples[0].question) in page
    assert found.agreement is not None
    assert f"{found.agreement.value:.3f} [{found.agreement.low:.3f}, {found.agreement.high:.3f}]" in page
