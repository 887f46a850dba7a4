"""The pixels of a DICOM object: what they are, frame by frame as stored, decoded, and their palette.

Reads data sets and files and writes nothing; compressed frames are decoded by pydicom's plug-ins, once their own header
has been found to agree with the file's, so that a small file cannot ask for a huge picture.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from stllava.errors import ItemError, StllavaError
from stllava.intake.readers.dicom import windows

if TYPE_CHECKING:
    from pydicom import Dataset


QUICKEST = "pylibjpeg"
"""Of the plug-ins for JPEG 2000; pydicom's own first choice takes a fifth longer (docs/results.md)."""


@dataclass(frozen=True)
class StoredPixels:
    """A data set that holds pixels, and how they are kept."""

    data: "Dataset"
    keyword: str
    little: bool
    syntax: str
    rows: int
    columns: int
    samples: int
    colour: str
    frames: int
    options: dict[str, Any]
    """As pydicom's decoders take them, of one frame."""
    shift: int
    """Unused low bits of old files whose values are justified to the left."""


def check_kind(picture: StoredPixels) -> None:
    """Raise `ItemError` for pixels that nothing here can turn into a picture, before they are decoded."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID, JPEG2000TransferSyntaxes

    coloured = {"RGB", "YBR_FULL", "YBR_FULL_422"}
    if picture.syntax in JPEG2000TransferSyntaxes:
        coloured |= {"YBR_RCT", "YBR_ICT"}
    known = coloured if picture.samples == 3 else {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"}
    if picture.samples not in (1, 3) or picture.colour not in known:
        raise ItemError("unsupported", f"its colour space is none of {', '.join(sorted(known))}")
    try:
        decoder = get_decoder(UID(picture.syntax))
    except NotImplementedError:
        raise ItemError("unsupported", "its transfer syntax is none that holds pictures and can be decoded") from None
    if not decoder.is_available:
        raise StllavaError(
            f"DICOM pixels in {UID(picture.syntax).name}, and no plug-in that decodes it",
            expected="pydicom's pixel plug-ins",
            remedy="pip install 'stllava[dicom]'",
        )


def encoded(picture: StoredPixels, path: Path, wanted: range) -> Iterator[tuple[int, bytes]]:
    """Place and stored bytes of each wanted frame, read one by one; raises `ItemError` where the pixels end too early."""
    from pydicom.encaps import generate_frames
    from pydicom.uid import UID

    raw = picture.data.get_item(picture.keyword, keep_deferred=True)
    value, start = (raw.value, getattr(raw, "value_tell", 0)) if raw is not None else (None, 0)
    stream: BinaryIO = BytesIO(value) if value is not None else path.open("rb")
    with stream:
        stream.seek(0 if value is not None else start)
        if UID(picture.syntax).is_encapsulated:
            offsets = picture.options.get("extended_offsets")
            frames = generate_frames(stream, number_of_frames=picture.frames, extended_offsets=offsets)
            for index in range(wanted.stop):
                if (stored_bytes := next(frames, None)) is None:
                    raise ItemError("truncated", f"of {picture.frames} frames announced, {index} are there")
                if index in wanted:
                    yield index, stored_bytes
            return
        begin, size = stream.tell(), _frame_bytes(picture)
        for index in wanted:
            stream.seek(begin + index * size)
            # The one frame of 8-bit words in big-endian order takes its padding along: words are swapped in pairs.
            stored_bytes = stream.read(size + size % 2 if picture.frames == 1 else size)
            if len(stored_bytes) < size:
                raise ItemError("truncated", f"frame {index} has {len(stored_bytes):,} of its {size:,} bytes")
            yield index, stored_bytes


def _frame_bytes(picture: StoredPixels) -> int:
    """Bytes of one uncompressed frame."""
    bits = int(picture.options["bits_allocated"])
    size = picture.rows * picture.columns * picture.samples * bits
    if size % 8 and picture.frames > 1:
        raise ItemError("unsupported", "its frames do not begin at whole bytes")
    size = (size + 7) // 8
    # Two pixels share their colour in YBR_FULL_422: four bytes instead of six.
    return size // 3 * 2 if picture.colour == "YBR_FULL_422" else size


def decode(picture: StoredPixels, source: bytes) -> windows.Values:
    """Stored values of one frame, [H, W] or [H, W, 3], colours as RGB."""
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID, RLELossless

    syntax, codestream = UID(picture.syntax), source
    if syntax.is_encapsulated:
        if (announced := _announced(source)) and announced != (picture.rows, picture.columns):
            raise ItemError(
                "damaged",
                f"a compressed frame is {announced[1]} × {announced[0]} pixels, not {picture.columns} × {picture.rows}",
            )
        if syntax == RLELossless:
            _check_runs(picture, source)
        source = encapsulate([source])
    given = {name: value for name, value in picture.options.items() if name != "extended_offsets"}
    given |= {"number_of_frames": 1, "pixel_keyword": picture.keyword}
    given |= {"pixel_vr": str(getattr(picture.data.get_item(picture.keyword, keep_deferred=True), "VR", None) or "OW")}
    if picture.shift:
        given["bits_stored"] = picture.options["bits_stored"] + picture.shift
    try:
        values = _decoded(syntax, source, given)
    except RuntimeError:
        if _precision(codestream) == 12:
            text = "its 12-bit JPEG is decoded by the plug-in pylibjpeg-libjpeg only, which comes under the GPL"
            raise ItemError("unsupported", text) from None
        raise ItemError("damaged", "its compressed pixels cannot be decoded by any plug-in") from None
    except BaseException as error:
        # The run-length plug-in is written in Rust; a panic in it is no `Exception`, and its class has no public name.
        if type(error).__name__ != "PanicException":
            raise
        raise ItemError("damaged", "its run lengths cannot be decoded") from None
    if values.shape != (picture.rows, picture.columns, 3)[: 2 if picture.samples == 1 else 3]:
        raise ItemError("damaged", f"a frame has the shape {values.shape}")
    return values >> picture.shift if picture.shift else values


def _decoded(syntax: str, source: bytes, given: dict[str, Any]) -> NDArray[Any]:
    """Values by the quickest plug-in, else by any; raises `RuntimeError` where each of them fails."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID, JPEG2000TransferSyntaxes

    decoder = get_decoder(UID(syntax))
    if syntax in JPEG2000TransferSyntaxes and QUICKEST in decoder.available_plugins:
        try:
            return decoder.as_array(source, index=0, validate=True, raw=False, decoding_plugin=QUICKEST, **given)[0]
        except RuntimeError:
            pass  # The others may read it; where none does, they say so.
    return decoder.as_array(source, index=0, validate=True, raw=False, **given)[0]


