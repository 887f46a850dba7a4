"""PathVQA as a source of data: as published and as the hub keeps it."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from stllava.data.prepare import prepare
from stllava.data.sources.pathvqa_train import PathVqaData
from stllava.errors import StllavaError
from stllava.records import Conversation, Image, Sample
from stllava.store import read_jsonl, read_manifest


def encoded(seed: int) -> bytes:
    """An image file like no other."""
    data = io.BytesIO()
    Pillow.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)).save(data, "JPEG")
    return data.getvalue()


def published(folder: Path) -> None:
    """Six images in train, two in test, two questions about each."""
    for split, count in (("train", 6), ("test", 2)):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "qas" / split).mkdir(parents=True)
        rows = []
        for number in range(count):
            name = f"{split}_{number:04}"
            (folder / "images" / split / f"{name}.jpg").write_bytes(encoded(number + 10 * (split == "test")))
            rows += [{"image": name, "question": "what is present?", "answer": "a gland"}]
            rows += [{"image": name, "question": "is it red?", "answer": "No"}]
        (folder / "qas" / split / f"{split}_qa.pkl").write_bytes(pickle.dumps(rows))


def packed(folder: Path) -> None:
    """The like of it in parquet, train in two files."""
    import pyarrow as pa  # type: ignore[import-untyped]
    from pyarrow import parquet

    (folder / "data").mkdir(parents=True)
    for name, numbers in (("train-0-of-2", (0, 1, 2)), ("train-1-of-2", (3, 4, 5)), ("test-0-of-1", (10, 11))):
        rows = [
            {"image": {"bytes": encoded(number), "path": None}, "question": question, "answer": answer}
            for number in numbers
            for question, answer in (("what is present?", "a gland"), ("is it red?", "no"))
        ]
        parquet.write_table(pa.Table.from_pylist(rows), folder / "data" / f"{name}.parquet")


def options(folder: Path, **more: object) -> PathVqaData:
    return PathVqaData.model_validate({"kind": "pathvqa", "folder": folder, "labelled": 2, "validation": 1, **more})


@pytest.mark.parametrize("form", [published, packed])
def test_the_training_images_are_carved_and_the_test_split_measured(form: Callable[[Path], None], tmp_path: Path) -> None:
    folder, to = tmp_path / "pathvqa", tmp_path / "data"
    form(folder)
    data = prepare(options(folder), seed=0, to=to)
    parts = [
        {path for row in read_jsonl(data.conversations, Conversation) for path in row.images},
        {image.path for image in read_jsonl(data.images, Image)},
        {row.image for row in read_jsonl(data.validation, Sample)},
        {row.image for row in read_jsonl(data.benchmarks["pathvqa"], Sample)},
    ]
    assert [len(part) for part in parts] == [2, 3, 1, 2]
    assert len(set.union(*parts)) == 8
    assert all((data.image_root / path).is_file() for part in parts for path in part)
    assert data.image_root == (folder if form is published else to)
    assert read_manifest(to).image_root == (folder.as_posix() if form is published else ".")
    assert data.manifest.measures["pathvqa_closed"] == 2
    assert any("test split of pathvqa is not the published one" in note for note in data.notes)
    assert prepare(options(folder), seed=0, to=to) == data


def test_images_that_cannot_be_used_are_counted_however_they_come(tmp_path: Path) -> None:
    published(tmp_path / "pathvqa")
    (tmp_path / "pathvqa" / "images" / "train" / "train_0003.jpg").write_bytes(encoded(3)[:200])
    with pytest.raises(StllavaError, match=r"1 of 8 images .* cannot be used: 'images/train/train_0003.jpg'"):
        prepare(options(tmp_path / "pathvqa"), seed=0, to=tmp_path / "data")
    dropped = prepare(options(tmp_path / "pathvqa"), seed=0, to=tmp_path / "data", max_bad=0.2).manifest.dropped
    assert list(dropped.values()) == [2]


def test_a_folder_without_training_questions_is_refused(tmp_path: Path) -> None:
    packed(tmp_path / "pathvqa")
    for path in (tmp_path / "pathvqa" / "data").glob("train*"):
        path.unlink()
    with pytest.raises(StllavaError, match="has no training questions"):
        prepare(options(tmp_path / "pathvqa"), seed=0, to=tmp_path / "data")
    with pytest.raises(StllavaError, match=r"neither qas/test/test_qa.pkl nor data/test"):
        prepare(options(tmp_path), seed=0, to=tmp_path / "data")
