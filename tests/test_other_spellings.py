"""Data in spellings that public reports show beside the documented ones: read as meant, or left out by cause."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stllava.data.benchmarks.own import read_samples
from stllava.data.conversations import read_conversation_file
from stllava.data.exchange.incoming import import_preferences
from stllava.data.folder import listed_images
from stllava.data.images import open_image
from stllava.errors import ItemError, StllavaError
from stllava.records import Preference
from stllava.store import read_records

SAID = {"role": "assistant", "content": "x"}
TWO = [{"index": 1, "text": None, "type": "image"}, {"index": 0, "text": None, "type": "image"}]
ASKED = {"role": "user", "content": [{"index": None, "text": "Which is older?", "type": "text"}, *TWO]}


def written(folder: Path, name: str, rows: object) -> Path:
    """A file of rows, or of a text as it is."""
    path = folder / name
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows), encoding="utf-8")
    return path


def test_images_that_turns_show_by_number_stand_in_that_order(tmp_path: Path) -> None:
    """As in the Hub's sets for TRL, {"type": "image", "index": 1}; read in the order of the column, the two were exchanged."""
    row = {"images": ["a.png", "b.png"], "messages": [ASKED, SAID]}
    assert read_conversation_file(written(tmp_path, "a.json", [row])).records[0].images == ("b.png", "a.png")
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    pair = {"images": row["images"], "prompt": [ASKED], "chosen": [SAID], "rejected": [{"role": "assistant", "content": "y"}]}
    import_preferences(written(tmp_path, "b.json", [pair]), images=tmp_path, to=tmp_path / "pairs")
    assert read_records(tmp_path / "pairs", "preferences", Preference)[0].images == ("b.png", "a.png")


@pytest.mark.parametrize("indices", [(0, 2), (0, 0), (0,)], ids=["beyond", "one twice", "one not shown"])
def test_numbers_that_do_not_show_each_image_once_leave_the_row_out(tmp_path: Path, indices: tuple[int, ...]) -> None:
    parts = [{"type": "text", "text": "Q"}, *({"type": "image", "index": index} for index in indices)]
    row = {"images": ["a.png", "b.png"], "messages": [{"role": "user", "content": parts}, SAID]}
    assert read_conversation_file(written(tmp_path, "a.json", [row])).dropped["malformed"] == 1


@pytest.mark.parametrize(
    "mark",
    ["<|vision_start|><|image_pad|><|vision_end|>", "<image_1>", "<ImageHere>", "[IMG]", "<IMAGE>", "<image-placeholder>"],
)
def test_another_models_word_for_an_image_is_told(tmp_path: Path, mark: str) -> None:
    row = {"image": "a.png", "messages": [{"role": "user", "content": f"{mark}\nQ"}, SAID]}
    (note,) = read_conversation_file(written(tmp_path, "a.json", [row])).notes
    assert "in another way than <image>" in note


@pytest.mark.parametrize("flag", ["train", "training", "loss"])
def test_a_turn_that_axolotl_would_not_learn_is_not_learned(tmp_path: Path, flag: str) -> None:
    row = {"image": "a.png", "messages": [{"role": "user", "content": "Q"}, {**SAID, flag: False}]}
    assert read_conversation_file(written(tmp_path, "a.json", [row])).dropped["a turn not to be learned"] == 1


def test_two_columns_of_images_that_differ_are_no_row_to_learn_from(tmp_path: Path) -> None:
    row = {"image": "a.png", "images": ["b.png"], "question": "Q", "answer": "x"}
    assert read_conversation_file(written(tmp_path, "a.json", [row])).dropped["malformed"] == 1
    row["images"] = ["old/a.png"]
    assert read_conversation_file(written(tmp_path, "a.json", [row])).records[0].images == ("old/a.png",)


def test_a_column_that_is_null_gives_way_to_the_one_that_is_filled(tmp_path: Path) -> None:
    row = {"image": "a.png", "conversations": None, "query": None, "response": None, "question": "Q", "answer": "x"}
    assert read_conversation_file(written(tmp_path, "a.json", [row])).records[0].messages[0].content == "Q"


@pytest.mark.parametrize("listed", ['["a.png", "b.png"]', "['a.png', 'b.png']"], ids=["JSON", "Python, by pandas"])
def test_a_cell_of_a_table_holds_several_images(tmp_path: Path, listed: str) -> None:
    cell = listed.replace('"', '""')
    path = written(tmp_path, "a.csv", f'images,question,answer\n"{cell}",Q,x\n')
    assert read_conversation_file(path).records[0].images == ("a.png", "b.png")


