"""The prototype extractor as matrix products against the broadcast form that its published code has: time and memory.

    python bench/projector.py

One image of 576 tokens × 1024 channels, 256 prototypes, in float32. `broadcast` restates step 4 of the formula with its
[B, K, L, D] tensors, 576 MiB each; `ours` is `stllava.model.projector.PrototypeExtractor`. Both have the same weights,
and first each must give what the other does. The projector's last two layers are equal in both and would hide the
difference, so the comparison is without them; `--whole` keeps them, for a language model 4096 wide.

Each repeat is a process of its own for each side, which one first by turns; a run is the median of `--times` passes
behind two that warm up. Memory is the most that the passes held beyond what was held before them. Writes
bench/results/projector-DEVICE.json (projector-whole-DEVICE.json) and prints a table.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool1d, normalize

from shared.measure import (
    Figures,
    as_json,
    cores,
    device_kind,
    finish_device,
    forget_peak,
    peak_memory,
    report_side,
    run_side,
    spread,
    write_result,
)
from stllava.model.projector import PrototypeExtractor

SIDES = ("ours", "broadcast")
TOKENS, CHANNELS, LANGUAGE, PROTOTYPES = 576, 1024, 4096, 256
QUICK = 8
"""Every size over this, to see that the bench runs."""
WARM = 2


def broadcast(extractor: PrototypeExtractor, tokens: Tensor) -> Tensor:
    """The published formula with tensors [B, K, L, D], as its own code computes it."""
    known, keys = extractor.f(tokens), normalize(extractor.v(tokens).mT, dim=-1)
    centres = adaptive_avg_pool1d(tokens.mT, extractor.prototypes).mT
    pooled = adaptive_avg_pool1d(known.mT, extractor.prototypes).mT
    for _ in range(extractor.steps):
        centres = (normalize(extractor.c(centres), dim=-1) @ keys).softmax(dim=-2) @ known
    cosines = normalize(centres, dim=-1) @ normalize(tokens, dim=-1).mT
    likeness = extractor.sim_beta + extractor.sim_alpha * cosines
    belongs = torch.zeros_like(likeness).scatter(1, likeness.argmax(dim=1, keepdim=True), 1.0)
    weights = (likeness.sigmoid() * belongs)[..., None]
    sums = (known[:, None] * weights).sum(dim=2)
    told = (sums + pooled) / (belongs.sum(dim=-1, keepdim=True) + 1.0)
    mixed: Tensor = extractor.mlp(tokens + (told[:, :, None] * weights).sum(dim=1))
    return mixed


def side(name: str, *, times: int, whole: bool, quick: bool) -> Figures:
    """Median seconds and added bytes of one side, forwards alone and with the backward."""
    over = QUICK if quick else 1
    torch.manual_seed(0)
    device = torch.device(device_kind())
    extractor = PrototypeExtractor(CHANNELS // over, LANGUAGE // over, prototypes=PROTOTYPES // over)
    if not whole:
        extractor.mlp = nn.Sequential()
    extractor.to(device)
    tokens = torch.randn(1, TOKENS // over, CHANNELS // over, device=device, requires_grad=True)
    run = extractor if name == "ours" else lambda tokens: broadcast(extractor, tokens)
    with torch.no_grad():
        # On average: in noise, rounding may give a single token to another of two prototypes that are all but the same.
        gap = float((extractor(tokens) - broadcast(extractor, tokens)).abs().mean())
    assert gap < 1e-4, f"the sides differ by {gap} on average"

    def forward() -> None:
        with torch.no_grad():
            run(tokens)

    def learn() -> None:
        run(tokens).sum().backward()

    learn()  # so that gradients are held before what is measured
    figures: Figures = {}
    for kind, work in (("forward", forward), ("learn", learn)):
        before = forget_peak()
        figures[f"{kind}_seconds"] = median([timed(work) for _ in range(WARM + times)][WARM:])
        figures[f"{kind}_bytes"] = peak_memory() - before
    return figures


def timed(work: Callable[[], None]) -> float:
    """Seconds of one pass."""
    began = time.perf_counter()
    work()
    finish_device()
    return time.perf_counter() - began


def main() -> None:
    """Compare, or run one side of the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--whole", action="store_true", help="with the projector's last two layers")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, not what it finds")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--times", type=int, default=5, help="passes a repeat")
    parser.add_argument("--threads", type=int, default=cores(), help="of the processor; 1 where other work shares it")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side is not None:
        torch.set_num_threads(asked.threads)
        report_side(side(asked.side, times=asked.times, whole=asked.whole, quick=asked.quick))
        return
    common = [
        f"--times={asked.times}",
        f"--threads={asked.threads}",
        *(["--whole"] if asked.whole else []),
        *(["--quick"] if asked.quick else []),
    ]
    runs: dict[str, list[Figures]] = {name: [] for name in SIDES}
    for repeat in range(asked.repeats):
        for name in SIDES if repeat % 2 == 0 else SIDES[::-1]:
            runs[name].append(run_side(__file__, "--side", name, *common))
    result: dict[str, JsonValue] = {"bench": "projector", "whole": asked.whole, "quick": asked.quick, "threads": asked.threads}
    result["runs"] = {name: [{**run} for run in made] for name, made in runs.items()}
    for kind in ("forward", "learn"):
        seconds = {name: spread([run[f"{kind}_seconds"] for run in runs[name]]) for name in SIDES}
        ratio = seconds["broadcast"].median / seconds["ours"].median
        mebibytes = {name: spread([run[f"{kind}_bytes"] / 2**20 for run in runs[name]]) for name in SIDES}
        for name in SIDES:
            print(f"{kind:<8}{name:<10}{seconds[name].median * 1e3:>10.1f} ms{mebibytes[name].median:>10.1f} MiB")
        print(f"{kind:<8}{'ratio':<10}{ratio:>10.1f} ×")
        result[f"{kind}_seconds_of_broadcast_over_ours"] = ratio
        result[f"{kind}_seconds"] = {name: as_json(value) for name, value in seconds.items()}
        result[f"{kind}_mebibytes"] = {name: as_json(value) for name, value in mebibytes.items()}
    print(write_result("-".join(["projector", *(["whole"] if asked.whole else []), device_kind()]), result))


if __name__ == "__main__":
    main()
