"""The card of a run's preferences as a data set of the hub: what a row is, how it was made, who judged, how far to believe it.

It tells no path, address or image of the machine it is written on, and a license or a language only where somebody said it.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from stllava.data.sources import source_of
from stllava.records import Rate
from stllava.report import wording
from stllava.report.markdown import bullets, plain_text, table_row
from stllava.report.model_card import LICENSE
from stllava.report.redaction import secrets_of
from stllava.report.run_files import Round, RunFiles
from stllava.rundir import RunDir
from stllava.text import counted

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
"""What the hub calls a size, by the number of rows that it ends below."""
LARGEST = "1M<n<10M"
WITH_IMAGES = """```python
from datasets import load_dataset

pairs = load_dataset("FOLDER", split="train")  # this folder, or its name on the hub
```"""
WITHOUT_IMAGES = """The images are not among the files. Whoever holds them finds each by the SHA-256 of its file:

```python
from hashlib import sha256
from pathlib import Path
from datasets import Image, List, load_dataset

files = {sha256(path.read_bytes()).hexdigest(): str(path) for path in Path("images").rglob("*") if path.is_file()}
pairs = load_dataset("FOLDER", split="train")  # this folder, or its name on the hub
pairs = pairs.map(lambda row: {"images": [files[one] for one in row["image_sha256"]]})
pairs = pairs.cast_column("images", List(Image()))
```"""
TRAINER = "TRL's `DPOTrainer` takes `pairs` as they are, with a vision-language model."
COLUMNS = {
    "images": "what the question is about: the pixels, without metadata",
    "image_sha256": "SHA-256 of the file of each image",
    "prompt": "the turns before the answer, with the places of the images",
    "chosen": "the better answer",
    "rejected": "the worse answer",
    "margin": "difference of their scores, above 0",
    "round": "the round that made the pair: the answers of later ones are those of a later policy",
    "id": "hash of the pair and what it was made from",
}


def write_preferences_card(
    run: RunFiles, *, counts: Mapping[str, int], file: str, images: bool, license_name: str | None, language: str | None
) -> str:
    """The card as Markdown.

    Args:
        run: The run whose pairs they are.
        counts: Pairs by round.
        file: The parquet file of the rows, in the card's folder.
        images: Whether the images are among the rows.
        license_name: What the hub calls the license, where somebody said one.
        language: Code of the language of the texts, where somebody said it.
    """
    secrets = secrets_of(run)
    rounds = [part for part in run.rounds if part.name in counts]
    title = plain_text(secrets.redact(run.outcome.name))
    parts = [
        _head(sum(counts.values()), run, file=file, license_name=license_name, language=language),
        f"# Preferences of {title}",
        f"{sum(counts.values()):,} pairs of answers to questions about images, for direct preference optimisation (DPO). A "
        "vision-language model asked the questions itself and answered each several times; an expert judged its answers "
        "([STLLaVA-Med](https://arxiv.org/abs/2406.19973)); stllava made the pairs.",
        "## Use",
        WITH_IMAGES if images else WITHOUT_IMAGES,
        TRAINER,
        bullets(f"{name}: {what}" for name, what in COLUMNS.items() if name != ("image_sha256" if images else "images")),
        "## How it was made",
        plain_text(secrets.redact(source_of(run.options.data).describe(run.options.data))),
        _rounds(rounds, counts),
        bullets(_left_out(rounds)) or "Nothing was left out.",
        f"stllava, commit {', '.join(wording.commits(part.manifests['pair'] for part in rounds)) or 'not recorded'}.",
        "## Who judged",
        bullets(secrets.redact(text) for text in _expert(run, rounds)),
        *_checks(run, rounds),
        "## Limits",
        bullets(_limits(rounds)),
    ]
    return "\n\n".join(parts) + "\n"


def _head(rows: int, run: RunFiles, *, file: str, license_name: str | None, language: str | None) -> str:
    """What the hub reads; of phantoms, whose texts stllava writes, the language is known."""
    known: dict[str, object] = {
        "task_categories": ["visual-question-answering", "image-text-to-text"],
        "size_categories": [next((name for end, name in SIZES if rows < end), LARGEST)],
        "tags": ["dpo", "preference", "trl", "medical", "synthetic", "stllava"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": file}]}],
    }
    language = "en" if language is None and run.options.data.synthetic else language
    known |= {"language": [language]} if language is not None else {}
    known |= {"license": license_name} if license_name is not None else {}
    return f"---\n{yaml.safe_dump(known, sort_keys=False)}{'' if license_name is not None else LICENSE + chr(10)}---"


def _rounds(rounds: Sequence[Round], counts: Mapping[str, int]) -> str:
    lines = [table_row(["round", "questions", "judged", "pairs here"]), "|---|---|---|---|"]
    for part in rounds:
        made = [part.manifests[stage].counts_out for stage in ("ask", "judge")]
        lines.append(table_row([part.name, *(f"{count:,}" for count in (*made, counts[part.name]))]))
    return "\n".join(lines)


def _left_out(rounds: Sequence[Round]) -> Iterator[str]:
    for part in rounds:
        causes = [f"{count:,} {cause}" for cause, count in part.manifests["pair"].dropped.items() if count]
        if causes:
            yield f"Judged answers of which no pair came in {part.name}: {', '.join(causes)}."
        if asking := part.manifests["pair"].counts_out - len(part.preferences):
            yield f"Pairs of questions in {part.name}, which DPO of answers does not read: {asking:,}."


def _expert(run: RunFiles, rounds: Sequence[Round]) -> list[str]:
    """By what was judged, and what the judge's own stages note."""
    judging = run.options.judge
    experts = dict.fromkeys(str(part.manifests["judge"].config["expert"]) for part in rounds)
    told = [f"The expert: {', '.join(experts)}."]
    if "chat" in experts and judging.chat.model:
        told.append(f"It is the model {Path(judging.chat.model).name}, behind a server.")
    if "local" in experts:
        told.append(f"It is the model {Path(judging.local.model).name}.")
    told += dict.fromkeys(note for part in rounds for note in part.manifests["judge"].notes)
    return told


