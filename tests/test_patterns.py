"""Every regular expression in the house reads any text in time linear in its length.

The patterns are found in the source, so that a new one cannot be forgotten. What is read comes from servers, models, headers
and other people's files: "8/10, " repeated and a thousand newlines once held a judge for ever, and every resume of it.
"""

import ast
import importlib
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from re import _parser as parser  # type: ignore[attr-defined]  # The parse of a pattern has no public name.
from time import thread_time
from types import FrameType

import pytest

import stllava
from helpers.hostile import RUNS
from stllava.data.phantom import answer_parser
from stllava.remote.address import secrets_pattern

SOURCE = Path(stllava.__file__).parent
FLAGS_AT = {"compile": 1, "search": 2, "match": 2, "fullmatch": 2, "findall": 2, "finditer": 2, "sub": 4, "subn": 4, "split": 3}
"""Functions of `re` that take a pattern, and where they take flags."""
SEARCHES = frozenset({"search", "findall", "finditer", "sub", "subn", "split"})
MADE: Mapping[str, tuple[re.Pattern[str], ...]] = {
    "experts/rules/fallible.py": (re.compile(r"\bglioma\ grade\ 4\b", re.I),),
    "data/benchmarks/multiple_choice.py": (re.compile(r"^A\s*:\s*"),),
    "data/overlap.py": (re.compile(r'"conversations"\s*:'),),
    "data/phantom/answer_parser.py": tuple(pattern for _, pattern in answer_parser.patterns()),
    "remote/address.py": tuple(filter(None, [secrets_pattern(["sk-aB3/+x&\\"])])),
    "model/tokens.py": (re.compile(r"(<\|im_end\|>|<image>|</s>|\[INST\]|<unk>)"),),
    "model/prompt.py": (re.compile(r"(?<!<img_)<image>"), re.compile(r"<image>(?=[^\s<])")),
    "remote/identities.py": (re.compile(r"(?<!\w)a\.name(?!\w)"),),
    "metrics/robust.py": (re.compile(r"(?<!\w)left\ lung(?!\w)", re.IGNORECASE),),
}
"""Patterns that are made while running, by file, as they come out."""


@dataclass(frozen=True)
class Use:
    """A pattern and how it is used."""

    place: str
    pattern: re.Pattern[str] | re.Pattern[bytes]
    methods: frozenset[str]
    """Methods of the pattern that are called; all of them where that cannot be seen."""


def _is_re(call: ast.AST) -> bool:
    return (
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "re"
        and call.func.attr in FLAGS_AT
    )


@cache
def _methods() -> Mapping[str, frozenset[str]]:
    """By name, the methods that are called on what bears it anywhere in the house."""
    called: dict[str, set[str]] = {}
    for tree in _trees().values():
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=method)):
                    called.setdefault(name, set()).add(method)
    return {name: frozenset(methods) for name, methods in called.items()}


@cache
def _trees() -> Mapping[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))}


