"""Tiny models of families whose chat templates have places for thoughts, as their models are published."""

from transformers import (
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4Processor,
)
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

from architectures import (
    CONTEXT,
    HEADS,
    PATCH,
    WIDTH,
    id_of,
    seeded,
    text_options,
    tokenizer_of,
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
