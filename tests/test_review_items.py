"""A benchmark's answers and a policy's questions, read one by one: what is drawn, shown, kept, and what comes of it."""

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from helpers.reviewing import item_vote, vote_on, write_evaluation, write_questions, write_round
from stllava.cli import main
from stllava.config import ReviewOptions
from stllava.errors import StllavaError
from stllava.metrics.score import LLAVA_MED, ROBUST
from stllava.records import ItemChoice, ItemsCheck, ItemTask, Prediction, QuestionKind, ReviewVote
from stllava.report.page import write_report
from stllava.report.wording import policy_label
from stllava.review.items import draw_items, rules_on
from stllava.review.items_check import check_items, items_check
from stllava.review.reviewed import find_reviewed
from stllava.review.session import ReviewSession
from stllava.review.tasks import draw_tasks, sizes_of
from stllava.review.vote_log import VoteLog, read_votes
from stllava.review.votes_check import check_votes
from stllava.store import read_record
from test_report import build
from test_review_page import EVIL, Open, named, opened

__all__ = ["opened"]
OPTIONS = ReviewOptions(tasks=80, overlap=0.3, repeats=0.0)


def predictions_drawn(folder: Path, count: int = 200, *, options: ReviewOptions = OPTIONS) -> list[ItemTask]:
    if not (folder / "evaluation").is_dir():
        write_evaluation(folder / "evaluation", count, images=folder / "images")
    return draw_items(options, kind="predictions", source=folder / "evaluation", to=folder / "review")


@pytest.mark.parametrize(
    ("kind", "said", "target", "ours", "published"),
    [
        ("open", "left lung", "left lung", True, True),
        ("open", "It lies in the left lung.", "left lung", False, True),
        ("open", "lung", "left lung", False, False),
        ("closed", "Yes.", "yes", True, True),
        ("closed", "no", "yes", False, False),
        ("closed", "I am not sure.", "yes", None, False),
    ],
)
def test_each_rule_says_whether_an_answer_is_right(
    kind: QuestionKind, said: str, target: str, ours: bool | None, published: bool
) -> None:
    row = Prediction(
        id="p", sample_id="s", image="i.png", question="?", targets=(target,), kind=kind, completion=said, policy="p"
    )
    assert rules_on(row) == {ROBUST: ours, LLAVA_MED: published}
    if kind == "closed":
        assert set(rules_on(row.model_copy(update={"choices": ("yes", "no")}))) == {ROBUST}


def test_answers_are_drawn_by_strata_and_stay_as_they_were_drawn(tmp_path: Path) -> None:
    tasks, sizes = predictions_drawn(tmp_path), sizes_of(tmp_path / "review")
    counts = Counter(task.stratum for task in tasks)
    assert sum(sizes.values()) == 200
    assert len(tasks) == 80
    for task in tasks:
        assert task.stratum == ("uncertain" if task.rules[ROBUST] != task.rules[LLAVA_MED] else "random")
        assert task.inclusion == pytest.approx(counts[task.stratum] / sizes[task.stratum])
    assert predictions_drawn(tmp_path) == tasks
    with pytest.raises(StllavaError, match="tasks was 80, now 81"):
        predictions_drawn(tmp_path, options=OPTIONS.model_copy(update={"tasks": 81}))


def test_questions_that_another_image_was_asked_too_are_the_uncertain_ones(tmp_path: Path) -> None:
    write_questions(tmp_path / "ask", 40, images=tmp_path / "images")
    tasks = draw_items(OPTIONS, kind="questions", source=tmp_path / "ask", to=tmp_path / "review")
    assert sizes_of(tmp_path / "review") == {"uncertain": 10, "random": 30}
    assert {task.doubts for task in tasks if task.stratum == "uncertain"} == {("asked about another image too",)}


