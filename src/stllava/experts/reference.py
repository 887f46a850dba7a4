"""The reference expert: judges self-asked questions that the training split has a reference answer to.

Reads the samples it is given at construction (never a benchmark's) and writes nothing. Questions are the same after
`normalise`, or nearly: word F1 of at least 0.8 and the same content words in the same order, so that only words such
as "there" or "image" differ. F1 alone would take "a mass in the lung" for "a nodule in the lung".
"""

from collections.abc import Sequence

from stllava.experts.expert import Verdict
from stllava.metrics.robust import is_yes_no, normalise, token_f1, yes_no
from stllava.records import Answers, Sample, content_id

NEAR = 0.8

# A difference in these leaves the question the same; any other word (left, no, upper, mass, where, …) is content.
_FILLER = {"is", "are", "was", "were", "be", "do", "does", "did", "can", "you", "we", "it", "please", "patient", "at", "for"}
_FILLER |= {"there", "any", "some", "evidence", "of", "in", "on", "this", "that", "these", "those", "image", "images", "scan"}
_FILLER |= {"see", "seen", "show", "shows", "to", "shown", "visible", "present", "picture"}


class Reference:
    """Scores answers against the reference answers to the same question about the same image."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._by_image: dict[str, list[Sample]] = {}
        for sample in samples:
            self._by_image.setdefault(sample.image, []).append(sample)

    @property
    def name(self) -> str:
        """`reference`."""
        return "reference"

    @property
    def method(self) -> str:
        """What it compares and when it abstains."""
        return (
            "It compares each answer with the training split's reference answer to the same (or nearly the same) question "
            "about the same image, and abstains on every other question."
        )

    @property
    def prompt_hash(self) -> str:
        """Hash of the rule's name and version."""
        return content_id("reference", "same content words, F1 at least 0.8; yes/no by word, else token F1", 1)

    def judge(self, answers: Answers) -> Verdict:
        """Yes-or-no references score 1 or 0; others the word F1 of each completion with the nearest reference answer."""
        if len(answers.images) != 1:
            return _abstain(f"the question is about {len(answers.images)} images")
        known = self._by_image.get(answers.images[0], [])
        if not known:
            return _abstain("no reference question is about this image")
        found = _matches(answers.question, known)
        if not found:
            return _abstain(f"none of the {len(known)} reference questions about this image is this question")
        targets = list(dict.fromkeys(target for sample in found for target in sample.targets))
        truths = {normalise(target) for target in targets if is_yes_no(target)}
        if not targets or len(truths) > 1:
            return _abstain(f"the reference answers to {found[0].question!r} disagree or are missing")
        if truths:
            scores = tuple(float(yes_no(completion) in truths) for completion in answers.completions)
        else:
            scores = tuple(token_f1(completion, targets) for completion in answers.completions)
        reason = f"the reference answer to {found[0].question!r} is {' or '.join(repr(target) for target in targets)}"
        return Verdict(scores=scores, cause=None, reason=reason)


def _abstain(reason: str) -> Verdict:
    return Verdict(scores=None, cause="abstained", reason=reason)


def _matches(question: str, known: Sequence[Sample]) -> list[Sample]:
    """The reference samples that ask this question: those of the highest likeness, if that is high enough."""
    likeness = {sample.id: _likeness(question, sample.question) for sample in known}
    best = max(likeness.values())
    return [sample for sample in known if likeness[sample.id] == best] if best >= NEAR else []


def _likeness(one: str, other: str) -> float:
    """1 for the same question, 0 for one that differs in content, else their word F1."""
    one, other = normalise(one), normalise(other)
    if one == other:
        return 1.0
    first, second = ([word for word in text.split() if word not in _FILLER] for text in (one, other))
    # Never quite 1, which is kept for questions that are the same word for word.
    return min(token_f1(one, [other]), 0.999) if first and first == second else 0.0
