"""A stage's folder from plan to manifest: begun, gone on with chunk by chunk, finished, or refused."""

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypedDict, TypeVar

from pydantic import JsonValue, ValidationError

from stllava.config import Options
from stllava.errors import ConflictError, FormatError, StllavaError
from stllava.records import Keyed, Manifest, Record
from stllava.store.chunked import ChunkWork, MappedChunks, map_chunks
from stllava.store.disk import file_hash, write_whole
from stllava.store.jsonl import read_record
from stllava.store.lock import locked, refuse_reading
from stllava.store.manifests import Plan, commit, digest_of, first_loss, read_formatted, read_manifest, versions
from stllava.store.names import AUDIT, CALL, DRAFTS, EXCHANGES, LOCK, MANIFEST, PARTS, PLAN, SHARDS
from stllava.store.shards import SHARD, Shard, noted_call

logger = logging.getLogger(__name__)
I = TypeVar("I", bound=Keyed)  # noqa: E741
O = TypeVar("O", bound=Record)  # noqa: E741

Existing = Literal["resume", "replace", "error"]
"""What to do when the output is already there, whole or in part."""


@dataclass(frozen=True)
class Input:
    """A file, a folder or a model on the hub that a stage reads, and how what it holds is hashed."""

    path: Path | str
    hash: Callable[[Path], str]


Inputs = dict[str, str | Input]
"""What decides a stage's output beside its options, by name: what is read and hashed, or a text that says it all."""


@contextmanager
def open_stage(
    name: str,
    to: Path,
    options: Options,
    *,
    inputs: Inputs,
    reads: Iterable[Path | str | None] = (),
    existing: Existing,
    items: str = "",
    shard: str | None = None,
) -> Iterator["Stage"]:
    """Hold the folder `to` and begin the stage there, or go on with it; where it is done, its `manifest` is set.

    Args:
        name: The stage.
        to: Its folder, in which nothing may lie that it reads.
        options: Its options.
        inputs: What decides its output beside them, by name: hashed once the folder is held, or a text that says it all.
        reads: What it reads beside that.
        existing: What to do with output that is there.
        items: The input of which chunks are cut.
        shard: i/n: begin the i-th of n shards of the stage, in a folder of its own below `to`.
    """
    read = [*(given.path for given in inputs.values() if isinstance(given, Input)), *reads]
    part = Shard.parse(shard) if shard is not None else None
    with locked(shard_folder(to, part, read, existing=existing) if part is not None else to, *read):
        hashes = {key: given if isinstance(given, str) else given.hash(Path(given.path)) for key, given in inputs.items()}
        if part is not None and (to / MANIFEST).is_file():
            yield Stage(name, to, options, inputs=hashes, existing=existing)  # All of it is gathered already.
        else:
            yield begin_shard(name, to, options, inputs=hashes, existing=existing, items=items, shard=part)


def shard_folder(to: Path, shard: Shard, read: Iterable[Path | str | None], *, existing: Existing) -> Path:
    """Where a shard of the stage in the folder `to` works, in which nothing may lie that is `read`."""
    refuse_reading(to, *read)
    if existing != "resume" and (to / MANIFEST).is_file():
        raise StllavaError(
            f"the shards in {to} are gathered already",
            expected="a folder whose shards are still at work",
            remedy="Name another folder, or delete that one.",
        )
    return to / SHARDS / shard.folder


def begin_shard(
    name: str,
    to: Path,
    options: Options,
    *,
    inputs: Mapping[str, str],
    existing: Existing,
    items: str = "",
    shard: Shard | None,
) -> "Stage":
    """Begin the stage of the folder `to`, or one shard of it, or go on with that."""
    if shard is None:
        return Stage(name, to, options, inputs=inputs, existing=existing, items=items)
    folder, plan = to / SHARDS / shard.folder, {**inputs, SHARD: str(shard)}
    stage = Stage(name, folder, options, inputs=plan, existing=existing, items=items, shard=shard)
    if stage.manifest is None:
        write_whole(folder / CALL, noted_call().model_dump_json(indent=1) + "\n")
    return stage


def without(config: Mapping[str, JsonValue], names: Collection[str]) -> dict[str, JsonValue]:
    """Options without those of these names; `part.name` is the option `name` of the options `part`."""
    kept = {name: value for name, value in config.items() if name not in names}
    for name, value in kept.items():
        if isinstance(value, dict):
            kept[name] = {inner: given for inner, given in value.items() if f"{name}.{inner}" not in names}
    return kept


