"""What an expert's quality buys: the demo's loop with experts that are wrong, or biased by order, at known rates.

    python bench/expert.py

Every run is the phantom recipe from the same stage-1 policy, with one round of self-training and the simulated expert: the
oracle made worse on purpose, asked pair by pair. Varied, one at a time: the share of wrong verdicts, the share of replies
that follow the order, in one order and in both, and K, the answers a question. The questions asked are the same in all
runs. Reported: points gained on the test questions over the stage-1 policy with 95 % intervals resampled by image, pairs
learned from, and the share of pairs whose chosen answer the oracle calls worse.

Writes bench/results/expert-DEVICE.json and prints a table.
"""

import argparse
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import JsonValue

from shared.measure import device_kind, write_result

QUICK = {"labelled": 8, "unlabelled": 24, "validation": 12, "test": 20}


@dataclass(frozen=True)
class Variant:
    """One expert and one number of answers."""

    wrong: float = 0.0
    order_bias: float = 0.0
    orders: int = 2
    k: int = 4


VARIANTS = [
    Variant(),
    Variant(wrong=0.05),
    Variant(wrong=0.15),
    Variant(wrong=0.30),
    Variant(order_bias=0.3, orders=1),
    Variant(order_bias=0.3, orders=2),
    Variant(k=2),
    Variant(k=8),
]


def run_variant(variant: Variant, *, base: Path, to: Path, seed: int, quick: bool) -> dict[str, JsonValue]:
    """One run from the data, model and stage-1 policy in `base`."""
    from stllava.data.phantom.truth import Truth
    from stllava.experts.rules.oracle import Oracle
    from stllava.pipeline import run
    from stllava.recipe import RECIPES, load_recipe
    from stllava.records import Preference
    from stllava.store import Stage, read_jsonl, read_manifest, read_records

    overrides: dict[str, JsonValue] = {
        "seed": seed,
        "rounds": 1,
        "baselines": False,
        # One plain round, so that what is measured is what the verdicts teach.
        "data": {"unlabelled": 450},
        "ask": {"questions": 12, "borrow_questions": 0},
        "pair": {"min_chosen_score": 0, "max_denial_share": 1},
        "dpo": {"epochs": 4},
        "final_sft": None,
        "answer": {"num_answers": variant.k},
        "judge": {
            "expert": "simulated",
            "orders": variant.orders,
            "simulated": {"wrong": variant.wrong, "order_bias": variant.order_bias},
        },
    }
    if quick:
        overrides |= {"data": {**QUICK}, "sft": {"epochs": 80}, "dpo": {"epochs": 1}}
    options = load_recipe(RECIPES / "phantom.yaml", overrides=overrides)
    if base.is_dir():
        Stage("run", to, options, inputs={}, existing="error")  # what is copied into its folder is then resumed
        for part in ("data", "model", "sft", "evaluate"):
            shutil.copytree(base / part, to / part)
        (to / "round-1").mkdir()
        shutil.copytree(base / "round-1" / "ask", to / "round-1" / "ask")
    began = time.perf_counter()
    outcome = run(options, to=to)
    seconds = time.perf_counter() - began
    if not base.is_dir():
        base.mkdir()
        for part in ("data", "model", "sft"):
            shutil.copytree(to / part, base / part)
        shutil.copytree(to / "evaluate" / "sft", base / "evaluate" / "sft")
        (base / "round-1").mkdir()
        shutil.copytree(to / "round-1" / "ask", base / "round-1" / "ask")
    round_1 = to / "round-1"
    oracle = Oracle(read_jsonl(to / "data" / "truths.jsonl", Truth))
    worse = pairs = 0
    if (round_1 / "pair").is_dir():
        for pair in read_records(round_1 / "pair", "preferences", Preference):
            scores = oracle.score(pair.prompt[0].content, pair.images, (pair.chosen, pair.rejected)).scores
            pairs += 1
            worse += scores is not None and scores[0] < scores[1]
    judged = read_manifest(round_1 / "judge")
    gains = {
        row.metric: [100 * row.value, 100 * row.low, 100 * row.high]
        for row in outcome.differences
        if row.policy == "round-1" and row.benchmark == "phantom"
    }
    return {
        **asdict(variant),
        "gains": dict(gains),
        "pairs": pairs,
        "worse_chosen": worse / pairs if pairs else 0.0,
        "tie_share": judged.measures.get("tie_share", 0.0),
        "flip_share": judged.measures.get("flip_share", 0.0),
        "seconds": seconds,
    }


def main() -> None:
    """Run all variants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a tiny data set: whether it runs, not what it finds")
    parser.add_argument("--variants", type=int, default=len(VARIANTS), help="run the first so many only")
    asked = parser.parse_args()
    found: list[JsonValue] = []
    head = f"{'wrong':>6}{'by order':>10}{'orders':>8}{'K':>4}{'pairs':>7}{'worse chosen':>14}{'flips':>8}"
    print(f"{head}   gain in points [95 %]: open exact match, closed accuracy")
    with tempfile.TemporaryDirectory(prefix="stllava-bench-") as folder:
        work = Path(folder)
        for number, variant in enumerate(VARIANTS[: asked.variants]):
            row = run_variant(variant, base=work / "base", to=work / f"run-{number}", seed=asked.seed, quick=asked.quick)
            found.append(row)
            gains = row["gains"]
            assert isinstance(gains, dict)
            shown = ", ".join(
                "{:+.1f} [{:+.1f}, {:+.1f}]".format(*gains[metric])  # type: ignore[misc]
                for metric in ("open_exact_match", "closed_accuracy")
                if metric in gains
            )
            print(
                f"{variant.wrong:>6.0%}{variant.order_bias:>10.0%}{variant.orders:>8}{variant.k:>4}{row['pairs']:>7}"
                f"{row['worse_chosen']:>14.1%}{row['flip_share']:>8.1%}   {shown}",
                flush=True,
            )
    print(write_result(f"expert-{device_kind()}", {"bench": "expert", "seed": asked.seed, "runs": found}))


if __name__ == "__main__":
    main()
