"""One request with bounded retries, to one server; each attempt has an end in time and a size.

Tried again are time-outs, broken connections, the statuses 408, 409, 425, 429 and 5xx, and replies that cannot be used,
unless the server's words say that it cannot help (`refusals.py`); other statuses of 4xx and redirects end at once. A
server's Retry-After holds back every request to it.

By hand, because a library of retries sees the exception and no more: here every attempt is noted in the audit before it
leaves, counts against the budget and the rate limit, and ends for good where the server's words say that another is in vain.
"""

import io
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Event

import httpx2
from pydantic import JsonValue

from stllava.config import ServerOptions
from stllava.remote.address import Address
from stllava.remote.audit import Audit
from stllava.remote.png import PngImage
from stllava.remote.rate_limiter import RateLimiter, asked_pause, pause
from stllava.remote.refusals import Refusal, refusal_of
from stllava.remote.transport import HttpTransport, Transport, ending_at
from stllava.text import printable

CUT_SERVERS_WORDS = 500
MAX_REPLY_BYTES = 16 << 20
"""Of a reply, unpacked: a stream of 50,000 tokens, an event each, is smaller."""
MAX_ERROR_BYTES = 1 << 16
"""Of an error, whose first words are shown."""


@dataclass(frozen=True)
class ServerReply:
    """What came back of a request that succeeded."""

    body: bytes
    """The whole body."""
    attempts: int
    """Times it was sent."""
    seconds: float
    """Wall time of the last attempt."""


@dataclass(frozen=True)
class Fault:
    """What makes a reply unusable."""

    problem: str
    """In words."""
    status: int | None = None
    """The status that it should have had, where it reports an error."""
    refusal: Refusal | None = None
    """What it means; None where the server's words say it, in which a model's own words must not stand."""


class NoReplyError(Exception):
    """No usable reply came of a request; the text says why, without the key."""

    def __init__(self, failure: str, *, attempts: int, status: int | None, refusal: Refusal, where: str) -> None:
        super().__init__(failure)
        self.attempts = attempts
        """Times it was sent; 0 where it was stopped before, or where no server could be reached any more."""
        self.where = where
        """The address that the failure is of."""
        self.status = status
        """Status of the last attempt; None where there was no reply."""
        self.refusal = refusal
        """What it means."""

    @property
    def refused(self) -> bool:
        """Whether asking again cannot help."""
        return not self.refusal.again


