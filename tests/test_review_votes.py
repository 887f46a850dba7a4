"""People in the loop without a page: what is drawn, what is kept, and what votes say of the expert."""

import errno
import fcntl
import os
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from helpers.judging import answers_of
from helpers.reviewing import RIGHT, right_choice, vote_on, votes_of, write_round
from stllava.cli import main
from stllava.config import ReviewOptions
from stllava.errors import StllavaError
from stllava.records import Comparison, Judgment, ReviewTask, ReviewVote, VotesCheck
from stllava.report.page import write_report
from stllava.review.readings import standing
from stllava.review.round_files import find_round
from stllava.review.tasks import draw_tasks, judged_pair, sizes_of
from stllava.review.vote_log import VoteLog, read_votes, votes_path
from stllava.review.votes_check import check_votes, votes_check
from stllava.store import locked, read_record
from test_report import build

OPTIONS = ReviewOptions(tasks=60, overlap=0.3, repeats=0.1)


def tasks_of(folder: Path, options: ReviewOptions = OPTIONS, *, count: int = 300, seed: int = 0) -> list[ReviewTask]:
    if not (folder / "judge").is_dir():
        write_round(folder, count)
    return draw_tasks(options, answers=folder / "answer", judgments=folder / "judge", to=folder / "review", seed=seed)


def test_tasks_are_drawn_by_strata_with_the_probability_of_each_and_stay_as_they_were_drawn(tmp_path: Path) -> None:
    tasks = tasks_of(tmp_path)
    sizes, counts = sizes_of(tmp_path / "review"), Counter(task.stratum for task in tasks)
    assert sum(sizes.values()) == 300
    assert counts == {"uncertain": 30, "random": 30}
    for task in tasks:
        assert bool(task.doubts) == (task.stratum == "uncertain")
        assert task.inclusion == pytest.approx(counts[task.stratum] / sizes[task.stratum])
    assert {task.readers for task in tasks} == {1, 2}
    assert any(task.repeated for task in tasks)
    # Wherever reading stops, both strata have been read about as far.
    for read in range(2, 60, 2):
        assert abs(Counter(task.stratum for task in tasks[:read])["uncertain"] - read / 2) <= 1
    assert tasks_of(tmp_path) == tasks
    with pytest.raises(StllavaError, match="tasks was 60, now 61"):
        tasks_of(tmp_path, OPTIONS.model_copy(update={"tasks": 61}))


def test_another_seed_draws_others_and_a_small_round_gives_all(tmp_path: Path) -> None:
    one, other = tasks_of(tmp_path / "a"), tasks_of(tmp_path / "b", seed=1)
    assert {task.id for task in one} != {task.id for task in other}
    every = tasks_of(tmp_path / "c", count=40)
    assert len(every) == 40
    assert {task.inclusion for task in every} == {1.0}


def test_a_stratum_that_is_too_small_is_filled_up_from_the_other(tmp_path: Path) -> None:
    write_round(tmp_path, 100, doubtful=0.05)
    tasks = draw_tasks(
        OPTIONS.model_copy(update={"tasks": 50, "uncertain_share": 0.9}),
        answers=tmp_path / "answer",
        judgments=tmp_path / "judge",
        to=tmp_path / "review",
    )
    sizes = sizes_of(tmp_path / "review")
    assert sizes["uncertain"] < 45
    assert Counter(task.stratum for task in tasks) == {"uncertain": sizes["uncertain"], "random": 50 - sizes["uncertain"]}


def judged(scores: tuple[float, ...] | None, **more: object) -> Judgment:
    return Judgment(id="j", answers_id="a", scores=scores, cause=None, reason="", expert="e", prompt_hash="h").model_copy(
        update=more
    )


