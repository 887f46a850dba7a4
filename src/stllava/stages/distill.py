"""The verdicts of an expert become a judge of one's own: `judge.expert: distilled` then judges with it, at no cost.

Reads answers and judgments of one or several rounds and a policy; writes `conversations.jsonl` (image, question, answer: is
that right?), the model that learned them, and `check.json`: how far it agrees with its teacher, and with the truth where that
is given, on images it was not trained on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stllava.config import DistillOptions
from stllava.data.balance import TaughtAnswer, surplus_of_yes_or_no
from stllava.data.conversations import conversation
from stllava.data.images import count_missing
from stllava.dropped import Dropped
from stllava.errors import ItemError, StllavaError
from stllava.experts.build import judge_that_knows
from stllava.experts.judged_answers import read_judged_answers
from stllava.metrics.agreement import kappa, rate
from stllava.metrics.robust import normalise
from stllava.records import Answers, Conversation, DistilledCheck, Message, Rate, content_id
from stllava.stages.results import DistillResult
from stllava.store import (
    CHECK,
    PARTS,
    Existing,
    Input,
    Inputs,
    file_hash,
    nothing_left,
    open_stage,
    output_hash,
    write_whole,
)

if TYPE_CHECKING:
    from stllava.model.load import Policy


@dataclass(frozen=True)
class JudgedAnswer:
    """One answer and what the teacher says of it."""

    answers: Answers
    """The answers it is among."""
    text: str
    """The answer."""
    score: float
    """The teacher's score."""
    right: bool
    """Whether that counts as right."""

    @property
    def id(self) -> str:
        """Hash of images, question and answer."""
        return content_id("judged answer", list(self.answers.images), self.answers.question, self.text)


def distill(
    options: DistillOptions,
    *,
    policy: Path,
    answers: Sequence[Path],
    judgments: Sequence[Path],
    images: Path,
    to: Path,
    truth: Path | None = None,
    seed: int = 0,
    existing: Existing = "resume",
) -> DistillResult:
    """Train a copy of a policy to judge as an expert judged, and measure how far it does.

    Args:
        options: What counts as right, how much is held out, and how the judge is trained.
        policy: Folder of the policy that the judge starts from.
        answers: Folders of answers, the oldest round first.
        judgments: Folders of the judgments of these answers, in the same order.
        images: The image root: every image path is relative to it.
        to: Folder for the judge, its conversations (conversations.jsonl) and its check (check.json).
        truth: JSONL of phantom truths or reference samples, with which judge and teacher are compared too.
        seed: Seed of what is drawn at random; the same seed gives the same output.
        existing: What to do with output that is there: resume it, replace it, or end in an error.

    Raises:
        StllavaError: Where answers and judgments do not belong together, or no verdict is left to learn from.
    """
    from stllava.model.adapters import load_learner
    from stllava.model.load import fingerprint
    from stllava.training.sft_dataset import SftDataset, fit_conversations
    from stllava.tree.guard import check_packing

    if len(answers) != len(judgments) or not answers:
        raise StllavaError(
            f"{len(answers)} folders of answers and {len(judgments)} of judgments",
            expected="a folder of judgments for each folder of answers",
            remedy="Name both of every round, in the same order.",
        )
    inputs: Inputs = {"policy": Input(policy, fingerprint), "seed": str(seed)}
    for number, (given, judged) in enumerate(zip(answers, judgments, strict=True), 1):
        inputs |= {f"answers {number}": Input(given, output_hash), f"judgments {number}": Input(judged, output_hash)}
    inputs |= {"truth": Input(truth, file_hash)} if truth is not None else {}
    with open_stage("distill", to, options, inputs=inputs, existing=existing) as stage:
        if stage.manifest is not None:
            return DistillResult(to, stage.manifest)
        teacher, known = read_judged(list(zip(answers, judgments, strict=True)), threshold=options.threshold)
        learned, held_out = split_by_image(known, share=options.held_out, seed=seed)
        taught, dropped = balanced_answers(learned) if options.balance else (learned, Dropped())
        if not taught:
            raise nothing_left(
                f"{len(known)} judged answers",
                dropped,
                remedy="A judge needs answers that were found right and others that were not.",
            )
        rows = judging_conversations(taught)
        count_missing(images, [row.images for row in rows]).refuse_faults(
            items=len(rows), unit="conversations", max_bad=options.max_bad
        )
        stage.write_records("conversations", rows)
        student = load_learner(policy, options)
        device = str(student.device)
        student.packs = options.pack
        dataset = SftDataset(
            student,
            rows,
            images=images,
            self_question_ratio=0.0,
            seed=seed,
            max_tokens=min(student.context, options.max_tokens_per_forward),
        )
        dataset.dropped.refuse_faults(items=len(rows), unit="conversations", max_bad=options.max_bad)
        dropped.take(dataset.dropped)
        unpacked = check_packing(student, [dataset.tree(index, 0) for index in range(len(dataset.groups))])
        curves = fit_conversations(dataset, options, to / PARTS / "training")
        student.save(to)
        shares = _shares(student, held_out, images=images, max_tokens=options.max_tokens_per_forward)
        found = check_judge(held_out, shares, teacher=teacher, truths=_truths(held_out, truth))
        write_whole(to / CHECK, found.model_dump_json(indent=1) + "\n")
        manifest = stage.finish(
            counts_in=len(learned),
            counts_out=len(rows) - dataset.dropped.total(),
            dropped=+dropped,
            measures=_measures(found, taught),
            curves=curves,
            notes=[*([unpacked] if unpacked else []), found.sentence],
            device=device,
        )
        return DistillResult(to, manifest)


