"""Our own rules: words are words, denial is read, one thing may be written in many ways, and repetition earns nothing.

Reads and returns plain strings and numbers; `yes_no` and `words` do the reading. A closed answer that cannot be read has
no verdict but a cause. The published definitions, quirks included, are in `llava_med`.
"""

import re
from collections import Counter
from collections.abc import Sequence
from string import ascii_uppercase

from stllava.errors import StllavaError
from stllava.metrics.words import medical, normalise
from stllava.metrics.yes_no import YesNoAnswer, read_yes_no, side, yes_no

__all__ = [
    "RULE",
    "YesNoAnswer",
    "choice_accuracy",
    "closed_accuracy",
    "closed_verdict",
    "is_yes_no",
    "medical",
    "medical_exact_match",
    "normalise",
    "open_exact_match",
    "open_recall",
    "read_yes_no",
    "token_f1",
    "yes_no",
]

RULE = "robust-2"
"""Name and version of this family; every change of what an answer counts for needs a new version."""

_LONGEST = 15
_SENTENCE = re.compile(r"[!?;\n]+|\.(?!\d)")
_PIECE = re.compile(r"[,()]|:(?!\d)|\bbut\b", re.IGNORECASE)
_DENIED = re.compile(
    r"(?:\b(?:not|no|non|without|neither|never|cannot|rather than|instead of)\b|n['’]t\b)(?:(?!\bbut\b)[^,;:.!?\n])*", re.I
)
# Of each row an answer can mean one: to name two is to choose none.
_RIVALS = (
    {"left", "right", "bilateral"},
    {"axial", "coronal", "sagittal"},
    {"ct", "mri", "ray", "us", "pet"},
    {"pa", "ap", "lateral"},
    {"t1", "t2", "flair", "dwi"},
    {"male", "female"},
    {"normal", "abnormal"},
    {str(number) for number in range(101)},
)
# A piece of a sentence with one of these says more of its answer; one without is another item of a list.
_LINKS = (
    "in on at of to from with by as for is are was it this that which there these i we you seen shown based given because "
    "since answer yes"
)
_FRAME = frozenset(_LINKS.split())
_LETTER = re.compile(r"(?<![\w'’.-])[a-z](?![\w'’-]|\.\w)", re.I)
_AROUND_LETTER = 40
"""Characters before and behind a letter that say whether it names an option."""
_BEFORE_LETTER = re.compile(
    r"(?:^|[:(\[{\"'“,;.!?\n/&]|\b(?:is|be|choose|select|pick|say|and|or|but|both|either))\W{0,40}$", re.I
)
_BEHIND_LETTER = re.compile(
    r"\W{0,40}$|\s{0,40}[*_]{0,40}[).:,;\]}\"'”!?\n/&]|\s[-–—]\s|\s(?:and|or|because|since|as|is)\b", re.I
)
_TITLE = re.compile(r"\b(?:answer|option|choice|letter)\W{0,40}$", re.I)


def is_yes_no(target: str) -> bool:
    """Whether a reference answer is exactly the English yes or no."""
    return normalise(target) in {"yes", "no"}


def closed_verdict(prediction: str, targets: Sequence[str]) -> tuple[float | None, str]:
    """1 for an answer that hits any target, else 0, with an empty cause; None and the cause where it says nothing.

    A target that is a word for yes or no is hit by an answer that reads so; the causes are those of `read_yes_no`. Any
    other is hit by an answer with the same `medical` form, or whose first sentence is short (at most 15 words) and names
    it, what is denied left out, with no rival: another side, plane, modality or number, an "or", an "and" beside it, a
    list. Such a target's causes are empty and hedged. Without targets nothing is hit.
    """
    found = [
        _side_verdict(prediction, wanted) if (wanted := side(target)) else _word_verdict(prediction, target)
        for target in targets
    ]
    return next((verdict for value in (1.0, None) for verdict in found if verdict[0] == value), (0.0, ""))


def closed_accuracy(prediction: str, targets: Sequence[str]) -> float:
    """1 if the prediction hits any target, else 0, an answer without a verdict among these (`closed_verdict`)."""
    return closed_verdict(prediction, targets)[0] or 0.0


def choice_accuracy(prediction: str, targets: Sequence[str], choices: Sequence[str]) -> tuple[float | None, str]:
    """1 for an answer that chooses a target, 0 for another choice, with an empty cause; None and the cause for no choice.

    It chooses by the option's letter (A is the first) or by its words after `medical`, denied words left out; a yes and a
    no among the options are read by `read_yes_no`. Causes: empty, hedged, several options, letter and text disagree, no
    option. Targets that are no option are a `StllavaError`.
    """
    forms = [medical(choice) for choice in choices]
    right = {place for place, choice in enumerate(choices) if choice in targets}
    right = right or {place for place, form in enumerate(forms) if form in map(medical, targets)}
    if not right:
        raise StllavaError(
            f"the right answer {' or '.join(map(repr, targets))} is not among the options",
            expected=f"one of {', '.join(map(repr, choices))}",
            remedy="Fix the benchmark's row.",
        )
    chosen = _choose(prediction, choices, forms)
    return (None, chosen) if isinstance(chosen, str) else (float(chosen in right), "")


def open_recall(prediction: str, targets: Sequence[str]) -> float:
    """Share of a target's words found in the prediction, each as often as it stands there; the best target counts.

    A target without words is recalled by a prediction without words only.
    """
    return max((_shares(prediction, target)[0] for target in targets), default=0.0)


