"""A policy behind an OpenAI-compatible chat endpoint, such as a vLLM server that serves the policy's folder.

Every completion is a request of its own with a seed of its own, so what is asked beside it does not matter; a server
with prefix caching computes what the requests share, image and question, only once. `docs/serving.md` says how to
start one. What may leave this process, and how, is `stllava.remote`'s concern.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from pydantic import JsonValue, ValidationError

from stllava.config import EndpointOptions, SamplingOptions
from stllava.errors import ItemError, StllavaError, TextError
from stllava.generation.sampler import Completion, Prompt, RefusedPromptsError
from stllava.model.prompt import ChatProcessor, ServerTurn, server_turn
from stllava.model.turn_layout import IMAGE as PICTURE
from stllava.model.turn_layout import layout_of, parts_of
from stllava.records import Role, content_id
from stllava.remote.address import Address, reach
from stllava.remote.audit import Audit
from stllava.remote.client import Client, Fault, NoReplyError
from stllava.remote.completion import CUT_OFF, ENDED, FILTERED, ChatCompletion, error_in, token_log_probabilities
from stllava.remote.concurrency import for_each
from stllava.remote.png import PngEncoder, PngImage
from stllava.remote.refusals import Refusal, refusal_of
from stllava.remote.server_pool import PoolMember, ServerPool
from stllava.remote.transport import HttpTransport

SEEDS = 2**31
"""Servers differ in the seeds they take; all take these."""
ANY_TOKEN = -1
"""The top_k of no limit, to every server that knows the field; 0 is refused by some."""
_NEUTRAL: dict[str, JsonValue] = {"min_p": 0.0, "repetition_penalty": 1.0}
"""What a server takes from the folder's generation_config.json where a request leaves it out; here nothing is taken from it."""
_REMEDIES = {
    "context": "Start the server with a longer context (vLLM --max-model-len), or lower max_new_tokens.",
    "size": "Let the server take larger requests: the policy must see images in full.",
    "reply size": "Lower max_new_tokens, or repair the server.",
}
"""What helps a policy's server where the advice to an expert's would not."""
_FAULTS: dict[str, tuple[str, type[ItemError]]] = {
    "context": ("longer than the server's context", TextError),
    "filter": ("held back by the server's filter", TextError),
    "size": ("too large for the server", ItemError),
    "reply size": ("answered at no end", TextError),
}
"""What is counted of a prompt that is refused for its own sake."""


UNUSABLE = "unusable"
"""The refusal of a reply that is no completion."""
_LOOK = "See the server's log."
_CUT = "See the server's log, and whether a proxy before it cuts replies off."
_GIVEN_UP = "See in the server's log why it gave the request up, and lower concurrency if its memory ran out."
_CHECK_URL = "Check url, and whether a proxy before the server replies in its place."
"""What helps where replies are no completions."""


