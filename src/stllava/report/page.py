"""Writes `summary.json` and `report.html` into a finished run directory, from its files alone.

The page is one file: no script, no request of any kind (its own content security policy forbids both), thumbnails
inside. The same files give the same bytes: every time on the page comes from a manifest.

    from stllava.report.page import write_report
    write_report(Path("runs/phantom-0"))
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from markupsafe import Markup
from pydantic import JsonValue

from stllava.data.overlap import describe
from stllava.records import Difference, Manifest, Score
from stllava.report import wording
from stllava.report.charts import Dot, Line, difference_chart, interval_chart, line_chart
from stllava.report.disagreements import disagreements
from stllava.report.gallery import self_asked, shares, tally, tested, thumbnail
from stllava.report.label_tables import SMALL_GROUP, LabelScores, scores_by_every_label
from stllava.report.record_places import RecordPlaces
from stllava.report.rendering import page_environment
from stllava.report.run_files import Round, RunFiles, read_run_files
from stllava.report.verdicts_spent import verdicts_spent
from stllava.rundir import IMAGE_GAIN, ROUND_STAGES, SFT, RunDir
from stllava.store import write_whole


@dataclass(frozen=True)
class Tile:
    """One headline difference."""

    label: str
    meaning: str
    difference: Difference
    before: Score | None
    after: Score | None
    verdict: str
    chart: Markup


@dataclass(frozen=True)
class Cell:
    """One policy's score on one metric, with its gain over sft where there is one."""

    score: Score | None
    gain: Difference | None
    best: bool


