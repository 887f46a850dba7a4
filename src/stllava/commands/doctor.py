"""`stllava doctor`: what is installed, which device there is, and what of a model fits on it."""

import re
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from packaging.requirements import Requirement
from tyro.conf import arg

from stllava.commands.installed import versions
from stllava.config import AnswerOptions, DpoOptions, GenerationOptions, LearningLoad, SftOptions
from stllava.errors import StllavaError
from stllava.recipe import load_recipe
from stllava.text import aligned, show

NOT_OF_USERS = frozenset({"all", "dev", "docs", "weights"})
"""Extras that are made of others, or of what stllava is built and tested with."""
GIB = 2**30
SFT, DPO, ANSWER, LOAD = SftOptions(), DpoOptions(), AnswerOptions(), LearningLoad()


def doctor(
    *,
    recipe: Path | None = None,
    model: str | None = None,
    sft: SftOptions = SFT,
    dpo: DpoOptions = DPO,
    answer: GenerationOptions = ANSWER,
    load: LearningLoad = LOAD,
    measure: Annotated[bool, arg(name="try")] = False,
) -> None:
    """Show what is installed and which device there is; with a model, how much memory sft, dpo and answering take.

    The memory is calculated: an optimizer step runs on tensors that have shapes and no values, so no weights are read, and
    a model of any size takes seconds.

    Args:
        recipe: Take the model and the options of its training from this recipe.
        model: Folder or hub name of the model; of the hub only configuration and processor are fetched.
        sft: Options of stage 1: batch size, adapters, tokens of a forward.
        dpo: Options of stage 2.
        answer: Options of answering; its cache counts.
        load: What there is to learn about an image.
        measure: Also load the model, take two real steps of sft and of dpo, and show what memory they took.
    """
    show(versions(), machine(), "", *extras())
    if recipe is not None:
        if model is not None or (sft, dpo, answer) != (SFT, DPO, ANSWER):
            raise StllavaError(
                "--recipe beside a model or options of stages",
                expected="one place that says them",
                remedy="Change the recipe, or leave --recipe out.",
            )
        options = load_recipe(recipe)
        model, sft, dpo, answer = options.model, options.sft, options.dpo, options.answer
        if options.compose is not None or model == "small":
            show("", f"{recipe} builds its model itself; name it once it is built: --model runs/NAME/model")
            return
    if model is not None:
        show("", *memory_table(model, sft=sft, dpo=dpo, answer=answer, load=load, measure=measure))


def machine() -> str:
    """The main memory and the room on the disk that the current folder is on."""
    facts = {}
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            facts[name] = int(value.split()[0]) * 1024
    memory = (
        f"{facts['MemTotal'] / GIB:.0f} GiB, {facts['MemAvailable'] / GIB:.0f} free" if facts else "not told by this system"
    )
    return f"main memory {memory}\ndisk {shutil.disk_usage(Path.cwd()).free / GIB:.0f} GiB free in {Path.cwd()}"


def extras() -> list[str]:
    """Every extra with whether all its packages are installed, as lines."""
    needed: dict[str, list[str]] = {}
    for text in requires("stllava") or ():
        requirement = Requirement(text)
        named = re.search(r"""extra == ["']([\w-]+)["']""", str(requirement.marker or ""))
        if named and named[1] not in NOT_OF_USERS and requirement.marker and requirement.marker.evaluate({"extra": named[1]}):
            needed.setdefault(named[1], []).append(requirement.name)
    rows = []
    for extra, packages in sorted(needed.items()):
        missing = [name for name in packages if not _is_installed(name)]
        rows.append((extra, f"without {', '.join(missing)}: pip install 'stllava[{extra}]'" if missing else "installed"))
    return aligned([("extra", ""), *rows])


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def memory_table(
    model: str, *, sft: SftOptions, dpo: DpoOptions, answer: GenerationOptions, load: LearningLoad, measure: bool
) -> list[str]:
    """What trainings of a model and its answering take, as lines."""
    from stllava.training.memory import measure_training, memory_of_device, predict_generation, predict_training

    rows: list[tuple[str, ...]] = [("GiB", "weights", "gradients", "optimizer", "activations", "peak", "of", "")]
    room = memory_of_device()
    lines: list[str] = []
    for name, options in (("sft", sft), ("dpo", dpo)):
        with TemporaryDirectory() as work:
            found = predict_training(model, options, load, Path(work))
        parts = (found.weights, found.gradients, found.optimizer, found.activations, found.peak)
        rows.append((name, *(f"{one / GIB:.2f}" for one in parts), f"{room / GIB:.0f}", _verdict(found.peak, room)))
        if not lines:
            lines.append(f"{model}: {found.parameters:,} parameters")
        lines.append(f"  {name} learns {found.learned:,}, {options.max_tokens_per_forward} tokens a forward at most")
        if measure:
            with TemporaryDirectory() as work:
                took = measure_training(model, options, load, Path(work)).peak
            rows.append(("  tried", "", "", "", "", f"{took / GIB:.2f}", "", f"calculated {found.peak / took - 1:+.0%}"))
    speaking = predict_generation(model, answer)
    rows.append(("answer", "", "", "", "", f"{speaking / GIB:.2f}", f"{room / GIB:.0f}", _verdict(speaking, room)))
    hint = "Less: --sft.checkpoint-activations, fewer --sft.max-tokens-per-forward, LoRA, --sft.lora.quantise 4bit"
    return [*lines, *aligned(rows, numbers=True), *([hint] if any("not fit" in row[-1] for row in rows) else [])]


def _verdict(peak: int, room: int) -> str:
    return "fits" if peak < 0.9 * room else "fits barely" if peak < room else "does not fit"
