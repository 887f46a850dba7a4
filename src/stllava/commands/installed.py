"""`stllava --version` and `completion`: what is installed, and how a shell completes it."""

import platform
from contextlib import redirect_stdout, suppress
from importlib.metadata import version
from io import StringIO
from typing import Literal

import tyro
from tyro.conf import AvoidSubcommands, Positional
from tyro.extras import SubcommandApp

from stllava.commands import COMMANDS, Command, Group
from stllava.commands.flags import EMPTY, flagged
from stllava.recipe import RECIPES, load_recipe
from stllava.text import show


def versions() -> str:
    """The text of `stllava --version`: its version, those of what results hang on, and the device."""
    from stllava.model.device import best_device, describe_device

    lines = [f"{name} {version(name)}" for name in ("stllava", "torch", "transformers")]
    return "\n".join([*lines, f"python {platform.python_version()}", f"device {describe_device(best_device())}"])


def completion(shell: Positional[Literal["bash", "zsh", "fish"]]) -> None:
    """Print a script that completes commands, flags and their values: `source <(stllava completion bash)`.

    Args:
        shell: The shell it is for.
    """
    script = StringIO()
    with redirect_stdout(script), suppress(SystemExit):
        every_command_app().cli(prog="stllava", args=["--tyro-write-completion", shell, "-"], config=(AvoidSubcommands,))
    # A sentence of several lines would be offered line by line as words to choose from.
    lines = (line.replace("\\n", " ") if line.startswith("COMPLETION_SPEC") else line for line in script.getvalue().split("\n"))
    show("\n".join(lines), end="")


def every_command_app() -> tyro.extras.SubcommandApp:
    """All commands as one parser, which takes long to build and is needed for completion alone."""
    app = SubcommandApp()
    for name, entry in COMMANDS.items():
        if isinstance(entry, Group):
            group = SubcommandApp()
            for member, command in entry.members.items():
                _add(group, member, command)
            app.command(group, name=name, help=entry.summary)
        else:
            _add(app, name, entry)
    return app


def _add(app: SubcommandApp, name: str, command: Command) -> None:
    options: object = load_recipe(RECIPES / "phantom.yaml") if command.takes_recipe else EMPTY
    app.command(name=name, help=command.summary)(flagged(command.load(), options=options))