class EndpointSampler:
    """A policy that a server speaks for.

    Log-probabilities are unknown: a server gives those of the tokens, but neither says whether they are untempered nor
    whether the text, split into tokens again, is what was sampled.
    """

    def __init__(
        self,
        options: EndpointOptions,
        *,
        root: Path,
        audit: Path | None = None,
        blank: bool = False,
        virtual: Role = "virtual_user",
        chat: ChatProcessor | None = None,
        transport: HttpTransport | None = None,
        pool: ServerPool | None = None,
    ) -> None:
        """Images are relative to `root`; `blank` shows black instead. Sendings are noted in the folder `audit`.

        `virtual` is the role by which the policy's chat template knows the virtual user (`model.prompt.virtual_role`).
        `chat` is the policy's processor: with it only prompts are sent that the server's template writes as they are here.
        `transport` replaces the network in tests. `pool` is the servers that speak, where somebody else looks after them.
        """
        self._options, self._audit, self._virtual, self._transport = options, audit, virtual, transport
        self._chat = chat
        self._addresses = [] if pool is not None else [self._reach(url) for url in options.urls]
        self._pool = pool
        self._pictures = PngEncoder(root, keep=options.concurrency + 1, blank=blank)

    def _reach(self, url: str) -> Address:
        return reach(self._options.model_copy(update={"url": url}), purpose="they are shown to the policy")

    @property
    def device(self) -> str:
        """Where it computes."""
        return f"{self._options.model} at {', '.join(address.host for address in self._addresses)}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the manifest must know of how it speaks."""
        return (f"{self.device} spoke for the policy; that it serves the policy's weights was not checked.",)

    def check(self, prompt: Prompt) -> None:
        """Raise ItemError when the prompt's images or its text cannot be used."""
        self._turn(prompt)
        for relative in prompt.images:
            self._pictures.check(relative)

    def _turn(self, prompt: Prompt) -> ServerTurn:
        """How the server is brought to let the speaker speak."""
        if self._chat is None:
            return ServerTurn({}, continues=prompt.speaker != "assistant")
        return server_turn(self._chat, prompt.messages, images=len(prompt.images), speaker=prompt.speaker)

    def complete(
        self, prompts: Sequence[Prompt], *, k: int, sampling: SamplingOptions, seed: int
    ) -> list[tuple[Completion, ...]]:
        """K completions of every prompt; a completion depends on its prompt, its number and the seed alone."""
        said: dict[tuple[int, int], Completion] = {}
        refused: dict[int, ItemError] = {}
        places: Iterator[tuple[int, int]] = ((place, number) for place in range(len(prompts)) for number in range(k))
        with self._connected() as client:

            def ask(at: tuple[int, int], stop: Event) -> None:
                place, number = at
                if place in refused:
                    return
                sampled = request_seed(prompts[place], number=number, seed=seed)
                try:
                    said[at] = self._ask(client, prompts[place], sampling, sampled, stop)
                except ItemError as error:
                    refused[place] = error

            for_each(places, ask, workers=min(self._options.concurrency, len(prompts) * k), name="endpoint")
        whole = [tuple(said[place, number] for number in range(k)) for place in range(len(prompts)) if place not in refused]
        if refused:
            raise RefusedPromptsError(refused, whole)
        return whole

    @contextmanager
    def _connected(self) -> Iterator[Client | ServerPool]:
        """What requests go through: one server, or all of them."""
        if self._pool is not None:
            yield self._pool
            return
        audit = Audit(self._audit) if self._audit is not None else None
        if len(self._addresses) == 1:
            with Client(self._addresses[0], self._options, audit=audit, transport=self._transport) as client:
                yield client
            return
        members = [
            PoolMember(Client(address, self._options, audit=audit, shares_audit=True, transport=self._transport))
            for address in self._addresses
        ]
        with ServerPool(members, self._options, patience=self._options.timeout) as pool:
            yield pool
        if audit is not None:
            audit.close()

    def close(self) -> None:
        """Nothing is kept open between calls."""

    def greedy(self, client: Client, prompt: Prompt, *, max_new_tokens: int) -> tuple[Completion, float | None]:
        """What one server says to a prompt at temperature 0, and the sum of its tokens' log-probabilities, if it tells."""
        pictures = [self._pictures.get(path) for path in prompt.images]
        sampling = SamplingOptions(temperature=0.0, top_k=0, top_p=1.0, max_new_tokens=max_new_tokens)
        try:
            reply = client.post(
                "/chat/completions",
                self._body(prompt, pictures, sampling, 0) | {"logprobs": True},
                images=pictures,
                fault=_fault,
            )
        except NoReplyError as error:
            raise self._unanswered(error, [client.address]) from None
        return _completion(reply.body), token_log_probabilities(reply.body)

    def _ask(
        self, client: Client | ServerPool, prompt: Prompt, sampling: SamplingOptions, seed: int, stop: Event
    ) -> Completion:
        """One completion; raises ItemError where the server refuses this prompt for its own sake.

        `stop` ends the waiting between attempts when another request has failed for good.
        """
        pictures = [self._pictures.get(path) for path in prompt.images]
        try:
            reply = client.post(
                "/chat/completions",
                self._body(prompt, pictures, sampling, seed),
                images=pictures,
                stop=stop,
                fault=_fault,
            )
        except NoReplyError as error:
            if error.refusal.name in _FAULTS:
                cause, kind = _FAULTS[error.refusal.name]
                told = _REMEDIES.get(error.refusal.name, error.refusal.remedy).rstrip(".")
                raise kind(cause, f"{error.where} refuses with {error} – {told}") from None
            members = self._pool.members if self._pool is not None else ()
            raise self._unanswered(error, [member.client.address for member in members] or self._addresses) from None
        return _completion(reply.body)

    def _unanswered(self, error: NoReplyError, asked: Sequence[Address]) -> StllavaError:
        """The error of the servers that were asked and give no completion."""
        help_first = _REMEDIES.get(error.refusal.name, error.refusal.remedy)
        if error.refused:
            return StllavaError(
                f"{error.where} refuses with {error}",
                expected="a completion",
                remedy=(help_first or "See docs/serving.md for how the server must be started.") + " Finished chunks are kept.",
            )
        where = [str(address.at("/chat/completions")) for address in asked]
        last = f"the last, at {error.where}, ended" if len(where) > 1 else "the last ended"
        if not error.attempts:
            last = f"the last of others, at {error.where}, ended"
        return StllavaError(
            f"{' and '.join(where)} gave no completion in {error.attempts} attempts, {last} with {error}",
            expected="one choice with a text that came to an end"
            if error.refusal.name == UNUSABLE
            else "a server that answers",
            remedy=f"{help_first or 'Start or repair it.'} Then give the same command again: finished chunks are kept.",
        )

    def _body(self, prompt: Prompt, pictures: Sequence[PngImage], sampling: SamplingOptions, seed: int) -> dict[str, JsonValue]:
        left = iter(pictures)
        messages: list[JsonValue] = []
        for turn, (_, shape) in zip(prompt.messages, layout_of(prompt.messages, images=len(pictures)), strict=True):
            texts = (text for text in parts_of(turn) if text is not None)
            parts: list[JsonValue] = [
                {"type": "image_url", "image_url": {"url": next(left).url}}
                if part == PICTURE
                else {"type": "text", "text": next(texts)}
                for part in shape
            ]
            messages.append({"role": self._told(turn.role), "content": parts if PICTURE in shape else turn.content})
        body: dict[str, JsonValue] = {
            "model": self._options.model,
            "messages": messages,
            "n": 1,
            "stream": False,
            "seed": seed,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "top_k": sampling.top_k or ANY_TOKEN,
            **_NEUTRAL,
        }
        opened = self._turn(prompt)
        if opened.continues:
            # Servers open turns of the assistant only, in words of their template; vLLM goes on with a turn that stands there.
            messages.append({"role": self._told(prompt.speaker), "content": ""})
            body |= {"add_generation_prompt": False, "continue_final_message": True}
        if opened.variables:
            body["chat_template_kwargs"] = dict(opened.variables)
        return {name: value for name, value in (body | self._options.extra).items() if value is not None}

    def _told(self, role: Role) -> Role:
        return self._virtual if role == "virtual_user" else role


