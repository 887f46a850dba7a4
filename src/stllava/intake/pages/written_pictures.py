"""Opens the pictures that an import has written, for its pages."""

from pathlib import Path

from PIL import Image

from stllava.errors import StllavaError


def written_picture(to: Path, path: str) -> Image.Image:
    """A picture of the set in the folder `to`, decoded; one that was damaged since it was written is named."""
    try:
        with Image.open(to / path) as image:
            return image.copy()
    except (OSError, SyntaxError, ValueError) as error:
        raise StllavaError(
            f"{to / path} is damaged: {error}",
            expected="the picture as the import wrote it",
            remedy=f"Delete {Path(path).name} there and in the folder of its shard, if it has one, and give the command again: "
            "the picture is made again.",
        ) from error
