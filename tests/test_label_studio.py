"""Label Studio: tasks out without what the expert said, and results back in as votes, each once."""

import json
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from helpers.reviewing import right_choice, write_round
from stllava.cli import main
from stllava.config import ReviewOptions
from stllava.errors import StllavaError
from stllava.records import ItemKind, ItemsCheck, ReviewTask
from stllava.review.choices import BUTTONS, LONGEST_ANSWER, ReviewKind
from stllava.review.items import read_items
from stllava.review.label_studio import CHOICES, interface, to_label_studio
from stllava.review.label_studio_results import ImportedVotes, from_label_studio
from stllava.review.open_task import AnyTask
from stllava.review.readings import standing
from stllava.review.reviewed import find_reviewed
from stllava.review.session import ReviewSession
from stllava.review.tasks import draw_tasks, options_of_drawn
from stllava.review.vote_log import read_votes
from stllava.store import read_record
from test_review_page import drawn_tasks


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
    assert "anna-b-ward-example: 12 votes" in told
    assert "annotator8: 1 vote\n" in told
    assert all(part in told for part in ("1 skipped", "1 no choice", "1 task not known"))
    votes = read_votes(tmp_path / "review")
    found = standing(votes["anna-b-ward-example"])
    assert {task.id: found[task.id, 0].blind for task in tasks} == {task.id: right_choice(task) for task in tasks}
    first_vote = votes["anna-b-ward-example"][0]
    assert (first_vote.seconds, first_vote.at, first_vote.correct_answer) == (4.25, "2026-11-20T10:15:00.250+00:00", "a mass")
    main(["judge-check", "--votes", str(tmp_path)])
    told = capsys.readouterr().out
    assert "readers disagree with the expert" in told
    assert "once they have seen its reason" not in told
    main(["import", "votes", str(tmp_path / "out.json"), "--review", str(tmp_path)])
    assert "anna-b-ward-example: 0 votes" in capsys.readouterr().out
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
    told = capsys.readouterr().err
    assert "config.tasks was 5, now 7" in told
    assert "--existing" not in told
    assert all(part in " ".join(told.split()) for part in ("Leave the options out", f"delete {folder.review / 'tasks'}"))
    # What it says works, and votes on tasks that are drawn again count on.
    import_rows(tmp_path, exported(before, tmp_path, annotation("equal")))
    shutil.rmtree(folder.review / "tasks")
    main(["convert", "review", str(tmp_path), "--to", str(tmp_path / "more.json"), "--tasks", "7"])
    assert len(json.loads((tmp_path / "more.json").read_text())) == 7
    main(["judge-check", "--votes", str(tmp_path)])


@pytest.mark.parametrize("kind", CHOICES)
def test_the_interface_offers_every_choice_once_and_shows_all_that_a_task_has(tmp_path: Path, kind: ReviewKind) -> None:
    tree = ElementTree.fromstring(interface(kind))
    offered = [choice.attrib for choice in tree.iter("Choice")]
    assert [choice["value"] for choice in offered] == list(CHOICES[kind])
    assert len({choice["hotkey"] for choice in offered}) == len(CHOICES[kind]) == len(BUTTONS[kind])
    assert not any(choice["hotkey"] == "?" for choice in offered)
    said = {"left": "first", "right": "second"} if kind == "verdicts" else {}
    assert [said.get(choice, choice) for choice in CHOICES[kind].values()] == [
        said.get(button.choice, button.choice) for button in BUTTONS[kind]
    ]
    tasks = drawn_tasks(tmp_path, kind, ReviewOptions(), count=9, text="")
    to_label_studio(tasks, kind, to=tmp_path / "tasks.json", image_url="")
    (names,) = {tuple(row["data"]) for row in json.loads((tmp_path / "tasks.json").read_text())}
    shown = {node.attrib["value"].removeprefix("$") for node in tree.iter() if node.get("value", "").startswith("$")}
    assert set(names) - {"task_id"} == shown
    assert (tree.find("TextArea") is not None) == (kind in ("verdicts", "predictions"))


SECRETS = (
    "rules",
    "robust",
    "llava_med",
    "doubts",
    "stratum",
    "inclusion",
    "uncertain",
    "policy",
    "verdict",
    "score",
    "expert",
)


