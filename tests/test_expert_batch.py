"""The batch API as a way to ask: the same records, across stops, and no batch paid for twice."""

import email
import json
from collections import Counter
from functools import partial
from pathlib import Path

import httpx2
import pytest
from pydantic import JsonValue

from helpers.judging import (
    JudgeServer,
    answers_of,
    completion,
    judgments_of,
    many_answers,
    prompt_of,
    verdict_on,
    write_answers,
    write_image,
)
from stllava.config import ChatOptions, JudgeOptions
from stllava.errors import StllavaError
from stllava.experts import build
from stllava.experts.backends import batch_server
from stllava.experts.backends.batch_server import BatchBackend
from stllava.experts.backends.chat_server import ChatServer
from stllava.experts.model.model_expert import ModelExpert
from stllava.experts.model.reply_log import ReplyLog
from stllava.experts.model.rubric import load_rubric
from stllava.stages.judge import judge
from stllava.store import AUDIT, EXCHANGES


class StoppedError(Exception):
    """The process ends here, as by a kill."""


class BatchServer:
    """OpenAI's /files and /batches, as far as they are used; a batch is done when it was polled `polls` times."""

    def __init__(self, *, polls: int = 2) -> None:
        self.polls = polls
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, JsonValue]] = {}
        self.lines: Counter[str] = Counter()
        self.stop_after: str = ""
        self.broken: set[int] = set()
        self.useless: set[int] = set()
        self.status = "completed"
        self.number = 0
        self.lost = 0
        """How many replies to the creation of a batch are still to be lost."""

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        path, method = request.url.path.removeprefix("/v1"), request.method
        reply = self.reply(method, path, request)
        if self.lost and (method, path) == ("POST", "/batches"):
            self.lost -= 1
            raise httpx2.ReadTimeout("timed out")
        if self.stop_after == f"{method} {path.split('/')[1]}":
            self.stop_after = ""
            raise StoppedError
        return reply

    def reply(self, method: str, path: str, request: httpx2.Request) -> httpx2.Response:
        """What the server does and says."""
        kind, *rest = path.strip("/").split("/")
        if (method, kind, rest) == ("POST", "files", []):
            return httpx2.Response(200, json={"id": self.keep(self.uploaded(request))})
        if (method, kind, rest) == ("POST", "batches", []):
            asked = json.loads(request.content)
            key = f"batch-{len(self.batches)}"
            self.batches[key] = asked | {"id": key, "status": "in_progress", "polled": 0}
            self.lines.update(json.loads(line)["custom_id"] for line in self.files[asked["input_file_id"]].splitlines())
            return httpx2.Response(200, json=self.batches[key])
        if (method, kind, rest) == ("GET", "batches", []):
            return httpx2.Response(200, json={"data": list(self.batches.values()), "has_more": False})
        if (method, kind) == ("GET", "batches"):
            return httpx2.Response(200, json=self.polled(self.batches[rest[0]]))
        if (method, kind) == ("GET", "files"):
            return httpx2.Response(200, content=self.files[rest[0]])
        if (method, kind) == ("DELETE", "files"):
            del self.files[rest[0]]
            return httpx2.Response(200, json={"deleted": True})
        return httpx2.Response(404)

    @staticmethod
    def uploaded(request: httpx2.Request) -> bytes:
        """The file of a multipart form."""
        head = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
        parts = email.message_from_bytes(head + request.content).get_payload()
        assert isinstance(parts, list)
        [content] = [part.get_payload(decode=True) for part in parts if part.get_filename()]  # type: ignore[union-attr]
        assert isinstance(content, bytes)
        return content

    def keep(self, content: bytes) -> str:
        """A new file."""
        self.number += 1
        self.files[f"file-{self.number}"] = content
        return f"file-{self.number}"

    def polled(self, one: dict[str, JsonValue]) -> dict[str, JsonValue]:
        """A batch after one more poll."""
        one["polled"] = int(str(one["polled"])) + 1
        if int(str(one["polled"])) >= self.polls and one["status"] == "in_progress":
            out, errors = [], []
            for number, line in enumerate(self.files[str(one["input_file_id"])].splitlines()):
                asked = json.loads(line)
                if number in self.broken:
                    errors.append({"custom_id": asked["custom_id"], "response": {"status_code": 500, "body": {"error": "no"}}})
                    continue
                body = completion(None if number in self.useless else verdict_on(prompt_of(asked["body"])))
                out += [{"custom_id": asked["custom_id"], "response": {"status_code": 200, "body": body}}] * 2
            one["output_file_id"] = self.keep("\n".join(map(json.dumps, reversed(out))).encode())
            one["error_file_id"] = self.keep("\n".join(map(json.dumps, errors)).encode()) if errors else None
            one["status"] = self.status
            if self.status == "failed":
                one |= {"output_file_id": None, "errors": {"data": [{"message": "Enqueued token limit of your account"}]}}
            self.broken, self.useless = set(), set()
        return one


