"""pair: which answers become preferences, and what the manifest says of them."""

import random
import re
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stllava.config import AnswerOptions, JudgeOptions, PairOptions
from stllava.data.balance import TaughtAnswer, surplus_of_denials, surplus_of_yes_or_no
from stllava.experts.answer_pairs import is_nearly_the_same, pairs_of, scored_pairs
from stllava.experts.pair_balance import surplus_of_one_length
from stllava.records import Answers, Judgment, Lineage, Manifest, Preference, Reference, Sampling, VerdictCause
from stllava.stages.pair import REMEDIES, pair
from stllava.store import Stage, read_records

HOW = Sampling(temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=8, seed=0)
EXTREMES = PairOptions(margin=0.5, min_chosen_score=0)
ALL = PairOptions(margin=0.5, min_chosen_score=0, pairs="all")
EITHER = pytest.mark.parametrize("options", [EXTREMES, ALL], ids=["extremes", "all"])
SCORES = st.integers(0, 6).map(lambda points: points / 4)
MARKED = st.lists(st.tuples(st.sampled_from(["", "yes", "No", "no", "left", "a mass"]), SCORES), min_size=2, max_size=7)
"""Completions and their scores; equal texts may have scored differently."""
FAIR = st.dictionaries(st.sampled_from(["", "yes", "no", "left", "a mass", "two"]), SCORES, min_size=1).flatmap(
    lambda scored: st.lists(st.sampled_from(sorted(scored.items())), min_size=2, max_size=8)
)
"""Completions and their scores, equal texts having scored the same."""

Marked = list[tuple[str, float]]


def answered(completions: tuple[str, ...], name: str = "a") -> Answers:
    return Answers(
        id=name, question_id=f"q-{name}", images=("x.png",), question="?", completions=completions, policy="p", sampling=HOW
    )


def judged(scores: tuple[float, ...] | None, cause: VerdictCause | None = None, name: str = "a") -> Judgment:
    return Judgment(id=f"j-{name}", answers_id=name, scores=scores, cause=cause, reason="", expert="e", prompt_hash="h")


def paired(marked: Marked, options: PairOptions) -> list[Preference]:
    texts, scores = zip(*marked, strict=True)
    made = pairs_of(answered(texts), judged(scores), options=options)
    return [] if isinstance(made, str) else made


def taught(pairs: list[Preference]) -> list[TaughtAnswer]:
    return [TaughtAnswer(one.id, "is it so?", one.chosen) for one in pairs]


def content(pairs: list[Preference]) -> set[tuple[str, str, float]]:
    return {(one.chosen, one.rejected, one.margin) for one in pairs}


def run_pair(options: PairOptions, rounds: list[Marked], to: Path) -> tuple[Manifest, list[Preference]]:
    """The stage on one set of answers for each list."""
    stage = Stage("answer", to / "answer", AnswerOptions(), inputs={}, existing="resume")
    columns = [tuple(zip(*marked, strict=True)) for marked in rounds]
    stage.write_records("answers", [answered(texts, f"a{place}") for place, (texts, _) in enumerate(columns)])
    stage.finish(counts_in=len(rounds), counts_out=len(rounds))
    stage = Stage("judge", to / "judge", JudgeOptions(), inputs={}, existing="resume")
    stage.write_records("judgments", [judged(scores, name=f"a{place}") for place, (_, scores) in enumerate(columns)])
    stage.finish(counts_in=len(rounds), counts_out=len(rounds))
    manifest = pair(options, answers=to / "answer", judgments=to / "judge", to=to / "pair").manifest
    return manifest, read_records(to / "pair", "preferences", Preference)


@EITHER
@pytest.mark.parametrize(
    ("scores", "cause", "expected"),
    [
        (None, "abstained", "abstained"),
        (None, "refused", "refused"),
        ((0.5, 0.5, 0.5), None, "tie"),
        ((0.5, 0.9, 0.5), None, "margin too small"),
        ((1.0, 0.0), None, "wrong number of scores"),
    ],
    ids=["abstained", "refused", "tie", "close", "short"],
)
def test_what_has_no_clear_winner_never_becomes_a_pair(
    scores: tuple[float, ...] | None, cause: VerdictCause | None, expected: str, options: PairOptions
) -> None:
    assert pairs_of(answered(("yes", "no", "maybe")), judged(scores, cause), options=options) == expected


