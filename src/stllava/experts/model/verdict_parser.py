"""What a model's words say: a pure reader of verdicts and scores that would rather read none than a wrong one.

A verdict is what a whole reply ends with: a JSON object, the line that the rubric demands ("Verdict: 2", "Scores: 8, 3")
or `[[A]]`; or a reply that is nothing but the number of an answer, or as many numbers as there are answers. What is said
later counts, because reasons come before verdicts; what a model thinks aloud does not. Everything else is `unparsed`,
`abstained` or `refused`. Nothing that a model says can raise, or take longer than in proportion to its length.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from stllava.experts.model.json_objects import json_objects
from stllava.records import VerdictCause
from stllava.thoughts import without_thought

Scores = tuple[float, ...]
FIRST, SECOND, TIE = (1.0, 0.0), (0.0, 1.0), (0.5, 0.5)
MOST_POINTS = 10.0
RAISE = "raise max_tokens (of a local model: max_new_tokens)"
"""What helps where replies are cut off."""
CUT = f"The reply breaks off before its verdict: {RAISE}."
LONGEST, LONGEST_GROUNDS, LONGEST_LINE = 1_000_000, 100_000, 300
"""Characters: of a reply, of what is said behind the thought, and of the line with the verdict; more is no verdict."""
TOO_LONG = f"The reply has more than {LONGEST:,} characters, or {LONGEST_GROUNDS:,} beside what was thought."


@dataclass(frozen=True)
class ParsedReply:
    """What a reply says of the answers in the order shown."""

    scores: Scores | None
    """One an answer, higher is better; of two that were compared 1 and 0, or ½ each for a tie. None: no verdict."""
    cause: VerdictCause | None
    """Why there is no verdict; None when there is one."""
    reason: str
    """The model's grounds, in its words; what is wrong with a reply that breaks off."""
    correction: str | None = None
    """The right answer in the model's words, where it has a verdict and says one."""


def parse_verdict(text: str) -> ParsedReply:
    """Which of two answers a reply prefers."""
    return _read(text, in_object=_object_verdict, in_line=_line_verdict, alone=_number_of_an_answer)


def parse_scores(text: str, count: int) -> ParsedReply:
    """The scores that a reply gives `count` answers, from 0 to 10."""
    return _read(
        text,
        in_object=partial(_object_scores, count=count),
        in_line=partial(_line_scores, count=count),
        alone=partial(_lone_scores, count=count),
    )


Found = Scores | Literal["abstain"] | None


def _read(
    text: str,
    *,
    in_object: Callable[[Mapping[str, object]], Found],
    in_line: Callable[[str], Found],
    alone: Callable[[str], Found],
) -> ParsedReply:
    """What a reply says by its last JSON object, its last line or, if it is short, by all it is."""
    said = without_thought(text) if len(text) <= LONGEST else ""
    if said is None:
        return ParsedReply(None, "unparsed", CUT)
    if len(text) > LONGEST or len(said) > LONGEST_GROUNDS:
        return ParsedReply(None, "unparsed", TOO_LONG)
    words = _unwrapped(_without_courtesy(_unwrapped(_visible(said))))
    objects = json_objects(words)
    if objects is None:
        return ParsedReply(None, "unparsed", said.strip() if words.endswith("}") else CUT)
    end, value = objects[-1] if objects else (0, None)
    start = words.rfind("\n") + 1
    if value is not None and end == len(words):
        grounds = _reason(value)
        found = in_object(value) if grounds not in _FORMS_REASONS else None
    else:
        line = _last_line(words)
        grounds = words[:start].strip()
        found = in_line(_plain(line)) if len(line) <= LONGEST_LINE else None
        found = found or alone(words.strip(_AROUND))
    if found is None:
        return ParsedReply(None, _silence(said), said.strip())
    cause: VerdictCause | None = "abstained" if found == "abstain" else "refused" if _is_refusal(grounds) else None
    as_object = value if end == len(words) else None
    reason = grounds if as_object is not None and grounds else said.strip()
    if found == "abstain" or cause:
        return ParsedReply(None, cause, reason)
    return ParsedReply(found, None, reason, _object_correction(as_object) if as_object is not None else _line_correction(words))


