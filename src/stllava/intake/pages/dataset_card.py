"""The card of an imported set: how many pictures of what, of which size and split, what was left out, and how they look.

Reads the written pictures of the contact picture; writes `README.md` and `card.html`, whose picture is inside it, so that
no picture file but the set's own lies in the folder. Neither tells a path, a name or a day.
"""

import html
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from stllava.config import IntakeOptions
from stllava.data.image_set import DEEP_FOLDER, Imported, LeftOut
from stllava.data.images import jpeg_uri
from stllava.intake.deidentify.pseudonyms import IDENTIFIED_BY, IdentifiedBy
from stllava.intake.pages.written_pictures import written_picture
from stllava.intake.patients import Patients
from stllava.intake.splits import UnionFind
from stllava.intake.walk import OUTSIDE
from stllava.store import write_whole

_WAYS: Mapping[IdentifiedBy, str] = {
    "PatientID and issuer": "PatientID and its issuer",
    "PatientID": "PatientID",
    "name": "the name, having no number",
    "study": "their study, having neither number nor name",
    "folder": "their folder",
    "file": "their file",
}
SHOWN, ACROSS, SIDE = 48, 8, 96
LISTED = 20
UNKNOWN = "unknown"


@dataclass
class SetStatistics:
    """What is counted while the set is written; memory does not grow with it, but for patients and studies."""

    count: int = 0
    modalities: Counter[str] = field(default_factory=Counter)
    body_parts: Counter[str] = field(default_factory=Counter)
    views: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    patients: dict[str, str] = field(default_factory=dict)
    """Split of every patient."""
    pictures: Counter[str] = field(default_factory=Counter)
    """Of every patient."""
    identified_by: Counter[IdentifiedBy] = field(default_factory=Counter)
    """Patients by what they were told apart by."""
    joined: int = 0
    """Hidden ids that turned out to be of a patient with another one."""
    largest: int = 0
    """Pictures of the largest group of patients that cannot be in two splits."""
    studies: set[str] = field(default_factory=set)
    masked: int = 0
    near: int = 0
    deep: int = 0
    """Pictures whose 16-bit pixels were kept."""
    deep_masked: int = 0
    shown: list[str] = field(default_factory=list)
    """Paths for the contact picture, at equal distances."""
    _stride: int = 1

    def add(self, row: Imported) -> None:
        """Count a picture of the set."""
        if self.count % self._stride == 0:
            self.shown.append(row.path)
            if len(self.shown) == 2 * SHOWN:
                self.shown, self._stride = self.shown[::2], self._stride * 2
        self.count += 1
        self.modalities[row.modality or UNKNOWN] += 1
        self.body_parts[row.body_part or UNKNOWN] += 1
        self.views[row.view or UNKNOWN] += 1
        self.sizes[_size(row.width, row.height)] += 1
        self.splits[row.split] += 1
        self.patients[row.patient] = row.split
        self.pictures[row.patient] += 1
        self.studies.add(row.study)
        self.masked += bool(row.masked)
        self.near += row.near is not None
        self.deep += row.deep is not None
        self.deep_masked += row.deep is not None and bool(row.deep.masked)

    def count_patients(self, patients: Patients, groups: UnionFind) -> None:
        """Count what the patients of the set were told apart by, when all its pictures are counted."""
        evidence = patients.identified_by()
        self.identified_by.update(evidence[patient] for patient in self.patients)
        self.joined = patients.joined
        sizes = Counter[str]()
        for patient, pictures in self.pictures.items():
            sizes[groups.find(patient)] += pictures
        self.largest = max(sizes.values(), default=0)

    def add_left_out(self, row: LeftOut) -> None:
        """Count what was left out."""
        self.causes[row.cause] += 1

    def measures(self) -> dict[str, float]:
        """Figures for the manifest."""
        return {
            "patients": float(len(self.patients)),
            **{
                f"patients told by {evidence}": float(self.identified_by[evidence])
                for evidence in IDENTIFIED_BY
                if self.identified_by[evidence]
            },
            "ids joined": float(self.joined),
            "studies": float(len(self.studies)),
            "masked": float(self.masked),
            "near_duplicates": float(self.near),
            **{f"split {name}": float(n) for name, n in sorted(self.splits.items())},
            **({"16-bit pixels": float(self.deep)} if self.deep else {}),
        }

    def notes(self) -> list[str]:
        """Sentences for the manifest."""
        links = self.causes[OUTSIDE]
        out = [f"Links out of the folder that were not followed: {links:,}; --links anywhere follows them."] if links else []
        if not self.count:
            return ["No file of the folder gave a picture; left_out.jsonl has every cause.", *out]
        return [
            *self._patient_notes(),
            *out,
            f"{self.masked} of {self.count} pictures had text blacked out: look at them before they are shared.",
            *self._deep_notes(),
            "Faces that a head volume would show are not removed.",
        ]

    def _deep_notes(self) -> Iterator[str]:
        """What is to be known of 16-bit pixels, where any were kept."""
        if self.deep:
            yield (
                f"{DEEP_FOLDER}/ holds the 16-bit pixels of {self.deep} pictures, in {self.deep_masked} of which text was "
                "blacked out that the pictures do not show. They show more than those: share them only if that is needed."
            )

    def _patient_notes(self) -> Iterator[str]:
        """Sentences on how patients were told apart, and where that may have gone wrong."""
        ways = ", ".join(
            f"{self.identified_by[evidence]:,} by {_WAYS[evidence]}"
            for evidence in IDENTIFIED_BY
            if self.identified_by[evidence]
        )
        yield (
            f"Patients were told apart: {ways}. Numbers are compared without case, padding and leading zeros; different ones "
            "that share a study or a series are one patient, and files without a number go to whom study, accession number, "
            f"frame of reference or name point ({self.joined:,} ids were joined so). A name never tells patients apart."
        )
        if self.identified_by["folder"]:
            yield (
                "Folders taken for one patient each, since their files say nothing of whom they are: "
                f"{self.identified_by['folder']:,}. "
                "Where folders are no patients, give --unnamed file; a person's pictures may then be on two sides."
            )
        if unsure := self.identified_by["study"] + self.identified_by["file"]:
            yield (
                f"Patients known by a single study or file alone: {unsure:,}. Whether several of them are one person cannot be "
                "told from here, and such a person may be on two sides."
            )
        if 2 * self.largest > self.count and self.count > 1:
            yield (
                f"{self.largest:,} of {self.count:,} pictures must stay in one split, since they are of one patient or share "
                "near copies: the splits cannot have their shares."
            )


