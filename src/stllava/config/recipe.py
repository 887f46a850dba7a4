"""The whole loop's options, and how a recipe becomes them: `base`, `${NAME}` and flags laid over it."""

import os
import re
from pathlib import Path

import yaml
from pydantic import JsonValue, NonNegativeInt, PositiveInt, model_validator

from stllava.config.base import Options, Share, validate
from stllava.config.generation import AnswerOptions, AskOptions, EvaluateOptions
from stllava.config.judging import JudgeOptions, PairOptions
from stllava.config.sources import ComposeOptions, Data, ImportedData, SmallModel, VqaRadData
from stllava.config.training import DpoOptions, SftOptions
from stllava.errors import StllavaError

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


class RunOptions(Options):
    """The whole loop: sft, then rounds of ask, answer, judge, pair, dpo and evaluate."""

    name: str
    """Name of the experiment, shown in the report."""
    seed: NonNegativeInt = 0
    """Seed of data, model and sampling."""
    data: Data
    """Where images, conversations and benchmarks come from."""
    model: str = "small"
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
    pair: PairOptions = PairOptions()
    """Preferences."""
    dpo: DpoOptions = DpoOptions()
    """Stage 2."""
    evaluate: EvaluateOptions = EvaluateOptions()
    """Benchmarks."""
    rounds: NonNegativeInt = 3
    """Most rounds of self-training; 0 ends with stage 1."""
    consolidate: SftOptions | None = None
    """After the rounds, train the best policy once more on the labels and on every answer that the expert found right."""
    keep_pairs: bool = False
    """Learn in every round from the pairs of the rounds before it too."""
    patience: PositiveInt = 1
    """Stop after so many rounds in a row that do not beat the best one on the validation split."""
    baselines: bool = True
    """Score the majority and question-only baselines too."""
    allow_overlap: bool = False
    """Go on although benchmark images are among the training images; the report says so."""
    max_bad: Share = 0.05
    """Largest share of unusable images or rows before the run stops; fewer are counted and left out."""

    @model_validator(mode="after")
    def _policies_speak_here(self) -> "RunOptions":
        for name in ("ask", "answer", "evaluate"):
            if getattr(self, name).endpoint.url:
                raise ValueError(f"no {name}.endpoint in a run: a server serves one policy, and a run makes several")
        return self

    @model_validator(mode="after")
    def _rounds_have_images(self) -> "RunOptions":
        if isinstance(self.data, VqaRadData | ImportedData) and self.data.labelled == "all" and self.rounds:
            raise ValueError("rounds 0 with data.labelled all: no image is left to ask about")
        return self


def load_recipe(path: Path, *, overrides: dict[str, JsonValue] | None = None) -> RunOptions:
    """Read a recipe, with `overrides` laid over it; a bare name that is no file here is one of `RECIPES`."""
    if path.name == str(path) and not path.exists() and (RECIPES / path).is_file():
        path = RECIPES / path
    return validate(RunOptions, _merge(_read(path), overrides or {}), source=str(path))


def load_judge(path: Path) -> JudgeOptions:
    """Read the options of one expert, such as a panel's member."""
    return validate(JudgeOptions, _read(path), source=str(path))


def _read(path: Path) -> dict[str, JsonValue]:
    if not path.is_file():
        raise StllavaError(f"no recipe {path}", expected="a YAML file", remedy=f"The recipes shipped are in {RECIPES}.")
    try:
        values = yaml.safe_load(re.sub(r"\$\{(\w+)\}", _environment, path.read_text(encoding="utf-8-sig")))
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise StllavaError(
            f"{path}, line {line}: not UTF-8", expected="a YAML mapping in UTF-8", remedy="Save the file as UTF-8."
        ) from None
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise StllavaError(f"{path} is not YAML: {problem}", expected="a YAML mapping", remedy="Mend that line.") from None
    if not isinstance(values, dict):
        raise StllavaError(
            f"{path} holds {type(values).__name__}", expected="a YAML mapping", remedy="See recipes/phantom.yaml."
        )
    base = values.pop("base", None)
    return _merge(_read(path.parent / str(base)), values) if base is not None else values


def _environment(match: re.Match[str]) -> str:
    value = os.environ.get(match[1])
    if not value:
        raise StllavaError(
            f"the recipe uses ${{{match[1]}}}, which is not set",
            expected="an environment variable",
            remedy=f"export {match[1]}=…",
        )
    return value


def _merge(base: dict[str, JsonValue], over: dict[str, JsonValue]) -> dict[str, JsonValue]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
