"""Tiny models of families whose chat templates write turns as they are, without thoughts, as their models are published."""

from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    AyaVisionProcessor,
    Cohere2Config,
    DeepseekVLConfig,
    DeepseekVLForConditionalGeneration,
    DeepseekVLHybridConfig,
    DeepseekVLHybridForConditionalGeneration,
    DeepseekVLHybridProcessor,
    DeepseekVLProcessor,
    Granite4VisionConfig,
    Granite4VisionForConditionalGeneration,
    Granite4VisionProcessor,
    GraniteConfig,
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    Idefics2Processor,
    Lfm2Config,
    Lfm2VlConfig,
    Lfm2VlForConditionalGeneration,
    Lfm2VlProcessor,
    Llama4Config,
    Llama4ForConditionalGeneration,
    Llama4Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    Ministral3Config,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    Ovis2Config,
    Ovis2ForConditionalGeneration,
    Ovis2Processor,
    PixtralVisionConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2Config,
    SamVisionConfig,
    Siglip2VisionConfig,
    SiglipVisionConfig,
)
from transformers.models.deepseek_vl.image_processing_pil_deepseek_vl import DeepseekVLImageProcessorPil
from transformers.models.deepseek_vl_hybrid.image_processing_pil_deepseek_vl_hybrid import DeepseekVLHybridImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics2.configuration_idefics2 import Idefics2PerceiverConfig, Idefics2VisionConfig
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.ovis2.configuration_ovis2 import Ovis2VisionConfig
from transformers.models.ovis2.image_processing_pil_ovis2 import Ovis2ImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

from helpers.architectures import (
    CHATML,
    CONTEXT,
    HALF,
    HEADS,
    PATCH,
    SIDE,
    VISION,
    WEIGHT_SCALE,
    WIDTH,
    chatml,
    id_of,
    seeded,
    template,
    text_options,
    tokenizer_of,
)
from stllava.model.load import Policy
from stllava.model.pictures import Lfm2VlImageProcessor, Llama4ImageProcessor
from stllava.model.processor import PixtralProcessor
from stllava.model.small import IMAGE

TILES = [[SIDE, SIDE], [SIDE, 2 * SIDE], [2 * SIDE, SIDE]]
"""Sizes that an image is brought to before it is cut into tiles, as [height, width]."""
MISTRAL_TOKENS = [
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[IMG]",
    "[IMG_BREAK]",
    "[IMG_END]",
]
ALTERNATING = (
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('turns must alternate') }}{%- endif -%}"
)
PIXTRAL = "{{ bos_token }}" + template(
    turn=ALTERNATING + "{%- if message['role'] == 'user' -%}[INST]"
    "{%- elif message['role'] != 'assistant' -%}{{ raise_exception('only user and assistant speak') }}{%- endif -%}",
    image="[IMG]",
    end="{{ '[/INST]' if message['role'] == 'user' else eos_token }}",
)
"""Nothing stands between a question's end and its answer; user and assistant must take turns."""
MISTRAL_SMALL = PIXTRAL.replace(
    "{{ bos_token }}", "{{ bos_token }}[SYSTEM_PROMPT]Answer briefly. Today is {{ strftime_now('%Y-%m-%d') }}.[/SYSTEM_PROMPT]"
)
"""As before, behind words of its own that name the day."""
IDEFICS2 = template(
    turn="{{ message['role'] | capitalize }}{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}",
    image=IMAGE,
    end="<end_of_utterance>\n",
)
"""Any role speaks, behind a blank unless an image comes first."""
AYA = "{{ bos_token }}<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Answer briefly.<|END_OF_TURN_TOKEN|>" + template(
    turn="<|START_OF_TURN_TOKEN|>{{ message['role'] | replace('user', '<|USER_TOKEN|>')"
    " | replace('assistant', '<|CHATBOT_TOKEN|><|START_RESPONSE|>') }}",
    image=IMAGE,
    end="{{ '<|END_RESPONSE|>' if message['role'] == 'assistant' else '' }}<|END_OF_TURN_TOKEN|>",
)
"""Any role speaks, in words where it has no token; an answer has tokens around it within its turn."""
DEEPSEEK = "You see and speak.\n\n" + template(
    turn="{{ message['role'] | capitalize }}: ",
    image="<image_placeholder>\n",
    end="{{ '\n\n' if message['role'] != 'assistant' else eos_token }}",
)
"""Any role speaks, behind words of the template's own; only an answer's end is a token."""
GRANITE = (
    "{{ '<|system|>\nA talk of a user and an assistant.\n' }}"
    + template(
        turn="{{ '<|' + message['role'] + '|>\n' }}",
        image=IMAGE + "\n",
        end="{{ '<|end_of_text|>' if message['role'] == 'assistant' else '\n' }}",
    )
).replace("{%- for message in messages -%}", "{%- for message in messages if message['role'] in ('user', 'assistant') -%}")
"""Other roles are left out; what opens a turn is text, not a token."""
GRANITE4 = template(
    turn="<|start_of_role|>{{ message['role'] }}<|end_of_role|>",
    image=IMAGE + "\n",
    end="<|end_of_text|>\n",
)
"""Any role speaks."""

