"""What stands beside a training: the progress line, the curves so far, a look at the first gradients, sealed checkpoints."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from stllava.errors import StllavaError
from stllava.model.adapters import no_kernels_of_the_hub, without_gradient
from stllava.progress import Progress, is_plain, progress_stream
from stllava.store import CurvePoint, is_sealed, remove_folder, seal
from stllava.text import show
from stllava.training.processes import Processes

with no_kernels_of_the_hub():
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


def curve_values(entry: Mapping[str, Any]) -> dict[str, float]:
    """What of the trainer's log becomes curves: loss and figures, and nothing of where it is or how long it took."""
    aside = ("epoch", "step", "learning_rate", "total_flos")
    return {
        name: round(float(value), 6)
        for name, value in entry.items()
        if name not in aside and not name.startswith("train_") and isinstance(value, int | float)
    }


def diverged(what: str, value: float, step: int) -> StllavaError:
    """The error of a training that came to something that is no number: every weight would become one."""
    return StllavaError(
        f"the {what} is {value} in step {step}",
        expected="a number",
        remedy="Lower learning_rate, or raise warmup, and begin again in another folder (or with --existing replace).",
    )


class GradientCheck(TrainerCallback):
    """Refuse a training in which a part that should learn gets no gradient; of adapters, the factor that starts as zeros.

    What is seen of images can only be told in a step that shows some: with text alone in the first steps, the check waits.

    Args:
        shows_images: Whether the step shows images.
        gradient: A tensor that is zero where a parameter's gradient is.
    """

    def __init__(self, *, shows_images: Callable[[], bool], gradient: Callable[[nn.Parameter], Tensor | None]) -> None:
        self.shows_images, self.gradient, self.waits = shows_images, gradient, True

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A training that goes on was looked at when it began."""
        self.waits = state.global_step == 0

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: Any,
    ) -> None:
        """Look at the gradients before the first step, or the first of the first epoch that shows images."""
        if not self.waits or model is None:
            return
        idle = without_gradient(model, self.gradient)
        more = state.global_step + 1 < state.max_steps and (state.epoch or 0) < 1
        self.waits = more and bool(idle) and "language" not in idle and not self.shows_images()
        if idle and not self.waits:
            raise StllavaError(
                f"no gradient reaches the part {' and '.join(idle)}",
                expected="a gradient in every part that has a learning rate",
                remedy="Give that part the learning rate 0, or data that uses it (images, for vision and projector).",
            )


class CurveLog(TrainerCallback):
    """Writes every point of the curves as it is made, for those who watch; the manifest has them in the end."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A training that begins anew forgets the points of one before; one that goes on writes some of them again."""
        if state.is_world_process_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not state.global_step:
                self.path.unlink(missing_ok=True)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Add a point."""
        values = curve_values(logs or {})
        if state.is_world_process_zero and values:
            point = CurvePoint(at=time.time(), step=state.global_step, steps=state.max_steps, values=values)
            with self.path.open("ab") as file:
                file.write(point.model_dump_json().encode() + b"\n")


class Display(TrainerCallback):
    """The table of what learns, then the progress line of a training."""

    def __init__(self, label: str, heading: Sequence[str]) -> None:
        self.label, self.heading = label, heading
        self.progress: Progress | None = None
        self.last = ""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write the table and open the line."""
        if state.is_world_process_zero:
            if self.heading and is_plain():
                show(*self.heading, stream=progress_stream())
            self.progress = Progress(self.label, state.max_steps, unit="steps", done=state.global_step).__enter__()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Remember the newest loss; gradients that are no numbers end the training before weights made of them are kept."""
        if logs is not None and "loss" in logs:
            self.last = f"loss {logs['loss']:.3f}"
        if logs is not None and not math.isfinite(logs.get("grad_norm", 0.0)):
            raise diverged("norm of the gradients", logs["grad_norm"], state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move on."""
        if self.progress is not None:
            self.progress.advance(extra=self.last)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Close the line."""
        if self.progress is not None:
            self.progress.__exit__(None, None, None)


class Sealing(TrainerCallback):
    """Seals every checkpoint, so that one that is damaged later, or was never whole, is told from one to go on from."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Seal the checkpoint that all processes have just written."""
        self.processes.share(None)
        if state.is_world_process_zero:
            seal(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")


def newest_whole_checkpoint(work: Path) -> str | None:
    """The newest checkpoint that is as it was sealed; broken ones are removed."""
    found = sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for folder in found:
        if is_sealed(folder):
            return str(folder)
        remove_folder(folder)
    return None
