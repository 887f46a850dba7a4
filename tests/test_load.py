"""What is read of a model's folder: no Python of its own, no weight that is made up, and a sentence for what is wrong.

The kinds of damage are those of public reports: projectors and heads "newly initialized" (microsoft/LLaVA-Rad 25,
NVlabs/OmniDrive 43, LLaVA-VL/LLaVA-NeXT 273), weights saved with their adapters, folders cloned without Git LFS,
downloads that broke off; and what must load although it looks like one: tied heads, tables of old versions.
"""

import ast
import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, MixtralConfig, PreTrainedConfig, Qwen3MoeConfig

from helpers.architectures import llava_of, text_options, tokenizer_of
from helpers.families import FAMILIES
from stllava.config import ComposeOptions
from stllava.errors import StllavaError
from stllava.model.load import Policy, fingerprint, load_policy
from stllava.model.parts import read_language, read_tower
from stllava.model.processor import read_processor
from stllava.model.small import IMAGE, TEMPLATE
from stllava.recipe import RECIPES
from stllava.store import file_hash

CODE = "open({mark!r}, 'w').close()\nfrom transformers import LlamaConfig as Own\n"
"""Says that it ran; transformers runs a copy of it, so the place is written out."""


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny LLaVA."""
    folder = tmp_path_factory.mktemp("whole") / "llava"
    FAMILIES["llava"]().save(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of it to be damaged."""
    to = tmp_path / "llava"
    to.mkdir()
    for file in whole.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def change(file: Path, **values: object) -> None:
    """Set keys of a JSON object."""
    said = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**said, **values}))


def strange_config(folder: Path) -> None:
    change(folder / "config.json", model_type="phi4mm", auto_map={"AutoConfig": "own.Own"})


def strange_model(folder: Path) -> None:
    change(folder / "config.json", model_type="llama", auto_map={"AutoModelForImageTextToText": "own.Own"})


def strange_text(folder: Path) -> None:
    # transformers asks for a part of a model whatever it was told for the whole.
    text = {"model_type": "trocr", "auto_map": {"AutoModel": "own.Own"}}
    change(folder / "config.json", text_config=text)


def strange_tokenizer(folder: Path) -> None:
    change(folder / "tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", None]})


def strange_processor(folder: Path) -> None:
    change(folder / "processor_config.json", processor_class="Own", auto_map={"AutoProcessor": "own.Own"})


def strange_pictures(folder: Path) -> None:
    pictures = {"image_processor_type": "Own", "auto_map": {"AutoImageProcessor": "own.Own"}}
    change(folder / "processor_config.json", image_processor=pictures)


STRANGE = (strange_config, strange_model, strange_text, strange_tokenizer, strange_processor, strange_pictures)


@pytest.fixture
def ran(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that is there when the folder's own Python was run; whoever is asked whether it may answers yes."""
    mark = tmp_path / "ran"
    (folder / "own.py").write_text(CODE.format(mark=str(mark)))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda question="": "y")
    return mark


@pytest.mark.parametrize("upstream", ["", "someone/else--"], ids=["own code", "code of another repository"])
@pytest.mark.parametrize("change_folder", STRANGE, ids=lambda change_folder: change_folder.__name__)
def test_python_that_comes_with_a_model_is_never_run_whatever_is_answered(
    folder: Path, ran: Path, change_folder: Callable[[Path], None], upstream: str
) -> None:
    change_folder(folder)
    for file in folder.glob("*.json"):
        file.write_text(file.read_text().replace('"own.Own"', f'"{upstream}own.Own"'))
    refused = pytest.raises(StllavaError, match=r"needs Python code that comes with it .* never run here; expected .* -hf")
    # This tokenizer is read from tokenizer.json by a class of transformers, as most are that name one of their own.
    with nullcontext() if change_folder is strange_tokenizer else refused:
        load_policy(folder)
    assert not ran.exists()


