"""An exported policy: served by plain transformers, described by its card, silent about the machine that made it."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from conftest import TINY
from helpers.architectures import ARCHITECTURES, llava
from stllava.cli import main
from stllava.config import ChatOptions, EvaluateOptions, GroupRates, JudgeOptions, SamplingOptions, SftOptions
from stllava.data.sources import FilesData
from stllava.errors import StllavaError
from stllava.generation.local_sampler import LocalSampler
from stllava.generation.sampler import Prompt
from stllava.model.load import Policy, load_policy
from stllava.model.projector import StllavaConfig, StllavaForConditionalGeneration
from stllava.pipeline import run as run_loop
from stllava.recipe import RunOptions
from stllava.records import Message, Outcome, Sample, content_id
from stllava.report.model_card import Measured, write_card
from stllava.report.redaction import HIDDEN, Secrets, base_of, secrets_of
from stllava.report.run_files import read_run_files
from stllava.report.wording import percent
from stllava.rundir import RunDir
from stllava.stages.export import export
from stllava.store import read_jsonl, read_manifest

RATES = GroupRates(language=5e-3, projector=5e-3, vision=5e-3)
MOST = 12
ASKED = "Look: {question}"


@pytest.fixture(scope="module")
def run(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on files of the user's, of stage 1 alone."""
    folder = tmp_path_factory.mktemp("secret-place") / "run"
    options = RunOptions(
        name="hospital <b>*one*</b>",
        data=FilesData(
            kind="files",
            images=phantoms / "images",
            conversations=phantoms / "conversations.jsonl",
            validation=phantoms / "validation.jsonl",
            benchmarks={"own": phantoms / "phantom.jsonl"},
            unlabelled=phantoms / "images" / "unlabelled",
        ),
        small=TINY,
        sft=SftOptions(epochs=20, batch_size=3, learning_rate=RATES),
        evaluate=EvaluateOptions(sampling=SamplingOptions(temperature=0.0, max_new_tokens=MOST), prompt=ASKED),
        rounds=0,
    )
    run_loop(options, to=folder)
    return folder


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given") / "away"
    export(run, to=folder)
    return folder


@pytest.fixture(scope="module")
def card(exported: Path) -> str:
    return (exported / "README.md").read_text()


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A policy of an architecture of our own, and what it is exported to."""
    stock, folder = llava(), tmp_path_factory.mktemp("own")
    shape = {name: value for name, value in stock.model.config.to_dict().items() if name not in ("model_type", "architectures")}
    model = StllavaForConditionalGeneration(StllavaConfig(**shape, projector="prototypes", prototypes=4))
    Policy(model, stock.processor).save(folder / "made")
    export(folder / "made", to=folder / "given")
    return folder / "made", folder / "given"


def greedy(policy: Policy, root: Path, samples: list[Sample], *, asked: str, most: int) -> str:
    """What the sampler says to each, a line or more, asked in the words of a template."""
    sampling = SamplingOptions(temperature=0.0, max_new_tokens=most)
    sampler = LocalSampler(policy, root=root, tokens=4096)
    questions = [Message(role="user", content=asked.replace("{question}", one.question)) for one in samples]
    prompts = [Prompt((question,), (one.image,)) for question, one in zip(questions, samples, strict=True)]
    return "".join(f"{said.text}\n" for (said,) in sampler.complete(prompts, k=1, sampling=sampling, seed=0))


def script(folder: Path, root: Path, samples: list[Sample]) -> str:
    """The code in the card of an exported folder, once for each sample."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    lines = f"os.chdir({str(folder)!r})\n"
    for one in samples:
        image = repr(str(root / one.image))
        lines += code.replace('"image.png"', image).replace('"What does the image show?"', repr(one.question))
    return lines


