"""Whether a policy gained by looking at images: its gain with them, less its gain when black images are shown instead."""

from collections.abc import Sequence
from dataclasses import dataclass

from stllava.metrics.score import measured, values
from stllava.metrics.stats import Interval, paired_difference
from stllava.records import Prediction


@dataclass(frozen=True)
class Gained:
    """One policy's predictions and those of the policy it was made from, on the same samples."""

    before: Sequence[Prediction]
    after: Sequence[Prediction]


def gain_by_looking(seeing: Gained, blind: Gained, *, metrics: Sequence[str]) -> Interval:
    """How much more a policy gained with its images than with black ones, with the 95 % interval resampled by image.

    Of each metric the mean over its samples is taken, and of these the mean, as rounds are compared by it. Samples that all
    four have answered count.

    Args:
        seeing: Predictions of both policies with the images.
        blind: Predictions of both policies when black images are shown.
        metrics: Names of the metrics; those without samples are left out.

    Raises:
        ValueError: Where no sample of any metric was answered by all four.
    """
    sides = [{row.sample_id: row for row in side} for side in (seeing.before, seeing.after, blind.before, blind.after)]
    shared = [row for row in seeing.after if all(row.sample_id in side for side in sides)]
    parts = {name: rows for name in metrics if (rows := measured(shared, name))}
    whole = sum(map(len, parts.values()))
    with_images: list[float] = []
    without: list[float] = []
    images: list[str] = []
    for name, rows in parts.items():
        weight = whole / (len(parts) * len(rows))  # The mean of all weighted values is then the mean of the metrics' means.
        before, after, blind_before, blind_after = (values([side[row.sample_id] for row in rows], name) for side in sides)
        with_images += [weight * (new - old) for new, old in zip(after, before, strict=True)]
        without += [weight * (new - old) for new, old in zip(blind_after, blind_before, strict=True)]
        images += [row.image for row in rows]
    return paired_difference(with_images, without, images)
