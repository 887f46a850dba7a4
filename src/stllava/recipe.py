"""The whole loop's options, and how a recipe becomes them.

A recipe is a YAML file of `RunOptions`; `base: other.yaml` starts from another recipe beside it, or from one that is shipped,
and `${NAME}` in a value takes an environment variable. Relative paths start at the recipe's folder, those of flags and of the
recipes shipped where the command is given. Unknown keys and keys that are given twice are refused. It stands above `data`,
each of whose sources has its options in its own file.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import Field, JsonValue, NonNegativeInt, PositiveInt, model_validator

from stllava.config.base import NamedModel, Options, Share, validate
from stllava.config.execution import ExecutionOptions
from stllava.config.experts import JudgeOptions, PairOptions
from stllava.config.generation import AnswerOptions, AskOptions, EvaluateOptions, ImageGainOptions
from stllava.config.starting_model import ComposeOptions, SmallModel
from stllava.config.training import DistillOptions, DpoOptions, SftOptions, TrainingPlaceOptions
from stllava.data.sources import Data
from stllava.errors import StllavaError

RECIPES = Path(__file__).resolve().parent / "recipes"


class RunOptions(Options):
    """The whole loop: sft, then rounds of ask, answer, judge, pair, dpo and evaluate."""

    renamed: ClassVar[Mapping[str, str]] = {"consolidate": "final_sft"}
    runtime_only = frozenset({"execution", "track", "track_to", "track_project", "track_samples", "track_send_images"})

    name: str
    """Name of the experiment, shown in the report."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of data, model and sampling."""
    data: Data
    """Where images, conversations and benchmarks come from."""
    model: NamedModel = "small"
    """small: build the small LLaVA; else the folder or name of a transformers image-text-to-text model."""
    small: SmallModel = SmallModel()
    """Shape of the small LLaVA."""
    compose: ComposeOptions | None = None
    """Compose the starting model of a vision tower and a language model, instead of `model`."""
    align: SftOptions | None = None
    """Before stage 1, learn the data's captions: with learning rates of 0 for language and vision, the projector alone."""
    sft: SftOptions = SftOptions()
    """Stage 1."""
    ask: AskOptions = AskOptions()
    """Questions."""
    answer: AnswerOptions = AnswerOptions()
    """Answers."""
    judge: JudgeOptions = JudgeOptions()
    """Verdicts."""
    image_gain: ImageGainOptions | None = None
    """Measure in every round how much likelier each judged answer is with its image than with a black one."""
    pair: PairOptions = PairOptions()
    """Preferences."""
    dpo: DpoOptions = DpoOptions()
    """Stage 2."""
    training: TrainingPlaceOptions = TrainingPlaceOptions()
    """Where sft and dpo train."""
    distill: DistillOptions = DistillOptions()
    """Making a judge of the expert's verdicts, with the options of sft but for those given here."""
    distill_after: NonNegativeInt = 0
    """Number of rounds that the expert judges; later ones are judged by a judge made of its verdicts, at no cost. 0: the
    expert judges all."""
    min_judge_kappa: Annotated[float, Field(ge=0, le=1)] = 0.4
    """Cohen's kappa that such a judge has with the expert, on images held out, to be believed; of a weaker one the rounds end,
    and what the expert itself found right is learned. 0 believes any."""
    evaluate: EvaluateOptions = EvaluateOptions()
    """Benchmarks."""
    rounds: NonNegativeInt = 3
    """Maximum number of rounds of self-training; 0 ends with stage 1."""
    final_sft: SftOptions | None = SftOptions()
    """After the rounds, train the best policy once more on the labels and on every answer that the expert found right, with
    the options of sft but for those given here; null leaves it out."""
    keep_pairs: bool = True
    """Learn in every round from the pairs of the rounds before it too."""
    patience: PositiveInt = 2
    """Stop after this many rounds in a row that do not beat the best one on the validation split."""
    baselines: bool = True
    """Score the majority and question-only baselines too."""
    allow_overlap: bool = False
    """Continue although benchmark images are among the training images; the report says so."""
    execution: ExecutionOptions = ExecutionOptions()
    """Who works on the chunks of the stages: this process, several of this machine, or a Ray cluster (docs/scaling.md)."""
    track: Literal["none", "trackio", "wandb", "tensorboard", "mlflow"] = Field(
        default="none", exclude_if=lambda tool: tool == "none"
    )
    """Send figures of the run to this tracker after every round: counts, curves and scores; a text or an image only with
    track_samples."""
    track_to: str = Field(default="", exclude_if=lambda to: not to)
    """Where the tracker is: empty, on this machine; a Space owner/name (trackio), an address (wandb, mlflow) or a folder
    (tensorboard)."""
    track_project: str = Field(default="stllava", exclude_if=lambda name: name == "stllava")
    """What runs are gathered under in the tracker."""
    track_samples: bool = Field(default=False, exclude_if=lambda shown: not shown)
    """Show wandb or tensorboard the first questions of each round too, with answers, verdicts and images; on another machine
    only with track_send_images."""
    track_send_images: bool = Field(default=False, exclude_if=lambda sent: not sent)
    """Let track_samples send images and texts to a tracker on another machine."""
    max_bad: Share = 0.05
    """The run stops when a larger share of images or rows than this is unusable; fewer are counted and left out."""

    @model_validator(mode="before")
    @classmethod
    def _later_trainings_are_like_sft(cls, values: Any) -> Any:
        """What the last training and that of a judge are not given they take from sft."""
        if not isinstance(values, dict):
            return values
        sft = values.get("sft", {})
        if isinstance(sft, SftOptions):
            sft = sft.model_dump(exclude_unset=True)
        if not isinstance(sft, dict):
            return values
        like = {"final_sft": sft, "distill": {key: value for key, value in sft.items() if key != "self_question_ratio"}}
        given = {name: values.get(name, {}) for name in like}
        return values | {name: _merge(like[name], own) for name, own in given.items() if isinstance(own, dict)}

    @model_validator(mode="after")
    def _policies_speak_here(self) -> "RunOptions":
        for name in ("ask", "answer", "evaluate"):
            if getattr(self, name).endpoint.url:
                raise ValueError(
                    f"no {name}.endpoint.url in a run, but serve: a server serves one policy, and a run makes several"
                )
            if getattr(self, name).endpoint.serve and self.execution.workers > 1:
                raise ValueError(f"execution.workers 1 with {name}.endpoint.serve, whose replicas share the work out")
        return self

    @model_validator(mode="after")
    def _budget_is_for_answers(self) -> "RunOptions":
        if self.judge.is_limited and self.ask.num_descriptions > 1:
            raise ValueError("ask.num_descriptions 1 with judge.budget: descriptions that are judged are not counted in it")
        return self

    @model_validator(mode="after")
    def _a_judge_is_made_of_anothers_verdicts(self) -> "RunOptions":
        if self.distill_after and self.judge.expert == "distilled":
            raise ValueError("distill_after 0 with judge.expert distilled: it is such a judge already")
        judges = self.judge.expert == "distilled" or 0 < self.distill_after < self.rounds
        if judges and self.pair.min_chosen_score == 1:
            raise ValueError("pair.min_chosen_score below 1 with a distilled judge: its scores are probabilities, and never 1")
        if judges and self.image_gain is not None and self.image_gain.min_score == 1:
            raise ValueError("image_gain.min_score below 1 with a distilled judge: its scores are probabilities, and never 1")
        return self

    @model_validator(mode="after")
    def _confidence_knows_errors(self) -> "RunOptions":
        if self.pair.min_confidence and not (self.pair.expert_error or self.judge.audit):
            raise ValueError("pair.min_confidence with judge.audit or pair.expert_error: how often the expert errs")
        if self.pair.min_confidence and self.judge.expert == "itself":
            raise ValueError(
                "pair.min_confidence 0 with the expert itself: judge.itself.min_precision says how sure votes must be"
            )
        if self.judge.smooth_labels and not self.dpo.can_smooth:
            raise ValueError(f"judge.smooth_labels false with dpo.loss {self.dpo.loss}, which takes no label smoothing")
        if self.judge.smooth_labels and self.dpo.label_smoothing:
            raise ValueError("dpo.label_smoothing 0 with judge.smooth_labels, which sets it to what the audit finds")
        return self

    @model_validator(mode="after")
    def _gains_are_measured(self) -> "RunOptions":
        if self.pair.gain_weight and self.image_gain is None:
            raise ValueError("image_gain: {} with pair.gain_weight, which weighs pairs by what it measures")
        return self

    @model_validator(mode="after")
    def _groups_are_learned_as_groups(self) -> "RunOptions":
        if (self.pair.pairs == "group") != (self.dpo.loss == "group") and self.rounds:
            raise ValueError("pair.pairs group and dpo.loss group together: one weighs what the other learns")
        return self

    @model_validator(mode="after")
    def _rounds_have_images(self) -> "RunOptions":
        if self.data.all_labelled and self.rounds:
            raise ValueError("rounds 0 with data.labelled all: no image is left to ask about")
        return self


