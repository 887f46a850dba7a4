"""The projectors: the prototype extractor is its formula, costs little memory, loads through the Auto classes, packs."""

import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import avg_pool2d
from transformers import AutoModelForImageTextToText, LlavaProcessor, PreTrainedModel

from helpers.architectures import llava, llava_group
from stllava.errors import StllavaError
from stllava.model import projector
from stllava.model.load import Policy, Prefix, load_policy
from stllava.model.projector import PrototypeExtractor, StllavaConfig, StllavaForConditionalGeneration, pool_tokens
from stllava.model.prompt import segments
from stllava.records import Message
from stllava.tree.forward import Tree, build_tree, collate, token_log_probabilities
from stllava.tree.guard import check_packing

FORMULAS: tuple[projector.Formula, ...] = ("published", "paper")
SHAPES = {
    "some": (2, 9, 6, 5, 4, 2),
    "one step": (1, 12, 4, 7, 3, 1),
    "as many prototypes as tokens": (1, 6, 5, 4, 6, 2),
    "fewer tokens than prototypes": (2, 5, 6, 4, 8, 3),
    "one token": (1, 1, 3, 2, 2, 2),
}
"""B, L, D, H, K, T."""
KINDS = ("mlp", "prototypes", "prototypes-paper")


def extractor(shape: tuple[int, ...], formula: projector.Formula, *, seed: int = 0) -> tuple[PrototypeExtractor, Tensor]:
    """An extractor with random weights in float32, and tokens [B, L, D] for it."""
    batch, length, width, out, prototypes, steps = shape
    torch.manual_seed(seed)
    made = PrototypeExtractor(width, out, prototypes=prototypes, steps=steps, formula=formula)
    if formula == "published":
        nn.init.constant_(made.sim_alpha, 1.7)
        nn.init.constant_(made.sim_beta, -0.4)
    return made, torch.randn(batch, length, width)


