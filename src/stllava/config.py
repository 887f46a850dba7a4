"""Every option, defined once: these classes are the YAML schema, the flags, `--help` and the Python API.

A recipe is a YAML file of `RunOptions`; `base: other.yaml` starts from another recipe beside it, and `${NAME}` takes
an environment variable. Unknown keys are refused.
"""

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from stllava.errors import StllavaError

Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0)]
O = TypeVar("O", bound="Options")  # noqa: E741
QUESTION = "{question}"
RECIPES = Path(__file__).resolve().parent / "recipes"


class Options(BaseModel):
    """Base of all options: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    free: ClassVar[frozenset[str]] = frozenset()
    """Options that change how the work is done but not what comes of it: they may differ when work is resumed."""

    def binding(self) -> dict[str, JsonValue]:
        """All options but the free ones: what unfinished work must have been started with to be resumed."""
        values: dict[str, JsonValue] = self.model_dump(mode="json", exclude=set(self.free))
        nested = {name: getattr(self, name) for name in values}
        return values | {name: value.binding() for name, value in nested.items() if isinstance(value, Options)}


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


class GroupRates(Options):
    """Peak learning rate of each part of the model; 0 freezes that part."""

    language: Rate = 2e-4
    """Language model (its LoRA, where one is used)."""
    projector: Rate = 2e-5
    """Projector from image features to the language model."""
    vision: Rate = 5e-5
    """Vision tower (its LoRA, where one is used)."""


class LoraOptions(Options):
    """Low-rank adapters; they are merged into the weights when the stage ends."""

    language_rank: NonNegativeInt = 0
    """Rank on the language model's linear layers; 0 trains them in full."""
    vision_rank: NonNegativeInt = 0
    """Rank on the vision tower's linear layers; 0 trains them in full."""
    alpha_per_rank: PositiveFloat = 2.0
    """LoRA's alpha divided by the rank."""
    dropout: Share = 0.05
    """Dropout before the adapters."""


class TrainingOptions(Options):
    """What sft and dpo share."""

    epochs: PositiveFloat = 1.0
    """Passes over the data."""
    batch_size: PositiveInt = 8
    """Images an optimizer step: all that is learned about one image is one sequence."""
    tokens: PositiveInt = 16384
    """Most tokens a forward, padding included: a step takes as many forwards as its images need."""
    pack: bool = True
    """Learn all about an image in one sequence where the model allows it; else every answer is a sequence."""
    learning_rate: GroupRates = GroupRates()
    """Peak learning rates by part."""
    lora: LoraOptions = LoraOptions()
    """Low-rank adapters."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls."""
    warmup: Share = 0.03
    """Share of the steps in which the learning rate rises."""
    weight_decay: Rate = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: Rate = 1.0
    """Gradients are clipped to this norm; 0 does not clip."""
    save_steps: NonNegativeInt = 200
    """Optimizer steps between checkpoints, from which a killed stage goes on; 0 keeps none."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 where the device has it natively, else float32."""


class SftOptions(TrainingOptions):
    """Instruction tuning with self-questioning (stage 1)."""

    sq_r: Share = 0.5
    """Probability that a user turn but the first becomes the virtual user's, whose question is learned."""


class DpoOptions(TrainingOptions):
    """Learning from preferences (stage 2): DPO + NLL on the chosen answer + replay of stage-1 conversations."""

    loss: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"
    """sigmoid: DPO; ipo: squared distance to a margin of 1 / (2 beta); hinge: SLiC-HF."""
    beta: PositiveFloat = 0.1
    """Strength of the pull to the reference policy."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Probability that the expert's preference is wrong; not with ipo."""
    length_normalised: bool = False
    """Compare log-probabilities per token instead of per answer; true gives TRL's ipo and sigmoid_norm."""
    nll: Rate = 1.0
    """Weight of the chosen answer's negative log-likelihood per token; 0 with replay 0 is the paper's plain recipe."""
    replay: Rate = 1.0
    """Weight of the replayed stage-1 loss per token; 0 replays nothing."""
    replay_images: NonNegativeInt = 4
    """Images with stage-1 conversations replayed in each forward."""
    sq_r: Share = 0.5
    """Self-questioning in the replayed conversations."""
    collapse: Rate = 3.0
    """Stop when chosen answers have become less likely than under the reference by so many nats a token; 0 never stops."""

    @model_validator(mode="after")
    def _smoothing_fits_the_loss(self) -> "DpoOptions":
        if self.loss == "ipo" and self.label_smoothing > 0:
            raise ValueError("label_smoothing 0 with the loss ipo: raise beta instead")
        return self


