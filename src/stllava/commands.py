"""What each subcommand does: flags are read off the functions they call, so an option is defined once."""

import inspect
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro
from tyro.conf import AvoidSubcommands, Positional, arg

from stllava.config import RECIPES, EvaluateOptions, JudgeOptions, RunOptions, load_recipe
from stllava.errors import StllavaError
from stllava.progress import clock
from stllava.records import JudgeCheck, Manifest, Outcome, Score
from stllava.report.words import CHIEF, check_rows
from stllava.stages.answer import answer
from stllava.stages.ask import ask
from stllava.stages.dpo import dpo
from stllava.stages.evaluate import evaluate
from stllava.stages.evaluate import rescore as score_again
from stllava.stages.judge import check as check_judge
from stllava.stages.judge import judge, plan
from stllava.stages.pair import pair
from stllava.stages.sft import sft
from stllava.store import Existing

T = TypeVar("T")


def parse(function: Callable[..., T], words: list[str], *, name: str, options: object = inspect.Parameter.empty) -> T:
    """Call a function with what the flags say; its parameter `options` gives its fields as flags without a prefix."""
    signature = inspect.signature(function, eval_str=True)
    parameters = []
    for parameter in signature.parameters.values():
        if parameter.name == "options":
            bare: object = Annotated.__class_getitem__((parameter.annotation, arg(name="")))  # type: ignore[attr-defined]
            parameters.append(parameter.replace(annotation=bare, kind=inspect.Parameter.KEYWORD_ONLY, default=options))
        else:
            parameters.append(parameter)

    def call(**values: object) -> T:
        return function(**values)

    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    call.__doc__ = function.__doc__
    return tyro.cli(call, args=words, prog=f"stllava {name}", config=(AvoidSubcommands,))


def stage(function: Callable[..., Manifest]) -> Callable[[list[str]], None]:
    """The command of one stage, which prints what went in and came out."""

    def command(words: list[str]) -> None:
        tell(parse(function, words, name=function.__name__))

    return command


def tell(manifest: Manifest) -> None:
    """Print what went into a stage and came out."""
    dropped = ", ".join(f"{count} {cause}" for cause, count in manifest.dropped.items())
    print(f"{manifest.stage}: {manifest.counts_in} in, {manifest.counts_out} out in {clock(manifest.seconds)}")
    if dropped:
        print(f"  left out: {dropped}")
    for name, value in manifest.measures.items():
        print(f"  {name}: {value:.4g}")


def judge_command(words: list[str]) -> None:
    """`stllava judge`: the stage, what it would take, or how far its expert can be trusted."""

    def judge_or_look(
        options: JudgeOptions,
        *,
        answers: Path,
        to: Path,
        truth: Path | None = None,
        root: Path | None = None,
        seed: int = 0,
        existing: Existing = "resume",
        dry_run: bool = False,
        check: bool = False,
        sample: int = 100,
        votes: Path | None = None,
    ) -> None:
        """Let an expert judge the folder of answers.

        Args:
            options: Which expert, and how it is asked.
            answers: Folder of the answers.
            to: Folder for the judgments, or for the check.
            truth: JSONL of phantom truths or reference samples, for experts that know.
            root: The image root, for experts that are models.
            seed: Seed of the run.
            existing: What to do with output that is there: resume, replace, or error.
            dry_run: Print the first prompt, the number of requests and what they cost at most; ask nothing.
            check: Measure the expert on a sample instead: biases by order and length, agreement with itself and the truth.
            sample: Questions in that sample.
            votes: JSONL of people's votes, the truth of a check.
        """
        if dry_run:
            found = plan(options, answers=answers, truth=truth, root=root, to=to)
            print(found.prompt or "Nothing is to be asked.")
            print(f"\n{found.requests} requests, ${found.cost:.4f} at most")
        elif check:
            print(
                describe(
                    check_judge(
                        options, answers=answers, truth=truth, root=root, votes=votes, sample=sample, to=to, existing=existing
                    )
                )
            )
        else:
            tell(judge(options, answers=answers, truth=truth, root=root, to=to, seed=seed, existing=existing))

    parse(judge_or_look, words, name="judge")


