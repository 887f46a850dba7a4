"""A real server, not a fake one: vLLM on loopback answers ask, answer and judge end to end.

    STLLAVA_VLLM=/path/to/venv/bin/python pytest -m server

The Python is that of an environment with vllm (docs/serving.md); without it this is skipped, and says so.
"""

import logging
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.judging import SAMPLING
from stllava.config import AskOptions, GroupRates, SftOptions, SmallModel
from stllava.records import Answers, Image, Judgment, Question
from stllava.stages.export import export
from stllava.store import AUDIT, Stage, read_jsonl, read_manifest, read_records

logger = logging.getLogger(__name__)
VLLM = os.environ.get("STLLAVA_VLLM", "")
SMALL = {"vision_width": 64, "vision_layers": 1, "language_width": 64, "language_layers": 2, "heads": 2}
SHAPE = SmallModel(image_size=32, patch_size=16, context=4096, **SMALL)
START_SECONDS = 300

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(not VLLM, reason="STLLAVA_VLLM names no Python with vllm: no real server was spoken to"),
]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> Path:
    """A small untrained model's folder, under the names that vLLM knows."""
    from stllava.model.small import build_small

    folder = tmp_path_factory.mktemp("served")
    build_small(SHAPE, conversations=phantoms / "conversations.jsonl", to=folder / "small", seed=3)
    export(folder / "small", to=folder / "policy")
    return folder / "policy"


@pytest.fixture(scope="module")
def taught(policy: Path, phantoms: Path) -> Path:
    """The same once it has learned to answer, and so to come to an end: only then is a text's log-probability known."""
    from stllava.stages.sft import sft

    folder = policy.parent
    rate = GroupRates(language=3e-3, projector=3e-3, vision=3e-3)
    options = SftOptions(epochs=60, batch_size=4, save_steps=0, learning_rate=rate)
    labels = phantoms / "conversations.jsonl"
    sft(options, model=str(folder / "small"), conversations=labels, images=phantoms / "images", to=folder / "sft")
    export(folder / "sft", to=folder / "taught")
    return folder / "taught"


