"""Text into tokens: what a question or an answer spells stays text, and only a chat template writes special tokens.

`spelled` marks, in a text from outside, all that the tokenizer would take for a special token, `tokenize` splits marked
text. Text without marks is split as the tokenizer does it, so ordinary text has the ids that it always had. The marks
are those of transformers' own `sanitize_control_tokens`, so its processors count no image place between them.
"""

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, cast

from pydantic import JsonValue
from tokenizers import AddedToken, Tokenizer

from stllava.errors import TextError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BEGIN, END, ALIAS = "\U000f0000", "\U000f0001", "\U000f0002"
"""Private characters: around text that only looks like a special token, and around the number of one that is meant."""
SPELLED = "special token in the text"
"""Why a text cannot be used that spells one where it cannot be told from one that is meant."""


def spellings(tokens: Iterable[str]) -> re.Pattern[str]:
    """What finds these tokens in a text, and marks of its own."""
    return _any_of([*tokens, BEGIN, END])


def spelled(text: str, tokens: re.Pattern[str]) -> str:
    """The text with a mark around each of the tokens that it spells (`spellings`)."""
    return tokens.sub(f"{BEGIN}\\g<0>{END}", text)


def is_marked(text: str) -> bool:
    """Whether there are marks in the text."""
    return BEGIN in text or END in text


def tokenize(tokenizer: "PreTrainedTokenizerBase", text: str) -> tuple[int, ...]:
    """The text's token ids; raises TextError for a special token that the tokenizer cannot spell, and for half a character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TextError("half a character", f"the text is no Unicode: {error}") from None
    if not is_marked(text):
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    if ALIAS in text:
        raise TextError(SPELLED, f"the text holds {ALIAS!r} beside what looks like a special token")
    if tokenizer.is_fast:
        return _Speller.of(tokenizer).split(text)
    try:
        return tuple(tokenizer(text, add_special_tokens=False, sanitize_control_tokens=True)["input_ids"])
    except ValueError as error:
        raise TextError(SPELLED, str(error)) from error


class _Speller:
    """A copy of a tokenizer that knows its added tokens by aliases only, which stand for those that a template wrote."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        added = tokenizer.added_tokens_decoder
        self.aliases = {token.content: f"{ALIAS}{number}{ALIAS}" for number, token in added.items()}
        described = json.loads(tokenizer.backend_tokenizer.to_str())
        self.plain = Tokenizer.from_str(
            json.dumps({**described, "added_tokens": [], "model": self._renamed(described["model"])})
        )
        self.plain.no_truncation()
        self.plain.no_padding()
        self.plain.add_tokens([_named(self.aliases[token.content], token) for token in added.values()])
        self.meant = {self.plain.token_to_id(self.aliases[token.content]): number for number, token in added.items()}
        names = spellings(self.aliases).pattern
        self.parts = re.compile(f"{BEGIN}(?P<spelled>{names}){END}|(?P<meant>{_any_of(self.aliases).pattern})")

    def _renamed(self, model: dict[str, JsonValue]) -> dict[str, JsonValue]:
        """The description of a tokenizer's model with the added tokens in its vocabulary renamed: no letters spell them."""
        vocabulary = model["vocab"]
        if isinstance(vocabulary, dict):
            named: JsonValue = {self.aliases.get(text, text): number for text, number in vocabulary.items()}
        else:
            named = [[self.aliases.get(text, text), score] for text, score in cast("list[tuple[str, float]]", vocabulary)]
        unknown = model.get("unk_token")
        made = {**model, "vocab": named, "unk_token": self.aliases.get(cast(str, unknown), unknown)}
        merges = cast("list[tuple[str, str]] | None", model.get("merges"))
        if merges is not None:
            kept = [pair for pair in merges if self.aliases.keys().isdisjoint((*pair, "".join(pair)))]
            made["merges"] = cast(JsonValue, kept)
        return made

    @staticmethod
    @lru_cache(maxsize=4)
    def of(tokenizer: "PreTrainedTokenizerBase") -> "_Speller":
        """That of a tokenizer, made once."""
        return _Speller(tokenizer)

    def split(self, text: str) -> tuple[int, ...]:
        """The ids of marked text, as if nothing between marks were a special token."""
        named = self.parts.sub(lambda found: found["spelled"] or self.aliases[found["meant"]], text)
        ids = self.plain.encode(named, add_special_tokens=False).ids
        return tuple(self.meant.get(number, number) for number in ids)


def _named(name: str, like: AddedToken) -> AddedToken:
    """A token by another name that takes white space in as `like` does."""
    flags = {"single_word": like.single_word, "lstrip": like.lstrip, "rstrip": like.rstrip, "normalized": like.normalized}
    return AddedToken(name, special=False, **flags)


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """What finds any of the texts, the longest first; none is found among none."""
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or "(?!)")
