"""`stllava convert`: training data, tasks for readers and benchmarks in others' form."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from stllava.commands.flags import refuse_ignored
from stllava.config import QUESTION, DatasetOptions, ReviewOptions
from stllava.store import Existing, nothing_left
from stllava.text import counted, show


def conversations(
    source: Positional[Path],
    *,
    to: Path,
    form: Annotated[Literal["llava", "ms-swift", "llama-factory", "verl"], arg(name="format")] = "llava",
    images: Path | None = None,
    replace: bool = False,
) -> None:
    """Write labelled conversations as LLaVA JSON, or as JSON lines for ms-swift, LLaMA-Factory or verl.

    Args:
        source: A JSONL file of conversations.
        to: The file.
        form: llava for LLaVA JSON; else the trainer whose columns are written; verl gets a row an answer.
        images: Root to put before each image's path, but for llava, which knows a root of its own.
        replace: Write over a file that is there.
    """
    from stllava.data.conversations import read_conversations
    from stllava.data.exchange import factory_entry, to_llava, write_conversations

    read, dropped = read_conversations(source)
    if not read:
        raise nothing_left(f"the rows of {source}", dropped, remedy="Check the file (docs/data.md says what is read).")
    if form == "llava":
        refuse_ignored({"--images": images}, beside="--format llava")
        show(f"{counted(to_llava(read, to=to, replace=replace), 'conversation')} in {to}")
    else:
        show(f"{counted(write_conversations(read, to=to, form=form, images=images, replace=replace), 'row')} in {to}")
    if form == "llama-factory":
        show(f"dataset_info.json: {factory_entry(to, ranking=False)}")
    if dropped:
        show(f"  left out: {', '.join(f'{count} {cause}' for cause, count in dropped.items())}")


def preferences(
    folder: Positional[Path],
    *,
    to: Path,
    form: Annotated[Literal["trl", "llava", "ms-swift", "llama-factory"], arg(name="format")] = "trl",
    images: Path | None = None,
    replace: bool = False,
) -> None:
    """Write pairs as JSONL with the columns of TRL's, ms-swift's or LLaMA-Factory's DPO, or the chosen answers as LLaVA JSON.

    Args:
        folder: Folder of the pairs.
        to: The file.
        form: trl, ms-swift or llama-factory for the pairs, llava for the chosen answers as conversations.
        images: Root to put before each image's path, but for llava: the others know no root.
        replace: Write over a file that is there.
    """
    from stllava.data.exchange import chosen_answers, factory_entry, to_llava, to_trl, write_preferences

    if form == "trl":
        show(f"{counted(to_trl(folder, to=to, images=images, replace=replace), 'pair')} in {to}")
    elif form == "llama-factory" or form == "ms-swift":
        show(f"{counted(write_preferences(folder, to=to, form=form, images=images, replace=replace), 'pair')} in {to}")
        if form == "llama-factory":
            show(f"dataset_info.json: {factory_entry(to, ranking=True)}")
    else:
        show(f"{counted(to_llava(chosen_answers(folder), to=to, replace=replace), 'conversation')} in {to}")


def dataset(
    run: Positional[Path],
    options: DatasetOptions,
    *,
    to: Path,
    push: str | None = None,
    private: bool = True,
    existing: Existing = "resume",
) -> None:
    """Write the pairs of a finished run as a data set with its card, which `datasets` and TRL's DPO read as it is.

    Args:
        run: The run.
        options: What is written, and what the card says.
        to: The new folder.
        push: Also send it to this repository of the hub, owner/name.
        private: Whether a repository that is made for it is seen by its owner alone.
        existing: What to do with output that is there: resume it, replace it, or end in an error.
    """
    from stllava.commands.telling import tell
    from stllava.stages.convert_dataset import convert_dataset

    tell(convert_dataset(run, options, to=to, existing=existing).manifest)
    if push is not None:
        from stllava.remote.push import push_dataset

        address, files = push_dataset(to, push, private=private)
        show(f"sent to {address}: {', '.join(files)}")


def review(
    where: Positional[Path],
    options: ReviewOptions,
    *,
    to: Path,
    round: int | None = None,  # noqa: A002 - the flag is --round
    seed: int = 0,
    image_url: str = "/data/local-files/?d=",
) -> None:
    """Write what readers are asked about as tasks for Label Studio, and its labelling interface beside them.

    Args:
        where: A run or the folder of one round, whose verdicts are read; or the folder of an evaluation, whose answers are, of
            ask, whose questions are, or an imported set, whose pictures are.
        options: How much is read, and of which kind; without any of these, what was drawn before, if anything was.
        to: The JSON file; the interface is written beside it, with the suffix .xml.
        round: Number of the run's round; the last one that was judged when not named.
        seed: Decides what is drawn, and in which order.
        image_url: What Label Studio puts before an image's path to find it.
    """
    from stllava.review.label_studio import to_label_studio
    from stllava.review.reviewed import find_reviewed
    from stllava.review.tasks import options_of_drawn

    found = find_reviewed(where, round)
    options, seed = options_of_drawn(found.review, options, seed=seed)
    tasks = found.draw(options, seed=seed)
    to_label_studio(tasks, found.kind, to=to, image_url=image_url)
    show(f"{counted(len(tasks), 'task')} in {to}, the labelling interface in {to.with_suffix('.xml')}")


def benchmarks(
    sources: Positional[tuple[str, ...]],
    *,
    to: Path,
    prompt: str = QUESTION,
    allow_changed: bool = False,
    existing: Existing = "resume",
) -> None:
    """Write benchmarks as tasks for lmms-eval, which then asks the same questions and scores them by the same code as evaluate.

    Args:
        sources: The benchmarks by name: vqa-rad=FOLDER, slake=FOLDER, pathvqa=FOLDER; without a folder, from the hub.
        to: Folder for the tasks: what lmms-eval's --include_path names. The samples lie below benchmarks in it.
        prompt: The words in which every question is asked; {question} stands for it and the options it may have.
        allow_changed: Take files that differ from the published ones; the notes say so.
        existing: What to do with samples that are there: resume them, replace them, or end in an error.
    """
    from stllava.commands.measuring import named_sources
    from stllava.data.benchmarks import import_benchmark
    from stllava.records import Sample
    from stllava.stages.lmms_eval_tasks import write_task
    from stllava.store import read_records

    for benchmark in named_sources(sources):
        folder = to / "benchmarks" / benchmark.name
        made = import_benchmark(
            benchmark.name, benchmark.source, to=folder, splits=("test",), allow_changed=allow_changed, existing=existing
        )
        samples = read_records(folder, f"{benchmark.name}-test", Sample)
        task = write_task(benchmark.name, samples, root=made.root, to=to, prompt=prompt)
        show(*made.notes, f"{task}: {counted(len(samples), 'question')}")
        show(f"lmms-eval --include_path {to} --tasks {task} --log_samples --output_path RESULTS --model …")