def test_the_cards_own_code_gives_the_samplers_text_without_stllava(
    run: Path, exported: Path, own: tuple[Path, Path], phantoms: Path, tmp_path: Path
) -> None:
    root, samples = phantoms / "images", read_jsonl(phantoms / "phantom.jsonl", Sample)[::4]
    stock = greedy(load_policy(run / "sft"), root, samples, asked=ASKED, most=MOST)
    ours = greedy(load_policy(own[0]), root, samples[:2], asked="{question}", most=64)
    code = script(exported, root, samples) + script(own[1], root, samples[:2])
    code = f"import os, sys\nsys.modules['stllava'] = None\n{code}"
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == stock + ours
    assert len(set(stock.splitlines())) > 1


def test_an_architecture_of_our_own_is_said_to_be_one(own: tuple[Path, Path]) -> None:
    card = (own[1] / "README.md").read_text()
    assert "must trust" in card
    assert "vllm serve" not in card


def test_no_path_address_or_image_of_this_machine_is_told(run: Path, exported: Path, phantoms: Path) -> None:
    images = {one.image for one in read_jsonl(phantoms / "phantom.jsonl", Sample)}
    private = {str(run), run.parent.name, str(phantoms), phantoms.name, str(Path.home()), *images}
    private |= {Path(one).name for one in images}
    for path in (one for one in exported.rglob("*") if one.is_file() and one.suffix != ".safetensors"):
        told = path.read_text()
        assert not {one for one in private if one in told}, path.name


