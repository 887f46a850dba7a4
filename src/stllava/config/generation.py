"""Options of the stages in which the policy speaks: ask, answer, evaluate."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Annotated, ClassVar, Literal

from pydantic import Field, JsonValue, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from tyro.conf import arg

from stllava.config.base import NamedPath, Options, Rate, Share

QUESTION = "{question}"
DESCRIBE = "Describe the image."
RequestFields = Annotated[dict[str, JsonValue], arg(constructor=dict[str, bool | int | float | str | None])]
"""Fields of a request by name: any JSON in a recipe, plain values as flags, where 4000 is a number and low a word."""


class SamplingOptions(Options):
    """How text is sampled."""

    temperature: Rate = 1.2
    """Softmax temperature; 0 is greedy."""
    top_k: NonNegativeInt = 100
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Keep the smallest set of tokens whose probability reaches p."""
    max_new_tokens: PositiveInt = 300
    """Longest completion, in tokens."""


class ServerOptions(Options):
    """An OpenAI-compatible server and how it is spoken to."""

    runtime_only = frozenset({"concurrency", "timeout", "retries", "send_images", "key_variable", "header_variables"})

    url: str | tuple[str, ...] = ""
    """Base address, such as http://localhost:8000/v1; or those of several servers of the same model, of which the least busy
    is asked and one that fails is left out until it answers again."""
    model: str = ""
    """Name under which the server knows the model."""
    concurrency: PositiveInt = 8
    """Maximum number of requests at the same time."""
    timeout: PositiveFloat = 120.0
    """Seconds that a request may take, to the last byte of its reply, before it is cancelled and tried again."""
    retries: NonNegativeInt = 4
    """How often a request is tried again when the server is busy, unreachable or failing."""
    send_images: bool = False
    """Your word that images may leave this machine for that address: re-encoded pixels without metadata."""
    key_variable: str = ""
    """Name of the environment variable that holds the server's API key; empty when it needs none."""
    header_variables: dict[str, str] = Field(default={})
    """Headers to send, each with the environment variable that holds its value: {api-key: AZURE_KEY} for Azure."""
    extra: RequestFields = Field(default={})
    """Fields to add to every request, such as reasoning_effort; a field of None is left out of it, max_tokens say."""

    @property
    def urls(self) -> tuple[str, ...]:
        """The base address of every server."""
        return (self.url,) if isinstance(self.url, str) else self.url


STARTED_WITH = ("python", "replicas", "arguments", "start_seconds", "restart_every")
"""Options that say how servers are started here."""


class ServeOptions(ServerOptions):
    """A server that is there, or that stllava starts here (docs/serving.md)."""

    runtime_only = ServerOptions.runtime_only | {"python", "replicas", "start_seconds"}
    part: ClassVar[str] = "endpoint"
    """What these options are called in a recipe."""

    serve: Literal["", "vllm"] = ""
    """vllm: start vLLM servers of the model here, look after them and end them, instead of url; those of a policy are also
    checked against it."""
    python: NamedPath | None = None
    """With serve: the Python of the environment in which vLLM is installed, such as /opt/vllm/bin/python; unset, this one,
    which has it with `stllava[vllm]`."""
    replicas: PositiveInt = 1
    """With serve: number of servers, each with a GPU of its own where there are any."""
    arguments: RequestFields = Field(default={})
    """With serve: flags of vLLM without their dashes, such as {max-model-len: 4096}; True is a flag that stands alone."""
    start_seconds: PositiveFloat = 600.0
    """With serve: seconds that a server may take until it is ready."""

    @model_validator(mode="after")
    def _only_what_is_started_is_configured(self) -> "ServeOptions":
        if self.url and not self.serve:
            fields = {name: type(self).model_fields.get(name) for name in STARTED_WITH}
            unused = [
                name for name, field in fields.items() if field is not None and getattr(self, name) != field.get_default()
            ]
            if unused:
                raise ValueError(f"no {', '.join(unused)} with url, but with serve: they are about servers that stllava starts")
        return self

    @model_validator(mode="after")
    def _served_here_or_there(self) -> "ServeOptions":
        if self.serve and self.url:
            raise ValueError("serve or url: servers are started here, or spoken to where they are")
        if self.serve and self.python is None and find_spec("vllm") is None:
            raise ValueError(
                "python with serve: the Python of the environment in which vLLM is installed; or pip install 'stllava[vllm]'"
            )
        return self


