"""Reads the rows of a file as it is found: a JSON list, one JSON object a line, or a table with a header; writes nothing.

    from stllava.data.tables import read_table
    rows = read_table(Path("labels.csv"), names=("image", "question", "answer")).rows

A file is told by its content, whatever it is called. UTF-8, with or without a byte order mark, and UTF-16 are read; a table
may be in Windows-1252 too (Latin-1 and more), and its fields stand between commas, semicolons or tabs. What only the content
could tell is said in `notes`.
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from stllava.errors import StllavaError

Form = Literal["JSON list", "JSON lines", "table"]

MISSING = "nan"
"""What pandas writes for a missing value, in lower case."""
_NAMED = 5
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_OTHER_KINDS = {
    b"PAR1": "a parquet file",
    b"ARROW1": "an Arrow file",
    b"PK\x03\x04": "a zip archive or a workbook of Excel",
    b"\xd0\xcf\x11\xe0": "an old workbook of Excel",
    b"\x1f\x8b": "compressed by gzip",
    b"SQLite format 3": "a database",
    b"version https://git-lfs": "a pointer of Git LFS instead of the file",
}
"""What a file of rows is taken for by mistake, by its first bytes."""
_OTHER_LETTERS = re.compile(rb"[\x80-\xff]{3}")
"""Three accented letters in a row are no word of a language that Windows-1252 is for, but any word of Cyrillic or Chinese."""
_ACCENTED = re.compile(r"(?<!\w)[0-9A-Za-z_]*+[^\W\x00-\x7f]\w*")


class Table(NamedTuple):
    """The rows of a file, and what was told of it."""

    form: Form
    rows: list[tuple[int, Mapping[str, object]]]
    """Each with its number: of the line in a file of JSON lines, else counted from 1."""
    notes: tuple[str, ...] = ()
    """Sentences for the reader of the results."""
    others: tuple[int, ...] = ()
    """Numbers of rows that are no objects."""

    def columns(self) -> list[str]:
        """The names of all columns, in the order in which they first come."""
        return list(dict.fromkeys(name for _, row in self.rows for name in row))


def read_table(path: Path, *, names: Collection[str] = (), kinds: str = "rows", objects: bool = True) -> Table:
    """The rows of a file; one that is none, or has none, is refused with what was found.

    A column that is one of `names` but for case and blanks takes that name. `kinds` is what the rows are, for the errors.
    A row of JSON that is no object is refused, or without `objects` only counted.
    """
    text, notes = read_text(path, kinds=kinds)
    start = text.lstrip()[:1]
    form: Form
    if start == "[":
        form, found = "JSON list", _json_list(text, path)
    elif start == "{":
        form, found = "JSON lines", _json_lines(text, path)
    else:
        form = "table"
        delimiter, listed, missing = _fields(text, path, names)
        notes += () if delimiter == "," else (f"{path.name} has its fields between {_DELIMITERS[delimiter]}.",)
        if missing:
            told, says, are = ("1 cell", "says", "is") if missing == 1 else (f"{missing} cells", "say", "are")
            notes += (f"{told} of {path.name} {says} nan and {are} taken as empty.",)
        found = list(enumerate(listed, 1))
    rows: list[tuple[int, Mapping[str, object]]] = []
    others: list[int] = []
    for number, row in found:
        if not isinstance(row, dict) and not objects:
            others.append(number)
            continue
        if not isinstance(row, dict):
            raise bad_row(path, number, f"it is a {type(row).__name__}", expected=f"{kinds}, each an object with named columns")
        rows.append((number, row if form == "table" else _named(row, names)))
    if not rows and not others:
        raise StllavaError(f"{path} has no rows", expected=f"at least one of {kinds}", remedy="Check the file.")
    return Table(form, rows, notes, tuple(others))


def read_list(path: Path, *, kinds: str) -> list[object]:
    """The rows, of whatever kind, of a JSON file that holds one list; a broken one is refused by line."""
    text, _ = read_text(path, kinds=kinds)
    if text.lstrip()[:1] != "[":
        raise StllavaError(f"{path} holds no list", expected=f"a JSON list of {kinds}", remedy="Check the file.")
    return [row for _, row in _json_list(text, path)]


def read_text(path: Path, *, kinds: str) -> tuple[str, tuple[str, ...]]:
    """The text of a file of rows, and what had to be guessed of its encoding."""
    require_file(path, kinds=kinds)
    return _decoded(path.read_bytes(), path)


def bad_row(path: Path, number: int, found: str, *, expected: str) -> StllavaError:
    """The error of one row of a file."""
    return StllavaError(f"{path}, row {number}: {found}", expected=expected, remedy="Fix that row.")


def require_file(path: Path, *, kinds: str) -> None:
    """Refuse a path that leads to no file, with where it was looked for and what is there instead."""
    if path.is_dir():
        inside = sorted(entry.name for entry in path.iterdir())
        named = ", ".join(inside[:_NAMED]) + (", …" if len(inside) > _NAMED else "")
        raise StllavaError(
            f"{path} is a folder", expected=f"a file of {kinds}", remedy=f"Name a file; in that folder are: {named or 'none'}."
        )
    if not path.is_file():
        where = "" if path.is_absolute() else f" (looked for in {Path.cwd()})"
        raise StllavaError(f"no file {path}{where}", expected=f"a file of {kinds}", remedy="Check the path.")


def _decoded(data: bytes, path: Path) -> tuple[str, tuple[str, ...]]:
    """The file's text, and what had to be guessed of its encoding."""
    for start, kind in _OTHER_KINDS.items():
        if data.startswith(start):
            lfs = "Fetch the file itself: git lfs pull."
            remedy = lfs if b"git" in start else "Unpack it, or save its rows as CSV or JSON lines."
            raise StllavaError(f"{path} is {kind}", expected="text: CSV, TSV, JSON or JSON lines", remedy=remedy)
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None) or _wide(data) or "utf-8"
    notes = () if encoding in ("utf-8", "utf-8-sig") else (f"{path.name} is in UTF-16.",)
    try:
        return data.decode(encoding), notes
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        structured = data.lstrip()[:1] in (b"[", b"{")
        if encoding != "utf-8" or structured or _OTHER_LETTERS.search(data):
            raise _no_text(path, line, structured=structured) from None
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        raise _no_text(path, line, structured=False) from None
    example = _ACCENTED.search(text)
    shown = f", for example {example[0]!r}" if example else ""
    return text, (f"{path.name} is not in UTF-8 and was read as Windows-1252{shown}; check its accents.",)


