"""Judgments as they are written: the expert's, then the policy's own votes; of all answers at once, or shard by shard.

A shard keeps its judgments in chunks (`judge_shard`), from which `JudgedChunks` gives all of them in the order of the answers.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stllava.config import JudgeOptions
from stllava.dropped import Dropped
from stllava.experts.budgeting import Chosen
from stllava.experts.expert import Expert, Verdict
from stllava.experts.rules.itself import ItselfJudge
from stllava.experts.vote_monitor import VoteMonitor
from stllava.records import Answers, Judgment, Manifest, content_id
from stllava.store import (
    PARTS,
    FinishedChunk,
    Shard,
    ShardRows,
    Stage,
    chunk_id,
    in_chunks,
    not_in_shards,
    read_chunk,
    write_chunk,
)

JUDGED_BEFORE = Verdict(scores=None, cause="abstained", reason="the expert has judged other answers to this question")
"""The policy's own vote on a question that an earlier verdict is about."""


def judgments_of(
    expert: Expert, chosen: Chosen, vote: ItselfJudge | None, monitor: VoteMonitor | None, *, correct: bool
) -> Iterator[Judgment]:
    """The expert's judgments, then those of the policy's own `vote` on what the expert was not asked; votes are watched."""
    verdicts = chosen.verdicts(expert)
    for row in monitor.watch(verdicts) if monitor is not None and vote is None else verdicts:
        yield judgment_of(expert, *row, correct=correct)
    if vote is not None:
        yield from own_votes(vote, chosen, monitor)


def own_votes(vote: ItselfJudge, chosen: Chosen, monitor: VoteMonitor | None) -> Iterator[Judgment]:
    """What the policy's own vote says of the answers that the expert was not asked about, where it says anything.

    Of a question that the expert has judged before, with other answers, it says nothing: it could only contradict what was paid
    for.
    """
    voted = ((row, JUDGED_BEFORE if chosen.known.has_any(row) else vote.judge(row)) for row in chosen.left_out())
    for answers, verdict in monitor.watch(voted) if monitor is not None else voted:
        if verdict.scores is not None:
            yield judgment_of(vote, answers, verdict)


def judgment_of(expert: Expert, answers: Answers, verdict: Verdict, *, correct: bool = False) -> Judgment:
    """The record of a verdict; an expert that knows the right answer says it only where it is to `correct`."""
    return Judgment(
        id=content_id("judgment", answers.id, expert.name, expert.prompt_hash),
        answers_id=answers.id,
        scores=verdict.scores,
        cause=verdict.cause,
        reason=verdict.reason,
        expert=expert.name,
        prompt_hash=expert.prompt_hash,
        comparisons=verdict.comparisons,
        context=verdict.context,
        raw=verdict.raw,
        usage=verdict.usage,
        cost=verdict.cost,
        agreement=verdict.agreement,
        correction=verdict.correction if correct else None,
    )


def expert_notes(expert: Expert, vote: ItselfJudge | None) -> tuple[str, ...]:
    """What a reader of the manifest must know of who judged."""
    return (
        f"The expert is called {expert.name}. {expert.method}",
        *([f"On what it was not asked, the policy's own answers voted. {vote.method}"] if vote is not None else []),
        *filter(None, (expert.damage,)),
    )


def judge_shard(
    stage: Stage, shard: Shard, options: JudgeOptions, expert: Expert, chosen: Chosen, vote: ItselfJudge | None
) -> Manifest:
    """Judge one shard's chunks of the answers and keep them as parts, the expert's verdicts apart from the policy's votes."""
    own = replace(chosen, given=ShardRows(chosen.given, shard, options.chunk))
    expert.prepare(own)
    parts: list[Path] = []
    rows_in = judged = 0
    for rows in in_chunks(own.given, options.chunk):
        part = replace(chosen, given=rows)
        verdicts = list(judgments_of(expert, part, None, None, correct=options.correct))
        votes = list(own_votes(vote, part, None)) if vote is not None else []
        rows_in, judged = rows_in + len(rows), judged + len(verdicts) + len(votes)
        for judgments, path in zip((verdicts, votes), judged_chunks(stage.to / PARTS, rows), strict=True):
            write_chunk(path, FinishedChunk(judgments, Dropped(), expert_notes(expert, vote)))
            parts.append(path)
    return stage.finish_shard(parts, counts_in=rows_in, counts_out=judged, dropped={}, measures=chosen.measures)


def judged_chunks(parts: Path, rows: Sequence[Answers]) -> tuple[Path, Path]:
    """Where what the expert says of a chunk of answers is kept, and what the policy's own vote says of the others in it."""
    key = chunk_id(rows)
    return parts / f"{key}.jsonl", parts / f"{key}-votes.jsonl"


@dataclass
class JudgedChunks:
    """The judgments that the shards of a stage have made."""

    given: Iterable[Answers]
    """All answers."""
    parts: Path
    """Where the chunks are."""
    size: int
    """Answers a chunk."""
    votes: bool
    """Whether the policy's own vote judged what the expert was not asked."""
    notes: tuple[str, ...] = ()
    """What the shards say of who judged, once the judgments were gone through."""

    def judgments(self, monitor: VoteMonitor | None) -> Iterator[Judgment]:
        """The expert's judgments, then those of the policy's own vote; votes are watched."""
        for index, (rows, verdicts, _) in enumerate(self._chunks()):
            if verdicts is None:
                raise not_in_shards("judge", [index])
            self.notes = tuple(dict.fromkeys((*self.notes, *verdicts.notes)))
            yield from verdicts.records
            self._watch(monitor if not self.votes else None, rows, verdicts.records)
        for index, (rows, verdicts, votes) in enumerate(self._chunks() if self.votes else ()):
            if verdicts is None or votes is None:
                raise not_in_shards("judge", [index])
            yield from votes.records
            asked = {judgment.answers_id for judgment in verdicts.records}
            self._watch(monitor, [row for row in rows if row.id not in asked], votes.records)

    def _chunks(self) -> Iterator[tuple[list[Answers], FinishedChunk[Judgment] | None, FinishedChunk[Judgment] | None]]:
        """Every chunk of answers with what was said of it."""
        for rows in in_chunks(self.given, self.size):
            verdicts, votes = (read_chunk(path, Judgment) for path in judged_chunks(self.parts, rows))
            yield rows, verdicts, votes

    def _watch(self, monitor: VoteMonitor | None, rows: Sequence[Answers], judgments: Sequence[Judgment]) -> None:
        """Count the votes on answers, of which these judgments have verdicts or none."""
        if monitor is not None:
            scored = {judgment.answers_id for judgment in judgments if judgment.scores is not None}
            for row in rows:
                monitor.count(row, has_verdict=row.id in scored)