def test_what_speaks_against_a_verdict_is_told() -> None:
    answers = answers_of("Where?", ("left", "right", "left", "both"))
    flipped = (
        Comparison(first=0, second=1, winner=None, flipped=True),
        Comparison(first=0, second=3, winner=None),
        Comparison(first=1, second=3, winner=None),
    )
    cases = {
        ("orders disagree",): judged((0.5, 0.5, 0.5, 0.5), comparisons=flipped),
        ("panel members disagree",): judged((1.0, 0.0, 1.0, 0.5), agreement=0.75),
        ("scores are close",): judged((0.6, 0.4, 0.6, 0.5)),
        (): judged((1.0, 0.0, 1.0, 0.5), agreement=1.0),
    }
    for doubts, judgment in cases.items():
        pair = judged_pair(answers, judgment, options=OPTIONS)
        assert pair is not None
        assert (pair.first, pair.second, pair.doubts) == (0, 1, doubts)
    unlikely = answers.model_copy(update={"log_probabilities": (-9.0, -1.0, -9.0, None)})
    pair = judged_pair(unlikely, judged((1.0, 0.0, 1.0, 0.5)), options=OPTIONS)
    assert pair is not None
    assert (pair.verdict, pair.doubts) == ("first", ("better answer unlikely",))
    assert judged_pair(answers, judged(None), options=OPTIONS) is None
    assert judged_pair(answers_of("?", ("left", "left")), judged((1.0, 1.0)), options=OPTIONS) is None


def test_a_vote_is_on_disk_when_it_is_taken_and_a_torn_line_costs_nothing_else(tmp_path: Path) -> None:
    task = tasks_of(tmp_path)[0]
    log = VoteLog(tmp_path / "review", "anna")
    with pytest.raises(StllavaError, match="in use by another process"):
        VoteLog(tmp_path / "review", "anna")
    log.append(vote_on(task, "first", reader="anna", number=1))
    assert [vote.choice for vote in read_votes(tmp_path / "review")["anna"]] == ["first"]
    log.close()
    path = votes_path(tmp_path / "review", "anna")
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:50])
    again = VoteLog(tmp_path / "review", "anna")
    assert (path.read_bytes(), len(again.votes)) == (whole, 1)
    again.close()


def test_a_full_disk_loses_no_vote_that_was_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = tasks_of(tmp_path)[0]
    log = VoteLog(tmp_path / "review", "anna")
    log.append(vote_on(task, "first", reader="anna", number=1))
    whole, write = log.path.read_bytes(), os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda file, data: write(file, data[:20]))
        with pytest.raises(StllavaError, match="disk"):
            log.append(vote_on(task, "second", reader="anna", number=2))
    assert log.path.read_bytes() == whole
    log.append(vote_on(task, "equal", reader="anna", number=2))
    assert [vote.choice for vote in read_votes(tmp_path / "review")["anna"]] == ["first", "equal"]
    log.close()


def test_a_vote_goes_behind_all_others_in_a_file_from_which_lines_were_taken(tmp_path: Path) -> None:
    """As people do who are told that an id stands twice: Prodigy's and Label Studio's users mend such files by hand."""
    tasks = tasks_of(tmp_path)
    with closing(VoteLog(tmp_path / "review", "anna")) as log:
        for task in tasks[:3]:
            log.append(vote_on(task, "first", reader="anna", number=1))
    lines = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(b"".join(lines[1:]))
    with closing(VoteLog(tmp_path / "review", "anna")) as log:
        assert log.append(vote_on(tasks[0], "second", reader="anna", number=1)).number == 4
    assert [vote.number for vote in read_votes(tmp_path / "review")["anna"]] == [2, 3, 4]


def test_a_last_vote_without_the_end_of_its_line_counts(tmp_path: Path) -> None:
    """Editors take the last line's end away, or add one."""
    tasks = tasks_of(tmp_path)
    with closing(VoteLog(tmp_path / "review", "anna")) as log:
        for task in tasks[:2]:
            log.append(vote_on(task, "first", reader="anna", number=1))
    whole = log.path.read_bytes()
    log.path.write_bytes(whole.removesuffix(b"\n"))
    assert len(read_votes(tmp_path / "review")["anna"]) == 2
    VoteLog(tmp_path / "review", "anna").close()
    assert log.path.read_bytes() == whole


