"""Makes the whole of a stage whose shards are all there: `stllava gather FOLDER`.

Reads the shards below the folder, or where they are said to lie; writes what the stage would have written without shards,
byte for byte, but for when it began and how long it took. Nothing is computed again: chunks are linked into the folder, the
stage is called as its shards were, and finds all of its work done. Give it in the folder where the shards' commands were given,
because relative paths start there.
"""

import inspect
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from pydantic import JsonValue, ValidationError

from stllava.config import Options
from stllava.data.image_set import DEEP_FOLDER
from stllava.errors import ConflictError, StllavaError
from stllava.intake.run import SharedLists, take_private_lists
from stllava.records import Manifest
from stllava.stages.results import StageResult
from stllava.store import (
    AUDIT,
    CALL,
    EXCHANGES,
    LOCK,
    MANIFEST,
    PARTS,
    PLAN,
    SHARD,
    SHARDS,
    Gathered,
    Plan,
    Shard,
    StageCall,
    first_difference,
    first_loss,
    from_shards,
    locked,
    planned_shard,
    read_formatted,
    read_manifest,
    read_record,
    remove_folder,
    write_whole,
)

STAGES: Mapping[str, str] = {
    "ask": "stllava.stages.ask:ask",
    "answer": "stllava.stages.answer:answer",
    "judge": "stllava.stages.judge:judge",
    "evaluate": "stllava.stages.evaluate:evaluate",
    "predict": "stllava.stages.predict:predict",
    "import-images": "stllava.intake.run:import_images",
}
"""The functions that take shards, by the name of their stage."""
IMAGES = ("images", DEEP_FOLDER)
"""Where an import keeps its pictures, and their 16-bit pixels."""


@dataclass(frozen=True)
class ShardFolder:
    """A shard as it lies on disk."""

    path: Path
    """Its folder."""
    shard: Shard
    """Which one it is."""
    plan: Plan
    """What it makes; without which shard of it."""

    @property
    def name(self) -> str:
        """What it is called in errors."""
        return f"shard {self.shard} ({self.path})"


def gather(to: Path, *, shards: Sequence[Path] = ()) -> Manifest:
    """Write the output and the manifest of a stage whose shards are all done.

    Args:
        to: Folder of the stage, as its shards were given it.
        shards: Folders of the shards, where they do not lie in `to`; these are left as they are, while those that lie there
            are removed at the end. Of a folder `shards` that is a link, the link alone is removed.

    Raises:
        StllavaError: Where a shard is missing, unfinished, damaged, there twice, or of other work; it is named. Of shards that
            are of other work than what is finished in `to`, it is a ConflictError.
    """
    if (to / MANIFEST).is_file():
        return _finished(to, shards)
    found = read_shards(to, shards)
    function = _function(found[0].plan.stage)
    plan = _same_work(found, function)
    _require_all(found)
    arguments = _arguments(found[0], function)
    noted = SharedLists()
    with locked(to):
        _begin(to, plan, function)
        taken = [pair for one in found for pair in _take(one.path, to)]
        for name in (AUDIT, *sorted({f"{EXCHANGES}/{log.name}" for one in found for log in (one.path / EXCHANGES).glob("*")})):
            _join_logs([one.path / name for one in found], to / name)
        salt, source = arguments.get("salt"), arguments.get("source")
        if isinstance(salt, Path) and isinstance(source, Path):
            of = [one.shard for one in found]
            noted = take_private_lists(of, source=source, to=to, salt=salt, fingerprint=plan.inputs["files"])
    try:
        with from_shards(Gathered(measures=read_manifest(found[0].path).measures, listed=noted.joined)):
            made = function(**arguments, to=to)
    except StllavaError:
        _return_faulty(taken)
        raise
    if not (shards or (to / SHARDS).is_symlink()):
        # Not before: a gather that is killed and given again finds them.
        for path in noted.spare:
            path.unlink(missing_ok=True)
    if (to / SHARDS).is_symlink():
        (to / SHARDS).unlink()  # The shards lie elsewhere, and are left there.
    else:
        remove_folder(to / SHARDS)
    if isinstance(made, StageResult):
        return made.manifest
    return read_manifest(to)


