"""Reading labelled conversations."""

import json
from collections import Counter
from pathlib import Path

import pytest

from stllava.data.conversations import PAIRS, conversation, read_conversation_file, read_conversations, singles
from stllava.data.turns import SPEAKERS
from stllava.errors import StllavaError
from stllava.records import Message
from stllava.store import to_jsonl

Row = dict[str, object]


def llava(*turns: str, image: object = "a.png", **more: object) -> Row:
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
        pytest.param(llava("What is in <image>?", "That.", image=None), "no image", id="a place without an image"),
        pytest.param(llava("<img>a.png</img>What?", "That.", image=None), "no image", id="Qwen-VL's own text, ms-swift 346"),
        pytest.param(llava("What?", "That.", image=[""]), "no image", id="an image without a name"),
        pytest.param(llava("What?", "That.", image=""), "no image", id="the empty cell of a table"),
        pytest.param({"image": "a", "query": "x", "response": "y", "history": "z"}, "malformed", id="a history of text"),
        pytest.param(llava("What?", "Like <image>, that."), "image outside a question", id="in an answer, ms-swift 3888"),
        pytest.param(llava("<image><image><image>", "x", image=["a", "b"]), "more places than images", id="LlamaFactory 7909"),
        pytest.param(llava("<video>\nWhat?", "That.", image=None, video="a.mp4"), "video", id="lmms-finetune 5"),
        pytest.param(llava("What?", "That.", tools='[{"name": "zoom"}]'), "tools", id="tools"),
        pytest.param(llava("What?", "That.", label=False), "marked as bad", id="KTO's bad example"),
        pytest.param(llava("What?", "That.", image={"bytes": "/9j/"}), "image inside the row", id="bytes without a path"),
        pytest.param(llava("What?", "That.", image="https://x.org/a.png"), "image by URL", id="URL"),
        pytest.param(llava("What?", "That.", id=[1]), "malformed", id="id list"),
        pytest.param(llava("What?", "That.", image=7), "malformed", id="image number"),
        pytest.param({"image": "a", "conversations": "What?"}, "odd order", id="a text"),
        pytest.param({"image": "a", "text": "a caption"}, "no turns", id="other columns, ms-swift 3754"),
        pytest.param(
            {
                "image": "a",
                "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "loss": False}],
            },
            "a turn not to be learned",
            id="a turn without loss",
        ),
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


def test_a_repeated_id_of_others_names_no_row_and_none_is_lost(tmp_path: Path) -> None:
    # LLaVA's own mixture of 665,000 rows repeats the ids of COCO's images.
    rows = [llava("What?", "That.", id="x"), llava("Who?", "She.", id="x"), llava("Why?", "So.", id="y")]
    read, dropped = read_conversations(written(tmp_path / "a.json", [*rows, rows[0]]))
    assert [row.messages[0].content for row in read] == ["What?", "Who?", "Why?"]
    assert [row.id for row in read] == [conversation(row.images, row.messages).id for row in read[:2]] + ["y"]
    assert dropped == {"repeated": 1}


def test_a_duplicate_id_of_our_own_records_is_refused(tmp_path: Path) -> None:
    row = conversation(("a.png",), (Message(role="user", content="What?"), Message(role="assistant", content="That.")))
    (tmp_path / "a.jsonl").write_text(to_jsonl([row, row]))
    with pytest.raises(StllavaError, match="line 2: id"):
        read_conversations(tmp_path / "a.jsonl")


