"""Whether self-training pays on real images: all labels, 9 % of them as long, and 9 % with the loop.

    STLLAVA_MEDVQA=… python bench/real.py
    STLLAVA_MEDVQA=… python bench/real.py --seeds 0 --arms loop "a quarter, informative" "a quarter, by chance" …

The data set is medvqa_mini, the recipe `medvqa-mini.yaml`; with `--phantoms` the demo's, for what parts of the loop are worth
where the truth is drawn. Every arm of a seed shares images, validation and test questions; the two arms of stage 1 alone see
as many labelled images in training (`PRESENTED`), and all arms of the loop go on from one and the same stage 1, or from the
loop's stages up to the first that they change. `--resplit N` draws the labelled 9 % of the pool anew, N deciding which.

Runs are single-threaded processes, `--jobs` at a time; each goes on where it was when the command is given again with the
same --work. With `--tallies FOLDER` what every run got right is kept there, and a run that is counted there is not made
again: a table of many runs can be made on several days and machines, each run under the commit that its tally names.

Writes bench/results/real-DEVICE.json (`--name` in place of real) and prints a table. Intervals are over seeds and images
(`stllava.metrics.seeds`), differences are paired by question; the tables by label are of all seeds together.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from pydantic import JsonValue

from shared.measure import device_kind, write_result
from shared.seeds import Job, gap_over_seeds, in_this_process, over_seeds, print_arms, run_jobs, seed_means
from shared.tallies import RunTally, each_answer, kinds_over_seeds, read_tally, tally, write_tally
from stllava.recipe import RECIPES, RunOptions, load_recipe
from stllava.store import MANIFEST, read_manifest

PRESENTED = 7720
"""Labelled images that both arms of stage 1 alone see in training: five passes over the whole pool."""
LABELLED_SHARE = 0.09
SHOWN = ("open_exact_match", "closed_accuracy")
BASE = "loop"
Overrides = dict[str, JsonValue]


def stage_1(**sft: JsonValue) -> Overrides:
    """Stage 1 alone."""
    return {"rounds": 0, "final_sft": None, "sft": sft}


def judged(**judge: JsonValue) -> Overrides:
    """The loop with another expert, or fewer verdicts."""
    return {"judge": judge}


def erring(**simulated: JsonValue) -> Overrides:
    """The loop with an expert that errs, audited on labelled questions where pairs are defended by what that finds."""
    return judged(expert="simulated", simulated={"of": "reference", **simulated}, audit=400)


LONGER: Overrides = {"final_sft": {"epochs": 20, "batch_size": 8}}
"""Twice as many passes in the last training: fewer verdicts leave fewer answers to learn, and so fewer steps."""
TUMOURS: Overrides = {"wrong": 0.05, "confuses": {"glioma": "meningioma"}}
DEFENCE: Overrides = {"min_confidence": 0.75}
FULL = 26_000
"""Verdicts of the whole loop, about: two rounds on 1,403 images (13,787 and 12,760 with seed 0)."""
ARMS: dict[str, Overrides] = {
    "all labels": stage_1(epochs=5),
    "9 % as long": stage_1(),
    "loop": {},
    "loop, trained longer": LONGER,
    "a quarter of the verdicts": judged(budget=FULL // 4),
    "a quarter, by chance": judged(budget=FULL // 4, selection="random"),
    "a tenth of the verdicts": judged(budget=FULL // 10),
    "a tenth, by chance": judged(budget=FULL // 10, selection="random"),
    "a quarter, and its own vote": judged(budget=FULL // 4, consensus=True),
    "a tenth, and its own vote": judged(budget=FULL // 10, consensus=True),
    "a quarter, trained longer": judged(budget=FULL // 4) | LONGER,
    "a tenth, trained longer": judged(budget=FULL // 10) | LONGER,
    "a quarter, with corrections": judged(budget=FULL // 4, correct=True),
    "a tenth, with corrections": judged(budget=FULL // 10, correct=True),
    "a tenth, then its own judge": judged(budget=FULL // 10)
    | {
        "distill_after": 1,
        "min_judge_kappa": 0.0,
        "distill": {"epochs": 6, "batch_size": 8, "threshold": 1.0},
        "pair": {"min_chosen_score": 0.5, "margin": 0.25},
    },
    "15 % wrong": erring(wrong=0.15),
    "15 % wrong, audited": erring(wrong=0.15) | {"pair": DEFENCE},
    "15 % wrong, each wording alone": erring(wrong=0.15) | {"pair": DEFENCE | {"pool_paraphrases": False}},
    "15 % wrong, trained longer": erring(wrong=0.15) | {"pair": DEFENCE} | LONGER,
    "two tumours mixed up": erring(**TUMOURS),
    "two tumours mixed up, audited": erring(**TUMOURS) | {"pair": DEFENCE},
    "two tumours mixed up, each wording alone": erring(**TUMOURS) | {"pair": DEFENCE | {"pool_paraphrases": False}},
    "30 % wrong": erring(wrong=0.3),
    "30 % wrong, audited": erring(wrong=0.3) | {"pair": DEFENCE},
    "no expert": judged(expert="itself", itself={"min_precision": 0.8}),
    "without borrowing": {"ask": {"borrow_questions": 0}},
    "without earlier pairs": {"keep_pairs": False},
    "without the last training": {"final_sft": None},
    "counter-pairs": {"pair": {"counter_pairs": True}},
    "image-conditional": {"dpo": {"image_conditional": 1.0}},
    "group-relative": {"pair": {"pairs": "group"}, "dpo": {"loss": "group"}},
    "image-gain weights": {"image_gain": {}, "pair": {"gain_weight": 0.5}},
    "pairs of questions": {"pair": {"question_pairs": 3}},
}
"""What each arm changes of the recipe."""


NEED_LABELS = frozenset({"all labels", "9 % as long"}) | {arm for arm, changed in ARMS.items() if "simulated" in str(changed)}
"""Arms that only a data set with references has."""


def options_of(arm: str, seed: int, *, data: Path | None, resplit: int | None, work: Path, quick: bool) -> RunOptions:
    """The recipe of an arm: of phantoms where no folder of `data` is named."""
    overrides: Overrides = {"seed": seed, **ARMS[arm]}
    if data is None:
        small: Overrides = {"rounds": 0, "final_sft": None, "sft": {"epochs": 1, "batch_size": 16}} if quick else {}
        return load_recipe(RECIPES / "phantom.yaml", overrides=overrides | small)
    labels = data / "conversations_100.json" if arm == "all labels" else data / "conversations_9.json"
    images: Overrides = {"conversations": str(labels)}
    if resplit is not None and arm != "all labels":
        conversations, unlabelled = split_anew(data, resplit, work)
        images = {"conversations": str(conversations), "unlabelled": str(unlabelled)}
    overrides["data"] = images
    if arm == "9 % as long":
        talks = json.loads(Path(str(images["conversations"])).read_text(encoding="utf-8"))
        epochs = PRESENTED / len({talk["image"] for talk in talks})
        overrides |= stage_1(epochs=epochs)
    if quick:
        sft: Overrides = {"epochs": 1, "batch_size": 64}
        overrides |= {"sft": sft, "rounds": 0, "final_sft": None}
    return load_recipe(RECIPES / "medvqa-mini.yaml", overrides=overrides)


def split_anew(data: Path, number: int, work: Path) -> tuple[Path, Path]:
    """Other labels of the pool: conversations about as many images, drawn by source and class, and the list of the rest."""
    from stllava.records import content_id

    folder = work / f"split-{number}"
    folder.mkdir(parents=True, exist_ok=True)
    facts = [json.loads(line) for line in (data / "facts.jsonl").read_text(encoding="utf-8").splitlines()]
    pool = [row for row in facts if row["split"] in ("labelled", "unlabelled")]
    strata: dict[str, list[str]] = {}
    for row in pool:
        kind = content_id({key: row.get(key) for key in ("source", "modality", "region", "finding", "tumour_type")})
        strata.setdefault(kind, []).append(row["image"])
    known: set[str] = set()
    for names in strata.values():
        drawn = sorted(names, key=lambda name: content_id("split", number, name))
        known.update(drawn[: max(1, round(LABELLED_SHARE * len(names)))])
    talks = json.loads((data / "conversations_100.json").read_text(encoding="utf-8"))
    conversations, unlabelled = folder / "conversations.json", folder / "unlabelled.txt"
    conversations.write_text(json.dumps([talk for talk in talks if talk["image"] in known]), encoding="utf-8")
    unlabelled.write_text("".join(f"{row['image']}\n" for row in pool if row["image"] not in known), encoding="utf-8")
    return conversations, unlabelled


def folder_of(arm: str, seed: int, work: Path) -> Path:
    """The run directory of an arm."""
    return work / str(seed) / "".join(letter if letter.isalnum() else "-" for letter in arm)


def run_arm(arm: str, seed: int, *, data: Path | None, resplit: int | None, work: Path, quick: bool) -> None:
    """Run an arm; one of the loop goes on from where its run would be another one than the loop's."""
    from stllava.pipeline import run

    options = options_of(arm, seed, data=data, resplit=resplit, work=work, quick=quick)
    to, start = folder_of(arm, seed, work), folder_of(BASE, seed, work)
    if options.rounds and arm != BASE and (start / "sft" / MANIFEST).is_file() and not (to / "sft").is_dir():
        to.mkdir(parents=True, exist_ok=True)
        shutil.copy(start / "plan.json", to / "plan.json")
        for part in shared_with_loop(arm, start):
            shutil.copytree(start / part, to / part, dirs_exist_ok=True)
    run(options, to=to)


