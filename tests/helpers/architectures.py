"""Tiny models with random weights: what a packed tree must give there, or be seen not to give, and every family's whole way.

Each is built from its configuration by the transformers classes a user's model has, with a byte-level BPE tokenizer
trained on a few sentences. ARCHITECTURES have chat templates that know the role virtual_user; FAMILIES, by `model_type`,
have templates that do what those of the family's published models do, in words of our own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    Gemma3TextConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig, Qwen2VLVisionConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from stllava.config import SmallModel
from stllava.model.families import family_of
from stllava.model.load import Policy
from stllava.model.processor import images_only
from stllava.model.small import IMAGE, TEMPLATE, build_tokenizer, small_policy

TEXTS = (
    "Describe the image.",
    "What organ is shown? The organ shown is the lung.",
    "Is there a nodule? yes, in the left lower lobe of the right lung.",
    "You are a careful assistant, be brief. No acute finding, a normal chest ct.",
)
CONTEXT, VOCABULARY, WIDTH, LAYERS, HEADS = 512, 360, 32, 2, 2
SIDE, PATCH = 32, 8
WEIGHT_SCALE = 0.15
"""Seven times the usual start: else what a token attends to hardly shows in its log-probabilities."""
HALF = [0.5, 0.5, 0.5]
PAD = "<pad>"
VISION: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "image_size": SIDE,
    "patch_size": PATCH,
}


CHATML = ["<|im_start|>", "<|im_end|>"]
QWEN = {
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
}
"""Special tokens by the option of a configuration that holds their id."""


def template(*, turn: str, image: str, end: str) -> str:
    """A chat template: how a turn opens, what stands for an image, how a turn closes."""
    part = "{%- if part['type'] == 'image' -%}IMAGE{%- else -%}{{ part['text'] }}{%- endif -%}"
    turns = "{%- for message in messages -%}TURN{%- for part in message['content'] -%}PART{%- endfor -%}END{%- endfor -%}"
    return (
        turns.replace("PART", part)
        .replace("IMAGE", _literal(image))
        .replace("TURN", _literal(turn))
        .replace("END", _literal(end))
    )


def _literal(text: str) -> str:
    """Text whose line breaks a template keeps between tags that strip white space."""
    return text.replace("\n", "{{ '\n' }}")


def chatml(image: str) -> str:
    return template(turn="<|im_start|>{{ message['role'] }}\n", image=image, end="<|im_end|>\n")


def llava() -> Policy:
    """A LLaVA of CLIP and Llama: positions count tokens, attention is causal in every layer."""
    shape = SmallModel(
        image_size=SIDE,
        patch_size=PATCH,
        vision_width=WIDTH,
        vision_layers=1,
        language_width=WIDTH,
        language_layers=LAYERS,
        heads=HEADS,
        vocabulary=VOCABULARY,
        context=CONTEXT,
    )
    policy = small_policy(shape, TEXTS, seed=1)
    return Policy(policy.model.cpu(), policy.processor)


def sliding(*, window: int = 24) -> Policy:
    """A LLaVA on Mistral whose window is shorter than an image with its question, so that windows matter."""
    tokenizer = build_tokenizer(TEXTS, vocabulary=VOCABULARY, context=CONTEXT)
    return llava_of(tokenizer, MistralConfig(sliding_window=window, **text_options(tokenizer)), spoken=TEMPLATE, seed=2)


def llava_of(tokenizer: PreTrainedTokenizerFast, text: PreTrainedConfig, *, spoken: str, seed: int) -> Policy:
    """A LLaVA of CLIP and a language model."""
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"height": SIDE, "width": SIDE}, do_center_crop=False, image_mean=HALF, image_std=HALF
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
        chat_template=spoken,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(projection_dim=WIDTH, **VISION),
        text_config=text,
        image_token_index=id_of(tokenizer, IMAGE),
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    with seeded(seed):
        return Policy(LlavaForConditionalGeneration(config).eval(), processor)


def qwen2_vl() -> Policy:
    """A Qwen2-VL: an image's tokens have positions of three axes, and the text goes on behind the largest of them."""
    tokenizer = tokenizer_of([*CHATML, *QWEN.values()], end="<|im_end|>")
    config = Qwen2VLConfig(
        vision_config=Qwen2VLVisionConfig(
            depth=1, embed_dim=WIDTH, hidden_size=WIDTH, num_heads=HEADS, mlp_ratio=2, patch_size=PATCH
        ),
        text_config=Qwen2VLTextConfig(
            rope_parameters={"rope_type": "default", "mrope_section": [2, 3, 3]}, **text_options(tokenizer)
        ),
        **ids(tokenizer, QWEN),
    )
    with seeded(3):
        return Policy(Qwen2VLForConditionalGeneration(config).eval(), qwen_processor(Qwen2VLProcessor, tokenizer, "Qwen2VL"))


def qwen_processor(kind: type[ProcessorMixin], tokenizer: PreTrainedTokenizerFast, videos: str) -> ProcessorMixin:
    """A Qwen processor's half for images, with what its folder says of the other."""
    pictures = Qwen2VLImageProcessorPil(
        size={"shortest_edge": SIDE**2, "longest_edge": (2 * SIDE) ** 2},
        patch_size=PATCH,
        merge_size=2,
        image_mean=HALF,
        image_std=HALF,
    )
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    return without_video_half(
        kind, "qwen2_vl", pictures, tokenizer, videos=f"{videos}VideoProcessor", chat_template=chatml(image)
    )


