"""Flags are read off the functions that commands call, so an option is defined once."""

import difflib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar, get_args

import tyro
from pydantic import ValidationError
from tyro.conf import AvoidSubcommands, arg

from stllava.commands import COMMANDS, Command, Group
from stllava.commands.telling import tell, tell_result
from stllava.config import Options
from stllava.config.base import renamed_keys
from stllava.errors import StllavaError
from stllava.progress import place_among_processes
from stllava.recipe import RECIPES, load_recipe
from stllava.records import Manifest
from stllava.stages.results import StageResult
from stllava.text import show

T = TypeVar("T")
EMPTY: object = inspect.Parameter.empty


def dispatch(words: list[str]) -> None:
    """Run the command that the words name, with the flags behind it."""
    name, *rest = words
    entry = COMMANDS.get(name)
    if entry is None:
        near = difflib.get_close_matches(name, list(COMMANDS), n=1)
        raise StllavaError(
            f"no command {name!r}",
            expected=f"one of {', '.join(COMMANDS)}",
            remedy=f"Did you mean {near[0]!r}?" if near else "See stllava --help.",
        )
    if isinstance(entry, Command):
        run_command(name, entry, rest)
    elif rest and rest[0] in entry.members:
        run_command(f"{name} {rest[0]}", entry.members[rest[0]], rest[1:])
    elif rest and rest[0] in ("-h", "--help"):
        show(group_help(name, entry))
        sys.exit(0)
    else:
        raise StllavaError(
            f"{name} of {rest[0]!r}" if rest else f"{name} of what?",
            expected=f"stllava {name} {'|'.join(entry.members)} …",
            remedy=f"See stllava {name} --help.",
        )


def group_help(name: str, group: Group) -> str:
    """The text of `stllava import --help`."""
    lines = [f"usage: stllava {name} WHAT …", "", group.summary, ""]
    lines += [f"  {member:<14} {command.summary}" for member, command in group.members.items()]
    return "\n".join([*lines, "", f"`stllava {name} WHAT --help` lists the options."])


def run_command(name: str, command: Command, words: list[str]) -> None:
    """Call a command with its flags and print what its stage, if it is one, came to."""
    place, processes = place_among_processes()
    if processes > 1 and not command.trains:
        raise StllavaError(
            f"{name} was launched in {processes} processes",
            expected="sft or dpo, which learn in several processes together",
            remedy="Start it once; docs/training.md says how training stages of a run are launched.",
        )
    options: object = EMPTY
    if command.takes_recipe:
        asks_for_help = bool(words) and words[0] in ("-h", "--help")
        if not asks_for_help and (not words or words[0].startswith("-")):
            raise StllavaError(
                "no recipe", expected=f"stllava {name} RECIPE.yaml", remedy=f"The recipes shipped are in {RECIPES}."
            )
        recipe, words = (RECIPES / "phantom.yaml", words) if asks_for_help else (Path(words[0]), words[1:])
        options, name = load_recipe(recipe), f"{name} RECIPE"
    result = parse(command.load(), words, name=name, options=options)
    if isinstance(result, StageResult) and place == 0:
        tell_result(result)
    elif isinstance(result, Manifest):
        tell(result)


def parse(function: Callable[..., T], words: list[str], *, name: str, options: object = EMPTY) -> T:
    """Call a function with what the flags say; its parameter `options` gives its fields as flags without a prefix."""
    return bind(function, words, name=name, options=options)()


def bind(function: Callable[..., T], words: list[str], *, name: str, options: object = EMPTY) -> Callable[[], T]:
    """The call that the flags make of a function, which is not called yet.

    Raises:
        StllavaError: Where a value does not fit, or a flag has another name today. Of other faults tyro says itself what
            is wrong, and ends the process.
    """
    call = flagged(function, options=options)
    refuse_renamed(call, words)
    try:
        bound: Callable[[], T] = tyro.cli(call, args=words, prog=f"stllava {name}", config=(AvoidSubcommands,))
    except ValidationError as error:
        raise _unfit(error) from None
    return bound


def _unfit(error: ValidationError) -> StllavaError:
    """The error of a value, or of values together, that the options do not take."""
    fault = error.errors()[0]
    expected = fault["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    if not fault["loc"]:
        return StllavaError("the flags do not fit together", expected=expected, remedy="Change one of them.")
    name = flag(".".join(str(part) for part in fault["loc"]))
    return StllavaError(f"{name} is {fault['input']!r}", expected=expected, remedy=f"Change {name}.")


def flagged(function: Callable[..., T], *, options: object = EMPTY) -> Callable[..., Callable[[], T]]:
    """What takes a function's flags and returns the call that they make.

    It has the signature that tyro reads flags from: all by name but what is positional.
    """
    signature = inspect.signature(function, eval_str=True)
    parameters = []
    for parameter in signature.parameters.values():
        if parameter.name == "options":
            bare: object = Annotated.__class_getitem__((parameter.annotation, arg(name="")))  # type: ignore[attr-defined]
            parameters.append(parameter.replace(annotation=bare, kind=inspect.Parameter.KEYWORD_ONLY, default=options))
        else:
            parameters.append(parameter)

    def call(**values: object) -> Callable[[], T]:
        return partial(function, **values)

    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    call.__doc__ = function.__doc__
    return call


def refuse_renamed(function: Callable[..., object], words: Sequence[str]) -> None:
    """Refuse a flag of the release before by the name that it has today."""
    renamed: dict[str, str] = {}
    for parameter in inspect.signature(function).parameters.values():
        kind = get_args(parameter.annotation)[0] if parameter.name == "options" else parameter.annotation
        before = "" if parameter.name == "options" else f"{parameter.name}."
        if inspect.isclass(kind) and issubclass(kind, Options):
            renamed |= {flag(old): flag(new) for old, new in renamed_keys(kind, before)}
    for word in words:
        given = word.partition("=")[0].replace("_", "-")
        for old, new in renamed.items():
            if given == old or given.startswith(f"{old}."):
                raise StllavaError(
                    f"no flag {given}",
                    expected="only flags that exist",
                    remedy=f"It is called {new}{given.removeprefix(old)} now.",
                )


def flag(key: str) -> str:
    """A key of the options as a flag."""
    return f"--{key.replace('_', '-')}"


def refuse_ignored(flags: Mapping[str, object], *, beside: str = "", without: str = "") -> None:
    """Refuse flags that were given, so are not None, but would have no effect `beside` or `without` another one."""
    given = [name for name, value in flags.items() if value is not None]
    if not given:
        return
    names = " and ".join(given)
    raise StllavaError(
        f"{names} {f'beside {beside}' if beside else f'without {without}'}",
        expected="flags that have an effect together",
        remedy=f"Leave {names} or {beside} out." if beside else f"Add {without}, or leave {names} out.",
    )
