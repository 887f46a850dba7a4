"""What sft and dpo do to the weights."""

import json
import math
from collections import Counter, deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import starmap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MistralConfig, Trainer

from helpers.architectures import llava_group, llava_of, template, text_options, tokenizer_of
from stllava.config import AskOptions, DpoOptions, GroupRates, LoraOptions, SamplingOptions, SftOptions
from stllava.config.training import AdapterOptions
from stllava.data.conversations import read_conversations
from stllava.errors import CollapseError, StllavaError
from stllava.model.load import Policy, load_policy
from stllava.model.small import IMAGE
from stllava.records import Lineage, Message, Preference
from stllava.stages.ask import ask
from stllava.stages.dpo import dpo, latest
from stllava.stages.sft import sft
from stllava.store import MANIFEST, PARTS, CurvePoint, Stage, output_hash, read_manifest, seal
from stllava.training.callbacks import newest_whole_checkpoint
from stllava.training.collapse import CollapseMonitor
from stllava.training.objective import counts_of
from stllava.training.preference_dataset import PreferenceDataset
from stllava.training.preference_steps import PreferenceSteps
from stllava.training.references import measure_reference
from stllava.training.sft_dataset import SftDataset
from stllava.tree.scoring import answer_log_probabilities

RATES = GroupRates(language=1e-3, projector=1e-3, vision=1e-3)
QUICK = SftOptions(learning_rate=RATES, warmup=0.0, schedule="constant", batch_size=3, save_steps=0)
LORA = LoraOptions(language=AdapterOptions(rank=4), vision=AdapterOptions(rank=2))


MISTRAL = "{{ bos_token }}" + template(
    turn="{%- if message['role'] == 'user' -%}[INST]{%- elif message['role'] != 'assistant' -%}{{ raise_exception('who?') }}"
    "{%- endif -%}",
    image=IMAGE,
    end="{{ '[/INST]' if message['role'] == 'user' else eos_token }}",
)
"""As Mistral Small 3 and Pixtral are published: nothing stands between [/INST] and the answer."""


def weights(folder: Path) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in load_policy(folder).model.state_dict().items()}


def learn(options: SftOptions, tiny_model: Path, phantoms: Path, to: Path) -> Path:
    sft(options, model=str(tiny_model), conversations=phantoms / "conversations.jsonl", images=phantoms / "images", to=to)
    return to


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def parameters(folder: Path) -> set[str]:
    return {name for name, _ in load_policy(folder).model.named_parameters()}


# The class token and the last norm of the vision tower do not reach the image tokens that LLaVA takes; the position
# of the class token is one row of a tensor that learns.
UNUSED = ("post_layernorm",)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_template_that_opens_the_answer_with_nothing_learns_to_ask_and_asks(
    share: float, phantoms: Path, tmp_path: Path
) -> None:
    tokenizer = tokenizer_of(["<s>", "</s>", "[INST]", "[/INST]", IMAGE], end="</s>", begin="<s>")
    config = MistralConfig(sliding_window=None, **text_options(tokenizer))
    llava_of(tokenizer, config, spoken=MISTRAL, seed=3).save(tmp_path / "model")
    options = QUICK.model_copy(update={"self_question_ratio": share})
    learn(options, tmp_path / "model", phantoms, tmp_path / "sft")
    asking = AskOptions(questions=2, sampling=SamplingOptions(temperature=1.0, max_new_tokens=8))
    root = phantoms / "images"
    asked = ask(asking, policy=tmp_path / "sft", images=root / "unlabelled", root=root, to=tmp_path / "asked").manifest
    assert asked.counts_in == 2 * asked.measures["images"] > 0


def test_after_a_step_every_trainable_parameter_has_changed(tiny_model: Path, phantoms: Path, tmp_path: Path) -> None:
    after = learn(QUICK, tiny_model, phantoms, tmp_path / "sft")
    still = parameters(tiny_model) - changed(weights(tiny_model), weights(after))
    assert {name for name in still if not any(part in name for part in UNUSED)} == set()


