"""Several servers as one: where a failed request goes, and how long is waited where none can be reached."""

import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import httpx2
import pytest

from stllava.config import ChatOptions, ServerOptions
from stllava.errors import StllavaError
from stllava.experts.backends.chat_server import ChatBackend, ChatServer
from stllava.experts.model.reply_log import Exchange, JudgeRequest
from stllava.remote import rate_limiter, server_pool
from stllava.remote.address import reach
from stllava.remote.client import Client, NoReplyError
from stllava.remote.server_pool import PoolMember, ServerPool

HOSTS = ("127.0.0.1:1", "127.0.0.1:2")
PATIENCE = 0.4


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow one another at once, and looks soon."""
    monkeypatch.setattr(rate_limiter, "FIRST_WAIT", 0.0)
    monkeypatch.setattr(server_pool, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(server_pool, "LONGEST_LOOK_SECONDS", 0.02)


class Servers:
    """Stands in for servers: ports in `down` cannot be reached, those in `failing` say 500 when they are asked."""

    def __init__(self) -> None:
        self.down: set[int] = set()
        self.failing: set[int] = set()
        self.asked: list[int] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        port = request.url.port or 0
        if request.method == "POST":
            self.asked.append(port)
        if port in self.down:
            raise httpx2.ConnectError("connection refused")
        if port in self.failing and request.method == "POST":
            return httpx2.Response(500, text="boom")
        return httpx2.Response(200, json={"from": port})


@pytest.fixture
def servers() -> Servers:
    return Servers()


def options_of(host: str) -> ServerOptions:
    return ServerOptions(url=f"http://{host}/v1", retries=4, timeout=5)


@pytest.fixture
def pool(servers: Servers) -> Iterator[ServerPool]:
    """Both servers, waited for `PATIENCE` seconds."""
    transport = httpx2.MockTransport(servers)
    members = [
        PoolMember(Client(reach(options_of(host), purpose="a test"), options_of(host), transport=transport)) for host in HOSTS
    ]
    with ServerPool(members, options_of(HOSTS[0]), patience=PATIENCE) as both:
        yield both


def failure(pool: ServerPool) -> tuple[NoReplyError, float]:
    """Why a request gets no reply, and after how many seconds."""
    began = time.monotonic()
    with pytest.raises(NoReplyError) as caught:
        pool.post("/chat/completions", {})
    return caught.value, time.monotonic() - began


def test_a_request_that_failed_at_a_server_goes_to_another_at_once(servers: Servers, pool: ServerPool) -> None:
    servers.failing = {1}
    assert pool.post("/chat/completions", {}).attempts == 2
    assert servers.asked == [1, 2]


def test_where_no_server_can_be_reached_the_patience_is_spent_once(servers: Servers, pool: ServerPool) -> None:
    servers.down = {1, 2}
    error, seconds = failure(pool)
    assert PATIENCE <= seconds < 4 * PATIENCE
    assert "connection refused" in str(error)
    assert error.where == "http://127.0.0.1:2/v1/chat/completions"
    assert sorted(servers.asked) == [1, 2]


def test_a_request_that_comes_when_the_patience_is_over_does_not_wait_again(servers: Servers, pool: ServerPool) -> None:
    servers.down = {1, 2}
    failure(pool)
    error, seconds = failure(pool)
    assert seconds < PATIENCE
    assert "connection refused" in str(error)
    assert not error.refused


def test_a_server_that_comes_back_is_asked_and_the_patience_begins_anew(servers: Servers, pool: ServerPool) -> None:
    servers.down = {1, 2}
    failure(pool)
    servers.down = {1}
    while not pool.members[1].up:
        time.sleep(0.01)
    assert pool.post("/chat/completions", {}).attempts == 1
    servers.down = {1, 2}
    _, seconds = failure(pool)
    assert seconds >= PATIENCE


def test_a_server_that_is_being_started_again_is_waited_for_as_long_as_that_takes(servers: Servers) -> None:
    def revive() -> None:
        time.sleep(2 * PATIENCE)
        servers.down = set()

    servers.down = {1}
    given = options_of(HOSTS[0])
    client = Client(reach(given, purpose="a test"), given, transport=httpx2.MockTransport(servers))
    with ServerPool([PoolMember(client, revive=revive)], given, patience=PATIENCE) as pool:
        assert pool.post("/chat/completions", {}).attempts == 2


def test_a_server_that_cannot_be_started_again_is_told_in_its_own_words_however_late(servers: Servers) -> None:
    def revive() -> None:
        time.sleep(2 * PATIENCE)
        raise StllavaError("it ended 3 times", expected="a server that starts", remedy="Look.")

    servers.down = {1}
    given = options_of(HOSTS[0])
    client = Client(reach(given, purpose="a test"), given, transport=httpx2.MockTransport(servers))
    pool = ServerPool([PoolMember(client, revive=revive)], given, patience=PATIENCE)
    with pool, pytest.raises(StllavaError, match="ended 3 times"):
        pool.post("/chat/completions", {})


def test_a_request_that_is_stopped_says_nothing_of_a_server(servers: Servers, pool: ServerPool) -> None:
    stop = Event()
    stop.set()
    with pytest.raises(NoReplyError, match="stopped before it was sent"):
        pool.post("/chat/completions", {}, stop=stop)
    assert all(member.up for member in pool.members)
    assert servers.asked == []


def test_an_expert_whose_servers_are_all_down_ends_the_stage_and_skips_no_request_in_silence(
    servers: Servers, tmp_path: Path
) -> None:
    servers.down = {1, 2}
    urls = tuple(f"http://{host}/v1" for host in HOSTS)
    chat = ChatOptions(url=urls, model="expert", structured=False, timeout=PATIENCE, concurrency=2)
    server = ChatServer(chat, root=tmp_path, folder=tmp_path / "judged", transport=httpx2.MockTransport(servers))
    requests = [JudgeRequest(f"{number:016x}", "a", (0,), 0, f"judge {number}", (), {}) for number in range(30)]
    said: list[Exchange] = []
    began = time.monotonic()
    with pytest.raises(StllavaError, match="answered none of the last"):
        ChatBackend(server).ask(requests, said.append)
    assert time.monotonic() - began < 4 * PATIENCE
    assert len(said) >= 10
    assert {one.failure for one in said} == {"ConnectError: connection refused"}