def uses() -> Iterator[Use]:
    """Every pattern in the house; one that is made while running and not shown in `MADE` is an error."""
    for path, tree in _trees().items():
        names = {
            id(node.value): target.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for call in ast.walk(tree):
            if not _is_re(call):
                continue
            assert isinstance(call, ast.Call)
            assert isinstance(call.func, ast.Attribute)
            where, method = path.relative_to(SOURCE).as_posix(), call.func.attr
            methods = (_methods().get(names.get(id(call), ""), frozenset())) if method == "compile" else {method}
            given = [word.value for word in call.keywords if word.arg == "flags"] + call.args[FLAGS_AT[method] :][:1]
            patterns: tuple[re.Pattern[str] | re.Pattern[bytes], ...]
            try:
                patterns = (_pattern(call.args[0], given, {"re": re}),)
            except NameError:
                patterns = MADE.get(where, ())
            if not patterns:
                try:
                    patterns = (_pattern(call.args[0], given, _names_of(path)),)
                except NameError as error:
                    problem = f"{where}:{call.lineno} makes a pattern while running; show in MADE how it comes out ({error})"
                    raise AssertionError(problem) from None
            yield from (Use(f"{where}:{call.lineno}", pattern, frozenset(methods & FLAGS_AT.keys())) for pattern in patterns)


def _names_of(path: Path) -> Mapping[str, object]:
    """What is defined in a module; only those are loaded whose patterns are put together there."""
    return vars(importlib.import_module(".".join(("stllava", *path.relative_to(SOURCE).with_suffix("").parts))))


def _pattern(node: ast.expr, flags: list[ast.expr], names: Mapping[str, object]) -> re.Pattern[str] | re.Pattern[bytes]:
    text, number = _value(node, names), _value(flags[0], names) if flags else 0
    assert isinstance(text, str | bytes)
    assert isinstance(number, int)
    return re.compile(text, number)


def _value(node: ast.expr, names: Mapping[str, object]) -> object:
    value: object = eval(compile(ast.Expression(node), "a pattern", "eval"), dict(names))
    return value


def pieces(pattern: re.Pattern[str] | re.Pattern[bytes]) -> list[str]:
    """Texts that the parts of a pattern match: what it looks for is what it can be led on by."""
    found: dict[str, None] = {}

    def text_of(nodes: object) -> str:
        text = "".join(_sample(str(name), value) for name, value in nodes)  # type: ignore[attr-defined]
        found.setdefault(text)
        return text

    def _sample(name: str, value: object) -> str:
        match name, value:
            case ("LITERAL", int(code)):
                return chr(code)
            case ("IN", list(members)):
                return next((char for member in members if (char := _member(*member))), "x")
            case ("MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT", (int(least), _, inner)):
                return text_of(inner) * max(1, min(least, 5))
            case ("SUBPATTERN", (_, _, _, inner)) | ("ASSERT" | "ASSERT_NOT", (_, inner)) | ("ATOMIC_GROUP", inner):
                return text_of(inner)
            case ("BRANCH", (_, list(branches))):
                texts = [text_of(branch) for branch in branches[:8]]
                return texts[0]
            case ("ANY" | "NOT_LITERAL" | "GROUPREF", _):
                return "x"
        return ""

    def _member(name: object, value: object) -> str:
        match str(name), value:
            case ("LITERAL", int(code)) | ("RANGE", (int(code), _)):
                return chr(code)
            case ("CATEGORY", kind):
                return {"DIGIT": "1", "SPACE": " ", "WORD": "a", "NOT_WORD": "-"}.get(str(kind).removeprefix("CATEGORY_"), "")
        return ""

    whole = text_of(parser.parse(pattern.pattern, pattern.flags))
    return [whole, *(text for text in found if text and text != whole)][:16]


PUMPS = (
    "\n",
    " ",
    " \n",
    "1",
    "1, ",
    "8/10, ",
    "a",
    "a ",
    ".",
    "-",
    "_",
    '"',
    "'",
    "\\",
    "\\'",
    "(",
    "[",
    "{",
    "<",
    "/",
    "\u2028",
    "é",
)
ENDS = ("", "\x01", "a", "-")


def hostile_texts(pattern: re.Pattern[str] | re.Pattern[bytes], size: int) -> Iterator[str]:
    """Texts of about this size that lead a pattern on as long as can be, and end so that it fails."""
    own = pieces(pattern)
    for pump in dict.fromkeys([*PUMPS, *own]):
        body = pump * (size // len(pump))
        yield from (body + end for end in ENDS)
        yield from (start + body + end for start in own[:3] for end in ENDS[1:3] if start != pump)


class TooSlowError(Exception):
    """A pattern was stopped."""


@contextmanager
def stopped_after(seconds: float) -> Iterator[None]:
    """Raise in the midst of a search: the engine looks for signals every few thousand steps."""

    def stop(_: int, __: FrameType | None) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def spent(read: Callable[[], object], *, most: float) -> float:
    """Seconds of this thread that reading takes; stopped where it takes far more than `most`."""
    began = thread_time()
    try:
        with stopped_after(20 * most):
            read()
    except TooSlowError:
        return float("inf")
    return thread_time() - began


def slow(use: Use, texts: Iterator[str], *, most: float) -> Iterator[str]:
    """What a pattern takes longer than `most` seconds to read."""
    pattern = use.pattern
    methods = use.methods or {"finditer", "match", "fullmatch"}
    for text in texts:
        given: object = text.encode("latin-1", "replace") if isinstance(pattern.pattern, bytes) else text
        for name in sorted({"finditer" if method in SEARCHES else method for method in methods}):

            def read(name: str = name, given: object = given) -> object:
                found = getattr(pattern, name)(given)
                return sum(1 for _ in found) if name == "finditer" else found

            if spent(read, most=most) > most and (seconds := spent(read, most=most)) > most:
                yield f"{use.place} {name} takes {seconds:.2f} s over {len(text):,} characters: {text[:30]!r} … {text[-10:]!r}"
                return


USES = list(uses())
SOME = 3_000
"""Characters over which time that grows with their square is told from time that grows with them."""


def test_the_patterns_of_the_house_are_found() -> None:
    assert len({use.place for use in USES}) > 80
    assert any("thoughts.py" in use.place for use in USES)
    assert sum("data/phantom/answer_parser.py" in use.place for use in USES) > 20


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"\s+$", r"\w*[^\W\x00-\x7f]\w*", r"(\d+, ?)*x"])
def test_a_pattern_that_backtracks_is_caught(pattern: str) -> None:
    made = re.compile(pattern)
    assert list(slow(Use("here", made, frozenset()), hostile_texts(made, SOME), most=0.02))


@pytest.mark.parametrize("use", USES, ids=lambda use: use.place)
def test_no_pattern_takes_more_than_a_moment_for_a_few_thousand_characters(use: Use) -> None:
    assert not list(slow(use, hostile_texts(use.pattern, SOME), most=0.02))


@pytest.mark.slow
@pytest.mark.parametrize("use", USES, ids=lambda use: use.place)
def test_no_pattern_takes_long_for_a_hundred_thousand_characters(use: Use) -> None:
    texts = (run * (100_000 // len(run)) for run in RUNS.values())
    assert not list(slow(use, texts, most=0.5))
    assert not list(slow(use, hostile_texts(use.pattern, 100_000), most=0.5))
