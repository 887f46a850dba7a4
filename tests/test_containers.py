"""The Dockerfile and the compose file fit this version: what they copy, install and call is there."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from test_site import known_flags

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "examples" / "compose" / "compose.yaml").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def copied() -> set[str]:
    """What the Dockerfile takes of the checkout."""
    lines = re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
    return {name for line in lines for name in line.split()[:-1]}


def test_the_image_has_a_python_and_extras_that_there_are() -> None:
    minor = {int(found) for found in re.findall(r"^FROM python:3\.(\d+)-slim", DOCKERFILE, re.MULTILINE)}
    assert PROJECT["requires-python"] == ">=3.11,<3.14"
    assert minor <= {11, 12, 13}
    (extras,) = re.findall(r"^ARG EXTRAS=(.*)$", DOCKERFILE, re.MULTILINE)
    assert {*extras.split(",")} <= {*PROJECT["optional-dependencies"]}
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)
    assert json.loads(entry) == ["stllava"]
    assert {*PROJECT["scripts"]} == {"stllava"}


def test_what_is_copied_is_there_and_let_through() -> None:
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied() == let_through
    assert all((ROOT / name).exists() for name in copied())


def test_nothing_runs_as_root_in_the_image() -> None:
    assert re.findall(r"^USER (\w+)$", DOCKERFILE, re.MULTILINE) == ["stllava"]


def test_a_user_with_a_number_alone_has_a_name_in_the_image() -> None:
    """`docker run --user "$(id -u):$(id -g)"`, as the pages say: pytorch/pytorch#140765."""
    assert re.search(r"^ENV .*\bUSER=stllava\b", DOCKERFILE, re.MULTILINE)


def test_the_run_of_the_compose_file_is_a_command_and_its_expert_has_no_way_out() -> None:
    services = COMPOSE["services"]
    command, *words = services["run"]["command"]
    flags = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert flags <= known_flags(command)
    named = dict(word.split("=", 1) for word in services["expert"]["command"])
    run = dict(word.split("=", 1) for word in words if "=" in word)
    assert run["--judge.chat.model"] == named["--served-model-name"]
    assert COMPOSE["networks"] == {"inside": {"internal": True}}
    assert all(one["networks"] == ["inside"] for one in services.values())
    ports = {key for one in services.values() for key in one if key == "ports"}
    assert not ports


@pytest.mark.slow
def test_the_wheel_of_the_image_is_built_of_what_is_copied(tmp_path: Path) -> None:
    for name in copied():
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    words = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path / "wheels")]
    subprocess.run([sys.executable, *words, str(tmp_path)], check=True, capture_output=True)
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert "stllava/recipes/phantom.yaml" in archive.namelist()
