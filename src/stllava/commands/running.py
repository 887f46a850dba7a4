"""`stllava run` and `demo`: the whole loop and its table; `status` and `gather`: how far it is, and what shards come to."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from stllava.progress import clock
from stllava.recipe import RECIPES, RunOptions, load_recipe
from stllava.records import Outcome, Score
from stllava.report.wording import CHIEF
from stllava.rundir import RunDir
from stllava.stages.results import StageResult
from stllava.store import SHARDS, Existing, Shard
from stllava.text import aligned, show

if TYPE_CHECKING:
    from stllava.review.watch import StageView


def run_recipe(options: RunOptions, *, to: Path | None = None, existing: Existing = "resume") -> None:
    """Run the whole loop of a recipe: `stllava run my-recipe.yaml`; every key of a recipe is also a flag, which overrides it.

    Args:
        options: What the recipe says.
        to: The run directory; runs/NAME-SEED when not given.
        existing: What to do with a run directory that is there: resume it, replace it, or end in an error.
    """
    if options.model == "small" and options.compose is None:
        show("model: small, a LLaVA of about a million parameters, built from nothing; name another with model or compose")
    start(options, to=to, existing=existing)


def demo(
    *,
    seed: int = 0,
    preset: Literal["anchored", "plain"] = "anchored",
    to: Path | None = None,
    existing: Existing = "resume",
) -> None:
    """Run the whole loop on synthetic phantoms with an expert that knows their truth.

    Args:
        seed: Changes data, model and sampling.
        preset: anchored, the default recipe; plain, the paper's.
        to: The run directory; runs/NAME-SEED when not given.
        existing: What to do with a run directory that is there: resume it, replace it, or end in an error.
    """
    recipe = {"anchored": "phantom.yaml", "plain": "phantom-plain.yaml"}[preset]
    start(load_recipe(RECIPES / recipe, overrides={"seed": seed}), to=to, existing=existing)


def gather(to: Positional[Path], *, shards: tuple[Path, ...] = ()) -> StageResult:
    """Make the whole of a stage whose shards (`--shard i/n`) are all done; give it where the shards' commands were given.

    Args:
        to: Folder of the stage, as its shards were given it.
        shards: Folders of the shards, where they do not lie in that folder.
    """
    from stllava.gathering import gather as gather_shards

    return StageResult(to, gather_shards(to, shards=shards))


def status(run: Positional[Path]) -> None:
    """Say how far a run is: done, at work or stopped, stage by stage; `stllava watch` shows more, on a page.

    Args:
        run: The run directory, of a run that is done, at work, or was stopped; or the folder of a stage in shards.
    """
    from stllava.review.watch import RunReader

    if (run / SHARDS).is_dir():
        show(*_told_of_shards(run))
        return
    view = RunReader(run).read()
    if view.at_work:
        told = "is at work."
    elif view.outcome is not None and view.current is None:
        told = f"is done: {RunDir(run).page}"
    else:
        told = "is stopped. The command that began it goes on where it was."
    show(*_stage_rows("stage", view.stages), "", *view.warnings, f"{run} {told}")


def _told_of_shards(stage: Path) -> list[str]:
    """How far the shards of a stage are, and what is to be done next."""
    from stllava.review.watch import shards_of

    shards = shards_of(stage)
    begun = {view.name for view in shards}
    count = max((Shard.parse(name).count for name in begun), default=0)
    missing = [name for number in range(1, count + 1) if (name := str(Shard(number, count))) not in begun]
    done = len({view.name for view in shards if view.status == "done"})
    lines = [*_stage_rows("shard", shards), ""]
    if count and done == count == len(shards):
        return [*lines, f"All {count} shards of {stage} are done: stllava gather {stage}"]
    lines.append(f"{done} of {count or '?'} shards of {stage} are done. A command that was stopped goes on where it was.")
    twice = [name for name in sorted(begun) if sum(view.name == name for view in shards) > 1]
    if twice:
        lines.append(f"There twice, where gather takes one: {', '.join(twice)}")
    return [*lines, f"Not begun: {', '.join(missing)}"] if missing else lines


def _stage_rows(first: str, stages: "Sequence[StageView]") -> list[str]:
    """A table of stages."""
    rows = [(first, "state", "done", "took or left")]
    for stage in stages:
        if stage.manifest is not None:
            done, spent = f"{stage.manifest.counts_in} in, {stage.manifest.counts_out} out", clock(stage.manifest.seconds)
        else:
            done = f"{stage.done} of {stage.items or '?'} {stage.unit}".rstrip()
            spent = "" if stage.seconds_left is None else f"{clock(stage.seconds_left)} left"
        rows.append((stage.name, stage.status, done, spent))
    return aligned(rows)


def start(options: RunOptions, *, to: Path | None, existing: Existing) -> None:
    """Run the loop and print its table."""
    from stllava.pipeline import run

    slug = re.sub(r"[^a-z0-9]+", "-", options.name.lower()).strip("-")
    folder = to if to is not None else Path("runs") / f"{slug}-{options.seed}"
    outcome = run(options, to=folder, existing=existing)
    show(table(outcome))
    show(f"\n{RunDir(folder).page}")


def table(outcome: Outcome) -> str:
    """Policies × chief metrics of every benchmark with 95 % intervals in percent, the gains over sft, and what was decided.

    The other metrics stand in the report.
    """
    lines = [outcome.name]
    for benchmark in dict.fromkeys(score.benchmark for score in outcome.scores):
        cells: dict[tuple[str, str], Score] = {
            (score.policy, score.metric): score
            for score in outcome.scores
            if score.benchmark == benchmark and score.metric in CHIEF
        }
        metrics = list(dict.fromkeys(metric for _, metric in cells))
        sizes = {metric: next(score.n for (_, name), score in cells.items() if name == metric) for metric in metrics}
        rows = [[benchmark, *(f"{metric} (n={sizes[metric]})" for metric in metrics)]]
        for policy in dict.fromkeys(name for name, _ in cells):
            mark = " *" if policy == outcome.best else ""
            rows.append([policy + mark, *(_cell(cells.get((policy, metric))) for metric in metrics)])
        lines += ["", *aligned(rows, numbers=True)]
    for gain in outcome.differences:
        if gain.policy == outcome.best and gain.metric in CHIEF:
            points = f"{100 * gain.value:+.1f} points [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
            lines += (
                ["", f"{gain.policy} against {gain.against} on {gain.benchmark}:"] if gain.metric == "closed_accuracy" else []
            )
            lines.append(f"  {gain.metric:<22} {points}")
    return "\n".join([*lines, "", *outcome.sentences, *outcome.notes])


def _cell(score: Score | None) -> str:
    return "" if score is None else f"{100 * score.value:.1f} [{100 * score.low:.1f}, {100 * score.high:.1f}]"