def shared_with_loop(arm: str, loop: Path) -> list[str]:
    """The stages' folders that a run of the arm would fill with the bytes that the loop's run has there."""
    stages = ["data", "model", "evaluate/sft"]
    if ARMS[arm].keys() <= {"final_sft"}:
        rounds = [path.name for path in sorted(loop.glob("round-*"))]
        stages += [*rounds, *(f"evaluate/{name}" for name in rounds)]
    elif ARMS[arm].keys() <= {"keep_pairs", "pair", "dpo", "image_gain"}:
        stages += [f"round-1/{stage}" for stage in ("ask", "answer", "judge")]
    return [*(stage for stage in stages if (loop / stage).is_dir()), "sft"]  # By which one sees that all of them are there.


def tally_of(run: Path, test: str) -> RunTally:
    """What a finished run's policies got right: its best, the same shown black images, its start and its last round."""
    from stllava.records import Outcome, Prediction
    from stllava.store import read_records

    outcome = Outcome.model_validate_json((run / "outcome.json").read_text(encoding="utf-8"))
    rounds = [name for name in outcome.policies if name.startswith("round-")]
    policies = {"best": outcome.best, "blind": f"blind-{outcome.best}", "start": "sft"}
    if rounds:
        policies["last round"] = rounds[-1]
    told = {name: read_records(run / "evaluate" / of / test, "predictions", Prediction) for name, of in policies.items()}
    return tally(
        told, SHOWN, seconds=computing_seconds(run), commit=read_manifest(run / "evaluate" / outcome.best / test).commit
    )