# ---- the words alone ----

_WIDE = {
    wide: wide - 0xFEE0
    for wide in range(ord("！"), ord("～") + 1)
    if chr(wide - 0xFEE0) not in "\"'\\{}"  # In JSON those would change what is a string.
} | {ord("\u3000"): " "}
_SEEN = _WIDE | dict.fromkeys(map(ord, "\u2028\u2029\x85"), "\n") | dict.fromkeys(map(ord, "\u200b\u200e\u200f\u2060\ufeff"))
_AROUND = " .()[]{}<>$"
_MARKUP = str.maketrans("", "", '*_`#"“”✅✔👉🏆\ufe0f')
_COURTESY = re.compile(
    r"(?:thanks|thank you|(?:I )?hope (?:this|that) helps|let me know if [\w ]{1,80})[.!]?\s?", re.IGNORECASE
)
_TAG = re.compile(r"<[^<>\s\d][^<>\s]{0,29}>")
_RULE = re.compile(r"\n[ \t]*[-=—]{3,80}$")
_BOX = re.compile(r"\$?\\(?:boxed|fbox)\{(?:\\text\{)?([^{}\\]{1,60})\}{1,2}\$?")
_SENTENCE_ENDS = re.compile(r"(?<=\w\w[.!?])[ *_]{1,8}(?=(?:Final |Overall |My )?(?:Verdict|Scores?)\b)")


def _visible(text: str) -> str:
    """The text without what cannot be seen, with the digits and marks of Chinese and Japanese keyboards in plain form."""
    seen = text.replace("\x00", "").replace("\r", "\n")
    return seen if seen.isascii() else seen.translate(_SEEN)


def _unwrapped(words: str) -> str:
    """The words without the fences, emphasis, quotes and tags around them all."""
    for _ in range(8):
        before = len(words)
        words = words.strip("\r\n\t *_`~\"'")
        if (start := _TAG.match(words)) is not None:
            words = words[start.end() :]
        last = words.rfind("<", len(words) - 32 if len(words) > 32 else 0)
        if last >= 0 and _TAG.fullmatch(words, last) is not None:
            words = words[:last]
        if (rule := _RULE.search(words, max(0, len(words) - 100))) is not None:
            words = words[: rule.start()]
        if len(words) == before:
            break
    return words


def _without_courtesy(words: str) -> str:
    """The words without a last line that only takes leave."""
    start = words.rfind("\n") + 1
    return words[:start] if _COURTESY.fullmatch(words, max(start, len(words) - LONGEST_LINE)) else words


def _last_line(words: str) -> str:
    """The last line, from its last sentence on where that begins with a label, or with the label from the line before it."""
    above, _, line = words.rpartition("\n")
    ends = [found.end() for found in _SENTENCE_ENDS.finditer(line[-LONGEST_LINE:])]
    line = line[-LONGEST_LINE:][ends[-1] :] if ends else line
    label = _plain(above.rstrip()[-LONGEST_LINE:].rpartition("\n")[2])
    return f"{label} {line}" if _labelled(label, "verdict", "scores", "score") == "" else line


def _plain(line: str) -> str:
    """A line without markup, in lower case, one blank between words."""
    return " ".join(line.translate(_MARKUP).lower().split()).lstrip("-• ")


# ---- pairwise ----

_CHOICES: Mapping[str, Found] = {
    **dict.fromkeys(("1", "a"), FIRST),
    **dict.fromkeys(("2", "b"), SECOND),
    "tie": TIE,
    "abstain": "abstain",
}
_CHOICE = re.compile(
    r"(?:(?:the )?(?:(?:answer|response|option|assistant|candidate)[ _-]?)?(1|2|a|b|one|two|first|second)"
    r"(?: (?:answer|response))?(?: is better| is the better (?:one|answer|response)| is preferred| wins)?|"
    r"(?:it is |it's )?(?:a )?(tie)|(abstain))"
)
_NUMBERS = {"one": "1", "first": "1", "two": "2", "second": "2"}
_KEYS = frozenset({"verdict", "finalverdict", "winner", "better", "betteranswer", "choice", "preferred", "best"})
_BRACKETS = re.compile(r"\[\[([^\[\]\n]{1,20})\]\]")
_DOUBT = re.compile(r"\b(?:not|never|no|neither|cannot|if|unless|whether|would|could|might|possible|example)\b|n't\b")