TALK = [("user", "What is it?", ()), ("assistant", "A lung.", ())]
BRIEF = [("system", "Be brief.", ()), *TALK]
PARTS = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What is it?"}]
BY_ROW: dict[str, tuple[Row, object, tuple[str, ...]]] = {
    "one image": (llava("<image>\nWhat is it?", "A lung."), TALK, ("a.png",)),
    "without a place (xtuner 771)": (llava("What is it?", "A lung."), TALK, ("a.png",)),
    "images": (
        {"images": ["a.png"], "conversations": llava("<image>What is it?", "A lung.")["conversations"]},
        TALK,
        ("a.png",),
    ),
    "images of the Hub": (llava("What is it?", "A lung.", image=[{"bytes": None, "path": "a.png"}]), TALK, ("a.png",)),
    "a path as Windows writes it": (llava("What is it?", "A lung.", image="sub\\a.png"), TALK, ("sub/a.png",)),
    "no image (Qwen-VL-Series-Finetune 109)": ({"conversations": llava("What is it?", "A lung.")["conversations"]}, TALK, ()),
    "image null": (llava("What is it?", "A lung.", image=None), TALK, ()),
    "no images": (
        {"messages": [{"role": "user", "content": "What is it?"}, {"role": "model", "content": "A lung."}], "images": []},
        TALK,
        (),
    ),
    "the image in the turn, as Qwen's": (
        {"messages": [{"role": "user", "content": PARTS}, {"role": "assistant", "content": "A lung."}]},
        TALK,
        ("a.png",),
    ),
    "system beside the turns": (llava("What is it?", "A lung.", system="Be brief."), BRIEF, ("a.png",)),
    "system_prompt (lmms-finetune 5)": (llava("What is it?", "A lung.", system_prompt="Be brief."), BRIEF, ("a.png",)),
    "ms-swift's ShareGPT": (
        {"system": "Be brief.", "conversation": [{"human": "<image>What is it?", "assistant": "A lung."}], "images": "a.png"},
        BRIEF,
        ("a.png",),
    ),
    "query and response": ({"query": "<image>What is it?", "response": "A lung.", "images": ["a.png"]}, TALK, ("a.png",)),
    "Alpaca": ({"instruction": "What is", "input": "it?", "output": "A lung.", "images": ["a.png"]}, None, ("a.png",)),
    "question and answer": ({"image": "a.png", "question": "What is it?", "answer": "A lung."}, TALK, ("a.png",)),
    "history": (
        {"image": "a.png", "query": "What is it?", "response": "A lung.", "history": [["<image>Left?", "Yes."]]},
        [("user", "Left?", ()), ("assistant", "Yes.", ()), *TALK],
        ("a.png",),
    ),
    "two images in a text": (
        llava("Is <image> older than <image>?", "Yes.", image=["a.png", "b.png"]),
        [("user", "Is  older than ?", (3, 15)), ("assistant", "Yes.", ())],
        ("a.png", "b.png"),
    ),
    "an image behind the text": (
        llava("What is it?\n<image>", "A lung."),
        [("user", "What is it?", (11,)), ("assistant", "A lung.", ())],
        ("a.png",),
    ),
    "images in two turns": (
        llava("<image>What is it?", "A lung.", "And <image> this?", "A heart.", image=["a.png", "b.png"]),
        [
            ("user", "What is it?", (0,)),
            ("assistant", "A lung.", ()),
            ("user", "And  this?", (4,)),
            ("assistant", "A heart.", ()),
        ],
        ("a.png", "b.png"),
    ),
    "one image named in every turn (ms-swift 5247)": (
        llava("<image>What is it?", "A lung.", "<image>And this?", "A heart."),
        [*TALK, ("user", "And this?", ()), ("assistant", "A heart.", ())],
        ("a.png",),
    ),
    "fewer places than images (LlamaFactory 5329)": (
        llava("See <image>: what is it?", "A lung.", image=["a.png", "b.png"]),
        [("user", "See : what is it?", ()), ("assistant", "A lung.", ())],
        ("a.png", "b.png"),
    ),
}


@pytest.mark.parametrize("kind", BY_ROW)
@pytest.mark.parametrize("form", ["list", "lines", "lines in .json", "list in UTF-16", "lines with a mark"])
def test_a_row_as_it_is_found_becomes_the_same_conversation(kind: str, form: str, tmp_path: Path) -> None:
    row, turns, images = BY_ROW[kind]
    text = json.dumps([row], indent=1) if form.startswith("list") else "".join(f"{json.dumps(one)}\n" for one in (row, {}))
    path = tmp_path / ("a.jsonl" if form in ("lines", "lines with a mark") else "a.json")
    path.write_bytes(text.encode({"list in UTF-16": "utf-16", "lines with a mark": "utf-8-sig"}.get(form, "utf-8")))
    (read,), dropped = read_conversations(path)
    assert dropped == ({} if form.startswith("list") else {"no turns": 1})
    wanted = turns or [("user", "What is\nit?", ()), TALK[1]]
    assert [(turn.role, turn.content, turn.image_offsets) for turn in read.messages] == wanted
    assert read.images == images


