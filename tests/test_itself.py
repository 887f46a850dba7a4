"""No expert: the votes of the policy's own answers, when they count, and what is watched."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from helpers.judging import answers_of, judgments_of, write_answers
from stllava.config import ItselfOptions, JudgeOptions, PairOptions
from stllava.data.prepare import prepare
from stllava.errors import NothingLeftError, StllavaError
from stllava.experts.answer_pairs import pairs_of
from stllava.experts.expert import Verdict
from stllava.experts.rules.itself import ItselfJudge, LabelledVote, Thresholds, Winner, labelled_votes, thresholds_of, winner_of
from stllava.experts.rules.reference import ReferenceJudge
from stllava.experts.vote_monitor import VoteMonitor, takeover
from stllava.recipe import RunOptions
from stllava.records import Answers, Question, Sample
from stllava.rounds import Rounds
from stllava.rundir import RunDir
from stllava.stages.calibrate import ask_labelled
from stllava.stages.judge import judge
from stllava.store import read_records, to_jsonl

JUDGE = ItselfJudge(Thresholds(0.6))
QUESTION = "Is there a nodule?"


def sample(question: str, target: str, *, image: str = "scan.png") -> Sample:
    return Sample(id=f"{image} {question}", image=image, question=question, targets=(target,), kind="open", split="validation")


def scores(*completions: str) -> tuple[float, ...] | None:
    return JUDGE.judge(answers_of(QUESTION, completions)).scores


def test_answers_that_say_what_most_say_are_right_and_all_others_wrong() -> None:
    assert scores("Yes.", "yes", "No", "yes, there is") == (1, 1, 0, 1)
    assert scores("The left lung", "left lung!", "  LEFT lung", "the left lung", "liver") == (1, 1, 1, 1, 0)


@pytest.mark.parametrize(
    "completions",
    [("yes", "no"), ("yes", "yes", "no", "no"), ("yes", "yes", "no", "left"), ("", "", "", "yes"), ("", "?", "…")],
    ids=["split", "tie", "too few", "empty answers count among all", "nothing is said"],
)
def test_without_a_clear_winner_it_abstains_and_says_why(completions: tuple[str, ...]) -> None:
    verdict = JUDGE.judge(answers_of(QUESTION, completions))
    assert (verdict.scores, verdict.cause) == (None, "abstained")
    assert verdict.reason


def test_where_all_agree_all_are_right_and_no_pair_comes_of_it(tmp_path: Path) -> None:
    answers = answers_of(QUESTION, ("yes", "Yes.", "yes"))
    judge(JudgeOptions(expert="itself"), answers=write_answers(tmp_path / "answers", [answers]), to=tmp_path / "to")
    judgment = judgments_of(tmp_path / "to")[answers.id]
    assert judgment.scores == (1.0, 1.0, 1.0)
    assert pairs_of(answers, judgment, options=PairOptions()) == "tie"


def test_an_answer_that_was_cut_off_votes_for_nothing() -> None:
    answers = answers_of(QUESTION, ("no", "no", "yes", "yes", "yes it"))
    cut = answers.model_copy(update={"finished": (True, True, False, False, False)})
    assert winner_of(answers) == Winner("yes", 0.6)
    assert winner_of(cut) == Winner("no", 0.4)


def votes(opening: str, agreement: float, *, right: int, wrong: int) -> list[LabelledVote]:
    return [LabelledVote(opening, agreement, number < right) for number in range(right + wrong)]


def test_the_threshold_is_the_smallest_agreement_that_is_right_often_enough() -> None:
    given = [*votes("a", 0.625, right=6, wrong=4), *votes("a", 0.75, right=9, wrong=1), *votes("a", 1.0, right=10, wrong=0)]
    assert thresholds_of(given, options=ItselfOptions(min_precision=0.9)).overall == 0.75
    assert thresholds_of(given, options=ItselfOptions(min_precision=0.8)).overall == 0.625
    assert thresholds_of(given, options=ItselfOptions(min_precision=0.8, min_agreement=0.7)).overall == 0.75
    assert thresholds_of(given, options=ItselfOptions(min_precision=0.99)).overall == 1.0


def test_labelled_questions_of_which_none_has_a_winner_make_no_agreement_precise_enough() -> None:
    judge = ItselfJudge(thresholds_of([], options=ItselfOptions()))
    assert judge.judge(answers_of(QUESTION, ("yes", "yes"))).scores is None
    assert "no agreement is precise enough by 0 labelled questions" in judge.method


def test_an_agreement_that_few_questions_reach_is_not_believed() -> None:
    given = [*votes("a", 0.75, right=0, wrong=20), *votes("a", 1.0, right=9, wrong=0)]
    assert thresholds_of(given, options=ItselfOptions()).overall == math.inf


def test_kinds_of_question_with_enough_labels_have_a_threshold_of_their_own() -> None:
    given = [
        *votes("is there a", 0.625, right=30, wrong=0),
        *votes("how large is", 1.0, right=10, wrong=30),
        *votes("where is the", 0.75, right=20, wrong=0),
    ]
    found = thresholds_of(given, options=ItselfOptions(min_precision=0.6))
    assert found.by_opening == {"is there a": 0.625, "how large is": math.inf}
    assert found.of("Is there a mass?") == 0.625
    assert found.of("how LARGE is it?") == math.inf
    assert found.of("where is the mass?") == found.overall == 0.625
    judge_of = ItselfJudge(found)
    assert judge_of.judge(answers_of("How large is it?", ("big", "big", "big"))).cause == "abstained"
    assert "no agreement is precise enough" in judge_of.judge(answers_of("How large is it?", ("big", "big"))).reason
    assert "2 kinds of question have a threshold of their own, 1 of them get no verdict" in judge_of.method


def test_votes_on_labelled_questions_are_right_where_most_say_the_known_answer() -> None:
    labels = ReferenceJudge([sample("Is it big?", "yes"), sample("Where is it?", "left lung")])
    given = [
        answers_of("Is it big?", ("Yes, it is", "yes", "no")),
        answers_of("Where is it?", ("right lung", "right lung", "left lung")),
        answers_of("Where is it?", ("left", "right")),
        answers_of("Nobody asked this?", ("left", "left")),
    ]
    found = labelled_votes(given, labels)
    assert [(row.opening, row.right) for row in found] == [("is it big?", True), ("where is it?", False)]


def test_other_thresholds_are_another_rule() -> None:
    hashes = {ItselfJudge(Thresholds(*given)).prompt_hash for given in ((0.6,), (0.7,), (math.inf,), (0.6, {"is it": 0.8}))}
    assert len(hashes) == 4


def test_labelled_questions_are_each_asked_once_in_an_order_of_chance(tmp_path: Path) -> None:
    file = tmp_path / "validation.jsonl"
    given = [sample(f"Is it {word}?", "yes", image=f"{word}.png") for word in ("big", "small", "round", "left", "dark")]
    disagreeing = [sample("Is it old?", answer, image="old.png").model_copy(update={"id": answer}) for answer in ("yes", "no")]
    choice = sample("Which?", "a").model_copy(update={"choices": ("a", "b")})
    file.write_text(to_jsonl([*given, *disagreeing, choice]))
    asked = {}
    for number in (3, 9):
        to = tmp_path / str(number)
        assert ask_labelled(JudgeOptions(), samples=file, to=to, number=number).questions == min(number, 5)
        asked[number] = [row.text for row in read_records(to, "questions", Question)]
    assert asked[9][:3] == asked[3]
    assert sorted(asked[9]) == sorted(row.question for row in given)


def write_labelled(folder: Path, *, right: bool) -> tuple[Path, Path]:
    """Forty labelled questions, and answers to them of which six of eight agree."""
    asked = [sample(f"Is there a {number}?", "yes", image=f"{number}.png") for number in range(40)]
    labels = folder / "validation.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    labels.write_text(to_jsonl(asked))
    words = ("yes", "no") if right else ("no", "yes")
    given = [answers_of(row.question, (words[0],) * 6 + (words[1],) * 2, image=row.image) for row in asked]
    return labels, write_answers(folder / "answers", given)


def test_the_judge_learns_from_labelled_answers_how_far_it_can_be_trusted(tmp_path: Path) -> None:
    answers = write_answers(tmp_path / "answers", [answers_of("Is there a mass?", ("yes",) * 6 + ("no",) * 2)])
    labels, labelled = write_labelled(tmp_path / "right", right=True)
    options = JudgeOptions(expert="itself")
    judged = judge(options, answers=answers, to=tmp_path / "trusted", labels=labels, labelled_answers=labelled)
    assert judged.verdicts == 1
    assert "at least 75% by 40 labelled questions" in judged.notes[0]
    labels, labelled = write_labelled(tmp_path / "wrong", right=False)
    with pytest.raises(NothingLeftError, match="no agreement is precise enough"):
        judge(options, answers=answers, to=tmp_path / "not", labels=labels, labelled_answers=labelled)
    with pytest.raises(StllavaError, match="labels without labelled_answers"):
        judge(options, answers=answers, to=tmp_path / "half", labels=labels)


def test_what_a_budget_buys_costs_nothing_here() -> None:
    with pytest.raises(ValueError, match="verdicts cost nothing"):
        JudgeOptions(expert="itself", budget=10)


def test_its_true_error_is_measured_where_references_are_given(tmp_path: Path) -> None:
    given = [answers_of("Is it big?", ("yes", "yes", "no"), image=f"{number}.png") for number in range(12)]
    truth = tmp_path / "references.jsonl"
    known = [sample("Is it big?", "no" if number < 3 else "yes", image=f"{number}.png") for number in range(10)]
    truth.write_text(to_jsonl(known))
    folder = write_answers(tmp_path / "answers", given)
    measures = judge(JudgeOptions(expert="itself"), answers=folder, truth=truth, to=tmp_path / "to").manifest.measures
    assert (measures["true_error"], measures["true_error_n"]) == (0.3, 10)
    assert measures["true_error_low"] < 0.3 < measures["true_error_high"]
    alone = judge(JudgeOptions(expert="itself"), answers=folder, to=tmp_path / "alone").manifest.measures
    assert "true_error" not in alone
    assert judgments_of(tmp_path / "to") == judgments_of(tmp_path / "alone")


def watched(given: Sequence[Answers]) -> dict[str, float]:
    """What the monitor counts of these votes."""
    monitor = VoteMonitor()
    nothing = Verdict(scores=None, cause="abstained", reason="")
    assert [answers for answers, _ in monitor.watch((answers, nothing) for answers in given)] == list(given)
    return monitor.measures


def test_the_monitor_counts_agreement_winners_and_yes() -> None:
    asked = [answers_of("Is it big?", ("yes", "yes", "yes"), image=f"{number}.png") for number in range(9)]
    asked += [answers_of("is it  BIG?", ("no", "no", "yes"), image=f"{number}.png") for number in range(9, 12)]
    asked += [answers_of("Is it rare?", ("no", "no", "yes"))]
    assert watched(asked) == {
        "unanimous_share": 9 / 13,
        "commonest_winner_share": 9 / 12,
        "winners_a_text": 2.0,
        "yes_share": 9 / 13,
    }


def test_a_run_is_told_when_one_answer_takes_over() -> None:
    first = {"commonest_winner_share": 0.7, "yes_share": 0.5}
    assert takeover(first, first) is None
    assert takeover(first, {"commonest_winner_share": 0.75, "yes_share": 0.6}) is None
    assert "the commonest winner of a question text wins 85.0%" in str(takeover(first, {"commonest_winner_share": 0.85}))
    assert "No takes over: 20.0%" in str(takeover(first, {"commonest_winner_share": 0.7, "yes_share": 0.2}))
    assert "Yes takes over" in str(takeover(first, {"commonest_winner_share": 0.7, "yes_share": 0.71}))
    assert takeover({}, {}) is None


def test_a_measure_that_is_missing_is_no_takeover_and_the_first_that_there_is_counts(tmp_path: Path) -> None:
    known = {"commonest_winner_share": 0.9, "yes_share": 0.9}
    assert takeover({}, known) is None
    assert takeover(known, {}) is None
    data = {"kind": "phantom", "labelled": 2, "unlabelled": 2, "validation": 2, "test": 2, "size": 64}
    options = RunOptions.model_validate({"name": "x", "data": data, "judge": {"expert": "itself"}})
    told: list[str] = []
    loop = Rounds(options, RunDir(tmp_path), prepare(options.data, seed=0, to=tmp_path / "data"), told, [], {})
    for number, measures in enumerate(({"yes_share": 0.5}, {"commonest_winner_share": 0.6}, {"commonest_winner_share": 0.75})):
        loop.tell_votes(f"round-{number + 1}", measures)
    assert told == [
        "round-3: One answer takes over: the commonest winner of a question text wins 75.0% of the questions, at first 60.0%."
    ]
