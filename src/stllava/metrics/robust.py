"""Our own reading of answers: words are words, so "nodule" is not "no" and repetition earns nothing.

Reads and returns plain strings and numbers. The published definitions, quirks included, are in `llava_med`.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {
    word: str(value)
    for words, first in (
        (("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), 0),
        (("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"), 11),
    )
    for value, word in enumerate(words, first)
}
_OPPOSITE = {"yes": "no", "no": "yes"}


def normalise(text: str) -> str:
    """The text as words joined by single blanks.

    Lower case; apostrophes and commas inside numbers vanish, points inside numbers stay, all other punctuation is a
    blank; a, an and the are dropped unless nothing else is left; zero to twenty become digits.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"(?<=\w)['’](?=\w)|(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?!(?<=\d)\.(?=\d))[\W_]", " ", text)
    words = text.split()
    content = [word for word in words if word not in _ARTICLES]
    return " ".join(_NUMBERS.get(word, word) for word in content or words)


def yes_no(text: str) -> str | None:
    """Whether an answer says "yes" or "no", both read as whole words; None when it says neither.

    A first word yes or no decides ("Yes, no doubt"), unless the answer is "yes no", or begins "yes or no" or "yes and
    no" (either order). In any other place, an answer with both words says neither.
    """
    words = normalise(text).split()
    if words and words[0] in _OPPOSITE:
        other = _OPPOSITE[words[0]]
        return None if words[1:] == [other] or words[1:3] in (["or", other], ["and", other]) else words[0]
    said = {word for word in words if word in _OPPOSITE}
    return said.pop() if len(said) == 1 else None


def is_yes_no(target: str) -> bool:
    """Whether a reference answer is exactly yes or no."""
    return normalise(target) in _OPPOSITE


def closed_accuracy(prediction: str, targets: Sequence[str]) -> float:
    """1 if the prediction hits any target, else 0.

    A target that is yes or no is hit by an answer that reads so (`yes_no`); any other by equality after `normalise`.
    """
    said, words = yes_no(prediction), normalise(prediction)
    return float(any((said if is_yes_no(target) else words) == normalise(target) for target in targets))


def open_recall(prediction: str, targets: Sequence[str]) -> float:
    """Share of a target's words found in the prediction, each as often as it stands there; the best target counts.

    A target without words is recalled by a prediction without words only.
    """
    return max((_shares(prediction, target)[0] for target in targets), default=0.0)


def open_exact_match(prediction: str, targets: Sequence[str]) -> float:
    """1 if the prediction equals any target after `normalise`, else 0."""
    return float(any(normalise(prediction) == normalise(target) for target in targets))


def token_f1(prediction: str, targets: Sequence[str]) -> float:
    """Harmonic mean of word recall and word precision, as multisets, against the best target."""
    scores = (_shares(prediction, target) for target in targets)
    return max((2 * recall * precision / (recall + precision) if recall else 0.0 for recall, precision in scores), default=0.0)


def _shares(prediction: str, target: str) -> tuple[float, float]:
    """Recall and precision of the prediction's words."""
    said, wanted = Counter(normalise(prediction).split()), Counter(normalise(target).split())
    if not said or not wanted:
        return float(said == wanted), float(said == wanted)
    shared = (said & wanted).total()
    return shared / wanted.total(), shared / said.total()
