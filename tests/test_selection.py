"""A budget of verdicts: which questions it is spent on, what is free, and that one for everything changes nothing."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.judging import answers_of, judgments_of, many_answers, write_answers
from stllava.config import ChatOptions, ItselfOptions, JudgeOptions, ScriptedOptions
from stllava.errors import StllavaError
from stllava.experts.selection import KnownVerdicts, candidate, choose
from stllava.records import Answers, Comparison, Judgment
from stllava.stages.judge import judge
from stllava.store import read_manifest

SCRIPTED = JudgeOptions(expert="scripted", scripted=ScriptedOptions(prefer=("mass", "a")), orders=1)


def judged(answers: Answers, scores: tuple[float, ...] | None, comparisons: tuple[Comparison, ...] = ()) -> Judgment:
    """A judgment of these answers."""
    return Judgment(
        id=answers.id[::-1],
        answers_id=answers.id,
        scores=scores,
        cause=None if scores is not None else "abstained",
        reason="so",
        expert="e",
        prompt_hash="p",
        comparisons=comparisons,
    )


def test_answers_that_mean_the_same_do_not_split() -> None:
    agreed = candidate(answers_of("Is it a mass?", ("Yes.", "yes", "yes, it is")))
    assert agreed.entropy == 0
    assert agreed.rivals == ("yes",)
    split = candidate(answers_of("Is it a mass?", ("yes", "no", "no", "yes")))
    assert split.rivals == ("no", "yes")
    assert split.entropy == pytest.approx(0.6931, abs=1e-4)
    assert candidate(answers_of("What is it?", ("a mass", "a cyst", "a node"))).entropy > split.entropy


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30),
    st.integers(0, 40),
)
def test_a_budget_is_kept_and_every_choice_is_a_candidate_once(rows: list[tuple[str, int, int]], budget: int) -> None:
    candidates = [
        candidate(answers_of(f"is it {text}?", ["yes"] * yes + ["no"] * (4 - yes), image=f"{image}-{number}.png"))
        for number, (text, image, yes) in enumerate(rows)
    ]
    for by in ("informative", "random"):
        chosen = choose(candidates, budget, by=by)
        assert len(chosen) == len(set(chosen)) == min(budget, len(candidates))
        assert set(chosen) <= {each.answers_id for each in candidates}
        assert chosen == choose(candidates, budget, by=by)


def test_what_the_answers_agree_on_is_judged_last() -> None:
    split = [answers_of("is it a?", ("yes", "no"), image=f"{number}.png") for number in range(5)]
    agreed = [answers_of("is it b?", ("yes", "yes"), image=f"{number}.png") for number in range(5)]
    chosen = choose([candidate(row) for row in [*agreed, *split]], 7)
    assert set(chosen[:5]) == {row.id for row in split}


def test_verdicts_are_spread_over_questions_contrasts_and_images() -> None:
    common = [answers_of("is it a?", ("yes", "no"), image=f"{number}.png") for number in range(90)]
    rare = [answers_of("is it b?", ("yes", "no"), image=f"b{number}.png") for number in range(10)]
    by_id = {row.id: row for row in [*common, *rare]}
    asked = Counter(by_id[key].question for key in choose([candidate(row) for row in by_id.values()], 20))
    assert asked["is it b?"] == 10
    one_image = [answers_of(f"is it {number}?", ("yes", "no"), image="same.png") for number in range(20)]
    others = [answers_of("is it 3?", ("yes", "no"), image=f"{number}.png") for number in range(5)]
    by_id = {row.id: row for row in [*one_image, *others]}
    images = {by_id[key].images for key in choose([candidate(row) for row in by_id.values()], 6)}
    assert len(images) >= 4  # Of the 25 questions 20 are about one image.


def test_chance_depends_on_the_seed_alone() -> None:
    candidates = [candidate(row) for row in many_answers(40)]
    assert choose(candidates, 9, by="random", seed=1) == choose(candidates[::-1], 9, by="random", seed=1)
    assert choose(candidates, 9, by="random", seed=1) != choose(candidates, 9, by="random", seed=2)


def test_a_known_verdict_holds_for_what_one_judgment_covers() -> None:
    before = answers_of("What is it?", ("mass", "cyst", "node"))
    known = KnownVerdicts()
    known.add(before, judged(before, (1.0, 0.5, 0.0), (Comparison(first=0, second=2, winner=2),)))
    again = known.verdict(answers_of("what  is it?", ("node", "mass", "mass")))
    assert again is not None
    assert again.scores == (0.0, 1.0, 1.0)
    assert again.comparisons == (Comparison(first=1, second=0, winner=0),)
    assert known.verdict(answers_of("What is it?", ("mass", "tumour"))) is None
    assert known.verdict(answers_of("What is it?", ("mass",), image="other.png")) is None
    other = answers_of("What is it?", ("tumour", "scar"))
    known.add(other, judged(other, (1.0, 0.0)))
    # Scores from two comparisons mean nothing beside each other.
    assert known.verdict(answers_of("What is it?", ("mass", "tumour"))) is None
    silent = answers_of("What else?", ("mass",))
    known.add(silent, judged(silent, None))
    assert known.verdict(silent) is None


def test_a_budget_of_everything_is_no_budget(tmp_path: Path) -> None:
    answers = write_answers(tmp_path / "answer", many_answers(12))
    judge(SCRIPTED, answers=answers, to=tmp_path / "all")
    judge(SCRIPTED.model_copy(update={"budget": 12}), answers=answers, to=tmp_path / "budget")
    assert (tmp_path / "all/judgments.jsonl").read_bytes() == (tmp_path / "budget/judgments.jsonl").read_bytes()


def test_only_what_is_chosen_is_asked_and_judged(tmp_path: Path) -> None:
    answers = write_answers(tmp_path / "answer", many_answers(12))
    result = judge(SCRIPTED.model_copy(update={"budget": 5}), answers=answers, to=tmp_path / "judge")
    assert result.judged == len(judgments_of(tmp_path / "judge")) == 5
    measures = read_manifest(tmp_path / "judge").measures
    assert (measures["asked"], measures["not_chosen"]) == (5, 7)
    assert measures["requests"] == 5


def test_answers_of_one_text_cost_no_budget_where_nothing_is_asked_about_them(tmp_path: Path) -> None:
    rows = [answers_of(f"What is seen at {number}?", ("nonsense",) * 3) for number in range(6)] + many_answers(2)
    answers = write_answers(tmp_path / "answer", rows)
    judge(SCRIPTED.model_copy(update={"budget": 4}), answers=answers, to=tmp_path / "judge")
    measures = read_manifest(tmp_path / "judge").measures
    assert (measures["asked"], measures["verdicts"], measures["requests"]) == (2, 2, 2)
    whole = judge(SCRIPTED, answers=answers, to=tmp_path / "all").manifest.measures
    assert (whole["verdicts"], whole["no_verdict_same_text"]) == (2, 6)


def test_what_an_earlier_round_settled_is_not_asked_again_and_costs_no_budget(tmp_path: Path) -> None:
    rows = many_answers(12)
    first = write_answers(tmp_path / "answer-1", rows[:6])
    judge(SCRIPTED, answers=first, to=tmp_path / "judge-1")
    second = write_answers(tmp_path / "answer-2", rows)
    options = SCRIPTED.model_copy(update={"budget": 4})
    result = judge(options, answers=second, to=tmp_path / "judge-2", earlier=[(first, tmp_path / "judge-1")])
    assert result.judged == 10
    assert read_manifest(tmp_path / "judge-2").measures["requests"] == 4
    fresh = judge(SCRIPTED, answers=second, to=tmp_path / "judge-3")
    known, anew = judgments_of(tmp_path / "judge-2"), judgments_of(fresh.folder)
    for row in rows[:6]:
        assert known[row.id].scores == anew[row.id].scores


def test_a_budget_in_dollars_needs_prices_and_buys_what_it_can_pay(tmp_path: Path) -> None:
    answers = write_answers(tmp_path / "answer", many_answers(3))
    chat = ChatOptions(url="http://127.0.0.1:9/v1", model="m", input_price=1.0, output_price=1.0)
    priced = JudgeOptions(expert="chat", chat=chat, budget_cost=1e-9)
    with pytest.raises(StllavaError, match="judging the first question can cost"):
        judge(priced, answers=answers, root=tmp_path, to=tmp_path / "poor")
    free = priced.model_copy(update={"chat": chat.model_copy(update={"input_price": 0.0, "output_price": 0.0})})
    with pytest.raises(StllavaError, match="without prices"):
        judge(free, answers=answers, root=tmp_path, to=tmp_path / "unpriced")


def test_within_a_budget_the_policys_own_vote_may_judge_what_is_not_asked(tmp_path: Path) -> None:
    rows = [answers_of("Is it a mass?", ["yes"] * yes + ["no"] * (8 - yes), image=f"{yes}.png") for yes in (8, 7, 5, 4)]
    answers = write_answers(tmp_path / "answer", rows)
    limited = SCRIPTED.model_copy(update={"budget": 1})
    judge(limited, answers=answers, to=tmp_path / "plain")
    options = limited.model_copy(update={"consensus": True, "itself": ItselfOptions(min_agreement=0.8)})
    judge(options, answers=answers, to=tmp_path / "judge")
    plain, found = judgments_of(tmp_path / "plain"), judgments_of(tmp_path / "judge")
    assert {rows.index(row) for row in rows if row.id in plain} == {3}
    # The most contested one is asked; of the others those that agree enough are believed.
    assert {rows.index(row): found[row.id].expert for row in rows if row.id in found} == {
        0: "itself",
        1: "itself",
        3: "scripted",
    }
    assert found[rows[3].id] == plain[rows[3].id]
    assert read_manifest(tmp_path / "judge").measures["asked"] == 1


def test_verdicts_of_another_round_are_refused_by_a_sentence(tmp_path: Path) -> None:
    first, second = (
        write_answers(tmp_path / name, rows) for name, rows in (("a", many_answers(3)), ("b", many_answers(6)[3:]))
    )
    judge(SCRIPTED, answers=first, to=tmp_path / "judged")
    with pytest.raises(StllavaError, match="one and the same round"):
        judge(SCRIPTED, answers=second, to=tmp_path / "again", earlier=[(second, tmp_path / "judged")])


def test_an_audit_takes_half_of_a_budget_at_most() -> None:
    assert JudgeOptions(expert="scripted", budget=20, audit=10).audit == 10
    with pytest.raises(ValueError, match=r"judge\.budget of at least 22"):
        JudgeOptions(expert="scripted", budget=20, audit=11)
