"""What a model's words say: a pure, forgiving reader of verdicts and scores.

JSON, in a code fence or among prose; "Verdict: 2", "[[A]]", "Answer 2 is better"; "8, 7", "9/10 vs 7/10", a line or a
table row an answer. Where a model says it more than once, the last time counts, because reasons come before verdicts.
Words that say no verdict are `unparsed`, `abstained` or `refused`; nothing that a model says can raise.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Cause = Literal["unparsed", "abstained", "refused", "failed"]
FIRST, SECOND, TIE = (1.0, 0.0), (0.0, 1.0), (0.5, 0.5)
_READ = 20_000
"""Characters that are read, from the end: a verdict stands there."""
_OBJECTS = 50
"""JSON objects that are tried, from the end."""
MOST_POINTS = 10.0


@dataclass(frozen=True)
class Reading:
    """What a reply says of the answers in the order shown."""

    scores: tuple[float, ...] | None
    """One an answer, higher is better; of two that were compared 1 and 0, or ½ each for a tie. None: no verdict."""
    cause: Cause | None
    """Why there is no verdict; None when there is one."""
    reason: str
    """The model's grounds, in its words."""


def read_verdict(text: str) -> Reading:
    """Which of two answers a reply prefers."""
    words = _last_words(text)
    found = [*_json_verdicts(words), *_said_verdicts(words)]
    if found:
        verdict = max(found, key=lambda one: one[0])[1]
        if verdict == "abstain":
            return Reading(None, "abstained", reason_of(words))
        return Reading(verdict, None, reason_of(words))
    scores = _scores(words, 2)
    if isinstance(scores, tuple):
        first, second = scores
        return Reading(TIE if first == second else FIRST if first > second else SECOND, None, reason_of(words))
    bare = _choice(words.strip().strip("[](){}*_`\"'.: \n"))
    if isinstance(bare, tuple):
        return Reading(bare, None, "")
    return Reading(None, "abstained" if "abstain" in (scores, bare) else _silence(words), reason_of(words))


def read_scores(text: str, count: int) -> Reading:
    """The scores that a reply gives `count` answers, from 0 to 10."""
    words = _last_words(text)
    scores = _scores(words, count)
    if isinstance(scores, tuple):
        return Reading(scores, None, reason_of(words))
    return Reading(None, "abstained" if scores == "abstain" else _silence(words), reason_of(words))


def reason_of(words: str) -> str:
    """The grounds of a reply: its `reason` where it is JSON, else all of it."""
    for _, value in _objects(words):
        for key, reason in value.items():
            if key.lower() in ("reason", "reasoning", "explanation", "rationale") and isinstance(reason, str):
                return reason.strip()
    return words.strip()


def _last_words(text: str) -> str:
    """The end of a text, behind what a reasoning model thought aloud."""
    return text.rpartition("</think>")[2][-_READ:]


# ---- pairwise ----

