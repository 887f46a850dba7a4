"""A LLaVA composed of three kinds of towers and four kinds of language models, all tiny and random."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AddedToken,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from stllava.config import ComposeOptions, GroupRates, SftOptions
from stllava.errors import StllavaError
from stllava.model.compose import compose, composed_policy
from stllava.model.load import Policy, Prefix, load_policy
from stllava.model.prompt import prompt, segments
from stllava.records import Message
from stllava.stages.sft import sft

SIDE, PATCH, WIDTH, CONTEXT = 32, 8, 32, 512
SCALE = 0.15
TEXTS = ("Describe the image.", "What organ is shown? The lung.", "Is there a nodule? yes, on the right.", "user assistant")
STRINGS_ONLY = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
)
SHAPE: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
    "initializer_range": SCALE,
}
TEXT: dict[str, Any] = {
    "hidden_size": 2 * WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": SCALE,
}


def tokenizer(*, chatml: bool = True, template: str | None = None) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>"] if chatml else ["<|endoftext|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=special[-1], chat_template=template, clean_up_tokenization_spaces=False
    )


def llama(words: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=words, tie_word_embeddings=True, bos_token_id=None, eos_token_id=1, num_key_value_heads=2, **TEXT
    )


def qwen2(words: int) -> Qwen2Config:
    """With rows to spare, as Qwen's tables have them."""
    return Qwen2Config(
        vocab_size=words + 20, tie_word_embeddings=False, bos_token_id=None, eos_token_id=1, num_key_value_heads=2, **TEXT
    )


def gpt_neox(words: int) -> GPTNeoXConfig:
    return GPTNeoXConfig(vocab_size=words, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0, **TEXT)


def gpt2(words: int) -> GPT2Config:
    """Ties its head to a table whose name LLaVA does not know."""
    return GPT2Config(vocab_size=words, n_embd=WIDTH, n_layer=2, n_head=2, n_positions=CONTEXT, bos_token_id=0, eos_token_id=0)


LANGUAGES: dict[str, tuple[Callable[[int], Any], dict[str, Any]]] = {
    "llama": (llama, {"template": STRINGS_ONLY}),
    "qwen2": (qwen2, {}),
    "gpt_neox": (gpt_neox, {"chatml": False}),
    "gpt2": (gpt2, {"chatml": False}),
}


def clip_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(intermediate_size=64, projection_dim=WIDTH, **SHAPE)


def whole_clip() -> CLIPModel:
    text = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 99}
    return CLIPModel(CLIPConfig(vision_config=clip_config().to_dict(), text_config=text, projection_dim=WIDTH))


