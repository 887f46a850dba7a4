"""One request with bounded retries, to one server.

Tried again are time-outs, broken connections, the statuses 408, 409, 429 and 5xx, and replies that cannot be used;
other statuses of 4xx are the asker's fault and end at once. A server's Retry-After holds back every request to it.
"""

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event

import httpx2
from pydantic import JsonValue

from stllava.config import ServerOptions
from stllava.remote.address import Address
from stllava.remote.audit import Audit
from stllava.remote.pace import Pace, asked_pause, pause
from stllava.remote.pictures import Picture
from stllava.text import printable

AGAIN = frozenset({408, 409, 429})
CUT_SERVERS_WORDS = 300


@dataclass(frozen=True)
class Reply:
    """What came back of a request that succeeded."""

    body: bytes
    """The whole body."""
    attempts: int
    """Times it was sent."""
    seconds: float
    """Wall time of the last attempt."""


class NoReplyError(Exception):
    """No usable reply came of a request; the text says why, without the key."""

    def __init__(self, failure: str, *, attempts: int, status: int | None, refused: bool = False) -> None:
        super().__init__(failure)
        self.attempts = attempts
        """Times it was sent."""
        self.status = status
        """Status of the last attempt; None where there was no reply."""
        self.refused = refused
        """Whether the server refused it for good, so that it was not tried again."""


class Client:
    """Speaks to one server; threads share it. Close it, or use it as a context manager."""

    def __init__(
        self,
        address: Address,
        options: ServerOptions,
        *,
        audit: Audit | None = None,
        pace: Pace | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        """Images are noted in `audit` before they are sent. `transport` replaces the network in tests."""
        self.address, self._options, self._audit = address, options, audit
        self._pace = pace if pace is not None else Pace()
        self._http = httpx2.Client(
            transport=transport,
            timeout=options.timeout,
            limits=httpx2.Limits(max_connections=options.concurrency, max_keepalive_connections=options.concurrency),
            follow_redirects=False,
            trust_env=False,  # No proxies, no .netrc: images go to the address in the options and nowhere else.
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End its connections, and the audit."""
        self._http.close()
        if self._audit is not None:
            self._audit.close()

    def post(
        self,
        path: str,
        body: JsonValue,
        *,
        images: Sequence[Picture] = (),
        tokens: int = 0,
        stop: Event | None = None,
        fault: Callable[[bytes], str | None] = lambda _: None,
        sending: Callable[[], None] = lambda: None,
    ) -> Reply:
        """Send a JSON body that holds `images`, worth about so many tokens; raises NoReplyError.

        `stop` ends the waiting before and between attempts. `fault` names what makes a reply unusable, so that it is
        tried again. `sending` is called before every attempt and may refuse it by raising.
        """
        content = json.dumps(body, ensure_ascii=False).encode()
        headers = self.address.headers | {"Content-Type": "application/json"}
        return self.send(
            httpx2.Request("POST", self.address.at(path), content=content, headers=headers),
            images=images,
            tokens=tokens,
            stop=stop,
            fault=fault,
            sending=sending,
        )

    def send(
        self,
        request: httpx2.Request,
        *,
        images: Sequence[Picture] = (),
        tokens: int = 0,
        stop: Event | None = None,
        fault: Callable[[bytes], str | None] = lambda _: None,
        sending: Callable[[], None] = lambda: None,
        retries: int | None = None,
    ) -> Reply:
        """The same for any request; `retries` replaces those of the options."""
        most = self._options.retries if retries is None else retries
        stop = stop if stop is not None else Event()
        failure, status = "it was stopped before it was sent", None
        attempts = 0
        while self._pace.wait(tokens, stop=stop):
            sending()
            self._note(images)
            attempts += 1
            began = time.monotonic()
            asked = None
            try:
                response = self._http.send(request)
            except httpx2.RequestError as error:
                failure, status = f"{type(error).__name__}: {error}", None
            else:
                status = response.status_code
                if status == 200:
                    problem = fault(response.content)
                    if problem is None:
                        return Reply(response.content, attempts, time.monotonic() - began)
                    failure = f"{problem}: {self._words(response)}"
                else:
                    failure = f"status {status}: {self._words(response)}"
                    if status not in AGAIN and status < 500:
                        raise NoReplyError(self.address.hide(failure), attempts=attempts, status=status, refused=True)
                    asked = asked_pause(response.headers.get("Retry-After"))
                    if asked is not None:
                        self._pace.hold(pause(0, asked, share=0.0))
            if attempts > most or stop.wait(pause(attempts - 1, asked, share=random.random())):
                break
        raise NoReplyError(self.address.hide(failure), attempts=attempts, status=status)

    def _note(self, images: Sequence[Picture]) -> None:
        """Record what is about to be sent."""
        if self._audit is not None:
            for image in images:
                self._audit.note(image.path, host=self.address.host, size=image.size)

    @staticmethod
    def _words(response: httpx2.Response) -> str:
        """What a server said, short enough to show and without anything that a terminal obeys."""
        return printable(" ".join(response.text.split()))[:CUT_SERVERS_WORDS]
