"""The disk: JSONL files, manifests, resume and locks. No other file knows the layout of a stage's folder.

A stage's folder while it is written:

    plan.json                what is being made: stage, options, input hashes
    parts/<chunk id>.jsonl   finished chunks: one line of counts, then the records
    lock                     held by the one process that writes

    audit.jsonl              images that were sent out, where they went and when
    exchanges/<name>.jsonl   what an expert replied, word for word

and when it is whole: `<name>.jsonl` (or the files of a policy) and, written last, `manifest.json`.
Every file appears whole or not at all (written beside, synced, renamed), so a kill or a full disk loses at most
the chunk at work.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import time
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from threading import Lock
from typing import IO, Literal, TypeVar

from pydantic import JsonValue, ValidationError

from stllava.config import Options
from stllava.dropped import LET_PASS, Dropped
from stllava.errors import ConflictError, NothingLeftError, StllavaError
from stllava.progress import Progress
from stllava.records import Keyed, Manifest, Record, content_id

logger = logging.getLogger(__name__)
R = TypeVar("R", bound=Record)
I = TypeVar("I", bound=Keyed)  # noqa: E741
O = TypeVar("O", bound=Record)  # noqa: E741

Existing = Literal["resume", "replace", "error"]
"""What to do when the output is already there, whole or in part."""

FULL_BYTES = 1 << 20
SMALL_BYTES = 1 << 24
HOPELESS = 120
"""Things a policy said of which none can be used: it is then not asked for more."""
LOG_SYNC_SECONDS = 1.0
TAIL_BYTES = 1 << 16
DRAFTS = ".*.draft"
MANIFEST, PLAN, PARTS, LOCK = "manifest.json", "plan.json", "parts", "lock"
CHECK, SEAL = "check.json", "seal.json"
AUDIT, EXCHANGES = "audit.jsonl", "exchanges"
"""What left this process and what came back: no part of the output, and kept when that is replaced."""


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


def to_jsonl(records: Iterable[Record]) -> str:
    """One record a line."""
    return "".join(record.model_dump_json() + "\n" for record in records)


def read_jsonl(path: Path, kind: type[R]) -> list[R]:
    """All records of a JSONL file; a broken line or a duplicate id is refused with its line number."""
    require_file(path, expected=f"a JSONL file of {kind.__name__} records")
    records: list[R] = []
    lines: dict[str, int] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = kind.model_validate_json(line.removeprefix(BOM_UTF8))
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"])
                raise StllavaError(
                    f"{path}, line {number}: {first['msg']}{f' at {where!r}' if where else ''}",
                    expected=f"one {kind.__name__} record in JSON a line",
                    remedy="Fix or remove that line.",
                ) from None
            if isinstance(record, Keyed):
                key = record.id
                if key in lines:
                    raise StllavaError(
                        f"{path}, line {number}: id {key!r} stands in line {lines[key]} already",
                        expected="each id once",
                        remedy="Remove one of the two lines.",
                    )
                lines[key] = number
            records.append(record)
    return records


def read_plan(folder: Path) -> dict[str, JsonValue]:
    """The options with which a stage was started."""
    if not (folder / PLAN).is_file():
        raise StllavaError(f"{folder} has no {PLAN}", expected="the folder of a run or stage", remedy="Check the path.")
    return read_record(folder / PLAN, Plan).config


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished stage; without one the output is not whole and is refused."""
    if folder.is_file():
        raise StllavaError(
            f"{folder} is a file",
            expected="the folder of a finished stage",
            remedy=f"Name {folder.absolute().parent}, perhaps.",
        )
    if not (folder / MANIFEST).is_file():
        again = "Run that stage (again): it goes on where it stopped."
        raise StllavaError(
            f"{folder} has no {MANIFEST}",
            expected="the folder of a finished stage",
            remedy=again if folder.is_dir() else f"Check the path: there is no such folder in {Path.cwd()}.",
        )
    manifest = read_record(folder / MANIFEST, Manifest)
    if manifest.digest and manifest.digest != _digest((folder / MANIFEST).read_bytes()):
        raise _damaged(folder / MANIFEST, "it does not hold what its digest is of")
    return manifest