@pytest.mark.parametrize("kind", ["predictions", "questions", "pictures"])
def test_each_kind_goes_out_blind_and_comes_back_as_votes_that_are_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: ItemKind
) -> None:
    drawn_tasks(tmp_path, kind, ReviewOptions(), count=12, text="")
    where = "set" if kind == "pictures" else kind
    main(["convert", "review", str(tmp_path / where), "--to", str(tmp_path / "tasks.json"), "--image-url", "/d/?d="])
    folder = find_reviewed(tmp_path / where).review
    tasks = read_items(folder)
    text = (tmp_path / "tasks.json").read_text()
    rows = json.loads(text)
    assert [row["data"]["task_id"] for row in rows] == [task.id for task in tasks]
    assert not any(word in text for word in SECRETS)
    if kind == "predictions":
        assert {row["data"]["answer"] for row in rows} == {task.answer for task in tasks}
        assert {row["data"]["reference"] for row in rows} == {task.references[0] for task in tasks}
    if kind == "pictures":
        assert {row["data"]["blacked_out"] for row in rows} == {"nothing", "x 6 to 30, y 4 to 12"}
    choices = list(CHOICES[kind])
    for number, row in enumerate(rows):
        said = choices[number % len(choices)]
        row |= {"annotations": [annotation(said, by={"id": 7, "email": "anna@ward.example"}, typed="a mass")]}
    (tmp_path / "out.json").write_text(json.dumps(rows))
    for turn in range(2):
        main(["import", "votes", str(tmp_path / "out.json"), "--review", str(tmp_path / where)])
        assert f"anna-ward-example: {0 if turn else len(tasks)} votes" in capsys.readouterr().out
    votes = read_votes(folder)
    assert [vote.choice for vote in votes["anna-ward-example"]] == [
        choices[number % len(choices)] for number in range(len(tasks))
    ]
    assert {vote.correct_answer for vote in votes["anna-ward-example"]} == {"a mass" if kind == "predictions" else None}
    main(["judge-check", "--votes", str(tmp_path / where)])
    check = read_record(folder / "check.json", ItemsCheck)
    assert (check.read, check.kind) == (len(tasks), kind)
    # The page goes on with the same tasks and votes.
    session = ReviewSession(folder, tasks, ["anna-ward-example"])
    with closing(session):
        assert session.progress("anna-ward-example").read == len(tasks)


def test_an_export_with_a_byte_order_mark_and_a_moment_beyond_all_calendars_is_read(tmp_path: Path) -> None:
    tasks = drawn(tmp_path)
    given = annotation("equal", created_at="0001-01-01T00:00:00+14:00")
    text = json.dumps(exported(tasks[:1], tmp_path, given))
    (tmp_path / "out.json").write_text(text, encoding="utf-8-sig")
    assert from_label_studio(tmp_path / "review", tmp_path / "out.json", "verdicts").votes == {"annotator7": 1}


def test_votes_on_another_kind_are_refused_and_nothing_is_added(tmp_path: Path) -> None:
    drawn_tasks(tmp_path, "questions", ReviewOptions(), count=9, text="")
    main(["convert", "review", str(tmp_path / "questions"), "--to", str(tmp_path / "tasks.json")])
    rows = json.loads((tmp_path / "tasks.json").read_text())
    for row in rows:
        row["annotations"] = [annotation("right")]
    (tmp_path / "out.json").write_text(json.dumps(rows))
    with pytest.raises(StllavaError, match="holds no vote"):
        from_label_studio(tmp_path / "questions-review", tmp_path / "out.json", "questions")
    assert read_votes(tmp_path / "questions-review") == {}


def test_names_of_images_are_written_as_addresses_have_them(tmp_path: Path) -> None:
    task = drawn(tmp_path)[0].model_copy(update={"images": ("ward 7/a&b#1 %2.png",)})
    to_label_studio([task], "verdicts", to=tmp_path / "tasks.json", image_url="/data/local-files/?d=images/")
    (row,) = json.loads((tmp_path / "tasks.json").read_text())
    assert row["data"]["image"] == "/data/local-files/?d=images/ward%207/a%26b%231%20%252.png"


