"""What a run of many images would take, from what a run of few took: GPU hours, the expert's price, disk, wall time.

Reads the manifests of a finished run and the sizes of its folders; writes nothing. Every figure is a measured one of that run,
taken for proportional to the images asked about where the stage grows with them, and for the same where it does not.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stllava.errors import StllavaError
from stllava.records import Manifest
from stllava.store import MANIFEST, read_manifest

SHARED_OUT = frozenset({"ask", "answer", "evaluate"})
"""Stages whose chunks go to all GPUs."""
TRAINED = frozenset({"sft", "dpo", "distill"})
"""Stages that train, on all GPUs at the efficiency that the user names."""
GROWING = frozenset({"ask", "answer", "judge", "pair", "image-gain", "dpo", "distill", "final-data"})
"""Stages that grow with the images asked about; so does a last sft on all that was found right."""
GPUS = (1, 8, 64)
GIB = 1 << 30


@dataclass(frozen=True)
class Prices:
    """What the user pays, in US dollars."""

    gpu_hour: float
    """An hour of one GPU."""
    input_tokens: float
    """A million tokens of prompts to the expert."""
    output_tokens: float
    """A million tokens of its replies."""
    batch_share: float
    """What the batch API costs, as a share of that."""
    training_efficiency: float
    """What each GPU of several does in training, as a share of what one does alone."""


@dataclass(frozen=True)
class MeasuredStage:
    """A stage of the run, all rounds together."""

    name: str
    seconds: float
    record_bytes: int
    """Of its records, which grow with it."""
    other_bytes: int
    """Of all else, such as weights."""
    input_tokens: float
    output_tokens: float
    grows: bool
    """Whether it takes more where there are more images."""

    def scaled(self, factor: float) -> "MeasuredStage":
        """The stage of so many times the images."""
        if not self.grows:
            return self
        figures = (self.seconds, self.input_tokens, self.output_tokens)
        seconds, asked, said = (figure * factor for figure in figures)
        return MeasuredStage(self.name, seconds, int(self.record_bytes * factor), self.other_bytes, asked, said, grows=True)

    @property
    def disk_bytes(self) -> int:
        """All of its files."""
        return self.record_bytes + self.other_bytes

    def wall(self, gpus: int, *, efficiency: float) -> float:
        """Seconds on so many GPUs."""
        if self.name in SHARED_OUT:
            return self.seconds / gpus
        if self.name.removeprefix("final ") in TRAINED and gpus > 1:
            return self.seconds / (gpus * efficiency)
        return self.seconds


def measured(run: Path) -> tuple[int, str, list[MeasuredStage]]:
    """The images that a run asked about in a round, the device it ran on, and its stages."""
    if not run.is_dir():
        raise StllavaError(f"{run} is no folder", expected="a finished run", remedy="Name another one.")
    manifests = [(path.parent, read_manifest(path.parent)) for path in sorted(run.rglob(MANIFEST)) if path.parent != run]
    images = [int(made.measures["images"]) for _, made in manifests if made.stage == "ask" and "images" in made.measures]
    if not images:
        raise StllavaError(f"{run} asked about no image", expected="a finished run with a round", remedy="Name another run.")
    stages: dict[str, list[tuple[Path, Manifest]]] = {}
    for folder, made in manifests:
        final = made.stage == "sft" and folder.is_relative_to(run / "final")
        stages.setdefault("final sft" if final else made.stage, []).append((folder, made))
    devices = {made.device for _, made in manifests if made.stage in SHARED_OUT}
    return max(images), ", ".join(sorted(devices)), [_summed(name, rows) for name, rows in stages.items()]


def _summed(name: str, rows: Iterable[tuple[Path, Manifest]]) -> MeasuredStage:
    """All folders of one stage together."""
    rows = list(rows)
    files = [path for folder, _ in rows for path in folder.rglob("*") if path.is_file()]
    records, others = (
        sum(path.stat().st_size for path in files if (path.suffix == ".jsonl") is wanted) for wanted in (True, False)
    )
    seconds, asked, said = (
        sum(figures)
        for figures in zip(
            *(
                (made.seconds, made.measures.get("prompt_tokens", 0.0), made.measures.get("completion_tokens", 0.0))
                for _, made in rows
            ),
            strict=True,
        )
    )
    return MeasuredStage(name, seconds, records, others, asked, said, grows=name in GROWING or name == "final sft")


def plan(run: Path, counts: Sequence[int], prices: Prices) -> str:
    """The plan for so many images, as text."""
    images, device, stages = measured(run)
    lines = [f"Measured: {run}, {images} images a round, on {device}."]
    for count in counts:
        grown = [stage.scaled(count / images) for stage in stages]
        lines += ["", f"{count:,} images", f"{'stage':<14}{'GPU hours':>12}{'$':>12}{'disk GiB':>11}"]
        for stage in sorted(grown, key=lambda one: -one.seconds):
            hours = stage.seconds / 3600
            lines.append(f"{stage.name:<14}{hours:>12,.2f}{hours * prices.gpu_hour:>12,.2f}{stage.disk_bytes / GIB:>11,.2f}")
        total = sum(stage.seconds for stage in grown) / 3600
        disk = sum(stage.disk_bytes for stage in grown) / GIB
        lines.append(f"{'all':<14}{total:>12,.2f}{total * prices.gpu_hour:>12,.2f}{disk:>11,.2f}")
        asked, said = (sum(getattr(stage, name) for stage in grown) / 1e6 for name in ("input_tokens", "output_tokens"))
        paid = asked * prices.input_tokens + said * prices.output_tokens
        batch = f"by the batch API ${paid * prices.batch_share:,.2f}"
        lines.append(
            f"expert: {asked:,.1f} M tokens in, {said:,.1f} M out: ${paid:,.2f}, {batch}"
            if asked or said
            else "expert: none that counts tokens judged in this run, so its price is not known"
        )
        walls = [sum(stage.wall(gpus, efficiency=prices.training_efficiency) for stage in grown) / 3600 for gpus in GPUS]
        shown = ", ".join(f"{wall:,.2f} h on {gpus}" for wall, gpus in zip(walls, GPUS, strict=True))
        lines.append(f"wall time by number of GPUs: {shown}")
    return "\n".join([*lines, "", *assumptions(prices)])


def assumptions(prices: Prices) -> list[str]:
    """What the figures take for granted."""
    return [
        "Assumed:",
        f"- These grow in proportion to the images: {', '.join(sorted(GROWING))} and a final sft; the others stay.",
        "- Records take more disk in proportion; weights do not, and images lie where they lay.",
        "- As many rounds, questions and answers, as long texts, images as large, the model and device of that run.",
        f"- {', '.join(sorted(SHARED_OUT))} divide evenly over all GPUs (shards or execution.workers).",
        f"- Each of several GPUs trains at {prices.training_efficiency:.0%} of one alone.",
        "- Judging, pairs and data run once, beside idle GPUs that are paid for; no time is lost to queues or restarts.",
        "- One worker computed the run, on one GPU: its seconds count as that GPU's.",
        "- A stage of the run that was resumed counts the seconds after its last start alone: measure on a run that was not.",
        f"- A GPU costs ${prices.gpu_hour:g} an hour; the expert ${prices.input_tokens:g} a million tokens in and "
        f"${prices.output_tokens:g} out, {prices.batch_share:.0%} of that by the batch API.",
    ]
