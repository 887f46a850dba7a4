"""Label Studio: tasks out without what the expert said, and results back in as votes, each once."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from helpers.reviewing import right_choice, write_round
from stllava.cli import main
from stllava.config import ReviewOptions
from stllava.errors import StllavaError
from stllava.records import ReviewTask
from stllava.review.label_studio import CHOICES, INTERFACE, from_label_studio, to_label_studio
from stllava.review.readings import standing
from stllava.review.reviewed import find_reviewed
from stllava.review.tasks import draw_tasks, options_of_drawn
from stllava.review.vote_log import read_votes


def drawn(folder: Path) -> list[ReviewTask]:
    write_round(folder, 12)
    return draw_tasks(ReviewOptions(), answers=folder / "answer", judgments=folder / "judge", to=folder / "review")


def annotation(said: str, *, by: object = 7, typed: str = "", **more: object) -> dict[str, object]:
    """As Label Studio exports one, with much that is not read."""
    result: list[dict[str, object]] = [
        {
            "id": "x1",
            "type": "choices",
            "from_name": "vote",
            "to_name": "image",
            "origin": "manual",
            "value": {"choices": [said]},
        }
    ]
    if typed:
        result.append({"type": "textarea", "from_name": "correct_answer", "to_name": "image", "value": {"text": [typed]}})
    more = {"lead_time": 4.25, "created_at": "2026-11-20T10:15:00.250000Z", "was_cancelled": False} | more
    return {"id": 3, "completed_by": by, "result": result, "ground_truth": False, **more}


def test_tasks_go_out_blind_and_results_come_back_as_votes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = drawn(tmp_path)
    main(["convert", "review", str(tmp_path), "--to", str(tmp_path / "tasks.json"), "--image-url", "/d/?d="])
    rows = json.loads((tmp_path / "tasks.json").read_text())
    assert [row["data"]["task_id"] for row in rows] == [task.id for task in tasks]
    assert rows[0]["data"]["image"] == f"/d/?d={tasks[0].images[0]}"
    assert not any(word in (tmp_path / "tasks.json").read_text() for word in ("made up", "I see it", "uncertain", "verdict"))
    assert {row["data"]["answer_1"] == task.texts[0] for row, task in zip(rows, tasks, strict=True)} == {True, False}
    for row, task in zip(rows, tasks, strict=True):
        first = row["data"]["answer_1"] == task.texts[0]
        right = "answer 1 is better" if (right_choice(task) == "first") == first else "answer 2 is better"
        row |= {"id": 1, "annotations": [annotation(right, by={"id": 7, "email": "anna.b@ward.example"}, typed="a mass")]}
    rows[0]["annotations"] += [annotation("equal", by=8), annotation("equal", by=9, was_cancelled=True)]
    rows[1]["annotations"].append(annotation("what?", by=8))
    rows.append({"data": {"task_id": "another"}, "annotations": [annotation("equal")]})
    (tmp_path / "out.json").write_text(json.dumps(rows))
    main(["import", "votes", str(tmp_path / "out.json"), "--review", str(tmp_path)])
    told = capsys.readouterr().out
    assert "anna-b: 12 votes" in told
    assert "annotator8: 1 vote\n" in told
    assert all(part in told for part in ("1 skipped", "1 no choice", "1 task not known"))
    votes = read_votes(tmp_path / "review")
    found = standing(votes["anna-b"])
    assert {task.id: found[task.id, 0].blind for task in tasks} == {task.id: right_choice(task) for task in tasks}
    first_vote = votes["anna-b"][0]
    assert (first_vote.seconds, first_vote.at, first_vote.correct_answer) == (4.25, "2026-11-20T10:15:00.250+00:00", "a mass")
    main(["judge-check", "--votes", str(tmp_path)])
    told = capsys.readouterr().out
    assert "readers disagree with the expert" in told
    assert "once they have seen its reason" not in told
    main(["import", "votes", str(tmp_path / "out.json"), "--review", str(tmp_path)])
    assert "anna-b: 0 votes" in capsys.readouterr().out
    assert read_votes(tmp_path / "review") == votes


def test_the_tasks_that_were_drawn_before_go_out_and_others_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_round(tmp_path, 12)
    few, folder = ReviewOptions(tasks=5), find_reviewed(tmp_path)
    before = folder.draw(few, seed=3, root=tmp_path)
    main(["convert", "review", str(tmp_path), "--to", str(tmp_path / "tasks.json")])
    rows = json.loads((tmp_path / "tasks.json").read_text())
    assert [row["data"]["task_id"] for row in rows] == [task.id for task in before]
    assert options_of_drawn(folder.review, ReviewOptions(), seed=0) == (few, 3)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["convert", "review", str(tmp_path), "--to", str(tmp_path / "more.json"), "--tasks", "7"])
    assert "config.tasks was 5, now 7" in capsys.readouterr().err


def test_the_interface_offers_every_choice_once() -> None:
    offered = [choice.attrib for choice in ElementTree.fromstring(INTERFACE).iter("Choice")]
    assert [choice["value"] for choice in offered] == list(CHOICES)
    assert len({choice["hotkey"] for choice in offered}) == len(CHOICES)


@pytest.mark.parametrize("text", ["", "{}", "[{}]", "[1]", '[{"data": {"task_id": 5}}]'], ids=repr)
def test_a_file_that_is_no_export_is_refused(tmp_path: Path, text: str) -> None:
    drawn(tmp_path)
    to_label_studio(tmp_path / "review", to=tmp_path / "tasks.json", image_url="")
    (tmp_path / "out.json").write_text(text)
    with pytest.raises(StllavaError, match="cannot be read"):
        from_label_studio(tmp_path / "review", tmp_path / "out.json")
    (tmp_path / "out.json").write_text("[]")
    with pytest.raises(StllavaError, match="holds no vote"):
        from_label_studio(tmp_path / "review", tmp_path / "out.json")
