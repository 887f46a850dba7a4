"""A plain folder or a list of images: what the policy asks itself about when there is nothing but files."""

import re
from collections.abc import Mapping
from pathlib import Path

from stllava.data.cells import IMAGE_COLUMNS, paths_of, relative_path
from stllava.data.image_set import is_imported, training
from stllava.data.images import SUFFIXES
from stllava.data.tables import bad_row, read_list, read_table, read_text
from stllava.errors import ItemError, StllavaError
from stllava.records import Image, content_id
from stllava.store import read_jsonl

_COLUMNS = ("path", "file_name", "filename", *IMAGE_COLUMNS)


def images_in(root: Path, where: Path | None) -> list[Image]:
    """All image files below the folder `where` (relative to `root`; the whole root when None), sorted by POSIX path.

    Where it is a file, in the root or as given, it lists them (`listed_images`). Files are told by suffix, in any case;
    names that begin with a dot are no images. Nothing is opened. Of a set that `stllava import images` wrote, they are the
    pictures of its split `train`, or all where it has no such split.
    """
    base = (root / (where or ".")).resolve()
    for file in (base, where):
        if file is not None and file.is_file():
            return listed_images(file, root=root)
    root = root.resolve()
    if not base.is_dir():
        also = "" if where is None or where.is_absolute() else f", nor a list {where.absolute()}"
        raise StllavaError(f"no folder {base}{also}", expected="a folder or a list of images", remedy="Check the path.")
    if not base.is_relative_to(root):
        raise StllavaError(
            f"{base} lies outside the image root {root}",
            expected="a folder inside it",
            remedy="Name a folder below the image root, or a root above both.",
        )
    if is_imported(base):
        files = [base / one.path for one in training(base)]
    else:
        found = (path for path in base.rglob("*") if path.suffix.lower() in SUFFIXES and not path.is_dir())
        files = [path for path in found if not path.name.startswith(".")]
    paths = sorted(path.relative_to(root).as_posix() for path in files)
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError:
            raise StllavaError(
                f"the file name {path!a} is not UTF-8",
                expected="file names in UTF-8",
                remedy="Rename that file or, where names are right, set a locale of UTF-8 (export LC_ALL=C.UTF-8).",
            ) from None
    return [Image(id=content_id("image", path), path=path) for path in paths]


def listed_images(path: Path, *, root: Path) -> list[Image]:
    """The images that a file names, each once, in its order; the files themselves are not looked at.

    The file holds a path a line, or a table or JSON with a column path or image, or `Image` records. Paths are relative to
    the root; absolute ones inside it become so.
    """
    text, _ = read_text(path, kinds="image paths")
    start, root = text.lstrip()[:1], root.resolve()
    header = {name.strip(' "\r').casefold() for name in re.split("[,;\t]", text.partition("\n")[0])}
    names: list[tuple[int, object]]
    if start == "[":
        names = list(enumerate(read_list(path, kinds="image paths"), 1))
    elif start == "{" or header & set(_COLUMNS):
        table = read_table(path, names=_COLUMNS, kinds="image paths")
        if all(row.keys() == Image.model_fields.keys() for _, row in table.rows):
            return read_jsonl(path, Image)
        names = list(table.rows)
    else:
        lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        quoted = all(len(line) > 2 and line[0] == line[-1] == '"' for _, line in lines)
        names = [(number, line[1:-1] if quoted else line) for number, line in lines]
    paths = dict.fromkeys(relative for number, name in names for relative in _paths(path, number, name, root=root))
    return [Image(id=content_id("image", name), path=name) for name in paths]


def _paths(path: Path, number: int, name: object, *, root: Path) -> tuple[str, ...]:
    column = next((key for key in _COLUMNS if key in name), None) if isinstance(name, Mapping) else "path"
    if column is None:
        raise bad_row(path, number, "no path", expected=f"one of {', '.join(_COLUMNS)}")
    try:
        if isinstance(name, str):
            return (relative_path(name, root),)
        return paths_of(name[column] if isinstance(name, Mapping) else name, column=column, root=root)
    except ItemError as error:
        raise bad_row(path, number, str(error), expected="the path of an image") from None


def read_images(images: Path, *, root: Path) -> list[Image]:
    """The images that a file lists, or all image files of a folder inside `root`."""
    found = images_in(root, images.resolve()) if images.is_dir() else listed_images(images, root=root)
    if not found:
        raise StllavaError(
            f"no images in {images}",
            expected=f"files that end in {', '.join(sorted(SUFFIXES))}" if images.is_dir() else "rows that name images",
            remedy="Check the path.",
        )
    return found
