"""What people's votes are worth to the loop: phantoms, an expert that errs, readers who confirm or overturn its verdicts.

    python bench/readers.py

The demo's recipe with an expert that is wrong in 15 % of its verdicts (`simulated`). When its rounds are over, so many verdicts
are drawn as `stllava review` draws them, half of them uncertain ones, and a reader votes who knows the phantoms' truth and is
wrong in 5 % of the votes. The run then takes the votes in by being given again: what its last training learns follows them.
Arms of a seed share everything but the votes.

Runs are single-threaded processes, `--jobs` at a time; each goes on where it was when the command is given again with the same
--work. Writes bench/results/readers-DEVICE.json and prints a table. Intervals are over seeds and images, differences paired.
"""

import argparse
import shutil
import sys
import tempfile
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from shared.measure import device_kind, write_result
from shared.seeds import Job, gap_over_seeds, in_this_process, over_seeds, run_jobs, seed_means
from stllava.config import ReviewOptions
from stllava.recipe import RECIPES, RunOptions, load_recipe
from stllava.rundir import FINAL, SFT, RunDir, round_name

VOTES = (0, 100, 300, 1000)
WRONG, READER_WRONG = 0.15, 0.05
SHOWN = ("open_exact_match", "closed_accuracy")
TEST = "phantom"


def options_of(seed: int, *, quick: bool) -> RunOptions:
    """The demo's recipe with an expert that errs."""
    overrides: dict[str, JsonValue] = {
        "seed": seed,
        "judge": {"expert": "simulated", "simulated": {"wrong": WRONG}, "max_flips": 1.0},
        "baselines": False,
    }
    if quick:
        overrides |= {
            "data": {"labelled": 8, "unlabelled": 16, "validation": 4, "test": 4},
            "rounds": 1,
            "final_sft": {"epochs": 1},
        }
    return load_recipe(RECIPES / "phantom.yaml", overrides=overrides)


def folder_of(votes: int, seed: int, work: Path) -> Path:
    """The run directory of an arm."""
    return work / str(seed) / f"votes-{votes}"


