"""The expert that the options name, with what it knows read from disk."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from stllava.config import ItselfOptions, JudgeOptions, SimulatedOptions
from stllava.data.benchmarks.own import read_samples
from stllava.data.phantom.truth import Truth
from stllava.errors import StllavaError
from stllava.experts.backends.batch_server import BatchBackend
from stllava.experts.backends.chat_server import ChatBackend, ChatServer
from stllava.experts.backends.scripted import ScriptedBackend, SimulatedBackend
from stllava.experts.expert import Expert
from stllava.experts.model.model_expert import ModelExpert
from stllava.experts.model.reply_log import JudgeBackend, ReplyLog
from stllava.experts.model.rubric import Mode, load_rubric
from stllava.experts.panel import Panel
from stllava.experts.rules.fallible import FallibleJudge, confused
from stllava.experts.rules.itself import ItselfJudge, Thresholds, labelled_votes, thresholds_of
from stllava.experts.rules.oracle import Oracle
from stllava.experts.rules.reference import ReferenceJudge
from stllava.recipe import load_judge
from stllava.records import Answers, Context, Sample, content_id
from stllava.remote.budget import CostLimit
from stllava.store import read_jsonl, read_records


@dataclass(frozen=True)
class ExpertInputs:
    """What experts may look at."""

    folder: Path
    """Where their exchanges and sendings are kept."""
    root: Path | None = None
    """The image root; only experts that are models need it."""
    truth: Path | None = None
    """JSONL of phantom truths or reference samples; only experts that know need it."""
    labels: Path | None = None
    """JSONL of questions with known answers; only the expert itself takes them, to learn how far votes can be trusted."""
    labelled_answers: Path | None = None
    """Folder of the policy's answers to those questions."""
    asks: bool = True
    """Whether anything will be asked: if not, no permission and no key is needed."""


@contextmanager
def expert_of(options: JudgeOptions, inputs: ExpertInputs) -> Iterator[Expert]:
    """The expert that the options name, while its reply logs are open."""
    limit = CostLimit(options.budget_cost) if options.budget_cost else None
    with ExitStack() as files:
        yield _expert(options, inputs, files, name="expert", limit=limit)


def require_expert(options: JudgeOptions, *, root: Path, truth: Path | None) -> None:
    """Refuse an expert that could not begin to judge: no key, no permission, no model, nothing to know. Nothing is asked."""
    with TemporaryDirectory() as spare, expert_of(options, ExpertInputs(Path(spare), root, truth)):
        pass


def _expert(options: JudgeOptions, inputs: ExpertInputs, files: ExitStack, *, name: str, limit: CostLimit | None) -> Expert:
    """An expert; `name` tells the exchanges of a panel's members apart, which share the `limit`."""
    if options.expert == "panel":
        if len(options.panel) < 2:
            raise StllavaError(
                "the panel has " + ("1 member" if len(options.panel) == 1 else "no members"),
                expected="at least two",
                remedy="List a YAML file of options for each member in judge.panel.",
            )
        members = [load_judge(path) for path in options.panel]
        if options.correct:
            members = [member.model_copy(update={"correct": True}) for member in members]
        if any(member.expert == "panel" for member in members):
            raise StllavaError("a panel is a member of a panel", expected="single experts", remedy="Name its members instead.")
        return Panel(
            [_expert(member, inputs, files, name=f"expert-{number}", limit=limit) for number, member in enumerate(members, 1)],
            verdict=options.verdict,
        )
    if options.expert == "simulated" and not options.compares:
        return FallibleJudge(options.simulated, _references(options.expert, inputs.truth))
    if options.expert == "itself":
        return own_vote(options, inputs)
    by_rule = rule_judge(options.expert, inputs.truth)
    if by_rule is not None:
        return by_rule
    if options.expert == "distilled":
        from stllava.experts.distilled_judge import DistilledJudge

        return DistilledJudge(options.distilled, root=_image_root(options, inputs), chunk=options.chunk)
    reply_log = files.enter_context(closing(ReplyLog(inputs.folder, name=name)))
    mode: Mode = "pairwise" if options.compares else options.mode
    structured = options.expert == "chat" and options.chat.structured
    rubric = load_rubric(options.rubric, mode=mode, structured=structured, correct=options.correct)
    backend = backend_of(options, inputs, reply_log, limit)
    return ModelExpert(backend, rubric, reply_log=reply_log, options=options, contexts=contexts_of(options, inputs))


def rule_judge(expert: str, truth: Path | None) -> Oracle | ReferenceJudge | None:
    """The expert of this name if it knows its answers from `truth`; None of every other, which must be asked."""
    if expert == "oracle":
        return Oracle(read_jsonl(_known(expert, truth), Truth))
    return ReferenceJudge(_references(expert, truth)) if expert == "reference" else None


