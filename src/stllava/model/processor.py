"""A model's processor without torchvision: its parts for images and text, read from its folder; those for videos and sound
are left out.

Reads a transformers folder or hub name, writes nothing. What a processor is saved to keeps the settings of all parts.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import transformers
from transformers import PreTrainedConfig, ProcessorMixin
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import ImageInput
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.models.auto.video_processing_auto import get_video_processor_config

from stllava.errors import StllavaError
from stllava.model.checkpoint import read_auto_processor, read_config, read_image_processor, read_tokenizer, reading
from stllava.model.families import Family, family_of
from stllava.model.pictures import Lfm2VlImageProcessor, Llama4ImageProcessor

VIDEOS, SOUND = "video_processor", "feature_extractor"
LEFT_OUT = (VIDEOS, SOUND)
"""Names of the parts that read neither images nor text."""


UNLIKE = "features and image tokens do not match"
"""What transformers' models say of an image for which the processor wrote another number of tokens."""


@contextmanager
def belonging() -> Iterator[None]:
    """Say of a processor whose tokens are not those that the model has features for that it is another model's."""
    try:
        yield
    except ValueError as error:
        if UNLIKE not in str(error):
            raise
        raise StllavaError(
            f"the processor is not the model's: {' '.join(str(error).split())[:200]}",
            expected="a token for every feature of an image",
            remedy="Compare image_token_id, patch_size, vision_feature_select_strategy and the images' size in the folder's "
            "config.json and processor_config.json (or preprocessor_config.json), or fetch them again.",
        ) from error


class Settings:
    """Stands for a part that is left out: its settings are attributes, and what they do not say is None."""

    def __init__(self, settings: dict[str, object]) -> None:
        self.settings = settings

    def __getattr__(self, name: str) -> object:
        if name.startswith("__") or name == "settings":
            raise AttributeError(name)
        return self.settings.get(name)


class Pictures(ProcessorMixin):
    """Stands between a processor class and its base and leaves out the parts for videos and sound, but for their settings.

    Its folder says what the original's does: plain transformers loads all parts of it where torchvision is installed.
    """

    left_out: dict[str, dict[str, object]]
    """Settings of the parts that are left out, by name."""

    def __init__(self, *parts: object, **settings: object) -> None:
        named = dict(zip(super().get_attributes(), parts, strict=False)) | settings  # type: ignore[no-untyped-call]
        super().__init__(**{name: value for name, value in named.items() if name not in LEFT_OUT})  # type: ignore[no-untyped-call]
        for name, value in self.left_out.items():
            setattr(self, name, Settings(value))

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Names of the parts it is made of."""
        return [name for name in super().get_attributes() if name not in LEFT_OUT]  # type: ignore[no-untyped-call]

    def to_dict(self) -> dict[str, object]:
        """What its folder holds of it."""
        return {**super().to_dict(), **{name: settings for name, settings in self.left_out.items() if settings}}


class PixtralProcessor(ProcessorMixin):
    """Reads images as transformers' class of this name, which cannot even be imported without torchvision.

    An image is rows of tokens, one for each patch or for so many by so many, each row with a token behind it.
    """

    def __init__(
        self,
        image_processor: object = None,
        tokenizer: object = None,
        patch_size: int = 16,
        spatial_merge_size: int = 1,
        chat_template: str | None = None,
        image_token: str = "[IMG]",
        image_break_token: str = "[IMG_BREAK]",
        image_end_token: str = "[IMG_END]",
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)  # type: ignore[no-untyped-call]
        self.patch_size, self.spatial_merge_size = patch_size, spatial_merge_size
        self.image_token, self.image_break_token, self.image_end_token = image_token, image_break_token, image_end_token
        self.image_token_id = self.tokenizer.convert_tokens_to_ids(image_token)

    @property
    def side(self) -> int:
        """Pixels of a side of what becomes one token."""
        return self.patch_size * self.spatial_merge_size

    def _process_images(self, images: ImageInput, **settings: object) -> object:
        return super()._process_images(images, **settings | {"patch_size": self.side})

    def replace_image_token(self, image_inputs: Mapping[str, Sequence[Sequence[int]]], image_idx: int, **_: object) -> str:
        """What stands for one of the images."""
        height, width = image_inputs["image_sizes"][image_idx]
        row = self.image_token * (width // self.side)
        return self.image_break_token.join([row] * (height // self.side)) + self.image_end_token


WITHOUT_TORCHVISION: dict[str, type[ProcessorMixin]] = {"PixtralProcessor": PixtralProcessor}
IMAGE_PROCESSORS: dict[str, type[PilBackend]] = {kind.__name__: kind for kind in (Llama4ImageProcessor, Lfm2VlImageProcessor)}
"""Classes that stand for transformers' own of the same name."""