def load_recipe(path: Path, *, overrides: dict[str, JsonValue] | None = None) -> RunOptions:
    """Read a recipe, with `overrides` laid over it; a bare name that is no file here is one of `RECIPES`.

    Its relative paths start at its own folder, so that they mean the same wherever the command is given; those of the
    recipes shipped start where the command is given.

    Args:
        path: The YAML file, or the bare name of a recipe that is shipped.
        overrides: Values laid over it, nested as in the file.

    Raises:
        StllavaError: Where the file is no recipe: unknown keys are refused by name, repeated ones by their lines.
    """
    path = _found(path, beside=Path())
    return validate(RunOptions, _merge(_read(path), overrides or {}), source=str(path), folder=_folder(path))


def load_judge(path: Path) -> JudgeOptions:
    """Read the options of one expert, such as a panel's member; relative paths start at the file's folder."""
    return validate(JudgeOptions, _read(path), source=str(path), folder=_folder(path))


def _found(name: Path, *, beside: Path) -> Path:
    """The recipe of a name: a path from a folder or, of a bare name that is no file there, a recipe that is shipped."""
    shipped = RECIPES / name
    return shipped if name.name == str(name) and not (beside / name).exists() and shipped.is_file() else beside / name


def _folder(path: Path) -> Path:
    """Where a recipe's relative paths start."""
    return Path.cwd() if path.resolve().parent == RECIPES else path.absolute().parent


