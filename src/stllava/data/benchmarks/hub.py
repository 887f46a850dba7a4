"""Reads benchmarks as the Hugging Face hub keeps them: parquet files, one image inside each row.

`[data/]<split>-*.parquet` with the columns image {bytes, path}, question and answer. No column tells open from closed: a
question answered yes or no is closed. An image is named by the hash of its bytes. Needs pyarrow, and a network to fetch.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from stllava.data.benchmarks.rows import Found, Row, checked, samples_of, told_kind
from stllava.errors import StllavaError
from stllava.store import write_whole

HUB = "hub:"
IMAGES = "images"
_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_AT_ONCE = 64


class _Picture(BaseModel):
    """An encoded image file."""

    model_config = ConfigDict(extra="ignore")
    content: bytes | None = Field(default=None, alias="bytes")


class _HubRow(BaseModel):
    """The columns that are used."""

    model_config = ConfigDict(extra="ignore")
    image: _Picture | None
    question: str
    answer: str


def hub_files(folder: Path) -> dict[Path, str]:
    """The parquet files of a folder, or of data/ inside it, with their splits."""
    found = sorted(folder.glob("data/*.parquet")) or sorted(folder.glob("*.parquet"))
    splits = {path: _SPLITS.get(path.name.split("-")[0].removesuffix(".parquet")) for path in found}
    return {path: split for path, split in splits.items() if split is not None}


def read_hub(name: str, folder: Path, *, note: str) -> Found:
    """Every split of a benchmark in parquet; the images stay packed until `unpack` writes them."""
    rows: dict[str, list[Row]] = {}
    files = hub_files(folder)
    for path, split in files.items():
        for row in _questions(path):
            image, targets = _path(row.image), (row.answer.strip(),)
            rows.setdefault(split, []).append(Row(image, row.question.strip(), targets, told_kind(targets)))
    splits = {split: samples_of(name, split, some) for split, some in rows.items()}
    return Found("hub", splits, tuple(files), packed=True, notes=(note,))


def unpack(files: Iterable[Path], wanted: set[str], *, to: Path) -> None:
    """Write the wanted images of parquet files below `to`; those that are there already stay."""
    for path in files:
        for row in _questions(path):
            name = _path(row.image)
            if name in wanted and row.image and row.image.content and not (to / name).is_file():
                write_whole(to / name, row.image.content)


def fetch(source: str, *, to: Path) -> Path:
    """Download the data set `hub:owner/name` into a folder, whose files are then there for good."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source.removeprefix(HUB), repo_type="dataset", local_dir=to))
    except (OSError, ValueError) as error:
        raise StllavaError(
            f"{source} cannot be fetched: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            expected="hub:owner/name of a data set, and a network (HF_HUB_OFFLINE not set)",
            remedy="Fetch it on a machine with a network, copy the folder here, and name that folder.",
        ) from error


def _path(picture: _Picture | None) -> str:
    if picture is None or not picture.content:
        return ""
    suffix = ".png" if picture.content.startswith(b"\x89PNG") else ".jpg"
    return f"{IMAGES}/{hashlib.sha256(picture.content).hexdigest()[:16]}{suffix}"


def _questions(path: Path) -> Iterator[_HubRow]:
    """The rows of a parquet file, a few in memory at a time."""
    try:
        from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]
    except ImportError:
        raise StllavaError(
            f"{path} is parquet, and pyarrow is not installed", expected="pyarrow", remedy="Run: pip install 'stllava[hub]'"
        ) from None
    columns = list(_HubRow.model_fields)
    try:
        with parquet.ParquetFile(path) as file:
            lacking = [name for name in columns if name not in file.schema_arrow.names]
            if lacking:
                raise StllavaError(
                    f"{path} has no column {', '.join(lacking)}",
                    expected=f"the columns {', '.join(columns)}",
                    remedy="Check that it is the benchmark that you mean.",
                )
            number = 0
            for batch in file.iter_batches(batch_size=_AT_ONCE, columns=columns):
                for raw in batch.to_pylist():
                    number += 1
                    yield checked(path, number, raw, _HubRow)
    except (ArrowException, OSError) as error:
        raise StllavaError(f"{path}: {error}", expected="a whole parquet file", remedy="Fetch that file again.") from error
