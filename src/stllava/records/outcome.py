"""What a stage did, and what a run came to."""

from html import escape

from pydantic import Field, JsonValue

from stllava.records.html import table
from stllava.records.overlaps import Overlap
from stllava.records.record import FORMAT, Record
from stllava.records.scores import Difference, Score


class Manifest(Record):
    """What a stage did; written last, so its presence means that the output is whole."""

    stage: str
    """Name of the stage."""
    config: dict[str, JsonValue]
    """The stage's options, all of them."""
    inputs: dict[str, str]
    """Hash of each input by name."""
    outputs: dict[str, str]
    """Hash of each output file by name."""
    counts_in: int
    """Items read."""
    counts_out: int
    """Items written."""
    dropped: dict[str, int]
    """Items that went in and did not come out, by cause."""
    measures: dict[str, float]
    """Other figures of the stage by name, such as rates and shares."""
    curves: dict[str, list[tuple[float, float]]] = Field(default_factory=dict)
    """Series of (step, value), such as the loss."""
    notes: tuple[str, ...] = ()
    """Sentences for the reader of the report."""
    versions: dict[str, str]
    """Versions of Python and the packages that shape results."""
    commit: str
    """Git commit of stllava, or an empty string outside a checkout."""
    started: str
    """ISO 8601, UTC."""
    seconds: float
    """Wall time of the process that finished the stage, after its last resume."""
    device: str
    """Where it ran."""
    image_root: str | None = None
    """What the output's image paths are relative to: absolute, or relative to this folder; None where nobody noted it."""
    format: int = FORMAT
    """The form in which the stage is written."""
    digest: str = ""
    """Hash of all the rest, by which a damaged manifest is told; empty where nobody wrote one."""


class Outcome(Record):
    """What a run came to; `outcome.json` in the run directory, read by the report."""

    name: str
    """Name of the experiment."""
    policies: tuple[str, ...]
    """Policies trained, in order: sft, round-1, …"""
    baselines: tuple[str, ...]
    """Baselines scored beside them."""
    best: str
    """The policy with the highest validation score."""
    sentences: tuple[str, ...]
    """What was decided after each round and why the run stopped."""
    notes: tuple[str, ...]
    """What a reader must know: how the expert judged, shared images, dropped input."""
    scores: tuple[Score, ...]
    """Every policy and baseline on every benchmark and on validation."""
    differences: tuple[Difference, ...]
    """Paired gains over the sft policy."""
    overlaps: tuple[Overlap, ...] = ()
    """What labelled data, self-made questions and pairs have in common with validation and each benchmark."""
    format: int = FORMAT
    """The form in which the run is written."""

    def _repr_html_(self) -> str:
        """How a notebook shows it: a row for each policy and baseline, percent with 95 % intervals, and what was decided."""
        columns = list(dict.fromkeys((score.benchmark, score.metric, score.rule) for score in self.scores))
        cells = {(score.policy, score.benchmark, score.metric, score.rule): score for score in self.scores}
        rows = []
        for policy in (*self.policies, *self.baselines):
            row = [f"{policy} (best)" if policy == self.best else policy]
            for column in columns:
                score = cells.get((policy, *column))
                row.append("" if score is None else f"{score.value:.1%} [{score.low:.1%}, {score.high:.1%}]")
            rows.append(row)
        head = ("", *(f"{benchmark}, {metric}" + (f" ({rule})" if rule else "") for benchmark, metric, rule in columns))
        said = "".join(f"<p>{escape(sentence)}</p>" for sentence in (*self.sentences, *self.notes))
        return table(head, rows, self.name) + said
