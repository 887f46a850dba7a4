"""How near a packed training step comes to the machine's rate of matrix products, and where the rest of its time goes.

    python bench/limit.py --shape llava --images 2

The operations that a step must do are counted: for every linear layer and convolution 2 for each weight and token
forwards, as many for the gradient of its input and, where it learns, of its weight; for attention the scores and sums of
tokens that see each other, three times as much with the backward. Padding, masked scores, norms, softmax, recomputation
and the optimizer count as nothing. Over the step's time (optimizer included) that is a rate, which is compared with the
rate of square matrix products measured between the steps of the same run, in the same precision.

The profile is of one more step. Writes bench/results/limit-SHAPE-DEVICE.json and prints a table.
"""

import argparse
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from dpo import Setting, options, prepare
from shared.llava import MODELS, SHAPES
from shared.measure import as_json, device_kind, finish_device, spread, write_result
from stllava.model.adapters import optimizer_groups, prepare_model
from stllava.model.load import Policy, load_policy
from stllava.records import Preference
from stllava.training.host_memory import freed_memory_kept
from stllava.training.lean_layers import layers_that_learn
from stllava.training.objective import counts_of
from stllava.training.preference_dataset import PreferenceDataset
from stllava.training.preference_steps import PreferenceSteps
from stllava.training.references import measure_reference

SQUARE = {"cpu": 2048, "cuda": 8192}
PRODUCTS = {"cpu": 8, "cuda": 50}
GROUPS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::mkldnn_convolution", "aten::convolution_backward"),
    "attention": ("scaled_dot_product", "_flash_attention", "_efficient_attention"),
    "optimizer": ("AdamW", "_fused_adamw", "_foreach"),
}


class Operations:
    """Counts what linear layers must compute, forwards and backwards, by hooks that last as long as the `with` block."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.count = model, 0.0
        self.hooks = ExitStack()

    def __enter__(self) -> Self:
        for module in self.model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                self.hooks.callback(module.register_forward_hook(self.add).remove)
        return self

    def __exit__(self, *_: object) -> None:
        self.hooks.close()

    def add(self, module: nn.Module, _: object, output: Tensor) -> None:
        """A layer's products: forwards, for its input and, where it learns, for its weight."""
        weight = module.get_parameter("weight")
        times = 3 if weight.requires_grad else 2
        self.count += times * 2.0 * output.numel() * weight[0].numel()


def attended(policy: Policy, batch: dict[str, Tensor]) -> float:
    """Operations of attention for a forward and its backward: 4 a pair of tokens and channel, three times."""
    text, seen = policy.model.config.get_text_config(), policy.model.config.vision_config
    pairs = float(batch["attention_mask"].sum())
    language = pairs * text.num_hidden_layers * text.hidden_size
    patches = (seen.image_size // seen.patch_size) ** 2 + 1
    vision = len(batch["pixel_values"]) * patches**2 * seen.num_hidden_layers * seen.hidden_size
    return float(3 * 4 * (language + vision))


def product_rate(policy: Policy) -> float:
    """Operations a second of square matrix products in the model's precision."""
    kind = device_kind()
    size, times = SQUARE[kind], PRODUCTS[kind]
    one, other = (torch.randn(size, size, device=policy.device, dtype=policy.model.dtype) for _ in range(2))
    one @ other
    finish_device()
    began = time.perf_counter()
    for _ in range(times):
        one @ other
    finish_device()
    seconds = time.perf_counter() - began
    return 2.0 * times * size * size * size / seconds


def main() -> None:
    """Measure and profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llava")
    parser.add_argument("--model", choices=MODELS, default="base")
    parser.add_argument("--images", type=int, default=2, help="images an optimizer step")
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    setting = Setting(asked.shape, asked.model, asked.images, asked.images, False)
    with tempfile.TemporaryDirectory(prefix="stllava-bench-") as folder, ExitStack() as layers:
        work = Path(folder)
        prepare(work, setting)
        policy = load_policy(work / "model")
        pairs = [Preference.model_validate_json(line) for line in (work / "pairs.jsonl").read_text().splitlines()]
        dpo = options(setting)
        dataset = PreferenceDataset(policy, pairs, images=work / "images", max_tokens=dpo.max_tokens_per_forward)
        steps = PreferenceSteps(policy, dataset, measure_reference(dataset, policy, weights=""), None, dpo, 0)
        model = prepare_model(policy.model, dpo).train()
        groups = optimizer_groups(model, dpo)
        optimizer = torch.optim.AdamW(groups, fused=True)

        def step() -> float:
            began = time.perf_counter()
            forwards = steps.collate([steps.example(index, 0) for index in range(len(dataset))])
            parts = [counts_of(batch) for batch in forwards]
            count = {name: sum(part[name] for part in parts) for name in parts[0]}
            for batch in forwards:
                moved = {name: value.to(policy.device) for name, value in batch.items()}
                steps.loss(model, moved, count)[0].backward()
            optimizer.step()
            optimizer.zero_grad()
            finish_device()
            return time.perf_counter() - began

        layers.enter_context(freed_memory_kept(policy.device))
        layers.enter_context(layers_that_learn(policy.model, dpo))
        with Operations(policy.model) as operations:
            step()
        linear = operations.count
        step()
        batches = steps.collate([steps.example(index, 0) for index in range(len(dataset))])
        needed = linear + sum(attended(policy, batch) for batch in batches)
        rates, seconds = [], []
        for _ in range(asked.repeats):
            before = product_rate(policy)
            seconds.append(step())
            rates.append((before + product_rate(policy)) / 2)
        shares = spread([needed / took / rate for took, rate in zip(seconds, rates, strict=True)])
        activity = torch.profiler.ProfilerActivity.CUDA if device_kind() == "cuda" else torch.profiler.ProfilerActivity.CPU
        with torch.profiler.profile(activities=[activity]) as profile:
            step()
    spent: dict[str, float] = dict.fromkeys([*GROUPS, "everything else"], 0.0)
    for event in profile.key_averages():
        own = event.self_device_time_total if device_kind() == "cuda" else event.self_cpu_time_total
        group = next((name for name, keys in GROUPS.items() if any(key in event.key for key in keys)), "everything else")
        spent[group] += own
    total = sum(spent.values())
    print(
        f"{asked.shape}, {asked.model}, {asked.images} images a step: {needed / 1e9:.0f} GFLOP ({linear / needed:.0%} linear)"
    )
    print(f"step {spread(seconds)} s, products {spread([rate / 1e9 for rate in rates])} GFLOP/s")
    print(f"share of the rate of matrix products: {shares}")
    for name, value in spent.items():
        print(f"  {name:<16}{value / total:7.1%} of the profiled step")
    figures = {
        "bench": "limit",
        "shape": asked.shape,
        "model": asked.model,
        "images": asked.images,
        "needed_operations": needed,
        "linear_share": linear / needed,
        "step_seconds": as_json(spread(seconds)),
        "product_rate": as_json(spread(rates)),
        "share_of_product_rate": as_json(shares),
        "profile": {name: value / total for name, value in spent.items()},
    }
    name = "-".join(["limit", asked.shape, *([asked.model] if asked.model != "base" else []), device_kind()])
    print(write_result(name, figures))


if __name__ == "__main__":
    main()
