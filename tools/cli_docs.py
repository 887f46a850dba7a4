"""Writes docs/cli.md from the commands themselves: their docstrings, and every flag with its help and default.

python tools/cli_docs.py
"""

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro
from tyro.conf import AvoidSubcommands

from stllava.commands import Command, every_command
from stllava.commands.flags import EMPTY, flagged
from stllava.data.sources import PhantomData
from stllava.recipe import RunOptions

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
HEAD = """# Commands

Every command with its flags, made from the commands themselves by `python tools/cli_docs.py`. Paths given as flags start where
the command is given. A flag whose default is True or False is written alone (`--check`), or with `no-` for the opposite
(`--no-pack`). The flags `--data…` of `stllava run` are those of the kind of data that the recipe names; here, phantoms.
The defaults here are those where a recipe says nothing; `stllava run --help` shows the values of the demo's recipe, and
`stllava run my-recipe.yaml --help` those of yours.

Before the command: `--quiet` leaves progress and warnings out, `--verbose` adds what is not told otherwise, and `--log json`
writes progress, warnings and errors as JSON lines (`time`, `event`, and what belongs to it) to the standard error output:
`stllava --log json run my-recipe.yaml`. Progress is one live line on a terminal, else a line every 30 seconds.

Exit codes: 0, done; 2, something that you can put right, said in one sentence; 130, stopped by Ctrl-C (the same command goes
on); 141, nobody reads the output any more; 1, a fault of stllava, with its traceback.
"""


@dataclass(frozen=True)
class Flag:
    """A flag of a command."""

    name: str
    """As it is written, or the name of a word without a flag."""
    takes: str
    """What stands behind it; empty for a switch."""
    help: str
    """Its sentence, without the default."""
    default: str
    """What it is without being given; empty where it must be given."""


def flags_of(command: Command) -> Iterator[Flag]:
    """Every flag of a command, nested ones too, as tyro's parser has them."""
    options: object = RunOptions(name="mine", data=PhantomData()) if command.takes_recipe else EMPTY
    with warnings.catch_warnings():
        # tyro 1 calls this deprecated and offers nothing else that lists flags; docs and tests alone depend on it.
        warnings.simplefilter("ignore", DeprecationWarning)
        parser = tyro.extras.get_parser(flagged(command.load(), options=options), config=(AvoidSubcommands,))
    for action in parser._actions:
        if action.dest == "help":
            continue
        text = re.sub(r"\x1b\[[0-9;]*m", "", str(action.help or "")).replace("%%", "%").strip()
        found = re.search(r"\s*\((default: (?P<default>.*)|required|optional)\)$", text, re.DOTALL)
        sentence = " ".join((text[: found.start()] if found else text).split())
        default = " ".join((found["default"] or "").split()) if found else ""
        names = [name for name in action.option_strings if name.startswith("--")]
        takes = action.metavar if isinstance(action.metavar, str) else " ".join(action.metavar or ())
        yield Flag(names[0] if names else str(takes or action.dest), str(takes) if names and takes else "", sentence, default)


def page() -> str:
    """The page."""
    parts = [HEAD]
    for name, command in every_command().items():
        text = (command.load().__doc__ or "").strip()
        about = re.split(r"\n\s*(?:Args|Raises):", text)[0]
        recipe = " RECIPE.yaml" if command.takes_recipe else ""
        parts += [f"## stllava {name}\n\n`stllava {name}{recipe} …`\n", *(re.sub(r"\n\s+", "\n", about).splitlines()), ""]
        parts += ["| flag | takes | default | what it does |", "|---|---|---|---|"]
        parts += [
            f"| `{flag.name}` | {_cell(flag.takes)} | {_cell(flag.default)} | {flag.help.replace('|', chr(92) + '|')} |"
            for flag in flags_of(command)
        ]
        parts.append("")
    return "\n".join(parts).replace(str(Path.home()), "~")


def _cell(text: str) -> str:
    return f"`{text.replace('|', chr(92) + '|')}`" if text else ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
