"""Damage every file that a run writes, one at a time, and give the same command again.

    python bench/damage.py --seed 0 [--sample 40]

A tiny run is made three times: to its end, with its own manifest taken away so that every stage is looked at again, and
killed in the middle of sft, ask and judge. Each of their files is cut at a random place, emptied, changed, deleted, made
read-only and unreadable, and each folder read-only; then the command is given again, in a process whose root may not
pass over permissions. It must end with the files of an undamaged run, byte for byte, or with a `StllavaError`; where it
is an error, the damage is undone and the command must then succeed, so that nothing was lost.

Writes nothing but a temporary folder; prints what came of each kind of damage. Exits with 1 where anything else happened.
"""

import argparse
import contextlib
import ctypes
import hashlib
import importlib
import json
import logging
import os
import random
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stllava.errors import StllavaError
from stllava.pipeline import run
from stllava.recipe import RunOptions
from stllava.store import AUDIT, EXCHANGES, LOCK, MANIFEST, PARTS

RATES = {"language": 3e-3, "projector": 3e-3, "vision": 3e-3}
TRAINING = {"epochs": 40, "batch_size": 4, "save_steps": 20, "learning_rate": RATES}
OPTIONS = RunOptions.model_validate(
    {
        "name": "damage",
        "data": {"kind": "phantom", "labelled": 12, "unlabelled": 6, "validation": 2, "test": 2, "size": 64},
        "small": {
            "image_size": 32,
            "patch_size": 16,
            "vision_width": 32,
            "vision_layers": 1,
            "language_width": 32,
            "language_layers": 2,
            "heads": 2,
            "vocabulary": 400,
            "context": 512,
        },
        "sft": TRAINING,
        "ask": {
            "questions": 4,
            "chunk": 2,
            "sampling": {"temperature": 0.6, "max_new_tokens": 16},
            "description_sampling": {"max_new_tokens": 16},
        },
        "answer": {"num_answers": 6, "chunk": 4, "sampling": {"temperature": 2.0, "max_new_tokens": 8}},
        "judge": {"expert": "scripted", "scripted": {"prefer": ["no", "yes", "ct", "mr", "x", "left", "right", "chest"]}},
        "pair": {"balance": False, "margin": 0.01, "min_chosen_score": 0, "max_denial_share": 1},
        "dpo": TRAINING | {"epochs": 2, "learning_rate": dict.fromkeys(RATES, 1e-3)},
        "evaluate": {"chunk": 4, "sampling": {"temperature": 0, "max_new_tokens": 8}},
        "baselines": False,
        "rounds": 1,
    }
)
TIMED = (MANIFEST, "plan.json", "summary.json", "report.html", "seal.json", LOCK, AUDIT)
"""Files that hold times, or what a run does not come to."""
KILLED = {
    "sft": "sft/parts/training/checkpoint-40/trainer_state.json",
    "ask": "round-1/ask/parts",
    "judge": "round-1/judge/plan.json",
}
"""Where a run is killed, and the file or folder whose coming says that it is there."""


@dataclass(frozen=True)
class Case:
    """One damage to one file or folder of a run."""

    state: str
    """whole, resumed, or the stage in which the run was killed."""
    path: str
    damage: str


def cut(path: Path, draw: random.Random) -> None:
    """Leave the beginning, up to a random place."""
    os.truncate(path, draw.randrange(path.stat().st_size))


