"""Captions made from labelled questions and answers: what an alignment stage learns where nobody wrote captions.

    from stllava.data.captions import caption
    caption(rows)   # "The image shows the chest. It is a chest x-ray. There is no pneumothorax."

By rule and without a model, so a caption says only what its labels say. A label that no rule reads is left out.
"""

import re
from collections.abc import Sequence

from stllava.metrics.robust import is_yes_no, normalise
from stllava.records import Sample

_PARTS = {"head": "head", "chest": "chest", "abd": "abdomen", "abdomen": "abdomen"}
_THERE = re.compile(
    r"(?:is|are) there (?:any )?(?:evidence of |signs? of )?(?:a |an |any )?(?P<what>[a-z' -]+?)"
    r"(?: present| seen| visible| shown| pictured| visualized)?(?: in (?:this|the) (?:image|scan|film|picture))?"
)
_MOST_WORDS = 6
"""Longer answers and findings are sentences of their own, which these frames would not hold."""


def caption(rows: Sequence[Sample]) -> str | None:
    """One text of what the labels of one image say, or None where no rule reads any of them.

    Read are the labels `location` (body part) and `content` (VQA-RAD's question type: MODALITY, PLANE, ABN) of open
    questions, and closed ones of the form "Is there …?"; all else is left out.
    """
    sentences = [_body_part(rows), *(_open(row) for row in rows if row.kind == "open"), *_findings(rows)]
    said = list(dict.fromkeys(sentence for sentence in sentences if sentence))
    return " ".join(said) or None


def body_part(row: Sample) -> str | None:
    """The part of the body that the label `location` names: head, chest or abdomen; None of any other."""
    return _PARTS.get(str(row.labels.get("location", "")).strip().lower())


def _body_part(rows: Sequence[Sample]) -> str | None:
    places = {body_part(row) for row in rows} - {None}
    return f"The image shows the {places.pop()}." if len(places) == 1 else None


def _open(row: Sample) -> str | None:
    answer = row.targets[0].strip().rstrip(".")
    if not answer or is_yes_no(answer) or len(answer.split()) > _MOST_WORDS or " not " in f" {row.question.lower()} ":
        return None
    frames = {"MODALITY": f"It is: {answer}.", "PLANE": f"Plane: {answer}.", "ABN": f"Abnormality: {answer}."}
    return frames.get(str(row.labels.get("content", "")))


def _findings(rows: Sequence[Sample]) -> list[str]:
    """Sentences on what is there, before those on what is not."""
    found: dict[bool, list[str]] = {True: [], False: []}
    for row in rows:
        asked = _THERE.fullmatch(" ".join(row.question.lower().rstrip("?. ").split()))
        if asked is None or not is_yes_no(row.targets[0]) or len(asked["what"].split()) > _MOST_WORDS:
            continue
        there = normalise(row.targets[0]) == "yes"
        found[there].append(f"There is {'' if there else 'no '}{asked['what']}.")
    return [*found[True], *found[False]]