def write_card(to: Path, statistics: SetStatistics, *, options: IntakeOptions, files: int) -> list[Path]:
    """Write the card in both forms; returns their paths."""
    tables = list(_tables(statistics, options))
    words = [
        f"{statistics.count} pictures of {len(statistics.patients)} patients in {len(statistics.studies)} studies, "
        f"from {files} files.",
        *statistics.notes(),
        "`images.jsonl` has a line for each picture, `left_out.jsonl` one for each file or picture that is not here.",
    ]
    text = ["# Imported image set", *words]
    for title, rows in tables:
        text += [f"## {title}", "\n".join(["| | pictures |", "|---|---:|", *(f"| {name} | {n} |" for name, n in rows)])]
    readme, page = to / "README.md", to / "card.html"
    write_whole(readme, "\n\n".join(text) + "\n")
    body = "".join(f"<p>{html.escape(line)}</p>" for line in words)
    for title, rows in tables:
        cells = "".join(f"<tr><td>{html.escape(name)}</td><td>{n}</td></tr>" for name, n in rows)
        body += f"<h2>{html.escape(title)}</h2><table>{cells}</table>"
    if statistics.shown:
        picture = jpeg_uri(_contact(to, _spread(statistics.shown)), quality=80)
        body += f'<h2>Some of them</h2><img alt="{SHOWN} pictures at most" src="{picture}">'
    style = "body{font:16px sans-serif;max-width:50rem;margin:2rem auto}td{padding:.1rem 1rem .1rem 0}img{max-width:100%}"
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Imported image set</title><style>{style}</style>'
    write_whole(page, f"{head}<h1>Imported image set</h1>{body}</html>\n")
    return [readme, page]


def _tables(statistics: SetStatistics, options: IntakeOptions) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """Titles with their rows, the most frequent first."""
    people = Counter(statistics.patients.values())
    splits = [
        (f"{name} ({people[name]} patients, asked {share:.0%})", statistics.splits[name])
        for name, share in options.splits.shares().items()
    ]
    yield "Splits", splits
    named = {
        "Modalities": statistics.modalities,
        "Body parts": statistics.body_parts,
        "Views": statistics.views,
        "Sizes": statistics.sizes,
    }
    for title, counts in named.items():
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        rest = sum(n for _, n in ordered[LISTED:])
        yield title, [*ordered[:LISTED], *([("others", rest)] if rest else [])]
    yield "Left out", sorted(statistics.causes.items(), key=lambda item: (-item[1], item[0]))


def _size(width: int, height: int) -> str:
    """The power of two that the longer side stays below, so that a table of sizes is short."""
    return f"up to {1 << (max(width, height) - 1).bit_length()} pixels"


def _spread(paths: Sequence[str]) -> list[str]:
    step = max(1, len(paths) // SHOWN)
    return list(paths[::step][:SHOWN])


def _contact(to: Path, paths: Sequence[str]) -> Image.Image:
    """One picture of thumbnails in rows."""
    rows = -(-len(paths) // ACROSS)
    sheet = Image.new("RGB", (ACROSS * SIDE, rows * SIDE))
    for index, path in enumerate(paths):
        small = written_picture(to, path).convert("RGB")
        small.thumbnail((SIDE - 4, SIDE - 4))
        row, column = divmod(index, ACROSS)
        sheet.paste(small, (column * SIDE + 2, row * SIDE + 2))
    return sheet