@EITHER
def test_equal_texts_and_empty_winners_never_become_a_pair(options: PairOptions) -> None:
    assert pairs_of(answered(("yes", "yes")), judged((1.0, 0.0)), options=options) == "same text"
    assert pairs_of(answered(("yes", "yes", "no")), judged((1.0, 0.375, 0.75)), options=options) == "same text"
    assert pairs_of(answered(("", "no")), judged((1.0, 0.0)), options=options) == "empty answer chosen"


CUT = Answers(
    id="a",
    question_id="q-a",
    images=("x.png",),
    question="?",
    completions=("a mass of the", "left", "right and right and", "left"),
    log_probabilities=(None, -1.0, None, -1.0),
    finished=(False, True, False, True),
    policy="p",
    sampling=HOW,
)
"""Of a policy that comes to its end in two answers of four."""


@EITHER
def test_an_answer_that_was_cut_off_is_never_chosen_and_rejected_without_an_end(options: PairOptions) -> None:
    made = pairs_of(CUT, judged((1.0, 0.75, 0.0, 0.75)), options=options)
    assert not isinstance(made, str)
    assert [(one.chosen, one.rejected, one.rejected_ended) for one in made] == [("left", "right and right and", False)]
    assert made[0].reference is None
    assert pairs_of(CUT, judged((1.0, 0.0, 0.0, 0.0)), options=options) == "chosen answer cut off"


def test_an_answer_that_was_given_whole_too_is_whole() -> None:
    again = CUT.model_copy(update={"completions": ("left", "left", "right", "right")})
    made = pairs_of(again, judged((1.0, 1.0, 0.0, 0.0)), options=EXTREMES)
    assert not isinstance(made, str)
    assert [(one.chosen, one.rejected, one.rejected_ended) for one in made] == [("left", "right", True)]


def test_final_answers_are_compared_and_the_thoughts_are_learned_with_them() -> None:
    thoughts = ("<think>No mass?</think> yes", "<think>A mass!</think>yes", "no", "<think>There is")
    made = pairs_of(answered(thoughts), judged((1.0, 1.0, 0.0, 0.0)), options=EXTREMES)
    assert not isinstance(made, str)
    assert [(one.chosen, one.rejected) for one in made] == [(thoughts[0], "no")]
    assert pairs_of(answered(thoughts[:2]), judged((1.0, 0.0)), options=EXTREMES) == "same text"
    assert pairs_of(answered(("no", thoughts[3])), judged((0.0, 1.0)), options=EXTREMES) == "empty answer chosen"


def test_all_pairs_are_those_that_differ_by_the_margin_each_once_and_widest_first() -> None:
    marked = [("two", 1.0), ("one", 0.5), ("two", 1.0), ("none", 0.0), ("", 0.0), ("three", 0.75)]
    assert [(one.chosen, one.rejected, one.margin) for one in paired(marked, ALL)] == [
        ("two", "none", 1.0),
        ("two", "", 1.0),
        ("three", "none", 0.75),
        ("three", "", 0.75),
        ("two", "one", 0.5),
        ("one", "none", 0.5),
        ("one", "", 0.5),
    ]


def test_two_texts_that_won_against_each_other_are_a_pair_the_way_that_was_wider() -> None:
    marked = [("left", 1.0), ("right", 0.0), ("left", 0.25), ("right", 0.75)]
    assert content(paired(marked, ALL)) == {("left", "right", 1.0)}


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 4)), min_size=2, max_size=6))
def test_reversing_the_scores_swaps_chosen_and_rejected(marked: list[tuple[str, int]]) -> None:
    scored = [(f"{text}{place}", float(mark)) for place, (text, mark) in enumerate(marked)]
    negated = [(text, 4 - score) for text, score in scored]
    for options in (EXTREMES, ALL):
        mirrored = {(one.rejected, one.chosen, one.margin) for one in paired(negated, options)}
        assert content(paired(scored, options)) == mirrored
    for one in paired(scored, EXTREMES):
        assert dict(scored)[one.chosen] == max(score for _, score in scored)


