"""A paid verdict stands before the policy's own vote on the same question, whichever of them came first."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from helpers.judging import answers_of, judgment_on, judgments_of, write_answers, write_judgments
from stllava.config import DpoOptions, ItselfOptions, JudgeOptions, PairOptions, ScriptedOptions
from stllava.errors import StllavaError
from stllava.experts.answer_pairs import pairs_of
from stllava.experts.judged_answers import asked, questions_judged
from stllava.records import Conversation, Preference
from stllava.stages.distill import read_judged
from stllava.stages.dpo import dpo, latest
from stllava.stages.final_data import final_data
from stllava.stages.judge import judge
from stllava.stages.pair import pair
from stllava.store import read_records

QUESTION = "What is seen?"
PAID = (("edema", "effusion", "effusion", "effusion"), (1.0, 0.0, 0.0, 0.0), "chat")
VOTE = (("edema", "effusion", "effusion", "odd"), (0.0, 1.0, 1.0, 0.0), "itself")
ALL_WRONG = (("edema", "effusion", "effusion", "mass"), (0.0, 0.0, 0.0, 0.0), "chat")
Said = tuple[tuple[str, ...], tuple[float, ...], str]
OPTIONS = PairOptions(balance=False, max_denial_share=1)


def rounds_of(folder: Path, said: Sequence[Said]) -> list[tuple[Path, Path]]:
    """A round for each of these verdicts on one question, beside a pair that the expert decides in each."""
    rounds = []
    for number, (texts, scores, expert) in enumerate(said):
        given = [answers_of(QUESTION, texts), answers_of(f"Is it {number}?", ("no", "yes"))]
        answers = write_answers(folder / f"answer-{number}", given)
        verdicts = [judgment_on(given[0], scores, expert=expert), judgment_on(given[1], (0.0, 1.0))]
        rounds.append((answers, write_judgments(folder / f"judge-{number}", verdicts)))
    return rounds


CASES = pytest.mark.parametrize(
    ("said", "chosen"),
    [
        ([PAID, VOTE], "edema"),
        ([VOTE, PAID], "edema"),
        ([VOTE, PAID, VOTE], "edema"),
        ([ALL_WRONG, VOTE], None),
        ([VOTE, ALL_WRONG], None),
        ([VOTE, VOTE], "effusion"),
        ([VOTE], "effusion"),
        ([PAID, (("edema", "effusion"), (0.0, 1.0), "chat")], "effusion"),
    ],
    ids=["later vote", "earlier vote", "between", "all wrong", "later all wrong", "votes alone", "one vote", "two verdicts"],
)


@CASES
def test_the_last_training_believes_a_verdict_before_a_vote(
    said: list[Said], chosen: str | None, tmp_path: Path, phantoms: Path
) -> None:
    labels = phantoms / "conversations.jsonl"
    final_data(OPTIONS, conversations=labels, rounds=rounds_of(tmp_path, said), to=tmp_path / "final")
    learned = read_records(tmp_path / "final", "conversations", Conversation)
    assert [row.messages[1].content for row in learned if row.messages[0].content == QUESTION] == ([chosen] if chosen else [])


@CASES
def test_pairs_of_a_verdict_are_learned_before_those_of_a_vote(said: list[Said], chosen: str | None, tmp_path: Path) -> None:
    rounds = rounds_of(tmp_path, said)
    for number, (answers, judgments) in enumerate(rounds):
        pair(OPTIONS, answers=answers, judgments=judgments, to=tmp_path / f"pair-{number}")
    folders = [tmp_path / f"pair-{number}" for number in range(len(rounds))]
    judged = {asked(("scan.png",), QUESTION)} if any(expert == "chat" for _, _, expert in said) else set()
    learned = [row for row in latest(folders, judged=judged) if row.prompt[-1].content == QUESTION]
    assert [row.chosen for row in learned] == ([chosen] if chosen else [])
    if ALL_WRONG not in said:  # A verdict that made no pair is known from the judgments alone.
        assert sorted(row.id for row in latest(folders)) == sorted(row.id for row in latest(folders, judged=judged))


def test_a_question_in_other_letters_is_the_same_question(tmp_path: Path, phantoms: Path) -> None:
    for number, order in enumerate(((QUESTION, "what is  SEEN?"), ("what is  SEEN?", QUESTION))):
        folder, rounds = tmp_path / str(number), []
        for place, question in enumerate(order):
            texts, scores, expert = PAID if question == QUESTION else VOTE
            given = answers_of(question, texts)
            answers = write_answers(folder / f"answer-{place}", [given])
            judgments = write_judgments(folder / f"judge-{place}", [judgment_on(given, scores, expert=expert)])
            pair(OPTIONS, answers=answers, judgments=judgments, to=folder / f"pair-{place}")
            rounds.append((answers, judgments))
        assert questions_judged(rounds) == {asked(("scan.png",), QUESTION)}
        assert [row.chosen for row in latest([folder / "pair-0", folder / "pair-1"])] == ["edema"]
        labels = phantoms / "conversations.jsonl"
        assert final_data(OPTIONS, conversations=labels, rounds=rounds, to=folder / "final").right == 1


def test_a_pair_says_that_a_vote_made_it_and_keeps_its_id() -> None:
    given = answers_of(QUESTION, VOTE[0])
    judgment = judgment_on(given, VOTE[1], expert="itself")
    voted, paid = (pairs_of(given, row, options=OPTIONS) for row in (judgment, judgment.model_copy(update={"expert": "chat"})))
    assert not isinstance(voted, str)
    assert not isinstance(paid, str)
    assert (voted[0].lineage.own_vote, paid[0].lineage.own_vote) == (True, False)
    assert voted[0].id == paid[0].id
    assert "own_vote" not in paid[0].model_dump_json()
    assert Preference.model_validate_json(voted[0].model_dump_json()) == voted[0]


def test_a_judge_learns_a_verdict_before_a_vote_on_the_same_answer(tmp_path: Path) -> None:
    for number, said in enumerate(([PAID, VOTE], [VOTE, PAID])):
        _, rows = read_judged(rounds_of(tmp_path / str(number), said), threshold=0.5)
        right = {row.text: row.right for row in rows if row.answers.question == QUESTION}
        assert right == {"edema": True, "effusion": False, "odd": False}


def test_nobody_votes_on_a_question_that_the_expert_has_judged_with_other_answers(tmp_path: Path) -> None:
    first = [answers_of(QUESTION, PAID[0])]
    before = write_answers(tmp_path / "answer-1", first)
    options = JudgeOptions(
        expert="scripted",
        scripted=ScriptedOptions(prefer=("edema",)),
        budget=1,
        consensus=True,
        itself=ItselfOptions(min_agreement=0.5),
    )
    judge(options, answers=before, to=tmp_path / "judge-1")
    again = answers_of(QUESTION, VOTE[0])
    split = answers_of("What is that?", ("mass", "edema", "nodule", "normal"), image="other.png")
    agreed = answers_of("Where is it?", ("left", "left", "left", "right"), image="third.png")
    answers = write_answers(tmp_path / "answer-2", [again, split, agreed])
    judge(options, answers=answers, to=tmp_path / "judge-2", earlier=[(before, tmp_path / "judge-1")])
    assert {key: row.expert for key, row in judgments_of(tmp_path / "judge-2").items()} == {
        split.id: "scripted",
        agreed.id: "itself",
    }


def test_verdicts_without_their_answers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StllavaError, match="0 folders of answers and 1 of judgments"):
        dpo(
            DpoOptions(replay=0),
            policy=tmp_path,
            preferences=tmp_path / "pair",
            images=tmp_path,
            to=tmp_path / "dpo",
            judgments=[tmp_path / "judge"],
        )
