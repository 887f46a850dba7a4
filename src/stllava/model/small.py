"""The small LLaVA: a stock `LlavaForConditionalGeneration` of 1 to 3 M parameters, built from nothing.

Its byte-level BPE tokenizer is trained on the conversations it will see, so it reads any text and needs few tokens
for theirs. It needs no download and no patient data, and goes through the same code as a 7B model.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import cast

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from stllava.config import SmallModel
from stllava.data.conversations import read_conversations
from stllava.model.load import Policy, placed
from stllava.records import Manifest
from stllava.store import Existing, Input, Inputs, file_hash, open_stage

WEIGHT_SCALE, POSITION_SCALE = 0.06, 0.2
PAD, END, IMAGE = "<pad>", "<|end|>", "<image>"
SPEAKERS = {"system": "<|system|>", "user": "<|user|>", "virtual_user": "<|vuser|>", "assistant": "<|assistant|>"}
TEMPLATE = (
    "{%- set names = {'system': '<|system|>', 'user': '<|user|>', 'virtual_user': '<|vuser|>',"
    " 'assistant': '<|assistant|>'} -%}"
    "{%- for message in messages -%}{{ names[message['role']] }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}<image>{%- else -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}<|end|>{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


def build_tokenizer(texts: Iterable[str], *, vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on `texts`, with the special tokens of the chat template."""
    special = [PAD, END, IMAGE, *SPEAKERS.values()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[IMAGE, *SPEAKERS.values()],
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def build_small(shape: SmallModel, *, conversations: Path, to: Path, seed: int = 0, existing: Existing = "resume") -> Manifest:
    """Write a small LLaVA to `to`: random weights drawn from `seed`, a tokenizer trained on the conversations."""
    inputs: Inputs = {"conversations": Input(conversations, file_hash), "seed": str(seed)}
    with open_stage("model", to, shape, inputs=inputs, existing=existing) as stage:
        if stage.manifest is not None:
            return stage.manifest
        read, _ = read_conversations(conversations)
        policy = small_policy(shape, [message.content for one in read for message in one.messages], seed=seed)
        policy.save(to)
        parameters = float(sum(parameter.numel() for parameter in policy.model.parameters()))
        return stage.finish(counts_in=len(read), counts_out=1, measures={"parameters": parameters})


@torch.no_grad()
def start_positions(model: LlavaForConditionalGeneration) -> None:
    """Start the vision tower's positions as sines and cosines of row and column, about as large as its patch embeddings.

    CLIP's own start is ten times smaller than what the patches give, and where a finding lies is then learned late.
    """
    weight = model.model.vision_tower.embeddings.position_embedding.weight
    side, quarter = int((len(weight) - 1) ** 0.5), weight.shape[1] // 4
    steps = torch.arange(side) * (torch.pi / side)
    waves = torch.outer(steps, 1.0 + torch.arange(quarter) * (side / quarter))
    axis = torch.cat([waves.sin(), waves.cos()], dim=1)
    rows, columns = axis[:, None].expand(side, side, -1), axis[None].expand(side, side, -1)
    weight[1:, : 4 * quarter] = POSITION_SCALE * torch.cat([rows, columns], dim=-1).reshape(side * side, -1)


def small_policy(shape: SmallModel, texts: Iterable[str], *, seed: int) -> Policy:
    """A small LLaVA with random weights drawn from `seed` and a tokenizer trained on `texts`."""
    tokenizer = build_tokenizer(texts, vocabulary=shape.vocabulary, context=shape.context)
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"height": shape.image_size, "width": shape.image_size},
            do_center_crop=False,
            image_mean=[0.5, 0.5, 0.5],
            image_std=[0.5, 0.5, 0.5],
        ),
        tokenizer=tokenizer,
        patch_size=shape.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
        chat_template=TEMPLATE,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=shape.vision_width,
            intermediate_size=4 * shape.vision_width,
            num_hidden_layers=shape.vision_layers,
            num_attention_heads=shape.heads,
            image_size=shape.image_size,
            patch_size=shape.patch_size,
            projection_dim=shape.vision_width,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.language_width,
            intermediate_size=3 * shape.language_width,
            num_hidden_layers=shape.language_layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=shape.context,
            tie_word_embeddings=True,
            initializer_range=WEIGHT_SCALE,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        ),
        image_token_index=cast(int, tokenizer.convert_tokens_to_ids(IMAGE)),
        image_seq_length=(shape.image_size // shape.patch_size) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    start_positions(model)
    torch.random.set_rng_state(state)
    return Policy(placed(model), processor)
