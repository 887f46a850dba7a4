"""Captions made from labels."""

from stllava.data.captions import caption
from stllava.records import QuestionKind, Sample


def row(question: str, answer: str, *, content: str = "PRES", kind: QuestionKind = "closed", place: str = "CHEST") -> Sample:
    """A labelled question as VQA-RAD has it."""
    labels = {"location": place, "content": content}
    return Sample(id=question, image="a.png", question=question, targets=(answer,), kind=kind, split="train", labels=labels)


def test_a_caption_says_body_part_open_labels_presence_then_absence() -> None:
    rows = [
        row("Is there a pneumothorax?", "No"),
        row("Is there evidence of a pleural effusion in this image?", "yes"),
        row("What type of imaging is this?", "Chest X-ray", content="MODALITY", kind="open"),
        row("In what plane was this taken?", "PA", content="PLANE", kind="open"),
    ]
    assert caption(rows) == (
        "The image shows the chest. It is: Chest X-ray. Plane: PA. There is pleural effusion. There is no pneumothorax."
    )


def test_what_no_rule_reads_is_left_out() -> None:
    rows = [
        row("Is the trachea midline?", "yes", place=""),
        row("Where is the mass?", "left", content="POS", kind="open", place=""),
        row("What type of imaging does this not represent?", "ultrasound", content="MODALITY", kind="open", place=""),
        row("What plane?", "yes", content="PLANE", kind="open", place=""),
        row("Is there a mass?", "in the left lung", place=""),
        row("What is abnormal?", "there are far too many things here", content="ABN", kind="open", place=""),
    ]
    assert caption(rows) is None
    assert caption([]) is None


def test_labels_that_disagree_on_the_body_part_name_none() -> None:
    assert caption([row("Is it?", "yes"), row("Is it so?", "yes", place="HEAD")]) is None


def test_nothing_is_said_twice() -> None:
    rows = [row("Is there a mass?", "yes"), row("is there any mass present?", "Yes")]
    assert caption(rows) == "The image shows the chest. There is mass."
