"""A vision-language model on this machine, or on those of a run's workers, as an expert: no image leaves them.

Speaks greedily through the sampler that policies speak through, several requests at a time.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from time import monotonic

from pydantic import JsonValue

from stllava.config import LocalExpertOptions, SamplingOptions
from stllava.dropped import SET_ASIDE, Dropped
from stllava.errors import ItemError, StllavaError, cause_of
from stllava.experts.model.reply_log import Exchange, FreeBackend, JudgeRequest, as_body
from stllava.generation.local_sampler import LocalSampler
from stllava.generation.sampler import Prompt
from stllava.model.checkpoint import require_model
from stllava.model.load import fingerprint, load_policy
from stllava.records import Message
from stllava.store import executor

TOGETHER = 16
"""Requests decoded together and written at once."""


class LocalBackend(FreeBackend):
    """Asks a model in this process."""

    def __init__(self, options: LocalExpertOptions, *, root: Path) -> None:
        """Images are relative to `root`; the model is loaded when it is first asked."""
        if not options.model:
            raise StllavaError(
                "the local expert has no model",
                expected="the folder of a transformers image-text-to-text model",
                remedy="Set judge.local.model.",
            )
        require_model(options.model)
        self._options, self._root = options, root
        self._print = fingerprint(Path(options.model))

    @property
    def name(self) -> str:
        """The model's folder."""
        return Path(self._options.model).name

    @property
    def identity(self) -> dict[str, JsonValue]:
        """The weights and how they speak."""
        return {"weights": self._print, "max_new_tokens": self._options.max_new_tokens}

    def ask(self, requests: Iterable[JudgeRequest], record: Callable[[Exchange], None]) -> None:
        """Ask every request, here or where the chunks of stages are worked on."""
        source = iter(requests)
        chunks = enumerate(iter(lambda: list(islice(source, TOGETHER)), []))
        work = LocalExpertWork(self._options, self._root, self.name)
        for _, replied in executor().map(work, chunks, record_type=Exchange):
            for exchange in replied.records:
                record(exchange)


@dataclass(frozen=True)
class LocalExpertWork:
    """Asks a model some requests at once; can be sent to another process until it is first called, which loads the model."""

    options: LocalExpertOptions
    """The model and how it speaks."""
    root: Path
    """The image root."""
    name: str
    """Who is asked, for the log of replies."""
    notes = ()
    """Nothing that a reader of the manifest must know."""

    @cached_property
    def sampler(self) -> LocalSampler:
        """The model, once it is asked."""
        policy = load_policy(Path(self.options.model))
        return LocalSampler(policy, root=self.root, tokens=self.options.max_cache_tokens)

    @property
    def device(self) -> str:
        """Where it computes."""
        return self.sampler.device

    def __call__(self, chunk: Sequence[JudgeRequest]) -> tuple[list[Exchange], Dropped]:
        """What came of every request."""
        exchanges: list[Exchange] = []
        prompts: list[tuple[JudgeRequest, Prompt]] = []
        for request in chunk:
            prompt = Prompt((Message(role="user", content=request.text),), request.images)
            try:
                self.sampler.check(prompt)
            except ItemError as error:
                exchanges.append(self._failure(request, f"{cause_of(error)}: {error}"))
            else:
                prompts.append((request, prompt))
        how = SamplingOptions(temperature=0.0, top_k=0, top_p=1.0, max_new_tokens=self.options.max_new_tokens)
        began = monotonic()
        replies = self.sampler.complete([prompt for _, prompt in prompts], k=1, sampling=how, seed=0)
        seconds = (monotonic() - began) / max(1, len(prompts))
        for (request, _), [reply] in zip(prompts, replies, strict=True):
            body = as_body(reply.text, finished=reply.finished)
            exchanges.append(Exchange.of(request, model=self.name, body=body, seconds=seconds))
        return exchanges, Dropped()

    def set_aside(self, chunk: Sequence[JudgeRequest], detail: str) -> tuple[list[Exchange], Dropped]:
        """Requests that nobody can ask have no reply."""
        return [self._failure(request, f"{SET_ASIDE}: {detail}") for request in chunk], Dropped()

    def _failure(self, request: JudgeRequest, failure: str) -> Exchange:
        return Exchange.of(request, model=self.name, body=None, failure=failure, attempts=0)

    def close(self) -> None:
        """Drop the model."""
        self.__dict__.pop("sampler", None)
