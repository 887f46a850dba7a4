"""Brings a run's data into one form: conversations, images to ask about, validation, benchmarks, references.

    from stllava.data.prepare import prepare
    data = prepare(options.data, seed=0, to=Path("run/data"))

Reads the options of phantoms, the VQA-RAD folder, an imported image set or your own files. Writes `conversations.jsonl`,
`captions.jsonl`, `images.jsonl`, `validation.jsonl`, one `<benchmark>.jsonl` each, what the expert may know
(`truths.jsonl` for phantoms, `references.jsonl` for other data), what tells images apart (`fingerprints.jsonl`), what training
has of the benchmarks (`overlaps.jsonl`) and the manifest. Images stay where they are; phantoms are drawn into `images/`.
"""

import difflib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stllava.config import Data, FilesData, ImportedData, PhantomData, VqaRadData
from stllava.data.benchmarks import vqa_rad_files
from stllava.data.folder import images_in
from stllava.data.gather import Gathered, gather_files, gather_imported, gather_phantoms, gather_vqa_rad
from stllava.data.overlap import describe, find_overlap, fingerprint_rows, refuse, training_items
from stllava.errors import StllavaError
from stllava.records import Manifest, Overlap, content_id
from stllava.store import MANIFEST, Existing, Stage, file_hash, locked, output_hash, read_records, write_whole

_NAMED = 5
_TAKEN = frozenset({"conversations", "captions", "images", "validation", "references", "truths", "overlaps", "fingerprints"})


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
    _check_paths(options)
    with locked(to):
        _benchmark_names(options)
        inputs = _inputs(options, seed=seed)
        if existing != "replace" and (to / MANIFEST).is_file():
            stage = Stage("data", to, options, inputs=inputs, existing=existing)
            if stage.manifest is not None:
                _refuse_overlap(read_records(to, "overlaps", Overlap), allow_overlap=allow_overlap)
                stage.move_image_root(image_root_of(options, to))
                return _data_set(options, to, stage.manifest)
        if isinstance(options, PhantomData):
            stage = Stage("data", to, options, inputs=inputs, existing=existing)
            gathered = gather_phantoms(options, seed=seed, to=to)
        elif isinstance(options, VqaRadData):
            gathered = gather_vqa_rad(options, seed=seed, max_bad=max_bad)
        elif isinstance(options, ImportedData):
            gathered = gather_imported(options, seed=seed, max_bad=max_bad)
        else:
            gathered = gather_files(options, max_bad=max_bad)
        overlaps = _overlaps(gathered)
        _refuse_overlap(overlaps, allow_overlap=allow_overlap)
        if not isinstance(options, PhantomData):
            stage = Stage("data", to, options, inputs=inputs, existing=existing)
            _write(stage, gathered)
        stage.write_records("overlaps", overlaps)
        stage.write_records("fingerprints", fingerprint_rows(gathered.fingerprints))
        manifest = stage.finish(
            counts_in=gathered.read,
            counts_out=gathered.read - gathered.dropped.total(),
            dropped=gathered.dropped,
            measures=_measures(gathered),
            notes=[*gathered.notes, *_overlap_notes(overlaps, standard=isinstance(options, VqaRadData))],
            image_root=image_root_of(options, to),
        )
        return _data_set(options, to, manifest)


def _check_paths(options: Data) -> None:
    """Refuse a path that leads nowhere by the key that names it, before anything is read."""
    if isinstance(options, PhantomData):
        return
    folders = {"images": options.images} if isinstance(options, FilesData) else {"folder": options.folder}
    files: dict[str, Path | None] = {}
    if isinstance(options, FilesData):
        files |= {"conversations": options.conversations, "validation": options.validation, "references": options.references}
        files |= {"captions": options.captions, **{f"benchmarks.{name}": path for name, path in options.benchmarks.items()}}
    elif isinstance(options, ImportedData):
        files["labels"] = options.labels
    for key, folder in folders.items():
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise _astray(key, folder, what=what, expected="a folder")
    if isinstance(options, FilesData) and options.unlabelled is not None:
        places = (options.images / options.unlabelled, options.unlabelled)
        if not any(place.exists() for place in places):
            raise StllavaError(
                f"data.unlabelled names {options.unlabelled}; there is neither {' nor '.join(map(str, dict.fromkeys(places)))}",
                expected="a folder inside data.images, or a list of images (a path a line, CSV or JSON)",
                remedy="Check data.unlabelled, or leave it out to ask about all images that are not held out.",
            )
    for key, path in files.items():
        if path is not None and not path.is_file():
            inside = sorted(entry.name for entry in path.iterdir())[:_NAMED] if path.is_dir() else []
            what = f"is a folder (in it: {', '.join(inside) or 'nothing'})" if path.is_dir() else "does not exist"
            raise _astray(key, path, what=what, expected="a file")


def _astray(key: str, path: Path, *, what: str, expected: str) -> StllavaError:
    looked = path.absolute().parent
    there = sorted(entry.name for entry in looked.iterdir()) if looked.is_dir() else None
    near = difflib.get_close_matches(path.name, there or (), n=1)
    where = "" if path.is_absolute() else f" (looked for in {looked})"
    remedy = "Check data." + key + (f": did you mean {near[0]!r}?" if near and near[0] != path.name else ".")
    return StllavaError(
        f"data.{key} names {path}, which {what}{where}",
        expected=expected,
        remedy=remedy if there is not None else f"{remedy} There is no folder {looked}.",
    )


