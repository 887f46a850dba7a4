"""The command line: help, refusals, and the demo loop in small through the real command."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.page_runs import SMALL_MODEL
from stllava.cli import main, usage
from stllava.commands import COMMANDS, every_command
from stllava.store import read_manifest

SMALL = """
name: small
data: {kind: phantom, labelled: 12, unlabelled: 10, validation: 4, test: 4, size: 64}
small: {image_size: 32, patch_size: 16, vision_width: 32, vision_layers: 1, language_width: 32, language_layers: 2, heads: 2}
sft: {epochs: 50, batch_size: 4, learning_rate: {language: 3.0e-3, projector: 3.0e-3, vision: 3.0e-3}}
ask: {questions: 4, sampling: {temperature: 0.6, max_new_tokens: 16},
  description_sampling: {temperature: 0.5, max_new_tokens: 16}, num_descriptions: 3,
  extra_description_prompts: ["What does the image show?"], borrow_questions: 2}
answer: {num_answers: 6, sampling: {temperature: 2.0, max_new_tokens: 8}}
pair: {balance: false}
dpo: {epochs: 2, batch_size: 4, learning_rate: {language: 1.0e-3, projector: 1.0e-3, vision: 1.0e-3}}
evaluate: {sampling: {temperature: 0, max_new_tokens: 8}}
final_sft: {epochs: 2, batch_size: 4, learning_rate: {language: 1.0e-3, projector: 1.0e-3, vision: 1.0e-3}}
keep_pairs: true
rounds: 1
"""


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `stllava` as a process of its own, as a user does."""
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", "from stllava.cli import main; main()", *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Recipe, run directory and output of the loop in small."""
    folder = tmp_path_factory.mktemp("loop")
    (folder / "small.yaml").write_text(SMALL)
    done = command("run", str(folder / "small.yaml"), "--to", str(folder / "run"))
    assert done.returncode == 0, done.stderr
    return folder / "small.yaml", folder / "run", done.stdout


def test_help_answers_in_under_400_milliseconds() -> None:
    spent = []
    for _ in range(5):
        began = time.perf_counter()
        shown = command("--help")
        spent.append(time.perf_counter() - began)
        assert shown.stdout == usage()
    assert min(spent) < 0.4


@pytest.mark.parametrize("name", sorted({*COMMANDS, *every_command()}))
def test_every_command_explains_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([*name.split(), "--help"])
    assert left.value.code == 0
    assert f"stllava {name}" in capsys.readouterr().out


