"""Reads published benchmarks into `Sample` records."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from stllava.data.conversations import read_rows
from stllava.errors import StllavaError
from stllava.records import QuestionKind, Sample, content_id

VQA_RAD_TEST = {"open": 179, "closed": 272}
"""Questions of the published test split by kind."""

_KINDS: dict[str, QuestionKind] = {"OPEN": "open", "CLOSED": "closed"}


@dataclass(frozen=True)
class VqaRad:
    """VQA-RAD in its public JSON; image paths are relative to its folder."""

    train: tuple[Sample, ...]
    """1,797 questions on 313 images when published."""
    test: tuple[Sample, ...]
    """451 questions on 203 images when published, 202 of them also in train."""


class _Row(BaseModel):
    """The keys that are used of a row of train.json or test.json."""

    model_config = ConfigDict(extra="ignore")
    qid: int | str
    image_name: str
    question: str
    answer: str | int | float
    answer_type: str


def vqa_rad_files(folder: Path) -> dict[str, Path]:
    """The JSON file of each split in a VQA-RAD folder."""
    files = {split: folder / f"{split}.json" for split in ("train", "test")}
    for path in files.values():
        if not path.is_file():
            raise StllavaError(
                f"no file {path}",
                expected="the VQA-RAD folder with train.json, test.json and images/",
                remedy="Set data.folder (or STLLAVA_VQA_RAD, where the recipe uses it) to that folder.",
            )
    return files


def read_vqa_rad(folder: Path) -> VqaRad:
    """Both splits of a folder that holds train.json, test.json and images/; the image files are not opened."""
    files = vqa_rad_files(folder)
    return VqaRad(train=_read_split(files["train"]), test=_read_split(files["test"]))


def _read_split(path: Path) -> tuple[Sample, ...]:
    rows = [_row(path, number, raw) for number, raw in enumerate(read_rows(path), 1)]
    times = Counter(str(row.qid) for row in rows)
    samples: dict[str, Sample] = {}
    for number, row in enumerate(rows, 1):
        image, question, target = f"images/{row.image_name.strip()}", row.question.strip(), str(row.answer).strip()
        kind = _KINDS.get(row.answer_type.strip().upper())
        if kind is None:
            raise StllavaError(
                f"{path}, row {number}: answer_type is {row.answer_type!r}", expected="OPEN or CLOSED", remedy="Mend that row."
            )
        # A qid that stands in several rows names none of them; rows alike in everything are one.
        alone = times[str(row.qid)] == 1
        key = f"vqa-rad-{row.qid}" if alone else content_id("vqa-rad", image, question, target, kind)
        samples[key] = Sample(id=key, image=image, question=question, targets=(target,), kind=kind, split=path.stem)
    return tuple(samples.values())


def _row(path: Path, number: int, raw: object) -> _Row:
    try:
        return _Row.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else "row"
        raise StllavaError(
            f"{path}, row {number}: {key}: {first['msg']}",
            expected=f"rows with the keys {', '.join(_Row.model_fields)}",
            remedy="Mend that row.",
        ) from None
