"""Text grown as trees, against transformers' own generate."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import pytest
import torch
from PIL import Image
from transformers import GenerationConfig

from stllava.config import SamplingOptions
from stllava.data.images import open_image
from stllava.errors import ItemError
from stllava.generation.local_sampler import LocalSampler
from stllava.generation.sampler import Completion, Prompt, usable
from stllava.generation.token_choice import sample_token
from stllava.model import load
from stllava.model.load import Policy, load_policy
from stllava.model.prompt import Segment
from stllava.records import Message
from stllava.tree.forward import build_tree, collate, token_log_probabilities

GREEDY = SamplingOptions(temperature=0.0, max_new_tokens=12)
WARM = SamplingOptions(temperature=1.5, top_k=50, top_p=0.9, max_new_tokens=8)
QUESTIONS = ["is there a nodule?", "what is the size of the mass in this image?", "where?"]


@pytest.fixture
def policy(tiny_model: Path) -> Policy:
    return load_policy(tiny_model)


@pytest.fixture
def sampler(policy: Policy, phantoms: Path) -> LocalSampler:
    return LocalSampler(policy, root=phantoms / "images", tokens=1 << 20)


@pytest.fixture
def prompts(phantoms: Path) -> list[Prompt]:
    images = sorted((phantoms / "images" / "test").iterdir())
    return [asks(text, f"test/{image.name}") for image in images for text in QUESTIONS]


def asks(text: str, *images: str) -> Prompt:
    return Prompt((Message(role="user", content=text),), images)


def texts(said: Sequence[tuple[Completion, ...]]) -> list[tuple[str, ...]]:
    return [tuple(one.text for one in several) for several in said]


def test_greedy_text_is_that_of_generate(policy: Policy, sampler: LocalSampler, prompts: list[Prompt]) -> None:
    expected = []
    generate = cast(Callable[..., torch.Tensor], policy.model.generate)
    for one in prompts:
        request = sampler.request(one)
        encoded = policy.encode(request.prefix)
        ids = torch.tensor([[*encoded.ids, *request.ids]])
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
    assert texts(sampler.complete(prompts, k=1, sampling=GREEDY, seed=0)) == expected


def test_the_same_seed_gives_the_same_text_and_another_seed_another(sampler: LocalSampler, prompts: list[Prompt]) -> None:
    first = sampler.complete(prompts, k=3, sampling=WARM, seed=5)
    assert first == sampler.complete(prompts, k=3, sampling=WARM, seed=5)
    assert first != sampler.complete(prompts, k=3, sampling=WARM, seed=6)
    assert [len(several) for several in first] == [3] * len(prompts)


def test_sampled_text_does_not_depend_on_what_is_said_beside_it(
    policy: Policy, phantoms: Path, sampler: LocalSampler, prompts: list[Prompt]
) -> None:
    together = texts(sampler.complete(prompts, k=4, sampling=WARM, seed=5))
    assert len({text for several in together for text in several}) > len(prompts)
    for one, several in zip(prompts, together, strict=True):
        assert texts(sampler.complete([one], k=4, sampling=WARM, seed=5)) == [several]
        assert texts(sampler.complete([one], k=2, sampling=WARM, seed=5)) == [several[:2]]
    assert texts(sampler.complete(prompts[::-1], k=4, sampling=WARM, seed=5)) == together[::-1]
    for tokens in (1, 200, 500):
        narrow = LocalSampler(policy, root=phantoms / "images", tokens=tokens)
        assert texts(narrow.complete(prompts, k=4, sampling=WARM, seed=5)) == together


def test_a_policy_that_is_not_packed_says_the_same(policy: Policy, sampler: LocalSampler, prompts: list[Prompt]) -> None:
    packed = sampler.complete(prompts, k=2, sampling=WARM, seed=5)
    policy.packs = False
    alone = sampler.complete(prompts, k=2, sampling=WARM, seed=5)
    assert texts(alone) == texts(packed)
    for one, other in zip(packed, alone, strict=True):
        for mine, its in zip(one, other, strict=True):
            assert (mine.log_probability is None) == (its.log_probability is None)
            assert mine.log_probability is None or mine.log_probability == pytest.approx(its.log_probability, abs=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.5, "top_k": 1, "temperature": 1e-6, "do_sample": True},
        {"no_repeat_ngram_size": 1, "min_new_tokens": 8},
        {"suppress_tokens": [*range(50, 300)]},
        {"penalty_alpha": 0.6, "top_k": 4},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_a_folder_says_of_generation_changes_no_text_of_a_policy_that_is_not_packed(
    policy: Policy, sampler: LocalSampler, prompts: list[Prompt], settings: dict[str, object]
) -> None:
    # Qwen2-VL and Qwen2.5-VL are published with a repetition penalty, and are not packed.
    policy.packs = False
    expected = sampler.complete(prompts, k=2, sampling=WARM, seed=0)
    before = policy.model.generation_config
    policy.model.generation_config = GenerationConfig(eos_token_id=before.eos_token_id, **settings)
    assert sampler.complete(prompts, k=2, sampling=WARM, seed=0) == expected
    assert policy.model.generation_config.to_diff_dict().items() >= settings.items()


@pytest.mark.parametrize("packs", [True, False], ids=["packed", "unpacked"])
def test_text_ends_with_the_context_and_a_prompt_that_fills_it_is_refused(
    policy: Policy, sampler: LocalSampler, prompts: list[Prompt], *, packs: bool
) -> None:
    policy.packs = packs
    endless = WARM.model_copy(update={"max_new_tokens": 12})
    whole = sampler.complete(prompts, k=2, sampling=endless, seed=5)
    request = sampler.request(prompts[0])
    length = policy.length(request.prefix) + len(request.ids)
    config = policy.model.config.get_text_config()
    config.max_position_embeddings = length + 3
    cut = sampler.complete(prompts, k=2, sampling=endless, seed=5)
    four = sampler.complete(prompts[:1], k=2, sampling=WARM.model_copy(update={"max_new_tokens": 4}), seed=5)
    assert texts(cut[:1]) == texts(four) != texts(whole[:1])
    config.max_position_embeddings = length
    with pytest.raises(ItemError, match="leave no room for an answer") as caught:
        sampler.check(prompts[0])
    assert caught.value.cause == "longer than the context"


def test_prompts_without_images_are_completed_too(sampler: LocalSampler, prompts: list[Prompt]) -> None:
    blind = [asks(text) for text in QUESTIONS]
    alone = [sampler.complete([one], k=2, sampling=WARM, seed=1)[0] for one in blind]
    assert texts(sampler.complete(blind, k=2, sampling=WARM, seed=1)) == texts(alone)
    mixed = texts(sampler.complete([blind[0], prompts[0], blind[1]], k=2, sampling=WARM, seed=1))
    assert mixed == texts([alone[0], *sampler.complete([prompts[0]], k=2, sampling=WARM, seed=1), alone[1]])


def test_log_probabilities_are_those_of_a_packed_forward(policy: Policy, sampler: LocalSampler, prompts: list[Prompt]) -> None:
    short = SamplingOptions(temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=4)
    said = sampler.complete(prompts[:2], k=500, sampling=short, seed=2)
    known = [(one, done) for one, several in zip(prompts, said, strict=False) for done in several if done.log_probability]
    assert any(done.text for _, done in known), "no completion ended by itself"
    for one, done in known:
        request = sampler.request(one)
        question = Segment(str(policy.tokenizer.decode(list(request.ids))), False)
        assert policy.tokens(question.text) == request.ids
        tree = build_tree(policy, request.prefix, [[question, Segment(done.text + request.turn.ending, True)]])
        with torch.inference_mode():
            value = float(token_log_probabilities(policy.model, collate(policy, [tree])).sum())
        assert done.log_probability == pytest.approx(value, abs=1e-4)


def test_top_k_and_top_p_keep_only_the_likeliest() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.15, 0.3, 0.05]])).repeat(4000, 1)
    uniform = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    by_k, values = sample_token(logits, SamplingOptions(temperature=1.0, top_k=2, top_p=1.0), uniform)
    by_p, _ = sample_token(logits, SamplingOptions(temperature=1.0, top_k=0, top_p=0.6), uniform)
    free, _ = sample_token(logits, SamplingOptions(temperature=1.0, top_k=0, top_p=1.0), uniform)
    assert set(by_k.tolist()) == {0, 2} == set(by_p.tolist())
    torch.testing.assert_close(values.exp(), torch.tensor([0.5, 0.15, 0.3, 0.05])[by_k])
    shares = torch.bincount(free, minlength=4) / len(free)
    assert shares.tolist() == pytest.approx([0.5, 0.15, 0.3, 0.05], abs=0.03)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24, 1.0], ids=["least", "most", "one"])
def test_what_has_no_share_is_never_said(uniform: float) -> None:
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 2.0, -torch.inf]])
    for top_k in (0, 2):
        token, _ = sample_token(logits, SamplingOptions(temperature=1.0, top_k=top_k, top_p=1.0), torch.tensor([uniform]))
        assert token.item() in (1, 3)


def test_black_images_are_prefilled_once_and_still_drawn_apart(policy: Policy, phantoms: Path) -> None:
    def hidden() -> LocalSampler:
        return LocalSampler(policy, root=phantoms / "images", tokens=1 << 20, blank=True)

    prompts = [asks("is the image normal?", f"unlabelled/0000{place}.png") for place in range(4)]
    together = hidden()
    assert len({together.request(one).prefix for one in prompts}) == 1
    how = SamplingOptions(temperature=1.5, top_k=0, top_p=1.0, max_new_tokens=8)
    said = together.complete(prompts, k=2, sampling=how, seed=3)
    assert [[one.text for one in texts] for texts in said] == [
        [one.text for one in hidden().complete([prompt], k=2, sampling=how, seed=3)[0]] for prompt in prompts
    ]
    assert len({texts[0].text for texts in said}) > 1


def test_a_blank_image_hides_what_the_picture_shows(policy: Policy, phantoms: Path, sampler: LocalSampler) -> None:
    hidden = LocalSampler(policy, root=phantoms / "images", tokens=1 << 20, blank=True)
    first, second, seen = (
        policy.encode(which.request(asks("where?", f"test/0000{index}.png")).prefix).inputs["pixel_values"]
        for which, index in ((hidden, 0), (hidden, 1), (sampler, 0))
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, seen)


def test_prompts_about_images_that_cannot_be_used_are_counted(sampler: LocalSampler) -> None:
    images = ["test/00000.png", "test/missing.png"]
    kept, ready, dropped = usable(sampler, images, lambda image: asks("where?", image))
    assert kept == images[:1]
    assert len(ready) == 1
    assert dropped.total() == 1
    with pytest.raises(ItemError):
        sampler.check(asks("where?", "test/missing.png"))


def test_an_image_is_read_once_to_be_checked_and_once_to_be_spoken_about_when_no_more_can_be_kept(
    policy: Policy, sampler: LocalSampler, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: Counter[str] = Counter()

    def count(root: Path, relative: str) -> Image.Image:
        opened[relative] += 1
        return open_image(root, relative)

    expected = texts(sampler.complete(prompts, k=2, sampling=WARM, seed=1))
    policy.forget()
    monkeypatch.setattr(load, "IMAGE_CACHE_BYTES", 1)
    monkeypatch.setattr(load, "open_image", count)
    for prompt in prompts:
        sampler.check(prompt)
    assert texts(sampler.complete(prompts, k=2, sampling=WARM, seed=1)) == expected
    assert set(opened.values()) == {2}


def test_nothing_asked_is_nothing_said(sampler: LocalSampler) -> None:
    assert sampler.complete([], k=2, sampling=GREEDY, seed=0) == []