@given(MARKED, st.sampled_from([0.25, 0.5, 1.0]))
def test_the_chosen_answer_scored_higher_by_the_margin_in_every_pair(marked: Marked, margin: float) -> None:
    for pairs in ("extremes", "all"):
        for one in paired(marked, PairOptions(margin=margin, pairs=pairs)):
            gaps = {a - b for text, a in marked if text == one.chosen for other, b in marked if other == one.rejected}
            assert one.margin == max(gaps) >= margin
            assert one.chosen
            assert one.chosen != one.rejected


@given(MARKED)
def test_all_pairs_hold_the_extreme_one_first_and_no_two_texts_twice(marked: Marked) -> None:
    extremes, every = paired(marked, EXTREMES), paired(marked, ALL)
    assert len(extremes) <= 1
    assert extremes in ([], every[:1])
    assert len({one.id for one in every}) == len(every) == len({frozenset((one.chosen, one.rejected)) for one in every})
    assert [one.margin for one in every] == sorted((one.margin for one in every), reverse=True)


@given(FAIR)
def test_of_texts_that_score_alike_everywhere_no_pair_is_missed(marked: Marked) -> None:
    scored = dict(marked)
    wanted = {(one, other) for one, high in scored.items() for other, low in scored.items() if one and high - low >= ALL.margin}
    assert {(one.chosen, one.rejected) for one in paired(marked, ALL)} == wanted


@given(MARKED, st.integers(1, 5))
def test_a_limit_keeps_the_widest_pairs(marked: Marked, most: int) -> None:
    limited = paired(marked, PairOptions(margin=0.5, pairs="all", max_pairs_per_question=most))
    assert limited == paired(marked, ALL)[:most]
    assert paired(marked, PairOptions(margin=0.5, max_pairs_per_question=most)) == paired(marked, EXTREMES)


@given(FAIR, st.randoms())
def test_the_order_of_the_answers_changes_no_pair(marked: Marked, rng: random.Random) -> None:
    shuffled = rng.sample(marked, len(marked))
    assert content(paired(shuffled, ALL)) == content(paired(marked, ALL))
    assert {one.id for one in paired(shuffled, ALL)} == {one.id for one in paired(marked, ALL)}


@given(FAIR.filter(lambda marked: all(text for text, _ in marked)), st.randoms())
def test_the_order_of_the_answers_decides_between_extremes_of_the_same_standing_only(
    marked: Marked, rng: random.Random
) -> None:
    times = Counter(text for text, _ in marked)
    standings = [
        [(one.margin, times[one.chosen], times[one.rejected]) for one in paired(order, EXTREMES)]
        for order in (marked, rng.sample(marked, len(marked)))
    ]
    assert standings[0] == standings[1]


def test_of_equally_good_answers_the_one_given_most_often_is_chosen() -> None:
    texts, scores = ("one", "two", "three", "two", "four", "four"), (0.0, 1.0, 1.0, 1.0, 0.0, 0.0)
    ranked = scored_pairs(texts, scores)
    assert (ranked[0].chosen, ranked[0].rejected, ranked[0].gap) == (1, 4, 1.0)
    assert len(ranked) == 9


@EITHER
@pytest.mark.parametrize(
    ("noted", "expected"),
    [
        ((-1.0, -2.0, -3.0), (-1.0, -3.0)),
        ((None, -2.0, -3.0), (-2.0, -3.0)),
        ((None, None, -3.0), None),
        ((-1.0, -2.0, None), None),
        ((), None),
    ],
    ids=["known", "known of the same text", "chosen unknown", "rejected unknown", "none noted"],
)
def test_a_pair_takes_along_what_the_policy_noted_of_its_texts(
    noted: tuple[float | None, ...], expected: tuple[float, float] | None, options: PairOptions
) -> None:
    given = answered(("yes", "yes", "no")).model_copy(update={"log_probabilities": noted})
    made = pairs_of(given, judged((1.0, 1.0, 0.0)), options=options)
    assert not isinstance(made, str)
    (one,) = made
    wanted = None if expected is None else Reference(id=one.id, policy="p", chosen=expected[0], rejected=expected[1])
    assert one.reference == wanted