def test_nor_is_that_of_what_a_llava_is_composed_of_or_of_a_processor_alone(folder: Path, ran: Path) -> None:
    strange_config(folder)
    options = ComposeOptions(vision=str(folder), language=str(folder))
    for read in (lambda: read_processor(folder), lambda: read_tower(options), lambda: read_language(options.language)):
        with pytest.raises(StllavaError, match="needs Python code that comes with it"):
            read()
    assert not ran.exists()


def test_every_load_of_a_model_says_that_its_python_is_not_to_be_run() -> None:
    source = RECIPES.parent
    calls = [
        (path, node)
        for path in source.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "from_pretrained"
    ]
    assert calls
    for path, call in calls:
        words = {word.arg: word.value for word in call.keywords}
        assert ast.dump(words.get("trust_remote_code", ast.Constant(None))) == ast.dump(ast.Constant(False)), (
            f"{path}:{call.lineno}"
        )


def tensors(folder: Path) -> dict[str, Tensor]:
    """The weights in a folder by their names there."""
    return load_file(folder / "model.safetensors")


def write(folder: Path, weights: dict[str, Tensor]) -> None:
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("family", "part", "named"),
    [
        ("llava", "multi_modal_projector", r"lacks model\.multi_modal_projector\.linear_1\.bias, "),
        ("llava", "vision_tower", r"lacks model\.vision_tower\..* more"),
        ("llava", "lm_head", r"lacks lm_head\.weight;"),
        ("llava", "embed_tokens", r"lacks model\.language_model\.embed_tokens\.weight;"),
        ("llava_next", "image_newline", r"lacks model\.image_newline;"),
        ("qwen2_5_vl", "merger", r"lacks model\.visual\.merger\.ln_q\.weight, "),
        ("gemma3", "multi_modal_projector", r"lacks model\.multi_modal_projector\.mm_input_projection_weight"),
        ("idefics3", "connector", r"lacks model\.connector\.modality_projection\.proj\.weight;"),
    ],
)
def test_a_checkpoint_without_a_part_is_refused_by_name(family: str, part: str, named: str, tmp_path: Path) -> None:
    FAMILIES[family]().save(tmp_path)
    kept = {name: value for name, value in tensors(tmp_path).items() if part not in name}
    write(tmp_path, kept)
    with pytest.raises(StllavaError, match=named):
        load_policy(tmp_path)


HEAD = "language_model.lm_head.weight"
LAYER = "language_model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change_weights", "named"),
    [
        (lambda found: {**found, "adapter.weight": found[HEAD].clone()}, "has no place for .*adapter.weight; .* Fetch"),
        (lambda found: {**found, HEAD: found[HEAD][:-1].clone()}, r"in another shape lm_head\.weight \(\d+, 32\) not"),
        (
            lambda found: {**found, f"{LAYER}.lora_A.default.weight": found[f"{LAYER}.weight"][:2].clone()},
            r"has no place for .*lora_A.*Merge adapters",
        ),
        (
            lambda found: {name.replace(LAYER, f"{LAYER}.base_layer"): value for name, value in found.items()},
            r"lacks .*q_proj.weight; it has no place for .*base_layer.*Merge adapters",
        ),
        (lambda found: {f"_orig_mod.{name}": value for name, value in found.items()}, "lacks .* more; .* take off wrappers"),
        (
            lambda found: {**found, "language_model.model.layers.2.mlp.up_proj.weight": found[HEAD].clone()},
            r"has no place for .*layers\.2\.mlp",
        ),
    ],
    ids=["one too many", "a row short", "LoRA", "LoRA around its base", "compiled", "a layer too many"],
)
def test_a_weight_that_has_no_place_or_another_shape_is_refused_by_name(
    folder: Path, change_weights: Callable[[dict[str, Tensor]], dict[str, Tensor]], named: str
) -> None:
    write(folder, change_weights(tensors(folder)))
    with pytest.raises(StllavaError, match=named):
        load_policy(folder)


