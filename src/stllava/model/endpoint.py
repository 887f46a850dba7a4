"""A policy behind an OpenAI-compatible chat endpoint, such as a vLLM server that serves the policy's folder.

Every completion is a request of its own with a seed of its own, so what is asked beside it does not matter; a server
with prefix caching computes what the requests share, image and question, only once. `docs/serving.md` says how to
start one. Pixels leave this process here: only to the address in the options, only when they say `send_images`, and
only as freshly encoded PNG without metadata.
"""

import base64
import io
import os
import random
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from pathlib import Path
from threading import Event, Lock
from typing import Literal

import httpx2
from PIL import Image
from pydantic import BaseModel, JsonValue, ValidationError

from stllava.config import EndpointOptions, SamplingOptions
from stllava.data.images import check_image, open_image
from stllava.errors import StllavaError
from stllava.model.sampler import Completion, Prompt
from stllava.records import content_id

FIRST_WAIT, LONGEST_WAIT, LONGEST_ASKED_WAIT = 0.5, 30.0, 600.0
SEEDS = 2**31
"""Servers differ in the seeds they take; all take these."""


class _Message(BaseModel):
    content: str


class _Choice(BaseModel):
    message: _Message
    finish_reason: Literal["stop", "length"]


class _Reply(BaseModel):
    choices: tuple[_Choice]