@given(st.lists(st.sampled_from(["yes", "No", "no", "left", "there is no mass"]), max_size=12), st.randoms())
def test_balanced_pairs_choose_yes_as_often_as_no(chosen: list[str], rng: random.Random) -> None:
    lineage = Lineage(question_id="q", answers_id="a", judgment_id="j")
    made = [
        Preference(id=f"{place:02}", images=(), prompt=(), chosen=text, rejected="x", margin=1.0, lineage=lineage)
        for place, text in enumerate(chosen)
    ]
    left = surplus_of_yes_or_no(taught(made))
    kept = [one.chosen.lower() for one in made if one.id not in left]
    assert kept.count("yes") == kept.count("no") == min(chosen.count("yes"), chosen.count("No") + chosen.count("no"))
    assert [text for text in kept if text not in ("yes", "no")] == [text for text in chosen if " " in text or text == "left"]
    rng.shuffle(made)
    assert surplus_of_yes_or_no(taught(made)) == left


def test_every_judgment_makes_a_pair_or_is_counted_by_cause(tmp_path: Path) -> None:
    rounds: list[Marked] = [
        [("yes", 1.0), ("no", 0.0), ("maybe", 0.0), ("perhaps", 0.0)],
        [("no", 1.0), ("yes", 0.0)],
        [("yes", 1.0), ("no", 0.0)],
        [("left", 1.0), ("right", 0.5), ("both", 0.0)],
        [("left", 1.0), ("right", 1.0)],
        [("left", 0.25), ("right", 0.0)],
    ]
    for options, pairs, surplus in (
        (EXTREMES, 3, 1),
        (PairOptions(margin=0.5, balance=False, min_chosen_score=0), 4, 0),
        (ALL, 5, 3),
        (PairOptions(margin=0.5, min_chosen_score=0, pairs="all", balance=False), 8, 0),
        (PairOptions(margin=0.5, min_chosen_score=0, pairs="all", balance=False, max_pairs_per_question=2), 6, 0),
    ):
        manifest, made = run_pair(
            options, rounds, tmp_path / f"{options.pairs}-{options.balance}-{options.max_pairs_per_question}"
        )
        sources = {one.lineage.judgment_id for one in made}
        assert manifest.counts_in == len(rounds) == len(sources) + sum(manifest.dropped.values())
        assert manifest.counts_out == len(made) == len({one.id for one in made}) == pairs
        assert manifest.measures["surplus_pairs"] == surplus
        assert manifest.measures["pair_share"] == len(sources) / len(rounds)
        assert manifest.measures["pairs_a_question"] == pairs / len(sources)
        assert (manifest.dropped["tie"], manifest.dropped["margin too small"]) == (1, 1)
        if options.balance:
            assert sum(one.chosen == "yes" for one in made) == sum(one.chosen == "no" for one in made) == 1


def test_a_question_is_dropped_by_the_balance_only_when_none_of_its_pairs_is_left(tmp_path: Path) -> None:
    several: Marked = [("yes", 1.0), ("no", 0.0), ("maybe", 0.0), ("perhaps", 0.0)]
    manifest, made = run_pair(ALL, [several, [("no", 1.0), ("yes", 0.0)]], tmp_path / "kept")
    assert (manifest.counts_in, manifest.counts_out, manifest.dropped) == (2, 2, {})
    assert Counter(one.chosen for one in made) == {"yes": 1, "no": 1}
    manifest, made = run_pair(ALL, [several, [("left", 1.0), ("right", 0.0)]], tmp_path / "lost")
    assert (manifest.counts_in, manifest.counts_out, manifest.dropped) == (2, 1, {"surplus of yes or no": 1})
    assert manifest.measures["surplus_pairs"] == 3


@given(st.lists(st.tuples(st.sampled_from(["left", "left lung", "a mass in the left lung", "right"]), SCORES), min_size=2))
def test_balanced_lengths_choose_the_longer_answer_as_often_as_the_shorter(marked: Marked) -> None:
    pairs = [
        one.model_copy(update={"id": str(number)})
        for number, first in enumerate(marked)
        for one in paired([first, marked[number - 1]], EXTREMES)
    ]
    surplus = surplus_of_one_length((one.id, len(one.chosen) - len(one.rejected)) for one in pairs)
    kept = [one for one in pairs if one.id not in surplus]
    gaps = [len(one.chosen) - len(one.rejected) for one in kept]
    assert sum(gap > 0 for gap in gaps) == sum(gap < 0 for gap in gaps)
    assert sum(gap == 0 for gap in gaps) == sum(len(one.chosen) == len(one.rejected) for one in pairs)


