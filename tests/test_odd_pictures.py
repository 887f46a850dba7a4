"""Pictures that an image processor refuses, or makes something odd of, cost themselves only, in every family.

The kinds come from public reports: strips of an ECG or a banner ("absolute aspect ratio must be smaller than 200" of
Qwen2-VL), pictures one pixel wide (transformers pull request 31950), single pixels, thumbnails smaller than a patch, and
pictures that are not RGB ("Unable to infer channel dimension format", OmniParser issue 128).
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.families import FAMILIES
from stllava.config import AskOptions, SamplingOptions, SftOptions
from stllava.data.conversations import conversation
from stllava.errors import ItemError, StllavaError
from stllava.generation import local_sampler
from stllava.generation.branches import Branches
from stllava.generation.chat import talk
from stllava.generation.local_sampler import LocalSampler
from stllava.generation.sampler import Prompt
from stllava.generation.tree_decoder import TreeDecoder
from stllava.model.load import Policy, Prefix
from stllava.model.prompt import segments
from stllava.records import Message
from stllava.stages.ask import ask
from stllava.stages.sft import sft
from stllava.store import to_jsonl, write_whole
from stllava.tree.forward import Tree, build_tree, collate, split_into_forwards, token_log_probabilities

# Its processor makes arrays of tensors in the old way (transformers 5.23).
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

SHORT = SamplingOptions(temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=3)
TALK = (Message(role="user", content="where?"), Message(role="assistant", content="left"))
SIZES = [(1, 1), (1, 3), (3, 1), (2, 2), (3, 3), (7, 5), (97, 31), (8, 400), (20, 5000), (5000, 20), (1, 2000), (2000, 1)]
built = cache(lambda name: FAMILIES[name]())


def draw(folder: Path, *sizes: tuple[int, int]) -> list[str]:
    """A picture of each size; their names."""
    names = [f"{width}x{height}.png" for width, height in sizes]
    for name, size in zip(names, sizes, strict=True):
        Image.linear_gradient("L").resize(size).convert("RGB").save(folder / name)
    return names


def prefix_of(policy: Policy, folder: Path, *names: str) -> Prefix:
    return Prefix(segments(policy.chat, TALK, images=len(names))[0].text, names, folder)


@torch.inference_mode()
def finite(policy: Policy, prefix: Prefix) -> bool:
    """Whether the model's own forward about a picture gives numbers."""
    encoded = policy.encode(prefix)
    ids = torch.tensor([encoded.ids])
    inputs = {**policy.join([encoded]), **policy.kinds([prefix], left=[0], width=ids.shape[1])}
    logits = policy.model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs).logits
    return bool(logits.isfinite().all())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_picture_of_any_shape_is_seen_or_refused_in_words(name: str, tmp_path: Path) -> None:
    policy = built(name)
    refused: dict[str, ItemError] = {}
    for picture in draw(tmp_path, *SIZES):
        prefix = prefix_of(policy, tmp_path, picture)
        try:
            policy.encode(prefix)
        except ItemError as error:
            refused[picture] = error
        else:
            assert finite(policy, prefix), picture
    assert len(refused) <= (6 if policy.family.fewest == 1 else len(SIZES) - 2)
    assert all(error.cause == "refused" and picture in str(error) for picture, error in refused.items())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_picture_of_any_mode_is_seen_in_three_colours(name: str, tmp_path: Path) -> None:
    policy = built(name)
    grey = Image.linear_gradient("L").resize((64, 48))
    palette = grey.convert("P")
    palette.info["transparency"] = 0
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    pictures = {"deep.png": deep, "palette.png": palette, "ink.jpg": grey.convert("CMYK"), "bits.png": grey.convert("1")}
    pictures |= {"clear.png": grey.convert("LA"), "glass.png": grey.convert("RGBA"), "colours.png": grey.convert("RGB")}
    seen = []
    for picture, image in pictures.items():
        image.save(tmp_path / picture)
        encoded = policy.encode(prefix_of(policy, tmp_path, picture))
        seen.append((encoded.ids, {key: value.shape for key, value in encoded.inputs.items()}))
    assert seen == [seen[-1]] * len(pictures)


def tree_of(policy: Policy, folder: Path, picture: str) -> Tree:
    """Two short chains about a picture."""
    pieces = segments(policy.chat, TALK, images=1)
    other = segments(policy.chat, (Message(role="user", content="which organ?"), TALK[1]), images=1)
    return build_tree(policy, prefix_of(policy, folder, picture), [pieces[1:], other[1:]])


def values(policy: Policy, trees: list[Tree]) -> torch.Tensor:
    """The log-probabilities of what is learned, tree by tree."""
    batch = collate(policy, trees)
    with torch.inference_mode():
        found = token_log_probabilities(policy.model, batch)
    return found[torch.argsort(batch["leaf"], stable=True)]


