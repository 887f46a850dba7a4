"""Reads deep PNG and TIFF files as 8-bit pictures, and large pathology slides as tiles of tissue; writes nothing.

A plain TIFF or PNG comes by Pillow and the rule of `data/images` for deep shades. A slide (TIFF pyramid, SVS, one too large
for a picture) comes by tifffile, a few of its tiles in memory at a time, from its main series alone: the label and macro
photographs that scanners store beside it show names and are never opened. No message of an error holds a path or a text.
"""

import hashlib
import logging
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from stllava.config.intake import FrameChoice
from stllava.data.images import DEEP_MODES, DEPTHS, MAX_PIXELS, deep_page, upright, white_is_zero
from stllava.errors import ItemError, StllavaError
from stllava.intake.readers.deep import deep_pixels
from stllava.intake.readers.frame import DeepPixels, Facts, Frame, Identity
from stllava.intake.readers.photograph import (
    METADATA_ERRORS,
    exif_texts,
    is_turned,
    look_into,
    name_texts,
    safely_opened,
    texts_in,
)
from stllava.intake.readers.recognise import recognise

if TYPE_CHECKING:
    from tifffile import TiffPage

CAUSES = ("missing", "empty", "truncated", "not-an-image", "too-large", "unreadable", "unsupported", "no-level", "no-tissue")

_MOST_PAGES = 10_000
_MOST_SEGMENT = 1 << 24
_OVERVIEW = 2048
_CACHED_BYTES = 64_000_000
_LEAST_CHROMA, _DARK = 16, 24


@dataclass(frozen=True)
class TiffOptions:
    """Which pages and tiles become pictures."""

    frames: FrameChoice = "all"
    """Which pages of a plain TIFF with several; mip: the maximum of all, where they are of one size and colour."""
    step: int = 1
    """For `every`, from the first page on."""
    level: int = 0
    """Of a slide's pyramid; 0 is the finest."""
    tile: int = 512
    """Side of a tile in pixels of that level."""
    tissue: float = 0.25
    """Least share of tissue in a tile that is kept; 0 keeps every tile."""
    keep_16_bit: bool = False
    """Whether grey pages and tiles of more than 8 bits keep their 16-bit pixels, too."""


def read_tiff(path: Path, options: TiffOptions) -> Iterator[Frame]:
    """Every chosen page of a plain TIFF or PNG, or every tile of tissue of a slide; raises `ItemError`."""
    sides = options.tile >= 16 and options.tile**2 <= MAX_PIXELS
    if options.level < 0 or options.step < 1 or not sides or not 0 <= options.tissue <= 1:
        raise StllavaError(
            f"level {options.level}, step {options.step}, tile {options.tile}, tissue {options.tissue}",
            expected=f"a level from 0, a step from 1, a tile of 16 to {int(MAX_PIXELS**0.5)} pixels and a share of tissue",
            remedy="Correct --level, --step, --tile or --tissue.",
        )
    kind = recognise(path)
    if kind == "slide":
        yield from _slide(path, options)
    elif kind == "tiff":
        yield from _pages(path, options)
    else:
        raise ItemError("not-an-image", "the content is neither TIFF nor a deep PNG")


