"""`stllava judge`: verdicts, what they would cost, how far their expert can be trusted."""

from pathlib import Path

from stllava.commands.flags import refuse_ignored
from stllava.commands.telling import tell
from stllava.config import JudgeOptions
from stllava.errors import StllavaError
from stllava.records import JudgeCheck
from stllava.report.wording import check_rows
from stllava.stages.judge import check as check_judge
from stllava.stages.judge import judge, plan
from stllava.store import Existing
from stllava.text import aligned, counted, show


def judge_or_look(
    options: JudgeOptions,
    *,
    answers: Path,
    to: Path,
    truth: Path | None = None,
    root: Path | None = None,
    labels: Path | None = None,
    labelled_answers: Path | None = None,
    seed: int = 0,
    existing: Existing = "resume",
    shard: str | None = None,
    dry_run: bool = False,
    check: bool = False,
    sample: int | None = None,
    votes: Path | None = None,
) -> None:
    """Let an expert judge the folder of answers.

    Args:
        options: Which expert, and how it is asked.
        answers: Folder of the answers.
        to: Folder for the judgments, or for the check.
        truth: JSONL of phantom truths or reference samples, for experts that know.
        root: The image root, for experts that are models.
        labels: JSONL of questions with known answers, by which the expert itself finds out how far votes can be trusted.
        labelled_answers: Folder of the policy's answers to those questions.
        seed: Seed of the run.
        existing: What to do with output that is there: resume it, replace it, or end in an error.
        shard: i/n: do the i-th of n equal parts of the work, in a folder of its own below `to`; `stllava gather` then makes the
            whole of them. Limits of rate and cost hold for each shard by itself.
        dry_run: Print the first prompt, the number of requests and what they cost at most; ask nothing.
        check: Measure the expert on a sample instead: biases by order and length, agreement with itself and the truth.
        sample: Questions in that sample; 100 when not named.
        votes: JSONL of people's votes, the truth of a check.
    """
    if options.audit:
        raise StllavaError(
            f"--audit is {options.audit} in a stage by hand",
            expected="a run, which audits its expert before the first round",
            remedy="Leave --audit and --smooth-labels out; --check measures an expert by hand.",
        )
    if not check:
        refuse_ignored({"--sample": sample, "--votes": votes}, without="--check")
    if dry_run:
        refuse_ignored({"--check": check or None}, beside="--dry-run")
    if dry_run or check:
        given = {"--labels": labels, "--labelled-answers": labelled_answers, "--shard": shard}
        refuse_ignored(given, beside="--check" if check else "--dry-run")
    if dry_run:
        found = plan(options, answers=answers, truth=truth, root=root, to=to)
        show(found.prompt or "Nothing is to be asked.")
        show(f"\n{counted(found.requests, 'request')}, {price(found.cost)}")
    elif check:
        show(
            describe(
                check_judge(
                    options,
                    answers=answers,
                    truth=truth,
                    root=root,
                    votes=votes,
                    sample=100 if sample is None else sample,
                    to=to,
                    existing=existing,
                )
            )
        )
    else:
        tell(
            judge(
                options,
                answers=answers,
                truth=truth,
                root=root,
                to=to,
                labels=labels,
                labelled_answers=labelled_answers,
                seed=seed,
                existing=existing,
                shard=shard,
            ).manifest
        )


def price(cost: float | None) -> str:
    """What requests cost, in words."""
    return f"${cost:.4f} at most" if cost else "price not given (input_price, output_price)" if cost is None else "at no cost"


def describe(check: JudgeCheck) -> str:
    """A check as lines of text."""
    lines = [f"{check.expert}: {counted(check.questions, 'question')}, {counted(check.requests, 'reply', 'replies')}"]
    rows = [
        (label, "–" if rate is None else f"{rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}] (n={rate.n})")
        for label, rate in check_rows(check)
    ]
    lines += [f"  {line}" for line in aligned(rows)]
    for flip in check.examples[:3]:
        lines += ["", f"  flipped: {flip.question!r} about {flip.image}: {flip.answers[0]!r} against {flip.answers[1]!r}"]
    return "\n".join(lines)
