"""`stllava chat`, `predict` and `export`: a policy in use."""

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from stllava.commands.telling import tell
from stllava.config import SamplingOptions
from stllava.store import Existing
from stllava.text import show

GREEDY = SamplingOptions(temperature=0.0, max_new_tokens=512)


def chat(
    policy: Positional[Path],
    image: Positional[Path],
    *,
    question: str | None = None,
    sampling: SamplingOptions = GREEDY,
    seed: int = 0,
) -> None:
    """Talk with a policy about an image; an empty line ends, Ctrl-C ends an answer, `/image PATH` takes another image.

    Args:
        policy: Folder of the policy.
        image: The image.
        question: Ask this one question and end.
        sampling: How answers are sampled; greedy unless told.
        seed: Seed of what is sampled.
    """
    from stllava.generation.chat import talk

    talk(policy, image, question=question, sampling=sampling, seed=seed)


def export(
    policy: Positional[Path],
    *,
    to: Path,
    run: Path | None = None,
    precision: Literal["same", "float32", "bfloat16"] = "same",
    push: str | None = None,
    private: bool = True,
    existing: Existing = "resume",
) -> None:
    """Write a policy as a plain transformers folder with a model card; nothing in it names a path or an image.

    Args:
        policy: Folder of the policy, or a finished run, whose best policy is taken.
        to: The new folder.
        run: The run that made the policy: its card then says how, and what was measured.
        precision: Of the weights; same leaves them as they are.
        push: Also send it to this repository of the hub, owner/name, with the run's scores in the head of its card.
        private: Whether a repository that is made for it is seen by its owner alone.
        existing: What to do with output that is there: resume it, replace it, or end in an error.
    """
    from stllava.stages.export import export as write
    from stllava.stages.export import measured_of

    tell(write(policy, to=to, run=run, precision=precision, existing=existing).manifest)
    if push is not None:
        from stllava.remote.push import push_policy
        from stllava.report.model_index import model_index

        measured = measured_of(policy, run)
        metadata = model_index(measured, name=push.rpartition("/")[2]) if measured is not None else {}
        address, files = push_policy(to, push, private=private, metadata=metadata)
        show(f"sent to {address}: {', '.join(files)}")
