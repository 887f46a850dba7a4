"""One tiny model of every family in `stllava.model.families`, by `model_type`, as its models are published.

Configuration, model and processor are the family's own classes; the chat templates do what those of the published models
do, in words of our own. tests/architectures.py has what they share with the models of the packing tests.
"""

from collections.abc import Callable

from transformers import (
    CLIPVisionConfig,
    GemmaConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    MistralConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    SiglipVisionConfig,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig, Qwen3VLVisionConfig
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from helpers.architectures import (
    CHATML,
    HALF,
    HEADS,
    PATCH,
    QWEN,
    SIDE,
    VISION,
    WIDTH,
    chatml,
    gemma3,
    id_of,
    idefics3,
    ids,
    llava_of,
    qwen2_vl,
    qwen_processor,
    seeded,
    template,
    text_options,
    tokenizer_of,
    without_video_half,
)
from helpers.families_plain import (
    aya_vision,
    deepseek_vl,
    deepseek_vl_hybrid,
    granite4_vision,
    granite_vision,
    idefics2,
    lfm2_vl,
    llama4,
    mistral3,
    ovis2,
    pixtral,
)
from helpers.families_thinking import gemma4, glm4v, glm4v_moe, glm46v, minicpmv4_6, qwen3_5
from stllava.model.families import PALIGEMMA
from stllava.model.load import Policy
from stllava.model.small import IMAGE

TILES = [[SIDE, SIDE], [SIDE, 2 * SIDE], [2 * SIDE, SIDE]]
"""Sizes that an image is brought to before it is cut into tiles, as [height, width]."""


VICUNA = template(turn="{{ message['role'] | upper }}{{ ': ' }}", image=IMAGE + "\n", end="{{ ' ' }}")
"""Any role speaks, no turn is closed."""
MISTRAL = template(
    turn="{%- if message['role'] == 'user' -%}{{ '[INST] ' }}{%- elif message['role'] == 'assistant' -%}{{ ' ' }}"
    "{%- else -%}{{ raise_exception('only user and assistant speak') }}{%- endif -%}",
    image=IMAGE + "\n",
    end="{{ ' [/INST]' if message['role'] == 'user' else eos_token + ' ' }}",
)
"""Other roles are refused."""
GEMMA = "{{ bos_token }}" + template(
    turn="{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('turns must alternate') }}"
    "{%- endif -%}<start_of_turn>{{ 'model' if message['role'] == 'assistant' else 'user' }}\n",
    image="<start_of_image>",
    end="<end_of_turn>\n",
)
"""User and assistant must take turns."""
QWEN3 = chatml("<|vision_start|><|image_pad|><|vision_end|>").replace(
    "{%- for message in messages -%}", "{%- for message in messages if message['role'] in ('user', 'assistant') -%}"
)
"""Other roles are left out."""
IDEFICS = "<|im_start|>" + template(
    turn="{{ message['role'] | capitalize }}{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}",
    image=IMAGE,
    end="<end_of_utterance>\n",
)
"""Any role speaks, behind a blank unless an image comes first."""


def qwen2_5_vl() -> Policy:
    """A Qwen2.5-VL: as Qwen2-VL, its vision tower attends in windows."""
    tokenizer = tokenizer_of([*CHATML, *QWEN.values()], end="<|im_end|>")
    config = Qwen2_5_VLConfig(
        vision_config=Qwen2_5_VLVisionConfig(
            depth=2,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_heads=HEADS,
            patch_size=PATCH,
            window_size=SIDE,
            out_hidden_size=WIDTH,
            fullatt_block_indexes=[1],
        ),
        text_config=Qwen2_5_VLTextConfig(
            rope_parameters={"rope_type": "default", "mrope_section": [2, 3, 3]}, **text_options(tokenizer)
        ),
        **ids(tokenizer, QWEN),
    )
    with seeded(6):
        return Policy(
            Qwen2_5_VLForConditionalGeneration(config).eval(), qwen_processor(Qwen2_5_VLProcessor, tokenizer, "Qwen2VL")
        )


def qwen3_vl() -> Policy:
    """A Qwen3-VL: what its vision tower sees in a middle layer goes into a layer of the language model as well."""
    tokenizer = tokenizer_of([*CHATML, *QWEN.values()], end="<|im_end|>")
    config = Qwen3VLConfig(
        vision_config=Qwen3VLVisionConfig(
            depth=2,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_heads=HEADS,
            patch_size=PATCH,
            out_hidden_size=WIDTH,
            num_position_embeddings=(SIDE // PATCH) ** 2,
            deepstack_visual_indexes=[0],
        ),
        text_config=Qwen3VLTextConfig(
            head_dim=WIDTH // HEADS,
            rope_parameters={"rope_type": "default", "mrope_section": [2, 3, 3], "mrope_interleaved": True},
            **text_options(tokenizer),
        ),
        **ids(tokenizer, QWEN),
    )
    with seeded(7):
        return Policy(Qwen3VLForConditionalGeneration(config).eval(), qwen_processor(Qwen3VLProcessor, tokenizer, "Qwen3VL"))


def vicuna() -> Policy:
    """A LLaVA as LLaVA-1.5 is published: its template closes no turn, its tokenizer begins every text with a token."""
    tokenizer = tokenizer_of(["<s>", "</s>", IMAGE], end="</s>", begin="<s>")
    return llava_of(tokenizer, LlamaConfig(**text_options(tokenizer)), spoken=VICUNA, seed=8)


def llava_next() -> Policy:
    """A LLaVA-NeXT: tiles and a view of the whole, padding cut away, a learned token at the end of each row."""
    tokenizer = tokenizer_of(["<s>", "</s>", IMAGE], end="</s>", begin="<s>")
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": SIDE},
            crop_size={"height": SIDE, "width": SIDE},
            image_grid_pinpoints=TILES,
            image_mean=HALF,
            image_std=HALF,
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
        chat_template=MISTRAL,
    )
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(projection_dim=WIDTH, **VISION),
        text_config=MistralConfig(sliding_window=None, **text_options(tokenizer)),
        image_token_index=id_of(tokenizer, IMAGE),
        image_grid_pinpoints=TILES,
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_layer=-1,
    )
    with seeded(9):
        return Policy(LlavaNextForConditionalGeneration(config).eval(), processor)


