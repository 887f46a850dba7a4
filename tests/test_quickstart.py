"""The quick start of docs/images.md, word by word, on the files that pydicom ships."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import teach
from stllava.data.conversations import conversation
from stllava.data.image_set import read_imported
from stllava.records import Message, Outcome, Question
from stllava.store import read_records, to_jsonl, write_whole

pydicom = pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")
pytest.importorskip("rapidocr_onnxruntime", reason="the extra `ocr` is not installed")

GUIDE = Path(__file__).parent.parent / "docs" / "images.md"
SHIPPED = Path(str(pydicom.__file__)).parent / "data" / "test_files"
PATIENTS, LARGEST = 30, 60_000


def commands() -> list[str]:
    """The commands of the guide's first block, but for what is installed here already."""
    block = re.search(r"```sh\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert block is not None
    return [line for line in block[1].splitlines() if not line.startswith("pip ")]


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


@pytest.mark.slow
def test_a_folder_of_dicom_becomes_a_set_and_a_run_by_the_guides_own_commands(tmp_path: Path) -> None:
    shutil.copytree(SHIPPED, tmp_path / "study", ignore=too_large)
    (tmp_path / "asking").mkdir()
    model = model_that_asks(tmp_path / "asking")
    more_patients(tmp_path / "study" / "others")
    # Another salt would split other patients off, perhaps none.
    (tmp_path / ".stllava").mkdir(mode=0o700)
    (tmp_path / ".stllava" / "salt").write_bytes(bytes(range(32)))
    (tmp_path / ".stllava" / "salt").chmod(0o600)
    shell = tmp_path / "stllava"
    # So small a model asks as it was taught only where little is left to chance, and answers right only by chance.
    flags = "--ask.sampling.temperature 0.3 --answer.sampling.temperature 2 --answer.num-answers 12"
    flags += " --pair.margin 0.05 --data.labelled 12"
    calm = f'case $1 in run) set -- "$@" {flags};; esac'
    shell.write_text(f'#!/bin/sh\n{calm}\nexec "{sys.executable}" -m stllava "$@"\n')
    shell.chmod(0o700)
    lines = commands()
    assert [line.split()[:2] for line in lines][::2] == [["stllava", "import"], ["stllava", "run"]]
    done = subprocess.run(
        ["bash", "-ec", "\n".join(lines)],
        cwd=tmp_path,
        env=os.environ | {"HOME": str(tmp_path), "STLLAVA_MODEL": str(model), "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    split = {row.path: row.split for row in read_imported(tmp_path / "set")}
    assert {"train", "validation", "test"} == set(split.values())
    outcome = Outcome.model_validate_json((tmp_path / "runs/first/outcome.json").read_text())
    assert (tmp_path / "runs/first/report.html").is_file()
    assert {score.benchmark for score in outcome.scores} == {"imported", "validation"}
    asked = {path for one in read_records(tmp_path / "runs/first/round-1/ask", "questions", Question) for path in one.images}
    assert {split[path] for path in asked} <= {"train"}
