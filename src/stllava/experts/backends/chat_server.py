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
from stllava.experts.expert import UNREADABLE
from stllava.experts.model.reply_log import Exchange, JudgeRequest, ReplyLog, as_refusal, cut_off, fault
from stllava.remote.address import Address, base_of, reach
from stllava.remote.audit import Audit
from stllava.remote.budget import Budget, LimitError
from stllava.remote.client import CUT_SERVERS_WORDS, Client, Fault, NoReplyError, ServerReply
from stllava.remote.completion import ChatCompletion, error_in
from stllava.remote.concurrency import for_each
from stllava.remote.png import PngEncoder, PngImage
from stllava.remote.rate_limiter import RateLimiter
from stllava.remote.refusals import Refusal, advice
from stllava.text import printable

FAILURES = 10
"""So many failed requests in a row, and twice the concurrency at least, end the stage."""
REFUSALS = 50
"""So many requests refused by their own fault, and none ever answered, end the stage."""
KEPT_OF_FAULTS = 1 << 16
"""Characters of an unusable reply that are kept."""


class ChatBackend:
    """Asks a server."""

    def __init__(
        self,
        options: ChatOptions,
        *,
        root: Path,
        folder: Path,
        reply_log: ReplyLog | None = None,
        asks: bool = True,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        """Images are relative to `root`, sendings are noted in `folder`; `reply_log` says what was spent and answered before.

        One that does not ask needs no permission and no key, and can send nothing: a plan is made of it. `transport`
        replaces the network in tests.
        """
        self._options, self._folder, self._reply_log, self._transport = options, folder, reply_log, transport
        self._base = base_of(options)
        self._permitted = reach(options, purpose="an expert looks at them") if asks else None
        self._pictures = PngEncoder(root, keep=options.concurrency + 1, max_side=options.max_side)
        self._budget = Budget(options, cost=reply_log.cost, requests=reply_log.attempts) if reply_log else Budget(options)
        self._lock = Lock()
        self._failed = self._refused = self._useless = 0
        self._answered = reply_log is not None and len(reply_log) > 0

    @property
    def name(self) -> str:
        """Model and host."""
        return f"{self._options.model} at {self._base.host}"

    @property
    def _address(self) -> Address:
        """The server, where it may be asked."""
        if self._permitted is None:
            raise RuntimeError("a plan must ask nothing")
        return self._permitted

    @property
    def identity(self) -> dict[str, JsonValue]:
        """Everything that shapes a reply."""
        return self._options.resume_key()

    def ask(self, requests: Iterable[JudgeRequest], record: Callable[[Exchange], None]) -> None:
        """Ask every request, `concurrency` at a time."""
        options, address = self._options, self._address
        limiter = RateLimiter(requests=options.requests_per_minute, tokens=options.tokens_per_minute)
        audit = Audit(self._folder)
        with Client(address, options, audit=audit, limiter=limiter, transport=self._transport) as client:

            def work(request: JudgeRequest, stop: Event) -> None:
                exchange, refusal = self._exchange(client, request, stop)
                if exchange is not None:
                    record(exchange)
                    self._judge_server(exchange, refusal)

            for_each(requests, work, workers=options.concurrency, name="chat")

    def max_cost(self, request: JudgeRequest) -> float | None:
        """US dollars that a request costs at most by the prices in the options; None where they name no price."""
        return self._budget.max_cost(request.text, len(request.images)) if self._budget.priced else None

    def body(self, request: JudgeRequest, pictures: list[PngImage]) -> dict[str, JsonValue]:
        """What is sent."""
        options = self._options
        parts: list[JsonValue] = [{"type": "image_url", "image_url": {"url": picture.url}} for picture in pictures]
        body: dict[str, JsonValue] = {
            "model": options.model,
            "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": request.text}]}],
            "temperature": options.temperature,
            "max_tokens": options.max_tokens,
            "stream": False,  # Some servers stream unless told not to.
        }
        if options.temperature:
            body["seed"] = int(request.id, 16) % 2**31
        if options.structured:
            schema: dict[str, JsonValue] = {"name": "verdict", "strict": True, "schema": request.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return {name: value for name, value in (body | options.extra).items() if value is not None}

    def keep_fault(self, request: JudgeRequest, body: bytes, *, reserved: float) -> Fault | None:
        """What makes a reply unusable; such a one is kept with what it cost, since it may have been paid for.

        A reply that was cut off is usable: asked again, it would be cut off again at the same price.
        """
        error = error_in(body)
        problem = "the server reports an error and sends it as a reply" if error is not None else fault(body)
        if problem is None or (error is None and cut_off(body)):
            return None
        problem = printable(self._address.redact(problem))[:CUT_SERVERS_WORDS]
        self._budget.settle(reserved, cost := self.cost(request, body))
        if self._reply_log is not None:
            told = self._address.redact(body.decode(errors="replace"))[:KEPT_OF_FAULTS]
            self._reply_log.add(Exchange.of(request, model=self.name, body=told, failure=problem, cost=cost))
        return Fault(problem, status=error.status if error is not None else None)

    def cost(self, request: JudgeRequest, body: bytes | str) -> float:
        """US dollars of a reply."""
        try:
            reply = ChatCompletion.read(body)
        except ValidationError:
            reply = None
        return self._budget.price(reply, request.text, len(request.images))

    def _exchange(self, client: Client, request: JudgeRequest, stop: Event) -> tuple[Exchange | None, Refusal | None]:
        """What comes of a request, and why it was refused; nothing where it was stopped before it was sent."""
        try:
            pictures = [self._pictures.get(path) for path in request.images]
        except ItemError as error:
            return self._failure(request, f"image {error.cause}: {error}", attempts=0), None
        most = self._budget.max_cost(request.text, len(request.images))
        sent = kept = 0

        def sending() -> None:
            nonlocal sent
            self._budget.reserve(most)
            sent += 1

        def check(body: bytes) -> Fault | None:
            nonlocal kept
            found = self.keep_fault(request, body, reserved=most)
            if found is not None:
                kept += 1
                self._count_useless(found)
            return found

        cost = 0.0
        try:
            reply = client.post(
                "/chat/completions",
                self.body(request, pictures),
                images=pictures,
                tokens=self._budget.tokens(request.text, len(request.images)),
                stop=stop,
                fault=check,
                sending=sending,
            )
            exchange = self._answered_by(request, reply, attempts=sent - kept)
            cost = exchange.cost
        except NoReplyError as error:
            return (self._unanswered(request, error, attempts=sent - kept), error.refusal) if error.attempts else (None, None)
        except LimitError:
            if sent > kept and self._reply_log is not None:
                self._reply_log.add(self._failure(request, "a limit was reached before it was answered", attempts=sent - kept))
            raise
        finally:
            self._budget.settle((sent - kept) * most, cost)
        return exchange, None

    def _answered_by(self, request: JudgeRequest, reply: ServerReply, *, attempts: int) -> Exchange:
        """The record of a reply."""
        body = self._address.redact(reply.body.decode(errors="replace"))
        cost = self.cost(request, body)
        return Exchange.of(request, model=self.name, body=body, seconds=reply.seconds, attempts=attempts, cost=cost)

    def _unanswered(self, request: JudgeRequest, error: NoReplyError, *, attempts: int) -> Exchange:
        """The record of a request that got no reply, sent so many times that are not recorded; raises where none would."""
        refusal = error.refusal
        if refusal.reach == "all" or (refusal.reach == "unknown" and error.refused and not self._answered):
            raise StllavaError(
                f"{self._base} refuses with {error}",
                expected="an OpenAI-compatible server that knows the model and takes the key",
                remedy=(refusal.remedy or "Correct url, model, key_variable or the fields of the request (docs/expert.md).")
                + " All replies are kept.",
            ) from None
        if refusal.name == "filter":
            return Exchange.of(request, model=self.name, body=as_refusal(str(error)), attempts=attempts)
        return self._failure(request, str(error), attempts=attempts)

    def _failure(self, request: JudgeRequest, failure: str, *, attempts: int) -> Exchange:
        return Exchange.of(request, model=self.name, body=None, failure=failure, attempts=attempts)

    def _count_useless(self, found: Fault) -> None:
        """End the stage when the first replies of all cannot be used: they may be paid for, and so would the others be."""
        if found.status is not None:
            return
        with self._lock:
            self._useless += not self._answered
            useless = self._useless
        if useless >= UNREADABLE:
            raise StllavaError(
                f"none of the first {useless} replies of {self._base} can be used, the last because {found.problem}",
                expected="replies with a text",
                remedy="Start the server without reasoning and tool parsers, or correct model and extra; then give the same "
                "command again.",
            )

    def _judge_server(self, exchange: Exchange, refusal: Refusal | None) -> None:
        """End the stage when nothing but failures comes back; a request's own fault says nothing of the server."""
        with self._lock:
            if exchange.body is not None:
                self._answered, self._failed = True, 0
            elif refusal is not None and refusal.reach == "request":
                self._refused += not self._answered
            elif refusal is not None:
                self._failed += 1  # An image that cannot be read was never sent: it has no refusal.
            failed, refused = self._failed, self._refused
        most = max(FAILURES, 2 * self._options.concurrency)
        if failed < most and refused < max(REFUSALS, most):
            return
        remedy = (refusal.remedy if refusal is not None else "") or advice(exchange.failure or "")
        if failed < most:
            raise StllavaError(
                f"{self._base} refused each of the first {refused} requests, the last with {exchange.failure}",
                expected="requests that it takes",
                remedy=f"{remedy} Then give the command again.",
            )
        raise StllavaError(
            f"{self._base} answered none of the last {failed} requests, the last ended with {exchange.failure}",
            expected="a server that answers",
            remedy=f"{remedy or 'Start or repair it.'} Then give the same command again: every reply is kept.",
        )
