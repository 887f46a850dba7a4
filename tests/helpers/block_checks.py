"""What can be said against a page's code blocks without running them.

Every command of ours in a block goes through the command line's own parser, every recipe through the schema, every record
through its class, whether the block is marked or not.
"""

import io
import os
import re
import tomllib
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import jinja2
from pydantic import ValidationError

import stllava.records
from helpers.blocks import ROOT, RUN, Block, blocks_of, command_lines, marks_in, words_of
from stllava.commands import every_command
from stllava.commands.flags import bind
from stllava.data.benchmarks.own import read_samples
from stllava.errors import StllavaError
from stllava.recipe import RECIPES, RunOptions, load_recipe

SETTINGS = {"--quiet": 1, "--verbose": 1, "--log": 2}
"""What may stand before a command of ours, and how many words it is."""
COMMANDS = ("stllava", "python", "python3", "pip", "make", "torchrun", "docker", "uvx", "export", "$")
"""What a line of a drawing does not begin with."""
BASE = "name: base\ndata: {kind: phantom}\n"
"""What a page's piece of a recipe is laid over."""
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
Faults = Iterator[tuple[int, str]]
"""Faults, each with its line in the page."""


def faults_of(text: str, page: str, *, executed: bool) -> list[str]:
    """What is wrong with the blocks of a page, each with file and line.

    Args:
        text: The page.
        page: Its path in the repository.
        executed: Whether a test runs what is not marked.
    """
    blocks = list(blocks_of(text, page))
    marks, marked = marks_in(text), sum(bool(block.needs) for block in blocks)
    found = [f"{page}: {marks} marks before {marked} blocks"] if marks != marked else []
    recipes = [block.text for block in blocks if block.language == "yaml" and _is_whole(block.text)]
    for block in blocks:
        if block.language in RUN and not executed and not block.needs:
            found.append(f"{block.place}: neither run by a test nor marked as needing what is not here")
        if block.needs and len(block.needs.split()) < 2:
            found.append(f"{block.place}: the mark does not say in words what is not here")
        check = CHECKS.get(block.language)
        if check is None:
            said = f"of language {block.language!r}, which nothing checks" if block.language else "without a fence or language"
            found.append(f"{block.place}: a block {said}")
            continue
        found += [f"{block.page}:{line}: {fault}" for line, fault in check(block, recipes)]
    return found


def _is_whole(text: str) -> bool:
    """Whether a recipe stands by itself."""
    return text.startswith("name:")


def ours(words: list[str]) -> list[str] | None:
    """The words behind `stllava` of a command of ours, however it is started; None of another command."""
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words = words[1:]
    if not words:
        return None
    if Path(words[0]).name == "stllava" or words[:2] == ["uvx", "stllava"]:
        return words[1:] if words[0] != "uvx" else words[2:]
    if Path(words[0]).name in ("python", "python3", "torchrun", "accelerate") and "-m" in words:
        rest = words[words.index("-m") + 1 :]
        return rest[1:] if rest[:1] == ["stllava"] else None
    if words[:2] == ["docker", "run"]:
        image = next((i for i, word in enumerate(words) if word in ("stllava", "stllava-cuda")), None)
        return None if image is None else words[image + 1 :]
    return None


def fault_of_command(words: list[str], recipes: list[str]) -> str | None:
    """What our command line has against the words behind `stllava`; None where it takes them.

    Args:
        words: The words.
        recipes: Recipes that the page shows; a recipe that it does not show and that is not shipped counts as the last of
            them, or as any.
    """
    while words and words[0].partition("=")[0] in SETTINGS:
        words = words[1 if "=" in words[0] else SETTINGS[words[0]] :]
    if words in (["--version"], ["--help"]):
        return None
    commands = every_command()
    name = next((name for name in (" ".join(words[:2]), *words[:1]) if name in commands), None)
    if name is None:
        return f"there is no command stllava {' '.join(words)}"
    command, rest, said = commands[name], words[len(name.split()) :], io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(said), TemporaryDirectory() as folder:
            if command.takes_recipe:
                recipe = Path(folder) / "recipe.yaml"
                recipe.write_text([BASE, *recipes][-1], encoding="utf-8")
                shipped = RECIPES / rest[0]
                options = _loaded(shipped if shipped.is_file() else recipe)
                bind(command.load(), rest[1:], name=name, options=options)
            else:
                bind(command.load(), rest, name=name)
    except SystemExit:
        return f"stllava {name} refuses this: {_plain(said.getvalue())}"
    except StllavaError as error:
        return f"stllava {name} refuses this: {error}"
    return None


