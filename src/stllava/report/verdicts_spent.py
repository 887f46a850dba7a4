"""What verdicts bought: every policy's gain over stage 1 beside the verdicts, and dollars, that had been spent until then."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from stllava.records import Difference, Manifest, asked_about
from stllava.report import wording
from stllava.report.charts import Line, line_chart
from stllava.report.run_files import RunFiles
from stllava.rundir import FINAL, SFT


@dataclass(frozen=True)
class Spent:
    """One policy and what it took."""

    policy: str
    verdicts: int
    """Questions that an expert was asked about until this policy was made: in an audit and in all rounds."""
    cost: float
    """US dollars."""
    gains: tuple[Difference | None, ...]
    """Over stage 1, by chief metric."""


@dataclass(frozen=True)
class VerdictsSpent:
    """The table of a benchmark and its curves."""

    benchmark: str
    metrics: tuple[str, ...]
    rows: tuple[Spent, ...]
    charts: tuple[tuple[str, Markup], ...]
    """A curve for each metric: its score over verdicts."""


def verdicts_spent(run: RunFiles, benchmark: str) -> VerdictsSpent | None:
    """What verdicts bought on a benchmark; None where no round was judged."""
    total, cost = (0, 0.0) if run.audit is None else spent_on(run.audit, 0, 0.0)
    spent: dict[str, tuple[int, float]] = {SFT: (0, 0.0)}
    for part in run.rounds:
        if "judge" in part.manifests:
            total, cost = spent_on(part.manifests["judge"], total, cost)
        spent[part.name] = (total, cost)
    spent[FINAL] = (total, cost)
    if not total:
        return None
    scores = [score for score in run.outcome.scores if score.benchmark == benchmark]
    metrics = [metric for metric in wording.CHIEF if any(score.metric == metric for score in scores)]
    gains = {(row.policy, row.metric): row for row in run.outcome.differences if row.benchmark == benchmark}
    rows = tuple(
        Spent(policy, *spent[policy], tuple(gains.get((policy, metric)) for metric in metrics))
        for policy in run.outcome.policies
    )
    charts = []
    for metric in metrics:
        found = {score.policy: score.value for score in scores if score.metric == metric}
        points = _rising([(float(row.verdicts), found[row.policy]) for row in rows if row.policy in found])
        label = wording.metric_label(metric)
        title = f"{label} on {benchmark}, in percent, over the number of verdicts"
        charts.append((label, line_chart(title, [Line(label, points, 1.0)], share=True, unit="verdicts")))
    return VerdictsSpent(benchmark, tuple(metrics), rows, tuple(charts))


def spent_on(judged: Manifest, verdicts: int, cost: float) -> tuple[int, float]:
    """Verdicts and US dollars spent before, and those of a judge stage added."""
    return verdicts + asked_about(judged), cost + judged.measures.get("cost", 0.0)


def _rising(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """The last of the points at each number of verdicts: the last training costs none."""
    return tuple(sorted(dict(points).items()))
