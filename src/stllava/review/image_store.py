"""Images of a page by id: pixels encoded afresh, without metadata or names, the last few kept."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from threading import Lock

from stllava.data.images import open_image
from stllava.records import content_id
from stllava.remote.png import encode

KEPT = 8


def image_id(path: str) -> str:
    """What an image is called on the page, which does not learn its path."""
    return content_id("page image", path)


class ImageStore:
    """The images that a page may show, and no others; threads may share it."""

    def __init__(self, root: Path, paths: Iterable[str], *, series: Mapping[str, Sequence[str]] | None = None) -> None:
        """Know the images below a root by their ids, and those of the series that some of them are of."""
        self._root, self.series = root, dict(series or {})
        self._paths = {image_id(path): path for path in chain(paths, *self.series.values())}
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
        made = encode(open_image(self._root, path))
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return made
