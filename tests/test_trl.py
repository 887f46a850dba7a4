"""Our dpo against TRL's DPOTrainer: the same pairs give the same loss and the same gradient.

TRL builds its own batch from the same preferences (its rendering of the chat template, tokens, copies of the images and
mask of what is scored) and computes its own loss with a reference model of its own, so what is compared is everything
between a preference and a gradient. The policy differs from its reference on both sides.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from stllava.config import DpoOptions
from stllava.data.exchange.parquet import write_parquet
from stllava.data.images import open_image
from stllava.model.load import Policy, load_policy
from stllava.records import Lineage, Message, Preference
from stllava.remote.png import encode
from stllava.training.objective import counts_of
from stllava.training.preference_dataset import PreferenceDataset
from stllava.training.preference_steps import PreferenceSteps
from stllava.training.references import measure_reference

Gradient = dict[str, Tensor]
SMOOTHING = 0.2


@dataclass(frozen=True)
class Peer:
    """What TRL calls a loss."""

    loss_type: str
    label_smoothing: float = 0.0


def case(name: str, peer: Peer, beta: float, **ours: object) -> object:
    """Our options for a loss beside TRL's."""
    return pytest.param(DpoOptions.model_validate({"nll": 0, "replay": 0, "beta": beta, **ours}), peer, id=name)


# TRL's sigmoid does not read label_smoothing. Its robust loss is ((1 - e)·L(h) - e·L(-h)) / (1 - 2e), and with
# e = -s / (1 - 2s) that is (1 - s)·L(h) + s·L(-h): the sigmoid loss with labels smoothed by s.
CASES = [
    case("sigmoid", Peer("sigmoid"), beta=0.5),
    case("sigmoid, several forwards", Peer("sigmoid"), beta=0.5, max_tokens_per_forward=128),
    case("sigmoid, unpacked", Peer("sigmoid"), beta=0.5, pack=False),
    case("hinge", Peer("hinge"), beta=3.0, loss="hinge"),
    case("ipo", Peer("ipo"), beta=2.0, loss="ipo", length_normalised=True),
    case("sigmoid per token", Peer("sigmoid_norm"), beta=5.0, length_normalised=True),
    case("smoothed", Peer("robust", -SMOOTHING / (1 - 2 * SMOOTHING)), beta=0.5, label_smoothing=SMOOTHING),
]


def pairs(images: int) -> list[Preference]:
    """Five pairs an image of different lengths; now the chosen, now the rejected answer is longer, and one is in two pairs."""
    answers = [
        (0, "yes", "no"),
        (0, "yes", "it is not there"),
        (1, "the right upper lung, near the heart", "left"),
        (2, "ct", "this is an x-ray of the chest"),
        (3, "two", "one"),
    ]
    made = []
    for index in range(images):
        for number, chosen, rejected in answers:
            name = f"{index}-{number}-{rejected}"
            made.append(
                Preference(
                    id=name,
                    images=(f"unlabelled/{index:05d}.png",),
                    prompt=(Message(role="user", content=f"question {'and so on ' * number}{number}?"),),
                    chosen=chosen,
                    rejected=rejected,
                    margin=1.0,
                    lineage=Lineage(question_id=name, answers_id=name, judgment_id=name),
                )
            )
    return made