def _digest(written: str | bytes) -> str:
    """Hash of all that a manifest says, but for its digest; later versions may say more than this one knows."""
    said: dict[str, JsonValue] = json.loads(written)
    return content_id({name: value for name, value in said.items() if name != "digest"})


def read_record(path: Path, kind: type[R]) -> R:
    """The one record that a JSON file holds; a damaged one is refused by name."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _damaged(path, f"{first['msg']}{f' at {where!r}' if where else ''}") from None


def _damaged(path: Path, how: str) -> StllavaError:
    return StllavaError(
        f"{path} is damaged: {how}",
        expected="the file as stllava wrote it",
        remedy="Restore it, or delete it and give the command that made it again: finished work is kept.",
    )


def read_records(folder: Path, name: str, kind: type[R]) -> list[R]:
    """The records `<name>.jsonl` of a finished stage, checked against its manifest."""
    return read_jsonl(_checked(folder, name), kind)


def stream_records(folder: Path, name: str, kind: type[R]) -> "Stream[R]":
    """The same one by one, for more than memory should hold."""
    return Stream(_checked(folder, name), kind)


class Stream(Iterable[R]):
    """The records of a JSONL file, one by one, as often as it is gone through."""

    def __init__(self, path: Path, kind: type[R]) -> None:
        self._path, self._kind = path, kind

    def __iter__(self) -> Iterator[R]:
        with self._path.open("rb") as file:
            for line in file:
                yield self._kind.model_validate_json(line)


def _checked(folder: Path, name: str) -> Path:
    """The file of a finished stage's records, which is the one that the stage wrote."""
    manifest = read_manifest(folder)
    path = folder / f"{name}.jsonl"
    if file_hash(path) != manifest.outputs.get(path.name):
        raise StllavaError(
            f"{path} is not the file that its manifest names",
            expected="the output as the stage wrote it",
            remedy="Restore the file, or give the command that made it again.",
        )
    return path


class Log:
    """An append-only JSONL file that outlives kills: each line is there once `append` returns; threads may share it.

    A line that a kill tore is cut off when the file is opened again. Lines reach the disk itself, against power cuts,
    within a second of the next one.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._lock, self._synced = path, Lock(), time.monotonic()
        self._file = path.open("a+b")
        self._end = self._file.seek(0, os.SEEK_END)
        whole = self._whole()
        if whole < self._end:
            self._file.truncate(whole)
            self._end = whole

    def append(self, record: Record) -> int:
        """Write a line; returns where it begins."""
        line = record.model_dump_json().encode() + b"\n"
        with self._lock:
            at = self._end
            try:
                self._file.write(line)
                self._file.flush()
                if time.monotonic() - self._synced > LOG_SYNC_SECONDS:
                    os.fsync(self._file.fileno())
                    self._synced = time.monotonic()
            except OSError as error:
                told = disk_error(error, self.path)
                if told is not None:
                    raise told from error
                raise
            self._end += len(line)
            return at

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Every line with where it begins."""
        at = 0
        with self.path.open("rb") as file:
            for line in file:
                yield at, line
                at += len(line)

    def read(self, at: int, kind: type[R]) -> R:
        """The record of the line that begins there."""
        with self._lock:
            self._file.seek(at)
            return kind.model_validate_json(self._file.readline())

    def close(self) -> None:
        """Bring every line to the disk and close the file."""
        with self._lock:
            os.fsync(self._file.fileno())
            self._file.close()

    def _whole(self) -> int:
        """Where the last whole line ends."""
        end = self._end
        while end:
            start = max(0, end - TAIL_BYTES)
            self._file.seek(start)
            found = self._file.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
        return 0


class ChunkHead(Record):
    """The first line of a finished chunk: what it lacks, and how to tell that it is whole."""

    dropped: dict[str, int]
    """What was left out, by cause."""
    faults: dict[str, int]
    """Items of it that could not be used, by cause."""
    examples: dict[str, str]
    """An example of each cause."""
    sha256: str
    """Hash of the lines behind this one."""


