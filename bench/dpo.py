"""Pairs per second and peak memory of one epoch of dpo: stllava, all pairs of an image in one sequence, against TRL.

    python bench/dpo.py --shape llava --images 4 --batch 2 --trl-batch 2 5 10 --repeats 3

Both sides train the same randomly initialised LLaVA on the same pairs about the same images of noise: sigmoid loss
alone (no NLL, no replay), AdamW, constant learning rate, float32 on a CPU and bfloat16 on CUDA, as many pairs an
optimizer step. Timed are the reference's log-probabilities, making batches (images decoded and processed, text
tokenised) and training. Not timed are imports, loading, a warm-up epoch of one step and our check, once a stage, that the
model can be packed (`check_seconds` in the results); no side saves weights.

Our reference costs what it costs in a run: the policy gave the answers itself and noted their log-probabilities as it did,
so that a sample of them is checked. `anew` is our side where nothing was noted and every tree is computed once before
training. TRL runs the reference in every step.

With `--large-pages` a further side, `large`, is ours in a process whose memory torch asks for in large pages on a CPU
(`LARGE_PAGES`), and `trl-N-large` the same of TRL.

The operations of each side's products and attention are counted in the warm-up step, the reference's among them where it
is computed in training. Two sides that are as near to the machine's rate as each other take time in their ratio.

A side is a process of its own, and the sides take turns. TRL runs with every `--trl-batch` (pairs a forward; smaller ones
are accumulated to the same optimizer step) and the one with the best median is its figure. TRL's own default of
recomputing activations is off, unless `--trl-recompute`: it saves memory and costs time.

Writes bench/results/dpo-SHAPE-DEVICE.json (dpo-SHAPE-MODEL-DEVICE.json for models other than base) and prints a table.
"""

import argparse
import gc
import json
import math
import statistics
import sys
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import JsonValue
from torch.utils.flop_counter import FlopCounterMode, mm_flop, sdpa_backward_flop_count, sdpa_flop_count

from shared.llava import ANSWER_TOKENS, MODELS, PATCH, QUESTION_TOKENS, SHAPES, build, noise, preferences
from shared.measure import (
    Figures,
    as_json,
    device_kind,
    finish_device,
    forget_peak,
    peak_memory,
    report_side,
    run_side,
    spread,
    write_result,
)

if TYPE_CHECKING:
    from stllava.config import DpoOptions
    from stllava.model.load import Policy
    from stllava.records import Preference

LEARNING_RATE, BETA, LORA_RANK = 1e-5, 0.1, 128
WEIGHTS = "as prepared"
Counts = AbstractContextManager[object]
OURS = ("ours", "anew", "large")
LARGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
"""What lets torch ask Linux for large pages where it allocates a tensor of 2 MB or more."""


@dataclass(frozen=True)
class Setting:
    """What is compared."""

    shape: str
    model: str
    images: int
    batch: int
    """Images an optimizer step."""
    trl_recompute: bool
    tokens: int = 2048
    """Most tokens of a forward of ours."""

    @property
    def pairs_a_step(self) -> int:
        """Pairs an optimizer step, on both sides."""
        return self.batch * SHAPES[self.shape].pairs


