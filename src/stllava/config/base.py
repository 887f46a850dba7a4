"""The base of all options: immutable, unknown keys refused by name, flags and documentation from one definition."""

import difflib
from typing import Annotated, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from stllava.errors import StllavaError

Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0)]
O = TypeVar("O", bound="Options")  # noqa: E741


class Options(BaseModel):
    """Base of all options: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    free: ClassVar[frozenset[str]] = frozenset()
    """Options that change how the work is done but not what comes of it: they may differ when work is resumed."""

    def binding(self) -> dict[str, JsonValue]:
        """All options but the free ones: what unfinished work must have been started with to be resumed."""
        values: dict[str, JsonValue] = self.model_dump(mode="json", exclude=set(self.free))
        nested = {name: getattr(self, name) for name in values}
        return values | {name: value.binding() for name, value in nested.items() if isinstance(value, Options)}


def validate(kind: type[O], values: JsonValue, *, source: str) -> O:
    """Options from plain values; an unknown or ill-typed key is refused by name."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        parts = [str(part) for part in first["loc"]]
        key = ".".join(parts)
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(parts[-1], sorted(_keys(kind)), n=1)
            raise StllavaError(
                f"{source}: unknown key {key!r}",
                expected="only options that exist",
                remedy=f"Did you mean {near[0]!r}?" if near else "See `stllava run --help` for all of them.",
            ) from None
        if first["type"] == "value_error":
            wanted = first["msg"].removeprefix("Value error, ")
            raise StllavaError(
                f"{source}: {f'the options of {key}' if key else 'the options'} do not fit together",
                expected=wanted,
                remedy="Change one of them.",
            ) from None
        raise StllavaError(f"{source}: {key} is {first['input']!r}", expected=first["msg"], remedy="Mend that value.") from None


def _keys(kind: type[BaseModel]) -> set[str]:
    names: set[str] = set()
    for name, field in kind.model_fields.items():
        names.add(name)
        for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(part, type) and issubclass(part, BaseModel):
                names |= _keys(part)
    return names
