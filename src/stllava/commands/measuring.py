"""`stllava evaluate`, `score`, `compare` and `report`: numbers and tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from tyro.conf import Positional

from stllava.commands.flags import refuse_ignored
from stllava.commands.telling import tell_result
from stllava.config import EvaluateOptions
from stllava.data.benchmarks import NAMES, import_benchmark
from stllava.errors import StllavaError
from stllava.stages.evaluate import evaluate
from stllava.stages.rescore import rescore as score_again
from stllava.stages.score_log import score_log
from stllava.store import Existing, read_plan
from stllava.text import counted, show

ON_THE_HUB = {
    "vqa-rad": "hub:flaviagiammarino/vqa-rad",
    "slake": "hub:BoKelvin/SLAKE",
    "pathvqa": "hub:flaviagiammarino/path-vqa",
}
"""Where the benchmarks are published that no folder is named for."""


def evaluate_or_rescore(
    options: EvaluateOptions,
    *,
    to: Path,
    policy: Path | None = None,
    samples: Path | None = None,
    root: Path | None = None,
    benchmarks: tuple[str, ...] = (),
    rescore: Path | None = None,
    name: str | None = None,
    blank: bool = False,
    candidates: Path | None = None,
    verdicts: Path | None = None,
    learned: tuple[Path, ...] = (),
    allow_overlap: bool = False,
    allow_changed: bool = False,
    existing: Existing = "resume",
    shard: str | None = None,
) -> None:
    """Score a policy on a benchmark, or score the answers of an earlier evaluation again.

    Args:
        options: How questions are put and answered.
        to: Folder for predictions and scores.
        policy: Folder of the policy, or the name of any image-text-to-text model on the hub.
        samples: The benchmark's samples (JSONL), or a table with image, question, answer; its name is the benchmark's.
        root: The image root.
        benchmarks: Instead of samples and root, published benchmarks by name, divided by commas or blanks: vqa-rad=FOLDER,
            slake=FOLDER, pathvqa=FOLDER; without a folder, from the hub.
        rescore: Folder of an evaluation whose answers are scored by today's rules; nothing is generated.
        name: What the policy is called in the results; policy when not named.
        blank: Show black images: the question-only baseline.
        candidates: JSON list of answers that the published open accuracy chooses from.
        verdicts: With rescore, what `stllava judge --answers FOLDER` said of its open answers: an expert's score.
        learned: What the policy learned from (conversations, questions, pairs, images): refused where it shares images.
        allow_overlap: Go on although test items were learned from; the result says so.
        allow_changed: With benchmarks, take files that differ from the published ones; the notes say so.
        existing: What to do with output that is there: resume it, replace it, or end in an error.
        shard: i/n: do the i-th of n equal parts of the work, in a folder of its own below `to`; `stllava gather` then makes the
            whole of them.
    """
    if rescore is not None:
        generating: dict[str, object] = {
            "--policy": policy,
            "--samples": samples,
            "--root": root,
            "--benchmarks": benchmarks or None,
            "--name": name,
            "--learned": learned or None,
            "--blank": blank or None,
            "--allow-overlap": allow_overlap or None,
            "--shard": shard,
        }
        refuse_ignored(generating, beside="--rescore")
        tell_result(
            score_again(options, predictions=rescore, to=to, candidates=candidates, verdicts=verdicts, existing=existing)
        )
        return
    refuse_ignored({"--verdicts": verdicts}, without="--rescore")
    if not benchmarks:
        refuse_ignored({"--allow-changed": allow_changed or None}, without="--benchmarks")
    if policy is not None and benchmarks:
        refuse_ignored(
            {"--samples": samples, "--root": root, "--candidates": candidates, "--shard": shard}, beside="--benchmarks"
        )
        for benchmark in named_sources(benchmarks):
            folder = to / "benchmarks" / benchmark.name
            made = import_benchmark(
                benchmark.name, benchmark.source, to=folder, splits=("test",), allow_changed=allow_changed, existing=existing
            )
            done = evaluate(
                options,
                policy=policy,
                samples=folder / f"{benchmark.name}-test.jsonl",
                root=made.root,
                to=to / benchmark.name,
                name=name or "policy",
                blank=blank,
                learned=learned,
                allow_overlap=allow_overlap,
                existing=existing,
            )
            show("", *made.notes)
            tell_result(done)
        return
    if policy is None or samples is None or root is None:
        raise StllavaError(
            "evaluate has no policy, samples or root",
            expected="--policy with --benchmarks, or with --samples and --root; or --rescore FOLDER",
            remedy="See stllava evaluate --help.",
        )
    tell_result(
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
        )
    )


class BenchmarkSource(NamedTuple):
    """A benchmark and where its files are."""

    name: str
    source: str


def named_sources(benchmarks: Sequence[str]) -> list[BenchmarkSource]:
    """The benchmarks that words such as `vqa-rad,slake=Slake1.0` name, with their folders; else where the hub has them."""
    found: list[BenchmarkSource] = []
    for word in (word for words in benchmarks for word in words.split(",") if word):
        name, _, source = word.partition("=")
        if name not in NAMES:
            raise StllavaError(
                f"no benchmark {name!r}",
                expected=f"some of {', '.join(NAMES)}",
                remedy="Questions of your own go in by --samples and --root.",
            )
        if not source and name not in ON_THE_HUB:
            raise StllavaError(
                f"no source for {name}", expected=f"{name}=FOLDER", remedy="Name the folder that its files lie in."
            )
        found.append(BenchmarkSource(name, source or ON_THE_HUB[name]))
    return found


def score_answers(
    predictions: Positional[Path],
    *,
    to: Path,
    name: str = "policy",
    benchmark: str | None = None,
    existing: Existing = "resume",
) -> None:
    """Score answers that were given elsewhere by every rule, with intervals; `compare` reads the result.

    Args:
        predictions: A log of lmms-eval (samples_*.jsonl), a table of VLMEvalKit, or any table or JSON with the columns
            question, answer and prediction, and image, choices and kind where you have them.
        to: Folder for predictions and scores.
        name: What the model is called in the results.
        benchmark: Name of the benchmark; the file's when not named.
        existing: What to do with output that is there: resume it, replace it, or end in an error.
    """
    tell_result(score_log(predictions, to=to, name=name, benchmark=benchmark, existing=existing))


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


def track(
    run: Positional[Path],
    *,
    tool: Literal["trackio", "wandb", "tensorboard", "mlflow"] = "trackio",
    to: str = "",
    project: str = "stllava",
    samples: bool = False,
    send_images: bool = False,
) -> None:
    """Send the figures of a run, finished or at work, to a tracker: counts, curves and scores; texts and images only if told.

    Args:
        run: The run directory.
        tool: The tracker.
        to: Where it is: empty, on this machine; a Space owner/name (trackio), an address (wandb, mlflow) or a folder.
        project: What runs are gathered under.
        samples: Show the first questions of each round too, with answers, verdicts and images (wandb and tensorboard alone).
        send_images: Let samples go to a tracker on another machine.
    """
    from stllava.recipe import RunOptions
    from stllava.tracking import Tracking, numbers_of, track_run

    options = RunOptions.model_validate(read_plan(run))
    name = f"{options.name}-{options.seed}"
    tracking = Tracking(tool, to=to, project=project, samples=samples, send_images=send_images)
    sent = track_run(run, tracking, name=name, config=numbers_of(options))
    show(f"{counted(len(sent), 'stage')} sent to {tool}: {', '.join(sent)}" if sent else "nothing new")


def report(run: Positional[Path]) -> None:
    """Write report.html and summary.json of a finished run again.

    Args:
        run: The run directory.
    """
    from stllava.report.page import write_report

    show(write_report(run))