def prepare(work: Path, setting: Setting) -> Figures:
    """Write the model, the images of noise and the pairs about them to `work`."""
    shape = SHAPES[setting.shape]
    policy = build(setting.model, shape)
    policy.save(work / "model")
    names = noise(work / "images", count=setting.images, size=shape.image_size)
    pairs = noted(policy, preferences(shape, names, policy.tokenizer), work, setting)
    (work / "pairs.jsonl").write_text("".join(pair.model_dump_json() + "\n" for pair in pairs))
    return {
        "parameters": float(policy.model.num_parameters()),
        "language_parameters": float(policy.model.get_decoder().num_parameters()),
        "image_tokens": float((shape.image_size // PATCH) ** 2),
        "question_tokens": float(QUESTION_TOKENS),
        "answer_tokens": float(ANSWER_TOKENS),
        "pairs": float(len(pairs)),
    }


def noted(policy: "Policy", pairs: "list[Preference]", work: Path, setting: Setting) -> "list[Preference]":
    """The pairs with the log-probabilities that the policy would have noted had it said these answers."""
    from stllava.training.preference_dataset import PreferenceDataset
    from stllava.training.references import measure_reference

    dataset = PreferenceDataset(policy, pairs, images=work / "images", max_tokens=options(setting).max_tokens_per_forward)
    found = {one.id: one for one in measure_reference(dataset, policy, weights=WEIGHTS).records(dataset)}
    return [pair.model_copy(update={"reference": found[pair.id]}) for pair in pairs]


def options(setting: Setting) -> "DpoOptions":
    """Our options: the whole model learns or, of the 7B one, LoRA on its language part, as on TRL's side."""
    from stllava.config import DpoOptions, GroupRates, LoraOptions
    from stllava.config.training import AdapterOptions

    lora = setting.model == "7b"
    rest = 0.0 if lora else LEARNING_RATE
    return DpoOptions(
        beta=BETA,
        nll=0.0,
        replay=0.0,
        batch_size=setting.batch,
        max_tokens_per_forward=setting.tokens,
        learning_rate=GroupRates(language=LEARNING_RATE, projector=rest, vision=rest),
        lora=LoraOptions(language=AdapterOptions(rank=LORA_RANK if lora else 0, dropout=0.0)),
        schedule="constant",
        warmup=0.0,
        save_steps=0,
    )


def counted() -> FlopCounterMode:
    """Counts the operations of products, convolutions and attention; torch knows no attention of a CPU, nor sums in place."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

    def forwards(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
        return int(sdpa_flop_count(query, key, value))

    def backwards(gradient: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
        return int(sdpa_backward_flop_count(gradient, query, key, value))

    def sums(_: torch.Size, one: torch.Size, other: torch.Size, **__: object) -> int:
        return int(mm_flop(one, other))

    own = {attention: forwards, backward: backwards, torch.ops.aten.addmm_: sums}
    return FlopCounterMode(display=False, custom_mapping=own)


def ours(work: Path, policy: "Policy", pairs: "list[Preference]", setting: Setting, name: str, counts: Counts) -> Figures:
    """One epoch of stllava: the reference, as noted or computed anew, then training."""
    from stllava.training.preference_dataset import PreferenceDataset
    from stllava.training.preference_steps import PreferenceSteps, fit_preferences
    from stllava.training.references import measure_reference
    from stllava.tree.guard import check_packing

    dpo = options(setting)
    began = time.perf_counter()
    dataset = PreferenceDataset(policy, pairs, images=work / "images", max_tokens=dpo.max_tokens_per_forward)
    planted = time.perf_counter()
    if fault := check_packing(policy, dataset.trees):
        sys.exit(fault)
    checked = time.perf_counter()
    references = measure_reference(dataset, policy, weights="other weights" if name == "anew" else WEIGHTS)
    finish_device()
    referred = time.perf_counter()
    with counts:
        curves = fit_preferences(PreferenceSteps(policy, dataset, references, None, dpo, 0), work / "ours")
    finish_device()
    ended = time.perf_counter()
    return {
        "seconds": ended - began - (checked - planted),
        "reference_seconds": referred - checked,
        "check_seconds": checked - planted,
        "pairs": float(len(pairs) - dataset.dropped.total()),
        "steps": curves["loss"][-1][0],
        "first_loss": curves["loss"][0][1],
    }


def theirs(work: Path, policy: "Policy", pairs: "list[Preference]", setting: Setting, name: str, counts: Counts) -> Figures:
    """One epoch of TRL's DPOTrainer, whose reference runs in every step; `name` says the pairs a forward."""
    a_forward = int(name.split("-")[1])
    peft, datasets, trl = import_module("peft"), import_module("datasets"), import_module("trl")
    cuda = policy.device.type == "cuda"
    turns = datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")})
    columns = {"images": datasets.List(datasets.Image()), "prompt": turns, "chosen": turns, "rejected": turns}
    rows = [
        {
            "images": [str(work / "images" / image) for image in pair.images],
            "prompt": [message.model_dump() for message in pair.prompt],
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
        }
        for pair in pairs
    ]
    lora = peft.LoraConfig(
        r=LORA_RANK,
        lora_alpha=2 * LORA_RANK,
        lora_dropout=0.0,
        target_modules=r".*language_model.*\.(q|k|v|o|gate|up|down)_proj",
    )
    trainer = trl.DPOTrainer(
        model=policy.model,  # and a copy of it, loaded from its folder, as the reference; with LoRA, the model without it
        args=trl.DPOConfig(
            output_dir=str(work / "trl"),
            beta=BETA,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            num_train_epochs=1,
            per_device_train_batch_size=a_forward,
            gradient_accumulation_steps=setting.pairs_a_step // a_forward,
            activation_checkpointing=setting.trl_recompute,
            bf16=cuda,
            use_cpu=not cuda,
            max_length=None,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=cuda,
        ),
        train_dataset=datasets.Dataset.from_list(rows, features=datasets.Features(columns)),
        processing_class=policy.processor,
        peft_config=lora if setting.model == "7b" else None,
    )
    finish_device()
    began = time.perf_counter()
    with counts:
        trainer.train()
    finish_device()
    return {
        "seconds": time.perf_counter() - began,
        "pairs": float(len(trainer.train_dataset)),
        "steps": float(trainer.state.global_step),
        "first_loss": float(trainer.state.log_history[0]["loss"]),
    }


def side(name: str, setting: Setting, work: Path) -> Figures:
    """Load, warm up on one optimizer step, then measure an epoch."""
    from stllava.model.load import load_policy
    from stllava.records import Preference

    pairs = [Preference.model_validate_json(line) for line in (work / "pairs.jsonl").read_text().splitlines()]
    used = (
        ("stllava.training.trainer", "stllava.training.preference_dataset")
        if name in OURS
        else ("peft", "trl.trainer.dpo_trainer")
    )
    for module in used:
        import_module(module)
    epoch, counter = ours if name in OURS else theirs, counted()
    for learned, counts in ((pairs[: setting.pairs_a_step], counter), (pairs, nullcontext())):
        gc.collect()
        policy = load_policy(work / "model")
        before = forget_peak()
        figures = epoch(work, policy, learned, setting, name, counts)
        del policy
    peak = peak_memory()
    assert figures["pairs"] == len(pairs), f"{name} learned {figures['pairs']:.0f} of {len(pairs)} pairs"
    off = abs(figures["first_loss"] - math.log(2))
    assert off < (0.05 if device_kind() == "cuda" else 1e-3), f"the first loss of {name} is {figures['first_loss']}, not log 2"
    return figures | {
        "pairs_per_second": len(pairs) / figures["seconds"],
        "peak_bytes": float(peak),
        "added_bytes": float(peak - before),
        "operations_a_step": float(counter.get_total_flops()),
    }


def compare(setting: Setting, trl_batches: list[int], repeats: int, *, large_pages: bool) -> dict[str, JsonValue]:
    """Run all sides in turn, `repeats` times, and say how many times as long TRL takes at its best."""
    own = OURS if large_pages else OURS[:2]
    peers = [f"trl-{pairs}" for pairs in trl_batches]
    sides = [*own, *peers, *(f"{peer}-large" for peer in peers if large_pages)]
    runs: dict[str, list[Figures]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory(prefix="stllava-bench-") as work:
        common = ["--work", work, "--setting", json.dumps(asdict(setting))]
        made = run_side(__file__, "--side", "prepare", *common)
        for repeat in range(repeats):
            for name in sides if repeat % 2 == 0 else sides[::-1]:
                settings = LARGE_PAGES if name.endswith("large") else {}
                runs[name].append(run_side(__file__, "--side", name, *common, settings=settings))
                print(f"{name}: {runs[name][-1]['seconds']:.1f} s", file=sys.stderr)
    rates = {name: spread([run["pairs_per_second"] for run in runs[name]]) for name in sides}
    peer = max(sides[len(own) :], key=lambda name: rates[name].median)
    ratios = {
        name: spread([other["seconds"] / run["seconds"] for run, other in zip(runs[name], runs[peer], strict=True)])
        for name in own
    }
    print(f"{setting.shape}, {setting.model}: {made['pairs']:.0f} pairs about {setting.images} images, {repeats} repeats")
    print(f"{'':<14}{'pairs a second':>24}{'peak GB':>10}{'added GB':>10}")
    for name in sides:
        peak, added = (statistics.median(run[key] for run in runs[name]) / 1e9 for key in ("peak_bytes", "added_bytes"))
        print(f"{name:<14}{rates[name]!s:>24}{peak:>10.2f}{added:>10.2f}")
    print(
        f"{peer} takes {ratios['ours']} times as long as ours, {ratios['anew']} times as long as ours with its reference anew"
    )
    if large_pages:
        print(f"and {ratios['large']} times as long as ours in large pages")
    operations = runs[peer][0]["operations_a_step"] / runs["ours"][0]["operations_a_step"]
    print(f"and computes {operations:.2f} times as many operations")
    check = spread([run["check_seconds"] for run in runs["ours"]])
    print(f"not in it: {check} s in which ours checks, once a stage, that the model can be packed")
    return {
        "bench": "dpo",
        "setting": asdict(setting),
        "made": dict(made),
        "peer": peer,
        **{f"seconds_of_peer_over_{name}": as_json(ratio) for name, ratio in ratios.items()},
        "operations_of_peer_over_ours": operations,
        "pairs_per_second": {name: as_json(rate) for name, rate in rates.items()},
        "runs": {name: [dict(run) for run in found] for name, found in runs.items()},
    }


def main() -> None:
    """Compare, or run one side of a comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llava")
    parser.add_argument("--model", choices=MODELS, default="base")
    parser.add_argument("--images", type=int, default=4, help="images in the epoch")
    parser.add_argument("--batch", type=int, default=2, help="images an optimizer step")
    parser.add_argument("--trl-batch", type=int, nargs="+", default=[2], help="pairs a forward of TRL: all are tried")
    parser.add_argument("--tokens", type=int, default=2048, help="most tokens of a forward of ours, as --trl-batch is TRL's")
    parser.add_argument("--trl-recompute", action="store_true", help="TRL recomputes activations, as is its default")
    parser.add_argument("--large-pages", action="store_true", help="also with memory in large pages, on both sides")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--setting", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side is not None:
        setting = Setting(**json.loads(asked.setting))
        report_side(prepare(asked.work, setting) if asked.side == "prepare" else side(asked.side, setting, asked.work))
        return
    setting = Setting(asked.shape, asked.model, asked.images, asked.batch, asked.trl_recompute, asked.tokens)
    if asked.images % asked.batch:
        parser.error(f"--images {asked.images} is no multiple of --batch {asked.batch}: the last step would be a smaller one")
    if uneven := [pairs for pairs in asked.trl_batch if setting.pairs_a_step % pairs]:
        parser.error(f"--trl-batch {uneven} does not divide the {setting.pairs_a_step} pairs of an optimizer step")
    figures = compare(setting, asked.trl_batch, asked.repeats, large_pages=asked.large_pages)
    name = "-".join(["dpo", asked.shape, *([asked.model] if asked.model != "base" else []), device_kind()])
    print(write_result(name, figures))


if __name__ == "__main__":
    main()
