"""Pairs where people have voted: what they say stands before the expert's verdict, and says whose word it is."""

from functools import partial
from pathlib import Path

import pytest

from helpers.judging import answers_of
from helpers.reviewing import vote_on, write_round
from stllava.config import PairOptions, ReviewOptions
from stllava.experts.answer_pairs import pairs_of
from stllava.records import Judgment, Preference, ReviewTask, VoteChoice
from stllava.review.overrides import Decision, voted_pair
from stllava.review.tasks import draw_tasks
from stllava.review.vote_log import VoteLog
from stllava.stages.pair import pair, pairs_by_votes
from stllava.store import read_records

ANSWERS = answers_of("Where?", ("left", "right", "both"))
JUDGMENT = Judgment(id="j", answers_id="a", scores=(1.0, 0.0, 0.5), cause=None, reason="", expert="e", prompt_hash="h")


def decision(choice: VoteChoice | None, typed: str | None = None) -> Decision:
    return Decision(first=0, second=1, choice=choice, verdict="first", correct_answer=typed, readers=("anna",))


@pytest.mark.parametrize(
    ("choice", "typed", "expected"),
    [
        ("first", None, ("left", "right")),
        ("second", None, ("right", "left")),
        ("both wrong", "middle", ("middle", "left")),
        ("second", "middle", ("middle", "left")),
        ("equal", "Right.", ("right", "left")),
        ("both wrong", None, "readers: both wrong"),
        ("equal", None, "readers: equally good"),
        ("bad question", "middle", "readers: bad question"),
        ("bad image", None, "readers: bad image"),
        (None, None, "readers disagree"),
        (None, "middle", ("middle", "left")),
    ],
)
def test_what_readers_say_decides(choice: VoteChoice | None, typed: str | None, expected: object) -> None:
    found = voted_pair(ANSWERS, decision(choice, typed))
    assert (found if isinstance(found, str) else (found.chosen, ANSWERS.completions[found.rejected])) == expected


def test_other_pairs_stay_where_readers_agree_with_the_expert_and_go_where_they_do_not() -> None:
    options = PairOptions(pairs="all")
    made = pairs_of(ANSWERS, JUDGMENT, options=options)
    kept = pairs_by_votes(ANSWERS, JUDGMENT, made, decision("first"))
    assert not isinstance(kept, str)
    assert [(one.chosen, one.rejected, one.lineage.readers) for one in kept] == [
        ("left", "right", ("anna",)),
        ("left", "both", ()),
        ("both", "right", ()),
    ]
    turned = pairs_by_votes(ANSWERS, JUDGMENT, made, decision("second"))
    assert not isinstance(turned, str)
    assert [(one.chosen, one.rejected) for one in turned] == [("right", "left")]
    typed = pairs_by_votes(ANSWERS, JUDGMENT, made, decision("both wrong", "middle"))
    assert not isinstance(typed, str)
    assert [(one.chosen, one.lineage.correction, one.lineage.readers) for one in typed] == [("middle", True, ("anna",))]


def test_a_pair_that_readers_confirm_keeps_its_weight_within_a_group() -> None:
    made = pairs_of(ANSWERS, JUDGMENT, options=PairOptions(pairs="group"))
    assert not isinstance(made, str)
    kept = pairs_by_votes(ANSWERS, JUDGMENT, made, decision("first"))
    assert not isinstance(kept, str)
    weights = {(row.chosen, row.rejected): row.weight for row in made}
    assert {(row.chosen, row.rejected): row.weight for row in kept} == weights
    assert set(weights.values()) != {1.0}


def test_an_answer_that_was_cut_off_is_not_chosen_by_readers_either() -> None:
    cut = ANSWERS.model_copy(update={"finished": (False, True, True)})
    assert pairs_by_votes(cut, JUDGMENT, "tie", decision("first")) == "chosen answer cut off"
    assert pairs_by_votes(answers_of("?", ("", "x", "y")), JUDGMENT, "tie", decision("first")) == "empty answer chosen"


def voted(folder: Path, *choices: VoteChoice) -> list[ReviewTask]:
    """A round of which the first tasks got these votes of anna."""
    write_round(folder, 30)
    tasks = draw_tasks(ReviewOptions(), answers=folder / "answer", judgments=folder / "judge", to=folder / "review")
    log = VoteLog(folder / "review", "anna")
    for number, choice in enumerate(choices, 1):
        log.append(vote_on(tasks[number - 1], choice, reader="anna", number=number))
    log.close()
    return tasks


def test_pair_lets_votes_override_verdicts_and_changes_nothing_else(tmp_path: Path) -> None:
    tasks = voted(tmp_path, "both wrong", "cannot tell")
    options = PairOptions(balance=False, max_denial_share=1.0)
    make = partial(pair, options, answers=tmp_path / "answer", judgments=tmp_path / "judge")
    plain = make(to=tmp_path / "plain")
    with_votes = make(votes=tmp_path / "review", to=tmp_path / "voted")
    before, after = (read_records(one.folder, "preferences", Preference) for one in (plain, with_votes))
    assert [one for one in before if one.lineage.answers_id != tasks[0].answers_id] == after
    assert with_votes.dropped == plain.dropped | {"readers: both wrong": 1}
    log = VoteLog(tmp_path / "review", "anna")
    log.append(vote_on(tasks[2], "second" if tasks[2].verdict == "first" else "first", reader="anna", number=3))
    log.append(vote_on(tasks[3], "bad image", reader="anna", number=4))
    log.close()
    again = make(votes=tmp_path / "review", to=tmp_path / "voted", existing="replace")
    rows = {one.lineage.answers_id: one for one in read_records(again.folder, "preferences", Preference)}
    turned = next(one for one in before if one.lineage.answers_id == tasks[2].answers_id)
    mine = rows[tasks[2].answers_id]
    assert (mine.chosen, mine.rejected, mine.lineage.readers) == (turned.rejected, turned.chosen, ("anna",))
    assert not any(tasks[3].images == one.images for one in rows.values())
    assert again.manifest.measures["voted_pairs"] == 1
