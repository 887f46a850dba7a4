"""Tiny models of families whose chat templates have places for thoughts, as their models are published."""

from typing import Any

from transformers import (
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4Processor,
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vMoeConfig,
    Glm4vMoeForConditionalGeneration,
    Glm4vProcessor,
    Glm46VConfig,
    Glm46VForConditionalGeneration,
    Glm46VProcessor,
    MiniCPMV4_6Config,
    MiniCPMV4_6ForConditionalGeneration,
    MiniCPMV4_6Processor,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3VLProcessor,
)
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil

from helpers.architectures import (
    CHATML,
    CONTEXT,
    HALF,
    HEADS,
    PATCH,
    QWEN,
    SIDE,
    VISION,
    WEIGHT_SCALE,
    WIDTH,
    id_of,
    ids,
    qwen_processor,
    seeded,
    template,
    text_options,
    tokenizer_of,
    without_video_half,
)
from stllava.model.families import family_of
from stllava.model.load import Policy
from stllava.model.processor import images_only

GEMMA4_NAMED = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
}
GEMMA4 = (
    "{{ bos_token }}"
    "{%- for message in messages -%}<|turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}{{ '\n' }}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{ '\n\n<|image|>\n\n' }}"
    "{%- elif message['role'] == 'assistant' -%}{{ part['text'].split('<channel|>')[-1] | trim }}"
    "{%- else -%}{{ part['text'] | trim }}{%- endif -%}"
    "{%- endfor -%}<turn|>{{ '\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|turn>model{{ '\n' }}{%- if not enable_thinking -%}<|channel>thought{{ '\n' }}<channel|>"
    "{%- endif -%}{%- endif -%}"
)
"""Any role speaks; an answer's thought is taken out, and to answer without one the prompt ends with an empty thought."""

LAST_QUESTION = (
    "{%- set last = namespace(user=-1) -%}{%- for message in messages -%}{%- if message['role'] == 'user' -%}"
    "{%- set last.user = loop.index0 -%}{%- endif -%}{%- endfor -%}"
)
"""Finds the last turn of the user; an answer's thought is kept behind it, and left out before it."""


def qwen3_5_template(image: str) -> str:
    """ChatML for user and assistant, others refused; the last answer alone stands behind an empty thought, as if prompted."""
    return (
        LAST_QUESTION
        + "{%- if last.user < 0 -%}{{ raise_exception('nobody asks') }}{%- endif -%}"
        + template(
            turn="{%- if message['role'] not in ('user', 'assistant') -%}"
            "{{ raise_exception('only user and assistant speak') }}{%- endif -%}"
            "<|im_start|>{{ message['role'] }}\n"
            "{%- if message['role'] == 'assistant' and loop.index0 > last.user -%}<think>\n\n</think>\n\n{%- endif -%}",
            image=image,
            end="<|im_end|>\n",
        ).replace("{{ part['text'] }}", "{{ part['text'] | trim }}")
        + "{%- if add_generation_prompt -%}<|im_start|>assistant{{ '\n' }}"
        "{{ '<think>\n\n</think>\n\n' if enable_thinking is defined and not enable_thinking else '<think>\n' }}{%- endif -%}"
    )


GLM_IMAGE = "<|begin_of_image|><|image|><|end_of_image|>"
GLM = "[gMASK]<sop>" + template(turn="<|{{ message['role'] }}|>\n", image=GLM_IMAGE, end="").replace(
    "{%- for message in messages -%}", "{%- for message in messages if message['role'] in ('user', 'assistant') -%}"
)
"""Other roles are left out, no turn is closed, and nothing is said of thoughts."""
GLM_THINKING = (
    GLM.replace(
        "<|{{ message['role'] }}|>", "<|{{ message['role'] }}|>{{ '\n<think></think>' if message['role'] == 'assistant' }}"
    ).replace(
        "{%- endfor -%}{%- endfor -%}",
        "{%- endfor -%}{{ '/nothink' if message['role'] == 'user' and enable_thinking is defined and not enable_thinking }}"
        "{%- endfor -%}",
    )
    + "{%- if add_generation_prompt -%}<|assistant|>"
    "{{ '\n<think></think>' if enable_thinking is defined and not enable_thinking }}{%- endif -%}"
)
"""Every answer stands behind an empty thought, and every question ends in a word for it where thinking is off."""


