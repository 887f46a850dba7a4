"""Reads image files safely: every pixel that reaches a model or is trusted at import comes through `open_image`.

Paths are relative to an image root and may not leave it; a header that announces a huge image is refused before
anything is allocated; what is wrong with a file is an `ItemError` whose cause is one of `CAUSES`. Of an animation or a
file of several pages the first one is read; a transparent picture is laid on white (`GROUND`).
"""

import base64
import io
import struct
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from stllava.dropped import Dropped
from stllava.errors import ItemError
from stllava.progress import track

CAUSES = ("missing", "empty", "truncated", "not-an-image", "too-large", "outside-root", "unreadable")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
MAX_PIXELS = 64_000_000

# Only these decoders run: Pillow's EPS reader would start Ghostscript on whatever a folder holds.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"RIFF", b"BM")
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
DEPTHS = (255, 4095, 65535)
_SCALED = 32
"""Floats of a smaller range than this are no shades of 8 bits, which would be all but black."""
GROUND = 255
"""The grey that transparent pixels are laid on: white, as pages and viewers show them. What is stored under a transparent
pixel is arbitrary and mostly black, so that without a ground black ink on a clear background would vanish."""
_GREY = ("1", "L", "LA")
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_BITS, _SAMPLE_FORMAT, _UNSIGNED = 258, 339, 1


def open_image(root: Path, relative: str) -> Image.Image:
    """The image as 8-bit RGB, upright by its EXIF orientation, laid on white, fully decoded; raises `ItemError`."""
    path = _locate(root, relative)
    with warnings.catch_warnings():
        # Pillow warns of damaged metadata, which does not matter here, and of decompression bombs, which does.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return _decode(path, relative)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise ItemError("too-large", f"{relative} announces far more than {MAX_PIXELS:,} pixels") from None
        except UnidentifiedImageError:
            with path.open("rb") as file:
                head = file.read(24)
            if head.startswith(b"\x89PNG") and len(head) == 24:
                width, height = struct.unpack(">II", head[16:])
                _refuse_huge(width, height, relative)
            if head.startswith(_SIGNATURES):
                raise ItemError(
                    "truncated",
                    f"{relative} begins like an image, but its header is cut off, damaged or of a kind that is not read",
                ) from None
            if head.startswith(b"version https://git-lfs"[:24]):
                raise ItemError(
                    "not-an-image", f"{relative} is a pointer of Git LFS; fetch the file itself: git lfs pull"
                ) from None
            raise ItemError("not-an-image", f"{relative} is not an image of a known format") from None
        except (OSError, SyntaxError, ValueError, EOFError, ArithmeticError, LookupError, TypeError) as error:
            cause = "truncated" if "truncated" in str(error).lower() or isinstance(error, EOFError) else "unreadable"
            raise ItemError(cause, f"{relative} cannot be decoded: {error}") from error


def check_image(root: Path, relative: str) -> None:
    """Raise the `ItemError` that `open_image` would raise: the whole file is decoded, since headers do not tell."""
    open_image(root, relative)


