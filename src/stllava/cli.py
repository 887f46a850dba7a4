"""The command line: one subcommand a verb. Torch is imported by the stages that need it, not here.

stllava demo                    the whole loop on synthetic phantoms
stllava run RECIPE.yaml         the whole loop on your data
stllava ask --help              the options of one stage
stllava compare RUN…            tables of several runs
"""

import io
import logging
import os
import select
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from stllava.commands import COMMANDS
from stllava.errors import StllavaError
from stllava.progress import LOG_FORM, LOUDNESS, json_event
from stllava.text import printable, show

USAGE = """usage: stllava [--quiet | --verbose] [--log json] COMMAND [options]

A general vision-language model becomes a medical one by asking itself.

commands:
"""
OF_LIBRARIES = (".is_gradient_checkpointing. is deprecated",)
"""Warnings of libraries about each other, of which a user can do nothing."""


class PrintableFormatter(logging.Formatter):
    """Writes warnings, which may quote a server or a model, without anything that a terminal obeys."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        return printable(super().format(record))


class JsonFormatter(logging.Formatter):
    """Writes warnings as lines of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        return json_event("log", level=record.levelname.lower(), logger=record.name, message=record.getMessage())


def take_settings(words: list[str]) -> list[str]:
    """Put what stands before the command into the environment, where child processes find it; returns the command on."""
    while words and words[0].startswith("--"):
        match words[0].split("="), words[1:2]:
            case (["--quiet" | "--verbose"], _):
                os.environ[LOUDNESS], words = words[0].removeprefix("--"), words[1:]
            case (["--log"], ["json" | "text" as form]):
                os.environ[LOG_FORM], words = form, words[2:]
            case (["--log", "json" | "text" as form], _):
                os.environ[LOG_FORM], words = form, words[1:]
            case _:
                break
    return words


def tell_error(error: object) -> None:
    """Write what a user can put right, as a sentence or as a line of JSON."""
    if os.environ.get(LOG_FORM) == "json":
        show(json_event("error", message=str(error)), stream=sys.stderr)
    else:
        show(f"stllava: {error}", stream=sys.stderr)


def show_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Write the traceback of a fault of this program, whose last line may quote a server or a model."""
    show("".join(traceback.format_exception(kind, error, trace)), stream=sys.stderr, end="")


def reader_is_gone(descriptor: int) -> bool:
    """Whether an open file is a pipe whose reader, such as `head`, has seen enough."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def usage() -> str:
    """The text of `stllava --help`."""
    lines = "".join(f"  {name:<11} {entry.summary}\n" for name, entry in COMMANDS.items())
    return USAGE + lines + "\n`stllava COMMAND --help` lists the options of a command.\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; user errors are printed without a traceback and end with exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal of another encoding lacks × and –
    words = take_settings(list(sys.argv[1:] if arguments is None else arguments))
    if not words or words[0] in ("-h", "--help"):
        show(usage(), end="")
        sys.exit(0 if words else 2)
    if words[0] == "--version":
        from stllava.commands.installed import versions

        show(versions())
        return
    sys.excepthook = show_crash
    handler = logging.StreamHandler()
    in_json = os.environ.get(LOG_FORM) == "json"
    handler.setFormatter(JsonFormatter() if in_json else PrintableFormatter("%(levelname)s %(name)s: %(message)s"))
    levels = {"quiet": logging.ERROR, "verbose": logging.INFO}
    logging.basicConfig(level=levels.get(os.environ.get(LOUDNESS, ""), logging.WARNING), handlers=[handler])
    for message in OF_LIBRARIES:
        warnings.filterwarnings("ignore", message=message)
    # Of a refused flag the fault is told, not where a library's own pages explain its kind.
    os.environ.setdefault("PYDANTIC_ERRORS_INCLUDE_URL", "0")
    try:
        from stllava.commands.flags import dispatch

        dispatch(words)
    except StllavaError as error:
        tell_error(error)
        sys.exit(2)
    except BrokenPipeError:
        if not reader_is_gone(sys.stdout.fileno()):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        from stllava.store import disk_error

        told = disk_error(error, Path.cwd())
        if told is None:
            raise
        tell_error(told)
        sys.exit(2)
    except KeyboardInterrupt:
        show("\nstllava: stopped; the same command goes on where it was.", stream=sys.stderr)
        sys.exit(130)
