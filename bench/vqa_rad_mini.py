"""What self-training brings a real small model on real images: VQA-RAD, three seeds, both splits, all baselines.

    make weights
    STLLAVA_VQA_RAD=… STLLAVA_WEIGHTS=weights python bench/vqa_rad_mini.py --work runs/vqa-rad-mini

Every run is `stllava run recipes/vqa-rad-mini.yaml`. "mini" is stage 1 on 9 % of the training images and the loop on the
rest; "mini all" is stage 1 on all of them, with the same validation images. The standard split trains on images that
the test asks about too, the image-disjoint one does not. Runs are single-threaded processes, two at a time; each goes
on where it was when the command is given again with the same --work, so the time of a run is the sum of its stages'.
Writes the comparison of each split into --work and bench/results/vqa-rad-mini-DEVICE.json, and prints the tables.
"""

import argparse
import json
import sys
from pathlib import Path

from pydantic import JsonValue

from shared.measure import device_kind, write_result
from shared.seeds import Job, run_jobs
from stllava.recipe import RECIPES
from stllava.store import MANIFEST, read_manifest

SPLITS = {"standard": [], "image-disjoint": ["--data.labelled", "10", "--data.validation", "15"]}
ARMS = {
    "mini": [],
    "mini all": [
        "--name",
        "vqa-rad mini all",
        "--data.labelled",
        "all",
        "--rounds",
        "0",
        "--align.epochs",
        "1",
        "--sft.epochs",
        "1",
    ],
}
QUICK = ["--sft.epochs", "1", "--rounds", "0"]


def command_of(split: str, arm: str, seed: int, *, to: Path, quick: bool) -> list[str]:
    """One run's command line."""
    flags = [*SPLITS[split], *ARMS[arm], *(QUICK if quick else [])]
    recipe = [sys.executable, "-m", "stllava", "run", str(RECIPES / "vqa-rad-mini.yaml"), "--to", str(to)]
    return [*recipe, "--seed", str(seed), "--data.split", split, *flags]


def main() -> None:
    """Run all arms of all splits and seeds, and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=list(SPLITS))
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one thread each")
    parser.add_argument("--quick", action="store_true", help="one epoch and no round: whether it runs, not what it finds")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    # The longest first, so that no process is left over at the end.
    tasks = [(split, arm, seed) for split in asked.splits for arm in ARMS for seed in asked.seeds]

    def job(split: str, arm: str, seed: int) -> Job:
        to = folder_of(asked.work, split, arm, seed)
        words = command_of(split, arm, seed, to=to, quick=asked.quick)
        return Job(f"{split}, {arm}, seed {seed}", words, to.with_suffix(".log"))

    def computed(job: Job) -> float:
        return sum(read_manifest(path.parent).seconds for path in job.log.with_suffix("").glob(f"*/**/{MANIFEST}"))

    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    seconds = run_jobs([job(*task) for task in tasks], at_once=asked.jobs, environment=offline, seconds_of=computed)
    print(f"{sum(seconds) / 60:.0f} minutes of computing, {asked.jobs} processes at a time")
    from stllava.report.compare import compare_runs

    tables: dict[str, JsonValue] = {}
    for split in asked.splits:
        runs = [folder_of(asked.work, split, arm, seed) for arm in ARMS for seed in asked.seeds]
        page = compare_runs(runs, to=asked.work / f"compared-{split}", policies="all")
        tables[split] = page.with_suffix(".md").read_text()
        print(tables[split])
    result: dict[str, JsonValue] = {
        "bench": "vqa_rad_mini",
        "seeds": asked.seeds,
        "tables": tables,
        "outcomes": {
            "/".join(map(str, task)): json.loads((folder_of(asked.work, *task) / "summary.json").read_text()) for task in tasks
        },
        "seconds": {"/".join(map(str, task)): spent for task, spent in zip(tasks, seconds, strict=True)},
        "jobs": asked.jobs,
    }
    print(write_result(f"vqa-rad-mini-{device_kind()}", result))


def folder_of(work: Path, split: str, arm: str, seed: int) -> Path:
    """Where a run lies."""
    return work / f"{split}-{arm.replace(' ', '-')}-{seed}"


if __name__ == "__main__":
    main()
