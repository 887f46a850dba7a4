"""Hands figures to trackers: one run of the tracker a run of ours, however often that was stopped and resumed.

Writes `track.json` into the run directory (which stages were sent, and under which id), and what tools keep locally below
`track/`. A tool that by itself adds the host, the user, the command line or the code to what it sends is told not to.
"""

import io
import os
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from stllava.errors import StllavaError
from stllava.records.record import Record
from stllava.remote.audit import Audit
from stllava.store import read_record, write_whole
from stllava.tracking.figures import StageFigures, flat, stage_figures
from stllava.tracking.samples import ShownSample, host_allowed, samples_of

Tool = Literal["trackio", "wandb", "tensorboard", "mlflow"]
STATE, LOCAL, MLFLOW = "track.json", "track", "mlflow.db"
SAMPLES = "/samples"
"""Behind a stage's name: what of it was shown."""


MLFLOW_AT_ONCE = 500
"""Figures of one request."""


@dataclass(frozen=True)
class Tracking:
    """Which tracker, and where."""

    tool: Tool
    to: str = ""
    """Empty: a place on this machine. Else a Space owner/name (trackio), a server's address (wandb, mlflow) or a folder."""
    project: str = "stllava"
    """What runs are gathered under."""
    samples: bool = False
    """Whether questions, answers, verdicts and pictures are shown too."""
    send_images: bool = False
    """Whether these may go to another machine."""


class TrackState(Record):
    """What a tracker has been told of a run."""

    tool: Tool
    to: str
    id: str
    """Name of the run in the tracker."""
    sent: dict[str, str]
    """Digest of every stage that was sent."""


class Tracker(Protocol):
    """A tracker that a run is open in."""

    id: str
    """By which the run is opened again."""

    def log(self, stage: StageFigures) -> None:
        """Send a stage's figures and curves."""

    def close(self) -> None:
        """Wait until all is sent."""


@runtime_checkable
class SampleTracker(Tracker, Protocol):
    """One that takes texts and pictures too."""

    def show(self, stage: str, samples: Sequence[ShownSample]) -> None:
        """Send what the expert judged in a stage."""


def track_run(run: Path, tracking: Tracking, *, name: str, config: Mapping[str, float | bool]) -> list[str]:
    """Send what is new of a run and return the names of the stages that were sent.

    Args:
        run: The run directory; it may still be at work.
        tracking: Which tracker, and where.
        name: What the run is called there.
        config: Options that are shown beside it: numbers alone.

    Raises:
        StllavaError: Where the tracker is not installed, or the run was sent to another one before.
    """
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
    new = [stage for stage in figures if sent.get(stage.name) != stage.digest]
    unseen = [stage for stage in figures if tracking.samples and sent.get(f"{stage.name}{SAMPLES}") != stage.digest]
    shown = {stage.name: samples for stage in unseen if (samples := samples_of(run, stage.name))}
    if not new and not shown:
        return []
    with redirect_stdout(sys.stderr):  # What the tools say of themselves is no output of ours.
        tracker = _open(tracking, run, name=name, config=config, known=state.id if state is not None else "")
        try:
            for stage in new:
                tracker.log(stage)
                sent[stage.name] = stage.digest
            for stage in unseen:
                if stage.name in shown:
                    assert isinstance(tracker, SampleTracker), "host_allowed lets no other be opened"
                    _note(run, shown[stage.name], host=host)
                    tracker.show(stage.name, shown[stage.name])
                    sent[f"{stage.name}{SAMPLES}"] = stage.digest
        finally:
            tracker.close()
    write_whole(path, TrackState(tool=tracking.tool, to=tracking.to, id=tracker.id, sent=sent).model_dump_json(indent=1) + "\n")
    return [*(stage.name for stage in new), *(f"{name}{SAMPLES}" for name in shown)]


def _note(run: Path, samples: Sequence[ShownSample], *, host: str) -> None:
    """Record what leaves this machine before it does."""
    if host:
        audit = Audit(run / LOCAL)
        for sample in samples:
            audit.note(sample.name, host=host, size=len(sample.picture.tobytes()))
        audit.close()


