"""Reads NIfTI 1 and 2 volumes (.nii, .nii.gz, .hdr with .img) as pictures of their slices; writes nothing.

The volume is turned to canonical axes (nibabel's RAS: right, anterior, superior) and shown the radiological way:

- axial: seen from the feet, the patient's right at the picture's left, anterior at the top; slices from feet to head;
- coronal: seen from the front, the patient's right at the left, superior at the top; slices from back to front;
- sagittal: anterior at the left, superior at the top; slices from the patient's left to right.

An oblique volume is turned to its nearest axes, not resampled. One time point is held in memory, whose announced size is
checked before a byte of it is read; a gzip stream is read up to there and no further. No message of an error holds a path
or a text of the file.
"""

import gzip
import hashlib
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stllava.config.intake import FrameChoice, Plane
from stllava.data.images import MAX_PIXELS
from stllava.errors import ItemError, StllavaError
from stllava.intake.readers.deep import deep_pixels
from stllava.intake.readers.frame import Facts, Frame, Identity
from stllava.intake.readers.photograph import name_texts, texts_in
from stllava.intake.readers.recognise import is_nifti

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

CAUSES = ("missing", "not-an-image", "truncated", "unreadable", "too-large", "unsupported", "bad-geometry", "no-time-point")
PLANES = ("sagittal", "coronal", "axial")
"""The plane across each canonical axis: right, anterior, superior."""

PERCENTILES = (0.5, 99.5)
"""Black and white without a window: these percentiles of the whole volume, so that its slices are alike."""
MAX_BYTES = 1 << 30
"""Largest time point that is read, unpacked; no more than four times it is read to reach it."""

_COLOURS = ([("R", "u1"), ("G", "u1"), ("B", "u1")], [("R", "u1"), ("G", "u1"), ("B", "u1"), ("A", "u1")])
_MAX_EXTENSIONS = 1 << 24
_PIECE = 1 << 22
_SAMPLED = 1 << 21
T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True)
class NiftiOptions:
    """Which slices of a volume become pictures, and how."""

    plane: Plane = "acquired"
    """acquired: across the axis with the widest steps, axial where they are alike; all: the three of them."""
    frames: FrameChoice = "all"
    """every: each `step`-th slice; mip: one picture, the maximum along the axis."""
    step: int = 1
    """For `every`, from the first slice on."""
    time_point: int = 0
    """Which volume of a series in time is read, from 0."""
    window: tuple[float, float] | None = None
    """Centre and width in the volume's units; None takes `PERCENTILES`."""
    keep_16_bit: bool = False
    """Whether slices of more than 8 bits keep their 16-bit pixels, too."""


@dataclass(frozen=True)
class _Volume:
    """One time point as stored, and what its header says."""

    values: NDArray[np.generic]
    """[right, anterior, superior], or [right, anterior, superior, 3] of colour."""
    spacing: tuple[float, float, float]
    """Between voxels along these axes, in the file's units (mm as a rule)."""
    slope: float
    intercept: float
    assumed: bool
    """Whether the header says nothing of orientation, and NIfTI's default holds."""
    series: str
    texts: frozenset[str]


def read_nifti(path: Path, options: NiftiOptions) -> Iterator[Frame]:
    """Every chosen slice with square pixels; `Facts.frame` is its place along the canonical axis; raises `ItemError`."""
    if options.step < 1 or options.time_point < 0 or (options.window is not None and options.window[1] <= 0):
        raise StllavaError(
            f"step {options.step}, time point {options.time_point}, window {options.window}",
            expected="a step from 1, a time point from 0 and a window wider than 0",
            remedy="Correct --step, --time-point or --nifti-window.",
        )
    volume = _read(path, options)
    low, high, window = _window(volume, options)
    assumed = ("orientation assumed, the header gives none",) if volume.assumed else ()
    for axis in _axes(volume.spacing, options.plane):
        for index, picture in _slices(volume, axis, options):
            shown = picture.astype(np.uint8) if picture.ndim == 3 else _shades(volume, picture, low, high)
            pixels, resampled = _squared(_radiological(shown), axis, volume.spacing)
            description = f"maximum of {volume.values.shape[axis]} slices" if index is None else f"{PLANES[axis]} slice"
            deep = None
            if options.keep_16_bit and picture.ndim == 2 and picture.dtype.itemsize > 1:
                measured = np.nan_to_num(_scaled(volume, picture), nan=low, posinf=high, neginf=low)
                deep = deep_pixels(_squared(_radiological(measured), axis, volume.spacing)[0], black=low, white=high)
            done = ("turned to canonical axes", *assumed, description, *window, *resampled)
            yield Frame(
                pixels=pixels,
                facts=Facts(view=PLANES[axis], frame=index, done=done),
                identity=Identity(series=volume.series, texts=volume.texts),
                deep=deep,
            )


