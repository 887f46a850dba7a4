"""Options of a review: what readers are asked about."""

from typing import Annotated

from pydantic import Field, PositiveInt

from stllava.config.base import Options, Share


class ReviewOptions(Options):
    """Which verdicts of a round, answers to a benchmark, questions or pictures readers are asked about, and how often."""

    tasks: PositiveInt = 300
    """Number of verdicts, answers, questions or pictures to draw; where there are fewer, all of them are."""
    uncertain_share: Share = 0.5
    """Share of the tasks that are drawn among what something speaks against: verdicts on which orders or panel members
    disagree, whose scores are close, or whose better answer the policy holds to be unlikely; answers on which the rules differ;
    questions that another image was asked too; pictures in which text was blacked out. The rest is drawn among all others."""
    overlap: Share = 0.2
    """Share of the tasks that two readers read, by which readers' own errors are measured."""
    repeats: Share = 0.05
    """Share of the tasks that a reader is shown twice, by which it is measured whether votes repeat."""
    close_scores: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Two scores that differ by no more than this are close; of verdicts alone."""
    unlikely: Annotated[float, Field(ge=1)] = 10.0
    """The better answer is unlikely where the policy gives the other one at least this many times the probability; of verdicts
    alone."""
