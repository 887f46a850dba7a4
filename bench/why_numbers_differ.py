"""What the words of the prompt and the judge do to a number: the same policies, the same questions, other prompts and judges.

    python bench/real.py --work runs/real
    python bench/why_numbers_differ.py --policies "runs/real/{seed}/loop/final/sft" --work runs/why-numbers-differ

The first command makes such a policy a seed; both find the images by STLLAVA_MEDVQA. Each policy answers the test questions
as they stand (which is how it was asked while it learned) and in the words of every other prompt. The answers to the bare
question are then judged by the reference expert, made wrong about a known share of single answers (`simulated`), told
without knowing which answer is the reference. Writes bench/results/why_numbers_differ-DEVICE.json and prints a table;
differences are paired, intervals are over seeds and images.
"""

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue

from shared.measure import device_kind, write_result
from shared.seeds import gap_over_seeds, over_seeds
from stllava.config import EvaluateOptions, JudgeOptions
from stllava.config.experts import SimulatedOptions
from stllava.metrics.score import measured, values
from stllava.metrics.semantic import verdicts
from stllava.records import Judgment, Prediction
from stllava.stages.evaluate import evaluate
from stllava.stages.judge import judge
from stllava.store import read_records, write_whole

PROMPTS = {
    "as it stands": "{question}",
    "in a word": "{question}\nAnswer the question using a single word or phrase.",
    "after a sentence": "Answer this question about the medical image. {question}",
    "labelled": "Question: {question}\nAnswer:",
}
"""The second one is LLaVA-1.5's for short answers."""
WRONG = (0.0, 0.05, 0.15, 0.3)
SHOWN = ("closed_accuracy", "open_exact_match", "open_recall")
RULE = "open_medical_match"


def said(policy: Path, prompt: str, *, samples: Path, root: Path, to: Path) -> list[Prediction]:
    """A policy's answers to every question, put in the words of a prompt."""
    options = EvaluateOptions.model_validate(
        {"prompt": prompt, "chunk": 300, "sampling": {"temperature": 0.0, "max_new_tokens": 16}}
    )
    evaluate(options, policy=policy, samples=samples, root=root, to=to)
    return read_records(to, "predictions", Prediction)


def differences(theirs: Sequence[list[Prediction]], bare: Sequence[list[Prediction]]) -> dict[str, JsonValue]:
    """Score of every metric with other words, and its difference from the bare question's; one row of answers a seed."""
    row: dict[str, JsonValue] = {}
    for metric in SHOWN:
        images = [[one.image for one in measured(rows, metric)] for rows in bare]
        mine, other = ([values(measured(rows, metric), metric) for rows in group] for group in (theirs, bare))
        row[metric] = {"score": over_seeds(mine, images), "difference": gap_over_seeds(mine, other, images)}
    return row


def judged(answered: Sequence[Path], bare: Sequence[list[Prediction]], *, truth: Path, wrong: float) -> dict[str, JsonValue]:
    """Share of open answers that a judge calls right, and its difference from our rule; one folder of answers a seed."""
    options = JudgeOptions(expert="simulated", simulated=SimulatedOptions(of="reference", wrong=wrong))
    found = []
    for folder, rows in zip(answered, bare, strict=True):
        to = folder.with_name(f"{folder.name}-judged-{wrong}")
        judge(options, answers=folder, truth=truth, to=to)
        found.append([value or 0.0 for value in verdicts(rows, read_records(to, "judgments", Judgment))])
    rule = [values(measured(rows, RULE), RULE) for rows in bare]
    images = [[one.image for one in measured(rows, RULE)] for rows in bare]
    return {"score": over_seeds(found, images), "difference": gap_over_seeds(found, rule, images)}


def span(figures: JsonValue) -> str:
    """A mean with its interval."""
    assert isinstance(figures, list)
    mean, low, high = (float(str(figure)) for figure in figures)
    return f"{mean:5.1f} [{low:5.1f}, {high:5.1f}]"


def main() -> None:
    """Ask, judge, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--policies", required=True, help="a policy's folder, with {seed} in it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", type=Path, default=os.environ.get("STLLAVA_MEDVQA"), help="folder of test.jsonl and images")
    parser.add_argument("--work", type=Path, required=True, help="folder for answers and verdicts; what is there is kept")
    parser.add_argument("--quick", action="store_true", help="a few questions: whether it runs, not what it finds")
    given = parser.parse_args()
    if given.data is None:
        parser.error("say --data, or set STLLAVA_MEDVQA")
    samples, root = Path(given.data) / "test.jsonl", Path(given.data) / "images"
    if given.quick:
        lines = samples.read_text(encoding="utf-8").splitlines()[:40]
        samples = given.work / "test.jsonl"
        write_whole(samples, "\n".join(lines))
    clock = time.perf_counter()
    answers: dict[str, list[list[Prediction]]] = {}
    folders: dict[str, list[Path]] = {}
    for name, prompt in PROMPTS.items():
        folders[name] = [given.work / f"{seed}-{name.replace(' ', '-')}" for seed in given.seeds]
        answers[name] = [
            said(Path(given.policies.format(seed=seed)), prompt, samples=samples, root=root, to=to)
            for seed, to in zip(given.seeds, folders[name], strict=True)
        ]
    bare = answers["as it stands"]
    prompts = {name: differences(rows, bare) for name, rows in answers.items()}
    judges = {f"{wrong:.0%} wrong": judged(folders["as it stands"], bare, truth=samples, wrong=wrong) for wrong in WRONG}
    seconds = time.perf_counter() - clock
    figures: dict[str, JsonValue] = {
        "bench": "why_numbers_differ",
        "prompts": dict(prompts),
        "judges": dict(judges),
        "seeds": given.seeds,
        "seconds": seconds,
    }
    write_result(f"why_numbers_differ-{device_kind()}", figures | {"questions": len(bare[0]), "words": dict(PROMPTS)})
    for name, row in prompts.items():
        for metric, part in row.items():
            assert isinstance(part, dict)
            print(f"{name:18} {metric:18} {span(part['score'])}   {span(part['difference'])}")
    for name, row in judges.items():
        print(f"{name:18} {'open_semantic':18} {span(row['score'])}   {span(row['difference'])}")


if __name__ == "__main__":
    main()
