"""Looking or guessing: how much likelier each judged answer is with its image than with a black one.

Reads answers and judgments; writes `gains.jsonl`, and in its manifest how many right and wrong answers read the image. With
the image an answer's log-probability is what answer noted, where it did; the black one takes one further packed forward.
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stllava.config import ImageGainOptions
from stllava.errors import ItemError
from stllava.experts.judged_answers import read_judged_answers
from stllava.records import Answers, ImageGain, Message, content_id
from stllava.stages.results import ImageGainResult
from stllava.store import Existing, Input, Inputs, open_stage, output_hash

if TYPE_CHECKING:
    from stllava.model.load import Policy

AT_ONCE = 512
"""Questions that are scored together."""


def image_gain(
    options: ImageGainOptions,
    *,
    policy: Path,
    answers: Path,
    judgments: Path,
    root: Path,
    to: Path,
    existing: Existing = "resume",
) -> ImageGainResult:
    """Measure how much the image speaks for each judged answer: log p(answer | image) − log p(answer | black image).

    Args:
        options: When an answer counts as one that reads the image.
        policy: Folder of the policy that answered.
        answers: Folder of its answers.
        judgments: Folder of the judgments of these answers: those without a verdict are left out.
        root: The image root.
        to: Folder for the gains (gains.jsonl).
        existing: What to do with output that is there: resume it, replace it, or end in an error.

    Raises:
        StllavaError: Where the policy cannot be loaded, or the judgments are not about these answers.
    """
    from stllava.model.load import fingerprint, load_policy

    inputs: Inputs = {
        "policy": Input(policy, fingerprint),
        "answers": Input(answers, output_hash),
        "judgments": Input(judgments, output_hash),
    }
    with open_stage("image-gain", to, options, inputs=inputs, existing=existing) as stage:
        if stage.manifest is not None:
            return ImageGainResult(to, stage.manifest)
        weights, speaker = stage.inputs["policy"], load_policy(policy)
        known = read_judged_answers(answers, judgments)
        scores = {row.id: judgment.scores for row, judgment in known}
        judged = [row for row, judgment in known if judgment.scores is not None]
        gains: list[ImageGain] = []
        for start in range(0, len(judged), AT_ONCE):
            part = judged[start : start + AT_ONCE]
            blind = _log_probabilities(speaker, part, root=root, most=options.max_tokens_per_forward, blank=True)
            seeing = _noted(part, weights) or _log_probabilities(
                speaker, part, root=root, most=options.max_tokens_per_forward, blank=False
            )
            gains += [
                ImageGain(
                    id=content_id("gain", row.id, weights),
                    answers_id=row.id,
                    gains=tuple(
                        with_image[text] - without[text] if ended and text in with_image and text in without else None
                        for text, ended in zip(row.completions, row.ended, strict=True)
                    ),
                    policy=weights,
                )
                for row, with_image, without in zip(part, seeing, blind, strict=True)
            ]
        stage.write_records("gains", gains)
        quadrants = quadrants_of(gains, scores, options)
        measures = {name: float(count) for name, count in sorted(quadrants.items())}
        return ImageGainResult(
            to,
            stage.finish(counts_in=len(judged), counts_out=len(gains), measures=measures, device=str(speaker.device)),
        )


def quadrants_of(
    gains: Sequence[ImageGain], scores: dict[str, tuple[float, ...] | None], options: ImageGainOptions
) -> Counter[str]:
    """How many answers are right or wrong, and read the image or not: `right_reading`, `right_guessing`, `wrong_…`."""
    counts: Counter[str] = Counter({f"{right}_{how}": 0 for right in ("right", "wrong") for how in ("reading", "guessing")})
    for row in gains:
        for gain, score in zip(row.gains, scores[row.answers_id] or (), strict=True):
            if gain is not None:
                right = "right" if score >= options.min_score else "wrong"
                counts[f"{right}_{'reading' if gain >= math.log(options.min_ratio) else 'guessing'}"] += 1
    return counts


def _noted(part: Sequence[Answers], weights: str) -> list[dict[str, float]] | None:
    """What answer noted of every text; None where anything is missing."""
    found = []
    for row in part:
        known = dict(zip(row.completions, row.log_probabilities, strict=False))
        if row.policy != weights or any(known.get(text) is None for text in row.completions):
            return None
        found.append({text: value for text, value in known.items() if value is not None})
    return found


def _log_probabilities(
    policy: "Policy", part: Sequence[Answers], *, root: Path, most: int, blank: bool
) -> list[dict[str, float]]:
    """Of every text, from packed forwards; nothing of a question that does not fit or whose image cannot be used."""
    from stllava.tree.scoring import answer_log_probabilities

    prompts = [((Message(role="user", content=row.question),), row.images) for row in part]
    texts = [list(dict.fromkeys(row.completions)) for row in part]
    found = answer_log_probabilities(policy, prompts, texts, images=root, max_tokens=most, blank=blank)
    return [
        {} if isinstance(values, ItemError) else dict(zip(row, values, strict=True))
        for row, values in zip(texts, found, strict=True)
    ]
