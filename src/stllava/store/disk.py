"""Files that appear whole or not at all, and what the disk refuses, in words."""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stllava.errors import StllavaError

FULL_BYTES = 1 << 20


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    require_file(path, expected="an existing file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_file(path: Path, *, expected: str) -> None:
    """Refuse a path that leads to no file, with where it was looked for."""
    if path.is_dir():
        raise StllavaError(f"{path} is a folder", expected=expected, remedy="Name a file.")
    if not path.is_file():
        where = "" if path.is_absolute() else f" (looked for in {Path.cwd()})"
        raise StllavaError(f"no file {path}{where}", expected=expected, remedy="Check the path.")


def write_whole(path: Path, data: str | bytes | Iterable[bytes]) -> None:
    """Write a file so that it is there whole or not at all, even after a power cut; data may come piece by piece."""
    pieces = (data.encode(),) if isinstance(data, str) else (data,) if isinstance(data, bytes) else data
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        with draft.open("wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        told = disk_error(error, path)
        if told is not None:
            raise told from error
        raise


def remove_folder(folder: Path) -> None:
    """Remove a folder and all that is in it, where there is one."""
    if folder.is_dir():
        shutil.rmtree(folder)


def disk_error(error: BaseException, path: Path) -> StllavaError | None:
    """What the system says of the disk, in words; None for an error of another kind.

    torch and safetensors hide it in errors of their own: safetensors names the system's number, torch nothing at all.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (said := re.search(r"\(os error (\d+)\)", str(error))) is not None:
        number = int(said[1])
    if number is None and _TORCH_WRITES.search(str(error)):
        number = errno.ENOSPC if shutil.disk_usage(path).free < FULL_BYTES else errno.EIO
    if number not in _DISK:
        return None
    where = error.filename if isinstance(error, OSError) and error.filename else path
    found, expected, remedy = _DISK[number]
    return StllavaError(found.format(where), expected=expected, remedy=f"{remedy}: finished work is kept and skipped.")


_TORCH_WRITES = re.compile("PytorchStreamWriter|inline_container|iostream error")
_FULL = ("no space left while writing {}", "free space on that disk", "Make room and give the same command again")
_FORBIDDEN = (
    "no permission for {}",
    "files that you may read, in folders that you may write to",
    "Change its owner or mode and give the same command again",
)
_IN_THE_WAY = ("a file is in the way of the folder {}", "a folder, or nothing yet", "Name another folder, or move the file")
_LOCKLESS = (
    "the file system of {} gives no locks",
    "one with locks, so that no two processes write to one place",
    "Work on a disk of this machine, or have the network's disk mounted with locks",
)
_DISK = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: (
        "{} grows larger than the system allows",
        "a limit that lets it be written (ulimit -f, or that of the file system)",
        "Raise the limit and give the same command again",
    ),
    errno.EROFS: (
        "{} lies on a disk that is mounted read-only",
        "a disk that can be written to",
        "Mount it for writing and give the same command again, or name another folder",
    ),
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.EIO: ("the disk failed at {}", "a disk that reads and writes", "Check it and give the same command again"),
    errno.EMFILE: ("too many files are open at {}", "a higher limit (ulimit -n)", "Raise it and give the same command again"),
    errno.ENAMETOOLONG: ("the path {} is too long", "one that the file system takes", "Name another folder"),
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EEXIST: _IN_THE_WAY,
    errno.ENOLCK: _LOCKLESS,
    errno.EOPNOTSUPP: _LOCKLESS,
    errno.EISDIR: ("a folder is in the way of the file {}", "a file, or nothing yet", "Move the folder"),
}
"""What was found, what was expected and what to do, by the system's number."""


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Say in words what the disk refuses while something is written to a folder, whoever reports it."""
    try:
        yield
    except StllavaError:
        raise
    except Exception as error:
        told = disk_error(error, folder)
        if told is None:
            raise
        raise told from error
