"""A run whose stages name a patient, and all that each tracker keeps of it: field by field, down to numbers and words."""

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from stllava.config import JudgeOptions
from stllava.data.sources import PhantomData
from stllava.dropped import Dropped
from stllava.recipe import RunOptions
from stllava.records import Difference, Outcome, Score
from stllava.rundir import RunDir
from stllava.store import Stage, write_whole
from stllava.tracking.trackers import Tool

PLANTED = "mueller"
PACKAGES: Mapping[Tool, str] = {"trackio": "trackio", "wandb": "wandb", "tensorboard": "tensorboard", "mlflow": "mlflow"}
Field = tuple[str, object]
"""Where a value stands, and the value."""


def write_run(to: Path, *, stages: Sequence[str] = ("judge", "dpo")) -> Path:
    """A run with records, causes, notes and options that name a patient; returns its folder."""
    Stage(
        "run",
        to,
        RunOptions(name="trial", data=PhantomData(), seed=3),
        inputs={"images": f"/data/{PLANTED}"},
        existing="resume",
    ).write_plan()
    if "judge" in stages:
        judge = Stage("judge", to / "round-1" / "judge", JudgeOptions(), inputs={PLANTED: PLANTED}, existing="resume")
        write_whole(judge.to / "judgments.jsonl", json.dumps({"image": f"{PLANTED}.png", "question": PLANTED}) + "\n")
        dropped = Dropped({"unread reply": 2, f"Hans^{PLANTED}": 1})
        measures = {"verdicts": 6, "cost": 0.25}
        judge.finish(counts_in=9, counts_out=6, dropped=dropped, measures=measures, notes=[f"{PLANTED} was here"])
    if "dpo" in stages:
        dpo = Stage("dpo", to / "round-1" / "dpo", JudgeOptions(), inputs={}, existing="resume")
        dpo.finish(counts_in=6, counts_out=6, dropped=Dropped(), curves={"loss": [(1, 0.7), (2, 0.5)]})
    return to


def write_outcome(run: Path) -> None:
    """What a run came to, in words that name a patient."""
    kind, bounds = {"benchmark": "test", "metric": "closed_accuracy", "n": 4}, {"low": 0.25, "high": 0.75}
    made = Outcome(
        name="trial",
        policies=("sft", "round-1"),
        baselines=(),
        best="round-1",
        sentences=(PLANTED,),
        notes=(PLANTED,),
        scores=tuple(Score.model_validate({"policy": policy, "value": 0.5, **kind, **bounds}) for policy in ("sft", "round-1")),
        differences=(
            Difference.model_validate({"policy": "round-1", "against": "sft", "value": 0.1, **kind, "low": 0.0, "high": 0.2}),
        ),
        overlaps=(),
    )
    write_whole(RunDir(run).outcome, made.model_dump_json())


def keep_trackio_in(place: Path, tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trackio, where it is the tool, keep its database in a place of the test's."""
    if tool == "trackio":
        trackio = import_module("trackio")
        monkeypatch.setattr(trackio, "TRACKIO_DIR", place)
        monkeypatch.setattr(trackio.sqlite_storage, "TRACKIO_DIR", place)


def in_json(where: str, text: str | bytes) -> Iterator[Field]:
    """The values of a text in JSON, by the place of each; of another text the text."""
    try:
        value: object = json.loads(text)
    except ValueError:
        yield where, text if isinstance(text, str) else text.decode("utf-8", "replace")
        return
    yield from _inside(where, value)


def _inside(where: str, value: object) -> Iterator[Field]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield where, key
            yield from _inside(where, inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _inside(where, inner)
    elif value is not None:
        yield where, value


def in_database(path: Path) -> Iterator[Field]:
    """Every value of an SQLite file, by table and column."""
    with sqlite3.connect(path) as database:
        for (table,) in database.execute("select name from sqlite_master where type = 'table'").fetchall():
            rows = database.execute(f'select * from "{table}"')
            columns = [column[0] for column in rows.description]
            for row in rows.fetchall():
                for column, value in zip(columns, row, strict=True):
                    if isinstance(value, str | bytes):
                        yield from in_json(f"{table}.{column}", value)
                    elif value is not None:
                        yield f"{table}.{column}", value


def in_message(message: Any, where: str = "") -> Iterator[Field]:
    """Every value of a protocol buffer, by the names of its fields."""
    for field, value in message.ListFields():
        name = f"{where}.{field.name}" if where else field.name
        several = value if field.is_repeated else [value]
        for one in several:
            if field.message_type is not None:
                yield from in_message(one, name)
            elif isinstance(one, str | bytes):
                yield from in_json(name, one)
            else:
                yield name, one


def in_events(folder: Path) -> Iterator[Field]:
    """Every value of TensorBoard's event files, and of their names."""
    loader = import_module("tensorboard.backend.event_processing.event_file_loader")
    for path in sorted(folder.rglob("events.*")):
        for word in path.name.split("."):
            yield "name of the file", word
        for event in loader.LegacyEventFileLoader(str(path)).Load():
            yield from in_message(event)


BLOCK, HEAD = 32768, 7
"""Bytes of a block of a W&B file, which is a log as LevelDB writes them, and of what stands before each piece."""


def wandb_records(path: Path) -> Iterator[bytes]:
    """The records of a W&B file, put together of their pieces."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    at, record = HEAD, b""
    while at + HEAD <= len(data):
        if (left := BLOCK - at % BLOCK) < HEAD:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + HEAD : at + HEAD + length]
        at += HEAD + length
        if kind in (1, 4):  # A whole one, or the last piece.
            yield record
            record = b""


def in_wandb(folder: Path) -> Iterator[Field]:
    """Every value of a W&B folder that `wandb sync` would send: its records, and the files that lie beside them."""
    record = import_module("wandb.proto.wandb_internal_pb2").Record
    (path,) = folder.glob("run-*.wandb")
    for data in wandb_records(path):
        yield from in_message(record.FromString(data))
    for file in sorted((folder / "files").rglob("*")):
        yield "files", file.name


def kept(tool: Tool, run: Path, place: Path) -> list[Field]:
    """All that a tracker keeps of a run: below `track/` of it, or, of trackio, in `place`."""
    if tool == "tensorboard":
        return list(in_events(run / "track"))
    if tool == "wandb":
        return [field for folder in sorted((run / "track" / "wandb").glob("offline-run-*")) for field in in_wandb(folder)]
    files = [run / "track" / "mlflow.db"] if tool == "mlflow" else sorted(place.rglob("*.db"))
    return [field for file in files for field in in_database(file)]
