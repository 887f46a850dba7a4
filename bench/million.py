"""What a stage of records takes of memory and time as records grow: judge, pair, overlap, evaluate's scoring.

    python bench/million.py --questions 100000 500000

Questions about images, five each, with eight answers, are written by a rule of numbers, record by record; no model speaks and
no image is drawn. Each stage then runs in a process of its own on what the one before wrote: judge by reference answers, pair,
the overlap of the pairs with as many test questions, and an evaluation of as many answers, scored again. Reported are the peak
memory of the process, its seconds, and those for a million completions; a second size shows whether they grow in proportion.

Writes bench/results/million-DEVICE.json and prints a table.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import JsonValue

from shared.measure import Figures, device_kind, report_side, run_side, write_result

ANSWERS, PER_IMAGE = 8, 5
WORDS = ("effusion", "nodule", "fracture", "mass", "edema", "opacity", "fibrosis", "pneumonia")
STAGES = ("judge", "pair", "overlap", "evaluate")


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
        for sample in samples("test/"):
            right = hash(sample.id) % 3 == 0
            yield Prediction(
                id=content_id("prediction", sample.id),
                sample_id=sample.id,
                image=sample.image,
                question=sample.question,
                targets=sample.targets,
                kind=sample.kind,
                completion=sample.targets[0] if right else "nothing",
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


def evaluate_stage(work: Path) -> None:
    """Score the predictions."""
    from stllava.config import EvaluateOptions
    from stllava.stages.evaluate import rescore

    rescore(EvaluateOptions(), predictions=work / "evaluate", to=work / "rescored")


RUN: dict[str, Callable[[Path], None]] = {
    "judge": judge_stage,
    "pair": pair_stage,
    "overlap": overlap_stage,
    "evaluate": evaluate_stage,
}


def side(stage: str, work: Path) -> Figures:
    """One stage."""
    began = time.perf_counter()
    RUN[stage](work)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0}


def main() -> None:
    """Measure all stages at every size, or one stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, nargs="+", default=[12500, 125000, 500000])
    parser.add_argument("--stages", choices=STAGES, nargs="+", default=list(STAGES))
    parser.add_argument("--work", type=Path, help="where records are written; a temporary folder unless named")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.stage is not None:
        report_side(side(asked.stage, asked.work))
        return
    found: list[JsonValue] = []
    print(f"{'completions':>12} {'stage':<10}{'seconds':>10}{'s/million':>11}{'peak MB':>10}")
    for count in asked.questions:
        with tempfile.TemporaryDirectory(prefix="stllava-bench-", dir=asked.work) as folder:
            write(Path(folder), count)
            for stage in STAGES:
                run = run_side(__file__, "--stage", stage, "--work", folder)
                if stage in asked.stages:
                    each = run["seconds"] / (count * ANSWERS) * 1e6
                    peak = run["peak_bytes"] / 1e6
                    print(f"{count * ANSWERS:>12} {stage:<10}{run['seconds']:>10.1f}{each:>11.1f}{peak:>10.0f}", flush=True)
                    found.append({"completions": count * ANSWERS, "stage": stage, **run})
    print(write_result(f"million-{device_kind()}", {"bench": "million", "runs": json.loads(json.dumps(found))}))


if __name__ == "__main__":
    main()
