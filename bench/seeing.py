"""VQA-RAD from a model that sees: does the loop gain there what it could not gain with a model that guessed?

    STLLAVA_VQA_RAD=… python bench/seeing.py --seeing "runs/real/{seed}/all-labels/sft" --work runs/seeing

`recipes/vqa-rad-seeing.yaml` on the standard split, whose test asks about training images too, and on the image-disjoint
one. The model that sees is stage 1 of `medvqa-mini.yaml` on all labels (`bench/real.py` makes one a seed); beside it the same
model from nothing. Arms: stage 1 on 9 % of the training images and the loop on the rest; stage 1 on all of them. Each policy is
also shown black images. Writes bench/results/seeing-DEVICE.json and prints a table; intervals are over seeds and images.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from pydantic import JsonValue

from shared.measure import device_kind, write_result
from shared.seeds import Job, gap_over_seeds, over_seeds, run_jobs
from stllava.recipe import RECIPES

SPLITS = {"standard": [], "image-disjoint": ["--data.labelled", "10", "--data.validation", "15"]}
MODELS = ("seeing", "from nothing")
ARMS = {"9 % and the loop": [], "all labels": ["--data.labelled", "all", "--rounds", "0"]}
SHOWN = ("open_exact_match", "open_recall", "closed_accuracy")
Task = tuple[str, str, str, int]


def folder_of(work: Path, task: Task) -> Path:
    """The run directory of a split, model, arm and seed."""
    return work / "-".join("".join(letter if letter.isalnum() else "-" for letter in str(part)) for part in task)


def command_of(task: Task, *, seeing: str, work: Path, quick: bool) -> list[str]:
    """One run's command line."""
    split, model, arm, seed = task
    words = [sys.executable, "-m", "stllava", "run", str(RECIPES / "vqa-rad-seeing.yaml"), "--to", str(folder_of(work, task))]
    words += ["--seed", str(seed), "--data.split", split, *SPLITS[split], *ARMS[arm]]
    words += ["--model", seeing.format(seed=seed) if model == "seeing" else "small"]
    return [*words, "--sft.epochs", "1", "--rounds", "0"] if quick else words


def summarise(tasks: Sequence[Task], work: Path) -> dict[str, JsonValue]:
    """The scores of every split, model and arm over its seeds: stage 1, the best policy, both shown black images."""
    from stllava.metrics.score import measured, values
    from stllava.records import Outcome, Prediction
    from stllava.store import read_records

    table: dict[str, JsonValue] = {}
    for split, model, arm in dict.fromkeys((split, model, arm) for split, model, arm, _ in tasks):
        runs = [folder_of(work, task) for task in tasks if task[:3] == (split, model, arm)]
        outcomes = [Outcome.model_validate_json((run / "outcome.json").read_text(encoding="utf-8")) for run in runs]
        (benchmark,) = {score.benchmark for score in outcomes[0].scores} - {"validation"}

        def said(
            kind: str, runs: Sequence[Path] = runs, outcomes: Sequence[Outcome] = outcomes, name: str = benchmark
        ) -> list[list[Prediction]]:
            policies = [kind.replace("best", outcome.best) for outcome in outcomes]
            return [
                read_records(run / "evaluate" / policy / name, "predictions", Prediction)
                for run, policy in zip(runs, policies, strict=True)
            ]

        start, best, blind = said("sft"), said("best"), said("blind-best")
        row: dict[str, JsonValue] = {}
        for metric in SHOWN:
            part: dict[str, JsonValue] = {}
            images = [[each.image for each in measured(rows, metric)] for rows in best]
            scores = {
                name: [values(measured(rows, metric), metric) for rows in group]
                for name, group in (("sft", start), ("best", best), ("blind", blind))
            }
            for name, found in scores.items():
                part[name] = over_seeds(found, images)
            for name, other in (("gain", "sft"), ("seeing_minus_blind", "blind")):
                part[name] = gap_over_seeds(scores["best"], scores[other], images)
            row[metric] = part
        table[f"{split}, {model}, {arm}"] = row
    return table


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeing", required=True, help="folder of the policy that sees; {seed} stands for the seed")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=list(SPLITS))
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one thread each")
    parser.add_argument("--quick", action="store_true", help="one epoch and no round: whether it runs, not what it finds")
    asked = parser.parse_args()
    if not os.environ.get("STLLAVA_VQA_RAD"):
        sys.exit("STLLAVA_VQA_RAD is not set: it names the folder of VQA-RAD")
    asked.work.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    tasks: list[Task] = list(product(asked.splits, MODELS, ARMS, asked.seeds))

    def job(task: Task) -> Job:
        words = command_of(task, seeing=asked.seeing, work=asked.work, quick=asked.quick)
        return Job(", ".join(map(str, task)), words, Path(f"{folder_of(asked.work, task)}.log"))

    # A model of the recipe's own is looked for before the flag replaces it.
    seconds = run_jobs([job(task) for task in tasks], at_once=asked.jobs, environment={"STLLAVA_MODEL": "small"})
    table = summarise(tasks, asked.work)
    for name, row in table.items():
        print(name)
        assert isinstance(row, dict)
        for metric, cells in row.items():
            assert isinstance(cells, dict)
            told = [
                f"{key} {cell[0]:+.1f} [{cell[1]:+.1f}, {cell[2]:+.1f}]"
                for key, cell in cells.items()
                if isinstance(cell, list)
            ]
            print(f"  {metric:<20}" + "   ".join(told))
    result: dict[str, JsonValue] = {
        "bench": "seeing",
        "seeds": list(asked.seeds),
        "arms": table,
        "seconds": {"/".join(map(str, task)): spent for task, spent in zip(tasks, seconds, strict=True)},
        "wall_seconds": time.perf_counter() - began,
    }
    print(write_result(f"seeing-{device_kind()}", result))


if __name__ == "__main__":
    main()