def test_help_loads_no_torch() -> None:
    code = "import sys; from stllava import cli, commands; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["jugde"], "no command 'jugde'"),
        (["run"], "no recipe"),
        (["run", "gone.yaml"], "no recipe gone.yaml"),
        (["report", "gone"], "gone"),
        (["pair", "--answers", "gone", "--judgments", "gone", "--to", "OUT"], "gone has no manifest.json"),
    ],
    ids=["unknown command", "no recipe", "missing recipe", "no run", "unfinished stage"],
)
def test_a_users_error_is_one_sentence_and_exit_code_2(
    words: list[str], fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([str(tmp_path / "out") if word == "OUT" else word for word in words])
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert fault in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["judge", "--answers", "a", "--to", "b", "--sample", "5"], "--sample without --check"),
        (["judge", "--answers", "a", "--to", "b", "--votes", "v"], "--votes without --check"),
        (["judge", "--answers", "a", "--to", "b", "--expert", "chat", "--audit", "9"], "--audit is 9 in a stage by hand"),
        (["judge", "--answers", "a", "--to", "b", "--labels", "v"], "labels are named, and the expert is oracle"),
        (["judge", "--answers", "a", "--to", "b", "--consensus"], "budget or budget_cost with consensus"),
        (["judge", "--answers", "a", "--to", "b", "--selection", "random"], "budget or budget_cost with selection random"),
        (["pair", "--answers", "a", "--judgments", "j", "--to", "b", "--min-confidence", "0.8"], "how often the expert errs"),
        (
            ["pair", "--answers", "a", "--judgments", "j", "--to", "b", "--expert-error", "0.1"],
            "min_confidence above 0, which alone",
        ),
        (["pair", "--answers", "a", "--judgments", "j", "--to", "b", "--gains", "g"], "gains are named, and gain_weight is 0"),
        (["pair", "--answers", "a", "--judgments", "j", "--to", "b", "--questions", "q"], "question_pairs is 0"),
        (["judge", "--answers", "a", "--to", "b", "--dry-run", "--check"], "--check beside --dry-run"),
        (["evaluate", "--to", "b", "--rescore", "c", "--policy", "p", "--blank"], "--policy and --blank beside --rescore"),
        (["evaluate", "--to", "b", "--policy", "p", "--verdicts", "v"], "--verdicts without --rescore"),
        (
            ["ask", "--policy", "p", "--images", "i", "--root", "i", "--to", "b", "--described", "d"],
            "described without verdicts",
        ),
        (
            ["ask", "--policy", "p", "--images", "i", "--root", "i", "--to", "b", "--verdicts", "d"],
            "verdicts without described",
        ),
    ],
)
def test_a_flag_that_would_have_no_effect_is_refused(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_code:
        main(words)
    assert (exit_code.value.code, told in capsys.readouterr().err) == (2, True)
    assert not list(tmp_path.iterdir())


def test_the_loop_in_small_runs_through_the_command_line(finished: tuple[Path, Path, str]) -> None:
    _, run, shown = finished
    summary = json.loads((run / "summary.json").read_text())
    rows = {(row["policy"], row["benchmark"], row["metric"]) for row in summary["rows"]}
    for policy in ("sft", "round-1", "final", "majority", "random", "blind-sft", "blind-final"):
        for metric in ("closed_accuracy", "open_recall", "open_exact_match"):
            assert (policy, "phantom", metric) in rows
    assert all(row["low"] <= row["value"] <= row["high"] for row in summary["rows"])
    assert {f"round-1/{stage}" for stage in ("ask", "answer", "judge", "pair", "dpo")} <= set(summary["stages"])
    assert {"final/data", "final/sft"} <= set(summary["stages"])
    assert "<svg" in (run / "report.html").read_text()
    assert "round-1" in shown


def test_a_second_run_over_a_finished_one_does_nothing(finished: tuple[Path, Path, str]) -> None:
    recipe, run, shown = finished
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != "lock"}
    again = command("run", str(recipe), "--to", str(run))
    assert again.returncode == 0
    assert again.stdout == shown
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != "lock"}


def test_a_run_of_another_recipe_is_refused_and_the_first_stays(finished: tuple[Path, Path, str]) -> None:
    recipe, run, _ = finished
    other = command("run", str(recipe), "--to", str(run), "--dpo.beta", "0.3")
    assert other.returncode == 2
    assert "config.dpo.beta was 0.1, now 0.3" in other.stderr
    assert (run / "manifest.json").exists()


def test_the_stages_one_by_one_give_what_the_run_gave(finished: tuple[Path, Path, str], tmp_path: Path) -> None:
    _, run, _ = finished
    plan = json.loads((run / "round-1" / "pair" / "plan.json").read_text())
    parts = [
        "--answers",
        str(run / "round-1/answer"),
        "--judgments",
        str(run / "round-1/judge"),
        "--to",
        str(tmp_path / "pair"),
    ]
    assert plan["config"]["balance"] is False
    assert command("pair", *parts, "--margin", str(plan["config"]["margin"]), "--no-balance").returncode == 0
    made = (tmp_path / "pair" / "preferences.jsonl").read_bytes()
    assert made == (run / "round-1" / "pair" / "preferences.jsonl").read_bytes()


def test_chat_answers_a_question_about_an_image(finished: tuple[Path, Path, str]) -> None:
    _, run, _ = finished
    image = next((run / "data" / "images" / "test").iterdir())
    said = command("chat", str(run / "sft"), str(image), "--question", "what is the imaging modality?")
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip()


