"""Images as they are sent: pixels encoded afresh, without any metadata, at most so large."""

import base64
import io
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image

from stllava.data.images import bare_pixels, check_image, open_image


@dataclass(frozen=True)
class PngImage:
    """An image ready to be sent."""

    path: str
    """Path relative to the image root."""
    url: str
    """Its PNG as a data URL."""
    size: int
    """Bytes of the PNG."""


class PngEncoder:
    """Encodes images, the last `keep` of them once; threads may share it."""

    def __init__(self, root: Path, *, keep: int, max_side: int | None = None, blank: bool = False) -> None:
        """Images are relative to `root`; larger ones than `max_side` are scaled down, `blank` ones are black."""
        self._root, self._keep, self._max_side, self._blank = root, keep, max_side, blank
        self._kept: OrderedDict[str, Future[PngImage]] = OrderedDict()
        self._usable: set[str] = set()
        self._lock = Lock()

    def check(self, relative: str) -> None:
        """Raise ItemError when the image cannot be used."""
        if relative not in self._usable:
            check_image(self._root, relative)
            self._usable.add(relative)

    def get(self, relative: str) -> PngImage:
        """The image ready to be sent; raises ItemError."""
        with self._lock:
            mine = relative not in self._kept
            if mine:
                self._kept[relative] = Future()
            made = self._kept[relative]
            self._kept.move_to_end(relative)
            while len(self._kept) > self._keep:
                self._kept.popitem(last=False)
        if mine:  # Other threads that ask for the same image wait for this one to encode it.
            try:
                made.set_result(self._encode(relative))
            except BaseException as error:  # noqa: BLE001 - every thread that waits for it raises it
                made.set_exception(error)
        return made.result()

    def _encode(self, relative: str) -> PngImage:
        png = encode(open_image(self._root, relative), max_side=self._max_side, blank=self._blank)
        return PngImage(relative, "data:image/png;base64," + base64.b64encode(png).decode(), len(png))


def encode(image: Image.Image, *, max_side: int | None = None, blank: bool = False) -> bytes:
    """An RGB image as PNG of nothing but its pixels, in greyscale where it is grey."""
    if max_side is not None and max(image.size) > max_side:
        width, height = (max(1, round(side * max_side / max(image.size))) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    pixels = np.zeros((image.height, image.width), np.uint8) if blank else bare_pixels(image)
    file = io.BytesIO()
    # A new image: Pillow would write colour profiles and the like from the old one's `info`.
    Image.fromarray(pixels).save(file, "PNG", compress_level=3)
    return file.getvalue()
