"""The words of a DICOM object: what may be told of it, who it is of, and whether its pixels hold text.

Reads data sets and the first bytes of files, writes nothing. `faults` are all that pydicom raises at a bad value.
"""

import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from stllava.intake.deidentify.spelling import plain_day
from stllava.intake.readers.dicom import windows
from stllava.intake.readers.frame import Facts, Identity

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.dataelem import DataElement, RawDataElement

Burned = Literal["yes", "no", "unknown", "likely"]

_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_SCREENS = ("US", "IVUS", "SC", "OT", "ES")
_COPIED = re.compile(r"SAVE|SCREEN|CAPTURE|REPORT|DOSE ?INFO|PROTOCOL PAGE")
"""Words of an image's type or its series' description that tell of a copied screen: the first as MIRC's CTP filters by it."""
_CAPTURES = (
    "ConversionType",
    "DateOfSecondaryCapture",
    "SecondaryCaptureDeviceID",
    "SecondaryCaptureDeviceManufacturer",
    "SecondaryCaptureDeviceManufacturerModelName",
)
_DATES = ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")
_PLAIN = frozenset(["AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI", "UR"])
_WORDS = frozenset(["LO", "LT", "PN", "SH", "ST", "UC", "UT"])
_NUMBERS = frozenset(["AT", "FD", "FL", "OD", "OF", "OL", "OV", "OW", "SL", "SS", "SV", "UL", "US", "UV"])
_BYTES = frozenset(["OB", "UN"])
_LONGEST = 1 << 26
_PIXELS = 0x7FE0
_FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


def faults() -> tuple[type[Exception], ...]:
    """What pydicom raises at a bad file, besides `OSError`: its own two errors, and Python's."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    return (BytesLengthException, InvalidDicomError, *_FAULTS)


def read_facts(data: "Dataset", index: int, *, frames: int) -> Facts:
    orientation = windows.lookup(data, index, group="PlaneOrientationSequence", name="ImageOrientationPatient")
    instance = windows.number(data.get("InstanceNumber"))
    frame_index = index if frames > 1 else None
    if frames == 1 and orientation and instance is not None and instance >= 1:
        frame_index = int(instance) - 1
    side = windows.lookup(data, index, group="FrameAnatomySequence", name="FrameLaterality")
    side = str(side or data.get("ImageLaterality") or data.get("Laterality") or "").strip().upper()
    body_part = str(data.get("BodyPartExamined") or "")
    regions = windows.lookup(data, index, group="FrameAnatomySequence", name="AnatomicRegionSequence")
    if not body_part and regions:
        body_part = str(regions[0].get("CodeMeaning") or "")  # type: ignore[index]
    return Facts(
        modality=str(data.get("Modality") or "").strip().upper(),
        body_part=body_part.strip().lower(),
        view=str(data.get("ViewPosition") or "").strip().upper() or _plane(orientation),
        laterality=side if side in ("L", "R", "B") else "",
        frame=frame_index,
    )


def _plane(orientation: object) -> str:
    """The plane that a slice lies in by the direction cosines of its rows and columns; empty when not known."""
    cosines = [float(str(value)) for value in orientation] if orientation else []  # type: ignore[attr-defined]
    if len(cosines) != 6:
        return ""
    normal = np.abs(np.cross(cosines[:3], cosines[3:]))
    # Beyond 37 degrees of tilt a slice is none of the three.
    return ("sagittal", "coronal", "axial")[int(normal.argmax())] if normal.max() >= 0.8 else "oblique"


def read_burned(data: "Dataset") -> Burned:
    """Whether text is in the pixels: what is known of such objects, and the file's own flag where nothing speaks against it."""
    flag = str(data.get("BurnedInAnnotation") or "").strip().upper()
    if flag == "YES":
        return "yes"
    sop_class, modality = str(data.get("SOPClassUID", "")), str(data.get("Modality") or "").strip().upper()
    image_type = data.get("ImageType") or ()
    words = {str(word).strip().upper() for word in ([image_type] if isinstance(image_type, str) else image_type)}
    named = " ".join((*sorted(words), str(data.get("SeriesDescription") or "").upper()))
    captured = sop_class == _CAPTURE or sop_class.startswith(f"{_CAPTURE}.") or any(name in data for name in _CAPTURES)
    # Programs write NO by habit, on copies of screens too.
    if captured or _COPIED.search(named) or modality in _SCREENS:
        return "likely"
    # Slices in colour, and what was made after the examination, are often drawn by a workstation.
    drawn = "SECONDARY" in words or data.get("SamplesPerPixel") == 3
    if modality in ("CT", "MR"):
        return "unknown" if drawn or not (flag == "NO" or {"ORIGINAL", "PRIMARY"} <= words) else "no"
    return "no" if flag == "NO" else "unknown"