def run_arm(votes: int, seed: int, *, work: Path, quick: bool) -> None:
    """The loop, or the loop of no votes with so many added."""
    from stllava.pipeline import run

    options, to = options_of(seed, quick=quick), folder_of(votes, seed, work)
    if votes and not to.is_dir():
        draft = to.with_name(f"{to.name}-draft")
        shutil.copytree(folder_of(0, seed, work), draft, dirs_exist_ok=True)
        for number in range(1, options.rounds + 1):
            vote(draft, number, votes // options.rounds, seed=seed)
        draft.rename(to)
    run(options, to=to)


def vote(run: Path, number: int, count: int, *, seed: int) -> None:
    """Draw so many verdicts of a round and write what a reader says of them."""
    from stllava.experts.build import judge_that_knows
    from stllava.records import Answers, ReviewTask, ReviewVote, VoteChoice, content_id
    from stllava.review.tasks import draw_tasks
    from stllava.review.vote_log import VoteLog
    from stllava.store import read_records

    folder, name = RunDir(run), round_name(number)
    answers, judgments = folder.stage(name, "answer"), folder.stage(name, "judge")
    options = ReviewOptions(tasks=count, overlap=0, repeats=0)
    tasks = draw_tasks(options, answers=answers, judgments=judgments, to=folder.review(name), seed=seed)
    given = {row.id: row for row in read_records(answers, "answers", Answers)}
    oracle, draw = judge_that_knows(folder.data / "truths.jsonl"), np.random.default_rng(seed)

    def choice(task: ReviewTask) -> VoteChoice:
        scores = oracle.judge(given[task.answers_id]).scores
        if scores is None:
            return "bad question"
        first, second = scores[task.first], scores[task.second]
        right: VoteChoice = "first" if first > second else "second" if second > first else "equal"
        right = "both wrong" if max(first, second) < 1 else right
        others: tuple[VoteChoice, ...] = ("first", "second", "equal", "both wrong")
        wrong = [other for other in others if other != right]
        return wrong[draw.integers(len(wrong))] if draw.random() < READER_WRONG else right

    with closing(VoteLog(folder.review(name), "reader")) as log:
        for place, task in enumerate(tasks[len(log.votes) :], len(log.votes) + 1):
            log.append(
                ReviewVote(
                    id=content_id("reader", place),
                    number=place,
                    event="vote",
                    reader="reader",
                    at="2026-11-28T00:00:00+00:00",
                    task_id=task.id,
                    seconds=5.0,
                    choice=choice(task),
                )
            )


def summarise(seeds: list[int], work: Path) -> dict[str, JsonValue]:
    """The last training's policy with every number of votes, and its gain over stage 1 and over no votes."""
    from stllava.metrics.score import measured, values
    from stllava.records import Prediction
    from stllava.store import read_manifest, read_records

    def told(votes: int, seed: int, policy: str) -> list[Prediction]:
        at = RunDir(folder_of(votes, seed, work)).evaluation(policy, TEST)
        return read_records(at, "predictions", Prediction)

    table: dict[str, JsonValue] = {}
    for votes in VOTES:
        row: dict[str, JsonValue] = {}
        for metric in SHOWN:
            rows = [measured(told(votes, seed, FINAL), metric) for seed in seeds]
            scores = [values(part, metric) for part in rows]
            images = [[each.image for each in part] for part in rows]
            start, none = (
                [values(measured(told(0, seed, policy), metric), metric) for seed in seeds] for policy in (SFT, FINAL)
            )
            row[metric] = {
                "score": over_seeds(scores, images),
                "seeds": seed_means(scores),
                "gain": gap_over_seeds(scores, start, images),
                "over_no_votes": gap_over_seeds(scores, none, images),
            }
        made = [read_manifest(RunDir(folder_of(votes, seed, work)).final_data) for seed in seeds]
        row["decided"] = [one.measures.get("voted", 0.0) for one in made]
        row["taken_out"] = [float(sum(n for cause, n in one.dropped.items() if cause.startswith("reader"))) for one in made]
        table[str(votes)] = row
    return table


def main() -> None:
    """Run the arms of all seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one thread each")
    parser.add_argument("--work", type=Path, help="folder for the runs; a temporary one when not given")
    parser.add_argument("--quick", action="store_true", help="in small, in this process: whether it runs, not what it finds")
    parser.add_argument("--task", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.task is not None:
        (seed,) = asked.seeds
        run_arm(asked.task, seed, work=asked.work, quick=asked.quick)
        return
    work = asked.work or Path(tempfile.mkdtemp(prefix="stllava-readers-"))
    for seed in asked.seeds:
        (work / str(seed)).mkdir(parents=True, exist_ok=True)
    for tasks in ([(0, seed) for seed in asked.seeds], [(votes, seed) for seed in asked.seeds for votes in VOTES[1:]]):
        if asked.quick:
            in_this_process(partial(run_arm, work=work, quick=True), tasks)
            continue
        words = [sys.executable, __file__, "--work", str(work)]
        run_jobs(
            [
                Job(
                    f"seed {seed}, {votes} votes",
                    [*words, "--seeds", str(seed), "--task", str(votes)],
                    Path(f"{folder_of(votes, seed, work)}.log"),
                )
                for votes, seed in tasks
            ],
            at_once=asked.jobs,
        )
    table = summarise(asked.seeds, work)
    for arm, row in table.items():
        assert isinstance(row, dict)
        print(arm, {metric: row[metric] for metric in SHOWN}, row["decided"], row["taken_out"])
    result: dict[str, JsonValue] = {
        "bench": "readers",
        "seeds": list(asked.seeds),
        "expert_wrong": WRONG,
        "reader_wrong": READER_WRONG,
        "votes": table,
    }
    print(write_result(f"readers-{device_kind()}", result))


if __name__ == "__main__":
    main()
