"""The whole loop on a tiny model: what a run goes on from, and what ends it."""

import hashlib
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from conftest import TINY
from helpers.reviewing import vote_on
from stllava import rounds
from stllava.config import JudgeOptions, ReviewOptions
from stllava.errors import ConflictError, NothingLeftError, StllavaError
from stllava.pipeline import run
from stllava.recipe import RunOptions
from stllava.records import Answers, Conversation, ConversationLineage, ExpertAudit, Outcome, Preference, Question
from stllava.report.run_files import read_run_files
from stllava.report.verdicts_spent import verdicts_spent
from stllava.review.round_files import find_round
from stllava.review.tasks import draw_tasks
from stllava.review.vote_log import VoteLog
from stllava.round_budget import RoundBudget, has_less
from stllava.rundir import RunDir, round_name
from stllava.stages.calibrate import error_of
from stllava.stages.judge import judge
from stllava.stages.results import JudgeResult
from stllava.store import AUDITED, EXCHANGES, MANIFEST, Stage, read_manifest, read_record, read_records

RATES = {"language": 3e-3, "projector": 3e-3, "vision": 3e-3}
TAUGHT = {"epochs": 40, "batch_size": 4, "save_steps": 0, "learning_rate": RATES}
COMPARED = ("*.jsonl", "*.safetensors", "outcome.json")


def options(**changed: object) -> RunOptions:
    """A loop of some seconds."""
    values: dict[str, object] = {
        "name": "tiny",
        "data": {"kind": "phantom", "labelled": 12, "unlabelled": 8, "validation": 3, "test": 3, "size": 64},
        "small": TINY.model_dump(),
        "sft": TAUGHT,
        "ask": {
            "questions": 4,
            "sampling": {"temperature": 0.6, "max_new_tokens": 16},
            "description_sampling": {"max_new_tokens": 16},
        },
        "answer": {"num_answers": 6, "sampling": {"temperature": 2.0, "max_new_tokens": 8}},
        "judge": {"expert": "scripted", "scripted": {"prefer": ["no", "yes", "ct", "mr", "x", "left", "right", "chest"]}},
        "pair": {"balance": False, "margin": 0.01, "min_chosen_score": 0.0, "max_denial_share": 1.0},
        "dpo": {"epochs": 1, "batch_size": 4, "save_steps": 0, "learning_rate": dict.fromkeys(RATES, 1e-3)},
        "evaluate": {"sampling": {"temperature": 0, "max_new_tokens": 8}},
        "rounds": 1,
        "patience": 9,
    }
    return RunOptions.model_validate(values | changed)


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file that a run comes to, but for those that hold times."""
    files = sorted({path for pattern in COMPARED for path in folder.rglob(pattern) if path.parent.name != EXCHANGES})
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one round, with a last step of learning all that was found right."""
    to = tmp_path_factory.mktemp("whole") / "run"
    run(options(final_sft=TAUGHT | {"epochs": 1}), to=to)
    return to


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    """The finished run, to be changed, in a folder of another name."""
    return Path(shutil.copytree(whole, tmp_path / "moved" / "run"))


@pytest.mark.slow
def test_a_finished_run_goes_on_with_more_rounds_and_is_then_what_it_would_have_been(copied: Path, tmp_path: Path) -> None:
    longer = options(final_sft=TAUGHT | {"epochs": 1}, rounds=2, name="longer")
    outcome = run(longer, to=copied)
    assert outcome.policies == ("sft", "round-1", "round-2", "final")
    assert outcome == run(longer, to=tmp_path / "anew")
    assert contents(copied) == contents(tmp_path / "anew")
    assert read_run_files(copied).options.rounds == 2
    assert run(longer, to=copied) == outcome


@pytest.mark.slow
def test_a_finished_run_is_given_another_name_and_fewer_baselines_without_any_stage_done_again(copied: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in copied.rglob("*/manifest.json")}
    renamed = run(options(final_sft=TAUGHT | {"epochs": 1}, name="renamed", baselines=False), to=copied)
    assert renamed.name == read_run_files(copied).outcome.name == "renamed"
    assert renamed.baselines == ()
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*/manifest.json")} == times


