"""The tables of a comparison, and how they read as Markdown, CSV and LaTeX; every text from outside is escaped."""

import csv
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass

from stllava.records import Difference, Score
from stllava.report.published_results import MARK, PublishedResult
from stllava.report.runs import Kind
from stllava.report.wording import metric_label, p_value, percent, points, policy_label

COLUMNS = (
    "run", "policy", "benchmark", "metric", "value", "low", "high", "n", "abstained", "rule", "seeds", "source", "note",
    "against", "difference", "difference_low", "difference_high", "difference_n", "p", "detectable",
)  # fmt: skip
_MARKDOWN = {ord(sign): f"\\{sign}" for sign in "\\`*_[]|~#"} | {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;"}
_LATEX = {ord(sign): f"\\{sign}" for sign in "{}$&#_%"} | {
    ord(sign): f"\\text{name}{{}}"
    for sign, name in (("\\", "backslash"), ("^", "asciicircum"), ("~", "asciitilde"), ("<", "less"), (">", "greater"))
}
_LATEX |= {ord("\u00a0"): "~", ord("−"): "$-$", ord("–"): "--"}


@dataclass(frozen=True)
class ComparisonRow:
    """A policy's scores on a benchmark, alone or over several seeds, and what they gain over the reference."""

    run: str
    policy: str
    kind: Kind
    seeds: tuple[int, ...]
    scores: dict[str, Score]
    """By metric; of several seeds, `n` counts each sample once and `abstained` those of all seeds."""
    gains: dict[str, Difference]
    """By metric; empty where nothing could be paired."""
    remark: str
    """Why nothing could be paired, or that this is the reference; else empty."""

    @property
    def where(self) -> str:
        """The run, and how many seeds of it."""
        return f"{self.run}, {len(self.seeds)} seeds" if len(self.seeds) > 1 else self.run


@dataclass(frozen=True)
class ComparisonTable:
    """What every policy scored on one benchmark by one family of rules."""

    benchmark: str
    rule: str
    metrics: tuple[str, ...]
    rows: tuple[ComparisonRow, ...]
    singles: tuple[ComparisonRow, ...]
    """The single seeds behind the rows of several."""
    published: tuple[PublishedResult, ...]


@dataclass(frozen=True)
class RunComparison:
    """All tables, and what a reader must know of them."""

    reference: str
    tables: tuple[ComparisonTable, ...]
    notes: tuple[str, ...]
    commits: tuple[str, ...]
    devices: str

    @property
    def origin(self) -> str:
        """The code and the machines behind the numbers."""
        return f"Commit {', '.join(self.commits) or 'not recorded'}; device {self.devices or 'not recorded'}."


def interval_text(score: Score) -> str:
    """A score in percent with its interval and what stands behind it."""
    unread = f", {score.abstained:,} unread" if score.abstained else ""
    return f"{percent(score.value)} [{percent(score.low)}, {percent(score.high)}], n = {score.n:,}{unread}"


def gain_text(gain: Difference, score: Score) -> str:
    """A paired difference in points with its interval, its p-value and what the set could have shown."""
    p = f", {p_value(gain.p)}" if gain.p is not None else ""
    least = f", detectable {percent(gain.detectable)}" if gain.detectable is not None else ""
    n = f", n = {gain.n:,}" if gain.n != score.n else ""
    return f"{points(gain.value)} [{points(gain.low)}, {points(gain.high)}]{p}{least}{n}"


def write_markdown(comparison: RunComparison) -> str:
    """GitHub tables."""
    parts = ["# Comparison", f"Reference: {_markdown(comparison.reference)}. {_markdown(comparison.origin)}"]
    for table in comparison.tables:
        heads = ["Run", "Policy", *(f"{metric_label(metric)} ({table.rule})" for metric in table.metrics)]
        lines = [_line(map(_markdown, heads)), _line("---" for _ in heads)]
        for row in table.rows:
            cells = [
                "<br>Δ ".join(_markdown(text) for text in (_scored(row, metric), _gained(row, metric)) if text)
                for metric in table.metrics
            ]
            lines.append(_line([_markdown(row.where), _markdown(_named(row)), *cells]))
        for one in table.published:
            told = [_markdown(f"{MARK}: {one.source}"), _markdown(one.model)]
            lines.append(_line([*told, *(_printed(one, metric) for metric in table.metrics)]))
        parts += [f"## {_markdown(table.benchmark)}, {_markdown(table.rule)}", "\n".join(lines)]
    return "\n\n".join([*parts, "\n".join(f"- {_markdown(note)}" for note in comparison.notes)]) + "\n"


def write_latex(comparison: RunComparison) -> str:
    """A table a benchmark and family, for the packages booktabs and graphicx."""
    made = [r"% \usepackage{booktabs,graphicx}"]
    for table in comparison.tables:
        heads = [f"{_latex(metric_label(metric))} ({_latex(table.rule)})" for metric in table.metrics]
        body = [" & ".join(["Run", "Policy", *heads]) + r" \\", r"\midrule"]
        for row in table.rows:
            cells = [_latex(_scored(row, metric)) for metric in table.metrics]
            body.append(" & ".join([_latex(row.where), _latex(_named(row)), *cells]) + r" \\")
            if row.gains:
                gains = [_latex(_gained(row, metric)) for metric in table.metrics]
                body.append(" & ".join(["", r"\quad difference", *gains]) + r" \\")
        if table.published:
            body += [r"\midrule", rf"\multicolumn{{{len(heads) + 2}}}{{l}}{{\emph{{{_latex(MARK)}}}}} \\"]
        for one in table.published:
            printed = [_latex(_printed(one, metric)) for metric in table.metrics]
            body.append(" & ".join([_latex(one.source), _latex(one.model), *printed]) + r" \\")
        told = (
            f"{table.benchmark} by {table.rule}: percent with 95 % intervals; differences in points to {comparison.reference}."
        )
        made += [
            r"\begin{table}",
            r"\centering",
            r"\resizebox{\textwidth}{!}{%",
            rf"\begin{{tabular}}{{ll{'r' * len(heads)}}}",
            r"\toprule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            rf"\caption{{{_latex(f'{told} {comparison.origin}')}}}",
            r"\end{table}",
            "",
        ]
    return "\n".join(made)


def write_csv(comparison: RunComparison) -> str:
    """One line a run, policy, benchmark and metric; shares from 0 to 1, single seeds among them."""
    file = io.StringIO()
    lines = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
    lines.writeheader()
    for table in comparison.tables:
        for row in (*table.rows, *table.singles):
            for metric in table.metrics:
                if metric in row.scores:
                    lines.writerow(_measured(row, row.scores[metric], row.gains.get(metric), comparison.reference))
        for one in table.published:
            for metric, cell in one.cells.items():
                texts = {"policy": one.model, "benchmark": table.benchmark, "metric": metric, "rule": table.rule}
                note = {"source": "published", "note": f"{MARK}: {one.source}"}
                lines.writerow({"value": f"{cell.value:.6g}", "n": cell.n, **texts, **note})
    return file.getvalue()


def _measured(row: ComparisonRow, score: Score, gain: Difference | None, reference: str) -> dict[str, str | int]:
    values: dict[str, float | None] = {"value": score.value, "low": score.low, "high": score.high}
    texts = {"run": row.run, "policy": row.policy, "benchmark": score.benchmark, "metric": score.metric, "rule": score.rule}
    texts |= {"seeds": " ".join(map(str, row.seeds)), "source": "measured", "note": row.remark}
    counts = {"n": score.n, "abstained": score.abstained}
    if gain is not None:
        values |= {"difference": gain.value, "difference_low": gain.low, "difference_high": gain.high}
        values |= {"p": gain.p, "detectable": gain.detectable}
        texts["against"] = reference
        counts["difference_n"] = gain.n
    numbers = {name: f"{value:.6g}" for name, value in values.items() if value is not None}
    return {name: _cell(text) for name, text in texts.items()} | numbers | counts


def _cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _named(row: ComparisonRow) -> str:
    best = " (best)" if row.kind == "best" and row.policy != "best" else ""
    return policy_label(row.policy) + best + (f" ({row.remark})" if row.remark else "")


def _scored(row: ComparisonRow, metric: str) -> str:
    return interval_text(row.scores[metric]) if metric in row.scores else "–"


def _gained(row: ComparisonRow, metric: str) -> str:
    return gain_text(row.gains[metric], row.scores[metric]) if metric in row.gains else ""


def _printed(row: PublishedResult, metric: str) -> str:
    return f"{row.cells[metric].text}, n = {row.cells[metric].n:,}" if metric in row.cells else "–"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown(text: str) -> str:
    return " ".join(text.split()).translate(_MARKDOWN)


def _latex(text: str) -> str:
    return re.sub(r"[^\S\u00a0]+", " ", text).translate(_LATEX)
