"""Your own files as a source: images below one root, conversations to learn, samples that choose and measure."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from stllava.config.base import NamedList, NamedPath
from stllava.data.benchmarks.own import read_samples
from stllava.data.conversations import read_conversation_file, singles
from stllava.data.folder import images_in
from stllava.data.sources.source import TAKEN, SourceData, SourceOptions, register, require_file, require_folder
from stllava.data.sources.training_split import check_images, usable
from stllava.errors import ItemError, StllavaError
from stllava.records import Conversation, Sample, content_id
from stllava.store import file_hash


class FilesData(SourceOptions):
    """Your own images, conversations and samples."""

    runtime_only = frozenset({"images", "conversations", "validation", "benchmarks", "references", "unlabelled", "captions"})

    kind: Literal["files"]
    """Your own files."""
    images: NamedPath
    """The image root: every image path is relative to it and stays inside it."""
    conversations: NamedPath
    """What sft learns: JSONL of Conversation records, or rows of turns or of a question and its answer, as LLaVA and others
    write them."""
    validation: NamedPath
    """What chooses the best round: JSONL of Sample records, or a table (CSV, TSV, JSON) with image, question, answer."""
    benchmarks: dict[str, NamedPath] = Field(default={})
    """Files of samples by name, in the same forms, measured for every policy."""
    references: NamedPath | None = None
    """Samples, in the same forms, that the reference expert may look at; never a benchmark."""
    unlabelled: NamedList | None = None
    """What to ask about: a folder inside the image root, or a list of images (a path a line, CSV or JSON); the whole root
    when absent."""
    captions: NamedPath | None = None
    """What the run's `align` learns from, in the same forms as the conversations."""
    single_questions: bool = True
    """Also learn every question of a conversation about images by itself, beside the whole: asked later, it comes alone."""


class OwnFiles:
    """Reads them where they lie."""

    def check(self, options: FilesData) -> None:
        """Every path leads somewhere, and benchmarks have names of their own."""
        require_folder("images", options.images)
        _check_unlabelled(options)
        require_file("conversations", options.conversations)
        require_file("validation", options.validation)
        require_file("references", options.references)
        require_file("captions", options.captions)
        for name, path in options.benchmarks.items():
            require_file(f"benchmarks.{name}", path)
        for name in options.benchmarks:
            if name in TAKEN or not name.replace("-", "").replace("_", "").isalnum():
                raise StllavaError(
                    f"a benchmark is named {name!r}",
                    expected=f"letters, digits, - and _, and none of {', '.join(sorted(TAKEN))}",
                    remedy="Give it another name in data.benchmarks.",
                )

    def inputs(self, options: FilesData) -> dict[str, str]:
        """All files, and the names of the images to ask about."""
        files = {"conversations": options.conversations, "validation": options.validation}
        files |= {f"benchmark {name}": path for name, path in options.benchmarks.items()}
        optional = {"references": options.references, "captions": options.captions}
        files |= {name: path for name, path in optional.items() if path is not None}
        asked = content_id([image.path for image in images_in(options.images, options.unlabelled)])
        return {**{name: file_hash(path) for name, path in files.items()}, "unlabelled": asked}

    def read(self, options: FilesData, *, seed: int, max_bad: float, begin: Callable[[], Path]) -> SourceData:
        """Read them all.

        When the whole image root is to be asked about, that means all images but those of validation and benchmarks. Every
        question of a conversation is learned by itself too, as in other sources' data, unless `single_questions` is off.
        """
        dropped: Counter[str] = Counter()
        notes: list[str] = []
        talks = _read_talks(options, options.conversations, dropped, notes, max_bad=max_bad)
        captions: list[Conversation] = []
        if options.captions is not None:
            captions = _read_talks(options, options.captions, dropped, notes, max_bad=max_bad)
        found = images_in(options.images, options.unlabelled)
        sets = {"validation": options.validation, **{f"benchmark {name}": path for name, path in options.benchmarks.items()}}
        if options.references is not None:
            sets["references"] = options.references
        samples: dict[str, list[Sample]] = {}
        for name, path in sets.items():
            samples[name], told = read_samples(path, split=name.removeprefix("benchmark "))
            notes += told
        read = len(talks) + len(captions) + dropped.total() + len(found) + sum(map(len, samples.values()))
        every = [row.image for rows in samples.values() for row in rows] + [image.path for image in found]
        every += [path for talk in (*talks, *captions) for path in talk.images]
        fingerprints, bad = check_images(options.images, every, max_bad=max_bad)
        for name, rows in samples.items():
            samples[name] = usable(rows, bad, dropped)
            if len(samples[name]) < len(rows):
                lost = len(rows) - len(samples[name])
                notes.append(f"{lost} of {len(rows)} samples of {name} cannot be used and are left out.")
        talks, captions = _shown(talks, bad, dropped), _shown(captions, bad, dropped)
        if options.single_questions and (alone := singles(talks)):
            notes.append(
                f"{len(alone)} questions of conversations with several are also learned by themselves, beside the whole "
                "(data.single_questions)."
            )
            talks = [*alone, *talks]
        dropped.update(bad[image.path].cause for image in found if image.path in bad)
        images = [image for image in found if image.path not in bad]
        if options.unlabelled is None:
            held = {fingerprints[row.image].content for name, rows in samples.items() if name != "references" for row in rows}
            kept = [image for image in images if fingerprints[image.path].content not in held]
            dropped["held out"] = len(images) - len(kept)
            images = kept
        for what, left in (("conversations", talks), ("images to ask about", images), *samples.items()):
            if not left:
                raise StllavaError(
                    f"no usable {what} are left", expected="at least one", remedy="Check data's paths and files."
                )
        return SourceData(
            fingerprints,
            talks,
            images,
            samples["validation"],
            {name: samples[f"benchmark {name}"] for name in options.benchmarks},
            captions=captions,
            references=samples.get("references"),
            read=read,
            dropped=+dropped,
            notes=notes,
        )

    def image_root(self, options: FilesData, to: Path) -> Path:
        """Images stay where they are."""
        return options.images

    def describe(self, options: FilesData) -> str:
        """Nothing more is known of them."""
        return "Images, conversations and tests of the maker's own."