def open_exact_match(prediction: str, targets: Sequence[str]) -> float:
    """1 if the prediction equals any target after `normalise`, else 0."""
    return float(any(normalise(prediction) == normalise(target) for target in targets))


def medical_exact_match(prediction: str, targets: Sequence[str]) -> float:
    """1 if the prediction equals any target after `medical`, else 0."""
    return float(any(medical(prediction) == medical(target) for target in targets))


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


def _side_verdict(prediction: str, wanted: str) -> tuple[float | None, str]:
    """What `closed_verdict` says of a target that is yes or no."""
    answer, cause = read_yes_no(prediction)
    return (None, cause) if answer is None else (float(answer == wanted), "")


def _word_verdict(prediction: str, target: str) -> tuple[float | None, str]:
    """What `closed_verdict` says of any other target."""
    said, wanted = medical(prediction), medical(target)
    if said == wanted:
        return 1.0, ""
    if not said:
        return None, "empty"
    sentence = _first_sentence(prediction)
    if read_yes_no(sentence).cause == "hedged":
        return None, "hedged"
    return float(_names(said, wanted) and _answers(sentence, target)), ""


def _answers(sentence: str, target: str) -> bool:
    """Whether a short sentence names the target and nothing that rivals it."""
    wanted = medical(target)
    pieces = [piece for piece in map(medical, _PIECE.split(_undenied(sentence, target))) if piece]
    words, own = " ".join(pieces).split(), wanted.split()
    places = [place for place in range(len(words)) if words[place : place + len(own)] == own]
    if not places or len(words) > _LONGEST or ("or" in words and "or" not in own):
        return False
    if any(row.intersection(own) and row.intersection(words) - set(own) for row in _RIVALS):
        return False
    beside = [word for at in places for word in words[max(0, at - 2) : at] + words[at + len(own) : at + len(own) + 2]]
    # Of a target whose rivals are all known, "CT, chest" only says more; of others, "liver, spleen" is a list.
    others = [] if any(row.issuperset(own) for row in _RIVALS) else [piece for piece in pieces if not _names(piece, wanted)]
    return "and" not in beside and not any(_FRAME.isdisjoint(piece.split()) for piece in others)


def _choose(prediction: str, choices: Sequence[str], forms: Sequence[str]) -> int | str:
    """The place of the option that is chosen, or the cause why none is."""
    if not normalise(prediction):
        return "empty"
    named = _named(prediction, choices, forms)
    letters = _letters(prediction, [choices[place] for place in named], len(choices))
    if len(letters) > 1 or (len(named) > 1 and not letters):
        return "several options"
    if letters and named and not letters <= named:
        return "letter and text disagree"
    if not (letters or named):
        return "hedged" if read_yes_no(prediction).cause == "hedged" else "no option"
    chosen = min(letters or named)
    doubted = [read_yes_no(text).cause == "hedged" for text in (_first_sentence(prediction), choices[chosen])]
    return "hedged" if doubted == [True, False] else chosen


def _named(prediction: str, choices: Sequence[str], forms: Sequence[str]) -> set[int]:
    """The places of the options that the prediction is or holds, a longer one hiding those inside it."""
    for said, options in ((normalise(prediction), [normalise(choice) for choice in choices]), (medical(prediction), forms)):
        if options.count(said) == 1:
            return {options.index(said)}
    sides = [side(choice) for choice in choices]
    polar = {"yes", "no"} <= set(sides)
    answer, cause = read_yes_no(prediction)
    named = set()
    for place, choice in enumerate(choices):
        if polar and sides[place]:
            chosen = answer == sides[place] or cause == "both words"
        else:
            chosen = _names(medical(_undenied(prediction, choice)), forms[place])
        if chosen:
            named.add(place)
    return {one for one in named if not any(forms[one] != forms[other] and _names(forms[other], forms[one]) for other in named)}


def _letters(prediction: str, named: Sequence[str], count: int) -> set[int]:
    """The places of the options that are chosen by letter; letters of the named texts, as in "hepatitis B", are none."""
    text = _DENIED.sub(" ", prediction)
    for option in named:
        text = re.sub(rf"(?<!\w){re.escape(option)}(?!\w)", "_", text, flags=re.I) if len(option) > 1 else text
    found = set()
    for letter in _LETTER.finditer(text):
        before = text[max(0, letter.start() - _AROUND_LETTER) : letter.start()]
        behind = text[letter.end() : letter.end() + _AROUND_LETTER]
        titled = _TITLE.search(before) is not None
        if (titled and letter.group().isupper()) or (
            (titled or _BEFORE_LETTER.search(before)) and _BEHIND_LETTER.match(behind)
        ):
            found.add(ascii_uppercase.index(letter.group().upper()))
    return {place for place in found if place < count}


def _first_sentence(text: str) -> str:
    return next((sentence for sentence in _SENTENCE.split(text) if sentence.strip()), "")


def _undenied(text: str, wanted: str) -> str:
    """The text without what it denies; all of it where the wanted words deny themselves, as in "without contrast"."""
    return text if _DENIED.search(wanted) else _DENIED.sub(" ", text)


def _names(words: str, phrase: str) -> bool:
    """Whether a phrase stands in the words as whole words."""
    return bool(phrase) and f" {phrase} " in f" {words} "
