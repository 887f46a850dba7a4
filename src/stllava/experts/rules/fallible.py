"""A rule judge made worse on purpose: what an expert's errors do to the loop can be measured where the truth is known.

Its errors are drawn from hashes of what is judged, so the same expert errs in the same places in every run. Reads and
writes nothing.
"""

import re
from collections.abc import Mapping, Sequence

from stllava.config import SimulatedOptions
from stllava.data.borrowing import bare
from stllava.experts.expert import FreeExpert, Verdict
from stllava.experts.rules.reference import ReferenceJudge
from stllava.metrics.robust import is_yes_no, normalise
from stllava.records import Answers, Sample, content_id


class FallibleJudge(FreeExpert):
    """The reference expert with faults of known size; it scores each answer by itself."""

    def __init__(self, options: SimulatedOptions, samples: Sequence[Sample]) -> None:
        """Judge by the samples, but wrongly, not at all, or as if it mixed up two classes, as often as the options say."""
        self._options = options
        self._judge = ReferenceJudge(confused(samples, options.confuses, share=options.confused))

    @property
    def name(self) -> str:
        """`simulated`, and its faults."""
        mixed = [f"takes {one} for {other}" for one, other in self._options.confuses.items()]
        faults = [f"{self._options.wrong:.0%} wrong", *mixed]
        return ", ".join(["simulated", *faults, *([f"{self._options.abstains:.0%} silent"] if self._options.abstains else [])])

    @property
    def method(self) -> str:
        """What it compares, and how it errs."""
        return "It compares each answer with the reference answers, and errs on purpose as its name says."

    @property
    def prompt_hash(self) -> str:
        """Hash of the rule and its faults."""
        return content_id("fallible", self._judge.prompt_hash, self._options.resume_key())

    def judge(self, answers: Answers) -> Verdict:
        """The reference expert's verdict with this one's errors in it."""
        verdict = self._judge.judge(answers)
        subject = (*answers.images, bare(answers.question))
        if verdict.scores is None or chance("abstains", *subject) < self._options.abstains:
            return verdict if verdict.scores is None else Verdict(None, "abstained", "it would not say")
        scores = tuple(
            1 - score if chance("wrong", *subject, text) < self._options.wrong else score
            for text, score in zip(answers.final_answers, verdict.scores, strict=True)
        )
        right = verdict.correction if max(scores, default=0.0) < 1 else None
        missed = right is not None and chance("wrong", *subject, right) < self._options.wrong
        return Verdict(scores, None, verdict.reason, correction=None if missed else right)


def confused(samples: Sequence[Sample], confuses: Mapping[str, str], *, share: float) -> list[Sample]:
    """The samples as an expert believes them that mixes up two classes in that share of the images of either.

    An image is of a class where a target names it or a question that is answered yes does. In every question about such
    an image one class stands for the other: in targets, and in the answer to whether it is either.
    """
    by_image: dict[str, list[Sample]] = {}
    for sample in samples:
        by_image.setdefault(sample.image, []).append(sample)
    believed: dict[str, tuple[str, str]] = {}
    for image, about in by_image.items():
        for pair in confuses.items():
            of = [name for name in pair if any(_names(sample, name) for sample in about)]
            if len(of) == 1 and chance("confused", image, *sorted(pair)) < share:
                believed[image] = pair if of[0] == pair[0] else (pair[1], pair[0])
    return [_believed(sample, *believed[sample.image]) if sample.image in believed else sample for sample in samples]


def _names(sample: Sample, name: str) -> bool:
    """Whether a sample says that its image is of that class."""
    if all(map(is_yes_no, sample.targets)):
        return _holds(sample.question, name) and "yes" in map(normalise, sample.targets)
    return any(_holds(target, name) for target in sample.targets)


def _believed(sample: Sample, real: str, instead: str) -> Sample:
    """A sample about an image of one class, taken for the other."""
    asks = [name for name in (real, instead) if _holds(sample.question, name)]
    if all(map(is_yes_no, sample.targets)):
        answer = {real: "no", instead: "yes"}.get(asks[0]) if len(asks) == 1 else None
        return sample if answer is None else sample.model_copy(update={"targets": (answer,)})
    swap = re.compile(rf"\b{re.escape(real)}\b", re.IGNORECASE)
    return sample.model_copy(update={"targets": tuple(swap.sub(instead, target) for target in sample.targets)})


def _holds(text: str, name: str) -> bool:
    return f" {normalise(name)} " in f" {normalise(text)} "


def chance(*parts: str) -> float:
    """A number from 0 to 1 that depends on the parts alone."""
    return int(content_id("chance", *parts), 16) / 16**16
