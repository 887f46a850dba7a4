"""Checkpoints in the original's layouts, written here by their old names: what is imported is the model they came from."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from stllava.config import SamplingOptions
from stllava.errors import StllavaError
from stllava.generation.local_sampler import LocalSampler
from stllava.generation.sampler import Prompt
from stllava.model.load import Policy, Prefix, load_policy
from stllava.model.original import import_checkpoint
from stllava.model.original.folders import TOWERS
from stllava.model.projector import StllavaConfig, StllavaForConditionalGeneration
from stllava.model.prompt import segments
from stllava.records import Manifest, Message, Role
from stllava.store import read_manifest

SIDE, PATCH, WIDTH = 32, 8, 32
TEXTS = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful answers.",
    "USER: What organ is shown? ASSISTANT: The lung. VUSER: Is there a nodule? [INST] yes [/INST]",
)
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
TOWER = "model.vision_tower.vision_tower.vision_model"
MEAN = [0.5, 0.4, 0.3]
LORA = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")
TOWER_LORA = (f"{TOWER}.encoder.layers.0.self_attn.k_proj", f"{TOWER}.encoder.layers.0.mlp.fc1")
IMAGE_INDEX = -200
State = dict[str, Tensor]


# The original, from outside: its names, its tokenizer, its forward.


def old_names(model: LlavaForConditionalGeneration) -> State:
    """A model's weights, not copies, by the names that the original gives them."""
    renamed: State = {}
    for name, tensor in model.state_dict().items():
        for new, old in (
            ("model.vision_tower", "model.vision_tower.vision_tower.vision_model"),
            ("model.multi_modal_projector.linear_1", "model.mm_projector.0"),
            ("model.multi_modal_projector.linear_2", "model.mm_projector.2"),
            ("model.multi_modal_projector", "model.mm_projector"),
            ("model.language_model", "model"),
        ):
            if name.startswith(f"{new}."):
                name = name.replace(new, old, 1)
                break
        renamed[name] = tensor
    return renamed


def build_tokenizer(*, legacy: bool) -> LlamaTokenizer:
    """BPE with bytes behind the special tokens, as Llama's is."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", split=True)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=390, special_tokens=special, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    return LlamaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]], legacy=legacy)


def old_ids(tokenizer: LlamaTokenizer, prompt: str) -> list[int]:
    """How the original splits a prompt: each stretch between images alone, BOS once."""
    first, *rest = (tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in prompt.split("<image>"))
    return [1, *first, *(token for piece in rest for token in (IMAGE_INDEX, *piece))]


@torch.inference_mode()
def old_logits(model: LlavaForConditionalGeneration, ids: list[int], pixels: Tensor) -> Tensor:
    """The original's forward: image tokens set between the embeddings of the text, [N, vocabulary]."""
    at = ids.index(IMAGE_INDEX)
    embed = model.get_input_embeddings()
    seen = model.get_image_features(pixels).pooler_output[0]
    inputs = torch.cat([embed(torch.tensor(ids[:at])), seen, embed(torch.tensor(ids[at + 1 :]))])
    hidden = model.model.language_model(inputs_embeds=inputs[None]).last_hidden_state
    logits: Tensor = model.lm_head(hidden)[0]
    return logits