def _open(tracking: Tracking, run: Path, *, name: str, config: Mapping[str, float | bool], known: str) -> Tracker:
    kinds: dict[Tool, type[Trackio | WeightsAndBiases | TensorBoard | MlFlow]] = {
        "trackio": Trackio,
        "wandb": WeightsAndBiases,
        "tensorboard": TensorBoard,
        "mlflow": MlFlow,
    }
    return kinds[tracking.tool](tracking, run, name=name, config=config, known=known)


def _imported(module: str, package: str) -> Any:
    """A tracker's package, which has no types of its own."""
    try:
        return import_module(module)
    except ImportError:
        raise StllavaError(
            f"{package} is not installed",
            expected=f"it, for track: {module.partition('.')[0]}",
            remedy=f"pip install {package}",
        ) from None


class TensorBoard:
    """Event files below track/, or in the folder that is named: `tensorboard --logdir RUN/track`."""

    def __init__(self, tracking: Tracking, run: Path, *, name: str, config: Mapping[str, float | bool], known: str) -> None:
        self.id = known or name
        self._folder = Path(tracking.to) / self.id if tracking.to else run / LOCAL
        self._before = set(self._folder.glob("events.*"))
        self._writer = _imported("tensorboard.summary", "tensorboard").Writer(str(self._folder))

    def log(self, stage: StageFigures) -> None:
        """Curves by their steps, values at step 0."""
        for name, value in flat(stage).items():
            self._writer.add_scalar(name, value, 0)
        for name, points in stage.curves.items():
            for step, value in points:
                self._writer.add_scalar(f"{stage.name}/{name}", value, int(step))

    def show(self, stage: str, samples: Sequence[ShownSample]) -> None:
        """A picture and a text a sample."""
        event = _imported("tensorboard.compat.proto.event_pb2", "tensorboard")
        protocol = _imported("tensorboard.compat.proto.summary_pb2", "tensorboard")
        tensor = _imported("tensorboard.util.tensor_util", "tensorboard")
        text = _imported("tensorboard.plugins.text.metadata", "tensorboard")
        writer = _imported("tensorboard.summary.writer.event_file_writer", "tensorboard").EventFileWriter(str(self._folder))
        for number, sample in enumerate(samples):
            encoded = io.BytesIO()
            sample.picture.save(encoded, "PNG")
            width, height = sample.picture.size
            tag = f"{stage}{SAMPLES}/{number:02d}"
            picture = protocol.Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded.getvalue())
            words = tensor.make_tensor_proto(sample.text.replace("\n", "  \n"))
            metadata = text.create_summary_metadata(display_name="", description="")
            values = [
                protocol.Summary.Value(tag=tag, image=picture),
                protocol.Summary.Value(tag=f"{tag}/text", tensor=words, metadata=metadata),
            ]
            writer.add_event(event.Event(wall_time=time.time(), step=0, summary=protocol.Summary(value=values)))
        writer.close()

    def close(self) -> None:
        """Close the file, and take the host out of its name."""
        self._writer.close()
        for path in set(self._folder.glob("events.*")) - self._before:
            kind, _, behind = path.name.partition(".tfevents.")
            path.rename(path.with_name(f"{kind}.tfevents.{behind.partition('.')[0]}.{uuid.uuid4().hex[:8]}"))


