"""Options of the stages in which the policy learns: sft and dpo."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from stllava.config.base import NamedPath, Options, Rate, Share


class GroupRates(Options):
    """Peak learning rate of each part of the model; 0 freezes that part."""

    language: Rate = 2e-4
    """Language model (its LoRA, where one is used)."""
    projector: Rate = 2e-5
    """Projector from image features to the language model."""
    vision: Rate = 5e-5
    """Vision tower (its LoRA, where one is used)."""


class AdapterOptions(Options):
    """Low-rank adapters on the linear layers of one part of the model, whose own weights are then frozen."""

    rank: NonNegativeInt = 0
    """Rank; 0 puts no adapters there, and the part learns in full."""
    alpha: PositiveInt | None = None
    """What the adapters add is multiplied by alpha / rank; twice the rank when absent."""
    dropout: Share = 0.05
    """Dropout before the adapters."""

    @property
    def strength(self) -> int:
        """Alpha, given or not."""
        return self.alpha if self.alpha is not None else 2 * self.rank


class LoraOptions(Options):
    """Adapters by part, merged into the weights when the stage ends; the projector has none and learns in full."""

    language: AdapterOptions = AdapterOptions()
    """Language model."""
    vision: AdapterOptions = AdapterOptions()
    """Vision tower."""
    quantise: Literal["none", "4bit"] = "none"
    """4bit: hold the linear layers that adapters stand on, or that are frozen, in 4 bits (QLoRA, needs bitsandbytes)."""


class TrainingOptions(Options):
    """What sft and dpo share."""

    renamed: ClassVar[Mapping[str, str]] = {"tokens": "max_tokens_per_forward"}

    runtime_only = frozenset({"checkpoint_activations", "max_bad"})

    epochs: Annotated[float, Field(gt=0, le=100_000)] = 1.0
    """Number of passes over the data."""
    batch_size: PositiveInt = 8
    """Number of images per optimizer step; all that is learned about an image is one sequence."""
    max_tokens_per_forward: PositiveInt = 16384
    """Maximum tokens per forward pass, padding included; a step takes as many passes as its images need."""
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
    """Number of optimizer steps between checkpoints, from which a killed stage resumes; 0 keeps none."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 where the device has it natively, else float32; weights that learn are float32 in either."""
    max_bad: Share = 0.05
    """Largest share of conversations or pairs that cannot be learned from before the stage stops; a dozen are always let
    pass while any other is left."""
    checkpoint_activations: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, about a third more time."""

    @model_validator(mode="after")
    def _four_bits_learn_through_adapters(self) -> "TrainingOptions":
        if self.lora.quantise != "none" and not (self.lora.language.rank and self.learning_rate.language):
            raise ValueError("lora.language.rank and learning_rate.language above 0: weights of 4 bits learn through adapters")
        return self


class SftOptions(TrainingOptions):
    """Instruction tuning with self-questioning (stage 1)."""

    renamed: ClassVar[Mapping[str, str]] = {**TrainingOptions.renamed, "sq_r": "self_question_ratio"}

    self_question_ratio: Share = 0.5
    """Probability that a user turn but the first becomes the virtual user's, whose question is learned."""


class DistillOptions(TrainingOptions):
    """Making a judge of an expert's verdicts: a copy of the policy learns to say of an answer whether it is right."""

    threshold: Share = 0.5
    """Minimum score at which an answer counts as right."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the images whose verdicts are not learned: on them the judge is compared with its teacher."""
    balance: bool = True
    """Learn as many right as wrong answers to questions that begin alike."""


class DpoOptions(TrainingOptions):
    """Learning from preferences (stage 2): DPO + NLL on the chosen answer + replay of stage-1 conversations."""

    renamed: ClassVar[Mapping[str, str]] = {
        **TrainingOptions.renamed,
        "sq_r": "self_question_ratio",
        "collapse": "max_chosen_drop",
    }

    loss: Literal["sigmoid", "ipo", "hinge", "group"] = "sigmoid"
    """sigmoid: DPO; ipo: squared distance to a margin of 1 / (2 beta); hinge: SLiC-HF; group: a clipped policy gradient with
    advantages within the answers to a question (GRPO's), from pairs that `pair.pairs: group` makes."""
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """With the loss group: an answer's probability gains nothing beyond 1 + clip times the reference's, or below 1 - clip."""
    beta: PositiveFloat = 0.1
    """Strength of the pull to the reference policy."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Probability that the expert's preference is wrong; with sigmoid and hinge only."""
    length_normalised: bool = False
    """Compare log-probabilities per token instead of per answer; true gives TRL's ipo and sigmoid_norm."""
    image_conditional: Rate = 0.0
    """Weight of a further loss by which each chosen answer is to gain more with its image than with a black one (mDPO's
    image-conditional preference, there against a cropped image); about half as much computing again; 0 leaves it out."""
    nll: Rate = 1.0
    """Weight of the chosen answer's negative log-likelihood per token; 0 with replay 0 is the paper's plain recipe."""
    replay: Rate = 1.0
    """Weight of the replayed stage-1 loss per token; 0 replays nothing."""
    replay_images: NonNegativeInt = 4
    """Number of images whose stage-1 conversations are replayed in each step."""
    self_question_ratio: Share = 0.5
    """Self-questioning in the replayed conversations."""
    max_chosen_drop: Rate = 3.0
    """Stop when chosen answers are less likely than under the reference by more than this, in nats per token; 0 never stops."""

    @model_validator(mode="after")
    def _smoothing_fits_the_loss(self) -> "DpoOptions":
        if self.loss == "ipo" and self.label_smoothing > 0:
            raise ValueError("label_smoothing 0 with the loss ipo: raise beta instead")
        if self.loss == "group" and (self.label_smoothing > 0 or self.length_normalised):
            raise ValueError("no label_smoothing and no length_normalised with the loss group, which compares no two answers")
        return self

    @property
    def can_smooth(self) -> bool:
        """Whether the loss takes a label smoothing."""
        return self.loss in ("sigmoid", "hinge")


class LaunchOptions(Options):
    """Several processes of this machine that train together, one a device."""

    runtime_only: ClassVar[frozenset[str]] = frozenset({"processes", "config"})

    processes: PositiveInt = 1
    """Number of training processes, one a GPU; 1 trains in the process of the run itself."""
    config: NamedPath | None = None
    """Configuration file of accelerate, for FSDP2 or DeepSpeed; without one every process holds the whole model (DDP)."""


class TrainingPlaceOptions(Options):
    """Where training stages run."""

    launch: LaunchOptions = LaunchOptions()
    """The processes."""


class LearningLoad(Options):
    """What there is to learn about an image, for reckoning how much memory a training takes."""

    image_size: PositiveInt = 512
    """Width and height of an image, in pixels, before the model's processor resizes it."""
    questions: PositiveInt = 20
    """Questions about an image."""
    answers: Annotated[int, Field(ge=2)] = 4
    """Answers to a question that dpo learns from, one of them chosen; sft learns one."""
    question_tokens: PositiveInt = 16
    """Length of a question."""
    answer_tokens: PositiveInt = 32
    """Length of an answer."""
