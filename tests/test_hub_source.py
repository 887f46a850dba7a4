"""Data sets in the Hugging Face form as a source: built here, offline, in each way that they are kept."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from stllava.data.prepare import prepare
from stllava.data.sources import source_of
from stllava.data.sources.hub_dataset import HubData, _split
from stllava.errors import StllavaError
from stllava.recipe import load_recipe
from stllava.records import Conversation, Image, Sample
from stllava.store import read_jsonl, read_manifest

datasets = pytest.importorskip("datasets")
Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the library keeps lies in the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def encoded(seed: int) -> bytes:
    """An image file like no other."""
    data = io.BytesIO()
    Pillow.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)).save(data, "PNG")
    return data.getvalue()


def rows(*numbers: int) -> Rows:
    """Two questions about each image, under names of another's choice."""
    texts = [("Is it?", "yes"), ("What is it?", "a gland")]
    return [{"scan": {"bytes": encoded(i), "path": None}, "query": q, "reply": a} for i in numbers for q, a in texts]


def built(train: Rows, test: Rows | None = None) -> Any:
    """Both splits, as `datasets` holds them."""
    text, image = datasets.Value("string"), datasets.Image()
    features = datasets.Features({"scan": image, "query": text, "reply": text})
    parts = {"fit": train, **({"held": test} if test is not None else {})}
    return datasets.DatasetDict({name: datasets.Dataset.from_list(some, features=features) for name, some in parts.items()})


def options(path: Path, **more: Any) -> HubData:
    values = {
        "columns": {"image": "scan", "question": "query", "answer": "reply"},
        "splits": {"train": "fit", "test": "held"},
        "labelled": 2,
        "validation": 1,
    }
    return HubData.model_validate({"kind": "hub", "dataset": str(path), **values, **more})


def saved(to: Path) -> HubData:
    built(rows(*range(6)), rows(8, 9)).save_to_disk(str(to))
    return options(to)


def parquet_folder(to: Path) -> HubData:
    for name, split in built(rows(*range(6)), rows(8, 9)).items():
        (to / "data").mkdir(parents=True, exist_ok=True)
        split.to_parquet(to / "data" / f"{ {'fit': 'train', 'held': 'test'}[name] }-00000.parquet")
    return options(to, splits={"train": "train", "test": "test"})


def parquet_file(to: Path) -> HubData:
    to.mkdir()
    built(rows(*range(6)))["fit"].to_parquet(to / "rows.parquet")
    return options(to / "rows.parquet", splits={})


def paths(to: Path) -> HubData:
    """A table of paths beside the images."""
    to.mkdir()
    for number in range(6):
        (to / f"{number}.png").write_bytes(encoded(number))
    table = [{"scan": f"{number}.png", "query": "Is it?", "reply": "yes"} for number in range(6)]
    datasets.Dataset.from_list(table).to_csv(to / "train.csv", index=False)
    return options(to, splits={})


@pytest.mark.parametrize("form", [saved, parquet_folder, parquet_file, paths])
def test_each_form_is_carved_and_its_images_are_files_of_the_run(form: Any, tmp_path: Path) -> None:
    given = form(tmp_path / "set")
    data = prepare(given, seed=0, to=tmp_path / "data")
    parts = [
        {path for row in read_jsonl(data.conversations, Conversation) for path in row.images},
        {image.path for image in read_jsonl(data.images, Image)},
        {row.image for row in read_jsonl(data.validation, Sample)},
    ]
    assert [len(part) for part in parts] == [2, 3, 1]
    assert {path.read_bytes() for path in map(data.image_root.joinpath, set.union(*parts))} == set(map(encoded, range(6)))
    assert read_manifest(tmp_path / "data").image_root == "images"
    if given.splits.test is None:
        assert data.benchmarks == {}
    else:
        test = read_jsonl(data.benchmarks["hub"], Sample)
        assert [(row.question, row.targets, row.kind) for row in test[:2]] == [
            ("Is it?", ("yes",), "closed"),
            ("What is it?", ("a gland",), "open"),
        ]
    assert prepare(given, seed=0, to=tmp_path / "data") == data


