"""Sources of data: each is one file, and nothing outside their folder asks what it is."""

import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image as Pillow

import stllava
from stllava.data.prepare import prepare
from stllava.data.sources import SOURCES, Data, FilesData, PhantomData, source_of
from stllava.errors import StllavaError
from stllava.recipe import RunOptions, load_recipe
from stllava.store import read_manifest

SOURCE = Path(stllava.__file__).parent
FOLDER = SOURCE / "data" / "sources"
OPTIONS = sorted(kind.__name__ for kind in SOURCES)
KINDS = {str(get_args(kind.model_fields["kind"].annotation)[0]) for kind in SOURCES}


def test_nothing_outside_asks_what_a_source_is() -> None:
    names = "|".join(OPTIONS)
    asked = re.compile(
        rf"\b({names})\b|\bdata\.kind (==|!=|in|not) |isinstance\([\w.]*\bdata\b|match [\w.]*\bdata:|\btype\([\w.]*\bdata\)"
    )
    found = {
        f"{path.relative_to(SOURCE)}:{number}: {line.strip()}"
        for path in SOURCE.rglob("*.py")
        if FOLDER not in path.parents
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if asked.search(line) and "isinstance(data, bytes)" not in line
    }
    assert {line for line in found if not line.startswith(("store/disk.py", "intake/"))} == set()


def test_each_source_is_one_file_that_registers_it_and_one_line() -> None:
    lines = (FOLDER / "__init__.py").read_text(encoding="utf-8").splitlines()
    for kind, source in SOURCES.items():
        assert kind.__module__ == type(source).__module__
        file = kind.__module__.rpartition(".")[2]
        assert sum(file in line for line in lines) == 1
        others = [path for path in FOLDER.glob("*.py") if path.stem not in (file, "__init__")]
        assert not any(kind.__name__ in path.read_text(encoding="utf-8") for path in others)
    assert len(KINDS) == len(SOURCES)


def test_every_source_is_a_kind_of_a_recipes_data(tmp_path: Path) -> None:
    assert Data is not None
    path = tmp_path / "recipe.yaml"
    path.write_text("name: x\ndata: {kind: nothing}\n", encoding="utf-8")
    with pytest.raises(StllavaError) as refused:
        load_recipe(path)
    assert all(kind in str(refused.value) for kind in KINDS)
    options = RunOptions(name="x", data=PhantomData())
    assert RunOptions.model_validate(options.model_dump(mode="json")) == options
    assert "no patient data" in source_of(options.data).describe(options.data)


def test_a_mistyped_key_of_a_source_is_told_before_the_one_that_is_missing_for_it(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: x\ndata: {kind: files, images: a, conversation: b, validation: c}\n", encoding="utf-8")
    with pytest.raises(StllavaError, match=r"unknown key 'data.conversation'.*mean 'conversations'"):
        load_recipe(path)


def test_a_folder_that_repeats_the_image_root_is_told_without_it(tmp_path: Path) -> None:
    (tmp_path / "images" / "new").mkdir(parents=True)
    (tmp_path / "talks.json").write_text("[]", encoding="utf-8")
    options = FilesData(
        kind="files",
        images=tmp_path / "images",
        conversations=tmp_path / "talks.json",
        validation=tmp_path / "talks.json",
        unlabelled=Path("images/new"),
    )
    with pytest.raises(StllavaError, match=r"data.unlabelled names images/new.*did you mean 'new'"):
        prepare(options, seed=0, to=tmp_path / "data")


def test_the_image_root_stands_in_the_manifest(tmp_path: Path) -> None:
    prepare(PhantomData(labelled=1, unlabelled=1, validation=1, test=1, size=32), seed=0, to=tmp_path / "data")
    assert read_manifest(tmp_path / "data").image_root == "images"


def test_the_source_of_the_page_on_extending_is_one(tmp_path: Path) -> None:
    page = (SOURCE.parent.parent / "docs" / "extending.md").read_text(encoding="utf-8")
    (code,) = re.findall(r'```python title="source"\n(.*?)```', page, flags=re.DOTALL)
    names: dict[str, Any] = {"__name__": __name__}
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
        Pillow.fromarray(pixels).save(tmp_path / f"{number}.png")
    rows = [f"{number}.png,Is it?,yes" for number in range(5)]
    (tmp_path / "rows.csv").write_text("\n".join(["image,question,answer", *rows]), encoding="utf-8")
    try:
        exec(compile(code, "extending.md", "exec"), names)
        options = names["TableData"](kind="table", folder=tmp_path)
        data = prepare(options, seed=0, to=tmp_path / "data")
    finally:
        SOURCES.pop(names["TableData"], None)
    assert data.image_root == tmp_path
    assert data.manifest.measures["unlabelled_images"] == 2
    assert data.benchmarks == {}