def llava_onevision() -> Policy:
    """A LLaVA-OneVision: tiles and a view of the whole from SigLIP, for Qwen2."""
    tokenizer = tokenizer_of([*CHATML, IMAGE, "<video>"], end="<|im_end|>")
    pictures = LlavaOnevisionImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=TILES, image_mean=HALF, image_std=HALF
    )
    processor = without_video_half(
        LlavaOnevisionProcessor,
        "llava_onevision",
        pictures,
        tokenizer,
        videos="LlavaOnevisionVideoProcessor",
        num_image_tokens=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=chatml(IMAGE + "\n"),
    )
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(vision_use_head=False, **VISION),
        text_config=Qwen2Config(**text_options(tokenizer)),
        image_token_index=id_of(tokenizer, IMAGE),
        video_token_index=id_of(tokenizer, "<video>"),
        image_grid_pinpoints=TILES,
    )
    with seeded(10):
        return Policy(LlavaOnevisionForConditionalGeneration(config).eval(), processor)


def internvl() -> Policy:
    """An InternVL: four patches become one token."""
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = tokenizer_of([*CHATML, *named.values()], end="<|im_end|>", named=named)
    pictures = GotOcr2ImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, crop_to_patches=True, max_patches=2, image_mean=HALF, image_std=HALF
    )
    tokens = (SIDE // PATCH // 2) ** 2
    processor = without_video_half(
        InternVLProcessor,
        "internvl",
        pictures,
        tokenizer,
        videos="InternVLVideoProcessor",
        image_seq_length=tokens,
        chat_template=chatml("<IMG_CONTEXT>\n"),
    )
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(**VISION | {"image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]}),
        text_config=Qwen2Config(**text_options(tokenizer)),
        image_token_id=id_of(tokenizer, "<IMG_CONTEXT>"),
        image_seq_length=tokens,
    )
    with seeded(11):
        return Policy(InternVLForConditionalGeneration(config).eval(), processor)


def paligemma() -> Policy:
    """A PaliGemma: it reads images and prompts both ways, and its processor has no chat template, so it has ours."""
    tokenizer = tokenizer_of(["<bos>", "<eos>", IMAGE], end="<eos>", begin="<bos>")
    processor = PaliGemmaProcessor(
        image_processor=SiglipImageProcessorPil(
            size={"height": SIDE, "width": SIDE}, image_seq_length=(SIDE // PATCH) ** 2, image_mean=HALF, image_std=HALF
        ),
        tokenizer=tokenizer,
        chat_template=PALIGEMMA,
    )
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(vision_use_head=False, **VISION),
        text_config=GemmaConfig(head_dim=WIDTH // HEADS, **text_options(tokenizer)),
        image_token_index=id_of(tokenizer, IMAGE),
        projection_dim=WIDTH,
        hidden_size=WIDTH,
        vocab_size=len(tokenizer),
    )
    with seeded(12):
        return Policy(PaliGemmaForConditionalGeneration(config).eval(), processor)


FAMILIES: dict[str, Callable[[], Policy]] = {
    "llava": vicuna,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": lambda: _told(qwen3_vl(), QWEN3),
    "idefics3": lambda: _told(idefics3(), IDEFICS),
    "smolvlm": lambda: _told(idefics3(smol=True), IDEFICS),
    "gemma3": lambda: _told(gemma3(begin="<bos>", end="<eos>"), GEMMA),
    "gemma4": gemma4,
    "internvl": internvl,
    "paligemma": paligemma,
    "pixtral": pixtral,
    "mistral3": mistral3,
    "ministral3": lambda: mistral3(ministral=True),
    "idefics2": idefics2,
    "aya_vision": aya_vision,
    "deepseek_vl": deepseek_vl,
    "deepseek_vl_hybrid": deepseek_vl_hybrid,
    "granite_vision": granite_vision,
    "granite4_vision": granite4_vision,
    "ovis2": ovis2,
    "qwen3_5": qwen3_5,
    "qwen3_5_moe": lambda: qwen3_5(experts=True),
    "glm4v": glm4v,
    "glm4v_moe": glm4v_moe,
    "glm46v": glm46v,
    "minicpmv4_6": minicpmv4_6,
    "llama4": llama4,
    "lfm2_vl": lfm2_vl,
}
TITLES = {"pixtral": "Pixtral", "ministral3": "Ministral 3", "granite_vision": "Granite Vision 3"}
"""What models are called that are of another's family."""


def _told(policy: Policy, template: str) -> Policy:
    """The policy with another chat template."""
    policy.processor.chat_template = template
    return policy
