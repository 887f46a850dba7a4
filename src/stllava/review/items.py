"""What readers are asked about one by one: a policy's answers to a benchmark, the questions that it asked itself, or pictures.

Reads the predictions of an evaluation, the questions that ask wrote, or an imported set; writes `tasks.jsonl`, drawn as
verdicts are (`sampling`). The uncertain ones are answers on which the rules differ, questions that another image was asked too
or that end in no question mark, and pictures in which text was found and blacked out.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

from stllava.config import ReviewOptions
from stllava.data.image_set import Imported
from stllava.errors import NothingLeftError, StllavaError
from stllava.metrics.robust import normalise
from stllava.metrics.score import LLAVA_MED, ROBUST, readings
from stllava.records import ItemKind, ItemTask, Prediction, Question, QuestionKind, content_id
from stllava.review.sampling import Drawn, draw, sizes_of_strata
from stllava.review.tasks import TASKS, open_tasks
from stllava.store import Input, Inputs, output_hash, read_manifest, read_records, stream_records

TEXT_LEFT = "Are letters, digits or a code left in this picture?"


@dataclass(frozen=True)
class ReviewItem:
    """What may be drawn, and what speaks against it."""

    kind: ItemKind
    source_id: str
    images: tuple[str, ...]
    question: str
    doubts: tuple[str, ...]
    answer: str = ""
    references: tuple[str, ...] = ()
    rules: tuple[tuple[str, bool | None], ...] = ()
    question_kind: QuestionKind | None = None
    boxes: tuple[tuple[int, int, int, int], ...] = ()

    @property
    def key(self) -> str:
        """What makes it this task, whatever else is drawn."""
        return content_id("review item", self.kind, self.source_id, self.answer)


def draw_items(
    options: ReviewOptions, *, kind: ItemKind, source: Path, to: Path, seed: int = 0, root: Path | None = None
) -> list[ItemTask]:
    """Draw what readers are asked about, or read what was drawn before, in its order.

    Args:
        options: How many, and how often each is read.
        kind: Whether the predictions of an evaluation are read, the questions of ask, or the pictures of an imported set.
        source: The folder that evaluate, ask or `import images` wrote.
        to: The review folder; what readers say lies beside the tasks there and is never removed.
        seed: Decides what is drawn, and in which order.
        root: The image root, noted for the page.

    Raises:
        StllavaError: Where other options or another folder were drawn from before, or there is nothing to draw.
    """
    for name in ("close_scores", "unlikely"):
        if getattr(options, name) != ReviewOptions.model_fields[name].default:
            raise StllavaError(
                f"{name} is {getattr(options, name):g}, and {kind} are read",
                expected="options that have an effect: this one is about verdicts",
                remedy=f"Leave {name} out.",
            )
    inputs: Inputs = {kind: Input(source, output_hash), "seed": str(seed)}
    inputs |= {"salt": read_manifest(source).inputs["salt"]} if kind == "pictures" else {}
    with open_tasks(f"review-{kind}", to, options, inputs=inputs) as stage:
        if stage.manifest is None:
            items = list(_ITEMS[kind](source))
            if not items:
                raise NothingLeftError(
                    f"{source} holds no {kind}",
                    expected="a finished evaluation, the questions that ask wrote, or an imported set",
                    remedy="Name another folder.",
                )
            tasks = [_task(one) for one in draw(items, options=options, seed=seed)]
            stage.write_records(TASKS, tasks)
            stage.finish(counts_in=len(items), counts_out=len(tasks), measures=sizes_of_strata(items), image_root=root)
            return tasks
        if root is not None:
            stage.move_image_root(root)
        return read_items(to)


def read_items(folder: Path) -> list[ItemTask]:
    """The tasks of a review folder of answers, questions or pictures, in the order in which they are read."""
    return read_records(folder / TASKS, TASKS, ItemTask)


def rules_on(row: Prediction) -> dict[str, bool | None]:
    """Whether each rule counts a prediction right in full; None where the rule cannot read it.

    Our rule is closed accuracy, or open exact match. The published one counts a closed answer right that holds the
    reference's letters, and an open answer that says all of the reference's words; it knows no multiple choice.
    """
    is_closed = row.kind == "closed"
    metrics = {ROBUST: "closed_accuracy" if is_closed else "open_exact_match"}
    if not row.choices:
        metrics[LLAVA_MED] = "llava_med_closed" if is_closed else "llava_med_open_recall"
    said = {rule: readings([row], metric)[0] for rule, metric in metrics.items()}
    return {rule: None if value is None else value == 1 for rule, value in said.items()}


def _predictions(folder: Path) -> Iterator[ReviewItem]:
    for row in read_records(folder, "predictions", Prediction):
        rules = rules_on(row)
        options = [f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, row.choices, strict=False)]
        yield ReviewItem(
            kind="predictions",
            source_id=row.id,
            images=(row.image,),
            question="\n".join([row.question, *options]),
            doubts=("rules disagree",) if len(set(rules.values())) > 1 or None in rules.values() else (),
            answer=row.final_answer,
            references=row.targets,
            rules=tuple(rules.items()),
            question_kind=row.kind,
        )


def _questions(folder: Path) -> Iterator[ReviewItem]:
    rows: Sequence[Question] = read_records(folder, "questions", Question)
    asked = Counter(normalise(row.text) for row in rows)
    for row in rows:
        doubts = {
            "asked about another image too": asked[normalise(row.text)] > 1,
            "no question mark": not row.text.rstrip().endswith("?"),
        }
        yield ReviewItem(
            kind="questions",
            source_id=row.id,
            images=row.images,
            question=row.text,
            doubts=tuple(doubt for doubt, holds in doubts.items() if holds),
        )


def _pictures(folder: Path) -> Iterator[ReviewItem]:
    for row in stream_records(folder, "images", Imported):
        boxes = (*row.masked, *(row.deep.masked if row.deep is not None else ()))
        yield ReviewItem(
            kind="pictures",
            source_id=row.id,
            images=(row.path,),
            question=TEXT_LEFT,
            doubts=("text was blacked out",) if boxes else (),
            boxes=boxes,
        )


_ITEMS: Mapping[ItemKind, Callable[[Path], Iterator[ReviewItem]]] = {
    "predictions": _predictions,
    "questions": _questions,
    "pictures": _pictures,
}


def _task(drawn: Drawn[ReviewItem]) -> ItemTask:
    """What was drawn as readers are asked about it."""
    item = drawn.candidate
    return ItemTask(
        id=item.key,
        kind=item.kind,
        source_id=item.source_id,
        images=item.images,
        question=item.question,
        question_kind=item.question_kind,
        answer=item.answer,
        references=item.references,
        rules=dict(item.rules),
        boxes=item.boxes,
        doubts=item.doubts,
        stratum=drawn.stratum,
        inclusion=drawn.inclusion,
        readers=drawn.readers,
        repeated=drawn.repeated,
    )