def test_two_annotators_of_one_name_stay_two_and_what_other_controls_say_is_passed_over(tmp_path: Path) -> None:
    """Labels and boxes of a project's other controls, and nulls, as exports of Label Studio hold them."""
    tasks = drawn(tmp_path)
    to_label_studio(tasks, "verdicts", to=tmp_path / "tasks.json", image_url="")
    rows = json.loads((tmp_path / "tasks.json").read_text())
    people = [{"id": 1, "email": "anna@a.example"}, {"id": 2, "email": "anna@b.example"}, {"id": 3, "email": None}, None]
    box = {"from_name": "box", "value": {"text": {"x": 1}, "choices": [["a", "b"]], "rectanglelabels": ["mass"]}}
    relation = {"type": "relation", "from_id": "x", "to_id": "y", "direction": "right"}
    for row in rows:
        given = [annotation("equal", by=who, created_at=None, lead_time=None) for who in people]
        for one in given:
            result = one["result"]
            assert isinstance(result, list)
            result[:0] = [box, relation, {"from_name": None}, None]
        row["annotations"] = given
        row["predictions"] = [286]
    (tmp_path / "out.json").write_text(json.dumps(rows))
    found = from_label_studio(tmp_path / "review", tmp_path / "out.json", "verdicts")
    assert found.votes == dict.fromkeys(("anna-a-example", "anna-b-example", "annotator0", "annotator3"), len(tasks))


def import_rows(folder: Path, rows: object) -> ImportedVotes:
    """Import an export of the verdicts of a round."""
    (folder / "out.json").write_text(json.dumps(rows))
    return from_label_studio(folder / "review", folder / "out.json", "verdicts")


def exported(tasks: Sequence[AnyTask], folder: Path, *given: dict[str, object]) -> list[dict[str, Any]]:
    """The rows of an export in which every task has these annotations."""
    to_label_studio(tasks, "verdicts", to=folder / "tasks.json", image_url="")
    rows: list[dict[str, Any]] = json.loads((folder / "tasks.json").read_text())
    return [row | {"annotations": list(given)} for row in rows]


def test_a_reader_has_the_same_name_whoever_else_is_in_the_export(tmp_path: Path) -> None:
    tasks = drawn(tmp_path)
    x, y = (annotation("equal", by={"id": number, "email": f"frieda@{at}.org"}) for number, at in enumerate("xy"))
    count = len(tasks)
    assert import_rows(tmp_path, exported(tasks, tmp_path, x)).votes == {"frieda-x-org": count}
    assert import_rows(tmp_path, exported(tasks, tmp_path, x, y)).votes == {"frieda-x-org": 0, "frieda-y-org": count}
    again = import_rows(tmp_path, exported(tasks, tmp_path, y))
    assert (again.votes, again.left_out) == ({"frieda-y-org": 0}, {"voted before": count})
    assert {reader: len(votes) for reader, votes in read_votes(tmp_path / "review").items()} == {
        "frieda-x-org": count,
        "frieda-y-org": count,
    }


def test_an_annotation_that_was_changed_since_takes_its_earlier_vote_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (task, *_) = tasks = drawn(tmp_path)
    early, late = "2026-11-20T11:00:00.5Z", "2026-11-21T09:00:00Z"
    before, after = annotation("equal", updated_at=early), annotation("both wrong", typed="a mass", updated_at=late)
    count = len(tasks)
    assert import_rows(tmp_path, exported(tasks, tmp_path, before)).votes == {"annotator7": count}
    rows = [*exported([task], tmp_path, after), *exported(tasks[1:], tmp_path, before)]
    (tmp_path / "out.json").write_text(json.dumps(rows))
    main(["import", "votes", str(tmp_path / "out.json"), "--review", str(tmp_path)])
    told = capsys.readouterr().out
    assert "annotator7: 1 vote\n" in told
    assert "changed since: 1 vote, taken back" in told
    assert f"left out: {count - 1} voted before" in told
    written = read_votes(tmp_path / "review")["annotator7"]
    assert [(vote.event, vote.task_id, vote.choice) for vote in written[count:]] == [
        ("undo", task.id, None),
        ("vote", task.id, "both wrong"),
    ]
    assert [vote.number for vote in written] == list(range(1, count + 3))
    found = standing(written)[task.id, 0]
    assert (found.vote.at, found.correct_answer) == ("2026-11-21T09:00:00.000+00:00", "a mass")
    # The same export again, an older one, and another annotation by the same person change nothing.
    again = [rows, exported(tasks, tmp_path, before), exported(tasks, tmp_path, after | {"id": 4, "updated_at": "2026-11-22"})]
    for export in again:
        result = import_rows(tmp_path, export)
        assert (result.votes, result.changed, result.left_out) == ({"annotator7": 0}, 0, {"voted before": count})


