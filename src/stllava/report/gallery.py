"""Chooses the report's examples by rules stated beside them, and makes thumbnails without metadata."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from stllava.data.images import jpeg_uri, open_image
from stllava.errors import ItemError
from stllava.metrics.score import is_right
from stllava.records import Answers, Judgment, Prediction, Preference, content_id
from stllava.report.run_files import RunFiles
from stllava.report.wording import plain, policy_label
from stllava.text import shorten

THUMBNAIL = 192
SELF_ASKED = 12
TESTED = (("differ", 5), ("all wrong", 2), ("all right", 1))


@dataclass(frozen=True)
class ShownAnswer:
    """One answer as shown: an answer of the K, or what one policy says."""

    label: str
    """A policy's name, or a score."""
    text: str
    mark: str
    """chosen, rejected, right, wrong or empty."""
    times: int = 1


@dataclass(frozen=True)
class Card:
    """One example."""

    image: str
    """A data URI, or empty where the image cannot be read."""
    head: str
    question: str
    said: tuple[ShownAnswer, ...]
    described: str = ""
    reference: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class PairedTally:
    """How the compared policies fare on the same samples, right or wrong as the table of scores counts them."""

    benchmark: str
    before: str
    after: str
    gained: int
    lost: int
    both_right: int
    both_wrong: int

    @property
    def n(self) -> int:
        """Samples both answered."""
        return self.gained + self.lost + self.both_right + self.both_wrong


def thumbnail(root: Path, path: str) -> str:
    """A JPEG data URI of at most 192 pixels, fresh pixels only; empty for an image that cannot be used."""
    try:
        pixels = np.asarray(open_image(root, path))
    except ItemError:
        return ""
    small = Image.fromarray(pixels)
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return jpeg_uri(small, quality=85)


def shares(rounds: int) -> tuple[int, int]:
    """How many self-asked questions of each round are shown that became a pair, and that did not."""
    each = max(2, SELF_ASKED // max(rounds, 1) // 2 * 2)
    return each - max(1, each // 4), max(1, each // 4)


def self_asked(run: RunFiles) -> list[Card]:
    """Questions the model asked itself, by the shares of `shares`, in the order of a hash of their ids."""
    paired, unpaired = shares(len(run.rounds))
    cards: list[Card] = []
    shown: set[str] = set()
    for part in run.rounds:
        answers = {row.id: row for row in part.answers}
        questions = {row.id: row for row in part.questions}
        pairs = {row.lineage.judgment_id: row for row in reversed(part.preferences)}
        order = sorted(part.judgments, key=lambda judgment: content_id("gallery", judgment.id))
        for wanted, most in ((True, paired), (False, unpaired)):
            taken = 0
            for judgment in order:
                given = answers.get(judgment.answers_id)
                if (
                    taken == most
                    or (judgment.id in pairs) is not wanted
                    or given is None
                    or not given.images
                    or given.images[0] in shown
                ):
                    continue
                shown.add(given.images[0])
                taken += 1
                described = questions[given.question_id].description if given.question_id in questions else ""
                cards.append(_judged(run, part.name, given, judgment, pairs.get(judgment.id), described))
    return cards


def _judged(run: RunFiles, name: str, answers: Answers, judgment: Judgment, pair: Preference | None, described: str) -> Card:
    scores = judgment.scores or (0.0,) * len(answers.completions)
    rows = Counter(zip(scores, answers.completions, strict=True))
    own = [] if judgment.correction is None else [judgment.correction]
    return Card(
        image=thumbnail(run.images, answers.images[0]),
        head=f"{policy_label(name)} · " + ("became a pair" if pair else plain(judgment.cause or "no pair").lower()),
        question=shorten(answers.question, 240),
        described=shorten(described, 200),
        said=(
            *(ShownAnswer("expert", shorten(text, 240), "chosen" if pair and pair.chosen == text else "", 1) for text in own),
            *(
                ShownAnswer(
                    f"{score:.2f}" if judgment.scores else "–",
                    shorten(text, 240) or "(nothing)",
                    "" if pair is None else "chosen" if text == pair.chosen else "rejected" if text == pair.rejected else "",
                    times,
                )
                for (score, text), times in sorted(rows.items(), key=lambda row: -row[0][0])
            ),
        ),
        verdict=shorten(judgment.reason or ("No reason was given." if judgment.scores else "No verdict."), 280),
    )


def tally(run: RunFiles, benchmark: str, after: str) -> PairedTally | None:
    """How sft and another policy fare on a benchmark's samples, one against the other."""
    said = run.predictions.get(benchmark, {})
    before = run.outcome.policies[0]
    if before not in said or after not in said or before == after:
        return None
    old = {row.sample_id: is_right(row) for row in said[before]}
    pairs = [(old[row.sample_id], is_right(row)) for row in said[after] if row.sample_id in old]
    counts = {key: pairs.count(key) for key in ((False, True), (True, False), (True, True), (False, False))}
    return PairedTally(benchmark, before, after, *counts.values())


def tested(run: RunFiles, benchmark: str) -> list[Card]:
    """Benchmark samples with what every policy says: mostly where policies differ, some all wrong, some all right."""
    said = {policy: run.predictions.get(benchmark, {}).get(policy, ()) for policy in run.outcome.policies}
    by_sample = {policy: {row.sample_id: row for row in rows} for policy, rows in said.items() if rows}
    if not by_sample:
        return []
    first = next(iter(by_sample.values()))
    order = sorted(first.values(), key=lambda row: content_id("gallery", row.sample_id))
    cards: list[Card] = []
    shown: set[str] = set()
    for wanted, most in TESTED:
        taken = 0
        for sample in order:
            rows = {policy: found[sample.sample_id] for policy, found in by_sample.items() if sample.sample_id in found}
            right = [is_right(row) for row in rows.values()]
            kind = "all right" if all(right) else "differ" if any(right) else "all wrong"
            if taken == most or kind != wanted or sample.image in shown:
                continue
            shown.add(sample.image)
            taken += 1
            cards.append(_tested(run, sample, rows, right, kind))
    return cards


def _tested(run: RunFiles, sample: Prediction, rows: dict[str, Prediction], right: Sequence[bool], kind: str) -> Card:
    return Card(
        image=thumbnail(run.images, sample.image),
        head=f"{sample.kind} question · " + ("policies differ" if kind == "differ" else kind),
        question=shorten(sample.question, 240),
        reference=shorten(" / ".join(dict.fromkeys(sample.targets)), 200),
        said=tuple(
            ShownAnswer(policy_label(policy), shorten(row.completion, 200) or "(nothing)", "right" if good else "wrong")
            for (policy, row), good in zip(rows.items(), right, strict=True)
        ),
    )
