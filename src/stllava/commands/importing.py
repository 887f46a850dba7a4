"""`stllava import`: others' data in this product's form."""

from collections import Counter
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from stllava.commands.telling import tell
from stllava.config import IntakeOptions
from stllava.dropped import Dropped
from stllava.store import Existing, nothing_left
from stllava.text import counted, show

SALT = Path("~/.stllava/salt").expanduser()
"""Where a user's salt lies unless told otherwise."""


def benchmark(
    name: Positional[str],
    source: Positional[str],
    *,
    to: Path,
    language: Literal["en", "zh", "both"] = "en",
    splits: tuple[str, ...] | None = None,
    allow_changed: bool = False,
    existing: Existing = "resume",
) -> None:
    """Bring a published benchmark, or your own file, into the form that evaluate reads: one JSONL of samples a split.

    Args:
        name: vqa-rad, slake, pathvqa, pmc-vqa or omnimedvqa; any other name is that of your own file.
        source: Its folder, hub:owner/name where there is a network, or your own file: CSV, TSV or JSON.
        to: Folder for the samples.
        language: Which of SLAKE's questions.
        splits: Which splits; all that are there when not named.
        allow_changed: Take files that differ from the published ones; the notes say so.
        existing: What to do with output that is there: resume it, replace it, or end in an error.
    """
    from stllava.data.benchmarks import import_benchmark

    made = import_benchmark(
        name, source, to=to, language=language, splits=splits, allow_changed=allow_changed, existing=existing
    )
    for split, rows in made.splits.items():
        kinds = Counter(row.kind for row in rows)
        images = len({row.image for row in rows})
        sizes = f"{counted(len(rows), 'question')} ({kinds['open']} open, {kinds['closed']} closed)"
        show(f"{split}: {sizes} on {counted(images, 'image')}")
    show(*made.notes, f"Image root: {made.root}")


def images(
    source: Positional[Path],
    *,
    options: IntakeOptions,
    to: Path,
    salt: Path = SALT,
    refused: Path | None = None,
    existing: Existing = "resume",
    shard: str | None = None,
) -> None:
    """Turn a folder of DICOM, NIfTI, TIFF and ordinary pictures into an image set without identities.

    Args:
        source: The folder; files are told by their content, whatever their names.
        options: What is read of every file, what is written, and which pictures are left out.
        to: Folder for the image set, outside of the source.
        salt: Your secret, made when there is none: with the same salt the same patient gets the same id. Lists of which
            file became which number are written beside it; keep all that apart from the set.
        refused: Pictures that stay out since a reader found text in them: the burned.jsonl that judge-check wrote of an earlier
            import of the same files with the same salt.
        existing: What to do with output that is there: resume it, replace it, or end in an error.
        shard: i/n: do the i-th of n equal parts of the work, in a folder of its own below `to`; `stllava gather` then makes the
            whole of them.
    """
    from stllava.intake.pages.review import page_name
    from stllava.intake.run import import_images

    manifest = import_images(options, source=source, to=to, salt=salt, refused=refused, existing=existing, shard=shard)
    tell(manifest)
    if shard is not None:
        return
    if not manifest.counts_out:
        raise nothing_left(
            f"the {manifest.counts_in} files of {source}",
            Dropped(manifest.dropped),
            remedy=f"Look at the list beside the salt ({salt}.….details.jsonl), which says what is wrong with each.",
        )
    show(f"What was changed, for you to confirm: {to / page_name(1)}")


def conversations(
    source: Positional[Path], *, images: Path, to: Path, max_bad: float = 0.5, existing: Existing = "resume"
) -> None:
    """Bring instruction data, such as LLaVA-Med's, into the form that sft reads: conversations.jsonl and missing.jsonl.

    Args:
        source: A file as LLaVA, ms-swift, LLaMA-Factory and others write it: JSON, JSON lines or a table (docs/data.md).
        images: What its image paths are relative to.
        to: Folder for the conversations.
        max_bad: Share of rows that may be left out.
        existing: What to do with output that is there: resume it, replace it, or end in an error.
    """
    from stllava.data.exchange import import_conversations

    tell(import_conversations(source, images=images, to=to, max_bad=max_bad, existing=existing))
    _tell_missing(to)


def preferences(
    source: Positional[Path], *, images: Path, to: Path, max_bad: float = 0.5, existing: Existing = "resume"
) -> None:
    """Bring pairs of answers, such as STLLaVA-Med's, into the form that dpo reads: preferences.jsonl and missing.jsonl.

    Args:
        source: JSON, JSON lines or a table with the columns of STLLaVA-Med, LLaVA-RLHF, POVID, RLAIF-V, RLHF-V, VLFeedback,
            ms-swift, LLaMA-Factory or TRL (docs/data.md).
        images: What its image paths are relative to.
        to: Folder for the pairs.
        max_bad: Share of rows that may be left out.
        existing: What to do with output that is there: resume it, replace it, or end in an error.
    """
    from stllava.data.exchange import import_preferences

    tell(import_preferences(source, images=images, to=to, max_bad=max_bad, existing=existing))
    _tell_missing(to)


def _tell_missing(to: Path) -> None:
    path = to / "missing.jsonl"
    if path.stat().st_size:
        show(f"Images that cannot be used, and why: {path}")


def model(
    source: Positional[Path],
    *,
    to: Path,
    base: Path | None = None,
    vision: Path | None = None,
    vision_adapter: Path | None = None,
    projector: Path | None = None,
    existing: Existing = "resume",
) -> None:
    """Bring a checkpoint of LLaVA, LLaVA-Med, SQ-LLaVA or STLLaVA-Med in its old layout to a transformers folder of today.

    Args:
        source: The checkpoint: whole, or LoRA adapters, or the language model alone.
        to: The new folder.
        base: The language model that LoRA adapters or a lone projector belong to.
        vision: A CLIP folder, where the checkpoint does not hold its vision tower.
        vision_adapter: The vision tower's LoRA adapters.
        projector: The projector's file or folder, where it lies apart.
        existing: What to do with output that is there: resume it, replace it, or end in an error.
    """
    from stllava.model.original import import_checkpoint

    tell(
        import_checkpoint(
            source,
            to=to,
            base=base,
            vision=vision,
            vision_adapter=vision_adapter,
            projector=projector,
            existing=existing,
        )
    )


def votes(
    results: Positional[Path],
    *,
    review: Path,
    round: int | None = None,  # noqa: A002 - the flag is --round
) -> None:
    """Add what people said in Label Studio to the votes on verdicts, a benchmark's answers, questions or imported pictures.

    Args:
        results: Label Studio's export in the form JSON.
        review: The run, the folder of a round, of an evaluation or of ask, or the imported set, whose tasks
            `stllava convert review` wrote.
        round: Number of the run's round; the last one that was judged when not named.
    """
    from stllava.review.label_studio_results import by_cause, from_label_studio
    from stllava.review.reviewed import find_reviewed

    reviewed = find_reviewed(review, round)
    found = from_label_studio(reviewed.review, results, reviewed.kind)
    show(*(f"{reader}: {counted(count, 'vote')}" for reader, count in found.votes.items()))
    if found.changed:
        show(f"  changed since: {counted(found.changed, 'vote')}, taken back and given anew")
    if found.left_out:
        show(f"  left out: {by_cause(found.left_out)}")