def test_the_weights_have_the_names_that_servers_know_and_the_same_values(run: Path, exported: Path) -> None:
    names = load_file(exported / "model.safetensors").keys()
    assert "vision_tower.vision_model.embeddings.patch_embedding.weight" in names
    assert all(name.startswith(("vision_tower.vision_model.", "language_model.", "multi_modal_projector.")) for name in names)
    before, after = (load_policy(folder).model.state_dict() for folder in (run / "sft", exported))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_architecture_has_the_same_weights_when_it_is_read_again(name: str, tmp_path: Path) -> None:
    ARCHITECTURES[name]().save(tmp_path / "made")
    export(tmp_path / "made", to=tmp_path / "given")
    before, after = (load_policy(tmp_path / folder).model.state_dict() for folder in ("made", "given"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_generation_is_greedy_and_stops_where_the_policy_stops(run: Path, exported: Path) -> None:
    told = json.loads((exported / "generation_config.json").read_text())
    assert set(told["eos_token_id"]) == load_policy(run / "sft").stop_ids
    assert not told.get("do_sample")


def test_the_card_gives_every_score_of_the_policy_with_its_interval(run: Path, card: str) -> None:
    outcome = Outcome.model_validate_json((run / "outcome.json").read_text())
    mine = [one for one in outcome.scores if one.policy == outcome.best and one.benchmark == "own"]
    assert mine
    for one in mine:
        assert f"{percent(one.value)} \\[{percent(one.low)}, {percent(one.high)}\\], n = {one.n:,}" in card
    for baseline in ("majority", "random", "blind sft"):
        assert f"| {baseline} |" in card


def test_the_cards_head_is_what_the_hub_reads(card: str) -> None:
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["medical", "visual-question-answering", "stllava"],
    }
    assert "# hospital \\<b\\>\\*one\\*\\</b\\>" in body
    assert "not a medical device" in body


def test_the_cards_recipe_is_the_runs_but_for_what_is_hidden(run: Path, card: str) -> None:
    lines = card.split("All options:\n\n")[1].splitlines()
    told = yaml.safe_load("\n".join(line.removeprefix("    ") for line in lines))
    options = dict(read_manifest(run).config)
    assert told.pop("data")["images"] == HIDDEN
    del options["data"]
    assert told == options


def test_a_policy_without_a_run_says_that_nothing_is_known_to_be_measured(tiny_model: Path, tmp_path: Path) -> None:
    export(tiny_model, to=tmp_path / "given", precision="bfloat16")
    assert "nothing is known of what was measured" in (tmp_path / "given" / "README.md").read_text()
    assert {one.dtype for one in load_file(tmp_path / "given" / "model.safetensors").values()} == {torch.bfloat16}


def test_the_command_exports_the_best_policy_of_a_run(
    run: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["export", str(run), "--to", str(tmp_path / "given")])
    assert "export: 1 in, 1 out" in capsys.readouterr().out
    assert (tmp_path / "given" / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()


def test_a_policy_that_is_not_the_runs_is_refused(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(StllavaError, match="none of the policies"):
        export(tiny_model, to=tmp_path / "given", run=run)


def test_a_runs_policy_is_known_by_its_weights_and_made_once(run: Path, exported: Path, tmp_path: Path) -> None:
    made = export(run / "sft", to=tmp_path / "given", run=run).manifest
    assert (tmp_path / "given" / "README.md").read_text() == (exported / "README.md").read_text()
    assert export(run / "sft", to=tmp_path / "given", run=run).manifest == made
    with pytest.raises(StllavaError, match="precision"):
        export(run / "sft", to=tmp_path / "given", run=run, precision="bfloat16")


def test_a_run_keeps_its_policies_where_export_looks(tmp_path: Path) -> None:
    assert RunDir(tmp_path).policy("sft") == tmp_path / "sft"
    assert RunDir(tmp_path).policy("round-2") == tmp_path / "round-2" / "dpo"
    assert RunDir(tmp_path).policy("final") == tmp_path / "final" / "sft"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("see /data/x.png now", f"see {HIDDEN} now"),
        ("~/models/mine, ../up and ./here", f"{HIDDEN}, {HIDDEN} and {HIDDEN}"),
        ("gpt at http://10.0.0.1:8000/v1", f"gpt at {HIDDEN}"),
        (r"C:\Users\me\x", HIDDEN),
        ("yes/no, 3 / 4, owner/name, 95 % [1, 2]", "yes/no, 3 / 4, owner/name, 95 % [1, 2]"),
        ("patient-7.png is odd", f"{HIDDEN} is odd"),
    ],
    ids=["root", "home and here", "address", "windows", "no paths", "known secret"],
)
def test_what_looks_like_a_path_is_hidden_in_every_text(text: str, told: str) -> None:
    assert Secrets(("patient-7.png",)).redact(text) == told


def test_a_local_model_keeps_its_name_only_and_one_of_the_hub_its_owner() -> None:
    options = {"model": "/data/models/mine", "chat": {"model": "owner/base", "url": "http://host/v1", "key_variable": "KEY"}}
    told = Secrets(base="owner/base").redact_all(options)
    assert told == {"model": "mine", "chat": {"model": "owner/base", "url": HIDDEN, "key_variable": HIDDEN}}


def test_paths_and_addresses_of_the_options_are_secrets_and_numbers_and_names_are_not(run: Path) -> None:
    files = read_run_files(run)
    judge = JudgeOptions(chat=ChatOptions(url="http://inside.example/v1", model="gpt-4.1"), rubric=Path("mine/rubric.txt"))
    options = files.options.model_copy(update={"model": "/models/mine", "judge": judge})
    secrets = secrets_of(replace(files, options=options))
    told = "gpt-4.1 at inside.example learned from /models/mine by mine/rubric.txt at a rate of 0.003 on images"
    assert secrets.redact(told) == f"gpt-4.1 at {HIDDEN} learned from {HIDDEN} by {HIDDEN} at a rate of 0.003 on images"


def test_a_base_model_of_the_hub_is_named_and_a_folder_is_not(run: Path) -> None:
    files = read_run_files(run)
    started = files.manifests["sft"].model_copy(update={"inputs": {"model": content_id("hub", "owner/base")}})
    manifests = {**files.manifests, "sft": started}
    options = files.options.model_copy(update={"model": "owner/base"})
    card = write_card(Measured(replace(files, options=options, manifests=manifests), "sft"), stage=None, custom=False)
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == "owner/base"
    assert "made it from `owner/base`" in card
    assert base_of(replace(files, options=options)) is None
