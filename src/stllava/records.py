"""Every record that crosses a stage border: frozen, strict, one JSON line each on disk.

An `id` is the hash of the content that makes the record what it is (`content_id`), never a count or a path of this
machine, so the same work gives the same ids wherever and however often it runs. Images are POSIX paths relative to
the image root of their data set; pixels are never embedded.
"""

import hashlib
import json
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from stllava.thoughts import final_answer

MAX_CHOICES = 26
"""Of a multiple-choice question: each has a letter."""
Role = Literal["system", "user", "virtual_user", "assistant"]
QuestionKind = Literal["open", "closed"]
VerdictCause = Literal["abstained", "unparsed", "refused", "failed"]
"""Why an expert gives no verdict: it will not say, its words cannot be read, it or its provider declines, no reply came."""
MatchKind = Literal["triplet", "same question", "near question", "near image"]


FORMAT = 2
"""The form in which runs and stages are written; what has another one is refused (`store.read_formatted`)."""


def content_id(*parts: JsonValue) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of the parts' canonical JSON."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Record(BaseModel):
    """Base of all records: immutable, unknown fields refused."""

    # A figure that is no number stays one on disk: as null it could not be read back, and what was made would be lost.
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="strings")


class Keyed(Record):
    """A record with an id of its own."""

    id: str
    """What makes it this record, hashed with `content_id`."""


class Message(Record):
    """One turn of a conversation."""

    role: Role
    """Who speaks; `virtual_user` is the model asking about the image itself (SQ-LLaVA's VUSER)."""
    content: str
    """The text, without image placeholders."""
    image_offsets: tuple[int, ...] = Field(default=(), exclude_if=lambda offsets: not offsets)
    """How many characters of `content` stand before each image that this user's turn shows, in ascending order.

    Empty in all turns, as in files written before there was this field: all images come first in the first user turn.
    Otherwise the turns name all images of the conversation, in its order. An importer takes the placeholders out and
    notes where they stood: "Is <image> older than <image>?" becomes "Is  older than ?" with the offsets 3 and 15. Where
    all placeholders stand in front of the first user's text it leaves the field empty, so that ids stay what they were.
    """

    @model_validator(mode="after")
    def _within_the_text(self) -> Self:
        offsets = self.image_offsets
        if offsets and (list(offsets) != sorted(offsets) or offsets[0] < 0 or offsets[-1] > len(self.content)):
            raise ValueError(f"image_offsets {offsets} are not ascending places in a text of {len(self.content)} characters")
        return self


class Image(Keyed):
    """An unlabelled image that the policy will ask about."""

    id: str
    """Hash of the path."""
    path: str
    """Relative to the image root."""


class Conversation(Keyed):
    """Labelled turns about images: what sft learns from."""

    id: str
    """Hash of images and messages, or the id the data set gave it."""
    images: tuple[str, ...]
    """Paths relative to the image root; shown in the first user turn unless the turns say where (`image_offsets`)."""
    messages: tuple[Message, ...]
    """The turns in order, the first one a user's (or a system message before it)."""


class Sampling(Record):
    """How text was sampled."""

    temperature: float
    """0 means greedy."""
    top_k: int
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float
    """Keep the smallest set of tokens whose probability reaches p; 1 keeps all."""
    max_new_tokens: int
    """Longest completion, in tokens."""
    seed: int
    """Seed of the run: with the words of a prompt and the number of the answer, it starts that answer's own random numbers."""


class Question(Keyed):
    """A question the policy asked about an image."""

    id: str
    """Hash of images, text and policy."""
    images: tuple[str, ...]
    """Paths relative to the image root."""
    text: str
    """The question itself."""
    description: str
    """What the policy said of the image before it asked."""
    policy: str
    """Fingerprint of the weights that asked."""
    sampling: Sampling
    """How it was sampled."""


class Answers(Keyed):
    """K answers of the policy to one question, each given alone with the image."""

    id: str
    """Hash of question id, completions and policy."""
    question_id: str
    """The question answered."""
    images: tuple[str, ...]
    """Paths relative to the image root."""
    question: str
    """Text of the question."""
    completions: tuple[str, ...]
    """The K answers in the order they were sampled; equal texts are kept."""
    log_probabilities: tuple[float | None, ...] = ()
    """Natural logarithm of each answer's untempered probability, its end included; None where it is not known."""
    finished: tuple[bool, ...] = ()
    """Whether each came to its own end rather than to the longest it may be; empty where all did."""
    policy: str
    """Fingerprint of the weights that answered."""
    sampling: Sampling
    """How they were sampled."""

    @property
    def final_answers(self) -> tuple[str, ...]:
        """What each says behind what the policy thought aloud: what is compared and judged, while the whole is learned."""
        return tuple(map(final_answer, self.completions))

    @property
    def ended(self) -> tuple[bool, ...]:
        """Whether each completion, or another with the same words, came to its own end."""
        ended = {text for text, done in zip(self.completions, self.finished, strict=True) if done} if self.finished else None
        return tuple(ended is None or text in ended for text in self.completions)


