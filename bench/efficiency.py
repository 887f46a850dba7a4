"""How many labels self-training saves: stage 1 on 3, 9, 27 and 100 % of the labels against 9 % and the loop on the rest.

    python bench/efficiency.py

Phantoms, bench/efficiency.yaml, three seeds of data, model and sampling. In every seed the arms share images, test
and validation questions; "the rest" are the images whose labels an arm does not see, and the loop's expert is the
oracle, which compares answers with the truth but never gives one. Every stage-1 arm sees as many labelled images in
training (`PRESENTED`); the loop starts from the recipe's own short stage 1 on 9 %.

Runs are single-threaded processes, two at a time; each goes on where it was when the command is given again with the
same --work. Writes bench/results/efficiency-DEVICE.json and .svg and prints a table. Intervals are over seeds and images
(`stllava.metrics.seeds`), differences are paired by question.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue

from shared.measure import RESULTS, device_kind, write_result
from shared.seeds import Job, gap_over_seeds, in_this_process, over_seeds, print_arms, run_jobs, seed_means
from stllava.data.sources import PhantomData
from stllava.recipe import RunOptions, load_recipe

SHARES = {"3 %": 0.03, "9 %": 0.09, "27 %": 0.27, "100 %": 1.0}
LOOP = "9 % and the loop"
RECIPE_START = "9 %, the recipe's stage 1"
IMAGES, PRESENTED, BATCH = 300, 3600, 8
SHOWN = ("open_exact_match", "closed_accuracy")
TESTS = "phantom"
RECIPE = Path(__file__).with_name("efficiency.yaml")


def options_of(seed: int, *, quick: bool) -> RunOptions:
    """The recipe of this bench."""
    overrides: dict[str, JsonValue] = {"seed": seed}
    if quick:
        overrides |= {
            "data": {"labelled": 3, "unlabelled": 30, "validation": 6, "test": 8},
            "sft": {"epochs": 150},
            "ask": {"borrow_questions": 0, "num_descriptions": 1, "extra_description_prompts": []},
            "answer": {"num_answers": 8},
            "dpo": {"epochs": 1},
            "rounds": 1,
            "final_sft": None,
        }
    return load_recipe(RECIPE, overrides=overrides)


def run_loop(work: Path, seed: int, *, quick: bool) -> None:
    """The loop on 9 % of the labels, in `work`/loop."""
    from stllava.pipeline import run

    run(options_of(seed, quick=quick), to=work / "loop")


def run_stage_1(work: Path, seed: int, share: str, *, quick: bool) -> None:
    """Stage 1 on a share of the labels, about the images of the loop's data set."""
    from stllava.data.phantom.language import conversations
    from stllava.data.phantom.truth import Truth
    from stllava.data.prepare import prepare
    from stllava.pipeline import starting_model
    from stllava.records import Conversation
    from stllava.stages.evaluate import evaluate
    from stllava.stages.sft import sft
    from stllava.store import read_jsonl, to_jsonl, write_whole

    options = options_of(seed, quick=quick)
    at = work / share.replace(" %", "")
    data = prepare(options.data, seed=seed, to=at / "data")
    assert isinstance(options.data, PhantomData)
    images = options.data.labelled + options.data.unlabelled
    count = max(1, round(SHARES[share] * images))
    talks = read_jsonl(data.conversations, Conversation)
    known = list(dict.fromkeys(talk.images[0] for talk in talks))[:count]
    rest = read_jsonl(at / "data" / "truths.jsonl", Truth)[: count - len(known)]
    labels = [talk for talk in talks if talk.images[0] in set(known)]
    labels += [talk for truth in rest for talk in conversations(truth, seed=seed)]
    write_whole(at / "labels.jsonl", to_jsonl(labels))
    epochs = 1.0 if quick else PRESENTED / count
    training = options.sft.model_copy(update={"epochs": epochs, "batch_size": min(BATCH, count)})
    model = starting_model(options, data, at / "model")
    sft(training, model=model, conversations=at / "labels.jsonl", images=data.image_root, to=at / "sft", seed=seed)
    to = at / "evaluate" / TESTS
    evaluate(options.evaluate, policy=at / "sft", samples=data.benchmarks[TESTS], root=data.image_root, to=to, name=share)


def run_task(work: Path, seed: int, task: str, *, quick: bool) -> None:
    """One arm of one seed."""
    if task == "loop":
        run_loop(work / str(seed), seed, quick=quick)
    else:
        run_stage_1(work / str(seed), seed, task, quick=quick)


def evaluations(work: Path) -> dict[str, Path]:
    """Where each arm of a seed was scored."""
    from stllava.records import Outcome

    best = Outcome.model_validate_json((work / "loop" / "outcome.json").read_text()).best
    found = {share: work / share.replace(" %", "") / "evaluate" / TESTS for share in SHARES}
    found[RECIPE_START] = work / "loop" / "evaluate" / "sft" / TESTS
    found[LOOP] = work / "loop" / "evaluate" / best / TESTS
    return found