def test_ids_that_stand_twice_before_a_torn_line_are_told(tmp_path: Path) -> None:
    with closing(VoteLog(tmp_path / "review", "anna")) as log:
        log.append(vote_on(tasks_of(tmp_path)[0], "first", reader="anna", number=1))
    line = log.path.read_bytes()
    log.path.write_bytes(line + line + line[:40])
    with pytest.raises(StllavaError, match=r"line 2: id .* stands in line 1 already"):
        read_votes(tmp_path / "review")


@pytest.mark.parametrize("change", ["removed", "replaced"])
def test_a_vote_into_a_file_that_is_no_longer_there_is_not_taken(tmp_path: Path, change: str) -> None:
    """Editors and programs that keep folders in step put a new file in the place of the old one."""
    tasks = tasks_of(tmp_path)
    with closing(VoteLog(tmp_path / "review", "anna")) as log:
        log.append(vote_on(tasks[0], "first", reader="anna", number=1))
        kept = log.path.read_bytes()
        log.path.unlink()
        if change == "replaced":
            log.path.write_bytes(kept)
        with pytest.raises(StllavaError, match=f"was {change} since it was opened, so nothing was written"):
            log.append(vote_on(tasks[1], "first", reader="anna", number=1))
        assert len(log.votes) == 1
    assert not log.path.exists() or log.path.read_bytes() == kept


@pytest.mark.parametrize("names", [("anna", "Anna"), ("\u00fcnal", "\u00dcNAL")], ids=ascii)
def test_names_that_differ_in_case_alone_are_not_two_readers(tmp_path: Path, names: tuple[str, str]) -> None:
    VoteLog(tmp_path / "review", names[0]).close()
    with pytest.raises(StllavaError, match="as names of two readers"):
        VoteLog(tmp_path / "review", names[1])
    assert list(read_votes(tmp_path / "review")) == [names[0]]


def test_a_disk_without_locks_and_a_folder_in_the_way_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As network file systems are mounted (nipype issue 1370, "No locks available")."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    votes_path(tmp_path, "ben").mkdir(parents=True)
    with pytest.raises(StllavaError, match="a folder is in the way"):
        VoteLog(tmp_path, "ben")
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StllavaError, match=r"file system of .*anna\.jsonl gives no locks"):
        VoteLog(tmp_path, "anna")
    with pytest.raises(StllavaError, match=r"file system of .*stage gives no locks"), locked(tmp_path / "stage"):
        pytest.fail("nothing is written without a lock")


@pytest.mark.parametrize("name", ["", "../anna", "a/b", "a.b", "-x", "a" * 65, "a\x1b[31m", "a\nb", "a b"])
def test_a_readers_name_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    with pytest.raises(StllavaError, match="as the name of a reader"):
        votes_path(tmp_path, name)


def test_an_undone_vote_is_a_record_and_no_longer_stands(tmp_path: Path) -> None:
    task, other = tasks_of(tmp_path)[:2]
    votes = [vote_on(task, "first", reader="anna", number=1), vote_on(other, "second", reader="anna", number=2)]
    response = votes[1].model_copy(update={"id": "r", "number": 3, "event": "response", "choice": None, "decision": "confirm"})
    undo = votes[0].model_copy(update={"id": "u", "number": 4, "event": "undo", "choice": None})
    found = standing([*votes, response, undo])
    assert list(found) == [(other.id, 0)]
    assert found[other.id, 0].settled(other) == other.verdict
    assert found[other.id, 0].blind == "second"
    again = vote_on(task, "equal", reader="anna", number=5)
    assert [row.blind for row in standing([*votes, undo, again]).values()] == ["second", "equal"]


def read_by_two(tasks: list[ReviewTask], *, wrong: float, seed: int) -> dict[str, list[ReviewVote]]:
    """One reader reads all, another those that two are to read."""
    twice = [task for task in tasks if task.readers == 2]
    return {
        "anna": votes_of("anna", tasks, wrong=wrong, seed=seed),
        "ben": votes_of("ben", twice, wrong=wrong, seed=seed + 1),
    }