def images_only(
    kind: type[ProcessorMixin],
    family: Family,
    image_processor: object,
    tokenizer: object,
    *,
    left_out: dict[str, dict[str, object]],
    settings: dict[str, object],
) -> ProcessorMixin:
    """A processor by the name of this class, made of its parts for images and text.

    Args:
        kind: The class that reads all parts.
        family: What is known of the model's family.
        image_processor: The part for images.
        tokenizer: The part for text.
        left_out: The settings of its parts for videos and sound, by name.
        settings: What its folder says of it; what the class does not take is not given to it.
    """
    reads = getattr(transformers, family.pictures) if family.pictures else kind
    made: type[Pictures] = type(kind.__name__, (reads, Pictures), {"left_out": left_out})
    takes = inspect.signature(reads.__init__).parameters
    absent = {name: Settings(value) for name, value in left_out.items() if name in takes}
    parts = {"image_processor": image_processor, "tokenizer": tokenizer, **absent}
    return cast(ProcessorMixin, made.from_args_and_dict([], settings, **parts))


def load_processor(path: Path | str, config: PreTrainedConfig) -> ProcessorMixin:
    """The processor of the model with this configuration, with a chat template.

    Several families' processors have a part for videos and cannot be loaded without torchvision (SmolVLM's: num2words):
    where that is what is missing, images and text are read by their own parts and those for videos and sound are left out.
    """
    family = family_of(config.model_type)
    try:
        processor = read_auto_processor(path)
    except (ImportError, ValueError) as error:
        settings, _ = ProcessorMixin.get_processor_dict(str(path))
        pictures = _own_image_processor(path)
        kind = _class_of(settings, config)
        if kind is None or (pictures is None and not (isinstance(error, ImportError) and _dispensable(kind))):
            raise
        left_out = {name: settings.pop(name, {}) for name in LEFT_OUT if name in kind.get_attributes()}
        if VIDEOS in left_out:
            left_out[VIDEOS] = get_video_processor_config(str(path))
        processor = images_only(
            kind,
            family,
            pictures or read_image_processor(path),
            read_tokenizer(path),
            left_out=left_out,
            settings=settings,
        )
    if not isinstance(processor, ProcessorMixin):
        raise ValueError(f"it has no processor, only a {type(processor).__name__}")
    processor.chat_template = processor.chat_template or family.template
    if not processor.chat_template:
        raise ValueError("its processor has no chat template: put a chat_template.jinja into the folder")
    return processor


def _class_of(settings: Mapping[str, object], config: PreTrainedConfig) -> type[ProcessorMixin] | None:
    """The class of a processor, or the one that stands for it here."""
    kind = cast("type[ProcessorMixin] | None", PROCESSOR_MAPPING.get(type(config), None))
    name = settings.get("processor_class") or (kind.__name__ if kind is not None else "")
    return WITHOUT_TORCHVISION.get(str(name), kind)


def _dispensable(kind: type[ProcessorMixin]) -> bool:
    """Whether what a processor lacks here can be done without."""
    return kind in WITHOUT_TORCHVISION.values() or VIDEOS in kind.get_attributes()


def _own_image_processor(path: Path | str) -> PilBackend | None:
    """The part for images with the settings in a folder, where transformers has it for torchvision only."""
    settings, _ = PilBackend.get_image_processor_dict(str(path))
    kind = IMAGE_PROCESSORS.get(str(settings.get("image_processor_type")).removesuffix("Fast"))
    return kind.from_dict(settings) if kind is not None else None


def enlarges_to(processor: ProcessorMixin) -> int:
    """Pixels that a picture's shorter side is brought to whatever the longer one then has; 0 where that has an end."""
    size = dict(getattr(processor.image_processor, "size", None) or {})
    return 0 if "longest_edge" in size else int(size.get("shortest_edge", 0))


POLICY = "an image-text-to-text model of transformers with its processor"


def read_processor(path: Path | str) -> ProcessorMixin:
    """The processor of a policy whose weights are not needed."""
    with reading(path, expected=POLICY):
        return load_processor(path, read_config(path))
