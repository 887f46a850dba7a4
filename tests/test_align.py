"""A run that learns captions before stage 1, and one that ends with it."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from helpers.architectures import llava_group
from stllava.config import EvaluateOptions, GroupRates, SamplingOptions, SftOptions
from stllava.data.sources import FilesData
from stllava.errors import StllavaError
from stllava.pipeline import run
from stllava.recipe import RunOptions

STEP = SftOptions(epochs=1, batch_size=2, warmup=0.0, learning_rate=GroupRates(language=1e-3, projector=1e-3, vision=1e-3))


def recipe(phantoms: Path, model: Path, **more: object) -> RunOptions:
    """Stage 1 alone on phantoms given as one's own files."""
    data = FilesData(
        kind="files",
        images=phantoms / "images",
        conversations=phantoms / "conversations.jsonl",
        captions=phantoms / "conversations.jsonl",
        validation=phantoms / "validation.jsonl",
    )
    evaluate = EvaluateOptions(sampling=SamplingOptions(temperature=0.0, max_new_tokens=4))
    options = {"name": "align", "model": str(model), "data": data, "sft": STEP, "evaluate": evaluate, "rounds": 0, **more}
    return RunOptions.model_validate(options)


def test_a_run_without_rounds_ends_with_stage_1(tiny_model: Path, phantoms: Path, tmp_path: Path) -> None:
    outcome = run(recipe(phantoms, tiny_model), to=tmp_path / "run")
    assert (outcome.policies, outcome.best) == (("sft",), "sft")
    assert not list((tmp_path / "run").glob("round-*"))


@pytest.mark.slow
def test_alignment_teaches_the_projector_alone_and_stage_1_starts_from_it(
    tiny_model: Path, phantoms: Path, tmp_path: Path
) -> None:
    projector = STEP.model_copy(update={"learning_rate": GroupRates(language=0, projector=1e-3, vision=0)})
    outcome = run(recipe(phantoms, tiny_model, align=projector), to=tmp_path / "run")
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_model, tmp_path / "run" / "align"))
    changed = {llava_group(name) for name, value in after.items() if not value.equal(before[name])}
    assert changed == {"projector"}
    plain = run(recipe(phantoms, tiny_model), to=tmp_path / "plain")
    assert outcome.best == plain.best == "sft"
    weights = [(tmp_path / name / "sft" / "model.safetensors").read_bytes() for name in ("run", "plain")]
    assert weights[0] != weights[1]


def test_alignment_without_captions_is_refused(tiny_model: Path, phantoms: Path, tmp_path: Path) -> None:
    options = recipe(phantoms, tiny_model, align=STEP)
    assert isinstance(options.data, FilesData)
    without = options.model_copy(update={"data": options.data.model_copy(update={"captions": None})})
    with pytest.raises(StllavaError, match="align without captions"):
        run(without, to=tmp_path / "run")
