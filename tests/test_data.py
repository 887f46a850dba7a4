"""Reading labelled conversations."""

import json
from collections import Counter
from pathlib import Path

import pytest

from stllava.data.conversations import conversation, read_conversations
from stllava.errors import StllavaError
from stllava.records import Message
from stllava.store import to_jsonl

Row = dict[str, object]


def llava(*turns: str, image: str | list[str] | None = "a.png", **more: object) -> Row:
    """A row as LLaVA writes it, people and model taking turns."""
    made = [{"from": "gpt" if number % 2 else "human", "value": turn} for number, turn in enumerate(turns)]
    return {"image": image, "conversations": made, **more}


BACKWARDS: Row = {"image": "a", "conversations": [{"from": "gpt", "value": "x"}, {"from": "human", "value": "y"}]}


def written(path: Path, content: object) -> Path:
    """The path, after the content is there as JSON."""
    path.write_text(json.dumps(content))
    return path


def test_llava_rows_become_conversations(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.json",
        [
            llava("<image>\nWhat is it?", "A lung.", "And\nthis?", "A heart.", id="one"),
            {
                "id": 2,
                "image": ["a.png", "b.png"],
                "conversatons": [{"from": "user", "value": "What?\n<image>"}, {"from": "assistant", "value": "Two."}],
            },
            llava("Same?", "Yes."),
        ],
    )
    rows, dropped = read_conversations(path)
    assert not dropped
    assert [row.id for row in rows[:2]] == ["one", "2"]
    assert [message.content for message in rows[0].messages] == ["What is it?", "A lung.", "And\nthis?", "A heart."]
    assert [message.role for message in rows[1].messages] == ["user", "assistant"]
    assert rows[1].images == ("a.png", "b.png")
    assert rows[1].messages[0].content == "What?"
    assert rows[2] == conversation(("a.png",), rows[2].messages)


@pytest.mark.parametrize(
    ("row", "cause"),
    [
        pytest.param(llava(), "no turns", id="no turns"),
        pytest.param(llava("Only a question?"), "odd order", id="no answer"),
        pytest.param(BACKWARDS, "odd order", id="answer first"),
        pytest.param(llava("<image>\n", "Yes."), "empty text", id="only a placeholder"),
        pytest.param(llava("What?", " "), "empty text", id="blank answer"),
        pytest.param(llava("What?", "That.", image=None), "no image", id="image null"),
        pytest.param(llava("What?", "That.", image=[]), "no image", id="image list empty"),
        pytest.param({"image": "a", "conversations": [{"from": "cat", "value": "miaow"}]}, "unknown speaker", id="cat"),
        pytest.param({"image": "a", "conversations": [{"value": "x"}]}, "malformed", id="no speaker"),
        pytest.param("text", "malformed", id="not a row"),
    ],
)
def test_a_row_that_cannot_be_learned_from_is_counted(tmp_path: Path, row: object, cause: str) -> None:
    rows, dropped = read_conversations(written(tmp_path / "a.json", [row, llava("What?", "That.")]))
    assert len(rows) == 1
    assert dropped == {cause: 1}


def test_our_own_jsonl_reads_as_it_was_written(tmp_path: Path) -> None:
    asked = (Message(role="user", content="What?"), Message(role="assistant", content="That."))
    more = (Message(role="virtual_user", content="And?"), Message(role="assistant", content="This."))
    good = conversation(("a.png",), asked + more)
    bad = conversation(("a.png",), more + asked)
    (tmp_path / "a.jsonl").write_text(to_jsonl([good, bad]))
    assert read_conversations(tmp_path / "a.jsonl") == ([good], Counter({"odd order": 1}))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'[\n{"id": 1},\n{"id"\n]', "a.json, line 4"),
        ("a.json", b'["\xff"]', "a.json, line 1: not UTF-8"),
        ("a.json", b'{"id": 1}', "holds a dict"),
        ("a.jsonl", b'\n{"id": "x", "images"', "a.jsonl, line 2"),
    ],
    ids=["json", "bytes", "no list", "jsonl"],
)
def test_a_broken_file_is_refused_by_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StllavaError, match=message):
        read_conversations(tmp_path / name)


def test_a_duplicate_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StllavaError, match="row 2: id 'x' is the id of row 1"):
        read_conversations(written(tmp_path / "a.json", [llava("What?", "That.", id="x"), llava("Who?", "She.", id="x")]))
    row = conversation(("a.png",), (Message(role="user", content="What?"), Message(role="assistant", content="That.")))
    (tmp_path / "a.jsonl").write_text(to_jsonl([row, row]))
    with pytest.raises(StllavaError, match="line 2: id"):
        read_conversations(tmp_path / "a.jsonl")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StllavaError, match="no file"):
        read_conversations(tmp_path / "gone.json")
