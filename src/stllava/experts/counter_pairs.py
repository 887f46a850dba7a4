"""Pairs that the question alone cannot decide: what is right of one image is rejected of another that is asked the same. Pure.

A policy that guesses from the question gains from ordinary pairs: of "Which tumour is it?" the commonest answer is right
most often. Here an image's own right answer is chosen, and rejected is one that is right elsewhere and that the expert
judged wrong of this image, so that every answer is rejected about as often as it is chosen.
"""

from collections import Counter
from collections.abc import Collection, Iterable

from stllava.config import PairOptions
from stllava.data.borrowing import bare
from stllava.experts.answer_pairs import is_nearly_the_same
from stllava.experts.confidence import reckon
from stllava.experts.judged_answers import JudgedAnswers
from stllava.experts.paraphrases import NO_PARAPHRASES, Paraphrases
from stllava.experts.selection import vote
from stllava.records import Answers, Judgment

Places = tuple[str, int, int]
"""The id of answers, and the places of the chosen and the rejected one among them."""


def counter_pairs(
    judged: Iterable[JudgedAnswers],
    *,
    known: Collection[tuple[str, str, str]],
    options: PairOptions,
    paraphrases: Paraphrases = NO_PARAPHRASES,
) -> list[Places]:
    """At most one counter-pair for each set of answers.

    Args:
        judged: Answers with verdicts, and those without, which make none.
        known: The ids of answers with the chosen and the rejected text of the pairs that there are already.
        options: How good a chosen answer has to be, and by how much better than the rejected one.
        paraphrases: Which questions ask the same in other words.
    """
    asked: dict[str, list[tuple[Answers, Judgment, int]]] = {}
    for answers, verdict in judged:
        if verdict.scores is None or len(verdict.scores) != len(answers.completions):
            continue
        reckoned = reckon(answers, verdict, options=options, paraphrases=paraphrases)
        judgment, sure = reckoned.judgment, reckoned.sure
        scores, ended = judgment.scores or (), answers.ended
        said = [vote(text) for text in answers.final_answers]
        fit = [(-score, place) for place, score in enumerate(scores) if ended[place] and sure[place] and said[place]]
        _, best = min(fit, default=(0.0, 0))
        if fit and scores[best] >= max(options.min_chosen_score, options.margin):
            asked.setdefault(bare(answers.question), []).append((answers, judgment, best))
    made: list[Places] = []
    for rows in asked.values():
        right_of: dict[str, set[tuple[str, ...]]] = {}
        for answers, _, best in rows:
            right_of.setdefault(vote(answers.final_answers[best]), set()).add(answers.images)
        surplus = Counter({answer: len(images) for answer, images in right_of.items()})
        for answers, judgment, best in rows:
            texts, scores = answers.final_answers, judgment.scores or ()
            tied = {frozenset((texts[row.first], texts[row.second])) for row in judgment.comparisons if row.winner is None}
            rejected = [
                place
                for place, text in enumerate(texts)
                if scores[best] - scores[place] >= options.margin
                and vote(text) != vote(texts[best])
                and right_of.get(vote(text), set()) - {answers.images}
                and (answers.id, texts[best], text) not in known
                and frozenset((texts[best], text)) not in tied
                and not is_nearly_the_same(texts[best], text, min_similarity=options.max_similarity)
            ]
            if rejected:
                # First what was chosen most and rejected least so far.
                worst = max(rejected, key=lambda place: (surplus[vote(texts[place])], -place))
                surplus[vote(texts[worst])] -= 1
                made.append((answers.id, best, worst))
    return made