def test_balanced_lengths_are_counted(tmp_path: Path) -> None:
    rounds = [[("a long answer", 1.0), (f"short{number}", 0.0)] for number in range(5)]
    rounds.append([("brief", 1.0), ("a long answer", 0.0)])
    manifest, kept = run_pair(PairOptions(balance_length=True), rounds, tmp_path)
    assert len(kept) == 2
    assert manifest.dropped == {"surplus of one length": 4}
    assert manifest.measures["chosen_longer_share"] == 0.5


def test_nearly_the_same_texts_are_no_pair_where_that_is_asked_for() -> None:
    near = [("There is a nodule in the left upper lobe.", 1.0), ("There is a nodule in the left lower lobe.", 0.0)]
    assert len(paired(near, PairOptions())) == 1
    assert len(paired(near, PairOptions(max_similarity=0.95))) == 1
    texts, scores = zip(*near, strict=True)
    assert pairs_of(answered(texts), judged(scores), options=PairOptions(max_similarity=0.85)) == "nearly the same text"
    assert pairs_of(answered(("Yes.", "yes")), judged((1.0, 0.0)), options=PairOptions()) == "nearly the same text"
    for texts in (("left lung", "right lung"), ("right lung", "left lung")):
        assert is_nearly_the_same(*texts, min_similarity=0.5)
        assert not is_nearly_the_same(*texts, min_similarity=0.51)


@pytest.mark.parametrize("alike", [1.0, 0.9], ids=["equal", "alike"])
def test_answers_that_repeat_themselves_without_end_are_paired_at_once(alike: float) -> None:
    # A degenerate policy's answers; difflib takes 13 s to match these two word by word.
    loops = [("yes " * 1000, 1.0), ("no yes " * 500, 0.0)]
    start = time.process_time()
    assert len(paired(loops, PairOptions(max_similarity=alike))) == 1
    assert time.process_time() - start < 1


def test_the_best_of_bad_answers_is_not_learned() -> None:
    options = PairOptions(margin=0.2, min_chosen_score=0.9)
    assert paired([("left", 0.6), ("right", 0.0)], options) == []
    assert content(paired([("left", 1.0), ("right", 0.0)], options)) == {("left", "right", 1.0)}
    assert pairs_of(answered(("a", "b")), judged((0.6, 0.0)), options=options) == "chosen answer too bad"


def test_yes_and_no_are_balanced_among_questions_that_begin_alike() -> None:
    said = [("is this a ct?", "yes"), ("is this a mr?", "no"), ("is this a x-ray?", "yes")]
    said += [("is there a mass?", "no"), ("is there a cyst?", "No."), ("is there a nodule?", "yes")]
    given = [TaughtAnswer(f"{place}", question, answer) for place, (question, answer) in enumerate(said)]
    assert surplus_of_yes_or_no(given) == {"2", "4"}


def test_denials_are_kept_to_their_share() -> None:
    given = [TaughtAnswer(f"d{place}", "how large is the cyst?", "there is no cyst") for place in range(5)]
    given += [TaughtAnswer(f"o{place}", "how large is the cyst?", "small") for place in range(9)]
    given += [TaughtAnswer("n", "is there a cyst?", "no")]
    assert surplus_of_denials(given, max_share=1.0) == set()
    assert surplus_of_denials(given, max_share=0.0) == {"d0", "d1", "d2", "d3", "d4"}
    assert surplus_of_denials(given, max_share=0.2) == {"d2", "d3", "d4"}


def test_what_is_to_be_done_where_no_pair_was_made_names_options_that_there_are() -> None:
    named = re.findall(r"(?:Raise|Lower) (?:the )?(\w+)", " ".join(REMEDIES.values()))
    assert len(named) == 5
    assert {*named} <= PairOptions.model_fields.keys()


