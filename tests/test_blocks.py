"""Every code block of the pages is run as it stands, or says what it needs that is not here; and it fits this version."""

import re
from pathlib import Path

import pytest

from helpers.block_checks import faults_of
from helpers.blocks import ROOT, RUN, blocks_of
from helpers.page_runs import ELSEWHERE, PAGE_RUNS

GENERATED = {"docs/cli.md", *(str(page.relative_to(ROOT)) for page in (ROOT / "docs" / "api").glob("*.md"))}
"""Made of the commands and docstrings, and compared with them (test_cli_docs.py, test_docs.py)."""
FOLDERS = ("docs", "examples", "notebooks", "bench", "recipes")
PAGES = sorted(
    {str(page.relative_to(ROOT)) for page in ROOT.glob("*.md")}
    | {str(page.relative_to(ROOT)) for folder in FOLDERS for page in (ROOT / folder).rglob("*.md")} - GENERATED
)
EXECUTED = PAGE_RUNS.keys() | ELSEWHERE.keys()


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_is_run_or_marked_and_fits_this_version(page: str) -> None:
    assert faults_of((ROOT / page).read_text(encoding="utf-8"), page, executed=page in EXECUTED) == []


HEADS = sorted([*(ROOT / "src" / "stllava" / "recipes").glob("*.yaml"), *(ROOT / "bench").glob("*.py")])
"""Files that say at their head by which command they are run; what stands in brackets there may be left out."""