def _benchmark_names(options: Data) -> tuple[str, ...]:
    if not isinstance(options, FilesData):
        return (options.kind,)
    for name in options.benchmarks:
        if name in _TAKEN or not name.replace("-", "").replace("_", "").isalnum():
            raise StllavaError(
                f"a benchmark is named {name!r}",
                expected=f"letters, digits, - and _, and none of {', '.join(sorted(_TAKEN))}",
                remedy="Give it another name in data.benchmarks.",
            )
    return tuple(options.benchmarks)


def _inputs(options: Data, *, seed: int) -> dict[str, str]:
    """What decides the data set beside its options: the seed, the files' hashes, the names of the images."""
    inputs = {"seed": str(seed)}
    if isinstance(options, VqaRadData):
        inputs |= {split: file_hash(path) for split, path in vqa_rad_files(options.folder, split=options.split).items()}
    elif isinstance(options, ImportedData):
        inputs["set"] = output_hash(options.folder)
        inputs |= {"labels": file_hash(options.labels)} if options.labels is not None else {}
    elif isinstance(options, FilesData):
        files = {"conversations": options.conversations, "validation": options.validation}
        files |= {f"benchmark {name}": path for name, path in options.benchmarks.items()}
        optional = {"references": options.references, "captions": options.captions}
        files |= {name: path for name, path in optional.items() if path is not None}
        inputs |= {name: file_hash(path) for name, path in files.items()}
        inputs["unlabelled"] = content_id([image.path for image in images_in(options.images, options.unlabelled)])
    return inputs


def _data_set(options: Data, to: Path, manifest: Manifest) -> DataSet:
    names = _benchmark_names(options)
    truth = to / ("truths.jsonl" if isinstance(options, PhantomData) else "references.jsonl")
    return DataSet(
        image_root=image_root_of(options, to),
        conversations=to / "conversations.jsonl",
        captions=to / "captions.jsonl" if manifest.measures.get("captions") else None,
        images=to / "images.jsonl",
        validation=to / "validation.jsonl",
        benchmarks={name: to / f"{name}.jsonl" for name in names},
        candidates={name: to / _candidates(name) for name in names if _candidates(name) in manifest.outputs},
        overlaps=to / "overlaps.jsonl",
        fingerprints=to / "fingerprints.jsonl",
        truth=truth if truth.name in manifest.outputs else None,
        notes=manifest.notes,
        manifest=manifest,
    )


def image_root_of(options: Data, to: Path) -> Path:
    """The folder that the image paths of the data set in `to` are relative to."""
    if isinstance(options, PhantomData):
        return to / "images"
    return options.images if isinstance(options, FilesData) else options.folder


def _write(stage: Stage, gathered: Gathered) -> None:
    stage.write_records("conversations", gathered.conversations)
    stage.write_records("captions", gathered.captions)
    stage.write_records("images", gathered.images)
    stage.write_records("validation", gathered.validation)
    for name, samples in gathered.benchmarks.items():
        stage.write_records(name, samples)
    for name, answers in gathered.candidates.items():
        write_whole(stage.to / _candidates(name), json.dumps(answers, ensure_ascii=False, indent=0) + "\n")
    if gathered.references is not None:
        stage.write_records("references", gathered.references)


def _candidates(benchmark: str) -> str:
    return f"{benchmark}-candidates.json"


def _measures(gathered: Gathered) -> dict[str, float]:
    """Counts by name; a set's shared images are those that the training side has too, told by content."""
    measures: dict[str, float] = {
        "conversations": len(gathered.conversations),
        "captions": len(gathered.captions),
        "labelled_images": len({path for row in gathered.conversations for path in row.images}),
        "unlabelled_images": len(gathered.images),
        "references": len(gathered.references or ()),
    }
    for name, rows in {"validation": gathered.validation, **gathered.benchmarks}.items():
        kinds, images = Counter(row.kind for row in rows), {row.image for row in rows}
        measures |= {f"{name}_open": kinds["open"], f"{name}_closed": kinds["closed"], f"{name}_images": len(images)}
    return measures


def _overlaps(gathered: Gathered) -> list[Overlap]:
    """What the training side has seen of validation and, the validation split included, of every benchmark."""
    learned, fingerprints = gathered.learned(), gathered.fingerprints
    chosen = learned | {"validation": [item for row in gathered.validation for item in training_items(row)]}
    found = [
        find_overlap(
            "validation", gathered.validation, fingerprints=fingerprints, learned=learned, learned_fingerprints=fingerprints
        )
    ]
    for name, rows in gathered.benchmarks.items():
        found.append(find_overlap(name, rows, fingerprints=fingerprints, learned=chosen, learned_fingerprints=fingerprints))
    return found


def _refuse_overlap(overlaps: Sequence[Overlap], *, allow_overlap: bool) -> None:
    for overlap in overlaps:
        if overlap.serious and overlap.benchmark != "validation" and not allow_overlap:
            refuse(overlap)


def _overlap_notes(overlaps: Sequence[Overlap], *, standard: bool) -> list[str]:
    notes: list[str] = []
    for overlap in overlaps:
        if not overlap.serious:
            continue
        first, *others = describe(overlap)
        if overlap.benchmark == "validation":
            notes.append(f"{first} The choice of a round is less sure.")
        else:
            why = "This is the standard split." if standard else "It was allowed by allow_overlap."
            notes += [f"{first} {why}", *others]
    return notes