def test_a_reader_that_has_seen_enough_gets_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "stllava", "judge", "--help"], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("locale", ["C", "POSIX"])
def test_files_are_read_and_written_as_utf_8_whatever_the_locale(locale: str, tmp_path: Path) -> None:
    turns = [("human", "größer als 5 µm? 右"), ("gpt", "nein – 否")]
    row = {"image": "a.png", "conversations": [{"from": who, "value": text} for who, text in turns]}
    (tmp_path / "data.json").write_text(json.dumps([row], ensure_ascii=False), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text("name: Übung – 練習\ndata: {kind: phantom}\n", encoding="utf-8")
    code = (
        "import sys; from pathlib import Path; from stllava.recipe import load_recipe\n"
        "assert load_recipe(Path('recipe.yaml')).name == '\\u00dcbung \\u2013 \\u7df4\\u7fd2'\n"
        "from stllava.cli import main; main(['convert', 'conversations', 'data.json', '--to', 'made.json'])\n"
        "from stllava.data.conversations import read_conversations as read\n"
        "assert read(Path('data.json'))[0][0].messages == read(Path('made.json'))[0][0].messages\n"
        "main(['\\u00dcbung'])"
    )
    environment = os.environ | {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert b"no command '\\xdcbung'" in done.stderr, done.stderr.decode()
    assert done.returncode == 2


def test_a_flag_of_a_part_that_fits_no_other_is_refused_in_words_of_its_own() -> None:
    words = ("--judge.expert", "simulated", "--judge.audit", "5")
    done = command("run", "phantom.yaml", *words)
    told = " ".join(done.stderr.replace("│", " ").split())
    assert done.returncode == 2
    assert "audit with an expert that can judge answers about labelled images" in told
    assert "input_value" not in told
    assert "http" not in told


@pytest.mark.parametrize(
    ("words", "now"),
    [
        (["answer", "--k", "4"], "--num-answers"),
        (["sft", "--sq-r=0.5"], "--self-question-ratio"),
        (["ask", "--description.temperature", "1"], "--description-sampling.temperature"),
        (["pair", "--least", "1"], "--min-chosen-score"),
        (["run", "phantom.yaml", "--answer.k", "4"], "--answer.num-answers"),
        (["run", "phantom.yaml", "--sft.sq_r", "1"], "--sft.self-question-ratio"),
    ],
    ids=" ".join,
)
def test_a_flag_of_the_release_before_is_refused_by_the_name_it_has_now(
    words: list[str], now: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    assert f"It is called {now} now." in capsys.readouterr().err


def test_a_mistyped_command_is_told_the_near_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["evalute"])
    assert left.value.code == 2
    assert "Did you mean 'evaluate'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "phantom.yaml", "--seed", "-1"], "--seed is -1; expected greater than or equal to 0"),
        (["run", "phantom.yaml", "--seed", "99999999999999999999"], "--seed is 99999999999999999999"),
        (["import", "images", ".", "--to", "set", "--step", "0"], "--step is 0; expected greater than 0"),
        (["import", "images", ".", "--to", "set", "--memory", "inf"], "--memory is inf; expected a finite number"),
        (["import", "images", ".", "--to", "set", "--tissue", "nan"], "--tissue is nan; expected a finite number"),
        (["sft", "--epochs", "inf", "--model", "m", "--conversations", "c", "--images", "i", "--to", "t"], "--epochs is inf"),
        (["predict", "--prompt", "none", "--policy", "p", "--questions", "q", "--root", ".", "--to", "t"], "do not fit"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_value_that_an_option_does_not_take_is_refused_in_a_sentence(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_sft_builds_the_small_model_by_itself(phantoms: Path, tmp_path: Path) -> None:
    data = ["--conversations", str(phantoms / "conversations.jsonl"), "--images", str(phantoms / "images")]
    words = ["sft", "--model", "small", *data, "--save-steps", "0", "--to"]
    for to in ("one", "two"):
        main([*words, str(tmp_path / to), *SMALL_MODEL])
    one, two = (read_manifest(tmp_path / to) for to in ("one", "two"))
    assert one.outputs == two.outputs
    main([*words, str(tmp_path / "one"), *SMALL_MODEL])
    assert read_manifest(tmp_path / "one") == one
    with pytest.raises(SystemExit):
        main([*words, str(tmp_path / "one")])
