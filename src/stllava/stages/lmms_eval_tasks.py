"""Benchmarks as tasks of lmms-eval, asked and scored by the same code as `stllava evaluate`.

    stllava convert benchmarks vqa-rad=vqa_rad --to tasks
    lmms-eval --include_path tasks --tasks stllava_vqa_rad --model … --log_samples --output_path theirs

`write_task` writes a YAML file, which names the functions below, and the questions beside it. lmms-eval calls the functions, so
stllava must be installed where lmms-eval is.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from stllava.config import QUESTION, EvaluateOptions
from stllava.data.exchange.sample_logs import LOGGED
from stllava.data.images import open_image
from stllava.metrics.score import METRICS, measured, values
from stllava.records import Prediction, Sample
from stllava.stages.evaluate import worded
from stllava.store import write_whole

if TYPE_CHECKING:
    from PIL.Image import Image

REPORTED = ("closed_accuracy", "open_exact_match", "open_recall", "llava_med_closed", "llava_med_open_recall")
"""The metrics that lmms-eval prints; `stllava score` makes the others, and the intervals, of its log."""
FUNCTION = "!function"


class _Function(str):
    """The address of a function, which lmms-eval imports."""

    __slots__ = ()


class _TaskDumper(yaml.SafeDumper):
    """Writes YAML with lmms-eval's tag for functions."""


_TaskDumper.add_representer(_Function, lambda dumper, address: dumper.represent_scalar(FUNCTION, str(address)))


def write_task(name: str, samples: Sequence[Sample], *, root: Path, to: Path, prompt: str = QUESTION) -> str:
    """Write a benchmark's questions and its task file into a folder; returns the name of the task.

    Args:
        name: The benchmark's name.
        samples: Its questions.
        root: The image root; the task file names it in full, since images stay where they are.
        to: The folder, which `--include_path` then names.
        prompt: The words in which every question is asked; {question} stands for it and the options it may have.
    """
    options = EvaluateOptions(prompt=prompt)
    task = f"stllava_{name.replace('-', '_')}"
    docs = [row.model_dump(mode="json", exclude={"labels"}) for row in samples]
    write_whole(to / f"{task}.jsonl", "".join(f"{json.dumps(doc, ensure_ascii=False)}\n" for doc in docs))
    here = __name__
    settings = {
        "task": task,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{task}.jsonl"}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_visual": _Function(f"{here}.doc_to_visual"),
        "doc_to_text": _Function(f"{here}.doc_to_text"),
        "doc_to_target": "targets",
        "process_results": _Function(f"{here}.process_results"),
        "generation_kwargs": {
            "max_new_tokens": options.sampling.max_new_tokens,
            "temperature": 0,
            "do_sample": False,
            "until": [],
        },
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in REPORTED],
        "lmms_eval_specific_kwargs": {"default": {"root": str(root.resolve()), "prompt": prompt}},
        "metadata": {"version": 1.0, "rules": {metric: METRICS[metric].rule for metric in REPORTED}},
    }
    write_whole(to / f"{task}.yaml", yaml.dump(settings, Dumper=_TaskDumper, sort_keys=False, allow_unicode=True))
    return task


def doc_to_visual(doc: Mapping[str, object], lmms_eval_specific_kwargs: Mapping[str, str]) -> "list[Image]":
    """The picture of a question, read as a policy of stllava sees it."""
    return [open_image(Path(lmms_eval_specific_kwargs["root"]), sample_of(doc).image)]


def doc_to_text(doc: Mapping[str, object], lmms_eval_specific_kwargs: Mapping[str, str]) -> str:
    """The words in which a question is asked."""
    return worded(sample_of(doc), lmms_eval_specific_kwargs["prompt"])


def process_results(doc: Mapping[str, object], results: Sequence[str]) -> dict[str, object]:
    """What the metrics for questions of its kind say of an answer; one that they cannot read counts as 0.

    The question goes along under `sample`: lmms-eval averages what `metric_list` names alone, but logs everything, and of its
    own accord leaves the question's kind, image and list of targets out of its log.
    """
    sample = sample_of(doc)
    answer = Prediction.of(sample, results[0], policy="lmms-eval")
    said = {metric: values([answer], metric)[0] for metric in REPORTED if measured([answer], metric)}
    return {**said, LOGGED: sample.model_dump(mode="json", exclude={"labels"})}


def sample_of(doc: Mapping[str, object]) -> Sample:
    """The question of a row as lmms-eval hands it over."""
    return Sample.model_validate({name: doc[name] for name in Sample.model_fields if name in doc})
