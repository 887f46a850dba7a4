"""The processor of an imported checkpoint: the original's tokenizer, chat template and way with images.

Reads tokenizer.json or tokenizer.model, tokenizer_config.json and preprocessor_config.json; writes nothing. A rendered
prompt gives the token ids on which the original was trained, BOS included, so it is split with `add_special_tokens=False`.
The original splits a prompt at its images and gives each stretch to the tokenizer alone, which sets a blank before it;
the templates write these blanks out.
"""

from pathlib import Path
from typing import Any, Literal

from transformers import AddedToken, LlamaTokenizer, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.utils.import_utils import is_protobuf_available, is_sentencepiece_available

from stllava.errors import StllavaError
from stllava.model.checkpoint import reading
from stllava.model.model_folder import read_settings

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
PREPROCESSOR = "preprocessor_config.json"
IMAGE, PAD, START, END = "<image>", "<pad>", "<im_start>", "<im_end>"
KEPT = ("image_mean", "image_std", "resample", "rescale_factor")
Style = Literal["vicuna", "mistral"]

VICUNA = (
    "{{- '<s> ' -}}"
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{- 'A chat between a curious user and an artificial intelligence assistant. ' -}}"
    '{{- "The assistant gives helpful, detailed, and polite answers to the user\'s questions. " -}}'
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{- {'system': '', 'user': 'USER: ', 'assistant': 'ASSISTANT: ', 'virtual_user': 'VUSER: '}[message['role']] -}}"
    "CONTENT"
    "{{- {'system': ' ', 'user': ' ', 'assistant': '</s>', 'virtual_user': '</s> '}[message['role']] -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"
)
"""Vicuna v1 with the virtual user of SQ-LLaVA."""
MISTRAL = (
    "{{- '<s> ' -}}"
    "{%- for message in messages -%}"
    "{{- {'system': '', 'user': '[INST] ', 'assistant': ' ', 'virtual_user': 'VUSER: '}[message['role']] -}}"
    "CONTENT"
    "{{- {'system': ' ', 'user': ' [/INST]', 'assistant': ' </s>', 'virtual_user': ' </s>'}[message['role']] -}}"
    "{%- endfor -%}"
)
"""Mistral as LLaVA-Med 1.5 prompts it. The virtual user is ours: the original has none there."""
CONTENT = (
    "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{{- 'PLACE' if part['type'] == 'image' else part['text'] -}}"
    "{%- endfor -%}{%- endif -%}"
)
TEMPLATES: dict[Style, str] = {"vicuna": VICUNA, "mistral": MISTRAL}


def read_processor(
    language: Path, pictures: Path, *, style: Style, marks: bool, pad: bool, side: int, patch: int, strategy: str
) -> LlavaProcessor:
    """A processor from the folders of the language model and of what says how images are prepared.

    `marks`: images stand between <im_start> and <im_end>; `pad`: they are padded to squares; `side` and `patch` in pixels.
    """
    tokenizer = read_tokenizer(language, marks=marks)
    # Behind <im_end> only an old tokenizer sets a blank, as it does behind every special token.
    place = f"{START}{IMAGE}{END}{' ' if tokenizer.legacy else ''}" if marks else f"{IMAGE} "
    return LlavaProcessor(
        image_processor=read_image_processor(pictures, pad=pad, side=side),
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1,
        image_token=IMAGE,
        chat_template=TEMPLATES[style].replace("CONTENT", CONTENT.replace("PLACE", f"{place}\\n")),
    )


def read_tokenizer(folder: Path, *, marks: bool) -> LlamaTokenizer:
    """The folder's tokenizer with tokens for images and padding behind its own."""
    fast, slow, config = (folder / name for name in TOKENIZER_FILES)
    if not fast.is_file():
        if not slow.is_file():
            raise StllavaError(
                f"{folder} has no tokenizer", expected=f"{fast.name} or {slow.name}", remedy="Download the folder again."
            )
        if not (is_sentencepiece_available() and is_protobuf_available()):
            raise StllavaError(
                f"{folder} has its tokenizer as {slow.name} alone",
                expected="the packages sentencepiece and protobuf, with which transformers reads it",
                remedy=f"pip install sentencepiece protobuf, or put the {fast.name} of the same language model beside it.",
            )
    said = read_settings(config) if config.is_file() else {}
    # Without the word, transformers took a tokenizer for an old one when these models were trained; today it does not.
    with reading(folder, expected="the tokenizer of a Llama or Mistral"):
        tokenizer: LlamaTokenizer = LlamaTokenizer.from_pretrained(
            folder, legacy="legacy" not in said or said["legacy"] is not False, trust_remote_code=False
        )
    if (tokenizer.bos_token, tokenizer.eos_token) != ("<s>", "</s>"):
        raise StllavaError(
            f"{folder} begins texts with {tokenizer.bos_token!r} and ends turns with {tokenizer.eos_token!r}",
            expected="'<s>' and '</s>', as Vicuna's and Mistral's tokenizers do",
            remedy="Give the tokenizer with which the model was trained.",
        )
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in _needed(marks)])
    tokenizer.pad_token, tokenizer.padding_side, tokenizer.chat_template = PAD, "left", None
    return tokenizer


def _needed(marks: bool) -> tuple[str, ...]:
    return (START, END, IMAGE, PAD) if marks else (IMAGE, PAD)


def read_image_processor(folder: Path, *, pad: bool, side: int) -> LlavaImageProcessorPil | CLIPImageProcessorPil:
    """CLIP's preparation of images with the folder's mean and deviation; `pad` makes them squares of the mean colour first."""
    path = folder / PREPROCESSOR
    said = read_settings(path) if path.is_file() else {}
    kept = {name: said[name] for name in KEPT if name in said}
    shape: dict[str, Any] = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    return LlavaImageProcessorPil(do_pad=True, **shape, **kept) if pad else CLIPImageProcessorPil(**shape, **kept)
