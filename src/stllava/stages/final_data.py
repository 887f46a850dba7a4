"""After the rounds: everything the expert found right becomes conversations, for one more sft (`final_sft`) beside the labels.

Reads the labelled conversations and the answers and judgments of all rounds; writes `conversations.jsonl`. Of the same
question about the same image the latest right answer counts, be it the policy's or the expert's correction, and the policy's
own vote only where the expert gave no verdict in any round; yes and no are balanced and denials limited as in pair.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from stllava.config import PairOptions
from stllava.data.balance import TaughtAnswer, surplus_of_denials, surplus_of_yes_or_no
from stllava.data.conversations import conversation, read_conversations
from stllava.experts.answer_pairs import correction_of
from stllava.experts.confidence import may_be_chosen, refuse_unknown_errors
from stllava.experts.judged_answers import asked, questions_judged, read_judged_answers
from stllava.metrics.robust import normalise
from stllava.records import Answers, Conversation, Judgment, Message
from stllava.stages.results import FinalDataResult
from stllava.store import Existing, Input, Inputs, file_hash, open_stage, output_hash
from stllava.thoughts import final_answer

Cause = Literal["answer cut off", "empty answer", "answer not sure enough", "surplus of yes or no", "surplus of denials"]
"""Why a right answer is left out."""


def final_data(
    options: PairOptions,
    *,
    conversations: Path,
    rounds: Sequence[tuple[Path, Path]],
    to: Path,
    existing: Existing = "resume",
) -> FinalDataResult:
    """Write what sft is to learn into `to`; `rounds` are the folders of answers and of their judgments, the oldest first.

    Args:
        options: How right answers are chosen and balanced.
        conversations: What stage 1 learned, which is learned again.
        rounds: Folders of answers and of their judgments, the oldest round first.
        to: Folder for the conversations.
        existing: What to do with output that is there: resume it, replace it, or end in an error.

    Raises:
        StllavaError: Where nothing right is left to learn.
    """
    refuse_unknown_errors(options)
    inputs: Inputs = {"conversations": Input(conversations, file_hash)}
    for number, (answers, judgments) in enumerate(rounds, 1):
        inputs |= {f"answers {number}": Input(answers, output_hash), f"judgments {number}": Input(judgments, output_hash)}
    with open_stage("final-data", to, options, inputs=inputs, existing=existing) as stage:
        if stage.manifest is not None:
            return FinalDataResult(to, stage.manifest)
        right: dict[tuple[tuple[str, ...], str], Conversation] = {}
        judged = questions_judged(rounds)
        left_out: Counter[str] = Counter({"answer cut off": 0})
        for answers, judgments in rounds:
            for answered, judgment in read_judged_answers(answers, judgments):
                if judgment.is_own_vote and asked(answered.images, answered.question) in judged:
                    continue
                if (correction := correction_of(answered, judgment)) is not None:
                    right[answered.images, answered.question] = _learned(answered, correction)
                elif judgment.scores is not None and max(judgment.scores) >= max(options.min_chosen_score, options.margin):
                    best, cause = _best(answered, judgment, options=options)
                    if best is None:
                        left_out[cause] += 1
                        continue
                    right[answered.images, answered.question] = _learned(answered, best)
        taught = [
            TaughtAnswer(row.id, row.messages[0].content, final_answer(row.messages[1].content)) for row in right.values()
        ]
        surplus = surplus_of_yes_or_no(taught) if options.balance else set()
        denied = surplus_of_denials([row for row in taught if row.id not in surplus], max_share=options.max_denial_share)
        kept = [row for row in right.values() if row.id not in surplus | denied]
        labels, _ = read_conversations(conversations)
        stage.write_records("conversations", [*labels, *kept])
        read = len(right) + left_out.total()
        dropped = {**left_out, "surplus of yes or no": len(surplus), "surplus of denials": len(denied)}
        manifest = stage.finish(
            counts_in=read,
            counts_out=len(kept),
            dropped=dropped,
            measures={"labelled": float(len(labels)), "right": float(len(kept))},
        )
        return FinalDataResult(to, manifest)


def _best(answers: Answers, judgment: Judgment, *, options: PairOptions) -> tuple[str | None, Cause]:
    """The first of the answers that scored highest, say something, came to an end and are sure enough; or None and why not."""
    scores, said = judgment.scores or (), answers.final_answers
    sure = may_be_chosen(answers, judgment, options=options)
    ended = [place for place, end in enumerate(answers.ended) if end and scores[place] == max(scores)]
    fit = [place for place in ended if normalise(said[place])]
    best = next((answers.completions[place] for place in fit if sure[place]), None)
    return best, "answer not sure enough" if fit else "empty answer" if ended else "answer cut off"


def _learned(answers: Answers, right: str) -> Conversation:
    """A question and its right answer."""
    turns = (Message(role="user", content=answers.question), Message(role="assistant", content=right))
    return conversation(answers.images, turns)
