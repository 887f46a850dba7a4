"""Every option of a stage, defined once: these classes are the YAML schema, the flags, `--help` and the Python API.

Those of a data source stand in its own file below `data.sources`, those of the whole loop in `stllava.recipe`.
"""

from stllava.config.base import Options, Rate, Share, validate
from stllava.config.dataset import DatasetOptions
from stllava.config.experts import (
    ChatOptions,
    DistilledOptions,
    ItselfOptions,
    JudgeOptions,
    LocalExpertOptions,
    PairOptions,
    ScriptedOptions,
    SimulatedOptions,
)
from stllava.config.generation import (
    DESCRIBE,
    QUESTION,
    AnswerOptions,
    AskOptions,
    EndpointOptions,
    EvaluateOptions,
    GenerationOptions,
    ImageGainOptions,
    SamplingOptions,
    ServeOptions,
    ServerOptions,
)
from stllava.config.intake import IntakeOptions
from stllava.config.readers import ReviewOptions
from stllava.config.starting_model import ComposeOptions, SmallModel
from stllava.config.training import (
    AdapterOptions,
    DistillOptions,
    DpoOptions,
    GroupRates,
    LaunchOptions,
    LearningLoad,
    LoraOptions,
    SftOptions,
    TrainingOptions,
    TrainingPlaceOptions,
)

__all__ = [
    "DESCRIBE",
    "QUESTION",
    "AdapterOptions",
    "AnswerOptions",
    "AskOptions",
    "ChatOptions",
    "ComposeOptions",
    "DatasetOptions",
    "DistillOptions",
    "DistilledOptions",
    "DpoOptions",
    "EndpointOptions",
    "EvaluateOptions",
    "GenerationOptions",
    "GroupRates",
    "ImageGainOptions",
    "IntakeOptions",
    "ItselfOptions",
    "JudgeOptions",
    "LaunchOptions",
    "LearningLoad",
    "LocalExpertOptions",
    "LoraOptions",
    "Options",
    "PairOptions",
    "Rate",
    "ReviewOptions",
    "SamplingOptions",
    "ScriptedOptions",
    "ServeOptions",
    "ServerOptions",
    "SftOptions",
    "Share",
    "SimulatedOptions",
    "SmallModel",
    "TrainingOptions",
    "TrainingPlaceOptions",
    "validate",
]
