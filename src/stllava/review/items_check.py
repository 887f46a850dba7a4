"""What readers' votes say of a benchmark's answers and of the rules that score them, of questions, or of imported pictures.

Reads the review folder of an evaluation, of ask or of an imported set, its tasks and votes; writes `check.json` into it, and of
pictures `burned.jsonl`, those in which a reader found text, for `import images --refused`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Literal

from stllava.data.image_set import RefusedPicture
from stllava.metrics.agreement import kappa, krippendorff_alpha
from stllava.metrics.score import LLAVA_MED, ROBUST
from stllava.metrics.stratified import stratified_share
from stllava.records import ItemChoice, ItemsCheck, ItemTask, Rate, ReviewVote, RuleAgreement
from stllava.review.choices import BUTTONS, GOOD, is_item_choice, refuse_other_votes
from stllava.review.items import read_items
from stllava.review.readings import StandingVote, readings_by_task, standing
from stllava.review.tasks import TASKS, sizes_of
from stllava.review.vote_log import read_votes
from stllava.review.votes_check import image_of, no_vote, rate_of, reader_speed
from stllava.store import CHECK, read_manifest, write_whole

BURNED = "burned.jsonl"
_QUESTIONS: tuple[Literal["all", "closed", "open"], ...] = ("all", "closed", "open")


def check_items(folder: Path) -> ItemsCheck:
    """Say what the votes in a review folder of answers, questions or pictures come to, and write that to its `check.json`.

    Of pictures, those in which any reader found text are written to its `burned.jsonl`.

    Args:
        folder: The review folder, in which tasks and votes lie.

    Raises:
        StllavaError: Where nothing was drawn there, nobody has voted yet, or votes are about something else.
    """
    tasks, votes = read_items(folder), read_votes(folder)
    for rows in votes.values():
        refuse_other_votes(rows, tasks[0].kind, folder=folder)
    if not readings_by_task(votes):
        raise no_vote(folder)
    found = items_check(tasks, votes, sizes=sizes_of(folder))
    write_whole(folder / CHECK, found.model_dump_json(indent=1) + "\n")
    if found.kind == "pictures":
        write_whole(folder / BURNED, "".join(f"{row.model_dump_json()}\n" for row in _burned(folder, tasks, votes)))
    return found


def _burned(folder: Path, tasks: Sequence[ItemTask], votes: Mapping[str, Sequence[ReviewVote]]) -> Iterator[RefusedPicture]:
    """The pictures in which any reader found text, whatever others say."""
    salt, given = read_manifest(folder / TASKS).inputs["salt"], readings_by_task(votes)
    for task in tasks:
        readers = sorted({row.vote.reader for row in given.get(task.id, ()) if row.choice == "burned"})
        if readers:
            yield RefusedPicture(id=task.source_id, salt=salt, readers=tuple(readers))


def items_check(
    tasks: Sequence[ItemTask], votes: Mapping[str, Sequence[ReviewVote]], *, sizes: Mapping[str, int]
) -> ItemsCheck:
    """What the votes of several readers say of answers and the rules that score them, or of questions.

    Args:
        tasks: What was drawn, all of one kind.
        votes: All that each reader did.
        sizes: How many answers or questions each stratum has in all.
    """
    kind, given = tasks[0].kind, readings_by_task(votes)
    read = [task for task in tasks if task.id in given]
    strata, clusters = [task.stratum for task in read], list(map(image_of, read))

    def share(values: Sequence[float | None]) -> Rate | None:
        return rate_of(stratified_share(values, strata, clusters, sizes), sum(value is not None for value in values))

    said = Counter(row.choice for task in read for row in given[task.id])
    shares: dict[ItemChoice, Rate] = {}
    for button in BUTTONS[kind]:
        if is_item_choice(choice := button.choice, kind):
            of = [sum(row.choice == choice for row in given[task.id]) / len(given[task.id]) for task in read]
            if (found := share(of)) is not None:
                shares[choice] = found
    places = {button.choice: place for place, button in enumerate(BUTTONS[kind])}
    images = {task.id: image_of(task) for task in tasks}
    seconds = [row.vote.seconds for task in read for row in given[task.id]]
    return ItemsCheck(
        kind=kind,
        tasks=len(tasks),
        read=len(read),
        choices=dict(sorted(said.items())),
        good=share([_good_share(task, given[task.id]) for task in read]),
        shares=shares,
        rules=_rules(read, given, sizes) if kind == "predictions" else (),
        between_readers=krippendorff_alpha([[places[row.choice] for row in given[task.id]] for task in read], clusters),
        readers=tuple(reader_speed(reader, rows, images) for reader, rows in votes.items() if standing(rows)),
        median_seconds=median(seconds) if seconds else None,
        corrected=sum(any(row.correct_answer for row in given[task.id]) for task in read),
    )


def _verdict(task: ItemTask, reading: StandingVote) -> bool | None:
    """Whether a reader holds it to be right, valid or free of text; None where the reader does not say."""
    good, bad = GOOD[task.kind]
    return True if reading.choice == good else False if reading.choice == bad else None


def _good_share(task: ItemTask, given: Sequence[StandingVote]) -> float | None:
    """The share of the readers who can tell that hold it to be good; None where none can."""
    said = [value for row in given if (value := _verdict(task, row)) is not None]
    return sum(said) / len(said) if said else None


def _first(task: ItemTask, given: Sequence[StandingVote]) -> bool | None:
    """What the first reader says who can tell."""
    return next((value for row in given if (value := _verdict(task, row)) is not None), None)


def _rules(
    read: Sequence[ItemTask], given: Mapping[str, Sequence[StandingVote]], sizes: Mapping[str, int]
) -> tuple[RuleAgreement, ...]:
    """How far the first readers agree with each rule, about all questions and about those of each kind."""
    found = []
    for rule in (ROBUST, LLAVA_MED):
        for questions in _QUESTIONS:
            rows = [task for task in read if rule in task.rules and questions in ("all", task.question_kind)]
            people = [_first(task, given[task.id]) for task in rows]
            if any(value is not None for value in people):
                found.append(_agreement(rule, questions, rows, people, read=read, sizes=sizes))
    return tuple(found)


def _agreement(
    rule: str,
    questions: Literal["all", "closed", "open"],
    rows: Sequence[ItemTask],
    people: Sequence[bool | None],
    *,
    read: Sequence[ItemTask],
    sizes: Mapping[str, int],
) -> RuleAgreement:
    """How far readers, who say so of each of some tasks, agree with a rule; what it cannot read it counts as wrong."""
    verdicts = {task.id: (said, bool(task.rules[rule])) for task, said in zip(rows, people, strict=True) if said is not None}
    told = [task for task in rows if task.id in verdicts]
    counts = Counter(task.stratum for task in read)

    def share(of: Mapping[str, bool]) -> Rate | None:
        # All that was read counts for the weights of strata: who is asked about which questions was not drawn.
        values = [float(of[task.id]) if task.id in of else None for task in read]
        return rate_of(stratified_share(values, [task.stratum for task in read], list(map(image_of, read)), sizes), len(of))

    return RuleAgreement(
        rule=rule,
        questions=questions,
        agreement=kappa(
            [int(verdicts[task.id][0]) for task in told],
            [int(verdicts[task.id][1]) for task in told],
            list(map(image_of, told)),
            weights=[sizes[task.stratum] / counts[task.stratum] for task in told],
        ),
        same=share({key: ours == its for key, (ours, its) in verdicts.items()}),
        rule_right=share({key: its for key, (_, its) in verdicts.items()}),
        readers_right=share({key: ours for key, (ours, _) in verdicts.items()}),
    )
