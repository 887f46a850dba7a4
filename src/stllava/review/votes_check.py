"""What readers' votes say of an expert and of each other.

Reads the review folder of a round, its tasks and votes; writes `check.json` into it, which the report shows.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from stllava.errors import NothingLeftError, StllavaError
from stllava.metrics.agreement import kappa, krippendorff_alpha, rate
from stllava.metrics.stats import Interval
from stllava.metrics.stratified import ReadVerdict, expert_errors, stratified_share
from stllava.records import (
    ItemTask,
    Preferred,
    Rate,
    ReaderSpeed,
    ReviewTask,
    ReviewVote,
    StratumVotes,
    VoteChoice,
    VotesCheck,
)
from stllava.review.choices import refuse_other_votes
from stllava.review.readings import StandingVote, preferred, readings_by_task, standing
from stllava.review.sampling import STRATA
from stllava.review.tasks import read_tasks, sizes_of
from stllava.review.vote_log import read_votes
from stllava.store import CHECK, write_whole

_LABELS: Mapping[VoteChoice, int] = {"first": 0, "second": 1, "equal": 2, "both wrong": 3}
_SIGNS: Mapping[Preferred, int] = {"first": 1, "second": -1, "equal": 0}


def check_votes(folder: Path) -> VotesCheck:
    """Say what the votes in a review folder come to, and write that to its `check.json`.

    Args:
        folder: The review folder of a round, in which its tasks and votes lie.

    Raises:
        StllavaError: Where nothing was drawn there, or nobody has voted yet.
    """
    tasks, votes = read_tasks(folder), read_votes(folder)
    for rows in votes.values():
        refuse_other_votes(rows, "verdicts", folder=folder)
    if not readings_by_task(votes):
        raise no_vote(folder)
    found = votes_check(tasks, votes, sizes=sizes_of(folder))
    write_whole(folder / CHECK, found.model_dump_json(indent=1) + "\n")
    return found


def votes_check(
    tasks: Sequence[ReviewTask], votes: Mapping[str, Sequence[ReviewVote]], *, sizes: Mapping[str, int]
) -> VotesCheck:
    """What the votes of several readers say of an expert and of each other.

    Args:
        tasks: What was drawn.
        votes: All that each reader did.
        sizes: How many verdicts each stratum of the round has in all.
    """
    given = readings_by_task(votes)
    read = [task for task in tasks if task.id in given]
    strata, clusters = [task.stratum for task in read], [image_of(task) for task in read]
    blind = [ReadVerdict(task.stratum, image_of(task), _differ(task, given[task.id])) for task in read]
    errors = expert_errors(blind, sizes)
    unseen = _without_verdict(read, given)
    overturned = [_overturned(task, [row for row in given[task.id] if row.vote.reader not in unseen]) for task in read]
    significant = [
        (reading.response.significant, image_of(task))
        for task in read
        for reading in given[task.id]
        if reading.response is not None and reading.response.significant is not None
    ]
    weights = {name: sizes[name] / strata.count(name) for name in set(strata)}
    signs = [
        (_SIGNS[said], _SIGNS[task.verdict], image_of(task), weights[task.stratum])
        for task in read
        if (said := _first(task, given[task.id])) is not None
    ]
    labels = [[_LABELS[row.blind] for row in given[task.id] if row.blind in _LABELS] for task in read]
    images = {task.id: image_of(task) for task in tasks}
    seconds = [row.vote.seconds for task in read for row in given[task.id]]
    return VotesCheck(
        expert=tasks[0].expert if tasks else "",
        tasks=len(tasks),
        read=len(read),
        choices=dict(sorted(Counter(row.blind for task in read for row in given[task.id]).items())),
        strata=tuple(_stratum(name, blind, size=sizes[name]) for name in STRATA),
        disagreed=rate_of(errors.disagreed, sum(bool(one.votes) for one in blind)) if errors is not None else None,
        reader_error=rate_of(errors.reader_error, sum(len(one.votes) > 1 for one in blind)) if errors is not None else None,
        expert_error=rate_of(errors.expert_error, sum(bool(one.votes) for one in blind)) if errors is not None else None,
        overturned=rate_of(
            stratified_share(overturned, strata, clusters, sizes), sum(value is not None for value in overturned)
        ),
        significant=rate([bool(said) for said, _ in significant], [image for _, image in significant]),
        bad_questions=_share_called("bad question", read, given, sizes),
        bad_images=_share_called("bad image", read, given, sizes),
        between_readers=krippendorff_alpha(labels, clusters),
        with_expert=kappa(
            [ours for ours, _, _, _ in signs],
            [theirs for _, theirs, _, _ in signs],
            [image for _, _, image, _ in signs],
            weights=[weight for _, _, _, weight in signs],
        ),
        readers=tuple(reader_speed(reader, rows, images) for reader, rows in votes.items() if standing(rows)),
        median_seconds=median(seconds) if seconds else None,
        corrected=sum(any(row.correct_answer for row in given[task.id]) for task in read),
    )


def no_vote(folder: Path) -> StllavaError:
    """The error of a review folder in which nobody has voted yet."""
    return NothingLeftError(
        f"{folder} holds no vote",
        expected="votes of a reader",
        remedy="Open the page first: stllava review RUN --reader NAME.",
    )


def image_of(task: ReviewTask | ItemTask) -> str:
    """What tasks are clustered by: the first image, or what they were made of where there is none."""
    if task.images:
        return task.images[0]
    return task.answers_id if isinstance(task, ReviewTask) else task.source_id


def _differ(task: ReviewTask, given: Sequence[StandingVote]) -> tuple[bool, ...]:
    """Of each reader who gave a verdict, whether the blind vote differs from the expert's."""
    said = (preferred(row.blind) for row in given)
    return tuple(one != task.verdict for one in said if one is not None)


