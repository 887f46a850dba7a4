"""The policy answers each question K times, every time alone with the image.

Reads questions; writes `answers.jsonl`. Where the expert to come knows its answers, it is asked first which questions it
could judge: answers to the others would never get a verdict, so they are dropped and counted.
"""

from collections.abc import Sequence
from pathlib import Path

from stllava.config import AnswerOptions
from stllava.data.images import count_missing
from stllava.dropped import Dropped
from stllava.records import Answers, Manifest, Message, Question, Sampling, content_id
from stllava.store import Existing, Stage, file_hash, locked, nothing_left, output_hash, read_records


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
) -> Manifest:
    """Let `policy` answer the questions in the folder `questions` about images under `root`; write answers to `to`.

    With `expert` oracle or reference, only questions that it can judge by what it knows from `truth`.
    """
    from stllava.experts.build import rule_judge
    from stllava.generation.decoder import open_sampler
    from stllava.generation.sampler import Prompt, complete_usable, usable
    from stllava.model.load import fingerprint

    with locked(to, policy, questions, truth):
        name = fingerprint(policy)
        inputs = {"policy": name, "questions": output_hash(questions), "seed": str(seed)}
        knowing = rule_judge(expert, truth) if expert is not None else None
        if knowing is not None and truth is not None:
            inputs |= {"expert": knowing.prompt_hash, "truth": file_hash(truth)}
        stage = Stage("answer", to, options, inputs=inputs, existing=existing, items="questions")
        if stage.manifest is not None:
            return stage.manifest
        given = read_records(questions, "questions", Question)
        asked, unjudged = [], Dropped()
        for one in given:
            objection = knowing.objection(one.text, one.images) if knowing is not None else None
            if objection is None:
                asked.append(one)
            else:
                unjudged.drop(f"no verdict by {expert}", f"{one.text!r} about {one.images[0]}: {objection}")
        if not asked:
            remedy = "Ask more, or choose an expert that can judge these." if given else "Ask more: this ask got no question."
            raise nothing_left(f"the {len(given)} questions of {questions}", unjudged, remedy=remedy)
        missing = count_missing(root, [one.images for one in asked])
        missing.refuse_faults(items=len(asked), unit="questions", max_bad=options.max_bad)
        sampler = open_sampler(options, policy=policy, root=root, audit=to)
        how = Sampling(**options.sampling.model_dump(), seed=seed)

        def work(chunk: Sequence[Question]) -> tuple[list[Answers], Dropped]:
            kept, prompts, dropped = usable(
                sampler, chunk, lambda one: Prompt((Message(role="user", content=one.text),), one.images)
            )
            kept, said = complete_usable(
                sampler, kept, prompts, dropped, k=options.num_answers, sampling=options.sampling, seed=seed
            )
            return [
                Answers(
                    id=content_id("answers", question.id, [one.text for one in completions], name),
                    question_id=question.id,
                    images=question.images,
                    question=question.text,
                    completions=tuple(one.text for one in completions),
                    log_probabilities=tuple(one.log_probability for one in completions),
                    finished=tuple(one.finished for one in completions),
                    policy=name,
                    sampling=how,
                )
                for question, completions in zip(kept, said, strict=True)
            ], dropped

        answers, dropped = stage.map_chunks(
            asked, work, kind=Answers, size=options.chunk, unit="questions", max_bad=options.max_bad
        )
        stage.write_records("answers", answers)
        dropped.take(unjudged)
        texts = [len(set(one.completions)) for one in answers]
        given_out, cut = options.num_answers * len(answers), sum(one.finished.count(False) for one in answers)
        longest = f"{options.sampling.max_new_tokens} tokens (sampling.max_new_tokens)"
        told = [f"{cut} of {given_out} answers were cut off at {longest} at most: none of them is chosen."] if cut else []
        return stage.finish(
            counts_in=len(given),
            counts_out=len(answers),
            dropped=+dropped,
            measures={
                "answers_a_question": float(options.num_answers),
                "distinct_answers_a_question": sum(texts) / len(texts) if texts else 0.0,
                "cut_share": cut / given_out if given_out else 0.0,
            },
            notes=[*sampler.notes, *told],
            device=sampler.device,
        )