class MlFlow:
    """A run of MLflow, in a database below track/ or on the server that is named."""

    def __init__(self, tracking: Tracking, run: Path, *, name: str, config: Mapping[str, float | bool], known: str) -> None:
        mlflow = _imported("mlflow", "mlflow")
        place = tracking.to or f"sqlite:///{(run / LOCAL / MLFLOW).absolute()}"
        (run / LOCAL).mkdir(parents=True, exist_ok=True)
        self._client = mlflow.MlflowClient(tracking_uri=place)
        self.id = known or self._begin(tracking.project, name, config, remote=bool(tracking.to))

    def _begin(self, project: str, name: str, config: Mapping[str, float | bool], *, remote: bool) -> str:
        found = self._client.get_experiment_by_name(project)
        experiment = (
            found.experiment_id
            if found is not None
            else self._client.create_experiment(
                project,
                None if remote else f"mlflow-artifacts:/{project}",  # Else the path of the current folder is noted.
            )
        )
        made: str = self._client.create_run(experiment, run_name=name).info.run_id
        for key, value in config.items():
            self._client.log_param(made, key, value)
        return made

    def log(self, stage: StageFigures) -> None:
        """Curves by their steps, values at step 0."""
        metric = _imported("mlflow.entities", "mlflow").Metric
        now = int(time.time() * 1000)
        points = [(name, value, 0.0) for name, value in flat(stage).items()]
        points += [(f"{stage.name}/{name}", value, step) for name, series in stage.curves.items() for step, value in series]
        metrics = [metric(_plain(name), value, now, int(step)) for name, value, step in points]
        for start in range(0, len(metrics), MLFLOW_AT_ONCE):
            self._client.log_batch(self.id, metrics=metrics[start : start + MLFLOW_AT_ONCE])

    def close(self) -> None:
        """Say that nothing is at work; a run that goes on is opened again."""
        self._client.set_terminated(self.id)


def _plain(name: str) -> str:
    """A name as MLflow takes it."""
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "_" for letter in name)


class WeightsAndBiases:
    """A run of Weights & Biases: below track/ until you say `wandb sync`, or on the server that is named."""

    def __init__(self, tracking: Tracking, run: Path, *, name: str, config: Mapping[str, float | bool], known: str) -> None:
        wandb = _imported("wandb", "wandb")
        self.id = known or uuid.uuid4().hex[:8]
        folder = run / LOCAL
        folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            **({"base_url": tracking.to} if tracking.to else {}),
            disable_git=True,
            disable_code=True,
            save_code=False,
            console="off",
            silent=True,
            host="-",
            username="-",
            program="stllava",
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        self._run = wandb.init(
            project=tracking.project,
            name=name,
            id=self.id,
            dir=str(folder),
            config=dict(config),
            mode="online" if tracking.to else "offline",
            resume="allow" if tracking.to else None,
            settings=settings,
        )

    def log(self, stage: StageFigures) -> None:
        """Curves over a step of their stage's own, values in the summary."""
        if stage.curves:
            axis = f"{stage.name}/step"
            self._run.define_metric(axis)
            points: dict[float, dict[str, float]] = {}
            for name, series in stage.curves.items():
                self._run.define_metric(f"{stage.name}/{name}", step_metric=axis)
                for step, value in series:
                    points.setdefault(step, {})[f"{stage.name}/{name}"] = value
            for step, values in sorted(points.items()):
                self._run.log({axis: step, **values})
        self._run.summary.update(dict(flat(stage)))

    def show(self, stage: str, samples: Sequence[ShownSample]) -> None:
        """Pictures with their texts as captions."""
        image = _imported("wandb", "wandb").Image
        self._run.log({f"{stage}{SAMPLES}": [image(sample.picture, caption=sample.text) for sample in samples]})

    def close(self) -> None:
        """Wait until all is written or sent."""
        self._run.finish()


class Trackio:
    """A run of trackio, in its database on this machine or in the Space that is named: `trackio show --project stllava`."""

    def __init__(self, tracking: Tracking, run: Path, *, name: str, config: Mapping[str, float | bool], known: str) -> None:
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
        trackio = _imported("trackio", "trackio")
        self.id = known or name
        self._run = trackio.init(
            project=tracking.project,
            name=self.id,
            config=dict(config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
            **({"space_id": tracking.to, "private": True} if tracking.to else {}),
        )

    def log(self, stage: StageFigures) -> None:
        """Curves by their steps, values at step 0."""
        points: dict[int, dict[str, float]] = {0: dict(flat(stage))}
        for name, series in stage.curves.items():
            for step, value in series:
                points.setdefault(int(step), {})[f"{stage.name}/{name}"] = value
        for step, values in sorted(points.items()):
            self._run.log(values, step=step)

    def close(self) -> None:
        """Wait until all is written or sent."""
        self._run.finish()