def build_model(kind: str, rows: int) -> LlavaForConditionalGeneration:
    text: dict[str, Any] = {
        "vocab_size": rows,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1 if kind == "mistral" else 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.15,
    }
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        initializer_range=0.15,
    )
    shape: dict[str, Any] = {
        "text_config": MistralConfig(sliding_window=None, **text) if kind == "mistral" else LlamaConfig(**text),
        "vision_config": vision,
        "image_token_index": rows - 1,
        "image_seq_length": (SIDE // PATCH) ** 2,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = (
            StllavaForConditionalGeneration(StllavaConfig(projector="prototypes", **shape))
            if kind == "prototypes"
            else LlavaForConditionalGeneration(LlavaConfig(**shape))
        )
    model.eval()
    return model


# The original, on disk.


class Original:
    """A tiny model and what the original would write of it."""

    def __init__(self, folder: Path, kind: str = "llama", *, legacy: bool = False) -> None:
        self.folder, self.kind, self.legacy = folder, kind, legacy
        self.tokenizer = build_tokenizer(legacy=legacy)
        self.model = build_model(kind, len(self.tokenizer))
        self.live = old_names(self.model)
        self.state = {name: tensor.clone() for name, tensor in self.live.items()} | {
            "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
            f"{TOWER}.embeddings.position_ids": torch.arange(17)[None],
        }
        self.clip = folder / "clip"
        tower = {name.replace(TOWER, "vision_model"): tensor for name, tensor in self.part("vision_tower").items()}
        text = {"text_model.embeddings.token_embedding.weight": torch.zeros(2, 2), "logit_scale": torch.zeros(())}
        write(self.clip, tower | text, {"model_type": "clip", "vision_config": self.model.config.to_dict()["vision_config"]})
        (self.clip / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": [0.2] * 3}))

    def part(self, *words: str) -> State:
        """The weights whose names hold one of the words."""
        return {name: tensor for name, tensor in self.state.items() if any(word in name for word in words)}

    @property
    def language(self) -> State:
        return {name: tensor for name, tensor in self.state.items() if "vision_tower" not in name and "mm_" not in name}

    @property
    def config(self) -> dict[str, object]:
        """config.json as the original writes it."""
        shape: dict[str, object] = self.model.config.get_text_config().to_dict()
        return shape | {
            "model_type": "llava_mistral" if self.kind == "mistral" else "llava_llama",
            "mm_vision_tower": "openai/clip-vit-large-patch14-336",
            "mm_projector_type": "cluster" if self.kind == "prototypes" else "mlp2x_gelu",
            "mm_hidden_size": WIDTH,
            "mm_vision_select_layer": -2,
            "mm_vision_select_feature": "patch",
            "mm_use_im_start_end": False,
            "image_aspect_ratio": "pad",
            "rope_scaling": None,
        }

    def write(self, name: str, state: State, **changed: object) -> Path:
        """The folder of a language model with its tokenizer and one pickle."""
        self.write_tokenizer(self.folder / name)
        return write(self.folder / name, state, self.config | changed)

    def write_tokenizer(self, folder: Path) -> None:
        """The tokenizer's files; one without the word `legacy` was taken for an old one."""
        self.tokenizer.save_pretrained(folder)
        config = folder / "tokenizer_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | ({} if self.legacy else {"legacy": False})))

    def write_shards(self, *, ending: str, state: State | None = None, **changed: object) -> Path:
        """A whole model in three shards with an index."""
        stem = "model" if ending == "safetensors" else "pytorch_model"
        whole = self.state if state is None else state
        places = {name: f"{stem}-{at % 3 + 1:05}-of-00003.{ending}" for at, name in enumerate(sorted(whole))}
        folder = self.folder / "whole"
        self.write_tokenizer(folder)
        for place in set(places.values()):
            write(folder, {name: whole[name] for name in whole if places[name] == place}, self.config | changed, place)
        (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
        return folder

    def train_lora(self, folder: Path, targets: Mapping[str, str]) -> State:
        """LoRA of the weights `targets`, by their names in the file: an adapter's folder, and the model with it merged."""
        random = torch.Generator().manual_seed(len(targets))
        halves: State = {}
        for name, target in targets.items():
            weight = self.live[f"{target}.weight"]
            down, up = (torch.randn(*size, generator=random) / 4 for size in ((4, weight.shape[1]), (weight.shape[0], 4)))
            weight += 2.0 * up @ down
            halves |= {f"base_model.model.{name}.lora_A.weight": down, f"base_model.model.{name}.lora_B.weight": up}
        write(folder, halves, None, "adapter_model.bin")
        (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, "bias": "none", "target_modules": []}))
        return halves

    def write_lora(self, *, tower: bool) -> Path:
        """What SQ-LLaVA writes after training with LoRA, beside the tower's if `tower`; the projector has learned too."""
        folder = self.folder / "lora"
        self.train_lora(folder, {name: name for name in LORA})
        for name, tensor in self.live.items():
            if "mm_projector" in name and name.endswith("weight"):
                tensor += 0.1
        learned = {f"base_model.model.{name}": tensor for name, tensor in self.live.items() if "mm_projector" in name}
        write(folder, learned, self.config, "non_lora_trainables.bin")
        if tower:
            copies = self.train_lora(
                folder / "Vit-lora", {name.removeprefix("model.vision_tower."): name for name in TOWER_LORA}
            )
            halves = torch.load(folder / "adapter_model.bin")
            beside = {name.replace(".model.", ".model.model.vision_tower.", 1): tensor for name, tensor in copies.items()}
            torch.save(halves | beside, folder / "adapter_model.bin")
        return folder


def write(folder: Path, state: State, config: Mapping[str, object] | None, name: str = "pytorch_model.bin") -> Path:
    """A folder with a configuration and a file of weights."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    (save_file if name.endswith(".safetensors") else torch.save)(state, folder / name)
    return folder


def sharded(one: Original, ending: str) -> dict[str, Path]:
    return {"source": one.write_shards(ending=ending, mm_vision_tower=str(one.clip))}


def apart(one: Original) -> dict[str, Path]:
    """Language model with projector in one file, CLIP elsewhere."""
    return {"source": one.write("language", one.language | one.part("mm_projector")), "vision": one.clip}


def projector_alone(one: Original) -> dict[str, Path]:
    source = write(one.folder / "projector", one.part("mm_projector"), one.config, "mm_projector.bin")
    return {"source": source, "base": one.write("base", one.language, model_type="llama"), "vision": one.clip}


def three_folders(one: Original) -> dict[str, Path]:
    projector = write(one.folder / "projector", one.part("mm_projector"), None, "mm_projector.bin")
    return {"source": one.write("language", one.language), "vision": one.clip, "projector": projector}


def lora(one: Original, *, tower: bool) -> dict[str, Path]:
    base = one.write("base", one.language | one.part("mm_projector"))
    return {"source": one.write_lora(tower=tower), "base": base, "vision": one.clip}


LAYOUTS: dict[str, tuple[str, Callable[[Original], dict[str, Path]]]] = {
    "whole in pickled shards": ("llama", lambda one: sharded(one, "bin")),
    "whole in safetensors": ("llama", lambda one: sharded(one, "safetensors")),
    "whole on Mistral": ("mistral", lambda one: sharded(one, "bin")),
    "whole with prototypes": ("prototypes", lambda one: sharded(one, "bin")),
    "tower apart": ("llama", apart),
    "projector alone": ("llama", projector_alone),
    "three folders": ("prototypes", three_folders),
    "LoRA": ("llama", lambda one: lora(one, tower=False)),
    "LoRA of tower and language model": ("prototypes", lambda one: lora(one, tower=True)),
}


def bring(to: Path, folders: Mapping[str, Path]) -> Manifest:
    """Import from folders by the names of their parts."""
    source, base, vision, vision_adapter, projector = (
        folders.get(name) for name in ("source", "base", "vision", "vision_adapter", "projector")
    )
    assert source is not None
    return import_checkpoint(source, to=to, base=base, vision=vision, vision_adapter=vision_adapter, projector=projector)


def imported(one: Original, folders: Mapping[str, Path]) -> Policy:
    """The policy that comes of the import."""
    bring(one.folder / "new", folders)
    return load_policy(one.folder / "new", dtype=torch.float32)


@pytest.fixture
def picture(tmp_path: Path) -> Image.Image:
    """Wider than high, with an odd height, and as a file."""
    made = Image.linear_gradient("L").resize((60, 41)).convert("RGB")
    made.save(tmp_path / "picture.png")
    return made


def squared(picture: Image.Image) -> Tensor:
    """What the original makes of an image: a square of the mean colour with the image in its middle, then CLIP's pixels."""
    side = max(picture.size)
    square = Image.new("RGB", (side, side), tuple(int(share * 255) for share in MEAN))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    clip = CLIPImageProcessorPil(
        image_mean=MEAN, image_std=[0.2] * 3, size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    pixels: Tensor = clip(square, return_tensors="pt")["pixel_values"]
    return pixels


def encoded(policy: Policy, text: str, picture: Image.Image) -> dict[str, Tensor]:
    return dict(policy.processor(text=[text], images=[picture], return_tensors="pt", add_special_tokens=False))


def rendered(policy: Policy, turns: Sequence[tuple[Role, str]]) -> str:
    """The chat template's text of a conversation about one image, up to where the assistant speaks."""
    messages: Any = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    messages[0]["content"].insert(0, {"type": "image"})
    return str(policy.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def collapsed(policy: Policy, ids: list[int]) -> list[int]:
    """Token ids with one IMAGE_INDEX for each run of image tokens."""
    image = policy.tokenizer.convert_tokens_to_ids("<image>")
    return [IMAGE_INDEX if one == image else one for at, one in enumerate(ids) if one != image or ids[at - 1] != image]


@pytest.mark.parametrize(("kind", "lay_out"), LAYOUTS.values(), ids=LAYOUTS)
def test_each_layout_gives_the_logits_of_the_model_it_came_from(
    tmp_path: Path, picture: Image.Image, kind: str, lay_out: Callable[[Original], dict[str, Path]]
) -> None:
    one = Original(tmp_path, kind)
    policy = imported(one, lay_out(one))
    inputs = encoded(policy, "<s> USER: <image> \nWhat organ is shown? ASSISTANT: The lung.", picture)
    with torch.inference_mode():
        got = policy.model.cpu()(**inputs).logits[0]
    expected = old_logits(one.model, collapsed(policy, inputs["input_ids"][0].tolist()), squared(picture))
    torch.testing.assert_close(got[:, : len(one.tokenizer)], expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1


def test_an_imported_folder_answers_and_is_not_imported_twice(tmp_path: Path, picture: Image.Image) -> None:
    one = Original(tmp_path)
    folders = apart(one)
    made = bring(tmp_path / "new", folders)
    assert any(str(one.clip) in note for note in made.notes)
    assert read_manifest(tmp_path / "new") == made == bring(tmp_path / "new", folders)
    sampler = LocalSampler(load_policy(tmp_path / "new"), root=tmp_path, tokens=4096)
    asked = Prompt((Message(role="user", content="What organ is shown?"),), ("picture.png",))
    said = sampler.complete([asked], k=2, sampling=SamplingOptions(max_new_tokens=4), seed=0)
    assert len(said[0]) == 2
    assert not sampler.notes


TURNS: tuple[tuple[Role, str], ...] = (
    ("user", "What organ is shown?"),
    ("assistant", "The lung."),
    ("virtual_user", "Is there a nodule?"),
    ("assistant", "yes"),
    ("user", "Where?"),
)
PROMPTS = {
    "llama": (
        f"{VICUNA}USER: <image>\nWhat organ is shown? ASSISTANT: The lung.</s>",
        "VUSER: Is there a nodule?</s> ASSISTANT: yes</s>",
        "USER: Where? ASSISTANT:",
    ),
    "mistral": (
        "[INST] <image>\nWhat organ is shown? [/INST] The lung. </s>",
        "VUSER: Is there a nodule? </s> yes </s>",
        "[INST] Where? [/INST]",
    ),
}
"""What the original writes for the first two of the turns, the next two, and the last."""


@pytest.mark.parametrize("legacy", [False, True], ids=["today's blanks", "old blanks"])
@pytest.mark.parametrize("kind", PROMPTS)
def test_a_rendered_prompt_has_the_tokens_of_the_originals_string(
    tmp_path: Path, picture: Image.Image, kind: str, legacy: bool
) -> None:
    one = Original(tmp_path, kind, legacy=legacy)
    policy = imported(one, apart(one))
    inputs = encoded(policy, rendered(policy, TURNS), picture)
    assert collapsed(policy, inputs["input_ids"][0].tolist()) == old_ids(one.tokenizer, "".join(PROMPTS[kind]))
    assert torch.equal(inputs["pixel_values"], squared(picture))


@pytest.mark.parametrize(("legacy", "exchanges"), [(False, 1), (True, 2)], ids=["today's blanks", "old blanks"])
@pytest.mark.parametrize("kind", PROMPTS)
def test_what_is_learned_from_has_the_tokens_of_the_originals_string(
    tmp_path: Path, picture: Image.Image, kind: str, legacy: bool, exchanges: int
) -> None:
    one = Original(tmp_path, kind, legacy=legacy)
    policy = imported(one, apart(one))
    messages = [Message(role=role, content=text) for role, text in TURNS[: 2 * exchanges]]
    seen, *pieces = segments(policy.chat, messages, images=1)
    prefix = policy.encode(Prefix(seen.text, ("picture.png",), tmp_path)).ids
    ids = [*collapsed(policy, [*prefix]), *(token for piece in pieces for token in policy.tokens(piece.text))]
    assert ids == old_ids(one.tokenizer, "".join(PROMPTS[kind][:exchanges]))
    learned = "".join(piece.text for piece in pieces if piece.learn)
    assert all(text in learned for _, text in TURNS[1 : 2 * exchanges])


def test_images_are_marked_and_cropped_where_the_original_does_so(tmp_path: Path, picture: Image.Image) -> None:
    one = Original(tmp_path)
    one.tokenizer.add_tokens(["<im_start>", "<im_end>"], special_tokens=True)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        one.state[name] = torch.cat([one.state[name], one.state[name][:2]])
    whole = one.language | one.part("mm_projector")
    source = one.write("marked", whole, mm_use_im_start_end=True, image_aspect_ratio="square", vocab_size=len(one.tokenizer))
    policy = imported(one, {"source": source, "vision": one.clip})
    inputs = encoded(policy, rendered(policy, [("user", "Where?")]), picture)
    marked = old_ids(one.tokenizer, f"{VICUNA}USER: <im_start><image><im_end>\nWhere? ASSISTANT:")
    assert collapsed(policy, inputs["input_ids"][0].tolist()) == marked
    middle = picture.crop(((60 - 41) // 2, 0, (60 - 41) // 2 + 41, 41))
    assert inputs["pixel_values"].shape == squared(middle).shape
    assert not torch.allclose(inputs["pixel_values"], squared(picture))


def test_the_tower_of_llava_is_known_by_its_name() -> None:
    stock = LlavaConfig().to_dict()["vision_config"]
    assert TOWERS["openai/clip-vit-large-patch14-336"].items() <= stock.items()


# What is refused.


class Malice:
    """Runs code when it is unpickled by anything that lets it."""

    def __init__(self, at: Path) -> None:
        self.at = at

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.at,)


def refused(to: Path, source: Path, **folders: Path) -> str:
    """What is said when a checkpoint is refused; nothing is written then."""
    with pytest.raises(StllavaError) as error:
        bring(to, {"source": source, **folders})
    assert not to.exists() or [path.name for path in to.iterdir()] == ["lock"]
    return str(error.value)


def test_a_partial_or_wrong_checkpoint_is_refused_by_the_names_of_its_weights(tmp_path: Path) -> None:
    one = Original(tmp_path)
    whole = one.language | one.part("mm_projector")
    gone = {
        name: whole.pop(name) for name in ("model.layers.1.mlp.up_proj.weight", "lm_head.weight", "model.mm_projector.2.bias")
    }
    whole["model.layers.2.mlp.up_proj.weight"] = next(iter(gone.values()))
    whole["model.norm.weight"] = torch.ones(WIDTH + 1)
    said = refused(tmp_path / "new", one.write("partial", whole), vision=one.clip)
    assert all(name in said for name in (*gone, "model.layers.2.mlp.up_proj.weight", "model.norm.weight (33,) not (32,)"))
    assert "model.norm.bias" not in said


def test_of_many_missing_weights_ten_are_named_and_all_counted(tmp_path: Path) -> None:
    one = Original(tmp_path)
    source = one.write("towerless", one.language | one.part("mm_projector"), mm_vision_tower=str(one.clip))
    torch.save({"vision_model.embeddings.class_embedding": torch.zeros(WIDTH)}, one.clip / "pytorch_model.bin")
    said = refused(tmp_path / "new", source)
    count = len([name for name in one.live if name.startswith(TOWER)]) - 1
    assert said.count(f"{TOWER}.") == 10
    assert f"({count} in all)" in said


def test_an_absent_shard_is_named(tmp_path: Path) -> None:
    one = Original(tmp_path)
    source = one.write_shards(ending="bin")
    (source / "pytorch_model-00002-of-00003.bin").unlink()
    assert "pytorch_model-00002-of-00003.bin" in refused(tmp_path / "new", source, vision=one.clip)


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "Git LFS pointer": lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n",
    "list": lambda data: b"[1]",
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("source", "config.json"),
        ("source", "pytorch_model.bin.index.json"),
        ("source", "pytorch_model-00001-of-00003.bin"),
        ("source", "tokenizer.json"),
        ("source", "tokenizer_config.json"),
        ("vision", "config.json"),
        ("vision", "preprocessor_config.json"),
    ],
)
def test_a_damaged_file_is_named_in_a_sentence(folder: str, name: str, damage: str, tmp_path: Path) -> None:
    one = Original(tmp_path)
    source = one.write_shards(ending="bin")
    file = {"source": source, "vision": one.clip}[folder] / name
    file.write_bytes(DAMAGED[damage](file.read_bytes()))
    assert (file.name if name != "tokenizer.json" else str(file.parent)) in refused(tmp_path / "new", source, vision=one.clip)


def test_a_pickle_that_wants_to_run_code_is_refused_and_does_not(tmp_path: Path) -> None:
    one = Original(tmp_path)
    source = one.write("malicious", one.language | one.part("mm_projector"))
    torch.save({"model.norm.weight": Malice(tmp_path / "ran")}, source / "pytorch_model.bin")
    assert "pytorch_model.bin" in refused(tmp_path / "new", source, vision=one.clip)
    assert not (tmp_path / "ran").exists()
    torch.load(source / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "ran").exists()


def test_half_a_lora_and_one_for_another_model_are_refused_by_name(tmp_path: Path) -> None:
    one = Original(tmp_path)
    folders = lora(one, tower=False)
    halves = torch.load(folders["source"] / "adapter_model.bin")
    gone = halves.pop("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight")
    torch.save(halves, folders["source"] / "adapter_model.bin")
    assert "model.layers.0.self_attn.q_proj.weight" in refused(tmp_path / "new", **folders)
    halves["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"] = gone
    halves["base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"] = gone
    halves["base_model.model.model.layers.7.self_attn.q_proj.lora_B.weight"] = gone.T
    torch.save(halves, folders["source"] / "adapter_model.bin")
    assert "model.layers.7.self_attn.q_proj.weight, which the base lacks" in refused(tmp_path / "new", **folders)


def test_lora_that_is_more_than_a_product_is_refused(tmp_path: Path) -> None:
    one = Original(tmp_path)
    folders = lora(one, tower=False)
    config = folders["source"] / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_dora": True, "bias": "all"}))
    assert "bias, use_dora" in refused(tmp_path / "new", **folders)


def test_lora_of_a_language_model_whose_tower_learned_too_needs_the_towers(tmp_path: Path) -> None:
    one = Original(tmp_path)
    folders = lora(one, tower=True)
    (folders["source"] / "Vit-lora").rename(tmp_path / "elsewhere")
    assert "vision_adapter" in refused(tmp_path / "new", **folders)
    assert "vision_adapter" in refused(tmp_path / "new", **folders | {"vision": tmp_path / "elsewhere"})
    bring(tmp_path / "new", folders | {"vision_adapter": tmp_path / "elsewhere"})


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model_type": "llava_mpt"}, "llava_mpt"),
        ({"image_aspect_ratio": "anyres"}, "anyres"),
        ({"mm_vision_tower": "google/siglip-so400m"}, "google/siglip-so400m"),
        ({"text_config": {}}, "today's layout"),
    ],
    ids=["another language model", "tiles", "another tower", "today's layout"],
)
def test_models_of_another_kind_are_refused(tmp_path: Path, changed: dict[str, object], words: str) -> None:
    one = Original(tmp_path)
    assert words in refused(tmp_path / "new", one.write("other", one.state, **changed))


def test_a_projector_that_is_linear_or_absent_is_refused(tmp_path: Path) -> None:
    one = Original(tmp_path)
    source = one.write("bare", one.language)
    assert "no projector" in refused(tmp_path / "new", source, vision=one.clip)
    linear = {"model.mm_projector.weight": torch.zeros(WIDTH, WIDTH), "model.mm_projector.bias": torch.zeros(WIDTH)}
    torch.save(linear, tmp_path / "linear.bin")
    assert "linear" in refused(tmp_path / "new", source, vision=one.clip, projector=tmp_path / "linear.bin")


def test_a_base_is_asked_for_where_one_is_needed_and_nowhere_else(tmp_path: Path) -> None:
    one = Original(tmp_path)
    folders = projector_alone(one)
    assert "holds no language model" in refused(tmp_path / "new", folders["source"], vision=one.clip)
    assert "Leave the base away" in refused(tmp_path / "new", folders["base"], base=folders["base"], vision=one.clip)


def test_a_tokenizer_that_cannot_be_read_is_refused_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Original(tmp_path)
    source = apart(one)["source"]
    (source / "tokenizer.json").unlink()
    assert "no tokenizer" in refused(tmp_path / "new", source, vision=one.clip)
    (source / "tokenizer.model").write_bytes(b"sentencepiece")
    monkeypatch.setattr("stllava.model.original.imported_processor.is_sentencepiece_available", lambda: False)
    assert "pip install sentencepiece" in refused(tmp_path / "new", source, vision=one.clip)
