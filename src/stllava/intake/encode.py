"""Writes pixels as PNG or JPEG and nothing else: no profile, text or date. Reads and writes no file."""

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stllava.config import IntakeOptions


def encoded(pixels: NDArray[np.uint8], options: IntakeOptions) -> bytes:
    """Pixels [H, W] or [H, W, 3] in the format that the options name."""
    if options.format == "png":
        return png(pixels, options.compression)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=options.quality, subsampling=0)
    return buffer.getvalue()


def png(pixels: NDArray[np.uint8] | NDArray[np.uint16], level: int) -> bytes:
    """A PNG of [H, W] or [H, W, 3] and nothing but its pixels, every row as its difference from the one above.

    Of numbers of 16 bits, [H, W], it has a grey of 16 bits.

    Pillow tries five filters on each row, which takes longer than all the rest of an import. At level 1 zlib looks for
    runs only: noise holds little else, and the search for repeats would take twice as long.
    """
    height, width = pixels.shape[:2]
    depth = 8 * pixels.itemsize
    flat = np.ascontiguousarray(pixels.reshape(height, -1), dtype=f">u{pixels.itemsize}").view(np.uint8)
    rows = np.empty((height, 1 + flat.shape[1]), dtype=np.uint8)
    rows[:, 0] = 2  # the filter "up", for which the row above the first is black
    rows[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=rows[1:, 1:])
    packer = zlib.compressobj(level, strategy=zlib.Z_RLE if level == 1 else zlib.Z_DEFAULT_STRATEGY)
    data = packer.compress(rows.tobytes()) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, depth, 0 if pixels.ndim == 2 else 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", data), (b"IEND", b""))
    written = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(name)))
        for name, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)