class EndpointOptions(ServeOptions):
    """A server that speaks for the policy and must serve its weights (docs/serving.md). Without url the policy speaks here."""

    runtime_only = ServeOptions.runtime_only | {"restart_every"}

    model: str = "policy"
    """Name under which the server knows the policy."""
    restart_every: NonNegativeInt = 0
    """With serve: number of batches of prompts after which the servers are started anew, which gives back memory; 0: never."""

    @property
    def is_used(self) -> bool:
        """Whether a server speaks for the policy."""
        return bool(self.url or self.serve)


class GenerationOptions(Options):
    """What ask, answer and evaluate share."""

    renamed: ClassVar[Mapping[str, str]] = {"tokens": "max_cache_tokens"}

    runtime_only = frozenset({"max_bad"})

    max_cache_tokens: PositiveInt = 32768
    """Maximum number of tokens in the cache at once; fewer need less memory and more time."""
    max_bad: Share = 0.05
    """Largest share of items that cannot be used, such as those with a missing image, before the stage stops; a dozen are
    always let pass while any other is left."""
    endpoint: EndpointOptions = EndpointOptions()
    """A server that generates text for the policy, in a stage that is run on its own."""


class AskOptions(GenerationOptions):
    """The policy describes each image, then asks about it as the virtual user."""

    renamed: ClassVar[Mapping[str, str]] = {
        **GenerationOptions.renamed,
        "describe": "description_prompt",
        "describe_also": "extra_description_prompts",
        "description": "description_sampling",
        "descriptions": "num_descriptions",
        "borrow": "borrow_questions",
    }

    questions: PositiveInt = 5
    """Number of questions per image."""
    borrow_questions: NonNegativeInt = 10
    """Number of questions that an image borrows from the images most like it in description and look."""
    description_prompt: str = DESCRIBE
    """What the user says to get the description."""
    extra_description_prompts: tuple[str, ...] = ()
    """Other words for the same request: the expert judges what each of them brings, and the policy learns them all."""
    description_sampling: SamplingOptions = SamplingOptions(temperature=0.0)
    """How the description is sampled."""
    num_descriptions: PositiveInt = 1
    """Number of descriptions, of which the expert chooses the one that is asked about; the policy learns from that choice."""
    sampling: SamplingOptions = SamplingOptions(top_k=300)
    """How questions are sampled."""
    chunk: PositiveInt = 24
    """Number of images decoded together and written at once; each is computed once if they fit into half the cache."""


class AnswerOptions(GenerationOptions):
    """The policy answers each question several times, alone with the image."""

    renamed: ClassVar[Mapping[str, str]] = {**GenerationOptions.renamed, "k": "num_answers"}

    num_answers: Annotated[int, Field(ge=2)] = 8
    """Number of answers per question."""
    sampling: SamplingOptions = SamplingOptions(temperature=1.5, max_new_tokens=1024)
    """How answers are sampled."""
    chunk: PositiveInt = 128
    """Number of questions decoded together and written at once."""


class EvaluateOptions(GenerationOptions):
    """Greedy answers on benchmarks, scored."""

    sampling: SamplingOptions = SamplingOptions(temperature=0.0, max_new_tokens=64)
    """How answers are sampled: greedy unless you have a reason."""
    prompt: str = QUESTION
    """The words in which every question is asked; {question} stands for it and the options it may have."""
    prompts: dict[str, str] = Field(default={})
    """The same for single benchmarks, by name."""
    chunk: PositiveInt = 128
    """Number of samples decoded together and written at once."""

    @model_validator(mode="after")
    def _prompts_hold_the_question(self) -> "EvaluateOptions":
        for text in (self.prompt, *self.prompts.values()):
            if text.count(QUESTION) != 1:
                raise ValueError(f"prompts with {QUESTION} once, not {text!r}")
        return self

    def template(self, benchmark: str) -> str:
        """The words in which a benchmark's questions are asked."""
        return self.prompts.get(benchmark, self.prompt)


class ImageGainOptions(Options):
    """How much likelier each judged answer is with its image than with a black one."""

    runtime_only = frozenset({"max_tokens_per_forward"})

    min_ratio: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 2.0
    """An answer reads the image where it is at least this many times as likely with it; else it could be guessed."""
    min_score: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Score from which an answer counts as right: below 1 for an expert whose scores are marks or probabilities."""
    max_tokens_per_forward: PositiveInt = 16384
    """Maximum tokens per forward pass, padding included."""
