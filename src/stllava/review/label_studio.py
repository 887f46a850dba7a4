"""Tasks for Label Studio, for those who have a server of it already, and what its annotators may say of them.

Writes the tasks of a review folder as Label Studio imports them, with the labelling interface beside them. What an expert or a
rule said does not leave, nor which model answered: the annotation is the blind vote (`label_studio_results` reads it).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from stllava.errors import StllavaError
from stllava.records import ItemChoice, ItemTask, ReviewTask, VoteChoice, content_id
from stllava.review.choices import BUTTONS, ReviewKind
from stllava.review.open_task import AnyTask
from stllava.store import write_whole

Said = Literal["left", "right"] | VoteChoice | ItemChoice
CHOICES: Mapping[ReviewKind, Mapping[str, Said]] = {
    "verdicts": {
        "answer 1 is better": "left",
        "answer 2 is better": "right",
        "equal": "equal",
        "both wrong": "both wrong",
        "bad question": "bad question",
        "bad image": "bad image",
        "cannot tell": "cannot tell",
    },
    "predictions": {
        "right": "right",
        "wrong": "wrong",
        "bad reference": "bad reference",
        "bad question": "bad question",
        "bad image": "bad image",
        "cannot tell": "cannot tell",
    },
    "questions": {"valid": "valid", "not valid": "not valid", "cannot tell": "cannot tell"},
    "pictures": {"burned": "burned", "not burned": "not burned", "cannot tell": "cannot tell"},
}
"""What annotators may choose of each kind of task, and what that says."""
_CANNOT_TELL = "x"
"""Its key: Label Studio has no ?."""
_SHOWN: Mapping[ReviewKind, str] = {
    "verdicts": """  <Header value="Answer 1" size="5"/>
  <Text name="first" value="$answer_1"/>
  <Header value="Answer 2" size="5"/>
  <Text name="second" value="$answer_2"/>
""",
    "predictions": """  <Header value="Answer" size="5"/>
  <Text name="answer" value="$answer"/>
  <Header value="Reference" size="5"/>
  <Text name="reference" value="$reference"/>
""",
    "questions": "",
    "pictures": """  <Header value="Blacked out already" size="5"/>
  <Text name="blacked_out" value="$blacked_out"/>
""",
}
_HINT = "The right answer, if you want to give it"
_TYPED = f'  <TextArea name="correct_answer" toName="image" placeholder="{_HINT}" maxSubmissions="1"/>\n'
TYPED_KINDS: frozenset[ReviewKind] = frozenset({"verdicts", "predictions"})
"""To what a right answer can be typed."""


def interface(kind: ReviewKind) -> str:
    """The labelling interface of a kind of task, to be pasted into the settings of a project."""
    keys = (_CANNOT_TELL if button.key == "?" else button.key for button in BUTTONS[kind])
    buttons = "".join(
        f"    <Choice value={quoteattr(label)} hotkey={quoteattr(key)}/>\n"
        for label, key in zip(CHOICES[kind], keys, strict=True)
    )
    return f"""<View>
  <Image name="image" value="$image" zoom="true" zoomControl="true" brightnessControl="true" contrastControl="true"/>
  <Header value="$question"/>
{_SHOWN[kind]}  <Choices name="vote" toName="image" choice="single" required="true">
{buttons}  </Choices>
{_TYPED if kind in TYPED_KINDS else ""}</View>
"""


def to_label_studio(tasks: Sequence[AnyTask], kind: ReviewKind, *, to: Path, image_url: str) -> None:
    """Write tasks as JSON, and the labelling interface beside them.

    Args:
        tasks: What was drawn of a review folder.
        kind: What they are about.
        to: The JSON file; the interface is written beside it, with the suffix .xml.
        image_url: What Label Studio puts before an image's path to find it, such as /data/local-files/?d=images/.

    Raises:
        StllavaError: Where the interface would go into the file of the tasks.
    """
    beside = to.with_suffix(".xml")
    if beside == to:
        raise StllavaError(
            f"{to} for the tasks and for the labelling interface",
            expected="a JSON file, beside which the interface has room",
            remedy=f"Name {to.with_suffix('.json')} (--to).",
        )
    rows = [
        {
            "data": {
                "task_id": task.id,
                # Names with spaces or marks would end an address, or begin another part of it.
                "image": f"{image_url}{quote(task.images[0])}" if task.images else "",
                **shown_data(task),
            }
        }
        for task in tasks
    ]
    write_whole(to, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
    write_whole(beside, interface(kind))


def left_answer(task: AnyTask) -> Literal["first", "second"]:
    """Which answer stands first: by chance, the same for all who annotate it; of what has no two answers, the first."""
    swapped = isinstance(task, ReviewTask) and not int(content_id("side", "label studio", task.id), 16) % 2
    return "second" if swapped else "first"


def shown_data(task: AnyTask) -> dict[str, str]:
    """What annotators read of a task beside its image, by the names that the interface knows."""
    if isinstance(task, ReviewTask):
        swapped = left_answer(task) == "second"
        return {"question": task.question, "answer_1": task.texts[swapped], "answer_2": task.texts[not swapped]}
    return {"question": task.question, **_item_data(task)}


def _item_data(task: ItemTask) -> dict[str, str]:
    """What annotators see of an answer, a question or a picture."""
    if task.kind == "predictions":
        return {"answer": task.answer, "reference": "\nor: ".join(task.references)}
    if task.kind == "pictures":
        places = (f"x {left} to {right}, y {top} to {bottom}" for left, top, right, bottom in task.boxes)
        return {"blacked_out": "; ".join(places) or "nothing"}
    return {}