def options(**chat: object) -> JudgeOptions:
    """Judge through batches."""
    given = {"url": "http://127.0.0.1:9/v1", "model": "vlm", "structured": False, "batch": True, "poll": 0.001} | chat
    return JudgeOptions(expert="chat", mode="pairwise", chat=ChatOptions.model_validate(given))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> BatchServer:
    """The server of every batch expert."""
    made = BatchServer()
    monkeypatch.setattr(build, "ChatServer", partial(ChatServer, transport=httpx2.MockTransport(made)))
    monkeypatch.setattr(build, "BatchBackend", partial(BatchBackend, sleep=lambda _: None))
    return made


def test_batches_give_the_verdicts_of_single_requests_and_leave_no_file_behind(
    tmp_path: Path, server: BatchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = write_answers(tmp_path / "answers", many_answers(30))
    root = write_image(tmp_path / "images")
    batched = judge(options(), answers=given, root=root, to=tmp_path / "batched").manifest
    monkeypatch.setattr(build, "ChatServer", partial(ChatServer, transport=httpx2.MockTransport(JudgeServer())))
    judge(options(batch=False), answers=given, root=root, to=tmp_path / "single")
    mine, single = (judgments_of(tmp_path / name) for name in ("batched", "single"))
    assert {key: one.scores for key, one in mine.items()} == {key: one.scores for key, one in single.items()}
    assert set(server.lines.values()) == {1}
    assert len(server.lines) == 60
    assert server.files == {}
    assert batched.measures["prompt_tokens"] == 6000
    assert len((tmp_path / "batched" / AUDIT).read_text().splitlines()) == 60


def test_large_work_is_cut_into_several_batches(tmp_path: Path, server: BatchServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_server, "MAX_REQUESTS", 7)
    given = write_answers(tmp_path / "answers", many_answers(10))
    judge(options(), answers=given, root=write_image(tmp_path / "images"), to=tmp_path / "out")
    assert len(server.batches) == 3
    assert None not in [one.scores for one in judgments_of(tmp_path / "out").values()]


@pytest.mark.parametrize("point", ["POST files", "POST batches", "GET batches", "GET files", "DELETE files"])
def test_a_stop_at_any_point_pays_for_no_batch_twice(tmp_path: Path, server: BatchServer, point: str) -> None:
    given = write_answers(tmp_path / "answers", many_answers(10))
    root = write_image(tmp_path / "images")
    server.stop_after = point
    with pytest.raises(StoppedError):
        judge(options(), answers=given, root=root, to=tmp_path / "out")
    judge(options(), answers=given, root=root, to=tmp_path / "out")
    assert set(server.lines.values()) == {1}
    assert None not in [one.scores for one in judgments_of(tmp_path / "out").values()]


def test_a_batch_whose_creation_seemed_to_fail_is_found_again(tmp_path: Path, server: BatchServer) -> None:
    server.lost = 1
    given = write_answers(tmp_path / "answers", many_answers(10))
    judge(options(), answers=given, root=write_image(tmp_path / "images"), to=tmp_path / "out")
    assert len(server.batches) == 1
    assert None not in [one.scores for one in judgments_of(tmp_path / "out").values()]


def test_requests_that_a_batch_failed_go_into_another_one(tmp_path: Path, server: BatchServer) -> None:
    server.broken = {0, 3, 4}
    given = write_answers(tmp_path / "answers", many_answers(10))
    judge(options(), answers=given, root=write_image(tmp_path / "images"), to=tmp_path / "out")
    assert Counter(server.lines.values()) == {1: 17, 2: 3}
    assert None not in [one.scores for one in judgments_of(tmp_path / "out").values()]


def test_requests_that_no_batch_answers_fail_with_their_cause(tmp_path: Path, server: BatchServer) -> None:
    given = write_answers(tmp_path / "answers", many_answers(30))
    polled = server.polled

    def break_first(one: dict[str, JsonValue]) -> dict[str, JsonValue]:
        server.broken = {0}
        return polled(one)

    server.polled = break_first  # type: ignore[method-assign]
    manifest = judge(options(), answers=given, root=write_image(tmp_path / "images"), to=tmp_path / "out").manifest
    assert manifest.measures["no_verdict_failed"] == 1
    [failed] = [one for one in judgments_of(tmp_path / "out").values() if one.scores is None]
    assert "no" in failed.raw[0]


def test_a_server_without_batches_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = httpx2.MockTransport(lambda _: httpx2.Response(404, json={"detail": "Not Found"}))
    monkeypatch.setattr(build, "ChatServer", partial(ChatServer, transport=nothing))
    given = write_answers(tmp_path / "answers", many_answers(1))
    with pytest.raises(StllavaError, match=r"status 404.*OpenAI's /files and /batches"):
        judge(options(), answers=given, root=write_image(tmp_path / "images"), to=tmp_path / "out")


def test_a_batch_that_could_cost_too_much_is_not_sent(tmp_path: Path, server: BatchServer) -> None:
    given = write_answers(tmp_path / "answers", many_answers(10))
    with pytest.raises(StllavaError, match="max_cost"):
        judge(options(output_price=10.0, max_cost=0.01), answers=given, root=write_image(tmp_path / "i"), to=tmp_path / "out")
    assert server.batches == {}


PRICES = {"input_price": 3.0, "output_price": 7.0, "image_tokens": 200, "max_tokens": 50}


def test_replies_of_a_batch_that_cannot_be_used_are_paid_for_too(tmp_path: Path, server: BatchServer) -> None:
    given = write_answers(tmp_path / "answers", many_answers(10))
    server.useless = {0, 3, 4}
    manifest = judge(options(**PRICES), answers=given, root=write_image(tmp_path / "images"), to=tmp_path / "out").manifest
    assert Counter(server.lines.values()) == {1: 17, 2: 3}
    assert manifest.measures["verdicts"] == 10
    assert manifest.measures["requests"] == 23
    assert manifest.measures["cost"] == pytest.approx(23 * (100 * 3 + 20 * 7) / 1e6)


def test_a_batch_under_way_counts_against_the_limit_of_the_next_start(tmp_path: Path, server: BatchServer) -> None:
    root = write_image(tmp_path / "images")
    server.stop_after = "POST batches"
    with pytest.raises(StoppedError):
        judge(options(**PRICES), answers=write_answers(tmp_path / "answers", many_answers(10)), root=root, to=tmp_path / "out")
    reply_log = ReplyLog(tmp_path / "out", name="expert")
    chat = options(**PRICES, max_requests=30).chat
    transport = httpx2.MockTransport(server)
    asked = ChatServer(chat, root=root, folder=tmp_path / "out", reply_log=reply_log, transport=transport)
    backend = BatchBackend(asked, sleep=lambda _: None)
    expert = ModelExpert(
        backend, load_rubric(None, mode="pairwise", structured=False), reply_log=reply_log, options=options(**PRICES)
    )
    with pytest.raises(StllavaError, match="max_requests 30 is reached"):
        expert.prepare(many_answers(20))
    reply_log.close()
    assert len(server.batches) == 1


def test_an_image_that_no_batch_can_hold_is_told_as_such(tmp_path: Path, server: BatchServer) -> None:
    several = [*many_answers(30), answers_of("what?", ("a", "b"), image="gone.png")]
    given = write_answers(tmp_path / "answers", several)
    manifest = judge(options(), answers=given, root=write_image(tmp_path / "images"), to=tmp_path / "out").manifest
    [failed] = [one for one in judgments_of(tmp_path / "out").values() if one.scores is None]
    assert failed.raw[0].startswith("image missing")
    assert manifest.measures["requests"] == 60


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(httpx2.Response(200, text="<html>welcome</html>"), id="not JSON"),
        pytest.param(httpx2.Response(200, json={"error": {"message": "no batches here"}}), id="an error"),
        pytest.param(httpx2.Response(200, json={"id": "../../v1/models?x=\x1b[2J"}), id="an id that is none"),
        pytest.param(httpx2.Response(200, json={"id": 7, "data": 7}), id="numbers"),
    ],
)
def test_a_server_that_speaks_of_no_files_is_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reply: httpx2.Response
) -> None:
    monkeypatch.setattr(build, "ChatServer", partial(ChatServer, transport=httpx2.MockTransport(lambda _: reply)))
    given = write_answers(tmp_path / "answers", many_answers(1))
    with pytest.raises(StllavaError, match="OpenAI's /files and /batches") as caught:
        judge(options(), answers=given, root=write_image(tmp_path / "images"), to=tmp_path / "out")
    assert "\x1b" not in str(caught.value)


