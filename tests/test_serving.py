"""vLLM that stllava starts, checks, restarts and ends, and several servers as one; a stand-in serves in vLLM's place."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.ending import assert_all_end, is_there
from stllava.config import AnswerOptions, ChatOptions, EndpointOptions, SamplingOptions
from stllava.errors import StllavaError
from stllava.experts.backends.chat_server import ChatBackend, ChatServer
from stllava.experts.backends.started_server import StartedServer
from stllava.experts.model.reply_log import Exchange, JudgeRequest, reply_text
from stllava.generation import server_keeper, serving
from stllava.generation.local_sampler import LocalSampler, open_sampler
from stllava.generation.sampler import Prompt
from stllava.generation.served_sampler import CHECKED_TOKENS, ServedSampler
from stllava.model.load import fingerprint, load_policy
from stllava.records import Message
from stllava.remote import server_pool

ENGINE = Path(__file__).parent / "helpers" / "engine"
GREEDY = SamplingOptions(temperature=0.0, top_k=0, top_p=1.0, max_new_tokens=CHECKED_TOKENS)
IMAGES = [f"unlabelled/{number:05d}.png" for number in range(4)]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stllava.remote.client.pause", lambda *_, **__: 0.0)
    monkeypatch.setattr(server_pool, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(serving, "LOOK_SECONDS", 0.05)


def asked(number: int = 4) -> list[Prompt]:
    """So many prompts, each about an image."""
    return [Prompt((Message(role="user", content=f"what is at {one}?"),), (IMAGES[one % 4],)) for one in range(number)]


@pytest.fixture
def engine(tmp_path: Path, tiny_model: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder by which the stand-in is told what to say and what goes wrong; it says what the policy says."""
    monkeypatch.setenv("FAKE_ENGINE", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ENGINE))
    monkeypatch.setattr(serving, "NOT_PASSED_ON", ())
    local = LocalSampler(load_policy(tiny_model), root=phantoms / "images", tokens=4096)
    said = local.complete(asked(), k=1, sampling=GREEDY, seed=0)
    words = {
        prompt.messages[0].content: [one.text, one.log_probability or -1.0]
        for prompt, (one,) in zip(asked(), said, strict=True)
    }
    (tmp_path / "said.json").write_text(json.dumps(words))
    return tmp_path


def sampler(tiny_model: Path, phantoms: Path, engine: Path, **changed: object) -> ServedSampler:
    """The policy behind servers of its own."""
    values: dict[str, object] = {"serve": "vllm", "python": sys.executable, "start_seconds": 60, "concurrency": 4}
    endpoint = EndpointOptions.model_validate(values | changed)
    options = AnswerOptions(endpoint=endpoint)
    opened = open_sampler(options, policy=tiny_model, root=phantoms / "images", audit=engine / "audit")
    assert isinstance(opened, ServedSampler)
    return opened


def fail(engine: Path, **faults: float) -> None:
    (engine / "faults.json").write_text(json.dumps(faults))


def processes(engine: Path) -> list[int]:
    """Process ids of every server that was started, and of the child that each has."""
    return [int(pid) for pid in (engine / "pids.txt").read_text().split()]


def test_servers_are_started_checked_asked_and_ended(tiny_model: Path, phantoms: Path, engine: Path) -> None:
    fail(engine, slow=0.3)
    served = sampler(tiny_model, phantoms, engine, replicas=2, arguments={"max_model_len": 4096, "enforce-eager": True})
    said = served.complete(asked(8), k=2, sampling=GREEDY, seed=0)
    assert [one.text for one, _ in said[4:]] == [f"about what is at {number}?" for number in range(4, 8)]
    assert served.device == "vllm × 2"
    assert "greedy texts" in served.notes[0]
    flags = json.loads((engine / "flags.json").read_text())
    assert flags[flags.index("--max-model-len") + 1] == "4096"
    assert flags[flags.index("--model") + 1] == str(tiny_model)
    assert "--enforce-eager" in flags
    assert flags[flags.index("--host") + 1] == "127.0.0.1"
    served.close()
    assert len(processes(engine)) == 4
    assert_all_end(processes(engine), seconds=20)
    noted = (engine / "audit" / "audit.jsonl").read_text().splitlines()
    assert len(noted) == 2 * 4 + 8 * 2