@pytest.mark.slow
def test_an_extension_that_changes_what_is_there_is_refused_and_the_run_stays_finished(copied: Path) -> None:
    before = contents(copied)
    given = options(final_sft=TAUGHT | {"epochs": 1})
    for changed in (given.model_copy(update={"seed": 1}), options(final_sft=None, pair={"margin": 0.7})):
        with pytest.raises(ConflictError, match=r"seed was 0, now 1|pair\.balance was false, now true"):
            run(changed, to=copied)
    assert (copied / MANIFEST).is_file()
    assert contents(copied) == before
    assert run(given, to=copied) == Outcome.model_validate_json((copied / "outcome.json").read_bytes())


@pytest.mark.slow
def test_a_finished_run_says_what_was_lost_of_its_stages_and_does_nothing_unasked(
    copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (copied / "sft" / "model.safetensors").unlink()
    outcome = run(options(final_sft=TAUGHT | {"epochs": 1}), to=copied)
    assert outcome.policies == ("sft", "round-1", "final")
    assert "sft/model.safetensors is gone. To have that stage done again, delete" in caplog.text
    assert not (copied / "sft" / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["outcome.json", "report.html", "sft/model.safetensors", "round-1/ask/questions.jsonl"])
def test_what_is_lost_of_a_finished_run_is_made_again(name: str, copied: Path) -> None:
    before = contents(copied)
    (copied / name).unlink()
    if "/" in name:
        (copied / MANIFEST).unlink()
    run(options(final_sft=TAUGHT | {"epochs": 1}), to=copied)
    assert (copied / name).is_file()
    assert contents(copied) == before
    assert read_manifest(copied).outputs


@pytest.mark.parametrize(
    ("judge", "told"),
    [
        pytest.param({"expert": "chat"}, "names no http server", id="no address"),
        pytest.param({"expert": "chat", "chat": {"url": "https://example.org/v1", "model": "x"}}, "send_images", id="far away"),
        pytest.param(
            {"expert": "chat", "chat": {"url": "http://127.0.0.1:9/v1", "model": "x", "key_variable": "STLLAVA_NO_KEY"}},
            "STLLAVA_NO_KEY is not set",
            id="no key",
        ),
        pytest.param({"expert": "local"}, "has no model", id="no model"),
        pytest.param({"expert": "local", "local": {"model": "/no/model"}}, "there is no such folder", id="no folder"),
        pytest.param({"expert": "panel"}, "the panel has no members", id="a panel of nobody"),
        pytest.param({"expert": "scripted", "rubric": "/no/rubric.txt"}, "no/rubric.txt", id="no rubric"),
    ],
)
def test_an_expert_that_could_not_begin_to_judge_is_refused_before_stage_1(
    judge: dict[str, object], told: str, tmp_path: Path
) -> None:
    with pytest.raises(StllavaError, match=told):
        run(options(judge=judge), to=tmp_path)
    assert not (tmp_path / "sft").exists()


@pytest.mark.parametrize(
    ("judge", "told"),
    [
        pytest.param({}, "judge.expert is 'oracle', which knows synthetic phantoms alone.*reference", id="the demo's"),
        pytest.param({"expert": "reference"}, "has nothing to compare answers with.*data.references", id="no references"),
    ],
)
def test_an_expert_that_knows_nothing_of_the_images_is_refused_before_stage_1(
    judge: dict[str, object], told: str, phantoms: Path, tmp_path: Path
) -> None:
    data = {
        "kind": "files",
        "images": phantoms / "images",
        "conversations": phantoms / "conversations.jsonl",
        "validation": phantoms / "phantom.jsonl",
    }
    with pytest.raises(StllavaError, match=told):
        run(options(data=data, judge=judge, allow_overlap=True), to=tmp_path)
    assert not (tmp_path / "sft").exists()


@pytest.mark.slow
def test_an_expert_that_abstains_on_every_description_ends_no_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def judge_stories(judging: JudgeOptions, *, to: Path, **given: Any) -> JudgeResult:
        # The oracle understands no request for a story; everything else is judged as the options say.
        return judge(JudgeOptions(expert="oracle") if "describe" in to.parts else judging, to=to, **given)

    monkeypatch.setattr(rounds, "judge", judge_stories)
    stories = {"description_prompt": "Tell me a story.", "num_descriptions": 2}
    short = {"ask": {**options().ask.model_dump(), **stories}, "baselines": False}
    outcome = run(options(**short), to=tmp_path)
    assert "round-1" in outcome.policies
    assert any("abstained on all 8 requests for a description" in note for note in outcome.notes)
    counted = read_manifest(tmp_path / "round-1" / "describe" / "judge").measures
    assert (counted["verdicts"], counted["no_verdict_abstained"]) == (0, 8)
    given = read_records(tmp_path / "round-1" / "describe" / "answer", "answers", Answers)
    told = {one.images[0]: one.final_answers[0] for one in given}
    asked = read_records(tmp_path / "round-1" / "ask", "questions", Question)
    assert asked
    assert all(one.description == told[one.images[0]] for one in asked)


def test_a_run_without_rounds_needs_no_expert(tmp_path: Path) -> None:
    brief = TAUGHT | {"epochs": 1}
    assert run(options(judge={"expert": "chat"}, rounds=0, sft=brief, baselines=False), to=tmp_path).best == "sft"


def test_a_run_that_learns_nothing_fails_and_goes_on_once_the_cause_is_put_right(tmp_path: Path) -> None:
    untaught = TAUGHT | {"epochs": 1}
    with pytest.raises(NothingLeftError, match=r"31 × not a question.*A policy learns to ask in sft"):
        run(options(sft=untaught), to=tmp_path)
    assert not (tmp_path / MANIFEST).exists()
    with pytest.raises(StllavaError, match=r"sft holds the output of other options or inputs: config\.epochs was 1\.0, now 2"):
        run(options(sft=untaught | {"epochs": 2}), to=tmp_path)
    # Of ask nothing is settled, so its options may change; this policy still says nothing.
    with pytest.raises(NothingLeftError, match="not a question"):
        run(options(sft=untaught, ask={"questions": 3, "sampling": {"max_new_tokens": 8}}), to=tmp_path)


@pytest.mark.slow
def test_after_its_rounds_the_expert_is_followed_by_a_judge_made_of_its_verdicts(tmp_path: Path) -> None:
    made_of = {"distill_after": 1, "distill": {"threshold": 0.15, "held_out": 0.3}, "final_sft": TAUGHT | {"epochs": 1}}
    wary = run(options(rounds=3, **made_of, min_judge_kappa=1.0), to=tmp_path / "run")
    assert [name for name in wary.policies if name.startswith("round-")] == ["round-1"]
    assert any("too weak to go on with" in sentence and "Cohen's kappa" in sentence for sentence in wary.sentences)
    changed = options(rounds=3, **made_of, min_judge_kappa=0.0)
    outcome = run(changed, to=tmp_path / "run")
    experts = [read_manifest(tmp_path / "run" / f"round-{number}" / "judge").notes[0] for number in (1, 2, 3)]
    assert [note.split()[4] for note in experts] == ["scripted.", "distilled", "distilled"]
    [told] = [sentence for sentence in outcome.sentences if "judge made of the expert's verdicts" in sentence]
    assert told.startswith("From round-2 on")
    assert "Cohen's kappa" in told
    made = read_run_files(tmp_path / "run").manifests["own-judge"]
    assert made.config["epochs"] == TAUGHT["epochs"]
    moved = Path(shutil.copytree(tmp_path / "run", tmp_path / "moved"))
    (moved / "outcome.json").unlink()
    (moved / MANIFEST).unlink()
    assert run(changed, to=moved) == outcome


@pytest.mark.slow
def test_where_no_judge_can_be_made_of_the_verdicts_the_rounds_end_and_the_report_says_why(tmp_path: Path) -> None:
    nothing_to_learn = {"held_out": 0.99}
    outcome = run(options(rounds=2, distill_after=1, distill=nothing_to_learn, final_sft=TAUGHT | {"epochs": 1}), to=tmp_path)
    assert [name for name in outcome.policies if name.startswith("round-")] == ["round-1"]
    assert any(sentence.startswith("Stopped in round-2:") for sentence in outcome.sentences)
    assert (tmp_path / "own-judge").is_dir()
    assert "own-judge" not in read_run_files(tmp_path).manifests


@pytest.mark.slow
def test_a_run_within_a_budget_may_be_given_more_rounds_and_verdicts_and_pays_for_none_twice(tmp_path: Path) -> None:
    def limited(rounds: int, **judging: object) -> RunOptions:
        judge = options().judge.model_copy(update={"audit": 4, "budget": 12 * rounds} | judging)
        return options(rounds=rounds, judge=judge, final_sft=None)

    run(limited(1), to=tmp_path)
    first = tmp_path / "round-1" / "judge"
    before = contents(first), (first / EXCHANGES / "expert.jsonl").read_bytes()
    outcome = run(limited(2), to=tmp_path)
    assert "round-2" in outcome.policies
    assert (contents(first), (first / EXCHANGES / "expert.jsonl").read_bytes()) == before
    asked = [read_manifest(tmp_path / f"round-{number}" / "judge").measures["asked"] for number in (1, 2)]
    assert asked[0] == 8
    assert 0 < asked[1] <= 12
    spent = verdicts_spent(read_run_files(tmp_path), outcome.scores[0].benchmark)
    assert spent is not None
    assert {row.policy: row.verdicts for row in spent.rows} == {"sft": 0, "round-1": 12, "round-2": 12 + asked[1]}
    with pytest.raises(ConflictError, match=r"judge\.selection"):
        run(limited(2, selection="random"), to=tmp_path)


@pytest.mark.slow
def test_a_round_that_made_no_pair_of_its_verdicts_goes_on_with_a_larger_budget(tmp_path: Path) -> None:
    def limited(budget: int) -> RunOptions:
        judge = options().judge.model_copy(update={"budget": budget})
        # One pair alone is never kept where a longer chosen answer needs a shorter one beside it.
        return options(judge=judge, pair=options().pair.model_copy(update={"balance_length": True}), final_sft=None)

    with pytest.raises(NothingLeftError, match=r"no pair came from the 1 verdicts that round-1 bought.*Raise judge\.budget"):
        run(limited(1), to=tmp_path)
    log = tmp_path / "round-1" / "judge" / EXCHANGES / "expert.jsonl"
    before = log.read_bytes()
    assert "round-1" in run(limited(40), to=tmp_path).policies
    assert read_manifest(tmp_path / "round-1" / "judge").measures["asked"] > 1
    assert log.read_bytes().startswith(before)


@pytest.mark.slow
def test_a_run_that_is_begun_anew_keeps_what_was_paid_for(tmp_path: Path) -> None:
    run(options(final_sft=None), to=tmp_path)
    log = tmp_path / "round-1" / "judge" / EXCHANGES / "expert.jsonl"
    before = log.read_bytes()
    run(options(final_sft=None), to=tmp_path, existing="replace")
    assert log.read_bytes() == before, "the same questions are asked again, and nobody is paid again"


@pytest.mark.slow
def test_a_run_without_an_expert_is_calibrated_by_labelled_questions_and_says_how_often_its_votes_are_wrong(
    tmp_path: Path,
) -> None:
    votes = {"expert": "itself", "itself": {"min_agreement": 0.3, "min_precision": 0.0, "labels": 20}}
    answers = {"num_answers": 6, "sampling": {"temperature": 1.0, "max_new_tokens": 8}}
    outcome = run(options(judge=votes, answer=answers, rounds=2, final_sft=None), to=tmp_path)
    folder = RunDir(tmp_path)
    for number in (1, 2):
        name = round_name(number)
        asked = read_records(folder.calibration_stage(name, "ask"), "questions", Question)
        given = read_records(folder.calibration_stage(name, "answer"), "answers", Answers)
        assert [row.question for row in given] == [row.text for row in asked]
        assert len(asked) == 20
        measures = read_manifest(folder.stage(name, "judge")).measures
        assert 0 <= measures["true_error"] <= 1
        told = f"{name}: of {measures['true_error_n']:.0f} verdicts whose answer is known"
        assert any(told in sentence for sentence in outcome.sentences)
    assert any("labelled questions" in note for note in outcome.notes)


@pytest.mark.slow
def test_a_run_audits_its_expert_once_and_learns_with_the_errors_that_it_finds(tmp_path: Path) -> None:
    judging = options().judge.model_copy(update={"audit": 500, "smooth_labels": True})
    pairing = options().pair.model_copy(update={"min_confidence": 0.05})
    outcome = run(options(judge=judging, pair=pairing, final_sft=None), to=tmp_path)
    folder = RunDir(tmp_path)
    found = read_record(folder.expert_audit / AUDITED, ExpertAudit)
    assert found.wrong is not None
    assert found.wrong_pairs is not None
    asked = read_manifest(folder.audit_stage("judge")).counts_in
    assert 0 < asked < 500
    assert outcome.sentences[: 1 + len(found.sentences)] == (
        f"The audit is of {asked} questions, not 500: validation has no more that fit.",
        *found.sentences,
    )
    paired, learned = (read_manifest(folder.stage("round-1", stage)).config for stage in ("pair", "dpo"))
    assert paired["expert_error"] == error_of(found.wrong)
    assert learned["label_smoothing"] == error_of(found.wrong_pairs)
    assert not (folder.calibration_stage("round-2", "ask")).exists()


@pytest.mark.slow
def test_a_run_tells_how_many_answers_read_the_image_and_weighs_pairs_by_it(tmp_path: Path) -> None:
    weighing = {"balance": False, "margin": 0.01, "min_chosen_score": 0, "gain_weight": 0.5}
    outcome = run(options(image_gain={}, pair=weighing, final_sft=None, patience=1), to=tmp_path / "run")
    assert any("of the right answers" in sentence and "read the image" in sentence for sentence in outcome.sentences)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    for quadrant in ("right reading", "right guessing", "wrong reading", "wrong guessing"):
        assert f"</span> {quadrant}</th>" in page
    weights = [row.weight for row in read_records(tmp_path / "run" / "round-1" / "pair", "preferences", Preference)]
    assert sum(weights) / len(weights) == pytest.approx(1, abs=0.05)
    assert len(set(weights)) > 1


def test_a_run_whose_budget_is_spent_ends_its_rounds_and_says_so(tmp_path: Path) -> None:
    limited = options(rounds=3, judge={"budget": 20})
    budget = RoundBudget(limited, RunDir(tmp_path))
    budget.spend(8, 0.0)
    assert budget.share(2).budget == 6
    budget.spend(12, 0.0)
    with pytest.raises(NothingLeftError, match="of 20 is spent"):
        budget.share(3)


@pytest.mark.parametrize(
    ("before", "now", "share"),
    [
        ({}, {"budget": 20}, 0),
        ({}, {"budget_cost": 1.0}, 0),
        ({"budget": 20}, {}, 0),
        ({"budget": 20}, {"budget": 40}, 20),
        ({"budget": 20}, {"budget": 10}, 10),
    ],
    ids=["a limit of questions is set", "a limit of dollars is set", "it is taken away", "raised", "lowered"],
)
def test_a_round_judged_without_a_policy_gets_more_and_never_less(
    tmp_path: Path, before: dict[str, float], now: dict[str, float], share: int
) -> None:
    first, again = options(rounds=2, judge=before), options(rounds=2, judge=now)
    folder = RunDir(tmp_path)
    judged = folder.stage("round-1", "judge")
    judged.mkdir(parents=True)
    had = RoundBudget(first, folder).share(1)
    stage = Stage("judge", judged, had, inputs={}, existing="resume")
    stage.write_plan()
    stage.finish(counts_in=0, counts_out=0, measures={}, files=[])
    judging = RoundBudget(again, folder).share(1)
    assert judging.budget == share
    assert judging.budget_cost == 0
    assert has_less(judged, judging) == (judging != had)


@pytest.mark.slow
def test_votes_after_a_run_change_what_its_last_training_learns_and_nothing_else(copied: Path) -> None:
    before, folder = contents(copied), RunDir(copied)
    found = find_round(copied)
    tasks = draw_tasks(ReviewOptions(), answers=found.answers, judgments=found.judgments, to=found.review)
    with closing(VoteLog(found.review, "anna")) as log:
        log.append(vote_on(tasks[0], "both wrong", reader="anna", number=1, correct_answer="a cyst"))
    outcome = run(options(final_sft=TAUGHT | {"epochs": 1}), to=copied)
    after = contents(copied)
    changed = {name for name in before if before[name] != after[name]}
    assert {"final/data/conversations.jsonl", "final/sft/model.safetensors", "outcome.json"} <= changed
    assert all(name.startswith(("final/", "evaluate/final/", "evaluate/blind-final/", "outcome")) for name in changed)
    learned = read_records(folder.final_data, "conversations", Conversation)
    assert "a cyst" in {row.messages[1].content for row in learned}
    assert [row.lineage.readers for row in read_records(folder.final_data, "lineage", ConversationLineage)] == [("anna",)]
    assert any("readers decided about 1; votes took out 0" in note for note in outcome.notes)
