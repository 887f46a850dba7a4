"""Options of a review: which verdicts readers are asked about."""

from typing import Annotated

from pydantic import Field, PositiveInt

from stllava.config.base import Options, Share


class ReviewOptions(Options):
    """Which verdicts of a round readers are asked about, and how often."""

    tasks: PositiveInt = 300
    """Number of verdicts to draw; a round with fewer gives all of them."""
    uncertain_share: Share = 0.5
    """Share of the tasks that are drawn among verdicts that something speaks against: orders or panel members disagree, the
    scores are close, or the policy holds the better answer to be unlikely. The rest is drawn among all others."""
    overlap: Share = 0.2
    """Share of the tasks that two readers read, by which readers' own errors are measured."""
    repeats: Share = 0.05
    """Share of the tasks that a reader is shown twice, by which it is measured whether votes repeat."""
    close_scores: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Two scores that differ by no more than this are close."""
    unlikely: Annotated[float, Field(ge=1)] = 10.0
    """The better answer is unlikely where the policy gives the other one at least this many times the probability."""
