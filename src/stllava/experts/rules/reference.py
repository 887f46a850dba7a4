"""The reference expert: judges self-asked questions that the training split has a reference answer to.

Reads the samples it is given at construction (never a benchmark's) and writes nothing. A question that no reference
asks is judged where the references, taken together, say how the image was made, in which plane, or of which part of the
body it is, and the question is about that alone (`image_facts.py`). Two questions are the same if
nothing is left to tell them apart once words such as "there", "image" or "taken" are dropped: "In what plane was this
image taken?" is "Which plane is seen?", but "a mass in the lung" is not "a nodule in the lung", nor left right.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stllava.experts.expert import FreeExpert, Verdict
from stllava.experts.rules.image_facts import expected_answer, facts_of
from stllava.metrics.robust import is_yes_no, normalise, token_f1, yes_no
from stllava.records import Answers, Sample, content_id

# A difference in these leaves the question the same; any other word (left, no, upper, mass, where, …) is content.
_WORDING = (
    "is are was were be being been do does did can you we it please patient at for of in on to there any some evidence this "
    "that these those image images imaged scan picture pictured film above see seen show shows shown visible visualized "
    "present displayed demonstrated taken acquired captured used oriented"
)
_FILLER = frozenset(_WORDING.split())
_SAME = {"which": "what", "abnormalities": "abnormality", "radiograph": "xray", "mr": "mri", "saggital": "sagittal"}
_QUESTION_WORDS = {"what", "where", "how", "who", "why", "when"}


class ReferenceJudge(FreeExpert):
    """Scores answers against the reference answers to the same question about the same image."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._by_image: dict[str, list[Sample]] = {}
        for sample in samples:
            self._by_image.setdefault(sample.image, []).append(sample)
        self._known = {image: facts_of(about) for image, about in self._by_image.items()}

    @property
    def name(self) -> str:
        """`reference`."""
        return "reference"

    @property
    def method(self) -> str:
        """What it compares and when it abstains."""
        return (
            "It compares each answer with the training split's reference answer to the same (or nearly the same) question "
            "about the same image, or with the modality, plane and body part that these give the image, and abstains on "
            "every other question."
        )

    @property
    def prompt_hash(self) -> str:
        """Hash of the rule's name and version."""
        return content_id("reference", "same content words, or a slot; yes/no as read by robust, else token F1", 4)

    def objection(self, question: str, images: tuple[str, ...]) -> str | None:
        """Why it could not judge answers to the question; None where it could."""
        grounds = self._grounds(question, images)
        return grounds if isinstance(grounds, str) else None

    def judge(self, answers: Answers) -> Verdict:
        """Yes-or-no references score 1 or 0; others the word F1 of each completion with the nearest reference answer."""
        return self.score(answers.question, answers.images, answers.final_answers)

    def score(self, question: str, images: tuple[str, ...], completions: Sequence[str]) -> Verdict:
        """Score bare texts as answers to a question, as `judge` does."""
        grounds = self._grounds(question, images)
        if isinstance(grounds, str):
            return Verdict(scores=None, cause="abstained", reason=grounds)
        scores = tuple(map(grounds.score, completions))
        correction = grounds.right if max(scores, default=0.0) < 1 else None
        return Verdict(scores=scores, cause=None, reason=grounds.reason, correction=correction)

    def _grounds(self, question: str, images: tuple[str, ...]) -> "_Grounds | str":
        """What answers to the question are judged by, or why they cannot be."""
        if len(images) != 1:
            return f"the question is about {len(images)} images"
        known = self._by_image.get(images[0], [])
        if not known:
            return "no reference question is about this image"
        found = _matches(question, known)
        if not found:
            truth = expected_answer(question, self._known[images[0]])
            if truth is None:
                return f"none of the {len(known)} reference questions about this image is this question"
            return _Grounds(truth.score, f"the references of this image say {truth.value!r}", truth.value)
        targets = list(dict.fromkeys(target for sample in found for target in sample.targets))
        truths = {normalise(target) for target in targets if is_yes_no(target)}
        if not targets or len(truths) > 1:
            return f"the reference answers to {found[0].question!r} disagree or are missing"
        reason = f"the reference answer to {found[0].question!r} is {' or '.join(repr(target) for target in targets)}"
        if truths:
            return _Grounds(lambda completion: float(yes_no(completion) in truths), reason, targets[0])
        return _Grounds(lambda completion: token_f1(completion, targets), reason, targets[0])


@dataclass(frozen=True)
class _Grounds:
    """What answers to one question are judged by."""

    score: Callable[[str], float]
    reason: str
    right: str
    """An answer that is right."""


def _matches(question: str, known: Sequence[Sample]) -> list[Sample]:
    """The reference samples that ask this question: word for word, or else with the same content in the same order."""
    words, content = normalise(question), _content(question)
    exact = [sample for sample in known if normalise(sample.question) == words]
    return exact or [sample for sample in known if content and _content(sample.question) == content]


def _content(question: str) -> list[str]:
    """The words that tell a question from others; none where that is only a question word."""
    words = [_SAME.get(word, word) for word in normalise(question).replace("x ray", "xray").split() if word not in _FILLER]
    return words if set(words) - _QUESTION_WORDS else []