def test_what_is_read_though_it_is_not_quite_what_it_seems_is_told(tmp_path: Path) -> None:
    rows = [llava("What?", "That.", image=None, source="web"), llava("In <image>?", "No.", image=["a.png", "b.png"])]
    assert read_conversation_file(written(tmp_path / "a.json", rows)).notes == (
        "1 of 2 rows of a.json have no image and are learned as text alone.",
        "1 of 2 rows of a.json place another number of images than they have: all come first, one image at its first place.",
        "Columns of a.json that were not read: source.",
    )


@pytest.mark.parametrize("speaker", sorted(SPEAKERS))
def test_whoever_speaks_is_known_by_the_names_that_are_in_use(speaker: str, tmp_path: Path) -> None:
    names = {"user": ("human", "gpt"), "assistant": ("Human", speaker.upper()), "system": ("human", "gpt")}
    asks, says = names.get(SPEAKERS[speaker], (speaker, "gpt"))
    turns = [{"from": asks, "value": "x"}, {"from": says, "value": "y"}]
    turns = [{"from": speaker, "value": "z"}, *turns] if SPEAKERS[speaker] == "system" else turns
    turns = [*turns, {"from": speaker, "value": "z"}, turns[1]] if SPEAKERS[speaker] == "user" else turns
    if SPEAKERS[speaker] == "virtual_user":
        turns = [{"from": "human", "value": "x"}, turns[1], *turns]
    read, dropped = read_conversations(written(tmp_path / "a.json", [{"image": "a", "conversations": turns}]))
    assert SPEAKERS[speaker] in {turn.role for turn in read[0].messages}
    assert not dropped


def test_a_file_of_another_layout_is_refused_by_its_columns_and_those_that_are_known(tmp_path: Path) -> None:
    rows = [{"image": "a.png", "text": "a caption"}, {"image": "b.png", "caption": "another"}]
    with pytest.raises(
        StllavaError, match="has the columns image, text, caption; expected turns in one of the columns conv"
    ) as no:
        read_conversations(written(tmp_path / "a.json", rows))
    assert all(" and ".join(pair) in str(no.value) for pair in PAIRS)


def test_absolute_paths_inside_the_root_become_relative_to_it(tmp_path: Path) -> None:
    rows = [llava("What?", "That.", image=str(tmp_path / "x" / "a.png")), llava("What?", "No.", image="file:///else/a.png")]
    read, _ = read_conversations(written(tmp_path / "a.json", rows), root=tmp_path)
    assert [row.images for row in read] == [("x/a.png",), ("/else/a.png",)]


def test_a_row_of_ms_swift_with_an_id_is_no_record_of_ours(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Look: <image> What?"}, {"role": "assistant", "content": "That."}]
    row = {"id": "7", "messages": turns, "images": ["a.png"]}
    ours = conversation(
        ("a.png",), (Message(role="user", content="What does <image> mean?"), Message(role="assistant", content="x"))
    )
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n" + to_jsonl([ours]))
    read, _ = read_conversations(tmp_path / "a.jsonl")
    assert (read[0].messages[0].content, read[0].messages[0].image_offsets) == ("Look:  What?", (6,))
    assert read[1] == ours


def test_every_question_of_a_conversation_also_stands_by_itself_once(tmp_path: Path) -> None:
    rows = [
        llava("<image>\nDescribe it.", "A CT.", "Is it a lung?", "yes", "Left?", "no", system="Be brief."),
        {"image": "a.png", "system": "Be brief.", "conversations": llava("Is it a lung?", "yes")["conversations"]},
        llava("One.", "Two.", "Three?", "Four.", image=None),
        llava("<image>What?", "x", "And <image>?", "y", image=["a.png", "b.png"]),
    ]
    read, _ = read_conversations(written(tmp_path / "a.json", rows))
    assert [[turn.content for turn in row.messages] for row in singles(read)] == [
        ["Be brief.", "Describe it.", "A CT."],
        ["Be brief.", "Left?", "no"],
    ]
    assert singles([*read, *singles(read)]) == []


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StllavaError, match="no file"):
        read_conversations(tmp_path / "gone.json")
