"""What a command prints of a finished stage: counts, figures and notes; of an evaluation, its scores with intervals."""

from collections.abc import Collection, Sequence

from stllava.progress import clock
from stllava.records import Manifest, Score
from stllava.stages.results import StageResult
from stllava.store import read_records
from stllava.text import aligned, show


def tell(manifest: Manifest, *, leave_out: Collection[str] = ()) -> None:
    """Print what went into a stage and came out, and what its reader must know, but for the figures to `leave_out`."""
    dropped = ", ".join(f"{count} {cause}" for cause, count in manifest.dropped.items())
    show(f"{manifest.stage}: {manifest.counts_in} in, {manifest.counts_out} out in {clock(manifest.seconds)}")
    if dropped:
        show(f"  left out: {dropped}")
    for name, value in manifest.measures.items():
        if name not in leave_out:
            show(f"  {name}: {value:.1%}" if name.endswith("_share") else f"  {name}: {value:.4g}")
    for note in manifest.notes:
        show(f"  {note}")


def tell_result(done: StageResult) -> None:
    """Print what a stage came to: of an evaluation its scores with their intervals, of any other stage its figures.

    A shard of an evaluation has no scores yet.
    """
    scores = read_records(done.folder, "scores", Score) if "scores.jsonl" in done.manifest.outputs else []
    tell(done.manifest, leave_out={score.metric for score in scores})
    if scores:
        show("", *score_table(scores))


def score_table(scores: Sequence[Score]) -> list[str]:
    """Every score in percent with its interval and its rule, as lines."""
    rows = [("metric", "%", "95 % interval", "n", "unread", "rule")]
    rows += [
        (
            one.metric,
            f"{100 * one.value:.1f}",
            f"[{100 * one.low:.1f}, {100 * one.high:.1f}]",
            str(one.n),
            str(one.abstained or ""),
            one.rule,
        )
        for one in scores
    ]
    return aligned(rows, numbers=True)
