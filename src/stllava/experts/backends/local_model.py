"""A vision-language model in this process as an expert: no image leaves it.

Speaks greedily through the sampler that policies speak through, several requests at a time.
"""

from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from time import monotonic

from pydantic import JsonValue

from stllava.config import LocalExpertOptions, SamplingOptions
from stllava.errors import ItemError, StllavaError, cause_of
from stllava.experts.backends.chat_server import require_model
from stllava.experts.model.reply_log import Exchange, FreeBackend, JudgeRequest, as_body
from stllava.generation.decoder import LocalSampler
from stllava.generation.sampler import Prompt
from stllava.model.load import fingerprint, load_policy
from stllava.records import Message

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
        """Ask every request."""
        sampler = LocalSampler(load_policy(Path(self._options.model)), root=self._root, tokens=self._options.max_cache_tokens)
        how = SamplingOptions(temperature=0.0, top_k=0, top_p=1.0, max_new_tokens=self._options.max_new_tokens)
        source = iter(requests)
        while several := list(islice(source, TOGETHER)):
            prompts: list[tuple[JudgeRequest, Prompt]] = []
            for request in several:
                prompt = Prompt((Message(role="user", content=request.text),), request.images)
                try:
                    sampler.check(prompt)
                except ItemError as error:
                    failure = f"{cause_of(error)}: {error}"
                    record(Exchange.of(request, model=self.name, body=None, failure=failure, attempts=0))
                else:
                    prompts.append((request, prompt))
            began = monotonic()
            replies = sampler.complete([prompt for _, prompt in prompts], k=1, sampling=how, seed=0)
            seconds = (monotonic() - began) / max(1, len(prompts))
            for (request, _), [reply] in zip(prompts, replies, strict=True):
                record(
                    Exchange.of(request, model=self.name, body=as_body(reply.text, finished=reply.finished), seconds=seconds)
                )