def _no_text(path: Path, line: int, *, structured: bool) -> StllavaError:
    expected = "JSON in UTF-8 or UTF-16" if structured else "a CSV file in UTF-8, UTF-16 or Windows-1252"
    return StllavaError(f"{path}, line {line}: not UTF-8", expected=expected, remedy="Save the file as UTF-8.")


def _wide(data: bytes) -> str | None:
    """UTF-16 without a mark, told by the zeros in every other byte of plain text."""
    head = data[:4096]
    low, high = head[::2].count(0), head[1::2].count(0)
    if max(low, high) * 4 < len(head) or not head:
        return None
    return "utf-16-le" if high > low else "utf-16-be"


def _json_list(text: str, path: Path) -> list[tuple[int, object]]:
    try:
        rows: list[object] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _broken(path, error, expected="a JSON list of rows") from None
    return list(enumerate(rows, 1))


def _json_lines(text: str, path: Path) -> list[tuple[int, object]]:
    """Objects line by line; one object over several lines is a file of another kind, and refused by its keys."""
    rows: list[tuple[int, object]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append((number, json.loads(line)))
            except (ValueError, RecursionError) as error:
                whole = _one_object(text)
                if whole is not None:
                    raise _holder(path, whole) from None
                raise bad_row(path, number, str(error), expected="one JSON object a line, or a JSON list of objects") from None
    (_, first), *others = rows
    if not others and isinstance(first, dict) and path.suffix.lower() == ".json":
        raise _holder(path, first)
    return rows


def _one_object(text: str) -> dict[str, object] | None:
    try:
        whole: dict[str, object] = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return whole


def _holder(path: Path, whole: Mapping[str, object]) -> StllavaError:
    """The error of a file that is one object, whose rows may stand under a key of it."""
    lists = [key for key, value in whole.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    return StllavaError(
        f"{path} holds a dict with the keys {', '.join(list(whole)[:_NAMED])}",
        expected="a JSON list of rows, or one object a line",
        remedy=f"Write the list that stands under {' or '.join(map(repr, lists))} to a file of its own."
        if lists
        else "Put the rows into a list; a file of JSON lines with a single row must end in .jsonl.",
    )


def _broken(path: Path, error: Exception, *, expected: str) -> StllavaError:
    where = f", line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else f": {error}"
    return StllavaError(f"{path}{where}", expected=expected, remedy="Fix that line.")


def _named(row: Mapping[str, object], names: Collection[str]) -> Mapping[str, object]:
    """The row with those of its keys spelt as `names` that differ from one of them in case and blanks alone."""
    spelt = {name.casefold(): name for name in names if name not in row}
    return {key if key in names else spelt.pop(key.strip().casefold(), key): value for key, value in row.items()}


def _fields(text: str, path: Path, names: Collection[str]) -> tuple[str, list[dict[str, str]], int]:
    """The delimiter of a table, its rows by column, and the cells that say nan; more fields than columns are refused.

    pandas writes nan for what is missing once a column is made text, so that such a cell is empty. One that a person wrote
    could not be told from that.
    """
    first, _, rest = text.partition("\n")
    said = re.fullmatch(r"sep=(.)\s*", first)  # What Excel writes, and reads, to name the delimiter.
    body, skipped = (rest, 1) if said else (text, 0)
    delimiter = said[1] if said and said[1] in _DELIMITERS else _delimiter(body, names)
    reader = csv.reader(io.StringIO(body, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    rows: list[dict[str, str]] = []
    ended = missing = 0
    try:
        header = _header(next(reader, []), path, names)
        ended = reader.line_num
        for fields in reader:
            ended = reader.line_num
            if not any(field.strip() for field in fields):
                continue
            if len(fields) > len(header):
                wrong = f"{len(fields)} fields under {len(header)} columns"
                raise bad_row(path, len(rows) + 1, wrong, expected="a field for each column")
            cells = [field.strip() for field in [*fields, *[""] * (len(header) - len(fields))]]
            missing += sum(cell.lower() == MISSING for cell in cells)
            cells = ["" if cell.lower() == MISSING else cell for cell in cells]
            rows.append({name: cell for name, cell in zip(header, cells, strict=True) if name})
    except csv.Error as error:
        raise StllavaError(
            f"{path}, row {len(rows) + 1}, which begins in line {ended + skipped + 1}: {error}",
            expected="a CSV file whose quotes are closed, a quote inside of quotes written twice",
            remedy="Fix that row.",
        ) from None
    return delimiter, rows, missing


def _delimiter(text: str, names: Collection[str]) -> str:
    """What divides the first line into the most columns that are known, or else into the most."""
    wanted = {name.casefold() for name in names}

    def columns(delimiter: str) -> tuple[int, int]:
        try:
            found = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
        except csv.Error:
            return (0, 0)
        return len(wanted & {name.strip().casefold() for name in found}), len(found)

    return max(_DELIMITERS, key=columns)


def _header(fields: Sequence[str], path: Path, names: Collection[str]) -> list[str]:
    """The columns' names; a column without one, such as the row numbers that pandas writes, has an empty one."""
    given = [field.strip() for field in fields]
    twice = sorted({name for name in given if name and given.count(name) > 1})
    if twice:
        raise StllavaError(
            f"{path} has several columns named {', '.join(map(repr, twice))}",
            expected="a name of its own for each column",
            remedy="Rename or remove all but one of them.",
        )
    known = dict(zip((name for name in given if name), _named({name: None for name in given if name}, names), strict=True))
    return [known.get(name, "") for name in given]
