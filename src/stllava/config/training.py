"""Options of the stages in which the policy learns: sft and dpo."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from stllava.config.base import Options, Rate, Share


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