def chunk_id(items: Sequence[Keyed]) -> str:
    """The name of a chunk, which is that of all that its items say."""
    return content_id([item.model_dump(mode="json") for item in items])


def write_chunk(path: Path, records: Sequence[Record], dropped: Dropped) -> None:
    """Keep what came of a chunk."""
    lines = to_jsonl(records).encode()
    head = ChunkHead(
        dropped=dict(sorted(dropped.items())),
        faults=dict(sorted(dropped.faults.items())),
        examples=dict(sorted(dropped.examples.items())),
        sha256=hashlib.sha256(lines).hexdigest(),
    )
    write_whole(path, f"{head.model_dump_json()}\n".encode() + lines)


def read_chunk(path: Path, kind: type[R]) -> tuple[list[R], Dropped] | None:
    """What is kept of a chunk; None where there is nothing or the file is damaged, so that it is to be made again."""
    if not path.is_file():
        return None
    first, _, lines = path.read_bytes().partition(b"\n")
    try:
        head = ChunkHead.model_validate_json(first)
        if hashlib.sha256(lines).hexdigest() != head.sha256:
            return None
        records = [kind.model_validate_json(line) for line in lines.split(b"\n")[:-1]]
    except ValidationError:
        return None
    dropped = Dropped(head.dropped)
    dropped.faults, dropped.examples = Counter(head.faults), head.examples
    return records, dropped


def nothing_left(source: str, dropped: Dropped, *, remedy: str) -> NothingLeftError:
    """The error of a stage in which nothing came of its `source`; its causes are told where there are some."""
    return NothingLeftError(
        f"nothing that can be used came of {source}{': ' if dropped else ''}{dropped.told()}",
        expected="at least one",
        remedy=remedy,
    )


class Seal(Record):
    """The files of a folder as they were when it was whole; `seal.json` there."""

    files: dict[str, str]
    """Hash of each file by name."""


def seal(folder: Path) -> None:
    """Note what a folder holds, now that it is whole."""
    files = {path.name: file_hash(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name != SEAL}
    write_whole(folder / SEAL, Seal(files=files).model_dump_json() + "\n")


def is_sealed(folder: Path) -> bool:
    """Whether a folder holds all that it held when it was sealed, unchanged."""
    try:
        files = read_record(folder / SEAL, Seal).files if (folder / SEAL).is_file() else None
    except StllavaError:
        return False
    return files is not None and all((folder / name).is_file() and file_hash(folder / name) == files[name] for name in files)


class Plan(Record):
    """What is being made in a folder; `plan.json` there."""

    stage: str
    """Name of the stage."""
    config: dict[str, JsonValue]
    """Its options, all of them."""
    inputs: dict[str, str]
    """Hash of each input by name."""


def first_loss(folder: Path, manifest: Manifest) -> str | None:
    """The first output that is not as its manifest names it, in words; None where all are.

    A large file that nobody wrote to since is not read again.
    """
    written = (folder / MANIFEST).stat().st_mtime_ns
    for name, known in manifest.outputs.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is gone"
        if (path.stat().st_size <= SMALL_BYTES or path.stat().st_mtime_ns > written) and file_hash(path) != known:
            return f"{path} has changed"
    return None


def warn_of_losses(folder: Path) -> None:
    """Say what is not as it was of the stages in the folder of a finished run, which are not done again unasked."""
    for path in sorted(folder.rglob(MANIFEST)):
        try:
            lost = first_loss(path.parent, read_manifest(path.parent))
        except (StllavaError, OSError) as error:
            lost = str(error)
        if lost is not None and path.parent != folder:
            logger.warning("%s. To have that stage done again, delete %s and give the command again.", lost, folder / MANIFEST)


def output_hash(folder: Path) -> str:
    """One hash for all outputs of a finished stage."""
    return content_id(dict(sorted(read_manifest(folder).outputs.items())))


def _open_lock(path: Path) -> IO[bytes]:
    """The lock's file, which may lie on a disk that is read-only: what is finished can be read back there."""
    try:
        return path.open("ab")
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES) or not path.is_file():
            raise
        return path.open("rb")


