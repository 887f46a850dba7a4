"""Whether a step of sft and one of dpo on a 7B model fit into a GPU, and how long they take.

    python bench/fits.py --quantise 4bit --checkpoint
    python bench/fits.py --tiny               # a tiny model, on any machine: that it runs

The model has LLaVA-1.5-7B's shape (CLIP ViT-L/14-336, Vicuna-7B) and random weights; it learns as recipes/stllava-med-7b.yaml
says: LoRA of rank 128 and 32, the projector in full. A stage takes `--steps` optimizer steps of `--images` images, each
with 5 questions, in forwards of at most `--tokens` tokens: the memory is that of a forward, however many make a step. It
goes through `stllava.training.trainer.fit`, so that autocast, clipping and AdamW are those of a run. Memory is the most that
was allocated from the first step on, the step's time the last one's; a process of its own measures each stage.

A model is built whole and then put in 4 bits, as one that is loaded is (`whole_bytes`, the most that was held until
then). Writes bench/results/fits-PRECISION-DEVICE.json and prints a table.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shared.llava import ANSWER_TOKENS, QUESTION_TOKENS, SHAPES, build, noise, preferences
from shared.measure import Figures, device_kind, finish_device, forget_peak, peak_memory, report_side, run_side, write_result

if TYPE_CHECKING:
    from stllava.config import DpoOptions, SftOptions
    from stllava.model.load import Policy
    from stllava.records import Conversation, Preference

STAGES = ("sft", "dpo")
LIMITS = {"no": 40, "4bit": 16}
"""Gigabytes into which a step must fit."""


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    tiny: bool
    quantise: str
    checkpoint: bool
    images: int
    """Images an optimizer step."""
    tokens: int
    steps: int


class Clock:
    """The times at which steps end."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, step: int, figures: Mapping[str, float]) -> None:
        finish_device()
        self.times.append(time.perf_counter())


def options(setting: Setting) -> "tuple[SftOptions, DpoOptions]":
    """Both stages' options in the paper's recipe, with the batch that is measured."""
    from stllava.recipe import RECIPES, load_recipe

    for name in ("MODEL", "DATA", "EXPERT_URL", "EXPERT_MODEL"):
        os.environ.setdefault(f"STLLAVA_{name}", "of no matter here")
    paper = load_recipe(RECIPES / "stllava-med-7b.yaml")
    changes: dict[str, object] = {
        "lora": paper.sft.lora.model_copy(update={"quantise": "4bit" if setting.quantise == "4bit" else "none"}),
        "batch_size": setting.images,
        "max_tokens_per_forward": setting.tokens,
        "epochs": 1.0,
        "checkpoint_activations": setting.checkpoint,
        "save_steps": 0,
    }
    return paper.sft.model_copy(update=changes), paper.dpo.model_copy(update=changes)


def conversations(pairs: "list[Preference]") -> "list[Conversation]":
    """Of each image a conversation of its questions and chosen answers."""
    from stllava.records import Conversation, Message

    turns: dict[tuple[str, ...], list[Message]] = {}
    for pair in pairs:
        turns.setdefault(pair.images, []).extend([*pair.prompt, Message(role="assistant", content=pair.chosen)])
    return [Conversation(id=images[0], images=images, messages=tuple(said)) for images, said in turns.items()]


def learn(stage: str, policy: "Policy", pairs: "list[Preference]", setting: Setting, work: Path) -> Clock:
    """The stage's steps, through the code of a run; adapters are left beside the weights, which come from no folder."""
    from stllava.training.preference_dataset import PreferenceDataset
    from stllava.training.preference_steps import PreferenceSteps, fit_preferences
    from stllava.training.references import measure_reference
    from stllava.training.sft_dataset import SftDataset, fit_conversations

    clock, (sft, dpo) = Clock(), options(setting)
    if stage == "sft":
        most = min(policy.context, setting.tokens)
        lessons = SftDataset(
            policy, conversations(pairs), images=work / "images", self_question_ratio=0.5, seed=0, max_tokens=most
        )
        fit_conversations(lessons, sft, work / stage, watch=clock, merge=False)
        return clock
    pairs_of_images = PreferenceDataset(policy, pairs, images=work / "images", max_tokens=dpo.max_tokens_per_forward)
    references = measure_reference(pairs_of_images, policy, weights="as built")
    fit_preferences(PreferenceSteps(policy, pairs_of_images, references, None, dpo, 0), work / stage, watch=clock, merge=False)
    return clock


def side(stage: str, setting: Setting) -> Figures:
    """Build the model, put it in 4 bits where asked, and measure the stage."""
    from stllava.model.adapters import quantise

    shape = SHAPES["small-image" if setting.tiny else "llava"]
    policy = build("tiny" if setting.tiny else "7b", shape)
    if setting.quantise == "4bit":
        quantise(policy.model, options(setting)[0])
    whole = peak_memory()
    with tempfile.TemporaryDirectory(prefix="stllava-bench-") as folder:
        work = Path(folder)
        names = noise(work / "images", count=setting.images * setting.steps, size=shape.image_size)
        pairs = preferences(shape, names, policy.tokenizer)
        weights = forget_peak()
        clock = learn(stage, policy, pairs, setting, work)
    return {
        "whole_bytes": float(whole),
        "weights_bytes": float(weights),
        "peak_bytes": float(peak_memory()),
        "step_seconds": clock.times[-1] - clock.times[-2],
        "steps": float(len(clock.times)),
    }


def main() -> None:
    """Measure both stages, or one in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quantise", choices=("no", "4bit"), default="no")
    parser.add_argument("--checkpoint", action="store_true", help="compute activations again in the backward pass")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: only that it runs")
    parser.add_argument("--images", type=int, default=2, help="images an optimizer step")
    parser.add_argument("--tokens", type=int, default=4096, help="most tokens of a forward")
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps, two or more: AdamW's state is made in the first")
    parser.add_argument("--side", choices=STAGES, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    setting = Setting(asked.tiny, asked.quantise, asked.checkpoint, asked.images, asked.tokens, asked.steps)
    if asked.steps < 2:
        parser.error(f"--steps {asked.steps}: two are needed to time one")
    if asked.side is not None:
        report_side(side(asked.side, setting))
        return
    found = {stage: run_side(__file__, *sys.argv[1:], "--side", stage) for stage in STAGES}
    limit = LIMITS[setting.quantise]
    print(f"{'':<6}{'weights GB':>12}{'peak GB':>10}{'step s':>9}   at most {limit} GB")
    for stage, figures in found.items():
        fits = "fits" if figures["peak_bytes"] <= limit * 1e9 else "does not fit"
        sizes = f"{figures['weights_bytes'] / 1e9:>12.2f}{figures['peak_bytes'] / 1e9:>10.2f}"
        print(f"{stage:<6}{sizes}{figures['step_seconds']:>9.2f}   {fits}")
    precision = "4bit" if setting.quantise == "4bit" else "bf16" if device_kind() == "cuda" else "float32"
    name = "-".join(["fits", *(["tiny"] if setting.tiny else []), precision, device_kind()])
    result = {
        "bench": "fits",
        "setting": asdict(setting),
        "question_tokens": QUESTION_TOKENS,
        "answer_tokens": ANSWER_TOKENS,
        "limit_bytes": limit * 1e9,
        "stages": {stage: dict(figures) for stage, figures in found.items()},
    }
    print(write_result(name, json.loads(json.dumps(result))))


if __name__ == "__main__":
    main()
