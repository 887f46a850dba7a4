"""Best answer against worst: from judgments to preferences, a pure rule that can be redone in seconds.

Reads answers and judgments; writes `preferences.jsonl`. What has no verdict, ties, or differs by less than the
margin never becomes a pair and is counted by cause. Where yes is chosen more often than no, or no than yes, the
surplus is left out.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from stllava.config import PairOptions
from stllava.errors import StllavaError
from stllava.metrics.robust import is_yes_no, normalise
from stllava.records import Answers, Judgment, Lineage, Manifest, Message, Preference, content_id
from stllava.store import Existing, Stage, locked, output_hash, read_records


def pair(options: PairOptions, *, answers: Path, judgments: Path, to: Path, existing: Existing = "resume") -> Manifest:
    """Make preferences of the folders `answers` and `judgments`; write them to `to`."""
    with locked(to):
        inputs = {"answers": output_hash(answers), "judgments": output_hash(judgments)}
        stage = Stage("pair", to, options, inputs=inputs, existing=existing)
        if stage.manifest is not None:
            return stage.manifest
        given = {one.id: one for one in read_records(answers, "answers", Answers)}
        judged = read_records(judgments, "judgments", Judgment)
        dropped: Counter[str] = Counter()
        preferences: dict[str, Preference] = {}
        for judgment in judged:
            if judgment.answers_id not in given:
                raise StllavaError(
                    f"judgment {judgment.id} is about answers {judgment.answers_id}, which {answers} does not hold",
                    expected="the judgments of these answers",
                    remedy="Name the folders of one and the same round.",
                )
            preference = best_against_worst(given[judgment.answers_id], judgment, margin=options.margin)
            if isinstance(preference, Preference):
                preferences[preference.id] = preference
            else:
                dropped[preference] += 1
        if options.balance:
            surplus = unbalanced(preferences.values())
            dropped["surplus of yes or no"] = len(surplus)
            preferences = {key: one for key, one in preferences.items() if key not in surplus}
        stage.write_records("preferences", preferences.values())
        count = len(preferences)
        return stage.finish(
            counts_in=len(judged),
            counts_out=count,
            dropped=+dropped,
            measures={
                "pair_share": count / len(judged) if judged else 0.0,
                "mean_margin": sum(one.margin for one in preferences.values()) / count if count else 0.0,
                "chosen_longer_share": sum(len(p.chosen) > len(p.rejected) for p in preferences.values()) / count
                if count
                else 0.0,
            },
        )


def unbalanced(preferences: Iterable[Preference]) -> set[str]:
    """Ids of the pairs without which yes and no are chosen equally often: of the more frequent answer, the last ids."""
    chosen: dict[str, list[str]] = {"yes": [], "no": []}
    for one in preferences:
        if is_yes_no(one.chosen):
            chosen[normalise(one.chosen)].append(one.id)
    fewest = min(map(len, chosen.values()))
    return {key for keys in chosen.values() for key in sorted(keys)[fewest:]}


def best_against_worst(answers: Answers, judgment: Judgment, *, margin: float) -> Preference | str:
    """The pair of a best and a worst answer, or the cause why there is none.

    Among answers of the same score the one the policy gave most often is taken, and of those the first: what it
    believes most firmly is what a verdict can teach it most about.
    """
    scores = judgment.scores
    if scores is None:
        return judgment.cause or "failed"
    if len(scores) != len(answers.completions):
        return "wrong number of scores"
    given = Counter(answers.completions)

    def firmest(score: float) -> int:
        places = [place for place, value in enumerate(scores) if value == score]
        return max(places, key=lambda place: (given[answers.completions[place]], -place))

    best, worst = firmest(max(scores)), firmest(min(scores))
    gap = scores[best] - scores[worst]
    chosen, rejected = answers.completions[best], answers.completions[worst]
    if gap == 0:
        return "tie"
    if gap < margin:
        return "margin too small"
    if chosen == rejected:
        return "same text"
    if not chosen:
        return "empty answer chosen"
    lineage = Lineage(question_id=answers.question_id, answers_id=answers.id, judgment_id=judgment.id)
    return Preference(
        id=content_id("preference", answers.question, chosen, rejected, lineage.model_dump()),
        images=answers.images,
        prompt=(Message(role="user", content=answers.question),),
        chosen=chosen,
        rejected=rejected,
        margin=gap,
        lineage=lineage,
    )
