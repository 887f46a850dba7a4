"""Compares runs with each other and with printed numbers: `compare.html`, `compare.md`, `compare.csv` and `compare.tex`.

Reads the stored answers of finished runs and of single evaluations and scores them by today's rules. Runs that differ in
nothing but the seed are one row. The same files give the same bytes.

    from stllava.report.compare import compare_runs
    compare_runs([Path("runs/a"), Path("runs/b")], to=Path("runs/compared"))
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from markupsafe import Markup

from stllava.errors import StllavaError
from stllava.metrics.score import METRICS, compare, measured, readings, score, values
from stllava.metrics.seeds import combine_seeds
from stllava.records import Difference, Prediction, QuestionKind, Score
from stllava.report import wording
from stllava.report.charts import Dot, interval_chart
from stllava.report.comparison_tables import (
    ComparisonRow,
    ComparisonTable,
    RunComparison,
    write_csv,
    write_latex,
    write_markdown,
)
from stllava.report.published_results import MARK, read_published
from stllava.report.rendering import page_environment
from stllava.report.runs import (
    BEST,
    Entrant,
    Evaluation,
    Run,
    chief,
    combine_runs,
    label_groups,
    list_entrants,
    read_run,
    shared_samples,
)
from stllava.rundir import SFT
from stllava.store import write_whole

Policies = Literal["best", "all"]
Answered = list[tuple[int | None, Evaluation]]
"""The answers of each member of an entrant, with its seed."""


def compare_runs(runs: Sequence[Path], *, to: Path, against: str | None = None, policies: Policies = "best") -> Path:
    """Write the comparison of runs, and of single evaluations, into the folder `to`; returns the path of its page.

    `against` names the row that every other is compared with, as POLICY or RUN/POLICY: the first run's sft unless said.
    `policies` best shows sft, the best policy and their baselines; all shows every round.

    Args:
        runs: Finished run directories, or folders of single evaluations; runs that differ in the seed alone become one row.
        to: Folder for compare.html, .md, .csv and .tex.
        against: The row that others are compared with; the first run's sft where None.
        policies: best shows sft, the best policy and their baselines; all shows every round.

    Raises:
        StllavaError: Where a folder is neither a finished run nor an evaluation, or two of them were measured on other
            samples.
    """
    comparison = make_comparison(runs, against=against, policies=policies)
    page = to / "compare.html"
    write_whole(to / "compare.md", write_markdown(comparison))
    write_whole(to / "compare.csv", write_csv(comparison))
    write_whole(to / "compare.tex", write_latex(comparison))
    write_whole(page, render(comparison))
    return page


def make_comparison(runs: Sequence[Path], *, against: str | None = None, policies: Policies = "best") -> RunComparison:
    """Everything that the four files say."""
    if not runs or len({path.resolve() for path in runs}) < len(runs):
        raise StllavaError("no run, or one run twice", expected="different folders", remedy="Name each run once.")
    read = [read_run(path) for path in runs]
    groups = combine_runs(read)
    entrants = [list_entrants(group, label) for group, label in zip(groups, label_groups(groups), strict=True)]
    reference = find_reference([one for group in entrants for one in group], against)
    shown = [one for group in entrants for one in group if policies == "all" or one is reference or one in chief(group)]
    singles = _behind(shown, read)
    names = dict.fromkeys(name for run in read for found in run.evaluations.values() for name in found)
    tables, notes = [], [*_conditions(read, groups, shown)]
    for benchmark in sorted(names, key=lambda name: name == wording.VALIDATION):
        rows, single_rows = (
            [row for one in listed if (row := make_row(one, reference, benchmark)) is not None] for listed in (shown, singles)
        )
        made = split_by_rule(benchmark, rows, single_rows)
        tables += made
        notes += [note for table in made for note in _other_sizes(table)]
    manifests = [found.manifest for run in read for by_name in run.evaluations.values() for found in by_name.values()]
    commits = tuple(wording.commits(manifests))
    return RunComparison(_full_name(reference), tuple(tables), tuple(notes), commits, wording.devices(manifests))


def _behind(shown: Sequence[Entrant], runs: Sequence[Run]) -> list[Entrant]:
    """The single seeds of every row that combines several."""
    wanted = [(run, name) for one in shown if len(one.members) > 1 for run, name in one.members]
    labels = label_groups([[run] for run in runs])
    alone = [one for run, label in zip(runs, labels, strict=True) for one in list_entrants([run], label)]
    return [one for one in alone if one.members[0] in wanted]


def find_reference(entrants: Sequence[Entrant], against: str | None) -> Entrant:
    """The row that the others are compared with; a name that is no row is refused with those that are."""
    for one in entrants:
        plain = {one.policy, BEST} if one.kind == "best" else {one.policy}
        if against is None or against in plain or against in {f"{one.run}/{name}" for name in plain}:
            return one
    raise StllavaError(
        f"no row {against!r} to compare with",
        expected=f"one of {', '.join(_full_name(one) for one in entrants)}",
        remedy="Name it as RUN/POLICY, or POLICY alone for the first run that has it.",
    )


def _full_name(one: Entrant) -> str:
    return f"{one.run}/{one.policy}"


def make_row(one: Entrant, reference: Entrant, benchmark: str) -> ComparisonRow | None:
    """What an entrant scored on a benchmark; None where it did not answer it."""
    mine, theirs = one.evaluations(benchmark), reference.evaluations(benchmark)
    if not mine:
        return None
    gains: list[Difference] = []
    remark = "the reference did not answer this benchmark"
    if theirs:
        gains, remark = measure_gains(mine, theirs, policy=_full_name(one), against=_full_name(reference), benchmark=benchmark)
    seeds = tuple(seed for seed, _ in mine if seed is not None)
    scores = measure_scores([found for _, found in mine], policy=one.policy, benchmark=benchmark)
    return ComparisonRow(one.run, one.policy, one.kind, seeds, scores, {gain.metric: gain for gain in gains}, remark)


def measure_scores(found: Sequence[Evaluation], *, policy: str, benchmark: str) -> dict[str, Score]:
    """Every metric of one evaluation, or of several seeds as one number; in the latter, an interval that covers seeds too.

    What answers alone do not give, such as an expert's verdicts, is shown as it was stored, of one evaluation only.
    """
    if len(found) == 1:
        stored = [one for one in found[0].stored if one.metric not in METRICS]
        return {one.metric: one for one in [*score(found[0].predictions, policy=policy, benchmark=benchmark), *stored]}
    sets = _sets(found)
    made = {}
    for metric, definition in METRICS.items():
        rows = [measured(one.predictions, metric) for one in found]
        if not all(rows):
            continue
        clusters = [[f"{name} {row.image}" for row in part] for name, part in zip(sets, rows, strict=True)]
        value, low, high = combine_seeds([values(part, metric) for part in rows], clusters)
        made[metric] = Score(
            policy=policy,
            benchmark=benchmark,
            metric=metric,
            value=value,
            low=low,
            high=high,
            n=len({(name, row.sample_id) for name, part in zip(sets, rows, strict=True) for row in part}),
            rule=definition.rule,
            abstained=sum(reading is None for part in rows for reading in readings(part, metric)),
        )
    return made


def _sets(found: Sequence[Evaluation]) -> list[int]:
    """A number for each evaluation's set of samples: images of one name are the same image in one set only."""
    return [next(place for place, other in enumerate(found) if shared_samples(one, other)) for one in found]