def read_shards(to: Path, shards: Sequence[Path]) -> list[ShardFolder]:
    """The shards of a stage in the order of their numbers."""
    folders = shards or (sorted((to / SHARDS).iterdir()) if (to / SHARDS).is_dir() else [])
    found: list[ShardFolder] = []
    for folder in folders:
        if not (folder / PLAN).is_file() and (folder / LOCK).is_file():
            raise StllavaError(
                f"the shard in {folder} has not begun, or is only starting",
                expected="a shard that is done",
                remedy="Wait for its command to end, or give it again.",
            )
        if not (folder / PLAN).is_file():
            raise StllavaError(
                f"{folder} has no {PLAN}", expected="the folder of a shard", remedy="Remove it from there, or name another."
            )
        plan = read_formatted(folder / PLAN, Plan)
        shard = planned_shard(folder, plan.inputs)
        whole = {name: value for name, value in plan.inputs.items() if name != SHARD}
        found.append(ShardFolder(folder, shard, plan.model_copy(update={"inputs": whole})))
    if not found:
        raise StllavaError(
            f"no shards in {to / SHARDS}",
            expected="what `--shard i/n` wrote there",
            remedy="Check the path, or name the shards' folders with --shards.",
        )
    return sorted(found, key=lambda one: one.shard.number)


def _finished(to: Path, shards: Sequence[Path]) -> Manifest:
    """The manifest of a stage that is whole already, once the shards that are given, or lie there, are known to be of it."""
    manifest = read_manifest(to)
    begun = shards or [folder for folder in (to / SHARDS).glob("*") if (folder / PLAN).is_file()]
    if not begun:
        return manifest
    made = Plan(stage=manifest.stage, config=manifest.config, inputs=manifest.inputs)
    for one in read_shards(to, begun):
        if one.plan.stage != made.stage:
            how = f"it is of the stage {one.plan.stage}, not of {made.stage}"
        else:
            function = _function(made.stage)
            before, now = _bound(made, function, of=str(to)), _bound(one.plan, function, of=one.name)
            if before == now:
                continue
            how = first_difference(before, now)
        raise ConflictError(
            f"{to} is finished, and {one.name} is of other work: {how}",
            expected="shards of what is finished there",
            remedy="Name another folder to gather them in, or remove those shards.",
        )
    return manifest


def _arguments(shard: ShardFolder, function: Callable[..., object]) -> dict[str, object]:
    """How the stage of a shard was called."""
    path = shard.path / CALL
    if not path.is_file():
        found = "is gone"
    else:
        try:
            return read_record(path, StageCall).read(function)
        except (StllavaError, ValidationError, LookupError) as error:
            found = f"does not say how {function.__name__} is called: {_said(error)}"
    raise StllavaError(
        f"{path} {found}",
        expected=f"the file as the command of {shard.name} wrote it",
        remedy="Give that command again: it writes the file, and does again what is lost alone.",
    )


