"""Recipes and options."""

import re
from pathlib import Path

import pytest

from stllava.config import DpoOptions, JudgeOptions, validate
from stllava.data.sources import FilesData, VqaRadData
from stllava.errors import StllavaError
from stllava.recipe import RECIPES, load_recipe

MINIMAL = "name: x\ndata: {kind: phantom}\n"
FILES = "name: x\ndata:\n  kind: files\n  images: a\n  conversations: b.json\n  validation: c.jsonl\n"


def recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


OLD_KEYS = [
    ("sft", "sq_r", "self_question_ratio"),
    ("sft", "tokens", "max_tokens_per_forward"),
    ("ask", "tokens", "max_cache_tokens"),
    ("ask", "describe", "description_prompt"),
    ("ask", "describe_also", "extra_description_prompts"),
    ("ask", "description", "description_sampling"),
    ("ask", "descriptions", "num_descriptions"),
    ("ask", "borrow", "borrow_questions"),
    ("answer", "k", "num_answers"),
    ("pair", "least", "min_chosen_score"),
    ("pair", "most", "max_pairs_per_question"),
    ("pair", "alike", "max_similarity"),
    ("pair", "denials", "max_denial_share"),
    ("dpo", "collapse", "max_chosen_drop"),
    ("dpo", "sq_r", "self_question_ratio"),
    ("evaluate", "tokens", "max_cache_tokens"),
]


