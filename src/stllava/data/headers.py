"""Questions that the headers of imported pictures answer: modality, plane or view, part of the body, side.

    from stllava.data.headers import header_questions
    samples = header_questions(read_imported(Path("set")))

By rule and without a model: labels that a folder of DICOM brings along. Reads the lines of an imported set; writes nothing.
A closed question is made where the set knows more than one value, yes and no as likely, so that it cannot be guessed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stllava.data.image_set import Imported
from stllava.records import QuestionKind, Sample, content_id

BENCHMARK = "imported"

_MODALITIES = {
    "CR": "X-ray",
    "DX": "X-ray",
    "RG": "X-ray",
    "PX": "panoramic X-ray",
    "IO": "dental X-ray",
    "CT": "CT",
    "MR": "MRI",
    "US": "ultrasound",
    "IVUS": "intravascular ultrasound",
    "MG": "mammography",
    "PT": "PET",
    "NM": "scintigraphy",
    "XA": "angiography",
    "RF": "fluoroscopy",
    "OP": "fundus photograph",
    "OPT": "optical coherence tomography",
    "ES": "endoscopy",
    "SM": "microscopy",
}
_PARTS = {"brain": "head", "skull": "head", "thorax": "chest", "lung": "chest"}
_SIDES = {"L": "left", "R": "right", "B": "both"}
_PLANES = frozenset({"axial", "coronal", "sagittal"})


@dataclass(frozen=True)
class _Asks:
    """How one fact is asked for."""

    content: str
    """The kind of question, as VQA-RAD calls it."""
    question: str
    confirm: str
    """The closed question, in which {} stands for a value."""


_MODALITY = _Asks("MODALITY", "What imaging modality is this?", "Is the imaging modality {}?")
_PLANE = _Asks("PLANE", "In which plane is this image?", "Is this image in the {} plane?")
_VIEW = _Asks("PLANE", "Which projection is this?", "Is this a {} projection?")
_PART = _Asks("ORGAN", "Which body part is shown?", "Does this image show the {}?")
_SIDE = _Asks("POS", "Which side of the body is shown?", "Is the {} side of the body shown?")


def header_questions(rows: Sequence[Imported]) -> list[Sample]:
    """For each picture an open question and a closed one for every fact known of it, with the picture's split."""
    facts = [(row, asks, value) for row in rows for asks, value in _facts(row)]
    values: dict[_Asks, set[str]] = {}
    for _, asks, value in facts:
        values.setdefault(asks, set()).add(value)
    samples: list[Sample] = []
    for row, asks, value in facts:
        samples.append(_sample(row, asks, asks.question, value, kind="open"))
        others = sorted(values[asks] - {value})
        if others:
            drawn = int(content_id("header", row.id, asks.content)[:8], 16)
            named, answer = (value, "yes") if drawn % 2 else (others[drawn // 2 % len(others)], "no")
            samples.append(_sample(row, asks, asks.confirm.format(named), answer, kind="closed"))
    return samples


def _facts(row: Imported) -> Iterator[tuple[_Asks, str]]:
    if row.modality in _MODALITIES:
        yield _MODALITY, _MODALITIES[row.modality]
    if row.view:
        yield (_PLANE if row.view in _PLANES else _VIEW), row.view
    if row.body_part:
        yield _PART, _part(row)
    if row.laterality in _SIDES:
        yield _SIDE, _SIDES[row.laterality]


def _part(row: Imported) -> str:
    return _PARTS.get(row.body_part, row.body_part)


def _sample(row: Imported, asks: _Asks, question: str, answer: str, *, kind: QuestionKind) -> Sample:
    return Sample(
        id=content_id(BENCHMARK, row.path, question, answer),
        image=row.path,
        question=question,
        targets=(answer,),
        kind=kind,
        split=row.split,
        labels={"content": asks.content, "location": _part(row), "made_from": "header"},
    )