def _choice(said: object) -> Found:
    """What one word or number chooses, with a remark in parentheses only where that says the same."""
    if isinstance(said, float) and said.is_integer():
        said = int(said)
    if isinstance(said, bool) or not isinstance(said, str | int):
        return None
    words, _, remark = _unboxed(str(said)[:LONGEST_LINE].lower()).strip().partition(" (")
    choice = _chosen(words)
    return choice if not remark or _chosen(remark) == choice else None


def _chosen(words: str) -> Found:
    """What a word, a number or the name of an answer chooses."""
    found = _CHOICE.fullmatch(words.strip(_AROUND + "!*_`\"'"))
    if found is None:
        return None
    number = found[1] and _NUMBERS.get(found[1], found[1])
    return _CHOICES[number or found[2] or found[3]]


def _object_verdict(value: Mapping[str, object]) -> Found:
    """The verdict of a JSON object; none where two of its fields differ."""
    choices = {("abstain" if value[key] is None else _choice(value[key])) for key in value if _name(key) in _KEYS}
    return choices.pop() if len(choices) == 1 else None


def _line_verdict(line: str) -> Found:
    """The verdict of "Verdict: 2" or, at the end of a line, "[[B]]"."""
    if (value := _labelled(line, "verdict")) is not None:
        return _choice(value)
    if _BOX.fullmatch(line) is not None:
        return _choice(line)
    before = line.partition("[[")[0].rstrip()
    if not line.endswith("]]") or (before and not before.endswith((":", ",", " is"))) or _DOUBT.search(before):
        return None
    choices = {TIE if name.strip() == "c" else _choice(name) for name in _BRACKETS.findall(line)}
    return choices.pop() if len(choices) == 1 else None


def _number_of_an_answer(words: str) -> Found:
    """The verdict of a reply that is "1" or "2" and nothing else."""
    return _CHOICES[words] if words in ("1", "2") else None


def _labelled(line: str, *names: str) -> str | None:
    """What stands behind a name and a colon in a line that begins with them."""
    label, colon, value = line.partition(":")
    if not colon:
        label, colon, value = line.replace(" – ", " - ").partition(" - ")
    words = label.split()
    return value if colon and words and words[-1] in names and {*words[:-1]} <= {"final", "my", "overall", "the"} else None


def _unboxed(words: str) -> str:
    """Words without the box that LaTeX draws around a result."""
    return _BOX.sub(r"\1", words)


# ---- scores ----

_POINTS = re.compile(r"(\d{1,3}(?:\.\d{1,4})?)(?:/(\d{1,3}))?", re.ASCII)
_SEPARATORS = re.compile(r"[,;|&]|\bvs\b\.?|\band\b")
_ANSWER = re.compile(r"(?:score)?[ _-]?(?:of)?[ _-]?(?:answer|response|option)?[ _-]?(\d{1,2}|[a-h])", re.ASCII)
_ANSWER_KEYS = frozenset({"answer", "answerid", "answernumber", "id", "index", "name", "number", "option", "response"})
_SCORES_KEYS = frozenset({"scores", "score", "ratings", "rating"})


def _object_scores(value: Mapping[str, object], count: int) -> Found:
    """The scores of a JSON object: a list, or one field an answer; none where there is more than one of those."""
    found = [_given_scores(given, count) for key, given in value.items() if _name(key) in _SCORES_KEYS]
    return found[0] if len(found) == 1 else None if found else _by_answer(value, count)


