"""The published metrics of LLaVA-Med, quirks included, so that a number can stand beside the literature's.

Reads raw predictions and references as plain strings, returns numbers. The source is microsoft/LLaVA-Med v1.0.0, commit
b9a98a7; `evaluate` also has the older closed rule of commit ad758b6. Published tables give "open" = recall of OPEN rows
and "closed" = yes/no accuracy of CLOSED rows. Every quirk is kept on purpose; for a score to trust see `robust`, which is ours.
"""

import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache, reduce
from itertools import chain
from operator import add
from typing import Literal, NamedTuple

from stllava.errors import StllavaError

Script = Literal["run_eval.py@b9a98a7", "run_eval.py@ad758b6", "run_eval_batch.py@b9a98a7"]

# Enough for 20,000 predictions and references in both passes, also when a caller goes through them metric by metric.
_CACHED = 1 << 16
_ORDERS = 4
_PERIODS = 32
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
    how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
    oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
    someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
    where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
    y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
# Every contraction is known by the spellings that lack one of its apostrophes; the published list turns this one round.
_EXPANDED = {
    whole[:place] + whole[place + 1 :]: whole
    for whole in _CONTRACTIONS.split()
    for place, character in enumerate(whole)
    if character == "'"
} | {"somebody'd": "somebodyd"}


class WordScores(NamedTuple):
    """How far two lists of words agree."""

    exact_match: float
    precision: float
    recall: float
    f1: float


class Bleu(NamedTuple):
    """BLEU over one to four words, and over runs of exactly one, two and three."""

    bleu: float
    bleu_1: float
    bleu_2: float
    bleu_3: float


class NearestChoice(NamedTuple):
    """Which candidate a prediction was taken for, normalised, and whether that is the reference."""

    hit: float
    choice: str


class AnsweredQuestion(NamedTuple):
    """One answered question: raw strings, and an `answer_type` that counts only if it is exactly OPEN or CLOSED."""

    prediction: str
    reference: str
    answer_type: str


@lru_cache(maxsize=_CACHED)
def normalize_word(text: str) -> str:
    """The text in lower case without punctuation and articles, numbers up to ten as digits, contractions spelt out.

    Odd: punctuation becomes a blank, but a mark that touches a blank anywhere vanishes everywhere ("left- and right-sided"
    ends in "rightsided"), and a comma between two digits makes every mark vanish. Points that no digit follows vanish and
    join words ("lung.liver"), but no more than 32 of them. "None" is 0, so it is never "no". Colons, asterisks and
    apostrophes stay.
    """
    lowered = text.lower()
    joined = "," in lowered and re.search(r"\d,\d", lowered) is not None
    marks = {
        ord(mark): None if joined or f"{mark} " in lowered or f" {mark}" in lowered else " "
        for mark in _PUNCTUATION
        if mark in lowered
    }
    bare = re.sub(r"\.(?!\d)", "", lowered.translate(marks), count=_PERIODS)
    words = (_NUMBERS.get(word, word) for word in bare.split())
    return " ".join(_EXPANDED.get(word, word) for word in words if word not in _ARTICLES)


def overlap(prediction: Sequence[str], reference: Sequence[str]) -> WordScores:
    """All four word scores of a prediction's and a reference's words; 0 where either has none or nothing is shared.

    Odd: a word counts as often as the prediction repeats it, however often the reference has it.
    """
    said, wanted = set(prediction), set(reference)
    found = sum(word in wanted for word in prediction)
    if not found:
        return WordScores(0.0, 0.0, 0.0, 0.0)
    precision = found / len(prediction)
    recall = found / (found + sum(word not in said for word in reference))
    return WordScores(len(said & wanted) / len(prediction), precision, recall, 2 * precision * recall / (precision + recall))


def exact_match(prediction: str, reference: str) -> float:
    """Distinct reference words found, over all words of the prediction.

    Odd: it is no exact match. Word order does not count, and a prediction that has one right word of three scores 1/3.
    """
    return overlap(_words(prediction), _words(reference)).exact_match


