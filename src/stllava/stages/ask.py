"""Self-questioning: the policy describes each image, then asks about it as the virtual user.

Reads images; writes `questions.jsonl`. Empty, repeated, cut-off and non-questions are dropped and counted by cause.
`request_descriptions` writes the request for a description as a question of its own, for answer, judge and pair: the
best description, as the expert sees it, is then what ask goes on from.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stllava.config import AskOptions
from stllava.data.borrowing import AskedAbout, bare, labelled_donors, lend, looks_of
from stllava.data.conversations import read_conversations
from stllava.data.folder import read_images
from stllava.data.images import count_missing
from stllava.data.overlap import read_fingerprints
from stllava.dropped import Dropped
from stllava.errors import StllavaError
from stllava.experts.judged_answers import read_judged_answers
from stllava.records import Answers, Image, Keyed, Message, Question, Sampling, content_id
from stllava.stages.results import REPEATED, AskResult
from stllava.stages.speaking import SamplingWork
from stllava.store import Existing, Input, Inputs, file_hash, open_stage, output_hash, read_records, shares_out
from stllava.thoughts import final_answer

if TYPE_CHECKING:
    from stllava.generation.sampler import Sampler

MAX_WORDS = 60
MUTE = (
    "A policy learns to ask in sft (self_question_ratio above 0): train it longer there, or lower ask's sampling.temperature "
    "or raise its sampling.max_new_tokens."
)
"""What to do where a policy asks nothing."""
Cause = Literal["empty", "not a question", "too long", "repeated"]
"""Why a text is not kept as a question."""


class ImageQuestions(Keyed):
    """What the policy said of an image and asked about it, before images borrow questions from each other."""

    id: str
    """The image's id."""
    image: str
    """Path relative to the image root."""
    description: str
    """What it said of the image."""
    texts: tuple[str, ...]
    """Its usable questions, each once."""


def request_descriptions(
    options: AskOptions, *, policy: Path, images: Path, root: Path, to: Path, seed: int = 0, existing: Existing = "resume"
) -> AskResult:
    """Write the requests for a description of each image, for `policy` to answer; nothing is generated."""
    from stllava.model.load import fingerprint

    pictures = read_images(images, root=root)
    inputs: Inputs = {"policy": Input(policy, fingerprint), "images": _names(pictures), "seed": str(seed)}
    with open_stage("ask", to, options, inputs=inputs, reads=(images,), existing=existing) as stage:
        if stage.manifest is not None:
            return AskResult(stage.to, stage.manifest)
        weights = stage.inputs["policy"]
        sampling = Sampling(**options.description_sampling.model_dump(), seed=seed)
        prompts = dict.fromkeys((options.description_prompt, *options.extra_description_prompts))
        questions = [
            _question(image.path, text, description="", policy=weights, sampling=sampling)
            for image in pictures
            for text in prompts
        ]
        stage.write_records("questions", questions)
        return AskResult(to, stage.finish(counts_in=len(questions), counts_out=len(questions)))


def best_descriptions(answers: Path, judgments: Path) -> dict[str, str]:
    """The description of each image that scored highest, the one given first of equals; none where there is no verdict."""
    best: dict[str, tuple[float, str]] = {}
    for answered, judgment in read_judged_answers(answers, judgments):
        if judgment.scores is not None:
            score = max(judgment.scores)
            if score > best.get(answered.images[0], (-1.0, ""))[0]:
                best[answered.images[0]] = (score, answered.final_answers[judgment.scores.index(score)])
    return {image: text for image, (_, text) in best.items()}


def first_descriptions(answers: Path) -> dict[str, str]:
    """The description of each image that was given first."""
    first: dict[str, str] = {}
    for answered in read_records(answers, "answers", Answers):
        first.setdefault(answered.images[0], answered.final_answers[0])
    return first


