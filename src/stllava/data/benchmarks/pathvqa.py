"""Reads PathVQA (He et al. 2020): qas/<split>/<split>_qa.pkl with images/<split>/*.jpg, or its copy on the hub.

The pickles hold a list of {image, question, answer}. They come from strangers, so they may name no class or function at
all: plain containers, strings and numbers are what is left. A question answered yes or no is closed.
"""

import pickle
from pathlib import Path
from typing import NoReturn

from pydantic import BaseModel, ConfigDict

from stllava.data.benchmarks.hub import hub_files, read_hub
from stllava.data.benchmarks.rows import Found, Row, checked, samples_of, told_kind
from stllava.errors import StllavaError

_FOLDERS = {"train": "train", "val": "validation", "test": "test"}


class _PathVqaRow(BaseModel):
    """The keys that are used of a row."""

    model_config = ConfigDict(extra="ignore")
    image: str
    question: str
    answer: str | int | float


class _Plain(pickle.Unpickler):
    """Unpickles nothing but built-in containers, strings and numbers."""

    def find_class(self, module: str, name: str) -> NoReturn:
        """Refuse every class and function."""
        raise pickle.UnpicklingError(f"it wants to use {module}.{name}")


def pathvqa_files(folder: Path) -> dict[Path, str]:
    """The files of questions of a PathVQA folder with their splits; where they are parquet, images are inside them."""
    pickles = {folder / "qas" / name / f"{name}_qa.pkl": split for name, split in _FOLDERS.items()}
    files = hub_files(folder) or {path: split for path, split in pickles.items() if path.is_file()}
    if not files:
        raise StllavaError(
            f"neither qas/test/test_qa.pkl nor data/test-….parquet in {folder}",
            expected="the PathVQA folder with qas/ and images/, or the hub's parquet files",
            remedy="Name that folder.",
        )
    return files


def find_pathvqa(folder: Path) -> Found:
    """PathVQA in whichever of its forms the folder has it."""
    files = pathvqa_files(folder)
    if hub_files(folder):
        note = "This copy of PathVQA is without repeated questions: 6,719 test questions, not the published 6,761."
        return read_hub("pathvqa", folder, note=note)
    splits = {split: samples_of("pathvqa", split, _rows(path, path.parent.name)) for path, split in files.items()}
    return Found("qas", splits, tuple(files))


def _rows(path: Path, name: str) -> list[Row]:
    rows = []
    for number, raw in enumerate(_load(path), 1):
        row = checked(path, number, raw, _PathVqaRow)
        image, targets = row.image.strip(), (str(row.answer).strip(),)
        rows.append(Row(f"images/{name}/{image}.jpg" if image else "", row.question.strip(), targets, told_kind(targets)))
    return rows


def _load(path: Path) -> list[object]:
    try:
        with path.open("rb") as file:
            rows = _Plain(file).load()
    # A damaged pickle fails in any of these ways.
    except (pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError, MemoryError) as error:
        raise StllavaError(
            f"{path} is not read: {error}",
            expected="a pickled list of plain dicts of strings",
            remedy="Get the published file; do not load this one in another way unless you trust who made it.",
        ) from None
    if not isinstance(rows, list):
        raise StllavaError(f"{path} holds a {type(rows).__name__}", expected="a list of rows", remedy="Get the published file.")
    return rows