class EndpointSampler:
    """A policy that a server speaks for.

    Log-probabilities are unknown: a server gives those of the tokens, but neither says whether they are untempered nor
    whether the text, split into tokens again, is what was sampled.
    """

    def __init__(
        self, options: EndpointOptions, *, root: Path, blank: bool = False, transport: httpx2.BaseTransport | None = None
    ) -> None:
        """Images are relative to `root`; `blank` shows black instead. `transport` replaces the network in tests."""
        if not options.send_images:
            raise StllavaError(
                f"the policy is to see images through {options.url}, but send_images is false",
                expected="your word that images may be sent there",
                remedy="Set send_images to true if they may leave this process, or leave the endpoint out.",
            )
        try:
            address = httpx2.URL(options.url)
        except httpx2.InvalidURL as error:
            raise _bad_address(options.url, str(error)) from None
        if address.scheme not in ("http", "https") or not address.host:
            raise _bad_address(options.url, "it names no http server")
        self._options, self._root, self._blank, self._transport = options, root, blank, transport
        self._address = address.copy_with(raw_path=address.raw_path.rstrip(b"/") + b"/chat/completions")
        self._key = _key(options.key_variable)
        self._usable: set[str] = set()
        self._pictures = lru_cache(maxsize=2 * options.concurrency)(self._picture)
        self._pictures_lock = Lock()

    @property
    def device(self) -> str:
        """Where it computes."""
        return f"{self._options.model} at {self._address.host}:{self._address.port or self._address.scheme}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the manifest must know of how it speaks."""
        return (f"{self.device} spoke for the policy; that it serves the policy's weights was not checked.",)

    def check(self, prompt: Prompt) -> None:
        """Raise ItemError when the prompt's images cannot be used."""
        for relative in prompt.images:
            if relative not in self._usable:
                check_image(self._root, relative)
                self._usable.add(relative)

    def complete(
        self, prompts: Sequence[Prompt], *, k: int, sampling: SamplingOptions, seed: int
    ) -> list[tuple[Completion, ...]]:
        """K completions of every prompt; a completion depends on its prompt, its number and the seed alone."""
        if not prompts or not k:
            return [() for _ in prompts]
        stop = Event()
        with (
            httpx2.Client(
                transport=self._transport,
                timeout=self._options.timeout,
                limits=httpx2.Limits(max_connections=self._options.concurrency),
                trust_env=False,  # No proxies, no .netrc: images go to the address in the options and nowhere else.
            ) as client,
            ThreadPoolExecutor(self._options.concurrency, thread_name_prefix="endpoint") as pool,
        ):
            futures = [
                pool.submit(self._ask, client, prompt, sampling, request_seed(prompt, number=number, seed=seed), stop)
                for prompt in prompts
                for number in range(k)
            ]
            try:
                finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in finished:
                    future.result()
            finally:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
        said = [future.result() for future in futures]
        return [tuple(said[start : start + k]) for start in range(0, len(said), k)]

    def _ask(self, client: httpx2.Client, prompt: Prompt, sampling: SamplingOptions, seed: int, stop: Event) -> Completion:
        """One completion; `stop` ends the waiting between attempts when another request has failed for good."""
        body = self._body(prompt, sampling, seed)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        for attempt in range(self._options.retries + 1):
            asked_wait = None
            try:
                response = client.post(self._address, json=body, headers=headers)
            except httpx2.RequestError as error:
                failure = f"{type(error).__name__}: {error}"
            else:
                if response.status_code == 200:
                    return self._read(response)
                failure = f"status {response.status_code}: {_words(response.text)}"
                if response.status_code != 429 and response.status_code < 500:
                    raise StllavaError(
                        f"{self._address} refuses with {failure}",
                        expected="a completion",
                        remedy="See docs/serving.md for how the server must be started; finished chunks are kept.",
                    )
                asked_wait = response.headers.get("Retry-After")
            last = attempt == self._options.retries
            if last or stop.wait(pause(attempt, asked_wait, share=random.random())):
                break
        raise StllavaError(
            f"{self._address} gave no completion in {attempt + 1} attempts, the last ended with {failure}",
            expected="a server that answers",
            remedy="Mend or restart the server and give the same command again: finished chunks are kept.",
        )

    def _read(self, response: httpx2.Response) -> Completion:
        try:
            choice = _Reply.model_validate_json(response.content).choices[0]
        except ValidationError as error:
            first = error.errors()[0]
            raise StllavaError(
                f"{self._address} replied {_words(response.text)!r}",
                expected=f"one choice with a text that came to an end ({'.'.join(map(str, first['loc']))}: {first['msg']})",
                remedy="Start the server without reasoning and tool parsers; finished chunks are kept.",
            ) from None
        return Completion(choice.message.content.strip())

    def _body(self, prompt: Prompt, sampling: SamplingOptions, seed: int) -> dict[str, JsonValue]:
        messages: list[JsonValue] = [{"role": turn.role, "content": turn.content} for turn in prompt.messages]
        if prompt.images:
            first = next(index for index, turn in enumerate(prompt.messages) if turn.role == "user")
            places: list[JsonValue] = [{"type": "image_url", "image_url": {"url": self._url(path)}} for path in prompt.images]
            places.append({"type": "text", "text": prompt.messages[first].content})
            messages[first] = {"role": "user", "content": places}
        body: dict[str, JsonValue] = {
            "model": self._options.model,
            "messages": messages,
            "n": 1,
            "seed": seed,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
        }
        if sampling.top_k:
            body["top_k"] = sampling.top_k
        if prompt.speaker != "assistant":
            # Servers open turns of the assistant only; vLLM goes on with another's when it stands there, still empty.
            messages.append({"role": prompt.speaker, "content": ""})
            body |= {"add_generation_prompt": False, "continue_final_message": True}
        return body

    def _url(self, relative: str) -> str:
        with self._pictures_lock:  # Threads that ask about the same image wait for one of them to encode it.
            return self._pictures(relative)

    def _picture(self, relative: str) -> str:
        """The image as a PNG data URL of nothing but its pixels."""
        image = open_image(self._root, relative)
        # A new image: Pillow would write colour profiles and the like from the old one's `info`.
        pixels = b"\0" * (3 * image.width * image.height) if self._blank else image.tobytes()
        file = io.BytesIO()
        Image.frombytes("RGB", image.size, pixels).save(file, "PNG")
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def request_seed(prompt: Prompt, *, number: int, seed: int) -> int:
    """The seed of a prompt's completion `number`: the same whatever is asked beside it."""
    turns: list[JsonValue] = [[turn.role, turn.content] for turn in prompt.messages]
    return int(content_id(seed, list(prompt.images), turns, prompt.speaker, number), 16) % SEEDS


def pause(attempt: int, asked: str | None, *, share: float) -> float:
    """Seconds before the next attempt: twice as long each time, `share` of the second half by chance.

    `asked` is the server's Retry-After, seconds or a date: it is not asked again earlier, unless that is far off.
    """
    backoff = min(FIRST_WAIT * 2.0**attempt, LONGEST_WAIT) * (1 + share) / 2
    if asked is None:
        return backoff
    try:
        seconds = float(asked)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):  # Neither a number nor a date with a zone.
            return backoff
    return max(backoff, min(seconds, LONGEST_ASKED_WAIT))


def _key(variable: str) -> str:
    key = os.environ.get(variable, "") if variable else ""
    if variable and not key:
        raise StllavaError(
            f"the environment variable {variable} is not set",
            expected="the server's API key in it",
            remedy=f"Run `export {variable}=…`, or leave key_variable empty for a server without a key.",
        )
    return key


def _bad_address(url: str, problem: str) -> StllavaError:
    return StllavaError(
        f"{url!r} is not a server's address: {problem}",
        expected="something like http://localhost:8000/v1",
        remedy="Mend url.",
    )


def _words(text: str) -> str:
    """What a server said, short enough to show."""
    return " ".join(text.split())[:300]
