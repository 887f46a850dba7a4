"""`stllava judge-check`: people in the loop, and what they say of the expert."""

from pathlib import Path

from stllava.records import VotesCheck
from stllava.report.wording import votes_rows, votes_sentence
from stllava.review.round_files import find_round
from stllava.review.votes_check import check_votes
from stllava.text import aligned, show


def judge_check(*, votes: Path, round: int | None = None) -> None:  # noqa: A002 - the flag is --round
    """Say how often the expert errs by readers' votes, how far readers agree, and how long they took.

    Args:
        votes: A run, or the folder of one round, whose verdicts were read with `stllava review`.
        round: Number of the run's round; the last one that was judged when not named.
    """
    found = find_round(votes, round)
    check = check_votes(found.review)
    show(describe_votes(check), f"\n{found.review}")


def describe_votes(check: VotesCheck) -> str:
    """What votes come to, as lines of text."""
    rows = [
        (label, f"{rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}] (n={rate.n})")
        for label, rate in votes_rows(check)
        if rate is not None
    ]
    said = ", ".join(f"{count} {choice}" for choice, count in check.choices.items())
    lines = [f"{check.expert}: {votes_sentence(check)}", f"  votes: {said}", *(f"  {line}" for line in aligned(rows))]
    if check.reader_error is None:
        lines.append("  The expert's own error rate is not known: no verdict was read by two readers who mostly agree.")
    return "\n".join(lines)
