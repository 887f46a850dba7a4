"""What was begun in a stage's folder: the same work, which is gone on with, or another's, which is refused or replaced."""

import json
import logging
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

from pydantic import JsonValue, ValidationError

from stllava.config import Options
from stllava.errors import ConflictError, FormatError, StllavaError
from stllava.records import Manifest
from stllava.store.jsonl import read_record
from stllava.store.manifests import Plan, first_loss, read_formatted, read_manifest, write_plan
from stllava.store.names import AUDIT, DRAFTS, EXCHANGES, LOCK, MANIFEST, PARTS, PLAN, SHARDS

logger = logging.getLogger(__name__)

Existing = Literal["resume", "replace", "error"]
"""What to do when the output is already there, whole or in part."""


def take_up(
    to: Path, options: Options, plan: Plan, *, existing: Existing, items: str, may_change: Collection[str]
) -> Manifest | None:
    """Go on with what was begun in the folder `to`, or begin; the manifest where all of it is done.

    Args:
        to: The folder.
        options: The stage's options.
        plan: What is to be made there.
        existing: What to do with what is there.
        items: The input of which chunks are cut, which may change until the manifest is there.
        may_change: Options that are never settled (`part.name` is the option `name` of `part`).

    Raises:
        StllavaError: Something else is there, or something that is not to be touched.
    """
    if existing == "replace" and ((to / PLAN).is_file() or (to / MANIFEST).is_file()):
        _refuse_others(to, plan.stage)
        _clear(to)
    begun, finished = _begun(to)
    if begun is not None and existing == "error":
        raise StllavaError(f"{to} has output already", expected="a new folder", remedy="Set existing to resume or replace.")
    holds_stages = begun is not None and any((entry / PLAN).is_file() for entry in _entries(to))
    kept = (path for path in (to / PARTS).rglob("*") if not path.name.startswith("."))
    settled = finished is not None or any(path.is_file() for path in kept)
    change = None
    if begun is not None and not (holds_stages and may_change and begun.stage == plan.stage and finished is None):
        change = _change(begun, plan, options, may_change=may_change, items="" if finished is not None else items)
    if change is not None and (settled or holds_stages):
        raise ConflictError(
            f"{to} holds the output of other options or inputs: {change}",
            expected="the same work",
            remedy="Name another folder, go back to what it was, or replace what is there (--existing replace).",
        )
    if change is not None:
        _clear(to)
    if finished is not None and _is_whole(to, finished):
        # What is finished stays so while more is added to it.
        return finished if not may_change or finished.config == plan.config else None
    (to / MANIFEST).unlink(missing_ok=True)
    for draft in to.glob(DRAFTS) if may_change else to.rglob(DRAFTS):
        draft.unlink()
    if plan != begun:
        write_plan(to, plan)
    return None


def _begun(to: Path) -> tuple[Plan | None, Manifest | None]:
    """What was begun in the folder and what was finished; a folder of other files is refused.

    A manifest says all that a plan says, and is told when it is damaged: where there is one, the plan follows it.
    """
    plan: Plan | StllavaError | None = None
    if (to / PLAN).is_file():
        try:
            plan = read_formatted(to / PLAN, Plan)
        except StllavaError as error:
            plan = error
    if (to / MANIFEST).is_file():
        finished = read_manifest(to)
        made = Plan(stage=finished.stage, config=finished.config, inputs=finished.inputs)
        if plan != made:
            write_plan(to, made)
        return made, finished
    if isinstance(plan, FormatError):
        raise plan
    if isinstance(plan, StllavaError):
        raise StllavaError(
            f"{to / PLAN} is damaged, and nothing else says what was begun there",
            expected="the file as stllava wrote it",
            remedy="Restore it, name another folder, or begin again (--existing replace).",
        ) from plan
    if plan is None and (to / SHARDS).is_dir():
        raise StllavaError(
            f"{to} holds shards of a stage that nobody has gathered",
            expected="shards that are gathered, or a new folder",
            remedy=f"Finish them with `stllava gather {to}`, or name another folder.",
        )
    if plan is None and (other := _entries(to)):
        raise StllavaError(
            f"{to} holds files that are not of stllava, such as {other[0].name}, and no {PLAN}",
            expected="an empty or new folder, or one that this stage has begun",
            remedy="Name another folder.",
        )
    return plan, None


