"""A conversation with a policy about one image, in the terminal."""

import sys
from pathlib import Path

from stllava.config import SamplingOptions
from stllava.errors import ItemError, StllavaError
from stllava.model.load import load_policy
from stllava.model.sampler import Prompt
from stllava.records import Message
from stllava.tree.decode import LocalSampler

GREEDY = SamplingOptions(temperature=0.0, max_new_tokens=512)
TOKENS = 1 << 20


def talk(policy: Path, image: Path, *, question: str | None) -> None:
    """Answer `question`, or every line typed until an empty one; earlier turns stay in the conversation."""
    sampler = LocalSampler(load_policy(policy), root=image.parent, tokens=TOKENS)
    turns: list[Message] = []
    while True:
        asked = question if question is not None else _read_line()
        if not asked:
            return
        turns.append(Message(role="user", content=asked))
        try:
            ((said,),) = sampler.complete([Prompt(tuple(turns), (image.name,))], k=1, sampling=GREEDY, seed=0)
        except ItemError as error:
            raise StllavaError(str(error), expected="a readable image", remedy="Name another file.") from error
        sys.stdout.write(said.text + "\n")
        turns.append(Message(role="assistant", content=said.text))
        if question is not None:
            return


def _read_line() -> str:
    sys.stdout.write("> ")
    sys.stdout.flush()
    return sys.stdin.readline().strip()
