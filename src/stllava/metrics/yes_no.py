"""Reads an answer as yes or no, or says why it is neither: word by word, with negation, and never seeing the question.

Reads and returns plain strings. What decides, in this order:

1. A verdict: "yes" or "no" that stands first, last or alone in its clause ("No.", "Answer: yes", "I would say no"), or the
   word for it in another language as the whole answer or its first word. A verdict decides whatever else is said ("Yes,
   there is no air"), unless the other verdict is there too, or a clause of nothing but doubt takes it back ("Yes, but I am
   not sure").
2. Doubt ("possibly", "cannot be determined"): no answer. "Probably" and "unlikely" are a lean, not a doubt.
3. Statements. One denies when it holds a word such as no, not, without or absent. One affirms when it says that something
   is there ("There is a fracture", "is seen", "present") or agrees ("Correct", "True", "It is"). Other statements, "the
   eyes are normal", say neither, since only the question could tell. Denying alone is no, affirming alone is yes; both
   together, and a denial denied ("not absent"), are no answer. A question, or what is said about a thing that is there ("a
   mass without calcification", "which is not large"), does not count.

Statements are read in English and Chinese only.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple

from stllava.metrics.words import composed

Answer = Literal["yes", "no"]
_Clause = list[str]


class YesNoAnswer(NamedTuple):
    """What an answer says."""

    answer: Answer | None
    """yes or no; None when it is not to be read as either."""
    cause: Literal["", "empty", "both words", "hedged", "double negation", "affirms and denies", "neither"]
    """Why not; an empty string with an answer."""


@dataclass
class _Evidence:
    """What speaks for either side in an answer."""

    verdicts: set[Answer] = field(default_factory=set)
    statements: set[Answer] = field(default_factory=set)
    retracted: bool = False
    doubted: bool = False
    doubly_denied: bool = False


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _sides(yes: str, no: str) -> dict[str, Answer]:
    return {**dict.fromkeys(yes.split(), "yes"), **dict.fromkeys(no.split(), "no")}


_VERDICTS = _sides("yes yeah yep yup", "no nope nah")
_FOREIGN = _sides(
    "ja oui sí si sim da да tak evet はい ええ 예 네 نعم", "nein nee nej non não nao нет nie hayır いいえ 아니오 아니요 لا"
)
# These are other words, too ("non-contrast", "si nota", "네 개"), so that only alone in their clause they are a verdict.
_ALONE = _words("si non da tak nie 네")
_AFTER_NO = _words("there it this that the they because since as but with not yes no")
_JOINERS = _words("or and nor / oder ou o или und et y e и")

_AGREE = _words("correct true affirmative absolutely definitely certainly indeed undoubtedly sure surely positive")
_DISAGREE = _words("false incorrect wrong untrue")
_SUPPORT = _words(
    "i that this it is was the answer statement very most quite so absolutely definitely certainly probably likely"
)
_BE = _words("is are was were be been being")
_SEEN = _words(
    "present seen visible evident apparent detected identified noted observed demonstrated found visualized visualised"
)
_NORMAL = _words("normal clear intact unremarkable healthy preserved")
_PRONOUNS = _words("it they there he she")
_AUXILIARIES = _BE | _words("does do did has have can could may")
_DENY = _words(
    "no not none never neither nothing nobody without absent absence lack lacks lacking negative excluded unlikely fails"
)
_RELATIVE = _words("that which who")

_DOUBT = _words("maybe perhaps possibly may might unsure uncertain impossible insufficient depends")
# Doubt as well, except of what is denied: "no suspicious nodule" and "could not be seen" are plain.
_DOUBT_UNLESS_DENIED = _words(
    "possible could unclear undetermined indeterminate inconclusive equivocal questionable unknown doubtful ambiguous "
    "suspected suspicious suspicion"
)
# What is doubt behind "not": not sure, cannot be determined, not possible to tell.
_DECIDE = _words(
    "sure certain know known determine determined tell say said judge decide confirm confirmed exclude excluded assess "
    "assessed evaluate evaluated answer answered interpret conclude assist help provide possible enough sufficient "
    "definitive applicable necessarily entirely completely exactly always"
)
_BEFORE_DECIDE = _words("be been able to really possible definitively reliably accurately")
_EMPTY = _words(
    "it is i am are be been this that can do not for to from the image we really very quite with certainty in about here"
) | (_DOUBT | _DOUBT_UNLESS_DENIED | _DECIDE | _BEFORE_DECIDE) - {"possible"}

_PHRASES = {
    "undoubtedly": "no doubt|without doubt|without a doubt|beyond doubt|no question|of course|think so|believe so",
    "": "not only|not just|no more than|not more than|no less than|without contrast|with and without contrast",
    "without": "with no|free of|free from|w/o",
    "excluded": "ruled out",
    "exclude": "rule out",
    "unsure": "no idea|hard to|difficult to|no se puede|no se sabe|no lo sé|não sei",
    "insufficient": "no information",
    "unclear": "it is not clear",
    "not able": "unable",
    "there is": "positive for|there appears to be|there seems to be",
    "there are": "there appear to be|there seem to be",
    "can not": "cannot|cant|can't",
}
_PHRASE_OF = {phrase: form for form, phrases in _PHRASES.items() for phrase in phrases.split("|")}
_PHRASE = re.compile(rf"\b(?:{'|'.join(sorted(_PHRASE_OF, key=len, reverse=True))})\b")
_CONTRACTED = re.compile(r"\b(is|are|was|were|do|does|did|could|would|has|have|had|should|wo)n'?t\b")
_TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)*|[^\w\s-]|(?<!\S)-+(?!\S)")
_ENDS = _words(". ! ? ; : 。 ；")
_CONTRAST = _words("but however although though whereas while yet")


def read_yes_no(text: str) -> YesNoAnswer:
    """Which of yes and no the answer says, or why neither; how it decides stands at the head of this file."""
    if not any(map(str.isalnum, text)):
        return YesNoAnswer(None, "empty")
    tokens = _tokens(text)
    if whole := _side(tokens):
        return YesNoAnswer(whole, "")
    if _names_both(tokens):
        return YesNoAnswer(None, "both words")
    found = _Evidence()
    for part in _parts(tokens):
        _read_verdicts(part, found)
        _read_statements(part, found)
    _read_chinese([token for token in tokens if _is_chinese(token)], found)
    return _weigh(found)


def yes_no(text: str) -> Answer | None:
    """Whether an answer says yes or no; None where `read_yes_no` has a cause not to say."""
    return read_yes_no(text).answer


def side(target: str) -> Answer | None:
    """The side of a reference answer that is a word for yes or no, in any known language, and nothing else; else None."""
    return _side(_tokens(target))


def _side(tokens: Iterable[str]) -> Answer | None:
    words = [token for token in tokens if token[0].isalnum()]
    return _SIDES.get(words[0].translate(_SIMPLER)) if len(words) == 1 else None


def _weigh(found: _Evidence) -> YesNoAnswer:
    """The reading that the evidence allows."""
    if len(found.verdicts) == 2:
        return YesNoAnswer(None, "both words")
    if found.verdicts:
        return YesNoAnswer(None, "hedged") if found.retracted else YesNoAnswer(found.verdicts.pop(), "")
    if found.doubted:
        return YesNoAnswer(None, "hedged")
    if found.doubly_denied:
        return YesNoAnswer(None, "double negation")
    if len(found.statements) == 2:
        return YesNoAnswer(None, "affirms and denies")
    return YesNoAnswer(found.statements.pop(), "") if found.statements else YesNoAnswer(None, "neither")


def _plain(text: str) -> str:
    """Lower case, without markdown, contractions and idioms; a line break becomes a full stop."""
    text = composed(text).casefold().replace("’", "'")
    text = re.sub(r"[*_`#~]", " ", text).replace("\n", " . ")
    text = re.sub(r"\b(it|that|there|he|she)'s\b", r"\1 is", _CONTRACTED.sub(r"\1 not", " ".join(text.split())))
    # Twice, since "can't" must be two words before "can not rule out" can be seen.
    for _ in range(2):
        text = _PHRASE.sub(lambda phrase: _PHRASE_OF[phrase.group()], text)
    return text


def _tokens(text: str) -> list[str]:
    """The words and marks, without the sentences that are questions."""
    tokens: list[str] = []
    sentence = 0
    for token in _TOKEN.findall(_plain(text)):
        tokens.append(token)
        if token == "?":
            del tokens[sentence:]
        if token in _ENDS:
            sentence = len(tokens)
    return tokens


def _names_both(tokens: Sequence[str]) -> bool:
    """Whether yes and no are offered as a pair, as in "yes or no"."""
    sides = [_VERDICTS.get(token) or _FOREIGN.get(token) for token in tokens]
    pairs = zip(sides, tokens[1:], sides[2:], strict=False)
    return any(first and joiner in _JOINERS and then and first != then for first, joiner, then in pairs)


def _parts(tokens: Iterable[str]) -> list[list[_Clause]]:
    """The answer cut into parts that speak for themselves, and these at commas, "and", "or" and "nor" into clauses."""
    parts: list[list[_Clause]] = [[[]]]
    for token in tokens:
        clause = parts[-1][-1]
        if token in {",", "and", "or", "nor", "/", "、"}:
            parts[-1].append([])
        elif token in _CONTRAST or not token[0].isalnum():
            parts.append([[]])
        elif token == "there" and not clause:
            parts.append([[token]])
        else:
            clause.append(token)
    made = ([clause for clause in part if clause] for part in parts)
    return [part for part in made if part]


def _read_verdicts(part: Sequence[_Clause], found: _Evidence) -> None:
    """Every yes or no that is not part of a phrase ("no fracture"), and every clause that takes one back."""
    for number, clause in enumerate(part):
        first = clause[0]
        if first in _FOREIGN and (len(clause) == 1 or (number == 0 and first not in _ALONE)):
            found.verdicts.add(_FOREIGN[first])
        if _doubts(clause) and _EMPTY.issuperset(clause):
            found.retracted = True
        doubts = _doubts_before(clause)
        for place in (place for place, word in enumerate(clause) if word in _VERDICTS):
            word, before, after = clause[place], clause[max(0, place - 1) : place], clause[place + 1 : place + 2]
            opens = word == "yes" and number == place == 0 and after != ["would"]
            if (opens or _AFTER_NO.issuperset(after)) and before != ["not"]:
                found.verdicts.add(_VERDICTS[word])
                found.retracted |= doubts[place]


def _read_statements(part: Sequence[_Clause], found: _Evidence) -> None:
    """What a part affirms and denies, or doubts; "no mass, or effusion, is seen" denies to its end."""
    said: set[Answer] = set()
    for clause in part:
        found.doubted |= _doubts(clause)
        disagreed = _DISAGREE if _only(clause, _DISAGREE) else frozenset()
        denials = [place for place, word in enumerate(clause) if word in _DENY or word in disagreed]
        found.doubly_denied |= len(denials) > 1
        affirmed = _affirms(clause)
        if affirmed is not None and "no" not in said and (not denials or affirmed < denials[0]):
            said.add("yes")
        if denials and not ("yes" in said and _qualifies(clause, denials[0])):
            said.add("no")
    if len(part) == 1 and _is_elliptic(part[0]):
        said.add("yes")
    found.statements |= said


def _affirms(clause: _Clause) -> int | None:
    """Where the clause says that something is there, or agrees; None when it does not."""
    if _DENY.isdisjoint(clause) and _only(clause, _AGREE):
        return 0
    if not _NORMAL.isdisjoint(clause):
        return None
    before: str | None = None
    for place, word in enumerate(clause):
        if word == "there" and _BE.issuperset(clause[place + 1 : place + 2]) and _DENY.isdisjoint(clause[place : place + 4]):
            return place
        if word in _SEEN and (before is None or before in _BE or place == len(clause) - 1):
            return place
        if not word.endswith("ly") and word != "also":
            before = word
    return None


def _qualifies(clause: _Clause, denial: int) -> bool:
    """Whether a denial only describes a thing that is there: "without displacement", "that is not large"."""
    related = any(word in _RELATIVE and after in _AUXILIARIES for word, after in pairwise(clause[:denial]))
    return clause[denial] == "without" or related


def _only(clause: _Clause, words: frozenset[str]) -> bool:
    """Whether the clause says one of the words, and nothing but a frame such as "that is" or "not" stands around it."""
    said = set(clause)
    beside = said - _SUPPORT - {"not"}
    return not said.isdisjoint(words) and (not beside or (len(beside) == 1 and beside <= words))


def _is_elliptic(clause: _Clause) -> bool:
    """Whether the clause is a short answer such as "it is" or "they do"."""
    return len(clause) == 2 and clause[0] in _PRONOUNS and clause[1] in _AUXILIARIES


def _doubts(clause: _Clause) -> bool:
    """Whether the clause is unsure of what it says."""
    return _doubts_before(clause)[-1]


def _doubts_before(clause: _Clause) -> list[bool]:
    """Whether the words before each place, and at last the whole clause, are unsure; in one pass, however often one asks."""
    found = [False]
    unsure = unless_denied = denied = undecided = False
    for place, word in enumerate(clause):
        unsure |= word in _DOUBT or (undecided and word in _DECIDE)
        unless_denied |= word in _DOUBT_UNLESS_DENIED
        denied |= word in _DENY
        undecided = word == "not" or (undecided and word in _BEFORE_DECIDE and word not in _DECIDE)
        not_clear = place == 1 and word == "clear" and clause[0] == "not"
        found.append(unsure or (unless_denied and not denied) or not_clear)
    return found


_SIMPLER = str.maketrans("沒無對確見發現顯當錯誤難說", "没无对确见发现显当错误难说")
_CHINESE_VERDICTS = _sides(
    "是 是的 有 有的 对 对的 存在 正确 没错 当然", "否 不 不是 不是的 没有 没 无 不存在 不对 错 错误 不可能"
)
_SIDES: dict[str, Answer] = {**_VERDICTS, **_FOREIGN, **_CHINESE_VERDICTS, "y": "yes", "n": "no"}
_CHINESE_PAIRS = ("是或", "是和否", "有或", "否或")
_CHINESE_ASKED = ("是否", "是不是", "有没有", "有无")
_CHINESE_DOUBT = ("不确定", "不能", "可能", "也许", "或许", "看不出", "无法", "不知道", "不清楚", "难以", "不好说")
_CHINESE_DENIAL = re.compile(r"没有|不存在|不是|未见|未发现|未显示|并无|没发现|没看到|^[没无未否]")
_CHINESE_AFFIRMATION = re.compile(r"(?<!所)(?<!具)(?<!没)有(?![关效限])|存在|可见|^是的")


def _is_chinese(token: str) -> bool:
    return any("一" <= character <= "鿿" for character in token)


def _read_chinese(runs: Sequence[str], found: _Evidence) -> None:
    """What the clauses of a Chinese answer say, by the marks in them: there are no blanks between words."""
    for written in runs:
        run = written.translate(_SIMPLER)
        if run.startswith(_CHINESE_PAIRS):
            found.verdicts.update(("yes", "no"))
        elif run in _CHINESE_VERDICTS:
            found.verdicts.add(_CHINESE_VERDICTS[run])
        elif any(mark in run for mark in _CHINESE_DOUBT):
            found.doubted = True
            found.retracted |= run in _CHINESE_DOUBT
        elif any(mark in run for mark in _CHINESE_ASKED):
            continue
        else:
            denials = len(_CHINESE_DENIAL.findall(run))
            found.doubly_denied |= denials > 1
            if denials:
                found.statements.add("no")
            elif _CHINESE_AFFIRMATION.search(run):
                found.statements.add("yes")
