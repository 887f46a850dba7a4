"""Names: a class stands once in the house, and what has a name that the field knows has no other one."""

import ast
import inspect
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import stllava
from stllava import config, stages
from stllava.config import Options

SOURCE = Path(stllava.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
CLASSES = """
    At Choice Choices FirstGradients Growth GrowingCache Heard Hidden Journal Knowing Known Learned Lessons Looks Lost Made
    Missed Pace Prefilled Purse Reading Said Seen Speaker Together Watch Whole
"""
FUNCTIONS = "additive forwards grow hearing hide know longest look_over only pick recomputed together truth_of"
OPTIONS = """
    alike borrow collapse consolidate denials describe describe_also description descriptions free k least most sq_r tokens
"""


def defined(kind: type[ast.ClassDef] | type[ast.FunctionDef]) -> Iterator[tuple[str, str]]:
    """Every class or function in the source, with where it stands."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, kind):
                yield node.name, f"{path.relative_to(SOURCE)}:{node.lineno}"


def test_no_class_name_stands_twice() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for name, place in defined(ast.ClassDef):
        places[name].append(place)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_no_file_name_stands_twice() -> None:
    times = Counter(path.stem for path in FILES if path.stem not in ("__init__", "__main__"))
    assert {name for name, count in times.items() if count > 1} == set()


def test_no_class_and_no_function_has_an_old_name() -> None:
    old = {*CLASSES.split(), *FUNCTIONS.split()}
    found = [*defined(ast.ClassDef), *defined(ast.FunctionDef)]
    assert [(name, place) for name, place in found if name in old] == []


def test_no_option_has_an_old_name() -> None:
    classes = {one for _, one in inspect.getmembers(config, inspect.isclass) if issubclass(one, Options)}
    for one in list(classes):
        classes |= {base for base in one.__mro__ if inspect.isclass(base) and issubclass(base, Options)}
    assert len(classes) > 15
    assert {(one.__name__, name) for one in classes for name in one.model_fields if name in OPTIONS.split()} == set()
    assert not {"free", "binding"} & {*dir(Options)}


def test_how_near_an_unmoved_policy_is_to_its_reference_stands_once() -> None:
    constants = [
        (target.id, path.name)
        for path in FILES
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id.startswith("CLOSE")
    ]
    assert sorted(constants) == [("CLOSE", "references.py"), ("CLOSE_IN_HALF", "references.py")]


def test_the_stages_are_those_that_their_package_names() -> None:
    """A count of them, "the seven stages", was wrong twice."""
    files = {path.stem for path in (SOURCE / "stages").glob("*.py")} - {"__init__"}
    assert {*re.findall(r"`(\w+)`", stages.__doc__ or "")} == files


def test_every_python_file_that_a_page_or_a_docstring_names_is_there() -> None:
    root = SOURCE.parent.parent
    files = (path for folder in ("src", "tests", "bench", "tools") for path in (root / folder).rglob("*.py"))
    paths = {f"/{path.relative_to(root).as_posix()}" for path in files} | {"/trl/trainer/dpo_trainer.py"}
    pages = [*root.glob("*.md"), *(page for page in root.glob("docs/*.md") if page.name != "log.md"), *FILES]
    named = {
        (page.relative_to(root).as_posix(), name)
        for page in pages
        if page.name != "CHANGELOG.md"
        for name in re.findall(r"[`(]([\w/]{1,80}\.py)[`)]", page.read_text(encoding="utf-8"))
    }
    assert len(named) > 20
    assert {(page, name) for page, name in named if not any(path.endswith(f"/{name}") for path in paths)} == set()