def test_rows_that_cannot_be_used_are_counted_by_cause(tmp_path: Path) -> None:
    bad: Rows = [
        {"scan": {"bytes": b"no image at all", "path": None}, "query": "Is it?", "reply": "no"},
        {"scan": None, "query": "Is it?", "reply": "no"},
        {"scan": {"bytes": encoded(7), "path": None}, "query": " ", "reply": "no"},
        {"scan": {"bytes": encoded(7), "path": None}, "query": "Is it?", "reply": None},
    ]
    built([*rows(*range(6)), *bad]).save_to_disk(str(tmp_path / "set"))
    given = options(tmp_path / "set", splits={"train": "fit"})
    with pytest.raises(StllavaError, match=r"3 of 16 rows .* 2 × empty text, 1 × no image \(row 14: "):
        prepare(given, seed=0, to=tmp_path / "data")
    assert not (tmp_path / "data" / "images").exists()
    manifest = prepare(given, seed=0, to=tmp_path / "data", max_bad=0.5).manifest
    assert manifest.dropped == {"empty text": 2, "no image": 1, "not-an-image": 1}
    assert manifest.counts_in == 16


def test_paths_stay_inside_the_folder_and_a_row_has_one_image(tmp_path: Path) -> None:
    given = paths(tmp_path / "set")
    (tmp_path / "outside.png").write_bytes(encoded(9))
    table = datasets.Dataset.from_csv(str(tmp_path / "set" / "train.csv")).to_list()
    more = [{"scan": f"{name}.png", "query": "Is it?", "reply": "yes"} for name in ("../outside", tmp_path / "outside", "gone")]
    datasets.Dataset.from_list([*table, *more]).to_csv(tmp_path / "set" / "train.csv", index=False)
    dropped = prepare(given, seed=0, to=tmp_path / "data", max_bad=0.5).manifest.dropped
    assert dropped == {"missing": 1, "outside-root": 2}
    several: Rows = [{"image": [{"bytes": encoded(n), "path": None} for n in range(i, i + 1 + i // 6)]} for i in range(7)]
    several = [row | {"question": "Is it?", "answer": n % 2 if n != 5 else -1} for n, row in enumerate(several)]
    features = datasets.Features(
        {
            "image": datasets.List(datasets.Image()),
            "question": datasets.Value("string"),
            "answer": datasets.ClassLabel(names=["no", "yes"]),
        }
    )
    datasets.Dataset.from_list(several, features=features).save_to_disk(str(tmp_path / "lists"))
    data = prepare(options(tmp_path / "lists", columns={}, splits={}), seed=0, to=tmp_path / "more", max_bad=0.5)
    assert data.manifest.dropped == {"empty text": 1, "several images": 1}
    assert {row.targets[0] for row in read_jsonl(data.validation, Sample)} <= {"no", "yes"}


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ({"columns": {"image": "scans", "question": "query", "answer": "reply"}}, "no column 'scans'; .*did you mean 'scan'"),
        ({"columns": {}}, r"no column 'image'; it has scan, query, reply.*Set data\.columns\.image to one that"),
        ({"columns": {"image": "query", "question": "query", "answer": "reply"}}, r"12 of 12 rows .* 12 × missing"),
        ({"splits": {"train": "fits"}}, "no split 'fits'; it has fit, held.*did you mean 'fit'"),
        ({"splits": {"train": "fit", "test": "z"}}, r"no split 'z'.*Set data\.splits\.test to one of them"),
        ({"labelled": 50}, "The split fit has 6 usable training images"),
    ],
    ids=["column mistyped", "column missing", "texts for images", "split mistyped", "split missing", "too few"],
)
def test_what_it_lacks_is_named(more: dict[str, Any], fault: str, tmp_path: Path) -> None:
    saved(tmp_path / "set")
    with pytest.raises(StllavaError, match=fault):
        prepare(options(tmp_path / "set", **more), seed=0, to=tmp_path / "data")


def test_a_data_set_of_texts_alone_is_refused_by_its_columns(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"question": "Is it?", "answer": "yes"}]).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(StllavaError, match="no column 'image'; it has question, answer"):
        prepare(options(tmp_path / "set", columns={}, splits={}), seed=0, to=tmp_path / "data")


def test_what_is_not_there_or_broken_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"no parquet")
    with pytest.raises(StllavaError, match=r"rows.parquet, which cannot be read"):
        prepare(options(tmp_path / "rows.parquet"), seed=0, to=tmp_path / "data")
    with pytest.raises(StllavaError, match=r"names .*row.parquet, which does not exist.*did you mean 'rows.parquet'"):
        prepare(options(tmp_path / "row.parquet"), seed=0, to=tmp_path / "data")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(StllavaError, match=r"data.dataset names owner/name, which cannot be read: .*without a network"):
        prepare(options(Path("owner/name")), seed=0, to=tmp_path / "data")


