"""Every file of records is read as it is by what people have at hand: pandas and datasets."""

from importlib import import_module
from pathlib import Path

import pytest

from test_report import build


def test_pandas_and_datasets_read_every_file_of_a_run(tmp_path: Path) -> None:
    pandas, datasets = pytest.importorskip("pandas"), import_module("datasets")
    run = build(tmp_path / "run", images=6, rounds=2).run
    files = {path.name: path for path in run.rglob("*.jsonl") if path.stat().st_size}
    assert {"questions.jsonl", "answers.jsonl", "judgments.jsonl", "preferences.jsonl", "predictions.jsonl"} <= files.keys()
    for path in files.values():
        rows = len(path.read_text(encoding="utf-8").splitlines())
        assert len(pandas.read_json(path, lines=True)) == rows, path
        read = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
        assert len(read) == rows, path
