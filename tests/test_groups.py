"""Every image-text-to-text class of transformers, built without memory: which group each of its weights is found to be in.

What is expected was read off the classes: what takes pixels, what brings features to the language model, what hears or draws.
Some configurations have no defaults that fit each other; CONFIGURATIONS has what they lack.
"""

import re
from collections.abc import Callable
from functools import cache
from typing import cast

import pytest
import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModel,
    Cohere2Config,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipVisionConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from stllava.config import GroupRates, LoraOptions, SftOptions
from stllava.config.training import AdapterOptions
from stllava.errors import StllavaError
from stllava.model.adapters import prepare_model, table
from stllava.model.groups import Groups

EXPECTED: dict[tuple[str, str, str], str] = {
    ("model.vision_tower", "model.multi_modal_projector", ""): (
        "aria aya_vision perception_lm cohere2_vision fast_vlm gemma3 got_ocr2 internvl lfm2_vl lfm3_vl llava minimax_m3_vl "
        "mistral3 mistral_large4 molmo2 paligemma pp_chart2table qianfan_ocr shieldgemma2 vipllava"
    ),
    ("model.visual", "model.visual.downsample model.visual.merger", ""): ("glm46v glm4v glm4v_moe glm5_next glm_ocr glmga"),
    ("model.visual", "model.visual.merger", ""): ("exaone4_5 qwen4_exp qwen2_5_vl qwen2_vl qwen3_5 qwen3_5_moe"),
    ("model.visual", "model.visual.deepstack_merger_list model.visual.merger", ""): (
        "cohere_compass cosmos3_omni qwen3_vl qwen3_vl_moe"
    ),
    ("vision_model", "language_projection qformer query_tokens", ""): ("blip-2 instructblip instructblipvideo"),
    ("model.vision_model", "model.connector", ""): ("idefics2 idefics3 smolvlm"),
    ("model.vision_tower", "model.image_newline model.multi_modal_projector", ""): (
        "llava_next llava_next_video llava_onevision"
    ),
    ("model.vision_tower", "model.merger", ""): ("minicpm_ocr minicpmv4_6 minicpmv4_7"),
    ("model.visual", "model.projector", ""): ("cosmos3_edge paddleocr_vl"),
    ("vision_model", "image_to_text_projection", ""): ("kosmos-2 kosmos-2.5"),
    ("vision_model", "multi_modal_projector", ""): ("nemotron_h_omni"),
    ("vision_model", "multi_modal_projector vision_model.vision_adapter", ""): ("llama4"),
    ("model.vision_model", "model.multi_modal_projector", ""): ("mllama step3p7"),
    ("vision_model", "", ""): ("blip"),
    ("model.vision_tower", "model.multi_modal_projector model.view_separator", ""): ("deepseek_ocr2"),
    ("model.vision_model", "model.aligner", ""): ("deepseek_vl"),
    (
        "model.high_res_vision_model model.vision_model",
        "model.aligner model.high_res_vision_alpha model.high_res_vision_neck model.high_res_vision_proj",
        "",
    ): ("deepseek_vl_hybrid"),
    ("model.vision_tower", "model.vision_tower.merger", "model.audio_tower"): ("dots3_note"),
    ("model.vqmodel", "", ""): ("emu3"),
    ("model.vision_tower", "model.resampler_model", ""): ("ernie4_5_vl_moe"),
    ("", "model.vision_embed_tokens", ""): ("fuyu"),
    ("model.vision_tower", "model.embed_vision", "model.audio_tower model.embed_audio"): ("gemma3n gemma4"),
    ("", "model.embed_vision", "model.embed_audio"): ("gemma4_unified"),
    ("model.vision_tower", "model.image_newline model.layerwise_projectors model.spatial_projectors", ""): ("granite4_vision"),
    ("model.vision_model", "model.vision_model.connector", ""): ("granite_docling"),
    ("model.vision_tower", "model.vision_tower.patch_merger", ""): ("hunyuan_vl"),
    ("model.vision_model", "model.projector model.vision_model.merger", ""): ("hyperclovax_vision_v2"),
    ("model.vision_tower", "model.vision_tower.merger", ""): ("inkling2"),
    ("model.vision_tower", "", "model.audio_tower"): ("inkling_mm_model"),
    (
        "model.vision_model model.vqmodel",
        "model.aligner",
        "model.generation_embeddings model.generation_aligner model.generation_head",
    ): ("janus"),
    ("model.vision_tower", "model.mm_projector", ""): ("kimi_k25"),
    ("model.vision_encoder", "model.vision_projection", ""): ("lighton_ocr"),
    ("", "", ""): ("mistral4"),
    ("model.vision_tower", "model.vision_adapter model.vision_projection", ""): ("muse_glimmer"),
    ("model.vision_tower", "model.vision_adapter model.vision_projection", "model.audio_tower"): ("muse_spark"),
    ("model.vision_tower", "model.visual_embeddings_table", ""): ("ovis2"),
    ("model.visual", "model.visual.merger", "model.audio_tower"): ("qwen2_5_omni_thinker"),
    ("model.visual", "model.visual.merger model.visual.merger_list", "model.audio_tower"): ("qwen3_omni_moe_thinker"),
    ("model.vision_tower", "model.image_newline model.multi_modal_projector model.view_separator", ""): ("unlimited_ocr"),
    ("model.vision_model", "model.projector", ""): ("video_llama_3"),
    ("model.video_tower model.image_tower", "model.multi_modal_projector", ""): ("video_llava"),
}
"""The families whose modules by these names are vision, projector and other, all else being language; longer names go first."""
MIXED = (
    "chameleon diffusion_gemma evolla florence2 git idefics pi0 pix2struct pp_formulanet t5gemma2 udop vision-encoder-decoder"
)
"""Encoder-decoders, and models whose decoder holds what sees."""
PLACES = {family: place for place, families in EXPECTED.items() for family in families.split()}

