"""A finished run as a notebook shows it: its scores, and pictures with questions, answers and verdicts.

from stllava import show_run
show_run("runs/phantom-0")
"""

from dataclasses import dataclass
from pathlib import Path

from stllava.records import Outcome
from stllava.report.gallery import Card, self_asked, tested
from stllava.report.rendering import page_environment
from stllava.report.run_files import read_run_files
from stllava.report.wording import benchmarks


@dataclass(frozen=True)
class RunExamples:
    """A run with some of its examples; the last value of a notebook's cell, it shows itself."""

    outcome: Outcome
    """What the run came to."""
    asked: tuple[Card, ...]
    """Questions the policy asked itself, their answers and verdicts."""
    tested: tuple[Card, ...]
    """Samples of the first benchmark with what every policy says."""

    def _repr_html_(self) -> str:
        """The scores, then the examples; pictures are inside, without metadata."""
        return self.outcome._repr_html_() + page_environment().get_template("notebook.html.jinja").render(view=self)


def show_run(run: Path | str, *, examples: int = 4) -> RunExamples:
    """A finished run for a notebook: scores of every policy, and examples chosen as in its report.

    Args:
        run: The run directory.
        examples: How many self-asked questions, and how many benchmark samples, at most.

    Raises:
        StllavaError: Where the run is not finished.
    """
    files = read_run_files(Path(run))
    names = benchmarks(files.outcome.scores)
    shown = tested(files, names[0])[:examples] if names else []
    return RunExamples(files.outcome, tuple(self_asked(files)[:examples]), tuple(shown))
