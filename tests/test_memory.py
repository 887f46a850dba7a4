"""What a training takes is calculated by its own code on tensors without values."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from stllava.cli import main
from stllava.config import AdapterOptions, DpoOptions, GroupRates, LearningLoad, LoraOptions, SftOptions, TrainingOptions
from stllava.model.adapters import load_learner, prepare_model
from stllava.training import memory
from stllava.training.memory import StorageLedger, forwards_of_a_step, predict_training

RATES = GroupRates(language=1e-3, projector=1e-3, vision=1e-3)
LOAD = LearningLoad(image_size=32, questions=5, answers=3, question_tokens=6, answer_tokens=8)
SMALL_ADAPTERS = LoraOptions(language=AdapterOptions(rank=4))


def held_with_values(model: Path, options: TrainingOptions, work: Path) -> int:
    """The bytes that the same steps hold at most with values."""
    policy = load_learner(model, options)
    learner = prepare_model(policy.model, options).train()
    ledger = StorageLedger()
    for tensor in (*learner.parameters(), *learner.buffers()):
        ledger.count(tensor)
    forwards = forwards_of_a_step(policy, options, LOAD, work)
    with ledger:
        memory._two_steps(policy, learner, options, forwards)
    return ledger.peak


@pytest.mark.parametrize(
    "options",
    [
        SftOptions(batch_size=2, learning_rate=RATES),
        DpoOptions(batch_size=3, learning_rate=RATES, max_tokens_per_forward=256),
        DpoOptions(batch_size=2, learning_rate=RATES, lora=SMALL_ADAPTERS, checkpoint_activations=True),
    ],
    ids=["sft", "dpo in several forwards", "adapters, computed again"],
)
def test_the_calculation_is_what_the_same_steps_hold_with_values(
    options: TrainingOptions, tiny_model: Path, tmp_path: Path
) -> None:
    for name in ("calculated", "held"):
        (tmp_path / name).mkdir()
    found = predict_training(tiny_model, options, LOAD, tmp_path / "calculated")
    held = held_with_values(tiny_model, options, tmp_path / "held")
    # It takes all places of learned tokens as different, and learned answers to a question begin at one place.
    assert held <= found.peak <= 1.02 * held
    assert found.gradients == 4 * found.learned
    assert found.optimizer == 8 * found.learned


def test_no_weight_is_read(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)
    found = predict_training(tiny_model, SftOptions(batch_size=1, learning_rate=RATES), LOAD, tmp_path)
    assert found.weights >= 4 * found.parameters
    assert found.activations > 0


def test_four_bits_take_less(tiny_model: Path, tmp_path: Path) -> None:
    peaks = []
    for quantise in ("none", "4bit"):
        (tmp_path / quantise).mkdir()
        lora = LoraOptions.model_validate({"language": {"rank": 4}, "quantise": quantise})
        options = SftOptions(batch_size=1, learning_rate=RATES, lora=lora)
        peaks.append(predict_training(tiny_model, options, LOAD, tmp_path / quantise).weights)
    assert peaks[1] < peaks[0]


def test_doctor_tells_what_is_installed_and_what_fits(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load = [word for name, value in LOAD.model_dump().items() for word in (f"--load.{name.replace('_', '-')}", str(value))]
    main(["doctor", "--model", str(tiny_model), "--sft.batch-size", "1", "--dpo.batch-size", "1", *load])
    said = capsys.readouterr().out
    assert f"torch {torch.__version__.partition('+')[0]}" in said
    assert "dicom " in said
    rows = {line.split()[0]: line.split() for line in said.splitlines() if line.startswith(("sft", "dpo", "answer"))}
    assert {*rows} == {"sft", "dpo", "answer"}
    assert all(row[-1] == "fits" for row in rows.values())


def test_doctor_takes_a_model_from_one_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--recipe", "phantom.yaml", "--model", str(tmp_path)])
    assert "one place that says them" in capsys.readouterr().err
    main(["doctor", "--recipe", "phantom.yaml"])
    assert "builds its model itself" in capsys.readouterr().out