def _loaded(recipe: Path) -> RunOptions:
    """A recipe; a variable that is not set here stands for anything."""
    texts = [path.read_text(encoding="utf-8") for path in (recipe, *RECIPES.glob("*.yaml"))]
    names = {name for text in texts for name in re.findall(r"\$\{(\w+)\}", text)}
    with patch.dict(os.environ, {name: os.environ.get(name) or "anything" for name in names}):
        return load_recipe(recipe)


def _plain(text: str) -> str:
    """What a parser said, without its frame."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[─│╭╮╰╯]", " ", text).split())


def check_shell(block: Block, recipes: list[str]) -> Faults:
    """Every command of ours is one that our command line takes; what others are asked for here is here."""
    for line, text in command_lines(block):
        try:
            commands = words_of(text)
        except ValueError as error:
            yield line, f"no shell command: {error}"
            continue
        for words in commands:
            own = ours(words)
            fault = fault_of_command(own, recipes) if own is not None else fault_of_other(words)
            if fault is not None:
                yield line, fault


def fault_of_other(words: list[str]) -> str | None:
    """What is not here of what a command of others is asked for."""
    program, *rest = words
    if program == "make":
        missing = [word for word in rest if "=" not in word and word not in TARGETS]
        return f"the Makefile has no target {missing[0]}" if missing else None
    if program == "pip":
        extras = [name for word in rest for found in re.findall(r"\[(.*)\]", word) for name in found.split(",")]
        unknown = [name for name in extras if name not in EXTRAS]
        return f"there is no extra {unknown[0]}" if unknown else None
    if program == "python" and rest and rest[0].endswith(".py"):
        script = ROOT / rest[0]
        if not script.is_file():
            return f"there is no {rest[0]}"
        text = script.read_text(encoding="utf-8")
        unknown = [word for word in rest if word.startswith("--") and f'"{word.partition("=")[0]}"' not in text]
        return f"{rest[0]} has no {unknown[0]}" if unknown else None
    return None


def check_python(block: Block, recipes: list[str]) -> Faults:
    """It is Python."""
    try:
        compile(block.text, block.page, "exec")
    except SyntaxError as error:
        yield block.first_line + (error.lineno or 1) - 1, f"no Python: {error.msg}"


def check_recipe(block: Block, recipes: list[str]) -> Faults:
    """It is a recipe, or a piece of one, that the strict schema takes."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "base.yaml").write_text(BASE, encoding="utf-8")
        recipe = Path(folder) / "recipe.yaml"
        # The keys of a source of data are not laid over those of another source.
        head = "" if _is_whole(block.text) else "name: piece\n" if block.text.startswith("data:") else "base: base.yaml\n"
        recipe.write_text(head + block.text, encoding="utf-8")
        try:
            _loaded(recipe)
        except StllavaError as error:
            yield block.first_line, f"no recipe: {str(error).replace(str(recipe), 'it')}"


def check_record(block: Block, recipes: list[str]) -> Faults:
    """Each line is a record of the class that the fence names, and nothing but what is written is meant."""
    kind = getattr(stllava.records, block.name, None)
    if not (isinstance(kind, type) and issubclass(kind, stllava.records.Record)):
        yield block.line, f"no record is called {block.name!r}"
        return
    for number, line in enumerate(block.text.splitlines(), block.first_line):
        try:
            kind.model_validate_json(line)
        except ValidationError as error:
            yield number, f"no {block.name}: {_plain(str(error))}"


def check_table(block: Block, recipes: list[str]) -> Faults:
    """It is a table of samples."""
    with TemporaryDirectory() as folder:
        table = Path(folder) / "table.csv"
        table.write_text(block.text, encoding="utf-8")
        try:
            samples, _ = read_samples(table)
        except StllavaError as error:
            yield block.first_line, f"no table: {error}"
            return
        if len(samples) != len(block.text.splitlines()) - 1:
            yield block.first_line, f"a table of which {len(samples)} rows are read"


def check_template(block: Block, recipes: list[str]) -> Faults:
    """It is a template that renders a conversation with an image."""
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is it CT?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
    ]
    try:
        template = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False).from_string(block.text)
        said = template.render(messages=messages, eos_token="</s>", add_generation_prompt=True)
    except jinja2.TemplateError as error:
        yield block.first_line, f"no template: {error}"
        return
    if "Is it CT?" not in said or "Yes." not in said:
        yield block.first_line, "a template that leaves words out"


def check_drawing(block: Block, recipes: list[str]) -> Faults:
    """No command is passed off as a drawing."""
    for number, line in enumerate(block.text.splitlines(), block.first_line):
        if line.split() and line.split()[0] in COMMANDS:
            yield number, "a command in a block of text"


CHECKS: dict[str, Callable[[Block, list[str]], Faults]] = {
    "sh": check_shell,
    "python": check_python,
    "yaml": check_recipe,
    "json": check_record,
    "csv": check_table,
    "jinja": check_template,
    "text": check_drawing,
}
"""What is checked of a block without running it, by its language."""