@pytest.mark.parametrize(
    ("text", "expert"),
    [
        (Qwen3MoeConfig, "experts.1.down_proj.weight"),
        (Qwen3MoeConfig, "experts.1.up_proj.weight"),
        (MixtralConfig, "experts.1.w1.weight"),
    ],
)
@pytest.mark.parametrize("change_weight", ["gone", "cut"])
def test_an_expert_that_is_gone_or_misshapen_is_refused_by_name(
    text: type[PreTrainedConfig], expert: str, change_weight: str, tmp_path: Path
) -> None:
    tokenizer = tokenizer_of(["<s>", "</s>", IMAGE], end="</s>", begin="<s>")
    few = {"num_experts": 4, "moe_intermediate_size": 32, "num_local_experts": 4, "head_dim": 16}
    llava_of(tokenizer, text(**{**text_options(tokenizer), **few}), spoken=TEMPLATE, seed=1).save(tmp_path)
    load_policy(tmp_path)
    found = tensors(tmp_path)
    (name,) = [name for name in found if "layers.0" in name and name.endswith(expert)]
    weight = found.pop(name)
    write(tmp_path, found if change_weight == "gone" else {**found, name: weight[:-1].clone()})
    with pytest.raises(StllavaError, match=r"is not whole: it .*layers\.0\.mlp\.experts"):
        load_policy(tmp_path)


def same(one: Policy, other: Policy) -> bool:
    """Whether two policies have the same weights."""
    old, new = one.model.state_dict(), other.model.state_dict()
    return old.keys() == new.keys() and all(torch.equal(value, new[name]) for name, value in old.items())


def test_what_is_tied_may_be_absent_at_either_end(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(["<s>", "</s>", IMAGE], end="</s>", begin="<s>")
    text = LlamaConfig(tie_word_embeddings=True, **text_options(tokenizer))
    policy = llava_of(tokenizer, text, spoken=TEMPLATE, seed=1)
    policy.model.config.tie_word_embeddings = True
    policy.model.tie_weights()
    policy.save(tmp_path)
    found = tensors(tmp_path)
    (table,) = [name for name in found if "embed_tokens" in name or "lm_head" in name]
    assert same(load_policy(tmp_path), policy)
    # Some tools write the head alone (huggingface/transformers 42362).
    write(tmp_path, {(HEAD if name == table else name): value for name, value in found.items()})
    assert same(load_policy(tmp_path), policy)
    write(tmp_path, {name: value for name, value in found.items() if name != table})
    with pytest.raises(StllavaError, match=r"lacks .*embed_tokens"):
        load_policy(tmp_path)


def test_old_names_and_tables_that_are_computed_today_are_no_fault(folder: Path) -> None:
    policy = load_policy(folder)
    tables = {
        "vision_tower.vision_model.embeddings.position_ids": torch.arange(17)[None],
        "language_model.model.rotary_emb.inv_freq": torch.ones(8),
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "language_model.model.layers.1.self_attn.rotary_emb.cos_cached": torch.ones(4, 8),
    }
    write(folder, {**tensors(folder), **tables})
    assert same(load_policy(folder), policy)


def test_layers_that_predict_tokens_further_ahead_are_left_aside(folder: Path) -> None:
    # As DeepSeek's and GLM's checkpoints hold them, behind the layers of the model.
    config = json.loads((folder / "config.json").read_text())
    change(folder / "config.json", text_config={**config["text_config"], "num_nextn_predict_layers": 1})
    weight = {"language_model.model.layers.2.eh_proj.weight": torch.ones(2, 2)}
    write(folder, {**tensors(folder), **weight})
    load_policy(folder)
    write(folder, {**tensors(folder), "language_model.model.layers.3.eh_proj.weight": torch.ones(2, 2)})
    with pytest.raises(StllavaError, match=r"no place for .*layers.3"):
        load_policy(folder)


@pytest.fixture
def shards(folder: Path) -> list[Path]:
    """The files into which the folder's weights were cut, a file of the original's layout beside them."""
    policy = load_policy(folder)
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    policy.model.save_pretrained(folder, max_shard_size="40KB")
    assert same(load_policy(folder), policy)
    found = sorted(folder.glob("model-*.safetensors"))
    assert len(found) > 2
    return found


def test_a_shard_that_is_absent_cut_or_other_than_its_index_says_is_refused_by_name(shards: list[Path]) -> None:
    folder, first = shards[0].parent, shards[0].read_bytes()
    shards[0].unlink()
    with pytest.raises(StllavaError, match=rf"lacks {shards[0].name} of the {len(shards)} files that model.safetensors.index"):
        load_policy(folder)
    shards[0].write_bytes(first[:-7])
    with pytest.raises(StllavaError, match=rf"{shards[0].name} cannot be read as weights"):
        load_policy(folder)
    shards[0].write_bytes(shards[1].read_bytes())
    with pytest.raises(StllavaError, match="is not whole: it lacks"):
        load_policy(folder)
    index = folder / "model.safetensors.index.json"
    for text in (index.read_text()[:-20], "[]", '{"metadata": {}}'):
        index.write_text(text)
        with pytest.raises(StllavaError, match=r"index\.json (is not whole JSON|holds a list|has no weight_map)"):
            load_policy(folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n",
        lambda data: b"null",
        lambda data: b"<!DOCTYPE html><title>Sign in</title>",
        lambda data: bytes(range(256)),
    ],
    ids=["cut", "empty", "Git LFS pointer", "null", "a page that asks to sign in", "other bytes"],
)
@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "model.safetensors", "processor_config.json", "tokenizer.json"]
)
def test_a_damaged_file_is_named_in_a_sentence(folder: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    with pytest.raises(StllavaError, match=rf"/{name} (is not whole JSON|holds a|is a pointer of Git LFS|cannot be read)"):
        load_policy(folder)


def test_adapters_that_were_not_merged_are_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "elsewhere"}))
    with pytest.raises(StllavaError, match=r"holds LoRA adapters .* merge_and_unload"):
        load_policy(folder)


