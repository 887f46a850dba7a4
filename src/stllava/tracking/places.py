"""Hands figures to trackers: one run of the tracker a run of ours, however often that was stopped and resumed.

Writes `track.json` into the run directory (which stages were sent, and under which id); what tools keep locally lies below
`track/`.
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path

from stllava.errors import StllavaError
from stllava.records.record import Record
from stllava.remote.audit import Audit
from stllava.store import read_record, write_whole
from stllava.tracking.figures import stage_figures
from stllava.tracking.samples import ShownSample, host_allowed, samples_of
from stllava.tracking.trackers import (
    LOCAL,
    SAMPLES,
    SampleTracker,
    Tool,
    TrackerError,
    Tracking,
    faults_of,
    open_tracker,
    require_package,
)

STATE = "track.json"


class TrackState(Record):
    """What a tracker has been told of a run."""

    tool: Tool
    to: str
    id: str
    """Name of the run in the tracker."""
    sent: dict[str, str]
    """Digest of every stage that was sent."""


def require_tracker(tracking: Tracking) -> None:
    """Refuse now what `track_run` would refuse later: a tool that is not installed, and samples that may not go there."""
    require_package(tracking.tool)
    if tracking.samples:
        host_allowed(tracking.tool, tracking.to, send_images=tracking.send_images)


def track_run(run: Path, tracking: Tracking, *, name: str, config: Mapping[str, float | bool]) -> list[str]:
    """Send what is new of a run and return the names of the stages that were sent.

    Args:
        run: The run directory; it may still be at work.
        tracking: Which tracker, and where.
        name: What the run is called there; tools that know runs by their names get some letters more.
        config: Options that are shown beside it: numbers alone.

    Raises:
        TrackerError: Where the tracker cannot be reached, or refuses; the same call sends what is missing.
        StllavaError: Where the tracker is not installed, or the run was sent to another one before.
    """
    require_package(tracking.tool)
    path = run / STATE
    state = read_record(path, TrackState) if path.is_file() else None
    if state is not None and (state.tool, state.to) != (tracking.tool, tracking.to):
        raise StllavaError(
            f"{run} is tracked by {state.tool}{f' in {state.to}' if state.to else ''} already",
            expected="one tracker a run",
            remedy=f"Set track to {state.tool}, or delete {path} to send all of it to the other one.",
        )
    host = host_allowed(tracking.tool, tracking.to, send_images=tracking.send_images) if tracking.samples else ""
    sent = dict(state.sent) if state is not None else {}
    figures = stage_figures(run)
    shown = {
        stage.name: samples
        for stage in figures
        if tracking.samples or (not tracking.to and stage.name + SAMPLES in sent)
        if (samples := samples_of(run, stage.name))
    }
    new = [stage.name for stage in figures if sent.get(stage.name) != stage.digest]
    unseen = [stage.name for stage in figures if tracking.samples and sent.get(stage.name + SAMPLES) != stage.digest]
    unseen = [name for name in unseen if name in shown]
    if not new and not unseen:
        return []

    def remember(id_there: str) -> None:
        state = TrackState(tool=tracking.tool, to=tracking.to, id=id_there, sent=sent)
        write_whole(path, state.model_dump_json(indent=1) + "\n")

    try:
        with redirect_stdout(sys.stderr):  # What the tools say of themselves is no output of ours.
            tracker = open_tracker(tracking, run, name=name, config=config, known=state.id if state is not None else "")
            remember(tracker.id)  # A process that is killed now opens the same run again.
            try:
                for stage in figures:
                    if stage.name in new or not tracker.adds:
                        tracker.log(stage)
                for stage in figures:
                    if stage.name in unseen or (stage.name in shown and not tracker.adds):
                        assert isinstance(tracker, SampleTracker), "host_allowed lets no other be opened"
                        _note(run, shown[stage.name], host=host)
                        tracker.show(stage.name, shown[stage.name])
            finally:
                tracker.close()
    except faults_of(tracking.tool) as error:
        raise TrackerError(
            f"{tracking.tool} did not take the figures of {run}: {type(error).__name__}: {' '.join(str(error).split())[:300]}",
            expected=f"a tracker that answers{f' at {tracking.to}' if tracking.to else ''}",
            remedy=f"Put that right; `stllava track {run} --tool {tracking.tool}"
            f"{f' --to {tracking.to}' if tracking.to else ''}` sends what is missing.",
        ) from error
    sent |= {stage.name: stage.digest for stage in figures}
    sent |= {stage.name + SAMPLES: stage.digest for stage in figures if stage.name in shown}
    remember(tracker.id)
    return [*new, *(name + SAMPLES for name in unseen)]


def _note(run: Path, samples: Sequence[ShownSample], *, host: str) -> None:
    """Record what leaves this machine before it does."""
    if host:
        audit = Audit(run / LOCAL)
        for sample in samples:
            audit.note(sample.name, host=host, size=len(sample.picture.tobytes()))
        audit.close()
