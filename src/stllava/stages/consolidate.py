"""After the rounds: everything the expert found right becomes conversations, for one more sft beside the labels.

Reads the labelled conversations and the answers and judgments of all rounds; writes `conversations.jsonl`. Of the same
question about the same image the latest right answer counts; yes and no are balanced and denials limited as in pair.
"""

from collections.abc import Sequence
from pathlib import Path

from stllava.config import PairOptions
from stllava.data.balance import Taught, denying, unbalanced
from stllava.data.conversations import conversation, read_conversations
from stllava.records import Answers, Conversation, Judgment, Manifest, Message
from stllava.store import Existing, Stage, file_hash, locked, output_hash, read_records
from stllava.thoughts import final_answer


def consolidate(
    options: PairOptions,
    *,
    conversations: Path,
    rounds: Sequence[tuple[Path, Path]],
    to: Path,
    existing: Existing = "resume",
) -> Manifest:
    """Write what sft is to learn into `to`; `rounds` are the folders of answers and of their judgments, the oldest first."""
    with locked(to, conversations, *(folder for one in rounds for folder in one)):
        inputs = {"conversations": file_hash(conversations)}
        for number, folders in enumerate(rounds, 1):
            inputs |= {f"{name} {number}": output_hash(at) for name, at in zip(("answers", "judgments"), folders, strict=True)}
        stage = Stage("consolidate", to, options, inputs=inputs, existing=existing)
        if stage.manifest is not None:
            return stage.manifest
        found: dict[tuple[tuple[str, ...], str], Conversation] = {}
        cut = 0
        for answers, judgments in rounds:
            given = {one.id: one for one in read_records(answers, "answers", Answers)}
            for judgment in read_records(judgments, "judgments", Judgment):
                one = given[judgment.answers_id]
                if judgment.scores is not None and max(judgment.scores) >= max(options.min_chosen_score, options.margin):
                    scored = zip(one.completions, one.ended, judgment.scores, strict=True)
                    best = next((text for text, ended, score in scored if ended and score == max(judgment.scores)), None)
                    if best is None:
                        cut += 1
                        continue
                    turns = (Message(role="user", content=one.question), Message(role="assistant", content=best))
                    found[one.images, one.question] = conversation(one.images, turns)
        taught = [Taught(one.id, one.messages[0].content, final_answer(one.messages[1].content)) for one in found.values()]
        surplus = unbalanced(taught) if options.balance else set()
        denied = denying([one for one in taught if one.id not in surplus], most=options.max_denial_share)
        right = [one for one in found.values() if one.id not in surplus | denied]
        labels, _ = read_conversations(conversations)
        stage.write_records("conversations", [*labels, *right])
        return stage.finish(
            counts_in=len(found) + cut,
            counts_out=len(right),
            dropped={"answer cut off": cut, "surplus of yes or no": len(surplus), "surplus of denials": len(denied)},
            measures={"labelled": float(len(labels)), "right": float(len(right))},
        )