_CHOICES: Mapping[str, tuple[float, float] | Literal["abstain"]] = {
    **dict.fromkeys(("1", "a", "one", "first", "the first", "first answer"), FIRST),
    **dict.fromkeys(("2", "b", "two", "second", "the second", "second answer"), SECOND),
    **dict.fromkeys(("tie", "tied", "draw", "equal", "both", "neither", "c", "none is better", "0", "same"), TIE),
    **dict.fromkeys(("abstain", "abstained", "none", "null", "unknown", "cannot judge", "n/a", "unsure"), "abstain"),
}
_NAME = r"(?:(?:the|candidate|assistant|option|response|answer|model)\s+)*"
_WHICH = r"(1|2|A|B|one|two|first|second)"
_MARKS = r"[\s*_`\"'\[({<#:=>|-]*"
_LABEL = re.compile(
    rf"\b(?:final\s+)?(?:verdict|winner|preference|preferred|decision|judge?ment|choice|best\s+answer|better\s+answer)\b"
    rf"(?:\s+(?:is|goes\s+to))?{_MARKS}{_NAME}{_MARKS}"
    r"(1|2|A|B|C|one|two|first|second|tied?|draw|equal|both|neither|abstain(?:ed)?|cannot\s+judge|n/a|unsure)\b",
    re.IGNORECASE,
)
_BRACKETS = re.compile(r"\[\[\s*(?:answer\s+)?(1|2|A|B|C|tie|abstain)\s*\]\]", re.IGNORECASE)
_BETTER = (
    r"(?:better|best|stronger|superior|preferable|preferred|more\s+(?:accurate|correct|relevant|complete|precise|helpful)|"
    r"the\s+winner|wins)"
)
_DEGREE = r"(?:(?:clearly|much|slightly|far|the|therefore|thus|overall|a|bit|significantly|marginally|somewhat)\s+)*"
_PROSE = re.compile(
    rf"\b(?:answer|response|option|assistant)\s*[*_`\"'#]*{_WHICH}\b[*_`\"']*\s+(?:(?:is|are|seems|appears)\s+(?:to\s+be\s+)?)?"
    rf"{_DEGREE}{_BETTER}\b",
    re.IGNORECASE,
)
_ORDINAL = re.compile(
    rf"\bthe\s+(first|second)\s+(?:answer|one|response|option)?\s*(?:is|seems|appears)?\s*{_DEGREE}{_BETTER}\b", re.IGNORECASE
)
_PREFER = re.compile(
    rf"\b(?:I|we)\s+(?:would\s+)?(?:clearly\s+)?(?:prefer|choose|pick|favou?r|select)\s+{_NAME}[*_`\"'#]*{_WHICH}\b",
    re.IGNORECASE,
)
_EVEN = re.compile(
    r"\b(?:both|the\s+two|the)\s+(?:answers|responses|options)\s+are\s+(?:about\s+|almost\s+)?(?:equal\w*|equivalent|the\s+same|"
    r"identical|tied)\b|\b(?:it\s+is|it's|call\s+it|this\s+is)\s+a\s+(?:tie|draw)\b|\bneither\s+(?:answer\s+)?is\s+better\b",
    re.IGNORECASE,
)


def _choice(word: object) -> tuple[float, float] | Literal["abstain"] | None:
    """What one word or number chooses."""
    if isinstance(word, bool) or not isinstance(word, str | int | float):
        return "abstain" if word is None else None
    name = " ".join(str(word).lower().strip(" .[]*_`\"'").split())
    return _CHOICES.get(re.sub(rf"^{_NAME}", "", name + " ", flags=re.IGNORECASE).strip() or name)


_KEYS = frozenset({"verdict", "winner", "better", "betteranswer", "choice", "preferred", "best"})


def _json_verdicts(words: str) -> Iterator[tuple[int, tuple[float, float] | Literal["abstain"]]]:
    """Verdicts in JSON objects, with where they end."""
    for end, value in _objects(words):
        for key, chosen in value.items():
            choice = _choice(chosen) if re.sub(r"\W|_", "", key.lower()) in _KEYS else None
            if choice is not None:
                yield end, choice


_HEDGED = re.compile(r"(?:\b(?:not|whether|if|nor|cannot|hardly|unless)\b|n't\b)[^.!?\n]{0,60}$", re.IGNORECASE)
"""What makes "answer 1 is better" no verdict when it stands before it in the same sentence."""


def _said_verdicts(words: str) -> Iterator[tuple[int, tuple[float, float] | Literal["abstain"]]]:
    """Verdicts in words, with where they end."""
    for pattern in (_LABEL, _BRACKETS, _PROSE, _ORDINAL, _PREFER):
        for found in pattern.finditer(words):
            choice = _choice(found[1])
            if pattern is _LABEL:  # "Verdict: both answers …" and "the better answer is a …" go on: no verdict there.
                doubtful = found[1] in ("a", "both", "neither") and _goes_on(words, found)
            else:
                doubtful = _HEDGED.search(words[max(0, found.start() - 80) : found.start()]) is not None
            if choice is not None and not doubtful:
                yield found.end(), choice
    for found in _EVEN.finditer(words):
        yield found.end(), TIE


