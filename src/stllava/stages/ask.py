"""Self-questioning: the policy describes each image, then asks about it as the virtual user.

Reads images; writes `questions.jsonl`. Empty, repeated, cut-off and non-questions are dropped and counted by cause.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from stllava.config import AskOptions
from stllava.data.folder import read_images
from stllava.records import Image, Manifest, Message, Question, Sampling, content_id
from stllava.store import Existing, Stage, locked

MOST_WORDS = 60


def ask(
    options: AskOptions, *, policy: Path, images: Path, root: Path, to: Path, seed: int = 0, existing: Existing = "resume"
) -> Manifest:
    """Let `policy` ask about `images` (a folder, or JSONL of Image records) under `root`; write questions to `to`."""
    from stllava.model.load import fingerprint, load_policy
    from stllava.tree.decode import complete, request, usable_requests

    with locked(to):
        name, pictures = fingerprint(policy), read_images(images, root=root)
        inputs = {"policy": name, "images": content_id([image.path for image in pictures]), "seed": str(seed)}
        stage = Stage("ask", to, options, inputs=inputs, existing=existing)
        if stage.manifest is not None:
            return stage.manifest
        loaded = load_policy(policy)
        how = Sampling(**options.sampling.model_dump(), seed=seed)

        def work(chunk: Sequence[Image], chunk_seed: int) -> tuple[list[Question], Counter[str]]:
            seen, requests, unusable = usable_requests(
                loaded, chunk, lambda image: (options.describe, (image.path,)), root=root
            )
            dropped = Counter({cause: count * options.questions for cause, count in unusable.items()})
            said = [one[0] for one in complete(loaded, requests, k=1, sampling=options.description, seed=chunk_seed)]
            opening = Message(role="user", content=options.describe)
            turns = [[opening, Message(role="assistant", content=text)] for text in said]
            requests = [
                request(loaded, turn, images=(image.path,), root=root, speaker="virtual_user")
                for image, turn in zip(seen, turns, strict=True)
            ]
            asked = complete(loaded, requests, k=options.questions, sampling=options.sampling, seed=chunk_seed + 1)
            kept = []
            for image, description, texts in zip(seen, said, asked, strict=True):
                for text in screen(texts, dropped):
                    key = content_id("question", image.path, text, name)
                    kept.append(
                        Question(id=key, images=(image.path,), text=text, description=description, policy=name, sampling=how)
                    )
            return kept, dropped

        questions, dropped = stage.map_chunks(pictures, work, kind=Question, size=options.chunk, seed=seed, unit="images")
        stage.write_records("questions", questions)
        asked = len(pictures) * options.questions
        return stage.finish(
            counts_in=asked,
            counts_out=len(questions),
            dropped=dropped,
            measures={
                "images": float(len(pictures)),
                "kept_share": len(questions) / asked if asked else 0.0,
                "distinct_share": len({question.text for question in questions}) / len(questions) if questions else 0.0,
            },
            device=str(loaded.device),
        )


def screen(texts: Sequence[str], dropped: Counter[str]) -> list[str]:
    """The usable questions among `texts`, each once; the others are counted by cause in `dropped`."""
    kept: dict[str, str] = {}
    for text in texts:
        key = " ".join(text.lower().split())
        if not key:
            dropped["empty"] += 1
        elif not key.endswith("?") or len(key.split()) < 2:
            dropped["not a question"] += 1
        elif len(key.split()) > MOST_WORDS:
            dropped["too long"] += 1
        elif key in kept:
            dropped["repeated"] += 1
        else:
            kept[key] = text
    return list(kept.values())
