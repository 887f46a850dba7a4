"""An expert behind a server: every comparison ends judged or with a cause, nothing is paid twice, nothing leaks."""

import io
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from threading import Event

import httpx2
import pytest
from PIL import Image, PngImagePlugin

from helpers.judging import (
    FAULTS,
    JudgeServer,
    Listening,
    answers_of,
    completion,
    judgments_of,
    many_answers,
    write_answers,
    write_image,
)
from stllava.config import ChatOptions, JudgeOptions
from stllava.errors import StllavaError
from stllava.experts import build
from stllava.experts.backends.chat_server import ChatBackend, ChatServer
from stllava.experts.model.reply_log import Exchange
from stllava.remote import rate_limiter
from stllava.remote.concurrency import for_each
from stllava.remote.rate_limiter import RateLimiter, asked_pause, pause
from stllava.stages.judge import judge, plan
from stllava.store import AUDIT, EXCHANGES, read_jsonl

URL = "http://127.0.0.1:9/v1"
REMOTE = "https://api.example.com/v1"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow one another at once."""
    monkeypatch.setattr(rate_limiter, "FIRST_WAIT", 0.0)


Handler = Callable[[httpx2.Request], httpx2.Response]
Use = Callable[[Handler], None]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Let the stage's server be this function."""
    return lambda handler: monkeypatch.setattr(
        build, "ChatServer", partial(ChatServer, transport=httpx2.MockTransport(handler))
    )


def options(**chat: object) -> JudgeOptions:
    """Judge by pairs, asking a server."""
    given = {"url": URL, "model": "vlm", "structured": False, "concurrency": 8} | chat
    return JudgeOptions(expert="chat", mode="pairwise", chat=ChatOptions.model_validate(given))


def labels(folder: Path) -> dict[str, tuple[float, ...] | None]:
    """The scores by answers."""
    return {key: one.scores for key, one in judgments_of(folder).items()}


@pytest.mark.slow
def test_against_a_faulty_server_every_comparison_ends_judged_or_with_a_cause_and_as_without_faults(
    tmp_path: Path, use: Use
) -> None:
    given = write_answers(tmp_path / "answers", many_answers(2000))
    root = write_image(tmp_path / "images")
    use(calm := JudgeServer())
    judge(options(), answers=given, root=root, to=tmp_path / "calm")
    use(faulty := JudgeServer(share=0.3))
    manifest = judge(options(retries=8), answers=given, root=root, to=tmp_path / "faulty").manifest
    truth, found = labels(tmp_path / "calm"), judgments_of(tmp_path / "faulty")
    assert set(faulty.faults) == {"", *FAULTS}
    assert len(found) == len(truth) == 2000
    assert None not in truth.values()
    causes = Counter(one.cause for one in found.values())
    assert causes["refused"] > 50
    assert set(causes) == {None, "refused"}
    assert all(one.scores == truth[key] for key, one in found.items() if one.cause is None)
    assert max(faulty.answered.values()) == 1
    assert set(faulty.answered) | faulty.refused == set(calm.answered)
    assert manifest.measures["no_verdict_refused"] == causes["refused"]
    assert manifest.measures["requests"] == faulty.asked.total()
    kept = Counter(one.failure for one in read_jsonl_torn(tmp_path / "faulty" / EXCHANGES / "expert.jsonl"))
    assert kept["the reply holds no choice"] == faulty.faults["empty choices"]
    assert (
        sum(count for problem, count in kept.items() if problem and "not a chat completion" in problem)
        == (faulty.faults["wrong JSON"])
    )