def summarise(tallies: Mapping[tuple[str, int], RunTally]) -> dict[str, JsonValue]:
    """Every arm's best policy: scores, the loop's paired differences from it, black images, scores by kind of question."""
    arms = list(dict.fromkeys(arm for arm, _ in tallies))
    shown = {arm: ("best", [found for (of, _), found in tallies.items() if of == arm]) for arm in arms}
    if BASE in arms:
        loops = shown[BASE][1]
        if all("last round" in loop.right for loop in loops):
            shown["the loop before its last training"] = ("last round", loops)
        shown["the loop's start"] = ("start", loops)
    table: dict[str, JsonValue] = {}
    for arm, (policy, found) in shown.items():
        row: dict[str, JsonValue] = {}
        for metric in SHOWN:
            scores, images = zip(*(each_answer(run, policy, metric) for run in found), strict=True)
            cell: dict[str, JsonValue] = {"score": over_seeds(scores, images), "seeds": seed_means(scores)}
            if BASE in arms:
                best = [each_answer(run, "best", metric)[0] for run in shown[BASE][1]]
                cell["loop_minus_this"] = gap_over_seeds(best, scores, images)
            if arm in arms:
                blind = [each_answer(run, "blind", metric)[0] for run in found]
                cell["blind"] = 100 * sum(sum(part) / len(part) for part in blind) / len(blind)
            row[metric] = cell
        row["by_label"] = dict(kinds_over_seeds(found, policy))  # type: ignore[arg-type]
        table[arm] = row
    return table