@pytest.mark.parametrize("packs", [True, False], ids=["packed", "unpacked"])
@pytest.mark.parametrize("name", FAMILIES)
def test_pictures_of_two_shapes_in_a_batch_are_each_seen_as_alone(name: str, packs: bool, tmp_path: Path) -> None:
    policy = built(name)
    policy.packs = packs and not policy.family.unpacked
    trees = [tree_of(policy, tmp_path, picture) for picture in draw(tmp_path, (64, 48), (40, 64))]
    parts = split_into_forwards(policy, trees, most=1 << 16)
    found = torch.cat([values(policy, [trees[index] for index in part]) for part in parts])
    order = [index for part in parts for index in part]
    assert torch.allclose(found, torch.cat([values(policy, [trees[index]]) for index in order]), atol=1e-4)


def test_pictures_that_nothing_tells_the_end_of_are_not_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = FAMILIES["llava"]()
    policy.processor.image_processor.size = {"shortest_edge": 32}
    trees = [tree_of(policy, tmp_path, picture) for picture in draw(tmp_path, (64, 48), (40, 64), (128, 96))]
    assert sorted(sorted(part) for part in split_into_forwards(policy, trees, most=1 << 16)) == [[0, 2], [1]]
    seen: list[set[str]] = []

    def note(grown: Branches | TreeDecoder, branches: Sequence[Any]) -> None:
        together = [one for row in branches for one in (row if isinstance(row, list) else [row])]
        seen.append({grown.requests[one.request].images[0] for one in together})
        raise InterruptedError

    monkeypatch.setattr(LocalSampler, "_check_packing", lambda *_, **__: None)
    monkeypatch.setattr(TreeDecoder, "decode", note)
    monkeypatch.setattr(local_sampler, "decode_unpacked", note)
    for policy.packs in (True, False):
        with pytest.raises(InterruptedError):
            LocalSampler(policy, root=tmp_path, tokens=1 << 16).complete(
                [Prompt((TALK[0],), tree.prefix.images) for tree in trees], k=2, sampling=SHORT, seed=0
            )
    assert seen == [{"64x48.png", "128x96.png"}] * 2


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_strip_that_the_processor_refuses_is_left_out_and_counted(name: str, tmp_path: Path) -> None:
    draw(tmp_path, (5000, 20), (20, 5000), (64, 48))
    built(name).save(tmp_path / "model")
    options = AskOptions(questions=1, sampling=SHORT, description_sampling=SHORT)
    asked = ask(options, policy=tmp_path / "model", images=tmp_path, root=tmp_path, to=tmp_path / "asked").manifest
    assert asked.dropped["image refused"] == 2
    assert asked.counts_in == 3


def test_a_conversation_about_a_refused_picture_is_left_out_of_training(tmp_path: Path) -> None:
    names = draw(tmp_path, (5000, 20), (64, 48))
    built("qwen2_vl").save(tmp_path / "model")
    write_whole(tmp_path / "talks.jsonl", to_jsonl([conversation((name,), TALK) for name in names]))
    options = SftOptions.model_validate({"batch_size": 1, "save_steps": 0, "learning_rate": {"language": 1e-3}})
    tuned = sft(
        options,
        model=str(tmp_path / "model"),
        conversations=tmp_path / "talks.jsonl",
        images=tmp_path,
        to=tmp_path / "tuned",
    ).manifest
    assert dict(tuned.dropped) == {"refused": 1}
    assert (tuned.counts_in, tuned.counts_out) == (2, 1)


def test_a_picture_that_would_be_enlarged_beyond_memory_is_refused_before_it_is(tmp_path: Path) -> None:
    policy = FAMILIES["llava"]()
    # As LLaVA-1.5 is published: 60,000 pixels beside one would be 6.8 billion.
    policy.processor.image_processor.size = {"shortest_edge": 336}
    (name,) = draw(tmp_path, (60_000, 1))
    with pytest.raises(ItemError, match="shorter side") as caught:
        policy.encode(prefix_of(policy, tmp_path, name))
    assert caught.value.cause == "refused"


def test_a_processor_that_fails_whatever_it_is_shown_is_not_the_pictures_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = FAMILIES["llava"]()
    (name,) = draw(tmp_path, (64, 48))

    def fail(*_: object, **__: object) -> None:
        raise ValueError("it is broken")

    monkeypatch.setattr(type(policy.processor.image_processor), "preprocess", fail)
    with pytest.raises(ValueError, match="it is broken"):
        policy.encode(prefix_of(policy, tmp_path, name))


def test_a_conversation_about_a_refused_picture_is_refused_in_words(tmp_path: Path) -> None:
    (name,) = draw(tmp_path, (5000, 20))
    built("qwen2_vl").save(tmp_path / "model")
    with pytest.raises(StllavaError, match=r"aspect ratio.*expected an image that the model takes"):
        talk(tmp_path / "model", tmp_path / name, question="where?", sampling=SHORT)
