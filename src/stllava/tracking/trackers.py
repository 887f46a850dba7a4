"""The four trackers: trackio, Weights & Biases, TensorBoard and MLflow, each as a run that figures are sent to.

What a tool by itself adds to what it sends, or sends to its makers, is told off here: the host, the user, the command line, the
code, the machine, and reports of use.
"""

import io
import math
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from stllava.errors import StllavaError
from stllava.tracking.figures import StageFigures, flat
from stllava.tracking.samples import ShownSample

Tool = Literal["trackio", "wandb", "tensorboard", "mlflow"]
LOCAL, MLFLOW = "track", "mlflow.db"
SAMPLES = "/samples"
"""Behind a stage's name: what of it was shown."""
MLFLOW_AT_ONCE = 500
"""Figures of one request."""
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
"""Variables by which tools report nothing to their makers and say little; one that is set already is left as it is."""
TO_OTHER_MACHINES = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
"""Variables that would send elsewhere what `track_to` keeps here."""


class TrackerError(StllavaError):
    """What a tracker did not take; nothing of the run is lost by it."""


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


class Tracker(Protocol):
    """A tracker that a run is open in."""

    id: str
    """By which the run is opened again."""
    adds: bool
    """Whether what is sent joins what was sent before; else all of it is sent again, and stands in its place."""

    def log(self, stage: StageFigures) -> None:
        """Send a stage's figures and curves."""

    def close(self) -> None:
        """Wait until all is sent."""


@runtime_checkable
class SampleTracker(Tracker, Protocol):
    """One that takes texts and pictures too."""

    def show(self, stage: str, samples: Sequence[ShownSample]) -> None:
        """Send what the expert judged in a stage."""


def open_tracker(tracking: Tracking, run: Path, *, name: str, config: Mapping[str, float | bool], known: str) -> Tracker:
    """The run that a tracker has under the id `known`, or a new one where that is empty."""
    kinds: dict[Tool, type[Trackio | WeightsAndBiases | TensorBoard | MlFlow]] = {
        "trackio": Trackio,
        "wandb": WeightsAndBiases,
        "tensorboard": TensorBoard,
        "mlflow": MlFlow,
    }
    return kinds[tracking.tool](tracking, run, name=name, config=config, known=known)


def require_package(tool: Tool) -> Any:
    """A tracker's package, which has no types of its own.

    Raises:
        StllavaError: Where it is not installed.
    """
    return _imported(tool, tool)


def faults_of(tool: Tool) -> tuple[type[Exception], ...]:
    """What a tracker raises where it cannot be reached, or refuses."""
    if tool == "wandb":
        return (_imported("wandb.errors", tool).Error, OSError)
    if tool == "mlflow":
        return (_imported("mlflow.exceptions", tool).MlflowException, OSError)
    return (OSError, ValueError) if tool == "trackio" else (OSError,)


def _imported(module: str, package: str) -> Any:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        return import_module(module)
    except ImportError:
        raise StllavaError(
            f"{package} is not installed",
            expected=f"it, for track: {module.partition('.')[0]}",
            remedy=f"pip install {package}",
        ) from None


def _unlike_others(name: str) -> str:
    """A name for a tracker that takes runs of one name for one run: other runs of the same recipe have it too."""
    return f"{name}-{uuid.uuid4().hex[:6]}"


class TensorBoard:
    """Event files below track/, or in the folder that is named: `tensorboard --logdir RUN/track`."""

    adds = True

    def __init__(self, tracking: Tracking, run: Path, *, name: str, config: Mapping[str, float | bool], known: str) -> None:
        self.id = known or _unlike_others(name)
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

    adds = True

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
        # One figure that is no number keeps MLflow from showing the run at all (mlflow/mlflow#16555).
        metrics = [metric(_plain(name), value, now, int(step)) for name, value, step in points if math.isfinite(value)]
        for start in range(0, len(metrics), MLFLOW_AT_ONCE):
            self._client.log_batch(self.id, metrics=metrics[start : start + MLFLOW_AT_ONCE])

    def close(self) -> None:
        """Say that nothing is at work; a run that goes on is opened again."""
        self._client.set_terminated(self.id)


def _plain(name: str) -> str:
    """A name as MLflow takes it."""
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "_" for letter in name)


class WeightsAndBiases:
    """A run of Weights & Biases: below track/ until you say `wandb sync`, or on the server that is named.

    Of several folders of one run `wandb sync` would let the last one replace the others (wandb/wandb#3841). So there is one
    folder, which has all of it.
    """

    def __init__(self, tracking: Tracking, run: Path, *, name: str, config: Mapping[str, float | bool], known: str) -> None:
        wandb = _imported("wandb", "wandb")
        self.id = known or uuid.uuid4().hex[:8]
        self.adds = bool(tracking.to)
        folder = run / LOCAL
        folder.mkdir(parents=True, exist_ok=True)
        self._before = set() if self.adds else set(folder.glob(f"wandb/offline-run-*-{self.id}"))
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
            reinit="create_new",  # Else a notebook's own run would get the figures, and be ended.
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
        """Wait until all is written or sent; of what is kept here leave the whole alone."""
        self._run.finish()
        for folder in self._before - {Path(self._run.settings.sync_dir)}:
            shutil.rmtree(folder)


@contextmanager
def _nothing_asked_elsewhere() -> Iterator[None]:
    """While trackio begins a run that stays here: it would ask the hub for the name of the account whose key it finds, keep
    that name, and follow variables to another machine."""
    hub: Any = import_module("huggingface_hub")
    kept = {name: os.environ.pop(name) for name in TO_OTHER_MACHINES if name in os.environ}
    asked, hub.whoami = hub.whoami, _nobody
    try:
        yield
    finally:
        hub.whoami = asked
        os.environ.update(kept)


def _nobody(**_: object) -> None:
    raise OSError("no account is asked for")


class Trackio:
    """A run of trackio, in its database on this machine or in the Space that is named: `trackio show --project stllava`."""

    adds = True

    def __init__(self, tracking: Tracking, run: Path, *, name: str, config: Mapping[str, float | bool], known: str) -> None:
        trackio = _imported("trackio", "trackio")
        self.id = known or _unlike_others(name)
        settings = {"name": self.id, "config": dict(config), "resume": "allow", "embed": False}
        settings |= {"auto_log_gpu": False, "auto_log_cpu": False}
        if tracking.to:
            self._run = trackio.init(project=tracking.project, space_id=tracking.to, private=True, **settings)
        else:
            with _nothing_asked_elsewhere():
                self._run = trackio.init(project=tracking.project, **settings)

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
