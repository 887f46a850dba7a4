"""Which verdicts of a round readers are asked about: drawn once, by strata, with the probability of each on record.

Reads the answers and judgments of a round; writes `tasks.jsonl` in the order in which they are read. Verdicts that something
speaks against are one stratum, all others the other (`sampling`).
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import log
from pathlib import Path

from stllava.config import ReviewOptions
from stllava.errors import ConflictError, NothingLeftError
from stllava.experts.calibration import compared
from stllava.experts.judged_answers import read_judged_answers
from stllava.records import Answers, Judgment, Preferred, ReviewTask, content_id
from stllava.review.sampling import SIZE, STRATA, Drawn, draw, sizes_of_strata
from stllava.store import MANIFEST, Input, Inputs, Stage, open_stage, output_hash, read_manifest, read_records

TASKS = "tasks"
"""Name of the stage below a review folder, and of its file without .jsonl."""


@dataclass(frozen=True)
class JudgedPair:
    """Two answers to a question that an expert compared, and what speaks against its verdict."""

    answers: Answers
    judgment: Judgment
    first: int
    second: int
    verdict: Preferred
    doubts: tuple[str, ...]

    @property
    def key(self) -> str:
        """What makes it this task, whatever else is drawn."""
        texts = self.answers.final_answers
        return content_id("review", self.judgment.id, texts[self.first], texts[self.second])


def draw_tasks(
    options: ReviewOptions,
    *,
    answers: Path,
    judgments: Path,
    to: Path,
    seed: int = 0,
    root: Path | None = None,
) -> list[ReviewTask]:
    """Draw the verdicts that readers are asked about, or read those that were drawn before, in their order.

    Args:
        options: How many, and of which kind.
        answers: Folder of the answers.
        judgments: Folder of an expert's judgments of them.
        to: The review folder; what readers say of the tasks lies beside them there and is never removed.
        seed: Decides what is drawn, and in which order.
        root: The image root, noted for the page.

    Raises:
        StllavaError: Where other options or another round were drawn from before, or no verdict compares two answers.
    """
    inputs: Inputs = {
        "answers": Input(answers, output_hash),
        "judgments": Input(judgments, output_hash),
        "seed": str(seed),
    }
    with open_tasks("review", to, options, inputs=inputs) as stage:
        if stage.manifest is None:
            pairs = [
                pair
                for row in read_judged_answers(answers, judgments)
                if (pair := judged_pair(*row, options=options)) is not None
            ]
            if not pairs:
                raise NothingLeftError(
                    f"{judgments} holds no verdict on two different answers",
                    expected="a round whose answers were judged",
                    remedy="Answer with a higher sampling.temperature or more answers (num_answers), and judge them.",
                )
            tasks = [_task(one) for one in draw(pairs, options=options, seed=seed)]
            stage.write_records(TASKS, tasks)
            measures = sizes_of_strata(pairs)
            stage.finish(counts_in=len(pairs), counts_out=len(tasks), measures=measures, image_root=root)
            return tasks
        if root is not None:
            stage.move_image_root(root)
        return read_tasks(to)


@contextmanager
def open_tasks(name: str, to: Path, options: ReviewOptions, *, inputs: Inputs) -> Iterator[Stage]:
    """Begin to draw tasks into a review folder, or go on with those that it has.

    Raises:
        ConflictError: Where it has tasks that were drawn otherwise.
    """
    with ExitStack() as stack:
        try:
            stage = stack.enter_context(open_stage(name, to / TASKS, options, inputs=inputs, existing="resume"))
        except ConflictError as error:
            found = str(error).partition("; expected")[0]
            go_on = "Leave the options out to go on with these, or delete" if "config." in found else "Delete"
            raise ConflictError(
                found,
                expected="the options with which these tasks were drawn, of the same answers",
                remedy=f"{go_on} {to / TASKS} to draw others: votes stay.",
            ) from None
        yield stage


def options_of_drawn(folder: Path, options: ReviewOptions, *, seed: int) -> tuple[ReviewOptions, int]:
    """The options and the seed to draw with: those of the tasks that a review folder has, where no others are named.

    Options that are all at their defaults name none. Others are given back as they are, and drawing with them is refused where
    they are not those of the tasks.
    """
    if not (folder / TASKS / MANIFEST).is_file() or (options, seed) != (ReviewOptions(), 0):
        return options, seed
    drawn = read_manifest(folder / TASKS)
    return ReviewOptions.model_validate(drawn.config), int(drawn.inputs["seed"])


def read_tasks(folder: Path) -> list[ReviewTask]:
    """The tasks of a review folder, in the order in which they are read."""
    return read_records(folder / TASKS, TASKS, ReviewTask)


def sizes_of(folder: Path) -> dict[str, int]:
    """How many verdicts each stratum of a review folder has in all."""
    measures = read_manifest(folder / TASKS).measures
    return {name: int(measures[SIZE.format(stratum=name)]) for name in STRATA}


def judged_pair(answers: Answers, judgment: Judgment, *, options: ReviewOptions) -> JudgedPair | None:
    """The two answers whose verdict matters most, best against worst; None without a verdict on two different ones.

    Of an expert to whom all are alike, the two that the policy gave most often.
    """
    scores, texts = judgment.scores, answers.final_answers
    pairs = compared(answers)
    if scores is None or not pairs or len(scores) != len(texts):
        return None
    verdicts = {pair: _verdict(judgment, *pair) for pair in pairs}
    times = {text: texts.count(text) for text in texts}

    def weight(pair: tuple[int, int]) -> tuple[bool, float, int]:
        one, other = pair
        return verdicts[pair] != "equal", abs(scores[one] - scores[other]), times[texts[one]] + times[texts[other]]

    first, second = max(pairs, key=lambda pair: (weight(pair), (-pair[0], -pair[1])))
    doubts = tuple(_doubts(answers, judgment, first, second, verdicts[first, second], options=options))
    return JudgedPair(answers, judgment, first, second, verdicts[first, second], doubts)


def _verdict(judgment: Judgment, first: int, second: int) -> Preferred:
    """What a judgment says of two completions."""
    for row in judgment.comparisons:
        if (row.first, row.second) == (first, second):
            return "equal" if row.winner is None else "first" if row.winner == first else "second"
    scores = judgment.scores or ()
    gap = scores[first] - scores[second]
    return "equal" if gap == 0 else "first" if gap > 0 else "second"


def _doubts(
    answers: Answers, judgment: Judgment, first: int, second: int, verdict: Preferred, *, options: ReviewOptions
) -> Iterator[str]:
    """What speaks against a verdict on two completions."""
    if any(row.flipped for row in judgment.comparisons if (row.first, row.second) == (first, second)):
        yield "orders disagree"
    if judgment.agreement is not None and judgment.agreement < 1:
        yield "panel members disagree"
    scores = judgment.scores or ()
    if verdict != "equal" and not judgment.comparisons and abs(scores[first] - scores[second]) <= options.close_scores:
        yield "scores are close"
    better, worse = (first, second) if verdict == "first" else (second, first)
    known = answers.log_probabilities
    if verdict != "equal" and known:
        ours, theirs = known[better], known[worse]
        if ours is not None and theirs is not None and theirs - ours >= log(options.unlikely):
            yield "better answer unlikely"


def _task(drawn: Drawn[JudgedPair]) -> ReviewTask:
    """A drawn verdict as readers are asked about it."""
    pair = drawn.candidate
    texts = pair.answers.final_answers
    return ReviewTask(
        id=pair.key,
        answers_id=pair.answers.id,
        judgment_id=pair.judgment.id,
        images=pair.answers.images,
        question=pair.answers.question,
        first=pair.first,
        second=pair.second,
        texts=(texts[pair.first], texts[pair.second]),
        expert=pair.judgment.expert,
        verdict=pair.verdict,
        reason=pair.judgment.reason,
        doubts=pair.doubts,
        stratum=drawn.stratum,
        inclusion=drawn.inclusion,
        readers=drawn.readers,
        repeated=drawn.repeated,
    )
