"""Answers to questions of your own, for use: one question a line, no targets, no scores.

Reads a JSONL of `{"image", "question"}` rows, with `id` and `choices` where you have them, or of Sample records, whose
targets are not looked at; or a table (CSV, TSV, JSON) with these columns. Writes `replies.jsonl`: a line for every
question in their order, with the answer or why there is none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import model_validator

from stllava.config import EvaluateOptions
from stllava.data.benchmarks.own import read_rows
from stllava.data.benchmarks.rows import samples_of
from stllava.data.images import count_missing
from stllava.dropped import SET_ASIDE, Dropped
from stllava.errors import ItemError, TextError, cause_of
from stllava.records import Keyed, Message, QuestionKind, Sample, content_id
from stllava.stages.evaluate import worded
from stllava.stages.results import PredictResult
from stllava.stages.speaking import SamplingWork
from stllava.store import Existing, Input, Inputs, file_hash, open_stage, read_jsonl, shares_out

if TYPE_CHECKING:
    from stllava.generation.sampler import Completion


class Asked(Sample):
    """A question of the user's: a sample of which image and question are known, and perhaps no more."""

    targets: tuple[str, ...] = ()
    """Not looked at."""
    kind: QuestionKind = "open"
    """Not looked at."""
    split: str = ""
    """Not looked at."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, row: object) -> object:
        """A row without an id is named by its content; a number is as good an id as a text."""
        if not isinstance(row, Mapping):
            return row
        if "id" in row:
            return {**row, "id": str(row["id"])} if type(row["id"]) is int else row
        return {"id": content_id("asked", *(row.get(key) for key in ("image", "question", "choices"))), **row}


class Reply(Keyed):
    """A policy's answer to a question of the user's, or why there is none."""

    id: str
    """The question's."""
    image: str
    """Path relative to the image root."""
    question: str
    """The question."""
    choices: tuple[str, ...] = ()
    """The options it was asked with."""
    prompt: str = ""
    """The words the policy was asked in; empty where they are the question itself."""
    answer: str | None
    """What the policy said; None where it could not be asked."""
    cause: str | None = None
    """Why it could not be asked; None where it was."""
    finished: bool = True
    """Whether it came to its own end rather than to the longest it may be."""
    log_probability: float | None = None
    """Natural logarithm of the answer's untempered probability, its end included; None where it is not known."""
    policy: str
    """Fingerprint of the weights."""


def read_questions(path: Path) -> tuple[list[Asked], tuple[str, ...]]:
    """The questions of a file in their order, and what was told of its form; JSON lines have no keys but those of `Asked`."""
    if path.is_file():
        with path.open("rb") as file:
            if file.read(1) == b"{":
                return read_jsonl(path, Asked), ()
    rows, notes = read_rows(path, answers=False)
    return [Asked.model_validate(row.model_dump()) for row in samples_of("asked", "", rows)], notes


