"""Imports a benchmark: the stage that turns published files into `Sample` records that every other stage reads.

    from stllava.data.benchmarks import import_benchmark
    import_benchmark("vqa-rad", "hub:flaviagiammarino/vqa-rad", to=Path("benchmarks/vqa-rad"))

Reads a local folder or file, or fetches `hub:owner/name` into `<to>-hub` beside its output. Writes `<name>-<split>.jsonl`,
`candidates.json`, the images that were inside parquet files below images/, and the manifest. Other images stay where
they are.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from stllava.config import Options
from stllava.data.benchmarks.benchmark import Benchmark, read_benchmark, usable_rows
from stllava.data.benchmarks.hub import HUB, fetch, unpack
from stllava.data.benchmarks.slake import Language
from stllava.store import Existing, Stage, file_hash, locked, write_whole


class ImportOptions(Options):
    """What is imported."""

    runtime_only: ClassVar[frozenset[str]] = frozenset({"source"})
    name: str
    """A benchmark that is known, or a name for your own file."""
    source: str
    """A folder, your own file (CSV, TSV or JSON), or hub:owner/name."""
    language: Language = "en"
    """Which of SLAKE's questions."""
    allow_changed: bool = False
    """Take files that differ from the published ones, and say so."""
    splits: tuple[str, ...] | None = None
    """Which splits; all that are there when not named."""


def import_benchmark(
    name: str,
    source: str | Path,
    *,
    to: Path,
    language: Language = "en",
    allow_changed: bool = False,
    splits: Sequence[str] | None = None,
    existing: Existing = "resume",
) -> Benchmark:
    """Write the benchmark into `to`, unless it is there, and return it: its `root` is what image paths are relative to.

    The files are read and compared before anything is written.

    Args:
        name: vqa-rad, slake, pathvqa, pmc-vqa or omnimedvqa; any other name is that of your own file.
        source: Its folder, hub:owner/name where there is a network, or your own file.
        to: Folder for the samples, one JSONL a split.
        language: Which of SLAKE's questions.
        allow_changed: Take files that differ from the published ones; the notes say so.
        splits: Which splits; all that are there where None.
        existing: What to do with output that is there: resume it, replace it, or end in an error.

    Raises:
        StllavaError: Where files are missing, are not the published ones, or too many rows cannot be used.
    """
    options = ImportOptions(
        name=name,
        source=str(source),
        language=language,
        allow_changed=allow_changed,
        splits=None if splits is None else tuple(splits),
    )
    with locked(to, source):
        folder = fetch(options.source, to=to.with_name(f"{to.name}-hub")) if options.source.startswith(HUB) else Path(source)
        read = read_benchmark(name, folder.resolve(), language=language, allow_changed=allow_changed, splits=splits)
        inputs = {f"split {split}": content for split, content in read.hashes.items()}
        inputs |= {path.relative_to(read.root).as_posix(): file_hash(path) for path in read.files}
        stage = Stage("import", to, options, inputs=inputs, existing=existing)
        if read.packed:
            unpack(read.files, {row.image for rows in read.splits.values() for row in rows}, to=to)
            usable = usable_rows(name, read.splits, root=to)
            dropped = dict(Counter(read.dropped) + usable.dropped)
            notes = (*read.notes, *usable.notes)
            read = replace(read, root=to.resolve(), splits=usable.splits, dropped=dropped, notes=notes, packed=False)
        if stage.manifest is None:
            _write(stage, read)
        return read


def _write(stage: Stage, read: Benchmark) -> None:
    measures: dict[str, float] = {"candidates": len(read.candidates)}
    for split, rows in read.splits.items():
        stage.write_records(f"{read.name}-{split}", rows)
        kinds = Counter(row.kind for row in rows)
        measures |= {f"{split}_open": kinds["open"], f"{split}_closed": kinds["closed"]}
        measures[f"{split}_images"] = len({row.image for row in rows})
    write_whole(stage.to / "candidates.json", json.dumps(read.candidates, ensure_ascii=False, indent=0) + "\n")
    kept, dropped = sum(map(len, read.splits.values())), sum(read.dropped.values())
    stage.finish(
        counts_in=kept + dropped,
        counts_out=kept,
        dropped=read.dropped,
        measures=measures,
        notes=[f"Image paths are relative to {read.root}.", *read.notes],
    )
