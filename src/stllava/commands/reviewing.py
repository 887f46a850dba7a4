"""`stllava review`, `judge-check` and `watch`: people in the loop, what they say of the expert, and a run at work."""

import gc
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from tyro.conf import Positional

from stllava.config import ReviewOptions
from stllava.errors import StllavaError
from stllava.records import ItemsCheck, Rate, VotesCheck
from stllava.report.wording import items_rows, items_sentence, votes_rows, votes_sentence
from stllava.review.items_check import BURNED, check_items
from stllava.review.reviewed import find_reviewed
from stllava.review.series_slices import deep_images, series_slices
from stllava.review.tasks import options_of_drawn
from stllava.review.votes_check import check_votes
from stllava.text import aligned, show


def review(
    where: Positional[Path],
    options: ReviewOptions,
    *,
    reader: tuple[str, ...],
    round: int | None = None,  # noqa: A002 - the flag is --round
    root: Path | None = None,
    seed: int = 0,
    port: int = 8765,
    address: str = "127.0.0.1",
    names: tuple[str, ...] = (),
    password_variable: str = "",
) -> None:
    """Open a page on which readers vote, blind, on verdicts, on a benchmark's answers, on questions or on imported pictures.

    Args:
        where: A run or the folder of one round, whose verdicts are read; or the folder of an evaluation, whose answers are
            (right or wrong), of ask, whose questions are (valid or not), or an imported set, whose pictures are (text or none).
        options: How much is read, and of which kind; without any of these, what was drawn before, if anything was.
        reader: Who reads; several names give several addresses.
        round: Number of the run's round; the last one that was judged when not named.
        root: The image root; a run has noted its own.
        seed: Decides what is drawn, and in which order.
        port: Port to listen on; 0 takes a free one.
        address: IP address to listen on; one that other machines reach asks for a password as well.
        names: What browsers on other machines call this one, with the port, such as ward7.example:8765.
        password_variable: Name of the environment variable that holds that password.
    """
    try:
        from stllava.review.image_store import ImageStore
        from stllava.review.serve import password_of, serve
        from stllava.review.server import review_app
        from stllava.review.session import ReviewSession
    except ModuleNotFoundError as error:
        raise missing_extra(error) from None
    if not reader:
        raise StllavaError("--reader names nobody", expected="who reads", remedy="Name one or several (--reader anna ben).")
    found = find_reviewed(where, round)
    images = found.image_root(root)
    options, seed = options_of_drawn(found.review, options, seed=seed)
    tasks = found.draw(options, seed=seed, root=images)
    password = password_of(address, password_variable, names=names)
    session = ReviewSession(found.review, tasks, dict.fromkeys(reader))
    paths = [path for task in tasks for path in task.images]
    series = series_slices(images, paths)
    store = ImageStore(images, paths, series=series, deep=deep_images(images, chain(paths, *series.values())))
    # What was read stays to the end: left to the collector, 10,000 tasks would hold up every so many answers by 70 ms.
    gc.collect()
    gc.freeze()
    try:
        serve(
            lambda door: review_app(session, store, door, title=found.title),
            invited=list(dict.fromkeys(reader)),
            address=address,
            port=port,
            names=names,
            password=password,
        )
    finally:
        session.close()


def watch(
    run: Positional[Path],
    *,
    port: int = 8766,
    address: str = "127.0.0.1",
    names: tuple[str, ...] = (),
    password_variable: str = "",
) -> None:
    """Open a page that shows a run at work: its stages, curves, scores and newest answers; it reads the run's files alone.

    Args:
        run: The run directory; the run may be at work, stopped or finished.
        port: Port to listen on; 0 takes a free one.
        address: IP address to listen on; one that other machines reach asks for a password as well.
        names: What browsers on other machines call this one, with the port, such as ward7.example:8766.
        password_variable: Name of the environment variable that holds that password.
    """
    try:
        from stllava.review.serve import password_of, serve
        from stllava.review.watch import RunReader
        from stllava.review.watch_page import watch_app
    except ModuleNotFoundError as error:
        raise missing_extra(error) from None
    password, reader = password_of(address, password_variable, names=names), RunReader(run)
    serve(lambda door: watch_app(reader, door), invited=["watch"], address=address, port=port, names=names, password=password)


def missing_extra(error: ModuleNotFoundError) -> StllavaError:
    """The error of a page without what serves it."""
    return StllavaError(
        f"the page needs {error.name}, which is not installed",
        expected="the extra review",
        remedy="pip install 'stllava[review]'",
    )


def judge_check(*, votes: Path, round: int | None = None) -> None:  # noqa: A002 - the flag is --round
    """Say how often the expert errs by readers' votes, or how far rules agree with them, how far readers agree, and their pace.

    Args:
        votes: What was read with `stllava review`: a run, the folder of a round, of an evaluation or of ask, or a set.
        round: Number of the run's round; the last one that was judged when not named.
    """
    found = find_reviewed(votes, round)
    if found.kind == "verdicts":
        show(describe_votes(check_votes(found.review)), f"\n{found.review}")
    else:
        show(describe_items(check_items(found.review)), f"\n{found.review}")
        if found.kind == "pictures":
            show(f"Pictures that readers found text in, for `stllava import images --refused`: {found.review / BURNED}")


def describe_votes(check: VotesCheck) -> str:
    """What votes come to, as lines of text."""
    lines = [f"{check.expert}: {votes_sentence(check)}", *_counted(check.choices, votes_rows(check))]
    if check.reader_error is None:
        lines.append("  The expert's own error rate is not known: no verdict was read by two readers who mostly agree.")
    return "\n".join(lines)


def describe_items(check: ItemsCheck) -> str:
    """What votes on answers or questions come to, as lines of text."""
    return "\n".join([items_sentence(check), *_counted(check.choices, items_rows(check))])


def _counted(choices: Mapping[str, int], rates: Sequence[tuple[str, Rate | None]]) -> list[str]:
    """Votes by what they say, and shares with their intervals, a line each."""
    rows = [
        (label, f"{rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}] (n={rate.n})") for label, rate in rates if rate is not None
    ]
    said = ", ".join(f"{count} {choice}" for choice, count in choices.items())
    return [f"  votes: {said}", *(f"  {line}" for line in aligned(rows))]
