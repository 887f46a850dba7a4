"""What the importer's tests and their workers share: readers of plain PNG and DICOM slices that also hang and crash.

Apart from the tests, so that a worker need not import what tests are written with.
"""

import functools
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from stllava.config import IntakeOptions
from stllava.data.images import open_image
from stllava.errors import ItemError, StllavaError
from stllava.intake.convert import MakeToolbox, Projection, Toolbox, default_toolbox
from stllava.intake.deidentify import burned_text
from stllava.intake.deidentify.burned_text import Box, BurnedOptions, Findings, FrameMasker, MaskResult
from stllava.intake.deidentify.text_reader import Map, Pixels
from stllava.intake.readers.dicom.stack import Slice
from stllava.intake.readers.frame import Facts, Frame, Identity
from stllava.intake.run import import_images
from stllava.records import Manifest

FAST = IntakeOptions(seconds=1, workers=1, chunk=4, memory=1)
SLICES = IntakeOptions(seconds=20, workers=1, chunk=4, look_for_text="rules")


def read(path: Path) -> Iterator[Frame]:
    """A reader of PNG for the tests; the file's name says what it does: PATIENT_STUDY_DATE_anything, or a trouble."""
    match path.name.partition(".")[0]:
        case "hangs":
            time.sleep(3600)
        case "spins":
            while True:
                pass
        case "crowded":
            _crowd()
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


def _crowd() -> None:
    """0.4 seconds of work on a core that three other processes want, too: it takes longer than the limit of `FAST`."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    begun = time.monotonic()
    try:
        end = time.process_time() + 0.4
        while time.process_time() < end:
            pass
        assert time.monotonic() - begun > FAST.seconds
    finally:
        for other in others:
            other.kill()
            other.wait()


def kind(path: Path) -> str | None:
    """PNG or nothing."""
    return "photograph" if path.read_bytes().startswith(b"\x89PNG") else None


class Passing:
    """Passes everything."""

    def mask(self, frame: Frame, findings: Findings | None = None) -> MaskResult:
        return MaskResult(frame, "passed", "for the tests")


def toolbox(options: IntakeOptions) -> Toolbox:
    """The tests' own reader and no search for text."""
    return Toolbox(kind, {"photograph": read}, Passing)


class MasksWhite:
    """Blacks out the box around all white pixels of a picture, and passes one without any."""

    def mask(self, frame: Frame, findings: Findings | None = None) -> MaskResult:
        rows, columns = (frame.pixels == 255).nonzero()
        if not len(rows):
            return MaskResult(frame, "passed", "for the tests")
        box = Box(int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
        pixels = frame.pixels.copy()
        pixels[box.top : box.bottom, box.left : box.right] = 0
        return MaskResult(replace(frame, pixels=pixels), "masked", "white", (box,))


def masks_white(options: IntakeOptions) -> Toolbox:
    """The tests' own reader; white squares stand for text."""
    return Toolbox(kind, {"photograph": read}, MasksWhite)


CINE = 30
"""Frames of a `cine` file."""


def cine(options: IntakeOptions) -> Toolbox:
    """A reader of files of 30 frames whose upper half changes, and a finder of white squares that notes each look it ended.

    In the folder above the source, a file `stop` holds the frame at which the finder waits until it is gone, and `slow` the
    seconds of every look.
    """
    folder, at = Path(), 0

    def frames(path: Path) -> Iterator[Frame]:
        nonlocal folder, at
        folder = path.parent.parent
        still = np.asarray(open_image(path.parent, path.name).convert("L"))
        for at in range(CINE):
            pixels = still.copy()
            pixels[: len(pixels) // 2] = np.random.default_rng(at).integers(0, 200, pixels[: len(pixels) // 2].shape)
            yield Frame(pixels, Facts(modality="US"), Identity(patient=path.stem), burned="unknown")

    def find_text(pixels: Pixels, options: BurnedOptions, where: Map | None) -> list[Box]:
        slow, stop = folder / "slow", folder / "stop"
        time.sleep(float(slow.read_text()) if slow.exists() else 0)
        if stop.exists() and int(stop.read_text()) == at:
            while stop.exists():
                time.sleep(0.01)
            os._exit(1)
        white = (pixels == 255) if where is None else (pixels == 255) & where
        rows, columns = white.nonzero()
        with (folder / "looks").open("a") as file:
            file.write(f"{at} {0 if where is None else int(where.sum())}\n")
        return [Box(int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)] if len(rows) else []

    burned_text.find_text = find_text  # type: ignore[assignment]
    return Toolbox(kind, {"photograph": frames}, functools.partial(FrameMasker, BurnedOptions()))


def import_folder(
    folder: Path,
    options: IntakeOptions = FAST,
    *,
    to: str = "data",
    make: MakeToolbox = toolbox,
    refused: Path | None = None,
    shard: str | None = None,
) -> Manifest:
    return import_images(
        options,
        source=folder / "in",
        to=folder / to,
        salt=folder / "keys" / "salt",
        refused=refused,
        existing="resume",
        shard=shard,
        make=make,
    )


def _trouble(path: Path, when: str) -> None:
    if path.name.startswith(f"hangs-{when}"):
        time.sleep(3600)
    if path.name.startswith(f"crashes-{when}"):
        os.kill(os.getpid(), signal.SIGKILL)


class _Troubled:
    """The package's projection, for files in whose names a trouble stands."""

    def __init__(self, real: Projection) -> None:
        self._real = real
        self._paths: list[Path] = []

    def add(self, path: Path, *, off: int) -> None:
        _trouble(path, "pixels")
        self._real.add(path, off=off)
        self._paths.append(path)

    def frame(self, *, total: int) -> Frame:
        for path in self._paths:
            _trouble(path, "picture")
        return self._real.frame(total=total)


def sliced(options: IntakeOptions) -> Toolbox:
    """The package's readers, in trouble at the header or the pixels of files whose names say so."""
    # Loaded here, it takes no time of the first file, which short limits have little of.
    importlib.import_module("pydicom.pixels.decoders")
    real = default_toolbox(options)

    def look(path: Path) -> Slice | None:
        _trouble(path, "header")
        return real.slices["dicom"](path)

    def begin() -> Projection:
        return _Troubled(real.projections["dicom"]())

    return replace(real, slices={"dicom": look}, projections={"dicom": begin})


import_slices = functools.partial(import_folder, make=sliced)
