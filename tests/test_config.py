"""Recipes and options."""

import re
from pathlib import Path

import pytest

from stllava.config import RECIPES, DpoOptions, FilesData, VqaRadData, load_recipe
from stllava.errors import StllavaError

MINIMAL = "name: x\ndata: {kind: phantom}\n"


def recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in re.findall(r"\$\{(\w+)\}", path.read_text()):
        monkeypatch.setenv(variable, f"/somewhere/{variable.lower()}")
    assert load_recipe(path).name


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (MINIMAL + "sft: {epoch: 3}", "unknown key 'sft.epoch'.*Did you mean 'epochs'"),
        (MINIMAL + "sft: {epochs: many}", "sft.epochs is 'many'"),
        (MINIMAL + "answer: {k: 1}", "answer.k is 1.*greater than or equal to 2"),
        ("name: x\ndata: {kind: phantoms}", "data is"),
        ("name: x\ndata: {kind: vqa-rad, folder: '${NOT_SET_ANYWHERE}'}", "NOT_SET_ANYWHERE.*is not set"),
        ("name: [x", "is not YAML"),
        ("- 1", "holds list"),
        ("base: gone.yaml", "no recipe"),
        (MINIMAL + "dpo: {loss: ipo, label_smoothing: 0.1}", "the options of dpo do not fit together.*raise beta"),
        (MINIMAL + "answer: {endpoint: {url: 'http://localhost:8000/v1'}}", "the options do not.*a server serves one policy"),
    ],
    ids=[
        "unknown key",
        "wrong type",
        "too small",
        "unknown kind",
        "unset variable",
        "not YAML",
        "no mapping",
        "no base",
        "smoothed ipo",
        "server",
    ],
)
def test_a_wrong_recipe_is_refused_by_name(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(StllavaError, match=fault):
        load_recipe(recipe(tmp_path, text))


def test_a_recipe_stands_on_its_base_and_overrides_stand_on_it(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(MINIMAL + "dpo: {beta: 0.3, nll: 0.5}\n")
    path = recipe(tmp_path, "base: base.yaml\ndpo: {nll: 0}\n")
    options = load_recipe(path, overrides={"dpo": {"replay": 0}, "seed": 9})
    assert options.dpo == DpoOptions(beta=0.3, nll=0, replay=0)
    assert options.seed == 9


def test_the_plain_preset_is_the_papers_two_answers_and_dpo_alone() -> None:
    plain = load_recipe(RECIPES / "phantom-plain.yaml")
    assert (plain.answer.k, plain.dpo.nll, plain.dpo.replay) == (2, 0, 0)


def test_environment_variables_and_kinds_of_data_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMEWHERE", str(tmp_path))
    rad = load_recipe(recipe(tmp_path, "name: x\ndata: {kind: vqa-rad, folder: '${SOMEWHERE}'}")).data
    own = "name: x\ndata: {kind: files, images: a, conversations: b.json, validation: c.jsonl}"
    assert isinstance(rad, VqaRadData)
    assert rad.folder == tmp_path
    assert isinstance(load_recipe(recipe(tmp_path, own)).data, FilesData)


def test_options_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        DpoOptions().beta = 1.0


def test_a_recipe_of_another_encoding_is_refused_by_line_and_a_byte_order_mark_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("name: x\ndata: {kind: phantom} # für mich\n".encode("latin-1"))
    with pytest.raises(StllavaError, match="line 2: not UTF-8"):
        load_recipe(tmp_path / "latin.yaml")
    (tmp_path / "marked.yaml").write_bytes(MINIMAL.encode("utf-8-sig"))
    assert load_recipe(tmp_path / "marked.yaml").name == "x"