def _goes_on(words: str, found: re.Match[str]) -> bool:
    return re.match(r"[*_`\"'\])}]*[ \t]+\w", words[found.end() : found.end() + 40]) is not None


# ---- scores ----

_NUMBER = r"(-?\d{1,3}(?:\.\d{1,4})?)(?:\s*/\s*(\d{1,3}))?"
_SCORE = re.compile(_NUMBER)
_SCORES_LINE = re.compile(
    rf"\bscores?\b[^\n\d-]{{0,40}}?((?:{_NUMBER})(?:[^\w\n]{{1,6}}(?:(?:vs\.?|and|to)[ \t]+)?(?:{_NUMBER}))*)[*_`.\s\])]*$",
    re.IGNORECASE | re.MULTILINE,
)
_ABSTAINED_SCORES = re.compile(r"\b(?:scores?|verdict)\b[\s*_`:=-]{1,10}(?:I\s+)?(?:abstain|n/a|none\b)", re.IGNORECASE)
_NUMBERS_LINE = re.compile(
    rf"^[\s*_`>\[(#-]*((?:{_NUMBER})(?:[\s,;:|/&*_`-]+(?:(?:vs\.?|and|to)\s+)?(?:{_NUMBER}))*)[\s*_`.\])]*$",
    re.IGNORECASE | re.MULTILINE,
)
_EACH = re.compile(
    rf"(?:\b(?:answer|response|option|assistant|candidate)\s*|^\s*\|?\s*)[*_`\"'#(\[]*(\d{{1,2}}|[A-H])\b[*_`\"')\]]*"
    r"[^\w\n]{1,12}(?:(?:score[sd]?|gets|is|a|rating|deserves|of|with|rated|would|get|at)\b[^\w\n]{0,6}){0,4}"
    rf"{_NUMBER}(?=[ \t]*(?:[^\w\s%]|$))",
    re.IGNORECASE | re.MULTILINE,
)


def _scores(words: str, count: int) -> tuple[float, ...] | Literal["abstain"] | None:
    """The last scores that a text gives `count` answers."""
    found: list[tuple[int, tuple[float, ...] | Literal["abstain"]]] = []
    for end, value in _objects(words):
        for key, given in value.items():
            name = re.sub(r"\W|_", "", key.lower())
            if name in ("scores", "score", "ratings", "rating"):
                scores = _listed(given, count)
                if scores is not None:
                    found.append((end, scores))
        scores = _by_answer(value, count)
        if scores is not None:
            found.append((end, scores))
    for pattern in (_SCORES_LINE, _NUMBERS_LINE):
        for line in pattern.finditer(words):
            marks = _all_scores(line[1], count)
            if marks is not None:
                found.append((line.end(), marks))
    found += [(line.end(), "abstain") for line in _ABSTAINED_SCORES.finditer(words)]
    each: dict[int, tuple[int, float]] = {}
    for line in _EACH.finditer(words):
        place = int(line[1]) if line[1].isdigit() else ord(line[1].upper()) - ord("A") + 1
        mark = _mark(line[2], line[3])
        if mark is not None and 1 <= place <= count:
            each[place] = line.end(), mark
    if len(each) == count:
        found.append((max(end for end, _ in each.values()), tuple(each[place][1] for place in range(1, count + 1))))
    return max(found, key=lambda one: one[0])[1] if found else None


def _listed(given: object, count: int) -> tuple[float, ...] | Literal["abstain"] | None:
    """Scores in a JSON list, or in an object by answer."""
    if given is None or given in ("abstain", []):
        return "abstain"
    if isinstance(given, dict):
        return _by_answer(given, count)
    if isinstance(given, str):
        return _all_scores(given, count)
    if not isinstance(given, list) or len(given) != count:
        return None
    marks = [
        _number(one) if not isinstance(one, dict) else next((_number(one[key]) for key in one if key.lower() == "score"), None)
        for one in given
    ]
    return _complete(marks)