@dataclass(frozen=True)
class AskWork(SamplingWork):
    """Describes a chunk of images and asks about them."""

    options: AskOptions
    """How many questions, and how they are sampled."""
    known: dict[str, str]
    """Descriptions of images that were chosen before; the others are described here."""
    seed: int
    """Seed of what is drawn at random."""

    @cached_property
    def sampler(self) -> "Sampler":
        """The policy, which speaks about each image twice, once it is asked."""
        from stllava.generation.local_sampler import open_sampler

        return open_sampler(self.options, policy=self.policy, root=self.root, audit=self.audit, revisits=True)

    @property
    def outputs(self) -> int:
        """The questions that an image would have had."""
        return self.options.questions

    def __call__(self, chunk: Sequence[Image]) -> tuple[list[ImageQuestions], Dropped]:
        """What the policy says of each image that can be used, and its usable questions."""
        from stllava.generation.sampler import Prompt, complete_usable, usable

        options, sampler, known, seed = self.options, self.sampler, self.known, self.seed
        opening, outputs = Message(role="user", content=options.description_prompt), options.questions
        describing = options.description_sampling
        describing = describing.model_copy(update={"temperature": 0.0}) if known else describing
        shown, prompts, dropped = usable(sampler, chunk, lambda image: Prompt((opening,), (image.path,)), outputs=outputs)
        new = [index for index, image in enumerate(shown) if image.path not in known]
        described_now, completions = complete_usable(
            sampler,
            [shown[index] for index in new],
            [prompts[index] for index in new],
            dropped,
            k=1,
            sampling=describing,
            seed=seed,
            outputs=outputs,
        )
        descriptions = {
            image.path: final_answer(completion.text) for image, (completion,) in zip(described_now, completions, strict=True)
        } | known
        tellable, prompts, unusable = usable(
            sampler,
            [(image, descriptions[image.path]) for image in shown if image.path in descriptions],
            lambda pair: Prompt((opening, Message(role="assistant", content=pair[1])), (pair[0].path,), "virtual_user"),
            outputs=outputs,
        )
        dropped.take(unusable)
        asked_about, asked = complete_usable(
            sampler, tellable, prompts, dropped, k=outputs, sampling=options.sampling, seed=seed, outputs=outputs
        )
        own = [screen([final_answer(completion.text) for completion in texts], dropped) for texts in asked]
        if not any(own):
            return [], dropped
        return [
            ImageQuestions(id=image.id, image=image.path, description=description, texts=tuple(texts))
            for (image, description), texts in zip(asked_about, own, strict=True)
        ], dropped