def _checks(run: RunFiles, rounds: Sequence[Round]) -> list[str]:
    """How far the expert can be trusted, where somebody measured it, and what readers, who are not named, said of it."""
    parts = []
    if run.check is not None:
        parts += [f"A check of the expert on {run.check.questions:,} questions:", _rates(wording.check_rows(run.check))]
    for part in rounds:
        if part.votes is not None:
            nameless = part.votes.model_copy(update={"readers": ()})
            told = f"Of {part.votes.tasks:,} verdicts of {part.name} that were drawn, {part.votes.read:,} were read by"
            parts += [f"{told} {counted(len(part.votes.readers), 'person', 'people')}:", _rates(wording.votes_rows(nameless))]
    audit = run.manifests.get(RunDir(Path()).expert_audit.as_posix())
    if audit is not None:
        parts += ["An audit of the expert on labelled questions:"]
        parts += [bullets(f"{wording.plain(name)}: {wording.measure(name, value)}" for name, value in audit.measures.items())]
    return parts or ["Whether the expert can be trusted was not measured."]


def _rates(rows: Sequence[tuple[str, Rate | None]]) -> str:
    lines = [table_row(["measured", "share", "95 % interval", "n"]), "|---|---|---|---|"]
    for name, rate in rows:
        if rate is not None:
            lines.append(table_row([name, f"{rate.value:.3f}", f"{rate.low:.3f} – {rate.high:.3f}", f"{rate.n:,}"]))
    return "\n".join(lines)


def _limits(rounds: Sequence[Round]) -> list[str]:
    read = any(part.votes is not None for part in rounds)
    return [
        "Questions and answers are a model's own; a chosen answer is the better one of those given, and may still be wrong.",
        "Readers looked at some of the verdicts; nobody looked at all."
        if read
        else "No reader's votes on the verdicts are known.",
        "Not for the care of a patient, nor for a model that is used in it without tests of its own.",
    ]
