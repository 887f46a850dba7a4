"""Pairs where people have voted: what they say stands before the expert's verdict, and says whose word it is."""

from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from helpers.judging import answers_of, judgment_on, write_answers, write_judgments
from helpers.reviewing import vote_on, write_round
from stllava.config import PairOptions, ReviewOptions
from stllava.data.conversations import conversation
from stllava.errors import ConflictError, StllavaError
from stllava.experts.answer_pairs import pairs_of
from stllava.records import Conversation, ConversationLineage, Judgment, Message, Preference, ReviewTask, VoteChoice
from stllava.review.overrides import Decision, Decisions, voted_pair
from stllava.review.tasks import draw_tasks
from stllava.review.vote_log import VoteLog
from stllava.review.voted_answers import voted_answers, voted_folders
from stllava.stages.final_data import final_data
from stllava.stages.pair import pair, pairs_by_votes
from stllava.stages.results import FinalDataResult
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
    with pytest.raises(StllavaError, match=rf"is no review folder; .* Name {tmp_path / 'review'}\."):
        make(votes=tmp_path, to=tmp_path / "another")


# --- what is learned last --------------------------------------------------------------------------------------------

LEARNING = PairOptions(balance=False, max_denial_share=1.0, min_chosen_score=0.5)


def labels_of(folder: Path) -> Path:
    """One labelled conversation."""
    turns = (Message(role="user", content="What is it?"), Message(role="assistant", content="a scan"))
    path = folder / "labels.jsonl"
    path.write_text(conversation(("00000.png",), turns).model_dump_json() + "\n")
    return path


def learned_last(folder: Path, *, votes: bool = True, rounds: Sequence[Path] = (), to: str = "final") -> FinalDataResult:
    """What the last training learns of the round in a folder, or of several."""
    folders = rounds or [folder]
    return final_data(
        LEARNING,
        conversations=labels_of(folder),
        rounds=[(one / "answer", one / "judge") for one in folders],
        to=folder / to,
        votes=voted_folders(one / "review" for one in folders) if votes else (),
    )


def said_in(made: FinalDataResult) -> dict[tuple[tuple[str, ...], str], str]:
    """The answer to each question."""
    rows = read_records(made.folder, "conversations", Conversation)[1:]
    return {(row.images, row.messages[0].content): row.messages[1].content for row in rows}


def test_what_is_learned_last_follows_readers_where_they_overturn_the_expert(tmp_path: Path) -> None:
    tasks = voted(tmp_path)
    verdict = {task.id: task.verdict for task in tasks}
    other: dict[str, VoteChoice] = {"first": "second", "second": "first"}
    turned, wrong, typed, question, image, kept, unsure = list({task.images: task for task in tasks}.values())[:7]
    plain = learned_last(tmp_path, votes=False, to="plain")
    with closing(VoteLog(tmp_path / "review", "anna")) as log:
        votes: list[tuple[ReviewTask, VoteChoice, str | None]] = [
            (turned, other[verdict[turned.id]], None),
            (wrong, "both wrong", None),
            (typed, "both wrong", "a cyst"),
            (question, "bad question", None),
            (image, "bad image", None),
            (kept, "equal", None),
            (unsure, "cannot tell", None),
        ]
        for number, (task, choice, text) in enumerate(votes, 1):
            log.append(vote_on(task, choice, reader="anna", number=number, correct_answer=text))
    made = learned_last(tmp_path)
    before, after = said_in(plain), said_in(made)
    gone = {key for key in before if key[0] == image.images} | {(row.images, row.question) for row in (wrong, question)}
    changed = {(turned.images, turned.question), (typed.images, typed.question)} - gone
    assert before.keys() - after.keys() == gone
    assert {key for key in after if after[key] != before[key]} == changed
    assert after[turned.images, turned.question] == turned.texts[0 if verdict[turned.id] == "second" else 1]
    assert after[typed.images, typed.question] == "a cyst"
    lineage = {row.lineage.answers_id: row.lineage for row in read_records(made.folder, "lineage", ConversationLineage)}
    assert {key: (row.readers, row.correction) for key, row in lineage.items()} == {
        turned.answers_id: (("anna",), False),
        typed.answers_id: (("anna",), True),
    }
    assert lineage[turned.answers_id].judgment_id == turned.judgment_id
    assert made.dropped["readers: both wrong"] == 1
    assert made.dropped["readers: bad question"] == 1
    assert made.dropped["readers: bad image"] == len([key for key in gone if key[0] == image.images])
    assert (made.voted, made.manifest.measures["typed"]) == (2, 1)
    assert made.refused_by_readers == len(gone)


def test_without_a_vote_that_stands_what_is_learned_last_is_the_same_to_the_byte(tmp_path: Path) -> None:
    tasks = voted(tmp_path)
    plain = learned_last(tmp_path, votes=False, to="plain")
    with closing(VoteLog(tmp_path / "review", "anna")) as log:
        vote = vote_on(tasks[0], "both wrong", reader="anna", number=1)
        log.append(vote)
        log.append(vote.model_copy(update={"id": "undo", "number": 2, "event": "undo", "choice": None}))
    assert voted_folders([tmp_path / "review", tmp_path / "nothing"]) == []
    made = learned_last(tmp_path)
    assert made.manifest.outputs == plain.manifest.outputs
    assert (made.manifest.inputs, made.manifest.measures) == (plain.manifest.inputs, plain.manifest.measures)
    assert made.dropped == plain.dropped


def test_a_vote_holds_in_rounds_in_which_nobody_voted(tmp_path: Path) -> None:
    """The expert calls the same answer to the same question right again in the next round."""
    tasks = voted(tmp_path / "1")
    task = tasks[0]
    asked = task.images, task.question
    again = answers_of(task.question, (task.texts[0 if task.verdict == "first" else 1], "something else"), image=task.images[0])
    write_answers(tmp_path / "2" / "answer", [again])
    write_judgments(tmp_path / "2" / "judge", [judgment_on(again, (1.0, 0.0))])
    folders = [tmp_path / "1", tmp_path / "2"]
    (tmp_path / "made").mkdir()
    assert asked in said_in(learned_last(tmp_path / "made", rounds=folders, to="before"))
    with closing(VoteLog(tmp_path / "1" / "review", "anna")) as log:
        log.append(vote_on(task, "both wrong", reader="anna", number=1))
    made = learned_last(tmp_path / "made", rounds=folders, to="after")
    assert asked not in said_in(made)
    assert (made.dropped["readers: wrong answer"], made.dropped["readers: both wrong"]) == (1, 1)


def test_new_votes_are_another_input_of_what_is_learned_last(tmp_path: Path) -> None:
    tasks = voted(tmp_path)
    learned_last(tmp_path)
    with closing(VoteLog(tmp_path / "review", "anna")) as log:
        log.append(vote_on(tasks[0], "both wrong", reader="anna", number=1))
    with pytest.raises(ConflictError, match="votes 1"):
        learned_last(tmp_path)


def test_an_experts_correction_stays_where_readers_hold_both_answers_to_be_wrong_too() -> None:
    corrected = JUDGMENT.model_copy(update={"scores": (0.0, 0.0, 0.0), "correction": "middle"})
    answers = ANSWERS.model_copy(update={"id": "a"})
    said = Decision(first=0, second=1, choice="both wrong", verdict="equal", correct_answer=None, readers=("anna",))
    found = voted_answers([Decisions({"a": said})], [(answers, corrected)])
    assert found.overruled == {"a": "readers: both wrong"}
    assert found.learned == {}
    assert found.refuses(answers, "Left.")
    assert not found.refuses(answers, "middle")