def test_what_votes_say_of_the_expert_and_of_readers_is_what_was_planted(tmp_path: Path) -> None:
    options = ReviewOptions(tasks=600, overlap=0.5)
    write_round(tmp_path, 1500, wrong=0.15, doubtful=0.3)
    tasks = draw_tasks(options, answers=tmp_path / "answer", judgments=tmp_path / "judge", to=tmp_path / "review")
    votes = read_by_two(tasks, wrong=0.05, seed=3)
    folder = tmp_path / "review"
    for reader, rows in votes.items():
        log = VoteLog(folder, reader)
        log.path.write_text("".join(row.model_dump_json() + "\n" for row in rows))
        log.close()
    found = check_votes(folder)
    assert found == read_record(folder / "check.json", VotesCheck)
    truth = 0.7 * 0.15 + 0.3 * 0.3
    assert found.expert_error is not None
    assert found.reader_error is not None
    assert found.disagreed is not None
    assert found.expert_error.low <= truth <= found.expert_error.high
    assert found.reader_error.low <= 0.05 <= found.reader_error.high
    assert found.disagreed.value > found.expert_error.value
    uncertain, random = found.strata
    assert uncertain.disagreed is not None
    assert random.disagreed is not None
    assert uncertain.disagreed.value > random.disagreed.value
    assert found.with_expert is not None
    assert 0.4 < found.with_expert.value < 0.8
    assert found.between_readers is not None
    assert found.between_readers.value > 0.7
    assert found.overturned is None, "nobody has responded to a verdict"
    assert (found.read, found.tasks) == (600, 600)
    assert {row.reader: row.votes for row in found.readers} == {name: len(rows) for name, rows in votes.items()}


def test_repeats_overturned_verdicts_and_typed_answers_are_counted(tmp_path: Path) -> None:
    tasks = tasks_of(tmp_path)
    mistaken = [task for task in tasks if task.verdict != right_choice(task)][:4]
    fine = [task for task in tasks if task.verdict == right_choice(task)][:8]
    votes = [vote_on(task, right_choice(task), reader="anna", number=n) for n, task in enumerate([*mistaken, *fine], 1)]
    for number, (task, decision, significant) in enumerate(
        zip(mistaken[:3], ("overturn", "overturn", "confirm"), (True, False, None), strict=True), 20
    ):
        blank = vote_on(task, "equal", reader="anna", number=number, correct_answer="a mass" if number == 20 else None)
        votes.append(
            blank.model_copy(update={"event": "response", "choice": None, "decision": decision, "significant": significant})
        )
    votes.append(vote_on(fine[0], right_choice(fine[0]), reader="anna", number=30, turn=1))
    votes.append(vote_on(fine[1], "cannot tell", reader="anna", number=31, turn=1))
    found = votes_check(tasks, {"anna": votes}, sizes=sizes_of(tmp_path / "review"))
    assert found.significant is not None
    assert (found.significant.value, found.significant.n) == (0.5, 2)
    assert found.corrected == 1
    assert found.overturned is not None
    assert found.disagreed is not None
    assert found.overturned.value < found.disagreed.value
    elsewhere = [vote_on(task, "first", reader="ben", number=n) for n, task in enumerate(tasks, 1)]
    more = votes_check(tasks, {"anna": votes, "ben": elsewhere}, sizes=sizes_of(tmp_path / "review")).overturned
    assert more is not None
    assert more.value == pytest.approx(found.overturned.value), "ben was shown no verdict"
    assert more.n == found.overturned.n
    assert (found.expert_error, found.between_readers) == (None, None)
    assert found.readers[0].same_again is not None
    assert (found.readers[0].same_again.value, found.readers[0].same_again.n) == (0.5, 2)


def test_how_many_of_a_rounds_questions_are_no_good_is_estimated_by_stratum_weights(tmp_path: Path) -> None:
    tasks, sizes = tasks_of(tmp_path), sizes_of(tmp_path / "review")
    said = {"uncertain": "bad question", "random": "first"}
    votes = [vote_on(task, said[task.stratum], reader="anna", number=n) for n, task in enumerate(tasks, 1)]  # type: ignore[arg-type]
    found = votes_check(tasks, {"anna": votes}, sizes=sizes)
    assert found.bad_questions is not None
    assert found.bad_questions.value == pytest.approx(sizes["uncertain"] / 300)
    assert found.bad_images is not None
    assert found.bad_images.value == 0