def precision(prediction: str, reference: str) -> float:
    """Share of the prediction's words that the reference has.

    Odd: a right word that is repeated counts every time, so "lung lung liver" is 2/3 right for "lung".
    """
    return overlap(_words(prediction), _words(reference)).precision


def recall(prediction: str, reference: str) -> float:
    """Published as "open": prediction words that the reference has, over the same plus reference words never said.

    Odd: repetition inflates it. "lung" recalls half of "left lung", and "lung lung lung" three quarters.
    """
    return overlap(_words(prediction), _words(reference)).recall


def f1(prediction: str, reference: str) -> float:
    """Harmonic mean of `precision` and `recall`.

    Odd: both are inflated by repeated words, and so is this.
    """
    return overlap(_words(prediction), _words(reference)).f1


def bleu(prediction: str, reference: str) -> Bleu:
    """Sentence BLEU without smoothing, as nltk 3.10.4 computes it.

    Odd: an order without a match counts as the smallest float, not as 0, so a right answer of fewer than four words has a
    `bleu` of about 1e-231 to 1e-77; with no word in common all are 0. The texts are normalised once, not twice.
    """
    said, wanted = normalize_word(prediction).split(), normalize_word(reference).split()
    shares = [sys.float_info.min] * _ORDERS
    for order in range(1, _ORDERS + 1):
        known = Counter(_runs(wanted, order))
        matched = (Counter(filter(known.__contains__, _runs(said, order))) & known).total()
        if not matched:  # nor will a longer run match
            break
        shares[order - 1] = matched / (len(said) - order + 1)
    if shares[0] == sys.float_info.min:
        return Bleu(0.0, 0.0, 0.0, 0.0)
    logs = [math.log(share) for share in shares]
    brevity = math.exp(min(0.0, 1 - len(wanted) / len(said)))
    return Bleu(brevity * math.exp(math.fsum(logs) / _ORDERS), *(brevity * math.exp(log) for log in logs[:3]))


def open_hit(prediction: str, reference: str, candidates: Sequence[str | int]) -> NearestChoice:
    """Whether the candidate most like the prediction is the reference; published as "open accuracy".

    Likeness is the share of a candidate's distinct words that the prediction has; a number counts as its digits. Odd: the
    first of the likest wins, so "lung" beats "left lung" for "left lung" if it stands before it, and a prediction without
    any candidate's words is taken for the first one. A reference that is no candidate is never hit.
    """
    texts, sizes, places = _index(tuple(candidates))
    found = Counter(chain.from_iterable(places.get(word, ()) for word in set(_words(prediction))))
    shares = {place: count / sizes[place] for place, count in found.items()}
    most = max(shares.values(), default=0.0)
    best = min((place for place, share in shares.items() if share == most), default=0)
    return NearestChoice(float(texts[best] == " ".join(_words(reference))), texts[best])


def closed_hit(prediction: str, reference: str) -> float:
    """1 if the prediction holds yes or no and holds the reference, both as letters; published as "closed".

    Odd: letters are no words, so "nodule" and "normal" say no, "eyes" says yes, and an answer with both words hits either
    truth. A right answer that is neither ("left" for "left") misses.
    """
    return closed_hit_batch(prediction, reference) if _says_yes_or_no(prediction) else 0.0


def closed_hit_batch(prediction: str, reference: str) -> float:
    """1 if the prediction holds the reference as letters; run_eval_batch.py takes it for closed and open accuracy alike.

    Odd: as `closed_hit`, but without its gate, and a reference without words is hit by any prediction.
    """
    return float(normalize_word(reference) in normalize_word(prediction))


def closed_hit_prefix(prediction: str, reference: str) -> float | None:
    """`closed_hit` of the older commit ad758b6, where None leaves the row out of the accuracy.

    Odd: a prediction that says yes or no and does not hold the reference, the usual wrong answer, is left out; only
    predictions that say neither count as wrong.
    """
    return closed_hit(prediction, reference) or (None if _says_yes_or_no(prediction) else 0.0)


