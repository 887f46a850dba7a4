"""What the importer's tests and their workers share: a reader of plain PNG that also hangs, crashes and eats memory.

Apart from the tests, so that a worker need not import what tests are written with.
"""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stllava.config import IntakeOptions
from stllava.data.images import open_image
from stllava.data.intake.burned import Treated
from stllava.data.intake.convert import Parts
from stllava.data.intake.frame import Facts, Frame, Identity
from stllava.data.intake.importing import import_images
from stllava.errors import ItemError, StllavaError
from stllava.records import Manifest

FAST = IntakeOptions(seconds=2, workers=1, chunk=4, memory=1)


def read(path: Path) -> Iterator[Frame]:
    """A reader of PNG for the tests; the file's name says what it does: PATIENT_STUDY_DATE_anything, or a trouble."""
    match path.name.partition(".")[0]:
        case "hangs":
            time.sleep(3600)
        case "crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "eats":
            bytearray(64 << 30)
        case "breaks":
            raise ZeroDivisionError(path.name)
        case "lacks":
            raise StllavaError("no reader", expected="the extra", remedy="Install it.")
    patient, study, day, *_ = f"{path.stem}___".split("_")
    pixels = np.asarray(open_image(path.parent, path.name).convert("L"))
    identity = Identity(patient=patient, study=study, date=day, texts=frozenset({patient}))
    yield Frame(pixels, Facts(modality="CR", body_part="chest", done=("window",)), identity, burned="no")
    if "twoframes" in path.name:
        yield Frame(pixels[::-1].copy(), Facts(modality="CR"), identity, burned="no")
        raise ItemError("truncated", "the third frame is cut off")


def kind(path: Path) -> str | None:
    """PNG or nothing."""
    return "photograph" if path.read_bytes().startswith(b"\x89PNG") else None


def treat(frame: Frame) -> Treated:
    """Pass everything."""
    return Treated(frame, "passed", "for the tests")


def parts(options: IntakeOptions) -> Parts:
    """The tests' own reader and no search for text."""
    return Parts(kind, {"photograph": read}, treat)


def brought(folder: Path, options: IntakeOptions = FAST, *, to: str = "data") -> Manifest:
    return import_images(
        options, source=folder / "in", to=folder / to, salt=folder / "keys" / "salt", existing="resume", make=parts
    )
