"""Greedy answers on a benchmark, scored with 95 % intervals.

Reads samples; writes `predictions.jsonl` (every answer, so that another rule can score them again) and `scores.jsonl`.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stllava.config import EvaluateOptions
from stllava.metrics.score import score
from stllava.records import Manifest, Message, Prediction, Sample, content_id
from stllava.store import Existing, Stage, file_hash, locked, read_jsonl

if TYPE_CHECKING:
    from stllava.model.sampler import Sampler


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
    from stllava.model.load import fingerprint
    from stllava.model.sampler import Prompt, usable
    from stllava.tree.decode import open_sampler

    with locked(to):
        weights = fingerprint(policy)
        inputs = {"policy": weights, "samples": file_hash(samples), "name": name, "blank": str(blank)}
        stage = Stage("evaluate", to, options, inputs=inputs, existing=existing)
        if stage.manifest is not None:
            return stage.manifest
        rows = read_jsonl(samples, Sample)
        by_image = sorted(rows, key=lambda one: one.image)  # Questions about an image share its prefill within a chunk.
        sampler = open_sampler(options, policy=policy, root=root, audit=to, blank=blank)

        def work(chunk: Sequence[Sample]) -> tuple[list[Prediction], Counter[str]]:
            kept, prompts, dropped = usable(
                sampler, chunk, lambda one: Prompt((Message(role="user", content=one.question),), (one.image,))
            )
            said = sampler.complete(prompts, k=1, sampling=options.sampling, seed=0)
            return [predict(one, told.text, policy=weights) for one, (told,) in zip(kept, said, strict=True)], dropped

        predictions, dropped = stage.map_chunks(by_image, work, kind=Prediction, size=options.chunk, unit="samples")
        order = {one.id: place for place, one in enumerate(rows)}
        predictions.sort(key=lambda one: order[one.sample_id])
        return _finish(stage, predictions, name=name, benchmark=samples.stem, dropped=dropped, sampler=sampler)


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
        return _finish(stage, predictions, name="majority", benchmark=samples.stem, dropped=Counter())


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
    stage: Stage,
    predictions: list[Prediction],
    *,
    name: str,
    benchmark: str,
    dropped: Counter[str],
    sampler: "Sampler | None" = None,
) -> Manifest:
    scores = score(predictions, policy=name, benchmark=benchmark)
    stage.write_records("predictions", predictions)
    stage.write_records("scores", scores)
    return stage.finish(
        counts_in=len(predictions) + dropped.total(),
        counts_out=len(predictions),
        dropped=dropped,
        measures={one.metric: one.value for one in scores},
        notes=sampler.notes if sampler is not None else (),
        device=sampler.device if sampler is not None else "cpu",
    )
