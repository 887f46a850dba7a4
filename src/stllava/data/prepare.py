"""Brings a run's data into one form: conversations, images to ask about, validation, benchmarks, references.

    from stllava.data.prepare import prepare
    data = prepare(options.data, seed=0, to=Path("run/data"))

Takes the options of any source in `data.sources`. Writes `conversations.jsonl`, `captions.jsonl`, `images.jsonl`,
`validation.jsonl`, one `<benchmark>.jsonl` each, what the expert may know (`truths.jsonl` or `references.jsonl`), what tells
images apart (`fingerprints.jsonl`), what training has of the benchmarks (`overlaps.jsonl`) and the manifest. Images stay
where they are; a source that has no image files, because it draws or unpacks them, writes them into `images/`.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stllava.data.overlap import describe, find_overlap, fingerprint_rows, refuse, training_items
from stllava.data.sources import Data, source_of
from stllava.data.sources.source import SourceData
from stllava.records import Manifest, Overlap
from stllava.store import MANIFEST, Existing, Stage, locked, read_records, write_whole


@dataclass(frozen=True)
class DataSet:
    """A run's data on disk, whole and checked."""

    image_root: Path
    """What every image path is relative to."""
    conversations: Path
    """JSONL of `Conversation`: what sft learns from."""
    captions: Path | None
    """JSONL of `Conversation`: what the alignment stage learns from; None where there are none."""
    images: Path
    """JSONL of `Image`: what the policy asks itself about."""
    validation: Path
    """JSONL of `Sample`: what chooses the best round."""
    benchmarks: dict[str, Path]
    """JSONL of `Sample` by name: what measures it."""
    candidates: dict[str, Path]
    """JSON list of the answers that the published open accuracy chooses from, by benchmark, where they are known."""
    overlaps: Path
    """JSONL of `Overlap`: what the data that training starts from has of validation and of each benchmark."""
    fingerprints: Path
    """JSONL of `FingerprintRow`: what tells its images from others."""
    truth: Path | None
    """JSONL of what the expert may know: `Truth` of the unlabelled phantoms, else reference `Sample`s; None without."""
    notes: tuple[str, ...]
    """What a reader of the results must know of the data."""
    manifest: Manifest
    """Counts and causes."""


def prepare(
    options: Data,
    *,
    seed: int,
    to: Path,
    allow_overlap: bool = False,
    max_bad: float = 0.05,
    existing: Existing = "resume",
) -> DataSet:
    """Write the data set into `to`, or return the one that is there.

    Benchmark images among the training images are refused unless `allow_overlap`, and unusable images or rows when
    they are more than the share `max_bad`. Your input is read and checked before anything is written, so that a mistake
    in it can be put right without another folder.
    """
    source = source_of(options)
    source.check(options)
    root = source.image_root(options, to)
    with locked(to):
        inputs = {"seed": str(seed), **source.inputs(options)}
        if existing != "replace" and (to / MANIFEST).is_file():
            stage = Stage("data", to, options, inputs=inputs, existing=existing)
            if stage.manifest is not None:
                _refuse_overlap(read_records(to, "overlaps", Overlap), allow_overlap=allow_overlap)
                stage.move_image_root(root)
                return _data_set(root, to, stage.manifest)
        begun: list[Stage] = []

        def begin() -> Path:
            begun.append(Stage("data", to, options, inputs=inputs, existing=existing))
            return root

        data = source.read(options, seed=seed, max_bad=max_bad, begin=begin)
        overlaps = _overlaps(data)
        _refuse_overlap(overlaps, allow_overlap=allow_overlap)
        if not begun:
            begin()
        (stage,) = begun
        _write(stage, data)
        stage.write_records("overlaps", overlaps)
        stage.write_records("fingerprints", fingerprint_rows(data.fingerprints))
        manifest = stage.finish(
            counts_in=data.read,
            counts_out=data.read - data.dropped.total(),
            dropped=data.dropped,
            measures=_measures(data),
            notes=[*data.notes, *_overlap_notes(overlaps, reason=data.overlap_reason)],
            image_root=root,
        )
        return _data_set(root, to, manifest)


