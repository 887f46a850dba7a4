"""A new LLaVA of a vision tower, a causal language model and a projector that has learned nothing yet.

Reads two transformers folders, or hub names; writes one. Tower and language model keep their weights to the bit; the
projector's are drawn from the seed. What is composed cannot see before it is aligned: an sft on captions in which the
projector alone learns (learning rate 0 for language and vision).
"""

from functools import partial
from pathlib import Path
from typing import cast

import torch
from jinja2 import TemplateError
from torch import Tensor, nn
from transformers import (
    AddedToken,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from stllava.config import ComposeOptions
from stllava.model.load import Policy, fingerprint, placed
from stllava.model.parts import PROBE, Tower, read_language, read_tower, unfit
from stllava.model.projector import StllavaConfig, StllavaForConditionalGeneration, build_projector
from stllava.records import Manifest
from stllava.store import Existing, Input, Inputs, open_stage

IMAGE, PAD = "<image>", "<pad>"
FLATTEN = (
    "{%- set plain = namespace(messages=[], text='') -%}"
    "{%- for message in messages -%}"
    "{%- set plain.text = '' -%}"
    "{%- if message['content'] is string -%}{%- set plain.text = message['content'] -%}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- set plain.text = plain.text + ('<image>' if part['type'] == 'image' else part['text']) -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- set plain.messages = plain.messages + [dict(message, content=plain.text)] -%}"
    "{%- endfor -%}"
    "{%- set messages = plain.messages -%}"
)
"""Before a chat template that knows strings only: makes them of lists of parts."""
CHATML = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + 'END' + '\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
"""For language models without a chat template."""


def compose(options: ComposeOptions, *, to: Path, seed: int = 0, existing: Existing = "resume") -> Manifest:
    """Write a new LLaVA to `to`, a plain transformers folder; `seed` is the projector's.

    Args:
        options: The vision tower, the language model and the projector between them.
        to: Folder for the new model.
        seed: Seed of the projector's weights.
        existing: What to do with output that is there: resume it, replace it, or end in an error.

    Raises:
        StllavaError: Where a part cannot be read, or the parts do not fit.
    """
    inputs: Inputs = {
        "vision": Input(options.vision, fingerprint),
        "language": Input(options.language, fingerprint),
        "seed": str(seed),
    }
    with open_stage("compose", to, options, inputs=inputs, existing=existing) as stage:
        if stage.manifest is not None:
            return stage.manifest
        policy = composed_policy(options, seed=seed)
        policy.save(to)
        parts = policy.model.model
        sizes = {"vision": parts.vision_tower, "projector": parts.multi_modal_projector, "language": parts.language_model}
        measures = {
            f"{name}_parameters": float(sum(weight.numel() for weight in part.parameters())) for name, part in sizes.items()
        }
        measures["image_tokens"] = float(policy.model.config.image_seq_length)
        return stage.finish(counts_in=2, counts_out=1, measures=measures, device=str(policy.device))


def composed_policy(options: ComposeOptions, *, seed: int) -> Policy:
    """A new LLaVA, its projector's weights drawn from `seed`.

    It is a stock LlavaForConditionalGeneration, unless image tokens are pooled or a prototype extractor is asked for.
    """
    tower = read_tower(options)
    language, tokenizer = read_language(options.language)
    tokenizer.chat_template = chat_template(tokenizer)
    image = _add_tokens(language, tokenizer)
    config = _config(options, tower, language, image)
    dtype = torch.promote_types(tower.model.dtype, language.dtype)
    for part in (tower.model, language):
        if part.dtype != dtype:  # else some buffers would leave the precision they need
            cast(nn.Module, part).to(dtype)
    # Built without memory, then given the parts that were read: nothing is held twice.
    with torch.device("meta"):
        model = _empty(config).eval()
    if type(model.model.language_model) is not type(language.base_model):
        raise unfit(options.language, f"as a part transformers would not build its {type(language.base_model).__name__}")
    model.model.vision_tower, model.model.language_model = tower.model, language.base_model
    model.lm_head = _head(language, tied=config.tie_word_embeddings)
    model.generation_config = language.generation_config
    _start_projector(model, tower.side, seed=seed)
    model.tie_weights()
    _check_says_the_same(options.language, model, language)
    processor = LlavaProcessor(
        image_processor=_images(tower, pad=options.pad),
        tokenizer=tokenizer,
        patch_size=int(tower.model.config.patch_size) * options.pool,
        vision_feature_select_strategy=tower.kind.strategy,
        num_additional_image_tokens=int(tower.kind.strategy == "default"),
        image_token=IMAGE,
        chat_template=tokenizer.chat_template,
    )
    return Policy(placed(model), processor)


def _tables(language: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Weights of the embedding of words and of the head, [words, width] each, and often the same."""
    return cast(Tensor, language.get_input_embeddings().weight), cast(Tensor, language.get_output_embeddings().weight)


@torch.no_grad()
def _add_tokens(language: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Give both the image token, and padding where there is none; returns the image token's id.

    New rows are the mean of the old ones, so that a new token is never the likeliest.
    """
    tokenizer.add_tokens([AddedToken(IMAGE, special=True, normalized=False)], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD})
    language.config.pad_token_id = language.generation_config.pad_token_id = tokenizer.pad_token_id
    rows = len(_tables(language)[0])
    if len(tokenizer) > rows:
        language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        for table in _tables(language):
            table[rows:] = table[:rows].mean(dim=0)
    return cast(int, tokenizer.convert_tokens_to_ids(IMAGE))


def _config(options: ComposeOptions, tower: Tower, language: PreTrainedModel, image: int) -> LlavaConfig:
    text = language.config
    words, head = _tables(language)
    # LLaVA ties by this name; a table under another one is copied for the head.
    text.tie_word_embeddings = words is head and hasattr(language.base_model, "embed_tokens")
    shared = {
        "vision_config": tower.model.config,
        "text_config": text,
        "image_token_index": image,
        "image_seq_length": (tower.grid // options.pool) ** 2,
        "vision_feature_layer": options.feature_layer,
        "vision_feature_select_strategy": tower.kind.strategy,
        "tie_word_embeddings": text.tie_word_embeddings,
    }
    if options.pool == 1 and options.projector == "mlp":
        return LlavaConfig(**shared)
    return StllavaConfig(projector=options.projector, prototypes=options.prototypes, pool=options.pool, **shared)


def _empty(config: LlavaConfig) -> LlavaForConditionalGeneration:
    return (
        StllavaForConditionalGeneration(config) if isinstance(config, StllavaConfig) else LlavaForConditionalGeneration(config)
    )


def _head(language: PreTrainedModel, *, tied: bool) -> nn.Linear:
    words, weight = _tables(language)
    head = cast(nn.Linear, language.get_output_embeddings())
    if words is weight and not tied:
        head.weight = nn.Parameter(weight.detach().clone())
    return head


@torch.no_grad()
def _start_projector(model: LlavaForConditionalGeneration, side: int, *, seed: int) -> None:
    """Draw the projector so that image tokens begin as large as those of words.

    An image of noise goes through it, and its two last layers are scaled where it arrives: the first so that what its
    activation gets has a root mean square of 1, the second to that of the embedding table.
    """
    words = float(_tables(model)[0].float().pow(2).mean().sqrt())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = model.config
        projector = build_projector(config) if isinstance(config, StllavaConfig) else LlavaMultiModalProjector(config)
        noise = torch.randn(1, 3, side, side)
    model.model.multi_modal_projector = projector.to(model.model.vision_tower.dtype)
    layers = [module for module in projector.modules() if isinstance(module, nn.Linear)][-2:]
    hooks = []
    for layer, size in zip(layers, (1.0, words), strict=True):
        layer.bias.zero_()
        hooks.append(layer.register_forward_hook(partial(_scale, size=size)))
    model.get_image_features(noise.to(model.model.vision_tower.dtype))
    for hook in hooks:
        hook.remove()


def _scale(layer: nn.Linear, _: tuple[Tensor], output: Tensor, *, size: float) -> Tensor:
    """A forward hook: give a layer's output this root mean square, now and from now on."""
    factor = size / output.float().pow(2).mean().sqrt()
    layer.weight.mul_(factor)
    return output * factor


@torch.no_grad()
def _check_says_the_same(path: str, model: LlavaForConditionalGeneration, language: PreTrainedModel) -> None:
    """Refuse a language model that does more with its head than LLaVA will, such as capping or scaling logits."""
    if not torch.allclose(model(input_ids=PROBE).logits, language(PROBE).logits, atol=1e-4):
        raise unfit(path, "inside a LLaVA it does not say what it says alone, because it caps or scales its logits")


def chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's own template, taught to write images where it cannot, or one of ours in ChatML's words.

    Ours ends a turn with the token the language model knows for it: `<|im_end|>`, or else its eos_token.
    """
    own = tokenizer.chat_template
    end = "<|im_end|>" if "<|im_end|>" in tokenizer.get_vocab() else str(tokenizer.eos_token)
    for template in (own, FLATTEN + own) if isinstance(own, str) else ():
        if _writes_images(tokenizer, template):
            return template
    return FLATTEN + CHATML.replace("END", end)


def _writes_images(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    content = [{"type": "image"}, {"type": "text", "text": "said"}]
    asked = cast("list[dict[str, str]]", [{"role": "user", "content": content}])
    try:
        text = cast(str, tokenizer.apply_chat_template(asked, chat_template=template, tokenize=False))
    except (TemplateError, TypeError):  # a template for strings adds them up, and trips over a list
        return False
    return text.count(IMAGE) == 1 and text.index(IMAGE) < text.find("said")


def _images(tower: Tower, *, pad: bool) -> LlavaImageProcessorPil:
    """Images as the tower takes them, whole."""
    square = {"height": tower.side, "width": tower.side}
    return LlavaImageProcessorPil(
        size=square,
        crop_size=square,
        do_center_crop=False,
        do_pad=pad,
        resample=tower.images.resample,
        image_mean=tower.images.image_mean,
        image_std=tower.images.image_std,
    )