class Context(Keyed):
    """What an expert may know of an image beyond its pixels."""

    id: str
    """Hash of image, question, kind and text."""
    image: str
    """Path relative to the image root."""
    question: str | None = None
    """The one question it is about; None when it holds for every question about the image."""
    kind: Literal["caption", "report", "reference answer"]
    """What it is."""
    text: str
    """Its words."""


class Comparison(Record):
    """What an expert says of two completions, all orders in which it saw them taken together."""

    first: int
    """Place of one among the completions."""
    second: int
    """Place of the other, behind the first one's."""
    winner: int | None
    """Place of the better one; None for a tie and where there is no verdict."""
    cause: VerdictCause | None = None
    """Why there is no verdict; None when there is one, a tie among them."""
    flipped: bool = False
    """Whether another order made the other one win: it counts as a tie."""


class Judgment(Keyed):
    """An expert's verdict on one set of answers."""

    id: str
    """Hash of answers id, expert and prompt."""
    answers_id: str
    """The answers judged."""
    scores: tuple[float, ...] | None
    """One score per completion from 0 to 1, higher is better; None when there is no verdict."""
    cause: VerdictCause | None
    """Why there is no verdict; None when there is one."""
    reason: str
    """The expert's grounds in words."""
    expert: str
    """Which expert judged."""
    prompt_hash: str
    """Hash of the rubric or rule the expert applied."""
    comparisons: tuple[Comparison, ...] = ()
    """What it says of every two different completions; empty for experts whose scores say it all."""
    context: tuple[str, ...] = ()
    """Ids of the contexts it was shown."""
    raw: tuple[str, ...] = ()
    """Raw replies in every order asked; empty for experts that send none."""
    usage: dict[str, int] = {}
    """Tokens or calls used, by name."""
    cost: float = 0.0
    """What it cost, in US dollars."""
    agreement: float | None = None
    """Of a panel, the share of its members' votes that the verdict follows; None for one expert alone."""


class Vote(Keyed):
    """What a person says of two completions: the truth that an expert can be checked against."""

    id: str
    """Hash of answers id, places and voter, or your own."""
    answers_id: str
    """The answers they are of."""
    first: int
    """Place of one completion."""
    second: int
    """Place of the other."""
    winner: int | None
    """Place of the better one; None for a tie."""


class Rate(Record):
    """A share with its 95 % interval."""

    value: float
    """The share; of an agreement, Cohen's kappa."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""
    n: int
    """What it is a share of."""


class Flip(Record):
    """Two answers of which an expert preferred whichever stood first, or second."""

    image: str
    """Path relative to the image root."""
    question: str
    """The question."""
    answers: tuple[str, str]
    """Both, in the order of the first reply."""
    replies: tuple[str, str]
    """What it said of them in that order, and in the other."""


class JudgeCheck(Record):
    """How far an expert can be trusted, measured on a sample of answers; every interval is resampled by image."""

    expert: str
    """Who was checked."""
    questions: int
    """Sets of answers in the sample."""
    requests: int
    """Replies it is measured on."""
    flips: Rate | None
    """Position bias: comparisons in which the other order made the other answer win."""
    first_wins: Rate | None
    """Of all replies that prefer one of two answers, those that prefer the one shown first; 0.5 is fair."""
    repeats: Rate | None
    """Self-agreement: comparisons with the same outcome when asked the same again."""
    longer_wins: Rate | None
    """Length bias: of all decided comparisons of answers of different length, those the longer one wins."""
    longer_wins_adjusted: Rate | None
    """The same where the truth calls the longer one better as often as worse; 0.5 is fair. None without a truth."""
    agreement: Rate | None
    """Cohen's kappa with the truth over win, tie and loss; None without a truth."""
    truth: str
    """What the truth was: oracle, people, or an empty string."""
    examples: tuple[Flip, ...]
    """Some of the flips."""


class Lineage(Record):
    """Where a preference comes from."""

    question_id: str
    answers_id: str
    judgment_id: str


class Reference(Keyed):
    """How likely a pair's answers are under the policy that learning from it starts from."""

    id: str
    """The preference's id."""
    policy: str
    """Fingerprint of the weights."""
    chosen: float
    """Natural logarithm of the chosen answer's untempered probability, its end included."""
    rejected: float
    """The same of the rejected answer, without an end where it was cut off."""


class Preference(Keyed):
    """One pair to learn from."""

    id: str
    """Hash of prompt, chosen, rejected and lineage."""
    images: tuple[str, ...]
    """Paths relative to the image root."""
    prompt: tuple[Message, ...]
    """The turns before the answer."""
    chosen: str
    """The better answer."""
    rejected: str
    """The worse answer."""
    rejected_ended: bool = True
    """Whether the worse answer came to its own end; one that was cut off is learned without an end."""
    margin: float
    """Difference of their scores, above 0."""
    lineage: Lineage
    """Question, answers and judgment behind it."""
    reference: Reference | None = None
    """What the policy that answered noted as it spoke, where it did."""


