"""The quick start of docs/images.md and the guide to one's own DICOM, word by word, on the files that pydicom ships."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import teach
from helpers.blocks import ROOT, RUN, blocks_of, command_lines
from stllava.data.conversations import conversation
from stllava.data.image_set import read_imported
from stllava.records import Message, Outcome, Question
from stllava.store import read_records, to_jsonl, write_whole

pydicom = pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")
pytest.importorskip("rapidocr_onnxruntime", reason="the extra `ocr` is not installed")

QUICK_START, GUIDE = "docs/images.md", "docs/guides/dicom.md"
SHIPPED = Path(str(pydicom.__file__)).parent / "data" / "test_files"
PATIENTS, LARGEST = 30, 60_000


def commands(page: str) -> list[str]:
    """The commands of a page's blocks, but for what is installed here already."""
    blocks = blocks_of((ROOT / page).read_text(encoding="utf-8"), page)
    lines = [line for block in blocks if block.language in RUN and not block.needs for _, line in command_lines(block)]
    return [line for line in lines if not line.startswith("pip ")]


def too_large(folder: str, names: list[str]) -> list[str]:
    """Files that take seconds to be looked at for text."""
    return [name for name in names if (Path(folder) / name).stat().st_size > LARGEST and (Path(folder) / name).is_file()]


def more_patients(folder: Path) -> None:
    """The shipped slices once more as those of others: the shipped files are of too few to be split."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(PATIENTS):
        data = pydicom.dcmread(SHIPPED / ("CT_small.dcm", "MR_small.dcm")[number % 2])
        data.PatientID = data.PatientName = f"PATIENT^{number}"
        data.StudyInstanceUID, data.SeriesInstanceUID = f"1.2.3.{number}", f"1.2.4.{number}"
        data.PixelData = np.ascontiguousarray(np.roll(data.pixel_array, random.integers(1, 60, 2), (0, 1))).tobytes()
        data.save_as(folder / f"IM{number:04d}")


def model_that_asks(folder: Path) -> Path:
    """A tiny model that knows which questions headers answer; of the answers it has no idea."""
    talks = []
    for number in range(12):
        Image.new("L", (32, 32), 20 * number).save(folder / f"{number}.png")
        kind, other = (("CT", "MRI"), ("MRI", "PET"), ("PET", "scintigraphy"), ("scintigraphy", "CT"))[number % 4]
        turns = [
            ("Describe the image.", "a slice"),
            ("What imaging modality is this?", kind),
            (f"Is the imaging modality {kind}?", "yes"),
            (f"Is the imaging modality {other}?", "no"),
        ]
        texts = [text for turn in turns for text in turn]
        messages = tuple(Message(role=("user", "assistant")[place % 2], content=text) for place, text in enumerate(texts))
        talks.append(conversation((f"{number}.png",), messages))
    write_whole(folder / "talks.jsonl", to_jsonl(talks))
    return teach(folder / "talks.jsonl", folder, to=folder / "taught")


def follow(page: str, folder: Path) -> None:
    """Give a page's commands in a folder."""
    model = folder / "asking" / "taught" / "model"
    environment = {"HOME": str(folder), "STLLAVA_MODEL": str(model), "PATH": f"{folder}:{os.environ['PATH']}"}
    # The guide calls the model so.
    lines = [line.replace("STLLAVA_MODEL=my-vlm", f"STLLAVA_MODEL={model}") for line in commands(page)]
    done = subprocess.run(
        ["bash", "-ec", "\n".join(lines)],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study in it, a model, and a `stllava` that does with little."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(SHIPPED, folder / "study", ignore=too_large)
    (folder / "asking").mkdir()
    model_that_asks(folder / "asking")
    more_patients(folder / "study" / "others")
    # Another salt would split other patients off, perhaps none.
    (folder / ".stllava").mkdir(mode=0o700)
    (folder / ".stllava" / "salt").write_bytes(bytes(range(32)))
    (folder / ".stllava" / "salt").chmod(0o600)
    shell = folder / "stllava"
    # So small a model asks as it was taught only where little is left to chance, and answers right only by chance.
    flags = "--ask.sampling.temperature 0.3 --answer.sampling.temperature 2 --answer.num-answers 12"
    flags += " --pair.margin 0.05 --data.labelled 12"
    calm = f'case $1 in run) set -- "$@" {flags};; esac'
    shell.write_text(f'#!/bin/sh\n{calm}\nexec "{sys.executable}" -m stllava "$@"\n')
    shell.chmod(0o700)
    follow(QUICK_START, folder)
    return folder


@pytest.mark.slow
def test_a_folder_of_dicom_becomes_a_set_and_a_run_by_the_quick_starts_own_commands(home: Path) -> None:
    assert [line.split()[:2] for line in commands(QUICK_START)][::2] == [["stllava", "import"], ["stllava", "run"]]
    split = {row.path: row.split for row in read_imported(home / "set")}
    assert {"train", "validation", "test"} == set(split.values())
    outcome = Outcome.model_validate_json((home / "runs/first/outcome.json").read_text())
    assert (home / "runs/first/report.html").is_file()
    assert {score.benchmark for score in outcome.scores} == {"imported", "validation"}
    asked = {path for one in read_records(home / "runs/first/round-1/ask", "questions", Question) for path in one.images}
    assert {split[path] for path in asked} <= {"train"}


@pytest.mark.slow
def test_labels_of_ones_own_are_learned_and_measured_by_the_guides_own_commands(home: Path) -> None:
    shutil.move(home / "runs" / "first", home / "runs" / "without-labels")
    rows = [
        f"{row.path},Is this a quiet picture?,{'yes' if number % 2 else 'no'}"
        for number, row in enumerate(read_imported(home / "set"))
    ]
    (home / "labels.csv").write_text("\n".join(["image,question,answer", *rows, ""]), encoding="utf-8")
    follow(GUIDE, home)  # importing again finds that all is done
    outcome = Outcome.model_validate_json((home / "runs/first/outcome.json").read_text())
    assert {score.benchmark for score in outcome.scores} == {"imported", "validation"}
