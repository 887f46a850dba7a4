"""One request to a server of any kind: it has an end in time and a size, goes nowhere else, and shows no key."""

import gc
import gzip
import json
import logging
import socket
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from urllib.parse import quote

import httpx2
import pytest

from helpers.faulty import Speak, dripping, response, speaking, whole
from stllava.config import ServerOptions
from stllava.errors import StllavaError
from stllava.remote import rate_limiter
from stllava.remote.address import reach, secrets_pattern
from stllava.remote.client import CUT_SERVERS_WORDS, MAX_REPLY_BYTES, Client, Fault, NoReplyError

GOOD = response(b'{"choices": []}')


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow one another at once."""
    monkeypatch.setattr(rate_limiter, "FIRST_WAIT", 0.0)


def ask(url: str, *, body: object = "hello", **options: object) -> bytes:
    """What a server replies to one request."""
    given = ServerOptions.model_validate({"url": url, "retries": 0, "timeout": 0.5} | options)
    with Client(reach(given, purpose="a test"), given) as client:
        return client.post("/chat/completions", body).body  # type: ignore[arg-type]


def failure(speak: Speak, *, reads: bool = True, **options: object) -> tuple[NoReplyError, int]:
    """Why a server's reply cannot be used, and how often it was asked."""
    with speaking(speak, reads=reads) as (url, requests), pytest.raises(NoReplyError) as caught:
        ask(url, **options)
    return caught.value, len(requests)


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b" " * 1000, id="all of it"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 300, id="chunks"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * 100, id="never beginning"),
    ],
)
def test_a_server_that_sends_a_byte_now_and_then_does_not_hold_a_request(said: bytes) -> None:  # encode/httpx#1450
    began = time.monotonic()
    error, _ = failure(dripping(said, seconds=0.05))
    assert time.monotonic() - began < 2
    assert str(error).endswith("no whole reply within 0.5 s (timeout)")
    assert error.refusal.again


@pytest.mark.parametrize(
    "head", [b"", b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 10], ids=["nothing is said", "a body that has no end in sight"]
)
def test_a_body_that_drips_behind_a_head_sent_at_once_has_an_end_too(head: bytes) -> None:
    def speak(connection: socket.socket) -> None:
        connection.sendall(head)
        dripping(b" " * 1000, seconds=0.05)(connection)

    began = time.monotonic()
    error, _ = failure(speak if head else lambda _: time.sleep(2))
    assert time.monotonic() - began < 2
    assert "no whole reply within 0.5 s (timeout)" in str(error)


def test_a_server_that_takes_no_byte_of_a_large_request_does_not_hold_it() -> None:
    began = time.monotonic()
    error, _ = failure(whole(GOOD), reads=False, body="x" * (64 << 20), timeout=1.0)
    assert time.monotonic() - began < 5
    assert "no whole reply within 1 s (timeout)" in str(error)


def test_a_stream_that_a_test_gives_in_place_of_the_network_has_an_end_too() -> None:
    def slowly() -> Iterator[bytes]:
        for _ in range(100):
            time.sleep(0.05)
            yield b" "

    options = ServerOptions(url="http://127.0.0.1:9/v1", retries=0, timeout=0.3)
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, content=slowly()))
    began = time.monotonic()
    with Client(reach(options, purpose="a test"), options, transport=transport) as client, pytest.raises(NoReplyError):
        client.post("/chat/completions", {})
    assert time.monotonic() - began < 2


def test_a_slow_request_leaves_room_for_the_next_one_on_the_same_connections() -> None:
    replies = iter([dripping(b"HTTP/1.1 200 OK\r\n" + b" " * 1000, seconds=0.05), whole(GOOD), whole(GOOD)])
    with speaking(lambda connection: next(replies)(connection)) as (url, requests):
        options = ServerOptions(url=url, retries=1, timeout=0.4, concurrency=1)
        with Client(reach(options, purpose="a test"), options) as client:
            assert client.post("/chat/completions", {}).attempts == 2
            assert client.post("/chat/completions", {}).attempts == 1
    assert len(requests) == 3


BOMB = gzip.compress(bytes(400 << 20), compresslevel=9)


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        pytest.param(BOMB, "gzip", id="gzip"),
        pytest.param(gzip.compress(BOMB), "gzip, gzip", id="gzip twice"),
        pytest.param(zlib.compress(bytes(400 << 20), 9), "deflate", id="deflate"),
    ],
)
@pytest.mark.parametrize("status", ["200 OK", "500 No"])
def test_a_small_reply_that_unpacks_to_a_large_one_takes_little_memory(body: bytes, encoding: str, status: str) -> None:
    assert len(body) < 1 << 20
    tracemalloc.start()
    error, _ = failure(whole(response(body, status=status, headers=f"Content-Encoding: {encoding}")), timeout=20.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * MAX_REPLY_BYTES
    assert str(error).startswith("the reply is larger than 16 MiB" if status[0] == "2" else "status 500")


def test_a_reply_that_is_too_large_is_not_asked_for_again() -> None:
    error, asked = failure(whole(response(b" " * (MAX_REPLY_BYTES + 1))), timeout=20.0, retries=3)
    assert asked == 1
    assert error.refused


@pytest.mark.parametrize("charset", ["zlib", "bz2", "rot13", "utf-16", "no-such", "idna", "unicode_escape", "\x7f"])
@pytest.mark.parametrize("status", ["200 OK", "400 Bad", "500 No"])
def test_a_charset_of_any_name_is_read_as_utf_8(charset: str, status: str) -> None:
    said = response("größer ✓".encode(), status=status, headers=f"Content-Type: application/json; charset={charset}")
    with speaking(whole(said)) as (url, _):
        if status[0] == "2":
            assert ask(url).decode() == "größer ✓"
        else:
            with pytest.raises(NoReplyError, match="größer ✓"):
                ask(url)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "zlib", "gzip, " * 9 + "gzip", "no-such"])
