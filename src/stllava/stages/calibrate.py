"""Labelled questions, and how often an expert errs by them.

`ask_labelled` reads samples with known answers and writes `questions.jsonl`, which `answer` reads like those that a policy
asked. `audit_expert` reads the answers, an expert's judgments of them and the labels, and writes `expert-audit.json`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from stllava.config import JudgeOptions, PairOptions
from stllava.data.balance import opening_words
from stllava.data.benchmarks.own import read_samples
from stllava.data.borrowing import bare
from stllava.errors import StllavaError
from stllava.experts.answer_pairs import pairs_of
from stllava.experts.calibration import Outcomes, image_of
from stllava.experts.error_topics import KnownVerdict, find_error_topics, words_of
from stllava.experts.judged_answers import read_judged_answers
from stllava.experts.paraphrases import AnswerErrors
from stllava.experts.rules.itself import ENOUGH
from stllava.experts.rules.reference import ReferenceJudge
from stllava.experts.selection import vote
from stllava.metrics.agreement import rate
from stllava.records import Answers, AuditedKind, AuditedTopic, ExpertAudit, Judgment, Question, Rate, Sampling, content_id
from stllava.stages.results import AskResult
from stllava.store import (
    AUDITED,
    Existing,
    Input,
    Inputs,
    file_hash,
    open_stage,
    output_hash,
    read_record,
    write_whole,
)

NOT_SAMPLED = Sampling(temperature=0.0, top_k=0, top_p=1.0, max_new_tokens=0, seed=0)
"""Nobody sampled the words of a labelled question."""
Known = tuple[Answers, Judgment, tuple[float, ...]]
"""Answers, what the expert says of them, and their scores by the labels."""
MAX_ERROR = 0.45
"""The largest share of errors that is reckoned with: at one half a verdict says nothing, and beyond that the opposite."""
HALF = 0.5
"""An answer that scores less by its label is wrong; one between this and 1 is neither right nor wrong."""


def ask_labelled(options: JudgeOptions, *, samples: Path, to: Path, number: int, existing: Existing = "resume") -> AskResult:
    """Write questions with known answers into `to`: `number` of them at most, chosen by chance, each once.

    Multiple-choice questions and those whose known answers disagree are left out.

    Args:
        options: The expert that is calibrated.
        samples: JSONL of samples: questions with known answers.
        to: Folder for the questions (questions.jsonl).
        number: Maximum number of questions.
        existing: What to do with output that is there: resume it, replace it, or end in an error.
    """
    inputs: Inputs = {"samples": Input(samples, file_hash), "number": str(number)}
    with open_stage("calibrate", to, options, inputs=inputs, existing=existing) as stage:
        if stage.manifest is not None:
            return AskResult(to, stage.manifest)
        given = read_samples(samples)[0]
        labels = ReferenceJudge(given)
        fit = {
            (row.image, bare(row.question)): row
            for row in given
            if not row.choices and labels.objection(row.question, (row.image,)) is None
        }
        chosen = sorted(fit.values(), key=lambda row: content_id("calibrate", row.image, row.question))[:number]
        questions = [
            Question(
                id=content_id("question", row.image, row.question, "labels"),
                images=(row.image,),
                text=row.question,
                description="",
                policy="labels",
                sampling=NOT_SAMPLED,
            )
            for row in chosen
        ]
        stage.write_records("questions", questions)
        return AskResult(to, stage.finish(counts_in=len(given), counts_out=len(questions)))


def audit_expert(
    options: PairOptions, *, answers: Path, judgments: Path, labels: Path, to: Path, existing: Existing = "resume"
) -> ExpertAudit:
    """Estimate an expert's rate of errors; write `audit.json` to `to`.

    Args:
        options: How pairs are made, whose errors are counted too; an `expert_error` of 0 stands for the one found here.
        answers: Folder of a policy's answers to labelled questions.
        judgments: Folder of the expert's judgments of them.
        labels: JSONL of samples: the questions with their known answers.
        to: Folder for the audit.
        existing: What to do with output that is there: resume it, replace it, or end in an error.

    Raises:
        StllavaError: Where `min_confidence` is to reckon with the errors and no verdict could be compared with a label.
    """
    inputs: Inputs = {
        "answers": Input(answers, output_hash),
        "judgments": Input(judgments, output_hash),
        "labels": Input(labels, file_hash),
    }
    with open_stage("expert-audit", to, options, inputs=inputs, existing=existing) as stage:
        if stage.manifest is not None:
            return read_record(to / AUDITED, ExpertAudit)
        judged = list(read_judged_answers(answers, judgments))
        truth = ReferenceJudge(read_samples(labels)[0])
        known = [
            (answered, judgment, scores)
            for answered, judgment in judged
            if judgment.scores is not None and (scores := truth.judge(answered).scores) is not None
        ]
        made = audit_of(known, options=options, expert=judged[0][1].expert if judged else "")
        if made.wrong is None and options.min_confidence and not options.expert_error:
            raise StllavaError(
                f"{made.sentences[0]} So pair.min_confidence, {options.min_confidence:g}, has no rate of errors to go by",
                expected="verdicts on answers to labelled questions",
                remedy="Set pair.expert_error, or pair.min_confidence to 0, and give the same command again; an audit of more "
                "questions (judge.audit) or of another expert begins in another folder.",
            )
        write_whole(to / AUDITED, made.model_dump_json(indent=1) + "\n")
        measures = {"wrong": made.wrong.value, "wrong_n": float(made.wrong.n)} if made.wrong is not None else {}
        stage.finish(counts_in=len(judged), counts_out=len(known), measures=measures)
        return made


def audit_of(known: Sequence[Known], *, options: PairOptions, expert: str) -> ExpertAudit:
    """The audit of verdicts whose truth is known."""
    verdicts = [
        KnownVerdict(
            words_of(bare(answers.question), vote(text)), right, called, opening_words(answers.question), image_of(answers)
        )
        for answers, judgment, truth in known
        for text, right, called in verdicts_of(answers, judgment, truth, min_score=options.min_chosen_score)
    ]
    topics, others = find_error_topics(verdicts)
    kinds: dict[str, list[KnownVerdict]] = {}
    for verdict in others:
        kinds.setdefault(verdict.opening, []).append(verdict)
    found = ExpertAudit(
        expert=expert,
        questions=len(known),
        **_errors_in(verdicts),
        wrong_pairs=None,
        wrong_chosen=None,
        kinds=tuple(
            AuditedKind(opening=opening, wrong=wrong)
            for opening, kind in sorted(kinds.items())
            if len(kind) >= ENOUGH and (wrong := _wrong_of(kind)) is not None
        ),
        topics=tuple(AuditedTopic.model_validate({"word": word, **_errors_in(naming)}) for word, naming in topics.items()),
        elsewhere=_wrong_of(others) if topics else None,
    )
    options = with_errors(options, found)
    pairs, chosen = Outcomes(), Outcomes()
    for answers, judgment, truth in known:
        scores = dict(zip(answers.completions, truth, strict=True))
        made = pairs_of(answers, judgment, options=options)
        for pair in made if not isinstance(made, str) else ():
            if pair.chosen in scores and scores[pair.chosen] != scores[pair.rejected]:
                pairs.add(scores[pair.chosen] < scores[pair.rejected], image_of(answers))
            if pair.chosen in scores:
                chosen.add(scores[pair.chosen] < HALF, image_of(answers))
    return found.model_copy(
        update={"wrong_pairs": rate(pairs.hits, pairs.images), "wrong_chosen": rate(chosen.hits, chosen.images)}
    )


def _errors_in(verdicts: Sequence[KnownVerdict]) -> dict[str, Rate | None]:
    """How many verdicts are wrong: of all, of those on right answers, and of those on wrong ones."""
    return {
        "wrong": _wrong_of(verdicts),
        "misses": _wrong_of([verdict for verdict in verdicts if verdict.is_right]),
        "false_alarms": _wrong_of([verdict for verdict in verdicts if not verdict.is_right]),
    }


def _wrong_of(verdicts: Sequence[KnownVerdict]) -> Rate | None:
    return rate([verdict.is_wrong for verdict in verdicts], [verdict.image for verdict in verdicts])


def verdicts_of(
    answers: Answers, judgment: Judgment, truth: Sequence[float], *, min_score: float
) -> Iterator[tuple[str, bool, bool]]:
    """Each different answer, whether it is right and whether the expert calls it right; those that are neither are left out."""
    seen: set[str] = set()
    for text, score, known in zip(answers.final_answers, judgment.scores or (), truth, strict=True):
        if text not in seen and (known == 1 or known < HALF):
            seen.add(text)
            yield text, known == 1, score >= min_score


def with_errors(options: PairOptions, found: ExpertAudit) -> PairOptions:
    """The options with an expert's errors as an audit found them, where they matter and none are given.

    A kind of question has a rate of its own where its interval does not hold the rate of all: the rest is chance. The fewer
    errors in verdicts that name no topic are not reckoned with: a policy asks what labels do not, and no word may show there
    what the expert mixes up.
    """
    overall = found.wrong
    if overall is None or not options.min_confidence or options.expert_error:
        return options
    kinds = {
        kind.opening: error_of(kind.wrong) for kind in found.kinds if not kind.wrong.low <= overall.value <= kind.wrong.high
    }
    given = options.expert_errors_about
    topics = {topic.word: _errors_about(topic) for topic in found.topics if topic.word not in given}
    return options.model_copy(
        update={
            "expert_error": error_of(overall),
            "expert_errors": kinds | options.expert_errors,
            "expert_errors_about": given | topics,
        }
    )


def error_of(found: Rate) -> float:
    """A rate of errors to reckon with: as if one more of two more verdicts had been wrong, and `MAX_ERROR` at most."""
    return min(_expected_error(found), MAX_ERROR)


def _errors_about(topic: AuditedTopic) -> AnswerErrors:
    """Rates of errors about a topic to reckon with: seldom are there enough right answers among those that name it.

    Each is taken as if of two more verdicts as many had been wrong as of all on the topic.
    """
    overall = _expected_error(topic.wrong)
    among = [(found.n, found.value) if found is not None else (0, 0.0) for found in (topic.misses, topic.false_alarms)]
    return AnswerErrors(*((count * share + 2 * overall) / (count + 2) for count, share in among))


def _expected_error(found: Rate) -> float:
    return (found.value * found.n + 1) / (found.n + 2)


def audit_warnings(found: ExpertAudit, *, options: PairOptions, smooth_labels: bool) -> list[str]:
    """What an audit found that learning cannot make good, in sentences: too many errors to reckon with or no rate at all.

    Args:
        found: The audit.
        options: How pairs are made; with `min_confidence` and no `expert_error` they reckon with what was found.
        smooth_labels: Whether label smoothing is taken from it.
    """
    warnings: list[str] = []
    reckons = bool(options.min_confidence) and not options.expert_error
    instead = f"; pair.min_confidence reckons with {MAX_ERROR:.0%}, the most it can" if reckons else ""
    if found.wrong is not None and _expected_error(found.wrong) > MAX_ERROR:
        warnings.append(
            f"{found.expert} is wrong about {found.wrong.value:.1%} of single answers: what is learned from its verdicts is no "
            f"better than chance{instead}. Choose another expert."
        )
    used = with_errors(options, found) if reckons else PairOptions()
    many = [kind for kind in found.kinds if kind.opening in used.expert_errors and _expected_error(kind.wrong) > MAX_ERROR]
    if many and not warnings:
        kinds = ", ".join(f"“{kind.opening} …” ({kind.wrong.value:.1%})" for kind in many)
        warnings.append(f"About {kinds} {found.expert} is wrong so often that a verdict says nothing{instead}.")
    mixed = [
        f"“{topic.word}” ({topic.wrong.value:.1%})"
        for topic in found.topics
        if topic.word in used.expert_errors_about and AnswerErrors(*used.expert_errors_about[topic.word]).say_nothing
    ]
    if mixed:
        warnings.append(
            f"About {', '.join(mixed)} {found.expert} is wrong so often that its verdicts say nothing or the contrary: few "
            "answers that name this are chosen, and only labels or another expert can teach it."
        )
    if smooth_labels and found.wrong_pairs is None:
        warnings.append(
            "No pair of the audit could be compared with the labels, so judge.smooth_labels has no effect: pairs are learned "
            "without label smoothing."
        )
    elif smooth_labels and found.wrong_pairs is not None and _expected_error(found.wrong_pairs) > MAX_ERROR:
        warnings.append(
            f"Of the pairs that come of {found.expert}'s verdicts {found.wrong_pairs.value:.1%} are the wrong way round: they "
            f"are learned with a label smoothing of {MAX_ERROR:g}, the most there is, and teach next to nothing."
        )
    return warnings
