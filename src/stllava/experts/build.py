"""The expert that the options name, with what it knows read from disk."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from stllava.config import JudgeOptions, load_judge
from stllava.data.benchmarks.own import read_samples
from stllava.data.phantom.truth import Truth
from stllava.errors import StllavaError
from stllava.experts.backends.batch_server import Batch
from stllava.experts.backends.chat_server import Chat
from stllava.experts.backends.scripted import Scripted, Simulated
from stllava.experts.expert import Expert
from stllava.experts.model.model_expert import ModelExpert
from stllava.experts.model.reply_log import Journal, Speaker
from stllava.experts.model.rubric import Mode, load_rubric
from stllava.experts.panel import Panel
from stllava.experts.rules.oracle import Oracle
from stllava.experts.rules.reference import Reference
from stllava.records import Context, content_id
from stllava.store import read_jsonl


@dataclass(frozen=True)
class Sources:
    """What experts may look at."""

    folder: Path
    """Where their exchanges and sendings are kept."""
    root: Path | None = None
    """The image root; only experts that are models need it."""
    truth: Path | None = None
    """JSONL of phantom truths or reference samples; only experts that know need it."""
    asks: bool = True
    """Whether anything will be asked: if not, no permission and no key is needed."""


@contextmanager
def expert_of(options: JudgeOptions, sources: Sources) -> Iterator[Expert]:
    """The expert that the options name, while its journals are open."""
    with ExitStack() as files:
        yield _expert(options, sources, files, name="expert")


def require_expert(options: JudgeOptions, *, root: Path, truth: Path | None) -> None:
    """Refuse an expert that could not begin to judge: no key, no permission, no model, nothing to know. Nothing is asked."""
    with TemporaryDirectory() as spare, expert_of(options, Sources(Path(spare), root, truth)):
        pass


def _expert(options: JudgeOptions, sources: Sources, files: ExitStack, *, name: str) -> Expert:
    """An expert; `name` tells the exchanges of a panel's members apart."""
    if options.expert == "panel":
        if len(options.panel) < 2:
            raise StllavaError(
                f"a panel of {len(options.panel)}",
                expected="two members or more",
                remedy="Name a YAML file for each: judge.panel.",
            )
        members = [load_judge(path) for path in options.panel]
        if any(member.expert == "panel" for member in members):
            raise StllavaError("a panel is a member of a panel", expected="single experts", remedy="Name its members instead.")
        return Panel(
            [_expert(member, sources, files, name=f"expert-{number}") for number, member in enumerate(members, 1)],
            verdict=options.verdict,
        )
    knowing = knowing_expert(options.expert, sources.truth)
    if knowing is not None:
        return knowing
    journal = files.enter_context(closing(Journal(sources.folder, name=name)))
    mode: Mode = "pairwise" if options.expert == "simulated" else options.mode
    rubric = load_rubric(options.rubric, mode=mode, structured=options.expert == "chat" and options.chat.structured)
    speaker = speaker_of(options, sources, journal)
    return ModelExpert(speaker, rubric, journal=journal, options=options, contexts=contexts_of(options, sources))


def knowing_expert(expert: str, truth: Path | None) -> Oracle | Reference | None:
    """The expert of this name if it knows its answers from `truth`; None of every other, which must be asked."""
    if expert == "oracle":
        return Oracle(read_jsonl(_known(expert, truth), Truth))
    return Reference(read_samples(_known(expert, truth))[0]) if expert == "reference" else None


def contexts_of(options: JudgeOptions, sources: Sources) -> list[Context]:
    """What a model is shown beside the image."""
    contexts = read_jsonl(options.context, Context) if options.context is not None else []
    if options.show_references:
        for sample in read_samples(_known(options.expert, sources.truth))[0]:
            text = " or ".join(sample.targets)
            key = content_id("context", sample.image, sample.question, text)
            contexts.append(Context(id=key, image=sample.image, question=sample.question, kind="reference answer", text=text))
    return contexts


def speaker_of(options: JudgeOptions, sources: Sources, journal: Journal) -> Speaker:
    """The model that the options name."""
    if options.expert == "scripted":
        return Scripted(options.scripted, mode=options.mode)
    if options.expert == "simulated":
        return Simulated(options.simulated, oracle=Oracle(read_jsonl(_known(options.expert, sources.truth), Truth)))
    if sources.root is None:
        raise StllavaError(
            f"the expert {options.expert!r} is to see images, but no image root is given",
            expected="the folder that image paths are relative to",
            remedy="Name it with --root.",
        )
    if options.expert == "local":
        from stllava.experts.backends.local_model import Local

        return Local(options.local, root=sources.root)
    kind = Batch if options.chat.batch else Chat
    return kind(options.chat, root=sources.root, folder=sources.folder, journal=journal, asks=sources.asks)


def _known(expert: str, truth: Path | None) -> Path:
    if truth is None:
        phantoms = expert in ("oracle", "simulated")
        raise StllavaError(
            f"the expert {expert!r} was given nothing to know",
            expected="the truths that synthetic phantoms were drawn from" if phantoms else "questions with reference answers",
            remedy="Name them with --truth; for images of your own take the expert reference, chat or local (docs/expert.md)."
            if phantoms
            else "Name them: --truth for `stllava judge`, data.references in a recipe.",
        )
    return truth
