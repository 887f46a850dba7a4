"""Any data set in the Hugging Face form as a source: by its name on the hub, or a folder or parquet file of one.

The training split is carved by the run's seed; a test split, where one is named, is measured as the benchmark `hub`. Images
inside the rows are written into the run's data folder as they are, each once. Read by the library `datasets`, which has run
no code of a data set since 4.0; it is fetched from the hub only where the name is that of no file here.
"""

import difflib
import math
from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PositiveInt, ValidationInfo, model_validator

from stllava.config import Options
from stllava.data.benchmarks.rows import Row, samples_of, told_kind
from stllava.data.sources.source import SourceData, SourceOptions, register, require_file, require_folder
from stllava.data.sources.training_split import carve
from stllava.errors import ItemError, StllavaError
from stllava.records import Sample, content_id
from stllava.store import file_hash, write_whole

_AT_ONCE = 64
_SHOWN = 80
"""Characters of a path that an error shows."""
_SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8": ".jpg", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp", b"II*\0": ".tif"}


def _from_recipe(name: str, info: ValidationInfo) -> str:
    """The whole path of a data set in the recipe's folder, where there is one of that name; else the name as it is."""
    folder: Path | None = (info.context or {}).get("folder")
    path = Path(name).expanduser() if folder is None else folder / Path(name).expanduser()
    return str(path.absolute()) if name and path.exists() else name


class HubColumns(Options):
    """Which column holds what."""

    image: str = "image"
    """Images: encoded in the rows, or paths inside the data set's folder."""
    question: str = "question"
    """Questions."""
    answer: str = "answer"
    """Answers: a text, or a list of texts any of which is right."""


class HubSplits(Options):
    """Which split is for what."""

    train: Annotated[str, Field(min_length=1)] = "train"
    """The split whose images are labelled, held out for validation and asked about."""
    test: str | None = None
    """The split that measures; none when absent."""

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if self.train == self.test:
            raise ValueError("another split for test than for train: what was learned measures nothing")
        return self


class HubData(SourceOptions):
    """A data set in the Hugging Face form: by its name on the hub, or a folder or parquet file of one."""

    runtime_only = frozenset({"dataset"})

    kind: Literal["hub"]
    """A data set in the Hugging Face form."""
    dataset: Annotated[str, Field(min_length=1), AfterValidator(_from_recipe)]
    """owner/name on the hub, or a folder or parquet file."""
    configuration: str | None = None
    """Which of the data set's configurations, where it has several."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    columns: HubColumns = HubColumns()
    """Which column holds what."""
    splits: HubSplits = HubSplits()
    """Which split is for what."""
    labelled: PositiveInt | Literal["all"] = 60
    """Training images whose questions and answers sft sees; all: every one, and none is left to ask about."""
    validation: PositiveInt = 30
    """Training images held out to choose the best round."""


class HubDataset:
    """Reads it through `datasets`."""

    def check(self, options: HubData) -> None:
        """A path leads somewhere; what may be a name on the hub is left to the hub."""
        path = Path(options.dataset)
        if path.suffix == ".parquet":
            require_file("dataset", path)
        elif path.is_absolute() or options.dataset.startswith((".", "~")) or len(path.parts) > 2:
            require_folder("dataset", path)

    def inputs(self, options: HubData) -> dict[str, str]:
        """All files of a data set that lies here; of one on the hub its name."""
        path = Path(options.dataset)
        if not path.exists():
            return {"dataset": options.dataset}
        if path.is_file():
            return {"dataset": file_hash(path)}
        files = {file.relative_to(path): file for file in path.rglob("*") if file.is_file()}
        shown = sorted(name for name in files if not any(part.startswith(".") for part in name.parts))
        return {"dataset": content_id([[name.as_posix(), file_hash(files[name])] for name in shown])}

    def read(self, options: HubData, *, seed: int, max_bad: float, begin: Callable[[], Path]) -> SourceData:
        """Carve the training split; rows that cannot be used are counted, and too many of them refused."""
        splits = _load(options)
        parts = {"train": options.splits.train, "test": options.splits.test}
        tables = {part: _split(options, splits, name, part=part) for part, name in parts.items() if name is not None}
        folder = _image_folder(options)
        dropped: Counter[str] = Counter()
        samples = {part: _samples(options, table, part, folder, dropped, max_bad=max_bad) for part, table in tables.items()}
        for part, rows in samples.items():
            if not rows:
                raise StllavaError(
                    f"no row of the split {parts[part]} of {options.dataset} can be used",
                    expected="at least one",
                    remedy=f"Set data.splits.{part} to another split, or name other columns (data.columns).",
                )
        root = begin()
        wanted = {row.image for rows in samples.values() for row in rows}
        for table in tables.values():
            for raw in _rows(options, table):
                try:
                    name, content = _image(raw["image"], folder)
                except ItemError:
                    continue  # Counted above.
                if name in wanted and not (root / name).is_file():
                    write_whole(root / name, content)
        data = carve(
            options.kind,
            samples["train"],
            samples.get("test", []),
            title=f"The split {options.splits.train}",
            root=root,
            labelled=options.labelled,
            validation=options.validation,
            seed=seed,
            max_bad=max_bad,
        )
        data.read += dropped.total()
        data.dropped += dropped
        return data

    def image_root(self, options: HubData, to: Path) -> Path:
        """Where images are unpacked."""
        return to / "images"

    def describe(self, options: HubData) -> str:
        """The name of a public one; where one lies here is nobody's business."""
        if Path(options.dataset).is_absolute():
            return "A data set of the maker's own."
        return f"The data set {options.dataset} of the Hugging Face hub."