def judge_that_knows(truth: Path) -> Oracle | ReferenceJudge:
    """The expert that knows by what stands in a file: truths of phantoms, or reference samples."""
    with truth.open("rb") as file:
        first = next((line for line in file if line.strip()), b"")
    try:
        row = json.loads(first)
    except ValueError:
        row = None  # It may be another table, of samples.
    phantoms = isinstance(row, dict) and row.keys() == Truth.model_fields.keys()
    return Oracle(read_jsonl(truth, Truth)) if phantoms else ReferenceJudge(read_samples(truth)[0])


def own_vote(options: JudgeOptions, inputs: ExpertInputs) -> ItselfJudge:
    """The vote of the policy's own answers as a judge."""
    return ItselfJudge(_thresholds(options.itself, inputs))


def _thresholds(options: ItselfOptions, inputs: ExpertInputs) -> Thresholds:
    """How many answers must agree: by votes on labelled questions where there are some."""
    if inputs.labels is None and inputs.labelled_answers is None:
        return Thresholds(options.min_agreement)
    if inputs.labels is None or inputs.labelled_answers is None:
        lacking = "labels" if inputs.labels is None else "labelled_answers"
        raise StllavaError(
            f"{'labelled_answers' if inputs.labels is None else 'labels'} without {lacking}",
            expected="labelled questions and the policy's answers to them, or neither",
            remedy=f"Name {lacking} too.",
        )
    given = read_records(inputs.labelled_answers, "answers", Answers)
    return thresholds_of(labelled_votes(given, ReferenceJudge(read_samples(inputs.labels)[0])), options=options)


def _references(expert: str, truth: Path | None) -> list[Sample]:
    """The reference samples that an expert knows."""
    return read_samples(_known(expert, truth))[0]


def contexts_of(options: JudgeOptions, inputs: ExpertInputs) -> list[Context]:
    """What a model is shown beside the image."""
    contexts = read_jsonl(options.context, Context) if options.context is not None else []
    if options.show_references:
        for sample in _references(options.expert, inputs.truth):
            text = " or ".join(sample.targets)
            key = content_id("context", sample.image, sample.question, text)
            contexts.append(Context(id=key, image=sample.image, question=sample.question, kind="reference answer", text=text))
    return contexts


def backend_of(
    options: JudgeOptions, inputs: ExpertInputs, reply_log: ReplyLog, limit: CostLimit | None = None
) -> JudgeBackend:
    """The model that the options name; what a server may cost counts towards the `limit`."""
    if options.expert == "scripted":
        return ScriptedBackend(options.scripted, mode=options.mode, correct=options.correct)
    if options.expert == "simulated":
        return SimulatedBackend(options.simulated, judge=_of_simulated(options.simulated, inputs.truth))
    root = _image_root(options, inputs)
    if options.expert == "local":
        from stllava.experts.backends.local_model import LocalBackend

        return LocalBackend(options.local, root=root)
    kind: type[ChatServer] = ChatServer
    if options.chat.serve:
        from stllava.experts.backends.started_server import StartedServer

        kind = StartedServer
    server = kind(options.chat, root=root, folder=inputs.folder, reply_log=reply_log, asks=inputs.asks, limit=limit)
    return BatchBackend(server) if options.chat.batch else ChatBackend(server)


def _of_simulated(options: SimulatedOptions, truth: Path | None) -> Oracle | ReferenceJudge:
    """The expert that a simulated one is made of, classes mixed up as it mixes them up."""
    if options.of == "oracle":
        return Oracle(read_jsonl(_known("simulated", truth), Truth))
    return ReferenceJudge(confused(_references("reference", truth), options.confuses, share=options.confused))


def _image_root(options: JudgeOptions, inputs: ExpertInputs) -> Path:
    if inputs.root is None:
        raise StllavaError(
            f"the expert {options.expert!r} has to see the images, but no image root is given",
            expected="the folder that image paths are relative to",
            remedy="Give it with --root.",
        )
    return inputs.root


def _known(expert: str, truth: Path | None) -> Path:
    if truth is None:
        phantoms = expert in ("oracle", "simulated")
        raise StllavaError(
            f"the expert {expert!r} has nothing to compare answers with",
            expected="the truths that synthetic phantoms were drawn from" if phantoms else "questions with reference answers",
            remedy="Name them with --truth; for images of your own take the expert reference, chat or local (docs/expert.md)."
            if phantoms
            else "Name them: --truth for `stllava judge`, data.references in a recipe.",
        )
    return truth