def test_options_about_verdicts_alone_are_refused_elsewhere(tmp_path: Path) -> None:
    for name, value in (("close_scores", 0.5), ("unlikely", 2.0)):
        with pytest.raises(StllavaError, match=f"{name} is .*, and predictions are read"):
            predictions_drawn(tmp_path, 8, options=OPTIONS.model_copy(update={name: value}))


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_reference_stands_beside_an_answer_and_the_rules_are_told_after_the_vote(opened: Open) -> None:
    page = opened(kind="predictions")
    client = page.client()
    shown, task = client.get("/task").json(), page.tasks[0]
    assert isinstance(task, ItemTask)
    assert (["".join(parts) for parts in shown["answers"]], shown["references"]) == ([task.answer], list(task.references))
    assert not any(word in json.dumps(shown) for word in (ROBUST, LLAVA_MED, "rules", "uncertain", "random", "verdict"))
    assert client.post("/vote", json=named(shown, choice="wrong", struck=[["right", 0]])).status_code == 409
    told = client.post("/vote", json=named(shown, choice="wrong", struck=[["left", 0]], typed=" a cyst ")).json()
    assert [rule for rule, _ in told["rules"]] == [ROBUST, LLAVA_MED]
    assert (told["state"], told["choice"], told["typed"]) == ("voted", "wrong", "a cyst")
    vote = read_votes(page.folder)["anna"][0]
    assert (vote.choice, vote.correct_answer, vote.task_id) == ("wrong", "a cyst", task.id)
    assert [one.text for one in vote.struck] == [shown["answers"][0][0].strip()]
    for decision in ("confirm", "overturn"):
        assert client.post("/respond", json=named(shown, decision=decision)).status_code == 409
    assert client.post("/respond", json=named(shown, decision=None, typed="a mass")).json()["typed"] == "a mass"
    assert client.get("/task").json()["typed"] == "a mass"
    again = client.post("/undo", json={}).json()
    assert (again["state"], again["task"], again["read"]) == ("open", shown["task"], 0)


def test_a_question_is_read_without_any_answer(opened: Open) -> None:
    page = opened(kind="questions")
    client = page.client()
    shown = client.get("/task").json()
    assert (shown["answers"], shown["question"]) == ([], page.tasks[0].question)
    assert client.post("/vote", json=named(shown, choice="valid", typed="a cyst")).status_code == 409
    assert client.post("/vote", json=named(shown, choice="not valid")).json()["choice"] == "not valid"
    assert client.post("/respond", json=named(shown, decision=None, typed="a cyst")).status_code == 409
    assert client.post("/next", json=named(shown)).json()["read"] == 1
    text = client.get("/").text
    assert 'data-choice="valid"' in text
    assert 'id="typed"' not in text


@pytest.mark.parametrize(
    ("kind", "choices"),
    [
        ("verdicts", ("right", "wrong", "bad reference", "valid", "not valid")),
        ("predictions", ("left", "equal", "both wrong", "valid")),
        ("questions", ("left", "right", "wrong", "bad image", "bad question")),
        ("pictures", ("left", "valid", "bad image", "equal")),
    ],
)
def test_what_nobody_can_say_of_a_task_is_refused(opened: Open, kind: str, choices: Sequence[str]) -> None:
    page = opened(kind=kind)
    client = page.client()
    shown = client.get("/task").json()
    for choice in choices:
        if (kind, choice) != ("verdicts", "right"):  # The answer at the right is better.
            assert client.post("/vote", json=named(shown, choice=choice)).status_code == 409
    assert read_votes(page.folder)["anna"] == []


@pytest.mark.parametrize("kind", ["predictions", "questions"])
def test_what_a_model_says_is_text_in_an_answer_and_in_a_question(opened: Open, kind: str) -> None:
    client = opened(kind=kind, text=EVIL).client()
    reply = client.get("/task")
    assert reply.headers["content-type"] == "application/json"
    told = json.dumps(reply.json(), ensure_ascii=False)
    assert "<script>" in told
    assert "\x1b" not in told
    assert "\u202e" not in told
    assert "evil" not in client.get("/").text


# --- kinds are kept apart --------------------------------------------------------------------------------------------


def test_what_was_drawn_of_one_kind_is_not_taken_for_another(tmp_path: Path) -> None:
    predictions_drawn(tmp_path)
    write_questions(tmp_path / "ask", 8, images=tmp_path / "images")
    with pytest.raises(StllavaError, match="review"):
        draw_items(OPTIONS, kind="questions", source=tmp_path / "ask", to=tmp_path / "review")


