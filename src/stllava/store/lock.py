"""One writer a folder."""

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from stllava.errors import StllavaError
from stllava.store.disk import disk_errors
from stllava.store.names import LOCK


def _open_lock(path: Path) -> IO[bytes]:
    """The lock's file, which may lie on a disk that is read-only: what is finished can be read back there."""
    try:
        return path.open("ab")
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES) or not path.is_file():
            raise
        return path.open("rb")


def refuse_reading(folder: Path, *read: Path | str | None) -> None:
    """Refuse to write into a folder that is, or holds, what is `read`."""
    for path in (path for path in read if path):
        place = Path(path).resolve()
        if place.exists() and place.is_relative_to(folder.resolve()):
            same = place == folder.resolve()
            raise StllavaError(
                f"{folder} is to be read and to be written" if same else f"{path} is to be read and lies in {folder}",
                expected="another folder for what is made, since to replace what is there removes what it is made from",
                remedy="Name another folder (--to).",
            )


@contextmanager
def locked(folder: Path, *read: Path | str | None) -> Iterator[None]:
    """Hold the folder's lock: one writer at a time, released by the system even after SIGKILL.

    A folder that is, or holds, what is `read` to write into it is refused. What the disk refuses is said in words.
    """
    with disk_errors(folder):
        refuse_reading(folder, *read)
        folder.mkdir(parents=True, exist_ok=True)
        with _open_lock(folder / LOCK) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StllavaError(
                    f"{folder} is in use by another process",
                    expected="one writer a folder",
                    remedy="Wait for it to end, or name another folder.",
                ) from None
            yield