def _data_set(root: Path, to: Path, manifest: Manifest) -> DataSet:
    names = _benchmarks(manifest)
    known = [to / name for name in ("truths.jsonl", "references.jsonl") if name in manifest.outputs]
    return DataSet(
        image_root=root,
        conversations=to / "conversations.jsonl",
        captions=to / "captions.jsonl" if manifest.measures.get("captions") else None,
        images=to / "images.jsonl",
        validation=to / "validation.jsonl",
        benchmarks={name: to / f"{name}.jsonl" for name in names},
        candidates={name: to / _candidates(name) for name in names if _candidates(name) in manifest.outputs},
        overlaps=to / "overlaps.jsonl",
        fingerprints=to / "fingerprints.jsonl",
        truth=known[0] if known else None,
        notes=manifest.notes,
        manifest=manifest,
    )


def _benchmarks(manifest: Manifest) -> list[str]:
    """The benchmarks of a data set in their order: whatever is counted as one and has a file."""
    names = [key.removesuffix("_images") for key in manifest.measures if key.endswith("_images")]
    return [name for name in names if name != "validation" and f"{name}.jsonl" in manifest.outputs]


def _write(stage: Stage, data: SourceData) -> None:
    stage.write_records("conversations", data.conversations)
    stage.write_records("images", data.images)
    stage.write_records("validation", data.validation)
    for name, samples in data.benchmarks.items():
        stage.write_records(name, samples)
    for name, answers in data.candidates.items():
        write_whole(stage.to / _candidates(name), json.dumps(answers, ensure_ascii=False, indent=0) + "\n")
    for name, records in (("captions", data.captions), ("references", data.references), ("truths", data.truths)):
        if records is not None:
            stage.write_records(name, records)


def _candidates(benchmark: str) -> str:
    return f"{benchmark}-candidates.json"


def _measures(data: SourceData) -> dict[str, float]:
    """Counts by name; a set's shared images are those that the training side has too, told by content."""
    measures: dict[str, float] = {
        "conversations": len(data.conversations),
        "captions": len(data.captions or ()),
        "labelled_images": len({path for row in data.conversations for path in row.images}),
        "unlabelled_images": len(data.images),
        "references": len(data.references or ()),
    }
    for name, rows in {"validation": data.validation, **data.benchmarks}.items():
        kinds, images = Counter(row.kind for row in rows), {row.image for row in rows}
        measures |= {f"{name}_open": kinds["open"], f"{name}_closed": kinds["closed"], f"{name}_images": len(images)}
    return measures


def _overlaps(data: SourceData) -> list[Overlap]:
    """What the training side has seen of validation and, the validation split included, of every benchmark."""
    learned, fingerprints = data.learned(), data.fingerprints
    chosen = learned | {"validation": [item for row in data.validation for item in training_items(row)]}
    found = [
        find_overlap(
            "validation", data.validation, fingerprints=fingerprints, learned=learned, learned_fingerprints=fingerprints
        )
    ]
    for name, rows in data.benchmarks.items():
        found.append(find_overlap(name, rows, fingerprints=fingerprints, learned=chosen, learned_fingerprints=fingerprints))
    return found


def _refuse_overlap(overlaps: Sequence[Overlap], *, allow_overlap: bool) -> None:
    for overlap in overlaps:
        if overlap.serious and overlap.benchmark != "validation" and not allow_overlap:
            refuse(overlap)


def _overlap_notes(overlaps: Sequence[Overlap], *, reason: str) -> list[str]:
    notes: list[str] = []
    for overlap in overlaps:
        if not overlap.serious:
            continue
        first, *others = describe(overlap)
        if overlap.benchmark == "validation":
            notes.append(f"{first} The choice of a round is less sure.")
        else:
            notes += [f"{first} {reason}", *others]
    return notes
