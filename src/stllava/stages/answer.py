"""The policy answers each question K times, every time alone with the image.

Reads questions; writes `answers.jsonl`. Where the expert to come knows its answers, it is asked first which questions it
could judge: answers to the others would never get a verdict, so they are dropped and counted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stllava.config import AnswerOptions
from stllava.data.images import count_missing
from stllava.dropped import Dropped
from stllava.records import Answers, Message, Question, Sampling, content_id
from stllava.stages.results import AnswerResult
from stllava.stages.speaking import SamplingWork
from stllava.store import Existing, Input, Inputs, file_hash, nothing_left, open_stage, output_hash, read_records, shares_out


@dataclass(frozen=True)
class AnswerWork(SamplingWork):
    """Answers a chunk of questions."""

    options: AnswerOptions
    """How many answers, and how they are sampled."""
    seed: int
    """Seed of what is drawn at random."""

    def __call__(self, chunk: Sequence[Question]) -> tuple[list[Answers], Dropped]:
        """The answers to each question that can be put."""
        from stllava.generation.sampler import Prompt, complete_usable, usable

        options, weights = self.options, self.weights
        how = Sampling(**options.sampling.model_dump(), seed=self.seed)
        kept, prompts, dropped = usable(
            self.sampler, chunk, lambda question: Prompt((Message(role="user", content=question.text),), question.images)
        )
        kept, spoken = complete_usable(
            self.sampler, kept, prompts, dropped, k=options.num_answers, sampling=options.sampling, seed=self.seed
        )
        return [
            Answers(
                id=content_id("answers", question.id, [completion.text for completion in completions], weights),
                question_id=question.id,
                images=question.images,
                question=question.text,
                completions=tuple(completion.text for completion in completions),
                log_probabilities=tuple(completion.log_probability for completion in completions),
                finished=tuple(completion.finished for completion in completions),
                policy=weights,
                sampling=how,
            )
            for question, completions in zip(kept, spoken, strict=True)
        ], dropped


@shares_out
def answer(
    options: AnswerOptions,
    *,
    policy: Path,
    questions: Path,
    root: Path,
    to: Path,
    expert: str | None = None,
    truth: Path | None = None,
    seed: int = 0,
    existing: Existing = "resume",
    shard: str | None = None,
) -> AnswerResult:
    """Let a policy answer each question several times, every time alone with the image; write the answers.

    Args:
        options: How many answers, and how they are sampled.
        policy: Folder of the policy that answers, or its name on the hub.
        questions: Folder of the questions that `ask` wrote.
        root: The image root: every image path is relative to it.
        to: Folder for the answers (answers.jsonl), with the log-probability of each in nats.
        expert: oracle or reference: answer only questions that this expert can judge by what it knows.
        truth: What that expert knows: JSONL of phantom truths or reference samples.
        seed: Seed of what is drawn at random; the same seed gives the same output.
        existing: What to do with output that is there: resume it, replace it, or end in an error.
        shard: i/n: do the i-th of n equal parts of the work, in a folder of its own below `to`; `stllava gather` then makes the
            whole of them.

    Raises:
        StllavaError: Where no answer is left, or more than `max_bad` of the images cannot be used.
    """
    from stllava.experts.build import rule_judge
    from stllava.model.load import fingerprint

    knowing = rule_judge(expert, truth) if expert is not None else None
    inputs: Inputs = {"policy": Input(policy, fingerprint), "questions": Input(questions, output_hash)}
    inputs["seed"] = str(seed)
    if knowing is not None and truth is not None:
        inputs |= {"expert": knowing.prompt_hash, "truth": Input(truth, file_hash)}
    with open_stage(
        "answer", to, options, inputs=inputs, reads=(truth,), existing=existing, items="questions", shard=shard
    ) as stage:
        if stage.manifest is not None:
            return AnswerResult(stage.to, stage.manifest)
        given = read_records(questions, "questions", Question)
        asked, unjudged = [], Dropped()
        for question in given:
            objection = knowing.objection(question.text, question.images) if knowing is not None else None
            if objection is None:
                asked.append(question)
            else:
                unjudged.drop(f"no verdict by {expert}", f"{question.text!r} about {question.images[0]}: {objection}")
        if not asked:
            remedy = "Ask more, or choose an expert that can judge these." if given else "Ask more: this ask got no question."
            raise nothing_left(f"the {len(given)} questions of {questions}", unjudged, remedy=remedy)
        missing = count_missing(root, [question.images for question in asked])
        missing.refuse_faults(items=len(asked), unit="questions", max_bad=options.max_bad)
        work = AnswerWork(options, policy, stage.inputs["policy"], root, stage.to, seed)
        mapped = stage.map_chunks(
            asked, work, record_type=Answers, size=options.chunk, unit="questions", max_bad=options.max_bad
        )
        if mapped.manifest is not None:
            return AnswerResult(stage.to, mapped.manifest)
        distinct = cut = 0

        def counted() -> Iterator[Answers]:
            nonlocal distinct, cut
            for row in mapped.records:
                distinct += len(set(row.completions))
                cut += row.finished.count(False)
                yield row

        stage.write_records("answers", counted())
        mapped.dropped.take(unjudged)
        completions = options.num_answers * mapped.count
        longest = f"{options.sampling.max_new_tokens} tokens (sampling.max_new_tokens)"
        cut_note = [f"{cut} of {completions} answers were cut off at {longest} at most: none of them is chosen."] if cut else []
        manifest = stage.finish(
            counts_in=len(given),
            counts_out=mapped.count,
            dropped=+mapped.dropped,
            measures={
                "answers_a_question": float(options.num_answers),
                "distinct_answers_a_question": distinct / mapped.count if mapped.count else 0.0,
                "cut_share": cut / completions if completions else 0.0,
            },
            notes=[*mapped.notes, *cut_note],
            device=mapped.device,
        )
        return AnswerResult(to, manifest)