def test_requests_about_one_image_go_to_one_server_and_both_have_work(tiny_model: Path, phantoms: Path, engine: Path) -> None:
    served = sampler(tiny_model, phantoms, engine, replicas=2)
    served.complete(asked(1), k=1, sampling=GREEDY, seed=0)
    (engine / "requests.jsonl").unlink()
    served.complete(asked(12), k=4, sampling=GREEDY, seed=0)
    served.close()
    rows = [json.loads(line) for line in (engine / "requests.jsonl").read_text().splitlines()]
    servers: dict[int, set[int]] = {}
    for row in rows:
        servers.setdefault(int(row["words"].split()[-1].rstrip("?")) % 4, set()).add(row["pid"])
    assert all(len(pids) == 1 for pids in servers.values())
    assert len({row["pid"] for row in rows}) == 2


@pytest.mark.parametrize(
    ("fault", "replicas"),
    [("die", 1), ("500", 2), *(pytest.param(*other, marks=pytest.mark.slow) for other in (("die", 2), ("500", 1)))],
)
def test_a_server_that_dies_or_fails_at_everything_is_started_again_and_no_completion_is_lost(
    fault: str, replicas: int, tiny_model: Path, phantoms: Path, engine: Path
) -> None:
    served = sampler(tiny_model, phantoms, engine, replicas=replicas, retries=8)
    served.complete(asked(1), k=1, sampling=GREEDY, seed=0)
    if fault == "500":
        servers = served._servers
        assert servers is not None
        fail(engine, **{"500": 1})
        servers._servers[0].start()  # This one fails at everything, the next start is well.
    else:
        fail(engine, die=1)
    said = served.complete(asked(8), k=3, sampling=GREEDY, seed=0)
    assert [len(completions) for completions in said] == [3] * 8
    served.close()
    assert_all_end(processes(engine), seconds=20)


def test_a_server_that_cannot_start_is_told_by_its_log(tiny_model: Path, phantoms: Path, engine: Path) -> None:
    fail(engine, start=99)
    served = sampler(tiny_model, phantoms, engine)
    with pytest.raises(StllavaError, match="ended 3 times before it was ready: CUDA out of memory, say"):
        served.complete(asked(), k=1, sampling=GREEDY, seed=0)
    served.close()
    assert_all_end(processes(engine), seconds=20)


def test_a_python_that_cannot_be_run_is_told_before_anything_is_started(
    tiny_model: Path, phantoms: Path, engine: Path, tmp_path: Path
) -> None:
    (tmp_path / "python").write_text("no program")
    for path in (tmp_path / "none", tmp_path / "python"):
        served = sampler(tiny_model, phantoms, engine, python=path)
        with pytest.raises(StllavaError, match=r"endpoint\.python .* is no program that can be run"):
            served.complete(asked(), k=1, sampling=GREEDY, seed=0)
        served.close()
    assert not (engine / "pids.txt").exists()


def test_a_server_that_starts_too_slowly_is_ended(tiny_model: Path, phantoms: Path, engine: Path) -> None:
    fail(engine, slow=60)
    served = sampler(tiny_model, phantoms, engine, start_seconds=1)
    with pytest.raises(StllavaError, match=r"was not ready within 1 s.*start_seconds"):
        served.complete(asked(), k=1, sampling=GREEDY, seed=0)
    assert_all_end(processes(engine), seconds=20)


@pytest.mark.slow
def test_a_taken_port_is_changed_for_another(
    tiny_model: Path, phantoms: Path, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = iter([taken.getsockname()[1]])
        free = serving.free_port
        monkeypatch.setattr(serving, "free_port", lambda: next(ports, None) or free())
        served = sampler(tiny_model, phantoms, engine)
        assert len(served.complete(asked(), k=1, sampling=GREEDY, seed=0)) == 4
        served.close()
    assert_all_end(processes(engine), seconds=20)


@pytest.mark.parametrize("how", ["text", "log-probability"])
def test_a_server_of_other_weights_is_refused_and_ended(how: str, tiny_model: Path, phantoms: Path, engine: Path) -> None:
    said = json.loads((engine / "said.json").read_text())
    other = {words: ["something else", -1.0] if how == "text" else [text, -900.0] for words, (text, _) in said.items()}
    (engine / "said.json").write_text(json.dumps(other))
    served = sampler(tiny_model, phantoms, engine)
    if how == "log-probability":
        # The untrained policy rarely comes to an end, and so knows no log-probability: here it does.
        own = served._greedy

        def finished(prompts: list[Prompt]) -> list[tuple[Prompt, object]]:
            from dataclasses import replace

            return [(prompt, replace(one, log_probability=-2.0, finished=True)) for prompt, one in own(prompts)]

        served._greedy = finished  # type: ignore[method-assign, assignment]
    words = "it says 'something else' where" if how == "text" else "nats from the policy's"
    with pytest.raises(StllavaError, match=f"does not speak as .* does: .*{words}"):
        served.complete(asked(), k=1, sampling=GREEDY, seed=0)
    assert_all_end(processes(engine), seconds=20)


def test_servers_are_started_anew_after_so_many_batches(tiny_model: Path, phantoms: Path, engine: Path) -> None:
    served = sampler(tiny_model, phantoms, engine, restart_every=2)
    for _ in range(5):
        served.complete(asked(1), k=1, sampling=GREEDY, seed=0)
    served.close()
    assert len(processes(engine)) == 2 * 3
    assert_all_end(processes(engine), seconds=20)


def test_a_server_does_not_outlive_whoever_started_it_even_by_sigkill(engine: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, *sys.argv[1:]], stdin=subprocess.PIPE)\n"
        "time.sleep(600)\n"
    )
    server = [server_keeper.__file__, sys.executable, "-m", serving.MODULE, "--port", str(serving.free_port())]
    with subprocess.Popen([sys.executable, "-c", code, *server], env=os.environ | {"PYTHONPATH": str(ENGINE)}) as process:
        while not (engine / "pids.txt").is_file() or not (engine / "pids.txt").read_text().endswith("\n"):
            time.sleep(0.02)
        started = processes(engine)
        assert all(is_there(pid) for pid in started)
        process.kill()
    assert_all_end(started, seconds=20)


