"""`stllava review`, `judge-check` and `watch`: people in the loop, what they say of the expert, and a run at work."""

from pathlib import Path

from tyro.conf import Positional

from stllava.config import ReviewOptions
from stllava.errors import StllavaError
from stllava.records import VotesCheck
from stllava.report.wording import votes_rows, votes_sentence
from stllava.review.round_files import find_round
from stllava.review.tasks import draw_tasks
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
    """Open a page on which readers vote, blind, on what the expert judged; votes are kept in the round's folder.

    Args:
        where: A run, or the folder of one round.
        options: Which verdicts are read.
        reader: Who reads; several names give several addresses.
        round: Number of the run's round; the last one that was judged when not named.
        root: The image root; a run has noted its own.
        seed: Decides which verdicts are drawn, and their order.
        port: Port to listen on; 0 takes a free one.
        address: IP address to listen on; one that other machines reach asks for a password as well.
        names: What browsers on other machines call this one, with the port, such as ward7.example:8765.
        password_variable: Name of the environment variable that holds that password.
    """
    found = find_round(where, round)
    images = found.image_root(root)
    tasks = draw_tasks(options, answers=found.answers, judgments=found.judgments, to=found.review, seed=seed, root=images)
    try:
        from stllava.review.image_store import ImageStore
        from stllava.review.serve import password_of, serve
        from stllava.review.server import review_app
        from stllava.review.session import ReviewSession
    except ModuleNotFoundError as error:
        raise missing_extra(error) from None
    password = password_of(address, password_variable, names=names)
    session = ReviewSession(found.review, tasks, dict.fromkeys(reader))
    store = ImageStore(images, (path for task in tasks for path in task.images))
    title = f"{found.run.name} · {found.folder.name}" if found.run is not None else found.folder.name
    try:
        serve(
            lambda door: review_app(session, store, door, title=title),
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