@pytest.fixture
def verdict_vote(tmp_path: Path) -> ReviewVote:
    write_round(tmp_path / "round", 6)
    folder = tmp_path / "round"
    tasks = draw_tasks(OPTIONS, answers=folder / "answer", judgments=folder / "judge", to=folder / "review")
    return vote_on(tasks[0], "first", reader="anna", number=1)


def test_votes_on_other_things_are_refused_by_page_and_check(tmp_path: Path, verdict_vote: ReviewVote) -> None:
    tasks = predictions_drawn(tmp_path)
    with closing(VoteLog(tmp_path / "review", "anna")) as log:
        log.append(verdict_vote)
    with pytest.raises(StllavaError, match="says 'first', which nobody can say of predictions"):
        ReviewSession(tmp_path / "review", tasks, ["anna"])
    with pytest.raises(StllavaError, match="votes on predictions alone"):
        check_items(tmp_path / "review")
    with closing(VoteLog(tmp_path / "round" / "review", "ben")) as log:
        log.append(item_vote(tasks[0], "right", reader="ben", number=1))
    with pytest.raises(StllavaError, match="nobody can say of verdicts"):
        check_votes(tmp_path / "round" / "review")


# --- what comes of it ------------------------------------------------------------------------------------------------


def test_agreement_with_each_rule_is_what_was_planted(tmp_path: Path) -> None:
    options = ReviewOptions(tasks=400)
    tasks = predictions_drawn(tmp_path, 400, options=options)
    votes = []
    for number, task in enumerate(tasks, 1):
        # To readers a reference in a sentence is right, as it is to the published rule.
        said: ItemChoice = "right" if task.rules[LLAVA_MED] else "wrong"
        votes.append(item_vote(task, said, number=number))
    found = items_check(tasks, {"anna": votes}, sizes=sizes_of(tmp_path / "review"))
    rows = {(row.rule, row.questions): row for row in found.rules}
    assert set(rows) == {(rule, questions) for rule in (ROBUST, LLAVA_MED) for questions in ("all", "closed", "open")}
    published, ours = rows[LLAVA_MED, "all"], rows[ROBUST, "all"]
    assert published.agreement is not None
    assert ours.agreement is not None
    assert published.agreement.value == pytest.approx(1.0)
    assert 0.5 < ours.agreement.value < 0.9
    assert rows[ROBUST, "closed"].agreement == rows[LLAVA_MED, "closed"].agreement
    assert ours.same is not None
    assert ours.rule_right is not None
    assert ours.readers_right is not None
    # Every fourth open answer, an eighth of all, is the reference in a sentence.
    assert ours.same.value == pytest.approx(1 - 1 / 8)
    assert ours.readers_right.value - ours.rule_right.value == pytest.approx(1 / 8)
    assert (found.read, found.choices) == (400, dict(Counter(vote.choice for vote in votes)))


def test_a_sample_by_strata_says_what_the_whole_would(tmp_path: Path) -> None:
    """Half of what is read is of the eighth of all answers on which the rules differ."""
    tasks = predictions_drawn(tmp_path, 1600, options=ReviewOptions(tasks=300))
    votes = [item_vote(task, "right" if task.rules[LLAVA_MED] else "wrong", number=n) for n, task in enumerate(tasks, 1)]
    found = items_check(tasks, {"anna": votes}, sizes=sizes_of(tmp_path / "review"))
    ours = next(row for row in found.rules if (row.rule, row.questions) == (ROBUST, "all"))
    assert found.good is not None
    assert ours.same is not None
    assert Counter(task.stratum for task in tasks)["uncertain"] == 150
    assert ours.same.value == pytest.approx(1 - 1 / 8, abs=1e-9)
    # Of closed answers two thirds are right, of open ones all but a fifth of three quarters.
    assert found.good.low < (2 / 3 + 1 - 0.15) / 2 < found.good.high
    assert found.good.high - found.good.low < 0.2


