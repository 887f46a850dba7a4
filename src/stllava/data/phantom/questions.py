"""The kinds of question about phantoms and their wordings.

Reads and writes nothing. Every wording of a kind has the same slots; `phantom_hearing` understands these and many more.
"""

import re
from dataclasses import dataclass

from stllava.data.phantom.truth import FINDINGS, ORGANS

NAMES = (*dict.fromkeys(finding for findings in FINDINGS.values() for finding in findings), "abnormality")
SPELLINGS = {"an": "a", "xray": "x-ray", "x ray": "x-ray", "radiograph": "x-ray", "mri": "mr"}
SPELLINGS |= {"tumour": "tumor", "tumours": "tumors", "haemorrhage": "hemorrhage", "oedema": "edema"}


@dataclass(frozen=True)
class Query:
    """What a question asks: a template and the words in its slots."""

    template: str
    finding: str | None = None
    side: str | None = None
    level: str | None = None
    size: str | None = None
    modality: str | None = None
    region: str | None = None
    count: str | None = None
    """Exactly so many."""
    tone: str | None = None


@dataclass(frozen=True)
class Template:
    """One kind of question in several wordings with the same slots; without wordings it is heard, never asked."""

    wordings: tuple[str, ...] = ()
    presupposes: bool = False
    """Whether it speaks of a finding as a given."""
    closed: bool = False
    """Whether the answer is yes or no."""
    general: bool = False
    """Whether any image of that region and modality has the same answer."""


TEMPLATES: dict[str, Template] = {
    "modality": Template(("what is the imaging modality?", "what kind of scan is this?"), general=True),
    "region": Template(("which part of the body is shown?", "what body part is this?"), general=True),
    "system": Template(("which organ system is shown?", "what organ system is imaged?"), general=True),
    "is modality": Template(("is this a {modality}?", "is this a {modality} image?"), closed=True, general=True),
    "is region": Template(closed=True, general=True),
    "normal": Template(("is the image normal?", "does everything look normal?"), closed=True),
    "any": Template(("is there any abnormality?", "is anything abnormal?"), closed=True),
    "what": Template(("what abnormality is seen?", "what is the abnormal finding?")),
    "what at": Template(),
    "describe": Template(),
    "presence": Template(("is there a {finding}?", "does the image show a {finding}?"), closed=True),
    "place": Template(
        (
            "is there a {finding} in the {side} {level} {organ}?",
            "does the {side} {level} {organ} contain a {finding}?",
        ),
        closed=True,
    ),
    "report": Template(("what is the complete finding?", "how would you report the finding?")),
    "several": Template(("is there more than one {finding}?", "are there several {findings}?"), closed=True),
    "side": Template(("on which side is the {finding}?", "which side is the {finding} on?"), True),
    "level": Template(("at which level is the {finding}?", "how high is the {finding}?"), True),
    "where": Template(("where is the {finding}?", "what is the location of the {finding}?"), True),
    "size": Template(("how large is the {finding}?", "what size is the {finding}?"), True),
    "count": Template(("how many {findings} are there?", "how many {findings} can be seen?"), True),
    "tone": Template(("is the {finding} brighter or darker?", "does the {finding} look brighter or darker?"), True),
    "is side": Template(("is the {finding} on the {side} side?", "is the {finding} on the {side}?"), True, True),
    "is size": Template(("is the {finding} {size}?", "would you call the {finding} {size}?"), True, True),
    "is level": Template(presupposes=True, closed=True),
    "is place": Template(presupposes=True, closed=True),
    "is tone": Template(presupposes=True, closed=True),
    "is what": Template(closed=True),
}


def plural(finding: str) -> str:
    """More than one of them."""
    return {"mass": "masses", "abnormality": "abnormalities"}.get(finding, f"{finding}s")


def normal(text: str) -> str:
    """Lower case, one spelling, no punctuation but inner hyphens, single blanks."""
    words = " ".join(re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)*", text.lower()))
    return re.sub(rf"\b({'|'.join(SPELLINGS)})\b(?!-)", lambda match: SPELLINGS[match[1]], words)


def word(query: Query, wording: str) -> str:
    """The question in that wording."""
    finding = query.finding or ""
    organ = next((organ for region, organ in ORGANS.items() if region == query.region), "")
    text = wording.format(
        finding=finding,
        findings=plural(finding),
        side=query.side,
        level=query.level,
        size=query.size,
        modality=query.modality,
        organ=organ,
    )
    return re.sub(r"\ba (?=[aeio]|x-ray|mr\b)", "an ", text)