@pytest.mark.parametrize(("stage", "old", "new"), OLD_KEYS, ids=[f"{stage}.{old}" for stage, old, _ in OLD_KEYS])
def test_a_key_of_the_release_before_is_refused_by_the_name_it_has_now(tmp_path: Path, stage: str, old: str, new: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL + f"{stage}: {{{old}: 1}}\n")
    with pytest.raises(StllavaError, match=f"unknown key '{stage}.{old}'.* It is called '{new}' now"):
        load_recipe(path)


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
        (MINIMAL + "answer: {num_answers: 1}", "answer.num_answers is 1.*greater than or equal to 2"),
        ("name: x\ndata: {kind: phantoms}", "data.kind is 'phantoms'; expected one of .*phantom.*mean 'phantom'"),
        ("name: x\ndata: {images: a}", "no 'data.kind'; expected one of .*phantom"),
        ("name: x\ndata: {kind: vqa-rad, folder: '${NOT_SET_ANYWHERE}'}", "data.folder uses .*NOT_SET_ANYWHERE.*is not set"),
        ("name: [x", "recipe.yaml, line 1 is not YAML: expected"),
        ("data: {kind: phantom}", "recipe.yaml: no 'name'"),
        (MINIMAL + "modle: x", "unknown key 'modle'.*Did you mean 'model'"),
        (MINIMAL + "beta: 0.2", "unknown key 'beta'.*Did you mean 'dpo.beta'"),
        (MINIMAL + "zzz: 1", "unknown key 'zzz'.*See `stllava run --help`"),
        (FILES + "  imagez: b\n", "unknown key 'data.imagez'.*Did you mean 'images'"),
        (FILES + "  benchmarks: {test: [1]}\n", r"data.benchmarks.test is \[1\]"),
        ("name: x\ndata: {kind: vqa-rad, folder: a, labelled: some}", "data.labelled is 'some'"),
        (MINIMAL + "judge: {panel: [1]}", "judge.panel.0 is 1"),
        (MINIMAL + "sft: {epochs: 3}\nsft: {batch_size: 2}\n", "line 4: the key 'sft' is given twice, in line 3 already"),
        (MINIMAL + "sft: {epochs: 3,\n  epochs: 2}\n", "line 4: the key 'epochs' is given twice, in line 3 already"),
        (MINIMAL + "ask: [{a: 1, a: 2}]", "line 3: the key 'a' is given twice"),
        (MINIMAL + "base: recipe.yaml", "stands on itself"),
        ("- 1", "holds list"),
        ("base: gone.yaml", "no recipe"),
        (MINIMAL + "dpo: {loss: ipo, label_smoothing: 0.1}", "the options of dpo do not fit together.*raise beta"),
        (MINIMAL + "judge: {consensus: true}", "options of judge do not fit.*budget or budget_cost with consensus"),
        (MINIMAL + "judge: {selection: random}", "options of judge do not fit.*budget or budget_cost with selection random"),
        (
            MINIMAL + "judge: {expert: itself, correct: true}",
            "options of judge do not fit.*correct false with the expert itself",
        ),
        (MINIMAL + "judge: {expert: distilled, correct: true}", "correct false with the expert distilled"),
        (MINIMAL + "judge: {expert: simulated, correct: true}", "correct false with the expert simulated of the oracle"),
        (
            MINIMAL + "pair: {expert_error: 0.1}",
            "options of pair do not fit.*min_confidence above 0, which alone takes expert_error",
        ),
        (
            MINIMAL + "judge: {expert: itself}\npair: {min_confidence: 0.8, expert_error: 0.1}",
            "min_confidence 0 with the expert itself",
        ),
        (MINIMAL + "answer: {endpoint: {url: 'http://localhost:8000/v1'}}", "the options do not.*a server serves one policy"),
    ],
    ids=[
        "unknown key",
        "wrong type",
        "too small",
        "unknown kind",
        "no kind",
        "unset variable",
        "not YAML",
        "no name",
        "near key of the same place",
        "key of another place",
        "strange key",
        "near key of one kind of data",
        "wrong type in a mapping",
        "wrong type of several",
        "wrong type in a list",
        "key given twice",
        "inner key given twice",
        "key given twice in a list",
        "its own base",
        "no mapping",
        "no base",
        "smoothed ipo",
        "consensus without a budget",
        "selection without a budget",
        "votes do not correct",
        "a distilled judge does not correct",
        "a simulated oracle does not correct",
        "an error that nothing reckons with",
        "confidence in votes",
        "server",
    ],
)
def test_a_wrong_recipe_is_refused_by_name(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(StllavaError, match=fault):
        load_recipe(recipe(tmp_path, text))


def test_a_base_is_a_recipe_beside_or_else_one_that_is_shipped(tmp_path: Path) -> None:
    path = recipe(tmp_path, "base: phantom.yaml\nname: mine\n")
    assert load_recipe(path) == load_recipe(Path("phantom.yaml")).model_copy(update={"name": "mine"})
    (tmp_path / "phantom.yaml").write_text(MINIMAL + "rounds: 7\n")
    assert load_recipe(path).rounds == 7
    with pytest.raises(StllavaError, match="no recipe"):
        load_recipe(recipe(tmp_path, "base: below/phantom.yaml"))


def test_a_recipe_stands_on_its_base_and_overrides_stand_on_it(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(MINIMAL + "dpo: {beta: 0.3, nll: 0.5}\n")
    path = recipe(tmp_path, "base: base.yaml\ndpo: {nll: 0}\n")
    options = load_recipe(path, overrides={"dpo": {"replay": 0}, "seed": 9})
    assert options.dpo == DpoOptions(beta=0.3, nll=0, replay=0)
    assert options.seed == 9


def test_the_plain_preset_is_the_papers_two_answers_and_dpo_alone() -> None:
    plain = load_recipe(RECIPES / "phantom-plain.yaml")
    assert (plain.answer.num_answers, plain.dpo.nll, plain.dpo.replay) == (2, 0, 0)


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


def test_paths_of_a_recipe_start_at_its_folder_wherever_the_command_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, other = tmp_path / "home", tmp_path / "other"
    (home / "models" / "mine").mkdir(parents=True)
    other.mkdir()
    text = FILES + "  benchmarks: {t: t.jsonl, up: ../t.jsonl}\n  references: ~/r.jsonl\n  captions: /c.json\n"
    judge = "judge: {rubric: r.txt, panel: [one.yaml], local: {model: models/gone}}\n"
    written = recipe(home, f"{text}  unlabelled: new\nmodel: models/mine\n{judge}")
    found = []
    for folder, name in ((home, Path("recipe.yaml")), (other, written), (tmp_path, Path("home/recipe.yaml"))):
        monkeypatch.chdir(folder)
        found.append(load_recipe(name))
    options = found[0]
    assert found == [options] * 3
    data = options.data
    assert isinstance(data, FilesData)
    assert (data.images, data.conversations, data.captions) == (home / "a", home / "b.json", Path("/c.json"))
    assert data.benchmarks == {"t": home / "t.jsonl", "up": home / "../t.jsonl"}
    assert data.references == Path.home() / "r.jsonl"
    assert data.unlabelled == Path("new"), "it lies inside the image root"
    (home / "new").write_text("a.png")
    listed = load_recipe(written).data
    assert isinstance(listed, FilesData)
    assert listed.unlabelled == home / "new", "a list beside the recipe"
    assert options.model == str(home / "models" / "mine")
    assert options.judge.local.model == "models/gone", "a name of the hub, as far as anyone can tell"
    assert (options.judge.rubric, options.judge.panel) == (home / "r.txt", (home / "one.yaml",))


def test_paths_of_a_shipped_recipe_start_where_the_command_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STLLAVA_VQA_RAD", "rad")
    data = load_recipe(Path("vqa-rad-smoke.yaml")).data
    assert isinstance(data, VqaRadData)
    assert data.folder == tmp_path / "rad"


@pytest.mark.parametrize("value", ["/a b #1/c", "a: b", "{x}", "'q\"", "[1", "- 1", "&a *b", "ü 右", "%d"])
def test_the_value_of_a_variable_is_never_read_as_yaml(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMEWHERE", value)
    for text in ("name: x${SOMEWHERE}y", "name: 'x${SOMEWHERE}y'", 'name: "x${SOMEWHERE}y" # ${NOT_SET}'):
        written = recipe(tmp_path, f"# ${{NOT_SET}} is no use\n{text}\ndata: {{kind: phantom}}\n")
        assert load_recipe(written).name == f"x{value}y"
    flow = "name: x\ndata: {kind: vqa-rad, folder: ${SOMEWHERE}, labelled: ${COUNT}}\n"
    monkeypatch.setenv("COUNT", "12")
    data = load_recipe(recipe(tmp_path, flow)).data
    assert isinstance(data, VqaRadData)
    assert (data.folder, data.labelled) == (tmp_path / value, 12)


def test_a_merge_key_lays_over_what_it_merges(tmp_path: Path) -> None:
    text = MINIMAL + "sft: &quick {epochs: 3, batch_size: 2}\nfinal_sft: {<<: *quick, epochs: 1}\n"
    options = load_recipe(recipe(tmp_path, text))
    assert options.final_sft is not None
    assert (options.sft.epochs, options.final_sft.epochs, options.final_sft.batch_size) == (3, 1, 2)


def test_a_recipe_that_is_not_there_is_looked_for_in_a_named_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StllavaError, match=re.escape(f"no recipe gone.yaml (looked for in {tmp_path})")):
        load_recipe(Path("gone.yaml"))
    with pytest.raises(StllavaError, match="is a folder"):
        load_recipe(tmp_path)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1.0])
