"""How measured values become grey: rescale and tables (modality), windows and tables (VOI), presets for CT.

Reads attributes of a data set and arrays, writes nothing. The rules are those of DICOM PS3.3 C.11.1 (modality), C.11.2
(VOI) and C.7.6.16.2 (the functional groups of enhanced objects, which come before the data set's own attributes).

By hand, since pydicom's own functions know neither functional groups nor presets, scale to the range of the stored bits and
compute every pixel instead of every value; `tests/test_dicom.py` compares both on plain files.
"""

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeGuard, get_args

import numpy as np
from numpy.typing import NDArray

from stllava.config.intake import WindowChoice
from stllava.errors import ItemError

if TYPE_CHECKING:
    from pydicom import Dataset

Preset = Literal["lung", "mediastinum", "brain", "bone", "abdomen"]
Curve = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]
Values = NDArray[np.integer] | NDArray[np.floating]

PRESETS: dict[Preset, tuple[float, float]] = {
    "lung": (-600.0, 1500.0),
    "mediastinum": (50.0, 350.0),
    "brain": (40.0, 80.0),
    "bone": (400.0, 1800.0),
    "abdomen": (50.0, 400.0),
}
"""Centre and width in Hounsfield units, as radiology's textbooks have them; all readers differ by some tens."""

_REGIONS: dict[Preset, tuple[str, ...]] = {
    "brain": ("brain", "head", "skull"),
    "bone": ("spine", "extremity", "hand", "foot", "knee", "hip", "shoulder", "elbow", "wrist", "ankle"),
    "mediastinum": ("chest", "thorax", "heart", "lung"),
}
_TABLED = 1 << 16
_CURVES: tuple[Curve, ...] = get_args(Curve)


@dataclass(frozen=True)
class Window:
    """The values that become greys."""

    centre: float
    width: float
    """Above 0."""
    curve: Curve = "LINEAR"


@dataclass(frozen=True)
class LookupTable:
    """A lookup table: values up to `first` take the first entry, those beyond its end the last."""

    entries: NDArray[np.uint16]
    first: int
    bits: int
    """Of an entry."""

    def apply(self, values: Values) -> NDArray[np.uint16]:
        """The entry of every value, rounded to the nearest whole one; in the shape of `values`."""
        indices = np.clip(np.rint(values).astype(np.int64) - self.first, 0, len(self.entries) - 1)
        return self.entries[indices]


def lookup(data: "Dataset", frame: int, *, group: str, name: str) -> object:
    """What the functional group `group` says of `name` for that frame, else the data set's own value; None for neither."""
    candidates = []
    per_frame = data.get("PerFrameFunctionalGroupsSequence")
    if per_frame and frame < len(per_frame):
        candidates.append(per_frame[frame])
    if shared := data.get("SharedFunctionalGroupsSequence"):
        candidates.append(shared[0])
    for candidate in candidates:
        items = candidate.get(group)
        if items and name in items[0]:
            found: object = items[0].get(name)
            return found
    return data.get(name)


def number(value: object) -> float | None:
    """The (first) number of an attribute; None where there is none or it is not finite."""
    first = next(iter(value), None) if _many(value) else value
    if first is None or first == "":
        return None
    found = float(str(first))
    return found if math.isfinite(found) else None


