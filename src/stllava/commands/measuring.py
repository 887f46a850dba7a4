"""`stllava evaluate`, `compare` and `report`: numbers and tables."""

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from stllava.commands.flags import refuse_ignored, tell
from stllava.config import EvaluateOptions
from stllava.errors import StllavaError
from stllava.stages.evaluate import evaluate
from stllava.stages.evaluate import rescore as score_again
from stllava.store import Existing
from stllava.text import show


def evaluate_or_rescore(
    options: EvaluateOptions,
    *,
    to: Path,
    policy: Path | None = None,
    samples: Path | None = None,
    root: Path | None = None,
    rescore: Path | None = None,
    name: str | None = None,
    blank: bool = False,
    candidates: Path | None = None,
    verdicts: Path | None = None,
    learned: tuple[Path, ...] = (),
    allow_overlap: bool = False,
    existing: Existing = "resume",
    shard: str | None = None,
) -> None:
    """Score a policy on a benchmark, or score the answers of an earlier evaluation again.

    Args:
        options: How questions are put and answered.
        to: Folder for predictions and scores.
        policy: Folder of the policy.
        samples: The benchmark's samples (JSONL), or a table with image, question, answer; its name is the benchmark's.
        root: The image root.
        rescore: Folder of an evaluation whose answers are scored by today's rules; nothing is generated.
        name: What the policy is called in the results; policy when not named.
        blank: Show black images: the question-only baseline.
        candidates: JSON list of answers that the published open accuracy chooses from.
        verdicts: With rescore, what `stllava judge --answers FOLDER` said of its open answers: an expert's score.
        learned: What the policy learned from (conversations, questions, pairs, images): refused where it shares images.
        allow_overlap: Go on although test items were learned from; the result says so.
        existing: What to do with output that is there: resume it, replace it, or end in an error.
        shard: i/n: do the i-th of n equal parts of the work, in a folder of its own below `to`; `stllava gather` then makes the
            whole of them.
    """
    if rescore is not None:
        generating: dict[str, object] = {
            "--policy": policy,
            "--samples": samples,
            "--root": root,
            "--name": name,
            "--learned": learned or None,
            "--blank": blank or None,
            "--allow-overlap": allow_overlap or None,
            "--shard": shard,
        }
        refuse_ignored(generating, beside="--rescore")
        tell(
            score_again(
                options, predictions=rescore, to=to, candidates=candidates, verdicts=verdicts, existing=existing
            ).manifest
        )
        return
    refuse_ignored({"--verdicts": verdicts}, without="--rescore")
    if policy is None or samples is None or root is None:
        raise StllavaError(
            "evaluate has no policy, samples or root",
            expected="--policy, --samples and --root, or --rescore FOLDER",
            remedy="See stllava evaluate --help.",
        )
    tell(
        evaluate(
            options,
            policy=policy,
            samples=samples,
            root=root,
            to=to,
            name=name or "policy",
            blank=blank,
            candidates=candidates,
            learned=learned,
            allow_overlap=allow_overlap,
            existing=existing,
            shard=shard,
        ).manifest
    )


def compare(
    runs: Positional[tuple[Path, ...]],
    *,
    to: Path,
    against: str | None = None,
    policies: Literal["best", "all"] = "best",
) -> None:
    """Compare runs with each other and with published rows: compare.html, .md, .csv and .tex.

    Args:
        runs: Finished run directories, or folders of single evaluations; runs that differ in the seed alone become one row.
        to: Folder for the tables.
        against: The row that others are compared with; the first run's sft when not named.
        policies: best shows sft, the best policy and their baselines; all shows every round.
    """
    from stllava.report.compare import compare_runs

    show(compare_runs(runs, to=to, against=against, policies=policies))


def report(run: Positional[Path]) -> None:
    """Write report.html and summary.json of a finished run again.

    Args:
        run: The run directory.
    """
    from stllava.report.page import write_report

    show(write_report(run))