def evaluate(
    rows: Iterable[AnsweredQuestion], candidates: Sequence[str | int], *, script: Script = "run_eval.py@b9a98a7"
) -> dict[str, float]:
    """Every percentage that a published script prints, under its own name.

    Odd: rows that are neither OPEN nor CLOSED are dropped without a word, and no closed rows give a yes/no accuracy of 0.
    The batch script ignores `candidates` and also gives `recall_closed`. StllavaError where another mean is over no rows.
    """
    rows = list(rows)
    opened = [row for row in rows if row.answer_type == "OPEN"]
    closed = [row for row in rows if row.answer_type == "CLOSED"]
    batch = script == "run_eval_batch.py@b9a98a7"
    for name, needed in (("OPEN", opened), *([("CLOSED", closed)] if batch else ())):
        if not needed:
            raise StllavaError(
                f"none of {len(rows)} rows has the answer type {name}",
                expected=f"at least one, as {script} takes their mean",
                remedy="Score the rows one by one with the other functions of stllava.metrics.llava_med.",
            )
    if batch:
        open_hits = [closed_hit_batch(row.prediction, row.reference) for row in opened]
        closed_hits: list[float | None] = [closed_hit_batch(row.prediction, row.reference) for row in closed]
    else:
        rule = closed_hit if script == "run_eval.py@b9a98a7" else closed_hit_prefix
        open_hits = [open_hit(row.prediction, row.reference, candidates).hit for row in opened]
        closed_hits = [rule(row.prediction, row.reference) for row in closed]
    words = [overlap(_words(row.prediction), _words(row.reference)) for row in opened]
    runs = [bleu(row.prediction, row.reference) for row in opened]
    values = {
        "exact match score": [row.exact_match for row in words],
        "f1 score": [row.f1 for row in words],
        "precision": [row.precision for row in words],
        "recall": [row.recall for row in words],
        "bleu_score": [row.bleu for row in runs],
        "bleu_score_1": [row.bleu_1 for row in runs],
        "bleu_score_2": [row.bleu_2 for row in runs],
        "bleu_score_3": [row.bleu_3 for row in runs],
        "open accuracy": open_hits,
        "yes/no accuracy": [hit for hit in closed_hits if hit is not None],
    }
    if batch:
        values["recall_closed"] = [recall(row.prediction, row.reference) for row in closed]
    return {name: _percent(column) for name, column in values.items()}


@lru_cache(maxsize=_CACHED)
def _words(text: str) -> tuple[str, ...]:
    """The words of a text normalised twice, as the published script does: once itself and once in each open metric."""
    return tuple(normalize_word(normalize_word(text)).split())


def _runs(words: Sequence[str], order: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(order)), strict=False)


def _says_yes_or_no(prediction: str) -> bool:
    said = normalize_word(prediction)
    return "yes" in said or "no" in said


@lru_cache(maxsize=8)
def _index(candidates: tuple[str | int, ...]) -> tuple[list[str], list[int], dict[str, list[int]]]:
    """Candidates normalised once, how many distinct words each has, and the places of those that have a word."""
    if not candidates:
        raise StllavaError(
            "there are no candidate answers",
            expected="at least one",
            remedy="Give the distinct answers of the benchmark's training rows, as LLaVA-Med does.",
        )
    texts = [normalize_word(str(candidate)) for candidate in candidates]
    words = [set(text.split()) for text in texts]
    places: dict[str, list[int]] = {}
    for place, word in ((place, word) for place, own in enumerate(words) for word in own):
        places.setdefault(word, []).append(place)
    return texts, [len(own) for own in words], places


def _percent(values: Sequence[float]) -> float:
    """Mean times 100, 0 for no values; added from left to right, as `sum` did before Python 3.12 made it exact."""
    return reduce(add, values, 0.0) / len(values) * 100 if values else 0.0
