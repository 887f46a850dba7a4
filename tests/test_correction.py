"""An expert that corrects: what it is asked, how its correction is read, and what is learned from it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.judging import answers_of, judgments_of, write_answers
from stllava.config import JudgeOptions, PairOptions, ScriptedOptions
from stllava.data.conversations import conversation
from stllava.data.phantom.truth import make_truth
from stllava.experts.answer_pairs import pairs_of
from stllava.experts.model.ordering import aggregate
from stllava.experts.model.rubric import Mode, load_rubric
from stllava.experts.model.verdict_parser import ParsedReply, parse_scores, parse_verdict
from stllava.experts.rules.oracle import Oracle
from stllava.experts.rules.reference import ReferenceJudge
from stllava.records import Conversation, Judgment, Message, Preference, Sample
from stllava.stages.final_data import final_data
from stllava.stages.judge import judge
from stllava.stages.pair import pair
from stllava.store import read_records

WRONG = answers_of("What is seen?", ("a fracture", "a mass", "a mass"))
ALL = PairOptions(pairs="all", max_similarity=0.5, min_chosen_score=0.3)
EXTREMES = PairOptions(max_similarity=0.5)


def judgment(correction: str | None, *scores: float) -> Judgment:
    return Judgment(
        id="j", answers_id=WRONG.id, scores=scores, cause=None, reason="", expert="e", prompt_hash="h", correction=correction
    )


def pairs(judged: Judgment, options: PairOptions) -> list[Preference]:
    made = pairs_of(WRONG, judged, options=options)
    return [] if isinstance(made, str) else made


@pytest.mark.parametrize("mode", ["scores", "pairwise"])
@pytest.mark.parametrize("structured", [True, False], ids=["json", "lines"])
def test_only_an_expert_that_is_to_correct_is_asked_for_corrections(mode: Mode, structured: bool) -> None:
    plain, correcting = (load_rubric(None, mode=mode, structured=structured, correct=correct) for correct in (False, True))
    assert "orrection" not in plain.write("What is seen?", ["a", "b"], [])
    assert "orrection" in correcting.write("What is seen?", ["a", "b"], [])
    assert plain.hash != correcting.hash
    assert "correction" not in plain.schema(2)["properties"]  # type: ignore[operator]
    assert list(correcting.schema(2)["properties"])[1] == "correction"  # type: ignore[arg-type]


READ = [
    ('{"reason": "none", "correction": "a nodule", "scores": [2, 3]}', "a nodule"),
    ('{"reason": "none", "Corrected answer": " a  nodule\\n", "scores": [2, 3]}', "a nodule"),
    ('{"reason": "none", "correction": "", "scores": [2, 3]}', None),
    ('{"reason": "none", "correction": null, "scores": [2, 3]}', None),
    ('{"reason": "none", "correction": "None.", "scores": [2, 3]}', None),
    ('{"reason": "none", "correction": "a", "correct_answer": "b", "scores": [2, 3]}', None),
    ('{"reason": "none", "scores": [2, 3]}', None),
    ("Neither is right.\nCorrection: a nodule\nScores: 2, 3", "a nodule"),
    ('Neither is right.\n- **Correction:** "a nodule"\n\n**Scores: 2, 3**', "a nodule"),
    ("Correction: a mass\nNo, better:\nCorrection: A nodule in the left lung.\nScores: 2, 3", "A nodule in the left lung."),
    ("Neither is right.\nCorrection: none\nScores: 2, 3", None),
    ("Neither is right; the correction would be a nodule.\nScores: 2, 3", None),
    (f"Correction: {'a ' * 2000}\nScores: 2, 3", None),
]


@pytest.mark.parametrize(("reply", "correction"), READ, ids=range(len(READ)))
def test_a_correction_is_read_beside_its_scores(reply: str, correction: str | None) -> None:
    assert parse_scores(reply, 2).scores == (2, 3)
    assert parse_scores(reply, 2).correction == correction


def test_a_correction_is_read_beside_a_verdict_and_never_without_one() -> None:
    assert parse_verdict("Correction: a nodule\nVerdict: 1").correction == "a nodule"
    assert parse_verdict('{"reason": "", "correction": "a nodule", "verdict": "tie"}').correction == "a nodule"
    assert parse_verdict("Correction: a nodule\nVerdict: abstain") == ParsedReply(
        None, "abstained", "Correction: a nodule\nVerdict: abstain"
    )


PIECES = [
    "Correction:",
    "correction: ",
    "\n",
    "a nodule",
    "*",
    '"',
    "none",
    "{",
    "}",
    '"correction": "x"',
    "Scores: 1, 2",
    "\u2028",
    " ",
]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.integers(1, 4))
def test_whatever_a_model_says_a_correction_is_one_line_or_none(text: str, count: int) -> None:
    for parsed in (parse_verdict(text), parse_scores(text, count), parse_verdict(f"Correction: {text}\nVerdict: 1")):
        assert parsed.correction is None or (parsed.correction and "\n" not in parsed.correction)


def test_the_first_correction_of_those_that_saw_the_best_answer_counts() -> None:
    replies = [
        ((0, 1), ParsedReply((1.0, 0.0), None, "", "of another pair")),
        ((0, 2), ParsedReply((0.0, 1.0), None, "")),
        ((1, 2), ParsedReply((0.0, 1.0), None, "", "a nodule")),
    ]
    assert aggregate(("a", "b", "c"), replies, mode="pairwise").correction == "a nodule"


def test_an_answer_that_its_own_score_calls_right_is_not_corrected() -> None:
    for best, correction in ((7.0, "a nodule"), (8.0, None)):
        replies = [((0, 1), ParsedReply((best, 1.0), None, "", "a nodule"))]
        assert aggregate(("a", "b"), replies, mode="scores").correction == correction


def test_a_correction_is_chosen_against_the_best_of_the_wrong_answers() -> None:
    [made] = pairs(judgment("a nodule", 0.2, 0.4, 0.4), EXTREMES)
    assert (made.chosen, made.rejected, made.margin) == ("a nodule", "a mass", 0.6)
    assert made.lineage.correction
    assert made.reference is None


def test_a_correction_is_chosen_where_all_answers_tie() -> None:
    [made] = pairs(judgment("a nodule", 0, 0, 0), ALL)
    assert (made.chosen, made.rejected, made.margin) == ("a nodule", "a mass", 1.0)


def test_beside_a_correction_the_other_pairs_stay() -> None:
    made = pairs(judgment("a nodule", 0.2, 0.4, 0.4), ALL)
    plain = pairs(judgment(None, 0.2, 0.4, 0.4), ALL)
    assert made[1:] == plain
    assert not any(one.lineage.correction for one in made[1:])


@pytest.mark.parametrize("correction", [None, "", "A mass."], ids=["none", "empty", "given already"])
def test_what_the_policy_said_itself_is_no_correction(correction: str | None) -> None:
    assert pairs(judgment(correction, 0.2, 0.4, 0.4), ALL) == pairs(judgment(None, 0.2, 0.4, 0.4), ALL)


def test_records_without_a_correction_are_written_as_before() -> None:
    assert "correction" not in judgment(None, 0.2, 0.4, 0.4).model_dump_json()
    made = pairs(judgment(None, 0.2, 0.4, 0.4), ALL)
    assert "correction" not in made[0].model_dump_json()


def test_rule_experts_correct_where_no_answer_is_right() -> None:
    sample = Sample(
        id="s", image="scan.png", question="What is seen?", targets=("a nodule", "nodule"), kind="open", split="train"
    )
    assert ReferenceJudge([sample]).judge(WRONG).correction == "a nodule"
    right = answers_of("What is seen?", ("a nodule", "a mass"))
    assert ReferenceJudge([sample]).judge(right).correction is None


def test_the_oracle_corrects_with_the_right_answer() -> None:
    for truth in (make_truth(0, index, "unlabelled") for index in range(12)):
        asked = answers_of("Which imaging modality was used?", ("a shoe",), image=truth.path)
        verdict = Oracle([truth]).judge(asked)
        assert verdict.correction is not None
        again = answers_of(asked.question, (verdict.correction,), image=truth.path)
        assert Oracle([truth]).judge(again).scores == (1.0,)
        assert Oracle([truth]).judge(again).correction is None


@pytest.mark.parametrize("mode", ["scores", "pairwise"])
def test_a_correction_goes_from_the_reply_to_the_pair_and_the_last_training(mode: Mode, tmp_path: Path) -> None:
    answers = write_answers(tmp_path / "answers", [WRONG])
    options = JudgeOptions(expert="scripted", scripted=ScriptedOptions(prefer=("nodule",)), mode=mode, correct=True)
    judge(options, answers=answers, to=tmp_path / "judgments")
    assert judgments_of(tmp_path / "judgments")[WRONG.id].correction == "nodule"
    made = pair(PairOptions(), answers=answers, judgments=tmp_path / "judgments", to=tmp_path / "pairs")
    assert made.manifest.measures["corrected_pairs"] == 1
    assert [one.chosen for one in read_records(tmp_path / "pairs", "preferences", Preference)] == ["nodule"]
    labels = tmp_path / "labels.jsonl"
    turns = (Message(role="user", content="Is it a scan?"), Message(role="assistant", content="yes"))
    labels.write_text(conversation(("scan.png",), turns).model_dump_json() + "\n")
    to = tmp_path / "final"
    final_data(PairOptions(), conversations=labels, rounds=[(answers, tmp_path / "judgments")], to=to)
    _, learned = read_records(to, "conversations", Conversation)
    assert [turn.content for turn in learned.messages] == ["What is seen?", "nodule"]


def test_an_expert_that_is_not_to_correct_says_nothing_of_what_is_right(tmp_path: Path) -> None:
    answers = write_answers(tmp_path / "answers", [WRONG])
    options = JudgeOptions(expert="scripted", scripted=ScriptedOptions(prefer=("mass",)))
    judge(options, answers=answers, to=tmp_path / "judgments")
    assert judgments_of(tmp_path / "judgments")[WRONG.id].correction is None