def read_judged(rounds: Sequence[tuple[Path, Path]], *, threshold: float) -> tuple[str, list[JudgedAnswer]]:
    """The teacher's name, and every different answer with its verdict.

    Of the same answer the latest round's verdict counts, and the policy's own vote only where the expert gave none.
    """
    found: dict[str, JudgedAnswer] = {}
    judged: set[str] = set()
    teachers: dict[str, None] = {}
    for answers, judgments in rounds:
        for answered, judgment in read_judged_answers(answers, judgments):
            if judgment.scores is None:
                continue
            teachers[judgment.expert] = None
            for text, ended, score in zip(answered.final_answers, answered.ended, judgment.scores, strict=True):
                if ended and normalise(text):
                    row = JudgedAnswer(answered, text, score, score >= threshold)
                    if not judgment.is_own_vote:
                        judged.add(row.id)
                    if not judgment.is_own_vote or row.id not in judged:
                        found[row.id] = row
    return ", ".join(teachers), list(found.values())


def split_by_image(known: Sequence[JudgedAnswer], *, share: float, seed: int) -> tuple[list[JudgedAnswer], list[JudgedAnswer]]:
    """What is learned, and what is held out: all answers about a share of the images, one at least, drawn by hash."""
    images = sorted({row.answers.images for row in known}, key=lambda shown: content_id("held out", seed, list(shown)))
    held_out = set(images[: max(1, round(share * len(images)))]) if len(images) > 1 else set()
    return [row for row in known if row.answers.images not in held_out], [
        row for row in known if row.answers.images in held_out
    ]


def balanced_answers(learned: Sequence[JudgedAnswer]) -> tuple[list[JudgedAnswer], Dropped]:
    """As many right as wrong answers to questions that begin alike: else the judge learns the question, not the image."""
    from stllava.experts.distilled_judge import RIGHT, WRONG

    rows = [TaughtAnswer(row.id, row.answers.question, RIGHT if row.right else WRONG) for row in learned]
    surplus, dropped = surplus_of_yes_or_no(rows), Dropped()
    dropped["surplus of right or wrong"] = len(surplus)
    return [row for row in learned if row.id not in surplus], dropped


def judging_conversations(taught: Sequence[JudgedAnswer]) -> list[Conversation]:
    """For each answer the request to judge it, and what the teacher said."""
    from stllava.experts.distilled_judge import RIGHT, WRONG, judging_prompt

    return [
        conversation(
            row.answers.images,
            (judging_prompt(row.answers.question, row.text), Message(role="assistant", content=RIGHT if row.right else WRONG)),
        )
        for row in taught
    ]


def check_judge(
    held_out: Sequence[JudgedAnswer], shares: Sequence[float | None], *, teacher: str, truths: Sequence[bool | None]
) -> DistilledCheck:
    """How far the judge agrees with its teacher and both with the truth, on answers about images that were held out."""
    asked = [
        (row, share >= 0.5, truth) for row, share, truth in zip(held_out, shares, truths, strict=True) if share is not None
    ]
    known = [(row, right, truth) for row, right, truth in asked if truth is not None]
    images = [" ".join(row.answers.images) for row, *_ in asked]
    images_known = [" ".join(row.answers.images) for row, *_ in known]

    def agreement(ours: Sequence[bool], theirs: Sequence[bool], clusters: Sequence[str]) -> Rate | None:
        return kappa([int(right) for right in ours], [int(right) for right in theirs], clusters)

    return DistilledCheck(
        teacher=teacher,
        images=len(set(images)),
        answers=len(asked),
        same=rate([right == row.right for row, right, _ in asked], images),
        agreement=agreement([right for _, right, _ in asked], [row.right for row, *_ in asked], images),
        truth_agreement=agreement([right for _, right, _ in known], [truth for *_, truth in known], images_known),
        teacher_truth_agreement=agreement([row.right for row, *_ in known], [truth for *_, truth in known], images_known),
    )


def _shares(student: "Policy", held_out: Sequence[JudgedAnswer], *, images: Path, max_tokens: int) -> list[float | None]:
    from stllava.experts.distilled_judge import right_shares

    asked = [(row.answers.images, row.answers.question, row.text) for row in held_out]
    found = right_shares(student, asked, images=images, max_tokens=max_tokens)
    return [None if isinstance(share, ItemError) else share for share in found]


def _truths(held_out: Sequence[JudgedAnswer], truth: Path | None) -> list[bool | None]:
    """Whether each answer is right by the truth; None where there is none or it does not decide."""
    if truth is None:
        return [None] * len(held_out)
    knowing = judge_that_knows(truth)
    scores = [
        knowing.judge(row.answers.model_copy(update={"completions": (row.text,), "finished": ()})).scores for row in held_out
    ]
    return [None if score is None else score[0] >= 1 for score in scores]


def _measures(found: DistilledCheck, taught: Sequence[JudgedAnswer]) -> dict[str, float]:
    kappas = {
        "kappa": found.agreement,
        "truth_kappa": found.truth_agreement,
        "teacher_truth_kappa": found.teacher_truth_agreement,
    }
    measures = {"right_share": sum(row.right for row in taught) / len(taught), "held_out_answers": float(found.answers)}
    return measures | {name: one.value for name, one in kappas.items() if one is not None}