def is_paid_for(entry: Path) -> bool:
    """Whether a file or folder holds nothing but what servers were sent and replied."""
    if entry.name in (AUDIT, EXCHANGES):
        return True
    if entry.is_symlink() or not entry.is_dir():
        return False
    empty = True
    with os.scandir(entry) as entries:  # Not listed whole: a folder may hold a million images, and the first one settles it.
        for inner in entries:
            if not is_paid_for(entry / inner.name):
                return False
            empty = False
    return not empty


def remove_unpaid(entry: Path) -> None:
    """Remove a file or folder but for what servers were sent and replied in it."""
    if entry.name in (AUDIT, EXCHANGES):
        return
    if not entry.is_dir() or entry.is_symlink():
        entry.unlink()
        return
    for inner in list(entry.iterdir()):
        remove_unpaid(inner)
    if not any(entry.iterdir()):
        entry.rmdir()


class _MadeBy(TypedDict):
    """What a manifest says of the process that wrote it."""

    versions: dict[str, str]
    commit: str
    started: str
    seconds: float


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
        shard: Shard | None = None,
    ) -> None:
        """Begin the stage in the folder `to`, or go on with it.

        Options and inputs are settled by the first finished chunk; the input `items`, of which chunks are cut, by the
        manifest. A folder of stages has no chunks: each settles its own, and options that `may_change` are never settled
        (`part.name` is the option `name` of `part`).
        Of a `shard` the folder is its own.
        """
        self.shard = shard
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
        kept = (path for path in (to / PARTS).rglob("*") if not path.name.startswith("."))
        settled = finished is not None or any(path.is_file() for path in kept)
        change = None
        if begun is not None and not (holds_stages and may_change and begun.stage == name and finished is None):
            change = self._change(begun, plan, may_change=may_change, items="" if finished is not None else items)
        if change is not None and (settled or holds_stages):
            raise ConflictError(
                f"{to} holds the output of other options or inputs: {change}",
                expected="the same work",
                remedy="Name another folder, go back to what it was, or replace what is there (--existing replace).",
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
                plan = read_formatted(self.to / PLAN, Plan)
            except StllavaError as error:
                plan = error
        if (self.to / MANIFEST).is_file():
            finished = read_manifest(self.to)
            made = Plan(stage=finished.stage, config=finished.config, inputs=finished.inputs)
            if plan != made:
                write_whole(self.to / PLAN, made.model_dump_json(indent=1) + "\n")
            return made, finished
        if isinstance(plan, FormatError):
            raise plan
        if isinstance(plan, StllavaError):
            raise StllavaError(
                f"{self.to / PLAN} is damaged, and nothing else says what was begun there",
                expected="the file as stllava wrote it",
                remedy="Restore it, name another folder, or begin again (--existing replace).",
            ) from plan
        if plan is None and (self.to / SHARDS).is_dir():
            raise StllavaError(
                f"{self.to} holds shards of a stage that nobody has gathered",
                expected="shards that are gathered, or a new folder",
                remedy=f"Finish them with `stllava gather {self.to}`, or name another folder.",
            )
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
        for record_type, file in kinds:
            try:
                made = read_record(file, record_type).stage if file.is_file() else self.name
            except StllavaError:
                continue  # It is damaged, which is what replacing is for.
            if made != self.name:
                raise ConflictError(
                    f"{self.to} holds the output of the stage {made}, not of {self.name}",
                    expected="output of this stage to replace",
                    remedy="Name another folder, or delete that one yourself.",
                )

    def _entries(self) -> list[Path]:
        """What lies in the folder, but for what belongs to no output, such as the draft that a kill left."""
        entries = self.to.iterdir() if self.to.is_dir() else ()
        return [entry for entry in entries if not (entry.name == LOCK or is_paid_for(entry) or entry.match(DRAFTS))]

    def _clear(self) -> None:
        """Remove what was made, the plan last: without it the folder would be nobody's. What was paid for stays, for it may be
        asked for again."""
        for entry in sorted(self._entries(), key=lambda entry: (entry.name == PLAN, entry.name != MANIFEST)):
            remove_unpaid(entry)

    def _change(self, old: Plan, new: Plan, *, may_change: Collection[str], items: str) -> str | None:
        """The first difference of two plans in words, but for what may differ; None where there is none."""
        if old.stage != new.stage:
            return f"it is of the stage {old.stage}, not of {new.stage}"
        try:
            options = type(self._options).model_validate(old.config).resume_key()
        except ValidationError:
            options = old.config

        def bound(plan: Plan, config: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
            kept = without(config, may_change)
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
        work: ChunkWork[I, O],
        *,
        record_type: type[O],
        size: int,
        unit: str,
        max_bad: float,
        remedy: str = "Look at the example.",
    ) -> MappedChunks[O]:
        """Run `work` over fixed chunks of the items and keep each result on disk as it is made (`store/chunked.py`).

        A shard works on its own chunks alone and ends here: its manifest is in the result. More than `max_bad` of faults end
        the stage, and so does a policy of which nothing can be used; `remedy` is then what to do.
        """
        mapped = map_chunks(
            items,
            work,
            to=self.to,
            name=self.name,
            shard=self.shard,
            record_type=record_type,
            size=size,
            unit=unit,
            max_bad=max_bad,
            remedy=remedy,
        )
        if self.shard is None:
            return mapped
        manifest = self.finish_shard(
            mapped.paths, counts_in=mapped.items, counts_out=mapped.count, dropped=mapped.dropped, device=mapped.device
        )
        return replace(mapped, manifest=manifest)

    def write_records(self, name: str, records: Iterable[Record]) -> int:
        """Write `<name>.jsonl`, holding one record at a time, and return how many there are."""
        count = 0

        def lines() -> Iterator[bytes]:
            nonlocal count
            for record in records:
                count += 1
                yield f"{record.model_dump_json()}\n".encode()

        write_whole(self.to / f"{name}.jsonl", lines())
        return count

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
        image_root: Path | None = None,
        files: Sequence[Path] | None = None,
    ) -> Manifest:
        """Write the manifest: from here on the output is whole. It names `files`, or all there are in the folder."""
        kept, aside = {PLAN, LOCK, MANIFEST, AUDIT}, (f"{PARTS}/", f"{EXCHANGES}/", f"{SHARDS}/")
        if files is None:
            files = sorted(path for path in self.to.rglob("*") if path.is_file() and not path.name.startswith("."))
        names = {path: path.relative_to(self.to).as_posix() for path in files}
        self.manifest = self._write_manifest(
            Manifest(
                stage=self.name,
                config=self.config,
                inputs=self.inputs,
                outputs={
                    name: file_hash(path) for path, name in names.items() if name not in kept and not name.startswith(aside)
                },
                counts_in=counts_in,
                counts_out=counts_out,
                dropped=dict(sorted((dropped or {}).items())),
                measures=dict(measures or {}),
                curves=dict(curves or {}),
                notes=tuple(notes),
                device=device,
                image_root=_noted(image_root, self.to) if image_root is not None else None,
                **self._made_by(),
            )
        )
        shutil.rmtree(self.to / PARTS, ignore_errors=True)
        return self.manifest

    def finish_shard(
        self,
        parts: Iterable[Path],
        *,
        counts_in: int,
        counts_out: int,
        dropped: Mapping[str, int],
        measures: Mapping[str, float] | None = None,
        device: str = "cpu",
    ) -> Manifest:
        """Write the manifest of a shard, whose output is its parts: they stay, and `stllava gather` reads them."""
        self.manifest = self._write_manifest(
            Manifest(
                stage=self.name,
                config=self.config,
                inputs=self.inputs,
                outputs={path.relative_to(self.to).as_posix(): file_hash(path) for path in parts},
                counts_in=counts_in,
                counts_out=counts_out,
                dropped=dict(sorted(dropped.items())),
                measures=dict(measures or {}),
                device=device,
                **self._made_by(),
            )
        )
        return self.manifest

    def _made_by(self) -> _MadeBy:
        """What the manifest says of the process that finishes the stage."""
        seconds = round(time.monotonic() - self._clock, 3)
        return {"versions": versions(), "commit": commit(), "started": self.started, "seconds": seconds}

    def move_image_root(self, image_root: Path) -> None:
        """Note where the images of a finished stage lie now."""
        noted = _noted(image_root, self.to)
        if self.manifest is not None and self.manifest.image_root != noted:
            self.manifest = self._write_manifest(self.manifest.model_copy(update={"image_root": noted}))

    def _write_manifest(self, manifest: Manifest) -> Manifest:
        """Write a manifest with the digest by which a damaged one is told."""
        manifest = manifest.model_copy(update={"digest": digest_of(manifest.model_dump_json())})
        write_whole(self.to / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
        return manifest


def _noted(image_root: Path, folder: Path) -> str:
    """An image root as the manifest in `folder` names it: a run may be moved, and is read from any working directory."""
    root, here = image_root.absolute(), folder.absolute()
    return root.relative_to(here).as_posix() if root.is_relative_to(here) else root.as_posix()


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