def _check_unlabelled(options: FilesData) -> None:
    """Refuse what to ask about where it is neither in the image root nor anywhere else."""
    if options.unlabelled is None:
        return
    places = (options.images / options.unlabelled, options.unlabelled)
    if any(place.exists() for place in places):
        return
    remedy = "Check data.unlabelled, or leave it out to ask about all images that are not held out."
    root, *inside = options.unlabelled.parts
    if root == options.images.name and inside and options.images.joinpath(*inside).exists():
        remedy = f"Its path starts below data.images: did you mean {Path(*inside).as_posix()!r}?"
    raise StllavaError(
        f"data.unlabelled names {options.unlabelled}; there is neither {' nor '.join(map(str, dict.fromkeys(places)))}",
        expected="a folder inside data.images, or a list of images (a path a line, CSV or JSON)",
        remedy=remedy,
    )


def _read_talks(
    options: FilesData, path: Path, dropped: Counter[str], notes: list[str], *, max_bad: float
) -> list[Conversation]:
    """The usable conversations of a file; the others are counted, and too many of them refused."""
    read = read_conversation_file(path, root=options.images)
    bad = read.dropped.faults.total()
    if bad > max_bad * read.rows:
        raise StllavaError(
            f"{bad} of {read.rows} rows of {path} cannot be used: {read.causes()}",
            expected=f"at most {max_bad:.0%}",
            remedy="Fix these rows, or raise max_bad.",
        )
    dropped.update(read.dropped)
    notes += read.notes
    return read.records


def _shown(talks: Sequence[Conversation], bad: Mapping[str, ItemError], dropped: Counter[str]) -> list[Conversation]:
    """The conversations all of whose images can be used; the others are counted by the first cause."""
    for talk in talks:
        dropped.update([bad[path].cause for path in talk.images if path in bad][:1])
    return [talk for talk in talks if not any(path in bad for path in talk.images)]


register(FilesData, OwnFiles())