def _read(path: Path, *, above: tuple[Path, ...] = ()) -> dict[str, JsonValue]:
    """The values of a YAML file, laid over those of its base; `above` are the files that stand on it."""
    if path.is_dir():
        raise StllavaError(f"{path} is a folder", expected="a YAML file", remedy="Name the recipe in it.")
    if not path.is_file():
        where = "" if path.is_absolute() else f" (looked for in {Path.cwd()})"
        raise StllavaError(f"no recipe {path}{where}", expected="a YAML file", remedy=f"The recipes shipped are in {RECIPES}.")
    if path.resolve() in above:
        raise StllavaError(f"{path} stands on itself", expected="a base of its own", remedy="Remove that base.")
    try:
        text = _VARIABLE.sub(rf"{_OPEN}\1{_CLOSE}", path.read_text(encoding="utf-8-sig"))
        _refuse_repeated(path, yaml.compose(text, yaml.SafeLoader), set())
        values = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise StllavaError(
            f"{path}, line {line}: not UTF-8", expected="a YAML mapping in UTF-8", remedy="Save the file as UTF-8."
        ) from None
    except yaml.YAMLError as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        where = f", line {mark.line + 1}" if mark is not None else ""
        problem = _plain(str(error.problem if isinstance(error, yaml.MarkedYAMLError) else error))
        raise StllavaError(
            f"{path}{where} is not YAML: {problem}", expected="a YAML mapping", remedy="Fix that line."
        ) from None
    if not isinstance(values, dict):
        raise StllavaError(
            f"{path} holds {type(values).__name__}", expected="a YAML mapping", remedy="See recipes/phantom.yaml."
        )
    values = {name: _expanded(value, source=str(path), key=str(name)) for name, value in values.items()}
    base = values.pop("base", None)
    if base is None:
        return values
    return _merge(_read(_found(Path(str(base)), beside=path.parent), above=(*above, path.resolve())), values)


_VARIABLE = re.compile(r"\$\{(\w+)\}")
_OPEN, _CLOSE = "\ue000", "\ue001"
"""Stand for the braces of a variable while YAML is read, which has a use for braces of its own."""
_MARKED = re.compile(rf"{_OPEN}(\w+){_CLOSE}")


def _refuse_repeated(path: Path, node: yaml.Node | None, seen: set[int]) -> None:
    """Refuse a key that is given twice in one mapping: YAML would take the last and drop the others in silence."""
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    lines: dict[tuple[str, str], int] = {}
    for entry in node.value if isinstance(node, yaml.MappingNode | yaml.SequenceNode) else ():
        key, *inner = entry if isinstance(entry, tuple) else (None, entry)
        if isinstance(key, yaml.ScalarNode):
            name, line = (key.tag, str(key.value)), key.start_mark.line + 1
            if name in lines:
                raise StllavaError(
                    f"{path}, line {line}: the key {_plain(key.value)!r} is given twice, in line {lines[name]} already",
                    expected="each key once",
                    remedy="Put what both say into one of them.",
                )
            lines[name] = line
        for part in inner:
            _refuse_repeated(path, part, seen)


def _expanded(value: JsonValue, *, source: str, key: str) -> JsonValue:
    """A value of a recipe with its `${NAME}` replaced, where it stands in a text: in comments it means nothing."""
    if isinstance(value, dict):
        return {name: _expanded(inner, source=source, key=f"{key}.{name}") for name, inner in value.items()}
    if isinstance(value, list):
        return [_expanded(inner, source=source, key=key) for inner in value]
    if not isinstance(value, str):
        return value

    def environment(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if not found:
            raise StllavaError(
                f"{source}: {key} uses ${{{match[1]}}}, which is not set",
                expected="an environment variable",
                remedy=f"export {match[1]}=…",
            )
        return found

    return _MARKED.sub(environment, value)


def _plain(text: str) -> str:
    """Words about a recipe with its variables as they were written."""
    return " ".join(_MARKED.sub(r"${\1}", text).split())


def _merge(base: dict[str, JsonValue], over: dict[str, JsonValue]) -> dict[str, JsonValue]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
