"""Reads SLAKE (Liu et al. 2021) in English, Chinese or both: train.json, validate.json, test.json and imgs/.

The hub's copy says validation.json. `answer_type` is OPEN or CLOSED, `q_lang` en or zh, `img_name` xmlab…/source.jpg.
"""

from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

from stllava.data.benchmarks.rows import Found, Row, given, json_rows, named_kind, samples_of
from stllava.data.tables import bad_row
from stllava.errors import StllavaError

Language = Literal["en", "zh", "both"]
_FILES = {"train": "train", "validate": "validation", "validation": "validation", "test": "test"}


class _SlakeRow(BaseModel):
    """The keys that are used of a row."""

    model_config = ConfigDict(extra="ignore")
    qid: int | str
    img_name: str
    question: str
    answer: str | int | float
    q_lang: str
    answer_type: str
    modality: str | None = None
    location: str | None = None
    content_type: str | None = None
    base_type: str | None = None


def slake_files(folder: Path) -> dict[Path, str]:
    """The JSON files of a SLAKE folder with their splits."""
    files = {path: split for name, split in _FILES.items() if (path := folder / f"{name}.json").is_file()}
    if not files:
        raise StllavaError(
            f"no train.json, validate.json or test.json in {folder}",
            expected="the SLAKE folder with these files and imgs/",
            remedy="Name that folder.",
        )
    return files


def find_slake(folder: Path, language: Language) -> Found:
    """The questions in that language."""
    if language not in get_args(Language):
        raise StllavaError(f"language is {language!r}", expected="en, zh or both", remedy="Choose one of them.")
    files = slake_files(folder)
    splits = {split: samples_of("slake", split, _rows(path, language)) for path, split in files.items()}
    return Found(language, splits, tuple(files))


def _rows(path: Path, language: Language) -> list[Row]:
    rows = []
    for number, row in enumerate(json_rows(path, _SlakeRow), 1):
        spoken = row.q_lang.strip().lower()
        if spoken not in ("en", "zh"):
            raise bad_row(path, number, f"q_lang is {row.q_lang!r}", expected="en or zh")
        if language not in ("both", spoken):
            continue
        labels = {
            "language": spoken,
            "modality": row.modality,
            "content": row.content_type,
            "location": row.location,
            "base": row.base_type,
        }
        rows.append(
            Row(
                image=f"imgs/{row.img_name.strip()}" if row.img_name.strip() else "",
                question=row.question.strip(),
                targets=(str(row.answer).strip(),),
                kind=named_kind(path, number, row.answer_type),
                id=f"slake-{row.qid}",
                labels=given(labels),
            )
        )
    return rows
