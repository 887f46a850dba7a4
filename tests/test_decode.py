"""Generation on shared prefills, against transformers' own generate."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch

from stllava.config import SamplingOptions
from stllava.model.load import Policy, load_policy
from stllava.records import Message
from stllava.tree.decode import Request, complete, pick, request

GREEDY = SamplingOptions(temperature=0.0, max_new_tokens=12)
QUESTIONS = ["is there a nodule?", "what is the size of the mass in this image?", "where?"]


@pytest.fixture
def policy(tiny_model: Path) -> Policy:
    return load_policy(tiny_model)


@pytest.fixture
def requests(policy: Policy, phantoms: Path) -> list[Request]:
    images = sorted((phantoms / "images" / "test").iterdir())
    return [
        request(
            policy,
            [Message(role="user", content=text)],
            images=(f"test/{image.name}",),
            root=phantoms / "images",
            speaker="assistant",
        )
        for image in images
        for text in QUESTIONS
    ]


def test_greedy_text_is_that_of_generate(policy: Policy, requests: list[Request]) -> None:
    expected = []
    generate = cast(Callable[..., torch.Tensor], policy.model.generate)
    for one in requests:
        encoded = policy.encode(one.prefix)
        ids = torch.tensor([[*encoded.ids, *one.ids]])
        out = generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=sorted(policy.stop_ids),
            pad_token_id=policy.tokenizer.pad_token_id,
            **policy.join([encoded]),
        )
        expected.append((str(policy.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)).strip(),))
    assert complete(policy, requests, k=1, sampling=GREEDY, seed=0) == expected


def test_the_same_seed_gives_the_same_text_and_another_seed_another(policy: Policy, requests: list[Request]) -> None:
    warm = SamplingOptions(temperature=1.5, top_k=50, top_p=0.9, max_new_tokens=8)
    first = complete(policy, requests, k=3, sampling=warm, seed=5)
    assert first == complete(policy, requests, k=3, sampling=warm, seed=5)
    assert first != complete(policy, requests, k=3, sampling=warm, seed=6)
    assert [len(texts) for texts in first] == [3] * len(requests)


def test_top_k_and_top_p_keep_only_the_likeliest() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(4000, 1)
    generator = torch.Generator().manual_seed(0)
    by_k = pick(logits, SamplingOptions(temperature=1.0, top_k=2, top_p=1.0), generator)
    by_p = pick(logits, SamplingOptions(temperature=1.0, top_k=0, top_p=0.6), generator)
    free = pick(logits, SamplingOptions(temperature=1.0, top_k=0, top_p=1.0), generator)
    assert set(by_k.tolist()) == {0, 1} == set(by_p.tolist())
    shares = torch.bincount(free, minlength=4) / len(free)
    assert shares.tolist() == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)


def test_a_blank_image_hides_what_the_picture_shows(policy: Policy, phantoms: Path) -> None:
    turn = [Message(role="user", content="where?")]
    root = phantoms / "images"
    hidden = [
        request(policy, turn, images=(f"test/{index:05d}.png",), root=root, speaker="assistant", blank=True) for index in (0, 1)
    ]
    seen = request(policy, turn, images=("test/00000.png",), root=root, speaker="assistant")
    first, second = (policy.encode(one.prefix).inputs["pixel_values"] for one in hidden)
    assert torch.equal(first, second)
    assert not torch.equal(first, policy.encode(seen.prefix).inputs["pixel_values"])


def test_nothing_asked_is_nothing_said(policy: Policy) -> None:
    assert complete(policy, [], k=2, sampling=GREEDY, seed=0) == []
