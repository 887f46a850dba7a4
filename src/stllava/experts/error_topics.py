"""What an expert errs about more than elsewhere: words in questions and answers, found in verdicts whose truth is known. Pure.

An expert that mixes up two classes is wrong wherever one of them is named, whatever the question ("What is seen?" "Glioma";
"Is this a glioma?" "Yes"). Such verdicts share no opening words, but they share a word. How a question begins, by which its
kind is told, names nothing.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.special import betaln, gammaln

from stllava.config.experts import WORDS_OF_KIND
from stllava.metrics.stats import by_cluster, robust_variance
from stllava.metrics.words import medical

MIN_IMAGES = 10
"""Images in which a word must be named before the verdicts on it are looked at by themselves."""
LEVEL = 0.01
"""Probability of naming a topic where the expert errs about nothing more than elsewhere: real confusions are far beyond it."""

SIDES = frozenset({"yes", "no"})
"""What answers a question and names nothing: how an expert errs about them depends on the kind of question."""


class KnownVerdict(NamedTuple):
    """A verdict on one answer of which it is known whether it is wrong."""

    words: frozenset[str]
    """What the question and the answer name: `words_of`."""
    is_right: bool
    """Whether the answer is."""
    called_right: bool
    """Whether the expert calls it so."""
    opening: str
    """How the question begins."""
    image: str

    @property
    def is_wrong(self) -> bool:
        """Whether the verdict is."""
        return self.is_right != self.called_right


class ErrorTopics(NamedTuple):
    """Verdicts by what the expert errs about."""

    topics: dict[str, list[KnownVerdict]]
    """By topic, the verdicts that name it and none before it; the topic that stands out most first."""
    others: list[KnownVerdict]
    """Those that name none."""


def words_of(question: str, answer: str) -> frozenset[str]:
    """What a question names behind its opening words, or in them where it has no others, and what an answer to it does."""
    return words_named(" ".join(question.split()[WORDS_OF_KIND:]) or question) | words_named(answer)


@lru_cache(maxsize=1 << 12)
def words_named(text: str) -> frozenset[str]:
    """The words of a text of two characters or more but yes and no, each in the one form that `medical` gives its spellings."""
    each = (form for word in medical(text).split() for form in medical(word).split())  # A word may have another form alone.
    return frozenset(word for word in each if len(word) > 1 and word not in SIDES)


def find_error_topics(verdicts: Sequence[KnownVerdict]) -> ErrorTopics:
    """Words about which an expert errs more than about all else, the clearest first, each among verdicts that name none before.

    A word is a topic where verdicts that name it hold more errors than those that do not let expect, at `LEVEL` over as many
    words as are tested (Bonferroni): by the beta-binomial distribution of errors in so many more verdicts like the others.
    Verdicts on one image are not independent: where errors come by images, as many verdicts count on both sides as would
    tell as much (Kish's effective sample size).
    """
    topics: dict[str, list[KnownVerdict]] = {}
    others = list(verdicts)
    tested = _named_often(others)
    level = LEVEL / max(1, len(tested))
    while tested:
        chances = {
            word: _chance_of_errors(named, [verdict for verdict in others if word not in verdict.words])
            for word, named in tested.items()
        }
        topic = min(chances, key=lambda word: (chances[word], word))
        if chances[topic] > level:
            break
        topics[topic] = tested[topic]
        others = [verdict for verdict in others if topic not in verdict.words]
        tested = _named_often(others)
    return ErrorTopics(topics, others)


def _named_often(verdicts: Sequence[KnownVerdict]) -> dict[str, list[KnownVerdict]]:
    """The verdicts that name a word, of every word that is named in enough images."""
    naming: dict[str, list[KnownVerdict]] = {}
    for verdict in verdicts:
        for word in verdict.words:
            naming.setdefault(word, []).append(verdict)
    return {word: named for word, named in naming.items() if len({verdict.image for verdict in named}) >= MIN_IMAGES}


def _chance_of_errors(named: Sequence[KnownVerdict], others: Sequence[KnownVerdict]) -> float:
    """The probability of as many errors or more among the verdicts that name a word, if it made no difference."""
    (errors, size), (elsewhere, rest) = _errors_and_size(named), _errors_and_size(others)
    if errors * rest <= elsewhere * size:
        return 1.0
    as_many = np.arange(errors, size + 1)
    ways = gammaln(size + 1) - gammaln(as_many + 1) - gammaln(size - as_many + 1)
    before, after = (elsewhere + 1, rest - elsewhere + 1), (as_many + elsewhere + 1, size - as_many + rest - elsewhere + 1)
    return float(np.exp(ways + betaln(*after) - betaln(*before)).sum())


def _errors_and_size(verdicts: Sequence[KnownVerdict]) -> tuple[int, int]:
    """How many errors in how many independent verdicts tell as much as these, of which several are about one image."""
    if not verdicts:
        return 0, 0
    found = by_cluster([float(verdict.is_wrong) for verdict in verdicts], [verdict.image for verdict in verdicts])
    share, size = found.mean, float(len(verdicts))
    if found.count > 1 and (variance := robust_variance(found.pulls)) > 0:
        size = min(size, share * (1 - share) / variance)
    return round(share * size), round(size)