def read_identity(data: "Dataset", path: Path) -> Identity:
    with path.open("rb") as file:
        preamble = file.read(132)
    texts = set(_printable(preamble[:128])) if preamble[128:] == b"DICM" else set()
    for part in (data.file_meta, data):
        texts.update(_texts(part))
    number, *more = _values(data, "PatientID") or [""]
    issuer = (_values(data, "IssuerOfPatientID") or _issuers(data) or [""])[0]
    return Identity(
        patient=number,
        issuer=issuer,
        others=(*((other, issuer) for other in more), *_other_numbers(data)),
        name="\\".join(_values(data, "PatientName")),
        study=str(data.get("StudyInstanceUID") or ""),
        series=str(data.get("SeriesInstanceUID") or ""),
        accession="\\".join(_values(data, "AccessionNumber")),
        frame_of_reference=str(data.get("FrameOfReferenceUID") or ""),
        date=next((day for name in _DATES for value in _values(data, name) if (day := plain_day(value))), ""),
        texts=frozenset(texts),
    )


def _values(data: "Dataset", name: str) -> list[str]:
    """The values of an attribute that hold more than blanks."""
    value = data.get(name)
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return [text for value in values if value is not None and (text := str(value).strip("\0 "))]


def _issuers(data: "Dataset") -> list[str]:
    """Ids of the issuer where only the sequence about it names one."""
    return [
        text for item in data.get("IssuerOfPatientIDQualifiersSequence") or () for text in _values(item, "UniversalEntityID")
    ]


def _other_numbers(data: "Dataset") -> Iterator[tuple[str, str]]:
    """The numbers that a patient also has, each with its issuer where one is named."""
    yield from ((number, "") for number in _values(data, "OtherPatientIDs"))
    for item in data.get("OtherPatientIDsSequence") or ():
        issuer = (_values(item, "IssuerOfPatientID") or _issuers(item) or [""])[0]
        yield from ((number, issuer) for number in _values(item, "PatientID"))


def _texts(data: "Dataset") -> Iterator[str]:
    """Every text of a data set, its sequences and its private elements; the parts of a name also alone."""
    # values() alone converts nothing; a header of CT has hundreds of elements.
    for raw in data.values():
        # Pixels are no texts, nor is what no name needs the room of.
        pixels = int(raw.tag) >> 16 == _PIXELS
        if pixels or raw.VR in _NUMBERS or (raw.value is None and getattr(raw, "length", 0) > _LONGEST):
            continue
        plain = raw.VR in _PLAIN or (raw.VR in _WORDS and isinstance(raw.value, bytes) and raw.value.isascii())
        # Escapes switch the alphabet within a text of ASCII bytes; pydicom's own conversion is slow and knows them.
        if plain and isinstance(raw.value, bytes) and b"\x1b" not in raw.value:
            text = raw.value.decode("latin-1")
            yield from _parts(text)
            if raw.VR == "PN":
                yield from _parts(re.sub(r"[\^=]", "\\\\", text))
            continue
        yield from _element_texts(data, raw)


def _element_texts(data: "Dataset", raw: "RawDataElement | DataElement") -> Iterator[str]:
    try:
        element = data[raw.tag]
    except faults():
        # An element that cannot be read as what it claims to be may hold a name all the same.
        yield from _printable(raw.value if isinstance(raw.value, bytes) else b"")
        return
    if element.VR == "SQ":
        for item in element.value:
            yield from _texts(item)
    elif isinstance(element.value, bytes) and element.VR in _BYTES:
        yield from _printable(element.value)
    elif element.VR in _WORDS or element.VR in _PLAIN:
        values = element.value if element.VM > 1 else [element.value]
        for value in values:
            yield from _parts(str(value or ""))
            if element.VR == "PN":
                yield from _parts(re.sub(r"[\^=]", "\\\\", str(value or "")))


def _parts(text: str) -> Iterator[str]:
    """The values of a text that backslashes divide, without padding, standard UIDs and plain numbers."""
    for part in text.replace("\0", " ").split("\\"):
        value = part.strip()
        if value and not value.startswith("1.2.840.10008."):
            yield value


def _printable(data: bytes) -> Iterator[str]:
    """Runs of four printable characters or more, as private elements hold them."""
    for run in re.findall(rb"[\x20-\x7e\x80-\xff]{4,}", data):
        try:
            yield from _parts(run.decode("utf-8"))
        except UnicodeDecodeError:
            yield from _parts(run.decode("latin-1"))
