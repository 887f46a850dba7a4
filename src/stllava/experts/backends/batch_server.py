"""The provider's batch API as a way to ask the same requests: cheaper, and answered within a day.

Requests are uploaded as files (`/files`), processed as batches (`/batches`), polled and collected; what is under way is
kept beside the exchanges, so that a stage that was stopped, or a machine that was off, goes on with
the batches it paid for. A batch whose creation was not recorded, because a kill came between, is found again by the
mark it carries. Files on the server are deleted once they are read: they hold images.
"""

import json
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from typing import Literal, TypeVar

from pydantic import BaseModel, JsonValue, ValidationError

from stllava.errors import ItemError, StllavaError
from stllava.experts.backends.chat_server import ChatServer
from stllava.experts.model.reply_log import Exchange, JudgeRequest, fault
from stllava.records import Record, content_id
from stllava.remote.batches import BatchLine, BatchPage, RemoteBatch, UploadedFile
from stllava.remote.client import CUT_SERVERS_WORDS, Client, NoReplyError, ServerReply
from stllava.remote.png import PngImage
from stllava.remote.rate_limiter import pause
from stllava.store import EXCHANGES, Log
from stllava.text import printable

MAX_REQUESTS, MAX_BYTES = 50_000, 100_000_000
"""Of one batch; the provider's own limits are 50,000 requests and 200 MB."""
ROUNDS = 3
"""Times that requests a batch failed to answer are put into another one."""
MARK = "stllava"
"""Name of the metadata by which a batch is found again."""
MAX_LINE_BYTES, MAX_FILE_BYTES, FILE_SECONDS = 1 << 20, 1 << 29, 3600.0
"""What a file that comes back may hold, for each request and in all, and how long a file may take to go or come."""
LOG = logging.getLogger(__name__)
B = TypeVar("B", bound=BaseModel)


class BatchState(Record):
    """One step of a batch's life; the last one of a mark counts."""

    mark: str
    """Hash of the requests in it and of the round."""
    step: Literal["planned", "uploaded", "created", "collected"]
    """How far it is."""
    requests: tuple[str, ...] = ()
    """Ids of the requests in it; written once, with `planned`."""
    file: str = ""
    """The server's id of the uploaded file."""
    batch: str = ""
    """The server's id of the batch."""


