"""The single-frame files of a DICOM series: where each lies by its header alone, and many of them as one projection.

    read_slice(path, coloured=True)             # a `Slice`, or None
    projection = MaximumProjection(DicomOptions())
    projection.add(path, off=0)
    frame = projection.frame(total=1)

Reads one file at a time and writes nothing. Needs the extra `dicom`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stllava.errors import ItemError
from stllava.intake.deidentify.spelling import number_key
from stllava.intake.readers.dicom import windows
from stllava.intake.readers.dicom.header import Burned, read_burned, read_identity
from stllava.intake.readers.dicom.pixels import StoredPixels, encoded
from stllava.intake.readers.dicom.read import (
    NO_PICTURES,
    DicomOptions,
    check_grey,
    finish,
    guarded,
    measured_values,
    open_picture,
    read_data,
)
from stllava.intake.readers.frame import Frame, Identity

if TYPE_CHECKING:
    from pydicom import Dataset

_BURNED: tuple[Burned, ...] = ("no", "unknown", "likely", "yes")
_SLICED = frozenset({"CT", "MR", "NM", "PT"})
"""Modalities whose files are slices even where they do not say their position, as old ones do not."""
MARKS = (
    "TemporalPositionIdentifier",
    "AcquisitionNumber",
    "TriggerTime",
    "EchoTime",
    "EchoNumbers",
    "DiffusionBValue",
    "ImageType",
)
"""What tells several passes through the same places apart, in the order in which it is tried."""
_COMMON = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "Rows", "Columns")
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_TAGS = (
    *_COMMON,
    *MARKS,
    *_GROUPS,
    "SOPClassUID",
    "SOPInstanceUID",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "InstanceNumber",
)


@dataclass(frozen=True)
class Slice:
    """Where a single-frame file lies in its series."""

    stack: tuple[str, ...]
    """What it must share with the files that it is stacked with, but for the orientation."""
    orientation: tuple[float, ...] | None
    """Direction cosines of its rows and columns; None where they or the position are not known."""
    position: tuple[float, ...]
    """Of its first pixel, in millimetres; three instance numbers where the orientation is None."""
    instance: int
    """Its number in the series; 0 where it has none."""
    marks: tuple[str, ...]
    """Values of `MARKS`."""
    name: str
    """Of the object, which its copies share; empty where it has none."""


def read_slice(path: Path, *, coloured: bool) -> Slice | None:
    """Where a DICOM file lies in its series by its header; None of one that is no slice, or `coloured` where that is False.

    Radiographs and ultrasound of one series are views, not slices: without a position they are none. Raises `ItemError`
    for a bad header, `StllavaError` without pydicom.
    """
    with guarded():
        data = read_data(path, _TAGS)
        if str(data.get("SOPClassUID", "")) in NO_PICTURES or int(data.get("NumberOfFrames") or 1) != 1:
            return None
        common = [str(data.get(name) or "").strip() for name in _COMMON]
        # A number may be spelt in two ways within one series; a name, even the more, says nothing.
        common[0] = number_key(common[0])
        *_, series, modality, rows, columns = common
        photometric = str(data.get("PhotometricInterpretation") or "").strip().upper()
        if not (series and rows and columns) or not (coloured or photometric in ("MONOCHROME1", "MONOCHROME2")):
            return None
        instance = windows.number(data.get("InstanceNumber"))
        orientation = _numbers(data, group="PlaneOrientationSequence", name="ImageOrientationPatient", length=6)
        position = _numbers(data, group="PlanePositionSequence", name="ImagePositionPatient", length=3)
        if orientation is None or position is None or not 0.9 < float(np.linalg.norm(normal(orientation))) < 1.1:
            if modality.upper() not in _SLICED or instance is None:
                return None
            orientation, position = None, (instance,) * 3
        marks = tuple(str(data.get(name) or "").strip() for name in MARKS)
        localizer = "LOCALIZER" in marks[-1].upper()
        return Slice(
            stack=(*common, str(data.get("SamplesPerPixel") or ""), photometric, str(localizer)),
            orientation=orientation,
            position=position,
            instance=int(instance or 0),
            marks=marks,
            name=str(data.get("SOPInstanceUID") or ""),
        )


def _numbers(data: "Dataset", *, group: str, name: str, length: int) -> tuple[float, ...] | None:
    """So many finite numbers of an attribute of the data set or its functional group; None where it has no such."""
    found = windows.lookup(data, 0, group=group, name=name)
    values = [float(str(value)) for value in found] if isinstance(found, Sequence) and not isinstance(found, str) else []
    return tuple(values) if len(values) == length and all(map(math.isfinite, values)) else None


def normal(orientation: Sequence[float]) -> NDArray[np.float64]:
    """The direction in which slices of an orientation follow each other, [3]."""
    return np.cross(orientation[:3], orientation[3:])


class MaximumProjection:
    """The greatest measured values of single-frame files of one size, of which one is in memory at a time."""

    def __init__(self, options: DicomOptions) -> None:
        self._options = options
        self._greatest: NDArray[np.float64] | None = None
        self._middle: tuple[int, StoredPixels, Identity] | None = None
        self._texts: set[str] = set()
        self._measures: set[str] = set()
        self._burned = 0
        self._count = 0

    def add(self, path: Path, *, off: int) -> None:
        """Take one file, `off` places from the middle of the stack; raises as `read_dicom`, and then nothing has changed."""
        with guarded():
            picture = open_picture(path, self._options)
            check_grey(picture)
            if picture.frames != 1:
                raise ItemError("unsupported", "a slice of a stack has one frame")
            if self._middle is not None:
                first = self._middle[1]
                if (picture.rows, picture.columns, picture.colour) != (first.rows, first.columns, first.colour):
                    raise ItemError("unsupported", "a slice is not of the size and colours of those before it")
            identity, burned = read_identity(picture.data, path), _BURNED.index(read_burned(picture.data))
            (found,) = encoded(picture, path, range(1))
            measured, name = measured_values(picture, found[1], 0)
        self._greatest = measured if self._greatest is None else np.fmax(self._greatest, measured, out=self._greatest)
        if self._middle is None or off < self._middle[0]:
            self._middle = off, picture, identity
        self._texts |= identity.texts
        self._measures.add(name)
        self._burned = max(self._burned, burned)
        self._count += 1

    def frame(self, *, total: int) -> Frame:
        """The picture, its facts and window those of the file nearest the middle; one file at least has been taken."""
        assert self._greatest is not None
        assert self._middle is not None
        _, picture, identity = self._middle
        with guarded():
            pixels, facts, deep = finish(picture, self._greatest, 0, options=self._options, projected=True)
        done = facts.done
        if len(self._measures) > 1:
            # The files differ in their numbers, as PET's do: those of one would be wrong of the others.
            done = ("rescaled", *(step for step in done if step not in self._measures))
        facts = replace(facts, frame=None, done=(f"maximum of {self._count} of {total} slices", *done))
        return Frame(pixels, facts, replace(identity, texts=frozenset(self._texts)), _BURNED[self._burned], deep=deep)