class ServerOptions(Options):
    """An OpenAI-compatible server and how it is spoken to."""

    free = frozenset({"concurrency", "timeout", "retries", "send_images", "key_variable"})

    url: str = ""
    """Base address, such as http://localhost:8000/v1."""
    model: str = ""
    """Name under which the server knows the model."""
    concurrency: PositiveInt = 8
    """Most requests at a time."""
    timeout: PositiveFloat = 120.0
    """Seconds without a byte from the server after which a request is tried again."""
    retries: NonNegativeInt = 4
    """Times a request is tried again when the server is busy, unreachable or failing."""
    send_images: bool = False
    """Your word that images may leave this machine for that address: re-encoded pixels without metadata."""
    key_variable: str = ""
    """Name of the environment variable that holds the server's API key; empty when it needs none."""


class EndpointOptions(ServerOptions):
    """A server that speaks for the policy and must serve its weights (docs/serving.md). Without url the policy speaks here."""

    model: str = "policy"
    """Name under which the server knows the policy."""


class GenerationOptions(Options):
    """What ask, answer and evaluate share."""

    tokens: PositiveInt = 32768
    """Most tokens held in the cache at once: fewer need less memory and more time."""
    endpoint: EndpointOptions = EndpointOptions()
    """A server that speaks for the policy, for a stage run by itself."""


class AskOptions(GenerationOptions):
    """The policy describes each image, then asks about it as the virtual user."""

    questions: PositiveInt = 5
    """Questions an image."""
    borrow: NonNegativeInt = 0
    """Questions that an image borrows, beside its own, from those of its chunk whose descriptions are most alike."""
    describe: str = "Describe the image."
    """What the user says to get the description."""
    describe_also: tuple[str, ...] = ()
    """Other words for the same request: the expert judges what each of them brings, and the policy learns them all."""
    description: SamplingOptions = SamplingOptions(temperature=0.0)
    """How the description is sampled."""
    descriptions: PositiveInt = 1
    """Of so many descriptions the expert chooses the one that is asked about, and the policy learns from its choice."""
    sampling: SamplingOptions = SamplingOptions(top_k=300)
    """How questions are sampled."""
    chunk: PositiveInt = 24
    """Images decoded together and written at once; while they fit into half the tokens, each is computed once."""


class AnswerOptions(GenerationOptions):
    """The policy answers each question K times, alone with the image."""

    k: Annotated[int, Field(ge=2)] = 4
    """Answers a question."""
    sampling: SamplingOptions = SamplingOptions(temperature=1.5, max_new_tokens=1024)
    """How answers are sampled."""
    chunk: PositiveInt = 128
    """Questions decoded together and written at once."""


class ChatOptions(ServerOptions):
    """A vision-language model behind an OpenAI-compatible server, as an expert (docs/expert.md)."""

    free = ServerOptions.free | {
        "requests_per_minute",
        "tokens_per_minute",
        "input_price",
        "output_price",
        "image_tokens",
        "max_cost",
        "max_requests",
        "batch",
        "poll",
    }

    temperature: Rate = 0.0
    """Softmax temperature of its replies; 0 is greedy."""
    max_tokens: PositiveInt = 1024
    """Longest reply, in tokens."""
    structured: bool = True
    """Ask for JSON by schema; set false where the server refuses `response_format`."""
    extra: dict[str, str | int | float | bool | None] = {}
    """Fields to add to every request, such as reasoning_effort; a field of None is left out of it, max_tokens say."""
    max_side: Annotated[int, Field(ge=32)] = 1024
    """Larger images are scaled down to so many pixels on their longer side before they are sent."""
    requests_per_minute: NonNegativeInt = 0
    """Most requests in any minute; 0 sets no limit."""
    tokens_per_minute: NonNegativeInt = 0
    """Most tokens, prompts and replies, in any minute; 0 sets no limit."""
    input_price: Rate = 0.0
    """US dollars a million tokens of prompt."""
    output_price: Rate = 0.0
    """US dollars a million tokens of reply."""
    image_tokens: NonNegativeInt = 1000
    """Tokens the server counts for an image: for estimates, until its replies say."""
    max_cost: Rate = 0.0
    """US dollars after which the stage stops, to be resumed with more; 0 sets no limit."""
    max_requests: NonNegativeInt = 0
    """Requests, repeated ones included, after which the stage stops, to be resumed with more; 0 sets no limit."""
    batch: bool = False
    """Send the requests through the provider's batch API: cheaper, and answered within a day."""
    poll: PositiveFloat = 30.0
    """Seconds between two questions whether a batch is done."""