def _pages(path: Path, options: TiffOptions) -> Iterator[Frame]:
    with _named(path):
        file = path.open("rb")  # Not its path, for the reason in data/images.
    with file:
        with _named(path):
            image = Image.open(file, formats=("TIFF", "PNG"))
        with _named(path):
            count = _page_count(image)
            texts = frozenset(_page_texts(image, count)) | name_texts(path)
            if not isinstance(image, TiffImageFile):
                texts |= look_into(path)[1]
        identity = Identity(texts=texts)
        if options.frames == "mip" and count > 1:
            with _named(path):
                pixels, done = _brightest(image, count)
            yield Frame(pixels=pixels, facts=Facts(done=done), identity=identity)
            return
        start, step = {"every": (0, options.step), "middle": (count // 2, count)}.get(options.frames, (0, 1))
        for index in range(start, count, step):
            with _named(path):
                if count > 1:
                    image.seek(index)
                pixels, done = _shown(image)
                deep = _deep(image) if options.keep_16_bit else None
            facts = Facts(frame=index if count > 1 else None, done=done)
            yield Frame(pixels=pixels, facts=facts, identity=identity, deep=deep)


def _deep(image: Image.Image) -> DeepPixels | None:
    """The 16-bit pixels of the current page; None of one that has no more than 8 bits, or colours."""
    page = deep_page(image)
    if page is None:
        return None
    return deep_pixels(page.values, black=page.black, white=page.white, inverted=white_is_zero(image), shown=page.opaque)


def _brightest(image: Image.Image, count: int) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """The greatest value of all pages at every place, and what was done; two pages are in memory."""
    greatest, done = _shown(image)
    for index in range(1, count):
        image.seek(index)
        pixels, _ = _shown(image)
        if pixels.shape != greatest.shape:
            raise ItemError("unsupported", "its pages are not of one size and colour, so that they have no maximum")
        greatest = np.maximum(greatest, pixels)
    return greatest, (*done, f"maximum of {count} frames")


def _page_count(image: Image.Image) -> int:
    """How many pages a file has, one after the other; Pillow's own count would take the square of a crowd of them."""
    if not isinstance(image, TiffImageFile):
        return 1
    count = 0
    try:
        while count <= _MOST_PAGES:
            image.seek(count)
            count += 1
    except EOFError:
        image.seek(0)
        return count
    raise ItemError("too-large", f"the file has more than {_MOST_PAGES:,} pages")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn what Pillow raises into an `ItemError`, by the rules of `open_image`."""
    with warnings.catch_warnings():
        # As in data/images: damaged metadata does not matter here, bombs do.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise ItemError("too-large", f"it announces far more than {MAX_PIXELS:,} pixels") from None
        except UnidentifiedImageError:
            safely_opened(path)
            raise ItemError("unreadable", "the header of the picture cannot be read") from None
        except METADATA_ERRORS as error:
            cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
            detail = f"the picture cannot be decoded ({type(error).__name__})"
            raise ItemError("truncated" if cut else "unreadable", detail) from None


def _shown(image: Image.Image) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """The current page, upright, [H, W] if it is grey and [H, W, 3] else, and what was done."""
    if image.width * image.height > MAX_PIXELS:
        raise ItemError("too-large", f"it announces {image.width} × {image.height} pixels, more than {MAX_PIXELS:,}")
    # Pillow turns a TIFF as it decodes it, and forgets that it did.
    done = ("turned upright",) if is_turned(image) else ()
    laid = ("laid on white",) if image.has_transparency_data else ()
    inverted = white_is_zero(image)
    pixels = np.asarray(upright(image))
    if image.mode in DEEP_MODES:
        return pixels, (*done, "deep to 8 bits", *(("inverted",) if inverted else ()), *laid)
    return pixels, (*done, *(() if image.mode in ("1", "L", "RGB") else (f"from mode {image.mode}",)), *laid)


def _page_texts(image: Image.Image, count: int) -> Iterator[str]:
    for index in range(count):
        if count > 1:
            image.seek(index)
        if isinstance(image, TiffImageFile):
            yield from texts_in(dict(image.tag_v2))
            yield from texts_in({key: value for key, value in image.info.items() if key != "icc_profile"})
            yield from exif_texts(image.getexif())
    if count > 1:
        image.seek(0)


def _slide(path: Path, options: TiffOptions) -> Iterator[Frame]:
    try:
        import tifffile
    except ImportError:
        raise StllavaError(
            "tifffile is not installed", expected="it for pathology slides", remedy="Run pip install 'stllava[slides]'."
        ) from None
    try:
        # A name of our own and no OME: its tables may name other files, which would then be opened.
        with path.open("rb") as raw, _quiet(), tifffile.TiffFile(raw, name="slide", is_ome=False) as file:
            levels = max(file.series, key=lambda series: series.size).levels
            if options.level >= len(levels):
                raise ItemError("no-level", f"the slide has {len(levels)} levels; {options.level} is beyond them")
            pages = [_Tiled(level.keyframe) for level in levels]
            texts = frozenset(text for page in file.pages for tag in page.aspage().tags for text in texts_in(tag.value))
            identity = Identity(series=_slide_hash(pages[0].page), texts=texts | name_texts(path))
            yield from _tissue_tiles(pages, options, identity=identity)
    except FileNotFoundError:
        raise ItemError("missing", "the file does not exist") from None
    except (*METADATA_ERRORS, RuntimeError, MemoryError) as error:
        raise ItemError("unreadable", f"the slide cannot be decoded ({type(error).__name__})") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep tifffile's warnings, which quote the file, out of every log: what matters is raised."""
    logger = logging.getLogger("tifffile")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


@dataclass
class _Tiled:
    """A page of a slide, read by region; the segments decoded last are kept, up to `_CACHED_BYTES`."""

    page: "TiffPage"
    decoded: "OrderedDict[int, NDArray[np.generic]]" = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        page = self.page
        if page.dtype not in (np.uint8, np.uint16) or page.samplesperpixel not in (1, 3, 4) or page.imagedepth != 1:
            raise ItemError(
                "unsupported", f"slides of {page.samplesperpixel} values a pixel and type {page.dtype} are not read"
            )
        if page.samplesperpixel > 1 and (page.planarconfig != 1 or int(page.photometric) not in (2, 6)):
            raise ItemError("unsupported", "the slide's colours are not kept as red, green and blue in each pixel")
        if page.chunks[0] * page.chunks[1] > _MOST_SEGMENT:
            raise ItemError("too-large", f"the slide is stored in pieces of more than {_MOST_SEGMENT:,} pixels")
        needed = -(-page.imagewidth // page.chunks[1]) * -(-page.imagelength // page.chunks[0])
        if not 0 < needed <= len(page.dataoffsets) or len(page.databytecounts) < needed:
            raise ItemError("truncated", f"the slide announces {needed:,} pieces and lists {len(page.dataoffsets):,}")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.page.imagewidth, self.page.imagelength

    def region(self, x: int, y: int, *, width: int, height: int) -> NDArray[np.generic]:
        """[height, width] or [height, width, 3] from the column x and row y; must lie inside."""
        high, wide = self.page.chunks[:2]
        colour = () if self.page.samplesperpixel == 1 else (3,)
        out = np.zeros((height, width, *colour), dtype=self.page.dtype)
        for row in range(y // high, -(-(y + height) // high)):
            for column in range(x // wide, -(-(x + width) // wide)):
                piece = self._segment(row, column)
                top, left = max(y, row * high), max(x, column * wide)
                end = min(y + height, row * high + piece.shape[0]), min(x + width, column * wide + piece.shape[1])
                part = piece[top - row * high : end[0] - row * high, left - column * wide : end[1] - column * wide]
                out[top - y : end[0] - y, left - x : end[1] - x] = part
        return out

    def _segment(self, row: int, column: int) -> NDArray[np.generic]:
        page = self.page
        index = row * -(-self.size[0] // page.chunks[1]) + column
        if index in self.decoded:
            self.decoded.move_to_end(index)
            return self.decoded[index]
        count = page.databytecounts[index]
        data: bytes | None = None
        if count:
            file = page.parent.filehandle
            file.seek(page.dataoffsets[index])
            data = file.read(min(count, file.size))
            if len(data) < count:
                raise ItemError("truncated", "the slide ends before its last piece")
        piece, _, shape = page.decode(data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)
        if piece is None:
            # Scanners leave out pieces of bare glass.
            piece = np.full(shape, np.iinfo(page.dtype).max if page.samplesperpixel > 1 else 0, dtype=page.dtype)
        kept: NDArray[np.generic] = piece[0, ..., :3] if page.samplesperpixel > 1 else piece[0, ..., 0]
        self.decoded[index] = kept
        while len(self.decoded) > 1 and len(self.decoded) * kept.nbytes > _CACHED_BYTES:
            self.decoded.popitem(last=False)
        return kept


def _tissue_tiles(pages: list[_Tiled], options: TiffOptions, *, identity: Identity) -> Iterator[Frame]:
    """The tiles of one level that hold enough tissue, row by row; `Facts.frame` counts all tiles, glass too."""
    level = pages[options.level]
    overview = _overview(min(pages, key=lambda page: (max(page.size) < _OVERVIEW // 8, max(page.size))))
    brightest = int(overview.max())
    white = next(end for end in DEPTHS if brightest <= end)
    tissue = find_tissue((overview.clip(0, white) * (255 / white) + 0.5).astype(np.uint8))
    width, height = level.size
    side = min(options.tile, width), min(options.tile, height)
    xs, ys = _starts(width, side[0]), _starts(height, side[1])
    kept = 0
    for index, (y, x) in enumerate((y, x) for y in ys for x in xs):
        rows = slice(y * tissue.shape[0] // height, max(-(-(y + side[1]) * tissue.shape[0] // height), 1))
        columns = slice(x * tissue.shape[1] // width, max(-(-(x + side[0]) * tissue.shape[1] // width), 1))
        share = float(tissue[rows, columns].mean())
        if share < options.tissue:
            continue
        kept += 1
        values = level.region(x, y, width=side[0], height=side[1])
        pixels = (values.astype(np.float32).clip(0, white) * (255 / white) + 0.5).astype(np.uint8) if white > 255 else values
        done = (f"level {options.level}", f"tile at {x}, {y}", f"tissue {share:.2f}")
        facts = Facts(modality="SM" if values.ndim == 3 else "", frame=index, done=done)
        deep = None
        if options.keep_16_bit and white > 255 and values.ndim == 2:
            deep = deep_pixels(values.astype(np.float32), black=0.0, white=white)
        yield Frame(pixels=np.asarray(pixels, dtype=np.uint8), facts=facts, identity=identity, deep=deep)
    if not kept:
        raise ItemError("no-tissue", f"none of {len(xs) * len(ys)} tiles holds {options.tissue:.0%} of tissue")


def _starts(length: int, side: int) -> list[int]:
    """Where tiles begin; the last one is moved in so that all have one size and nothing is left out."""
    return [min(start, length - side) for start in range(0, length, side)]


def find_tissue(overview: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a slide's small picture ([H, W] or [H, W, 3]) shows tissue, [H, W].

    Stained tissue is told by its colour: the saturation above Otsu's threshold (Otsu 1979), 16 of 255 at least, dark
    padding left out. A grey slide has none; there it is what differs from the grey of the rim.
    """
    if overview.ndim == 3:
        # Far faster than the maximum along an axis of three.
        red, green, blue = (overview[..., at].astype(np.int32) for at in range(3))
        brightest = np.maximum(np.maximum(red, green), blue)
        chroma = brightest - np.minimum(np.minimum(red, green), blue)
        level = np.where(brightest < _DARK, 0, 255 * chroma // np.maximum(brightest, 1))
    else:
        rim = np.concatenate([overview[0], overview[-1], overview[:, 0], overview[:, -1]])
        level = abs(overview.astype(np.int32) - int(np.median(rim)))
    tissue: NDArray[np.bool_] = level > max(otsu(level), _LEAST_CHROMA)
    return tissue


def otsu(values: NDArray[np.int32]) -> int:
    """The threshold from 0 to 255 whose two sides have means that tell most of the variance (the first of equals)."""
    counts = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    below, total = np.cumsum(counts), np.cumsum(counts * np.arange(counts.size))
    above = below[-1] - below
    apart = np.where(above > 0, total / np.maximum(below, 1) - (total[-1] - total) / np.maximum(above, 1), 0)
    return int(np.argmax(below * above * apart**2))


def _overview(page: _Tiled) -> NDArray[np.generic]:
    """A picture of the page of at most some 2,048 pixels a side: every n-th pixel, read piece by piece."""
    width, height = page.size
    step = -(-max(width, height) // _OVERVIEW)
    band, wide = page.page.chunks[:2]
    rows = []
    for y in range(0, height, band):
        parts = [
            page.region(x, y, width=min(wide, width - x), height=min(band, height - y))[-y % step :: step, -x % step :: step]
            for x in range(0, width, wide)
        ]
        rows.append(np.concatenate(parts, axis=1))
    return np.concatenate(rows, axis=0)


def _slide_hash(page: "TiffPage") -> str:
    """What tells slides apart without reading them whole: their pieces' places and lengths, and the first piece."""
    table = repr((page.imagewidth, page.imagelength, page.description, *page.dataoffsets, *page.databytecounts))
    return hashlib.sha256(table.encode()).hexdigest()
