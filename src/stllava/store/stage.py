"""A stage's folder from plan to manifest: what is written there chunk by chunk, and what it says once it is whole."""

import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict, TypeVar

from pydantic import JsonValue

from stllava.config import Options
from stllava.errors import StllavaError
from stllava.records import Keyed, Manifest, Record
from stllava.store.begun import Existing, take_up
from stllava.store.chunked import ChunkWork, MappedChunks, map_chunks
from stllava.store.disk import file_hash, write_whole
from stllava.store.lock import locked, refuse_reading
from stllava.store.manifests import Plan, commit, digest_of, versions, write_plan
from stllava.store.names import AUDIT, CALL, EXCHANGES, LOCK, MANIFEST, PARTS, PLAN, SHARDS
from stllava.store.shards import SHARD, Shard, noted_call

I = TypeVar("I", bound=Keyed)  # noqa: E741
O = TypeVar("O", bound=Record)  # noqa: E741


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
    called = (noted_call().model_dump_json(indent=1) + "\n").encode()
    if not (folder / CALL).is_file() or (folder / CALL).read_bytes() != called:
        write_whole(folder / CALL, called)  # Of a finished shard too: it may have been lost or damaged since.
    return stage


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
        self.name, self.to = name, to
        self.config: dict[str, JsonValue] = config.model_dump(mode="json")
        self.inputs = dict(inputs)
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self._clock = time.monotonic()
        self._plan = Plan(stage=name, config=self.config, inputs=self.inputs)
        self.manifest = take_up(to, config, self._plan, existing=existing, items=items, may_change=may_change)

    def write_plan(self) -> None:
        """Say in the folder what is being made there."""
        write_plan(self.to, self._plan)

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