def gemma4() -> Policy:
    """A Gemma 4: patches pooled by position, an embedding for every layer, sliding and full layers, a part for sound."""
    special = ["<|turn>", "<turn|>", "<|channel>", "<channel|>", *GEMMA4_NAMED.values(), "<|video|>", "<bos>", "<eos>"]
    tokenizer = tokenizer_of(special, end="<eos>", begin="<bos>", named=GEMMA4_NAMED)
    processor = images_only(
        Gemma4Processor,
        family_of("gemma4"),
        Gemma4ImageProcessorPil(patch_size=PATCH, max_soft_tokens=70, pooling_kernel_size=2),
        tokenizer,
        left_out={
            "video_processor": {"video_processor_type": "Gemma4VideoProcessor"},
            "feature_extractor": {"feature_extractor_type": "Gemma4AudioFeatureExtractor"},
        },
        settings={"chat_template": GEMMA4, "image_seq_length": 70},
    )
    config = Gemma4Config(
        vision_config={
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": 1,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS,
            "head_dim": WIDTH // HEADS,
            "patch_size": PATCH,
            "pooling_kernel_size": 2,
            "position_embedding_size": 256,
            "initializer_range": 0.15,
        },
        text_config={
            **text_options(tokenizer),
            "head_dim": WIDTH // HEADS,
            "global_head_dim": WIDTH // HEADS,
            "sliding_window": CONTEXT,
            "layer_types": ["sliding_attention", "full_attention"],
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": len(tokenizer),
            "use_bidirectional_attention": "vision",
        },
        image_token_id=id_of(tokenizer, "<|image|>"),
        boi_token_id=id_of(tokenizer, "<|image>"),
        eoi_token_id=id_of(tokenizer, "<image|>"),
        video_token_id=id_of(tokenizer, "<|video|>"),
    )
    with seeded(13):
        return Policy(Gemma4ForConditionalGeneration(config).eval(), processor)


QWEN3_5_TEXT: dict[str, Any] = {
    "head_dim": WIDTH // HEADS,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": HEADS,
    "linear_num_value_heads": HEADS,
    "rope_parameters": {
        "rope_type": "default",
        "mrope_section": [2, 3, 3],
        "mrope_interleaved": True,
        "partial_rotary_factor": 1.0,
    },
}
"""A layer of the gated delta rule, which carries a state from token to token, and one of attention."""
QWEN3_5_VISION: dict[str, Any] = {
    "depth": 1,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_heads": HEADS,
    "patch_size": PATCH,
    "out_hidden_size": WIDTH,
    "num_position_embeddings": (SIDE // PATCH) ** 2,
}


def qwen3_5(*, experts: bool = False) -> Policy:
    """A Qwen3.5, dense or a mixture of experts."""
    tokenizer = tokenizer_of(["<|endoftext|>", *CHATML, *QWEN.values(), "<think>", "</think>"], end="<|im_end|>")
    processor = qwen_processor(Qwen3VLProcessor, tokenizer, "Qwen3VL")
    processor.chat_template = qwen3_5_template("<|vision_start|><|image_pad|><|vision_end|>")
    options: dict[str, Any] = {**text_options(tokenizer), **QWEN3_5_TEXT}
    if experts:
        del options["intermediate_size"]
        mixture = {"moe_intermediate_size": WIDTH, "shared_expert_intermediate_size": WIDTH, "num_experts": 4}
        moe = Qwen3_5MoeConfig(
            vision_config=QWEN3_5_VISION,
            text_config={**options, **mixture, "num_experts_per_tok": 2},
            **ids(tokenizer, QWEN),
        )
        with seeded(24):
            return Policy(Qwen3_5MoeForConditionalGeneration(moe).eval(), processor)
    config = Qwen3_5Config(vision_config=QWEN3_5_VISION, text_config=options, **ids(tokenizer, QWEN))
    with seeded(23):
        return Policy(Qwen3_5ForConditionalGeneration(config).eval(), processor)


GLM_IDS = {
    "image_token_id": "<|image|>",
    "video_token_id": "<|video|>",
    "image_start_token_id": "<|begin_of_image|>",
    "image_end_token_id": "<|end_of_image|>",
    "video_start_token_id": "<|begin_of_video|>",
    "video_end_token_id": "<|end_of_video|>",
}
GLM_VISION: dict[str, Any] = {
    "depth": 1,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_heads": HEADS,
    "patch_size": PATCH,
    "image_size": SIDE,
    "out_hidden_size": WIDTH,
    "initializer_range": WEIGHT_SCALE,
}


def glm_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose turns end where the next one begins."""
    spoken = ["<|user|>", "<|assistant|>", "<think>", "</think>", "[gMASK]", "<sop>", "<|endoftext|>"]
    return tokenizer_of([*spoken, *GLM_IDS.values()], end="<|endoftext|>")


def glm_processor(
    kind: type[ProcessorMixin], model_type: str, pictures: type, tokenizer: PreTrainedTokenizerFast, spoken: str
) -> ProcessorMixin:
    """A GLM processor's part for images, with what its folder says of the one for videos."""
    size = {"shortest_edge": SIDE**2, "longest_edge": (2 * SIDE) ** 2}
    return without_video_half(
        kind,
        model_type,
        pictures(size=size, patch_size=PATCH, merge_size=2, image_mean=HALF, image_std=HALF),
        tokenizer,
        videos=kind.__name__.replace("Processor", "VideoProcessor"),
        chat_template=spoken,
    )


def glm4v() -> Policy:
    """A GLM-4.1V."""
    tokenizer = glm_tokenizer()
    processor = glm_processor(Glm4vProcessor, "glm4v", Glm4vImageProcessorPil, tokenizer, GLM)
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "partial_rotary_factor": 1.0}
    text = {**text_options(tokenizer), "rope_parameters": rope}
    config = Glm4vConfig(vision_config=GLM_VISION, text_config=text, **ids(tokenizer, GLM_IDS))
    with seeded(25):
        return Policy(Glm4vForConditionalGeneration(config).eval(), processor)