def test_a_tokenizer_that_counts_further_than_the_embeddings_is_refused(folder: Path) -> None:
    policy = load_policy(folder)
    rows = int(policy.model.config.get_text_config().vocab_size)
    assert len(policy.tokenizer) == rows
    policy.tokenizer.add_tokens(["nodule", "mass"])
    policy.processor.save_pretrained(folder)
    with pytest.raises(
        StllavaError, match=rf"counts up to {rows + 1} \('mass'\) and the model has embeddings for 0 to {rows - 1}"
    ):
        load_policy(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "chat_template.jinja", "config.json"])
@pytest.mark.parametrize("change_file", ["a bit", "gone"])
def test_a_policys_file_that_is_not_what_its_stage_wrote_is_refused(
    tiny_model: Path, tmp_path: Path, name: str, change_file: str
) -> None:
    policy = tmp_path / "sft"
    shutil.copytree(tiny_model, policy)
    print_of = fingerprint(policy)
    load_policy(policy)
    data = bytearray((policy / name).read_bytes())
    data[-3] ^= 1
    if change_file == "gone":
        (policy / name).unlink()
    else:
        (policy / name).write_bytes(data)
    assert fingerprint(policy) == print_of
    says = r"(has changed|is gone) since the stage 'model' wrote it|has no config\.json"
    with pytest.raises(StllavaError, match=says):
        load_policy(policy)


def test_a_file_is_hashed_once_and_again_when_it_changes(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tmp_path / "sft"
    shutil.copytree(tiny_model, policy)
    read: list[str] = []

    def noted(file: Path) -> str:
        read.append(file.name)
        return file_hash(file)

    monkeypatch.setattr("stllava.model.model_folder.file_hash", noted)
    load_policy(policy)
    assert sorted(read) == sorted({*read})
    assert "model.safetensors" in read
    read.clear()
    load_policy(policy)
    assert read == []
    data = (policy / "model.safetensors").read_bytes()
    (policy / "model.safetensors").write_bytes(data)
    load_policy(policy)
    assert read == ["model.safetensors"]


def test_a_model_that_loads_says_nothing_and_one_that_does_not_says_it_once(
    folder: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    load_policy(folder)
    write(folder, {name: value for name, value in tensors(folder).items() if "projector" not in name})
    with pytest.raises(StllavaError, match="lacks"):
        load_policy(folder)
    assert not caplog.records
    assert "LOAD REPORT" not in "".join(capfd.readouterr())