def measure_gains(
    mine: Answered, theirs: Answered, *, policy: str, against: str, benchmark: str
) -> tuple[list[Difference], str]:
    """Every metric's paired difference, seed by seed where there are several; or none, and why."""
    pairs = _pair(mine, theirs)
    if not pairs:
        return [], "no seed in common with the reference: no paired difference"
    if all(one is other for one, other in pairs):
        return [], "the reference"
    shared = [(shared_samples(one, other), shared_samples(other, one)) for one, other in pairs]
    if not all(ours for ours, _ in shared):
        return [], "answered other samples than the reference: no paired difference"
    if len(shared) == 1:
        return compare(*shared[0], policy=policy, against=against, benchmark=benchmark), ""
    sets = _sets([one for one, _ in pairs])
    gains = []
    for metric in METRICS:
        parts = [(measured(ours, metric), {row.sample_id: row for row in others}) for ours, others in shared]
        if not all(ours for ours, _ in parts):
            continue
        clusters = [[f"{name} {row.image}" for row in ours] for name, (ours, _) in zip(sets, parts, strict=True)]
        paired = [_differences(ours, known, metric) for ours, known in parts]
        value, low, high = combine_seeds(paired, clusters, differences=True)
        n = len({(name, row.sample_id) for name, (ours, _) in zip(sets, parts, strict=True) for row in ours})
        gains.append(
            Difference(policy=policy, against=against, benchmark=benchmark, metric=metric, value=value, low=low, high=high, n=n)
        )
    return gains, ""


def _pair(mine: Answered, theirs: Answered) -> list[tuple[Evaluation, Evaluation]]:
    """One with one whatever their seeds; of several, those with the same seed."""
    if len(mine) == len(theirs) == 1:
        return [(mine[0][1], theirs[0][1])]
    known = dict(theirs)
    return [(found, known[seed]) for seed, found in mine if seed is not None and seed in known]


