"""What a model that judges is asked, and what it replied, word for word."""

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Literal, Protocol

from pydantic import JsonValue, ValidationError

from stllava.experts.model.verdict_parser import CUT, RAISE
from stllava.records import Keyed
from stllava.remote.completion import CUT_OFF, ENDED, FILTERED, ChatCompletion
from stllava.store import EXCHANGES, Log

LOG = logging.getLogger(__name__)
FailureCause = Literal["failed", "refused", "unparsed"]


@dataclass(frozen=True)
class JudgeRequest:
    """One question to a model: answers in one order."""

    id: str
    """Hash of everything that shapes the reply."""
    subject: str
    """Id of the answers."""
    order: tuple[int, ...]
    """Places of the shown completions among all, first shown first."""
    repeat: int
    """Which time the same is asked."""
    text: str
    """The prompt."""
    images: tuple[str, ...]
    """Paths relative to the image root, shown before the text."""
    schema: dict[str, JsonValue]
    """JSON schema of the reply, for servers that can hold a model to one."""


class Exchange(Keyed):
    """What came of a request; one line of a reply_log, written before anything of it is read."""

    id: str
    """The request's id."""
    subject: str
    """Id of the answers."""
    order: tuple[int, ...]
    """Places of the shown completions, first shown first."""
    text: str
    """The prompt as sent; pixels are in `images`."""
    images: tuple[str, ...]
    """Paths of the images sent."""
    model: str
    """Who was asked, and where."""
    time: str
    """When it ended; ISO 8601, UTC."""
    seconds: float
    """Wall time of the last attempt."""
    attempts: int
    """Times it was sent."""
    body: str | None
    """The reply as it came; None when none came."""
    failure: str | None = None
    """Why none came, or what makes it unusable, so that it was asked for again."""
    cost: float = 0.0
    """US dollars, by the prices in the options."""

    @classmethod
    def of(
        cls,
        request: JudgeRequest,
        *,
        model: str,
        body: str | None,
        failure: str | None = None,
        seconds: float = 0.0,
        attempts: int = 1,
        cost: float = 0.0,
    ) -> "Exchange":
        """What came of a request just now."""
        return cls(
            id=request.id,
            subject=request.subject,
            order=request.order,
            text=request.text,
            images=request.images,
            model=model,
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            seconds=round(seconds, 3),
            attempts=attempts,
            body=body,
            failure=failure,
            cost=cost,
        )


def as_body(text: str, *, finished: bool = True) -> str:
    """Words as the body of a server's reply; `finished` says that they came to their own end."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop" if finished else "length"}
    return json.dumps({"object": "chat.completion", "choices": [choice]}, ensure_ascii=False)


def as_refusal(words: str) -> str:
    """A refusal by a server's status as the completion that says the same."""
    choice = {"index": 0, "message": {"role": "assistant", "refusal": words}, "finish_reason": "content_filter"}
    return json.dumps({"object": "chat.completion", "choices": [choice]}, ensure_ascii=False)


@dataclass(frozen=True)
class ReplyText:
    """What an exchange holds for a reader."""

    text: str
    """The model's words; empty where there are none."""
    cause: FailureCause | None
    """Why no verdict may be read: refused, failed or, of words that were cut off, unparsed."""
    detail: str
    """The refusal, the failure or the cut in words."""
    usage: dict[str, int]
    """Tokens by name."""


class JudgeBackend(Protocol):
    """A model that can be asked."""

    @property
    def name(self) -> str:
        """Who it is, for the records and the report."""

    @property
    def identity(self) -> dict[str, JsonValue]:
        """Everything about it that shapes its replies."""

    def max_cost(self, request: JudgeRequest) -> float | None:
        """US dollars that a request costs at most; None where no price is known."""

    def ask(self, requests: Iterable[JudgeRequest], record: Callable[[Exchange], None]) -> None:
        """Ask every request and hand what comes of each to `record`, in any order, as soon as it is there.

        `record` may be called by several threads. StllavaError ends the asking; what was recorded until then counts.
        """


class FreeBackend:
    """A backend that costs nothing."""

    def max_cost(self, request: JudgeRequest) -> float:
        """0."""
        return 0.0