def glm46v() -> Policy:
    """A GLM-4.6V of the small size, on the language model of GLM-4.1V."""
    tokenizer = glm_tokenizer()
    processor = glm_processor(Glm46VProcessor, "glm46v", Glm46VImageProcessorPil, tokenizer, GLM_THINKING)
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "partial_rotary_factor": 1.0}
    text = {"model_type": "glm4v_text", **text_options(tokenizer), "rope_parameters": rope}
    config = Glm46VConfig(
        vision_config={"model_type": "glm4v_vision", **GLM_VISION}, text_config=text, **ids(tokenizer, GLM_IDS)
    )
    with seeded(26):
        return Policy(Glm46VForConditionalGeneration(config).eval(), processor)


def glm4v_moe() -> Policy:
    """A GLM-4.5V: a mixture of experts behind a dense layer."""
    tokenizer = glm_tokenizer()
    processor = glm_processor(Glm4vProcessor, "glm4v_moe", Glm4vImageProcessorPil, tokenizer, GLM_THINKING)
    text = {
        **text_options(tokenizer),
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "partial_rotary_factor": 1.0},
        "moe_intermediate_size": WIDTH,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "head_dim": WIDTH // HEADS,
    }
    config = Glm4vMoeConfig(vision_config=GLM_VISION, text_config=text, **ids(tokenizer, GLM_IDS))
    with seeded(27):
        return Policy(Glm4vMoeForConditionalGeneration(config).eval(), processor)


def minicpmv4_6() -> Policy:
    """A MiniCPM-V 4.6: slices laid one behind the other, for the language model of Qwen3.5."""
    named = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "image_start_token": "<image>",
        "image_end_token": "</image>",
        "slice_start_token": "<slice>",
        "slice_end_token": "</slice>",
        "image_id_start_token": "<image_id>",
        "image_id_end_token": "</image_id>",
    }
    tokenizer = tokenizer_of([*CHATML, *named.values(), "<think>", "</think>"], end="<|im_end|>", named=named)
    pictures = MiniCPMV4_6ImageProcessorPil(
        max_slice_nums=2, scale_resolution=SIDE, patch_size=PATCH, image_mean=HALF, image_std=HALF
    )
    processor = without_video_half(
        MiniCPMV4_6Processor,
        "minicpmv4_6",
        pictures,
        tokenizer,
        videos="MiniCPMV4_6VideoProcessor",
        chat_template=qwen3_5_template("<|image_pad|>\n"),
    )
    rope = {"rope_type": "default", "partial_rotary_factor": 1.0}
    config = MiniCPMV4_6Config(
        vision_config={**VISION, "num_hidden_layers": 2},
        text_config={"model_type": "qwen3_5_text", **text_options(tokenizer), **QWEN3_5_TEXT, "rope_parameters": rope},
        insert_layer_id=0,
        image_size=SIDE,
        image_token_id=id_of(tokenizer, "<|image_pad|>"),
        video_token_id=id_of(tokenizer, "<|video_pad|>"),
    )
    with seeded(28):
        return Policy(MiniCPMV4_6ForConditionalGeneration(config).eval(), processor)
