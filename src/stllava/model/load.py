"""A policy: a model, its processor, and how both turn images and text into tokens. Weights are safetensors only."""

import inspect
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import cast

import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    BatchFeature,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.utils import logging as transformers_logging

import stllava.model.projector  # noqa: F401  (it registers the models with our projectors with the Auto classes)
from stllava.data.images import MAX_PIXELS, open_image
from stllava.errors import ItemError, TextError
from stllava.model.checkpoint import Dtype, check_vocabulary, check_way, read_weights, reading
from stllava.model.device import best_device, native_bfloat16
from stllava.model.families import Family, family_of
from stllava.model.model_folder import hash_once
from stllava.model.processor import POLICY, enlarges_to, load_processor
from stllava.model.prompt import ChatProcessor, endings
from stllava.model.tokens import SPELLED, is_marked, tokenize
from stllava.records import content_id
from stllava.store import MANIFEST, read_manifest

transformers_logging.disable_progress_bar()

IMAGE_CACHE_BYTES = 1 << 28
"""Of images kept encoded, those used last."""
TEXT_CACHE_ENTRIES = 1 << 16
PLAIN_SIDE = 256
"""Pixels of a side of the picture that tells a processor that fails from one that refuses a picture."""
Shapes = tuple[tuple[str, int, int], ...]
TILED = 4
"""Axes of pictures [1, 3, H, W]; tiles have one more."""
ENDS = frozenset({"image_sizes", "pixel_attention_mask", "pixel_mask", "target_sizes"})
"""Inputs that tell a model where a padded picture ends."""
KINDS = frozenset({"token_type_ids", "mm_token_type_ids"})
NOT_FOR_THE_MODEL = frozenset({"input_ids", "attention_mask", "labels", *KINDS})


@dataclass(frozen=True)
class Prefix:
    """The start of a prompt, up to and including the images: what all questions about them share."""

    text: str
    """Prompt text with one image place per image; empty when there are no images."""
    images: tuple[str, ...]
    """Paths relative to `root`."""
    root: Path
    """The image root."""
    blank: bool = False
    """Show black in place of each image, as the background of radiographs is: what the question alone gives away."""


@dataclass(frozen=True)
class Encoded:
    """A prefix as the model takes it."""

    ids: tuple[int, ...]
    """Token ids, image places expanded."""
    inputs: dict[str, torch.Tensor]
    """Everything else the processor made of the images, such as pixel_values; batches join along the first axis."""
    kinds: dict[str, torch.Tensor] = field(default_factory=dict)
    """[N] what each token is, 0 for text, where the model asks for it: Gemma 3's masks and Qwen2-VL's positions need it."""

    @property
    def nbytes(self) -> int:
        """Bytes of the image inputs."""
        return sum(value.nbytes for value in self.inputs.values())

    @property
    def shapes(self) -> Shapes:
        """Heights and widths of pictures that cannot be padded, for nothing tells the model where they end."""
        if ENDS & self.inputs.keys():
            return ()
        return tuple(sorted((name, *value.shape[-2:]) for name, value in self.inputs.items() if value.ndim >= TILED))

    @cached_property
    def digest(self) -> str:
        """The same for all that the model takes alike."""
        hashed = sha256(repr(self.ids).encode())
        for name, tensor in {**self.inputs, **self.kinds}.items():
            # NumPy knows no bfloat16, so the bytes are taken as such.
            content = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
            hashed.update(f"{name} {tuple(tensor.shape)}".encode() + content)
        return hashed.hexdigest()