@pytest.mark.parametrize("frozen", ["language", "projector", "vision"])
def test_a_frozen_part_does_not_change_at_all(tiny_model: Path, phantoms: Path, tmp_path: Path, frozen: str) -> None:
    options = QUICK.model_copy(update={"learning_rate": RATES.model_copy(update={frozen: 0.0})})
    after = learn(options, tiny_model, phantoms, tmp_path / "sft")
    groups = {llava_group(name) for name in changed(weights(tiny_model), weights(after))}
    assert groups == {"language", "projector", "vision"} - {frozen}


def test_lora_learns_and_is_merged_into_a_plain_folder(tiny_model: Path, phantoms: Path, tmp_path: Path) -> None:
    after = learn(QUICK.model_copy(update={"lora": LORA}), tiny_model, phantoms, tmp_path / "sft")
    names = changed(weights(tiny_model), weights(after))
    assert {llava_group(name) for name in names} == {"language", "projector", "vision"}
    assert not any("norm" in name or "embed" in name for name in names)
    assert not list(after.glob("adapter*"))


def test_four_forwards_of_one_image_are_one_forward_of_four(tiny_model: Path, phantoms: Path, tmp_path: Path) -> None:
    wide = learn(QUICK.model_copy(update={"batch_size": 4}), tiny_model, phantoms, tmp_path / "wide")
    long = learn(
        QUICK.model_copy(update={"batch_size": 4, "max_tokens_per_forward": 512}), tiny_model, phantoms, tmp_path / "long"
    )
    losses = [dict(read_manifest(folder).curves["loss"]) for folder in (wide, long)]
    assert losses[0].keys() == losses[1].keys()
    for step, loss in losses[0].items():
        assert losses[1][step] == pytest.approx(loss, abs=2e-4)
    for name, value in weights(wide).items():
        torch.testing.assert_close(value, weights(long)[name], atol=2e-4, rtol=1e-3)


class _KilledError(Exception):
    """Stands for SIGKILL in the middle of a training."""


