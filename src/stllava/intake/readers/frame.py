"""What every reader gives and everything behind the readers takes: one picture and what may be told of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

FrameKind = Literal["dicom", "nifti", "tiff", "slide", "photograph"]


@dataclass(frozen=True)
class Facts:
    """What may be told of a picture: nothing that names a person, place, device or day."""

    modality: str = ""
    """DICOM's code, such as CR, CT, MR, US; empty when unknown."""
    body_part: str = ""
    """In lower case, such as chest."""
    view: str = ""
    """Such as PA or LATERAL, or the plane of a slice: axial, coronal, sagittal."""
    laterality: str = ""
    """L, R or B; empty when unknown."""
    series: str = ""
    """Hidden id of the series; pictures of one series share it."""
    frame: int | None = None
    """Place in the series or volume, from 0; None of a single picture."""
    done: tuple[str, ...] = ()
    """What was done to the pixels, in order, such as "rescaled to HU", "window lung (-600, 1500)"."""


@dataclass(frozen=True)
class Identity:
    """What tells patients, studies and days apart, never written: `patients.py` turns it into hidden ids."""

    patient: str = ""
    """PatientID, as the file has it; `patients.py` knows how these are spelt."""
    issuer: str = ""
    """Who issued it."""
    others: tuple[tuple[str, str], ...] = ()
    """More numbers of the patient, each with its issuer."""
    name: str = ""
    study: str = ""
    series: str = ""
    accession: str = ""
    frame_of_reference: str = ""
    date: str = ""
    """YYYYMMDD; empty when unknown."""
    texts: frozenset[str] = frozenset()
    """Every text of the file that could name somebody, for checks that none comes out; and for finding it in pixels."""


@dataclass(frozen=True)
class DeepPixels:
    """A picture in 16 bits. A pixel p stands for `offset` + `step` × p in the units of its file."""

    values: NDArray[np.uint16]
    """[H, W], of the picture's size; brighter is more, 0 where there is no picture."""
    offset: float
    step: float
    """Below 0 where the picture is inverted."""
    black: float
    """The pixel up to which the 8-bit picture is black; may lie beyond all pixels."""
    white: float
    """The pixel from which on the 8-bit picture is white."""


@dataclass(frozen=True)
class Frame:
    """One picture, ready to be written."""

    pixels: NDArray[np.uint8]
    """[H, W] or [H, W, 3], 0 is black."""
    facts: Facts
    identity: Identity = field(default_factory=Identity)
    burned: Literal["yes", "no", "unknown", "likely"] = "unknown"
    """Whether text is in the pixels: DICOM's own flag, or likely by the kind of image (ultrasound, secondary capture)."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """More harmless attributes by name, from the allow-list."""
    deep: DeepPixels | None = None
    """Its 16-bit pixels, where they are asked for and its source has more than 8 bits."""
