"""The same model on the same questions through lmms-eval and through `stllava evaluate`: a table of what differs.

    python -m venv lmms && lmms/bin/pip install lmms-eval . && python bench/lmms_eval.py --python lmms/bin/python

Teaches a small LLaVA some questions of VQA-RAD (found by STLLAVA_VQA_RAD), so that its answers vary, writes every ninth
test question as a task of lmms-eval, lets lmms-eval's own `llava_hf` answer them in float32, as stllava does here, and in
bfloat16, and compares answers word by word and scores digit by digit. lmms-eval's log is then scored by `stllava score` as
well. Writes bench/results/lmms_eval-DEVICE.json; ends with 1 where anything differs in float32, or a score by other than its
answers.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from pydantic import JsonValue

from shared.measure import device_kind, write_result
from stllava.config import EvaluateOptions, GroupRates, SftOptions, SmallModel
from stllava.data.benchmarks.vqa_rad import read_vqa_rad
from stllava.metrics.score import measured, values
from stllava.model.small import build_small
from stllava.records import Conversation, Message, Prediction, Score
from stllava.stages.evaluate import evaluate
from stllava.stages.lmms_eval_tasks import REPORTED, write_task
from stllava.stages.score_log import score_log
from stllava.stages.sft import sft
from stllava.store import read_records, write_whole

PRECISIONS = {"float32": "none", "bfloat16": "the model's weights and sums are rounded to bfloat16"}
"""What lmms-eval's model may compute in, and why an answer may then be another one."""
SHAPE = SmallModel(image_size=64, patch_size=16, vision_width=64, language_width=96, vocabulary=1200, context=256)


def taught(data: Path, *, questions: int, epochs: int, to: Path) -> Path:
    """A small LLaVA that has learned a few of the training questions."""
    rows = read_vqa_rad(data).train[:questions]
    talks = [
        Conversation(
            id=row.id,
            images=(row.image,),
            messages=(Message(role="user", content=row.question), Message(role="assistant", content=row.targets[0])),
        )
        for row in rows
    ]
    path = to / "conversations.jsonl"
    write_whole(path, "".join(f"{talk.model_dump_json()}\n" for talk in talks))
    build_small(SHAPE, conversations=path, to=to / "start", seed=0)
    rate = GroupRates(language=2e-3, projector=2e-3, vision=2e-3)
    options = SftOptions(epochs=epochs, batch_size=16, save_steps=0, learning_rate=rate)
    sft(options, model=str(to / "start"), conversations=path, images=data, to=to / "model")
    return to / "model"


def ask_lmms_eval(
    python: Path, task: str, *, tasks: Path, model: Path, precision: str, to: Path
) -> tuple[Path, dict[str, float]]:
    """Let lmms-eval answer and score; returns its log of samples and its scores."""
    words = ["--include_path", str(tasks), "--tasks", task, "--batch_size", "1", "--log_samples", "--output_path", str(to)]
    words += ["--model", "llava_hf", "--model_args", f"pretrained={model},device=cpu,device_map=cpu,dtype={precision}"]
    shutil.rmtree(to, ignore_errors=True)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(to.with_name("hub"))}
    done = subprocess.run(
        [str(python), "-m", "lmms_eval", *words], capture_output=True, text=True, env=environment, check=False
    )
    logs, results = list(to.rglob(f"*samples_{task}.jsonl")), list(to.rglob("*_results.json"))
    if done.returncode != 0 or len(logs) != 1 or len(results) != 1:
        sys.exit(f"lmms-eval ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found = json.loads(results[0].read_text())["results"][task]
    return logs[0], {metric: float(found[f"{metric},none"]) for metric in REPORTED}


def compared(ours: Sequence[Prediction], folder: Path, scores: Mapping[str, float], *, why: str) -> dict[str, JsonValue]:
    """Answers and scores of both side by side; `folder` holds lmms-eval's log as `stllava score` read it."""
    theirs = {row.sample_id: row for row in read_records(folder, "predictions", Prediction)}
    again = {score.metric: score.value for score in read_records(folder, "scores", Score)}
    assert {row.sample_id for row in ours} == theirs.keys(), "the two were not asked the same questions"
    answers: list[JsonValue] = [
        {"id": row.sample_id, "ours": row.completion, "theirs": theirs[row.sample_id].completion, "why": why}
        for row in ours
        if row.completion != theirs[row.sample_id].completion
    ]
    table: dict[str, JsonValue] = {}
    for metric in REPORTED:
        asked = measured(ours, metric)
        mine, other = values(asked, metric), values([theirs[row.sample_id] for row in asked], metric)
        if not math.isclose(fmean(other), scores[metric]) or not math.isclose(again[metric], scores[metric]):
            sys.exit(f"{metric}: lmms-eval says {scores[metric]} of answers that are {fmean(other)} by the rule itself")
        moved = sum(a != b for a, b in zip(mine, other, strict=True))
        table[metric] = {"n": len(asked), "ours": fmean(mine), "theirs": scores[metric], "scored otherwise": moved}
    return {"answers": answers, "scores": table}


def lmms_version(python: Path) -> str:
    """The version of lmms-eval in an environment."""
    words = [str(python), "-c", "from importlib.metadata import version; print(version('lmms-eval'))"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """Teach, ask both, compare and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--python", type=Path, required=True, help="the Python of an environment with lmms-eval and stllava")
    parser.add_argument("--data", type=Path, default=os.environ.get("STLLAVA_VQA_RAD"), help="folder of VQA-RAD")
    parser.add_argument("--work", type=Path, default=Path("runs/lmms-eval"), help="folder for the model, tasks and answers")
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=20)
    given = parser.parse_args()
    if given.data is None:
        parser.error("say --data, or set STLLAVA_VQA_RAD")
    data, work = Path(given.data), Path(given.work).resolve()
    model = taught(data, questions=600, epochs=given.epochs, to=work)
    rows = read_vqa_rad(data).test[::9][: given.questions]
    samples = work / "vqa-rad.jsonl"
    write_whole(samples, "".join(f"{row.model_dump_json()}\n" for row in rows))
    evaluate(EvaluateOptions(), policy=model, samples=samples, root=data, to=work / "ours", existing="replace")
    ours = read_records(work / "ours", "predictions", Prediction)
    task = write_task("vqa-rad", rows, root=data, to=work / "tasks")
    arms: dict[str, JsonValue] = {}
    for precision, why in PRECISIONS.items():
        log, scores = ask_lmms_eval(
            given.python, task, tasks=work / "tasks", model=model, precision=precision, to=work / precision
        )
        folder = work / f"{precision}-scored"
        score_log(log, to=folder, name="lmms-eval", benchmark="vqa-rad", existing="replace")
        arms[precision] = compared(ours, folder, scores, why=why)
        print(precision, json.dumps(arms[precision], indent=1, ensure_ascii=False))
    distinct = len({row.completion for row in ours})
    figures: dict[str, JsonValue] = {"bench": "lmms_eval", "lmms_eval": lmms_version(given.python), "questions": len(ours)}
    write_result(f"lmms_eval-{device_kind()}", figures | {"distinct_answers": distinct, "arms": arms})
    whole = arms["float32"]
    assert isinstance(whole, dict)
    if whole["answers"]:
        sys.exit("answers differ in float32, and nothing explains it")


if __name__ == "__main__":
    main()