def _differences(ours: Sequence[Prediction], known: dict[str, Prediction], metric: str) -> list[float]:
    theirs = values([known[row.sample_id] for row in ours], metric)
    return [a - b for a, b in zip(values(ours, metric), theirs, strict=True)]


def split_by_rule(benchmark: str, rows: Sequence[ComparisonRow], singles: Sequence[ComparisonRow]) -> list[ComparisonTable]:
    """A table for each family of rules, ours first; printed numbers stand beside the metrics of their definition only."""
    printed = read_published(benchmark)
    made = []
    for rule in wording.rules([one for row in rows for one in row.scores.values()]):
        scored = {metric for row in rows for metric, one in row.scores.items() if one.rule == rule}
        metrics = tuple(wording.in_order(scored, list(METRICS)))
        published = [one for one in printed if any(metric in one.cells for metric in metrics)]
        made.append(ComparisonTable(benchmark, rule, metrics, tuple(rows), tuple(singles), tuple(published)))
    return made


def _other_sizes(table: ComparisonTable) -> list[str]:
    """That printed numbers are of another number of questions than ours, where they are."""
    printed = {METRICS[metric].kind: cell.n for one in table.published for metric, cell in one.cells.items()}
    return [
        f"{table.benchmark}: the published rows are of {n:,} {kind} questions; rows with another n are not of the same test."
        for kind, n in printed.items()
        if any(row.scores[metric].n != n for row in table.rows for metric in _of_kind(row, kind))
    ]


def _of_kind(row: ComparisonRow, kind: QuestionKind) -> list[str]:
    return [metric for metric in row.scores if metric in METRICS and METRICS[metric].kind == kind]


def _conditions(runs: Sequence[Run], groups: Sequence[Sequence[Run]], shown: Sequence[Entrant]) -> list[str]:
    """What a reader must know of how the numbers were made."""
    notes = [
        "Every number is scored anew from the stored answers, by the rules that stand beside the metrics. Answers that a rule "
        "cannot read count as wrong.",
        "Intervals are 95 %, resampled by image; those of several seeds cover both the images and the seeds. Differences are "
        "paired by question; of a single seed, p is the sign-flip permutation test over images, not adjusted for the number of "
        "comparisons, and detectable the smallest true difference in points that the set shows with 80 % power.",
    ]
    for one in shown:
        if one.policy == BEST:
            chosen = ", ".join(f"seed {run.seed} {wording.policy_label(name)}" for run, name in one.members)
            notes.append(f"{one.run}: the best policy of each seed is {chosen}.")
    for group in groups:
        found = wording.commits(one.manifest for run in group for kept in run.evaluations.values() for one in kept.values())
        if len(group) > 1 and len(found) > 1:
            notes.append(f"{group[0].name}: seeds of different commits are combined ({', '.join(found)}).")
    return notes + _rescored([found for run in runs for kept in run.evaluations.values() for found in kept.values()])


def _rescored(evaluations: Sequence[Evaluation]) -> list[str]:
    """Which stored scores other rules made, and which cannot be made from answers alone."""
    stored = [one for found in evaluations for one in found.stored]
    older = {one.metric for one in stored if one.metric in METRICS and one.rule != METRICS[one.metric].rule}
    foreign = {one.metric for one in stored if one.metric not in METRICS}
    told = (
        ("The runs' own reports may show other numbers, made by older rules", older),
        ("As stored, for it takes more than the answers; without differences, and not of several seeds", foreign),
    )
    return [f"{text}: {', '.join(wording.metric_label(one) for one in sorted(names))}." for text, names in told if names]


def render(comparison: RunComparison) -> str:
    """The page."""
    return (
        page_environment()
        .get_template("compare.html.jinja")
        .render(
            comparison=comparison,
            charts=[draw(table, comparison.reference) for table in comparison.tables],
            family={table.rule: wording.FAMILIES.get(wording.family(table.rule), "") for table in comparison.tables},
            validation=wording.VALIDATION,
            mark=MARK,
        )
    )


def draw(table: ComparisonTable, reference: str) -> list[tuple[str, Markup]]:
    """A chart for each chief metric: the rows by number, the reference first, whose value is the dashed line."""
    made = []
    numbered = sorted(enumerate(table.rows, 1), key=lambda one: f"{one[1].run}/{one[1].policy}" != reference)
    for metric in (metric for metric in table.metrics if metric in wording.CHIEF):
        dots = [
            Dot(
                f"{number} {wording.policy_label(row.policy)}",
                found.value,
                found.low,
                found.high,
                None if row.kind == "baseline" else float(row.policy != SFT),
                best=row.kind == "best",
            )
            for number, row in numbered
            if (found := row.scores.get(metric))
        ]
        label = wording.metric_label(metric)
        made.append((label, interval_chart(f"{label} on {table.benchmark}, in percent", dots)))
    return made
