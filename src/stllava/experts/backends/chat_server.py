"""A vision-language model behind an OpenAI-compatible endpoint: GPT-4o class services, vLLM, transformers serve, Ollama.

Sends prompts and images where `stllava.remote` lets them go, many at a time, within the limits of the options; hands
back every reply as it came. A server that fails again and again ends the stage, which goes on where it stopped.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Event, Lock

from pydantic import JsonValue, ValidationError

from stllava.config import ChatOptions
from stllava.errors import ItemError, StllavaError
from stllava.experts.expert import UNREADABLE
from stllava.experts.model.reply_log import Exchange, JudgeRequest, ReplyLog, as_refusal, cut_off, fault
from stllava.remote.address import Address, base_of, reach
from stllava.remote.audit import Audit
from stllava.remote.budget import Budget, CostLimit, LimitError
from stllava.remote.client import CUT_SERVERS_WORDS, Client, Fault, NoReplyError, ServerReply
from stllava.remote.completion import ChatCompletion, error_in
from stllava.remote.concurrency import for_each
from stllava.remote.png import PngEncoder, PngImage
from stllava.remote.rate_limiter import RateLimiter
from stllava.remote.refusals import Refusal, advice
from stllava.remote.server_pool import PoolMember, ServerPool
from stllava.remote.transport import HttpTransport
from stllava.text import printable

FAILURES = 10
"""So many failed requests in a row, and twice the concurrency at least, end the stage."""
REFUSALS = 50
"""So many requests refused by their own fault, and none ever answered, end the stage."""
KEPT_OF_FAULTS = 1 << 16
"""Characters of an unusable reply that are kept."""


class ChatServer:
    """A server and what may be asked of it: the address, the budget, the images and the log of replies of one expert."""

    def __init__(
        self,
        options: ChatOptions,
        *,
        root: Path,
        folder: Path,
        reply_log: ReplyLog | None = None,
        asks: bool = True,
        limit: CostLimit | None = None,
        transport: HttpTransport | None = None,
    ) -> None:
        """Images are relative to `root`, sendings are noted in `folder`; `reply_log` says what was spent and answered before.

        It shares the `limit` with other experts. One that does not ask needs no permission and no key, and can send nothing:
        a plan is made of it. `transport` replaces the network in tests.
        """
        options = self.prepared(options)
        self.options, self.folder, self.reply_log, self._transport = options, folder, reply_log, transport
        each = [options.model_copy(update={"url": url}) for url in options.urls]
        self.bases = [base_of(one) for one in each]
        self._permitted = [reach(one, purpose="an expert looks at them") for one in each] if asks else []
        self.pictures = PngEncoder(root, keep=options.concurrency + 1, max_side=options.max_side)
        cost, requests = (reply_log.cost, reply_log.attempts) if reply_log is not None else (0.0, 0)
        self.budget = Budget(options, cost=cost, requests=requests, shared=limit)

    @staticmethod
    def prepared(options: ChatOptions) -> ChatOptions:
        """The options by which it is asked."""
        return options

    @property
    def name(self) -> str:
        """Model and host."""
        return f"{self.options.model} at {', '.join(base.host for base in self.bases)}"

    @property
    def where(self) -> str:
        """The address of every server."""
        return " and ".join(map(str, self.bases))

    @property
    def identity(self) -> dict[str, JsonValue]:
        """Everything that shapes a reply."""
        return self.options.resume_key()

    @property
    def address(self) -> Address:
        """Where it is, or the first of several servers is, if it may be asked; they take the same keys."""
        if not self._permitted:
            raise RuntimeError("a plan must ask nothing")
        return self._permitted[0]

    def connect(self, limiter: RateLimiter | None = None) -> Client:
        """A client that notes in `folder` what it sends; close it."""
        address = self.address  # Before the audit is opened: a plan has none.
        audit = Audit(self.folder)
        return Client(address, self.options, audit=audit, limiter=limiter, transport=self._transport)

    @contextmanager
    def connect_all(self, limiter: RateLimiter) -> Iterator[Client | ServerPool]:
        """What requests go through: the one server, or all of them."""
        if len(self._permitted) <= 1:
            with self.connect(limiter) as client:
                yield client
            return
        with closing(Audit(self.folder)) as audit:
            clients = [
                Client(address, self.options, audit=audit, shares_audit=True, limiter=limiter, transport=self._transport)
                for address in self._permitted
            ]
            members = [PoolMember(client) for client in clients]
            with ServerPool(members, self.options, patience=self.options.timeout) as pool:
                yield pool

    def max_cost(self, request: JudgeRequest) -> float | None:
        """US dollars that a request costs at most by the prices in the options; None where they name no price."""
        return self.budget.max_cost(request.text, len(request.images)) if self.budget.priced else None

    def body(self, request: JudgeRequest, pictures: list[PngImage]) -> dict[str, JsonValue]:
        """What is sent."""
        options = self.options
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
        problem = printable(self.address.redact(problem))[:CUT_SERVERS_WORDS]
        self.budget.settle(reserved, cost := self.cost(request, body))
        if self.reply_log is not None:
            told = self.address.redact(body.decode(errors="replace"))[:KEPT_OF_FAULTS]
            self.reply_log.add(Exchange.of(request, model=self.name, body=told, failure=problem, cost=cost))
        return Fault(problem, status=error.status if error is not None else None)

    def cost(self, request: JudgeRequest, body: bytes | str) -> float:
        """US dollars of a reply."""
        try:
            reply = ChatCompletion.read(body)
        except ValidationError:
            reply = None
        return self.budget.price(reply, request.text, len(request.images))

    def failure(self, request: JudgeRequest, failure: str, *, attempts: int) -> Exchange:
        """The record of a request that got no reply."""
        return Exchange.of(request, model=self.name, body=None, failure=failure, attempts=attempts)


class ChatBackend:
    """Asks a server, many requests at a time."""

    def __init__(self, server: ChatServer) -> None:
        self.server, self._lock = server, Lock()
        self._failed = self._refused = self._useless = 0
        self._answered = server.reply_log is not None and len(server.reply_log) > 0

    @property
    def name(self) -> str:
        """Model and host."""
        return self.server.name

    @property
    def identity(self) -> dict[str, JsonValue]:
        """Everything that shapes a reply."""
        return self.server.identity

    def max_cost(self, request: JudgeRequest) -> float | None:
        """US dollars that a request costs at most; None where no price is known."""
        return self.server.max_cost(request)

    def ask(self, requests: Iterable[JudgeRequest], record: Callable[[Exchange], None]) -> None:
        """Ask every request, `concurrency` at a time."""
        options = self.server.options
        limiter = RateLimiter(requests=options.requests_per_minute, tokens=options.tokens_per_minute)
        with self.server.connect_all(limiter) as client:

            def work(request: JudgeRequest, stop: Event) -> None:
                exchange, refusal = self._exchange(client, request, stop)
                if exchange is not None:
                    record(exchange)
                    self._judge_server(exchange, refusal)

            for_each(requests, work, workers=options.concurrency, name="chat")

    def _exchange(
        self, client: Client | ServerPool, request: JudgeRequest, stop: Event
    ) -> tuple[Exchange | None, Refusal | None]:
        """What comes of a request, and why it was refused; nothing where it was stopped before it was sent."""
        try:
            pictures = [self.server.pictures.get(path) for path in request.images]
        except ItemError as error:
            return self.server.failure(request, f"image {error.cause}: {error}", attempts=0), None
        most = self.server.budget.reservation(request.text, len(request.images))
        sent = kept = 0

        def sending() -> None:
            nonlocal sent
            self.server.budget.reserve(most)
            sent += 1

        def check(body: bytes) -> Fault | None:
            nonlocal kept
            found = self.server.keep_fault(request, body, reserved=most)
            if found is not None:
                kept += 1
                self._count_useless(found)
            return found

        cost = 0.0
        try:
            reply = client.post(
                "/chat/completions",
                self.server.body(request, pictures),
                images=pictures,
                tokens=self.server.budget.tokens(request.text, len(request.images)),
                stop=stop,
                fault=check,
                sending=sending,
            )
            exchange = self._answered_by(request, reply, attempts=sent - kept)
            cost = exchange.cost
        except NoReplyError as error:
            if not error.attempts and stop.is_set():
                return None, None
            return self._unanswered(request, error, attempts=sent - kept), error.refusal
        except LimitError:
            if sent > kept and self.server.reply_log is not None:
                failure = "a limit was reached before it was answered"
                self.server.reply_log.add(self.server.failure(request, failure, attempts=sent - kept))
            raise
        finally:
            self.server.budget.settle((sent - kept) * most, cost)
        return exchange, None

    def _answered_by(self, request: JudgeRequest, reply: ServerReply, *, attempts: int) -> Exchange:
        """The record of a reply."""
        body = self.server.address.redact(reply.body.decode(errors="replace"))
        cost = self.server.cost(request, body)
        return Exchange.of(request, model=self.server.name, body=body, seconds=reply.seconds, attempts=attempts, cost=cost)

    def _unanswered(self, request: JudgeRequest, error: NoReplyError, *, attempts: int) -> Exchange:
        """The record of a request that got no reply, sent so many times that are not recorded; raises where none would."""
        refusal = error.refusal
        if refusal.reach == "all" or (refusal.reach == "unknown" and error.refused and not self._answered):
            raise StllavaError(
                f"{self.server.where} refuses with {error}",
                expected="an OpenAI-compatible server that knows the model and takes the key",
                remedy=(refusal.remedy or "Correct url, model, key_variable or the fields of the request (docs/expert.md).")
                + " All replies are kept.",
            ) from None
        if refusal.name == "filter":
            return Exchange.of(request, model=self.server.name, body=as_refusal(str(error)), attempts=attempts)
        return self.server.failure(request, str(error), attempts=attempts)

    def _count_useless(self, found: Fault) -> None:
        """End the stage when the first replies of all cannot be used: they may be paid for, and so would the others be."""
        if found.status is not None:
            return
        with self._lock:
            self._useless += not self._answered
            useless = self._useless
        if useless >= UNREADABLE:
            raise StllavaError(
                f"none of the first {useless} replies of {self.server.where} can be used, the last because {found.problem}",
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
        most = max(FAILURES, 2 * self.server.options.concurrency)
        if failed < most and refused < max(REFUSALS, most):
            return
        remedy = (refusal.remedy if refusal is not None else "") or advice(exchange.failure or "")
        if failed < most:
            raise StllavaError(
                f"{self.server.where} refused each of the first {refused} requests, the last with {exchange.failure}",
                expected="requests that it takes",
                remedy=f"{remedy} Then give the command again.",
            )
        raise StllavaError(
            f"{self.server.where} answered none of the last {failed} requests, the last ended with {exchange.failure}",
            expected="a server that answers",
            remedy=f"{remedy or 'Start or repair it.'} Then give the same command again: every reply is kept.",
        )