def _load(options: HubData) -> dict[str, Any]:
    """Every split by its name, as a data set of `datasets`."""
    try:
        import datasets  # type: ignore[import-untyped]
    except ImportError:
        raise StllavaError(
            "data.kind is hub, and the library datasets is not installed",
            expected="datasets",
            remedy="Run: pip install 'stllava[hub]'",
        ) from None
    path, configuration = Path(options.dataset), options.configuration
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            found = datasets.load_from_disk(str(path))
        elif path.is_file():
            found = datasets.load_dataset("parquet", data_files={options.splits.train: str(path)})
        else:
            found = datasets.load_dataset(options.dataset, configuration, revision=options.revision)
    except Exception as error:
        said = " ".join(str(error.__cause__ or error).split())
        raise StllavaError(
            f"data.dataset names {options.dataset}, which cannot be read: {type(error).__name__}: {said}",
            expected="owner/name of a data set on the hub, or a folder or parquet file that is here",
            remedy="Check data.dataset and data.configuration; without a network, name a folder that was fetched before.",
        ) from error
    return dict(found) if isinstance(found, dict) else {options.splits.train: found}


def _split(options: HubData, splits: dict[str, Any], name: str, *, part: str) -> Any:
    """One split, which has the columns that are named."""
    if name not in splits:
        near = difflib.get_close_matches(name, splits, n=1)
        raise StllavaError(
            f"{options.dataset} has no split {name!r}; it has {', '.join(splits)}",
            expected="a split that there is",
            remedy=f"Set data.splits.{part}{f': did you mean {near[0]!r}?' if near else ' to one of them.'}",
        )
    if not len(splits[name]):
        raise StllavaError(
            f"the split {name} of {options.dataset} has no rows",
            expected="at least one",
            remedy=f"Set data.splits.{part} to another split.",
        )
    there = list(splits[name].features)
    for what, column in options.columns.model_dump().items():
        if column not in there:
            near = difflib.get_close_matches(column, there, n=1)
            raise StllavaError(
                f"the split {name} of {options.dataset} has no column {column!r}; it has {', '.join(there)}",
                expected="columns of images, questions and answers",
                remedy=f"Set data.columns.{what}{f': did you mean {near[0]!r}?' if near else ' to one that holds them.'}",
            )
    return splits[name]


def _image_folder(options: HubData) -> Path:
    """Where an image may lie that is not inside its row: in the data set's folder, or in what was fetched of the hub."""
    path = Path(options.dataset)
    if path.exists():
        return (path if path.is_dir() else path.parent).resolve()
    from datasets import config

    return Path(config.HF_CACHE_HOME).resolve()


