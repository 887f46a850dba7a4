"""`stllava import`: others' data in this product's form."""

from collections import Counter
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from stllava.commands.flags import parse
from stllava.errors import StllavaError
from stllava.store import Existing


def import_command(words: list[str]) -> None:
    """`stllava import benchmark NAME SOURCE --to FOLDER`."""
    if not words or words[0] not in ("benchmark", "-h", "--help"):
        raise StllavaError("import of what?", expected="stllava import benchmark NAME SOURCE", remedy="See --help.")
    from stllava.data.benchmarks import import_benchmark

    def benchmark(
        name: Positional[str],
        source: Positional[str],
        *,
        to: Path,
        language: Literal["en", "zh", "both"] = "en",
        splits: tuple[str, ...] | None = None,
        allow_changed: bool = False,
        existing: Existing = "resume",
    ) -> None:
        """Bring a published benchmark, or your own file, into the form that evaluate reads: one JSONL of samples a split.

        Args:
            name: vqa-rad, slake, pathvqa, pmc-vqa or omnimedvqa; any other name is that of your own file.
            source: Its folder, hub:owner/name where there is a network, or your own .jsonl or .csv file.
            to: Folder for the samples.
            language: Which of SLAKE's questions.
            splits: Which splits; all that are there when not named.
            allow_changed: Take files that differ from the published ones; the notes say so.
            existing: What to do with output that is there: resume, replace, or error.
        """
        made = import_benchmark(
            name, source, to=to, language=language, splits=splits, allow_changed=allow_changed, existing=existing
        )
        for split, rows in made.splits.items():
            kinds = Counter(row.kind for row in rows)
            images = len({row.image for row in rows})
            print(f"{split}: {len(rows)} questions ({kinds['open']} open, {kinds['closed']} closed) on {images} images")
        print(*made.notes, f"Image root: {made.root}", sep="\n")

    parse(benchmark, words[1:] if words[0] == "benchmark" else words, name="import benchmark")
