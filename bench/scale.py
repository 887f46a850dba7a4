"""What an image costs as images, questions and answers grow, and whether memory stays flat in the number of images.

    python bench/scale.py
    python bench/scale.py --plan runs/mine --images 10000 15000000 --gpu-hour 2.5 --input-price 2.5 --output-price 10

For each size a process of its own answers every question about every image K times (`answer`'s way), makes a pair of
the first two texts, and learns from all pairs for one epoch (`dpo`), with a tiny LLaVA of 64 image tokens: the cost of
the machinery more than of the model. Reported are seconds an image for answering and for learning, and the peak memory
added after loading. Three series: images 100 to 3,000 (5 questions, 2 answers), questions 1 to 20 and K 2 to 16 (200
images).

Writes bench/results/scale-DEVICE.json and prints a table. With `--plan` nothing is measured and nothing written: from the
manifests of a finished run and the user's prices it prints what as many images as named would take (`shared/plan.py`).
"""

import argparse
import json
import random
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import JsonValue

from dpo import Setting as DpoSetting
from dpo import options
from shared.llava import SHAPES, build, noise, text
from shared.measure import Figures, device_kind, finish_device, forget_peak, peak_memory, report_side, run_side, write_result
from shared.plan import Prices, plan
from stllava.errors import StllavaError

TOKENS = 8


@dataclass(frozen=True)
class Size:
    """How much there is."""

    images: int = 200
    questions: int = 5
    answers: int = 2


SERIES = {
    "images": [Size(images=count) for count in (100, 300, 1000, 3000)],
    "questions": [Size(questions=count) for count in (1, 2, 5, 10, 20)],
    "answers": [Size(answers=count) for count in (2, 4, 8, 16)],
}


def side(size: Size, model: str) -> Figures:
    """Answer and learn."""
    from stllava.config import SamplingOptions
    from stllava.generation.local_sampler import LocalSampler
    from stllava.generation.sampler import Prompt
    from stllava.records import Lineage, Message, Preference
    from stllava.training.preference_dataset import PreferenceDataset
    from stllava.training.preference_steps import PreferenceSteps, fit_preferences
    from stllava.training.references import measure_reference

    shape = SHAPES["small-image"]
    policy = build(model, shape)
    draw = random.Random(3)
    with tempfile.TemporaryDirectory(prefix="stllava-bench-") as folder:
        work = Path(folder)
        names = noise(work / "images", count=size.images, size=shape.image_size)
        asked = [
            (name, Message(role="user", content=text(policy.tokenizer, TOKENS, draw)))
            for name in names
            for _ in range(size.questions)
        ]
        before = forget_peak()
        began = time.perf_counter()
        sampler = LocalSampler(policy, root=work / "images", tokens=32768)
        how = SamplingOptions(temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=TOKENS)
        prompts = [Prompt((turn,), (name,)) for name, turn in asked]
        said = [
            texts
            for start in range(0, len(prompts), 128)
            for texts in sampler.complete(prompts[start : start + 128], k=size.answers, sampling=how, seed=0)
        ]
        finish_device()
        answered = time.perf_counter()
        pairs = [
            Preference(
                id=str(number),
                images=(name,),
                prompt=(turn,),
                chosen=texts[0].text + " bo",
                rejected=texts[1].text + " ca",
                margin=1.0,
                lineage=Lineage(question_id=str(number), answers_id=str(number), judgment_id=str(number)),
            )
            for number, ((name, turn), texts) in enumerate(zip(asked, said, strict=True))
        ]
        dpo = options(DpoSetting("small-image", model, size.images, 8, False))
        planned = time.perf_counter()
        dataset = PreferenceDataset(policy, pairs, images=work / "images", max_tokens=dpo.max_tokens_per_forward)
        references = measure_reference(dataset, policy, weights="")
        fit_preferences(PreferenceSteps(policy, dataset, references, None, dpo, 0), work / "dpo")
        finish_device()
        learned = time.perf_counter()
    return {
        "answering_seconds": answered - began,
        "learning_seconds": learned - planned,
        "added_bytes": float(peak_memory() - before),
    }


def main() -> None:
    """Measure all sizes, or one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("tiny", "base"), default="tiny")
    parser.add_argument("--series", choices=SERIES, nargs="+", default=list(SERIES))
    parser.add_argument("--divide", type=int, default=1, help="divide the numbers of images: a quick look")
    parser.add_argument("--first", type=int, help="only so many sizes of a series: a quick look")
    parser.add_argument("--plan", type=Path, help="a finished run: print what more images would take, by its rates")
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 15_000_000], help="with --plan: numbers of images")
    parser.add_argument("--gpu-hour", type=float, default=0.0, help="with --plan: dollars an hour of a GPU")
    parser.add_argument("--input-price", type=float, default=0.0, help="with --plan: dollars a million tokens to the expert")
    parser.add_argument("--output-price", type=float, default=0.0, help="with --plan: dollars a million tokens of its replies")
    parser.add_argument("--batch-share", type=float, default=0.5, help="with --plan: the batch API's share of these prices")
    parser.add_argument("--training-efficiency", type=float, default=0.9, help="with --plan: of each of several GPUs")
    parser.add_argument("--size", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.plan is not None:
        prices = Prices(asked.gpu_hour, asked.input_price, asked.output_price, asked.batch_share, asked.training_efficiency)
        try:
            print(plan(asked.plan, asked.images, prices))
        except StllavaError as error:
            sys.exit(str(error))
        return
    if asked.size is not None:
        report_side(side(Size(**json.loads(asked.size)), asked.model))
        return
    found: list[JsonValue] = []
    print(f"{'images':>8}{'questions':>11}{'answers':>9}{'answering ms/image':>20}{'learning ms/image':>19}{'added MB':>10}")
    for name in asked.series:
        for size in SERIES[name][: asked.first]:
            size = replace(size, images=max(1, size.images // asked.divide))
            run = run_side(__file__, "--size", json.dumps(asdict(size)), "--model", asked.model)
            a, b = (run[key] / size.images * 1000 for key in ("answering_seconds", "learning_seconds"))
            print(f"{size.images:>8}{size.questions:>11}{size.answers:>9}{a:>20.1f}{b:>19.1f}{run['added_bytes'] / 1e6:>10.0f}")
            found.append({"series": name, **asdict(size), **run})
    print(write_result(f"scale-{device_kind()}", {"bench": "scale", "model": asked.model, "runs": found}))


if __name__ == "__main__":
    main()
