"""Many requests at a time over a stream of any length."""

from collections.abc import Callable, Iterable
from threading import Event, Lock, Thread
from typing import TypeVar

T = TypeVar("T")


def for_each(items: Iterable[T], work: Callable[[T, Event], None], *, workers: int, name: str) -> None:
    """Call `work` on every item, so many at a time; items are drawn as workers come free, one at a time.

    When one raises, or the caller is interrupted, no further item is drawn, the event given to `work` is set, and what
    is under way is waited for: it may be paid for already. Then the first error is raised.
    """
    stop, lock, source = Event(), Lock(), iter(items)
    errors: list[BaseException] = []
    end = object()

    def run(ended: Event) -> None:
        try:
            while not stop.is_set():
                with lock:
                    item = next(source, end)
                if item is end:
                    return
                work(item, stop)  # type: ignore[arg-type]
        except BaseException as error:  # noqa: BLE001 - it is raised below, in the caller's thread
            errors.append(error)
            stop.set()
        finally:
            ended.set()

    # Events, because an interrupted Thread.join takes its thread for ended (CPython 3.11).
    ends = [Event() for _ in range(workers)]
    for number, ended in enumerate(ends):
        Thread(target=run, args=(ended,), name=f"{name}-{number}", daemon=True).start()
    try:
        for ended in ends:
            ended.wait()
    except BaseException:
        stop.set()
        for ended in ends:
            ended.wait()
        raise
    if errors:
        raise errors[0]