def test_no_vote_yet_is_said(tmp_path: Path) -> None:
    tasks_of(tmp_path)
    with pytest.raises(StllavaError, match="holds no vote"):
        check_votes(tmp_path / "review")
    assert RIGHT


def test_votes_need_no_torch() -> None:
    code = "import sys, stllava.review.votes_check, stllava.review.tasks; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_vote_that_a_crash_cut_short_is_passed_over_by_judge_check_and_others_are_refused(tmp_path: Path) -> None:
    tasks = tasks_of(tmp_path)
    with closing(VoteLog(tmp_path / "review", "anna")) as log:
        for vote in votes_of("anna", tasks[:9], wrong=0.2, seed=0):
            log.append(vote)
    before = check_votes(tmp_path / "review")
    path = votes_path(tmp_path / "review", "anna")
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines()[-1][:40])
    assert check_votes(tmp_path / "review") == before
    assert path.read_bytes() != whole  # A page may be about to write the rest.
    path.write_bytes(b"{\n" + whole)
    with pytest.raises(StllavaError, match="line 1"):
        check_votes(tmp_path / "review")


def test_votes_of_one_reader_under_the_name_of_another_are_refused(tmp_path: Path) -> None:
    tasks = tasks_of(tmp_path)
    with closing(VoteLog(tmp_path / "review", "anna")) as log:
        for vote in votes_of("anna", tasks[:9], wrong=0.2, seed=0):
            log.append(vote)
    path = votes_path(tmp_path / "review", "anna")
    copied = votes_path(tmp_path / "review", "ben")
    copied.write_bytes(path.read_bytes())
    with pytest.raises(StllavaError, match=r"ben\.jsonl holds votes of anna"):
        check_votes(tmp_path / "review")
    for _ in range(2):
        with pytest.raises(StllavaError, match=r"ben\.jsonl holds votes of anna"):
            VoteLog(tmp_path / "review", "ben")
    copied.unlink()
    assert check_votes(tmp_path / "review").read == 9


def test_judge_check_and_the_report_say_what_readers_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(tmp_path / "run", images=24, rounds=1)
    assert "What readers say of the expert" not in write_report(tmp_path / "run").read_text()
    found = find_round(tmp_path / "run")
    tasks = draw_tasks(ReviewOptions(overlap=1.0), answers=found.answers, judgments=found.judgments, to=found.review)
    for reader in ("anna", "ben"):
        log = VoteLog(found.review, reader)
        for number, task in enumerate(tasks, 1):
            log.append(vote_on(task, task.verdict if number > 4 else "cannot tell", reader=reader, number=number))
        log.close()
    main(["judge-check", "--votes", str(tmp_path / "run")])
    told = capsys.readouterr().out
    assert f"oracle: Of {len(tasks)} verdicts drawn" in told
    assert "the expert is wrong (what readers disagree with, less their own errors)  0.000 [0.000, " in told
    page = write_report(tmp_path / "run").read_text()
    assert "What readers say of the expert" in page
    assert f"anna ({len(tasks)}), ben ({len(tasks)})" in page


def test_a_path_means_a_round_or_the_last_one_of_a_run(tmp_path: Path) -> None:
    build(tmp_path / "run", images=5, rounds=2)
    assert find_round(tmp_path / "run").folder.name == "round-2"
    one = find_round(tmp_path / "run", 1)
    assert (one.folder.name, one.image_root(None)) == ("round-1", tmp_path / "run" / "data" / "images")
    assert find_round(tmp_path / "run" / "round-1").run == tmp_path / "run"
    with pytest.raises(StllavaError, match="no judged round-3"):
        find_round(tmp_path / "run", 3)
    with pytest.raises(StllavaError, match="holds no judged round"):
        find_round(tmp_path)
    write_round(tmp_path / "hand", 6)
    with pytest.raises(StllavaError, match="--root"):
        find_round(tmp_path / "hand").image_root(None)
