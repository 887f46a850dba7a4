"""What differs between families of vision-language models, in one table.

The table is knowledge, not a gate. A model of a family that is not in it works by the same rules: model/groups.py finds
out which part of it a weight belongs to, tree/guard.py whether its trees can be packed, and its chat template says how it is
spoken to. `tests/test_families.py` holds every row against a tiny model of that family.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """One family."""

    title: str
    """Its name in the docs."""
    vision: tuple[str, ...]
    """Names of the modules that are vision towers."""
    projector: tuple[str, ...]
    """Names of the modules and parameters that carry image features to the language model."""
    place: str
    """What stands for an image in a prompt."""
    unpacked: str = ""
    """Why its trees are not packed; empty where they are."""
    added: str = ""
    """What its processor writes behind a prompt whether it ends there or not; it is cut off again."""
    kind_of_text: int = 0
    """What a token behind the images is, where the model asks what each token is."""
    pictures: str = ""
    """Processor class that reads images as its own does, where its own cannot even be built without its half for videos."""
    axis: int = 0
    """Along which axis the pixels of several images are joined."""
    fewest: int = 1
    """Fewest tokens of an image that its model takes."""
    template: str = ""
    """Chat template for processors that come without one."""


POSITIONS = "an image's tokens have positions of several axes"
STATE = "a layer carries a state from token to token"
BOTH_WAYS = "an image's tokens see each other both ways"

PALIGEMMA = (
    "{%- set seen = namespace(images=0) -%}"
    "{%- for message in messages if message['content'] is not string -%}"
    "{%- for part in message['content'] if part['type'] == 'image' -%}"
    "{%- set seen.images = seen.images + 1 -%}{{ '<image>' }}"
    "{%- endfor -%}{%- endfor -%}"
    "{%- if not seen.images -%}{{ bos_token }}{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'virtual_user' -%}{{ 'ask en\n' }}{%- endif -%}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}{%- endif -%}"
    "{%- if message['role'] in ('assistant', 'virtual_user') -%}{{ eos_token }}{%- endif -%}"
    "{{ '\n' }}"
    "{%- endfor -%}"
)
"""PaliGemma was taught `<image>…<bos>task\\n` and then the answer; its own tasks include questions, so ours is one more.

Its processor writes `<bos>` behind the images, so the template writes it only where there are none.
"""

FAMILIES: dict[str, Family] = {
    "llava": Family("LLaVA-1.5", ("vision_tower",), ("multi_modal_projector",), "<image>"),
    "llava_next": Family("LLaVA-NeXT", ("vision_tower",), ("multi_modal_projector", "image_newline"), "<image>"),
    "llava_onevision": Family("LLaVA-OneVision", ("vision_tower",), ("multi_modal_projector", "image_newline"), "<image>"),
    "qwen2_vl": Family("Qwen2-VL", ("visual",), ("merger",), "<|image_pad|>", POSITIONS),
    "qwen2_5_vl": Family("Qwen2.5-VL", ("visual",), ("merger",), "<|image_pad|>", POSITIONS),
    "qwen3_vl": Family("Qwen3-VL", ("visual",), ("merger", "deepstack_merger_list"), "<|image_pad|>", POSITIONS),
    "idefics3": Family("Idefics3", ("vision_model",), ("connector",), "<image>"),
    "smolvlm": Family("SmolVLM", ("vision_model",), ("connector",), "<image>", pictures="Idefics3Processor"),
    "gemma3": Family("Gemma 3, MedGemma", ("vision_tower",), ("multi_modal_projector",), "<start_of_image>", BOTH_WAYS),
    "gemma4": Family("Gemma 4", ("vision_tower",), ("embed_vision",), "<|image|>", BOTH_WAYS),
    "internvl": Family("InternVL", ("vision_tower",), ("multi_modal_projector",), "<IMG_CONTEXT>"),
    "paligemma": Family(
        "PaliGemma",
        ("vision_tower",),
        ("multi_modal_projector",),
        "<image>",
        BOTH_WAYS,
        added="\n",
        kind_of_text=1,
        template=PALIGEMMA,
    ),
    # The projector of a single token loses an axis, and splitting by images fails (transformers 5.23).
    "mistral3": Family("Mistral Small 3", ("vision_tower",), ("multi_modal_projector",), "[IMG]", fewest=2),
    "idefics2": Family("Idefics2", ("vision_model",), ("connector",), "<image>"),
    "aya_vision": Family("Aya Vision", ("vision_tower",), ("multi_modal_projector",), "<image>"),
    "deepseek_vl": Family("DeepSeek-VL", ("vision_model",), ("aligner",), "<image_placeholder>"),
    "deepseek_vl_hybrid": Family(
        "DeepSeek-VL of two towers",
        ("vision_model", "high_res_vision_model"),
        ("aligner", "high_res_vision_neck", "high_res_vision_proj", "high_res_vision_alpha"),
        "<image_placeholder>",
    ),
    "granite4_vision": Family(
        "Granite Vision 4", ("vision_tower",), ("layerwise_projectors", "spatial_projectors", "image_newline"), "<image>"
    ),
    "qwen3_5": Family("Qwen3.5", ("visual",), ("merger",), "<|image_pad|>", STATE),
    "qwen3_5_moe": Family("Qwen3.5, a mixture of experts", ("visual",), ("merger",), "<|image_pad|>", STATE),
    "glm4v": Family("GLM-4.1V", ("visual",), ("merger", "downsample"), "<|image|>", POSITIONS),
    "glm4v_moe": Family("GLM-4.5V", ("visual",), ("merger", "downsample"), "<|image|>", POSITIONS),
    "glm46v": Family("GLM-4.6V", ("visual",), ("merger", "downsample"), "<|image|>", POSITIONS),
    "minicpmv4_6": Family("MiniCPM-V 4.6", ("vision_tower",), ("merger",), "<|image_pad|>", STATE, axis=3),
    "llama4": Family("Llama 4", ("vision_model",), ("multi_modal_projector", "vision_adapter"), "<|image|>"),
    "lfm2_vl": Family("LFM2-VL", ("vision_tower",), ("multi_modal_projector",), "<image>", STATE),
    "ovis2": Family("Ovis2", ("vision_tower",), ("visual_embeddings_table",), "<image>"),
}
"""By the `model_type` of their configuration."""

BESIDE = "looks at images from beside its text (cross-attention)"
OTHERWISE: dict[str, str] = {
    "mllama": f"Llama 3.2 Vision, which {BESIDE}",
    "idefics": f"the first Idefics, which {BESIDE}",
    "diffusion_gemma": "a diffusion model, which does not write from left to right",
}
"""What does not read images among the tokens of its prompt and go on from there, by `model_type`: it is refused."""

UNKNOWN = Family("", (), (), "")
"""What is known of any other family."""

PROJECTOR = tuple(sorted({name for family in FAMILIES.values() for name in family.projector}))


def family_of(model_type: str) -> Family:
    """What is known of the models with this `model_type`."""
    return FAMILIES.get(model_type, UNKNOWN)