def gemma3(*, window: int = CONTEXT, begin: str | None = None, end: str = "<end_of_turn>") -> Policy:
    """A Gemma 3: an image's tokens see each other both ways; one layer has a window, which is wide unless told."""
    special = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokens = dict.fromkeys(["<start_of_turn>", "<end_of_turn>", *special.values(), *([begin] if begin else []), end])
    tokenizer = tokenizer_of([*tokens], end=end, begin=begin, named=special)
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_mean=HALF, image_std=HALF),
        tokenizer=tokenizer,
        image_seq_length=(SIDE // PATCH) ** 2,
        chat_template=template(turn="<start_of_turn>{{ message['role'] }}\n", image="<start_of_image>", end="<end_of_turn>\n"),
    )
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(vision_use_head=False, **VISION),
        text_config=Gemma3TextConfig(
            head_dim=WIDTH // HEADS,
            query_pre_attn_scalar=WIDTH // HEADS,
            sliding_window=window,
            layer_types=["sliding_attention", "full_attention"],
            **text_options(tokenizer),
        ),
        mm_tokens_per_image=(SIDE // PATCH) ** 2,
        image_token_index=id_of(tokenizer, special["image_token"]),
        boi_token_index=id_of(tokenizer, special["boi_token"]),
        eoi_token_index=id_of(tokenizer, special["eoi_token"]),
    )
    with seeded(4):
        model = Gemma3ForConditionalGeneration(config)
        # It starts as zeros, and then no image is seen.
        torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=WEIGHT_SCALE)
        return Policy(model.eval(), processor)


def idefics3(*, smol: bool = False) -> Policy:
    """An Idefics3, or a SmolVLM: an image becomes tiles and a view of the whole, [1, tiles, 3, height, width]."""
    special = ["<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", IMAGE, "<global-img>"]
    places = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokenizer = tokenizer_of([*special, *places], end="<end_of_utterance>")
    pictures = (SmolVLMImageProcessorPil if smol else Idefics3ImageProcessorPil)(
        do_image_splitting=True,
        size={"longest_edge": 2 * SIDE},
        max_image_size={"longest_edge": SIDE},
        image_mean=HALF,
        image_std=HALF,
    )
    settings: dict[str, Any] = {
        "image_seq_len": (SIDE // PATCH // 2) ** 2,
        "chat_template": "<|im_start|>"
        + template(turn="{{ message['role'] | capitalize }}:", image=IMAGE, end="<end_of_utterance>\n"),
    }
    shape: dict[str, Any] = {
        "text_config": LlamaConfig(**text_options(tokenizer)),
        "image_token_id": id_of(tokenizer, IMAGE),
        "scale_factor": 2,
    }
    with seeded(5):
        if not smol:
            config = Idefics3Config(vision_config=Idefics3VisionConfig(**VISION), **shape)
            return Policy(
                Idefics3ForConditionalGeneration(config).eval(), Idefics3Processor(pictures, tokenizer=tokenizer, **settings)
            )
        model = SmolVLMForConditionalGeneration(SmolVLMConfig(vision_config=SmolVLMVisionConfig(**VISION), **shape))
        videos = "SmolVLMVideoProcessor"
        return Policy(
            model.eval(), without_video_half(SmolVLMProcessor, "smolvlm", pictures, tokenizer, videos=videos, **settings)
        )


ARCHITECTURES: dict[str, Callable[[], Policy]] = {
    "llava": llava,
    "qwen2_vl": qwen2_vl,
    "gemma3": gemma3,
    "smolvlm": idefics3,
    "sliding": sliding,
}


def without_video_half(
    kind: type[ProcessorMixin],
    model_type: str,
    pictures: object,
    tokenizer: PreTrainedTokenizerFast,
    *,
    videos: str,
    **settings: object,
) -> ProcessorMixin:
    """A processor without its half for videos, which needs torchvision, and with what its folder says of that half."""
    left_out: dict[str, dict[str, object]] = {"video_processor": {"video_processor_type": videos}}
    return images_only(kind, family_of(model_type), pictures, tokenizer, left_out=left_out, settings=settings)


def tokenizer_of(
    special: list[str], *, end: str, begin: str | None = None, named: dict[str, str] | None = None
) -> PreTrainedTokenizerFast:
    """Byte-level BPE like the small model's, with a family's special tokens; `named` become the tokenizer's attributes.

    It writes `begin` before every text unless told not to.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=begin,
        add_bos_token=begin is not None,
        eos_token=end,
        extra_special_tokens=named if named is not None else special,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def text_options(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Options of the language model, by the names all their classes use."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 1,
        "max_position_embeddings": CONTEXT,
        "initializer_range": WEIGHT_SCALE,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }


def llava_group(weight: str) -> str:
    """The group of a LLaVA's weight, by its name in memory, under adapters or in a file."""
    parts = weight.split(".")
    return "projector" if "multi_modal_projector" in parts else "vision" if "vision_tower" in parts else "language"


def id_of(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of one token."""
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found


def ids(tokenizer: PreTrainedTokenizerFast, tokens: dict[str, str]) -> dict[str, Any]:
    """The ids of tokens by the options that hold them."""
    return {option: id_of(tokenizer, token) for option, token in tokens.items()}


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Weights drawn from `seed`, and torch's generator left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
