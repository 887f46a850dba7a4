"""What readers' votes say of the answers that are learned last: which come in, which go, and which words are wrong.

Reads the review folders of rounds. A person's word on a question about an image holds in all rounds, the latest round's
where there are several.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stllava.experts.judged_answers import Asked, JudgedAnswers, asked
from stllava.metrics.robust import normalise
from stllava.records import Answers, Lineage
from stllava.review.overrides import Decision, Decisions, OverruleCause, read_decisions, voted_pair
from stllava.review.readings import readings_by_task
from stllava.review.tasks import TASKS
from stllava.review.vote_log import read_votes
from stllava.store import MANIFEST
from stllava.thoughts import final_answer


@dataclass(frozen=True)
class VotedAnswer:
    """An answer that readers hold to be better than the one the expert preferred, or that one of them typed."""

    answers: Answers
    text: str
    lineage: Lineage


@dataclass
class VotedAnswers:
    """What readers say of the questions of all rounds."""

    learned: dict[Asked, VotedAnswer] = field(default_factory=dict)
    """What is learned instead of what the expert found right."""
    refused: dict[Asked, OverruleCause] = field(default_factory=dict)
    """Questions that nothing is learned of, whatever an expert says: they, or their images, are no good."""
    overruled: dict[str, OverruleCause] = field(default_factory=dict)
    """By the id of answers, why the expert's verdict on them is not believed."""
    decided: set[str] = field(default_factory=set)
    """Ids of the answers on which readers decided, whether they confirm the expert's verdict or not."""
    wrong: dict[Asked, set[str]] = field(default_factory=dict)
    """Words that readers voted against, as `normalise` writes them."""

    def refuses(self, answers: Answers, text: str) -> bool:
        """Whether readers voted against an answer with these words to that question about those images."""
        return normalise(final_answer(text)) in self.wrong.get(asked(answers.images, answers.question), ())


def voted_folders(folders: Iterable[Path]) -> list[Path]:
    """Those of the review folders in which a vote stands."""
    drawn = (folder for folder in folders if (folder / TASKS / MANIFEST).is_file())
    return [folder for folder in drawn if readings_by_task(read_votes(folder))]


def read_voted_answers(folders: Sequence[Path], judged: Iterable[JudgedAnswers]) -> VotedAnswers:
    """What the readers of some review folders say of judged answers, those of the oldest round first."""
    return voted_answers([read_decisions(folder) for folder in folders], judged)


def voted_answers(decided: Sequence[Decisions], judged: Iterable[JudgedAnswers]) -> VotedAnswers:
    """What readers' decisions say of judged answers, those of the oldest round first. Pure.

    Where they hold the same as the expert, or both answers to be as good, its verdict stands. Where they hold another
    answer to be better, or typed one, that is learned; where both are wrong or readers disagree, the verdict is not believed.
    """
    found = VotedAnswers()
    for answers, judgment in judged:
        question = asked(answers.images, answers.question)
        if any(one.refuses(answers) for one in decided):
            found.refused[question] = "readers: bad image"
        decision = next((said for one in decided if (said := one.of(answers)) is not None), None)
        if decision is not None:
            found.decided.add(answers.id)
        if decision is None or (decision.choice in ("equal", decision.verdict) and decision.correct_answer is None):
            continue
        voted = voted_pair(answers, decision)
        found.wrong.setdefault(question, set()).update(_voted_against(answers, decision))
        if voted == "readers: bad image":
            continue
        found.learned.pop(question, None)
        if found.refused.get(question) == "readers: bad question":
            del found.refused[question]
        if voted == "readers: bad question":
            found.refused[question] = voted
        elif isinstance(voted, str):
            found.overruled[answers.id] = voted
        else:
            corrected = voted.chosen not in answers.completions
            lineage = Lineage(
                question_id=answers.question_id,
                answers_id=answers.id,
                judgment_id=judgment.id,
                correction=corrected,
                readers=voted.readers,
            )
            found.learned[question] = VotedAnswer(answers, voted.chosen, lineage)
    for question in found.refused:
        found.learned.pop(question, None)
    return found


def _voted_against(answers: Answers, decision: Decision) -> set[str]:
    """The words of the answers that readers hold to be wrong, or worse."""
    places = {"first": (decision.second,), "second": (decision.first,), "both wrong": (decision.first, decision.second)}
    return {normalise(answers.final_answers[place]) for place in places.get(decision.choice or "", ())}
