"""An expert scores the answers.

Reads answers and what the expert knows; writes `judgments.jsonl`, one for every set of answers: where there is no
verdict, the judgment says why. An expert that is a model is asked first, and what it replies kept in `exchanges/`;
judgments are then made from there, so a stage that was stopped asks nothing twice.

`plan` says what that would take without asking anything; `check` measures how far the expert can be trusted.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from stllava.config import JudgeOptions
from stllava.errors import StllavaError
from stllava.experts.budgeting import Chosen
from stllava.experts.build import ExpertInputs, expert_of, judge_that_knows, own_vote
from stllava.experts.calibration import Truths, sample_of, truths_of_expert, truths_of_votes
from stllava.experts.calibration import check as check_expert
from stllava.experts.expert import Expert, no_verdict, shown
from stllava.experts.judged_answers import read_judged_answers
from stllava.experts.model.model_expert import ModelExpert
from stllava.experts.model.verdict_parser import RAISE
from stllava.experts.panel import Panel
from stllava.experts.rules.oracle import Oracle
from stllava.experts.selection import KnownVerdicts
from stllava.experts.vote_monitor import VoteMonitor
from stllava.records import Answers, JudgeCheck, Judgment, VerdictCause, Vote
from stllava.remote.refusals import advice
from stllava.stages.judgments import JudgedChunks, expert_notes, judge_shard, judgment_of, judgments_of
from stllava.stages.results import VERDICTS, JudgeResult
from stllava.store import (
    CHECK,
    EXCHANGES,
    PARTS,
    Existing,
    Input,
    Inputs,
    file_hash,
    gathered_now,
    open_stage,
    output_hash,
    read_jsonl,
    read_record,
    read_records,
    shares_out,
    stream_records,
    write_whole,
)


@shares_out
def judge(
    options: JudgeOptions,
    *,
    answers: Path,
    truth: Path | None = None,
    root: Path | None = None,
    to: Path,
    earlier: Sequence[tuple[Path, Path]] = (),
    labels: Path | None = None,
    labelled_answers: Path | None = None,
    seed: int = 0,
    may_abstain: bool = False,
    existing: Existing = "resume",
    shard: str | None = None,
) -> JudgeResult:
    """Let an expert judge the folder `answers`.

    With a budget only the answers chosen within it are judged (`experts/selection.py`), and the others get no judgment.

    `truth` (JSONL of phantom truths or reference samples) is what the oracle, the simulated and the reference expert
    know; a model sees the images under `root`. An expert that abstains on everything ends the stage with an error
    unless it `may_abstain`.

    Args:
        options: Which expert, and how it is asked.
        answers: Folder of the answers.
        truth: JSONL of phantom truths or reference samples, for experts that know the answer.
        root: The image root, for experts that are models.
        to: Folder for the judgments (judgments.jsonl).
        earlier: Folders of answers and of their judgments by the same expert, the oldest first: what one of those verdicts
            covers is taken from there, and costs nothing.
        labels: JSONL of questions with known answers, by which the expert itself finds out how far votes can be trusted.
        labelled_answers: Folder of the policy's answers to those questions.
        seed: Seed of the run; decides between questions that are worth as much within a budget.
        may_abstain: Whether an expert may abstain on everything without ending the stage in an error.
        existing: What to do with output that is there: resume it, replace it, or end in an error.
        shard: i/n: do the i-th of n equal parts of the work, in a folder of its own below `to`; `stllava gather` then makes the
            whole of them. Limits of rate and cost hold for each shard by itself.

    Raises:
        StllavaError: Where the expert cannot begin, cannot be reached, or gives no verdict; replies that were paid for are
            kept.
    """
    inputs: Inputs = {"answers": Input(answers, output_hash), "truth": _file(truth), "seed": str(seed)} | _others(options)
    if (labels or labelled_answers) is not None and not options.votes:
        raise StllavaError(
            f"labels are named, and the expert is {options.expert}",
            expected="labels with the expert itself, or with consensus within a budget: by them own votes are calibrated",
            remedy="Leave labels and labelled_answers out.",
        )
    if labels is not None:
        inputs["labels"] = Input(labels, file_hash)
    if labelled_answers is not None:
        inputs["labelled answers"] = Input(labelled_answers, output_hash)
    for number, (before, judged) in enumerate(earlier, 1):
        inputs |= {f"answers {number}": Input(before, output_hash), f"judgments {number}": Input(judged, output_hash)}
    if shard is not None and options.budget_cost:
        raise StllavaError(
            "judge.budget_cost with a shard, which knows what its own questions cost and not what the others' do",
            expected="budget, a number of questions, or no shard",
            remedy="Set budget instead.",
        )
    with open_stage("judge", to, options, inputs=inputs, existing=existing, shard=shard) as stage:
        if stage.manifest is not None:
            return JudgeResult(stage.to, stage.manifest)
        given, tally = stream_records(answers, "answers", Answers), Tally()
        monitor = VoteMonitor(judge_that_knows(truth) if truth is not None else None) if options.votes else None
        if (gathered := gathered_now()) is not None:
            pieces = JudgedChunks(given, stage.to / PARTS, options.chunk, options.consensus and options.is_limited)
            stage.write_records("judgments", tally.count(pieces.judgments(monitor)))
            notes, measures = pieces.notes, gathered.measures
        else:
            known = ExpertInputs(stage.to, root, truth, labels=labels, labelled_answers=labelled_answers)
            with expert_of(options, known) as expert:
                chosen = Chosen.among(given, known=known_verdicts(earlier, expert), expert=expert, options=options, seed=seed)
                vote = own_vote(options, known) if options.consensus and options.is_limited else None
                if stage.shard is not None:
                    return JudgeResult(stage.to, judge_shard(stage, stage.shard, options, expert, chosen, vote))
                chosen = chosen.ask(expert)
                stage.write_records(
                    "judgments", tally.count(judgments_of(expert, chosen, vote, monitor, correct=options.correct))
                )
            notes, measures = (*expert_notes(expert, vote), *filter(None, (chosen.note,))), chosen.measures
        tally.check(options, may_abstain=may_abstain)
        manifest = stage.finish(
            counts_in=tally.judged,
            counts_out=tally.judged,
            measures={**tally.measures, **measures, **(monitor.measures if monitor is not None else {})},
            notes=notes,
        )
        return JudgeResult(to, manifest)


def known_verdicts(earlier: Sequence[tuple[Path, Path]], expert: Expert) -> KnownVerdicts:
    """What this very expert said before, by this very rubric."""
    known = KnownVerdicts()
    for answers, judgments in earlier:
        for answered, judgment in read_judged_answers(answers, judgments):
            if (judgment.expert, judgment.prompt_hash) == (expert.name, expert.prompt_hash):
                known.add(answered, judgment)
    return known


@dataclass(frozen=True)
class JudgePlan:
    """What judging would take."""

    prompt: str
    """The first prompt; empty when nothing is asked."""
    requests: int
    """Requests still to be sent, if none is repeated."""
    cost: float | None
    """US dollars they cost at most, by the prices in the options; None where an expert is asked whose price is not given."""


def plan(
    options: JudgeOptions,
    *,
    answers: Path,
    truth: Path | None = None,
    root: Path | None = None,
    to: Path,
    seed: int = 0,
) -> JudgePlan:
    """What judging the folder `answers` into `to` would still take; asks nothing and writes nothing."""
    with TemporaryDirectory() as spare:
        folder = to if (to / EXCHANGES).is_dir() else Path(spare)
        prompt, requests = "", 0
        cost: float | None = 0.0
        with expert_of(options, ExpertInputs(folder, root, truth, asks=False)) as expert:
            experts = expert.members if isinstance(expert, Panel) else (expert,)
            members = [member for member in experts if isinstance(member, ModelExpert)]
            given = stream_records(answers, "answers", Answers)
            for row in Chosen.among(given, known=KnownVerdicts(), expert=expert, options=options, seed=seed):
                for member in members:
                    for request in member.missing(row):
                        prompt, requests, max_cost = prompt or request.text, requests + 1, member.max_cost(request)
                        cost = None if cost is None or max_cost is None else cost + max_cost
        return JudgePlan(prompt, requests, cost)


def check(
    options: JudgeOptions,
    *,
    answers: Path,
    truth: Path | None = None,
    root: Path | None = None,
    votes: Path | None = None,
    sample: int = 100,
    to: Path,
    existing: Existing = "resume",
) -> JudgeCheck:
    """Measure an expert on a sample of the folder `answers`; write `check.json` to `to`.

    It is asked in two orders at least and, if it is a model, everything twice. Its verdicts are compared with `votes`
    (JSONL of Vote, made by people) or with what `truth` says, of phantoms or in reference samples.
    """
    thorough = options.model_copy(update={"orders": max(2, options.orders), "repeats": max(2, options.repeats)})
    inputs: Inputs = {
        "answers": Input(answers, output_hash),
        "truth": _file(truth),
        "votes": _file(votes),
        "sample": str(sample),
    }
    with open_stage("judge-check", to, thorough, inputs=inputs | _others(options), existing=existing) as stage:
        if stage.manifest is not None:
            return read_record(to / CHECK, JudgeCheck)
        every = read_records(answers, "answers", Answers)
        given = sample_of(every, sample)
        truths: Truths = {}
        name = ""
        if votes is not None:
            people = read_jsonl(votes, Vote)
            _refuse_other_votes(people, every, votes=votes, answers=answers)
            truths, name = truths_of_votes(people), "people"
        elif truth is not None and options.expert != "reference" and not options.show_references:
            knowing = judge_that_knows(truth)
            truths, name = truths_of_expert(knowing, given), "the oracle" if isinstance(knowing, Oracle) else "the references"
        with expert_of(thorough, ExpertInputs(to, root, truth)) as expert:
            expert.prepare(given)
            tally = Tally()
            if (
                not any(
                    judgment.scores is not None
                    for judgment in tally.count(judgment_of(expert, row, expert.judge(row)) for row in given)
                )
                and given
            ):
                raise no_verdict(expert.name, f"any of {tally.judged} questions", tally.causes, tally.examples, ended=True)
            measured = check_expert(expert, given, truths=truths, truth=name)
        write_whole(to / CHECK, measured.model_dump_json(indent=1) + "\n")
        stage.finish(counts_in=len(given), counts_out=len(given))
        return measured


def _refuse_other_votes(people: Sequence[Vote], given: Sequence[Answers], *, votes: Path, answers: Path) -> None:
    """Refuse votes of which one is about other answers."""
    known = {row.id for row in given}
    other = next((vote for vote in people if vote.answers_id not in known), None)
    if other is not None:
        raise StllavaError(
            f"{votes}: vote {other.id} is about answers {other.answers_id}, which {answers} does not hold",
            expected="votes on these answers",
            remedy="Name the folder that people voted on.",
        )


@dataclass
class Tally:
    """Counts judgments as they pass by."""

    judged: int = 0
    expert: str = ""
    causes: Counter[VerdictCause] = field(default_factory=Counter)
    scores: int = 0
    total: float = 0.0
    compared: int = 0
    undecided: int = 0
    flipped: int = 0
    cost: float = 0.0
    usage: Counter[str] = field(default_factory=Counter)
    agreements: int = 0
    agreement: float = 0.0
    examples: dict[VerdictCause, str] = field(default_factory=dict)
    corrections: int = 0

    def count(self, judgments: Iterator[Judgment]) -> Iterator[Judgment]:
        """The judgments, one by one."""
        for judgment in judgments:
            self.judged += 1
            self.expert = self.expert or judgment.expert
            if judgment.scores is None:
                cause = judgment.cause or "failed"
                self.causes[cause] += 1
                # A reply that was cut off is told by the reason, all others by their own words.
                words = judgment.reason if cause == "unparsed" and RAISE in judgment.reason else next(iter(judgment.raw), "")
                self.examples.setdefault(cause, words or judgment.reason)
            else:
                self.scores += len(judgment.scores)
                self.total += sum(judgment.scores)
            comparisons = [comparison for comparison in judgment.comparisons if comparison.cause is None]
            self.compared += len(comparisons)
            self.undecided += sum(comparison.winner is None for comparison in comparisons)
            self.flipped += sum(comparison.flipped for comparison in comparisons)
            self.cost += judgment.cost
            self.usage.update(judgment.usage)
            if judgment.agreement is not None:
                self.agreements += 1
                self.agreement += judgment.agreement
            self.corrections += judgment.correction is not None
            yield judgment

    def check(self, options: JudgeOptions, *, may_abstain: bool) -> None:
        """Stop where there is no verdict at all, where too many requests failed, or where the order decides too often."""
        abstained = may_abstain and self.causes["abstained"] == self.judged
        if self.judged and self.causes.total() == self.judged and not abstained:
            raise no_verdict(self.expert, f"any of {self.judged} questions", self.causes, self.examples, ended=True)
        failed = self.causes["failed"]
        if failed > options.max_failed * self.judged:
            example = shown(self.examples["failed"])
            again = "give the same command again, which asks only what was not answered"
            known = advice(example)
            raise StllavaError(
                f"{failed} of {self.judged} questions have no verdict because requests failed, such as “{example}”",
                expected=f"at most {options.max_failed:.0%} (max_failed)",
                remedy=f"{known} Or raise max_failed to go on without them." if known else f"Correct that and {again}.",
            )
        if self.flipped > options.max_flips * self.compared:
            raise StllavaError(
                f"in {self.flipped} of {self.compared} comparisons the order of the answers decided which one won",
                expected=f"at most {options.max_flips:.0%} (max_flips)",
                remedy="Use a better expert or rubric (stllava judge --check measures one), or raise max_flips.",
            )

    @property
    def measures(self) -> dict[str, float]:
        """What the manifest says of them."""
        verdicts = self.judged - self.causes.total()
        figures = {
            VERDICTS: float(verdicts),
            "verdict_share": verdicts / self.judged if self.judged else 0.0,
            "mean_score": self.total / self.scores if self.scores else 0.0,
            **{f"no_verdict_{cause.replace(' ', '_')}": float(count) for cause, count in sorted(self.causes.items())},
        }
        if self.compared:
            figures |= {"tie_share": self.undecided / self.compared, "flip_share": self.flipped / self.compared}
        if self.usage:
            figures |= {name: float(count) for name, count in sorted(self.usage.items())}
        if self.cost:
            figures["cost"] = self.cost
        if self.agreements:
            figures["panel_agreement"] = self.agreement / self.agreements
        if self.corrections:
            figures["corrections"] = float(self.corrections)
        return figures


def _file(path: Path | None) -> Input | str:
    return Input(path, file_hash) if path is not None else ""


def _others(options: JudgeOptions) -> Inputs:
    """The other files that shape verdicts, where there are any."""
    files = {"context": options.context, "rubric": options.rubric, **{f"panel {path.name}": path for path in options.panel}}
    others: Inputs = {name: Input(path, file_hash) for name, path in files.items() if path is not None}
    if options.expert == "distilled" and options.distilled.model:
        from stllava.model.load import fingerprint

        others["distilled"] = Input(options.distilled.model, fingerprint)
    return others
