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


def asked_about(judged: Manifest) -> int:
    """Sets of answers that an expert was asked about, as a budget counts them: none of a judge of the run's own."""
    if judged.config["expert"] in ("itself", "distilled"):
        return 0
    return int(judged.measures.get("asked", judged.counts_in - judged.measures.get("no_verdict_same_text", 0.0)))


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
        """How a notebook shows it: for each benchmark every policy by the first rule's metrics, percent with 95 % intervals;
        then what was decided."""
        first = self.scores[0].rule if self.scores else ""
        tables = []
        for benchmark in dict.fromkeys(score.benchmark for score in self.scores):
            scored = [score for score in self.scores if score.benchmark == benchmark and score.rule == first]
            cells = {(score.policy, score.metric): score for score in scored}
            metrics = list(dict.fromkeys(score.metric for score in scored))
            rows = []
            for policy in dict.fromkeys(score.policy for score in scored):
                found = [cells.get((policy, metric)) for metric in metrics]
                shown = ["" if each is None else f"{each.value:.1%} [{each.low:.1%}, {each.high:.1%}]" for each in found]
                rows.append([f"{policy} (best)" if policy == self.best else policy, *shown])
            tables.append(table(("", *metrics), rows, f"{self.name}: {benchmark}, rule {first}"))
        return "".join((*tables, *(f"<p>{escape(sentence)}</p>" for sentence in (*self.sentences, *self.notes))))
