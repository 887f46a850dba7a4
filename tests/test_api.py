"""The public Python API as its users meet it: typed, complete, and quick to import."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import stllava

README = Path(__file__).resolve().parent.parent / "README.md"
LOOP = '''
"""Every public verb, as a user would call it."""
from pathlib import Path

import stllava

home = Path("home")
trained: stllava.TrainingResult = stllava.sft(
    stllava.SftOptions(epochs=2), model="small", conversations=home / "c.jsonl", images=home, to=home / "sft"
)
stllava.ask(stllava.AskOptions(questions=3), policy=home / "sft", images=home, root=home, to=home / "ask")
stllava.answer(stllava.AnswerOptions(num_answers=4), policy=home / "sft", questions=home / "ask", root=home, to=home / "answer")
verdicts: int = stllava.judge(
    stllava.JudgeOptions(expert="reference"), answers=home / "answer", truth=home / "r.jsonl", to=home / "judge"
).verdicts
stllava.pair(stllava.PairOptions(), answers=home / "answer", judgments=home / "judge", to=home / "pair")
tasks: list[stllava.ReviewTask] = stllava.draw_tasks(
    stllava.ReviewOptions(tasks=100), answers=home / "answer", judgments=home / "judge", to=home / "review"
)
wrong: stllava.Rate | None = stllava.check_votes(home / "review").expert_error
asked: list[stllava.ItemTask] = stllava.draw_items(
    stllava.ReviewOptions(tasks=100), kind="questions", source=home / "ask", to=home / "ask-review"
)
valid: stllava.Rate | None = stllava.check_items(home / "ask-review").good
stllava.pair(
    stllava.PairOptions(), answers=home / "answer", judgments=home / "judge", votes=home / "review", to=home / "voted"
)
agreement: stllava.Rate | None = stllava.distill(
    stllava.DistillOptions(),
    policy=home / "sft",
    answers=[home / "answer"],
    judgments=[home / "judge"],
    images=home,
    to=home / "own-judge",
).check.agreement
stllava.final_data(
    stllava.PairOptions(), conversations=home / "c.jsonl", rounds=[(home / "answer", home / "judge")], to=home / "found"
)
stllava.dpo(stllava.DpoOptions(), policy=home / "sft", preferences=home / "pair", images=home, to=home / "dpo")
stllava.evaluate(stllava.EvaluateOptions(), policy=home / "dpo", samples=home / "t.jsonl", root=home, to=home / "scores")
stllava.rescore(stllava.EvaluateOptions(), predictions=home / "scores", to=home / "again")
stllava.score_log(home / "samples.jsonl", to=home / "theirs", benchmark="vqa-rad")
stllava.predict(stllava.EvaluateOptions(), policy=home / "dpo", questions=home / "t.jsonl", root=home, to=home / "said")
stllava.export(home / "dpo", to=home / "plain")
stllava.ask(stllava.AskOptions(), policy=home / "sft", images=home, root=home, to=home / "cut", shard="1/1")
whole: stllava.Manifest = stllava.gather(home / "cut")
outcome: stllava.Outcome = stllava.run(stllava.load_recipe(home / "recipe.yaml"), to=home / "run")
page: Path = stllava.write_report(home / "run")
stllava.compare_runs([home / "run"], to=home / "compared")
stllava.compose(stllava.ComposeOptions(vision="v", language="l"), to=home / "composed")
stllava.import_images(stllava.IntakeOptions(), source=home, to=home / "set", salt=home / "salt")
stllava.import_benchmark("mine", "t.csv", to=home / "benchmark")
stllava.import_conversations(home / "llava.json", images=home, to=home / "talks")
stllava.import_preferences(home / "pairs.json", images=home, to=home / "pairs")
shown: stllava.RunExamples = stllava.show_run(home / "run", examples=2)
stllava.import_checkpoint(home / "old", to=home / "new")
judgments: list[stllava.Judgment] = stllava.read_records(home / "judge", "judgments", stllava.Judgment)
count: int = stllava.to_trl(home / "pair", to=home / "trl.jsonl")
stllava.convert_dataset(home / "run", stllava.DatasetOptions(license="cc-by-4.0"), to=home / "data-set")
stllava.to_llava(stllava.read_records(home / "sft", "conversations", stllava.Conversation), to=home / "llava.json")
'''


def strictly(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What strict mypy says of a script outside of this checkout."""
    (folder / "script.py").write_text(code, encoding="utf-8")
    (folder / "mypy.ini").write_text("[mypy]\nstrict = True\nfollow_imports = silent\n", encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", str(folder / "cache"), "script.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_every_name_of_the_api_is_there_and_listed() -> None:
    names = set(stllava.__all__)
    assert names
    assert all(getattr(stllava, name) is not None for name in names)
    assert names <= set(dir(stllava))
    verbs = {name for name in names if name.islower() and callable(getattr(stllava, name))}
    assert set(re.findall(r"stllava\.([a-z_]+)\(", LOOP)) == verbs


def test_a_verb_stays_a_function_when_the_module_of_its_name_is_imported() -> None:
    code = (
        "import stllava.stages.export, stllava.stages.ask, stllava; assert callable(stllava.export) and callable(stllava.ask)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, stllava; assert not {'torch', 'transformers', 'pydantic', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_strict_types_accept_the_readmes_example_and_every_verb_and_refuse_a_mistake(tmp_path: Path) -> None:
    [example] = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    accepted = strictly(f"{LOOP}\n{example}", tmp_path)
    assert accepted.returncode == 0, accepted.stdout
    refused = strictly("import stllava\nstllava.ask(stllava.AskOptions(), policy=3)\n", tmp_path)
    assert "incompatible type" in refused.stdout
    assert "Missing named argument" in refused.stdout
