"""Writes docs/api from the docstrings of everything that `import stllava` offers.

python tools/api_docs.py
"""

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

import stllava

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "api"
MADE = "Made from docstrings by `python tools/api_docs.py`."


def pages() -> dict[str, str]:
    """The pages by file name."""
    groups: dict[str, list[str]] = {"functions": [], "options": [], "records": [], "results": []}
    for name in stllava.__all__:
        value = getattr(stllava, name)
        if not inspect.isclass(value):
            groups["functions"].append(name)
        elif issubclass(value, BaseException) or dataclasses.is_dataclass(value):
            groups["results"].append(name)
        else:
            groups["options" if ".records" not in value.__module__ else "records"].append(name)
    titles = {"functions": "Functions", "options": "Options", "records": "Records", "results": "Results and errors"}
    index = ["# Python API", "", f"Everything that `import stllava` offers. {MADE}", ""]
    made = {}
    for group, names in groups.items():
        made[f"{group}.md"] = "\n".join([f"# {titles[group]}", "", MADE, "", *(part for name in names for part in entry(name))])
        index += [f"- [{titles[group]}]({group}.md): {', '.join(f'`{name}`' for name in names)}"]
    made["README.md"] = "\n".join([*index, ""])
    return made


def entry(name: str) -> Iterator[str]:
    """One name: its signature or fields, and what its docstring says."""
    value = getattr(stllava, name)
    yield f"## {name}"
    yield ""
    if not inspect.isclass(value):
        yield f"```python\n{signature(name, value)}\n```\n"
    yield inspect.getdoc(value) or ""
    yield ""
    fields = list(fields_of(value)) if inspect.isclass(value) else []
    if fields:
        yield "| field | type | default | |"
        yield "|---|---|---|---|"
        yield from (f"| `{field}` | `{kind}` | {default} | {text} |" for field, kind, default, text in fields)
        yield ""


def signature(name: str, function: object) -> str:
    """A function's parameters, one a line."""
    assert callable(function)
    found = inspect.signature(function)
    lines = []
    keyword_only = False
    for parameter in found.parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            lines.append("    *,")
        lines.append(f"    {plain(str(parameter))},")
    returns = inspect.formatannotation(found.return_annotation)
    return "\n".join([f"stllava.{name}(", *lines, f") -> {plain(returns)}"])


def plain(text: str) -> str:
    """A signature without modules, and without what a default prints of its insides."""
    text = re.sub(r"<function (\w+) at 0x\w+>", r"\1", text)
    text = re.sub(r"Annotated\[(\w+), AfterValidator\(func=\w+\)\]", r"\1", text)
    text = re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z]\w*)", "", text)
    return re.sub(r"= ([A-Z]\w+)\(.*\)$", r"= \1(…)", text).replace("'", '"')


def fields_of(kind: type) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and sentence of every field."""
    if issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            default = "" if field.is_required() else f"`{plain(repr(field.get_default(call_default_factory=True)))[:60]}`"
            annotation = plain(inspect.formatannotation(field.annotation)).replace("|", "\\|")
            yield name, annotation, default.replace("|", "\\|"), " ".join((field.description or "").split()).replace("|", "\\|")
        return
    if dataclasses.is_dataclass(kind):
        told = _docstrings(kind)
        for one in dataclasses.fields(kind):
            yield one.name, plain(inspect.formatannotation(one.type)).replace("|", "\\|"), "", told.get(one.name, "")


def _docstrings(kind: type) -> dict[str, str]:
    """The strings that stand below the fields of a dataclass and of those it is made of."""
    told: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        (body,) = ast.parse(inspect.cleandoc(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                told[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return told


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, text in pages().items():
        (FOLDER / file).write_text(text, encoding="utf-8")
