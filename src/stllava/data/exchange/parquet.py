"""Writes preferences as a parquet file that `datasets` reads as it is, in the columns of TRL's DPO for vision models.

Of the images it holds either the pixels or, under `image_sha256`, by which file each is known: never a path.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from stllava.data.exchange.outgoing import trl_row
from stllava.errors import ItemError, StllavaError
from stllava.records import Preference

TRAIN = "train.parquet"
"""The file of a data set's pairs."""
ROWS = 100
"""Rows of a group, so that a page of the hub shows some without reading all; no more are held."""
_KEPT = 16
"""Images of which several pairs are, one behind the other."""


def write_parquet(
    pairs: Iterable[tuple[str, Preference]], *, to: Path, images: Path, encode: Callable[[str], bytes] | None
) -> int:
    """Write pairs, each with the name of its round; returns how many.

    Args:
        pairs: The round and the pair.
        to: The file.
        images: What the paths of the images are relative to.
        encode: Makes of such a path the bytes that stand in the file; None where only hashes of the image files do.

    Raises:
        StllavaError: Where an image cannot be read, or the library datasets is not installed.
    """
    try:
        import datasets  # type: ignore[import-untyped]
        from pyarrow import Table  # type: ignore[import-untyped]
        from pyarrow.parquet import ParquetWriter  # type: ignore[import-untyped]
    except ImportError:
        raise StllavaError(
            "the library datasets is not installed",
            expected="datasets, which says how images stand in a parquet file",
            remedy="Run: pip install 'stllava[hub]'",
        ) from None
    text = datasets.Value("string")
    turns = datasets.List({"role": text, "content": datasets.List({"type": text, "text": text})})
    shown = {"image_sha256": datasets.List(text)} if encode is None else {"images": datasets.List(datasets.Image())}
    columns = {
        "prompt": turns,
        "chosen": turns,
        "rejected": turns,
        "margin": datasets.Value("float64"),
        "round": text,
        "id": text,
    }
    schema = datasets.Features(shown | columns).arrow_schema
    written, draft = 0, to.with_name(f".{to.name}")
    rows = _rows(pairs, images, encode)
    with ParquetWriter(draft, schema) as writer:
        while group := list(islice(rows, ROWS)):
            writer.write_table(Table.from_pylist(group, schema=schema))
            written += len(group)
    draft.replace(to)
    return written


def parquet_texts(path: Path) -> Iterator[str]:
    """All that a parquet file says in words: its columns' names and notes, then each text of each row."""
    from pyarrow.parquet import ParquetFile

    file: Any = ParquetFile(path)
    yield str(file.schema_arrow.to_string(show_schema_metadata=True, truncate_metadata=False))
    columns = [name for name in file.schema_arrow.names if name != "images"]
    for batch in file.iter_batches(ROWS, columns=columns):
        yield from _texts(batch.to_pylist())


def _texts(value: object) -> Iterator[str]:
    """Every text in nested lists and columns, as it stands."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _rows(
    pairs: Iterable[tuple[str, Preference]], images: Path, encode: Callable[[str], bytes] | None
) -> Iterator[Mapping[str, object]]:
    @lru_cache(_KEPT)
    def seen(path: str) -> str | dict[str, bytes | None]:
        try:
            if encode is not None:
                return {"bytes": encode(path), "path": None}
            return hashlib.sha256((images / path).read_bytes()).hexdigest()
        except (ItemError, OSError) as error:
            raise StllavaError(
                f"an image of the pairs cannot be read: {error}",
                expected=f"every image of the run below {images}",
                remedy="Put it back there, and give the same command again.",
            ) from error

    for name, pair in pairs:
        told = {key: value for key, value in trl_row(pair, None).items() if key != "images"}
        shown = {"image_sha256" if encode is None else "images": [seen(path) for path in pair.images]}
        yield shown | told | {"round": name}
