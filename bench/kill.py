"""Kill a run with SIGKILL at random moments, resume it each time, and compare with a run that was never killed.

    python bench/kill.py --kills 20 --seed 0

Writes nothing but a temporary folder; prints where each kill struck and whether all questions, answers, judgments,
preferences and weights are the same, byte for byte. Exits with 1 where they are not.
"""

import argparse
import hashlib
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
ask: {questions: 4, chunk: 2, sampling: {temperature: 1.0, max_new_tokens: 16}, description: {max_new_tokens: 16}}
answer: {k: 4, chunk: 4, sampling: {temperature: 1.5, max_new_tokens: 8}}
judge: {chunk: 4}
dpo: {epochs: 20, batch_size: 4, learning_rate: {language: 1.0e-3, projector: 1.0e-3, vision: 1.0e-3}, save_steps: 5}
evaluate: {chunk: 4, sampling: {temperature: 0, max_new_tokens: 8}}
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


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for a run to end well."""
    _, errors = process.communicate()
    if process.returncode != 0:
        sys.exit(f"the run ended with {process.returncode}:\n{errors.decode()[-3000:]}")


def contents(run: Path) -> dict[str, str]:
    """Hash of every compared file by its path in the run."""
    files = sorted(path for path in run.rglob("*") if path.name in COMPARED)
    return {path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def at_work(run: Path) -> str:
    """The newest stage folder that has no manifest yet."""
    started = [path.parent for path in run.rglob("plan.json") if not (path.parent / "manifest.json").exists()]
    stages = [folder for folder in started if folder != run]
    return stages[-1].relative_to(run).as_posix() if stages else "between stages"


def struck(recipe: Path, run: Path, kills: int, length: float, rng: random.Random) -> list[str]:
    """Kill and resume until `kills` kills have struck, or the run is whole; returns where they struck."""
    places: list[str] = []
    while len(places) < kills and not (run / "manifest.json").exists():
        process = start(recipe, run)
        try:
            process.wait(timeout=rng.uniform(0.5, 1.0) * max(length / kills, 1.0) + START_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            places.append(at_work(run))
        process.communicate()
    return places


START_SECONDS = 4.5


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
        expected = contents(whole)
        struck_at: list[str] = []
        for attempt in range(1, 100):
            run = Path(folder) / f"killed-{attempt}"
            struck_at += struck(recipe, run, options.kills - len(struck_at), length, rng)
            finish(start(recipe, run))
            found = contents(run)
            if found != expected:
                differing = sorted(name for name in expected | found if expected.get(name) != found.get(name))
                sys.exit(f"after kills in {struck_at} these differ: {differing}")
            if len(struck_at) >= options.kills:
                break
        print(f"uninterrupted: {length:.1f} s, {len(expected)} files compared")
        print(f"{len(struck_at)} kills, in: {', '.join(struck_at)}")
        print("every file is the same, byte for byte")


if __name__ == "__main__":
    main()