def _said(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return f"{error.args[0]!r} is no argument of it" if isinstance(error, LookupError) else "it is damaged"


def _function(stage: str) -> Callable[..., object]:
    """The function that makes a stage."""
    if stage not in STAGES:
        raise StllavaError(f"shards of the stage {stage}", expected=f"one of {', '.join(STAGES)}", remedy="Update stllava.")
    module, _, name = STAGES[stage].partition(":")
    function: Callable[..., object] = getattr(import_module(module), name)
    return function


def _bound(plan: Plan, function: Callable[..., object], *, of: str) -> dict[str, JsonValue]:
    """All that decides what comes of a plan, which is `of` a shard or of a folder."""
    kind = inspect.signature(function, eval_str=True).parameters["options"].annotation
    try:
        options = kind.model_validate(plan.config)
    except ValidationError as error:
        raise StllavaError(
            f"{of} has options that are none of this version: {_said(error)}",
            expected=f"the options of {plan.stage}",
            remedy="Gather it with the version of stllava that began it, or give its command again (with --existing replace).",
        ) from None
    if not isinstance(options, Options):
        raise TypeError(f"the options of {plan.stage} are {kind}")
    return {"stage": plan.stage, "config": options.resume_key(), "inputs": dict(plan.inputs)}


def _same_work(found: Sequence[ShardFolder], function: Callable[..., object]) -> Plan:
    """The plan that all shards are of; one that is of another is named, with what is different about it."""
    works = [
        (one.shard.count, _bound(one.plan, function, of=one.name) if one.plan.stage == found[0].plan.stage else None)
        for one in found
    ]
    votes = Counter(map(repr, works))
    usual = max(range(len(found)), key=lambda index: votes[repr(works[index])])
    for one, (count, work) in zip(found, works, strict=True):
        if (count, work) == works[usual]:
            continue
        if work is None or works[usual][1] is None:
            how = f"it is of the stage {one.plan.stage}, and others are of {found[usual].plan.stage}"
        elif work != works[usual][1]:
            how = first_difference(works[usual][1], work)
        else:
            how = f"it is one of {count}, and others are of {works[usual][0]}"
        raise ConflictError(
            f"{one.name} is of other work than {found[usual].name}: {how}",
            expected="shards of one stage, with the same options and inputs",
            remedy="Give the command of that shard again as the others', or remove its folder.",
        )
    return found[usual].plan


def _require_all(found: Sequence[ShardFolder]) -> None:
    """Refuse shards of which one is there twice, missing, unfinished or damaged."""
    by_number: dict[int, ShardFolder] = {}
    for one in found:
        if one.shard.number in by_number:
            raise StllavaError(
                f"{one.name} is there twice: {by_number[one.shard.number].path} is the same shard",
                expected="each shard once",
                remedy="Remove one of them.",
            )
        by_number[one.shard.number] = one
    count = found[0].shard.count
    missing = [f"{number}/{count}" for number in range(1, count + 1) if number not in by_number]
    if missing:
        raise StllavaError(
            f"of {count} shards {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing",
            expected="all of them",
            remedy="Give their commands (--shard), or name their folders with --shards.",
        )
    for one in found:
        if not (one.path / MANIFEST).is_file():
            raise StllavaError(
                f"{one.name} is not finished",
                expected="its manifest",
                remedy="Give its command again: it goes on where it was.",
            )
        lost = first_loss(one.path, read_manifest(one.path))
        if lost is not None:
            raise StllavaError(
                f"{one.name} is not as it was written: {lost}",
                expected="its chunks",
                remedy="Give its command again, which makes what is lost.",
            )


def _begin(to: Path, plan: Plan, function: Callable[..., object]) -> None:
    """Say in the folder what is made there, if nobody has."""
    if (to / PLAN).is_file():
        begun = read_formatted(to / PLAN, Plan)
        if begun.stage != plan.stage:
            raise ConflictError(
                f"{to} was begun as the stage {begun.stage}, and its shards are of {plan.stage}",
                expected="the same work",
                remedy="Name another folder, or delete what was begun there.",
            )
        before, now = (_bound(each, function, of=str(to)) for each in (begun, plan))
        if before != now:
            raise ConflictError(
                f"{to} was begun with other options or inputs than its shards: {first_difference(before, now)}",
                expected="the same work",
                remedy="Delete what was begun there, or the shards.",
            )
        return
    write_whole(to / PLAN, plan.model_dump_json(indent=1) + "\n")


def _take(shard: Path, to: Path) -> Iterator[tuple[Path, Path]]:
    """Put a shard's chunks and pictures into the stage's folder without copying where the disk can; gives both places."""
    chunks = list((shard / PARTS).glob("*.jsonl"))
    pictures = [
        path for folder in IMAGES for path in (shard / folder).rglob("*") if path.is_file() and not path.name.startswith(".")
    ]
    for path in (*pictures, *chunks):
        place = to / path.relative_to(shard)
        if not (place.is_file() and place.samefile(path)):
            place.parent.mkdir(parents=True, exist_ok=True)
            draft = place.with_name(f".{place.name}.{os.getpid()}.draft")
            draft.unlink(missing_ok=True)  # In a container, the gather that was killed may have had the same number.
            try:
                draft.hardlink_to(path)
            except OSError:  # The shard lies on another disk, or on one that knows no links.
                shutil.copyfile(path, draft)
            draft.replace(place)
        yield path, place


def _join_logs(logs: Sequence[Path], to: Path) -> None:
    """Join the shards' logs, in their order, behind what stands in `to` and in none of them."""
    given = [log for log in logs if log.is_file()]
    if not given:
        return
    lines = {line for log in given for line in log.read_bytes().splitlines(keepends=True)}
    before = [line for line in to.read_bytes().splitlines(keepends=True) if line not in lines] if to.is_file() else []
    write_whole(to, (*before, *(log.read_bytes() for log in given)))


def _return_faulty(taken: Sequence[tuple[Path, Path]]) -> None:
    """Of chunks that the stage has thrown away, so that they are made again, throw the shards' away too."""
    for path, place in taken:
        if path.parent.name == PARTS and not place.is_file():
            path.unlink(missing_ok=True)
            (path.parent.parent / MANIFEST).unlink(missing_ok=True)
