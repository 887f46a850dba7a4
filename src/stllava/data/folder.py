"""A plain folder of images: what the policy asks itself about when there is nothing but files."""

from pathlib import Path

from stllava.data.images import SUFFIXES
from stllava.data.intake.imported import is_imported, training
from stllava.errors import StllavaError
from stllava.records import Image, content_id
from stllava.store import read_jsonl


def images_in(root: Path, folder: Path | None) -> list[Image]:
    """All image files below `folder` (relative to `root`; the whole root when None), sorted by POSIX path.

    Files are told by suffix, in any case; names that begin with a dot are no images. Nothing is opened. Of a set that
    `stllava import images` wrote, they are the pictures of its split `train`, or all where it has no such split.
    """
    base, root = (root / (folder or ".")).resolve(), root.resolve()
    if not base.is_dir():
        raise StllavaError(f"no folder {base}", expected="a folder of images", remedy="Check the path.")
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


def read_images(images: Path, *, root: Path) -> list[Image]:
    """Images from a JSONL file of Image records, or all image files of a folder inside `root`."""
    found = images_in(root, images.resolve()) if images.is_dir() else read_jsonl(images, Image)
    if not found:
        raise StllavaError(
            f"no images in {images}",
            expected=f"files that end in {', '.join(sorted(SUFFIXES))}" if images.is_dir() else "rows that name images",
            remedy="Check the path.",
        )
    return found
