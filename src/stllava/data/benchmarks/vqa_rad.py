"""Reads VQA-RAD (Lau et al. 2018): train.json and test.json, the one public file, or its copy on the Hugging Face hub.

`VQA_RAD Dataset Public.json` (osf.io/89kps) holds both splits; a `phrase_type` that begins with test_ marks the test.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from stllava.data.benchmarks.hub import hub_files, read_hub
from stllava.data.benchmarks.rows import Found, Row, first_folder, given, json_rows, named_kind, samples_of
from stllava.data.tables import bad_row
from stllava.errors import StllavaError
from stllava.records import Sample

Split = Literal["standard", "image-disjoint"]
VQA_RAD_TEST = {"open": 179, "closed": 272}
"""Questions of the published test split by kind."""

_TRAIN = {"standard": "train.json", "image-disjoint": "train_image_disjoint.json"}
_PUBLIC = "VQA_RAD Dataset Public.json"
_IMAGES = ("VQA_RAD Image Folder", "images")
_SPLITS = {"freeform": "train", "para": "train", "test_freeform": "test", "test_para": "test"}


@dataclass(frozen=True)
class VqaRad:
    """VQA-RAD in its public JSON; image paths are relative to its folder."""

    train: tuple[Sample, ...]
    """1,797 questions on 313 images when published; image-disjoint 734 on 111."""
    test: tuple[Sample, ...]
    """451 questions on 203 images when published, 202 of them also in train."""


class _VqaRadRow(BaseModel):
    """The keys that are used of a row."""

    model_config = ConfigDict(extra="ignore")
    qid: int | str
    image_name: str
    question: str
    answer: str | int | float
    answer_type: str
    image_organ: str | None = None
    question_type: str | None = None
    phrase_type: str | None = None


def vqa_rad_files(folder: Path, *, split: Split = "standard") -> dict[str, Path]:
    """The JSON files of train and test in a VQA-RAD folder; the image-disjoint train shares no image with test."""
    files = {"train": folder / _TRAIN[split], "test": folder / "test.json"}
    for path in files.values():
        if not path.is_file():
            raise StllavaError(
                f"no file {path}",
                expected=f"the VQA-RAD folder with {_TRAIN[split]}, test.json and images/",
                remedy="Name that folder; in a recipe that is data.folder, or STLLAVA_VQA_RAD where it is used.",
            )
    return files


def read_vqa_rad(folder: Path, *, split: Split = "standard") -> VqaRad:
    """Train and test of a folder that holds them and images/; the image files are not opened."""
    rows = {
        name: [_row(path, number, row, images="images") for number, row in enumerate(json_rows(path, _VqaRadRow), 1)]
        for name, path in vqa_rad_files(folder, split=split).items()
    }
    return VqaRad(**{name: samples_of("vqa-rad", name, some) for name, some in rows.items()})


def find_vqa_rad(folder: Path) -> Found:
    """VQA-RAD in whichever of its forms the folder has it."""
    public = folder / _PUBLIC
    if public.is_file() and not (folder / "test.json").is_file():
        return Found("public", _split_public(public), (public,))
    if hub_files(folder):
        note = (
            "This copy of VQA-RAD does not say which questions are closed: those answered yes or no are. That makes 200 open "
            "and 251 closed test questions, not the published 179 and 272."
        )
        return read_hub("vqa-rad", folder, note=note)
    both = read_vqa_rad(folder)
    return Found("json", {"train": both.train, "test": both.test}, tuple(vqa_rad_files(folder).values()))


def _split_public(path: Path) -> dict[str, tuple[Sample, ...]]:
    rows: dict[str, list[Row]] = {"train": [], "test": []}
    images = first_folder(path.parent, _IMAGES)
    for number, row in enumerate(json_rows(path, _VqaRadRow), 1):
        split = _SPLITS.get((row.phrase_type or "").strip().lower())
        if split is None:
            raise bad_row(path, number, f"phrase_type is {row.phrase_type!r}", expected=f"one of {', '.join(_SPLITS)}")
        rows[split].append(_row(path, number, row, images=images))
    return {split: samples_of("vqa-rad", split, some) for split, some in rows.items()}


def _row(path: Path, number: int, row: _VqaRadRow, *, images: str) -> Row:
    labels = {
        "location": row.image_organ,
        "content": (row.question_type or "").upper(),
        "phrasing": (row.phrase_type or "").removeprefix("test_"),
    }
    return Row(
        image=f"{images}/{row.image_name.strip()}" if row.image_name.strip() else "",
        question=row.question.strip(),
        targets=(str(row.answer).strip(),),
        kind=named_kind(path, number, row.answer_type),
        id=f"vqa-rad-{row.qid}",
        labels=given(labels),
    )
