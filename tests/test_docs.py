"""The pages that people read: they are short where they must be, and their links lead somewhere."""

import json
import re
import sys
from pathlib import Path

import pytest

import stllava
from stllava.model.families import UNKNOWN
from stllava.records import Answers, Sampling

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
sys.path.insert(0, str(ROOT / "tools"))

from api_docs import FOLDER, pages  # noqa: E402 - a script beside the package

LINK = re.compile(r"!?\[[^\]\n]*\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_inside_the_repository_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_says_in_words_where_it_leads(page: Path) -> None:
    assert re.findall(r"\[[\w./-]+\.md\]\(", page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_sentence_is_taken_into_the_table_before_it(page: Path) -> None:
    """Whatever stands right behind a table without an empty line becomes a row of it."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert re.findall(r"^\|.*\n(?!\||<!--)(\S.*)$", text, re.MULTILINE) == []


def test_the_readme_is_read_in_a_few_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1000


def test_the_pages_of_the_api_are_what_the_docstrings_say() -> None:
    written = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    assert written == pages(), "run: python tools/api_docs.py"


def test_every_public_function_says_what_its_parameters_are() -> None:
    for name in stllava.__all__:
        value = getattr(stllava, name)
        text = value.__doc__ or ""
        assert text, name
        if not isinstance(value, type) and len(stllava_parameters(value)) >= 3:
            lacking = [one for one in stllava_parameters(value) if f"{one}:" not in text]
            assert not lacking, f"{name}: {lacking}"


def stllava_parameters(function: object) -> list[str]:
    code = getattr(function, "__code__")  # noqa: B009 - typed as object here
    return list(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])


def test_every_line_of_the_page_of_records_is_such_a_record() -> None:
    text = (ROOT / "docs" / "records.md").read_text(encoding="utf-8")
    lines = re.findall(r'```json title="(\w+)"\n(.*)\n```', text)
    assert len(lines) >= 9
    for kind, line in lines:
        record = getattr(stllava, kind, None) or getattr(__import__("stllava.records", fromlist=[kind]), kind)
        assert json.loads(record.model_validate_json(line).model_dump_json(exclude_unset=True)) == json.loads(line)


def test_every_error_that_troubleshooting_quotes_is_one_of_ours() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    assert len(quoted) > 8
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    assert [phrase for phrase in quoted if phrase not in source] == []


def extension(name: str) -> dict[str, object]:
    """What a block of docs/extending.md defines."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    (code,) = re.findall(rf'```python title="{name}"\n(.*?)```', text, re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    return names


def test_the_benchmark_of_the_page_reads_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.tsv").write_text("a.png\twhat?\ta lung\n", encoding="utf-8")
    samples = extension("benchmark")["samples"]
    assert isinstance(samples, tuple)
    (sample,) = samples
    assert (sample.image, sample.targets, sample.split) == ("a.png", ("a lung",), "test")


def test_the_family_of_the_page_is_one_of_which_nothing_is_known() -> None:
    assert extension("family")["unknown"] is UNKNOWN


def test_the_expert_of_the_page_judges() -> None:
    answers = Answers(
        id="a",
        question_id="q",
        images=("a.png",),
        question="what?",
        completions=("a lung", "a"),
        policy="p",
        sampling=Sampling(temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=4, seed=0),
    )
    expert = extension("expert")["expert"]
    assert expert.judge(answers).scores == (0.0, 1 - 1 / 6)  # type: ignore[attr-defined]