def computing_seconds(run: Path) -> float:
    """What the stages of a run took together, however often it was stopped; those too that are another run's."""
    return sum(read_manifest(path.parent).seconds for path in run.rglob(MANIFEST) if path.parent != run)


def main() -> None:
    """Run the arms of all seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS))
    parser.add_argument("--phantoms", action="store_true", help="the demo's phantoms instead of medvqa_mini")
    parser.add_argument("--resplit", type=int, help="draw the labelled images anew; which ones, this number decides")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one thread each")
    parser.add_argument("--work", type=Path, help="folder for the runs; a temporary one when not given")
    parser.add_argument(
        "--tallies", type=Path, help="folder that keeps what each run got right; runs counted there are not made"
    )
    parser.add_argument("--finished", action="store_true", help="sum up what is finished and make no run")
    parser.add_argument("--name", default="real", help="the result is written to bench/results/NAME-DEVICE.json")
    parser.add_argument(
        "--quick", action="store_true", help="stage 1 in small, in this process: whether it runs, not what it finds"
    )
    parser.add_argument("--task", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if not asked.phantoms and not os.environ.get("STLLAVA_MEDVQA"):
        sys.exit("STLLAVA_MEDVQA is not set: it names the folder of medvqa_mini")
    data = None if asked.phantoms else Path(os.environ["STLLAVA_MEDVQA"])
    arms = asked.arms or (["loop"] if asked.phantoms else ["all labels", "9 % as long", "loop"])
    if asked.phantoms and (without := NEED_LABELS & set(arms)):
        parser.error(f"phantoms have no arms {', '.join(sorted(without))}")
    work = asked.work or Path(tempfile.mkdtemp(prefix="stllava-real-"))
    work.mkdir(parents=True, exist_ok=True)
    tallies = asked.tallies or work / "tallies"

    def counted(task: tuple[str, int]) -> Path:
        return Path(tallies / f"{folder_of(*task, work).name}-{task[1]}.json")

    def count(task: tuple[str, int]) -> None:
        write_tally(counted(task), tally_of(folder_of(*task, work), "phantom" if asked.phantoms else "test"))

    if asked.task:
        (seed,) = asked.seeds
        run_arm(asked.task, seed, data=data, resplit=asked.resplit, work=work, quick=asked.quick)
        count((asked.task, seed))
        return

    def job(arm: str, seed: int) -> Job:
        words = [sys.executable, __file__, "--seeds", str(seed), "--work", str(work), "--task", arm]
        words += ["--resplit", str(asked.resplit)] if asked.resplit is not None else []
        words += ["--phantoms"] if asked.phantoms else []
        words += ["--tallies", str(asked.tallies)] if asked.tallies else []
        (work / str(seed)).mkdir(exist_ok=True)
        return Job(f"seed {seed}, {arm}", words, Path(f"{folder_of(arm, seed, work)}.log"))

    def finish(tasks: Sequence[tuple[str, int]]) -> None:
        if asked.quick:
            in_this_process(partial(run_arm, data=data, resplit=asked.resplit, work=work, quick=True), tasks)
            return
        run_jobs([job(*task) for task in tasks], at_once=asked.jobs)

    # The loop first: its stage 1 is where its variants start.
    first = [(arm, seed) for arm in arms if arm == BASE for seed in asked.seeds]
    rest = [(arm, seed) for seed in asked.seeds for arm in arms if arm != BASE]
    for tasks in (first, rest):
        missing = [task for task in tasks if not (asked.tallies and counted(task).is_file())]
        if not asked.finished:
            finish(missing)
        for task in missing if asked.quick or asked.finished else []:
            count(task)
    found = {task: read_tally(counted(task)) for task in [*first, *rest]}
    table = summarise(found)
    commits: list[JsonValue] = [*sorted({one.commit for one in found.values()})]
    print_arms(table, SHOWN)
    result: dict[str, JsonValue] = {
        "bench": "real",
        "seeds": list(asked.seeds),
        "data": "phantoms" if asked.phantoms else "medvqa_mini",
        "resplit": asked.resplit,
        "arms": table,
        "seconds": {f"{seed} {arm}": one.seconds for (arm, seed), one in found.items()},
        "commits": commits,
    }
    print(write_result(f"{asked.name}-{device_kind()}", result))


if __name__ == "__main__":
    main()