def summarise(work: Path, seeds: Sequence[int]) -> dict[str, JsonValue]:
    """Every arm's scores and the loop's differences from every other arm, over all seeds."""
    from stllava.metrics.score import measured, values
    from stllava.records import Prediction
    from stllava.store import read_records

    said = [
        {arm: read_records(folder, "predictions", Prediction) for arm, folder in evaluations(work / str(seed)).items()}
        for seed in seeds
    ]
    arms: dict[str, JsonValue] = {}
    for arm in said[0]:
        row: dict[str, JsonValue] = {}
        for metric in SHOWN:
            rows = [measured(one[arm], metric) for one in said]
            scores = [values(part, metric) for part in rows]
            # The same path is another image in every seed.
            images = [[f"{seed}/{one.image}" for one in part] for seed, part in zip(seeds, rows, strict=True)]
            loops = [values(measured(one[LOOP], metric), metric) for one in said]
            row[metric] = {
                "score": over_seeds(scores, images),
                "seeds": seed_means(scores),
                "loop_minus_this": gap_over_seeds(loops, scores, images),
            }
        arms[arm] = row
    return arms


def draw(arms: dict[str, JsonValue]) -> str:
    """The curve as an SVG file: both metrics over the share of labels, the loop as a point of its own."""
    width, height, left, bottom = 640, 300, 56, 250
    places = {share: left + 40 + 240 * place / 3 for place, share in enumerate(SHARES)}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for panel, (metric, title) in enumerate(zip(SHOWN, ("open exact match", "closed accuracy"), strict=True)):
        shift = 300 * panel

        def y(value: float) -> float:
            return bottom - 2.1 * (value - 0)

        def figure(arm: str, metric: str = metric) -> list[float]:
            row = arms[arm]
            assert isinstance(row, dict)
            cell = row[metric]
            assert isinstance(cell, dict)
            return [float(str(value)) for value in cell["score"]]  # type: ignore[union-attr]

        parts.append(f'<text x="{shift + left}" y="22" font-weight="bold">{title}, %</text>')
        for tick in (0, 25, 50, 75, 100):
            parts.append(
                f'<line x1="{shift + left}" x2="{shift + left + 250}" y1="{y(tick)}" y2="{y(tick)}" stroke="#ddd"/>'
                f'<text x="{shift + left - 6}" y="{y(tick) + 4}" text-anchor="end" fill="#666">{tick}</text>'
            )
        line = " ".join(f"{shift + places[share] - 40:.0f},{y(figure(share)[0]):.1f}" for share in SHARES)
        parts.append(f'<polyline points="{line}" fill="none" stroke="#8593a0" stroke-width="2"/>')
        for arm, x, colour in [*((share, places[share], "#8593a0") for share in SHARES), (LOOP, places["9 %"], "#0a6f70")]:
            value, low, high = figure(arm)
            at = shift + x - 40
            parts.append(
                f'<line x1="{at}" x2="{at}" y1="{y(low):.1f}" y2="{y(high):.1f}" stroke="{colour}" stroke-width="2"/>'
                f'<circle cx="{at}" cy="{y(value):.1f}" r="5" fill="{colour}"/>'
            )
        for share in SHARES:
            parts.append(f'<text x="{shift + places[share] - 40}" y="{bottom + 18}" text-anchor="middle">{share}</text>')
    parts.append(
        f'<text x="{left}" y="{height - 8}"><tspan fill="#8593a0">●</tspan> stage 1 on that share of the labels   '
        '<tspan fill="#0a6f70">●</tspan> 9 % and self-training on the rest</text></svg>'
    )
    return "\n".join(parts) + "\n"


def main() -> None:
    """Run all arms of all seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one thread each")
    parser.add_argument("--work", type=Path, help="folder for the runs; a temporary one when not given")
    parser.add_argument("--quick", action="store_true", help="tiny and in this process: whether it runs, not what it finds")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.task:
        (seed,) = asked.seeds
        run_task(asked.work, seed, asked.task, quick=asked.quick)
        return
    began = time.perf_counter()
    work = asked.work or Path(tempfile.mkdtemp(prefix="stllava-efficiency-"))
    work.mkdir(parents=True, exist_ok=True)
    # The longest first, so that no process is left over at the end.
    tasks = [(seed, task) for task in ("loop", "100 %", "27 %", "9 %", "3 %") for seed in asked.seeds]

    def job(seed: int, what: str) -> Job:
        words = [sys.executable, __file__, "--seeds", str(seed), "--work", str(work), "--task", what]
        return Job(f"seed {seed}, {what}", words, work / f"{seed}-{what.replace(' %', '')}.log")

    if asked.quick:
        seconds = in_this_process(lambda seed, what: run_task(work, seed, what, quick=True), tasks)
    else:
        seconds = run_jobs([job(*task) for task in tasks], at_once=asked.jobs)
    arms = summarise(work, asked.seeds)
    print_arms(arms, SHOWN)
    name = f"efficiency-{device_kind()}"
    result: dict[str, JsonValue] = {
        "bench": "efficiency",
        "seeds": list(asked.seeds),
        "images": IMAGES,
        "presented": PRESENTED,
        "arms": arms,
        "seconds": {f"{seed} {task}": spent for (seed, task), spent in zip(tasks, seconds, strict=True)},
        "wall_seconds": time.perf_counter() - began,
    }
    print(write_result(name, result))
    (RESULTS / f"{name}.svg").write_text(draw(arms))


if __name__ == "__main__":
    main()
