"""Greedy answers on a benchmark, scored with 95 % intervals.

Reads samples; writes `predictions.jsonl` (every answer with the words it was asked in), `scores.jsonl`, and
`answers.jsonl`: every open answer beside its references, so that `stllava judge` can be asked about them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING

from stllava.config import QUESTION, EvaluateOptions
from stllava.data.benchmarks.own import read_samples
from stllava.data.images import count_missing
from stllava.data.overlap import describe, find_overlap, fingerprints_of, read_training_items, refuse
from stllava.dropped import Dropped
from stllava.errors import ItemError
from stllava.metrics.robust import normalise
from stllava.records import Message, Overlap, Prediction, Sample
from stllava.stages.results import EvaluateResult
from stllava.stages.scored_predictions import candidates_input, finish_evaluation, read_candidates
from stllava.stages.speaking import SamplingWork
from stllava.store import (
    Existing,
    Input,
    Inputs,
    file_hash,
    open_stage,
    output_hash,
    shares_out,
)

if TYPE_CHECKING:
    from stllava.generation.sampler import Sampler


@dataclass(frozen=True)
class EvaluateWork(SamplingWork):
    """Puts a chunk of a benchmark's questions."""

    options: EvaluateOptions
    """How questions are put and answered."""
    template: str
    """The words in which they are asked."""
    blank: bool
    """Whether black images are shown instead."""

    @cached_property
    def sampler(self) -> "Sampler":
        """The policy, once it is asked."""
        from stllava.generation.local_sampler import open_sampler

        return open_sampler(self.options, policy=self.policy, root=self.root, audit=self.audit, blank=self.blank)

    def __call__(self, chunk: Sequence[Sample]) -> tuple[list[Prediction], Dropped]:
        """The policy's answer to each question that can be put."""
        from stllava.generation.sampler import Prompt, complete_usable, usable

        kept, prompts, dropped = usable(
            self.sampler,
            chunk,
            lambda row: Prompt((Message(role="user", content=worded(row, self.template)),), (row.image,)),
        )
        kept, completions = complete_usable(self.sampler, kept, prompts, dropped, k=1, sampling=self.options.sampling, seed=0)
        return [
            Prediction.of(row, answer.text, policy=self.weights, prompt=worded(row, self.template), finished=answer.finished)
            for row, (answer,) in zip(kept, completions, strict=True)
        ], dropped