@dataclass(frozen=True)
class PredictWork(SamplingWork):
    """Puts a chunk of the user's questions."""

    options: EvaluateOptions
    """How questions are put and answered."""
    template: str
    """The words in which they are asked."""

    def __call__(self, chunk: Sequence[Asked]) -> tuple[list[Reply], Dropped]:
        """A reply to each question, or why there is none."""
        from stllava.generation.sampler import Prompt, RefusedPromptsError

        sampler, template, weights = self.sampler, self.template, self.weights
        prompts: dict[str, Prompt] = {}
        causes: dict[str, str] = {}
        dropped = Dropped()
        for row in chunk:
            prompt = Prompt((Message(role="user", content=worded(row, template)),), (row.image,))
            try:
                if not row.question.strip():
                    raise TextError("empty text", f"{row.id} has no question")
                sampler.check(prompt)
            except ItemError as error:
                causes[row.id] = cause_of(error)
                dropped.fault(error, of="image")
            else:
                prompts[row.id] = prompt
        names = list(prompts)
        try:
            completions = sampler.complete(list(prompts.values()), k=1, sampling=self.options.sampling, seed=0)
        except RefusedPromptsError as error:
            completions = error.said
            for index, fault in error.refused.items():
                causes[names[index]] = cause_of(fault)
                dropped.fault(fault, of="image")
        answered = [name for name in names if name not in causes]
        answers = {name: answer for name, (answer,) in zip(answered, completions, strict=True)}
        replies = [
            reply(row, answers.get(row.id), cause=causes.get(row.id), prompt=worded(row, template), policy=weights)
            for row in chunk
        ]
        return replies, dropped

    def set_aside(self, chunk: Sequence[Asked], detail: str) -> tuple[list[Reply], Dropped]:
        """A line for each question that says why there is no answer."""
        none = [reply(row, None, cause=SET_ASIDE, prompt=worded(row, self.template), policy=self.weights) for row in chunk]
        return none, Dropped.set_aside(len(chunk), detail)


@shares_out
def predict(
    options: EvaluateOptions,
    *,
    policy: Path,
    questions: Path,
    root: Path,
    to: Path,
    existing: Existing = "resume",
    shard: str | None = None,
) -> PredictResult:
    """Let a policy answer a file of questions and write a line for each, in the order of the file.

    Args:
        options: How questions are put and answered.
        policy: Folder of the policy, or its name on the hub.
        questions: JSONL or a table with the columns image and question; an id, choices and the like are kept.
        root: The image root: every image path is relative to it.
        to: Folder for the answers.
        existing: What to do with output that is there: resume it, replace it, or end in an error.
        shard: i/n: do the i-th of n equal parts of the work, in a folder of its own below `to`; `stllava gather` then makes the
            whole of them.

    Raises:
        StllavaError: Where more than `max_bad` of the questions cannot be answered.
    """
    from stllava.model.load import fingerprint

    inputs: Inputs = {"policy": Input(policy, fingerprint), "questions": Input(questions, file_hash)}
    with open_stage("predict", to, options, inputs=inputs, existing=existing, items="questions", shard=shard) as stage:
        if stage.manifest is not None:
            return PredictResult(stage.to, stage.manifest)
        rows, file_notes = read_questions(questions)
        missing = count_missing(root, [(row.image,) for row in rows])
        missing.refuse_faults(items=len(rows), unit="questions", max_bad=options.max_bad)
        by_image = sorted(rows, key=lambda row: row.image)  # Questions about an image share its prefill within a chunk.
        template = options.template(questions.stem)

        work = PredictWork(options, policy, stage.inputs["policy"], root, stage.to, template)
        mapped = stage.map_chunks(
            by_image, work, record_type=Reply, size=options.chunk, unit="questions", max_bad=options.max_bad
        )
        if mapped.manifest is not None:
            return PredictResult(stage.to, mapped.manifest)
        dropped, order = mapped.dropped, {row.id: index for index, row in enumerate(rows)}
        stage.write_records("replies", mapped.records.in_order(lambda reply: order[reply.id]))
        manifest = stage.finish(
            counts_in=len(rows),
            counts_out=len(rows) - dropped.total(),
            dropped=dropped,
            notes=[*file_notes, *mapped.notes, f"Every question was asked as {template!r}."],
            device=mapped.device,
        )
        return PredictResult(to, manifest)


def reply(row: Asked, completion: "Completion | None", *, cause: str | None, prompt: str, policy: str) -> Reply:
    """A question with its answer, or the cause why there is none."""
    return Reply(
        id=row.id,
        image=row.image,
        question=row.question,
        choices=row.choices,
        prompt="" if prompt == row.question else prompt,
        answer=completion.text if completion is not None else None,
        cause=cause,
        finished=completion is None or completion.finished,
        log_probability=completion.log_probability if completion is not None else None,
        policy=policy,
    )
