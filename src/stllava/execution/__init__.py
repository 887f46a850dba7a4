"""Where a run's chunks are worked on: here, in processes of this machine, or in Ray actors; no stage knows which."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

from stllava.config.execution import ExecutionOptions
from stllava.execution.workforce import Crew, Workforce
from stllava.store import executing

__all__ = ["Workforce", "working"]


@contextmanager
def working(options: ExecutionOptions) -> Iterator[None]:
    """Let the stages that are called within hand their chunks to the workers that the options name."""
    if options.kind == "local" and options.workers == 1:
        yield
        return
    with closing(Workforce(crew_of(options), workers=options.workers)) as workforce, executing(workforce):
        yield


def crew_of(options: ExecutionOptions) -> Crew:
    """Those who start workers of the kind that the options name."""
    if options.kind == "ray":
        from stllava.execution.ray_actors import RayCrew

        return RayCrew(options)
    from stllava.execution.worker_processes import ProcessCrew

    return ProcessCrew(options)
