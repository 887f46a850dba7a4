"""What an expert errs about more than elsewhere: words in questions and answers, found in verdicts whose truth is known. Pure.

An expert that mixes up two classes is wrong wherever one of them is named, whatever the question ("What is seen?" "Glioma";
"Is this a glioma?" "Yes"). Such verdicts share no opening words, but they share a word.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from scipy.special import betainc

from stllava.metrics.stats import by_cluster, robust_variance
from stllava.metrics.words import medical

MIN_IMAGES = 10
"""Images in which a word must be named before the verdicts on it are looked at by themselves."""
LEVEL = 0.01
"""Probability of naming a topic where the expert errs about nothing more than elsewhere: real confusions are far beyond it."""


class KnownVerdict(NamedTuple):
    """A verdict on one answer of which it is known whether it is wrong."""

    words: frozenset[str]
    """What the question and the answer name: `words_named`."""
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


@lru_cache(maxsize=1 << 16)
def words_named(text: str) -> frozenset[str]:
    """The words of a question or an answer, each in the one form that `medical` gives all its spellings."""
    return frozenset(medical(text).split())


def find_error_topics(verdicts: Sequence[KnownVerdict]) -> ErrorTopics:
    """Words about which an expert errs more than about all else, the clearest first, each among verdicts that name none before.

    A word is a topic where the errors in verdicts that name it are more than the share of errors in all others explains, by
    a binomial test at `LEVEL` over as many words as are tested (Bonferroni). Verdicts on one image are not independent:
    where errors come by images, the test counts as many verdicts as would tell as much (Kish's effective sample size).
    """
    topics: dict[str, list[KnownVerdict]] = {}
    others = list(verdicts)
    level: float | None = None
    while True:
        naming: dict[str, list[KnownVerdict]] = {}
        for verdict in others:
            for word in verdict.words:
                naming.setdefault(word, []).append(verdict)
        tested = {word: named for word, named in naming.items() if len({verdict.image for verdict in named}) >= MIN_IMAGES}
        if level is None:
            level = LEVEL / max(1, len(tested))
        chances = {word: _chance_of_errors(named, others) for word, named in tested.items()}
        topic = min(chances, key=lambda word: (chances[word], word), default=None)
        if topic is None or chances[topic] > level:
            return ErrorTopics(topics, others)
        topics[topic] = tested[topic]
        others = [verdict for verdict in others if topic not in verdict.words]


def _chance_of_errors(named: Sequence[KnownVerdict], verdicts: Sequence[KnownVerdict]) -> float:
    """The probability of as many errors or more among the verdicts that name a word, if it made no difference."""
    errors = sum(verdict.is_wrong for verdict in named)
    elsewhere = (sum(verdict.is_wrong for verdict in verdicts) - errors + 1) / (len(verdicts) - len(named) + 2)
    share = errors / len(named)
    if share <= elsewhere:
        return 1.0
    size = _effective_size(named, share)
    return float(betainc(share * size, size - share * size + 1, elsewhere))


def _effective_size(named: Sequence[KnownVerdict], share: float) -> float:
    """How many independent verdicts tell as much about a share as these, of which several are about one image."""
    found = by_cluster([float(verdict.is_wrong) for verdict in named], [verdict.image for verdict in named])
    variance = robust_variance(found.pulls)
    independent = share * (1 - share)
    return min(float(len(named)), independent / variance) if variance and independent else float(len(named))