def test_of_several_addresses_one_that_dies_is_left_out_and_taken_back(tiny_model: Path, phantoms: Path, engine: Path) -> None:
    ports = [serving.free_port(), serving.free_port()]

    def start(port: int) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-m", serving.MODULE, "--port", str(port)], env=os.environ | {"PYTHONPATH": str(ENGINE)}
        )

    servers = [start(port) for port in ports]
    try:
        endpoint = EndpointOptions(url=tuple(f"http://127.0.0.1:{port}/v1" for port in ports), concurrency=2, retries=20)
        speaker = open_sampler(
            AnswerOptions(endpoint=endpoint), policy=tiny_model, root=phantoms / "images", audit=engine / "audit"
        )
        deadline = time.monotonic() + 60
        while len((engine / "pids.txt").read_text().splitlines() if (engine / "pids.txt").is_file() else []) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.2)
        assert len(speaker.complete(asked(6), k=2, sampling=GREEDY, seed=0)) == 6
        servers[0].kill()
        servers[0].wait()
        assert len(speaker.complete(asked(6), k=2, sampling=GREEDY, seed=0)) == 6
        servers[0] = start(ports[0])
        assert speaker.device == f"policy at 127.0.0.1:{ports[0]}, 127.0.0.1:{ports[1]}"
        (engine / "requests.jsonl").unlink()
        while len({json.loads(line)["pid"] for line in _lines(engine / "requests.jsonl")}) < 2:
            assert time.monotonic() < deadline
            speaker.complete(asked(6), k=2, sampling=GREEDY, seed=0)
    finally:
        for server in servers:
            server.kill()
            server.wait()
        for pid in processes(engine):
            if is_there(pid):
                os.kill(pid, 9)


def test_an_expert_may_be_behind_several_servers(phantoms: Path, engine: Path) -> None:
    (engine / "said.json").write_text("{}")
    ports = [serving.free_port(), serving.free_port()]
    command = [sys.executable, "-m", serving.MODULE, "--port"]
    there = os.environ | {"PYTHONPATH": str(ENGINE)}
    with subprocess.Popen([*command, str(ports[1])], env=there) as server:
        try:
            deadline = time.monotonic() + 60
            while not (engine / "pids.txt").is_file() or _refuses(ports[1]):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            urls = tuple(f"http://127.0.0.1:{port}/v1" for port in ports)
            chat = ChatOptions(url=urls, model="expert", structured=False, retries=3)
            chats = ChatServer(chat, root=phantoms / "images", folder=engine / "judged")
            assert chats.name == "expert at 127.0.0.1, 127.0.0.1"
            said: list[Exchange] = []
            requests = [
                JudgeRequest(f"{number:016x}", "a", (0,), 0, f"judge {number}", (IMAGES[number % 4],), {})
                for number in range(6)
            ]
            ChatBackend(chats).ask(requests, said.append)
            assert sorted(reply_text(one).text for one in said) == [f"about judge {number}" for number in range(6)]
        finally:
            server.kill()
            for pid in processes(engine):
                if is_there(pid):
                    os.kill(pid, 9)
    with pytest.raises(ValueError, match="one url with batch"):
        ChatOptions(url=urls, batch=True)


