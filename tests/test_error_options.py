"""Every option that the text of an error names exists, as a flag or as a key of a recipe."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import stllava
from stllava import config, recipe
from stllava.config import Options
from stllava.data import sources

SOURCE = Path(stllava.__file__).parent
NO_OPTIONS = frozenset(["bin", "csv", "jinja", "json", "jsonl", "md", "parquet", "py", "txt", "yaml"])
"""What the last part of a name with dots is where that is a file's name."""
FLAG = re.compile(r"(?<![\w-])--([a-z][a-z-]*(?:\.[a-z][a-z-]*)*)")
KEY = re.compile(r"(?<![\w./@-])[a-z_]+(?:\.[a-z_]+)+(?![\w/@])")


def known() -> set[str]:
    """Names of all options, and of all parameters of the functions that commands call."""
    names = {"help", "try"}  # Python has a keyword of that name, so doctor renames the flag.
    for module in (config, recipe, sources):
        for _, options in inspect.getmembers(module, inspect.isclass):
            if issubclass(options, Options):
                names |= options.model_fields.keys()
    for folder in ("commands", "stages"):
        for path in (SOURCE / folder).glob("*.py"):
            names |= {node.arg for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.arg)}
    return names


def named_in(text: str) -> Iterator[str]:
    """Options that a text names, such as `--look-for-text` or `judge.local.model`."""
    yield from FLAG.findall(text)
    yield from (key for key in KEY.findall(text) if key.rpartition(".")[2] not in NO_OPTIONS and not key.startswith("stllava."))


def texts_of_errors(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The literal parts of what errors are made of, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Error"):
            for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
                for part in ast.walk(argument):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield part.lineno, part.value


def unknown_options(code: str, names: set[str]) -> list[tuple[int, str]]:
    return [
        (line, option)
        for line, text in texts_of_errors(ast.parse(code))
        for option in named_in(text)
        if not {part.replace("-", "_") for part in option.split(".")} <= names
    ]


@pytest.mark.parametrize(
    ("remedy", "found"),
    [
        ("Set burned.look to rules.", ["burned.look"]),
        ("Give --look-for-text rules, or see config.json.", []),
        ("Give --no-such-flag.", ["no-such-flag"]),
        ("Set judge.local.model, or judge.local.modle.", ["judge.local.modle"]),
    ],
)
def test_an_option_that_does_not_exist_is_found(remedy: str, found: list[str]) -> None:
    code = f"raise StllavaError('x', expected='y', remedy={remedy!r})"
    assert [option for _, option in unknown_options(code, known())] == found


def test_every_option_that_an_error_names_exists() -> None:
    names = known()
    wrong = {
        f"{path.relative_to(SOURCE)}:{line}": option
        for path in sorted(SOURCE.rglob("*.py"))
        for line, option in unknown_options(path.read_text(encoding="utf-8"), names)
    }
    assert wrong == {}
