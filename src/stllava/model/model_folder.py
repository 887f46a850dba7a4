"""The files of a model's folder, before any of them is loaded: what is absent, cut, a pointer or changed is refused by name.

A file that changed since a stage wrote it is not read as if it had not. Writes nothing.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from stllava.errors import StllavaError
from stllava.store import MANIFEST, file_hash, read_manifest

CONFIG, WEIGHTS, ADAPTER = "config.json", "model.safetensors", "adapter_config.json"
SETTINGS = frozenset(
    {CONFIG, "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    | {"processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "chat_template.json"}
)
"""Files of which transformers reads one JSON object."""
READ = frozenset({".safetensors", ".json", ".jinja", ".model", ".txt"})
"""Endings of the files that a model is loaded from."""
CODES = frozenset({"I8", "U8"})
"""Kinds of numbers that stand for others in quantised weights."""
POINTER = b"version https://git-lfs.github.com/spec/"
SHOWN = 4


def check_folder(folder: Path) -> None:
    """Refuse by name the files of a model's folder that are no weights or settings: pointers, cut files, absent shards."""
    if (folder / ADAPTER).is_file():
        raise StllavaError(
            f"{folder} holds LoRA adapters ({ADAPTER})",
            expected="a whole model",
            remedy="Merge them into the model they were trained on: peft's merge_and_unload, then save_pretrained.",
        )
    if not (folder / CONFIG).is_file() and (snapshots := sorted(folder.glob(f"snapshots/*/{CONFIG}"))):
        raise StllavaError(
            f"{folder} is a folder of the hub's cache",
            expected="one of its snapshots",
            remedy=f"Name {snapshots[-1].parent}.",
        )
    if not (folder / CONFIG).is_file():
        raise StllavaError(
            f"{folder} has no {CONFIG}",
            expected="the folder of a finished sft or dpo stage, or of a transformers model",
            remedy="Check the path; a stage that was stopped goes on when it is run again.",
        )
    files = sorted(file for file in folder.iterdir() if file.is_file())
    for file in files:
        if file.suffix in READ:
            check_pointer(file)
    _check_manifest(folder)
    for file in files:
        if file.name in SETTINGS:
            read_settings(file)
    coded = "quantization_config" in read_settings(folder / CONFIG)
    for shard in _shards(folder):
        try:
            with safe_open(shard, framework="pt") as opened:
                codes = [name for name in opened.keys() if opened.get_slice(name).get_dtype() in CODES]  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise StllavaError(
                f"{shard} cannot be read as weights: {brief(error)}",
                expected="a whole safetensors file",
                remedy="It was cut or damaged on its way here: download or copy it again.",
            ) from error
        if codes and not coded:
            raise StllavaError(
                f"{shard} holds weights as codes of 8 bits ({some(codes)}), and {CONFIG} does not say what they stand for",
                expected="weights as numbers",
                remedy="Take the model that was not quantised.",
            )


def check_pointer(file: Path) -> None:
    """Refuse what Git LFS leaves in place of a large file."""
    with file.open("rb") as opened:
        if opened.read(len(POINTER)) == POINTER:
            raise StllavaError(
                f"{file} is a pointer of Git LFS, not the file itself",
                expected="the file that it points at",
                remedy=f"Run `git lfs pull` in {file.parent}, or download the model with `hf download`.",
            )


def read_settings(file: Path) -> dict[str, Any]:
    """A JSON object."""
    check_pointer(file)
    try:
        said: object = json.loads(file.read_bytes())
    except ValueError as error:
        raise _no_settings(file, f"is not whole JSON ({error})") from error
    if not isinstance(said, dict):
        raise _no_settings(file, f"holds a {type(said).__name__}")
    return said


def read_shards(index: Path) -> list[str]:
    """The names of the files among which an index divides weights."""
    places = read_settings(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise _no_settings(index, "has no weight_map")
    return sorted({str(name) for name in places.values()})


def _no_settings(file: Path, fault: str) -> StllavaError:
    return StllavaError(f"{file} {fault}", expected="a JSON object", remedy="Download or copy the file again.")


def _shards(folder: Path) -> list[Path]:
    """The files that hold the weights: one, or those of an index; an absent one is refused."""
    whole, index = folder / WEIGHTS, folder / f"{WEIGHTS}.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        raise StllavaError(
            f"{folder} has no {whole.name}, and no {index.name} that names parts of it",
            expected="weights as safetensors (pickled .bin and .pt files can run code and are never loaded)",
            remedy="Download the folder again, or convert its weights with transformers' save_pretrained.",
        )
    shards = [folder / name for name in read_shards(index)]
    if absent := [shard.name for shard in shards if not shard.is_file()]:
        raise StllavaError(
            f"{folder} lacks {some(absent)} of the {len(shards)} files that {index.name} names",
            expected="all of them",
            remedy="Download the folder again, or the absent files.",
        )
    return shards


def _check_manifest(folder: Path) -> None:
    """Compare what a model is loaded from with what the stage that made the folder wrote."""
    if not (folder / MANIFEST).is_file():
        return
    manifest = read_manifest(folder)
    for name, digest in manifest.outputs.items():
        file = folder / name
        if file.suffix in READ and (not file.is_file() or hash_once(file) != digest):
            raise StllavaError(
                f"{file} {'has changed' if file.is_file() else 'is gone'} since the stage {manifest.stage!r} wrote it",
                expected=f"the file whose hash is in {MANIFEST}",
                remedy="Copy it back, or delete the folder and run the stage again. To use a changed model on purpose, copy "
                f"the folder without {MANIFEST}.",
            )


_HASHES: dict[tuple[Path, int, int], str] = {}


def hash_once(file: Path) -> str:
    """SHA-256 of a file, computed anew in this process only when its time or size has changed."""
    seen = file.stat()
    key = (file.resolve(), seen.st_mtime_ns, seen.st_size)
    if key not in _HASHES:
        _HASHES[key] = file_hash(file)
    return _HASHES[key]


def some(names: Sequence[str]) -> str:
    """The first few names, and how many there are beside them."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def brief(error: Exception) -> str:
    """The error in one line; a KeyError, say, gives a name alone, so its class is told too."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, OSError | ValueError | ImportError) else f"{type(error).__name__}: {text}"
