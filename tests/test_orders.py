"""Orders of answers and what replies come to together; experts that are models, scripted and simulated ones, panels."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from helpers.judging import answers_of, judgments_of, many_answers, write_answers, write_image
from stllava.config import JudgeOptions, PairOptions, ScriptedOptions
from stllava.errors import StllavaError
from stllava.experts.answer_pairs import pairs_of
from stllava.experts.expert import FreeExpert, Verdict
from stllava.experts.model.ordering import aggregate, distinct, orders
from stllava.experts.model.rubric import Mode
from stllava.experts.model.verdict_parser import ParsedReply
from stllava.experts.panel import Panel
from stllava.records import Answers, Judgment
from stllava.stages.judge import judge

texts = st.lists(st.sampled_from("abcd"), min_size=2, max_size=6)


@given(places=st.lists(st.integers(0, 9), min_size=2, max_size=6, unique=True), count=st.integers(1, 5))
def test_in_two_orders_every_answer_stands_before_every_other_once(places: list[int], count: int) -> None:
    for mode in ("pairwise", "scores"):
        before: Counter[tuple[int, int]] = Counter()
        for order in orders(places, mode=mode, count=2 * count):
            before.update((one, other) for at, one in enumerate(order) for other in order[at + 1 :])
        assert set(before.values()) == {count}
        assert len(before) == len(places) * (len(places) - 1)


def test_one_text_alone_is_not_shown() -> None:
    assert list(orders([3], mode="scores", count=2)) == []
    assert distinct(["a", "b", "a", "c", "b"]) == [0, 1, 3]


def said(mode: Mode, completions: list[str], worth: dict[str, float], count: int) -> list[tuple[tuple[int, ...], ParsedReply]]:
    """What an unbiased expert says in every order."""
    found = []
    for order in orders(distinct(completions), mode=mode, count=count):
        marks = tuple(worth[completions[place]] for place in order)
        if mode == "pairwise":
            marks = tuple(float(mark == max(marks)) if marks[0] != marks[1] else 0.5 for mark in marks)
        found.append((order, ParsedReply(marks, None, "")))
    return found


@given(
    completions=texts,
    worth=st.fixed_dictionaries({key: st.integers(0, 10).map(float) for key in "abcd"}),
    mode=st.sampled_from(["pairwise", "scores"]),
)
def test_swapping_the_answers_flips_every_label(completions: list[str], worth: dict[str, float], mode: Mode) -> None:
    straight = aggregate(completions, said(mode, completions, worth, 2), mode=mode)
    turned = completions[::-1]
    swapped = aggregate(turned, said(mode, turned, worth, 2), mode=mode)
    if len(set(completions)) == 1:
        assert (straight.scores, straight.cause, swapped.cause) == (None, "same text", "same text")
        return
    assert straight.scores is not None
    assert swapped.scores is not None
    assert straight.scores == pytest.approx(swapped.scores[::-1])
    winners = {(completions[one.first], completions[one.second]): one.winner for one in straight.comparisons}
    for one in swapped.comparisons:
        key = (turned[one.first], turned[one.second])
        mine = winners[key] if key in winners else winners[key[::-1]]
        assert (None if one.winner is None else turned[one.winner]) == (None if mine is None else completions[mine])


def test_orders_that_disagree_make_a_tie_which_is_no_pair() -> None:
    first = ParsedReply((1.0, 0.0), None, "")
    result = aggregate(["a", "b"], [((0, 1), first), ((1, 0), first)], mode="pairwise")
    assert result.scores == (0.5, 0.5)
    assert [(one.winner, one.flipped, one.cause) for one in result.comparisons] == [(None, True, None)]


def test_a_win_in_one_order_and_a_tie_in_the_other_is_a_tie_but_no_flip() -> None:
    replies = [((0, 1), ParsedReply((1.0, 0.0), None, "")), ((1, 0), ParsedReply((0.5, 0.5), None, ""))]
    [one] = aggregate(["a", "b"], replies, mode="pairwise").comparisons
    assert (one.winner, one.flipped) == (None, False)


def test_scores_that_disagree_about_two_answers_decide_nothing_between_them(tmp_path: Path) -> None:
    replies = [((0, 1, 2), ParsedReply((9.0, 8.0, 2.0), None, "")), ((2, 1, 0), ParsedReply((1.0, 9.0, 8.0), None, ""))]
    result = aggregate(["a", "b", "c"], replies, mode="scores")
    assert result.scores == pytest.approx((0.85, 0.85, 0.15))
    assert [(one.first, one.second, one.winner, one.flipped) for one in result.comparisons] == [
        (0, 1, None, True),
        (0, 2, 0, False),
        (1, 2, 1, False),
    ]


@pytest.mark.parametrize("mode", ["pairwise", "scores"])
def test_a_missing_verdict_is_neither_win_nor_tie(mode: Mode) -> None:
    replies = [((0, 1), ParsedReply((1.0, 0.0), None, "")), ((1, 0), ParsedReply(None, "refused", ""))]
    result = aggregate(["a", "b"], replies, mode=mode)
    assert (result.scores, result.cause) == (None, "refused")
    assert [(one.winner, one.cause) for one in result.comparisons] == [(None, "refused")]


def test_pairs_are_not_made_between_answers_the_expert_could_not_decide(tmp_path: Path) -> None:
    given = answers_of("what?", ("a", "b", "c"))
    folder = write_answers(tmp_path / "answers", [given])
    options = JudgeOptions(expert="scripted", scripted=ScriptedOptions(prefer=("b", "c", "not here")))
    judge(options, answers=folder, root=write_image(tmp_path / "i"), to=tmp_path / "out")
    [judgment] = judgments_of(tmp_path / "out").values()
    made = pairs_of(given, judgment, options=PairOptions(margin=0.05, min_chosen_score=0, pairs="all"))
    assert not isinstance(made, str)
    assert {(one.chosen, one.rejected) for one in made} == {("b", "a"), ("c", "a")}


@pytest.mark.parametrize("mode", ["pairwise", "scores"])
def test_a_biased_expert_is_undone_by_the_second_order(tmp_path: Path, mode: Mode) -> None:
    given = write_answers(tmp_path / "answers", many_answers(50))
    shares = {}
    for count in (1, 2):
        options = JudgeOptions(expert="scripted", mode=mode, orders=count, scripted=ScriptedOptions(prefer=("effusion",)))
        manifest = judge(options, answers=given, root=write_image(tmp_path / "i"), to=tmp_path / f"{mode}-{count}").manifest
        shares[count] = manifest.measures["tie_share"]
        assert manifest.measures["flip_share"] == 0
    assert shares[1] == shares[2]


class Fixed(FreeExpert):
    """An expert with one opinion."""

    prompt_hash = method = "fixed"

    def __init__(self, name: str, *scores: float) -> None:
        self.name, self.scores = name, scores

    def judge(self, answers: Answers) -> Verdict:
        """Always the same."""
        mute = len(self.scores) == 0
        return Verdict(None if mute else self.scores, "abstained" if mute else None, f"{self.name} says so", cost=0.5)


def test_a_majority_of_the_panel_decides_and_its_agreement_is_measured() -> None:
    panel = Panel([Fixed("x", 1, 0), Fixed("y", 0.9, 0.2), Fixed("z", 0, 1), Fixed("mute")], verdict="majority")
    verdict = panel.judge(answers_of("what?", ("a", "b")))
    assert verdict.scores == (1.0, 0.0)
    assert verdict.agreement == pytest.approx(2 / 3)
    assert verdict.cost == 2.0
    assert verdict.raw[3] == "mute: no verdict, abstained"


def test_an_even_panel_is_a_tie_and_a_mute_one_has_no_verdict() -> None:
    even = Panel([Fixed("x", 1, 0), Fixed("z", 0, 1)], verdict="majority").judge(answers_of("what?", ("a", "b")))
    assert even.scores == (0.5, 0.5)
    assert even.comparisons[0].winner is None
    mute = Panel([Fixed("x"), Fixed("z")], verdict="majority").judge(answers_of("what?", ("a", "b")))
    assert (mute.scores, mute.cause, mute.agreement) == (None, "abstained", None)


def test_of_one_text_there_is_no_majority_but_there_is_a_mean() -> None:
    members, same = [Fixed("x", 0.9, 0.9), Fixed("y", 0.5, 0.5)], answers_of("what?", ("a", "a"))
    majority = Panel(members, verdict="majority").judge(same)
    assert (majority.scores, majority.cause) == (None, "same text")
    assert Panel(members, verdict="mean").judge(same).scores == pytest.approx((0.7, 0.7))


def test_the_mean_of_the_panels_scores_decides() -> None:
    verdict = Panel([Fixed("x", 1, 0), Fixed("y", 0.4, 0.6)], verdict="mean").judge(answers_of("what?", ("a", "b")))
    assert verdict.scores == pytest.approx((0.7, 0.3))
    assert verdict.comparisons[0].winner == 0
    assert verdict.agreement == 0.5


def test_a_panel_is_read_from_files_and_keeps_its_members_replies_apart(tmp_path: Path) -> None:
    given = write_answers(tmp_path / "answers", many_answers(10))
    for name, word in (("one", "effusion"), ("two", "nodule")):
        (tmp_path / f"{name}.yaml").write_text(f"expert: scripted\nscripted: {{prefer: [{word}]}}\n")
    options = JudgeOptions(expert="panel", panel=(tmp_path / "one.yaml", tmp_path / "two.yaml"))
    manifest = judge(options, answers=given, root=write_image(tmp_path / "i"), to=tmp_path / "out").manifest
    assert sorted(path.name for path in (tmp_path / "out" / "exchanges").iterdir()) == ["expert-1.jsonl", "expert-2.jsonl"]
    assert 0 < manifest.measures["panel_agreement"] <= 1
    (tmp_path / "two.yaml").write_text("expert: scripted\nscripted: {prefer: [mass]}\n")
    with pytest.raises(StllavaError, match="other options or inputs"):
        judge(options, answers=given, root=tmp_path / "i", to=tmp_path / "out")


@pytest.mark.parametrize(("members", "complaint"), [(1, "the panel has 1 member"), (2, "a panel is a member of a panel")])
def test_a_panel_needs_several_single_experts(tmp_path: Path, members: int, complaint: str) -> None:
    path = tmp_path / "member.yaml"
    path.write_text("expert: panel\n")
    given = write_answers(tmp_path / "answers", many_answers(1))
    with pytest.raises(StllavaError, match=complaint):
        judge(JudgeOptions(expert="panel", panel=(path,) * members), answers=given, to=tmp_path / "out")


def test_a_cause_that_no_expert_gives_is_refused() -> None:
    judged = {"id": "j", "answers_id": "a", "scores": None, "reason": "", "expert": "e", "prompt_hash": "h"}
    for cause in ("abstained", "unparsed", "refused", "failed", "same text"):
        assert Judgment.model_validate({**judged, "cause": cause}).cause == cause
    with pytest.raises(ValidationError, match="'abstained', 'unparsed', 'refused', 'failed' or 'same text'"):
        Judgment.model_validate({**judged, "cause": "abstain"})