def _check_runs(picture: StoredPixels, source: bytes) -> None:
    """Raise `ItemError` unless the frame has as many byte planes as its values have bytes, one after the other."""
    planes = picture.samples * ((int(picture.options["bits_allocated"]) + 7) // 8)
    count, *starts = struct.unpack("<16I", source[:64].ljust(64, b"\0"))
    used = starts[:planes]
    if count != planes or planes > 15 or used[0] != 64 or used != sorted(set(used)) or used[-1] >= len(source):
        raise ItemError("damaged", "the header of its run lengths does not fit its values")


def _announced(source: bytes) -> tuple[int, int] | None:
    """Rows and columns by a JPEG, JPEG-LS or JPEG 2000 codestream's own header; None where there is none to read."""
    if source.startswith(b"\xff\x4f\xff\x51") and len(source) >= 24:
        width, height, left, top = struct.unpack(">IIII", source[8:24])
        return height - top, width - left
    frame = _frame_header(source)
    return None if frame is None else frame[1:]


def _precision(source: bytes) -> int | None:
    """Bits of a sample by a JPEG or JPEG-LS codestream's own header; None where there is none to read."""
    frame = _frame_header(source)
    return None if frame is None else frame[0]


def _frame_header(source: bytes) -> tuple[int, int, int] | None:
    """Bits, rows and columns by the frame header of a JPEG or JPEG-LS codestream."""
    place = 2
    while source.startswith(b"\xff\xd8") and place + 9 <= len(source) and source[place] == 0xFF:
        marker = source[place + 1]
        if marker == 0xFF:
            place += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            bits, height, width = struct.unpack(">BHH", source[place + 4 : place + 9])
            return bits, height, width
        else:
            place += 2 + int.from_bytes(source[place + 2 : place + 4], "big")
    return None


def shown_in(picture: StoredPixels, stored: windows.Values) -> NDArray[np.bool_]:
    """Where there is a picture, [H, W]: not where padding lies around it (PS3.3 C.7.5.1.1.2)."""
    padding = windows.number(picture.data.get("PixelPaddingValue"))
    if padding is None or picture.keyword != "PixelData":
        return np.isfinite(stored) if stored.dtype.kind == "f" else np.broadcast_to(np.True_, stored.shape)
    limit = windows.number(picture.data.get("PixelPaddingRangeLimit"))
    low, high = sorted((padding, padding if limit is None else limit))
    return (stored < low) | (stored > high)


def paint(picture: StoredPixels, stored: windows.Values) -> NDArray[np.uint8]:
    """Palette numbers [H, W] as RGB [H, W, 3]."""
    data = picture.data
    if "SegmentedRedPaletteColorLookupTableData" in data:
        from pydicom.pixels.processing import apply_color_lut

        painted = apply_color_lut(stored, data)[..., :3]
        return painted if painted.dtype == np.uint8 else (painted >> 8).astype(np.uint8)
    low, high = int(stored.min()), int(stored.max())
    if high - low >= 1 << 16:
        raise ItemError("damaged", "its pixels are no numbers of a palette")
    numbers = np.arange(low, high + 1)
    planes = []
    for colour in ("Red", "Green", "Blue"):
        name = f"{colour}PaletteColorLookupTable"
        table = windows.read_table(data.get(f"{name}Descriptor"), data.get(f"{name}Data"), little=picture.little)
        # Palettes often say 16 bits and hold 8; a 16-bit one is never as dark as that throughout.
        deep = table.bits > 8 and int(table.entries.max()) > 255
        planes.append((table.apply(numbers) >> 8 if deep else table.apply(numbers)).astype(np.uint8))
    places = np.subtract(stored, low, dtype=np.intp)
    return np.take(np.stack(planes, axis=-1), places, axis=0, mode="clip")
