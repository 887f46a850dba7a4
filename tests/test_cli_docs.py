"""Every flag explains itself, and docs/cli.md is what the commands say."""

import sys
from pathlib import Path

import pytest

from stllava.commands import every_command

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from cli_docs import PAGE, flags_of, page  # noqa: E402 - a script beside the package


@pytest.mark.parametrize("name", every_command())
def test_every_flag_of_every_command_has_a_help_sentence(name: str) -> None:
    flags = list(flags_of(every_command()[name]))
    assert flags
    assert [flag.name for flag in flags if len(flag.help.split()) < 2] == []


def test_the_page_of_commands_is_what_the_commands_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python tools/cli_docs.py"


def test_the_page_of_commands_knows_nothing_of_the_machine_it_was_made_on() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert str(Path.home()) not in text
    assert "/root" not in text
