"""What a run's expert judged, as texts and pictures for a tracker: only where `track_samples` says so, and where they may go.

A tracker's folder, or its database on this machine, may have them. One elsewhere is held to the rule of an expert's address:
`track_send_images`, and every picture is noted in `track/audit.jsonl` before it leaves. Names of files never go along, and
paths, addresses and the names of this machine and its user are hidden in the texts, as in the card of an exported policy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image

from stllava.config import ServerOptions
from stllava.data.images import open_image
from stllava.errors import StllavaError
from stllava.records import Answers, Judgment
from stllava.remote.address import reach
from stllava.remote.identities import names_here
from stllava.report.redaction import HIDDEN, Secrets
from stllava.rundir import RunDir
from stllava.store import stream_records

MAX_SAMPLES = 16
"""Questions of a round that are shown, the first ones judged."""


@dataclass(frozen=True)
class ShownSample:
    """A question with its picture, its answers and what the expert said of them."""

    text: str
    """Question, then an answer a line with its score; the expert's cause where it gave no verdict. No path, no address."""
    picture: Image.Image
    """Pixels alone: nothing that a file carries beside them."""
    name: str
    """Path relative to the image root, for the audit; it is not shown."""


def host_allowed(tool: str, to: str, *, send_images: bool) -> str:
    """The host that samples go to, empty where they stay on this machine.

    Raises:
        StllavaError: Where they would leave it without permission, or the tool keeps none.
    """
    if tool in ("mlflow", "trackio"):
        raise StllavaError(
            f"track_samples is set, and {tool} gets figures alone",
            expected="wandb or tensorboard",
            remedy="Take one of these, or leave track_samples out.",
        )
    if tool == "tensorboard" or not to:
        return ""
    where = reach(ServerOptions(url=to, send_images=send_images), purpose=f"track_samples, to {tool}")
    return "" if where.here else where.host


def samples_of(run: Path, stage: str) -> list[ShownSample]:
    """The first questions of a round that were judged; none of a stage that is not a round's judge."""
    round_name, _, name = stage.partition("/")
    if name != "judge":
        return []
    folder = RunDir(run)
    judged = list(islice(stream_records(folder.stage(round_name, "judge"), "judgments", Judgment), MAX_SAMPLES))
    wanted = {row.answers_id for row in judged}
    given = stream_records(folder.stage(round_name, "answer"), "answers", Answers)
    answers = {row.id: row for row in given if row.id in wanted}
    return [_shown(answers[row.answers_id], row, root=folder.image_root) for row in judged if row.answers_id in answers]


def _shown(row: Answers, judgment: Judgment, *, root: Path) -> ShownSample:
    picture = open_image(root, row.images[0])
    scores: Sequence[float | None] = judgment.scores or [None] * len(row.completions)
    said = [f"{'-' if score is None else f'{score:.2f}'}: {text}" for score, text in zip(scores, row.completions, strict=True)]
    verdict = [f"no verdict: {judgment.cause}"] if judgment.scores is None else []
    bare = Image.frombytes(picture.mode, picture.size, picture.tobytes())
    text = Secrets().redact("\n".join([row.question, *said, *verdict]))
    names = names_here()
    return ShownSample(names.sub(HIDDEN, text) if names is not None else text, bare, row.images[0])