def _share_called(
    choice: VoteChoice, read: Sequence[ReviewTask], given: Mapping[str, Sequence[StandingVote]], sizes: Mapping[str, int]
) -> Rate | None:
    """The share of the round's questions of which readers say that."""
    shares = [sum(row.blind == choice for row in given[task.id]) / len(given[task.id]) for task in read]
    return rate_of(stratified_share(shares, [task.stratum for task in read], list(map(image_of, read)), sizes), len(read))


def _first(task: ReviewTask, given: Sequence[StandingVote]) -> Preferred | None:
    """The first blind verdict of a reader on a task."""
    return next((said for row in given if (said := preferred(row.blind)) is not None), None)


def _without_verdict(read: Sequence[ReviewTask], given: Mapping[str, Sequence[StandingVote]]) -> set[str]:
    """Readers of whom nothing says that they saw a verdict after their votes, as in Label Studio, where none is shown.

    They never responded, though they differed from the expert; where nobody responded at all, that is every reader.
    """
    rows = [(task, row) for task in read for row in given[task.id]]
    responded = {row.vote.reader for _, row in rows if row.response is not None}
    differed = {row.vote.reader for task, row in rows if preferred(row.blind) not in (None, task.verdict)}
    return (differed if responded else {row.vote.reader for _, row in rows}) - responded


def _overturned(task: ReviewTask, given: Sequence[StandingVote]) -> float | None:
    """The share of readers who hold the expert's verdict to be wrong once they have seen it; None where none could tell."""
    said = [one for row in given if (one := preferred(row.settled(task))) is not None]
    return sum(one != task.verdict for one in said) / len(said) if said else None


def _stratum(name: str, blind: Sequence[ReadVerdict], *, size: int) -> StratumVotes:
    mine = [one for one in blind if one.stratum == name and one.votes]
    values = [sum(one.votes) / len(one.votes) for one in mine]
    found = stratified_share(values, [name] * len(mine), [one.cluster for one in mine], {name: size}) if mine else None
    return StratumVotes(
        stratum="uncertain" if name == "uncertain" else "random",
        verdicts=size,
        read=len(mine),
        disagreed=rate_of(found, len(mine)),
    )


def reader_speed(reader: str, votes: Sequence[ReviewVote], images: Mapping[str, str]) -> ReaderSpeed:
    """What one reader did; `images` are those of the tasks, by task."""
    found = standing(votes)
    again = [
        (found[task, 0].choice == reading.choice, images.get(task, task))
        for (task, turn), reading in found.items()
        if turn == 1 and (task, 0) in found
    ]
    return ReaderSpeed(
        reader=reader,
        votes=len(found),
        undone=sum(vote.event == "undo" for vote in votes),
        median_seconds=median(reading.vote.seconds for reading in found.values()),
        same_again=rate([same for same, _ in again], [image for _, image in again]),
    )


def rate_of(found: Interval | None, n: int) -> Rate | None:
    """An interval as it is written, with what it is of so many."""
    return None if found is None else Rate(value=found.value, low=found.low, high=found.high, n=n)