@pytest.fixture(scope="module")
def url(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a vLLM server of the policy."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [VLLM, "-m", "vllm.entrypoints.openai.api_server", "--model", str(policy), "--served-model-name", "policy"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "4096", "--enable-prefix-caching"]
    command += [
        "--generation-config",
        "vllm",
        "--chat-template-content-format",
        "openai",
        "--dtype",
        "float32",
        "--enforce-eager",
    ]
    command += ["--mm-processor-kwargs", '{"backend": "pil"}']
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    log = tmp_path_factory.mktemp("log") / "server.log"
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert server.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            probe = "import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=2)"
            asked = subprocess.run([sys.executable, "-c", probe, f"http://127.0.0.1:{port}/health"], capture_output=True)
            if asked.returncode == 0:
                break
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait()


def stllava(*words: str) -> None:
    """Run a command in a process of its own: this one has no network."""
    command = [sys.executable, "-c", "from stllava.cli import main; main()", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_vllm_asks_answers_and_judges(policy: Path, url: str, phantoms: Path, tmp_path: Path) -> None:
    root = str(phantoms / "images")
    speaks = ["--policy", str(policy), "--root", root, "--endpoint.url", url]
    stllava("ask", "--images", str(phantoms / "images.jsonl"), *speaks, "--to", str(tmp_path / "q"), "--questions", "3",
            "--sampling.max-new-tokens", "12", "--description-sampling.max-new-tokens", "12")  # fmt: skip
    assert read_manifest(tmp_path / "q").counts_in == 12
    # An untrained policy asks nothing that a question mark ends: others' questions are answered.
    questions = [
        Question(id=str(number), images=(image.path,), text="what is seen?", description="", policy="x", sampling=SAMPLING)
        for number, image in enumerate(read_jsonl(phantoms / "images.jsonl", Image))
    ]
    shutil.rmtree(tmp_path / "q")
    stage = Stage("ask", tmp_path / "q", AskOptions(), inputs={}, existing="error")
    stage.write_records("questions", questions)
    stage.finish(counts_in=4, counts_out=4)
    stllava("answer", "--questions", str(tmp_path / "q"), *speaks, "--to", str(tmp_path / "a"), "--num-answers", "3",
            "--sampling.max-new-tokens", "12")  # fmt: skip
    answers = read_records(tmp_path / "a", "answers", Answers)
    assert len(answers) == len(questions)
    assert all(len(one.completions) == 3 for one in answers)
    for mode, structured in (("scores", "structured"), ("pairwise", "no-structured")):
        out = tmp_path / mode
        stllava("judge", "--answers", str(tmp_path / "a"), "--root", root, "--to", str(out), "--expert", "chat", "--mode", mode,
                "--chat.url", url, "--chat.model", "policy", f"--chat.{structured}", "--chat.max-tokens", "64",
                "--max-flips", "1")  # fmt: skip
        judgments = read_records(out, "judgments", Judgment)
        assert len(judgments) == len(answers)
        assert not any(one.cause == "failed" for one in judgments)
        asked = sum(one.usage.get("requests", 0) for one in judgments)
        assert asked == len((out / AUDIT).read_text().splitlines()) > 0
        assert all(one.usage["prompt_tokens"] > 100 for one in judgments if one.usage)


def test_stllava_starts_checks_restarts_and_ends_vllm_by_itself(taught: Path, phantoms: Path, tmp_path: Path) -> None:
    stage = Stage("ask", tmp_path / "q", AskOptions(), inputs={}, existing="error")
    questions = [
        Question(
            id=f"{turn}-{number}",
            images=(image.path,),
            text=f"what is at {turn}?",
            description="",
            policy="x",
            sampling=SAMPLING,
        )
        for number, image in enumerate(read_jsonl(phantoms / "images.jsonl", Image))
        for turn in range(6)
    ]
    stage.write_records("questions", questions)
    stage.finish(counts_in=len(questions), counts_out=len(questions))

    def command(to: Path) -> list[str]:
        served = ["--endpoint.serve", "vllm", "--endpoint.python", VLLM, "--endpoint.arguments", "max-model-len", "4096",
                  "dtype", "float32", "enforce-eager", "True"]  # fmt: skip
        words = ["answer", "--policy", str(taught), "--root", str(phantoms / "images"), "--questions", str(tmp_path / "q")]
        how = ["--num-answers", "3", "--chunk", "4", "--sampling.max-new-tokens", "24"]
        return [sys.executable, "-c", "from stllava.cli import main; main()", *words, *how, "--to", str(to), *served]

    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    began = time.monotonic()
    done = subprocess.run(command(tmp_path / "whole"), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    whole = time.monotonic() - began
    notes = " ".join(read_manifest(tmp_path / "whole").notes)
    logger.info("%s", notes)
    assert "of their log-probabilities were compared with the policy's own" in notes
    began = time.monotonic()
    with subprocess.Popen(command(tmp_path / "killed"), env=environment, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list((tmp_path / "killed" / "parts").glob("*.jsonl")):
            time.sleep(0.05)
        servers = engines(taught)
        assert servers
        for pid in servers:
            os.kill(pid, 9)
        _, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]
    logger.info("%.0f s without a kill, %.0f s with one in the middle", whole, time.monotonic() - began)
    assert "is left out until it answers again" in errors
    one, other = (read_records(tmp_path / name, "answers", Answers) for name in ("whole", "killed"))
    same = sum(a.completions == b.completions for a, b in zip(one, other, strict=True))
    logger.info("%d of %d questions got the same answers", same, len(one))
    assert same > 0.9 * len(one)
    assert not engines(taught)


def engines(policy: Path) -> list[int]:
    """Process ids of servers of the policy."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"vllm.entrypoints.openai.api_server" in words and str(policy).encode() in words and words[1] == b"-m":
            found.append(int(path.parent.name))
    return found