def test_bad_references_and_those_who_cannot_tell_say_nothing_of_the_rules(tmp_path: Path) -> None:
    tasks = predictions_drawn(tmp_path, 40, options=ReviewOptions(tasks=40, overlap=1.0))
    said: list[ItemChoice] = ["bad reference", "cannot tell", "right", "wrong"]
    anna = [item_vote(task, said[number % 4], number=number) for number, task in enumerate(tasks, 1)]
    ben = [item_vote(task, said[number % 4], reader="ben", number=number) for number, task in enumerate(tasks, 1)]
    found = items_check(tasks, {"anna": anna, "ben": ben}, sizes=sizes_of(tmp_path / "review"))
    assert {row.agreement.n for row in found.rules if row.agreement is not None and row.questions == "all"} == {20}
    assert found.shares["bad reference"].value == pytest.approx(0.25, abs=0.03)
    assert found.good is not None
    assert found.good.n == 20
    assert found.between_readers is not None
    assert found.between_readers.value == 1
    assert found.choices == {"bad reference": 20, "cannot tell": 20, "right": 20, "wrong": 20}


def test_the_share_of_valid_questions_goes_by_stratum_weights(tmp_path: Path) -> None:
    write_questions(tmp_path / "ask", 200, images=tmp_path / "images")
    tasks = draw_items(ReviewOptions(tasks=60), kind="questions", source=tmp_path / "ask", to=tmp_path / "review")
    said: dict[str, ItemChoice] = {"uncertain": "not valid", "random": "valid"}
    votes = [item_vote(task, said[task.stratum], number=number) for number, task in enumerate(tasks, 1)]
    votes[0] = votes[0].model_copy(update={"choice": "cannot tell"})
    found = items_check(tasks, {"anna": votes}, sizes=sizes_of(tmp_path / "review"))
    assert found.good is not None
    assert found.good.value == pytest.approx(0.75, abs=0.01)
    assert found.good.low < 0.75 < found.good.high
    assert found.rules == ()


def test_judge_check_says_what_readers_found_of_a_runs_answers_and_questions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    build(run, images=12, rounds=1)
    evaluation = next(path for path in sorted((run / "evaluate" / "sft").iterdir()) if path.is_dir())
    assert "What readers say of answers and questions" not in write_report(run).read_text()
    for folder, choice, told in (
        (evaluation, "right", "agreement of readers with robust-2, Cohen's kappa"),
        (run / "round-1" / "ask", "valid", "questions that are valid"),
    ):
        found = find_reviewed(folder)
        assert found.review == run / "review" / folder.relative_to(run)
        tasks = found.draw(OPTIONS, seed=0, root=found.image_root(None))
        with pytest.raises(StllavaError, match="holds no vote"):
            check_items(found.review)
        session = ReviewSession(found.review, tasks, ["anna"])
        for task in tasks:
            opened = session.open_task("anna")
            assert opened is not None
            session.vote("anna", opened.task.id, 0, choice)  # type: ignore[arg-type]
            session.advance("anna", opened.task.id, 0)
            assert isinstance(task, ItemTask)
        session.close()
        capsys.readouterr()
        main(["judge-check", "--votes", str(folder)])
        said = capsys.readouterr().out
        assert told in said
        assert f"were read by anna ({len(tasks)})" in said
        assert read_record(found.review / "check.json", ItemsCheck).read == len(tasks)
        page = write_report(run).read_text()
        assert f"<h3>{policy_label(folder.relative_to(run).as_posix())}</h3>" in page
        assert page.count("What readers say of answers and questions") == 1
        assert page.count(told.replace("'", "&#39;")) == 1
        with pytest.raises(StllavaError, match="the folder of one stage"):
            find_reviewed(folder, 1)
    assert set(json.loads((run / "summary.json").read_text())["read"]) == {
        evaluation.relative_to(run).as_posix(),
        "round-1/ask",
    }


def test_a_stage_made_by_hand_is_read_beside_its_folder_and_needs_an_image_root(tmp_path: Path) -> None:
    write_questions(tmp_path / "asked", 8, images=tmp_path / "images")
    found = find_reviewed(tmp_path / "asked")
    assert (found.kind, found.review) == ("questions", tmp_path / "asked-review")
    with pytest.raises(StllavaError, match="--root"):
        found.image_root(None)
    assert found.image_root(tmp_path / "images") == tmp_path / "images"
    (tmp_path / "images").rename(tmp_path / "moved")
    with pytest.raises(StllavaError, match=r"there is no folder .*images, .* Name where it is now \(--root\)"):
        found.image_root(tmp_path / "images")
