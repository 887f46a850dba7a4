"""Reads benchmarks of multiple choice: PMC-VQA (Zhang et al. 2023) and OmniMedVQA (Hu et al. 2024).

PMC-VQA: train.csv, test.csv, test_clean.csv (images in images/) and version 2's train_2.csv, test_2.csv (figures/). The
right letter stands in Answer_label, or in Answer; version 1 has the right text in Answer, once spelt Anwser. OmniMedVQA:
QA_information/{Open,Restricted}-access/*.json with option_A … and gt_answer; paths are relative to its folder. An answer
that is none of the choices stays the target, so that the row can be counted as unusable.
"""

import re
from pathlib import Path
from string import ascii_uppercase

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from stllava.data.benchmarks.rows import Found, Row, chosen, csv_rows, first_folder, given, json_rows, samples_of
from stllava.errors import StllavaError
from stllava.records import Sample

_PMC_SPLITS = ("train", "test", "test_clean", "train_2", "test_2")
_PMC_COLUMNS = ("Figure_path", "Question", "Choice A", "Choice B", "Choice C", "Choice D")
_OMNI_SPLITS = {"open-access": "Open-access", "restricted-access": "Restricted-access"}


class _MultipleChoiceRow(BaseModel):
    """The keys that are used of a row of OmniMedVQA; one of its files says modality."""

    model_config = ConfigDict(extra="ignore")
    question_id: str | None = None
    image_path: str
    question: str
    gt_answer: str
    dataset: str | None = None
    question_type: str | None = None
    modality: str | None = Field(default=None, validation_alias=AliasChoices("modality_type", "modality"))
    option_A: str | None = None  # noqa: N815
    option_B: str | None = None  # noqa: N815
    option_C: str | None = None  # noqa: N815
    option_D: str | None = None  # noqa: N815


def find_pmc_vqa(folder: Path) -> Found:
    """Every split of PMC-VQA that is there."""
    files = {name: path for name in _PMC_SPLITS if (path := folder / f"{name}.csv").is_file()}
    if not files:
        raise StllavaError(
            f"no {', '.join(f'{name}.csv' for name in _PMC_SPLITS)} in {folder}",
            expected="the PMC-VQA folder with one of them, and images/ or figures/",
            remedy="Name that folder.",
        )
    splits = {}
    for name, path in files.items():
        images = first_folder(folder, ("figures", "images") if name.endswith("_2") else ("images", "figures"))
        splits[name] = samples_of("pmc-vqa", name, [_pmc_row(row, images) for row in csv_rows(path, _PMC_COLUMNS)])
    return Found("csv", splits, tuple(files.values()))


def find_omnimedvqa(folder: Path) -> Found:
    """OmniMedVQA; its restricted questions are taken only when named, as their images come from elsewhere."""
    splits: dict[str, tuple[Sample, ...]] = {}
    files: list[Path] = []
    for split, name in _OMNI_SPLITS.items():
        paths = sorted((folder / "QA_information" / name).glob("*.json"))
        rows = [_omni_row(row) for path in paths for row in json_rows(path, _MultipleChoiceRow)]
        if rows:
            splits[split] = samples_of("omnimedvqa", split, rows)
            files += paths
    if not files:
        raise StllavaError(
            f"no QA_information/Open-access/*.json in {folder}",
            expected="the OmniMedVQA folder with QA_information/ and Images/",
            remedy="Name that folder.",
        )
    return Found("json", splits, tuple(files), aside=frozenset({"restricted-access"}))


def _pmc_row(row: dict[str, str], images: str) -> Row:
    texts = {letter: re.sub(rf"^{letter}\s*:\s*", "", row[f"Choice {letter}"]) for letter in "ABCD"}
    choices = tuple(text for text in texts.values() if text)
    answer = row.get("Answer_label") or row.get("Answer") or row.get("Anwser") or ""
    right = texts.get(answer.upper()) or chosen(choices, re.sub(r"^[A-D]\s*:\s*", "", answer)) or answer
    image = f"{images}/{row['Figure_path']}" if row["Figure_path"] else ""
    return Row(image, row["Question"], (right,), "closed", choices=choices)


def _omni_row(row: _MultipleChoiceRow) -> Row:
    options = (row.option_A, row.option_B, row.option_C, row.option_D)
    choices = tuple(option.strip() for option in options if option and option.strip())
    letter = dict(zip(ascii_uppercase, options, strict=False)).get(row.gt_answer.strip().upper())
    return Row(
        image=row.image_path.strip(),
        question=row.question.strip(),
        targets=((letter or chosen(choices, row.gt_answer) or row.gt_answer).strip(),),
        kind="closed",
        id=f"omnimedvqa-{row.question_id}" if row.question_id else None,
        choices=choices,
        labels=given({"modality": row.modality, "content": row.question_type, "dataset": row.dataset}),
    )