def evaluate_command(words: list[str]) -> None:
    """`stllava evaluate`: the stage, or today's rules on the answers of an earlier evaluation."""

    def evaluate_or_rescore(
        options: EvaluateOptions,
        *,
        to: Path,
        policy: Path | None = None,
        samples: Path | None = None,
        root: Path | None = None,
        rescore: Path | None = None,
        name: str = "policy",
        blank: bool = False,
        candidates: Path | None = None,
        verdicts: Path | None = None,
        learned: tuple[Path, ...] = (),
        allow_overlap: bool = False,
        existing: Existing = "resume",
    ) -> None:
        """Score a policy on a benchmark, or score the answers of an earlier evaluation again.

        Args:
            options: How questions are put and answered.
            to: Folder for predictions and scores.
            policy: Folder of the policy.
            samples: JSONL of the benchmark's samples; its name is the benchmark's.
            root: The image root.
            rescore: Folder of an evaluation whose answers are scored by today's rules; nothing is generated.
            name: What the policy is called in the results.
            blank: Show black images: the question-only baseline.
            candidates: JSON list of answers that the published open accuracy chooses from.
            verdicts: With rescore, what `stllava judge --answers FOLDER` said of its open answers: an expert's score.
            learned: What the policy learned from (conversations, questions, pairs, images): refused where it shares images.
            allow_overlap: Go on although test items were learned from; the result says so.
            existing: What to do with output that is there: resume, replace, or error.
        """
        if rescore is not None:
            tell(score_again(options, predictions=rescore, to=to, candidates=candidates, verdicts=verdicts, existing=existing))
            return
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
                name=name,
                blank=blank,
                candidates=candidates,
                learned=learned,
                allow_overlap=allow_overlap,
                existing=existing,
            )
        )

    parse(evaluate_or_rescore, words, name="evaluate")


def describe(check: JudgeCheck) -> str:
    """A check as lines of text."""
    lines = [f"{check.expert}: {check.questions} questions, {check.requests} replies"]
    for label, rate in check_rows(check):
        shown = "–" if rate is None else f"{rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}] (n={rate.n})"
        lines.append(f"  {label:<58} {shown}")
    for flip in check.examples[:3]:
        lines += ["", f"  flipped: {flip.question!r} about {flip.image}: {flip.answers[0]!r} against {flip.answers[1]!r}"]
    return "\n".join(lines)


def run_command(words: list[str]) -> None:
    """`stllava run RECIPE [flags]`: the recipe's values are the flags' defaults."""
    if not words or words[0].startswith("-"):
        if not words or words[0] not in ("-h", "--help"):
            raise StllavaError("no recipe", expected="stllava run RECIPE.yaml", remedy=f"The recipes shipped are in {RECIPES}.")
        recipe, rest = RECIPES / "phantom.yaml", words
    else:
        recipe, rest = Path(words[0]), words[1:]

    def run_recipe(options: RunOptions, *, to: Path | None = None, existing: Existing = "resume") -> None:
        """Run the whole loop of a recipe; every key of the recipe is a flag.

        Args:
            options: What the recipe says.
            to: The run directory; runs/NAME-SEED when not given.
            existing: What to do with a run directory that is there: resume, replace, or error.
        """
        start(options, to=to, existing=existing)

    parse(run_recipe, rest, name="run RECIPE", options=load_recipe(recipe))


def demo_command(words: list[str]) -> None:
    """`stllava demo`: the phantom recipe, or its plain preset."""

    def demo(
        *,
        seed: int = 0,
        preset: Literal["anchored", "plain"] = "anchored",
        to: Path | None = None,
        existing: Existing = "resume",
    ) -> None:
        """Run the whole loop on synthetic phantoms with an expert that knows their truth.

        Args:
            seed: Changes data, model and sampling.
            preset: anchored, the default recipe; plain, the paper's.
            to: The run directory; runs/NAME-SEED when not given.
            existing: What to do with a run directory that is there: resume, replace, or error.
        """
        recipe = {"anchored": "phantom.yaml", "plain": "phantom-plain.yaml"}[preset]
        start(load_recipe(RECIPES / recipe, overrides={"seed": seed}), to=to, existing=existing)

    parse(demo, words, name="demo")


def start(options: RunOptions, *, to: Path | None, existing: Existing) -> None:
    """Run the loop and print its table."""
    from stllava.pipeline import run

    slug = re.sub(r"[^a-z0-9]+", "-", options.name.lower()).strip("-")
    folder = to if to is not None else Path("runs") / f"{slug}-{options.seed}"
    outcome = run(options, to=folder, existing=existing)
    print(table(outcome))
    print(f"\n{folder / 'report.html'}")