def test_a_batch_that_failed_as_a_whole_says_why(tmp_path: Path, server: BatchServer) -> None:
    server.status = "failed"
    given = write_answers(tmp_path / "answers", many_answers(2))
    with pytest.raises(StllavaError, match=r"ended as failed: .*token limit of your account"):
        judge(options(), answers=given, root=write_image(tmp_path / "images"), to=tmp_path / "out")


@pytest.mark.parametrize("step", ["planned", "uploaded", "created"])
def test_a_damaged_line_about_a_batch_pays_for_none_twice(tmp_path: Path, server: BatchServer, step: str) -> None:
    given = write_answers(tmp_path / "answers", many_answers(10))
    root = write_image(tmp_path / "images")
    server.stop_after = "GET batches"
    with pytest.raises(StoppedError):
        judge(options(), answers=given, root=root, to=tmp_path / "out")
    log = tmp_path / "out" / EXCHANGES / "expert-batches.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(b"\0" * 20 + b"\n" if f'"step":"{step}"'.encode() in line else line for line in lines))
    judge(options(), answers=given, root=root, to=tmp_path / "out")
    assert set(server.lines.values()) == {1}
    assert None not in [one.scores for one in judgments_of(tmp_path / "out").values()]


def test_lines_of_a_batch_are_ascii(tmp_path: Path, server: BatchServer) -> None:
    kept: list[bytes] = []
    keep = server.keep

    def keep_too(content: bytes) -> str:
        kept.append(content)
        return keep(content)

    server.keep = keep_too  # type: ignore[method-assign]
    given = write_answers(tmp_path / "answers", [answers_of("größer?\u2028", ("ja\u2029", "nein\x85"))])
    judge(options(), answers=given, root=write_image(tmp_path / "images"), to=tmp_path / "out")
    assert kept[0].isascii()
    assert len(kept[0].decode().splitlines()) == 2