def _by_answer(value: Mapping[str, object], count: int) -> tuple[float, ...] | None:
    """Scores of keys such as "1", "answer 2" or "answer_b"."""
    marks: dict[int, float] = {}
    for key, given in value.items():
        name = re.fullmatch(r"(?:(?:score|answer|response|option)[\s_-]*)*(?:of[\s_-]*)?(\d{1,2}|[a-h])", key.strip().lower())
        inner = given.get("score") if isinstance(given, dict) else given
        mark = _number(inner)
        if name is not None and mark is not None:
            marks[int(name[1]) if name[1].isdigit() else ord(name[1]) - ord("a") + 1] = mark
    return _complete([marks.get(place) for place in range(1, count + 1)]) if len(marks) == count else None


def _number(given: object) -> float | None:
    if isinstance(given, bool):
        return None
    if isinstance(given, int | float):
        return float(given) if math.isfinite(given) and 0 <= given <= MOST_POINTS else None
    if isinstance(given, str):
        found = _SCORE.fullmatch(given.strip())
        return _mark(found[1], found[2]) if found else None
    return None


def _mark(number: str, of: str | None) -> float | None:
    """A score from 0 to 10 of "8", "8.5", "8/10" or "80/100"."""
    value, most = float(number), float(of) if of else MOST_POINTS
    if most <= 0 or not 0 <= value <= most or (of is not None and most not in (5.0, 10.0, 100.0)):
        return None
    return value * MOST_POINTS / most


def _all_scores(text: str, count: int) -> tuple[float, ...] | None:
    """The scores of a text that has as many as there are answers."""
    # "8/7" of two answers is two scores, "8/10 7/10" is two scores of ten.
    marks = [_mark(number, of or None) for number, of in _SCORE.findall(text)]
    if len(marks) != count:
        plain = re.findall(r"-?\d{1,3}(?:\.\d{1,4})?", text)
        marks = [_mark(number, None) for number in plain] if len(plain) == count else []
    return _complete(marks) if len(marks) == count else None


def _complete(marks: list[float | None]) -> tuple[float, ...] | None:
    known = tuple(mark for mark in marks if mark is not None)
    return known if known and len(known) == len(marks) else None


# ---- what is no verdict ----

_REFUSAL = re.compile(
    r"\b(?:I(?:'m|\s+am)\s+sorry\b.{0,80}\b(?:can't|cannot|can\s+not|unable|won't|not\s+able)|"
    r"I\s+(?:can't|cannot|can\s+not|won't|am\s+unable\s+to|am\s+not\s+able\s+to)\s+(?:help|assist|comply|provide|fulfil))",
    re.IGNORECASE | re.DOTALL,
)
_ABSTENTION = re.compile(
    r"\babstain|\b(?:cannot|can't|can\s+not|unable\s+to|impossible\s+to|not\s+possible\s+to)\s+(?:be\s+)?"
    r"(?:judged?|decided?|determined?|compared?|scored?|assess(?:ed)?|evaluated?|tell)\b",
    re.IGNORECASE,
)


def _silence(words: str) -> Cause:
    """What words without a verdict are."""
    if _REFUSAL.search(words.replace("’", "'")):
        return "refused"
    return "abstained" if _ABSTENTION.search(words.replace("’", "'")) else "unparsed"


# ---- JSON ----


def _objects(words: str) -> list[tuple[int, dict[str, object]]]:
    """The JSON objects in a text, last first, with where they end."""
    decode: Callable[[str, int], tuple[object, int]] = json.JSONDecoder().raw_decode
    found: list[tuple[int, dict[str, object]]] = []
    place = len(words)
    for _ in range(_OBJECTS):
        place = words.rfind("{", 0, place)
        if place < 0:
            break
        try:
            value, end = decode(words, place)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append((end, value))
    return found
