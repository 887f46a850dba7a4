"""A run's data from an imported set: its own splits, labels of the user's and of the headers, nobody on two sides."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.intake_parts import FAST, import_folder
from stllava.config import EvaluateOptions, SamplingOptions, SftOptions
from stllava.config.intake import SplitShares
from stllava.data.image_set import Imported, read_imported
from stllava.data.prepare import prepare
from stllava.data.sources import ImportedData
from stllava.errors import StllavaError
from stllava.pipeline import run
from stllava.recipe import RunOptions
from stllava.records import Conversation, Sample
from stllava.records import Image as ImageRecord
from stllava.store import read_jsonl

SPLITS = SplitShares(train=0.6, validation=0.2, test=0.2)


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of 30 chest radiographs of as many patients."""
    folder = tmp_path_factory.mktemp("imported")
    (folder / "in").mkdir()
    random = np.random.default_rng(0)
    for number in range(30):
        Image.fromarray(random.integers(0, 256, (40, 40), dtype=np.uint8)).save(folder / "in" / f"patient{number}_.png")
    import_folder(folder, FAST.model_copy(update={"splits": SPLITS, "chunk": 30}))
    return folder / "data"


def rows_of(folder: Path, split: str) -> list[Imported]:
    return [row for row in read_imported(folder) if row.split == split]


def labels(path: Path, rows: list[Imported], question: str, answer: str) -> Path:
    path.write_text("".join(json.dumps({"image": row.path, "question": question, "answer": answer}) + "\n" for row in rows))
    return path


def test_the_sets_own_splits_are_used_and_headers_are_asked(imported: Path, tmp_path: Path) -> None:
    data = prepare(ImportedData(kind="imported", folder=imported, labelled=5), seed=0, to=tmp_path / "data")
    train = {row.path for row in rows_of(imported, "train")}
    talks = read_jsonl(data.conversations, Conversation)
    labelled = {path for talk in talks for path in talk.images}
    asked = {image.path for image in read_jsonl(data.images, ImageRecord)}
    assert len(labelled) == 5
    assert (labelled | asked, labelled & asked) == (train, set())
    for split, path in (("validation", data.validation), ("test", data.benchmarks["imported"])):
        assert {row.image for row in read_jsonl(path, Sample)} == {row.path for row in rows_of(imported, split)}
    assert data.truth is not None
    assert {row.image for row in read_jsonl(data.truth, Sample)} == asked
    assert {row.targets[0] for row in read_jsonl(data.validation, Sample)} == {"X-ray", "chest"}
    assert data.captions is not None
    assert any("made by rule" in note for note in data.notes)


def test_own_labels_go_where_their_picture_is_come_first_and_win(imported: Path, tmp_path: Path) -> None:
    train, test = rows_of(imported, "train"), rows_of(imported, "test")
    mine = labels(tmp_path / "labels.jsonl", [*train[:3], test[0]], "Which body part is SHOWN?", "thorax")
    options = ImportedData(kind="imported", folder=imported, labelled=3, labels=mine)
    data = prepare(options, seed=0, to=tmp_path / "data")
    talks = read_jsonl(data.conversations, Conversation)
    assert {path for talk in talks for path in talk.images} == {row.path for row in train[:3]}
    said = [row.targets for row in read_jsonl(data.benchmarks["imported"], Sample) if row.image == test[0].path]
    assert sorted(said) == [("X-ray",), ("thorax",)]


def test_a_label_of_no_picture_and_a_split_without_questions_are_refused(imported: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("image,question,answer\nimages/gone.png,What is it?,a nodule\n")
    with pytest.raises(StllavaError, match=r"1 of 1 rows .* no picture of the set: 'images/gone.png'"):
        prepare(ImportedData(kind="imported", folder=imported, labels=path), seed=0, to=tmp_path / "data")
    mine = labels(tmp_path / "labels.jsonl", rows_of(imported, "train"), "What is it?", "a nodule")
    options = ImportedData(kind="imported", folder=imported, labels=mine, headers=False)
    with pytest.raises(StllavaError, match="no pictures with a question in the split validation"):
        prepare(options, seed=0, to=tmp_path / "data")
    with pytest.raises(StllavaError, match="train beyond the labelled"):
        prepare(ImportedData(kind="imported", folder=imported, labelled=1000), seed=0, to=tmp_path / "data")


def test_all_pictures_may_be_labelled(imported: Path, tiny_model: Path, tmp_path: Path) -> None:
    options = RunOptions(
        name="all labels",
        model=str(tiny_model),
        data=ImportedData(kind="imported", folder=imported, labelled="all"),
        sft=SftOptions(epochs=1, batch_size=16),
        evaluate=EvaluateOptions(sampling=SamplingOptions(temperature=0.0, max_new_tokens=4)),
        rounds=0,
        baselines=False,
    )
    outcome = run(options, to=tmp_path / "run")
    assert not read_jsonl(tmp_path / "run/data/images.jsonl", ImageRecord)
    assert outcome.best == "sft"
    assert {overlap.exact_images for overlap in outcome.overlaps} == {0}
    assert "data:image/jpeg;base64," in (tmp_path / "run/report.html").read_text()
