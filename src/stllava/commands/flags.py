"""Flags are read off the functions that commands call, so an option is defined once."""

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, TypeVar

import tyro
from tyro.conf import AvoidSubcommands, arg

from stllava.errors import StllavaError
from stllava.progress import clock
from stllava.records import Manifest
from stllava.stages.results import StageResult
from stllava.text import show

T = TypeVar("T")


def parse(function: Callable[..., T], words: list[str], *, name: str, options: object = inspect.Parameter.empty) -> T:
    """Call a function with what the flags say; its parameter `options` gives its fields as flags without a prefix."""
    signature = inspect.signature(function, eval_str=True)
    parameters = []
    for parameter in signature.parameters.values():
        if parameter.name == "options":
            bare: object = Annotated.__class_getitem__((parameter.annotation, arg(name="")))  # type: ignore[attr-defined]
            parameters.append(parameter.replace(annotation=bare, kind=inspect.Parameter.KEYWORD_ONLY, default=options))
        else:
            parameters.append(parameter)

    def call(**values: object) -> T:
        return function(**values)

    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    call.__doc__ = function.__doc__
    return tyro.cli(call, args=words, prog=f"stllava {name}", config=(AvoidSubcommands,))


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


def stage(function: Callable[..., StageResult]) -> Callable[[list[str]], None]:
    """The command of one stage, which prints what went in and came out."""

    def command(words: list[str]) -> None:
        tell(parse(function, words, name=function.__name__).manifest)

    return command


def tell(manifest: Manifest) -> None:
    """Print what went into a stage and came out, and what its reader must know."""
    dropped = ", ".join(f"{count} {cause}" for cause, count in manifest.dropped.items())
    show(f"{manifest.stage}: {manifest.counts_in} in, {manifest.counts_out} out in {clock(manifest.seconds)}")
    if dropped:
        show(f"  left out: {dropped}")
    for name, value in manifest.measures.items():
        show(f"  {name}: {value:.4g}")
    for note in manifest.notes:
        show(f"  {note}")