ROPE = {"rope_type": "default", "rope_theta": 1e4}
INDEXED = {
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "indexed_attention"],
    "indexer_compress_ratio": 4,
    "indexer_budget": 64,
    "indexer_head_dim": 256,
    "indexer_kv_heads": 1,
    "indexer_n_heads": 2,
}
CONFIGURATIONS: dict[str, Callable[[], dict[str, object]]] = {
    "aya_vision": lambda: {"vision_config": SiglipVisionConfig(), "text_config": Cohere2Config(num_hidden_layers=2)},
    "chameleon": lambda: {"vocabulary_map": {"<image>": 5}},
    "cohere_compass": lambda: {"text_config": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}}},
    "deepseek_ocr2": lambda: {"text_config": {"num_hidden_layers": 2, "mlp_layer_types": ["dense", "sparse"]}},
    "diffusion_gemma": lambda: {"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 64}},
    "emu3": lambda: {"vocabulary_map": {"<image>": 5, "<|extra_200|>": 7}},
    "gemma3n": lambda: {
        "text_config": {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2, "num_kv_shared_layers": 0}
    },
    "perception_lm": lambda: {"vision_config": {"model_args": {"embed_dim": 64}}},
    "gemma4": lambda: {"vision_config": {}, "audio_config": {}},
    "gemma4_unified": lambda: {"vision_config": {}, "audio_config": {}},
    "granite4_vision": lambda: {"deepstack_layer_map": [[0, 0]], "downsample_rate": "4/8"},
    "hunyuan_vl": lambda: {"text_config": {"head_dim": 128}, "vision_config": {}},
    "qwen4_exp": lambda: {"text_config": INDEXED},
}
COUNTS = ("num_hidden_layers", "depth", "num_layers", "encoder_layers", "decoder_layers")


class Tower(PreTrainedModel):
    """Stands for a tower of timm, a library that needs torchvision."""

    main_input_name = "pixel_values"

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.timm_model = nn.Linear(2, 2)


def shrink(config: PreTrainedConfig) -> None:
    """At most four layers of everything."""
    for name in COUNTS:
        if isinstance(count := getattr(config, name, None), int) and count > 4:
            setattr(config, name, 4)
    for name in ("layer_types", "mlp_layer_types"):
        if isinstance(kinds := getattr(config, name, None), list):
            setattr(config, name, kinds[:4])
    for name in config.sub_configs:
        if isinstance(part := getattr(config, name, None), PreTrainedConfig):
            shrink(part)


@cache
def built(family: str) -> PreTrainedModel:
    """A model of the family, on the meta device."""
    made = AutoModel.from_config

    def from_config(config: PreTrainedConfig, **options: object) -> PreTrainedModel:
        try:
            found: PreTrainedModel = made(config, **options)  # type: ignore[no-untyped-call]
        except ImportError:
            return Tower(config)
        return found

    configured = cast(Callable[..., PreTrainedConfig], CONFIG_MAPPING[family])
    config = configured(**CONFIGURATIONS.get(family, dict)())
    shrink(config)
    kind = cast(Callable[[PreTrainedConfig], PreTrainedModel], MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)])
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoModel, "from_config", from_config)
        return kind(config)