@shares_out
def evaluate(
    options: EvaluateOptions,
    *,
    policy: Path,
    samples: Path,
    root: Path,
    to: Path,
    name: str = "policy",
    blank: bool = False,
    candidates: Path | None = None,
    learned: Sequence[Path] = (),
    allow_overlap: bool = False,
    existing: Existing = "resume",
    shard: str | None = None,
) -> EvaluateResult:
    """Score `policy`, called `name`, on `samples` about images under `root`; `blank` shows black images instead.

    `samples` is JSONL of Sample records, or any table with image, question and answer (`data.benchmarks.own`).

    `candidates` is a JSON list of answers, which the published open accuracy chooses from. `learned` names what the
    policy learned from, about images under the same root: where it has test images the stage refuses, unless
    `allow_overlap`, and what was found is written to `overlaps.jsonl`.

    Args:
        options: How questions are put and answered.
        policy: Folder of the policy, or its name on the hub.
        samples: The benchmark's samples (JSONL), or a table with image, question, answer; its name is the benchmark's.
        root: The image root: every image path is relative to it.
        to: Folder for predictions and scores.
        name: What the policy is called in the results.
        blank: Show black images: the question-only baseline.
        candidates: JSON list of answers that the published open accuracy chooses from.
        learned: What the policy learned from (conversations, questions, pairs, images); refused where it shares images with
            the samples.
        allow_overlap: Go on although test images were learned from; the result says so.
        existing: What to do with output that is there: resume it, replace it, or end in an error.
        shard: i/n: do the i-th of n equal parts of the work, in a folder of its own below `to`; `stllava gather` then makes the
            whole of them.

    Raises:
        StllavaError: Where more than `max_bad` of the samples cannot be used, or training has seen their images.
    """
    from stllava.model.load import fingerprint

    inputs: Inputs = {"policy": Input(policy, fingerprint), "samples": Input(samples, file_hash)}
    inputs |= candidates_input(candidates) | {"name": name, "blank": str(blank)}
    inputs |= {f"learned {path}": Input(path, output_hash if path.is_dir() else file_hash) for path in learned}
    with open_stage("evaluate", to, options, inputs=inputs, existing=existing, items="samples", shard=shard) as stage:
        if stage.manifest is not None:
            return EvaluateResult(stage.to, stage.manifest)
        read, file_notes = read_samples(samples)
        empty = Dropped()
        for row in read:
            if not row.question.strip() or not any(target.strip() for target in row.targets):
                empty.fault(ItemError("empty text", f"{row.id} has no question or no answer"))
        rows = [row for row in read if row.question.strip() and any(target.strip() for target in row.targets)]
        for lost in (empty, count_missing(root, [(row.image,) for row in rows])):
            lost.refuse_faults(items=len(read), unit="samples", max_bad=options.max_bad)
        if learned:
            overlap = _overlap(samples.stem, rows, learned, root=root)
            if overlap.serious and not allow_overlap:
                refuse(overlap)
            overlap_notes = describe(overlap)
        by_image = sorted(rows, key=lambda row: row.image)  # Questions about an image share its prefill within a chunk.
        template = options.template(samples.stem)
        work = EvaluateWork(options, policy, stage.inputs["policy"], root, stage.to, template, blank)
        mapped = stage.map_chunks(
            by_image, work, record_type=Prediction, size=options.chunk, unit="samples", max_bad=options.max_bad
        )
        if mapped.manifest is not None:
            return EvaluateResult(stage.to, mapped.manifest)
        if learned:
            stage.write_records("overlaps", [overlap])
        order = {row.id: index for index, row in enumerate(rows)}
        predictions = mapped.records.in_order(lambda prediction: order[prediction.sample_id])
        dropped = mapped.dropped
        dropped.take(empty)
        return finish_evaluation(
            stage,
            predictions,
            options=options,
            name=name,
            benchmark=samples.stem,
            dropped=dropped,
            candidates=read_candidates(candidates),
            notes=[
                *file_notes,
                *mapped.notes,
                *(overlap_notes if learned else ()),
                *_told_of(predictions, options.sampling.max_new_tokens),
                f"Every question was asked as {template!r}.",
            ],
            device=mapped.device,
        )


def _overlap(benchmark: str, samples: Sequence[Sample], learned: Sequence[Path], *, root: Path) -> Overlap:
    parts = {str(path): read_training_items(path) for path in learned}
    images = {sample.image for sample in samples} | {item.image for items in parts.values() for item in items}
    fingerprints = fingerprints_of(root, images)
    return find_overlap(benchmark, samples, fingerprints=fingerprints, learned=parts, learned_fingerprints=fingerprints)


def worded(sample: Sample, template: str) -> str:
    """The question in the words of a template; the options of a multiple-choice question stand one a line, lettered.

    A question that names all of its options itself ("Is it small, medium or large?") is asked as it is: it says what may be
    answered, and a policy that never saw lettered lines answers it as it learned to.
    """
    words = f" {normalise(sample.question)} "
    named = all(f" {normalise(choice)} " in words for choice in sample.choices)
    options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, sample.choices, strict=False))
    question = sample.question if named else f"{sample.question}\n{options}"
    return template.replace(QUESTION, question)


def _told_of(predictions: Iterable[Prediction], longest: int) -> list[str]:
    """What a reader of the scores must know of how the answers ended and of thoughts in them."""
    cut, aloud, count = 0, 0, 0
    for count, row in enumerate(predictions, 1):  # noqa: B007 - what it is at the end is how many there are.
        cut += not row.finished
        aloud += row.final_answer != row.completion
    notes = []
    if cut:
        notes.append(f"{cut} of {count} answers were cut off at {longest} tokens at most (sampling.max_new_tokens).")
    if aloud:
        notes.append(f"{aloud} of {count} answers think aloud: what stands behind the thought was scored.")
    return notes
