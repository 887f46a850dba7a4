"""VQA-RAD, and the preparation of a run's data."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from stllava.data.benchmarks import VQA_RAD_TEST, read_vqa_rad
from stllava.data.conversations import conversation, read_conversations, singles
from stllava.data.prepare import DataSet, prepare
from stllava.data.sources import FilesData, ImportedData, PhantomData, VqaRadData
from stllava.errors import StllavaError
from stllava.records import Conversation, Image, Overlap, Sample
from stllava.store import locked, read_jsonl, to_jsonl

Row = dict[str, object]


def picture(path: Path, seed: int) -> None:
    """A small image like no other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)).save(path)


def talk(*turns: str, image: str) -> Row:
    """A row as LLaVA writes it, people and model taking turns."""
    made = [{"from": "gpt" if number % 2 else "human", "value": turn} for number, turn in enumerate(turns)]
    return {"image": image, "conversations": made}


def written(path: Path, content: object) -> Path:
    """The path, after the content is there as JSON."""
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def vqa_rad(tmp_path: Path) -> Path:
    """A folder in VQA-RAD's format: 6 training images with 3 questions each, and test on one of them and one more."""
    folder = tmp_path / "rad"
    for number in range(7):
        picture(folder / "images" / f"i{number}.png", number)
    train = [
        _rad(10 * i + q, i, f"Question {q}?", "Yes" if q else i, "CLOSED " if q else "open") for i in range(6) for q in range(3)
    ]
    train += [_rad(90, 5, "question 1", "yes.", "CLOSED"), _rad(91, 0, "Where is it?", "left", "OPEN")]
    test = [_rad(92, 0, "where is it", "on the left", "OPEN"), _rad(93, 6, "Is it?", "no", "CLOSED")]
    written(folder / "train.json", train)
    written(folder / "test.json", test)
    return folder


def _rad(qid: int, image: int, question: str, answer: str | int, kind: str) -> Row:
    return {"qid": qid, "image_name": f"i{image}.png", "question": question, "answer": answer, "answer_type": kind, "more": 1}


@pytest.fixture
def published() -> Path:
    """The published VQA-RAD."""
    folder = os.environ.get("STLLAVA_VQA_RAD")
    if not folder:
        pytest.skip("STLLAVA_VQA_RAD is not set: the published VQA-RAD is NOT tested; set it to its folder")
    return Path(folder)


@pytest.fixture
def medvqa() -> Path:
    """2,246 real images with questions that follow from what their sources state."""
    folder = os.environ.get("STLLAVA_MEDVQA")
    if not folder:
        pytest.skip("STLLAVA_MEDVQA is not set: a real set of files is NOT tested; set it to the folder of medvqa_mini")
    return Path(folder)


def test_vqa_rad_rows_become_samples(vqa_rad: Path) -> None:
    both = read_vqa_rad(vqa_rad)
    assert (len(both.train), len(both.test)) == (20, 2)
    assert both.train[3] == Sample(
        id="vqa-rad-10", image="images/i1.png", question="Question 0?", targets=("1",), kind="open", split="train"
    )
    assert both.train[1].kind == "closed"


def test_a_repeated_qid_is_replaced_by_the_content(vqa_rad: Path) -> None:
    written(
        vqa_rad / "test.json", [_rad(1, 0, "A?", "a", "OPEN"), _rad(1, 0, "B?", "b", "OPEN"), _rad(2, 0, "C?", "c", "OPEN")]
    )
    ids = [sample.id for sample in read_vqa_rad(vqa_rad).test]
    assert len(set(ids)) == 3
    assert ids[2] == "vqa-rad-2"
    assert not ids[0].startswith("vqa-rad")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"qid": 1, "image_name": "a", "question": "?", "answer": "x"}, "row 1: answer_type: Field required"),
        (_rad(1, 0, "?", "x", "MAYBE"), "row 1: answer_type is 'MAYBE'"),
        ("row", "row 1: row"),
    ],
    ids=["no key", "unknown type", "no row"],
)
def test_a_vqa_rad_row_that_lacks_something_is_refused(vqa_rad: Path, row: object, message: str) -> None:
    written(vqa_rad / "test.json", [row])
    with pytest.raises(StllavaError, match=message):
        read_vqa_rad(vqa_rad)