class Sample(Keyed):
    """One benchmark question with its reference answers."""

    id: str
    """Hash of benchmark, image, question and targets, or the benchmark's own id."""
    image: str
    """Path relative to the image root."""
    question: str
    """The question as published."""
    targets: tuple[str, ...]
    """Reference answers, any of which is right."""
    kind: QuestionKind
    """closed: a choice such as yes or no; open: free text."""
    split: str
    """Name of the split it belongs to."""
    choices: tuple[str, ...] = Field(default=(), max_length=MAX_CHOICES)
    """The options of a multiple-choice question in their published order, the targets among them; else empty."""
    labels: dict[str, str] = {}
    """What the benchmark says of it, by name: language, modality, content, …"""


class Prediction(Keyed):
    """A policy's answer to a sample, with what is needed to score it again."""

    id: str
    """Hash of sample id and policy."""
    sample_id: str
    """The sample answered."""
    image: str
    """Path relative to the image root; intervals are clustered by it."""
    question: str
    """The question asked."""
    targets: tuple[str, ...]
    """Reference answers."""
    kind: QuestionKind
    """open or closed."""
    choices: tuple[str, ...] = ()
    """The options of a multiple-choice question; else empty."""
    labels: dict[str, str] = {}
    """What the benchmark says of the sample, by name."""
    prompt: str = ""
    """The words the policy was asked in; empty where they are the question itself, and of a baseline."""
    completion: str
    """What the policy said."""
    finished: bool = True
    """Whether it came to its own end rather than to the longest it may be."""
    policy: str
    """Fingerprint of the weights, or the name of a baseline."""

    @property
    def final_answer(self) -> str:
        """What it says behind what the policy thought aloud: what is scored."""
        return final_answer(self.completion)


class Score(Record):
    """One number of one policy on one benchmark, with its 95 % interval."""

    policy: str
    """Name of the policy in the run: sft, round-1, …, or of a baseline."""
    benchmark: str
    """Name of the benchmark."""
    metric: str
    """Name of the metric."""
    value: float
    """Between 0 and 1."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    n: int
    """Samples it is the mean of."""
    rule: str = ""
    """Who defines the metric, and which version of it: robust-2, llava_med-1.0.0, …"""
    abstained: int = 0
    """Of these samples, those whose answer the rule could not read; they count as wrong."""


class Difference(Record):
    """The paired difference of two policies on the same samples, with its 95 % interval."""

    policy: str
    """The policy whose gain is measured."""
    against: str
    """The policy it is compared with."""
    benchmark: str
    """Name of the benchmark."""
    metric: str
    """Name of the metric."""
    value: float
    """Mean of policy minus mean of against."""
    low: float
    """Lower end of the 95 % interval, resampled by image."""
    high: float
    """Upper end of the 95 % interval."""
    n: int
    """Samples both answered."""
    p: float | None = None
    """Two-sided p-value of no difference: the sign-flip permutation test over images."""
    detectable: float | None = None
    """Smallest true difference that a set of this size and spread shows with 80 % power at 5 %; None for a single image."""


class Seen(Record):
    """What tells an image of a data set from others."""

    path: str
    """Relative to the image root."""
    content: str
    """SHA-256 of the file's bytes."""
    picture: str | None
    """The perceptual hash in hexadecimal; None for a plain picture, which is like nothing but its own bytes."""


class Match(Record):
    """One thing of a benchmark that training has seen."""

    kind: MatchKind
    """What is the same or nearly so; a triplet is a same question with an answer that equals a target."""
    sample_id: str | None = None
    """The benchmark's sample; None where only the images match."""
    image: str
    """The benchmark's image, relative to its image root."""
    question: str | None = None
    """The benchmark's question; None where only the images match."""
    other_image: str
    """The image in training, relative to its image root."""
    other_question: str | None = None
    """The question in training; None where only the images match."""
    source: str
    """Which part of training it is in."""
    distance: int
    """Bits between the picture hashes; 0 for the same bytes, and for a copy that hardly differs."""
    similarity: float | None = None
    """F1 of the two questions' words; None where only the images match."""


class Overlap(Record):
    """What training has seen of a benchmark."""

    benchmark: str
    """Name of the benchmark."""
    samples: int
    """Its questions."""
    images: int
    """Its images."""
    exact_images: int
    """Images that training has byte for byte."""
    near_images: int
    """Other images that training has nearly so: encoded again, resized, a little brighter."""
    same_questions: int
    """Samples whose question, normalised, training has about such an image."""
    near_questions: int
    """Other samples that training has a question of nearly the same words for, about such an image."""
    triplets: int
    """Those of `same_questions` that training answers with a target."""
    known_texts: int
    """Samples whose question, normalised, training has about any image; generic questions are."""
    by_source: dict[str, int]
    """Images, exact or near, that each part of training has."""
    matches: tuple[Match, ...]
    """Triplets first, then same and near questions, then near images."""
    left_out: int
    """Matches beyond those listed."""

    @property
    def serious(self) -> bool:
        """Whether a score no longer measures unseen images: any is shared, and with it perhaps a question about it."""
        return self.exact_images + self.near_images > 0


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
    curves: dict[str, list[tuple[float, float]]] = {}
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
