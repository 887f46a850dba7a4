"""Projectors of LLaVA-type models: the MLP, the prototype extractor of SQ-LLaVA and STLLaVA-Med, 2 × 2 pooling before either.

    import stllava.model.projector
    model = AutoModelForImageTextToText.from_pretrained(folder)

Importing this module registers the model type `stllava_llava` with the Auto classes. `save_pretrained` copies this file
into the model's folder, so that plain transformers reads the folder too, with `trust_remote_code=True`; therefore it
imports nothing of stllava, and its errors are not stllava's. It reads and writes nothing else.

Weights are saved under the names they have in memory (`model.multi_modal_projector.*`): the renaming that transformers
applies to LLaVA belongs to its own classes. The processor is LlavaProcessor. It writes (height // patch_size) *
(width // patch_size) image places, so with `pool` 2 its `patch_size` must be twice that of the vision tower.
"""

import math
from typing import Any, Literal, TypeAlias, cast

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool1d, normalize
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, LlavaConfig, LlavaProcessor, initialization
from transformers.activations import ACT2FN
from transformers.models.llava.modeling_llava import LlavaForConditionalGeneration, LlavaModel, LlavaMultiModalProjector

Formula: TypeAlias = Literal["published", "paper"]


class PrototypeExtractor(nn.Module):
    """Tokens [B, L, D] learn from K prototypes of their image and become [B, L, H]; any L, smaller than K too.

    "published" is what the code of STLLaVA-Med computes (github.com/heliossun/STLLaVA-Med, multimodal_projector/cluster.py),
    which its released weights need. With c, v, f linear layers, x the tokens, C the prototypes, pool the adaptive mean
    over tokens to K, and unit(·) a division by the norm along the named axis:

        C = pool(x);  T times:  C ← softmax over prototypes of [unit channels(c(C)) · unit tokens(v(x))ᵀ] · f(x)
        S = sigmoid(β + α cos(C, x)), kept at each token's largest entry, else 0
        y = x + Sᵀ [(S · f(x) + pool(f(x))) / (members + 1)]
        H-wide tokens = linear(quick_gelu(linear(y)))

    That v is divided by its norm along the tokens, not the channels, looks like a slip there, but the weights grew with it.

    "paper" is the soft clustering that SQ-LLaVA describes (arXiv 2403.11299): tokens are shared out among prototypes,
    prototypes become means of the tokens they have, then tokens receive what their prototypes know. Its details, the
    scaled products and the exact normalisations, are our reading:

        C = pool(x);  T times:  A = softmax over prototypes of c(C) · v(x)ᵀ / √D;  C ← A · f(x) / (A summed over tokens)
        y = x + Aᵀ C, with A once more of the last C; c has no bias, which would cancel out
        H-wide tokens = linear(gelu(linear(y)))

    Products between tokens and prototypes are in float32 at least, under autocast too: they are cheap, and to which
    prototype a token belongs must not hang on rounding.
    """

    def __init__(
        self,
        vision_width: int,
        language_width: int,
        *,
        prototypes: int = 256,
        steps: int = 2,
        formula: Formula = "published",
        pool: int = 1,
    ) -> None:
        """D and H, K and T; squares of `pool` × `pool` tokens become one before all else."""
        super().__init__()
        self.prototypes, self.steps, self.formula, self.pool = prototypes, steps, formula, pool
        self.c = nn.Linear(vision_width, vision_width, bias=formula == "published")
        self.v = nn.Linear(vision_width, vision_width)
        self.f = nn.Linear(vision_width, vision_width)
        if formula == "published":
            self.sim_alpha = nn.Parameter(torch.ones(1, 1, 1))
            self.sim_beta = nn.Parameter(torch.zeros(1, 1, 1))
            self.ln_1 = UnusedLayerNorm(vision_width)
        self.mlp = nn.Sequential(
            nn.Linear(vision_width, language_width),
            ACT2FN["quick_gelu" if formula == "published" else "gelu"],
            nn.Linear(language_width, language_width),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, L, D] -> [B, L / pool², H]."""
        tokens = pool_tokens(tokens, side=self.pool)
        received = self._receive_published(tokens) if self.formula == "published" else self._receive_paper(tokens)
        return cast(Tensor, self.mlp(tokens + received.to(tokens.dtype)))

    def _receive_published(self, tokens: Tensor) -> Tensor:
        """[B, L, D] what each token gets from the one prototype most like it."""
        known = _wide(self.f(tokens))
        keys = normalize(_wide(self.v(tokens)), dim=1)
        centres = self._average(_wide(tokens))
        for _ in range(self.steps):
            moved = _wide(self.c(centres.to(tokens.dtype)))
            centres = _product(_product(normalize(moved, dim=-1), keys.mT).softmax(dim=-2), known)
        cosines = _product(normalize(centres, dim=-1), normalize(_wide(tokens), dim=-1).mT)
        likeness = self.sim_beta + self.sim_alpha * cosines
        # The sigmoid keeps their order but rounds near ones to the same number, so the largest is found before it.
        belongs = torch.zeros_like(likeness).scatter(1, likeness.argmax(dim=1, keepdim=True), 1.0)
        weights = torch.sigmoid(likeness) * belongs
        members = belongs.sum(dim=-1, keepdim=True)
        told = (_product(weights, known) + self._average(known)) / (members + 1.0)
        return _product(weights.mT, told)

    def _receive_paper(self, tokens: Tensor) -> Tensor:
        """[B, L, D] what each token gets from all prototypes, by its shares in them."""
        known, keys = _wide(self.f(tokens)), _wide(self.v(tokens)) / math.sqrt(tokens.shape[-1])
        centres = self._average(_wide(tokens))
        for _ in range(self.steps):
            # Shares over their sum are a softmax over tokens of their logarithms, which has no 0 / 0.
            centres = _product(self._shares(centres, keys, tokens.dtype).softmax(dim=-1), known)
        return _product(self._shares(centres, keys, tokens.dtype).exp().mT, centres)

    def _shares(self, centres: Tensor, keys: Tensor, dtype: torch.dtype) -> Tensor:
        """[B, K, L] logarithms of the shares of each token that prototypes have."""
        return _product(_wide(self.c(centres.to(dtype))), keys.mT).log_softmax(dim=-2)

    def _average(self, tokens: Tensor) -> Tensor:
        """[B, L, D] -> [B, K, D], means of neighbours."""
        return adaptive_avg_pool1d(tokens.mT, self.prototypes).mT


class UnusedLayerNorm(nn.Module):
    """Weights that the released checkpoints hold and their formula does not use.

    They are buffers: kept, so that what is read can be written again, but nothing that an optimizer or a gradient check
    should wait for.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(width))
        self.register_buffer("bias", torch.zeros(width))


