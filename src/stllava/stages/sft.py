"""Stage 1: instruction tuning that also teaches asking.

Reads conversations and a model; writes a policy: a plain transformers folder. `stllava sft --help` lists the options.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from stllava.config import SftOptions, SmallModel
from stllava.data.conversations import read_conversation_file
from stllava.data.images import count_missing
from stllava.records import content_id
from stllava.stages.results import TrainingResult
from stllava.store import PARTS, Existing, Input, Inputs, file_hash, open_stage

SMALL = SmallModel()


def sft(
    options: SftOptions,
    *,
    model: str,
    conversations: Path,
    images: Path,
    to: Path,
    small: SmallModel = SMALL,
    seed: int = 0,
    existing: Existing = "resume",
) -> TrainingResult:
    """Tune a model on labelled conversations about images (stage 1) and write the policy that comes of it.

    Each conversation becomes a chain of a tree that its images share, so an image is computed once for all that is learned
    about it. With `self_question_ratio` above 0 some user turns become questions that the model learns to ask.

    Args:
        options: Rates, batch size, adapters and how much of self-questioning is learned.
        model: Folder or hub name of an image-text-to-text model, or small: a LLaVA that is built here from nothing.
        conversations: What is learned: JSONL of Conversation records, or rows as LLaVA and others write them.
        images: The image root: every image path in the conversations is relative to it.
        to: Folder for the policy, a plain transformers folder with a manifest.
        small: Shape of the model called small.
        seed: Seed of what is drawn at random; the same seed gives the same output.
        existing: What to do with output that is there: resume it, replace it, or end in an error.

    Raises:
        StllavaError: Where the model, the conversations or more than `max_bad` of them cannot be used.
    """
    from stllava.model.adapters import load_learner
    from stllava.model.load import fingerprint
    from stllava.training.processes import TrainedPolicy, current_processes, run_training
    from stllava.training.sft_dataset import SftDataset, fit_conversations
    from stllava.tree.guard import check_packing

    start = content_id("small", small.model_dump()) if model == "small" else Input(model, fingerprint)
    inputs: Inputs = {"model": start, "conversations": Input(conversations, file_hash), "seed": str(seed)}

    def learn(_: Mapping[str, str]) -> TrainedPolicy:
        read = read_conversation_file(conversations, root=images)
        total, dropped = read.rows, read.dropped
        missing = count_missing(images, [row.images for row in read.records])
        for lost in (dropped, missing):
            lost.refuse_faults(items=total, unit="conversations", max_bad=options.max_bad)
        with TemporaryDirectory() as spare:
            read_from = model
            if model == "small":
                from stllava.model.small import build_small

                processes = current_processes()
                if processes.leads:
                    build_small(small, conversations=conversations, to=Path(spare), seed=seed)
                read_from = processes.share(spare)
            policy = load_learner(read_from, options)
            if model == "small":
                processes.gather([])  # Nobody goes on, and removes it, before all have read it.
        device = str(policy.device)
        policy.packs = options.pack
        most = min(policy.context, options.max_tokens_per_forward)
        dataset = SftDataset(
            policy, read.records, images=images, self_question_ratio=options.self_question_ratio, seed=seed, max_tokens=most
        )
        dropped.take(dataset.dropped)
        dropped.refuse_faults(items=total, unit="conversations", max_bad=options.max_bad)
        unpacked = check_packing(policy, [dataset.tree(index, 0) for index in range(len(dataset.groups))])
        curves = fit_conversations(dataset, options, to / PARTS / "training")
        return TrainedPolicy(
            policy,
            counts_in=total,
            counts_out=total - dropped.total(),
            dropped=dropped,
            measures={"images": float(len(dataset.groups))},
            curves=curves,
            notes=[*read.notes, *([unpacked] if unpacked else [])],
            device=device,
        )

    return TrainingResult(to, run_training(open_stage("sft", to, options, inputs=inputs, existing=existing), learn))