def read_table(descriptor: object, data: object, *, little: bool) -> LookupTable:
    """A table of its descriptor (entries, first value mapped, bits) and data; raises `ItemError` where they disagree."""
    if not _many(descriptor) or len(parts := [int(str(part)) for part in descriptor]) != 3:
        raise ItemError("damaged", "a lookup table has no descriptor of three numbers")
    length, first, bits = parts[0] or _TABLED, parts[1], parts[2]
    if isinstance(data, bytes):
        narrow = len(data) < 2 * length
        dtype = np.dtype(np.uint8) if narrow else np.dtype("<u2" if little else ">u2")
        if narrow and not little:
            # Bytes that travel as big-endian words are swapped in pairs.
            data = np.frombuffer(data[: len(data) // 2 * 2], dtype=">u2").astype("<u2").tobytes()
        entries = np.frombuffer(data[: len(data) // dtype.itemsize * dtype.itemsize], dtype=dtype)
    else:
        entries = np.array([int(str(entry)) & 0xFFFF for entry in data] if _many(data) else [], dtype=np.uint16)
    if len(entries) < length or not 1 <= bits <= 16:
        raise ItemError("damaged", f"a lookup table of {length} entries has {len(entries)}")
    return LookupTable(entries[:length].astype(np.uint16), first, bits)


def modality(data: "Dataset", frame: int, *, little: bool) -> tuple[Callable[[Values], Values], str]:
    """What turns stored values into measured ones, and its name for `Facts.done`; an empty name where nothing changes."""
    if tables := data.get("ModalityLUTSequence"):
        table = read_table(tables[0].get("LUTDescriptor"), tables[0].get("LUTData"), little=little)
        return table.apply, "modality table"
    group = "PixelValueTransformationSequence"
    slope = number(lookup(data, frame, group=group, name="RescaleSlope"))
    intercept = number(lookup(data, frame, group=group, name="RescaleIntercept"))
    if slope is None and intercept is None:
        return lambda values: values, ""
    slope, intercept = 1.0 if slope is None else slope, intercept or 0.0
    if slope == 0:
        raise ItemError("damaged", "the rescale slope is 0")
    units = str(lookup(data, frame, group=group, name="RescaleType") or "HU").strip().upper()
    hounsfield = data.get("Modality") == "CT" and units == "HU"
    if (slope, intercept) == (1.0, 0.0):
        return lambda values: values, "rescaled to HU" if hounsfield else ""
    name = "rescaled to HU" if hounsfield else f"rescaled by {slope:g} and {intercept:g}"
    return lambda values: values.astype(np.float64) * slope + intercept, name


def voi(data: "Dataset", frame: int, *, little: bool) -> LookupTable | Window | None:
    """The file's own choice of greys, the first where there are several; None where it has none that can be used."""
    if tables := data.get("VOILUTSequence"):
        return read_table(tables[0].get("LUTDescriptor"), tables[0].get("LUTData"), little=little)
    group = "FrameVOILUTSequence"
    centre = number(lookup(data, frame, group=group, name="WindowCenter"))
    width = number(lookup(data, frame, group=group, name="WindowWidth"))
    named = str(lookup(data, frame, group=group, name="VOILUTFunction") or "LINEAR").strip().upper()
    if centre is None or width is None or width <= 0:
        return None
    curve: Curve = next((known for known in _CURVES if known == named), "LINEAR")
    # PS3.3 forbids LINEAR below a width of 1, which it would divide by 0 or turn round.
    return Window(centre, width, "LINEAR_EXACT" if curve == "LINEAR" and width <= 1 else curve)


def choose(
    choice: WindowChoice, own: LookupTable | Window | None, *, hounsfield: bool, body_part: str
) -> tuple[LookupTable | Window | None, str]:
    """The table or window to use, and its name; None for the range of the values.

    A preset is for Hounsfield units only: other pictures go by `auto`, as a tree of files holds both. `auto` is the
    file's own, else for CT the preset of the body part, abdomen where that is none of them.
    """
    preset = next((known for known in PRESETS if known == choice), None)
    if preset is None and choice == "auto" and own is None:
        preset = next((known for known, parts in _REGIONS.items() if any(part in body_part for part in parts)), "abdomen")
    if preset is not None and hounsfield:
        centre, width = PRESETS[preset]
        return Window(centre, width), f"window {preset} ({centre:g}, {width:g})"
    if isinstance(own, LookupTable):
        return own, "the file's VOI table"
    if own is not None:
        return own, f"the file's window {own.curve} ({own.centre:g}, {own.width:g})"
    return None, ""


def shows_nothing(window: Window, measured: Values) -> bool:
    """Whether a window leaves two greys at most of all that a file can hold, `measured`: as far wide of it, or beside it."""
    greys = to_bytes(to_unit(measured, window))
    return int(greys.max()) - int(greys.min()) <= 1


def ends(choice: LookupTable | Window) -> tuple[float, float]:
    """The measured values up to which a picture is black and from which on it is white; of a sigmoid where it bends."""
    if isinstance(choice, LookupTable):
        return float(choice.first), float(choice.first + len(choice.entries) - 1)
    if choice.curve == "LINEAR":
        return choice.centre - choice.width / 2, choice.centre - 1 + choice.width / 2
    return choice.centre - choice.width / 2, choice.centre + choice.width / 2


def descends(choice: LookupTable | Window) -> bool:
    """Whether greater values are darker by it, as by a table that turns a picture round."""
    return isinstance(choice, LookupTable) and bool(choice.entries[0] > choice.entries[-1])


def to_unit(values: Values, window: Window) -> NDArray[np.float64]:
    """Values as light from 0 to 1 by the window's curve (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    light = values.astype(np.float64)
    if window.curve == "SIGMOID":
        # Beyond 700 the exponential overflows; the curve is flat long before.
        return 1 / (1 + np.exp(np.clip(-4 * (light - window.centre) / window.width, -700, 700)))
    if window.curve == "LINEAR":
        return np.clip((light - (window.centre - 0.5)) / (window.width - 1) + 0.5, 0, 1)
    return np.clip((light - window.centre) / window.width + 0.5, 0, 1)


def to_bytes(light: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Light from 0 to 1 as 0 to 255, halves rounded up; what is no number is black."""
    return (np.nan_to_num(light, nan=0.0) * 255 + 0.5).astype(np.uint8)


def to_grey(
    values: Values, measure: Callable[[Values], Values], *, choice: LookupTable | Window, inverted: bool
) -> NDArray[np.uint8]:
    """Stored values [H, W] as greys: measured, through the window or table, turned round where `inverted`."""

    def grey(some: Values) -> NDArray[np.uint8]:
        measured = measure(some)
        if isinstance(choice, LookupTable):
            light = np.minimum(choice.apply(measured) / ((1 << choice.bits) - 1), 1.0)
        else:
            light = to_unit(measured, choice)
        return to_bytes(1 - light if inverted else light)

    if values.dtype.kind in "iu" and values.size > 0:
        low, high = min(int(values.min()), 0), int(values.max())
        if high - low < min(_TABLED, values.size):
            # Few values, many pixels: one grey is computed for each value, in double precision.
            indices = values.astype(np.intp) if low == 0 else np.subtract(values, low, dtype=np.intp)
            return np.take(grey(np.arange(low, high + 1)), indices, mode="clip")
    return grey(values)


def own_range(measured: Values, shown: NDArray[np.bool_]) -> Window:
    """The window from the smallest to the greatest finite value among those shown."""
    kept = measured[shown & np.isfinite(measured)]
    if kept.size == 0:
        return Window(0.0, 1.0, "LINEAR_EXACT")
    low, high = float(kept.min()), float(kept.max())
    return Window((low + high) / 2, max(high - low, sys.float_info.min), "LINEAR_EXACT")


def _many(value: object) -> TypeGuard[Iterable[object]]:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes)