def test_a_recipe_names_it_and_a_mistyped_key_is_told(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: x\ndata: {kind: hub, dataset: set, columns: {images: scan}}\n", encoding="utf-8")
    with pytest.raises(StllavaError, match=r"unknown key 'data.columns.images'.*mean 'image'"):
        load_recipe(recipe)
    recipe.write_text("name: x\ndata: {kind: hub, dataset: set, columns: {image: scan}}\n", encoding="utf-8")
    data = load_recipe(recipe).data
    assert isinstance(data, HubData)
    (tmp_path / "set").rmdir()
    assert source_of(data).describe(data) == "A data set of the maker's own.", "a model card names no path"
    public = HubData(kind="hub", dataset="owner/name")
    assert source_of(public).describe(public) == "The data set owner/name of the Hugging Face hub."
    assert (data.dataset, data.columns.image, data.columns.answer) == (str(tmp_path / "set"), "scan", "answer")


def test_a_cell_without_a_number_is_empty_and_a_whole_number_has_no_point(tmp_path: Path) -> None:
    given = paths(tmp_path / "set")
    answers = ["", 1, 2, "inf", 4, 5]
    lines = [f"{number}.png,How many {number}?,{answer}" for number, answer in enumerate(answers)]
    (tmp_path / "set" / "train.csv").write_text("\n".join(["scan,query,reply", *lines, ""]), encoding="utf-8")
    data = prepare(given, seed=0, to=tmp_path / "data", max_bad=0.5)
    assert data.manifest.dropped == {"empty text": 2}
    taught = {row.messages[-1].content for row in read_jsonl(data.conversations, Conversation)}
    measured = {row.targets[0] for row in read_jsonl(data.validation, Sample)}
    assert taught | measured <= {"1", "2", "4", "5"}


def test_labels_in_lists_have_their_names_and_empty_entries_are_passed_over(tmp_path: Path) -> None:
    text, image = datasets.Value("string"), datasets.Image()
    labels = datasets.List(datasets.ClassLabel(names=["benign", "malignant"]))
    features = datasets.Features({"scan": image, "query": text, "reply": labels})
    some = [{"scan": {"bytes": encoded(i), "path": None}, "query": "What?", "reply": [i % 2, None]} for i in range(6)]
    datasets.DatasetDict({"fit": datasets.Dataset.from_list(some, features=features)}).save_to_disk(str(tmp_path / "set"))
    data = prepare(options(tmp_path / "set", splits={"train": "fit"}), seed=0, to=tmp_path / "data")
    assert {row.targets for row in read_jsonl(data.validation, Sample)} <= {("benign",), ("malignant",)}
    assert data.manifest.dropped == {}


@pytest.mark.parametrize("cell", ["a\0.png", "iVBORw0KGgo" * 400], ids=["NUL", "base64"])
def test_what_no_path_can_be_is_missing_and_shown_in_short(cell: str, tmp_path: Path) -> None:
    given = paths(tmp_path / "set")
    table = [{"scan": f"{number}.png", "query": "Is it?", "reply": "yes"} for number in range(6)]
    datasets.Dataset.from_list([*table, {"scan": cell, "query": "Is it?", "reply": "yes"}]).save_to_disk(str(tmp_path / "bad"))
    for image in (tmp_path / "set").glob("*.png"):
        image.rename(tmp_path / "bad" / image.name)
    given = options(tmp_path / "bad", splits={})
    with pytest.raises(StllavaError, match=r"1 of 7 rows .* 1 × missing") as told:
        prepare(given, seed=0, to=tmp_path / "data")
    assert len(str(told.value)) < 1000
    assert prepare(given, seed=0, to=tmp_path / "data", max_bad=0.5).manifest.dropped == {"missing": 1}


def test_one_split_for_both_ends_and_no_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="another split for test than for train"):
        options(tmp_path, splits={"train": "fit", "test": "fit"})
    with pytest.raises(ValueError, match="at least 1 character"):
        HubData.model_validate({"kind": "hub", "dataset": ""})


def test_a_split_without_rows_is_refused(tmp_path: Path) -> None:
    features = built(rows(0))["fit"].features
    empty = datasets.Dataset.from_dict({name: [] for name in features}, features=features)
    with pytest.raises(StllavaError, match=r"the split fit of .* has no rows"):
        _split(options(tmp_path), {"fit": empty}, "fit", part="train")


def test_a_test_split_of_which_nothing_can_be_used_is_refused(tmp_path: Path) -> None:
    built(rows(*range(6)), [{"scan": None, "query": "Is it?", "reply": "no"}]).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(StllavaError, match="no row of the split held"):
        prepare(options(tmp_path / "set"), seed=0, to=tmp_path / "data", max_bad=1.0)