def _given_scores(given: object, count: int) -> Found:
    """Scores in a JSON list, or in an object by answer."""
    if given is None or given in ("abstain", []):
        return "abstain"
    if isinstance(given, dict):
        return _by_answer(given, count)
    if isinstance(given, str):
        return _listed_scores(given, count)
    if not isinstance(given, list) or len(given) != count:
        return None
    names = [_name_of_answer(one) for one in given if isinstance(one, dict)]
    if not any(names):
        return _complete([_points(_inner(one)) for one in given])
    return _by_answer({name or "": one for name, one in zip(names, given, strict=False)}, count)


def _name_of_answer(fields: Mapping[str, object]) -> str | None:
    """The answer that an object in a list of scores is about, where it says so; such lists may have any order."""
    said = (str(fields[key]).strip().lower() for key in fields if _name(key) in _ANSWER_KEYS)
    return next((name for name in said if _ANSWER.fullmatch(name)), None)


def _by_answer(value: Mapping[str, object], count: int) -> Scores | None:
    """Scores of fields such as "1", "answer 2" or "answer_b"; none where an answer has two."""
    marks: dict[int, float | None] = {}
    for key, given in value.items():
        name = _ANSWER.fullmatch(key.strip().lower())
        if name is not None:
            answer = int(name[1]) if name[1].isdigit() else ord(name[1]) - ord("a") + 1
            if answer in marks:
                return None
            marks[answer] = _points(_inner(given))
    return _complete([marks.get(answer) for answer in range(1, count + 1)]) if len(marks) == count else None


def _inner(given: object) -> object:
    """The `score` of an object, or what is given itself."""
    return next((given[key] for key in given if _name(key) == "score"), None) if isinstance(given, dict) else given


def _points(given: object) -> float | None:
    """A score from 0 to 10 of 8, "8", "8.5", "8/10" or "80/100"."""
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        return None
    if not isinstance(given, str):
        return float(given) if 0 <= given <= MOST_POINTS else None
    found = _POINTS.fullmatch(given.strip())
    return _share(found[1], found[2]) if found else None


def _share(number: str, of: str | None) -> float | None:
    value, most = float(number), float(of) if of else MOST_POINTS
    return value * MOST_POINTS / most if most in (5.0, 10.0, 100.0) and value <= most else None


def _line_scores(line: str, count: int) -> Found:
    """The scores of "Scores: 8, 3" or "Scores: answer 1: 8, answer 2: 3"."""
    value = line if _BOX.fullmatch(line) is not None else _labelled(line, "scores", "score", "verdict")
    if value is None:
        return None
    value = _unboxed(value)
    if value.strip(_AROUND) == "abstain":
        return "abstain"
    fields = [field.rpartition(":")[::2] for field in re.split("[,;|]", value.strip(" ."))]
    return _by_answer(dict(fields), count) if len(fields) == count and all(fields[0]) else _listed_scores(value, count)


def _lone_scores(words: str, count: int) -> Scores | None:
    """The scores of a reply that is nothing but numbers; 2, 1, 3 of three answers may be a ranking, and is none."""
    scores = _listed_scores(words, count)
    return None if scores is None or sorted(scores) == [*range(1, count + 1)] else scores


def _listed_scores(text: str, count: int) -> Scores | None:
    """The scores of a text that is as many numbers as there are answers, all in points or all of the same number."""
    if len(text) > LONGEST_LINE:
        return None
    given = _SEPARATORS.sub(" ", text.strip(_AROUND).lower().replace(" / ", "/")).split()
    found = [_POINTS.fullmatch(one) for one in given]
    if len(found) != count or len({match[2] for match in found if match is not None}) != 1:
        return None
    return _complete([None if match is None else _share(match[1], match[2]) for match in found])


def _complete(marks: list[float | None]) -> Scores | None:
    known = tuple(mark for mark in marks if mark is not None)
    return known if known and len(known) == len(marks) else None


# ---- corrections ----

_CORRECTION_KEYS = frozenset({"correction", "correctedanswer", "correctanswer", "corrected", "rightanswer"})
_CORRECTION_LABELS = ("correction", "corrected answer", "correct answer", "right answer")
_NO_CORRECTION = frozenset(
    {"", "none", "n/a", "na", "null", "no correction", "not needed", "none needed", "empty", "-", "–", "…", "..."}
)
LONGEST_CORRECTION, LINES_LOOKED_AT = 2_000, 20