def _rows(options: HubData, table: Any) -> Iterator[dict[str, Any]]:
    """The three cells of every row by what they hold; images stay encoded."""
    columns = options.columns.model_dump()
    named = {what: _label_names(table.features[column]) for what, column in columns.items()}
    raw = table.select_columns(list(dict.fromkeys(columns.values()))).with_format("arrow")
    for batch in raw.iter(batch_size=_AT_ONCE):
        for row in batch.to_pylist():
            yield {what: _labelled(row[column], named[what]) for what, column in columns.items()}


def _label_names(feature: Any) -> list[str] | None:
    """The names of a column of class labels, or of lists of them."""
    inner = getattr(feature, "feature", feature)
    names: list[str] | None = getattr(inner, "names", None)
    return names


def _labelled(cell: Any, names: list[str] | None) -> Any:
    """A cell with the names of its labels; one that is not known is -1."""
    if names is None:
        return cell
    if isinstance(cell, list):
        return [_labelled(part, names) for part in cell]
    return names[cell] if cell is not None and cell >= 0 else None


def _samples(
    options: HubData, table: Any, split: str, folder: Path, dropped: Counter[str], *, max_bad: float
) -> tuple[Sample, ...]:
    """The rows that have an image, a question and an answer; the others are counted by cause."""
    rows: list[Row] = []
    bad: Counter[str] = Counter()
    first = ""
    for number, raw in enumerate(_rows(options, table), 1):
        try:
            answers = raw["answer"] if isinstance(raw["answer"], list) else [raw["answer"]]
            targets = tuple(_text(answer) for answer in answers if not _is_empty(answer)) or (_text(None),)
            rows.append(Row(_image(raw["image"], folder)[0], _text(raw["question"]), targets, told_kind(targets)))
        except ItemError as error:
            bad[error.cause] += 1
            first = first or f"row {number}: {error}"
    count = bad.total() + len(rows)
    if bad.total() > max_bad * count:
        causes = ", ".join(f"{number} × {cause}" for cause, number in sorted(bad.items()))
        raise StllavaError(
            f"{bad.total()} of {count} rows of the split {split} of {options.dataset} cannot be used: {causes} ({first})",
            expected=f"at most {max_bad:.0%}",
            remedy="Name other columns (data.columns), fix these rows, or raise max_bad.",
        )
    dropped.update(bad)
    return samples_of(options.kind, split, rows)


def _is_empty(cell: object) -> bool:
    """Whether a cell says nothing: pandas, for one, writes nan where there was nothing."""
    if isinstance(cell, float):
        return not math.isfinite(cell)
    return cell is None or (isinstance(cell, str) and not cell.strip())


def _text(cell: object) -> str:
    """A cell's text; whole numbers have no point, though a column with an empty cell makes fractions of them."""
    if _is_empty(cell):
        raise ItemError("empty text", "a question or an answer is empty")
    if isinstance(cell, bool) or not isinstance(cell, str | int | float):
        raise ItemError("not a text", f"a question or an answer is a {type(cell).__name__}")
    return str(int(cell) if isinstance(cell, float) and cell.is_integer() else cell).strip()


def _image(cell: object, folder: Path) -> tuple[str, bytes]:
    """An image's file name, which its bytes decide, and these bytes."""
    if isinstance(cell, list):
        if len(cell) != 1:
            raise ItemError("several images" if cell else "no image", f"{len(cell)} images in one row")
        return _image(cell[0], folder)
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if not cell:
        raise ItemError("no image", "there is no image in the row")
    if isinstance(cell, str):
        shown = cell if len(cell) <= _SHOWN else f"{cell[:_SHOWN]}…"
        try:
            path = (folder / cell).resolve()
            if not path.is_relative_to(folder):
                raise ItemError("outside-root", f"{shown} is outside the data set's folder")
            cell = path.read_bytes()
        except FileNotFoundError:
            raise ItemError("missing", f"there is no file {shown}") from None
        except (OSError, ValueError) as error:  # a path that no disk can have, such as an image in base64
            raise ItemError("missing", f"{shown!r} is no file here: {type(error).__name__}") from None
    if not isinstance(cell, bytes):
        raise ItemError("not-an-image", f"an image is a {type(cell).__name__}")
    suffix = next((suffix for start, suffix in _SUFFIXES.items() if cell.startswith(start)), "")
    return f"{sha256(cell).hexdigest()[:16]}{suffix}", cell


register(HubData, HubDataset())