@pytest.mark.slow
def test_a_killed_judge_loses_no_reply_and_asks_nothing_twice(tmp_path: Path) -> None:
    given = write_answers(tmp_path / "answers", many_answers(200))
    root = write_image(tmp_path / "images")
    to, server = tmp_path / "judgments", JudgeServer(seconds=0.05)
    reply_log = to / EXCHANGES / "expert.jsonl"
    draw = random.Random(4)
    with Listening(server) as listening:
        flags = ["--expert", "chat", "--mode", "pairwise", "--chat.url", listening.url, "--chat.model", "vlm"]
        flags += ["--chat.no-structured", "--chat.concurrency", "4"]
        command = [sys.executable, "-c", "from stllava.cli import main; main()", "judge", *flags]
        command += ["--answers", str(given), "--root", str(root), "--to", str(to)]
        kills = 0
        while kills < 20:
            before = server.asked.total()
            held = Counter(one.text for one in read_jsonl_torn(reply_log))
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            deadline = time.monotonic() + 30
            while server.asked.total() == before and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(draw.uniform(0.0, 0.2))
            assert process.poll() is None, (process.stderr.read() if process.stderr else b"").decode()
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            assert all(server.asked[text] == 1 or text not in held for text in held if server.answered[text] == 1)
            again = Counter(one.text for one in read_jsonl_torn(reply_log))
            assert again.keys() >= held.keys()
        subprocess.run(command, check=True, capture_output=True)
    found = labels(to)
    assert len(found) == 200
    assert None not in found.values()
    twice = sum(count - 1 for count in server.answered.values())
    assert twice <= 4 * kills, "more than what was in flight"
    exchanges = Counter(one.id for one in read_jsonl_torn(reply_log))
    assert max(exchanges.values()) == 1


def read_jsonl_torn(path: Path) -> list[Exchange]:
    """The whole lines of a reply log that may have been cut off."""
    if not path.is_file():
        return []
    return [Exchange.model_validate_json(line) for line in path.read_bytes().split(b"\n")[:-1]]


def test_a_reply_is_written_before_it_is_read_and_read_again_without_asking(tmp_path: Path, use: Use) -> None:
    given = write_answers(tmp_path / "answers", many_answers(20))
    root = write_image(tmp_path / "images")
    use(server := JudgeServer())
    judge(options(), answers=given, root=root, to=tmp_path / "out")
    first = labels(tmp_path / "out")
    asked = server.asked.total()
    exchanges = read_jsonl(tmp_path / "out" / EXCHANGES / "expert.jsonl", Exchange)
    assert len(exchanges) == asked == 40
    assert all(json.loads(one.body or "")["choices"] and one.images == ("scan.png",) for one in exchanges)
    assert not any("data:" in one.text for one in exchanges)
    judge(options(concurrency=2, retries=1), answers=given, root=root, to=tmp_path / "out", existing="replace")
    assert server.asked.total() == asked
    assert labels(tmp_path / "out") == first


def test_nothing_is_sent_to_a_remote_host_without_permission(tmp_path: Path) -> None:
    given = write_answers(tmp_path / "answers", many_answers(2))
    root = write_image(tmp_path / "images")
    with pytest.raises(StllavaError, match=r"leave this machine for api.example.com.*send_images is false"):
        judge(options(url=REMOTE), answers=given, root=root, to=tmp_path / "out")
    assert not (tmp_path / "out" / AUDIT).exists()


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1.example.com/v1",
        "http://localhost.example.com/v1",
        "http://10.0.0.7/v1",
        "http://0x7f.1/v1",
        "http://[2001:db8::1]/v1",
    ],
)
def test_what_only_looks_like_this_machine_is_not(tmp_path: Path, url: str) -> None:
    with pytest.raises(StllavaError, match="send_images is false"):
        ChatServer(ChatOptions(url=url, model="vlm"), root=tmp_path, folder=tmp_path)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000/v1", "http://localhost/v1", "http://[::1]:8000/v1", "http://127.9.9.9/v1"]
)
def test_loopback_is_this_machine(tmp_path: Path, url: str) -> None:
    ChatServer(ChatOptions(url=url, model="vlm"), root=tmp_path, folder=tmp_path)