def test_a_folder_that_is_not_vqa_rad_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StllavaError, match=r"no file .*train.json; expected the VQA-RAD folder"):
        prepare(VqaRadData(kind="vqa-rad", folder=tmp_path), seed=0, to=tmp_path / "data")


def rad(folder: Path, **more: int | str) -> VqaRadData:
    """Options for the small folder."""
    return VqaRadData.model_validate({"kind": "vqa-rad", "folder": folder, "labelled": 2, "validation": 1, **more})


def images_of(data: DataSet) -> dict[str, set[str]]:
    """The images of every part of a data set."""
    assert data.truth is not None
    return {
        "labelled": {path for row in read_jsonl(data.conversations, Conversation) for path in row.images},
        "unlabelled": {image.path for image in read_jsonl(data.images, Image)},
        "validation": {sample.image for sample in read_jsonl(data.validation, Sample)},
        "references": {sample.image for sample in read_jsonl(data.truth, Sample)},
    }


def test_vqa_rad_is_split_by_image(vqa_rad: Path, tmp_path: Path) -> None:
    data = prepare(rad(vqa_rad), seed=0, to=tmp_path / "data", allow_overlap=True)
    parts = images_of(data)
    assert [len(parts[name]) for name in ("labelled", "validation", "unlabelled")] == [2, 1, 3]
    assert len(parts["labelled"] | parts["validation"] | parts["unlabelled"]) == 6
    assert parts["references"] == parts["unlabelled"]
    assert all((data.image_root / path).is_file() for paths in parts.values() for path in paths)
    talks = Counter(len(row.messages) for row in read_jsonl(data.conversations, Conversation))
    assert talks == {2: 6, 6: 2}
    assert len(read_jsonl(data.benchmarks["vqa-rad"], Sample)) == 2
    assert data.manifest.dropped == {"question of the test split": 1, "repeated": 1}
    assert (data.manifest.counts_in, data.manifest.counts_out) == (22, 20)
    assert any(note.startswith("Of 2 test images of vqa-rad, 1 are byte for byte among") for note in data.notes)
    assert any("This is the standard split." in note for note in data.notes)
    assert any("the published one 179 and 272" in note for note in data.notes)


def test_the_seed_decides_the_split(vqa_rad: Path, tmp_path: Path) -> None:
    made = [prepare(rad(vqa_rad), seed=seed, to=tmp_path / name, allow_overlap=True) for seed, name in ((0, "a"), (0, "b"))]
    assert made[0].manifest.outputs == made[1].manifest.outputs
    others = [prepare(rad(vqa_rad), seed=seed, to=tmp_path / str(seed), allow_overlap=True) for seed in range(1, 5)]
    assert any(other.manifest.outputs != made[0].manifest.outputs for other in others)


def test_shared_images_are_refused_until_allowed(vqa_rad: Path, tmp_path: Path) -> None:
    to = tmp_path / "data"
    with pytest.raises(StllavaError, match="Of 2 test images of vqa-rad, 1 are byte for byte"):
        prepare(rad(vqa_rad), seed=0, to=to)
    assert prepare(rad(vqa_rad), seed=0, to=to, allow_overlap=True).notes
    with pytest.raises(StllavaError, match="Of 2 test images"):
        prepare(rad(vqa_rad), seed=0, to=to)


