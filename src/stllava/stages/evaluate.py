"""Greedy answers on a benchmark, scored with 95 % intervals.

Reads samples; writes `predictions.jsonl` (every answer, so that another rule can score them again) and `scores.jsonl`.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from stllava.config import EvaluateOptions
from stllava.metrics.score import score
from stllava.records import Manifest, Prediction, Sample, content_id
from stllava.store import Existing, Stage, file_hash, locked, read_jsonl


def evaluate(
    options: EvaluateOptions,
    *,
    policy: Path,
    samples: Path,
    root: Path,
    to: Path,
    name: str = "policy",
    blank: bool = False,
    existing: Existing = "resume",
) -> Manifest:
    """Score `policy`, called `name`, on `samples` (JSONL) about images under `root`; `blank` shows black images instead."""
    from stllava.model.load import fingerprint, load_policy
    from stllava.tree.decode import complete, usable_requests

    with locked(to):
        weights = fingerprint(policy)
        inputs = {"policy": weights, "samples": file_hash(samples), "name": name, "blank": str(blank)}
        stage = Stage("evaluate", to, options, inputs=inputs, existing=existing)
        if stage.manifest is not None:
            return stage.manifest
        rows = read_jsonl(samples, Sample)
        loaded = load_policy(policy)

        def work(chunk: Sequence[Sample], chunk_seed: int) -> tuple[list[Prediction], Counter[str]]:
            kept, requests, dropped = usable_requests(
                loaded, chunk, lambda sample: (sample.question, (sample.image,)), root=root, blank=blank
            )
            said = complete(loaded, requests, k=1, sampling=options.sampling, seed=chunk_seed)
            return [predict(one, text, policy=weights) for one, (text,) in zip(kept, said, strict=True)], dropped

        predictions, dropped = stage.map_chunks(rows, work, kind=Prediction, size=options.chunk, seed=0, unit="samples")
        return _finish(stage, predictions, name=name, benchmark=samples.stem, dropped=dropped, device=str(loaded.device))


def majority(options: EvaluateOptions, *, known: Path, samples: Path, to: Path, existing: Existing = "resume") -> Manifest:
    """Score the baseline that gives every sample the most frequent answer of its kind in the samples `known`."""
    with locked(to):
        inputs = {"known": file_hash(known), "samples": file_hash(samples)}
        stage = Stage("evaluate", to, options, inputs=inputs, existing=existing)
        if stage.manifest is not None:
            return stage.manifest
        counts: dict[str, Counter[str]] = {"open": Counter(), "closed": Counter()}
        for sample in read_jsonl(known, Sample):
            counts[sample.kind][sample.targets[0].lower()] += 1
        usual = {kind: min(answers, key=lambda text: (-answers[text], text), default="") for kind, answers in counts.items()}
        predictions = [predict(one, usual[one.kind], policy="majority") for one in read_jsonl(samples, Sample)]
        return _finish(stage, predictions, name="majority", benchmark=samples.stem, dropped=Counter(), device="cpu")


def predict(sample: Sample, completion: str, *, policy: str) -> Prediction:
    """A sample with its answer."""
    return Prediction(
        id=content_id("prediction", sample.id, policy),
        sample_id=sample.id,
        image=sample.image,
        question=sample.question,
        targets=sample.targets,
        kind=sample.kind,
        completion=completion,
        policy=policy,
    )


def _finish(
    stage: Stage, predictions: list[Prediction], *, name: str, benchmark: str, dropped: Counter[str], device: str
) -> Manifest:
    scores = score(predictions, policy=name, benchmark=benchmark)
    stage.write_records("predictions", predictions)
    stage.write_records("scores", scores)
    return stage.finish(
        counts_in=len(predictions) + dropped.total(),
        counts_out=len(predictions),
        dropped=dropped,
        measures={one.metric: one.value for one in scores},
        device=device,
    )
