"""What is installed: versions, completion, and what sdist and wheel hold."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from stllava.cli import main

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_version_names_what_results_hang_on(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["stllava", "torch", "transformers", "python", "device"]
    assert lines[0] == f"stllava {version('stllava')}"


def completed(script: str, *words: str) -> set[str]:
    """What bash offers for the last word."""
    line = " ".join(f"'{word}'" for word in words)
    ask = f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _tyro_stllava; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash"], input=f"{script}\n{ask}", capture_output=True, text=True, check=True)
    return {*done.stdout.split("\n")} - {""}


def test_bash_completes_commands_flags_and_values(capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", "bash"])
    script = capsys.readouterr().out
    assert completed(script, "stllava", "eva") == {"evaluate"}
    assert {"images", "benchmark"} <= completed(script, "stllava", "import", "")
    assert completed(script, "stllava", "dpo", "--be") == {"--beta"}
    assert "--dpo.loss" in completed(script, "stllava", "run", "my.yaml", "--dpo.lo")
    assert all(word.startswith("--dpo.lo") for word in completed(script, "stllava", "run", "my.yaml", "--dpo.lo"))
    assert completed(script, "stllava", "sft", "--precision", "b") == {"bfloat16"}


def test_the_extra_all_is_every_extra_of_users() -> None:
    extras = PROJECT["optional-dependencies"]
    (everything,) = extras["all"]
    # Of tests and docs; and what wants machines of its own.
    not_for_all = {"all", "dev", "weights", "docs", "vllm", "deepspeed"}
    assert {*re.findall(r"[\w-]+", everything)} == {"stllava", *extras} - not_for_all


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(words, check=True, capture_output=True)
    return folder


def shipped() -> set[str]:
    """Every file of the package that the repository has."""
    source = ROOT / "src"
    return {str(path.relative_to(source)) for path in (source / "stllava").rglob("*") if path.is_file()} - {
        str(path.relative_to(source)) for path in source.rglob("__pycache__/*")
    }


@pytest.mark.slow
def test_pypi_takes_sdist_and_wheel_and_both_hold_every_file_of_the_package(built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist)], check=True, capture_output=True
    )
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if name.startswith("stllava/")} == shipped()
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"src/{name}" for name in shipped()} <= names
    assert {"README.md", "LICENSE", "CHANGELOG.md", "tests/conftest.py"} <= names


@pytest.mark.slow
def test_a_wheel_runs_the_loop_without_the_checkout(built: Path, tmp_path: Path) -> None:
    """In a venv that has this one's packages but stllava, from an empty folder; RELEASING.md does the same with real ones."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    here = str(Path(str(yaml.__file__)).parent.parent)
    (site / "packages.pth").write_text(here, encoding="utf-8")  # Not its .pth files: the editable stllava stays out.
    (tmp_path / "empty").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}

    def run(*words: str) -> str:
        done = subprocess.run(
            [str(python), "-P", *words], cwd=tmp_path / "empty", env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("-c", "import stllava; print(stllava.__file__)").startswith(str(site))
    data = {"labelled": 8, "unlabelled": 4, "validation": 3, "test": 3, "size": 64}
    small = [word for name, value in data.items() for word in (f"--data.{name}", str(value))]
    run("-m", "stllava", "run", "phantom.yaml", *small, "--rounds", "0", "--sft.epochs", "1", "--no-baselines")
    assert (tmp_path / "empty" / "runs" / "phantom-0" / "report.html").is_file()
    assert "phantom.yaml" in run("-c", "from stllava.recipe import RECIPES; print(*[path.name for path in RECIPES.iterdir()])")