def test_a_finished_data_set_is_left_alone(vqa_rad: Path, tmp_path: Path) -> None:
    to = tmp_path / "data"
    first = prepare(rad(vqa_rad), seed=0, to=to, allow_overlap=True)
    before = {path: path.stat().st_mtime_ns for path in to.iterdir()}
    assert prepare(rad(vqa_rad), seed=0, to=to, allow_overlap=True) == first
    assert {path: path.stat().st_mtime_ns for path in to.iterdir()} == before
    with pytest.raises(StllavaError, match=r"inputs.seed was \"0\", now \"1\""):
        prepare(rad(vqa_rad), seed=1, to=to, allow_overlap=True)
    with pytest.raises(StllavaError, match="has output already"):
        prepare(rad(vqa_rad), seed=0, to=to, allow_overlap=True, existing="error")
    replaced = prepare(rad(vqa_rad, labelled=3), seed=0, to=to, allow_overlap=True, existing="replace")
    assert replaced.manifest.measures["labelled_images"] == 3


def test_too_few_images_for_the_split_are_refused(vqa_rad: Path, tmp_path: Path) -> None:
    with pytest.raises(StllavaError, match=r"6 usable training images, 5 \+ 1 are set aside"):
        prepare(rad(vqa_rad, labelled=5), seed=0, to=tmp_path / "data", allow_overlap=True)


def test_labelled_all_leaves_no_image_to_ask_about_and_the_same_validation(vqa_rad: Path, tmp_path: Path) -> None:
    some = prepare(rad(vqa_rad), seed=0, to=tmp_path / "some", allow_overlap=True)
    every = prepare(rad(vqa_rad, labelled="all"), seed=0, to=tmp_path / "all", allow_overlap=True)
    assert every.validation.read_text() == some.validation.read_text()
    assert every.images.read_text() == ""
    assert every.manifest.measures["labelled_images"] == 5
    labelled = {path for row in read_jsonl(some.conversations, Conversation) for path in row.images}
    assert labelled < {path for row in read_jsonl(every.conversations, Conversation) for path in row.images}


def test_the_image_disjoint_split_is_read_from_its_own_file(vqa_rad: Path, tmp_path: Path) -> None:
    with pytest.raises(StllavaError, match=r"no file .*train_image_disjoint\.json"):
        prepare(rad(vqa_rad, split="image-disjoint"), seed=0, to=tmp_path / "none")
    rows = json.loads((vqa_rad / "train.json").read_text())
    written(vqa_rad / "train_image_disjoint.json", [row for row in rows if row["image_name"] != "i0.png"])
    data = prepare(rad(vqa_rad, split="image-disjoint"), seed=0, to=tmp_path / "data")
    assert "images/i0.png" not in set.union(*images_of(data).values())
    (overlap,) = [one for one in read_jsonl(data.overlaps, Overlap) if one.benchmark == "vqa-rad"]
    assert (overlap.exact_images, overlap.triplets) == (0, 0)


def test_captions_of_labelled_images_come_first_in_their_conversations(vqa_rad: Path, tmp_path: Path) -> None:
    rows = [row | {"image_organ": "HEAD"} for row in json.loads((vqa_rad / "train.json").read_text())]
    written(vqa_rad / "train.json", rows)
    data = prepare(rad(vqa_rad), seed=0, to=tmp_path / "data", allow_overlap=True)
    assert data.captions is not None
    captions = read_jsonl(data.captions, Conversation)
    assert {path for row in captions for path in row.images} == images_of(data)["labelled"]
    assert {row.messages[1].content for row in captions} == {"The image shows the head."}
    longest = [row for row in read_jsonl(data.conversations, Conversation) if len(row.messages) > 2]
    assert {row.messages[:2] for row in longest} == {row.messages for row in captions}


def test_bad_images_are_counted_or_stop_the_stage_by_name(vqa_rad: Path, tmp_path: Path) -> None:
    (vqa_rad / "images" / "i6.png").write_bytes(b"")
    with pytest.raises(StllavaError, match=r"1 of 7 images .* cannot be used: 'images/i6.png' \(empty\)"):
        prepare(rad(vqa_rad), seed=0, to=tmp_path / "data", allow_overlap=True)
    data = prepare(rad(vqa_rad), seed=0, to=tmp_path / "data", allow_overlap=True, max_bad=0.2)
    assert data.manifest.dropped["empty"] == 1
    assert any("1 open and 0 closed" in note for note in data.notes)