def test_the_result_of_a_stage_that_is_done_is_what_it_was(tmp_path: Path) -> None:
    run_pair(PairOptions(), [[("left lung", 0.9), ("right lung", 0.1)], [("yes", 0.5), ("no", 0.5)]], tmp_path)
    answers, judgments, to = (tmp_path / name for name in ("answer", "judge", "pair"))
    again = pair(PairOptions(), answers=answers, judgments=judgments, to=to)
    assert again == pair(PairOptions(), answers=answers, judgments=judgments, to=to)
    assert (again.pairs, again.dropped, again.folder) == (1, {"tie": 1}, tmp_path / "pair")


def test_a_group_makes_every_pair_that_differs_with_the_weight_of_its_advantages(tmp_path: Path) -> None:
    rounds: list[Marked] = [[("a", 1.0), ("b", 0.5), ("b", 0.5), ("c", 0.0)], [("a", 1.0), ("b", 1.0)]]
    options = PairOptions(pairs="group", balance=False, margin=0.9, min_chosen_score=1.0)
    manifest, made = run_pair(options, rounds, tmp_path)
    assert manifest.dropped == {"tie": 1}
    spread = 0.125**0.5
    expected = {("a", "c"): 1 / (4 * spread), ("a", "b"): 2 * 0.5 / (4 * spread), ("b", "c"): 2 * 0.5 / (4 * spread)}
    assert {(one.chosen, one.rejected): one.weight for one in made} == pytest.approx(expected)


def grouped(marked: Marked, **values: float) -> dict[tuple[str, str], float] | str:
    """The pairs of a group with their weights, or why there is none."""
    texts, scores = zip(*marked, strict=True)
    options = PairOptions.model_validate({"pairs": "group", **values})
    made = pairs_of(answered(texts), judged(scores), options=options)
    return made if isinstance(made, str) else {(row.chosen, row.rejected): row.weight for row in made}


NOISE = 0.1 + 0.2


@pytest.mark.parametrize("scores", [(NOISE, 0.3), (NOISE, 0.3, NOISE, 0.3), (0.7 - 0.4, 0.3, NOISE), (1 - 1e-9, 1.0)])
def test_rounding_is_no_spread_of_a_group(scores: tuple[float, ...]) -> None:
    marked = [(f"answer {place}", score) for place, score in enumerate(scores)]
    assert grouped(marked, margin=1e-9, min_chosen_score=0) == "tie"
    beside = grouped([*marked, ("best", 1.5)], margin=1e-9, min_chosen_score=0)
    assert not isinstance(beside, str)
    assert {chosen for chosen, _ in beside} == {"best"}


def test_a_group_is_learned_where_its_best_answer_is_good_and_better_than_the_worst_by_the_margin() -> None:
    marked = [("a", 0.7), ("b", 0.6), ("c", 0.35)]
    assert len(grouped(marked, margin=0.3)) == 3
    assert grouped(marked, margin=0.4) == "margin too small"
    assert grouped(marked, margin=0.3, min_chosen_score=0.75) == "chosen answer too bad"
    assert grouped([("", 1.0), ("b", 0.0), ("b", 0.0)]) == "empty answer chosen"
    assert grouped([("Yes.", 1.0), ("yes", 0.0)]) == "nearly the same text"


def test_of_equal_texts_in_a_group_the_mean_score_counts() -> None:
    found = grouped([("a", 1.0), ("b", 0.25), ("a", 0.0)], margin=0.1)
    assert not isinstance(found, str)
    assert found == pytest.approx({("a", "b"): 2 * 0.25 / (3 * (0.125 / 9) ** 0.5)})


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from([0.0, NOISE, 0.3, 0.5, 0.9, 1.0])), min_size=2))
def test_the_weights_of_a_group_add_up_to_its_advantages(marked: Marked) -> None:
    marks = dict(marked)
    texts = [text for text, _ in marked]
    scores = [marks[text] for text in texts]
    found = grouped(list(zip(texts, scores, strict=True)), margin=1e-9, min_chosen_score=0)
    if isinstance(found, str):
        assert found == "tie"
        assert max(scores) - min(scores) < 1e-6
        return
    mean = sum(scores) / len(scores)
    spread = (sum((score - mean) ** 2 for score in scores) / len(scores)) ** 0.5
    for text in set(texts):
        total = sum(weight * ((text == chosen) - (text == rejected)) for (chosen, rejected), weight in found.items())
        assert total == pytest.approx(texts.count(text) * (marks[text] - mean) / spread)