def change(path: Path, draw: random.Random) -> None:
    """Flip a bit at a random place."""
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path, random.Random], object]] = {
    "cut": cut,
    "emptied": lambda path, _: os.truncate(path, 0),
    "changed": change,
    "deleted": lambda path, _: path.unlink(),
    "read-only": lambda path, _: path.chmod(0o444),
    "unreadable": lambda path, _: path.chmod(0),
}
FOLDERS = "read-only folder"


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Capabilities(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def heed_permissions() -> None:
    """Take from this process root's right to pass over the permissions of its own files."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = _CapabilityHeader(0x20080522, 0), (_Capabilities * 2)()
    if libc.capget(ctypes.byref(header), sets) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    over = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    for place in sets:
        place.effective &= ~over
    if libc.capset(ctypes.byref(header), sets) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def load_libraries() -> None:
    """Import once, before any fork, what every run would import by itself."""
    for name in (
        "model.small",
        "model.adapters",
        "generation.local_sampler",
        "training.preference_steps",
        "training.sft_dataset",
        "tree.guard",
    ):
        importlib.import_module(f"stllava.{name}")


def attempt(to: Path) -> tuple[str, str]:
    """Give the command in a process of its own; returns done, refused or failed, and what was said."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with contextlib.redirect_stderr(open(os.devnull, "w", encoding="utf-8")):  # noqa: PTH123
            logging.disable()
            heed_permissions()
            try:
                run(OPTIONS, to=to)
                said = ("done", "")
            except StllavaError as error:
                said = ("refused", str(error))
            except BaseException:  # noqa: BLE001 - the parent tells it
                said = ("failed", traceback.format_exc())
        os.write(writing, json.dumps(said).encode()[:60_000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    return tuple(json.loads(told)) if told else ("failed", f"the process ended with {status}")


def killed(to: Path, sign: str) -> None:
    """A run that was killed as soon as the file or folder `sign` had come."""
    child = os.fork()
    if child == 0:
        with contextlib.redirect_stderr(open(os.devnull, "w", encoding="utf-8")):  # noqa: PTH123
            run(OPTIONS, to=to)
        os._exit(0)
    while not (to / sign).exists() and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file that a run comes to."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in TIMED)
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if not {EXCHANGES, PARTS} & set(path.relative_to(folder).parts)
    }


def make_states(work: Path) -> dict[str, Path]:
    """The runs that are damaged, by what became of them."""
    states = {"whole": work / "whole", "resumed": work / "resumed"} | {name: work / name for name in KILLED}
    what, said = attempt(states["whole"])
    if what != "done":
        sys.exit(f"the undamaged run {what}: {said}")
    shutil.copytree(states["whole"], states["resumed"])
    (states["resumed"] / MANIFEST).unlink()
    for name, sign in KILLED.items():
        killed(states[name], sign)
    return states


def cases(states: dict[str, Path]) -> list[Case]:
    """Every damage to every file and folder; of pictures, which are many and alike, two of each part of the data."""
    found = []
    for state, folder in states.items():
        pictures: Counter[Path] = Counter()
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            pictures[path.parent] += path.suffix == ".png"
            if path.is_dir():
                found.append(Case(state, name, FOLDERS))
            elif path.suffix != ".png" or pictures[path.parent] <= 2:
                fitting = [*DAMAGES] if path.stat().st_size else ["deleted", "read-only", "unreadable"]
                found += [Case(state, name, damage) for damage in fitting]
    return found


@contextlib.contextmanager
def damaged(case: Case, states: dict[str, Path], spare: Path, draw: random.Random) -> Iterator[Path]:
    """A copy of the run with the damage done to it."""
    to = Path(shutil.copytree(states[case.state], spare / "run"))
    path = to / case.path
    if case.damage == FOLDERS:
        path.chmod(0o555)
    else:
        DAMAGES[case.damage](path, draw)
    try:
        yield to
    finally:
        for entry in (to, *to.rglob("*")):
            entry.chmod(stat.S_IRWXU if entry.is_dir() else stat.S_IRUSR | stat.S_IWUSR)
        shutil.rmtree(to)


def try_case(
    case: Case, states: dict[str, Path], expected: dict[str, str], spare: Path, draw: random.Random
) -> tuple[str, str]:
    """What came of a damage: the right result, a sentence, or what is wrong with what came."""
    with damaged(case, states, spare, draw) as to:
        what, said = attempt(to)
        if what == "refused":
            path, whole = to / case.path, states[case.state] / case.path
            if whole.is_file():
                path.unlink(missing_ok=True)
                shutil.copy2(whole, path)
            else:
                path.chmod(0o755)
            again, why = attempt(to)
            if again != "done":
                return "lost", f"{said}\n  once undone: {again}: {why}"
        elif what != "done":
            return what, said
        found = contents(to)
        if case.state == "whole":
            # A finished run is read back; of its stages it only says what was lost.
            found |= {name: expected[name] for name in (case.path,) if name in expected and name != "outcome.json"}
        differing = sorted(name for name in expected | found if expected.get(name) != found.get(name))
        if differing:
            return "wrong", ", ".join(differing[:5])
        return ("a sentence", said) if what == "refused" else ("the right result", "")


def main(arguments: Sequence[str] | None = None) -> None:
    """Damage a run in every way, or in a sample of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sample", type=int, default=0, help="so many cases drawn at random; all without")
    parser.add_argument("--show", action="store_true", help="print every sentence")
    asked = parser.parse_args(arguments)
    draw = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as folder:
        work, began = Path(folder), time.monotonic()
        load_libraries()
        states = make_states(work)
        expected = contents(states["whole"])
        every = cases(states)
        chosen = sorted(draw.sample(range(len(every)), asked.sample)) if asked.sample else range(len(every))
        counts: Counter[tuple[str, str]] = Counter()
        faults = 0
        for place in chosen:
            case = every[place]
            came, said = try_case(case, states, expected, work / "spare", draw)
            counts[case.damage, came] += 1
            if came not in ("the right result", "a sentence"):
                faults += 1
                print(f"{case}: {came}: {said}", flush=True)
            elif asked.show and said:
                print(f"{case}: {said}", flush=True)
        files = len({(every[place].state, every[place].path) for place in chosen})
        print(f"{len(chosen)} of {len(every)} damages to {files} files and folders in {time.monotonic() - began:.0f} s")
        for damage in (*DAMAGES, FOLDERS):
            parts = [f"{came} {count}" for (what, came), count in sorted(counts.items()) if what == damage]
            print(f"  {damage:<18} {', '.join(parts)}")
    sys.exit(faults > 0)


if __name__ == "__main__":
    main()
