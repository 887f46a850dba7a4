"""Pictures that an image processor refuses, or makes something odd of, cost themselves only, in every family.

The kinds come from public reports: strips of an ECG or a banner ("absolute aspect ratio must be smaller than 200" of
Qwen2-VL), pictures one pixel wide (transformers pull request 31950), single pixels, thumbnails smaller than a patch.
"""

from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image

from families import FAMILIES
from stllava.chat import talk
from stllava.config import AskOptions, SamplingOptions, SftOptions
from stllava.data.conversations import conversation
from stllava.errors import ItemError, StllavaError
from stllava.model.load import Policy, Prefix
from stllava.model.prompt import segments
from stllava.records import Message
from stllava.stages.ask import ask
from stllava.stages.sft import sft
from stllava.store import to_jsonl, write_whole

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
    assert len(refused) <= 4
    assert all(error.cause == "refused" and picture in str(error) for picture, error in refused.items())


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_strip_that_the_processor_refuses_is_left_out_and_counted(name: str, tmp_path: Path) -> None:
    draw(tmp_path, (5000, 20), (20, 5000), (64, 48))
    built(name).save(tmp_path / "model")
    options = AskOptions(questions=1, sampling=SHORT, description=SHORT)
    asked = ask(options, policy=tmp_path / "model", images=tmp_path, root=tmp_path, to=tmp_path / "asked")
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
    )
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