def jpeg_uri(image: Image.Image, *, quality: int) -> str:
    """The picture as a JPEG data URI, for a page that is whole in itself."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def count_missing(root: Path, items: Iterable[Sequence[str]]) -> Dropped:
    """How many items name an image that is not where it should be, in an instant: no file is opened."""
    missing = Dropped()
    for paths in items:
        try:
            for path in paths:
                _locate(root, path)
        except ItemError as error:
            missing.fault(error, of="image")
    return missing


def spelt_otherwise(root: Path, relative: str) -> str | None:
    """A file beside a missing one whose name differs in case or in how its accents are spelt alone; None without one.

    Archives made on a Mac hold "é" as two characters, and lists made on Windows do not care for case.
    """
    folder, name = (root / relative).parent, Path(relative).name
    if not folder.is_dir():
        return None
    wanted = unicodedata.normalize("NFC", name).casefold()
    names = (entry.name for entry in folder.iterdir() if entry.name != name)
    return next((other for other in sorted(names) if unicodedata.normalize("NFC", other).casefold() == wanted), None)


def bad_images(root: Path, paths: Iterable[str]) -> dict[str, str]:
    """What is wrong with each of the images that is not usable, by path."""
    bad: dict[str, str] = {}
    every = sorted(set(paths))
    for path in track(every, "check", len(every), unit="images"):
        try:
            check_image(root, path)
        except ItemError as error:
            bad[path] = error.cause
    return bad


def _locate(root: Path, relative: str) -> Path:
    """The file behind a relative path, once it is known to be a non-empty file inside the root."""
    try:
        if Path(relative).is_absolute():
            raise ItemError("outside-root", f"{relative} is absolute; image paths are relative to {root}")
        path = (root / relative).resolve()
        if not path.is_relative_to(root.resolve()):
            raise ItemError("outside-root", f"{relative} leaves the image root {root}")
        if not path.exists():
            raise ItemError("missing", f"{relative} does not exist in {root}")
        # Opening a pipe or a device could wait forever.
        if not path.is_file():
            raise ItemError("unreadable", f"{relative} is not a file")
        if path.stat().st_size == 0:
            raise ItemError("empty", f"{relative} has no bytes")
    except (OSError, ValueError, RuntimeError) as error:
        raise ItemError("unreadable", f"{relative!r} cannot be reached: {error}") from error
    return path


def _decode(path: Path, relative: str) -> Image.Image:
    Image.init()  # Pillow registers some of these formats only when asked to.
    # An open file, not its path: of a path Pillow maps an uncompressed TIFF into memory in the size that it has once it is
    # turned, which scrambles the pixels of a page that lies on its side.
    with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
        _refuse_huge(image.width, image.height, relative)
        return upright(image).convert("RGB")


def _refuse_huge(width: int, height: int, relative: str) -> None:
    if width * height > MAX_PIXELS:
        raise ItemError("too-large", f"{relative} announces {width} × {height} pixels, more than {MAX_PIXELS:,}")


def white_is_zero(image: Image.Image) -> bool:
    """Whether a page of a TIFF file stores white as 0."""
    return isinstance(image, TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def _wraps(image: Image.Image) -> bool:
    """Whether a page of a TIFF file stores unsigned numbers of 32 bits, of which Pillow makes signed ones."""
    if not isinstance(image, TiffImageFile) or image.mode != "I":
        return False
    bits, formats = image.tag_v2.get(_BITS, (1,)), image.tag_v2.get(_SAMPLE_FORMAT, (_UNSIGNED,))
    return bool(bits[0] == 32 and formats[0] == _UNSIGNED)


def upright(image: Image.Image) -> Image.Image:
    """The page at which an opened file stands: decoded, upright, opaque, in mode L where it is grey and else in RGB."""
    inverted = white_is_zero(image)  # Pillow inverts such a page of 8 bits, but none of more.
    unsigned = _wraps(image)
    image.load()
    turned = ImageOps.exif_transpose(image)
    if turned.mode in DEEP_MODES:
        shades = to_eight_bits(turned, unsigned=unsigned)
        shades = ImageOps.invert(shades) if inverted else shades
        clear = turned.info.get("transparency")  # Of a deep PNG, the one value that is transparent.
        mask = np.zeros(0, np.uint8) if clear is None else (np.asarray(turned) == clear).astype(np.uint8) * 255
        if mask.any():
            shades.paste(GROUND, mask=Image.fromarray(mask))
        return shades
    mode = "L" if turned.mode in _GREY else "RGB"
    if not turned.has_transparency_data:
        return turned.convert(mode)
    clear_colours = turned.convert("RGBA")
    ground = Image.new("RGB", turned.size, (GROUND, GROUND, GROUND))
    ground.paste(clear_colours, mask=clear_colours.getchannel("A"))
    return ground.convert(mode)


def bare_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels of an RGB image and nothing else, [H, W, 3], or [H, W] where it is grey."""
    pixels = np.asarray(image)
    return pixels[..., 0] if (pixels == pixels[..., :1]).all() else pixels