def test_what_is_sent_are_pixels_and_each_sending_is_noted_before(tmp_path: Path, use: Use) -> None:
    root = tmp_path / "images"
    root.mkdir()
    words = PngImagePlugin.PngInfo()
    words.add_text("Patient", "Doe, Jane")
    exif = Image.Exif()
    exif[0x010E] = "Doe, Jane"
    noise = Image.effect_noise((300, 200), 50).convert("RGB")
    noise.save(root / "scan.png", pnginfo=words, exif=exif, icc_profile=b"Doe, Jane")
    noise.save(root / "scan.jpg", exif=exif, comment=b"Doe, Jane")
    given = write_answers(
        tmp_path / "answers", [answers_of("what?", ("a nodule", "an edema"), image=name) for name in ("scan.png", "scan.jpg")]
    )
    noted: list[int] = []
    server = JudgeServer()

    def handler(request: httpx2.Request) -> httpx2.Response:
        noted.append(len((tmp_path / "out" / AUDIT).read_text().splitlines()))
        assert b"Doe, Jane" not in request.content
        assert b"scan." not in request.content
        return server(request)

    use(handler)
    judge(options(url=REMOTE, send_images=True, max_side=128, concurrency=1), answers=given, root=root, to=tmp_path / "out")
    assert noted == [1, 2, 3, 4]
    for body in server.bodies:
        url = body["messages"][0]["content"][0]["image_url"]["url"]  # type: ignore[index, call-overload]
        kind, _, data = str(url).partition(",")
        sent = Image.open(io.BytesIO(b64decode(data)))
        assert (kind, sent.format, sent.size, sent.info) == ("data:image/png;base64", "PNG", (128, 85), {})
        assert b"Doe, Jane" not in b64decode(data)
    lines = [json.loads(line) for line in (tmp_path / "out" / AUDIT).read_text().splitlines()]
    assert [line["image"] for line in lines] == ["scan.png"] * 2 + ["scan.jpg"] * 2
    assert {line["host"] for line in lines} == {"api.example.com:https"}
    assert all(line["bytes"] > 100 and line["time"].startswith("20") for line in lines)