def table(outcome: Outcome) -> str:
    """Policies × chief metrics of every benchmark with 95 % intervals in percent, the gains over sft, and what was decided.

    The other metrics stand in the report.
    """
    lines = [outcome.name]
    for benchmark in dict.fromkeys(score.benchmark for score in outcome.scores):
        cells: dict[tuple[str, str], Score] = {
            (score.policy, score.metric): score
            for score in outcome.scores
            if score.benchmark == benchmark and score.metric in CHIEF
        }
        metrics = list(dict.fromkeys(metric for _, metric in cells))
        sizes = {metric: next(score.n for (_, name), score in cells.items() if name == metric) for metric in metrics}
        lines += ["", f"{benchmark:<16}" + "".join(f"{f'{metric} (n={sizes[metric]})':>30}" for metric in metrics)]
        for policy in dict.fromkeys(name for name, _ in cells):
            mark = " *" if policy == outcome.best else ""
            row = [cells.get((policy, metric)) for metric in metrics]
            lines.append(f"{policy + mark:<16}" + "".join(f"{_cell(score):>30}" for score in row))
    for gain in outcome.differences:
        if gain.policy == outcome.best and gain.metric in CHIEF:
            points = f"{100 * gain.value:+.1f} points [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
            lines += (
                ["", f"{gain.policy} against {gain.against} on {gain.benchmark}:"] if gain.metric == "closed_accuracy" else []
            )
            lines.append(f"  {gain.metric:<22} {points}")
    return "\n".join([*lines, "", *outcome.sentences, *outcome.notes])


def _cell(score: Score | None) -> str:
    return "" if score is None else f"{100 * score.value:.1f} [{100 * score.low:.1f}, {100 * score.high:.1f}]"


def report_command(words: list[str]) -> None:
    """`stllava report RUN`."""

    def write(run: Positional[Path]) -> None:
        """Write report.html and summary.json of a finished run again.

        Args:
            run: The run directory.
        """
        from stllava.report.page import report

        print(report(run))

    parse(write, words, name="report")


def chat_command(words: list[str]) -> None:
    """`stllava chat POLICY IMAGE`."""

    def chat(policy: Positional[Path], image: Positional[Path], *, question: str | None = None) -> None:
        """Talk with a policy about an image; an empty line ends.

        Args:
            policy: Folder of the policy.
            image: The image.
            question: Ask this one question and end.
        """
        from stllava.chat import talk

        talk(policy, image, question=question)

    parse(chat, words, name="chat")


def import_command(words: list[str]) -> None:
    """`stllava import benchmark NAME SOURCE --to FOLDER`."""
    if not words or words[0] not in ("benchmark", "-h", "--help"):
        raise StllavaError("import of what?", expected="stllava import benchmark NAME SOURCE", remedy="See --help.")
    from stllava.data.benchmarks import import_benchmark

    def benchmark(
        name: Positional[str],
        source: Positional[str],
        *,
        to: Path,
        language: Literal["en", "zh", "both"] = "en",
        splits: tuple[str, ...] | None = None,
        allow_changed: bool = False,
        existing: Existing = "resume",
    ) -> None:
        """Bring a published benchmark, or your own file, into the form that evaluate reads: one JSONL of samples a split.

        Args:
            name: vqa-rad, slake, pathvqa, pmc-vqa or omnimedvqa; any other name is that of your own file.
            source: Its folder, hub:owner/name where there is a network, or your own .jsonl or .csv file.
            to: Folder for the samples.
            language: Which of SLAKE's questions.
            splits: Which splits; all that are there when not named.
            allow_changed: Take files that differ from the published ones; the notes say so.
            existing: What to do with output that is there: resume, replace, or error.
        """
        made = import_benchmark(
            name, source, to=to, language=language, splits=splits, allow_changed=allow_changed, existing=existing
        )
        for split, rows in made.splits.items():
            kinds = Counter(row.kind for row in rows)
            images = len({row.image for row in rows})
            print(f"{split}: {len(rows)} questions ({kinds['open']} open, {kinds['closed']} closed) on {images} images")
        print(*made.notes, f"Image root: {made.root}", sep="\n")

    parse(benchmark, words[1:] if words[0] == "benchmark" else words, name="import benchmark")


def compare_command(words: list[str]) -> None:
    """`stllava compare RUN…`."""

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

        print(compare_runs(runs, to=to, against=against, policies=policies))

    parse(compare, words, name="compare")


RUNNERS: dict[str, Callable[[list[str]], None]] = {
    "demo": demo_command,
    "run": run_command,
    "report": report_command,
    "chat": chat_command,
    "import": import_command,
    "compare": compare_command,
    "judge": judge_command,
    "evaluate": evaluate_command,
    **{function.__name__: stage(function) for function in (sft, ask, answer, pair, dpo)},
}