@pytest.mark.parametrize("path", HEADS, ids=lambda path: path.name)
def test_the_command_at_the_head_of_a_recipe_or_bench_fits_this_version(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    head = text if path.suffix == ".yaml" else text.split('"""')[1]
    lines = re.findall(r"^(?:#   |    )((?:[A-Z_]+=\S+ )*(?:stllava|python) .*)$", head, re.MULTILINE)
    assert (
        faults_of(page("sh", *(line.translate({ord("["): " ", ord("]"): " "}) for line in lines)), path.name, executed=True)
        == []
    )


def page(language: str, *lines: str, mark: str = "") -> str:
    return "\n".join(
        ["# A page", "", "Words.", "", *([mark, ""] if mark else []), f"```{language}", *lines, "```", "", "Words.", ""]
    )


FAULTY = {
    "unknown command": (page("sh", "stllava anwser"), "page.md:6: there is no command stllava anwser"),
    "unknown flag": (page("sh", "stllava pair --answers a --judgments b --to c --margn 1"), "page.md:6: stllava pair refuses"),
    "flag of last year": (
        page("sh", "stllava answer --policy a --questions b --root c --to d --k 4"),
        "page.md:6: stllava answer",
    ),
    "wrong value": (
        page("sh", "cd x", "stllava pair --answers a --judgments b --to c --margin much"),
        "page.md:7: stllava pair",
    ),
    "value out of range": (page("sh", "stllava run phantom.yaml --rounds -1"), "page.md:6: stllava run refuses this"),
    "missing flag": (page("sh", "stllava pair --answers a"), "page.md:6: stllava pair refuses this"),
    "wrong flag in a second line": (page("sh", "stllava pair --answers a \\", "  --margn 1"), "page.md:6: stllava pair"),
    "behind a pipe": (page("sh", "cat x | stllava pear"), "page.md:6: there is no command stllava pear"),
    "in a module": (page("sh", "torchrun -m stllava sfd"), "page.md:6: there is no command stllava sfd"),
    "in a container": (page("sh", "docker run --rm -v x:/y stllava demmo"), "page.md:6: there is no command stllava demmo"),
    "unknown target": (page("sh", "make coffee"), "page.md:6: the Makefile has no target coffee"),
    "unknown extra": (page("sh", "pip install '.[dicom,dycom]'"), "page.md:6: there is no extra dycom"),
    "unknown script": (page("sh", "python bench/gone.py"), "page.md:6: there is no bench/gone.py"),
    "flag that a script lacks": (page("sh", "python bench/scale.py --plam x"), "page.md:6: bench/scale.py has no --plam"),
    "no shell": (page("sh", "echo 'a"), "page.md:6: no shell command"),
    "unknown key": (page("yaml", "judge: {exprt: chat}"), "page.md:6: no recipe"),
    "wrong value of a key": (page("yaml", "rounds: many"), "page.md:6: no recipe"),
    "key given twice": (page("yaml", "rounds: 1", "rounds: 2"), "page.md:6: no recipe"),
    "whole recipe without data": (page("yaml", "name: mine"), "page.md:6: no recipe"),
    "no record": (page('json title="Vote"', '{"id": "a", "winner": 3}'), "page.md:6: no Vote"),
    "record with a key too many": (page('json title="Image"', '{"id": "a", "path": "b", "size": 3}'), "page.md:6: no Image"),
    "record of no kind": (page("json", "{}"), "page.md:5: no record is called ''"),
    "no Python": (page("python", "x = 1", "def f(:"), "page.md:7: no Python"),
    "no table": (page("csv", "image,answer", "a.png,yes"), "page.md:6: no table"),
    "no template": (page("jinja", "{% for x in y %}"), "page.md:6: no template"),
    "template without the words": (page("jinja", "hello"), "page.md:6: a template that leaves words out"),
    "command as a drawing": (page("text", "stllava demo"), "page.md:6: a command in a block of text"),
    "unknown language": (page("ruby", "puts 1"), "page.md:5: a block of language 'ruby', which nothing checks"),
    "no language": (page("", "anything"), "page.md:5: a block without a fence or language"),
    "indented": ("Words.\n\n    stllava demo\n\nWords.\n", "page.md:3: a block without a fence or language"),
    "fence in a list": ("1. Words.\n\n   ```sh\n   stllava demmo\n   ```\n", "page.md:4: there is no command stllava demmo"),
    "mark without a reason": (
        page("sh", "stllava demo", mark="<!-- needs: GPU -->"),
        "page.md:7: the mark does not say in words",
    ),
    "empty mark": (page("sh", "stllava demo", mark="<!-- needs: -->"), "page.md: 1 marks before 0 blocks"),
    "mark before words": ("<!-- needs: a GPU -->\n\nWords.\n", "page.md: 1 marks before 0 blocks"),
    "wrong flag behind a mark": (
        page("sh", "stllava demo --sed 1", mark="<!-- needs: a GPU -->"),
        "page.md:8: stllava demo refuses",
    ),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_fault_of_a_block_is_told_with_file_and_line(name: str) -> None:
    text, told = FAULTY[name]
    (fault,) = faults_of(text, "page.md", executed=True)
    assert fault.startswith(told)


SOUND = {
    "sh": page("sh", "export A=b", "stllava pair --answers a --judgments b --to c --margin 0.5 | head -n 1  # words"),
    "settings first": page("sh", "stllava --quiet --log json run own-images.yaml --data.labels labels.csv"),
    "recipe of the page": page("yaml", "name: mine", "data: {kind: hub, dataset: owner/name, labelled: 6}")
    + page("sh", "stllava run mine.yaml --data.labelled 3"),
    "piece of a recipe": page("yaml", "judge: {expert: chat, chat: {url: 'http://127.0.0.1:8000/v1', model: x}}"),
    "other data": page("yaml", "data: {kind: hub, dataset: owner/name, labelled: 6}"),
    "record": page('json title="Vote"', '{"id": "a", "answers_id": "b", "first": 0, "second": 1, "winner": null}'),
}


def test_every_page_that_is_said_to_be_run_has_blocks_to_run() -> None:
    for page in EXECUTED:
        blocks = list(blocks_of((ROOT / page).read_text(encoding="utf-8"), page))
        assert any(block.language in RUN and not block.needs for block in blocks), page


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_block_is_let_through(name: str) -> None:
    assert faults_of(SOUND[name], "page.md", executed=True) == []


@pytest.mark.parametrize("language", ["sh", "python"])
def test_a_block_that_nothing_runs_must_be_marked(language: str) -> None:
    line = {"sh": "stllava demo", "python": "x = 1"}[language]
    assert faults_of(page(language, line), "page.md", executed=False) == [
        "page.md:5: neither run by a test nor marked as needing what is not here"
    ]
    assert faults_of(page(language, line, mark="<!-- needs: a GPU -->"), "page.md", executed=False) == []


def test_a_mark_is_for_the_next_block_alone() -> None:
    text = page("sh", "stllava demo", mark="<!-- needs: a GPU -->") + page("sh", "stllava demo")
    assert [block.needs for block in blocks_of(text, "page.md")] == ["a GPU", ""]
