"""After the rounds: everything the expert found right becomes conversations, for one more sft (`final_sft`) beside the labels.

Reads the labelled conversations and the answers and judgments of all rounds; writes `conversations.jsonl`. Of the same
question about the same image the latest right answer counts, be it the policy's or the expert's correction, and the policy's
own vote only where the expert gave no verdict in any round; yes and no are balanced and denials limited as in pair. Where
people have voted (`stllava review`), their word counts instead of the expert's, and `lineage.jsonl` says whose it is.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from stllava.config import PairOptions
from stllava.data.balance import TaughtAnswer, surplus_of_denials, surplus_of_yes_or_no
from stllava.data.conversations import conversation, read_conversations
from stllava.experts.answer_pairs import correction_of
from stllava.experts.confidence import ReckonedJudgment, paraphrases_among, reckon, refuse_unknown_errors
from stllava.experts.judged_answers import asked, questions_judged, read_judged_answers
from stllava.experts.paraphrases import NO_PARAPHRASES
from stllava.metrics.robust import normalise
from stllava.records import Answers, Conversation, ConversationLineage, Message
from stllava.review.overrides import votes_hash
from stllava.review.voted_answers import VotedAnswers, read_voted_answers
from stllava.stages.results import FinalDataResult
from stllava.store import Existing, Input, Inputs, file_hash, open_stage, output_hash, read_manifest
from stllava.thoughts import final_answer

Cause = Literal[
    "answer cut off",
    "empty answer",
    "answer not sure enough",
    "readers: wrong answer",
    "already a label",
    "surplus of yes or no",
    "surplus of denials",
]
"""Why a right answer is left out; votes that refuse a question or a verdict have causes of their own (`OverruleCause`)."""
Right = dict[tuple[tuple[str, ...], str], Conversation]
"""What is learned, by images and question."""


def final_data(
    options: PairOptions,
    *,
    conversations: Path,
    rounds: Sequence[tuple[Path, Path]],
    to: Path,
    votes: Sequence[Path] = (),
    existing: Existing = "resume",
) -> FinalDataResult:
    """Write what sft is to learn into `to`; `rounds` are the folders of answers and of their judgments, the oldest first.

    Args:
        options: How right answers are chosen and balanced.
        conversations: What stage 1 learned, which is learned again.
        rounds: Folders of answers and of their judgments, the oldest round first.
        to: Folder for the conversations.
        votes: Review folders of these rounds: what their readers say stands before what the expert said.
        existing: What to do with output that is there: resume it, replace it, or end in an error.

    Raises:
        StllavaError: Where nothing right is left to learn.
    """
    refuse_unknown_errors(options)
    inputs: Inputs = {"conversations": Input(conversations, file_hash)}
    for number, (answers, judgments) in enumerate(rounds, 1):
        inputs |= {f"answers {number}": Input(answers, output_hash), f"judgments {number}": Input(judgments, output_hash)}
    inputs |= {f"votes {number}": Input(folder, votes_hash) for number, folder in enumerate(votes, 1)}
    with open_stage("final-data", to, options, inputs=inputs, existing=existing) as stage:
        if stage.manifest is not None:
            return FinalDataResult(to, stage.manifest)
        labels, _ = read_conversations(conversations)
        known = {_said(row) for row in labels}
        voted = read_voted_answers(votes, (row for folders in rounds if votes for row in read_judged_answers(*folders)))
        left_out: Counter[str] = Counter({"answer cut off": 0})
        right, overruled = _found_right(rounds, voted, left_out, options=options)
        lineage = _follow_readers(right, voted, left_out)
        for key in [key for key, row in right.items() if _said(row) in known]:
            del right[key]  # Labelled images were asked about too.
            left_out["already a label"] += 1
        taught = [
            TaughtAnswer(row.id, row.messages[0].content, final_answer(row.messages[1].content)) for row in right.values()
        ]
        surplus = surplus_of_yes_or_no(taught) if options.balance else set()
        denied = surplus_of_denials([row for row in taught if row.id not in surplus], max_share=options.max_denial_share)
        kept = [row for row in right.values() if row.id not in surplus | denied]
        stage.write_records("conversations", [*labels, *kept])
        read = len(right) + left_out.total()
        dropped = {**left_out, "surplus of yes or no": len(surplus), "surplus of denials": len(denied)}
        measures = {"labelled": float(len(labels)), "right": float(len(kept))}
        if options.pools_wordings:
            measures["overruled_judgments"] = float(overruled)
        if votes:
            learned = {row.id for row in kept}
            told = [row for row in lineage if row.id in learned]
            stage.write_records("lineage", told)
            typed = sum(row.lineage.correction for row in told)
            measures |= {"voted": float(len(told)), "typed": float(typed)}
        manifest = stage.finish(counts_in=read, counts_out=len(kept), dropped=dropped, measures=measures)
        return FinalDataResult(to, manifest)


def has_seen(to: Path, votes: Sequence[Path]) -> bool:
    """Whether what was written into `to` was made with just these votes as they stand now."""
    seen = {value for name, value in read_manifest(to).inputs.items() if name.startswith("votes ")}
    return seen == {votes_hash(folder) for folder in votes}


def _found_right(
    rounds: Sequence[tuple[Path, Path]], voted: VotedAnswers, left_out: Counter[str], *, options: PairOptions
) -> tuple[Right, int]:
    """What the expert found right of each question that readers have not answered, and how many of its judgments other
    wordings overruled; counts what is left out."""
    right: Right = {}
    overruled_judgments = 0
    judged = cache(lambda: questions_judged(rounds))  # Gone through for own votes alone.
    undecided = (row for folders in rounds for row in read_judged_answers(*folders) if row[0].id not in voted.decided)
    paraphrases = paraphrases_among(undecided, options=options)
    for answers, judgments in rounds:
        for answered, verdict in read_judged_answers(answers, judgments):
            told = NO_PARAPHRASES if answered.id in voted.decided else paraphrases
            reckoned = reckon(answered, verdict, options=options, paraphrases=told)
            overruled_judgments += reckoned.is_overruled
            judgment = reckoned.judgment
            key, question = (answered.images, answered.question), asked(answered.images, answered.question)
            if question in voted.learned or (judgment.is_own_vote and question in judged()):
                continue
            overruled = voted.overruled.get(answered.id)
            correction = correction_of(answered, judgment)
            if correction is not None and overruled in (None, "readers: both wrong"):
                if voted.refuses(answered, correction):
                    left_out["readers: wrong answer"] += 1
                else:
                    right[key] = _learned(answered, correction)
            elif judgment.scores is not None and max(judgment.scores) >= max(options.min_chosen_score, options.margin):
                best, cause = (None, overruled) if overruled else _best(answered, reckoned, voted)
                if best is None:
                    left_out[str(cause)] += 1
                    continue
                right[key] = _learned(answered, best)
    return right, overruled_judgments


def _follow_readers(right: Right, voted: VotedAnswers, left_out: Counter[str]) -> list[ConversationLineage]:
    """Take out of what is right what readers refuse, and put in what they voted for; returns whose word that is."""
    for key in [key for key in right if asked(*key) in voted.refused]:
        del right[key]
        left_out[voted.refused[asked(*key)]] += 1
    lineage = []
    for answer in voted.learned.values():
        given = answer.answers
        says_nothing = not normalise(final_answer(answer.text))
        if says_nothing or (answer.text in given.completions and not given.ended[given.completions.index(answer.text)]):
            left_out["empty answer" if says_nothing else "answer cut off"] += 1
            continue
        made = right[given.images, given.question] = _learned(given, answer.text)
        lineage.append(ConversationLineage(id=made.id, lineage=answer.lineage))
    return lineage


def _best(answers: Answers, reckoned: ReckonedJudgment, voted: VotedAnswers) -> tuple[str | None, Cause]:
    """The first of the best answers that says something, ended, is sure enough and no reader refuses; or None and why not."""
    scores, said = reckoned.judgment.scores or (), answers.final_answers
    ended = [place for place, end in enumerate(answers.ended) if end and scores[place] == max(scores)]
    fit = [place for place in ended if normalise(said[place])]
    good = [answers.completions[place] for place in fit if reckoned.sure[place]]
    best = next((text for text in good if not voted.refuses(answers, text)), None)
    if good:
        return best, "readers: wrong answer"
    return None, "answer not sure enough" if fit else "empty answer" if ended else "answer cut off"


def _said(row: Conversation) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Of what a conversation is, by which equal ones are equal whoever wrote them."""
    return row.images, tuple((turn.role, turn.content) for turn in row.messages)


def _learned(answers: Answers, right: str) -> Conversation:
    """A question and its right answer."""
    turns = (Message(role="user", content=answers.question), Message(role="assistant", content=right))
    return conversation(answers.images, turns)
