"""LLaVAs with random weights, images of noise and random text of exact lengths: what the benches work on.

The tokenizer has every syllable as one token, so that a text of n syllables is n tokens. The vocabulary is small: a large
one would flatter whatever computes fewer logits.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from stllava.model.load import Policy
    from stllava.records import Preference

PATCH, CONTEXT = 14, 4096
QUESTION_TOKENS, ANSWER_TOKENS = 24, 48
SYLLABLES = [consonant + vowel for consonant in "bcdfghjklmnpqrstvwxz" for vowel in "aeiou"]


@dataclass(frozen=True)
class Shape:
    """What there is to learn about one image."""

    image_size: int
    """Pixels; (size / 14)² image tokens."""
    questions: int
    answers: int
    """Answers a question."""
    chosen: int
    """Of them, the good ones: each other answer makes a pair with one of these, in turn."""

    @property
    def pairs(self) -> int:
        """Pairs an image."""
        return self.questions * (self.answers - self.chosen)


SHAPES = {
    "llava": Shape(image_size=336, questions=5, answers=2, chosen=1),
    "one-question": Shape(image_size=336, questions=1, answers=2, chosen=1),
    "wide": Shape(image_size=336, questions=10, answers=4, chosen=2),  # pairs without a common answer
    "wide-best": Shape(image_size=336, questions=10, answers=4, chosen=1),  # the best answer against each other one
    "small-image": Shape(image_size=112, questions=5, answers=2, chosen=1),
}
MODELS = ("tiny", "base", "7b")


def build(model: str, shape: Shape) -> "Policy":
    """A LLaVA with random weights whose tokenizer has every syllable as one token."""
    from stllava.config import SmallModel
    from stllava.model.small import small_policy

    draw = random.Random(0)
    texts = [" ".join(draw.choices(SYLLABLES, k=50)) for _ in range(400)]
    width, layers, heads, seen = {"tiny": (32, 2, 2, 1), "base": (512, 8, 8, 4), "7b": (32, 1, 2, 1)}[model]
    small = SmallModel(
        image_size=shape.image_size,
        patch_size=PATCH,
        vision_width=min(width, 256),
        vision_layers=seen,
        language_width=width,
        language_layers=layers,
        heads=heads,
        vocabulary=1024,
        context=CONTEXT,
    )
    policy = small_policy(small, texts, seed=0)
    return llava_7b(policy) if model == "7b" else policy


def llava_7b(small: "Policy") -> "Policy":
    """LLaVA-1.5-7B's configuration with random bfloat16 weights, for the tokenizer and image size of a small policy."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    from stllava.model.load import Policy

    theirs = small.model.config
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=theirs.vision_config.image_size,
            patch_size=PATCH,
            projection_dim=768,
        ),
        text_config=LlamaConfig(
            vocab_size=32064,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            max_position_embeddings=4096,
            pad_token_id=theirs.text_config.pad_token_id,
            eos_token_id=theirs.text_config.eos_token_id,
            bos_token_id=None,
        ),
        image_token_index=theirs.image_token_index,
        image_seq_length=theirs.image_seq_length,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    torch.manual_seed(0)
    with torch.device(small.device):
        model = LlavaForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    return Policy(model.eval(), small.processor)


def noise(folder: Path, *, count: int, size: int) -> list[str]:
    """Draw square images of noise into a new folder; returns their names."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    names = [f"{index:04d}.png" for index in range(count)]
    for name in names:
        Image.fromarray(draw.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(folder / name)
    return names


def text(tokenizer: "PreTrainedTokenizerBase", tokens: int, draw: random.Random) -> str:
    """Random syllables of exactly so many tokens."""
    words = [word for word in SYLLABLES if len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1]
    said = " ".join(draw.choices(words, k=tokens))
    assert len(tokenizer(said, add_special_tokens=False)["input_ids"]) == tokens
    return said


def preferences(shape: Shape, images: list[str], tokenizer: "PreTrainedTokenizerBase") -> "list[Preference]":
    """All pairs about the images: random syllables, questions and answers of exactly the tokens asked for."""
    from stllava.records import Lineage, Message, Preference

    draw = random.Random(1)
    made: list[Preference] = []
    for image in images:
        for _ in range(shape.questions):
            question = Message(role="user", content=text(tokenizer, QUESTION_TOKENS, draw))
            answers = [text(tokenizer, ANSWER_TOKENS, draw) for _ in range(shape.answers)]
            for place, rejected in enumerate(answers[shape.chosen :]):
                name = str(len(made))
                made.append(
                    Preference(
                        id=name,
                        images=(image,),
                        prompt=(question,),
                        chosen=answers[place % shape.chosen],
                        rejected=rejected,
                        margin=1.0,
                        lineage=Lineage(question_id=name, answers_id=name, judgment_id=name),
                    )
                )
    return made
