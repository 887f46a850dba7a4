"""Stage 1: instruction tuning that also teaches asking.

Reads conversations and a model; writes a policy: a plain transformers folder. `stllava sft --help` lists the options.
"""

from pathlib import Path

from stllava.config import SftOptions
from stllava.data.conversations import read_conversation_file
from stllava.data.images import count_missing
from stllava.records import Manifest
from stllava.store import PARTS, Existing, Stage, file_hash, locked


def sft(
    options: SftOptions,
    *,
    model: str,
    conversations: Path,
    images: Path,
    to: Path,
    seed: int = 0,
    existing: Existing = "resume",
) -> Manifest:
    """Tune `model` on `conversations` (records, or others' rows) about images under `images`; write a policy to `to`."""
    from stllava.model.adapters import load_learner
    from stllava.model.load import fingerprint
    from stllava.tree.guard import check_packing
    from stllava.tree.lessons import Lessons

    with locked(to):
        inputs = {"model": fingerprint(model), "conversations": file_hash(conversations), "seed": str(seed)}
        stage = Stage("sft", to, options, inputs=inputs, existing=existing)
        if stage.manifest is not None:
            return stage.manifest
        read = read_conversation_file(conversations, root=images)
        total, dropped = read.rows, read.dropped
        missing = count_missing(images, [one.images for one in read.records])
        for lost in (dropped, missing):
            lost.refuse_faults(items=total, unit="conversations", max_bad=options.max_bad)
        policy = load_learner(model, options)
        device = str(policy.device)
        policy.packs = options.pack
        most = min(policy.context, options.tokens)
        lessons = Lessons(policy, read.records, images=images, sq_r=options.sq_r, seed=seed, most=most)
        dropped.take(lessons.dropped)
        dropped.refuse_faults(items=total, unit="conversations", max_bad=options.max_bad)
        unpacked = check_packing(policy, [lessons.tree(index, 0) for index in range(len(lessons.groups))])
        curves = lessons.learn(options, to / PARTS / "training")
        policy.save(to)
        return stage.finish(
            counts_in=total,
            counts_out=total - dropped.total(),
            dropped=dropped,
            measures={"images": float(len(lessons.groups))},
            curves=curves,
            notes=[*read.notes, *([unpacked] if unpacked else [])],
            device=device,
        )