@pytest.mark.parametrize("lora", [LoraOptions(), LORA], ids=["in full", "lora"])
def test_a_training_that_was_killed_ends_with_the_weights_of_one_that_was_not(
    tiny_model: Path, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: LoraOptions
) -> None:
    options = QUICK.model_copy(update={"epochs": 4.0, "schedule": "cosine", "save_steps": 3, "lora": lora})
    whole = learn(options, tiny_model, phantoms, tmp_path / "whole")
    step: Callable[..., Tensor] = Trainer.training_step
    calls = 0

    def killed(self: Trainer, *arguments: Any, **named: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise _KilledError
        return step(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", killed)
        with pytest.raises(_KilledError):
            learn(options, tiny_model, phantoms, tmp_path / "killed")
    resumed = learn(options, tiny_model, phantoms, tmp_path / "killed")
    assert output_hash(resumed) == output_hash(whole)


CHECKPOINT = ("weights.safetensors", "optimizer.pt", "trainer_state.json", "scheduler.pt", "rng_state.pth")


@pytest.mark.parametrize("name", CHECKPOINT)
@pytest.mark.parametrize("damage", ["cut", "emptied", "deleted", "changed"])
def test_a_checkpoint_that_is_not_what_it_was_is_passed_over(name: str, damage: str, tmp_path: Path) -> None:
    for step in (3, 12):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for file in CHECKPOINT:
            (folder / file).write_bytes(b"{} " * 99)
        seal(folder)
    (tmp_path / "checkpoint-20").mkdir()  # A kill struck before its first file was whole.
    path = tmp_path / "checkpoint-12" / name
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes({"cut": b"{} " * 50, "emptied": b"", "changed": b"[] " * 99}[damage])
    assert newest_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint-3"]
    assert newest_whole_checkpoint(tmp_path / "none") is None


def test_conversations_that_cannot_be_learned_from_are_counted_by_cause(tiny_model: Path, phantoms: Path) -> None:
    read, _ = read_conversations(phantoms / "conversations.jsonl")
    spoiled = [
        read[0].model_copy(update={"id": "a", "images": ("gone.png",)}),
        read[0].model_copy(update={"id": "b", "messages": read[0].messages[:1]}),
        read[0].model_copy(
            update={"id": "c", "messages": (read[0].messages[0], Message(role="assistant", content="x " * 900))}
        ),
    ]
    policy = load_policy(tiny_model)
    lessons = SftDataset(policy, [*read, *spoiled], images=phantoms / "images", self_question_ratio=0.5, seed=0, max_tokens=512)
    assert lessons.dropped == {"missing": 1, "nothing to learn": 1, "longer than the context": 1}
    with pytest.raises(StllavaError, match="none of 3 conversations can be learned from"):
        SftDataset(policy, spoiled, images=phantoms / "images", self_question_ratio=0.5, seed=0, max_tokens=512)


def test_virtual_user_turns_are_drawn_anew_each_epoch_and_alike_for_a_seed(tiny_model: Path, phantoms: Path) -> None:
    read, _ = read_conversations(phantoms / "conversations.jsonl")
    policy = load_policy(tiny_model)

    def learned(seed: int, epoch: int, self_question_ratio: float = 0.5) -> list[bool]:
        lessons = SftDataset(
            policy, read, images=phantoms / "images", self_question_ratio=self_question_ratio, seed=seed, max_tokens=512
        )
        return [node.learn for index in range(6) for node in lessons.tree(index, epoch).nodes]

    assert learned(0, 0) == learned(0, 0)
    assert learned(0, 0) != learned(0, 1)
    assert sum(learned(0, 0, 0.0)) < sum(learned(0, 0, 0.5)) < sum(learned(0, 0, 1.0))


def pairs(images: int = 3) -> list[Preference]:
    """Four questions an image, each with a chosen and a rejected answer."""
    made = []
    for index in range(images):
        for number, (chosen, rejected) in enumerate(
            [("yes", "no"), ("right upper lung", "left"), ("ct", "x-ray"), ("two", "one")]
        ):
            name = f"{index}-{number}"
            made.append(
                Preference(
                    id=name,
                    images=(f"unlabelled/{index:05d}.png",),
                    prompt=(Message(role="user", content=f"question {number}?"),),
                    chosen=chosen,
                    rejected=rejected,
                    margin=1.0,
                    lineage=Lineage(question_id=name, answers_id=name, judgment_id=name),
                )
            )
    return made


def steps_of(tiny_model: Path, phantoms: Path, options: DpoOptions) -> PreferenceSteps:
    policy = load_policy(tiny_model)
    read, _ = read_conversations(phantoms / "conversations.jsonl")
    lessons = (
        SftDataset(policy, read, images=phantoms / "images", self_question_ratio=0.5, seed=0, max_tokens=512)
        if options.replay > 0
        else None
    )
    dataset = PreferenceDataset(policy, pairs(), images=phantoms / "images", max_tokens=options.max_tokens_per_forward)
    return PreferenceSteps(policy, dataset, measure_reference(dataset, policy, weights="mine"), lessons, options, 0)


def step(made: PreferenceSteps) -> tuple[float, dict[str, float], dict[str, float]]:
    """Loss, figures and counts of a step of three images."""
    forwards = made.collate([made.example(index, 0) for index in range(3)])
    counts: Counter[str] = Counter()
    for batch in forwards:
        counts.update(counts_of(batch))
    shares = [made.loss(made.policy.model, batch, counts) for batch in forwards]
    figures = {name: sum(figures[name] for _, figures in shares) for name in shares[0][1]}
    return sum(float(loss.detach()) for loss, _ in shares), figures, dict(counts)


@pytest.mark.parametrize("tokens", [150, 16384], ids=["several forwards", "one forward"])
def test_the_first_dpo_loss_is_log_2(tiny_model: Path, phantoms: Path, tokens: int) -> None:
    plain = steps_of(tiny_model, phantoms, DpoOptions(nll=0, replay=0, max_tokens_per_forward=tokens))
    loss, figures, _ = step(plain)
    assert loss == pytest.approx(math.log(2), abs=1e-5)
    assert figures["reward_margin"] == pytest.approx(0, abs=1e-4)
    plain.monitor()(0, figures)


@pytest.mark.parametrize("tokens", [150, 16384], ids=["several forwards", "one forward"])
def test_the_anchored_loss_is_the_sum_of_its_three_parts(tiny_model: Path, phantoms: Path, tokens: int) -> None:
    options = DpoOptions(nll=0.7, replay=0.3, replay_images=2, batch_size=3, max_tokens_per_forward=tokens)
    anchored = steps_of(tiny_model, phantoms, options)
    chosen = sum(len(anchored.policy.tokens(pair.chosen + "<|end|>")) for pair in pairs())
    parts = []
    for nll, replay in ((0.0, 0.0), (0.7, 0.0), (0.7, 0.3)):
        weighed = options.model_copy(update={"nll": nll, "replay": replay})
        loss, figures, counts = step(replace(anchored, options=weighed))
        parts.append(loss)
    assert counts["pairs"] == 12
    assert counts["chosen_tokens"] == chosen
    assert parts[1] - parts[0] == pytest.approx(-0.7 * figures["chosen_logp"] * 12 / chosen, rel=1e-4)
    assert parts[2] > parts[1]


def test_a_reference_of_other_weights_is_refused_before_the_first_step(tiny_model: Path, phantoms: Path) -> None:
    strange = steps_of(tiny_model, phantoms, DpoOptions(nll=0, replay=0))
    moved = tuple(tuple((chosen - 1.0, rejected + 1.0) for chosen, rejected in tree) for tree in strange.references.values)
    _, figures, _ = step(replace(strange, references=replace(strange.references, values=moved)))
    with pytest.raises(StllavaError, match="first loss"):
        strange.monitor()(0, figures)


def test_pairs_that_share_an_answer_score_it_once(tiny_model: Path, phantoms: Path) -> None:
    policy = load_policy(tiny_model)
    several = [
        pair.model_copy(update={"id": f"{pair.id}-{worse}", "rejected": worse})
        for pair in pairs()
        for worse in ("nothing", "an odd thing", pair.rejected)
    ]
    options = DpoOptions(nll=0.5, replay=0)
    dataset = PreferenceDataset(policy, several, images=phantoms / "images", max_tokens=options.max_tokens_per_forward)
    references = measure_reference(dataset, policy, weights="")
    tree, nodes = dataset.trees[0], dataset.pairs[0]
    assert len(tree.leaves) == 4 * len({chosen for chosen, _ in nodes})
    assert len(nodes) == len(list(references.records(dataset))) / len(dataset) == 12
    _, figures, counts = step(PreferenceSteps(policy, dataset, references, None, options, 0))
    assert counts["pairs"] == 36
    assert counts["chosen_tokens"] == sum(len(policy.tokens(pair.chosen + "<|end|>")) for pair in pairs())
    assert figures["dpo_loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_a_tree_longer_than_a_forward_is_cut_between_questions(tiny_model: Path, phantoms: Path) -> None:
    whole = steps_of(tiny_model, phantoms, DpoOptions(nll=0, replay=0))
    cut = steps_of(tiny_model, phantoms, DpoOptions(nll=0, replay=0, max_tokens_per_forward=60))
    assert len(cut.dataset) > len(whole.dataset) == 3
    few, all_at_once = (
        {one.id: (one.chosen, one.rejected) for one in made.references.records(made.dataset)} for made in (cut, whole)
    )
    assert sorted(few) == sorted(all_at_once)
    assert all(few[key] == pytest.approx(value, abs=1e-4) for key, value in all_at_once.items())


@pytest.mark.parametrize(("off", "used"), [(0.0, True), (5.0, False)], ids=["right", "wrong"])
def test_what_answer_noted_is_used_as_reference_if_it_is_right(
    tiny_model: Path, phantoms: Path, off: float, used: bool
) -> None:
    known = steps_of(tiny_model, phantoms, DpoOptions(replay=0))
    measured = {one.id: one for one in known.references.records(known.dataset)}
    noted = [
        pair.model_copy(update={"reference": measured[pair.id].model_copy(update={"chosen": measured[pair.id].chosen + off})})
        for pair in pairs()
    ]
    policy = load_policy(tiny_model)
    dataset = PreferenceDataset(policy, noted, images=phantoms / "images", max_tokens=16384)
    references = measure_reference(dataset, policy, weights="mine")
    assert ("are those that answer noted" in references.note) == used
    for one in references.records(dataset):
        assert one.chosen == pytest.approx(measured[one.id].chosen, abs=1e-4)
    assert "computed for 3 trees" in measure_reference(dataset, policy, weights="other weights").note


@pytest.mark.parametrize(
    ("drift", "accuracies", "fault"),
    [
        (-4.0, [0.6] * 30, "less likely"),
        (0.1, [0.9] * 15 + [0.2] * 15, "ranked rightly"),
        (-0.5, [0.5] * 15 + [0.9] * 15, None),
    ],
    ids=["chosen answers die out", "the ranking flips", "all is well"],
)
def test_a_collapse_stops_the_training(drift: float, accuracies: list[float], fault: str | None) -> None:
    watch = CollapseMonitor(first_loss=math.log(2), close=1e-3, max_chosen_drop=3.0)
    steps = [{"chosen_drift": drift, "reward_accuracy": one, "distance": 0.0, "dpo_loss": 0.5} for one in accuracies]
    with nullcontext() if fault is None else pytest.raises(CollapseError, match=fault):
        deque(starmap(watch, enumerate(steps)), maxlen=0)


def test_a_part_that_no_gradient_reaches_is_refused(
    tiny_model: Path, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(path: Path | str, *, dtype: torch.dtype | None) -> Policy:
        policy = load_policy(path, dtype=dtype)
        policy.model.model.multi_modal_projector.register_forward_hook(lambda *given: given[-1].detach())
        return policy

    monkeypatch.setattr("stllava.model.adapters.load_policy", cut_off)
    with pytest.raises(StllavaError, match=r"no gradient reaches the part (projector and vision|vision and projector)"):
        learn(QUICK, tiny_model, phantoms, tmp_path / "sft")


@pytest.mark.parametrize("seed", [0, 1])
def test_rows_of_text_alone_are_learned_beside_images_whichever_come_first(
    seed: int, tiny_model: Path, phantoms: Path, tmp_path: Path
) -> None:
    shown = read_conversations(phantoms / "conversations.jsonl")[0][0]
    turns = [{"from": "human", "value": "is bone denser than fat"}, {"from": "gpt", "value": "yes"}]
    rows: list[dict[str, object]] = [
        {"conversations": [turns[0] | {"value": f"{number}? {turns[0]['value']}"}, turns[1]]} for number in range(40)
    ]
    asked, said = shown.messages[:2]
    rows.append({"image": shown.images[0], "question": asked.content, "answer": said.content})
    (tmp_path / "talks.json").write_text(json.dumps(rows))
    options = QUICK.model_copy(update={"batch_size": 1, "max_tokens_per_forward": 256, "epochs": 1})
    images = phantoms / "images"
    manifest = sft(
        options, model=str(tiny_model), conversations=tmp_path / "talks.json", images=images, to=tmp_path / "out", seed=seed
    ).manifest
    assert (manifest.counts_out, manifest.dropped) == (41, {})
    (tmp_path / "talks.json").write_text(json.dumps(rows[:-1]))
    with pytest.raises(StllavaError, match=r"no gradient reaches the part (projector and vision|vision and projector)"):
        sft(options, model=str(tiny_model), conversations=tmp_path / "talks.json", images=images, to=tmp_path / "alone")


def test_dpo_raises_the_chosen_answers_over_the_rejected(
    tiny_model: Path, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched: list[CurvePoint] = []

    write = CurvePoint.model_dump_json

    def look(point: CurvePoint) -> str:
        watched.append(point)
        return write(point)

    monkeypatch.setattr(CurvePoint, "model_dump_json", look)
    stage = Stage("pair", tmp_path / "pair", QUICK, inputs={}, existing="resume")
    stage.write_records("preferences", pairs())
    stage.finish(counts_in=12, counts_out=12)
    options = DpoOptions(learning_rate=RATES, epochs=12, batch_size=3, save_steps=0, replay_images=1)
    talks = phantoms / "conversations.jsonl"
    with pytest.raises(StllavaError, match="--conversations"):
        dpo(options, policy=tiny_model, preferences=tmp_path / "pair", images=phantoms / "images", to=tmp_path / "dpo")
    manifest = dpo(
        options,
        policy=tiny_model,
        preferences=tmp_path / "pair",
        images=phantoms / "images",
        conversations=talks,
        to=tmp_path / "dpo",
    ).manifest
    assert manifest.counts_out == 12
    assert manifest.curves["reward_accuracy"][-1][1] == 1.0
    # Who watched the training saw these curves grow.
    assert {point.steps for point in watched} == {watched[-1].step}
    for name, curve in manifest.curves.items():
        assert [(point.step, point.values[name]) for point in watched if name in point.values] == curve
    assert manifest.curves["chosen_logp"][-1][1] > manifest.curves["chosen_logp"][0][1]
    assert not (tmp_path / "dpo" / PARTS).exists()


def test_of_the_same_question_only_the_latest_rounds_pairs_are_learned(tmp_path: Path) -> None:
    first, second = pairs()[:3], pairs()[:1]
    newer = [one.model_copy(update={"id": f"new {one.id}", "chosen": "another answer"}) for one in second]
    for name, rows in (("one", first), ("two", newer)):
        stage = Stage("pair", tmp_path / name, QUICK, inputs={}, existing="resume")
        stage.write_records("preferences", rows)
        stage.finish(counts_in=len(rows), counts_out=len(rows))
    assert [one.id for one in latest([tmp_path / "one", tmp_path / "two"])] == [newer[0].id, first[1].id, first[2].id]
    assert list(latest([tmp_path / "one"])) == list(first)


def test_pickled_weights_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    for file in tiny_model.iterdir():
        if file.suffix != ".safetensors" and file.name != MANIFEST:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"not to be opened")
    with pytest.raises(StllavaError, match="never loaded"):
        load_policy(tmp_path)


Gradients = dict[str, torch.Tensor]


def move(policy: Policy) -> None:
    """Move the weights a little, the same way each time."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)


def weighted(tiny_model: Path, phantoms: Path, weights: list[float], options: DpoOptions) -> tuple[float, Gradients]:
    """The loss and gradients of one step over the pairs with these weights, from a policy that has moved."""
    policy = load_policy(tiny_model)
    policy.packs = options.pack
    preferences = [pair.model_copy(update={"weight": weight}) for pair, weight in zip(pairs(), weights, strict=True)]
    dataset = PreferenceDataset(
        policy,
        preferences,
        images=phantoms / "images",
        max_tokens=options.max_tokens_per_forward,
        image_conditional=options.image_conditional > 0,
    )
    made = PreferenceSteps(policy, dataset, measure_reference(dataset, policy, weights="mine"), None, options, 0)
    move(policy)
    forwards = made.collate([made.example(index, 0) for index in range(len(dataset))])
    counts: Counter[str] = Counter()
    for batch in forwards:
        counts.update(counts_of(batch))
    loss = torch.stack([made.loss(policy.model, batch, counts)[0] for batch in forwards]).sum()
    loss.backward()
    gradients = {name: value.grad for name, value in policy.model.named_parameters() if value.grad is not None}
    return float(loss.detach()), gradients


ANCHORED = DpoOptions(nll=0.7, replay=0, max_tokens_per_forward=16384)


def test_pairs_of_equal_weight_are_learned_as_pairs_without_one(tiny_model: Path, phantoms: Path) -> None:
    plain, gradients = weighted(tiny_model, phantoms, [1.0] * len(pairs()), ANCHORED)
    same, others = weighted(tiny_model, phantoms, [4.0] * len(pairs()), ANCHORED)
    assert same == plain
    assert all(torch.equal(gradients[name], others[name]) for name in gradients)


def test_a_weight_is_what_counts_and_packing_does_not_change_it(tiny_model: Path, phantoms: Path) -> None:
    weights = [0.25 + 0.5 * (place % 4) for place in range(len(pairs()))]
    packed, gradients = weighted(tiny_model, phantoms, weights, ANCHORED)
    alone, others = weighted(tiny_model, phantoms, weights, ANCHORED.model_copy(update={"pack": False}))
    plain, _ = weighted(tiny_model, phantoms, [1.0] * len(pairs()), ANCHORED)
    assert packed == pytest.approx(alone, rel=1e-5)
    assert packed != pytest.approx(plain, rel=1e-4)
    for name, value in gradients.items():
        torch.testing.assert_close(value, others[name], rtol=2e-3, atol=2e-6)


def test_the_group_objective_is_the_same_packed_and_unpacked(tiny_model: Path, phantoms: Path) -> None:
    grouped = ANCHORED.model_copy(update={"loss": "group"})
    weights = [0.25 + 0.5 * (place % 4) for place in range(len(pairs()))]
    packed, gradients = weighted(tiny_model, phantoms, weights, grouped)
    alone, others = weighted(tiny_model, phantoms, weights, grouped.model_copy(update={"pack": False}))
    assert packed == pytest.approx(alone, rel=1e-4)
    for name, value in gradients.items():
        torch.testing.assert_close(value, others[name], rtol=5e-3, atol=1e-5)


def test_a_weight_of_1_is_not_written(tiny_model: Path) -> None:
    (pair, *_) = pairs()
    assert "weight" not in pair.model_dump_json()
    assert Preference.model_validate_json(pair.model_copy(update={"weight": 0.5}).model_dump_json()).weight == 0.5


LOOKING = DpoOptions(nll=0, replay=0, image_conditional=1.5, max_tokens_per_forward=16384)


def test_the_image_conditional_loss_is_that_of_each_chosen_answer_with_its_image_against_a_black_one(
    tiny_model: Path, phantoms: Path
) -> None:
    both, _ = weighted(tiny_model, phantoms, [1.0] * len(pairs()), LOOKING)
    plain, _ = weighted(tiny_model, phantoms, [1.0] * len(pairs()), LOOKING.model_copy(update={"image_conditional": 0.0}))
    prompts = [(pair.prompt, pair.images) for pair in pairs()]
    texts = [(pair.chosen,) for pair in pairs()]
    policy, gaps = load_policy(tiny_model), []
    for moved in (False, True):
        if moved:
            move(policy)
        sides = []
        for blank in (False, True):
            found = answer_log_probabilities(policy, prompts, texts, images=phantoms / "images", max_tokens=4096, blank=blank)
            sides.append(torch.tensor([values[0] for values in found if isinstance(values, tuple)]))
        gaps.append(sides[0] - sides[1])
    expected = 1.5 * -torch.nn.functional.logsigmoid(LOOKING.beta * (gaps[1] - gaps[0])).mean()
    assert both - plain == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("tokens", [300, 16384], ids=["several forwards", "one forward"])
def test_the_image_conditional_loss_is_the_same_packed_and_unpacked(tiny_model: Path, phantoms: Path, tokens: int) -> None:
    options = LOOKING.model_copy(update={"max_tokens_per_forward": tokens})
    weights = [1.0] * len(pairs())
    packed, gradients = weighted(tiny_model, phantoms, weights, options)
    alone, others = weighted(tiny_model, phantoms, weights, LOOKING.model_copy(update={"pack": False}))
    assert packed == pytest.approx(alone, rel=1e-5)
    for name, value in gradients.items():
        torch.testing.assert_close(value, others[name], rtol=5e-3, atol=1e-5)


def test_before_anything_is_learned_the_image_conditional_loss_is_log_2(tiny_model: Path, phantoms: Path) -> None:
    policy = load_policy(tiny_model)
    dataset = PreferenceDataset(policy, pairs(), images=phantoms / "images", max_tokens=16384, image_conditional=True)
    steps = PreferenceSteps(policy, dataset, measure_reference(dataset, policy, weights="mine"), None, LOOKING, 0)
    loss, figures, counts = step(steps)
    assert counts["contrasts"] == len(pairs())
    assert loss == pytest.approx(2.5 * math.log(2), abs=1e-4)
    steps.monitor()(0, figures)
