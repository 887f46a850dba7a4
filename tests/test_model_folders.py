"""Folders of models as public reports have them: quantised, diverged, of the hub's cache, with another model's processor.

Each is refused in words before anything is learned or said, and a training that diverges ends before it writes weights.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stllava.config import GroupRates, SamplingOptions, SftOptions
from stllava.errors import StllavaError
from stllava.generation.chat import talk
from stllava.model.load import load_policy
from stllava.records import Manifest
from stllava.stages.sft import sft

WEIGHT = "language_model.model.layers.1.self_attn.q_proj.weight"


def copied(tiny_model: Path, to: Path, **changed: torch.Tensor) -> Path:
    """A copy of the tiny model without its manifest, with some weights changed."""
    shutil.copytree(tiny_model, to, ignore=shutil.ignore_patterns("manifest.json", "plan.json", "lock"))
    weights = load_file(to / "model.safetensors") | changed
    save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    return to


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(tiny_model: Path, tmp_path: Path, value: float) -> None:
    """A training that learned from them ended, and its manifest could not be read again."""
    weight = load_file(tiny_model / "model.safetensors")[WEIGHT].clone()
    weight[0, 0] = value
    with pytest.raises(StllavaError, match=r"no numbers .*q_proj"):
        load_policy(copied(tiny_model, tmp_path / "model", **{WEIGHT: weight}))


def test_codes_of_eight_bits_are_not_taken_for_weights(tiny_model: Path, tmp_path: Path) -> None:
    weight = (load_file(tiny_model / "model.safetensors")[WEIGHT] * 100).to(torch.int8)
    with pytest.raises(StllavaError, match=r"codes of 8 bits .*q_proj"):
        load_policy(copied(tiny_model, tmp_path / "model", **{WEIGHT: weight}))


def test_a_training_that_diverges_ends_with_the_step(tiny_model: Path, phantoms: Path, tmp_path: Path) -> None:
    options = SftOptions(
        epochs=6, batch_size=2, save_steps=0, max_grad_norm=1e30, learning_rate=GroupRates(language=1e30, projector=1e30)
    )
    with pytest.raises(StllavaError, match=r"is (nan|inf) in step \d.*Lower learning_rate"):
        sft(
            options,
            model=str(tiny_model),
            conversations=phantoms / "conversations.jsonl",
            images=phantoms / "images",
            to=tmp_path / "sft",
        )
    assert not (tmp_path / "sft" / "manifest.json").exists()


def test_a_manifest_with_a_figure_that_is_no_number_is_read_again() -> None:
    manifest = Manifest(
        stage="sft",
        config={},
        inputs={},
        outputs={},
        counts_in=1,
        counts_out=1,
        dropped={},
        measures={"share": float("nan")},
        curves={"grad_norm": [(1.0, float("inf"))]},
        versions={},
        commit="",
        started="",
        seconds=0.0,
        device="cpu",
    )
    assert repr(Manifest.model_validate_json(manifest.model_dump_json())) == repr(manifest)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("processor_config.json", {"patch_size": 8}),
        ("processor_config.json", {"vision_feature_select_strategy": "full"}),
        ("config.json", {"image_token_index": 7, "image_token_id": 7}),
    ],
    ids=["patches", "strategy", "token"],
)
def test_another_models_processor_is_called_one(
    tiny_model: Path, phantoms: Path, tmp_path: Path, file: str, change: dict[str, object]
) -> None:
    folder = copied(tiny_model, tmp_path / "model")
    settings = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(settings | change))
    image = next((phantoms / "images").rglob("*.png"))
    with pytest.raises(StllavaError, match="processor is not the model's"):
        talk(folder, image, question="Which side?", sampling=SamplingOptions(temperature=0.0, max_new_tokens=2))
    with pytest.raises(StllavaError, match="processor is not the model's"):
        sft(
            SftOptions(epochs=1, batch_size=2, save_steps=0),
            model=str(folder),
            conversations=phantoms / "conversations.jsonl",
            images=phantoms / "images",
            to=tmp_path / "sft",
        )


def test_a_folder_of_the_hubs_cache_names_its_snapshot_and_that_loads(tiny_model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models--someone--small"
    snapshot = cache / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    shutil.copytree(copied(tiny_model, tmp_path / "model"), cache / "blobs")
    for blob in (cache / "blobs").iterdir():
        (snapshot / blob.name).symlink_to(Path("../../blobs") / blob.name)
    with pytest.raises(StllavaError, match=r"hub's cache.*Name .*snapshots/0a1b"):
        load_policy(cache)
    assert load_policy(snapshot).context


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "runs/mine/sft", "polciy"])
def test_a_path_that_leads_nowhere_is_no_name_on_the_hub(name: str) -> None:
    with pytest.raises(StllavaError, match="there is no such folder"):
        load_policy(name)


def test_a_name_beside_a_folder_is_a_mistyped_path_and_any_other_may_be_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(StllavaError, match=r"runs/sft does not load: there is no such folder \(looked for in "):
        load_policy(Path("runs/sft"))
    with pytest.raises(StllavaError, match="somebody/model is no folder here, and does not load from the hub: "):
        load_policy("somebody/model")


def test_a_single_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(StllavaError, match=r"it is a file, not a folder.*GGUF"):
        load_policy(tmp_path / "model.gguf")