def test_a_key_is_found_nowhere_after_a_failing_run(
    tmp_path: Path, use: Use, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "sk-planted-5f2c"
    monkeypatch.setenv("EXPERT_KEY", secret)
    caplog.set_level(logging.DEBUG)
    given = write_answers(tmp_path / "answers", many_answers(30))
    root = write_image(tmp_path / "images")
    server = JudgeServer(share=0.5, key=secret)

    def handler(request: httpx2.Request) -> httpx2.Response:
        assert request.headers["Authorization"] == f"Bearer {secret}"
        if server.asked.total() > 40:
            return httpx2.Response(401, json={"error": {"message": f"Incorrect API key provided: {secret}"}})
        if server.asked.total() > 20:
            return httpx2.Response(200, json=completion(f"Your key is {secret}.\nVerdict: 1"))
        return server(request)

    def counted(request: httpx2.Request) -> httpx2.Response:
        reply = handler(request)
        server.asked[str(len(server.asked))] += 1
        return reply

    use(counted)
    with pytest.raises(StllavaError) as caught:
        judge(options(key_variable="EXPERT_KEY", retries=1), answers=given, root=root, to=tmp_path / "out")
    assert "status 401" in str(caught.value)
    assert secret not in str(caught.value)
    assert secret not in "".join(traceback.format_exception(caught.value))
    assert secret not in caplog.text
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path


def test_a_missing_key_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXPERT_KEY", raising=False)
    with pytest.raises(StllavaError, match="EXPERT_KEY is not set"):
        ChatServer(ChatOptions(url=URL, key_variable="EXPERT_KEY"), root=tmp_path, folder=tmp_path)


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refusal_that_is_the_users_fault_is_not_repeated(tmp_path: Path, use: Use, status: int) -> None:
    given = write_answers(tmp_path / "answers", many_answers(5))
    root = write_image(tmp_path / "images")
    sent: list[int] = []

    def refuse(_: httpx2.Request) -> httpx2.Response:
        sent.append(1)
        return httpx2.Response(status, json={"error": {"message": "no such model"}})

    use(refuse)
    with pytest.raises(StllavaError, match=f"refuses with status {status}.*no such model"):
        judge(options(concurrency=1), answers=given, root=root, to=tmp_path / "out")
    assert len(sent) == 1


def test_a_refused_item_among_answered_ones_fails_alone(tmp_path: Path, use: Use) -> None:
    given = write_answers(tmp_path / "answers", many_answers(40))
    root = write_image(tmp_path / "images")
    server = JudgeServer()

    def handler(request: httpx2.Request) -> httpx2.Response:
        if b"at place 7?" in request.content:
            return httpx2.Response(400, json={"error": {"message": "the image is not allowed"}})
        return server(request)

    use(handler)
    manifest = judge(options(), answers=given, root=root, to=tmp_path / "out").manifest
    assert manifest.measures["no_verdict_failed"] == 1
    [failed] = [one for one in judgments_of(tmp_path / "out").values() if one.scores is None]
    assert "the image is not allowed" in failed.raw[0]


def test_a_refused_item_does_not_block_a_resumed_stage(tmp_path: Path, use: Use) -> None:
    given = write_answers(tmp_path / "answers", many_answers(40))
    root = write_image(tmp_path / "images")
    server = JudgeServer()

    def handler(request: httpx2.Request) -> httpx2.Response:
        if b"at place 0?" in request.content:
            return httpx2.Response(400, json={"error": {"message": "the image is not allowed"}})
        return server(request)

    use(server)
    with pytest.raises(StllavaError, match="max_requests 10 is reached"):
        judge(options(max_requests=10, concurrency=1), answers=given, root=root, to=tmp_path / "out")
    reply_log = tmp_path / "out" / EXCHANGES / "expert.jsonl"
    reply_log.write_bytes(b"".join(reply_log.read_bytes().splitlines(keepends=True)[2:]))
    use(handler)
    manifest = judge(options(concurrency=1), answers=given, root=root, to=tmp_path / "out").manifest
    assert manifest.measures["no_verdict_failed"] == 1


def test_a_server_that_only_fails_ends_the_stage_and_can_be_resumed(tmp_path: Path, use: Use) -> None:
    given = write_answers(tmp_path / "answers", many_answers(60))
    root = write_image(tmp_path / "images")
    server = JudgeServer()

    def dies(request: httpx2.Request) -> httpx2.Response:
        if server.asked.total() >= 30:
            raise httpx2.ConnectError("connection refused")
        return server(request)

    use(dies)
    with pytest.raises(StllavaError, match=r"answered none of the last \d+ requests.*connection refused"):
        judge(options(retries=1, concurrency=4), answers=given, root=root, to=tmp_path / "out")
    assert 30 <= server.asked.total() <= 34
    use(server)
    judge(options(), answers=given, root=root, to=tmp_path / "out")
    assert max(server.asked.values()) == 1
    assert None not in labels(tmp_path / "out").values()


def test_failures_beyond_the_allowed_share_stop_the_stage_before_its_manifest(tmp_path: Path, use: Use) -> None:
    given = write_answers(tmp_path / "answers", many_answers(20))
    root = write_image(tmp_path / "images")
    server = JudgeServer()

    def handler(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(503) if b"at place 1" in request.content else server(request)

    use(handler)
    with pytest.raises(StllavaError, match=r"11 of 20 questions have no verdict because requests failed"):
        judge(options(retries=0, concurrency=16), answers=given, root=root, to=tmp_path / "out")
    use(server)
    judge(options(), answers=given, root=root, to=tmp_path / "out")
    assert None not in labels(tmp_path / "out").values()
    assert max(server.asked.values()) == 1


def test_requests_stop_before_a_limit_and_go_on_with_a_higher_one(tmp_path: Path, use: Use) -> None:
    given = write_answers(tmp_path / "answers", many_answers(30))
    root = write_image(tmp_path / "images")
    use(server := JudgeServer())
    prices = {"input_price": 10.0, "output_price": 100.0, "max_tokens": 20, "image_tokens": 10}
    a_request = (100 * 10 + 20 * 100) / 1e6
    with pytest.raises(StllavaError, match=r"could pass max_cost \$0.06"):
        judge(options(**prices, max_cost=0.06), answers=given, root=root, to=tmp_path / "out")
    spent = server.answered.total() * a_request
    assert 0.02 < spent <= 0.06
    with pytest.raises(StllavaError, match="max_requests 35 is reached"):
        judge(options(**prices, max_requests=35), answers=given, root=root, to=tmp_path / "out")
    assert server.asked.total() == 35
    manifest = judge(options(**prices, max_cost=1.0), answers=given, root=root, to=tmp_path / "out").manifest
    assert server.asked.total() == 60
    assert manifest.measures["cost"] == pytest.approx(60 * a_request)
    assert (manifest.measures["prompt_tokens"], manifest.measures["completion_tokens"]) == (6000, 1200)


def test_a_limit_on_costs_needs_a_price(tmp_path: Path) -> None:
    with pytest.raises(StllavaError, match="max_cost is set, but no price"):
        ChatServer(ChatOptions(url=URL, max_cost=1.0), root=tmp_path, folder=tmp_path)


def test_a_dry_run_shows_the_first_prompt_and_asks_nothing(tmp_path: Path) -> None:
    given = write_answers(tmp_path / "answers", many_answers(10))
    root = write_image(tmp_path / "images")
    found = plan(
        options(url=REMOTE, input_price=1.0, output_price=2.0, max_tokens=100, image_tokens=1000),
        answers=given,
        root=root,
        to=tmp_path / "out",
    )
    assert found.requests == 20
    assert "What is seen at place 0?" in found.prompt
    assert found.cost is not None
    assert 20 * (1000 + 200) / 1e6 < found.cost < 20 * (3000 + 200) / 1e6
    assert not (tmp_path / "out").exists()


def test_a_plan_of_a_server_elsewhere_needs_no_permission_and_can_send_nothing(tmp_path: Path) -> None:
    asked = options(url=REMOTE, key_variable="NO_SUCH_KEY").chat
    backend = ChatBackend(ChatServer(asked, root=tmp_path, folder=tmp_path, asks=False))
    assert backend.name == "vlm at api.example.com"
    with pytest.raises(RuntimeError, match="a plan must ask nothing"):
        backend.ask([], lambda exchange: None)


def test_no_more_requests_run_at_a_time_than_allowed(tmp_path: Path, use: Use) -> None:
    given = write_answers(tmp_path / "answers", many_answers(20))
    use(server := JudgeServer(seconds=0.01))
    judge(options(concurrency=3), answers=given, root=write_image(tmp_path / "images"), to=tmp_path / "out")
    assert 1 < server.busiest <= 3


def test_structured_replies_are_asked_for_by_schema_and_extra_fields_added(tmp_path: Path, use: Use) -> None:
    given = write_answers(tmp_path / "answers", many_answers(1))

    def handler(request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.content)
        assert body["response_format"]["type"] == "json_schema"
        assert body["response_format"]["json_schema"]["schema"]["required"] == ["reason", "verdict"]
        assert "max_tokens" not in body
        assert (body["max_completion_tokens"], body["reasoning_effort"]) == (77, "low")
        return httpx2.Response(200, json=completion('{"reason": "the effusion", "verdict": "1"}'))

    use(handler)
    extra = {"max_tokens": None, "max_completion_tokens": 77, "reasoning_effort": "low"}
    asked = options(structured=True, extra=extra).model_copy(update={"max_flips": 1.0})
    judge(asked, answers=given, root=write_image(tmp_path / "images"), to=tmp_path / "out")
    [judgment] = judgments_of(tmp_path / "out").values()
    assert judgment.reason == "the effusion"
    assert judgment.comparisons[0].flipped
    assert judgment.scores == (0.5, 0.5)


def test_equal_texts_are_not_asked_about(tmp_path: Path, use: Use) -> None:
    several = [answers_of("what?", ("a nodule",) * 3), answers_of("where?", ("left", "left", "right"))]
    given = write_answers(tmp_path / "answers", several)
    use(server := JudgeServer())
    judge(options(), answers=given, root=write_image(tmp_path / "images"), to=tmp_path / "out")
    assert server.asked.total() == 2
    same, other = judgments_of(tmp_path / "out").values()
    assert (same.scores, same.cause, same.reason) == (None, "same text", "All answers are the same text, so it was not asked.")
    assert other.scores is not None
    assert other.scores[0] == other.scores[1]


def test_a_bad_image_fails_its_questions_alone(tmp_path: Path, use: Use) -> None:
    given = write_answers(tmp_path / "answers", [*many_answers(30), answers_of("what?", ("a", "b"), image="gone.png")])
    use(JudgeServer())
    manifest = judge(options(), answers=given, root=write_image(tmp_path / "images"), to=tmp_path / "out").manifest
    assert manifest.measures["no_verdict_failed"] == 1
    assert "image missing" in judgments_of(tmp_path / "out")[answers_of("what?", ("a", "b"), image="gone.png").id].raw[0]


def test_waits_grow_and_no_server_is_asked_again_earlier_than_it_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limiter, "FIRST_WAIT", 0.5)
    assert [pause(attempt, None, share=1.0) for attempt in range(4)] == [0.5, 1.0, 2.0, 4.0]
    assert pause(0, None, share=0.0) == 0.25
    assert pause(50, None, share=1.0) == rate_limiter.LONGEST_WAIT
    assert pause(0, 7.0, share=0.0) == 7.0
    assert pause(0, 1e9, share=0.0) == rate_limiter.LONGEST_ASKED_WAIT
    assert asked_pause("7") == 7.0
    assert asked_pause("soon") is None
    assert asked_pause(None) is None
    assert asked_pause("nan") == 0.0
    soon = asked_pause(format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True))
    assert soon is not None
    assert 50 < soon <= 60