class Client:
    """Speaks to one server; threads share it. Close it, or use it as a context manager."""

    def __init__(
        self,
        address: Address,
        options: ServerOptions,
        *,
        audit: Audit | None = None,
        shares_audit: bool = False,
        limiter: RateLimiter | None = None,
        transport: HttpTransport | None = None,
    ) -> None:
        """Images are noted in `audit` before they are sent; one that others share is theirs to close.

        `transport` replaces the network in tests.
        """
        self.address, self._options, self._audit, self._shares_audit = address, options, audit, shares_audit
        self._limiter = limiter if limiter is not None else RateLimiter()
        limits = httpx2.Limits(max_connections=options.concurrency, max_keepalive_connections=options.concurrency)
        self._http = httpx2.Client(
            transport=transport if transport is not None else Transport(limits, here=address.here),
            timeout=options.timeout,
            follow_redirects=False,
            trust_env=False,  # No proxies, no .netrc: images go to the address in the options and nowhere else.
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End its connections, and the audit that is its own."""
        self._http.close()
        if self._audit is not None and not self._shares_audit:
            self._audit.close()

    def post(
        self,
        path: str,
        body: JsonValue,
        *,
        images: Sequence[PngImage] = (),
        tokens: int = 0,
        stop: Event | None = None,
        fault: Callable[[bytes], Fault | None] = lambda _: None,
        sending: Callable[[], None] = lambda: None,
        retries: int | None = None,
    ) -> ServerReply:
        """Send a JSON body that holds `images`, worth about so many tokens; raises NoReplyError.

        `stop` ends the waiting before and between attempts. `fault` names what makes a reply unusable, so that it is
        tried again. `sending` is called before every attempt and may refuse it by raising. `retries` replaces what the
        options say.
        """
        content = json.dumps(body, ensure_ascii=False).encode()
        headers = self.address.headers | {"Content-Type": "application/json"}
        request = httpx2.Request("POST", self.address.at(path), content=content, headers=headers)
        return self._send(request, images=images, tokens=tokens, stop=stop, fault=fault, sending=sending, retries=retries)

    def get(
        self,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        seconds: float | None = None,
        max_bytes: int = MAX_REPLY_BYTES,
        retries: int | None = None,
    ) -> ServerReply:
        """Ask for what is at `path`; raises NoReplyError, also for a reply of more than `max_bytes`, unpacked.

        `seconds` and `retries` replace what the options say.
        """
        address = self.address.at(path).copy_merge_params(query or {})
        request = httpx2.Request("GET", address, headers=self.address.headers)
        return self._send(request, seconds=seconds, max_bytes=max_bytes, retries=retries)

    def delete(self, path: str) -> ServerReply:
        """Delete what is at `path`; raises NoReplyError."""
        return self._send(httpx2.Request("DELETE", self.address.at(path), headers=self.address.headers))

    def upload(
        self, path: str, name: str, content: bytes, *, fields: Mapping[str, str], images: Sequence[PngImage], seconds: float
    ) -> ServerReply:
        """Send `content`, JSON lines that hold `images`, as a file called `name` beside `fields`; raises NoReplyError."""
        request = httpx2.Request(
            "POST",
            self.address.at(path),
            headers=self.address.headers,
            data=dict(fields),
            files={"file": (name, io.BytesIO(content), "application/jsonl")},
        )
        request.read()  # Attempts send the same bytes.
        return self._send(request, images=images, seconds=seconds)

    def _send(
        self,
        request: httpx2.Request,
        *,
        images: Sequence[PngImage] = (),
        tokens: int = 0,
        stop: Event | None = None,
        fault: Callable[[bytes], Fault | None] = lambda _: None,
        sending: Callable[[], None] = lambda: None,
        retries: int | None = None,
        seconds: float | None = None,
        max_bytes: int = MAX_REPLY_BYTES,
    ) -> ServerReply:
        limit = self._options.retries if retries is None else retries
        allowed = self._options.timeout if seconds is None else seconds
        stop = stop if stop is not None else Event()
        failure, status, attempts = "it was stopped before it was sent", None, 0
        refusal, where = refusal_of(None, ""), str(request.url)
        while self._limiter.wait(tokens, stop=stop):
            sending()
            self._note(images)
            attempts += 1
            began = time.monotonic()
            asked = None
            try:
                status, headers, body = self._exchange(request, allowed, max_bytes)
            except httpx2.RequestError as error:
                failure, status = self._broken(error, allowed), None
                refusal = refusal_of(None, failure)
                if not refusal.again:
                    raise NoReplyError(failure, attempts=attempts, status=None, refusal=refusal, where=where) from None
            else:
                found = None
                if status == 200 and body is not None:
                    found = fault(body)
                    if found is None:
                        return ServerReply(body, attempts, time.monotonic() - began)
                    failure, meant = f"{self._shown(found.problem)}: {self._words(body)}".rstrip(": "), found.status
                elif body is None:
                    large = f"the reply is larger than {max_bytes >> 20} MiB"
                    raise NoReplyError(large, attempts=attempts, status=status, refusal=TOO_LARGE, where=where)
                else:
                    target = (
                        f"it redirects to {self._shown(headers.get('Location', 'nowhere'))}: " if 300 <= status < 400 else ""
                    )
                    failure, meant = f"status {status}: {target}{self._words(body)}".rstrip(": "), status
                refusal = found.refusal if found is not None and found.refusal is not None else refusal_of(meant, failure)
                if not refusal.again:
                    raise NoReplyError(failure, attempts=attempts, status=status, refusal=refusal, where=where)
                asked = asked_pause(headers.get("Retry-After"))
                if asked is not None:
                    self._limiter.hold(pause(0, asked, share=0.0))
            if attempts > limit or stop.wait(pause(attempts - 1, asked, share=random.random())):
                break
        raise NoReplyError(failure, attempts=attempts, status=status, refusal=refusal, where=where)

    def _exchange(self, request: httpx2.Request, seconds: float, max_bytes: int) -> tuple[int, httpx2.Headers, bytes | None]:
        """Status, headers and body of a response; None for a body of more than `max_bytes` bytes. Errors are cut instead."""
        end = time.monotonic() + seconds
        with ending_at(end):
            response = self._http.send(request, stream=True)
            try:
                whole = response.status_code == 200
                room = max_bytes if whole else MAX_ERROR_BYTES
                content = bytearray()
                for piece in response.iter_bytes():
                    content += piece
                    if time.monotonic() > end:
                        raise httpx2.ReadTimeout("", request=request)
                    if len(content) > room:
                        return response.status_code, response.headers, None if whole else bytes(content[:room])
                return response.status_code, response.headers, bytes(content)
            finally:
                response.close()

    def _broken(self, error: httpx2.RequestError, seconds: float) -> str:
        """What went wrong with a connection, in words."""
        told = self._shown(str(error))
        if isinstance(error, httpx2.TimeoutException):
            told = f"no whole reply within {seconds:g} s (timeout)"
        return f"{type(error).__name__}: {told}"

    def _note(self, images: Sequence[PngImage]) -> None:
        """Record what is about to be sent."""
        if self._audit is not None:
            for image in images:
                self._audit.note(image.path, host=self.address.host, size=image.size)

    def _words(self, body: bytes) -> str:
        """What a server said, short enough to show; always read as UTF-8, whatever charset it names."""
        return self._shown(body.decode("utf-8", errors="replace"))

    def _shown(self, text: str) -> str:
        """A text of the server's without the key and without anything that a terminal obeys, then cut."""
        return printable(" ".join(self.address.redact(text).split()))[:CUT_SERVERS_WORDS]


TOO_LARGE = Refusal("reply size", "unknown", again=False, remedy="Lower max_tokens, or repair the server.")
