"""Training on trees with `transformers.Trainer`: sft and dpo differ in their items and their loss only.

Trainer gives devices, distribution, precision, accumulation and checkpoints; what is ours is the batch (trees), the
loss, one learning rate a part, the curves and the progress display.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate.data_loader import prepare_data_loader
from safetensors.torch import load_file, load_model, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from stllava.config import TrainingOptions
from stllava.model.adapters import (
    merged,
    no_kernels_of_the_hub,
    optimizer_groups,
    prepare_model,
    table,
    take_over,
)
from stllava.model.device import native_bfloat16
from stllava.model.groups import is_adapted
from stllava.model.load import Policy
from stllava.store import CURVES
from stllava.training.callbacks import (
    CurveLog,
    Display,
    GradientCheck,
    Sealing,
    curve_values,
    diverged,
    newest_whole_checkpoint,
)
from stllava.training.fsdp import FsdpStrategy
from stllava.training.host_memory import freed_memory_kept
from stllava.training.lean_layers import layers_that_learn
from stllava.training.processes import Processes, current_processes
from stllava.training.step_sharing import IDLE, Batch, Items, StepParts
from stllava.training.strategy import Strategy, names_to_keep, without_weights
from stllava.training.zero import ZeroStrategy, is_launched_with_deepspeed

with no_kernels_of_the_hub():
    from transformers import (
        PreTrainedModel,
        PrinterCallback,
        Trainer,
        TrainingArguments,
        set_seed,
    )

Item = TypeVar("Item")
Part = TypeVar("Part")
Counts = Mapping[str, float]
Loss = Callable[[nn.Module, Batch, Counts], tuple[Tensor, dict[str, float]]]
"""From model, forward and the counts of the whole optimizer step to this forward's share of the loss and of its figures."""
StepCheck = Callable[[int, Mapping[str, float]], None]
"""Given the number of optimizer steps done and the figures of the next; raises StllavaError when the run must not go on."""
POINTS = 120
OPTIMIZER_NAME, SCHEDULER_NAME = "optimizer.pt", "scheduler.pt"
"""Where Trainer keeps them in a checkpoint."""
CHECKPOINT_WEIGHTS = "weights.safetensors"