def test_the_published_vqa_rad_has_its_published_counts(published: Path) -> None:
    both = read_vqa_rad(published)
    assert Counter(sample.kind for sample in both.test) == VQA_RAD_TEST
    assert (len(both.train), len({sample.image for sample in both.train})) == (1797, 313)
    assert len({sample.id for sample in (*both.train, *both.test)}) == 2248


def test_the_published_vqa_rad_is_prepared_with_its_overlap_named(published: Path, tmp_path: Path) -> None:
    data = prepare(VqaRadData(kind="vqa-rad", folder=published), seed=0, to=tmp_path / "data", allow_overlap=True)
    parts = images_of(data)
    assert [len(parts[name]) for name in ("labelled", "validation", "unlabelled")] == [60, 30, 223]
    assert data.manifest.dropped == {"question of the test split": 1, "repeated": 3}
    assert any(note.startswith("Of 203 test images of vqa-rad, 202 are byte for byte among") for note in data.notes)
    (overlap,) = [one for one in read_jsonl(data.overlaps, Overlap) if one.benchmark == "vqa-rad"]
    # The one shared triplet was left out of the training side; three more test questions are nearly asked there.
    assert (overlap.exact_images, overlap.near_images, overlap.triplets, overlap.near_questions) == (202, 0, 0, 3)


def sample(image: str, key: str) -> Sample:
    """A question about an image."""
    return Sample(id=key, image=image, question="Is it?", targets=("yes",), kind="closed", split="mine")


@pytest.fixture
def files(tmp_path: Path) -> FilesData:
    """Twelve images: 0 to 3 labelled, 4 and 5 for validation, 6 and 7 for test, the rest only there."""
    root = tmp_path / "images"
    for number in range(12):
        picture(root / f"sub/{number}.png", number)
    written(tmp_path / "talks.json", [talk("What?", "That.", image=f"sub/{number}.png") for number in range(4)])
    for name, numbers in (("validation", (4, 5)), ("mine", (6, 7)), ("references", (8,))):
        rows = [sample(f"sub/{number}.png", f"{name}-{number}") for number in numbers]
        (tmp_path / f"{name}.jsonl").write_text(to_jsonl(rows))
    return FilesData(
        kind="files",
        images=root,
        conversations=tmp_path / "talks.json",
        validation=tmp_path / "validation.jsonl",
        benchmarks={"mine": tmp_path / "mine.jsonl"},
        references=tmp_path / "references.jsonl",
    )


def test_own_files_are_prepared_without_asking_about_held_out_images(files: FilesData, tmp_path: Path) -> None:
    data = prepare(files, seed=0, to=tmp_path / "data")
    parts = images_of(data)
    assert data.image_root == files.images
    assert len(parts["labelled"]) == 4
    assert parts["unlabelled"] == {f"sub/{number}.png" for number in (0, 1, 2, 3, 8, 9, 10, 11)}
    assert data.manifest.dropped == {"held out": 4}
    assert data.manifest.counts_in - data.manifest.counts_out == 4
    assert data.notes == ()


def test_an_explicit_folder_with_benchmark_images_is_refused(files: FilesData, tmp_path: Path) -> None:
    options = files.model_copy(update={"unlabelled": Path("sub")})
    with pytest.raises(StllavaError, match="Of 2 test images of mine, 2 are byte for byte"):
        prepare(options, seed=0, to=tmp_path / "data")
    notes = prepare(options, seed=0, to=tmp_path / "data", allow_overlap=True).notes
    assert any(note.startswith("Of 2 test images of validation, 2") and "less sure" in note for note in notes)
    assert any(note.startswith("Of 2 test images of mine, 2") and "allowed by allow_overlap" in note for note in notes)