def _fault(body: bytes) -> Fault | None:
    """What makes a reply unusable, so that it is asked again; None for a completion."""
    error = error_in(body)
    if error is not None:
        return Fault("the server reports an error and sends it as a reply", status=error.status)
    try:
        _completion(body)
    except _UnusableError as problem:
        return problem.fault
    return None


class _UnusableError(Exception):
    """A reply that is no completion."""

    def __init__(self, problem: str, remedy: str | Refusal) -> None:
        super().__init__(problem)
        meant = Refusal(UNUSABLE, "unknown", again=True, remedy=remedy) if isinstance(remedy, str) else remedy
        self.fault = Fault(problem, refusal=meant)


def _completion(body: bytes) -> Completion:
    """The completion that a reply holds; raises _UnusableError."""
    try:
        choices = ChatCompletion.read(body).choices
    except ValidationError as error:
        if not body.strip():
            raise _UnusableError("an empty reply", _LOOK) from None
        if body.lstrip().startswith(b"<"):
            raise _UnusableError("a page in place of a completion", _CHECK_URL) from None
        problem = error.errors()[0]
        if problem["type"] == "json_invalid":
            raise _UnusableError("a reply that is no whole JSON", _CUT) from None
        raise _UnusableError(f"a reply that is no chat completion ({problem['msg']})", _CHECK_URL) from None
    if not choices:
        raise _UnusableError("a reply without a choice", _LOOK)
    text, end = choices[0].message.content, choices[0].end
    if end in FILTERED:
        raise _UnusableError("a reply that the server's filter held back", refusal_of(None, "content_filter"))
    if not text and choices[0].message.apart and (text is None or end not in ENDED | CUT_OFF):
        raise _UnusableError("a reply without a text", "Start the server without reasoning and tool parsers.")
    if end not in ENDED | CUT_OFF:
        raise _UnusableError(f"a reply that was ended by {end}", _GIVEN_UP if end.startswith("abort") else _LOOK)
    if text is None:
        raise _UnusableError("a reply without a text", _LOOK)
    return Completion(text.strip(), finished=end in ENDED)


def request_seed(prompt: Prompt, *, number: int, seed: int) -> int:
    """The seed of a prompt's completion `number`: the same whatever is asked beside it."""
    turns: list[JsonValue] = []
    for turn in prompt.messages:
        where: list[JsonValue] = [list[JsonValue](turn.image_offsets)] if turn.image_offsets else []
        turns.append([turn.role, turn.content, *where])
    return int(content_id(seed, list(prompt.images), turns, prompt.speaker, number), 16) % SEEDS
