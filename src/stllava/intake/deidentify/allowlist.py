"""An allow-list for what an image set may tell of a picture: identities stay behind. Reads and writes nothing.

Yardstick: the Basic Application Level Confidentiality Profile of DICOM PS3.15, annex E. It lists
attributes to remove; here everything is removed but an allow-list, which is stricter, and of which is kept:

- UIDs, patient and accession numbers: none; ids are HMAC-SHA256 under a salt (`pseudonyms.py`), so they cannot be guessed from
  a list of names.
- Dates and times: none; whole days since the patient's first study (Retain Longitudinal Temporal Information With Modified
  Dates Option). Sex, age, device, institution and people: none.
- Descriptors: none as free text (no Retain option is used); a modality, body part, view or label passes only where its value
  stands in a vocabulary or is a short number, whatever attribute it came from.
- Pixels: burned-in text is `burned_text.py`'s (Clean Pixel Data Option). Faces that a head volume would show are not removed
  (Clean Recognizable Visual Features Option is not met).
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from stllava.intake.deidentify.spelling import folded
from stllava.intake.deidentify.vocabulary import BODY_PARTS, DONE_WORDS, LABELS, LATERALITIES, MODALITIES, VIEWS
from stllava.intake.readers.frame import Facts

MAX_FRAMES = 1_000_000

_HIDDEN = re.compile(r"[0-9a-f]{16}")
_DONE = re.compile(r"[A-Za-z0-9 .,:;()/%×+'_-]{1,120}")
_WORD = re.compile(r"[^\W\d_]+")
_NUMBER = re.compile(r"\d[\d.]*")
_SHORT_NUMBER = re.compile(r"\d{1,5}(\.\d{0,9})?")


@dataclass(frozen=True)
class Allowed:
    """What may be written of a picture, and how often what was dropped, by attribute (never by value)."""

    facts: Facts
    labels: dict[str, str]
    dropped: Counter[str]


def allow(facts: Facts, labels: Mapping[str, str], *, series: str = "") -> Allowed:
    """Only facts and labels whose values stand in a vocabulary or are short numbers; `series` is the hidden id to set."""
    dropped: Counter[str] = Counter()

    def known(name: str, value: str, vocabulary: frozenset[str]) -> str:
        if value and value not in vocabulary:
            dropped[name] += 1
            return ""
        return value

    hidden = series or facts.series
    if hidden and not _HIDDEN.fullmatch(hidden):
        dropped["series"] += 1
        hidden = ""
    frame = facts.frame
    if frame is not None and not 0 <= frame < MAX_FRAMES:
        dropped["frame"] += 1
        frame = None
    done = tuple(step for step in facts.done if _harmless(step))
    dropped["done"] += len(facts.done) - len(done)
    kept = {name: value for name, value in sorted(labels.items()) if name in LABELS and LABELS[name].fullmatch(value)}
    dropped["labels"] += len(labels) - len(kept)
    body_part = folded(facts.body_part).replace("_", " ")
    view = facts.view.strip().upper().replace("_", " ")
    allowed = Facts(
        modality=known("modality", facts.modality.strip().upper(), MODALITIES),
        body_part=known("body_part", body_part, BODY_PARTS),
        view=known("view", view.lower() if view.lower() in VIEWS else view, VIEWS),
        laterality=known("laterality", facts.laterality.strip().upper(), LATERALITIES),
        series=hidden,
        frame=frame,
        done=done,
    )
    return Allowed(allowed, kept, +dropped)


def _harmless(step: str) -> bool:
    """Whether a step's words are all known and its numbers short: none can be a name, a day or a patient's number."""
    words = all(word.lower() in DONE_WORDS for word in _WORD.findall(step))
    return (
        _DONE.fullmatch(step) is not None and words and all(_SHORT_NUMBER.fullmatch(number) for number in _NUMBER.findall(step))
    )
