"""The base of all options: immutable, unknown keys refused by name, flags and documentation from one definition."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError, ValidationInfo
from pydantic_core import ErrorDetails

from stllava.errors import StllavaError
from stllava.records.html import table_of

Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
O = TypeVar("O", bound="Options")  # noqa: E741
LONGEST = 200
"""Characters shown of a value that is refused."""


def _from_recipe(path: Path, info: ValidationInfo) -> Path:
    """A path of a recipe from the recipe's folder on; one given elsewhere stays as it is, from where the command is given."""
    folder: Path | None = (info.context or {}).get("folder")
    path = path.expanduser()
    return path if folder is None else folder / path


def _model_from_recipe(name: str, info: ValidationInfo) -> str:
    """A model's folder in the recipe's folder, where there is one of that name; else the name stays as it is."""
    folder: Path | None = (info.context or {}).get("folder")
    path = Path(name).expanduser() if folder is None else folder / Path(name).expanduser()
    return str(path) if name and path.is_dir() and folder is not None else name


def _list_from_recipe(path: Path, info: ValidationInfo) -> Path:
    """A list that lies beside the recipe; any other path stays as it is, for the image root to be looked in."""
    placed = _from_recipe(path, info)
    return placed if placed.is_file() else path


NamedPath = Annotated[Path, AfterValidator(_from_recipe)]
"""A file or folder; in a recipe relative to the recipe's folder."""
NamedList = Annotated[Path, AfterValidator(_list_from_recipe)]
"""A folder inside the image root, or a list of images; in a recipe that may lie in the recipe's folder."""
NamedModel = Annotated[str, AfterValidator(_model_from_recipe)]
"""The folder or hub name of a model; in a recipe a folder may be relative to the recipe's."""


class Options(BaseModel):
    """Base of all options: immutable, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, hide_input_in_errors=True
    )
    runtime_only: ClassVar[frozenset[str]] = frozenset()
    """Options that change how the work is done but not what comes of it: they may differ when work is resumed."""
    renamed: ClassVar[Mapping[str, str]] = {}
    """Today's names of options by those of the release before, which are refused."""

    def _repr_html_(self) -> str:
        """How a notebook shows them: a row for each option that says something."""
        return table_of(self)

    def resume_key(self) -> dict[str, JsonValue]:
        """All options but the runtime-only ones: what unfinished work must have been started with to be resumed."""
        values: dict[str, JsonValue] = self.model_dump(mode="json", exclude=set(self.runtime_only))
        nested = {name: getattr(self, name) for name in values}
        return values | {name: value.resume_key() for name, value in nested.items() if isinstance(value, Options)}


def validate(kind: type[O], values: JsonValue, *, source: str, folder: Path | None = None) -> O:
    """Options from plain values; an unknown or ill-typed key is refused by name.

    Relative paths among them start at `folder`, where one is given.
    """
    try:
        return kind.model_validate(values, context={"folder": folder})
    except ValidationError as error:
        first, *others = error.errors()
        # A mistyped key makes the right one missing too: to be told of the former is of more use.
        unknown = (fault for fault in others if fault["type"] == "extra_forbidden" and fault["loc"][:-1] == first["loc"][:-1])
        fault = next(unknown, first) if first["type"] == "missing" else first
        raise _refused(kind, fault, source=source) from None


def _refused(kind: type[BaseModel], fault: ErrorDetails, *, source: str) -> StllavaError:
    """The error of one wrong value, by its key."""
    place, names = _locate(kind, fault["loc"], unknown=fault["type"] == "extra_forbidden")
    key = ".".join(names)
    shown = repr(fault["input"])
    shown = shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}…"
    match fault["type"]:
        case "extra_forbidden":
            return StllavaError(
                f"{source}: unknown key {key!r}", expected="only options that exist", remedy=_suggest(kind, place, names[-1])
            )
        case "missing":
            return StllavaError(f"{source}: no {key!r}", expected="a value for it", remedy=f"Add {key}.")
        case "union_tag_not_found" | "union_tag_invalid":
            tag = fault["ctx"].get("tag")
            known = [name for one in _kinds(place.model_fields[names[-1]].annotation) for name in _literals(one)]
            found = f"{key}.kind is {tag!r}" if tag is not None else f"no '{key}.kind'"
            near = difflib.get_close_matches(str(tag), known, n=1)
            remedy = f"Did you mean {near[0]!r}?" if near else f"Set {key}.kind."
            return StllavaError(f"{source}: {found}", expected=f"one of {', '.join(known)}", remedy=remedy)
        case "value_error":
            return StllavaError(
                f"{source}: {f'the options of {key}' if key else 'the options'} do not fit together",
                expected=fault["msg"].removeprefix("Value error, "),
                remedy="Change one of them.",
            )
    wanted = fault["msg"].removeprefix("Input should be ")
    return StllavaError(f"{source}: {key} is {shown}", expected=wanted[:1].lower() + wanted[1:], remedy=f"Change {key}.")


def _locate(root: type[BaseModel], loc: Sequence[str | int], *, unknown: bool) -> tuple[type[BaseModel], list[str]]:
    """The options that hold what a validation error is about, and the keys that lead to it from the root.

    Where a value may be of several kinds, pydantic names the kind on the way, which is no key. The last key may be
    `unknown` to the options.
    """
    names: list[str] = []
    place, kinds, entries = root, [root], False
    for depth, part in enumerate(loc, 1):
        holder = next((one for one in kinds if part in one.model_fields), None)
        if holder is not None:
            annotation = holder.model_fields[str(part)].annotation
            place, kinds, entries = holder, list(_kinds(annotation)), get_origin(annotation) in (dict, tuple, list)
            names.append(str(part))
        elif chosen := [one for one in kinds if part in _literals(one)]:
            place, kinds = chosen[0], chosen
        elif entries or (unknown and depth == len(loc)):
            place, entries = (kinds or [place])[0], False
            names.append(str(part))
    return place, names


def _suggest(root: type[BaseModel], place: type[BaseModel], name: str) -> str:
    """The option that a wrong key may have meant: what it is called now, one of the same place, or one of another."""
    if issubclass(place, Options) and name in place.renamed:
        return f"It is called {place.renamed[name]!r} now."
    near = difflib.get_close_matches(name, list(place.model_fields), n=1)
    if near:
        return f"Did you mean {near[0]!r}?"
    elsewhere = [path for path in _paths(root) if path.rpartition(".")[2] == name]
    return f"Did you mean {elsewhere[0]!r}?" if elsewhere else "See `stllava run --help` for all of them."


def _paths(kind: type[BaseModel], before: str = "") -> Iterator[str]:
    """Every key of the options and of those within, the outer ones first."""
    yield from (before + name for name in kind.model_fields)
    for name, field in kind.model_fields.items():
        for inner in _kinds(field.annotation):
            yield from _paths(inner, f"{before}{name}.")


def renamed_keys(kind: type[BaseModel], before: str = "") -> Iterator[tuple[str, str]]:
    """Old keys of the options and of those within, each with the key of today, dots between their parts."""
    if issubclass(kind, Options):
        yield from ((before + old, before + new) for old, new in kind.renamed.items())
    for name, field in kind.model_fields.items():
        for inner in _kinds(field.annotation):
            yield from renamed_keys(inner, f"{before}{name}.")


def _kinds(annotation: object) -> Iterator[type[BaseModel]]:
    """The classes of options in a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _kinds(part)


def _literals(kind: type[BaseModel]) -> list[str]:
    """The values of the options' own `kind`, by which they are told from others."""
    field = kind.model_fields.get("kind")
    return [str(value) for value in get_args(field.annotation)] if field is not None else []