def test_a_copy_under_another_name_is_still_the_same_image(files: FilesData, tmp_path: Path) -> None:
    (files.images / "copy.png").write_bytes((files.images / "sub/6.png").read_bytes())
    written(files.conversations, [talk("What?", "That.", image="copy.png")])
    with pytest.raises(StllavaError, match="Of 2 test images of mine, 1 are byte for byte"):
        prepare(files, seed=0, to=tmp_path / "data")


def test_bad_rows_and_images_of_own_files_are_counted_by_cause(files: FilesData, tmp_path: Path) -> None:
    (files.images / "sub/0.png").write_bytes(b"no image")
    (files.images / "sub/6.png").unlink()
    written(
        files.conversations,
        [talk("What?", "That.", image=f"sub/{number}.png") for number in range(4)]
        + [talk("What?", "That.", image="../../secret.png"), talk("What?", image="sub/0.png")],
    )
    with pytest.raises(StllavaError, match=r"1 of 6 rows of .*talks.json cannot be used: 1 × odd order"):
        prepare(files, seed=0, to=tmp_path / "data")
    message = r"3 of 13 images .*'../../secret.png' \(outside-root\), 'sub/0.png' \(not-an-image\), 'sub/6.png' \(missing\)"
    with pytest.raises(StllavaError, match=message):
        prepare(files, seed=0, to=tmp_path / "data", max_bad=0.2)
    data = prepare(files, seed=0, to=tmp_path / "data", max_bad=0.5)
    dropped = {"odd order": 1, "outside-root": 1, "not-an-image": 2, "missing": 1, "held out": 3}
    assert data.manifest.dropped == dropped
    assert data.manifest.measures["conversations"] == 3
    assert "1 of 2 samples of benchmark mine cannot be used and are left out." in data.notes


def test_plain_tables_do_wherever_samples_are_asked_for(files: FilesData, tmp_path: Path) -> None:
    whole = prepare(files, seed=0, to=tmp_path / "whole")
    named = {"validation": files.validation, "references": files.references, "mine": files.benchmarks["mine"]}
    delimiters = {"validation": ";", "references": "\t", "mine": ","}
    for name, path in named.items():
        assert path is not None
        rows = [delimiters[name].join((row.image, row.question, row.targets[0])) for row in read_jsonl(path, Sample)]
        header = delimiters[name].join(("Image", "Question", "Answer"))
        (tmp_path / f"{name}.csv").write_text("\n".join([header, *rows]), encoding="utf-8-sig")
    tables = {"validation": tmp_path / "validation.csv", "references": tmp_path / "references.csv"}
    options = files.model_copy(update={**tables, "benchmarks": {"mine": tmp_path / "mine.csv"}})
    data = prepare(options, seed=0, to=tmp_path / "tables")
    assert images_of(data) == images_of(whole)
    for one, other in ((data.validation, whole.validation), (data.benchmarks["mine"], whole.benchmarks["mine"])):
        pair = [[row.model_dump(exclude={"id", "split"}) for row in read_jsonl(path, Sample)] for path in (one, other)]
        assert pair[0] == pair[1]
    assert "validation.csv has its fields between semicolons." in data.notes
    assert any(note.startswith("mine.csv: 2 questions, 2 of them closed") for note in data.notes)


