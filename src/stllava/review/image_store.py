"""Images of a page by id: pixels encoded afresh, without metadata or names, the last few kept; 16-bit ones as bare numbers."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from threading import Lock

from stllava.data.image_set import DeepImage
from stllava.data.images import bare_pixels, open_deep, open_image
from stllava.intake.encode import png
from stllava.records import content_id

KEPT = 8
QUICKLY = 1
"""zlib's level: what is sent to a browser of this machine should be there soon, and takes a quarter of Pillow's time."""


def image_id(path: str) -> str:
    """What an image is called on the page, which does not learn its path."""
    return content_id("page image", path)


class ImageStore:
    """The images that a page may show, and no others; threads may share it."""

    def __init__(
        self,
        root: Path,
        paths: Iterable[str],
        *,
        series: Mapping[str, Sequence[str]] | None = None,
        deep: Mapping[str, DeepImage] | None = None,
    ) -> None:
        """Know the images below a root by their ids, those of the series that some of them are of, and their 16-bit pixels."""
        self._root, self.series, self.deep = root, dict(series or {}), dict(deep or {})
        self.ids = {path: image_id(path) for path in chain(paths, *self.series.values())}
        self._paths = {key: path for path, key in self.ids.items()}
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._lock = Lock()

    def png(self, key: str) -> bytes | None:
        """The PNG of an image's pixels; None of an id that is not known. Raises ItemError where it cannot be read."""
        path = self._paths.get(key)
        if path is None:
            return None
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = png(bare_pixels(open_image(self._root, path)), QUICKLY)
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return made

    def deep_pixels(self, key: str) -> tuple[bytes, int, int] | None:
        """The 16-bit pixels of an image row by row, little-endian, with its width and height; None where none are known.

        Nothing of them is kept here: a page asks for them once somebody changes the window. Raises ItemError where they cannot
        be read.
        """
        kept = self.deep.get(self._paths.get(key, ""))
        if kept is None:
            return None
        pixels = open_deep(self._root, kept.path)
        height, width = pixels.shape
        return pixels.astype("<u2", copy=False).tobytes(), width, height