def test_turns_that_pandas_wrote_are_turns_and_a_broken_cell_is_said_to_be_broken(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "a \\(x\\)"}, {"from": "gpt", "value": "it's"}]
    read = read_conversation_file(written(tmp_path, "a.csv", f'image\tconversations\na.png\t{turns!r}\nb.png\t[{{"from"\n'))
    assert [message.content for message in read.records[0].messages] == ["a \\(x\\)", "it's"]
    assert "begins like turns and is no JSON" in read.dropped.examples["malformed"]


def test_one_file_has_one_path_however_its_folder_is_spelt(tmp_path: Path) -> None:
    names = ["./a.png", "a.png", f"file://{tmp_path}/a%20b.png"]
    assert [one.path for one in listed_images(written(tmp_path, "a.json", names), root=tmp_path)] == ["a.png", "a b.png"]


def test_a_list_of_quoted_paths_has_no_quotes_in_them(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", '"a b.png"\n"c.png"\n')
    assert [one.path for one in listed_images(path, root=tmp_path)] == ["a b.png", "c.png"]


def test_choices_that_pandas_wrote_are_choices(tmp_path: Path) -> None:
    (sample,), _ = read_samples(written(tmp_path, "a.csv", "image;question;choices;answer\na.png;Q;['left', 'right'];B\n"))
    assert (sample.choices, sample.targets) == (("left", "right"), ("right",))


def test_columns_of_letters_are_choices(tmp_path: Path) -> None:
    """As in the tables of MMBench, where the answer is a letter: it was an open question whose answer is "B"."""
    (sample,), _ = read_samples(written(tmp_path, "a.tsv", "image\tquestion\tA\tB\tC\tanswer\na.png\tQ\tleft\tright\t\tB\n"))
    assert (sample.kind, sample.choices, sample.targets, sample.labels) == ("closed", ("left", "right"), ("right",), {})


def test_answers_of_many_people_are_their_texts(tmp_path: Path) -> None:
    """As in VQAv2: the target was the text of the whole object."""
    said = [{"answer": "left", "answer_id": 1}, {"answer": "left", "answer_id": 2}, {"answer": "right", "answer_id": 3}]
    (sample,), _ = read_samples(written(tmp_path, "a.json", [{"image": "a.png", "question": "Q", "answers": said}]))
    assert sample.targets == ("left", "right")
    with pytest.raises(StllavaError, match="answers holds a dict"):
        read_samples(written(tmp_path, "a.json", [{"image": "a.png", "question": "Q", "answers": [{"text": "left"}]}]))


def test_an_answer_that_is_no_choice_can_never_be_right_and_is_left_out(tmp_path: Path) -> None:
    """As in ScienceQA, whose answers are numbers of choices, from 0: no reply was ever right."""
    good = [{"image": "a.png", "question": f"Q{number}", "choices": ["l", "r"], "answer": "r"} for number in range(40)]
    samples, notes = read_samples(written(tmp_path, "a.json", [*good, {**good[0], "answer": 1}]))
    assert len(samples) == 40
    assert "1 of 41 rows" in notes[0]
    with pytest.raises(StllavaError, match="none of their choices"):
        read_samples(written(tmp_path, "a.json", [{**row, "answer": 1} for row in good]))


def test_the_place_of_an_image_in_a_benchmarks_question_is_no_text(tmp_path: Path) -> None:
    samples, _ = read_samples(
        written(tmp_path, "a.json", [{"image": "a.png", "question": "<image>\nWhich side?", "answer": "x"}])
    )
    assert samples[0].question == "Which side?"


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (-3, 5), (0, 1.5)], ids=["centred", "standardised", "over one"])
def test_a_float_picture_that_was_scaled_is_not_black(tmp_path: Path, low: float, high: float) -> None:
    Image.fromarray(np.linspace(low, high, 256, dtype=np.float32).reshape(16, 16)).save(tmp_path / "a.tif")
    shades = np.asarray(open_image(tmp_path, "a.tif"))
    assert (shades.min(), shades.max()) == (0, 255)


def test_a_pointer_of_git_lfs_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ItemError, match="git lfs pull"):
        open_image(tmp_path, "a.png")