TOWERS: dict[str, tuple[Callable[[], Any], Any]] = {
    "clip": (lambda: CLIPVisionModel(clip_config()), CLIPImageProcessorPil),
    "whole clip": (whole_clip, CLIPImageProcessorPil),
    "siglip": (lambda: SiglipVisionModel(SiglipVisionConfig(intermediate_size=64, **SHAPE)), SiglipImageProcessorPil),
    "dinov2": (lambda: Dinov2Model(Dinov2Config(mlp_ratio=2, **SHAPE)), CLIPImageProcessorPil),
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a folder for each tower and each language model."""
    root = tmp_path_factory.mktemp("parts")
    torch.manual_seed(11)
    for name, (build, images) in TOWERS.items():
        model = build()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=SCALE)
        model.save_pretrained(root / name)
        square = {"height": SIDE, "width": SIDE}
        images(size=square, crop_size=square, image_mean=[0.4, 0.5, 0.6], image_std=[0.2] * 3).save_pretrained(root / name)
    for name, (configure, settings) in LANGUAGES.items():
        write_language(root / name, configure, **settings)
    return root


def write_language(folder: Path, configure: Callable[[int], Any], **settings: Any) -> Path:
    words = tokenizer(**settings)
    AutoModelForCausalLM.from_config(configure(len(words))).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def options(parts: Path, *, vision: str = "dinov2", language: str = "llama", **rest: Any) -> ComposeOptions:
    return ComposeOptions(vision=str(parts / vision), language=str(parts / language), **rest)


def picture(folder: Path, name: str = "a.png", size: tuple[int, int] = (40, 30)) -> str:
    folder.mkdir(exist_ok=True)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(folder / name)
    return name


def said(policy: Policy, text: str) -> Tensor:
    ids = torch.tensor([policy.tokens(text)])
    with torch.no_grad():
        logits: Tensor = policy.model(input_ids=ids).logits
    return logits


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


@pytest.mark.parametrize(
    ("vision", "language", "rest"),
    [
        ("clip", "llama", {}),
        ("whole clip", "qwen2", {"pool": 2}),
        ("siglip", "gpt_neox", {}),
        ("dinov2", "gpt2", {"projector": "prototypes", "prototypes": 4}),
        ("dinov2", "llama", {"pool": 2, "projector": "prototypes-paper", "prototypes": 2}),
    ],
)
def test_a_composed_folder_reloads_to_the_bit_and_speaks_and_sees_as_its_parts(
    parts: Path, tmp_path: Path, vision: str, language: str, rest: dict[str, Any]
) -> None:
    wanted = options(parts, vision=vision, language=language, **rest)
    compose(wanted, to=tmp_path / "model", seed=1)
    policy, fresh = load_policy(tmp_path / "model"), composed_policy(wanted, seed=1)
    assert_same(policy.model.state_dict(), fresh.model.state_dict())

    alone = AutoModelForCausalLM.from_pretrained(parts / language).eval()
    text = "Is there a nodule?"
    with torch.no_grad():
        logits = alone(torch.tensor([policy.tokens(text)])).logits
    assert torch.equal(said(policy, text)[..., : logits.shape[-1]], logits)
    for name, weight in alone.base_model.state_dict().items():
        assert torch.equal(policy.model.model.language_model.state_dict()[name][: len(weight)], weight), name

    tower = policy.model.model.vision_tower
    source = type(tower).from_pretrained(parts / vision).eval()
    assert_same(tower.state_dict(), source.state_dict())
    prefix = Prefix("<image>", (picture(tmp_path / "images"),), tmp_path / "images")
    encoded = policy.encode(prefix)
    patches, grid = (SIDE // PATCH) ** 2, SIDE // PATCH // wanted.pool
    assert encoded.ids.count(policy.model.config.image_token_index) == len(encoded.ids) == grid**2
    seen: list[Tensor] = []
    projector = policy.model.get_submodule("model.multi_modal_projector")
    projector.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        features = source(**encoded.inputs, output_hidden_states=True).hidden_states[-2]
        policy.model(input_ids=torch.tensor([encoded.ids]), **encoded.inputs)
    assert torch.equal(seen[0], features[:, -patches:])


def test_a_plain_composition_is_a_stock_llava(parts: Path) -> None:
    assert type(composed_policy(options(parts), seed=0).model) is LlavaForConditionalGeneration


@pytest.mark.parametrize(("language", "tied"), [("llama", True), ("qwen2", False), ("gpt2", False)])
def test_a_tied_head_stays_tied_where_llava_can_tie(parts: Path, tmp_path: Path, language: str, tied: bool) -> None:
    compose(options(parts, language=language), to=tmp_path / "model")
    model = load_policy(tmp_path / "model").model
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    assert model.config.tie_word_embeddings == tied


def test_image_tokens_begin_as_large_as_words(parts: Path, tmp_path: Path) -> None:
    kinds: list[dict[str, Any]] = [{}, {"pool": 2}, {"projector": "prototypes", "prototypes": 4}]
    for rest in kinds:
        policy = composed_policy(options(parts, **rest), seed=3)
        encoded = policy.encode(Prefix("<image>", (picture(tmp_path / "images"),), tmp_path / "images"))
        with torch.no_grad():
            tokens = torch.cat(cast(Any, policy.model).get_image_features(**encoded.inputs).pooler_output)
            words = cast(Tensor, policy.model.get_input_embeddings().weight)
            assert 0.5 < float(tokens.pow(2).mean().sqrt() / words.pow(2).mean().sqrt()) < 2


def test_the_seed_draws_the_projector_and_nothing_else(parts: Path) -> None:
    one, again, other = (composed_policy(options(parts), seed=seed).model.state_dict() for seed in (1, 1, 2))
    assert_same(one, again)
    changed = {name for name in one if not torch.equal(one[name], other[name])}
    assert changed == {f"model.multi_modal_projector.linear_{layer}.weight" for layer in (1, 2)}


@pytest.mark.parametrize("language", ["llama", "qwen2"])
def test_a_chatml_model_is_spoken_to_in_its_own_words(parts: Path, language: str) -> None:
    policy = composed_policy(options(parts, language=language), seed=0)
    turns = [
        Message(role="user", content="What is it?"),
        Message(role="assistant", content="A lung."),
        Message(role="virtual_user", content="Is it ill?"),
    ]
    found = segments(policy.chat, turns, images=1)
    text = "".join(segment.text for segment in found)
    assert text.startswith("<|im_start|>user\n<image>What is it?<|im_end|>\n<|im_start|>assistant\nA lung.<|im_end|>\n")
    assert text.rstrip().endswith("<|im_start|>virtual_user\nIs it ill?<|im_end|>")
    assert [segment.text for segment in found if segment.learn] == ["A lung.<|im_end|>", "Is it ill?<|im_end|>"]
    assert policy.stop_ids == {policy.tokenizer.convert_tokens_to_ids("<|im_end|>")}
    strings: list[Any] = [{"role": "user", "content": "What?"}]
    lists: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "What?"}]}]
    assert policy.processor.apply_chat_template(strings) == policy.processor.apply_chat_template(lists)


def test_a_base_model_ends_turns_with_its_own_token(parts: Path) -> None:
    policy = composed_policy(options(parts, language="gpt_neox"), seed=0)
    _, behind = prompt(policy.chat, [Message(role="user", content="What is it?")], images=1, speaker="assistant")
    assert behind == "<|endoftext|>"
    assert policy.stop_ids == {policy.tokenizer.convert_tokens_to_ids("<|endoftext|>")}


def test_an_image_is_shown_whole_padded_or_stretched(parts: Path, tmp_path: Path) -> None:
    name = picture(tmp_path / "images", size=(64, 16))
    prefix = Prefix("<image>", (name,), tmp_path / "images")
    padded, stretched = (
        composed_policy(options(parts, pad=pad), seed=0).encode(prefix).inputs["pixel_values"] for pad in (True, False)
    )
    assert padded.shape == stretched.shape == (1, 3, SIDE, SIDE)
    mean_colour = padded[0, :, :8].abs()
    assert float(mean_colour.max()) < 1 / 255 / 0.2
    assert float(stretched[0, :, :8].abs().mean()) > 0.5


def test_dinov2_takes_another_image_size_and_clip_refuses_it(parts: Path, tmp_path: Path) -> None:
    policy = composed_policy(options(parts, image_size=2 * SIDE), seed=0)
    encoded = policy.encode(Prefix("<image>", (picture(tmp_path / "images"),), tmp_path / "images"))
    assert len(encoded.ids) == policy.model.config.image_seq_length == (2 * SIDE // PATCH) ** 2
    with torch.no_grad():
        policy.model(input_ids=torch.tensor([encoded.ids]), **encoded.inputs)
    with pytest.raises(StllavaError, match="image_size 64: this tower's positions are for 32 pixels"):
        composed_policy(options(parts, vision="clip", image_size=2 * SIDE), seed=0)


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        ({"vision": "llama"}, "is a llama; expected a vision tower of clip, siglip, dinov2"),
        ({"language": "nothing"}, "nothing does not load"),
        ({"language": "whole clip"}, "it is a clip, of which language is a part only"),
        ({"image_size": 40, "pool": 2, "feature_layer": 5}, "pool 2: images are 5 × 5 patches; feature_layer 5"),
        ({"vision": "nothing"}, "does not load"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(parts: Path, rest: dict[str, Any], reason: str) -> None:
    with pytest.raises(StllavaError, match=reason):
        composed_policy(options(parts, **rest), seed=0)


def test_a_model_that_sees_ahead_is_refused(parts: Path, tmp_path: Path) -> None:
    write_language(tmp_path / "bert", lambda words: BertConfig(vocab_size=words, **TEXT))
    with pytest.raises(StllavaError, match="its tokens see the ones behind them"):
        composed_policy(ComposeOptions(vision=str(parts / "clip"), language=str(tmp_path / "bert")), seed=0)


def test_a_model_that_caps_its_logits_is_refused(parts: Path, tmp_path: Path) -> None:
    capped = Gemma2Config(vocab_size=400, head_dim=16, num_key_value_heads=2, final_logit_softcapping=0.5, **TEXT)
    write_language(tmp_path / "gemma2", lambda _: capped)
    with pytest.raises(StllavaError, match="caps or scales its logits"):
        composed_policy(ComposeOptions(vision=str(parts / "clip"), language=str(tmp_path / "gemma2")), seed=0)


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])


def pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n")


def a_norm_less(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(name for name in weights if "norm" in name))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def a_layer_more(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if ".0." in name)
    save_file({**weights, name.replace(".0.", ".7."): weights[name].clone()}, folder / "model.safetensors")


@pytest.mark.parametrize("part", ["vision", "language"])
@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (cut, r"model\.safetensors cannot be read as weights"),
        (pointer, r"model\.safetensors is a pointer of Git LFS"),
        (a_norm_less, r"is not whole: it lacks .*norm"),
        (a_layer_more, r"is not whole: it has no place for .*\.7\."),
    ],
    ids=["cut", "Git LFS pointer", "a norm less", "a layer more"],
)
def test_a_part_that_is_not_whole_is_refused_by_name(
    parts: Path, tmp_path: Path, part: str, damage: Callable[[Path], None], named: str
) -> None:
    chosen = {"vision": "clip", "language": "llama"}
    shutil.copytree(parts / chosen[part], tmp_path / part)
    damage(tmp_path / part)
    paths = {name: str(parts / folder) for name, folder in chosen.items()} | {part: str(tmp_path / part)}
    with pytest.raises(StllavaError, match=named):
        composed_policy(ComposeOptions.model_validate(paths), seed=0)


def test_words_without_an_embedding_are_refused_and_a_special_token_gets_one(parts: Path, tmp_path: Path) -> None:
    for kind, folder in ((False, tmp_path / "words"), (True, tmp_path / "special")):
        shutil.copytree(parts / "llama", folder)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        rows = AutoModelForCausalLM.from_pretrained(folder).config.vocab_size
        tokenizer.add_tokens([AddedToken(f"<extra{index}>", special=kind) for index in range(rows - len(tokenizer) + 3)])
        tokenizer.save_pretrained(folder)
    with pytest.raises(StllavaError, match=r"counts up to \d+ \('<extra\d+>'\) and the model has embeddings for 0 to"):
        composed_policy(ComposeOptions(vision=str(parts / "clip"), language=str(tmp_path / "words")), seed=0)
    composed_policy(ComposeOptions(vision=str(parts / "clip"), language=str(tmp_path / "special")), seed=0)


def test_a_tower_with_weights_missing_is_refused(parts: Path, tmp_path: Path) -> None:
    ViTModel(ViTConfig(intermediate_size=64, **SHAPE)).save_pretrained(tmp_path / "tower")
    Dinov2Config(mlp_ratio=2, **SHAPE).save_pretrained(tmp_path / "tower")
    CLIPImageProcessorPil().save_pretrained(tmp_path / "tower")
    with pytest.raises(StllavaError, match=r"lacks embeddings\.mask_token, .* more; it has no place for encoder"):
        composed_policy(ComposeOptions(vision=str(tmp_path / "tower"), language=str(parts / "llama")), seed=0)


def test_a_finished_composition_is_not_made_again_and_another_is_refused(parts: Path, tmp_path: Path) -> None:
    first = compose(options(parts), to=tmp_path / "model", seed=1)
    assert compose(options(parts), to=tmp_path / "model", seed=1) == first
    with pytest.raises(StllavaError, match="seed"):
        compose(options(parts), to=tmp_path / "model", seed=2)


@pytest.mark.parametrize("rest", [{}, {"pool": 2, "projector": "prototypes", "prototypes": 2}])
def test_alignment_moves_the_projector_and_leaves_the_rest_to_the_bit(
    parts: Path, phantoms: Path, tmp_path: Path, rest: dict[str, Any]
) -> None:
    compose(options(parts, **rest), to=tmp_path / "model")
    sft(
        SftOptions(learning_rate=GroupRates(language=0, projector=1e-3, vision=0), warmup=0.0, batch_size=3, save_steps=0),
        model=str(tmp_path / "model"),
        conversations=phantoms / "conversations.jsonl",
        images=phantoms / "images",
        to=tmp_path / "aligned",
    )
    before, after = (load_policy(tmp_path / name).model.state_dict() for name in ("model", "aligned"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("multi_modal_projector" in name for name in changed)


def test_every_part_of_a_composed_model_can_learn(parts: Path, phantoms: Path, tmp_path: Path) -> None:
    compose(options(parts, vision="siglip", language="qwen2"), to=tmp_path / "model")
    rates = GroupRates(language=1e-3, projector=1e-3, vision=1e-3)
    sft(
        SftOptions(learning_rate=rates, warmup=0.0, batch_size=6, save_steps=0),
        model=str(tmp_path / "model"),
        conversations=phantoms / "conversations.jsonl",
        images=phantoms / "images",
        to=tmp_path / "sft",
    )
    before, after = (load_policy(tmp_path / name).model.state_dict() for name in ("model", "sft"))
    changed = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert {"vision_tower", "multi_modal_projector", "language_model"} <= changed