class BatchBackend:
    """Asks a server through its batch API."""

    def __init__(self, server: ChatServer, *, sleep: Callable[[float], None] = time.sleep) -> None:
        """`sleep` waits between two polls."""
        self.server, self._sleep = server, sleep
        self._held: dict[str, float] = {}
        self._sent: Counter[str] = Counter()
        name = server.reply_log.name if server.reply_log is not None else "expert"
        self._log_path = server.folder / EXCHANGES / f"{name}-batches.jsonl"

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
        """Send every request in batches, and wait for them; batches under way are collected first."""
        with closing(Log(self._log_path)) as log, self.server.connect() as client:
            waiting = {request.id: request for request in requests}
            failures: dict[str, str] = {}
            for turn in range(ROUNDS):
                states = _states(log)
                self._recover(client, log, states)
                for state in states.values():
                    if state.step == "created" and not state.requests:
                        # The line that named its requests is damaged: they must be told from its replies, not sent again.
                        self._collect(client, log, state, waiting, record, failures)
                under_way = {key for state in states.values() if state.step != "collected" for key in state.requests}
                self._hold(waiting[key] for key in under_way if key in waiting)
                for part in self._parts([one for one in waiting.values() if one.id not in under_way], failures):
                    self._start(client, log, states, part, turn=turn)
                for state in states.values():
                    if state.step == "created" and state.requests:
                        self._collect(client, log, state, waiting, record, failures)
                if not waiting:
                    break
            for request in waiting.values():
                failure = failures.get(request.id, "no batch answered it")
                record(self.server.failure(request, failure, attempts=max(0, self._sent[request.id])))

    def _hold(self, requests: Iterable[JudgeRequest]) -> None:
        """Reserve what batches cost that are under way since an earlier start."""
        for request in requests:
            if request.id not in self._held:
                self._held[request.id] = self.server.budget.reservation(request.text, len(request.images))
                self.server.budget.hold(self._held[request.id])

    def _parts(
        self, requests: list[JudgeRequest], failures: dict[str, str]
    ) -> Iterator[list[tuple[JudgeRequest, bytes, list[PngImage]]]]:
        """The requests as lines of files, cut to what one batch may hold; `failures` is told of images without use."""
        part: list[tuple[JudgeRequest, bytes, list[PngImage]]] = []
        size = 0
        for request in requests:
            try:
                pictures = [self.server.pictures.get(path) for path in request.images]
            except ItemError as error:
                failures[request.id] = f"image {error.cause}: {error}"
                continue  # It stays without an answer, and its failure is told at the end.
            body = self.server.body(request, pictures)
            line = {"custom_id": request.id, "method": "POST", "url": "/v1/chat/completions", "body": body}
            # ASCII: some readers of JSONL take U+2028 and the like for the end of a line.
            content = json.dumps(line).encode() + b"\n"
            if part and (len(part) == MAX_REQUESTS or size + len(content) > MAX_BYTES):
                yield part
                part, size = [], 0
            part.append((request, content, pictures))
            size += len(content)
        if part:
            yield part

    def _start(
        self,
        client: Client,
        log: Log,
        states: dict[str, BatchState],
        part: list[tuple[JudgeRequest, bytes, list[PngImage]]],
        *,
        turn: int,
    ) -> None:
        """Upload a part and create its batch, writing down each step before the next."""
        ids = tuple(request.id for request, _, _ in part)
        mark = content_id("batch", list(ids), turn, sum(1 for state in states.values() if state.requests == ids))
        costs = {request.id: self.server.budget.reservation(request.text, len(request.images)) for request, _, _ in part}
        self.server.budget.reserve(sum(costs.values()), requests=len(part))
        self._held |= costs
        self._sent.update(ids)
        state = BatchState(mark=mark, step="planned", requests=ids)
        log.append(state)
        content = b"".join(line for _, line, _ in part)
        pictures = [picture for _, _, several in part for picture in several]
        uploaded = self._refusing(
            lambda: client.upload(
                "/files", f"{mark}.jsonl", content, fields={"purpose": "batch"}, images=pictures, seconds=FILE_SECONDS
            )
        )
        file = self._read(UploadedFile, uploaded)
        state = state.model_copy(update={"step": "uploaded", "file": file.id})
        log.append(state.model_copy(update={"requests": ()}))
        states[mark] = self._create(client, log, state)

    def _create(self, client: Client, log: Log, state: BatchState) -> BatchState:
        """Create the batch of an uploaded file."""
        asked: dict[str, JsonValue] = {
            "input_file_id": state.file,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {MARK: state.mark},
        }
        made = ""
        for attempt in range(self.server.options.retries + 1):
            try:
                made = self._read(RemoteBatch, client.post("/batches", asked, retries=0).body).id
            except NoReplyError as error:
                # It may have been created all the same: asked again blindly, it would be paid for twice.
                made = self._there(client).get(state.mark, "") if not error.refused else ""
                if not made and (error.refused or attempt == self.server.options.retries):
                    raise self._refusal(error) from None
            if made:
                break
            self._sleep(pause(attempt, None, share=random.random()))
        created = state.model_copy(update={"step": "created", "batch": made})
        log.append(created.model_copy(update={"requests": ()}))
        return created

    def _recover(self, client: Client, log: Log, states: dict[str, BatchState]) -> None:
        """Find batches again whose creation was not written down; create those that never were; forget lost uploads."""
        if not any(state.step in ("planned", "uploaded") for state in states.values()):
            return
        there = self._there(client)
        for mark, state in list(states.items()):
            if state.step not in ("planned", "uploaded"):
                continue
            if mark in there:
                found = state.model_copy(update={"step": "created", "batch": there[mark]})
                log.append(found.model_copy(update={"requests": ()}))
                states[mark] = found
            elif state.step == "uploaded":
                states[mark] = self._create(client, log, state)
            else:
                del states[mark]

    def _there(self, client: Client) -> dict[str, str]:
        """The server's ids of our batches by their marks."""
        marked = [
            (batch.metadata[MARK], batch.id) for batch in self._listed(client) if batch.metadata and MARK in batch.metadata
        ]
        return {str(mark): key for mark, key in marked}

    def _listed(self, client: Client) -> Iterator[RemoteBatch]:
        """All batches that the server knows, newest first."""
        after = ""
        while True:
            query = {"limit": "100"} | ({"after": after} if after else {})
            page = self._read(BatchPage, self._refusing(partial(client.get, "/batches", query=query)))
            yield from page.data
            if not page.has_more or not page.data or page.data[-1].id == after:
                return
            after = page.data[-1].id

    def _collect(
        self,
        client: Client,
        log: Log,
        state: BatchState,
        waiting: dict[str, JudgeRequest],
        record: Callable[[Exchange], None],
        failures: dict[str, str],
    ) -> None:
        """Wait for a batch, hand over its replies, delete its files."""
        while True:
            batch = self._read(RemoteBatch, self._refusing(partial(client.get, f"/batches/{state.batch}")))
            if batch.status in ("completed", "failed", "expired", "cancelled"):
                break
            self._sleep(self.server.options.poll)
        for file in (batch.output_file_id, batch.error_file_id):
            if file:
                self._read_lines(client, file, waiting, record, failures)
        told = f": {self._told(batch.errors)}" if batch.errors else ""
        for key in state.requests:
            failures.setdefault(key, f"its batch ended as {printable(batch.status)}{told}")
            self._settle(key, 0.0)
        log.append(BatchState(mark=state.mark, step="collected", file=state.file, batch=state.batch))
        for file in (state.file, batch.output_file_id, batch.error_file_id):
            if file:
                self._forget(client, file)

    def _read_lines(
        self,
        client: Client,
        file: str,
        waiting: dict[str, JudgeRequest],
        record: Callable[[Exchange], None],
        failures: dict[str, str],
    ) -> None:
        useless: set[str] = set()
        most = min(MAX_FILE_BYTES, (1 + len(waiting)) * 2 * MAX_LINE_BYTES)
        content = self._refusing(partial(client.get, f"/files/{file}/content", seconds=FILE_SECONDS, max_bytes=most))
        for raw in content.split(b"\n"):
            if not raw.strip():
                continue
            try:
                line = BatchLine.model_validate_json(raw)
            except ValidationError:
                continue  # A torn line answers nothing: its request goes into the next batch.
            request = waiting.get(line.custom_id)
            if request is None:
                continue  # Answered already, by another line or another batch.
            if line.response is None or line.response.status_code != 200:
                failures[line.custom_id] = self._told(line.response.body if line.response is not None else line.error)
                continue
            body = json.dumps(line.response.body, ensure_ascii=False)
            if request.id in useless and fault(body.encode()) is not None:
                continue  # The same line again.
            found = self.server.keep_fault(request, body.encode(), reserved=self._held.get(request.id, 0.0))
            if found is not None:
                failures[line.custom_id] = found.problem
                useless.add(request.id)
                self._held.pop(request.id, None)
                self._sent[request.id] -= 1  # It is counted with the reply that was kept.
                continue
            hidden = self.server.address.redact(body)
            sent = max(1, self._sent[request.id])
            exchange = Exchange.of(request, model=self.name, body=hidden, attempts=sent, cost=self.server.cost(request, hidden))
            self._settle(request.id, exchange.cost)
            record(exchange)
            del waiting[line.custom_id]

    def _settle(self, key: str, cost: float) -> None:
        """Give back what was reserved for a request and count what it cost."""
        self.server.budget.settle(self._held.pop(key, 0.0), cost)

    def _told(self, error: JsonValue) -> str:
        """An error of a batch in the server's words, short enough to show."""
        words = " ".join(self.server.address.redact(json.dumps(error, ensure_ascii=False)).split())
        return printable(words)[:CUT_SERVERS_WORDS]

    def _forget(self, client: Client, file: str) -> None:
        """Delete a file on the server; it may be gone already."""
        try:
            client.delete(f"/files/{file}")
        except NoReplyError as error:
            if error.status != 404:
                raise self._refusal(error) from None

    def _refusing(self, send: Callable[[], ServerReply]) -> bytes:
        """What is sent back; where nothing is, the error says what a server of batches must have."""
        try:
            return send().body
        except NoReplyError as error:
            raise self._refusal(error) from None

    def _read(self, kind: type[B], body: bytes) -> B:
        """What a server says of a file or a batch."""
        try:
            return kind.model_validate_json(body)
        except ValidationError:
            words = printable(" ".join(self.server.address.redact(body.decode(errors="replace")).split()))[:CUT_SERVERS_WORDS]
            raise self._refusal(words) from None

    def _refusal(self, error: NoReplyError | str) -> StllavaError:
        remedy = error.refusal.remedy if isinstance(error, NoReplyError) else ""
        return StllavaError(
            f"{self.server.address.base} fails with {error}"
            if isinstance(error, NoReplyError)
            else f"{self.server.address.base} says {error}",
            expected="a server with OpenAI's /files and /batches",
            remedy=remedy
            or "Set batch to false, or correct url and key_variable, and give the same command again: every reply is kept.",
        )


def _states(log: Log) -> dict[str, BatchState]:
    """The last step of every batch, with the requests that its first one names; damaged lines are told and passed over."""
    states: dict[str, BatchState] = {}
    damaged = 0
    for _, line in log.lines():
        try:
            state = BatchState.model_validate_json(line)
        except ValidationError:
            damaged += 1
            continue
        known = states.get(state.mark)
        states[state.mark] = state.model_copy(update={"requests": known.requests}) if known is not None else state
    if damaged:
        LOG.warning("%d damaged lines of %s are left out", damaged, log.path.name)
    return states