@pytest.mark.parametrize("name", ["input_price", "output_price", "max_cost"])
def test_a_price_that_is_no_price_is_refused(name: str, value: float) -> None:
    with pytest.raises(StllavaError, match=f"chat.{name}"):
        validate(JudgeOptions, {"chat": {name: value}}, source="--chat")


def test_the_last_training_is_like_stage_1_but_for_what_it_is_given(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(MINIMAL + "sft: {epochs: 7, batch_size: 2, warmup: 0.2}\nfinal_sft: {epochs: 3}\n")
    final = load_recipe(recipe).final_sft
    assert final is not None
    assert (final.epochs, final.batch_size, final.warmup) == (3, 2, 0.2)
    recipe.write_text(MINIMAL + "sft: {epochs: 7}\n")
    overridden = load_recipe(recipe, overrides={"sft": {"batch_size": 5}})
    assert overridden.final_sft == overridden.sft
    recipe.write_text(MINIMAL + "sft: {epochs: 7}\nfinal_sft: null\n")
    assert load_recipe(recipe).final_sft is None


def test_a_budget_is_refused_beside_descriptions_that_it_does_not_count(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(MINIMAL + "judge: {budget: 10}\nask: {num_descriptions: 3}\n")
    with pytest.raises(StllavaError, match="num_descriptions 1"):
        load_recipe(recipe)