def test_a_body_that_is_not_packed_as_its_head_says_is_a_failure_in_words(encoding: str) -> None:
    said = response(b"\x1f\x8b not packed", headers=f"Content-Encoding: {encoding}")
    given = ServerOptions(retries=0, timeout=1.0)
    with speaking(whole(said)) as (url, _):
        options = given.model_copy(update={"url": url})
        with Client(reach(options, purpose="a test"), options) as client, pytest.raises(NoReplyError):
            client.post("/chat/completions", {}, fault=lambda _: Fault("it is no JSON"))


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"", id="hangs up"),
        pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n", id="another protocol"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", id="half a body"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", id="a negative length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nshort", id="two lengths"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", id="a chunk of no length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000, id="a head without an end"),
        pytest.param(b"HTTP/1.1 \xff\xff\xff\r\n\r\n", id="a status that is none"),
        pytest.param(b"\x15\x03\x01\x00\x02\x02\x28", id="speaks TLS"),
    ],
)
def test_what_is_no_response_is_a_failure_in_words_and_tried_again(said: bytes) -> None:
    def speak(connection: socket.socket) -> None:
        connection.sendall(said)
        connection.shutdown(socket.SHUT_RDWR)

    error, asked = failure(speak, retries=1)
    assert asked == 2
    assert error.status is None
    assert "Error: " in str(error)


REDIRECTS = ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"]


@pytest.mark.parametrize("status", REDIRECTS)
def test_a_redirect_is_never_followed_and_its_target_is_named(status: str) -> None:
    with speaking(whole(GOOD)) as (elsewhere, got):
        error, asked = failure(whole(response(b"", status=status, headers=f"Location: {elsewhere}/chat")), retries=3)
    assert got == []
    assert asked == 1
    assert f"it redirects to {elsewhere}/chat" in str(error)
    assert "Set url to that address" in error.refusal.remedy


SECRET = "sk-Pl4nted/with+odd=chars.and_more~5f2c"


def written(secret: str) -> dict[str, str]:
    """A secret in the ways in which a server may repeat it."""
    return {
        "as it is": secret,
        "in JSON with escaped slashes": json.dumps(secret).replace("/", "\\/"),
        "in JSON in JSON": json.dumps(json.dumps(secret).replace("/", "\\/")),
        "in code points": "".join(f"\\u{ord(one):04X}" for one in secret),
        "in an address": quote(secret, safe=""),
        "in HTML": secret.replace("/", "&#47;").replace("+", "&#x2B;").replace("=", "&#061;"),
        "in HTML in JSON": json.dumps(secret.replace("/", "&#x2f;")),
    }