def to_eight_bits(image: Image.Image, *, unsigned: bool = False) -> Image.Image:
    """A deep greyscale image in mode L: linear, black at 0, white at the end of its range, as `deep_shades` has them."""
    values, white = deep_shades(image, unsigned=unsigned)
    return Image.fromarray((values * (255 / white) + 0.5).astype(np.uint8))


@dataclass(frozen=True)
class DeepPage:
    """A deep page in the units of its file."""

    values: NDArray[np.float32]
    """As they are stored, upright, [H, W]; also where white is stored as 0 (`white_is_zero`)."""
    black: float
    """The value that the 8-bit picture shows as 0."""
    white: float
    """The value that it shows as 255."""
    opaque: NDArray[np.bool_]
    """Where there is a picture, [H, W]."""


def deep_page(image: Image.Image) -> DeepPage | None:
    """The page at which an opened file stands; None of one that is not deep."""
    unsigned = _wraps(image)
    image.load()
    turned = ImageOps.exif_transpose(image)
    if turned.mode not in DEEP_MODES:
        return None
    clear = turned.info.get("transparency")
    stored = np.asarray(turned)
    values = _numbers(turned, unsigned=unsigned)
    black, span = _range(values, mode=turned.mode)
    return DeepPage(values, black, black + span, np.ones(stored.shape, np.bool_) if clear is None else stored != clear)


def deep_shades(image: Image.Image, *, unsigned: bool = False) -> tuple[NDArray[np.float32], float]:
    """The shades of a deep greyscale image from 0, [H, W], and what is white among them.

    White is the end of the smallest range of 8, 12 and 16 bits (for floats also 0 to 1) that holds the brightest pixel, because
    scanners store 12 bits in 16; Pillow's own conversion cuts everything above 255. `unsigned` says of mode I that its numbers
    of 2³¹ and more were turned into negative ones.
    """
    values = _numbers(image, unsigned=unsigned)
    black, white = _range(values, mode=image.mode)
    values -= black
    return values, white


def _numbers(image: Image.Image, *, unsigned: bool) -> NDArray[np.float32]:
    """What a deep greyscale image stores, [H, W]; 0 where that is no finite number."""
    stored = np.asarray(image).view(np.uint32) if unsigned else np.asarray(image)
    return np.nan_to_num(stored.astype(np.float32), posinf=0.0, neginf=0.0)


def _range(values: NDArray[np.float32], *, mode: str) -> tuple[float, float]:
    """What is black among the values of a deep image of that mode, and how far above it white is."""
    black = min(float(values.min()), 0.0)
    brightest = float(values.max() - np.float32(black))
    # A float image of more than 1 is no share of white: one that was centred and scaled has no range but its own.
    ranges = (1, *((brightest,) if brightest < _SCALED else ()), *DEPTHS) if mode == "F" else DEPTHS
    return black, next((end for end in ranges if brightest <= end), brightest)


def open_deep(root: Path, relative: str) -> NDArray[np.uint16]:
    """The pixels of a grey 16-bit PNG, [H, W]; raises `ItemError`."""
    path = _locate(root, relative)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with path.open("rb") as file, Image.open(file, formats=("PNG",)) as image:
                _refuse_huge(image.width, image.height, relative)
                if image.mode != "I;16":
                    raise ItemError("not-an-image", f"{relative} is no grey picture of 16 bits")
                return np.asarray(image, dtype=np.uint16)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise ItemError("too-large", f"{relative} announces far more than {MAX_PIXELS:,} pixels") from None
        except (OSError, SyntaxError, ValueError, EOFError, ArithmeticError, LookupError, TypeError) as error:
            raise ItemError("unreadable", f"{relative} cannot be decoded: {error}") from error
