"""What a stage of records takes of memory and time as records grow: judge, pair, overlap, dpo's data set, scoring, report.

    python bench/million.py --questions 100000 500000

Questions about images, five each, with eight answers, are written by a rule of numbers, record by record; no model speaks.
Each stage then runs in a process of its own on what the one before wrote: judge by reference answers, pair, the overlap of the
pairs with as many test questions, what dpo learns from (every tree of the pairs built once, by the tokenizer and the picture
sizes of a small model; all images are one picture), an evaluation of as many answers, scored again, and the report of a run of
one round of all this. Reported are the peak memory of the process, its seconds by the clock and on the processor, and how busy
the machine was; several sizes show whether they grow in proportion.

With `--work` records and figures stay there, a folder for each size, and a run that was stopped goes on with the stage that it
was at.

Writes bench/results/million-DEVICE.json after each stage and prints a table.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from shared.measure import Figures, device_kind, peak_resident, report_side, run_side, write_result

ANSWERS, PER_IMAGE = 8, 5
WORDS = ("effusion", "nodule", "fracture", "mass", "edema", "opacity", "fibrosis", "pneumonia")
STAGES = ("judge", "pair", "overlap", "dpo", "evaluate", "report")


def numbers(count: int) -> Iterator[tuple[int, str, str, str]]:
    """The number, image, question and right answer of each of so many questions."""
    for number in range(count):
        right = WORDS[number * 7 % len(WORDS)]
        question = f"what is seen in region {number % 97} of series {number % 1013}?"
        yield number, f"images/{number // PER_IMAGE:08d}.png", question, right


def write(work: Path, count: int) -> None:
    """Answers, what is known of them, test questions with predictions, and fingerprints, as stages write them."""
    from stllava.config import AnswerOptions, EvaluateOptions
    from stllava.data.overlap import ImageFingerprint, fingerprint_rows
    from stllava.records import Answers, Prediction, Sample, Sampling, Score, content_id
    from stllava.store import Stage, write_whole

    how = Sampling(temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=64, seed=0)

    def answers() -> Iterator[Answers]:
        for number, image, question, right in numbers(count):
            texts = tuple(right if (number + k) % 3 == 0 else f"{WORDS[(number + k) % 8]} on the left" for k in range(ANSWERS))
            yield Answers(
                id=content_id("answers", number),
                question_id=content_id("question", number),
                images=(image,),
                question=question,
                completions=texts,
                log_probabilities=(-1.0,) * ANSWERS,
                finished=(True,) * ANSWERS,
                policy="policy",
                sampling=how,
            )

    def samples(root: str) -> Iterator[Sample]:
        for number, image, question, right in numbers(count):
            yield Sample(
                id=f"{root}{number}", image=f"{root}{image}", question=question, targets=(right,), kind="open", split="test"
            )

    def predictions() -> Iterator[Prediction]:
        for number, sample in enumerate(samples("test/")):
            yield Prediction(
                id=content_id("prediction", sample.id),
                sample_id=sample.id,
                image=sample.image,
                question=sample.question,
                targets=sample.targets,
                kind=sample.kind,
                completion=sample.targets[0] if number % 3 == 0 else "nothing",
                policy="policy",
            )

    stage = Stage("answer", work / "answer", AnswerOptions(), inputs={}, existing="resume")
    stage.write_records("answers", answers())
    stage.finish(counts_in=count, counts_out=count)
    for name, root in (("references", ""), ("test", "test/")):
        write_whole(work / f"{name}.jsonl", (f"{row.model_dump_json()}\n".encode() for row in samples(root)))
    stage = Stage("evaluate", work / "evaluate", EvaluateOptions(), inputs={"name": "policy"}, existing="resume")
    stage.write_records("predictions", predictions())
    none = Score(policy="policy", benchmark="test", metric="none", rule="none", value=0.0, low=0.0, high=0.0, n=0)
    stage.write_records("scores", [none])
    stage.finish(counts_in=count, counts_out=count)
    images = sorted({f"{root}{image}" for root in ("", "test/") for _, image, _, _ in numbers(count)})
    prints = {image: ImageFingerprint(f"{index:064x}", None) for index, image in enumerate(images)}
    write_whole(work / "fingerprints.jsonl", (f"{row.model_dump_json()}\n".encode() for row in fingerprint_rows(prints)))


def write_questions(work: Path, count: int) -> None:
    """The questions that were answered, as ask writes them."""
    from stllava.config import AskOptions
    from stllava.records import Question, Sampling, content_id
    from stllava.store import Stage

    how = Sampling(temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=64, seed=0)
    stage = Stage("ask", work / "ask", AskOptions(), inputs={}, existing="resume")
    stage.write_records(
        "questions",
        (
            Question(
                id=content_id("question", number), images=(image,), description="", text=text, policy="policy", sampling=how
            )
            for number, image, text, _ in numbers(count)
        ),
    )
    stage.finish(counts_in=count, counts_out=count)


def judge_stage(work: Path) -> None:
    """Judge by references."""
    from stllava.config import JudgeOptions
    from stllava.stages.judge import judge

    judge(JudgeOptions(expert="reference"), answers=work / "answer", truth=work / "references.jsonl", to=work / "judge")


def pair_stage(work: Path) -> None:
    """Make pairs."""
    from stllava.config import PairOptions
    from stllava.stages.pair import pair

    pair(PairOptions(), answers=work / "answer", judgments=work / "judge", to=work / "pair")


def overlap_stage(work: Path) -> None:
    """Compare the pairs with the test."""
    from stllava.data.overlap import find_overlap, read_fingerprints, read_training_items
    from stllava.records import Sample
    from stllava.store import RecordStream

    prints = read_fingerprints(work / "fingerprints.jsonl")
    find_overlap(
        "test",
        RecordStream(work / "test.jsonl", Sample),
        fingerprints=prints,
        learned={"pairs": read_training_items(work / "pair")},
        learned_fingerprints=prints,
    )


def dpo_stage(work: Path) -> None:
    """Read the pairs into trees, and build each of them."""
    from PIL import Image

    from stllava.config import DpoOptions, SmallModel
    from stllava.model.small import small_policy
    from stllava.stages.dpo import latest
    from stllava.training.preference_dataset import PreferenceDataset

    policy = small_policy(SmallModel(), (question for _, _, question, _ in numbers(2000)), seed=0)
    pairs = latest([work / "pair"])
    root = work / "drawn"
    (root / "images").mkdir(parents=True, exist_ok=True)
    Image.new("L", (64, 64)).save(root / "picture.png")
    picture = (root / "picture.png").read_bytes()
    for image in dict.fromkeys(image for pair in pairs for image in pair.images):
        (root / image).write_bytes(picture)
    dataset = PreferenceDataset(policy, pairs, images=root, max_tokens=DpoOptions().max_tokens_per_forward)
    if not sum(len(tree.nodes) for tree in dataset.trees):
        raise SystemExit("the pairs made no tree")


def evaluate_stage(work: Path) -> None:
    """Score the predictions."""
    from stllava.config import EvaluateOptions
    from stllava.stages.rescore import rescore

    rescore(EvaluateOptions(), predictions=work / "evaluate", to=work / "rescored")


def report_stage(work: Path) -> None:
    """Write the report of a run of one round."""
    from stllava.config import DpoOptions, SftOptions
    from stllava.data.sources import PhantomData
    from stllava.recipe import RunOptions
    from stllava.records import Outcome, Score
    from stllava.report.page import write_report
    from stllava.rundir import RunDir, round_name
    from stllava.store import Stage, read_records, write_whole

    run, name = RunDir(work / "run"), round_name(1)
    Stage("run", run.path, RunOptions(name="million", rounds=1, data=PhantomData()), inputs={}, existing="resume")
    Stage("data", run.data, PhantomData(), inputs={}, existing="resume").finish(counts_in=1, counts_out=1, image_root=work)
    Stage("sft", run.policy("sft"), SftOptions(), inputs={}, existing="resume").finish(counts_in=1, counts_out=1)
    Stage("dpo", run.policy(name), DpoOptions(), inputs={}, existing="resume").finish(counts_in=1, counts_out=1)
    for stage in ("ask", "answer", "judge", "pair"):
        run.stage(name, stage).symlink_to(work / stage, target_is_directory=True)
    scores = []
    for policy in ("sft", name):
        run.evaluations(policy).mkdir(parents=True)
        run.evaluation(policy, "test").symlink_to(work / "rescored", target_is_directory=True)
        found = read_records(work / "rescored", "scores", Score)
        scores += [score.model_copy(update={"policy": policy, "benchmark": "test"}) for score in found]
    outcome = Outcome(
        name="million",
        policies=("sft", name),
        baselines=(),
        best=name,
        sentences=(),
        notes=(),
        scores=tuple(scores),
        differences=(),
    )
    write_whole(run.outcome, outcome.model_dump_json() + "\n")
    write_report(run.path)


RUN: dict[str, Callable[[Path], None]] = {
    "judge": judge_stage,
    "pair": pair_stage,
    "overlap": overlap_stage,
    "dpo": dpo_stage,
    "evaluate": evaluate_stage,
    "report": report_stage,
}


def side(stage: str, work: Path) -> Figures:
    """One stage."""
    began, worked = time.perf_counter(), time.process_time()
    RUN[stage](work)
    return {
        "seconds": time.perf_counter() - began,
        "processor_seconds": time.process_time() - worked,
        "peak_bytes": float(peak_resident()),
        "load": os.getloadavg()[1],  # Of the last five minutes: processes that ran or waited for a core.
    }


def measured(work: Path, count: int, stages: Collection[str]) -> Iterator[dict[str, Any]]:
    """The figures of each of these stages at a size, as they come; those that lie in the folder already are read there."""
    from stllava import store

    written = work / "written"
    work.mkdir(parents=True, exist_ok=True)
    if not written.exists():
        write(work, count)
        write_questions(work, count)
        written.touch()
    for stage in STAGES:
        if stage not in stages and stage in ("overlap", "dpo", "report"):
            continue  # Nothing behind them reads what they write.
        path = work / f"{stage}.json"
        if not path.exists():
            figures = run_side(__file__, "--stage", stage, "--work", str(work))
            row = {"completions": count * ANSWERS, "stage": stage, **figures, "commit": store.commit()}
            store.write_whole(path, json.dumps(row))
        if stage in stages:
            yield json.loads(path.read_text())


def main() -> None:
    """Measure all stages at every size, or one stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, nargs="+", default=[12500, 125000, 500000])
    parser.add_argument("--stages", choices=STAGES, nargs="+", default=list(STAGES))
    parser.add_argument("--work", type=Path, help="where records and figures stay; a temporary folder unless named")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.stage is not None:
        report_side(side(asked.stage, asked.work))
        return
    found: list[dict[str, Any]] = []
    print(f"{'completions':>12} {'stage':<10}{'seconds':>10}{'processor':>11}{'/million':>10}{'peak MB':>9}{'load':>6}")
    for count in asked.questions:
        stays = nullcontext(str(asked.work)) if asked.work else tempfile.TemporaryDirectory(prefix="stllava-bench-")
        with stays as root:
            for run in measured(Path(root, str(count)), count, asked.stages):
                found.append(run)
                each = run["processor_seconds"] / run["completions"] * 1e6
                print(
                    f"{run['completions']:>12} {run['stage']:<10}{run['seconds']:>10.1f}{run['processor_seconds']:>11.1f}"
                    f"{each:>10.1f}{run['peak_bytes'] / 1e6:>9.0f}{run['load']:>6.1f}",
                    flush=True,
                )
                path = write_result(f"million-{device_kind()}", {"bench": "million", "runs": [*found]})
    print(path)


if __name__ == "__main__":
    main()
