"""Tables and lists as people bring them: what Excel, pandas, PowerShell and a text editor write is read, and told."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from stllava.data.benchmarks.own import read_samples
from stllava.data.tables import read_table
from stllava.errors import StllavaError
from stllava.records import Sample
from stllava.stages.evaluate import worded
from stllava.store import to_jsonl

ROWS = [("a.png", "Is there a lésion?", "yes"), ("b.png", "Where, or why; who?", 'the "left"\nlobe')]
NAMES = ("image", "question", "answer")


def quoted(text: str) -> str:
    """A field in quotes, which may hold anything."""
    return '"' + text.replace('"', '""') + '"'


def table(delimiter: str = ",", *, header: str = "image,question,answer", end: str = "\n") -> str:
    """The two rows as a table."""
    lines = [header.replace(",", delimiter), *(delimiter.join(map(quoted, row)) for row in ROWS)]
    return "".join(line + end for line in lines)


LINES = "".join(json.dumps(dict(zip(NAMES, row, strict=True))) + "\n" for row in ROWS)
LIST = json.dumps([dict(zip(("Image", "QUESTION", "answer"), row, strict=True)) for row in ROWS], indent=2)
PANDAS = "\n".join([",image,question,answer", *(f"{n}," + ",".join(map(quoted, row)) for n, row in enumerate(ROWS))])
FOUND: dict[str, tuple[bytes, str]] = {
    "plain": (table().encode(), ""),
    "semicolons, as Excel writes where the comma is decimal": (table(";").encode(), "between semicolons"),
    "tabs": (table("\t").encode(), "between tabs"),
    "a first line that names the delimiter, as Excel reads": (("sep=;\n" + table(";")).encode(), "between semicolons"),
    "capitals and blanks in the header": (table(header=" Image,QUESTION, Answer ").encode(), ""),
    "a byte order mark (inspect_ai issue 5353)": (table().encode("utf-8-sig"), ""),
    "UTF-16, as Excel's Unicode text (unstructured issue 4443)": (table("\t").encode("utf-16"), "in UTF-16"),
    "UTF-16 of the other end": (b"\xfe\xff" + table().encode("utf-16-be"), "in UTF-16"),
    "UTF-16 without a mark": (table().encode("utf-16-le"), "in UTF-16"),
    "Latin-1": (table().encode("latin-1"), "read as Windows-1252, for example 'lésion'"),
    "lines that end as on Windows": (table(end="\r\n").encode(), ""),
    "row numbers without a name, as pandas writes": (PANDAS.encode(), ""),
    "empty lines between and behind": (table(end="\n\n").encode(), ""),
    "blanks behind the delimiter": (table(", ").encode(), ""),
    "JSON lines": (LINES.encode(), ""),
    "JSON lines in UTF-16, as PowerShell writes": (LINES.encode("utf-16"), "in UTF-16"),
    "JSON lines with a mark": (LINES.encode("utf-8-sig"), ""),
    "a JSON list with other capitals": (LIST.encode("utf-8-sig"), ""),
}


@pytest.mark.parametrize("kind", FOUND)
def test_a_plain_table_gives_the_same_samples_however_it_is_written(kind: str, tmp_path: Path) -> None:
    content, told = FOUND[kind]
    (tmp_path / "mine.csv").write_bytes(content)
    samples, notes = read_samples(tmp_path / "mine.csv")
    assert [(one.image, one.question, *one.targets) for one in samples] == ROWS
    assert [one.kind for one in samples] == ["closed", "open"]
    assert [one.labels for one in samples] == [{}, {}]
    assert told in " ".join(notes)
    assert notes[-1].startswith("mine.csv: 2 questions, 1 of them closed")
    assert notes[-1].endswith("2 without an id are named by their content.")
    (tmp_path / "mine.csv").write_text(table())
    assert [one.id for one in samples] == [one.id for one in read_samples(tmp_path / "mine.csv")[0]]


def test_sample_records_are_read_as_they_are_and_nothing_is_told(tmp_path: Path) -> None:
    row = Sample(id="q", image="a.png", question="What?", targets=("x",), kind="closed", split="dev")
    (tmp_path / "a.jsonl").write_text(to_jsonl([row]))
    assert read_samples(tmp_path / "a.jsonl") == ([row], ())


def test_a_file_of_no_records_holds_no_samples(tmp_path: Path) -> None:
    (tmp_path / "references.jsonl").touch()
    assert read_samples(tmp_path / "references.jsonl") == ([], ())


def test_the_same_question_in_two_splits_keeps_both_and_their_splits(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,question,answer,split\na,b,yes,train\na,b,yes,test\n")
    samples, _ = read_samples(tmp_path / "a.csv")
    assert [one.split for one in samples] == ["train", "test"]
    assert len({one.id for one in samples}) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "picture,question,answer\na,b,c\n", "no column image; it has picture, question, answer"),
        ("a.csv", "image;question\na;b\n", "no column answer; it has image, question"),
        ("a.jsonl", '{"image": "a", "question": "b", "reply": "c"}', "neither answer nor targets among image, question, reply"),
        ("a.jsonl", '{"image": "a", "prompt": "b", "answer": "c"}', "no column question; it has image, prompt, answer"),
        ("a.json", '{\n "samples": [{"image": "a"}]\n}', "the list that stands under 'samples'"),
        ("a.jsonl", '{\n "image": "a"\n}', "holds a dict with the keys image"),
        ("a.json", "[" * 100_000, "a.json: "),
        ("a.csv", "", "has no rows"),
        ("a.csv", "image,question,answer\n", "has no rows"),
    ],
)
def test_what_is_no_table_of_questions_is_refused_by_what_it_has(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(StllavaError, match=message):
        read_samples(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PAR1\x15\x04", "is a parquet file; expected text: CSV"),
        (b"PK\x03\x04\x14\x00", "is a zip archive or a workbook of Excel; .* save its rows as CSV"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "old workbook of Excel"),
        (b"\x1f\x8b\x08", "compressed by gzip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS .* git lfs pull"),
    ],
)
def test_a_file_that_is_no_text_is_refused_by_what_it_is(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(StllavaError, match=message):
        read_samples(tmp_path / "a.csv")


def test_a_folder_or_a_missing_file_is_refused_with_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inside.csv").touch()
    with pytest.raises(StllavaError, match=r"is a folder; expected a file of questions .* in that folder are: inside.csv"):
        read_samples(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StllavaError, match=rf"no file gone.csv \(looked for in {tmp_path}\)"):
        read_samples(Path("gone.csv"))


def test_separators_of_other_kinds_inside_a_text_divide_no_rows(tmp_path: Path) -> None:
    text = "one\u2028two\u2029three\x85four\x1cfive"
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_table(tmp_path / "a.jsonl").rows == [(1, {"text": text})]
    (tmp_path / "a.csv").write_text(f"text,x\n{text},y\n", encoding="utf-8")
    assert read_table(tmp_path / "a.csv").rows == [(1, {"text": text, "x": "y"})]


@pytest.mark.parametrize("said", ["nan", "NaN", "NAN", " nan "])
def test_nan_in_a_table_is_an_empty_cell_and_told(said: str, tmp_path: Path) -> None:
    """What `df.astype(str).to_csv()` writes for an answer that is missing."""
    (tmp_path / "a.csv").write_text(f"image,question,answer\na.png,Is it there?,yes\nb.png,What is it?,{said}\n")
    samples, notes = read_samples(tmp_path / "a.csv")
    assert [one.targets for one in samples] == [("yes",), ()]
    assert "1 cell of a.csv says nan and is taken as empty." in notes
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": "a.png", "question": "What?", "answer": "nan"}))
    assert read_samples(tmp_path / "a.jsonl")[0][0].targets == ("nan",), "in JSON nothing is missing by that name"


def test_columns_of_choices_end_at_the_first_that_says_nan(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,question,answer,A,B,C\na.png,Which?,B,left,right,nan\n")
    [sample], _ = read_samples(tmp_path / "a.csv")
    assert (sample.choices, sample.targets) == (("left", "right"), ("right",))


def test_all_letters_name_choices_and_more_choices_are_refused(tmp_path: Path) -> None:
    texts = [f"finding {i}" for i in range(27)]
    path = tmp_path / "a.json"
    asked = {"image": "a.png", "question": "Which?", "answer": "Z"}
    path.write_text(json.dumps([{**asked, "choices": texts[:26]}]))
    [sample], _ = read_samples(path)
    assert (len(sample.choices), sample.targets) == (26, ("finding 25",))
    assert worded(sample, "{question}").endswith("\nZ. finding 25")
    path.write_text(json.dumps([{**asked, "choices": texts}]))
    with pytest.raises(StllavaError, match="row 1: 27 choices; expected at most 26, a letter each"):
        read_samples(path)
    lettered = {letter: texts[place] for place, letter in enumerate("ABCDEFGHIJ")}
    path.write_text(json.dumps([{**asked, "answer": "J", **lettered}]))
    [sample], _ = read_samples(path)
    assert (len(sample.choices), sample.targets, sample.labels) == (10, ("finding 9",), {})
    with pytest.raises(ValidationError, match="at most 26"):
        Sample(id="q", image="a", question="?", targets=(), kind="closed", split="test", choices=tuple(texts))
