"""Kill a run with SIGKILL at random moments, resume it each time, and compare with a run that was never killed.

    python bench/kill.py --kills 20 --seed 0

The kills fall into stages drawn at random, each at a random moment of its stage's length.
Writes nothing but a temporary folder; prints where each kill struck and whether all questions, answers, judgments,
preferences and weights are the same, byte for byte. Exits with 1 where they are not.
"""

import argparse
import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPE = """
name: kill
data: {kind: phantom, labelled: 12, unlabelled: 16, validation: 4, test: 4, size: 64}
small: {image_size: 32, patch_size: 16, vision_width: 32, vision_layers: 1, language_width: 32, language_layers: 2, heads: 2}
sft: {epochs: 120, batch_size: 4, learning_rate: {language: 3.0e-3, projector: 3.0e-3, vision: 3.0e-3}, save_steps: 10}
ask: {questions: 4, borrow_questions: 2, chunk: 2, sampling: {temperature: 0.6, max_new_tokens: 16},
  description_sampling: {max_new_tokens: 16}}
answer: {num_answers: 6, chunk: 4, sampling: {temperature: 2.0, max_new_tokens: 8}}
judge: {expert: simulated, simulated: {wrong: 0.1}}
pair: {balance: false}
dpo: {epochs: 20, batch_size: 4, learning_rate: {language: 1.0e-3, projector: 1.0e-3, vision: 1.0e-3}, save_steps: 5}
evaluate: {chunk: 4, sampling: {temperature: 0, max_new_tokens: 8}}
final_sft: {epochs: 20}
rounds: 2
patience: 2
"""
COMPARED = (
    "questions.jsonl",
    "answers.jsonl",
    "judgments.jsonl",
    "preferences.jsonl",
    "predictions.jsonl",
    "model.safetensors",
)


def start(recipe: Path, to: Path) -> subprocess.Popen[bytes]:
    """Start `stllava run` in a process group of its own."""
    command = [sys.executable, "-c", "from stllava.cli import main; main()", "run", str(recipe), "--to", str(to)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, start_new_session=True)


def finish(process: subprocess.Popen[bytes], *, killed: bool = False) -> None:
    """Wait for a run to end: well, or by SIGKILL."""
    _, errors = process.communicate()
    if process.returncode not in ((0, -signal.SIGKILL) if killed else (0,)):
        sys.exit(f"the run ended with {process.returncode}:\n{errors.decode()[-3000:]}")


def contents(run: Path) -> dict[str, str]:
    """Hash of every compared file by its path in the run."""
    files = sorted(path for path in run.rglob("*") if path.name in COMPARED)
    return {path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def stages(run: Path) -> dict[str, float]:
    """Every stage folder of a finished run in the order in which they ended, with the seconds it took."""
    manifests = sorted(run.glob("*/**/manifest.json"), key=lambda path: path.stat().st_mtime_ns)
    return {path.parent.relative_to(run).as_posix(): json.loads(path.read_bytes())["seconds"] for path in manifests}


def at_work(run: Path) -> str:
    """The stage folders that have a plan and no manifest yet."""
    started = [path.parent for path in run.rglob("plan.json") if not (path.parent / "manifest.json").exists()]
    names = [folder.relative_to(run).as_posix() for folder in started if folder != run]
    return " + ".join(names) or "between stages"


def struck(recipe: Path, run: Path, targets: dict[str, float], rng: random.Random) -> list[str]:
    """Start the run once a target stage and kill it at a random moment of that stage; returns where the kills struck."""
    places: list[str] = []
    for folder, seconds in targets.items():
        process = start(recipe, run)
        while process.poll() is None and not (run / folder / "plan.json").exists():
            time.sleep(0.002)
        time.sleep(rng.random() * seconds)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            places.append(at_work(run))
        finish(process, killed=True)
    return places


def main() -> None:
    """Compare a killed run with an uninterrupted one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        recipe, whole = Path(folder) / "kill.yaml", Path(folder) / "whole"
        recipe.write_text(RECIPE)
        began = time.monotonic()
        finish(start(recipe, whole))
        length = time.monotonic() - began
        expected, lengths = contents(whole), stages(whole)
        struck_at: list[str] = []
        for attempt in itertools.count(1):
            left = min(options.kills - len(struck_at), len(lengths))
            chosen = set(rng.sample(list(lengths), left))
            run = Path(folder) / f"killed-{attempt}"
            struck_at += struck(recipe, run, {name: lengths[name] for name in lengths if name in chosen}, rng)
            finish(start(recipe, run))
            found = contents(run)
            if found != expected:
                differing = sorted(name for name in expected | found if expected.get(name) != found.get(name))
                sys.exit(f"after kills in {struck_at} these differ: {differing}")
            if len(struck_at) >= options.kills:
                break
        print(f"uninterrupted: {length:.1f} s, {len(lengths)} stages, {len(expected)} files compared")
        print(f"{len(struck_at)} kills, in: {', '.join(struck_at)}")
        print("every file is the same, byte for byte")


if __name__ == "__main__":
    main()