def fit(
    policy: Policy,
    items: Items[Item],
    *,
    step: StepParts[Item, Part],
    count: Callable[[Batch], dict[str, float]],
    loss: Loss,
    watch: StepCheck | None = None,
    options: TrainingOptions,
    seed: int,
    work: Path,
    label: str,
    merge: bool = True,
) -> dict[str, list[tuple[float, float]]]:
    """Train the policy in place and return its curves; checkpoints go to `work`, and a newest whole one is resumed.

    A step is cut into forwards of bounded size, whose gradients add up; launched processes share its forwards. Without
    `merge` adapters stay beside the policy's weights.
    """
    processes = current_processes()
    dtype = policy.model.dtype
    device = policy.device
    half = options.precision == "bfloat16" or (options.precision == "auto" and native_bfloat16(device))
    set_seed(seed)
    model = prepare_model(policy.model, options)
    steps = max(1, math.ceil(len(items) / options.batch_size)) * options.epochs
    arguments = TrainingArguments(
        output_dir=str(work),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate.language,
        lr_scheduler_type=options.schedule,
        warmup_steps=options.warmup,
        max_grad_norm=options.max_grad_norm,
        bf16=half and not is_launched_with_deepspeed(),
        use_cpu=device.type == "cpu",
        seed=seed,
        data_seed=seed,
        logging_steps=max(1, int(steps / POINTS)),
        save_strategy="steps" if options.save_steps else "no",
        save_steps=options.save_steps or 500,
        save_total_limit=2,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        label_names=["labels"],
    )
    trainer = TreeTrainer(
        model=cast(Any, model),
        args=arguments,
        train_dataset=items,
        data_collator=cast(Any, lambda some: step.collate_forwards(policy, step.parts(some), processes)),
        callbacks=[Display(label, table(model, options)), CurveLog(work.with_name(CURVES)), Sealing(processes)],
        options=options,
        loss=loss,
        count=count,
        watch=watch,
        processes=processes,
        half=half,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(GradientCheck(shows_images=lambda: trainer.shows_images, gradient=trainer.strategy.gradient))
    resumed = processes.share(newest_whole_checkpoint(work) if processes.leads else None)
    if resumed is not None:
        # A loader that skips what was learned before a kill does not tell its data set the epoch.
        items.set_epoch(int(json.loads((Path(resumed) / "trainer_state.json").read_bytes())["epoch"]))
    skeleton = without_weights(model) if trainer.strategy.shares_out else None
    with freed_memory_kept(device), layers_that_learn(policy.model, options):
        trainer.train(resume_from_checkpoint=resumed)
    if skeleton is not None:
        trained = cast(nn.Module, trainer.model)
        # Of weights in 4 bits only what was learned beside them is merged, into whole ones that are read anew.
        quantised = options.lora.quantise != "none"
        names = names_to_keep(trained) if quantised else trained.state_dict().keys()
        state = trainer.strategy.weights(trained, names, keeps=processes.leads)
        if not processes.leads:
            return trainer.curves()
        skeleton.load_state_dict(state, assign=True, strict=not quantised)
        cast(PreTrainedModel, skeleton.get_base_model() if is_adapted(skeleton) else skeleton).tie_weights()
        whole: nn.Module = skeleton
    else:
        whole = trainer.accelerator.unwrap_model(trainer.model)
    if merge:
        policy.model = merged(whole, options, dtype=dtype).eval()
    return trainer.curves()


def without_dropout(model: nn.Module) -> None:
    """Switch off a model's own dropout, as TRL does for preferences: the first loss is then that of an unmoved policy."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


class TreeTrainer(Trainer):
    """A Trainer whose loss is a function of log-probabilities, normalised over the whole optimizer step."""

    def __init__(
        self,
        *,
        options: TrainingOptions,
        loss: Loss,
        count: Callable[[Batch], dict[str, float]],
        watch: StepCheck | None,
        processes: Processes,
        half: bool,
        **arguments: Any,
    ) -> None:
        self.options, self.loss, self.count, self.watch = options, loss, count, watch
        self.processes, self.idle = processes, False
        self.step_counts: dict[str, float] = {}
        self.shows_images = False
        self.figures: dict[str, list[float]] = defaultdict(list)
        super().__init__(**arguments)
        self.strategy = self._strategy(half=half)

    def _strategy(self, *, half: bool) -> Strategy:
        """How the processes hold the model, as they were launched."""
        if self.is_deepspeed_enabled:
            return ZeroStrategy(self.accelerator, half=half, quantised=self.options.lora.quantise != "none")
        if self.is_fsdp_enabled:
            return FsdpStrategy(self.accelerator, cast(nn.Module, self.model))
        return Strategy(self.accelerator)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The same batches in every process, each of which collates its own share of them."""
        if self.processes.count == 1:
            return super().get_train_dataloader()
        loader = DataLoader(
            cast("Dataset[Any]", self.train_dataset),
            batch_size=self._train_batch_size,
            sampler=self._get_train_sampler(),
            collate_fn=self.data_collator,
        )
        prepared: DataLoader[Any] = prepare_data_loader(
            loader,
            device=self.args.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            dispatch_batches=False,
            use_seedable_sampler=True,
            data_seed=self.args.data_seed,
        )
        return prepared

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with one learning rate a part."""
        if self.optimizer is None:
            groups = optimizer_groups(cast(nn.Module, model if model is not None else self.model), self.options)
            self.optimizer = self.strategy.make_optimizer(groups)
        return self.optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write a checkpoint's weights under the names that they have in memory; of a model with adapters, what learns.

        Trainer 5.23 writes a LLaVA under its published names and reads it back under those in memory, which resumes
        from the starting weights and only warns; of several sets of adapters it makes only the first learn on. What is
        written is whole, however many processes hold it.
        """
        model = cast(nn.Module, self.model)
        weights = self.strategy.weights(model, names_to_keep(model), keeps=bool(self.args.should_save))
        if self.args.should_save:
            folder = Path(output_dir if output_dir is not None else str(self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            save_file(weights, folder / CHECKPOINT_WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Read what `save_model` wrote into a model that is still whole; a missing or unknown name is an error."""
        target = model if model is not None else cast(nn.Module, self.model)
        path = Path(resume_from_checkpoint) / CHECKPOINT_WEIGHTS
        if is_adapted(target):
            take_over(target, load_file(path))
        else:
            load_model(target, str(path), strict=True)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Write them as one process does."""
        state = self.strategy.optimizer_state(cast(nn.Module, self.model), self.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(cast(Any, self.lr_scheduler).state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        """Read a checkpoint's weights before they are shared out, and optimizer and schedule, which are made here, then."""
        if resume_from_checkpoint is not None and self.strategy.shares_out:
            self._load_from_checkpoint(resume_from_checkpoint)
        prepared = cast(Any, super())._prepare_for_training(max_steps, train_dataloader, None)
        state = None
        if resume_from_checkpoint is not None:
            state, schedule = (
                torch.load(Path(resume_from_checkpoint) / name, map_location="cpu", weights_only=True)
                for name in (OPTIMIZER_NAME, SCHEDULER_NAME)
            )
            cast(Any, self.lr_scheduler).load_state_dict(schedule)
        self.strategy.begin(cast(nn.Module, self.model), self.optimizer, state)
        return prepared

    def compute_loss_context_manager(self) -> Any:
        """Where a forward's loss is computed in the precision that was asked for."""
        context: ExitStack = super().compute_loss_context_manager()
        context.enter_context(self.strategy.computing())
        return context

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """The forwards and backwards of one optimizer step, each normalised over all of them and all devices."""
        forwards = cast("list[Batch]", inputs)
        self.shows_images = any("pixel" in name for batch in forwards for name in batch)
        self.step_counts = self._count(forwards)
        self.step_figures: dict[str, float] = defaultdict(float)
        total = torch.zeros((), device=self.args.device)
        for place, batch in enumerate(forwards):
            self.idle = batch.pop(IDLE, None) is not None
            with self.strategy.forward(model, last=place + 1 == len(forwards), shows_images=self.shows_images):
                total += super().training_step(model, batch, num_items_in_batch)
        # Counts are means over processes, so that a process's figures are as many times too large as there are processes.
        told = self.processes.mean({**self.step_figures, "": float(total)})
        loss = told.pop("")
        for name, value in told.items():
            self.figures[name].append(value)
        if not math.isfinite(loss):
            raise diverged("loss", loss, self.state.global_step + 1)
        if self.accelerator.optimizer_step_was_skipped:
            raise diverged("norm of the gradients", math.inf, self.state.global_step + 1)
        if self.watch is not None:
            self.watch(self.state.global_step, told)
        return total

    def _count(self, forwards: Sequence[Batch]) -> dict[str, float]:
        """What the loss divides by, over all forwards of the step, and the mean over devices."""
        totals: dict[str, float] = defaultdict(float)
        for batch in forwards:
            for name, value in self.count(batch).items():
                totals[name] += 0.0 if IDLE in batch else value
        return self.processes.mean(totals)

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """This forward's part of the step's loss."""
        loss, figures = self.loss(model, inputs, self.step_counts)
        for name, value in figures.items():
            self.step_figures[name] += 0.0 if self.idle else value
        return loss * 0.0 if self.idle else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of the figures since the last log."""
        means = {name: sum(values) / len(values) for name, values in self.figures.items() if values}
        self.figures.clear()
        super().log({**logs, **means}, start_time)

    def curves(self) -> dict[str, list[tuple[float, float]]]:
        """Loss and figures over steps."""
        series: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for entry in self.state.log_history:
            for name, value in curve_values(entry).items():
                series[name].append((float(entry["step"]), value))
        return dict(series)
