"""Compare two run directories: did a change of the code change what a run asks, answers, judges, pairs and scores?

    git stash; make demo; mv runs/phantom-0 before; git stash pop; make demo
    python bench/same_run.py before runs/phantom-0

BEFORE may be of an earlier version: folders and options that were renamed since are read under their names of today.
Compares every record of every stage, what each stage counted and dropped, the options and the outcome. Wall times, hashes
of files and wordings may differ. Prints a line for each comparison and what differs first in it; exits with 1 where
anything does.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from stllava.config import Options
from stllava.errors import StllavaError
from stllava.recipe import RunOptions
from stllava.records import Answers, Conversation, Judgment, Outcome, Prediction, Preference, Question, Record, Sample, Score
from stllava.rundir import RunDir
from stllava.store import MANIFEST, PARTS, first_difference, read_jsonl

KINDS: dict[str, type[Record]] = {
    "conversations": Conversation,
    "validation": Sample,
    "questions": Question,
    "answers": Answers,
    "judgments": Judgment,
    "preferences": Preference,
    "predictions": Prediction,
    "scores": Score,
}
"""What the files of records hold, by name; benchmarks, which are named freely, hold samples."""
FOLDERS = {"final/consolidate": "final/data"}
"""Today's names of a run's folders by their former ones."""
SAME = "the same"


def stages(run: Path) -> dict[str, Path]:
    """Every finished stage of a run by its folder's name of today."""
    folders = sorted(path.parent for path in run.rglob(MANIFEST) if PARTS not in path.parts)
    names = {folder.relative_to(run).as_posix(): folder for folder in folders if folder != run}
    return {FOLDERS.get(name, name): folder for name, folder in names.items()}


def difference(before: list[Any], after: list[Any]) -> str:
    """How two lists of JSON values differ first, in words."""
    for number, (old, new) in enumerate(zip_longest(before, after), 1):
        if old != new:
            if old is None or new is None:
                return f"{len(before)} before, {len(after)} now"
            return f"line {number}: {first_difference(old, new)}"
    return SAME


def compare_records(before: Path, after: Path, kind: type[Record]) -> str:
    """How two files of records differ."""
    try:
        old, new = ([record.model_dump(mode="json") for record in read_jsonl(path, kind)] for path in (before, after))
    except StllavaError as error:
        return str(error)
    found = difference(old, new)
    return f"{len(new)} {SAME}" if found == SAME else found


def compare_counts(before: Path, after: Path) -> str:
    """How what two stages counted differs."""
    counted = ("counts_in", "counts_out", "dropped")
    old, new = (json.loads((folder / MANIFEST).read_bytes()) for folder in (before, after))
    return difference([{name: old[name] for name in counted}], [{name: new[name] for name in counted}])


def renamed(values: dict[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    """Options under their names of today."""
    names = kind.renamed if issubclass(kind, Options) else {}
    today = {names.get(name, name): value for name, value in values.items()}
    for name, value in today.items():
        field = kind.model_fields.get(name)
        if field is not None and isinstance(value, dict):
            kinds = [one for one in nested(field.annotation) if "kind" not in value or accepts(one, value["kind"])]
            today[name] = renamed(value, kinds[0]) if kinds else value
    return today


def nested(annotation: Any) -> Iterator[type[BaseModel]]:
    """The option classes in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from nested(argument)


def accepts(kind: type[BaseModel], name: str) -> bool:
    """Whether a class of data options is that of a kind of data."""
    field = kind.model_fields.get("kind")
    return field is not None and name in getattr(field.annotation, "__args__", ())


def compare_options(before: Path, after: Path) -> str:
    """How the options of two runs differ; one that is new is the same where it has its default."""
    old, new = (json.loads(RunDir(run).plan.read_bytes())["config"] for run in (before, after))
    try:
        old, new = (RunOptions.model_validate(renamed(options, RunOptions)).model_dump(mode="json") for options in (old, new))
    except ValueError as error:
        return str(error)
    return difference([old], [new])


def compare_outcomes(before: Path, after: Path) -> str:
    """How what two runs came to differs: the policies, the best of them, all scores and gains."""
    shown = {"policies", "baselines", "best", "scores", "differences"}
    old, new = (Outcome.model_validate_json(RunDir(run).outcome.read_bytes()) for run in (before, after))
    return difference([old.model_dump(mode="json", include=shown)], [new.model_dump(mode="json", include=shown)])


def compare(before: Path, after: Path) -> dict[str, str]:
    """What was compared, and how it differs."""
    old, new = stages(before), stages(after)
    found = {"options": compare_options(before, after), "outcome": compare_outcomes(before, after)}
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            found[name] = "only before" if name in old else "only now"
            continue
        found[name] = compare_counts(old[name], new[name])
        files = {path.name for folder in (old[name], new[name]) for path in folder.glob("*.jsonl")}
        benchmarks = {path.parent.name for path in after.glob("evaluate/*/*/" + MANIFEST)}
        for file in sorted(files):
            kind = KINDS.get(Path(file).stem, Sample if Path(file).stem in benchmarks else None)
            if kind is not None:
                found[f"{name}/{file}"] = compare_records(old[name] / file, new[name] / file, kind)
    return found


def main() -> None:
    """Compare the runs that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    asked = parser.parse_args()
    found = compare(asked.before, asked.after)
    for name, words in found.items():
        print(f"{name:<44} {words}")
    differing = [name for name, words in found.items() if not words.endswith(SAME)]
    print(f"{len(differing)} of {len(found)} differ: {', '.join(differing)}" if differing else f"all {len(found)} are the same")
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
