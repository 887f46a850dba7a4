"""What reference answers say of an image in general: how it was made, in which plane, of which part of the body.

Reads the reference samples of one image; by rule, without a model. Each of the three slots has few values and many words
for them, so a question about one can be judged though nobody asked it in these words: "Is this an MRI?" where a
reference says "What kind of scan is this? CT". Nothing else is inferred: no finding follows from another.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stllava.data.captions import body_part
from stllava.metrics.robust import is_yes_no, normalise, yes_no
from stllava.records import Sample

Slot = Literal["modality", "plane", "part"]
_WORDS: dict[Slot, dict[str, str]] = {
    "modality": {
        "x-ray": "xray|x ray|xrays|radiograph|cxr|plain film",
        "ct": "ct|cat scan|computed tomography|computerized tomography",
        "mri": "mri|mr|magnetic resonance imaging|magnetic resonance|flair|dwi|diffusion weighted|t1|t2",
        "ultrasound": "ultrasound|ultrasonography|sonogram|us",
    },
    "plane": {
        "axial": "axial|transverse",
        "coronal": "coronal",
        "sagittal": "sagittal|saggital",
        "pa": "pa|posteroanterior|posterior anterior|posterior to anterior",
        "ap": "ap|anteroposterior|anterior posterior|anterior to posterior",
        "lateral": "lateral",
    },
    "part": {
        "head": "head|brain|skull|cns|central nervous system",
        "chest": "chest|thorax|thoracic|lung|lungs|respiratory system|cardiopulmonary",
        "abdomen": "abdomen|abdominal|gi|gastrointestinal|gastrointestinal system",
    },
}
_VALUES = {
    word: (slot, value) for slot, values in _WORDS.items() for value, words in values.items() for word in words.split("|")
}
_FIND = re.compile(rf"\b({'|'.join(sorted(map(re.escape, _VALUES), key=len, reverse=True))})\b")
_ASKS: dict[Slot, re.Pattern[str]] = {
    "modality": re.compile(r"\bmodality\b|\b(?:type|kind) of (?:image|imaging|scan|study|radiological image)\b"),
    "plane": re.compile(r"\b(?:plane|orientation|projection)\b"),
    "part": re.compile(r"\borgan system\b|\bbody part\b|\bpart of body\b|\bregion of body\b"),
}
_OPEN = ("what", "which", "in what", "in which", "by what", "by which", "how")
_CLOSED = ("is", "was", "does")
_NO_MEANING_TEXT = (
    "is was does this these it image images imaging scan film picture study section slice view format position used taken "
    "acquired obtained captured made seen shown pictured displayed visualized show in of to by on at above what which or "
    "type kind there been being from here weighted"
)
_NO_MEANING = frozenset(_NO_MEANING_TEXT.split())
_SLOT_TEXT = "modality modalities plane orientation oriented projection organ organs system body part region"
_SLOT_WORDS = frozenset(_SLOT_TEXT.split())


@dataclass(frozen=True)
class ImageFacts:
    """What is known of an image, by slot."""

    values: Mapping[Slot, str]
    """What it is."""
    excluded: Mapping[Slot, frozenset[str]]
    """What it is not."""


@dataclass(frozen=True)
class ExpectedAnswer:
    """What the right answer to a question is."""

    slot: Slot | None
    """The slot that an open question asks for; None of a question that is answered yes or no."""
    value: str
    """Its value, or yes or no."""

    def score(self, completion: str) -> float:
        """1 for a completion that says this and nothing else of the kind, else 0."""
        if self.slot is None:
            return float(yes_no(completion) == self.value)
        return float(_mentioned(normalise(completion)).get(self.slot) == {self.value})


def facts_of(samples: Sequence[Sample]) -> ImageFacts:
    """What the reference samples of an image say; a slot on which they disagree is not known."""
    said: dict[Slot, set[str]] = {}
    excluded: dict[Slot, set[str]] = {}
    for sample in samples:
        place = body_part(sample)
        if place is not None:
            said.setdefault("part", set()).add(place)
        question = normalise(sample.question)
        for target in sample.targets:
            if is_yes_no(target):
                asked = _closed(question)
                if asked is not None and normalise(target) == "yes":
                    _add(said, asked)
                elif asked is not None and len(asked) == 1:
                    _add(excluded, asked)
            elif _open(question) is not None:
                _add(said, _mentioned(normalise(target)))
    values = {
        slot: found for slot, names in said.items() if len(names) == 1 for found in names if found not in excluded.get(slot, ())
    }
    return ImageFacts(values, {slot: frozenset(names) for slot, names in excluded.items()})


def expected_answer(question: str, known: ImageFacts) -> ExpectedAnswer | None:
    """The right answer to a question about a slot, where it is known and the question takes nothing wrong for granted."""
    words = normalise(question)
    slot = _open(words)
    if slot is not None:
        value = known.values.get(slot)
        return ExpectedAnswer(slot, value) if value is not None and _holds(_mentioned(words), known) else None
    asked = _closed(words)
    if asked is None:
        return None
    if _denied(asked, known):
        return ExpectedAnswer(None, "no")
    return ExpectedAnswer(None, "yes") if _holds(asked, known) else None


def _holds(asked: Mapping[Slot, Collection[str]], known: ImageFacts) -> bool:
    return all({known.values.get(slot)} == set(names) for slot, names in asked.items())


def _denied(asked: Mapping[Slot, Collection[str]], known: ImageFacts) -> bool:
    return any(
        name in known.excluded.get(slot, ()) or (slot in known.values and name != known.values[slot])
        for slot, names in asked.items()
        for name in names
    )


def _open(words: str) -> Slot | None:
    """The slot that an open question asks for, if it asks for nothing else and does not name a value of it already."""
    slots = [slot for slot, pattern in _ASKS.items() if pattern.search(words) and slot not in _mentioned(words)]
    return slots[0] if len(slots) == 1 and words.startswith(_OPEN) and not _content(words) else None


def _closed(words: str) -> dict[Slot, set[str]] | None:
    """The one value of each slot that a question asks to confirm, if it asks nothing else."""
    asked = _mentioned(words)
    plain = words.startswith(_CLOSED) and asked and all(len(names) == 1 for names in asked.values())
    return asked if plain and not _content(words) else None


def _content(words: str) -> set[str]:
    """Words of a question beyond those of the slots and those without a meaning of their own."""
    return set(_FIND.sub(" ", words).split()) - _NO_MEANING - _SLOT_WORDS


def _mentioned(words: str) -> dict[Slot, set[str]]:
    found: dict[Slot, set[str]] = {}
    for word in _FIND.findall(words):
        slot, value = _VALUES[word]
        found.setdefault(slot, set()).add(value)
    return found


def _add(into: dict[Slot, set[str]], found: Mapping[Slot, Collection[str]]) -> None:
    for slot, names in found.items():
        into.setdefault(slot, set()).update(names)