def expected(family: str, weight: str) -> str:
    """The group of a weight by the longest name that it begins with."""
    begins = {
        part: group
        for group, names in zip(("vision", "projector", "other"), PLACES[family], strict=True)
        for part in names.split()
        if weight == part or weight.startswith(f"{part}.")
    }
    return begins[max(begins, key=len)] if begins else "language"


def test_every_class_of_transformers_is_expected_somewhere() -> None:
    assert sorted([*PLACES, *MIXED.split()]) == sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


@pytest.mark.parametrize("family", PLACES)
def test_every_weight_is_in_the_group_that_its_class_says(family: str) -> None:
    model = built(family)
    group_of = Groups(model)
    found = {name: group_of(name) for name, _ in model.named_parameters()}
    assert found == {name: expected(family, name) for name in found}
    for names, group in zip(PLACES[family], ("vision", "projector", "other"), strict=True):
        for part in names.split():
            assert any(name == part or name.startswith(f"{part}.") for name in found), part
            assert group in found.values()


@pytest.mark.parametrize("family", MIXED.split())
def test_a_model_in_which_what_sees_is_not_apart_from_what_speaks_is_refused(family: str) -> None:
    with pytest.raises(StllavaError, match="keeps what sees and what speaks in one, so its weights cannot be told apart"):
        Groups(built(family))


def test_layers_of_which_nothing_says_what_they_take_are_refused() -> None:
    model = built.__wrapped__("llava")
    tower = model.model.vision_tower
    del model.model.vision_tower
    model.model.eye = tower.encoder
    with pytest.raises(StllavaError, match=r"has layers \(model\.eye\.layers\.0, …\) of which nothing says"):
        Groups(model)


RATES = GroupRates(language=1e-4, projector=1e-4, vision=0.0)
LANGUAGE = LoraOptions(language=AdapterOptions(rank=2))


@pytest.mark.parametrize(
    "family", ["deepseek_vl", "lighton_ocr", "ovis2", "video_llama_3", "janus", "gemma4", "qwen2_5_omni_thinker"]
)
def test_a_rate_of_0_for_vision_freezes_towers_by_any_name_and_adapters_stand_on_language_alone(family: str) -> None:
    model = built.__wrapped__(family)
    options = SftOptions(learning_rate=RATES, lora=LANGUAGE)
    adapted = prepare_model(model, options)
    learns = {re.sub(r"^base_model\.model\.", "", name) for name, one in adapted.named_parameters() if one.requires_grad}
    assert {expected(family, name) for name in learns if ".lora_" not in name} == {"projector"}
    assert {expected(family, name) for name in learns if ".lora_" in name} == {"language"}
    rows = {line.split()[0]: line for line in table(adapted, options)}
    assert ("other" in rows) == bool(PLACES[family][2])
    assert " not " in rows["vision"]


@pytest.mark.parametrize(
    ("family", "rates", "lora", "named"),
    [
        ("blip", {"projector": 1e-4}, {}, r"learning_rate\.projector is 0\.0001 and BlipFor.* has no projector weights"),
        ("inkling_mm_model", {"projector": 1e-4}, {}, r"has no projector weights.*Set learning_rate\.projector to 0"),
        ("fuyu", {"vision": 1e-4}, {}, r"has no vision weights.*Set learning_rate\.vision to 0"),
        ("fuyu", {"vision": 1e-4}, {"vision": {"rank": 2}}, r"has no vision weights"),
        ("mistral4", {"vision": 1e-4, "projector": 0}, {}, r"has no vision weights"),
    ],
)
def test_a_rate_for_a_part_that_the_model_has_not_is_refused(
    family: str, rates: dict[str, float], lora: dict[str, object], named: str
) -> None:
    options = SftOptions(
        learning_rate=GroupRates(**{"language": 1e-4, "projector": 0.0, "vision": 0.0, **rates}),
        lora=LoraOptions.model_validate(lora),
    )
    with pytest.raises(StllavaError, match=named):
        prepare_model(built.__wrapped__(family), options)


def test_adapters_without_a_linear_layer_to_stand_on_are_refused() -> None:
    model = built.__wrapped__("llava")
    model.model.vision_tower.encoder = nn.Identity()
    options = SftOptions(
        learning_rate=GroupRates(language=1e-4, projector=0.0, vision=1e-4), lora=LoraOptions(vision=AdapterOptions(rank=2))
    )
    with pytest.raises(StllavaError, match=r"lora\.vision\.rank is 2 and Llava.* has no linear layers there"):
        prepare_model(model, options)