@shares_out
def ask(
    options: AskOptions,
    *,
    policy: Path,
    images: Path,
    root: Path,
    to: Path,
    described: Path | None = None,
    verdicts: Path | None = None,
    conversations: Path | None = None,
    fingerprints: Path | None = None,
    seed: int = 0,
    existing: Existing = "resume",
    shard: str | None = None,
) -> AskResult:
    """Let a policy describe each image and then ask questions about it; write the questions.

    Questions that are empty, too long, repeated or no questions are counted by cause and left out. Where `described` and
    `verdicts` are given, the best of the descriptions is what the policy is said to have told, or the first where no
    description at all has a verdict; it describes itself only images that have none.

    Args:
        options: How many questions, and how they are sampled.
        policy: Folder of the policy that asks, or its name on the hub.
        images: What is asked about: a folder, or a list of images (text, CSV or JSON).
        root: The image root: the image paths that are written are relative to it.
        to: Folder for the questions (questions.jsonl).
        described: Folder of answers to requests for a description, made before.
        verdicts: Folder of the judgments of those answers, which choose the description.
        conversations: Labelled conversations about images under the same root, whose questions are lent to images too.
        fingerprints: What images look like, as a data set notes it (fingerprints.jsonl); those it lacks are read for that.
        seed: Seed of what is drawn at random; the same seed gives the same output.
        existing: What to do with output that is there: resume it, replace it, or end in an error.
        shard: i/n: do the i-th of n equal parts of the work, in a folder of its own below `to`; `stllava gather` then makes the
            whole of them.

    Raises:
        StllavaError: Where no question is left, or more than `max_bad` of the images cannot be used.
    """
    from stllava.model.load import fingerprint

    if (described is None) is not (verdicts is None):
        given, lacking = ("described", "verdicts") if verdicts is None else ("verdicts", "described")
        raise StllavaError(
            f"{given} without {lacking}",
            expected="answers to requests for a description and the judgments of them, or neither",
            remedy=f"Name {lacking} too, or leave {given} out.",
        )
    pictures = read_images(images, root=root)
    inputs: Inputs = {"policy": Input(policy, fingerprint), "images": _names(pictures), "seed": str(seed)}
    if described is not None and verdicts is not None:
        inputs |= {"described": Input(described, output_hash), "verdicts": Input(verdicts, output_hash)}
    if conversations is not None:
        inputs["conversations"] = Input(conversations, file_hash)
    if fingerprints is not None:
        inputs["fingerprints"] = Input(fingerprints, file_hash)
    with open_stage(
        "ask", to, options, inputs=inputs, reads=(images,), existing=existing, items="images", shard=shard
    ) as stage:
        if stage.manifest is not None:
            return AskResult(stage.to, stage.manifest)
        weights = stage.inputs["policy"]
        known: dict[str, str] = {}
        if described is not None and verdicts is not None:
            known = best_descriptions(described, verdicts) or first_descriptions(described)
        missing = count_missing(root, [(image.path,) for image in pictures])
        missing.refuse_faults(items=len(pictures), unit="images", max_bad=options.max_bad)
        work = AskWork(options, policy, weights, root, stage.to, known, seed)
        mapped = stage.map_chunks(
            pictures, work, record_type=ImageQuestions, size=options.chunk, unit="images", max_bad=options.max_bad, remedy=MUTE
        )
        if mapped.manifest is not None:
            return AskResult(stage.to, mapped.manifest)
        spoken, dropped = list(mapped.records), mapped.dropped
        borrows = options.borrow_questions > 0
        pictured = read_fingerprints(fingerprints) if borrows and fingerprints is not None else {}
        looks = looks_of(root, [row.image for row in spoken], pictured) if borrows else [None] * len(spoken)
        about = [AskedAbout(row.description, row.texts, look) for row, look in zip(spoken, looks, strict=True)]
        labels = read_conversations(conversations, root=root)[0] if borrows and conversations is not None else []
        noted = Sampling(**options.sampling.model_dump(), seed=seed)
        lent = lend(about, max_borrowed=options.borrow_questions, donors=labelled_donors(labels, root, pictured))
        questions = [
            _question(row.image, text, description=row.description, policy=weights, sampling=noted)
            for row, texts in zip(spoken, lent, strict=True)
            for text in texts
        ]
        stage.write_records("questions", questions)
        asked = len(questions) + dropped.total()
        mute = () if questions else (f"None of so few questions can be used, and answer has nothing to answer. {MUTE}",)
        manifest = stage.finish(
            counts_in=asked,
            counts_out=len(questions),
            dropped=dropped,
            measures={
                "images": float(len(pictures)),
                "borrowed": float(asked - len(pictures) * options.questions),
                "kept_share": len(questions) / asked if pictures else 0.0,
                "distinct_share": len({question.text for question in questions}) / len(questions) if questions else 0.0,
            },
            notes=(*mapped.notes, *mute),
            device=mapped.device,
        )
        return AskResult(to, manifest)


def _names(images: Iterable[Image]) -> str:
    """One hash for the names of all images."""
    return content_id([image.path for image in images])


def _question(image: str, text: str, *, description: str, policy: str, sampling: Sampling) -> Question:
    key = content_id("question", image, text, policy)
    return Question(id=key, images=(image,), text=text, description=description, policy=policy, sampling=sampling)


def screen(texts: Sequence[str], dropped: Dropped) -> list[str]:
    """The usable questions among `texts`, each once; the others are counted by cause in `dropped`."""
    kept: dict[str, str] = {}
    for text in texts:
        cause = _fault(bare(text), kept)
        if cause is None:
            kept[bare(text)] = text
        else:
            dropped.drop(cause, repr(text) if text.strip() else "")
    return list(kept.values())


def _fault(text: str, kept: Iterable[str]) -> Cause | None:
    """Why a text is no question to keep beside those that are kept."""
    if not text:
        return "empty"
    if not text.endswith("?") or len(text.split()) < 2:
        return "not a question"
    if len(text.split()) > MAX_WORDS:
        return "too long"
    return REPEATED if text in kept else None