def expert(tiny_model: Path, phantoms: Path, engine: Path, **changed: object) -> StartedServer:
    """An expert behind servers that are started for it, which says something about whatever it is asked."""
    (engine / "said.json").write_text("{}")
    values: dict[str, object] = {"serve": "vllm", "python": sys.executable, "weights": str(tiny_model), "start_seconds": 60}
    chat = ChatOptions.model_validate(values | {"structured": False, "retries": 8} | changed)
    return StartedServer(chat, root=phantoms / "images", folder=engine / "judged")


def judged(server: ChatServer, number: int = 6) -> list[str]:
    """What it replies to so many requests, each about an image."""
    said: list[Exchange] = []
    images = [(IMAGES[one % 4],) for one in range(number)]
    requests = [JudgeRequest(f"{one:016x}", "a", (0,), 0, f"judge {one}", images[one], {}) for one in range(number)]
    ChatBackend(server).ask(requests, said.append)
    return sorted(reply_text(one).text for one in said)


def test_servers_are_started_for_an_expert_asked_and_ended(tiny_model: Path, phantoms: Path, engine: Path) -> None:
    server = expert(tiny_model, phantoms, engine, replicas=2, arguments={"max-model-len": 4096})
    assert server.name == "tiny at vllm"
    assert not (engine / "pids.txt").exists()
    assert judged(server) == [f"about judge {number}" for number in range(6)]
    assert_all_end(processes(engine), seconds=20)
    assert len(processes(engine)) == 4
    flags = json.loads((engine / "flags.json").read_text())
    assert flags[flags.index("--model") + 1] == str(tiny_model)
    assert flags[flags.index("--served-model-name") + 1] == "tiny"
    assert flags[flags.index("--max-model-len") + 1] == "4096"
    assert len((engine / "judged" / "audit.jsonl").read_text().splitlines()) == 6


def test_a_server_of_an_expert_that_dies_is_started_again_and_no_reply_is_lost(
    tiny_model: Path, phantoms: Path, engine: Path
) -> None:
    fail(engine, die=1)
    assert judged(expert(tiny_model, phantoms, engine)) == [f"about judge {number}" for number in range(6)]
    assert len(processes(engine)) == 4
    assert_all_end(processes(engine), seconds=20)


def test_a_server_of_an_expert_that_cannot_start_ends_the_stage(tiny_model: Path, phantoms: Path, engine: Path) -> None:
    fail(engine, start=99)
    with pytest.raises(StllavaError, match=r"ended 3 times before it was ready: CUDA out of memory, say.*judge\.chat\.python"):
        judged(expert(tiny_model, phantoms, engine))
    assert_all_end(processes(engine), seconds=20)


def test_requests_to_a_served_expert_are_known_by_its_weights_and_flags_and_not_by_where_it_runs(
    tiny_model: Path, phantoms: Path, engine: Path
) -> None:
    one, other, flagged = (
        expert(tiny_model, phantoms, engine, **changed).identity
        for changed in ({}, {"replicas": 3, "start_seconds": 9}, {"arguments": {"dtype": "float16"}})
    )
    assert one == other != flagged
    assert one["weights"] == fingerprint(tiny_model)
    assert not {"serve", "weights", "arguments", "python"} & ChatOptions(url="http://127.0.0.1:1/v1").resume_key().keys()
    with pytest.raises(StllavaError, match="does not load: there is no such folder"):
        expert(engine / "nothing", phantoms, engine)


def _refuses(port: int) -> bool:
    """Whether nobody listens there yet."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def test_without_a_python_it_is_this_one_where_it_has_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stllava.config.generation.find_spec", {"vllm": object()}.get)
    assert EndpointOptions(serve="vllm").python is None


def test_options_of_servers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="serve or url"):
        EndpointOptions(serve="vllm", python=Path("python"), url="http://127.0.0.1:1/v1")
    with pytest.raises(ValueError, match="python with serve"):
        EndpointOptions(serve="vllm")
    for unused in (
        {"replicas": 8},
        {"python": "python"},
        {"arguments": {"seed": 1}},
        {"start_seconds": 9.0},
        {"restart_every": 3},
    ):
        with pytest.raises(ValueError, match=f"no {next(iter(unused))} with url"):
            EndpointOptions.model_validate({"url": "http://127.0.0.1:1/v1", **unused})
    with pytest.raises(ValueError, match="serve and weights"):
        ChatOptions(serve="vllm", python=Path("python"))
    with pytest.raises(ValueError, match="serve and weights"):
        ChatOptions(url="http://127.0.0.1:1/v1", weights="folder")
    with pytest.raises(ValueError, match="serve or batch"):
        ChatOptions(serve="vllm", python=Path("python"), weights="folder", batch=True)