def _refuse_others(to: Path, name: str) -> None:
    """Refuse to replace what another stage than `name` made: a run, or a paid judge, would be gone by a slip of the hand."""
    kinds: tuple[tuple[type[Manifest] | type[Plan], Path], ...] = ((Manifest, to / MANIFEST), (Plan, to / PLAN))
    for record_type, file in kinds:
        try:
            made = read_record(file, record_type).stage if file.is_file() else name
        except StllavaError:
            continue  # It is damaged, which is what replacing is for.
        if made != name:
            raise ConflictError(
                f"{to} holds the output of the stage {made}, not of {name}",
                expected="output of this stage to replace",
                remedy="Name another folder, or delete that one yourself.",
            )


def _entries(to: Path) -> list[Path]:
    """What lies in the folder, but for what belongs to no output, such as the draft that a kill left."""
    entries = to.iterdir() if to.is_dir() else ()
    return [entry for entry in entries if not (entry.name == LOCK or _is_paid_for(entry) or entry.match(DRAFTS))]


def _clear(to: Path) -> None:
    """Remove what was made, the plan last: without it the folder would be nobody's. What was paid for stays, for it may be
    asked for again."""
    for entry in sorted(_entries(to), key=lambda entry: (entry.name == PLAN, entry.name != MANIFEST)):
        _remove_unpaid(entry)


def _change(old: Plan, new: Plan, given: Options, *, may_change: Collection[str], items: str) -> str | None:
    """The first difference of two plans in words, but for what may differ; None where there is none."""
    if old.stage != new.stage:
        return f"it is of the stage {old.stage}, not of {new.stage}"
    try:
        options = type(given).model_validate(old.config).resume_key()
    except ValidationError:
        options = old.config

    def bound(plan: Plan, config: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        kept = _without(config, may_change)
        inputs: dict[str, JsonValue] = {name: value for name, value in plan.inputs.items() if name != items}
        return {"config": kept, "inputs": inputs}

    before, now = bound(old, options), bound(new, given.resume_key())
    return None if before == now else first_difference(before, now)


def _is_whole(to: Path, manifest: Manifest) -> bool:
    """Whether every output is there as it was written."""
    lost = first_loss(to, manifest)
    if lost is not None:
        logger.warning("%s since %s was finished, which is therefore done again.", lost, manifest.stage)
    return lost is None


def _without(config: Mapping[str, JsonValue], names: Collection[str]) -> dict[str, JsonValue]:
    """Options without those of these names; `part.name` is the option `name` of the options `part`."""
    kept = {name: value for name, value in config.items() if name not in names}
    for name, value in kept.items():
        if isinstance(value, dict):
            kept[name] = {inner: given for inner, given in value.items() if f"{name}.{inner}" not in names}
    return kept


def _is_paid_for(entry: Path) -> bool:
    """Whether a file or folder holds nothing but what servers were sent and replied."""
    if entry.name in (AUDIT, EXCHANGES):
        return True
    if entry.is_symlink() or not entry.is_dir():
        return False
    empty = True
    with os.scandir(entry) as entries:  # Not listed whole: a folder may hold a million images, and the first one settles it.
        for inner in entries:
            if not _is_paid_for(entry / inner.name):
                return False
            empty = False
    return not empty


def _remove_unpaid(entry: Path) -> None:
    """Remove a file or folder but for what servers were sent and replied in it."""
    if entry.name in (AUDIT, EXCHANGES):
        return
    if not entry.is_dir() or entry.is_symlink():
        entry.unlink()
        return
    for inner in list(entry.iterdir()):
        _remove_unpaid(inner)
    if not any(entry.iterdir()):
        entry.rmdir()


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