class LocalExpertOptions(Options):
    """A vision-language model in this process, as an expert."""

    model: str = ""
    """Folder or name of a transformers image-text-to-text model."""
    max_new_tokens: PositiveInt = 512
    """Longest reply, in tokens."""
    tokens: PositiveInt = 32768
    """Most tokens held in the cache at once: fewer need less memory and more time."""


class ScriptedOptions(Options):
    """An expert that follows a script: for tests, examples and trying out a recipe without a model."""

    prefer: tuple[str, ...] = ("yes",)
    """Words it likes: the more of them an answer has, the better it is."""


class SimulatedOptions(Options):
    """The oracle made worse on purpose, to learn what an expert's quality is worth; judges pair by pair."""

    wrong: Share = 0.0
    """Share of comparisons in which the worse answer wins, whatever the order."""
    order_bias: Share = 0.0
    """Share of replies that prefer the answer shown first, whatever it says."""


class JudgeOptions(Options):
    """An expert scores the answers."""

    free = frozenset({"max_failed", "max_flips"})

    expert: Literal["oracle", "reference", "chat", "local", "scripted", "simulated", "panel"] = "oracle"
    """oracle: knows the phantoms' truth; reference: compares with reference answers to the same question; chat, local:
    a vision-language model behind a server or here; scripted: by rule; simulated: the oracle made worse; panel: several."""
    mode: Literal["scores", "pairwise"] = "scores"
    """What a model is asked: to score all answers to a question at once, or which of two is better, for every two."""
    orders: PositiveInt = 2
    """Orders in which a model is shown the same answers; where its verdicts differ, it is a tie."""
    repeats: PositiveInt = 1
    """Times a model is asked the same in each order; its verdicts are taken together as orders are."""
    rubric: Path | None = None
    """Your own prompt in place of the one that is shipped (docs/expert.md)."""
    context: Path | None = None
    """JSONL of Context records that a model is shown: captions, reports, reference answers."""
    show_references: bool = False
    """Show a model the reference answers to the same question about the same image, where there are any."""
    chat: ChatOptions = ChatOptions()
    """The server of `chat`."""
    local: LocalExpertOptions = LocalExpertOptions()
    """The model of `local`."""
    scripted: ScriptedOptions = ScriptedOptions()
    """The script of `scripted`."""
    simulated: SimulatedOptions = SimulatedOptions()
    """The faults of `simulated`."""
    panel: tuple[Path, ...] = ()
    """YAML files, each with these options of one member of `panel`."""
    verdict: Literal["majority", "mean"] = "majority"
    """How a panel decides: by votes on every two answers, or by the mean of its members' scores."""
    max_failed: Share = 0.05
    """Largest share of questions without a verdict because requests failed, before the stage stops."""
    max_flips: Share = 0.5
    """Largest share of comparisons that the order of the answers decides, before the stage stops."""


class PairOptions(Options):
    """Which answers to a question become pairs; ties and abstentions never do."""

    margin: PositiveFloat = 0.2
    """Smallest difference of scores, which go from 0 to 1, that makes a pair."""
    pairs: Literal["extremes", "all"] = "extremes"
    """extremes: the best answer against the worst; all: every two answers whose scores differ by the margin."""
    most: PositiveInt | None = None
    """Most pairs of one question, those that differ most; no limit when absent."""
    balance: bool = True
    """Choose yes as often as no among questions that begin alike: a policy that asks about what is not there learns no."""
    denials: Share = 1.0
    """Largest share of chosen answers such as "there is no …" to questions that take for granted what is not there."""
    balance_length: bool = False
    """Choose the longer answer as often as the shorter one: against an expert that takes length for quality."""
    least: Share = 0.0
    """Smallest score of a chosen answer: the best of bad answers is not worth learning."""
    alike: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Drop pairs whose texts are so similar or more: 1 only equal ones, 0.9 those that share nine tenths of their words."""


class EvaluateOptions(GenerationOptions):
    """Greedy answers on benchmarks, scored."""

    sampling: SamplingOptions = SamplingOptions(temperature=0.0, max_new_tokens=64)
    """How answers are sampled: greedy unless you have a reason."""
    prompt: str = QUESTION
    """The words in which every question is asked; {question} stands for it and the options it may have."""
    prompts: dict[str, str] = {}
    """The same for single benchmarks, by name."""
    chunk: PositiveInt = 128
    """Samples decoded together and written at once."""

    @model_validator(mode="after")
    def _prompts_hold_the_question(self) -> "EvaluateOptions":
        for text in (self.prompt, *self.prompts.values()):
            if text.count(QUESTION) != 1:
                raise ValueError(f"prompts with {QUESTION} once, not {text!r}")
        return self

    def template(self, benchmark: str) -> str:
        """The words in which a benchmark's questions are asked."""
        return self.prompts.get(benchmark, self.prompt)