def test_a_minute_holds_so_many_requests_and_tokens_and_a_server_can_hold_all(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    steady = RateLimiter(requests=3, clock=lambda: now[0])
    assert [steady.delay(0) for _ in range(4)] == [0, 0, 0, 60]
    now[0] = 59.0
    assert steady.delay(0) == 1
    now[0] = 60.0
    assert steady.delay(0) == 0
    thrifty = RateLimiter(tokens=100, clock=lambda: now[0])
    assert [thrifty.delay(60), thrifty.delay(40), thrifty.delay(1)] == [0, 0, 60]
    huge = RateLimiter(tokens=100, clock=lambda: now[0])
    assert [huge.delay(500), huge.delay(1)] == [0, 60]
    held = RateLimiter(clock=lambda: now[0])
    held.hold(5.0)
    assert held.delay(0) == 5.0
    now[0] += 5.0
    assert held.delay(0) == 0.0
    stop = Event()
    stop.set()
    assert not held.wait(0, stop=stop)


def test_items_are_drawn_as_workers_come_free_and_an_error_ends_the_drawing() -> None:
    drawn: list[int] = []

    def source() -> object:
        for number in range(1000):
            drawn.append(number)
            yield number

    def work(item: object, stop: Event) -> None:
        if item == 5:
            raise ValueError("five")
        stop.wait(0.001)

    with pytest.raises(ValueError, match="five"):
        for_each(source(), work, workers=4, name="test")  # type: ignore[arg-type]
    assert len(drawn) < 20


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own answer to SIGINT, which a shell without job control makes its background processes ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_caller_waits_for_what_is_under_way() -> None:
    done: list[int] = []

    def work(item: int, stop: Event) -> None:
        if item == 3:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        done.append(item)

    with pytest.raises(KeyboardInterrupt):
        for_each(range(1000), work, workers=2, name="test")
    assert 3 in done
    assert len(done) < 20
