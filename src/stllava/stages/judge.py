"""An expert scores the answers.

Reads answers and what the expert knows; writes `judgments.jsonl`, one for every set of answers: where there is no
verdict, the judgment says why.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from stllava.config import JudgeOptions
from stllava.data.phantom_truth import Truth
from stllava.errors import StllavaError
from stllava.experts.expert import Expert
from stllava.experts.oracle import Oracle
from stllava.experts.reference import Reference
from stllava.records import Answers, Judgment, Manifest, Sample, content_id
from stllava.store import Existing, Stage, file_hash, locked, output_hash, read_jsonl, read_records


def expert_of(options: JudgeOptions, truth: Path | None) -> Expert:
    """The expert that the options name, with what it knows read from `truth`."""
    if truth is None:
        raise StllavaError(
            f"the expert {options.expert!r} was given nothing to know",
            expected="a file of truths or reference samples",
            remedy="Name it: --truth for `stllava judge`, data.references in a recipe.",
        )
    if options.expert == "oracle":
        return Oracle(read_jsonl(truth, Truth))
    return Reference(read_jsonl(truth, Sample))


def judge(
    options: JudgeOptions, *, answers: Path, truth: Path | None, to: Path, seed: int = 0, existing: Existing = "resume"
) -> Manifest:
    """Let an expert that knows `truth` (JSONL of phantom truths or reference samples) judge the folder `answers`."""
    with locked(to):
        inputs = {"answers": output_hash(answers), "truth": file_hash(truth) if truth is not None else "", "seed": str(seed)}
        stage = Stage("judge", to, options, inputs=inputs, existing=existing)
        if stage.manifest is not None:
            return stage.manifest
        expert = expert_of(options, truth)
        given = read_records(answers, "answers", Answers)

        def work(chunk: Sequence[Answers]) -> tuple[list[Judgment], Counter[str]]:
            return [_judged(expert, one) for one in chunk], Counter()

        judgments, _ = stage.map_chunks(given, work, kind=Judgment, size=options.chunk, unit="questions")
        stage.write_records("judgments", judgments)
        causes = Counter(judgment.cause for judgment in judgments if judgment.cause is not None)
        verdicts = [judgment.scores for judgment in judgments if judgment.scores is not None]
        marks = [score for scores in verdicts for score in scores]
        return stage.finish(
            counts_in=len(given),
            counts_out=len(judgments),
            measures={
                "verdicts": float(len(verdicts)),
                "verdict_share": len(verdicts) / len(given) if given else 0.0,
                "mean_score": sum(marks) / len(marks) if marks else 0.0,
                **{f"no_verdict_{cause}": float(count) for cause, count in sorted(causes.items())},
            },
            notes=(f"The expert is called {expert.name}. {expert.method}",),
        )


def _judged(expert: Expert, answers: Answers) -> Judgment:
    verdict = expert.judge(answers)
    return Judgment(
        id=content_id("judgment", answers.id, expert.name, expert.prompt_hash),
        answers_id=answers.id,
        scores=verdict.scores,
        cause=verdict.cause,
        reason=verdict.reason,
        expert=expert.name,
        prompt_hash=expert.prompt_hash,
        raw=verdict.raw,
        usage=verdict.usage,
        cost=verdict.cost,
    )
