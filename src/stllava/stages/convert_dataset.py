"""A run's preferences as a data set for the hub: one parquet file and the card of how it was made and who judged.

Reads a finished run. Writes train.parquet, in the columns of TRL's DPO for vision models, and the card, `README.md`; both
name no path. Images are among the rows only where that is said, as pixels without metadata.

    stllava convert dataset runs/mine --to my-pairs --push owner/my-pairs
"""

from pathlib import Path

from stllava.config import DatasetOptions
from stllava.data.exchange.parquet import TRAIN, write_parquet
from stllava.data.images import open_image
from stllava.errors import StllavaError
from stllava.remote.png import encode
from stllava.report.preferences_card import write_preferences_card
from stllava.report.run_files import read_run_files
from stllava.rundir import RunDir
from stllava.stages.results import StageResult
from stllava.store import CHECK, Existing, Input, Inputs, file_hash, open_stage, output_hash, write_whole

CARD = "README.md"


def convert_dataset(run: Path, options: DatasetOptions, *, to: Path, existing: Existing = "resume") -> StageResult:
    """Write the pairs of answers of all rounds of `run` as a data set with its card, to the folder `to`.

    Args:
        run: A finished run.
        options: What is written, and what the card says.
        to: The new folder.
        existing: What to do with output that is there: resume it, replace it, or end in an error.

    Raises:
        StllavaError: Where the run is not finished or made no pair, or an image is gone.
    """
    files = read_run_files(run)
    rounds = {part.name: part for part in files.rounds if part.preferences}
    if not rounds:
        raise StllavaError(
            f"{run} made no pairs of answers",
            expected="a run of one round or more, in which answers were chosen",
            remedy="Its report says why there are none: stllava report.",
        )
    inputs: Inputs = {"run": Input(RunDir(run).outcome, file_hash)}
    inputs |= {name: Input(RunDir(run).stage(name, "pair"), output_hash) for name in rounds}
    checks = {"check": RunDir(run).judge_check} if files.check is not None else {}
    checks |= {f"{name} votes": RunDir(run).review(name) for name, part in rounds.items() if part.votes is not None}
    inputs |= {name: Input(folder / CHECK, file_hash) for name, folder in checks.items()}
    with open_stage("dataset", to, options, inputs=inputs, reads=(run,), existing=existing) as stage:
        if stage.manifest is not None:
            return StageResult(to, stage.manifest)
        pixels = (lambda path: encode(open_image(files.images, path))) if options.include_images else None
        pairs = ((name, pair) for name, part in rounds.items() for pair in part.preferences)
        written = write_parquet(pairs, to=to / TRAIN, images=files.images, encode=pixels)
        card = write_preferences_card(
            files,
            counts={name: len(part.preferences) for name, part in rounds.items()},
            file=TRAIN,
            images=options.include_images,
            license_name=options.license,
            language=options.language,
        )
        write_whole(to / CARD, card)
        made = sum(part.manifests["pair"].counts_out for part in rounds.values())
        dropped = {"pair of questions": made - written} if made > written else {}
        return StageResult(to, stage.finish(counts_in=made, counts_out=written, dropped=dropped))
