"""Every option, defined once: these classes are the YAML schema, the flags, `--help` and the Python API.

A recipe is a YAML file of `RunOptions`; `base: other.yaml` starts from another recipe beside it, and `${NAME}` in a value
takes an environment variable. Relative paths start at the recipe's folder, those of flags and of the recipes shipped where
the command is given. Unknown keys and keys that are given twice are refused.
"""

from stllava.config.base import Options, Rate, Share, validate
from stllava.config.experts import ChatOptions, JudgeOptions, LocalExpertOptions, PairOptions, ScriptedOptions, SimulatedOptions
from stllava.config.generation import (
    DESCRIBE,
    QUESTION,
    AnswerOptions,
    AskOptions,
    EndpointOptions,
    EvaluateOptions,
    GenerationOptions,
    SamplingOptions,
    ServerOptions,
)
from stllava.config.intake import IntakeOptions
from stllava.config.recipe import RECIPES, RunOptions, load_judge, load_recipe
from stllava.config.sources import ComposeOptions, Data, FilesData, ImportedData, PhantomData, SmallModel, VqaRadData
from stllava.config.training import AdapterOptions, DpoOptions, GroupRates, LoraOptions, SftOptions, TrainingOptions

__all__ = [
    "DESCRIBE",
    "QUESTION",
    "RECIPES",
    "AdapterOptions",
    "AnswerOptions",
    "AskOptions",
    "ChatOptions",
    "ComposeOptions",
    "Data",
    "DpoOptions",
    "EndpointOptions",
    "EvaluateOptions",
    "FilesData",
    "GenerationOptions",
    "GroupRates",
    "ImportedData",
    "IntakeOptions",
    "JudgeOptions",
    "LocalExpertOptions",
    "LoraOptions",
    "Options",
    "PairOptions",
    "PhantomData",
    "Rate",
    "RunOptions",
    "SamplingOptions",
    "ScriptedOptions",
    "ServerOptions",
    "SftOptions",
    "Share",
    "SimulatedOptions",
    "SmallModel",
    "TrainingOptions",
    "VqaRadData",
    "load_judge",
    "load_recipe",
    "validate",
]
