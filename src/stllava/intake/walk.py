"""Lists the files of any tree in a fixed order, whatever their names are and wherever its links lead.

Reads directories, opens no file; writes nothing. Real folders come first, then links. One that leads out of the tree is
named and not followed unless the caller wants that; one back into what was listed already is named, too.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stllava.errors import StllavaError

OUTSIDE, NO_PERMISSION = "link-out-of-folder", "no-permission"
CAUSES = (OUTSIDE, "linked-twice", "broken-link", "not-a-file", NO_PERMISSION, "empty", "unreachable")


@dataclass(frozen=True)
class TreeEntry:
    """One entry of the tree that is no folder, or a folder that could not be listed."""

    path: Path
    """Where it is."""
    size: int
    """In bytes; 0 of what is no file."""
    changed: int
    """When it was last changed, in nanoseconds."""
    cause: str | None
    """One of `CAUSES` when it is known to be unusable without opening it."""


def walk(root: Path, *, outside: bool = False) -> Iterator[TreeEntry]:
    """Every file below `root`, folder by folder, sorted by the bytes of the names; a root that cannot be listed is refused.

    Links are followed inside the tree, and out of it only if `outside`.
    """
    if not root.is_dir():
        raise StllavaError(f"no folder {root}", expected="a folder of images", remedy="Check the path.")
    if not os.access(root, os.R_OK | os.X_OK):
        raise StllavaError(f"{root} cannot be listed", expected="leave to read it", remedy="Change its permissions.")
    seen: set[tuple[int, int]] = set()
    links: list[Path] = []
    yield from _folder(root, seen, links)
    # What is inside the tree is listed under its own name, so links wait until all of that is known.
    within = None if outside else Path(os.path.realpath(root))
    for link in iter(lambda: links.pop(0) if links else None, None):
        yield from _link(link, seen, links, within=within)


def _folder(folder: Path, seen: set[tuple[int, int]], links: list[Path]) -> Iterator[TreeEntry]:
    """The files of a real folder and the folders in it; folders are stacked, since trees may be deeper than Python's stack."""
    stack = [folder]
    while stack:
        current = stack.pop()
        try:
            state = current.stat()
            if (state.st_dev, state.st_ino) in seen:
                yield _unusable(current, "linked-twice")
                continue
            seen.add((state.st_dev, state.st_ino))
            with os.scandir(current) as listing:
                entries = sorted(listing, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            yield _unusable(current, _cause(error))
            continue
        folders = []
        for entry in entries:
            path = current / entry.name
            try:
                if entry.is_symlink():
                    links.append(path)
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                else:
                    yield _file(path, entry.stat(follow_symlinks=False))
            except OSError as error:
                yield _unusable(path, _cause(error))
        stack += reversed(folders)


def _link(link: Path, seen: set[tuple[int, int]], links: list[Path], *, within: Path | None) -> Iterator[TreeEntry]:
    """What a link leads to, unless it was listed already or leads out of the folder `within`."""
    try:
        state = link.stat()
    except OSError as error:
        # A link to itself is a loop (ELOOP), one to nothing is broken; neither can be opened by whatever name.
        yield _unusable(link, NO_PERMISSION if isinstance(error, PermissionError) else "broken-link")
        return
    if within is not None and not Path(os.path.realpath(link)).is_relative_to(within):
        yield _unusable(link, OUTSIDE)
    elif stat.S_ISDIR(state.st_mode):
        yield from _folder(link, seen, links)
    else:
        yield _file(link, state)


def _file(path: Path, state: os.stat_result) -> TreeEntry:
    """A file as found; pipes, sockets and devices are named, since opening one could wait forever."""
    if not stat.S_ISREG(state.st_mode):
        return _unusable(path, "not-a-file")
    if state.st_size == 0:
        return TreeEntry(path, 0, state.st_mtime_ns, "empty")
    readable = os.access(path, os.R_OK)
    return TreeEntry(path, state.st_size, state.st_mtime_ns, None if readable else NO_PERMISSION)


def _cause(error: OSError) -> str:
    return NO_PERMISSION if isinstance(error, PermissionError) else "unreachable"


def _unusable(path: Path, cause: str) -> TreeEntry:
    return TreeEntry(path, 0, 0, cause)
