"""What single columns of others' rows hold: texts, nothing, and the paths of images in every spelling; writes nothing."""

import math
import re
from pathlib import Path
from urllib.parse import unquote

from stllava.errors import ItemError

IMAGE_COLUMNS = ("images", "image", "img", "image_path", "img_path")


def blank(value: object) -> bool:
    """Whether a column holds nothing: null, an empty text, list or object, or what pandas writes for what is not there."""
    return value in (None, "", [], {}) or (isinstance(value, float) and math.isnan(value))


def text_of(value: object, column: str) -> str:
    """The text of a column; anything else is an `ItemError`."""
    if not isinstance(value, str):
        raise ItemError("malformed", f"{column} is a {type(value).__name__}, no text")
    try:
        value.encode()  # JSON can spell half a surrogate pair, which no file in UTF-8 can hold.
    except UnicodeEncodeError:
        raise ItemError("malformed", f"{column} holds half a character") from None
    return value


def paths_of(value: object, *, column: str, root: Path | None) -> tuple[str, ...]:
    """The paths of a column: a text, the Hub's {"bytes", "path"}, verl's {"image"}, or a list of these."""
    paths: list[str] = []
    for one in value if isinstance(value, list) else [value]:
        item = one["image"] if isinstance(one, dict) and one.keys() == {"image"} else one
        path = item.get("path") if isinstance(item, dict) else item
        if isinstance(item, dict) and "path" not in item and "bytes" not in item:
            raise ItemError("malformed", f"{column} holds an object with the keys {', '.join(map(str, item))}")
        if isinstance(item, dict) and blank(path):
            raise ItemError("image inside the row", f"{column} holds the bytes of an image, and no path")
        if isinstance(path, str) and not path:
            raise ItemError("no image", f"{column} holds an image without a name")
        if not isinstance(path, str):
            raise ItemError("malformed", f"{column} holds a {type(item).__name__}, no path")
        paths.append(relative_path(text_of(path, column), root))
    return tuple(paths)


def relative_path(path: str, root: Path | None) -> str:
    """A path as POSIX spells it, relative to the root where it lies inside it."""
    if re.match(r"(?:https?|data|s3|gs):", path):
        raise ItemError("image by URL", f"{path[:60]} is no path of a file here")
    path = unquote(path.removeprefix("file://")) if path.startswith("file://") else path
    if "\\" in path and "/" not in path and (root is None or not (root / path).exists()):
        path = path.replace("\\", "/")  # Written on Windows.
    inside = root is not None and Path(path).is_relative_to(root)
    return Path(path).relative_to(root).as_posix() if root is not None and inside else re.sub(r"\A(?:\./+)+(?=.)", "", path)