class ReplyLog:
    """The exchanges of a stage on disk, found by request; holds none of them in memory. Threads may share it."""

    def __init__(self, folder: Path, *, name: str) -> None:
        """Open the log called `name` in a stage's folder; lines that are damaged are counted and passed over."""
        self.name = name
        self._log = Log(folder / EXCHANGES / f"{name}.jsonl")
        self._places: dict[str, int] = {}
        self._failures: dict[str, int] = {}
        self._wasted: dict[str, tuple[float, int]] = {}
        self._lock = Lock()
        self.cost = 0.0
        """US dollars of all exchanges."""
        self.attempts = 0
        """Requests sent, repeated ones included."""
        self.damaged = 0
        """Lines that hold no exchange."""
        for at, line in self._log.lines():
            try:
                exchange = Exchange.model_validate_json(line)
            except ValidationError:
                self.damaged += 1
            else:
                self._count(exchange, at)
        if self.damaged:
            LOG.warning("%s", self.damage)

    @property
    def damage(self) -> str:
        """What is lost of it, in a sentence; empty where nothing is."""
        if not self.damaged:
            return ""
        lines = "1 line is" if self.damaged == 1 else f"{self.damaged} lines are"
        return f"{lines} damaged in {self._log.path.name} and left out; replies that stood there are asked for again."

    def __contains__(self, request: str) -> bool:
        """Whether a request was answered, so that it need not be asked again."""
        return request in self._places

    def __len__(self) -> int:
        """How many requests were answered."""
        return len(self._places)

    def add(self, exchange: Exchange) -> None:
        """Write an exchange; once this returns, it outlives a kill."""
        self._count(exchange, self._log.append(exchange))

    def _count(self, exchange: Exchange, at: int) -> None:
        with self._lock:
            self.cost += exchange.cost
            self.attempts += exchange.attempts
            # The first answer counts: a second one, as a batch may hold, was not asked for.
            if exchange.failure is None and exchange.id not in self._places:
                self._places[exchange.id] = at
                return
            cost, attempts = self._wasted.get(exchange.id, (0.0, 0))
            self._wasted[exchange.id] = (cost + exchange.cost, attempts + exchange.attempts)
            if exchange.failure is not None:
                self._failures[exchange.id] = at

    def get(self, request: str) -> Exchange | None:
        """What came of a request, its reply if there is one; None where it was not asked."""
        at = self._places.get(request, self._failures.get(request))
        return None if at is None else self._log.read(at, Exchange)

    def spent(self, request: str, exchange: Exchange | None) -> tuple[float, int]:
        """US dollars and sendings that a request took, with all that came of it before `exchange`, which `get` gave."""
        cost, attempts = self._wasted.get(request, (0.0, 0))
        if exchange is None or exchange.failure is not None:
            return cost, attempts
        return cost + exchange.cost, attempts + exchange.attempts

    def close(self) -> None:
        """End it."""
        self._log.close()


def fault(body: bytes) -> str | None:
    """What makes a server's reply unusable, so that it is asked again; None for a reply, a refusal among them."""
    try:
        reply = ChatCompletion.read(body)
    except ValidationError as error:
        return f"the reply is not a chat completion ({error.errors()[0]['msg']})"
    if not reply.choices:
        return "the reply holds no choice"
    first = reply.choices[0]
    text, end = first.message.content, first.end
    if first.message.refusal is not None or end in FILTERED:
        return None
    if end in CUT_OFF:
        return None if (text or "").strip() else f"the reply was cut off before any text: {RAISE}"
    if end not in ENDED:
        return f"the reply did not come to its end ({end})"
    return "the reply holds no text" if text is None else None


def cut_off(body: bytes) -> bool:
    """Whether a reply was cut off by a limit of tokens: asked again, it would be cut off again, and paid for again."""
    try:
        choices = ChatCompletion.read(body).choices
    except ValidationError:
        return False
    return bool(choices) and choices[0].end in CUT_OFF


def reply_text(exchange: Exchange | None) -> ReplyText:
    """The words of an exchange, or why no verdict may be read from it."""
    if exchange is None:
        return ReplyText("", "failed", "no reply", {})
    if exchange.body is None or exchange.failure is not None:
        return ReplyText("", "failed", exchange.failure or "no reply", {})
    problem = fault(exchange.body.encode())
    if problem is not None and not cut_off(exchange.body.encode()):
        return ReplyText("", "failed", problem, {})
    reply = ChatCompletion.read(exchange.body)
    first, usage = reply.choices[0], reply.usage
    tokens = {} if usage is None else {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
    if first.message.refusal is not None or first.end in FILTERED:
        return ReplyText("", "refused", first.message.refusal or "the provider's content filter", tokens)
    text = first.message.content or ""
    if first.end in CUT_OFF:
        return ReplyText(text, "unparsed", CUT, tokens)
    return ReplyText(text, None, "", tokens)