def _object_correction(value: Mapping[str, object]) -> str | None:
    """The correction of a JSON object; none where two of its fields differ."""
    found = {_correction(given) for key, given in value.items() if _name(key) in _CORRECTION_KEYS and isinstance(given, str)}
    return found.pop() if len(found) == 1 else None


def _line_correction(words: str) -> str | None:
    """What stands behind "Correction:" in the last line but the verdict's that begins so."""
    for line in reversed(words.split("\n")[-LINES_LOOKED_AT:-1]):
        label, colon, text = line[: LONGEST_CORRECTION + LONGEST_LINE].partition(":")
        if colon and _plain(label[:LONGEST_LINE]) in _CORRECTION_LABELS:
            return _correction(text)
    return None


def _correction(text: str) -> str | None:
    """A correction on one line without the quotes and emphasis around it, or None where it says that there is none."""
    said = " ".join(text.split()).strip("*_`\"'“” ") if len(text) <= LONGEST_CORRECTION else ""
    return None if said.lower().rstrip(".") in _NO_CORRECTION else said


# ---- what is no verdict ----

_APOLOGY = r"(?:(?:I'm|I am) sorry|sorry|I apologi[sz]e|unfortunately)\b[,.;]?(?: but)? "
_DENIAL = (
    r"I(?: can't|'m unable to| cannot| can not| won't| will not| am unable to| am not able to|'m not able to)"
    r"(?: \w{1,12}){0,2}? (?:help|assist|comply|provide|fulfil|evaluate|judge|compare|analy[sz]e|interpret|answer|say)\b"
)
_REFUSAL = re.compile(
    rf"\b{_APOLOGY}{_DENIAL}|\b(?:I'm|I (?:cannot|can't|can not|won't|am)) ?(?:unable to |not able to )?"
    r"(?:help|assist|comply|provide|fulfil|(?:directly )?(?:view|see|access|open|display|process) "
    r"(?:the |any |this |these |your |attached ){0,2}(?:images?|pictures?|attachments?))\b",
    re.IGNORECASE,
)
_ABSTENTION = re.compile(
    r"\babstain|\b(?:cannot|can't|can not|unable to|impossible to|not possible to) (?:be )?"
    r"(?:judged?|decided?|determined?|compared?|scored?|assess(?:ed)?|evaluated?|tell)\b",
    re.IGNORECASE,
)
_YET = re.compile(r"\b(?:but|however|yet|still|nevertheless|that said|answer|response)\b", re.IGNORECASE)
_FORMS_REASONS = ("…", "...")
"""The reason in the rubric's example: who repeats it repeats the example."""
_ENDS = 1_000


def _silence(words: str) -> VerdictCause:
    """What words without a verdict are."""
    ends = " ".join((words if len(words) <= 2 * _ENDS else f"{words[:_ENDS]} … {words[-_ENDS:]}").replace("’", "'").split())
    if _REFUSAL.search(ends):
        return "refused"
    return "abstained" if _ABSTENTION.search(ends) else "unparsed"


def _is_refusal(grounds: str) -> bool:
    """Whether grounds are a refusal and nothing else, as of a model that its schema forces to name an answer."""
    words = " ".join(grounds[:_ENDS].replace("’", "'").split())
    found = _REFUSAL.match(words)
    return found is not None and _YET.search(words, found.end()) is None


def _reason(value: Mapping[str, object]) -> str:
    """The grounds in a JSON object; empty where it has none."""
    reasons = (value[key] for key in value if _name(key) in ("reason", "reasoning", "explanation", "rationale"))
    return next((reason.strip() for reason in reasons if isinstance(reason, str)), "")


def _name(key: str) -> str:
    """A key without what is neither letter nor digit, in lower case."""
    return "".join(filter(str.isalnum, key[:LONGEST_LINE].lower()))