LLAMA4 = "<|begin_of_text|>" + template(
    turn="<|header_start|>{{ message['role'] }}<|header_end|>\n\n", image="<|image|>", end="<|eot|>"
)
"""Any role speaks."""


def pixtral_vision() -> PixtralVisionConfig:
    """A vision tower that takes pictures as they are, with positions of two axes."""
    return PixtralVisionConfig(**VISION | {"image_size": 4 * SIDE, "initializer_range": WEIGHT_SCALE})


def pixtral_processor(tokenizer: PreTrainedTokenizerFast, *, merge: int, spoken: str) -> ProcessorMixin:
    """A Pixtral processor: a token for every patch, or for so many by so many, and one at the end of each row of them."""
    pictures = PixtralImageProcessorPil(
        size={"longest_edge": 2 * SIDE}, patch_size={"height": PATCH, "width": PATCH}, image_mean=HALF, image_std=HALF
    )
    return PixtralProcessor(pictures, tokenizer, patch_size=PATCH, spatial_merge_size=merge, chat_template=spoken)


def pixtral() -> Policy:
    """A Pixtral: a LLaVA whose tower takes pictures of any shape, padded to the largest in a batch."""
    tokenizer = tokenizer_of(MISTRAL_TOKENS, end="</s>", begin="<s>")
    config = LlavaConfig(
        vision_config=pixtral_vision(),
        text_config=MistralConfig(sliding_window=None, head_dim=WIDTH // HEADS, **text_options(tokenizer)),
        image_token_index=id_of(tokenizer, "[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    with seeded(14):
        return Policy(LlavaForConditionalGeneration(config).eval(), pixtral_processor(tokenizer, merge=1, spoken=PIXTRAL))


def mistral3(*, ministral: bool = False) -> Policy:
    """A Mistral Small 3, or a Ministral 3: four patches become one token."""
    tokenizer = tokenizer_of(MISTRAL_TOKENS, end="</s>", begin="<s>")
    options = {**text_options(tokenizer), "head_dim": WIDTH // HEADS}
    text: PreTrainedConfig = MistralConfig(sliding_window=None, **options)
    if ministral:
        rope = {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 16.0,
            "original_max_position_embeddings": CONTEXT // 16,
            "max_position_embeddings": CONTEXT,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale_all_dim": 1.0,
            "mscale": 1.0,
            "llama_4_scaling_beta": 0.1,
        }
        text = Ministral3Config(rope_parameters=rope, **options)
    config = Mistral3Config(
        vision_config=pixtral_vision(),
        text_config=text,
        image_token_index=id_of(tokenizer, "[IMG]"),
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    with seeded(15):
        return Policy(
            Mistral3ForConditionalGeneration(config).eval(), pixtral_processor(tokenizer, merge=2, spoken=MISTRAL_SMALL)
        )


def idefics2() -> Policy:
    """An Idefics2: pictures of any shape, padded with a mask, and a resampler that gives a few tokens for any of them."""
    named = {"image_token": IMAGE, "image_boundary_token": "<fake_token_around_image>"}
    tokenizer = tokenizer_of(["<s>", "</s>", *named.values(), "<end_of_utterance>"], end="</s>", begin="<s>", named=named)
    pictures = Idefics2ImageProcessorPil(
        size={"shortest_edge": SIDE, "longest_edge": 2 * SIDE}, image_mean=HALF, image_std=HALF
    )
    config = Idefics2Config(
        vision_config=Idefics2VisionConfig(**VISION | {"image_size": 2 * SIDE}),
        perceiver_config=Idefics2PerceiverConfig(
            hidden_size=WIDTH,
            resampler_n_latents=4,
            resampler_depth=1,
            resampler_n_heads=HEADS,
            resampler_head_dim=WIDTH // HEADS,
            num_key_value_heads=1,
        ),
        text_config=MistralConfig(sliding_window=None, **text_options(tokenizer)),
        image_token_id=id_of(tokenizer, IMAGE),
    )
    with seeded(16):
        model = Idefics2ForConditionalGeneration(config).eval()
        return Policy(model, Idefics2Processor(pictures, tokenizer, image_seq_len=4, chat_template=IDEFICS2))


def aya_vision() -> Policy:
    """An Aya Vision: tiles with words of their own, for a Cohere2 of sliding and full layers."""
    own = [
        "<|START_OF_IMG|>",
        "<|END_OF_IMG|>",
        "<|IMG_PATCH|>",
        "<|IMG_LINE_BREAK|>",
        "TILE",
        "TILE_GLOBAL",
        "TILE_1",
        "TILE_2",
    ]
    spoken = ["SYSTEM", "USER", "CHATBOT", "START_OF_TURN", "END_OF_TURN"]
    special = [
        *("<BOS_TOKEN>", "<EOS_TOKEN>", IMAGE, *own),
        *(f"<|{word}_TOKEN|>" for word in spoken),
        *("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ]
    tokenizer = tokenizer_of(special, end="<|END_OF_TURN_TOKEN|>", begin="<BOS_TOKEN>")
    processor = AyaVisionProcessor(
        image_processor=GotOcr2ImageProcessorPil(
            size={"height": SIDE, "width": SIDE}, crop_to_patches=True, max_patches=2, image_mean=HALF, image_std=HALF
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        img_size=SIDE,
        downsample_factor=2,
        image_token=IMAGE,
        chat_template=AYA,
    )
    config = AyaVisionConfig(
        vision_config=SiglipVisionConfig(vision_use_head=False, **VISION),
        text_config=Cohere2Config(
            sliding_window=CONTEXT,
            layer_types=["sliding_attention", "full_attention"],
            logit_scale=1.0,
            **text_options(tokenizer),
        ),
        downsample_factor=2,
        image_token_index=id_of(tokenizer, "<|IMG_PATCH|>"),
    )
    with seeded(17):
        return Policy(AyaVisionForConditionalGeneration(config).eval(), processor)


def deepseek_tokenizer() -> PreTrainedTokenizerFast:
    named = {"image_token": "<image_placeholder>"}
    special = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", *named.values()]
    return tokenizer_of(special, end=special[1], begin=special[0], named=named)


def deepseek_vl() -> Policy:
    """A DeepSeek-VL of one vision tower, as the one of 1.3 billion weights."""
    tokenizer = deepseek_tokenizer()
    pictures = DeepseekVLImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_mean=HALF, image_std=HALF)
    config = DeepseekVLConfig(
        vision_config=SiglipVisionConfig(vision_use_head=False, **VISION),
        text_config=LlamaConfig(**text_options(tokenizer)),
        image_token_id=id_of(tokenizer, "<image_placeholder>"),
    )
    processor = DeepseekVLProcessor(pictures, tokenizer, chat_template=DEEPSEEK, num_image_tokens=(SIDE // PATCH) ** 2)
    with seeded(18):
        return Policy(DeepseekVLForConditionalGeneration(config).eval(), processor)


def deepseek_vl_hybrid() -> Policy:
    """A DeepSeek-VL of two vision towers, as the one of 7 billion weights: SigLIP's, and SAM's on larger pictures."""
    tokenizer = deepseek_tokenizer()
    pictures = DeepseekVLHybridImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        high_res_size={"height": 4 * SIDE, "width": 4 * SIDE},
        image_mean=HALF,
        image_std=HALF,
    )
    config = DeepseekVLHybridConfig(
        vision_config=SiglipVisionConfig(vision_use_head=False, **VISION),
        high_res_vision_config=SamVisionConfig(
            hidden_size=WIDTH,
            output_channels=8,
            num_hidden_layers=2,
            num_attention_heads=HEADS,
            image_size=4 * SIDE,
            patch_size=PATCH,
            global_attn_indexes=[0, 1],
            window_size=4,
            mlp_dim=2 * WIDTH,
        ),
        text_config=LlamaConfig(**text_options(tokenizer)),
        image_token_id=id_of(tokenizer, "<image_placeholder>"),
    )
    processor = DeepseekVLHybridProcessor(pictures, tokenizer, chat_template=DEEPSEEK, num_image_tokens=(SIDE // PATCH) ** 2)
    with seeded(19):
        return Policy(DeepseekVLHybridForConditionalGeneration(config).eval(), processor)


def tiled_pictures() -> LlavaNextImageProcessorPil:
    return LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=TILES,
        image_mean=HALF,
        image_std=HALF,
    )


def granite_vision() -> Policy:
    """A Granite Vision 3: a LLaVA-NeXT of SigLIP and Granite, which is shown several layers of its tower."""
    tokenizer = tokenizer_of(["<|end_of_text|>", IMAGE], end="<|end_of_text|>")
    processor = LlavaNextProcessor(
        image_processor=tiled_pictures(),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        image_token=IMAGE,
        chat_template=GRANITE,
    )
    config = LlavaNextConfig(
        vision_config=SiglipVisionConfig(vision_use_head=False, **VISION | {"num_hidden_layers": 2}),
        text_config=GraniteConfig(
            embedding_multiplier=2.0,
            logits_scaling=2.0,
            residual_multiplier=0.5,
            attention_multiplier=0.25,
            **text_options(tokenizer),
        ),
        image_token_index=id_of(tokenizer, IMAGE),
        image_grid_pinpoints=TILES,
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_layer=[-2, -1],
        vision_feature_select_strategy="full",
    )
    with seeded(20):
        return Policy(LlavaNextForConditionalGeneration(config).eval(), processor)


def granite4_vision() -> Policy:
    """A Granite Vision 4: what layers of its tower see goes into layers of the language model, through parts with dropout."""
    width = 64
    tokenizer = tokenizer_of(["<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", IMAGE], end="<|end_of_text|>")
    processor = Granite4VisionProcessor(
        image_processor=tiled_pictures(),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        image_token=IMAGE,
        downsample_rate="1/2",
        chat_template=GRANITE4,
    )
    config = Granite4VisionConfig(
        vision_config=SiglipVisionConfig(
            vision_use_head=False, **VISION | {"num_hidden_layers": 2, "hidden_size": width, "intermediate_size": width}
        ),
        text_config={
            "model_type": "granite4_vision_text",
            **text_options(tokenizer),
            "num_hidden_layers": 5,
            "attention_multiplier": 0.25,
        },
        qformer_config={
            "model_type": "blip_2_qformer",
            "num_hidden_layers": 1,
            "intermediate_size": width,
            "cross_attention_frequency": 1,
            "use_qformer_text_input": False,
        },
        image_token_index=id_of(tokenizer, IMAGE),
        image_grid_pinpoints=TILES,
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        downsample_rate="1/2",
        deepstack_layer_map=[(-2, 0)],
        spatial_vision_layer=-1,
        spatial_target_layers=[1, 2, 3, 4],
    )
    with seeded(21):
        return Policy(Granite4VisionForConditionalGeneration(config).eval(), processor)


def ovis2() -> Policy:
    """An Ovis2: its tower gives shares of visual words, which a table of its own turns into embeddings."""
    indicators = ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    tokenizer = tokenizer_of([*CHATML, IMAGE, "<IMG_ATOM>", *indicators], end="<|im_end|>")
    processor = Ovis2Processor(
        image_processor=Ovis2ImageProcessorPil(
            size={"height": SIDE, "width": SIDE}, crop_to_patches=True, max_patches=2, image_mean=HALF, image_std=HALF
        ),
        tokenizer=tokenizer,
        image_seq_length=(SIDE // PATCH // 2) ** 2,
        chat_template=chatml(IMAGE + "\n"),
    )
    config = Ovis2Config(
        vision_config=Ovis2VisionConfig(**VISION, vocab_size=48, hidden_stride=2, initializer_range=WEIGHT_SCALE),
        text_config=Qwen2Config(**text_options(tokenizer)),
        image_token_id=id_of(tokenizer, "<IMG_ATOM>"),
        visual_indicator_token_ids=[id_of(tokenizer, token) for token in indicators],
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
    )
    with seeded(22):
        return Policy(Ovis2ForConditionalGeneration(config).eval(), processor)


def llama4() -> Policy:
    """A Llama 4: tiles with tokens between them, layers with and without positions, a mixture of experts in every other."""
    image = ["<|image_start|>", "<|image_end|>", "<|image|>", "<|patch|>", "<|tile_x_separator|>", "<|tile_y_separator|>"]
    tokenizer = tokenizer_of(
        ["<|begin_of_text|>", "<|header_start|>", "<|header_end|>", "<|eot|>", *image], end="<|eot|>", begin="<|begin_of_text|>"
    )
    pictures = Llama4ImageProcessor(size={"height": SIDE, "width": SIDE}, max_patches=2)
    processor = Llama4Processor(pictures, tokenizer, patch_size=PATCH, pixel_shuffle_ratio=0.5, chat_template=LLAMA4)
    config = Llama4Config(
        vision_config={
            **VISION,
            "intermediate_size": 4 * WIDTH,
            "vision_output_dim": WIDTH,
            "projector_input_dim": WIDTH,
            "projector_output_dim": WIDTH,
            "initializer_range": WEIGHT_SCALE,
        },
        text_config={
            **text_options(tokenizer),
            "head_dim": WIDTH // HEADS,
            "intermediate_size_mlp": 2 * WIDTH,
            "num_local_experts": 2,
            "interleave_moe_layer_step": 2,
            "no_rope_layers": [1, 0],
            "attention_chunk_size": CONTEXT,
        },
        boi_token_index=id_of(tokenizer, "<|image_start|>"),
        eoi_token_index=id_of(tokenizer, "<|image_end|>"),
        image_token_index=id_of(tokenizer, "<|patch|>"),
    )
    with seeded(29):
        return Policy(Llama4ForConditionalGeneration(config).eval(), processor)


def lfm2_vl() -> Policy:
    """An LFM2-VL: pictures in their proportions, and a language model of short convolutions and attention."""
    named = {
        "image_token": IMAGE,
        "image_start_token": "<|image_start|>",
        "image_end_token": "<|image_end|>",
        "image_thumbnail_token": "<|img_thumbnail|>",
    }
    places = [f"<|img_row_{row}_col_{column}|>" for row in (1, 2) for column in (1, 2)]
    special = ["<|startoftext|>", *CHATML, *named.values(), *places]
    tokenizer = tokenizer_of(special, end="<|im_end|>", begin="<|startoftext|>", named=named)
    pictures = Lfm2VlImageProcessor(
        encoder_patch_size=PATCH,
        tile_size=SIDE,
        max_tiles=2,
        min_image_tokens=2,
        max_image_tokens=16,
        max_pixels_tolerance=1.0,
    )
    config = Lfm2VlConfig(
        vision_config=Siglip2VisionConfig(
            vision_use_head=False, **{key: value for key, value in VISION.items() if key != "image_size"}, num_patches=16
        ),
        text_config=Lfm2Config(
            layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False, **text_options(tokenizer)
        ),
        image_token_id=id_of(tokenizer, IMAGE),
        projector_hidden_size=WIDTH,
    )
    spoken = "{{ bos_token }}" + chatml(IMAGE)
    with seeded(30):
        model = Lfm2VlForConditionalGeneration(config).eval()
        return Policy(model, Lfm2VlProcessor(pictures, tokenizer, chat_template=spoken))