def _axes(spacing: tuple[float, float, float], plane: str) -> tuple[int, ...]:
    if plane == "all":
        return (2, 1, 0)
    if plane != "acquired":
        return (PLANES.index(plane),)
    widest = max(range(3), key=lambda axis: spacing[axis])
    return (widest if spacing[widest] > 1.01 * spacing[2] else 2,)


def _slices(volume: _Volume, axis: int, options: NiftiOptions) -> Iterator[tuple[int | None, NDArray[np.generic]]]:
    count = volume.values.shape[axis]
    if options.frames == "mip":
        # With a negative slope the least number is the brightest. Both functions pass over what is no number.
        brightest = np.fmin if volume.slope < 0 and volume.values.ndim == 3 else np.fmax
        yield None, brightest.reduce(volume.values, axis=axis)
        return
    indices = {"all": range(count), "middle": (count // 2,), "every": range(0, count, options.step)}[options.frames]
    for index in indices:
        yield index, np.take(volume.values, index, axis=axis)


def _radiological(picture: NDArray[T]) -> NDArray[T]:
    """[rows, columns] of a slice [first, second canonical axis left of it]; every plane has both axes turned round."""
    return picture.swapaxes(0, 1)[::-1, ::-1]


def _squared(picture: NDArray[T], axis: int, spacing: tuple[float, float, float]) -> tuple[NDArray[T], tuple[str, ...]]:
    """The picture with square pixels of the finer step, and what was done."""
    across, down = (step for at, step in enumerate(spacing) if at != axis)
    finer = min(across, down)
    height, width = picture.shape[:2]
    if max(height * down, width * across) / finer > MAX_PIXELS:
        raise ItemError("too-large", "a slice with square pixels would be too large; the voxels are very long")
    size = max(1, round(width * across / finer)), max(1, round(height * down / finer))
    if size[0] * size[1] > MAX_PIXELS:
        raise ItemError("too-large", f"a slice with square pixels has {size[0]} × {size[1]}, more than {MAX_PIXELS:,}")
    whole = np.ascontiguousarray(picture)
    if size == (width, height):
        return whole, ()
    resized = Image.fromarray(whole).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(resized), (f"resampled from {width} × {height} to square pixels",)


def _window(volume: _Volume, options: NiftiOptions) -> tuple[float, float, tuple[str, ...]]:
    """What is shown black and white, in the volume's units, and words for it; colour needs none."""
    if volume.values.ndim == 4:
        return 0.0, 255.0, ()
    if options.window is not None:
        centre, width = options.window
        return centre - width / 2, centre + width / 2, (f"window ({centre:g}, {width:g})",)
    every = max(1, math.ceil((volume.values.size / _SAMPLED) ** (1 / 3)))
    values = _scaled(volume, volume.values[::every, ::every, ::every])
    values = values[np.isfinite(values)].astype(np.float64)
    low, high = (float(end) for end in np.percentile(values, PERCENTILES)) if values.size else (0.0, 0.0)
    if low < high:
        first, last = PERCENTILES
        return low, high, (f"window of percentiles {first:g} to {last:g}",)
    # Almost all of it is one value, as of a mask: the percentiles would hide the rest.
    finite = _scaled(volume, volume.values)
    finite = finite[np.isfinite(finite)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    return low, high, ("window of least to most",)


def _scaled(volume: _Volume, values: NDArray[np.generic]) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):
        return (values.astype(np.float64) * volume.slope + volume.intercept).astype(np.float32)


def _shades(volume: _Volume, values: NDArray[np.generic], low: float, high: float) -> NDArray[np.uint8]:
    """Black at `low` and below, white at `high` and above; what is no number is black."""
    if high <= low:
        return np.zeros(values.shape, dtype=np.uint8)
    with np.errstate(all="ignore"):
        shades = (_scaled(volume, values) - np.float32(low)) * np.float32(255 / (high - low))
    whole: NDArray[np.uint8] = (np.nan_to_num(shades.clip(0, 255), nan=0.0) + 0.5).astype(np.uint8)
    return whole


def _read(path: Path, options: NiftiOptions) -> _Volume:
    try:
        from nibabel.nifti1 import Nifti1Header
        from nibabel.nifti2 import Nifti2Header
        from nibabel.orientations import io_orientation
        from nibabel.spatialimages import HeaderDataError
    except ImportError:
        raise StllavaError(
            "nibabel is not installed", expected="it for NIfTI volumes", remedy="Run pip install 'stllava[nifti]'."
        ) from None
    try:
        with _unpacked(path) as file:
            head = file.read(540)
            if not is_nifti(head):
                raise ItemError("not-an-image", "the content is no NIfTI volume")
            header_type = Nifti2Header if head[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else Nifti1Header
            if header_type is Nifti1Header and head[344:347] not in (b"n+1", b"ni1"):
                raise ItemError("bad-geometry", "an Analyze 7.5 file does not say which side is left")
            header = header_type(head[: header_type.sizeof_hdr], check=False)  # type: ignore[no-untyped-call]
            shape, dtype = _shape(header), header.get_data_dtype()  # type: ignore[no-untyped-call]
            slope, intercept = header.get_slope_inter()  # type: ignore[no-untyped-call]
            affine = np.asarray(header.get_best_affine(), dtype=np.float64)  # type: ignore[no-untyped-call]
            data, extra = _data(path, file, head, header, shape=shape, dtype=dtype, options=options)
        spacing = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
        if not (np.isfinite(affine).all() and (spacing > 0).all() and np.isfinite(spacing).all()):
            raise ItemError("bad-geometry", "the header's orientation or voxel size is no usable number")
        turns = io_orientation(affine)  # type: ignore[no-untyped-call]
    except (HeaderDataError, ValueError, OverflowError, KeyError, np.linalg.LinAlgError) as error:
        raise ItemError("unreadable", f"the header makes no sense ({type(error).__name__})") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ItemError("truncated", f"the packed volume is cut off or damaged ({type(error).__name__})") from None
    except OSError as error:
        raise ItemError("unreadable", f"the file cannot be read ({type(error).__name__})") from None
    if not np.isfinite(turns).all() or sorted(turns[:, 0]) != [0, 1, 2]:
        raise ItemError("bad-geometry", "two axes of the volume point the same way")
    series = hashlib.sha256(head)
    series.update(data)
    values = _stored(data, shape, dtype)
    return _Volume(
        values=_canonical(values, turns),
        spacing=_in_order(spacing, turns),
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        assumed=int(header["sform_code"]) <= 0 and int(header["qform_code"]) <= 0,
        series=series.hexdigest(),
        texts=frozenset({*texts_in(head[:344]), *texts_in(extra), *_packed_name(path), *name_texts(path)}),
    )


def _shape(header: "Nifti1Header") -> tuple[int, int, int, int]:
    """Voxels along the file's three axes, and time points."""
    dims = [int(size) for size in header["dim"]]
    if not 1 <= dims[0] <= 7 or any(size < 1 for size in dims[1 : dims[0] + 1]):
        raise ItemError("unreadable", "the header announces a volume without extent")
    sizes = [*dims[1 : dims[0] + 1], 1, 1, 1]
    if any(size != 1 for size in sizes[4:]):
        raise ItemError("unsupported", "the voxels hold vectors or tensors, not shades")
    return sizes[0], sizes[1], sizes[2], sizes[3]


def _data(
    path: Path,
    file: BinaryIO,
    head: bytes,
    header: "Nifti1Header",
    *,
    shape: tuple[int, int, int, int],
    dtype: np.dtype[np.generic],
    options: NiftiOptions,
) -> tuple[bytearray, bytes]:
    """The bytes of the time point, and those between header and volume, which may hold texts."""
    if dtype.kind not in "uif" and dtype.newbyteorder("=") not in [np.dtype(colour) for colour in _COLOURS]:
        raise ItemError("unsupported", f"voxels of the type {dtype.name} are no shades")
    if options.time_point >= shape[3]:
        raise ItemError("no-time-point", f"the volume has {shape[3]} time points; {options.time_point} is beyond them")
    size, offset = math.prod(shape[:3]) * dtype.itemsize, float(header["vox_offset"])
    if size > MAX_BYTES:
        raise ItemError("too-large", f"the header announces {size:,} bytes a time point, more than {MAX_BYTES:,}")
    if not (0 <= offset <= _MAX_EXTENSIONS and offset == int(offset)):
        raise ItemError("unreadable", "the header says that the volume begins at an impossible place")
    skipped = options.time_point * size
    if skipped > 4 * MAX_BYTES:
        raise ItemError("too-large", f"{skipped:,} bytes lie before the time point, more than {4 * MAX_BYTES:,}")
    if b"ni" in (head[344:346], head[4:6]):
        extra = file.read(_MAX_EXTENSIONS)
        with _unpacked(_partner(path)) as other:
            return _taken(other, int(offset) + skipped, size), extra
    begin = int(offset) or header.sizeof_hdr + 4
    if begin < header.sizeof_hdr:
        raise ItemError("unreadable", "the header says that the volume begins inside it")
    read = head + file.read(max(0, begin - len(head)))
    # What was read beyond the offset belongs to the volume.
    extra, begun = read[header.sizeof_hdr : begin], read[begin:]
    if len(begun) <= skipped:
        return _taken(file, skipped - len(begun), size), extra
    return bytearray(begun[skipped : skipped + size]) + _taken(file, 0, max(0, size - len(begun) + skipped)), extra


def _taken(file: BinaryIO, skipped: int, size: int) -> bytearray:
    """The next `size` bytes behind `skipped` others, read piece by piece so that an empty promise takes no memory."""
    while skipped:
        piece = file.read(min(skipped, _PIECE))
        if not piece:
            raise ItemError("truncated", "the volume ends before the time point")
        skipped -= len(piece)
    data = bytearray()
    while len(data) < size:
        piece = file.read(min(size - len(data), _PIECE))
        if not piece:
            raise ItemError("truncated", f"the volume has {len(data):,} of {size:,} bytes")
        data += piece
    return data


def _stored(data: bytearray, shape: tuple[int, int, int, int], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    """[first, second, third axis of the file], or [first, second, third, 3] of colour, its transparency left out."""
    if dtype.names is None:
        return np.frombuffer(data, dtype=dtype).reshape(shape[:3], order="F")
    return np.frombuffer(data, dtype=np.uint8).reshape(*shape[2::-1], dtype.itemsize).transpose(2, 1, 0, 3)[..., :3]


def _canonical(values: NDArray[np.generic], turns: NDArray[np.float64]) -> NDArray[np.generic]:
    """[right, anterior, superior, …] of the axes as stored."""
    flipped = values[tuple(slice(None, None, int(sign)) for sign in turns[:, 1])]
    return flipped.transpose(*np.argsort(turns[:, 0]), *range(3, values.ndim))


def _in_order(spacing: NDArray[np.float64], turns: NDArray[np.float64]) -> tuple[float, float, float]:
    right, anterior, superior = (float(step) for step in spacing[np.argsort(turns[:, 0])])
    return right, anterior, superior


def _unpacked(path: Path) -> BinaryIO:
    """The file's content as a stream, unpacked if it is gzip."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        return gzip.open(path) if packed else path.open("rb")  # type: ignore[return-value]
    except FileNotFoundError:
        raise ItemError("missing", "the file does not exist") from None


def _partner(path: Path) -> Path:
    """The file with the numbers of a `.hdr` file: the name is all that joins them."""
    stem = re.sub(r"\.hdr(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    for end in (".img", ".img.gz", ".IMG", ".IMG.GZ"):
        partner = path.with_name(stem + end)
        if partner.is_file():
            return partner
    raise ItemError("missing", "the header stands alone: no .img file of its name lies beside it")


def _packed_name(path: Path) -> Iterator[str]:
    """The name and comment that gzip keeps of what it packed."""
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(b"\x1f\x8b") and len(head) > 12:
        flags = head[3]
        begin = 12 + int.from_bytes(head[10:12], "little") if flags & 0x04 else 10
        kept = bool(flags & 0x08) + bool(flags & 0x10)
        yield from texts_in(list(head[begin:].split(b"\0")[:kept]))