class MlpProjector(LlavaMultiModalProjector):
    """LLaVA's own two layers, behind the pooling."""

    def __init__(self, config: "StllavaConfig") -> None:
        super().__init__(config)
        self.pool = config.pool

    def forward(self, image_features: Tensor) -> Tensor:
        """[B, L, D] -> [B, L / pool², H]."""
        pooled = pool_tokens(image_features, side=self.pool)
        return cast(Tensor, super().forward(pooled))  # type: ignore[no-untyped-call]


def pool_tokens(tokens: Tensor, *, side: int) -> Tensor:
    """The mean of each `side` × `side` square of a square grid of tokens, [B, L, D] -> [B, L / side², D]."""
    if side == 1:
        return tokens
    batch, length, width = tokens.shape
    grid = math.isqrt(length)
    if grid * grid != length or grid % side:
        raise ValueError(
            f"{length} image tokens cannot be pooled {side} × {side}; expected a square grid with a side divisible by {side}. "
            "Use another image size, a feature selection that leaves the class token out, or pool 1."
        )
    squares = tokens.reshape(batch, grid // side, side, grid // side, side, width)
    return squares.mean(dim=(2, 4)).flatten(1, 2)


def _wide(values: Tensor) -> Tensor:
    """In float32, or as they are where that is wider."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix product in the precision of its factors, whatever autocast says."""
    with torch.autocast(left.device.type, enabled=False):
        return left @ right


@strict
class StllavaConfig(LlavaConfig):
    """A LLaVA's configuration and the choice of its projector."""

    model_type = "stllava_llava"

    projector: Literal["mlp", "prototypes", "prototypes-paper"] = "mlp"
    """Two layers, or a prototype extractor by the published formula or the paper's."""
    prototypes: int = 256
    """K."""
    prototype_steps: int = 2
    """T."""
    pool: Literal[1, 2] = 1
    """Side of the squares of image tokens that become one before the projector."""

    def validate_prototypes(self) -> None:
        """Called by `strict`."""
        if self.prototypes < 1 or self.prototype_steps < 1:
            raise ValueError(
                f"{self.prototypes} prototypes and {self.prototype_steps} steps; expected one of each at least. "
                "Set prototypes and prototype_steps to 1 or more."
            )


def build_projector(config: StllavaConfig) -> nn.Module:
    """The projector that the configuration names."""
    if config.projector == "mlp":
        return MlpProjector(config)
    vision, text = _parts(config)
    layers = 1 if isinstance(config.vision_feature_layer, int) else len(config.vision_feature_layer)
    return PrototypeExtractor(
        layers * vision.hidden_size,
        text.hidden_size,
        prototypes=config.prototypes,
        steps=config.prototype_steps,
        formula="published" if config.projector == "prototypes" else "paper",
        pool=config.pool,
    )


def _parts(config: StllavaConfig) -> tuple[Any, Any]:
    """Configurations of the vision tower and the language model, which can be of any class with the usual names."""
    return config.vision_config, config.text_config


class StllavaModel(LlavaModel):
    """Vision tower, the projector that the configuration names, language model."""

    config_class = StllavaConfig

    def __init__(self, config: StllavaConfig) -> None:
        super().__init__(config)
        self.set_submodule("multi_modal_projector", build_projector(config))
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        """Start what a checkpoint lacks; transformers knows how to start layers, not single numbers."""
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, PrototypeExtractor) and module.formula == "published":
            initialization.ones_(module.sim_alpha)
            initialization.zeros_(module.sim_beta)


class StllavaForConditionalGeneration(LlavaForConditionalGeneration):
    """LlavaForConditionalGeneration with the projector that the configuration names."""

    config_class = StllavaConfig

    def __init__(self, config: StllavaConfig) -> None:
        # LLaVA's own __init__ would build and fill a second language model first.
        super(LlavaForConditionalGeneration, self).__init__(config)
        self.model = StllavaModel(config)
        _, text = _parts(config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]


# A copy of this file in another folder registers its own classes when it is loaded.
AutoConfig.register(StllavaConfig.model_type, StllavaConfig, exist_ok=True)
AutoModelForImageTextToText.register(StllavaConfig, StllavaForConditionalGeneration, exist_ok=True)
AutoProcessor.register(StllavaConfig, LlavaProcessor, exist_ok=True)
StllavaConfig.register_for_auto_class("AutoConfig")  # type: ignore[no-untyped-call]
StllavaForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")  # type: ignore[no-untyped-call]
