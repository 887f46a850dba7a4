"""How near `stllava doctor` comes: calculated against measured peak memory of sft and dpo, for three shapes of model and load.

    python bench/memory.py

Each measurement is a process of its own that takes two optimizer steps with values (`stllava.training.memory`): on a CPU what
it grew by, on a GPU what PyTorch had allocated at most. Writes bench/results/memory-DEVICE.json and prints a table.
"""

import argparse
import tempfile
from pathlib import Path

from shared.llava import SHAPES, build
from shared.measure import device_kind, report_side, run_side, write_result

SIDES = {
    "llava": {"batch": 2, "tokens": 2048, "questions": 8, "recompute": 0, "rank": 0},
    "small-image": {"batch": 8, "tokens": 4096, "questions": 20, "recompute": 1, "rank": 0},
    "one-question": {"batch": 4, "tokens": 4096, "questions": 1, "recompute": 0, "rank": 16},
}
"""By shape of the model (bench/shared/llava.py): images a step, tokens a forward, questions an image, and what is saved."""


def side(model: str, stage: str, shape: str, way: str) -> None:
    """Calculate or measure, and report."""
    from stllava.config import AdapterOptions, DpoOptions, GroupRates, LearningLoad, LoraOptions, SftOptions
    from stllava.training.memory import measure_training, predict_training

    setting = SIDES[shape]
    kind = SftOptions if stage == "sft" else DpoOptions
    options = kind(
        batch_size=setting["batch"],
        max_tokens_per_forward=setting["tokens"],
        checkpoint_activations=bool(setting["recompute"]),
        learning_rate=GroupRates(language=1e-5, projector=1e-5, vision=1e-5),
        lora=LoraOptions(language=AdapterOptions(rank=setting["rank"])),
    )
    with tempfile.TemporaryDirectory() as work:
        reckon = predict_training if way == "calculated" else measure_training
        found = reckon(model, options, LearningLoad(questions=setting["questions"]), Path(work))
    report_side({"peak": float(found.peak), "parameters": float(found.parameters), "learned": float(found.learned)})


def main() -> None:
    """Every shape and stage, both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", nargs=4)
    asked = parser.parse_args()
    if asked.side:
        side(*asked.side)
        return
    rows: dict[str, dict[str, float]] = {}
    print(f"{'shape':<14} {'stage':<6} {'calculated':>10} {'measured':>10}  (MiB)")
    with tempfile.TemporaryDirectory() as folder:
        for shape in SIDES:
            build("base", SHAPES[shape]).save(Path(folder) / shape)
            for stage in ("sft", "dpo"):
                found = {
                    way: run_side(__file__, "--side", str(Path(folder) / shape), stage, shape, way)
                    for way in ("calculated", "measured")
                }
                calculated, measured = (found[way]["peak"] for way in ("calculated", "measured"))
                rows[f"{shape} {stage}"] = {
                    "calculated": calculated,
                    "measured": measured,
                    "parameters": found["measured"]["parameters"],
                    "learned": found["measured"]["learned"],
                }
                off = calculated / measured - 1
                print(f"{shape:<14} {stage:<6} {calculated / 2**20:10.0f} {measured / 2**20:10.0f}  {off:+.1%}", flush=True)
    write_result(
        f"memory-{device_kind()}",
        {"settings": {name: {**one} for name, one in SIDES.items()}, "rows": {name: {**one} for name, one in rows.items()}},
    )


if __name__ == "__main__":
    main()
