"""One reader's file of votes: every line is on the disk, against power cuts too, before `append` returns.

The file is only ever added to. A line that a kill or a full disk tore is cut off; one reader is at work in it at a time.
"""

import fcntl
import os
import unicodedata
from codecs import BOM_UTF8
from pathlib import Path

from pydantic import ValidationError

from stllava.errors import StllavaError
from stllava.records import ReviewVote, content_id
from stllava.store import disk_error, disk_errors, read_jsonl

VOTES = "votes"
"""Name of the folder of votes in a review folder."""
LONGEST_NAME = 64


def votes_path(folder: Path, reader: str) -> Path:
    """The file of a reader's votes in a review folder; a name that could lead elsewhere is refused."""
    fit = 0 < len(reader) <= LONGEST_NAME and all(letter.isalnum() or letter in "-_" for letter in reader)
    if not fit or reader[0] in "-_":
        raise StllavaError(
            f"{reader!r} as the name of a reader",
            expected=f"up to {LONGEST_NAME} letters, digits, - and _, a letter or digit first",
            remedy="Name the reader otherwise (--reader).",
        )
    return folder / VOTES / f"{reader}.jsonl"


def read_votes(folder: Path) -> dict[str, list[ReviewVote]]:
    """All that each reader of a review folder did, by reader; a torn last line, which `VoteLog` cuts off, is passed over."""
    return {path.stem: _votes_in(path) for path in sorted((folder / VOTES).glob("*.jsonl"))}


def _votes_in(path: Path) -> list[ReviewVote]:
    """The votes of a reader's file; those of another reader, under whose name nobody voted, are refused."""
    votes = read_jsonl(path, ReviewVote, may_be_torn=True)
    if (other := next((vote.reader for vote in votes if vote.reader != path.stem), None)) is not None:
        raise StllavaError(
            f"{path} holds votes of {other}",
            expected="the votes of one reader in the file of that name",
            remedy=f"Give it back its name ({other}.jsonl), or move it away.",
        )
    return votes


def votes_behind(path: Path, place: int) -> tuple[list[ReviewVote], int]:
    """The votes in whole lines of a reader's file from that byte on, and the byte where they end; raises `ValidationError`."""
    with path.open("rb") as file:
        file.seek(place)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    lines = whole.removeprefix(BOM_UTF8).splitlines()
    return [ReviewVote.model_validate_json(line) for line in lines if line.strip()], place + len(whole)


class VoteLog:
    """The file of one reader, held by this process."""

    def __init__(self, folder: Path, reader: str) -> None:
        """Open the file of a reader in a review folder, and read what is in it."""
        self.path = votes_path(folder, reader)
        with disk_errors(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _refuse_other_spelling(self.path)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            with disk_errors(self.path):
                self._lock()
                self._end_with_whole_line()
                self.votes = _votes_in(self.path)
        except BaseException:
            self.close()
            raise

    def append(self, vote: ReviewVote) -> ReviewVote:
        """Write a vote behind all others, and return it, with its number and id, once it is on the disk.

        Raises:
            StllavaError: Where the disk does not take it, or the file is no longer in its place; what is there stays as it was.
        """
        # Not by the number of lines: people take some out where they were told that two have one id.
        number = max((earlier.number for earlier in self.votes), default=0) + 1
        vote = vote.model_copy(update={"id": content_id("review vote", vote.reader, number), "number": number})
        line = vote.model_dump_json().encode() + b"\n"
        self._refuse_lost_file()
        end = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) != len(line):
                raise OSError(28, "No space left on device", str(self.path))
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, end)
            told = disk_error(error, self.path)
            if told is not None:
                raise told from error
            raise
        self.votes.append(vote)
        return vote

    def close(self) -> None:
        """Close the file, if it is open; another process may then go on with it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _lock(self) -> None:
        """Keep other processes out."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StllavaError(
                f"{self.path} is in use by another process",
                expected="one review a reader at a time",
                remedy="End the other one, or name another reader (--reader).",
            ) from None

    def _refuse_lost_file(self) -> None:
        """Raise `StllavaError` where the open file is not in its place any more: what is written to it would be lost."""
        opened = os.fstat(self._file)
        try:
            there = self.path.stat()
        except OSError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (opened.st_dev, opened.st_ino):
            raise StllavaError(
                f"{self.path} was {'removed' if there is None else 'replaced'} since it was opened, so nothing was written",
                expected="the file in its place while its reader votes",
                remedy="Put it back, and start `stllava review` again.",
            )

    def _end_with_whole_line(self) -> None:
        """Cut off what stands behind the last whole line, but for a vote that lacks only the end of its line."""
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if _is_vote(data[whole:]):
            os.write(self._file, b"\n")
        elif whole < len(data):
            os.ftruncate(self._file, whole)


def _is_vote(line: bytes) -> bool:
    """Whether a line says all of a vote; no part of one does."""
    try:
        ReviewVote.model_validate_json(line)
    except ValidationError:
        return False
    return True


def _refuse_other_spelling(path: Path) -> None:
    """Raise `StllavaError` where the folder has votes under a name that some disks, and people, take for this one."""
    other = next((one for one in path.parent.glob("*.jsonl") if one != path and _sound(one.stem) == _sound(path.stem)), None)
    if other is not None:
        raise StllavaError(
            f"{path.stem} and {other.stem} as names of two readers",
            expected="names that differ in more than upper and lower case",
            remedy=f"Name the reader {other.stem} (--reader), or otherwise.",
        )


def _sound(name: str) -> str:
    """A name without what disks of other systems do not tell apart."""
    return unicodedata.normalize("NFC", name).casefold()
