"""SLAKE as a source of data: in either language or both."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from stllava.config import Options
from stllava.data.prepare import prepare
from stllava.data.sources import source_of
from stllava.data.sources.slake_train import SlakeData
from stllava.errors import StllavaError
from stllava.recipe import load_recipe
from stllava.records import Conversation, Image, Sample
from stllava.store import read_jsonl


@pytest.fixture
def slake(tmp_path: Path) -> Path:
    """A folder in SLAKE's format: six images in train, one in test, a question in each language about each."""
    folder = tmp_path / "slake"
    for number in range(7):
        path = folder / "imgs" / f"xmlab{number}" / "source.jpg"
        path.parent.mkdir(parents=True)
        Pillow.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    rows = [
        {"qid": 2 * i + j, "img_name": f"xmlab{i}/source.jpg", "question": text, "answer": answer, "q_lang": language}
        | {"answer_type": "CLOSED" if i % 2 else "OPEN", "location": "Lung", "content_type": "Organ"}
        for i in range(7)
        for j, (language, text, answer) in enumerate([("en", "Which organ?", "Lung"), ("zh", "哪个器官?", "肺")])
    ]
    (folder / "train.json").write_text(json.dumps(rows[:12]), encoding="utf-8")
    (folder / "test.json").write_text(json.dumps(rows[12:]), encoding="utf-8")
    return folder


def options(folder: Path, **more: object) -> SlakeData:
    return SlakeData.model_validate({"kind": "slake", "folder": folder, "labelled": 2, "validation": 1, **more})


@pytest.mark.parametrize(
    ("language", "texts"),
    [("en", {"Which organ?"}), ("zh", {"哪个器官?"}), ("both", {"Which organ?", "哪个器官?"})],
)
def test_the_training_images_are_carved_and_the_test_split_measured(
    language: str, texts: set[str], slake: Path, tmp_path: Path
) -> None:
    data = prepare(options(slake, language=language), seed=0, to=tmp_path / "data")
    parts = [
        {path for row in read_jsonl(data.conversations, Conversation) for path in row.images},
        {image.path for image in read_jsonl(data.images, Image)},
        {row.image for row in read_jsonl(data.validation, Sample)},
    ]
    assert [len(part) for part in parts] == [2, 3, 1]
    assert set.union(*parts) == {f"imgs/xmlab{number}/source.jpg" for number in range(6)}
    (name,) = data.benchmarks
    test = read_jsonl(data.benchmarks[name], Sample)
    assert (name, {row.question for row in test}, {row.image for row in test}) == ("slake", texts, {"imgs/xmlab6/source.jpg"})
    assert data.truth is not None
    assert {row.image for row in read_jsonl(data.truth, Sample)} == parts[1]
    assert data.image_root == slake
    assert any(("slake is not the published one" if language == "en" else "nothing published") in note for note in data.notes)
    assert ("Chinese" in source_of(options(slake, language=language)).describe(options(slake, language=language))) == (
        language != "en"
    )


def test_without_a_test_split_nothing_is_measured_but_validation(slake: Path, tmp_path: Path) -> None:
    (slake / "test.json").unlink()
    assert prepare(options(slake), seed=0, to=tmp_path / "data").benchmarks == {}


def test_what_it_lacks_is_named(slake: Path, tmp_path: Path) -> None:
    with pytest.raises(StllavaError, match=r"data.folder names .*slak, which does not exist.*did you mean 'slake'"):
        prepare(options(tmp_path / "slak"), seed=0, to=tmp_path / "data")
    with pytest.raises(StllavaError, match="SLAKE has 6 usable training images"):
        prepare(options(slake, labelled=9), seed=0, to=tmp_path / "data")
    (slake / "imgs" / "xmlab0" / "source.jpg").write_bytes(b"no image")
    with pytest.raises(StllavaError, match=r"1 of 7 images .* cannot be used: 'imgs/xmlab0/source.jpg' \(not-an-image\)"):
        prepare(options(slake), seed=0, to=tmp_path / "data")
    assert prepare(options(slake), seed=0, to=tmp_path / "data", max_bad=0.5).manifest.dropped == {"not-an-image": 1}
    (slake / "train.json").write_text("[]", encoding="utf-8")
    with pytest.raises(StllavaError, match="no training questions"):
        prepare(options(slake, language="zh"), seed=0, to=tmp_path / "other")


def test_a_mistyped_key_is_told(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: x\ndata: {kind: slake, folder: slake, languages: zh}\n", encoding="utf-8")
    with pytest.raises(StllavaError, match=r"unknown key 'data.languages'.*mean 'language'"):
        load_recipe(recipe)
    recipe.write_text("name: x\ndata: {kind: slake, folder: slake, language: zh}\n", encoding="utf-8")
    data: Options = load_recipe(recipe).data
    assert data == SlakeData(kind="slake", folder=tmp_path / "slake", language="zh")