@dataclass(frozen=True)
class ScoreTable:
    """One benchmark by one family of rules: a column for each metric, a chart for each of the chief ones."""

    benchmark: str
    rule: str
    metrics: tuple[str, ...]
    counts: tuple[int | None, ...]
    """Samples by metric; None where policies differ in it."""
    figures: tuple["Figure", ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


@dataclass(frozen=True)
class Step:
    """One bar of a round's funnel; `kept` and the lost sum to what went in."""

    label: str
    kept: int
    lost: tuple[tuple[str, int], ...]

    @property
    def total(self) -> int:
        """What went in."""
        return self.kept + sum(count for _, count in self.lost)


@dataclass(frozen=True)
class Figure:
    """A chart with its name."""

    label: str
    chart: Markup


def write_report(run: Path) -> Path:
    """Write the run's `summary.json` and `report.html`; returns the path of the page.

    Raises:
        StllavaError: Where the run is not finished.
    """
    folder, files = RunDir(run), read_run_files(run)
    labels = scores_by_every_label(files)
    write_whole(folder.summary, json.dumps(summarize(files, labels), indent=1, ensure_ascii=False) + "\n")
    write_whole(folder.page, render(files, labels))
    return folder.page


def summarize(run: RunFiles, labels: Sequence[LabelScores]) -> dict[str, JsonValue]:
    """The run's numbers, for programs."""
    outcome = run.outcome
    return {
        "name": outcome.name,
        "seed": run.options.seed,
        "best": outcome.best,
        "rows": [score.model_dump(mode="json") for score in outcome.scores],
        "differences": [difference.model_dump(mode="json") for difference in outcome.differences],
        "labels": [scores.as_json for scores in labels],
        "prompts": {name: run.options.evaluate.template(name) for name in wording.benchmarks(outcome.scores)},
        **(
            {"votes": {part.name: part.votes.model_dump(mode="json") for part in run.rounds if part.votes is not None}}
            if any(part.votes is not None for part in run.rounds)
            else {}
        ),
        **({"read": {name: check.model_dump(mode="json") for name, check in run.read.items()}} if run.read else {}),
        "overlaps": [overlap.model_dump(mode="json") for overlap in outcome.overlaps],
        "sentences": list(outcome.sentences),
        "notes": list(outcome.notes),
        "stages": {
            name: {
                "in": manifest.counts_in,
                "out": manifest.counts_out,
                "dropped": {**manifest.dropped},
                "measures": {**manifest.measures},
                "seconds": manifest.seconds,
                "device": manifest.device,
            }
            for name, manifest in run.manifests.items()
        },
    }


def render(run: RunFiles, labels: Sequence[LabelScores]) -> str:
    """The page."""
    environment = page_environment()
    environment.filters |= {
        "plain": wording.plain,
        "duration": wording.duration,
        "sentences": describe,
        "votes_sentence": wording.votes_sentence,
        "items_sentence": wording.items_sentence,
        "measure": lambda value, name: wording.measure(name, value),
    }
    names = wording.benchmarks(run.outcome.scores)
    funnels = [(part.name, funnel(part)) for part in run.rounds]
    everything = list(run.manifests.values())
    return environment.get_template("page.html.jinja").render(
        run=run,
        outcome=run.outcome,
        summary=wording.summary(run.outcome, len(run.rounds)),
        tiles=tiles(run),
        tables=[table for name in names for table in tables(run, name)],
        spent=verdicts_spent(run, names[0]) if names else None,
        labels=labels,
        small_group=SMALL_GROUP,
        family=wording.FAMILIES,
        disagreed=disagreements(run.predictions.get(names[0], {}).get(wording.challenger(run.outcome), ())) if names else [],
        overlaps=run.outcome.overlaps,
        detectable=detectable(run) if names else [],
        challenger=wording.challenger(run.outcome),
        prompts={name: run.options.evaluate.template(name) for name in names},
        validation=wording.VALIDATION,
        start=SFT,
        funnels=funnels,
        widest=max((step.total for _, steps in funnels for step in steps), default=1) or 1,
        measures=measures(run),
        figures=figures(run),
        self_asked=self_asked(run),
        voted=[(part.name, part.votes, wording.votes_rows(part.votes)) for part in run.rounds if part.votes is not None],
        read=[(name, check, wording.items_rows(check)) for name, check in run.read.items()],
        checked=wording.check_rows(run.check) if run.check is not None else [],
        flips=[(thumbnail(run.images, flip.image), flip) for flip in run.check.examples] if run.check is not None else [],
        shares=shares(len(run.rounds)),
        tally=tally(run, names[0], wording.challenger(run.outcome)) if names else None,
        tested=tested(run, names[0]) if names else [],
        recipe=yaml.safe_dump(run.options.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        devices=wording.devices(everything),
        commits=wording.commits(everything),
        started=min(manifest.started for manifest in everything),
        seconds=sum(manifest.seconds for manifest in everything),
        stage_notes=[(name, note) for name, manifest in run.manifests.items() for note in manifest.notes],
        versions=run.manifests[SFT].versions,
    )


def tiles(run: RunFiles) -> list[Tile]:
    """The headline differences, all on one axis."""
    rows = wording.headline(run.outcome)
    reach = max((abs(bound) for row in rows for bound in (row.low, row.high)), default=0.0)
    extent = next((step for step in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5) if reach <= step), 1.0)
    made = []
    for row in rows:
        title = f"{wording.metric_label(row.metric)}: {wording.points(row.value)} points, "
        title += f"95 % interval {wording.points(row.low)} to {wording.points(row.high)}"
        made.append(
            Tile(
                label=wording.metric_label(row.metric),
                meaning=wording.METRICS[row.metric][1] if row.metric in wording.METRICS else "",
                difference=row,
                before=wording.score_of(run.outcome, row.against, row.benchmark, row.metric),
                after=wording.score_of(run.outcome, row.policy, row.benchmark, row.metric),
                verdict=wording.judge_gain(row),
                chart=difference_chart(title, row.value, row.low, row.high, extent=extent),
            )
        )
    return made


def detectable(run: RunFiles) -> list[tuple[str, str]]:
    """The smallest difference that the first benchmark can show, by headline metric, in points."""
    rows = wording.headline(run.outcome)
    return [(wording.metric_label(row.metric), wording.percent(row.detectable)) for row in rows if row.detectable is not None]


def tables(run: RunFiles, benchmark: str) -> list[ScoreTable]:
    """One benchmark's scores, charts and gains over sft, a table for each family of rules, ours first.

    The validation split only chooses a policy, so there our rules are enough.
    """
    scores = [score for score in run.outcome.scores if score.benchmark == benchmark]
    rules = wording.rules(scores)[: 1 if benchmark == wording.VALIDATION else None]
    return [_table(run, benchmark, rule, [one for one in scores if one.rule == rule]) for rule in rules]


def _table(run: RunFiles, benchmark: str, rule: str, scores: Sequence[Score]) -> ScoreTable:
    outcome = run.outcome
    metrics = wording.in_order((score.metric for score in scores), list(wording.METRICS))
    names = wording.in_order((score.policy for score in scores), run.policies)
    gains = {(row.policy, row.metric): row for row in outcome.differences if row.benchmark == benchmark}
    found = {(score.policy, score.metric): score for score in scores}
    shades = ramp(outcome.policies)
    figures, counts = [], []
    for metric in metrics:
        sizes = {score.n for score in scores if score.metric == metric}
        counts.append(sizes.pop() if len(sizes) == 1 else None)
        if metric not in wording.CHIEF:
            continue
        dots = [
            Dot(wording.policy_label(name), score.value, score.low, score.high, shades.get(name), best=name == outcome.best)
            for name in names
            if (score := found.get((name, metric)))
        ]
        label = wording.metric_label(metric)
        figures.append(Figure(label, interval_chart(f"{label} on {benchmark}, in percent", dots)))
    rows = []
    for name in names:
        cells = [Cell(found.get((name, metric)), gains.get((name, metric)), name == outcome.best) for metric in metrics]
        rows.append((name, tuple(cells)))
    return ScoreTable(benchmark, rule, tuple(metrics), tuple(counts), tuple(figures), tuple(rows))


def ramp(policies: Sequence[str]) -> dict[str, float]:
    """Where each policy stands between the first (0) and the last (1)."""
    return {name: place / max(len(policies) - 1, 1) for place, name in enumerate(policies)}


def funnel(part: Round) -> list[Step]:
    """Questions asked, answered, judged and paired, with what was lost at each and why."""
    steps = []
    labels = {"ask": "Questions kept", "answer": "Questions answered"}
    for stage in ROUND_STAGES[:-1]:
        if stage not in part.manifests:
            continue
        manifest = part.manifests[stage]
        if stage == "judge":
            unread, kept = Counter[str](), 0
            for judgment in part.judgments:
                kept += judgment.scores is not None
                unread.update([judgment.cause or "no cause given"] if judgment.scores is None else [])
            steps.append(Step("Verdicts given", kept, _largest(Counter(manifest.dropped) | unread)))
        elif stage == "pair":
            kept = RecordPlaces(preference.lineage.judgment_id for preference in part.preferences).different
            steps.append(Step("Questions that gave pairs", kept, _largest(Counter(manifest.dropped))))
        else:
            steps.append(Step(labels[stage], manifest.counts_out, _largest(Counter(manifest.dropped))))
    return steps


def _largest(causes: Counter[str]) -> tuple[tuple[str, int], ...]:
    rows = sorted(causes.items(), key=lambda row: (-row[1], row[0]))
    return tuple((wording.plain(cause).lower(), count) for cause, count in rows if count)


def measures(run: RunFiles) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Every figure the rounds' stages recorded: by stage, one row a figure, one column a round."""
    figures: list[tuple[str, list[tuple[str, list[str]]]]] = []
    for stage in (*ROUND_STAGES, IMAGE_GAIN):
        made = [run.manifests.get(f"{part.name}/{stage}") for part in run.rounds]
        columns = [manifest.measures if manifest is not None else {} for manifest in made]
        names = dict.fromkeys(name for column in columns for name in column)
        rows = [
            (wording.plain(name), [wording.measure(name, column[name]) if name in column else "–" for column in columns])
            for name in names
        ]
        if rows:
            figures.append((stage, rows))
    return figures


def figures(run: RunFiles) -> list[tuple[str, list[Figure]]]:
    """The learning curves: sft's, then dpo's with one line a round."""
    shades = ramp(run.outcome.policies)
    learned = [(part.name, part.manifests["dpo"]) for part in run.rounds if "dpo" in part.manifests]
    groups = [(SFT, _figures([(SFT, run.manifests[SFT])], shades)), ("dpo", _figures(learned, shades))]
    return [(name, group) for name, group in groups if group]


def _figures(stages: Sequence[tuple[str, Manifest]], shades: dict[str, float]) -> list[Figure]:
    names = wording.in_order((name for _, manifest in stages for name in manifest.curves), list(wording.CURVES))
    made = []
    for name in names:
        label = wording.CURVES[name] if name in wording.CURVES else wording.plain(name)
        lines = [
            Line(wording.policy_label(policy), tuple(manifest.curves[name]), shades.get(policy, 1.0))
            for policy, manifest in stages
            if name in manifest.curves
        ]
        made.append(Figure(label, line_chart(f"{label} by step", lines, share="accuracy" in name)))
    return made