@contextmanager
def locked(folder: Path, *read: Path | str | None) -> Iterator[None]:
    """Hold the folder's lock: one writer at a time, released by the system even after SIGKILL.

    A folder that is, or holds, what is `read` to write into it is refused. What the disk refuses is said in words.
    """
    with disk_errors(folder):
        for path in (path for path in read if path):
            place = Path(path).resolve()
            if place.exists() and place.is_relative_to(folder.resolve()):
                same = place == folder.resolve()
                raise StllavaError(
                    f"{folder} is to be read and to be written" if same else f"{path} is to be read and lies in {folder}",
                    expected="another folder for what is made, since to replace what is there removes what it is made from",
                    remedy="Name another folder (--to).",
                )
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


@cache
def versions() -> dict[str, str]:
    """Versions of Python and the packages that shape results."""
    names = ("stllava", "torch", "transformers", "peft", "accelerate", "numpy", "pillow")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}


@cache
def commit() -> str:
    """The git commit of the checkout this package runs from, with `+changes` where it differs; empty elsewhere."""
    here = Path(__file__).resolve().parent
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty=+changes", "--abbrev=40", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


class Stage:
    """A stage's output folder from plan to manifest. `manifest` is set from the start when the work is already done."""

    def __init__(
        self,
        name: str,
        to: Path,
        config: Options,
        *,
        inputs: Mapping[str, str],
        existing: Existing,
        items: str = "",
        may_change: Collection[str] = (),
    ) -> None:
        """Begin the stage in the folder `to`, or go on with it.

        Options and inputs are settled by the first finished chunk; the input `items`, of which chunks are cut, by the
        manifest. A folder of stages has no chunks: each settles its own, and options that `may_change` are never settled.
        """
        self.name, self.to, self._options = name, to, config
        self.config: dict[str, JsonValue] = config.model_dump(mode="json")
        self.inputs = dict(inputs)
        self.manifest: Manifest | None = None
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self._clock = time.monotonic()
        if existing == "replace" and ((to / PLAN).is_file() or (to / MANIFEST).is_file()):
            self._refuse_others()
            self._clear()
        plan = Plan(stage=name, config=self.config, inputs=self.inputs)
        begun, finished = self._begun()
        if begun is not None and existing == "error":
            raise StllavaError(f"{to} has output already", expected="a new folder", remedy="Set existing to resume or replace.")
        holds_stages = begun is not None and any((entry / PLAN).is_file() for entry in self._entries())
        settled = finished is not None or any(path.is_file() for path in (to / PARTS).rglob("*"))
        change = None
        if begun is not None and not (holds_stages and may_change and begun.stage == name and finished is None):
            change = self._change(begun, plan, may_change=may_change, items="" if finished is not None else items)
        if change is not None and (settled or holds_stages):
            raise ConflictError(
                f"{to} holds the output of other options or inputs: {change}",
                expected="the same work",
                remedy="Name another folder, go back to what it was, or replace what is there (existing: replace).",
            )
        if change is not None:
            self._clear()
        self._plan = plan
        if finished is not None and self._is_whole(finished):
            # What is finished stays so while more is added to it.
            self.manifest = finished if not may_change or finished.config == self.config else None
            return
        (to / MANIFEST).unlink(missing_ok=True)
        for draft in to.glob(DRAFTS) if may_change else to.rglob(DRAFTS):
            draft.unlink()
        if plan != begun:
            self.write_plan()

    def write_plan(self) -> None:
        """Say in the folder what is being made there."""
        write_whole(self.to / PLAN, self._plan.model_dump_json(indent=1) + "\n")

    def _begun(self) -> tuple[Plan | None, Manifest | None]:
        """What was begun in the folder and what was finished; a folder of other files is refused.

        A manifest says all that a plan says, and is told when it is damaged: where there is one, the plan follows it.
        """
        plan: Plan | StllavaError | None = None
        if (self.to / PLAN).is_file():
            try:
                plan = read_record(self.to / PLAN, Plan)
            except StllavaError as error:
                plan = error
        if (self.to / MANIFEST).is_file():
            finished = read_manifest(self.to)
            made = Plan(stage=finished.stage, config=finished.config, inputs=finished.inputs)
            if plan != made:
                write_whole(self.to / PLAN, made.model_dump_json(indent=1) + "\n")
            return made, finished
        if isinstance(plan, StllavaError):
            raise StllavaError(
                f"{self.to / PLAN} is damaged, and nothing else says what was begun there",
                expected="the file as stllava wrote it",
                remedy="Restore it, name another folder, or begin anew (existing: replace).",
            ) from plan
        if plan is None and (other := self._entries()):
            raise StllavaError(
                f"{self.to} holds files that are not of stllava, such as {other[0].name}, and no {PLAN}",
                expected="an empty or new folder, or one that this stage has begun",
                remedy="Name another folder.",
            )
        return plan, None

    def _refuse_others(self) -> None:
        """Refuse to replace what another stage made: a run, or a paid judge, would be gone by a slip of the hand."""
        kinds: tuple[tuple[type[Manifest] | type[Plan], Path], ...] = ((Manifest, self.to / MANIFEST), (Plan, self.to / PLAN))
        for kind, file in kinds:
            try:
                made = read_record(file, kind).stage if file.is_file() else self.name
            except StllavaError:
                continue  # It is damaged, which is what replacing is for.
            if made != self.name:
                raise ConflictError(
                    f"{self.to} holds the output of the stage {made}, not of {self.name}",
                    expected="output of this stage to replace",
                    remedy="Name another folder, or delete that one yourself.",
                )

    def _entries(self) -> list[Path]:
        """What lies in the folder, but for what belongs to no output."""
        return [entry for entry in self.to.iterdir() if entry.name not in (LOCK, AUDIT, EXCHANGES)] if self.to.is_dir() else []

    def _clear(self) -> None:
        """Remove what was made, the plan last: without it the folder would be nobody's."""
        for entry in sorted(self._entries(), key=lambda entry: (entry.name == PLAN, entry.name != MANIFEST)):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def _change(self, old: Plan, new: Plan, *, may_change: Collection[str], items: str) -> str | None:
        """The first difference of two plans in words, but for what may differ; None where there is none."""
        if old.stage != new.stage:
            return f"it is of the stage {old.stage}, not of {new.stage}"
        try:
            options = type(self._options).model_validate(old.config).resume_key()
        except ValidationError:
            options = old.config

        def bound(plan: Plan, config: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
            kept: dict[str, JsonValue] = {name: value for name, value in config.items() if name not in may_change}
            inputs: dict[str, JsonValue] = {name: value for name, value in plan.inputs.items() if name != items}
            return {"config": kept, "inputs": inputs}

        before, now = bound(old, options), bound(new, self._options.resume_key())
        return None if before == now else first_difference(before, now)

    def _is_whole(self, manifest: Manifest) -> bool:
        """Whether every output is there as it was written."""
        lost = first_loss(self.to, manifest)
        if lost is not None:
            logger.warning("%s since %s was finished, which is therefore done again.", lost, self.name)
        return lost is None

    def map_chunks(
        self,
        items: Sequence[I],
        work: Callable[[Sequence[I]], tuple[list[O], Dropped]],
        *,
        kind: type[O],
        size: int,
        unit: str,
        max_bad: float,
        remedy: str = "Look at the example.",
    ) -> tuple[list[O], Dropped]:
        """Run `work` over fixed chunks of the items and keep each result on disk as it is made.

        Chunks are cut before anything is skipped, so that a resumed stage computes, and rounds, as an uninterrupted
        one. Returns all records in order and what was dropped. More than `max_bad` of faults end the stage, and so does
        a policy of which nothing can be used, as soon as that is plain; `remedy` is then what to do.
        """
        chunks = [items[start : start + size] for start in range(0, len(items), size)]
        paths = [self.to / PARTS / f"{chunk_id(chunk)}.jsonl" for chunk in chunks]
        made = {path: known for path in paths if (known := read_chunk(path, kind)) is not None}
        done = sum(len(chunk) for chunk, path in zip(chunks, paths, strict=True) if path in made)
        records: list[O] = []
        dropped, seen = Dropped(), 0
        with Progress(self.name, len(items), unit=unit, done=done) as progress:
            for chunk, path in zip(chunks, paths, strict=True):
                if path not in made:
                    made[path] = work(chunk)
                    write_chunk(path, *made[path])
                    progress.advance(len(chunk))
                records += made[path][0]
                dropped.take(made[path][1])
                seen += len(chunk)
                try:
                    dropped.refuse_faults(items=len(items), unit=unit, max_bad=max_bad, seen=seen)
                except StllavaError:
                    # What is wrong with these items may be put right: they are then looked at again.
                    for other in paths:
                        if other in made and made[other][1].faults:
                            other.unlink()
                    raise
                useless = sum(count for cause, count in dropped.items() if cause not in dropped.faults)
                if not records and useless >= (LET_PASS if seen == len(items) else HOPELESS):
                    shutil.rmtree(self.to / PARTS)
                    raise nothing_left(f"the first {seen} of {len(items)} {unit}", dropped, remedy=remedy)
        return records, dropped

    def write_records(self, name: str, records: Iterable[Record]) -> None:
        """Write `<name>.jsonl`, holding one record at a time."""
        write_whole(self.to / f"{name}.jsonl", (f"{record.model_dump_json()}\n".encode() for record in records))

    def finish(
        self,
        *,
        counts_in: int,
        counts_out: int,
        dropped: Mapping[str, int] | None = None,
        measures: Mapping[str, float] | None = None,
        curves: Mapping[str, list[tuple[float, float]]] | None = None,
        notes: Sequence[str] = (),
        device: str = "cpu",
        files: Sequence[Path] | None = None,
    ) -> Manifest:
        """Write the manifest: from here on the output is whole. It names `files`, or all there are in the folder."""
        kept, aside = {PLAN, LOCK, MANIFEST, AUDIT}, (f"{PARTS}/", f"{EXCHANGES}/")
        if files is None:
            files = sorted(path for path in self.to.rglob("*") if path.is_file() and not path.name.startswith("."))
        names = {path: path.relative_to(self.to).as_posix() for path in files}
        manifest = Manifest(
            stage=self.name,
            config=self.config,
            inputs=self.inputs,
            outputs={name: file_hash(path) for path, name in names.items() if name not in kept and not name.startswith(aside)},
            counts_in=counts_in,
            counts_out=counts_out,
            dropped=dict(sorted((dropped or {}).items())),
            measures=dict(measures or {}),
            curves=dict(curves or {}),
            notes=tuple(notes),
            versions=versions(),
            commit=commit(),
            started=self.started,
            seconds=round(time.monotonic() - self._clock, 3),
            device=device,
        )
        manifest = manifest.model_copy(update={"digest": _digest(manifest.model_dump_json())})
        write_whole(self.to / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
        shutil.rmtree(self.to / PARTS, ignore_errors=True)
        self.manifest = manifest
        return manifest


def first_difference(old: JsonValue, new: JsonValue, path: str = "") -> str:
    """Where two JSON values first differ, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                return first_difference(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    if any(isinstance(value, str) and _HASH.fullmatch(value) for value in (old, new)):
        return f"its {path.replace('.', ' ', 1).replace('inputs', 'input')} {'is new' if old is None else 'has changed'}"
    return f"{path or 'value'} was {json.dumps(old, ensure_ascii=False)}, now {json.dumps(new, ensure_ascii=False)}"


_HASH = re.compile("[0-9a-f]{16}|[0-9a-f]{64}")
