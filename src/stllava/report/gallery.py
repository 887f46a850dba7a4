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
from stllava.report.record_places import RecordPlaces, by_content
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
        answers, questions = RecordPlaces(row.id for row in part.answers), RecordPlaces(row.id for row in part.questions)
        pairs = RecordPlaces(row.lineage.judgment_id for row in part.preferences)
        order = by_content(content_id("gallery", judgment.id) for judgment in part.judgments)
        pair_of = pairs.find(RecordPlaces(judgment.id for judgment in part.judgments).hashes)
        for wanted, most in ((True, paired), (False, unpaired)):
            taken = 0
            for place in order[(pair_of[order] >= 0) == wanted].tolist():
                if taken == most:
                    break
                judgment = part.judgments[place]
                at = answers.place(judgment.answers_id)
                given = None if at is None else part.answers[at]
                if given is None or not given.images or given.images[0] in shown:
                    continue
                shown.add(given.images[0])
                taken += 1
                asked = questions.place(given.question_id)
                described = "" if asked is None else part.questions[asked].description
                pair = part.preferences[int(pair_of[place])] if wanted else None
                cards.append(_judged(run, part.name, given, judgment, pair, described))
    return cards


def _judged(run: RunFiles, name: str, answers: Answers, judgment: Judgment, pair: Preference | None, described: str) -> Card:
    scores = judgment.scores or (0.0,) * len(answers.completions)
    rows = Counter(zip(scores, answers.completions, strict=True))
    own = [] if judgment.correction is None else [judgment.correction]
    reason = judgment.reason or ("No reason was given." if judgment.scores else "No verdict.")
    if pair is not None and pair.lineage.overruled:
        reason = f"Overruled by what the expert said of the same question in other words. {reason}"
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
        verdict=shorten(reason, 280),
    )


def tally(run: RunFiles, benchmark: str, after: str) -> PairedTally | None:
    """How sft and another policy fare on a benchmark's samples, one against the other."""
    said = run.predictions.get(benchmark, {})
    before = run.outcome.policies[0]
    if before not in said or after not in said or before == after:
        return None
    old, new = _Marks(said[before]), _Marks(said[after])
    at = old.samples.find(new.samples.hashes)
    was, now = old.right[at[at >= 0]], new.right[at >= 0]
    return PairedTally(
        benchmark,
        before,
        after,
        gained=int((~was & now).sum()),
        lost=int((was & ~now).sum()),
        both_right=int((was & now).sum()),
        both_wrong=int((~was & ~now).sum()),
    )


class _Marks:
    """Which of a policy's answers are right, a dozen bytes an answer."""

    def __init__(self, rows: Sequence[Prediction]) -> None:
        self.rows = rows
        self.samples = RecordPlaces(row.sample_id for row in rows)
        self.right = np.fromiter((is_right(row) for row in rows), dtype=np.bool_)


def tested(run: RunFiles, benchmark: str) -> list[Card]:
    """Benchmark samples with what every policy says: mostly where policies differ, some all wrong, some all right."""
    said = {policy: run.predictions.get(benchmark, {}).get(policy, ()) for policy in run.outcome.policies}
    marks = {policy: _Marks(rows) for policy, rows in said.items() if rows}
    if not marks:
        return []
    first = next(iter(marks.values()))
    order = by_content(content_id("gallery", row.sample_id) for row in first.rows)
    at = {policy: mark.samples.find(first.samples.hashes) for policy, mark in marks.items()}
    answered = sum((places >= 0).astype(np.int64) for places in at.values())
    right = sum((places >= 0) & marks[policy].right[places] for policy, places in at.items())
    kinds = np.where(right == answered, "all right", np.where(right > 0, "differ", "all wrong"))
    cards: list[Card] = []
    shown: set[str] = set()
    for wanted, most in TESTED:
        taken = 0
        for place in order[kinds[order] == wanted].tolist():
            if taken == most:
                break
            sample = first.rows[place]
            if sample.image in shown:
                continue
            shown.add(sample.image)
            taken += 1
            rows = {policy: marks[policy].rows[places[place]] for policy, places in at.items() if places[place] >= 0}
            cards.append(_tested(run, sample, rows, [is_right(row) for row in rows.values()], wanted))
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