@pytest.mark.parametrize(
    ("key", "path", "message"),
    [
        ("images", "pics", r"data.images names pics, which does not exist \(looked for in {root}\); expected a folder"),
        ("images", "talks.json", "data.images names talks.json, which is a file"),
        ("conversations", "talk.json", r"data.conversations names talk.json, which does not .* did you mean 'talks.json'\?"),
        ("validation", "images", r"data.validation names images, which is a folder \(in it: sub\).*; expected a file"),
        ("references", "gone/x.jsonl", "There is no folder {root}/gone"),
        ("benchmarks", "x.jsonl", "data.benchmarks.mine names x.jsonl"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused_by_its_key_and_where_it_was_looked_for(
    key: str, path: str, message: str, files: FilesData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = files.model_copy(update={key: {"mine": Path(path)} if key == "benchmarks" else Path(path)})
    with pytest.raises(StllavaError, match=message.format(root=tmp_path)):
        prepare(options, seed=0, to=tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_what_to_ask_about_may_be_a_list(files: FilesData, tmp_path: Path) -> None:
    (tmp_path / "ask.txt").write_text("".join(f"sub/{number}.png\n" for number in (9, 8, 11, 9, 77)))
    options = files.model_copy(update={"unlabelled": tmp_path / "ask.txt"})
    data = prepare(options, seed=0, to=tmp_path / "data", max_bad=0.1)
    assert [image.path for image in read_jsonl(data.images, Image)] == ["sub/9.png", "sub/8.png", "sub/11.png"]
    assert data.manifest.dropped == {"missing": 1}
    with pytest.raises(
        StllavaError, match=r"data.unlabelled names news; there is neither .*images/news nor news; expected a folder"
    ):
        prepare(files.model_copy(update={"unlabelled": Path("news")}), seed=0, to=tmp_path / "none")


def test_an_imported_set_that_is_not_there_is_refused_by_its_key(tmp_path: Path) -> None:
    with pytest.raises(StllavaError, match=rf"data.folder names {tmp_path}/set, which does not exist; expected a folder"):
        prepare(ImportedData(kind="imported", folder=tmp_path / "set"), seed=0, to=tmp_path / "data")


def test_every_question_of_own_conversations_is_learned_by_itself_too(files: FilesData, tmp_path: Path) -> None:
    rows = [talk("<image>Describe.", "A CT.", "Is it?", "yes", "Left?", "no", image=f"sub/{number}.png") for number in range(3)]
    written(
        files.conversations,
        [*rows, talk("Left?", "no", image="sub/0.png"), {"conversations": talk("1?", "2", image="")["conversations"]}],
    )
    data = prepare(files, seed=0, to=tmp_path / "data")
    turns = Counter(len(row.messages) for row in read_jsonl(data.conversations, Conversation))
    assert turns == {6: 3, 2: 1 + 1 + 8}  # three wholes, a single of the file's own, one of text alone, and 3 × 3 less that one
    assert any(note.startswith("8 questions of conversations with several are also learned") for note in data.notes)
    assert any("1 of 5 rows of talks.json have no image" in note for note in data.notes)
    whole = prepare(files.model_copy(update={"single_questions": False}), seed=0, to=tmp_path / "whole")
    assert whole.manifest.measures["conversations"] == 5


def test_rows_of_another_layout_are_named_with_what_is_wrong(files: FilesData, tmp_path: Path) -> None:
    rows = [talk("What?", "That.", image="sub/0.png"), {"image": "sub/1.png", "caption": "A CT."}]
    written(files.conversations, rows)
    with pytest.raises(StllavaError, match=r"1 × no turns \(row 2: a row has image, caption and none of the columns"):
        prepare(files, seed=0, to=tmp_path / "data")
    written(files.conversations, [{"image": "sub/0.png", "conversations": [{"speaker": "human", "utterance": "What?"}]}])
    with pytest.raises(StllavaError, match="a turn with the keys speaker, utterance; expected from and value"):
        prepare(files, seed=0, to=tmp_path / "data")


def test_a_real_set_of_files_is_prepared_whole(medvqa: Path, tmp_path: Path) -> None:
    options = FilesData(
        kind="files",
        images=medvqa / "images",
        conversations=medvqa / "conversations_9.json",
        unlabelled=Path("unlabelled"),
        validation=medvqa / "validation.jsonl",
        benchmarks={"test": medvqa / "test.jsonl"},
        references=medvqa / "references.jsonl",
    )
    data = prepare(options, seed=0, to=tmp_path / "data")
    parts = images_of(data)
    assert {name: len(paths) for name, paths in parts.items()} == {
        "labelled": 141,
        "unlabelled": 1403,
        "validation": 201,
        "references": 1544,
    }
    assert data.manifest.dropped == {}
    assert data.manifest.measures["test_open"] + data.manifest.measures["test_closed"] == 3149
    (note,) = data.notes  # Each question stands by itself in the file already, but for the request to describe.
    assert note.startswith("141 questions of conversations with several are also learned by themselves")
    rows = json.loads(options.conversations.read_text(encoding="utf-8"))
    written(tmp_path / "chains.json", [row for row in rows if row["id"].endswith("-0")])
    chains, dropped = read_conversations(tmp_path / "chains.json")
    made, whole = [*singles(chains), *chains], read_jsonl(data.conversations, Conversation)
    contents = [{conversation(row.images, row.messages).id for row in rows} for rows in (made, whole)]
    assert (contents[0], len(chains), dropped) == (contents[1], 141, {})


@pytest.mark.parametrize(
    ("stored", "named", "told"),
    [("Scan.PNG", "scan.png", "'Scan.PNG'"), ("le\u0301sion.png", "l\u00e9sion.png", r"'le\\u0301sion.png'")],
    ids=["case", "accents"],
)
def test_a_missing_image_that_is_there_under_another_spelling_is_told(
    stored: str, named: str, told: str, files: FilesData, tmp_path: Path
) -> None:
    picture(files.images / stored.replace(".PNG", ".png"), 77)
    (files.images / stored.replace(".PNG", ".png")).rename(files.images / stored)
    written(files.conversations, [talk("What?", "That.", image=named)])
    with pytest.raises(StllavaError) as refused:
        prepare(files, seed=0, to=tmp_path / "data")
    assert f"{named!r} (missing; there is {told.replace(chr(92) * 2, chr(92))})" in str(refused.value)


def test_corrected_input_needs_no_other_folder(files: FilesData, tmp_path: Path) -> None:
    whole = files.conversations.read_text()
    files.conversations.write_text(whole[:-1])
    with pytest.raises(StllavaError, match=r"talks.json, line 1"):
        prepare(files, seed=0, to=tmp_path / "data")
    files.conversations.write_text(whole)
    assert prepare(files, seed=0, to=tmp_path / "data").manifest.measures["conversations"] == 4


def test_new_images_in_the_folder_are_not_passed_over_in_silence(files: FilesData, tmp_path: Path) -> None:
    prepare(files, seed=0, to=tmp_path / "data")
    picture(files.images / "new.png", 99)
    with pytest.raises(StllavaError, match="its input unlabelled has changed"):
        prepare(files, seed=0, to=tmp_path / "data")


@pytest.mark.parametrize("name", ["images", "a/b", "", ".."])
def test_a_benchmark_needs_a_name_of_its_own(files: FilesData, tmp_path: Path, name: str) -> None:
    options = files.model_copy(update={"benchmarks": {name: files.validation}})
    with pytest.raises(StllavaError, match="a benchmark is named"):
        prepare(options, seed=0, to=tmp_path / "data")


def test_phantoms_are_prepared_and_reproduced(tmp_path: Path) -> None:
    options = PhantomData(labelled=2, unlabelled=3, validation=2, test=2, size=32)
    data = prepare(options, seed=5, to=tmp_path / "a")
    assert data.image_root == tmp_path / "a" / "images"
    assert data.truth == tmp_path / "a" / "truths.jsonl"
    assert list(data.benchmarks) == ["phantom"]
    assert data.manifest.measures["unlabelled_images"] == 3
    assert data.notes == ()
    assert all((data.image_root / image.path).is_file() for image in read_jsonl(data.images, Image))
    assert prepare(options, seed=5, to=tmp_path / "a") == data
    assert prepare(options, seed=5, to=tmp_path / "b").manifest.outputs == data.manifest.outputs


def test_one_folder_has_one_writer(tmp_path: Path, vqa_rad: Path) -> None:
    with locked(tmp_path / "data"), pytest.raises(StllavaError, match="in use"):
        prepare(rad(vqa_rad), seed=0, to=tmp_path / "data", allow_overlap=True)