@dataclass
class Policy:
    """A model that sees and speaks."""

    model: PreTrainedModel
    processor: ProcessorMixin
    packs: bool = True
    """Whether many prompts about an image may share one sequence; a guard finds out (tree/guard.py)."""
    _cache: OrderedDict[Prefix, Encoded] = field(default_factory=OrderedDict, repr=False)
    _lengths: dict[Prefix, int] = field(default_factory=dict, repr=False)
    _shapes: dict[Prefix, Shapes] = field(default_factory=dict, repr=False)
    _tokens: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    _cached_bytes: int = 0

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The processor's tokenizer."""
        return cast(PreTrainedTokenizerBase, self.processor.tokenizer)

    @property
    def chat(self) -> ChatProcessor:
        """The processor as prompts see it."""
        return cast(ChatProcessor, self.processor)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def family(self) -> Family:
        """What is known of models of its kind."""
        return family_of(self.model.config.model_type)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a turn: the model's, the tokenizer's, and the special ones with which the template does."""
        configured = self.model.generation_config.eos_token_id if self.model.generation_config is not None else None
        ids = [*configured] if isinstance(configured, list) else [configured]
        added = self.tokenizer.added_tokens_decoder
        ended = [token for ending in sorted(endings(self.chat)) for token in self.tokens(ending)]
        ids += [token for token in ended if token in added and added[token].special]
        return frozenset(int(token) for token in [*ids, self.tokenizer.eos_token_id] if token is not None)

    @property
    def context(self) -> int:
        """Longest sequence the language model was made for, in tokens."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    def tokens(self, text: str) -> tuple[int, ...]:
        """Token ids of a stretch of prompt text; raises TextError for one that cannot be split."""
        known = self._tokens.get(text)
        if known is None:
            known = tokenize(self.tokenizer, text)
            if len(self._tokens) < TEXT_CACHE_ENTRIES:
                self._tokens[text] = known
        return known

    def encode(self, prefix: Prefix) -> Encoded:
        """Tokens and image tensors of a prefix; raises ItemError for an image that cannot be used."""
        known = self._cache.get(prefix)
        if known is not None:
            self._cache.move_to_end(prefix)
            return known
        pictures = [open_image(prefix.root, path) for path in prefix.images]
        if prefix.blank:
            pictures = [Image.new("RGB", picture.size, (0, 0, 0)) for picture in pictures]
        made = self._processed(prefix, pictures)
        inputs = {name: value for name, value in made.items() if name not in NOT_FOR_THE_MODEL}
        asked = KINDS & inspect.signature(self.model.forward).parameters.keys()
        if is_marked(prefix.text) and asked - made.keys():
            raise TextError(SPELLED, "the model's processor does not say of such a text what each token is")
        end = made["input_ids"].shape[1] - len(self.tokens(self.family.added))
        kinds = {name: made[name][0, :end] for name in asked & made.keys()}
        encoded = Encoded(tuple(made["input_ids"][0, :end].tolist()), inputs, kinds)
        if self.family.fewest > 1 and encoded.ids.count(self.model.config.image_token_id) < self.family.fewest:
            raise ItemError("refused", f"{', '.join(prefix.images)} becomes a single token, which this model does not take")
        self._lengths[prefix] = len(encoded.ids)
        self._shapes[prefix] = encoded.shapes
        self._cache[prefix] = encoded
        self._cached_bytes += encoded.nbytes
        while self._cached_bytes > IMAGE_CACHE_BYTES and len(self._cache) > 1:
            self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return encoded

    def _processed(self, prefix: Prefix, pictures: Sequence[Image.Image]) -> BatchFeature:
        """What the processor makes of a prefix; raises ItemError for images that it refuses where it takes plain ones."""
        for path, picture in zip(prefix.images, pictures, strict=True):
            self._check_side(path, picture)
        try:
            return self._process(prefix.text, pictures)
        except Exception as error:
            try:
                self._process(prefix.text, [Image.new("RGB", (PLAIN_SIDE, PLAIN_SIDE)) for _ in pictures])
            except Exception:  # noqa: BLE001 - it is not the pictures, so the first error is told as it is
                if is_marked(prefix.text):
                    raise TextError(SPELLED, f"the model's processor cannot tell it from the token: {error}") from error
                raise error from None
            told = ", ".join(f"{path} ({one.width} × {one.height})" for path, one in zip(prefix.images, pictures, strict=True))
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ItemError("refused", f"the model's image processor refuses {told}: {reason}") from error

    def _process(self, text: str, pictures: Sequence[Image.Image]) -> BatchFeature:
        # The segment itself holds the token that begins a text, where the processor would write one (model/prompt.py).
        spelt = {"sanitize_control_tokens": True} if is_marked(text) else {}
        made = self.processor(text=[text], images=list(pictures), return_tensors="pt", add_special_tokens=False, **spelt)
        return cast(BatchFeature, made)

    def _check_side(self, path: str, picture: Image.Image) -> None:
        """Refuse what the image processor would enlarge beyond all memory, bringing its shorter side to a given length."""
        shorter = enlarges_to(self.processor)
        if shorter**2 * max(picture.size) > MAX_PIXELS * min(picture.size):
            raise ItemError(
                "refused",
                f"{path} ({picture.width} × {picture.height}) would be larger than {MAX_PIXELS:,} pixels "
                f"once its shorter side has the {shorter} that the model's image processor wants",
            )

    def forget(self) -> None:
        """Drop the images that are kept encoded."""
        self._cache.clear()
        self._lengths.clear()
        self._shapes.clear()
        self._cached_bytes = 0

    def length(self, prefix: Prefix) -> int:
        """Tokens of a prefix, image places expanded."""
        if not prefix.images:
            return 0
        known = self._lengths.get(prefix)
        return known if known is not None else len(self.encode(prefix).ids)

    def shapes(self, prefix: Prefix) -> Shapes:
        """What must be equal of prefixes whose images are to be joined."""
        if not prefix.images:
            return ()
        known = self._shapes.get(prefix)
        return known if known is not None else self.encode(prefix).shapes

    def join(self, encoded: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """The image inputs of a batch, on the model's device and in its precision."""
        joined = {}
        for name in sorted({name for one in encoded for name in one.inputs}):
            values = [one.inputs[name] for one in encoded]
            axis = self.family.axis if values[0].is_floating_point() else 0
            value = torch.cat(_as_large(values, axis), dim=axis).to(self.device)
            joined[name] = value.to(self.model.dtype) if value.is_floating_point() else value
        return joined

    def kinds(self, prefixes: Sequence[Prefix], *, left: Sequence[int], width: int) -> dict[str, torch.Tensor]:
        """[R, width] what each token of rows is that begin with a prefix, behind `left` of padding, if the model asks."""
        kinds: dict[str, torch.Tensor] = {}
        for row, (prefix, start) in enumerate(zip(prefixes, left, strict=True)):
            for name, value in (self.encode(prefix).kinds if prefix.images else {}).items():
                filled = kinds.setdefault(name, value.new_full((len(prefixes), width), self.family.kind_of_text))
                filled[row, start : start + len(value)] = value
        return {name: value.to(self.device) for name, value in kinds.items()}

    def save(self, folder: Path) -> None:
        """Write a plain transformers folder: safetensors, configuration, processor."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)


def _as_large(values: Sequence[torch.Tensor], axis: int) -> list[torch.Tensor]:
    """Pictures and masks [1, ..., H, W], or tiles of them, with zeros behind, as large as the largest of any.

    Models that take pictures of any shape are told where each ends, and those that cut them into tiles drop empty ones;
    what is of unlike shape for any other model is not joined (`shapes`).
    """
    if values[0].ndim < TILED:
        return list(values)
    most = [max(sizes) for sizes in zip(*(value.shape for value in values), strict=True)]
    padded = []
    for value in values:
        room = [0 if place == axis else most[place] - size for place, size in enumerate(value.shape)]
        padded.append(torch.nn.functional.pad(value, [side for size in reversed(room) for side in (0, size)]))
    return padded


def placed(model: nn.Module, device: torch.device | None = None) -> PreTrainedModel:
    """The model on the best device, or on `device`, ready to be used."""
    return cast(PreTrainedModel, model.to(device or best_device()).eval())


def load_policy(path: Path | str, *, dtype: Dtype | None = None, device: torch.device | None = None) -> Policy:
    """Load a policy from a transformers folder or hub name to the best device, or to `device`; pickled weights are refused.

    Without `dtype` it is that in which the device computes best; auto is that of the stored weights.
    """
    wanted = dtype if dtype is not None else (torch.bfloat16 if native_bfloat16(best_device()) else torch.float32)
    with reading(path, expected=POLICY):
        check_way(path)
        model = read_weights(AutoModelForImageTextToText, path, dtype=wanted)
        processor = load_processor(path, model.config)
        check_vocabulary(path, model, cast(PreTrainedTokenizerBase, processor.tokenizer))
    return Policy(placed(model, device), processor)


def fingerprint(folder: Path | str) -> str:
    """Hash of a policy's weights: the same weights have the same name wherever they lie.

    A finished stage's is read from its manifest; `load_policy` compares the files with that.
    """
    path = Path(folder)
    if not path.is_dir():
        return content_id("hub", str(folder))
    if (path / MANIFEST).is_file():
        hashes = read_manifest(path).outputs
    else:
        hashes = {file.name: hash_once(file) for file in path.glob("*.safetensors")}
    return content_id({name: value for name, value in sorted(hashes.items()) if name.endswith(".safetensors")})