@pytest.mark.parametrize("name", ["question", "answer_1", "answer_2"])
@pytest.mark.parametrize("text", ["something else", None])
def test_a_task_whose_text_was_changed_is_left_out(tmp_path: Path, name: str, text: str | None) -> None:
    tasks = drawn(tmp_path)
    rows = exported(tasks, tmp_path, annotation("answer 1 is better"))
    rows[0]["data"][name] = text
    rows[1]["data"] |= {"answer_1": rows[1]["data"]["answer_2"], "answer_2": rows[1]["data"]["answer_1"]}
    rows[2]["data"] |= {"image": "https://elsewhere.example/1.png", "ward": 7}
    found = import_rows(tmp_path, rows)
    assert (found.votes, found.left_out) == ({"annotator7": len(tasks) - 2}, {"shown otherwise than the task": 2})
    assert not {tasks[0].id, tasks[1].id} & {vote.task_id for vote in read_votes(tmp_path / "review")["annotator7"]}


def test_a_vote_on_the_page_stands_whatever_was_changed_in_label_studio(tmp_path: Path) -> None:
    tasks = drawn(tmp_path)
    with closing(ReviewSession(tmp_path / "review", tasks, ["annotator7"])) as session:
        opened = session.open_task("annotator7")
        assert opened is not None
        session.vote("annotator7", opened.task.id, 0, "equal")
    (page,) = read_votes(tmp_path / "review")["annotator7"]
    assert "annotation" not in page.model_dump_json()
    found = import_rows(tmp_path, exported(tasks, tmp_path, annotation("both wrong", updated_at="2036-01-01T00:00:00Z")))
    assert (found.votes, found.changed) == ({"annotator7": len(tasks) - 1}, 0)


def test_addresses_that_differ_in_case_are_one_reader(tmp_path: Path) -> None:
    tasks = drawn(tmp_path)
    upper, lower = (annotation("equal", by={"id": 4, "email": text}) for text in ("Anna@x.org", "anna@x.org"))
    found = import_rows(tmp_path, exported(tasks, tmp_path, upper, lower))
    assert (found.votes, found.left_out) == ({"anna-x-org": len(tasks)}, {"voted before": len(tasks)})


def test_an_answer_longer_than_the_page_takes_is_left_out(tmp_path: Path) -> None:
    tasks = drawn(tmp_path)
    fits, long = (annotation("both wrong", typed="x" * (LONGEST_ANSWER + more), by=more) for more in (0, 1))
    found = import_rows(tmp_path, exported(tasks, tmp_path, fits, long))
    assert found.votes == {"annotator0": len(tasks)}
    assert found.left_out == {"answer of more than 4,000 letters": len(tasks)}
    with pytest.raises(StllavaError, match=f": {len(tasks)} answer of more than 4,000 letters; expected"):
        import_rows(tmp_path, exported(tasks, tmp_path, long))
    with pytest.raises(StllavaError, match="it has no annotations; expected"):
        import_rows(tmp_path, exported(tasks, tmp_path))


def test_the_interface_does_not_take_the_place_of_the_tasks(tmp_path: Path) -> None:
    with pytest.raises(StllavaError, match=r"Name .*tasks\.json"):
        to_label_studio(drawn(tmp_path), "verdicts", to=tmp_path / "tasks.xml", image_url="")
    assert not (tmp_path / "tasks.xml").exists()


def test_two_annotators_whose_names_would_be_one_are_refused_and_nothing_is_added(tmp_path: Path) -> None:
    tasks = drawn(tmp_path)
    people = [annotation("equal", by={"id": number, "email": text}) for number, text in enumerate(("a.b@x.org", "a-b@x.org"))]
    with pytest.raises(StllavaError, match="would both be the reader a-b-x-org"):
        import_rows(tmp_path, exported(tasks, tmp_path, *people))
    assert read_votes(tmp_path / "review") == {}


@pytest.mark.parametrize("text", ["", "{}", "[{}]", "[1]", '[{"data": {"task_id": 5}}]'], ids=repr)
def test_a_file_that_is_no_export_is_refused(tmp_path: Path, text: str) -> None:
    drawn(tmp_path)
    (tmp_path / "out.json").write_text(text)
    with pytest.raises(StllavaError, match="cannot be read"):
        from_label_studio(tmp_path / "review", tmp_path / "out.json", "verdicts")
    (tmp_path / "out.json").write_text("[]")
    with pytest.raises(StllavaError, match="holds no vote"):
        from_label_studio(tmp_path / "review", tmp_path / "out.json", "verdicts")
