"""Benchmarks and what a policy makes of them."""

from typing import Literal

from pydantic import Field

from stllava.records.record import Keyed, Record, content_id
from stllava.thoughts import final_answer

MAX_CHOICES = 26
"""Of a multiple-choice question: each has a letter."""
QuestionKind = Literal["open", "closed"]


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
    labels: dict[str, str] = Field(default_factory=dict)
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
    labels: dict[str, str] = Field(default_factory=dict)
    """What the benchmark says of the sample, by name."""
    prompt: str = ""
    """The words the policy was asked in; empty where they are the question itself, and of a baseline."""
    completion: str
    """What the policy said."""
    finished: bool = True
    """Whether it came to its own end rather than to the longest it may be."""
    policy: str
    """Fingerprint of the weights, or the name of a baseline."""

    @classmethod
    def of(cls, sample: Sample, completion: str, *, policy: str, prompt: str = "", finished: bool = True) -> "Prediction":
        """A sample with its answer."""
        return cls(
            id=content_id("prediction", sample.id, policy),
            sample_id=sample.id,
            image=sample.image,
            question=sample.question,
            targets=sample.targets,
            kind=sample.kind,
            choices=sample.choices,
            labels=sample.labels,
            prompt="" if prompt == sample.question else prompt,
            completion=completion,
            finished=finished,
            policy=policy,
        )

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
