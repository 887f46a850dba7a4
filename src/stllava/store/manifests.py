"""Plans and manifests: what is being made in a stage's folder, what was made, and whether it is still so."""

import json
import logging
import platform
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from pydantic import JsonValue

from stllava.errors import FormatError, StllavaError
from stllava.records import FORMAT, Manifest, Outcome, Record, content_id
from stllava.store.disk import file_hash, write_whole
from stllava.store.jsonl import IndexedRecords, RecordStream, damaged, read_jsonl, read_record
from stllava.store.names import MANIFEST, PLAN

logger = logging.getLogger(__name__)
R = TypeVar("R", bound=Record)

READ_BY: dict[JsonValue, str] = {1: "0.1.0"}
"""The version that reads an earlier form."""
SMALL_BYTES = 1 << 24
"""A file of more is not read again where nobody wrote to it since its manifest."""


class Plan(Record):
    """What is being made in a folder; `plan.json` there."""

    stage: str
    """Name of the stage."""
    config: dict[str, JsonValue]
    """Its options, all of them."""
    inputs: dict[str, str]
    """Hash of each input by name."""
    format: int = FORMAT
    """The form in which the stage is written."""


def write_plan(folder: Path, plan: Plan) -> None:
    """Say in a folder what is being made there."""
    write_whole(folder / PLAN, plan.model_dump_json(indent=1) + "\n")


F = TypeVar("F", Manifest, Plan, Outcome)


def read_formatted(path: Path, record_type: type[F]) -> F:
    """The manifest, plan or outcome in a file; one that another version wrote is refused by naming that version.

    That comes before all else: names of stages and options have changed between versions.
    """
    written = path.read_bytes()
    try:
        said = json.loads(written)
    except ValueError:
        said = None  # It is damaged, which is said below.
    if isinstance(said, dict) and _is_of_another_version(said, record_type) and not _is_damaged(written, said):
        raise _other_version(path, said.get("format", 1))
    return read_record(path, record_type)


def _other_version(path: Path, number: JsonValue) -> FormatError:
    """The error of a file in another form."""
    if number not in READ_BY:
        return FormatError(
            f"{path} is in form {number}, of a later stllava",
            expected=f"form {FORMAT} or an earlier one",
            remedy="Update stllava.",
        )
    return FormatError(
        f"{path} is in the form of stllava {READ_BY[number]}",
        expected=f"form {FORMAT}, which this version writes",
        remedy=f"Use stllava {READ_BY[number]} for it, or begin again in another folder.",
    )


def _is_of_another_version(said: dict[str, JsonValue], record_type: type[Record]) -> bool:
    """Whether another version wrote a JSON object; one whose keys nobody wrote is damaged rather than old."""
    if "format" not in said:
        return said.keys() <= record_type.model_fields.keys()
    return type(said["format"]) is int and said["format"] != FORMAT


def _is_damaged(written: bytes, said: dict[str, JsonValue]) -> bool:
    """Whether something that has a digest is not what the digest is of."""
    return bool(said.get("digest")) and said["digest"] != digest_of(written)


def read_plan(folder: Path) -> dict[str, JsonValue]:
    """The options with which a stage was started."""
    if not (folder / PLAN).is_file():
        raise StllavaError(f"{folder} has no {PLAN}", expected="the folder of a run or stage", remedy="Check the path.")
    return read_formatted(folder / PLAN, Plan).config


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
    manifest = read_formatted(folder / MANIFEST, Manifest)
    if manifest.digest and manifest.digest != digest_of((folder / MANIFEST).read_bytes()):
        raise damaged(folder / MANIFEST, "it does not hold what its digest is of")
    return manifest


def digest_of(written: str | bytes) -> str:
    """Hash of all that a manifest says, but for its digest; later versions may say more than this one knows."""
    said: dict[str, JsonValue] = json.loads(written)
    return content_id({name: value for name, value in said.items() if name != "digest"})


def read_records(folder: Path, name: str, record_type: type[R]) -> list[R]:
    """The records `<name>.jsonl` of a finished stage, checked against its manifest.

    Args:
        folder: Folder of a finished stage.
        name: Name of the file without .jsonl, such as questions.
        record_type: Class of the records in it.

    Raises:
        StllavaError: Where the folder is not finished, or its file is not the one that the stage wrote.
    """
    return read_jsonl(_checked(folder, name), record_type)


def stream_records(folder: Path, name: str, record_type: type[R]) -> "RecordStream[R]":
    """The same one by one, for more than memory should hold."""
    return RecordStream(_checked(folder, name), record_type)


def index_records(folders: Sequence[Path], name: str, record_type: type[R]) -> "IndexedRecords[R]":
    """The records `<name>.jsonl` of finished stages by number, one folder behind the other, each read when it is asked for."""
    paths = [_checked(folder, name) for folder in folders]
    index = IndexedRecords(paths, record_type)
    for number, path in enumerate(paths):
        with path.open("rb") as file:
            start = 0
            for line in file:
                index.add(number, start)
                start += len(line)
    return index


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