@torch.no_grad()
def disturb(model: nn.Module) -> None:
    """Move the weights a little, the same way each time: the policy then differs from its reference."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2 * float(parameter.std(correction=0)))


def gradient(model: nn.Module) -> Gradient:
    """The gradient by parameter, zero where the loss does not reach."""
    named = model.named_parameters()
    return {name: torch.zeros_like(value) if value.grad is None else value.grad.clone() for name, value in named}


def ours(model: Path, root: Path, preferences: list[Preference], options: DpoOptions) -> tuple[float, Gradient]:
    """Our loss of one optimizer step over all pairs, and its gradient."""
    policy = load_policy(model)
    policy.packs = options.pack
    dataset = PreferenceDataset(policy, preferences, images=root, max_tokens=options.max_tokens_per_forward)
    steps = PreferenceSteps(policy, dataset, measure_reference(dataset, policy, weights=""), None, options, 0)
    disturb(policy.model)
    forwards = steps.collate([steps.example(index, 0) for index in range(len(dataset))])
    counts = [counts_of(batch) for batch in forwards]
    totals = {name: sum(count[name] for count in counts) for name in counts[0]}
    assert (len(forwards) > 1) == (options.max_tokens_per_forward < 1000)
    loss = torch.stack([steps.loss(policy.model, batch, totals)[0] for batch in forwards]).sum()
    loss.backward()
    return float(loss.detach()), gradient(policy.model)


def rows_of(root: Path, preferences: list[Preference]) -> Any:
    """The pairs as a data set of `datasets`, made by hand."""
    datasets = import_module("datasets")
    turns = datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")})
    columns = {"images": datasets.List(datasets.Image()), "prompt": turns, "chosen": turns, "rejected": turns}
    rows = [
        {
            "images": [str(root / path) for path in preference.images],
            "prompt": [message.model_dump() for message in preference.prompt],
            "chosen": [{"role": "assistant", "content": preference.chosen}],
            "rejected": [{"role": "assistant", "content": preference.rejected}],
        }
        for preference in preferences
    ]
    return datasets.Dataset.from_list(rows, features=datasets.Features(columns))


def trainer_of(policy: Policy, reference: Policy, rows: Any, peer: Peer, *, beta: float, to: Path) -> Any:
    """TRL's trainer, whose batch is all rows."""
    trl = import_module("trl")
    return trl.DPOTrainer(
        model=policy.model,
        ref_model=reference.model,
        args=trl.DPOConfig(
            output_dir=str(to),
            loss_type=[peer.loss_type],
            label_smoothing=peer.label_smoothing,
            beta=beta,
            per_device_train_batch_size=len(rows),
            activation_checkpointing=False,
            bf16=False,
            use_cpu=True,
            max_length=None,
            report_to=[],
            dataloader_pin_memory=False,
        ),
        train_dataset=rows,
        processing_class=policy.processor,
    )


def theirs(
    model: Path, root: Path, preferences: list[Preference], peer: Peer, *, beta: float, to: Path
) -> tuple[float, Gradient]:
    """TRL's loss of a batch of all pairs that its own loader made, and its gradient."""
    policy, reference = load_policy(model), load_policy(model)
    disturb(policy.model)
    trainer = trainer_of(policy, reference, rows_of(root, preferences), peer, beta=beta, to=to)
    batch = next(iter(trainer.get_train_dataloader()))
    assert len(batch["input_ids"]) == len(batch["pixel_values"]) == 2 * len(preferences)
    compute_loss = cast(Callable[[nn.Module, object], Tensor], trainer.compute_loss)
    loss = compute_loss(policy.model, batch)
    loss.backward()
    return float(loss.detach()), gradient(policy.model)


def distance(one: Gradient, other: Gradient) -> float:
    """Norm of the difference relative to the norm."""
    flat = [torch.cat([value.flatten() for _, value in sorted(gradient.items())]) for gradient in (one, other)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


@pytest.mark.parametrize(("options", "peer"), CASES)
def test_the_loss_and_its_gradient_are_those_of_trl(
    tiny_model: Path, phantoms: Path, tmp_path: Path, options: DpoOptions, peer: Peer
) -> None:
    preferences, root = pairs(3), phantoms / "images"
    loss, towards = ours(tiny_model, root, preferences, options)
    expected, theirs_towards = theirs(tiny_model, root, preferences, peer, beta=options.beta, to=tmp_path)
    assert loss == pytest.approx(expected, abs=1e-4)
    assert distance(towards, theirs_towards) < 1e-4


def test_pairs_written_for_the_hub_give_trl_the_same_batch(tiny_model: Path, phantoms: Path, tmp_path: Path) -> None:
    preferences, root = pairs(2), phantoms / "images"
    named = [("round-1", preference) for preference in preferences]
    write_parquet(named, to=tmp_path / "train.parquet", images=root, encode=lambda path: encode(open_image(root, path)))
    read = import_module("datasets").load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    policy, reference = load_policy(tiny_model), load_policy(tiny_model)
    batches = []
    for rows in (read, rows_of(root, preferences)):
        trainer = trainer_of(policy, reference, rows, Peer("sigmoid"), beta=0.1, to=tmp_path / "trained")
        torch.manual_seed(0)
        batches.append(next(iter(trainer.get_train_dataloader())))
    ours, by_hand = batches
    assert set(ours) == set(by_hand)
    assert all(torch.equal(ours[name], by_hand[name]) for name in ours)