@pytest.mark.parametrize("way", written(SECRET))
@pytest.mark.parametrize("before", [0, CUT_SERVERS_WORDS - 20, CUT_SERVERS_WORDS - 5])
def test_a_key_is_hidden_in_every_way_of_writing_it_before_the_text_is_cut(
    way: str, before: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("POLICY_KEY", SECRET)
    said = ("x" * before + " " + written(SECRET)[way]).encode()
    error, _ = failure(whole(response(said, status="500 No")), key_variable="POLICY_KEY")
    shown = str(error) + caplog.text
    assert all(SECRET[at : at + 8] not in shown for at in range(len(SECRET) - 7))
    assert all(written(SECRET)["in code points"][at : at + 18] not in shown for at in range(0, 100, 6))


def test_a_key_in_a_redirects_target_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLICY_KEY", SECRET)
    said = response(b"", status="302 Found", headers=f"Location: http://127.0.0.1/?key={quote(SECRET, safe='')}")
    error, _ = failure(whole(said), key_variable="POLICY_KEY")
    assert str(error) == "status 302: it redirects to http://127.0.0.1/?key=[key]"


def test_a_short_value_that_stands_in_many_words_is_not_hidden() -> None:
    assert secrets_pattern(["", "EMPTY", "1"]) is None
    pattern = secrets_pattern(["secret-1", "secret-1-longer"])
    assert pattern is not None
    assert pattern.sub("[key]", "a secret-1-longer and a secret-1") == "a [key] and a [key]"


def test_keys_go_in_the_headers_that_the_options_name(monkeypatch: pytest.MonkeyPatch) -> None:
    # Azure wants api-key, its API management a header of its own (Azure-Samples/openai-apim-lb#31).
    monkeypatch.setenv("AZURE_KEY", SECRET)
    monkeypatch.setenv("APIM_KEY", "another-secret")
    with speaking(whole(GOOD)) as (url, requests):
        ask(f"{url}?api-version=1", header_variables={"api-key": "AZURE_KEY", "Ocp-Apim-Subscription-Key": "APIM_KEY"})
    head = requests[0].split(b"\r\n\r\n")[0].decode()
    assert head.startswith("POST /v1/chat/completions?api-version=1 ")
    assert f"api-key: {SECRET}" in head
    assert "Ocp-Apim-Subscription-Key: another-secret" in head
    assert "Authorization" not in head


def test_keys_of_other_headers_are_hidden_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_KEY", SECRET)
    said = whole(response(f"wrong api-key {SECRET}".encode(), status="401 No"))
    error, _ = failure(said, header_variables={"api-key": "AZURE_KEY"})
    assert str(error) == "status 401: wrong api-key [key]"
    assert "header_variables" in error.refusal.remedy


@pytest.mark.parametrize("name", ["Content-Length", "host", "api key", "api-key:", "x\r\ny", "", "ключ"])
def test_a_header_that_is_none_or_not_for_the_user_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_KEY", SECRET)
    with pytest.raises(StllavaError, match="header_variables names"):
        ask("http://127.0.0.1:9/v1", header_variables={name: "AZURE_KEY"})


@pytest.mark.parametrize("key", ["sk-ключ-ключ", "sk-one\nsk-two", "sk-\x1b[2J-escape", "“sk-quoted”"])
def test_a_key_that_no_header_can_hold_is_refused_without_being_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLICY_KEY", key)
    with pytest.raises(StllavaError, match="POLICY_KEY holds characters that no key has") as caught:
        ask("http://127.0.0.1:9/v1", key_variable="POLICY_KEY")
    assert key not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://127.0.0.1:9/v1?key=sk-abcdefgh", "it holds a key"),
        ("http://127.0.0.1:9/v1?api-version=1&API_KEY=sk-abcdefgh", "it holds a key"),
        ("http://127.0.0.1:9/v1/chat/completions", "one path below the base address"),
        ("http://127.0.0.1:9/v1/chat/completions/", "one path below the base address"),
    ],
)
def test_an_address_that_holds_a_key_or_the_whole_path_is_refused(url: str, problem: str) -> None:
    with pytest.raises(StllavaError, match=problem) as caught:
        ask(url)
    assert "sk-abcdefgh" not in str(caught.value)


Resolve = Callable[..., list[tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int]]]]


def resolving(*addresses: str) -> Resolve:
    """A resolver that knows these addresses for every name."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in addresses]
    return lambda *_, **__: found


@pytest.mark.parametrize("addresses", [("10.0.0.7",), ("127.0.0.1", "10.0.0.7"), ("::ffff:10.0.0.7",), ("0.0.0.0",)])
def test_localhost_is_trusted_only_while_it_is_this_machine(
    addresses: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolving(*addresses))
    with pytest.raises(StllavaError, match=rf"localhost is {addresses[-1]} here, which is not this machine"):
        reach(ServerOptions(url="http://localhost:8000/v1"), purpose="a test")
    reach(ServerOptions(url="http://localhost:8000/v1", send_images=True), purpose="a test")


def test_localhost_that_becomes_another_machine_later_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ServerOptions(url="http://localhost:9/v1", retries=3)
    address = reach(options, purpose="a test")
    monkeypatch.setattr(socket, "getaddrinfo", resolving("10.0.0.7"))
    with Client(address, options) as client, pytest.raises(StllavaError, match=r"localhost is 10\.0\.0\.7 here"):
        client.post("/chat/completions", {})


def test_a_connection_that_ends_on_another_machine_is_closed_before_a_byte_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    with speaking(whole(GOOD)) as (url, requests):
        options = ServerOptions(url=url.replace("127.0.0.1", "localhost"), retries=3)
        with Client(reach(options, purpose="a test"), options) as client:
            monkeypatch.setattr(socket.socket, "getpeername", lambda _: ("10.0.0.7", 80))
            with pytest.raises(StllavaError, match=r"localhost is 10\.0\.0\.7 here"):
                client.post("/chat/completions", {"image": "pixels"})
        monkeypatch.undo()
        time.sleep(0.05)
        assert requests == []


def test_a_server_that_is_gone_before_it_is_known_who_it_was_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: socket.socket) -> object:
        raise OSError(107, "Transport endpoint is not connected")

    monkeypatch.setattr(socket.socket, "getpeername", gone)
    error, asked = failure(whole(GOOD))
    monkeypatch.undo()
    assert str(error).startswith("ConnectError")
    assert error.refusal.again
    assert asked == 0
    gc.collect()  # a connection left open would be told here


def test_localhost_is_spoken_to_while_it_is_this_machine() -> None:
    with speaking(whole(GOOD)) as (url, _):
        assert ask(url.replace("127.0.0.1", "localhost")) == b'{"choices": []}'
