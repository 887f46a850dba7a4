"""A conversation with a policy about an image, in the terminal, each word written as it comes.

Reads the folder of a policy and an image; writes to the terminal only.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from stllava.config import SamplingOptions
from stllava.data.images import check_image
from stllava.errors import ItemError, StllavaError, TextError
from stllava.generation.local_sampler import LocalSampler
from stllava.generation.sampler import Prompt
from stllava.model.load import Policy, load_policy
from stllava.model.processor import belonging
from stllava.records import Message
from stllava.text import show

OTHER_IMAGE = "/image "
"""How a line begins that names another image."""
BROKEN = "\ufffd"
"""What a tokenizer makes of bytes that are no whole character yet."""


def talk(policy: Path, image: Path, *, question: str | None, sampling: SamplingOptions, seed: int = 0) -> None:
    """Answer `question`, or every line typed until an empty one; earlier turns stay in the conversation.

    Ctrl-C ends an answer, not the conversation. A line `/image PATH` begins another one, about that image.
    """
    _check(image)
    speaker = load_policy(policy)
    torch.manual_seed(seed)
    turns: tuple[Message, ...] = ()
    while asked := question if question is not None else _read_line():
        if asked.startswith(OTHER_IMAGE):
            other = Path(asked.removeprefix(OTHER_IMAGE).strip()).expanduser()
            try:
                _check(other)
            except StllavaError as error:
                _write(f"{error}\n")
            else:
                image, turns = other, ()
            continue
        now = (*turns, Message(role="user", content=asked))
        sampler = LocalSampler(speaker, root=image.parent, tokens=speaker.context)
        try:
            said = say(sampler, Prompt(now, (image.name,)), sampling=sampling, tell=_write)
        except StllavaError as error:
            if question is not None:
                raise
            _write(f"{error}\n")  # The conversation goes on without that question.
            continue
        _write("\n")
        turns = (*now, Message(role="assistant", content=said))
        if question is not None:
            return


def say(sampler: LocalSampler, prompt: Prompt, *, sampling: SamplingOptions, tell: Callable[[str], None]) -> str:
    """What the policy says next, told piece by piece as it comes; greedy text is the sampler's own.

    Ctrl-C ends it early.
    """
    policy = sampler.policy
    try:
        asked = prompt.messages[-1].content
        policy.tokens(asked)
        request = sampler.request(prompt)
        encoded = policy.encode(request.prefix)
    except TextError as error:
        raise StllavaError(
            f"{asked[:80]!a}: {error}", expected="a text that the model can be given", remedy="Ask in other words."
        ) from error
    except ItemError as error:
        raise StllavaError(str(error), expected="an image that the model takes", remedy="Name another file.") from error
    ids = torch.tensor([[*encoded.ids, *request.ids]], device=policy.device)
    room = policy.context - ids.shape[1]
    if room < 1:
        raise StllavaError(
            f"the conversation is {ids.shape[1]} tokens long and the model was made for {policy.context}",
            expected="room for an answer",
            remedy="Begin a new conversation.",
        )
    # generate takes what it is not told from here, where some models bring a penalty or a temperature of their own.
    policy.model.generation_config = _configured(policy, sampling, most=min(room, sampling.max_new_tokens))
    stream = Stream(policy, tell)
    try:
        with belonging(), torch.inference_mode():
            policy.model.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                **policy.join([encoded]),
                **policy.kinds([request.prefix], left=[0], width=ids.shape[1]),
                streamer=stream,
            )
    except KeyboardInterrupt:
        stream.end()
    return stream.text


class Stream(BaseStreamer):
    """Turns tokens into text as they come; no piece ends within a character, or with white space that may be the last."""

    def __init__(self, policy: Policy, tell: Callable[[str], None]) -> None:
        self.policy, self.tell = policy, tell
        self.tokens: list[int] = []
        self.told = ""
        self.begun = False

    @property
    def text(self) -> str:
        """All that was said so far, without white space around it."""
        spoken = [token for token in self.tokens if token not in self.policy.stop_ids]
        return str(self.policy.tokenizer.decode(spoken, skip_special_tokens=True)).strip()

    def put(self, value: Tensor) -> None:
        """Take the prompt, which is not told again, then one token after the other."""
        if self.begun:
            self.tokens += value.flatten().tolist()
            self._tell(self.text.rstrip(BROKEN).rstrip())
        self.begun = True

    def end(self) -> None:
        """Tell the rest."""
        self._tell(self.text)

    def _tell(self, text: str) -> None:
        piece = text[len(self.told) :]
        if piece:
            self.told = text
            self.tell(piece)


def _configured(policy: Policy, sampling: SamplingOptions, *, most: int) -> GenerationConfig:
    warm = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    return GenerationConfig(
        do_sample=sampling.temperature > 0,
        max_new_tokens=most,
        eos_token_id=sorted(policy.stop_ids),
        pad_token_id=policy.tokenizer.pad_token_id,
        **(warm if sampling.temperature > 0 else {}),
    )


def _check(image: Path) -> None:
    try:
        check_image(image.parent, image.name)
    except ItemError as error:
        raise StllavaError(str(error), expected="an image that can be read", remedy="Name another file.") from error


def _read_line() -> str:
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        _write("\n")
        return ""


def _write(text: str) -> None:
    show(text, end="")