class PhantomData(Options):
    """Synthetic phantoms with known truth, generated from the run's seed."""

    kind: Literal["phantom"] = "phantom"
    """Synthetic radiology phantoms."""
    labelled: PositiveInt = 100
    """Images with conversations for sft."""
    unlabelled: PositiveInt = 800
    """Images the policy asks itself about."""
    validation: PositiveInt = 80
    """Held-out images that choose the best round."""
    test: PositiveInt = 200
    """Held-out images that measure it."""
    size: Annotated[int, Field(ge=32)] = 128
    """Width and height in pixels."""


class VqaRadData(Options):
    """VQA-RAD in its public JSON: train.json, test.json and images/."""

    kind: Literal["vqa-rad"]
    """The VQA-RAD folder."""
    folder: Path
    """Folder that holds train.json, test.json and images/."""
    labelled: PositiveInt = 60
    """Training images whose questions and answers sft sees."""
    validation: PositiveInt = 30
    """Training images held out to choose the best round."""


class FilesData(Options):
    """Your own images, conversations and samples."""

    kind: Literal["files"]
    """Your own files."""
    images: Path
    """The image root: every image path is relative to it and stays inside it."""
    conversations: Path
    """LLaVA-style JSON, or JSONL of Conversation records, for sft."""
    validation: Path
    """JSONL of Sample records that choose the best round."""
    benchmarks: dict[str, Path] = {}
    """JSONL of Sample records by name, measured for every policy."""
    references: Path | None = None
    """JSONL of Sample records the reference expert may look at; never a benchmark."""
    unlabelled: Path | None = None
    """Folder inside the image root to ask about; the whole root when absent."""


Data = Annotated[PhantomData | VqaRadData | FilesData, Field(discriminator="kind")]


class SmallModel(Options):
    """The small LLaVA that is built from nothing, with a tokenizer trained on the labelled conversations."""

    image_size: PositiveInt = 64
    """Width and height the processor makes of an image, in pixels."""
    patch_size: PositiveInt = 8
    """Width and height of a patch; each becomes one image token."""
    vision_width: PositiveInt = 128
    """Hidden size of the vision tower."""
    vision_layers: PositiveInt = 4
    """Layers of the vision tower."""
    language_width: PositiveInt = 128
    """Hidden size of the language model."""
    language_layers: PositiveInt = 4
    """Layers of the language model."""
    heads: PositiveInt = 4
    """Attention heads of both."""
    vocabulary: Annotated[int, Field(ge=300)] = 1024
    """Most tokens of the byte-level BPE vocabulary."""
    context: PositiveInt = 1024
    """Longest sequence in tokens."""


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
    rounds: PositiveInt = 3
    """Most rounds of self-training."""
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


def load_recipe(path: Path, *, overrides: dict[str, JsonValue] | None = None) -> RunOptions:
    """Read a recipe, with `overrides` laid over it."""
    return validate(RunOptions, _merge(_read(path), overrides or {}), source=str(path))


def load_judge(path: Path) -> JudgeOptions:
    """Read the options of one expert, such as a panel's member."""
    return validate(JudgeOptions, _read(path), source=str(path))


def validate(kind: type[O], values: JsonValue, *, source: str) -> O:
    """Options from plain values; an unknown or ill-typed key is refused by name."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        parts = [str(part) for part in first["loc"]]
        key = ".".join(parts)
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(parts[-1], sorted(_keys(kind)), n=1)
            raise StllavaError(
                f"{source}: unknown key {key!r}",
                expected="only options that exist",
                remedy=f"Did you mean {near[0]!r}?" if near else "See `stllava run --help` for all of them.",
            ) from None
        if first["type"] == "value_error":
            wanted = first["msg"].removeprefix("Value error, ")
            raise StllavaError(
                f"{source}: {f'the options of {key}' if key else 'the options'} do not fit together",
                expected=wanted,
                remedy="Change one of them.",
            ) from None
        raise StllavaError(f"{source}: {key} is {first['input']!r}", expected=first["msg"], remedy="Mend that value.") from None


def _keys(kind: type[BaseModel]) -> set[str]:
    names: set[str] = set()
    for name, field in kind.model_fields.items():
        names.add(name)
        for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(part, type) and issubclass(part, BaseModel):
                names |= _keys(part)
    return names


def _read(path: Path) -> dict[str, JsonValue]:
    if not path.is_file():
        raise StllavaError(f"no recipe {path}", expected="a YAML file", remedy=f"The recipes shipped are in {RECIPES}.")
    try:
        values = yaml.safe_load(re.sub(r"\$\{(\w+)\}", _environment, path.read_text()))
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