def pooled(rows: Tensor, size: int) -> Tensor:
    """Adaptive average pooling [L, D] -> [size, D], by its definition."""
    length = len(rows)
    return torch.stack([rows[k * length // size : -(-(k + 1) * length // size)].mean(0) for k in range(size)])


def literal_published(weights: dict[str, Tensor], image: Tensor, prototypes: int, steps: int) -> Tensor:
    """The published formula, sentence by sentence of the paper's facts, for the tokens [L, D] of one image."""

    def linear(name: str, rows: Tensor) -> Tensor:
        return rows @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    features, values = linear("f", image), linear("v", image)
    values = torch.stack([channel / channel.pow(2).sum().sqrt() for channel in values.T], dim=1)
    centres, features_pooled = pooled(image, prototypes), pooled(features, prototypes)
    for _ in range(steps):
        centres = torch.stack([centre / centre.pow(2).sum().sqrt() for centre in linear("c", centres)])
        scores = torch.stack([(values * centre).sum(dim=1) for centre in centres])
        shares = scores.exp() / scores.exp().sum(dim=0)
        centres = torch.stack([(share[:, None] * features).sum(dim=0) for share in shares])
    lengths = centres.pow(2).sum(dim=1).sqrt()[:, None] * image.pow(2).sum(dim=1).sqrt()
    cosines = torch.stack([(image * centre).sum(dim=1) for centre in centres]) / lengths
    similar = 1 / (1 + (-(weights["sim_beta"].view(()) + weights["sim_alpha"].view(()) * cosines)).exp())
    nearest = similar.argmax(dim=0)
    rows = list(image)
    for centre in range(prototypes):
        members = [place for place in range(len(image)) if nearest[place] == centre]
        total = features_pooled[centre]
        for place in members:
            total = total + similar[centre, place] * features[place]
        for place in members:
            rows[place] = rows[place] + similar[centre, place] * (total / (len(members) + 1))
    hidden = linear("mlp.0", torch.stack(rows))
    return linear("mlp.2", hidden / (1 + (-1.702 * hidden).exp()))


def literal_paper(weights: dict[str, Tensor], image: Tensor, prototypes: int, steps: int) -> Tensor:
    """The other formula, as its docstring has it, for the tokens [L, D] of one image."""

    def linear(name: str, rows: Tensor) -> Tensor:
        return rows @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def shares(centres: Tensor) -> Tensor:
        moved = centres @ weights["c.weight"].T
        scores = torch.stack([(linear("v", image) * row).sum(dim=1) for row in moved]) / math.sqrt(image.shape[1])
        return scores.exp() / scores.exp().sum(dim=0)

    centres = pooled(image, prototypes)
    for _ in range(steps):
        centres = torch.stack([(share[:, None] * linear("f", image)).sum(dim=0) / share.sum() for share in shares(centres)])
    hidden = linear("mlp.0", image + shares(centres).T @ centres)
    return linear("mlp.2", hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2)


def literal(made: PrototypeExtractor, tokens: Tensor) -> Tensor:
    """What a float64 extractor must give for a batch [B, L, D]."""
    formula = literal_published if made.formula == "published" else literal_paper
    weights = dict(made.state_dict(keep_vars=True))
    return torch.stack([formula(weights, image, made.prototypes, made.steps) for image in tokens])


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_an_extractor_and_its_gradients_are_those_of_a_literal_restatement(
    shape: tuple[int, ...], formula: projector.Formula
) -> None:
    made, tokens = extractor(shape, formula)
    wide, exact = copy.deepcopy(made).double(), tokens.double().requires_grad_()
    expected = literal(wide, exact)
    torch.testing.assert_close(made(tokens).double(), expected, atol=1e-5, rtol=0)
    weighing = torch.randn_like(expected)
    learned = [exact, *wide.parameters()]
    found = torch.autograd.grad((wide(exact) * weighing).sum(), learned)
    for ours, theirs in zip(found, torch.autograd.grad((expected * weighing).sum(), learned), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


def test_the_extractor_of_the_released_size_is_a_literal_restatement() -> None:
    made, tokens = extractor((1, 576, 1024, 64, 256, 2), "published", seed=3)
    # A few tokens stand out, as a vision tower's do. In noise alone all prototypes come out nearly the same, and float32
    # and float64 may then give a token to another of them.
    tokens[:, ::37] *= 20
    with torch.no_grad():
        expected = literal(copy.deepcopy(made).double(), tokens.double())
        torch.testing.assert_close(made(tokens).double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("formula", FORMULAS)
def test_gradients_are_those_of_finite_differences(formula: projector.Formula) -> None:
    made, tokens = extractor((1, 6, 4, 3, 3, 2), formula)
    made, tokens = made.double(), tokens.double().requires_grad_()
    names = [name for name, _ in made.named_parameters()]

    def run(tokens: Tensor, *values: Tensor) -> Tensor:
        found: Tensor = functional_call(made, dict(zip(names, values, strict=True)), (tokens,))
        return found

    assert torch.autograd.gradcheck(run, (tokens, *made.parameters()))


@pytest.mark.parametrize("formula", FORMULAS)
def test_one_image_of_a_7b_model_needs_less_than_40_mib(formula: projector.Formula, tmp_path: Path) -> None:
    made, tokens = extractor((1, 576, 1024, 4096, 256, 2), formula)
    with torch.no_grad():
        assert peak_allocated(made, tokens, tmp_path / "trace.json") < 40 * 2**20


def peak_allocated(module: nn.Module, tokens: Tensor, trace: Path) -> int:
    """Most bytes that a forward held beyond what was there before.

    From the profiler's record of torch's own allocator, in which temporaries inside an operator stand too; sizes of
    Python's tensors would miss those, and the process's memory is too coarse for a few MiB.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        module(tokens)
    profile.export_chrome_trace(str(trace))
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: float(event["ts"])):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    assert peak > tokens.nbytes
    return peak


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, None], ids=["bfloat16", "float16", "autocast"])
def test_half_precision_is_close_and_finite(kind: torch.dtype | None, formula: projector.Formula) -> None:
    made, tokens = extractor((2, 30, 16, 8, 8, 2), formula)
    halved = copy.deepcopy(made).to(kind or torch.float32)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind is None):
        near = halved(tokens.to(kind or torch.bfloat16))
        large = halved(300 * tokens.to(kind or torch.bfloat16))
        black = halved(torch.zeros_like(tokens, dtype=kind or torch.bfloat16))
    with torch.no_grad():
        exact = made(tokens)
    assert near.dtype == (kind or torch.bfloat16)
    assert float((near - exact).abs().mean()) < 0.01
    assert all(bool(out.isfinite().all()) for out in (large, black))


def test_the_published_weights_have_the_published_names_and_the_unused_ones_do_not_learn() -> None:
    made, tokens = extractor((1, 9, 6, 5, 4, 2), "published")
    layers = ("c", "v", "f", "ln_1", "mlp.0", "mlp.2")
    expected = {"sim_alpha", "sim_beta", *(f"{name}.{kind}" for name in layers for kind in ("weight", "bias"))}
    assert made.state_dict().keys() == expected
    assert made.sim_alpha.shape == made.sim_beta.shape == (1, 1, 1)
    made(tokens).sum().backward()
    learned = {name for name, parameter in made.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    assert learned == expected - {"ln_1.weight", "ln_1.bias"}


def test_pooling_takes_the_mean_of_squares_in_the_grid_s_order() -> None:
    tokens = torch.randn(3, 36, 5)
    grid = tokens.mT.reshape(3, 5, 6, 6)
    torch.testing.assert_close(pool_tokens(tokens, side=2), avg_pool2d(grid, 2).flatten(2).mT)
    torch.testing.assert_close(pool_tokens(tokens, side=3), avg_pool2d(grid, 3).flatten(2).mT)
    assert pool_tokens(tokens, side=1) is tokens


@pytest.mark.parametrize("length", [25, 37, 12])
def test_tokens_that_are_no_even_square_are_not_pooled(length: int) -> None:
    with pytest.raises(ValueError, match=f"{length} image tokens cannot be pooled 2 × 2; expected a square grid"):
        pool_tokens(torch.zeros(1, length, 4), side=2)


def build(kind: str, pool: int) -> Policy:
    """A tiny policy with this projector, of 16 image tokens before pooling."""
    stock = llava()
    options = {"projector": kind, "prototypes": 5, "pool": pool}
    config = StllavaConfig.from_dict(stock.model.config.to_dict() | options)
    torch.manual_seed(3)
    model: PreTrainedModel = StllavaForConditionalGeneration(config)
    processor = cast(LlavaProcessor, stock.processor)
    processor.patch_size *= pool
    return Policy(model.eval(), processor)


def tree_of(policy: Policy, phantoms: Path) -> Tree:
    """Two questions about an image and their answers."""
    talks = [("is there a nodule?", "yes, on the left"), ("where is it?", "in the right lung")]
    chains = [
        segments(policy.chat, [Message(role="user", content=asked), Message(role="assistant", content=said)], images=1)
        for asked, said in talks
    ]
    prefix = Prefix(chains[0][0].text, ("test/00000.png",), phantoms / "images")
    return build_tree(policy, prefix, [chain[1:] for chain in chains])


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("pool", [1, 2])
def test_a_saved_model_loads_through_the_auto_classes_bit_by_bit(kind: str, pool: int, phantoms: Path, tmp_path: Path) -> None:
    policy = build(kind, pool)
    policy.save(tmp_path)
    again = load_policy(tmp_path, dtype=torch.float32)
    assert type(again.model) is StllavaForConditionalGeneration
    assert type(again.processor) is type(policy.processor)
    written, read = policy.model.state_dict(), again.model.cpu().state_dict()
    assert list(written) == list(read)
    assert all(torch.equal(value, read[name]) for name, value in written.items())
    tree = tree_of(policy, phantoms)
    values = [token_log_probabilities(one.model, collate(one, [tree])) for one in (policy, again)]
    assert torch.equal(*values)


def test_pooling_leaves_a_quarter_of_the_image_places_and_the_processor_must_know(phantoms: Path) -> None:
    whole, quarter = build("mlp", 1), build("mlp", 2)
    prefix = tree_of(whole, phantoms).prefix
    image = whole.tokenizer.convert_tokens_to_ids("<image>")
    assert [one.encode(prefix).ids.count(image) for one in (whole, quarter)] == [16, 4]
    unaware = Policy(quarter.model, whole.processor)
    with pytest.raises(StllavaError, match="do not match, tokens: 16"):
        token_log_probabilities(unaware.model, collate(unaware, [tree_of(unaware, phantoms)]))


def test_a_tree_packs_and_all_of_the_projector_learns_from_it(kind: str, phantoms: Path) -> None:
    policy = build(kind, 2)
    tree = tree_of(policy, phantoms)
    assert check_packing(policy, [tree]) is None
    assert policy.packs
    (-token_log_probabilities(policy.model, collate(policy, [tree])).sum()).backward()
    idle = [
        name
        for name, parameter in policy.model.named_parameters()
        if llava_group(name) == "projector" and (parameter.grad is None or not parameter.grad.any())
    ]
    assert idle == []


def test_a_projector_that_a_folder_lacks_starts_as_a_new_one_does(tmp_path: Path) -> None:
    build("mlp", 1).save(tmp_path)
    made = AutoModelForImageTextToText.from_pretrained(tmp_path, projector="prototypes", prototypes=5)
    started = made.model.multi_modal_projector
    assert bool((started.sim_alpha == 1).all() and (started.ln_1.weight == 1).all())
    assert not any(bool(value.any()) for value in (started.sim_beta, started.ln_1.bias, started.c.bias))
    assert 0 < float(started.v.weight.detach().std()) < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"projector": "q-former"}, "mlp"),
        ({"pool": 3}, "pool"),
        ({"prototypes": 0}, "0 prototypes"),
        ({"prototype_steps": 0}, "0 steps"),
    ],
    ids=["projector", "pool", "prototypes", "steps"],
)
def test_a_configuration_that_names_no_projector_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(Exception, match=message):
        StllavaConfig.from_dict(options)


PLAIN = """
import sys
sys.modules["stllava"] = None
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
folder, image, expected = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, backend="pil")
from PIL import Image
inputs = processor(text=["<image>where?"], images=[Image.open(image).convert("RGB")], return_tensors="pt")
with torch.no_grad():
    found = model(**inputs).logits
assert torch.equal(found, torch.load(expected, weights_only=True)), "other logits"
print(type(model).__module__)
"""


@pytest.mark.slow
def test_a_saved_folder_gives_the_same_logits_in_plain_transformers(phantoms: Path, tmp_path: Path) -> None:
    policy = build("prototypes", 2)
    policy.save(tmp_path / "model")
    image = phantoms / "images" / "test" / "00000.png"
    encoded = policy.encode(Prefix("<image>where?", (str(image.relative_to(phantoms / "images")),), phantoms / "images"))
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([encoded.ids]), **policy.join([encoded])).logits
    torch.save(logits, tmp_path / "logits.pt")
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(tmp_path / "model"), str(image), str(tmp_path / "logits.pt")],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("transformers_modules.")
