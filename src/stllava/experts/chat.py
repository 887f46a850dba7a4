"""A vision-language model behind an OpenAI-compatible endpoint: GPT-4o class services, vLLM, transformers serve, Ollama.

Sends prompts and images where `stllava.remote` lets them go, many at a time, within the limits of the options; hands
back every reply as it came. A server that fails again and again ends the stage, which goes on where it stopped.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Event, Lock

import httpx2
from pydantic import JsonValue, ValidationError

from stllava.config import ChatOptions
from stllava.errors import ItemError, StllavaError
from stllava.experts.exchange import Exchange, Journal, Request, fault
from stllava.remote.address import reach
from stllava.remote.audit import Audit
from stllava.remote.client import Client, NoReplyError, Reply
from stllava.remote.completion import ChatCompletion
from stllava.remote.pace import Pace
from stllava.remote.pictures import Picture, Pictures
from stllava.remote.purse import Purse
from stllava.remote.stream import each

CLOSED = frozenset({401, 403, 404, 405})
"""Statuses that no other request would escape: no key, no right, no such model or path."""
FAILURES = 10
"""So many failed requests in a row, and twice the concurrency at least, end the stage."""


class Chat:
    """Asks a server."""

    def __init__(
        self,
        options: ChatOptions,
        *,
        root: Path,
        folder: Path,
        journal: Journal | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        """Images are relative to `root`, sendings are noted in `folder`; `journal` says what was spent and answered before.

        `transport` replaces the network in tests.
        """
        self._options, self._folder, self._journal, self._transport = options, folder, journal, transport
        self._address = reach(options, purpose="an expert looks at them")
        self._pictures = Pictures(root, keep=options.concurrency + 1, max_side=options.max_side)
        self._purse = Purse(options, cost=journal.cost, requests=journal.attempts) if journal is not None else Purse(options)
        self._lock = Lock()
        self._failed = 0
        self._answered = journal is not None and len(journal) > 0

    @property
    def name(self) -> str:
        """Model and host."""
        return f"{self._options.model} at {self._address.base.host}"

    @property
    def identity(self) -> dict[str, JsonValue]:
        """Everything that shapes a reply."""
        return self._options.binding()

    def ask(self, requests: Iterable[Request], heard: Callable[[Exchange], None]) -> None:
        """Ask every request, `concurrency` at a time."""
        options = self._options
        pace = Pace(requests=options.requests_per_minute, tokens=options.tokens_per_minute)
        audit = Audit(self._folder)
        with Client(self._address, options, audit=audit, pace=pace, transport=self._transport) as client:

            def work(request: Request, stop: Event) -> None:
                exchange = self._exchange(client, request, stop)
                if exchange is not None:
                    heard(exchange)
                    self._judge_server(exchange)

            each(requests, work, workers=options.concurrency, name="chat")

    def most(self, request: Request) -> float:
        """US dollars that a request costs at most, by the prices in the options."""
        return self._purse.most(request.text, len(request.images))

    def body(self, request: Request, pictures: list[Picture]) -> dict[str, JsonValue]:
        """What is sent."""
        options = self._options
        parts: list[JsonValue] = [{"type": "image_url", "image_url": {"url": picture.url}} for picture in pictures]
        body: dict[str, JsonValue] = {
            "model": options.model,
            "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": request.text}]}],
            "temperature": options.temperature,
            "max_tokens": options.max_tokens,
        }
        if options.temperature:
            body["seed"] = int(request.id, 16) % 2**31
        if options.structured:
            schema: dict[str, JsonValue] = {"name": "verdict", "strict": True, "schema": request.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return {name: value for name, value in (body | options.extra).items() if value is not None}

    def exchange(self, request: Request, reply: Reply) -> Exchange:
        """The record of a reply."""
        body = self._address.hide(reply.body.decode(errors="replace"))
        return Exchange.of(
            request,
            model=self.name,
            body=body,
            seconds=reply.seconds,
            attempts=reply.attempts,
            cost=self._cost(request, body),
        )

    def fault(self, request: Request, body: bytes) -> str | None:
        """What makes a reply unusable; such a one is kept too, since it may have been paid for."""
        problem = fault(body)
        if problem is not None and self._journal is not None:
            text = self._address.hide(body.decode(errors="replace"))
            self._journal.add(Exchange.of(request, model=self.name, body=text, failure=problem, attempts=0))
        return problem

    def _exchange(self, client: Client, request: Request, stop: Event) -> Exchange | None:
        """What comes of a request; None where it was stopped before it was sent."""
        try:
            pictures = [self._pictures.get(path) for path in request.images]
        except ItemError as error:
            return self._failure(request, f"image {error.cause}: {error}", attempts=0)
        most = self.most(request)
        reserved = 0.0

        def sending() -> None:
            nonlocal reserved
            self._purse.reserve(most)
            reserved += most

        cost = 0.0
        try:
            reply = client.post(
                "/chat/completions",
                self.body(request, pictures),
                images=pictures,
                tokens=self._purse.tokens(request.text, len(request.images)),
                stop=stop,
                fault=lambda body: self.fault(request, body),
                sending=sending,
            )
            exchange = self.exchange(request, reply)
            cost = exchange.cost
        except NoReplyError as error:
            if error.status in CLOSED or (error.refused and not self._answered):
                raise StllavaError(
                    f"{self._address.base} refuses with {error}",
                    expected="an OpenAI-compatible server that knows the model and takes the key",
                    remedy="Mend url, model, key_variable or the fields of the request (docs/expert.md); all replies are kept.",
                ) from None
            return self._failure(request, str(error), attempts=error.attempts) if error.attempts else None
        finally:
            self._purse.settle(reserved, cost)
        return exchange

    def _failure(self, request: Request, failure: str, *, attempts: int) -> Exchange:
        return Exchange.of(request, model=self.name, body=None, failure=failure, attempts=attempts)

    def _cost(self, request: Request, body: str) -> float:
        """US dollars of a reply: by its own count of tokens or, where it has none, the most it can be."""
        try:
            usage = ChatCompletion.model_validate_json(body).usage
        except ValidationError:
            usage = None
        if usage is None:
            return self.most(request)
        self._purse.learn(usage, request.text, len(request.images))
        return self._purse.price(usage)

    def _judge_server(self, exchange: Exchange) -> None:
        """End the stage when nothing but failures comes back."""
        with self._lock:
            if exchange.body is not None:
                self._answered, self._failed = True, 0
            elif exchange.attempts:
                self._failed += 1
            failed = self._failed
        if failed >= max(FAILURES, 2 * self._options.concurrency):
            raise StllavaError(
                f"{self._address.base} answered none of the last {failed} requests, the last ended with {exchange.failure}",
                expected="a server that answers",
                remedy="Mend or restart it and give the same command again: every reply is kept.",
            )
