"""The reply of an OpenAI-compatible chat endpoint, as far as anything here reads it, in all the forms it comes in.

Pure: bytes in, records out. Read are one JSON object, an event stream though none was asked for, and JSON with the end
mark of a stream behind it; texts in one piece or in parts; counts of tokens that are missing, null or beyond belief.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import (
    BaseModel,
    JsonValue,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

DONE = "[DONE]"
"""What ends an event stream."""
BROKEN_OFF = "the stream broke off"
"""The finish reason of an event stream without an end."""
ENDED = frozenset({"", "stop", "stop_sequence", "end_turn", "end_of_turn", "eos", "eos_token", "complete", "completed"})
"""Finish reasons of a reply that came to its own end, in lower case; a server that names none is taken at its word."""
CUT_OFF = frozenset({"length", "max_tokens", "max_new_tokens", "max_output_tokens", "max_completion_tokens", "model_length"})
"""Finish reasons of a reply that a limit of tokens cut off."""
FILTERED = frozenset({"content_filter", "safety", "recitation", "refusal", "prohibited_content", "sensitive"})
"""Finish reasons of a reply that the provider held back."""
MOST_TOKENS = 1_000_000_000
"""Larger counts are no counts: no context is that long."""
_STREAM = ("data:", "event:", "id:", "retry:", ":")
"""How the first line of an event stream begins; a colon alone is a comment, sent to keep a connection open."""
_ERROR_STATUSES = range(400, 600)
_APART = ("reasoning", "reasoning_content", "tool_calls")
"""Fields of a message into which parsers of servers put what is no text."""


class ChatMessage(BaseModel):
    """What was said."""

    content: str | None = None
    refusal: str | None = None
    reasoning: object = None
    reasoning_content: object = None
    tool_calls: object = None

    @property
    def apart(self) -> bool:
        """Whether a parser of the server's put words elsewhere, as thoughts or calls of tools."""
        return bool(self.reasoning or self.reasoning_content or self.tool_calls)

    @model_validator(mode="before")
    @classmethod
    def _joined(cls, message: object) -> object:
        """A message whose content is a list of parts: its texts become one, thoughts and images are left out."""
        if not isinstance(message, Mapping):
            return message
        content = message.get("content")
        if isinstance(content, Mapping):
            content = [content]
        if not isinstance(content, list):
            return message
        refusals = [part["refusal"] for part in content if isinstance(part, Mapping) and isinstance(part.get("refusal"), str)]
        texts = _texts(content)
        joined = {"content": "".join(texts) if texts else None}
        return {**message, **joined, **({"refusal": "".join(refusals)} if refusals else {})}


class ChatChoice(BaseModel):
    """One completion."""

    message: ChatMessage
    finish_reason: str | None = None

    @field_validator("finish_reason", mode="before")
    @classmethod
    def _named(cls, reason: object) -> object:
        """A finish reason in a word; SGLang's own form is an object with a type."""
        return reason.get("type") if isinstance(reason, Mapping) else reason

    @property
    def end(self) -> str:
        """Why it ended, in lower case; empty where the server does not say."""
        return (self.finish_reason or "").lower()


class ChatUsage(BaseModel):
    """What it took, in tokens."""

    prompt_tokens: int
    completion_tokens: int
    """Thinking included."""

    @model_validator(mode="before")
    @classmethod
    def _with_thoughts(cls, usage: object) -> object:
        """Count as completion what a total holds beside the prompt: some servers leave thinking, which is billed, out."""
        if not isinstance(usage, Mapping):
            return usage
        prompt, said, total = (_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens", "total_tokens"))
        if not prompt or said is None:
            raise ValueError("no prompt is without tokens")
        return {"prompt_tokens": prompt, "completion_tokens": max(said, total - prompt) if total is not None else said}


class ChatCompletion(BaseModel):
    """The whole reply; fields that are not named here are ignored."""

    choices: list[ChatChoice] = []
    usage: ChatUsage | None = None
    """None where the server does not say, or says what cannot be."""

    @field_validator("choices", mode="before")
    @classmethod
    def _listed(cls, choices: object) -> object:
        """No choices are none, whatever a server writes for that."""
        return [] if choices is None else choices

    @field_validator("usage", mode="wrap")
    @classmethod
    def _believed(cls, usage: object, check: ValidatorFunctionWrapHandler) -> "ChatUsage | None":
        """Counts that are null, negative, no numbers or beyond belief are no counts; the words are as good without them."""
        try:
            checked = check(usage)
        except ValidationError:
            return None
        return checked if isinstance(checked, ChatUsage) else None

    @model_validator(mode="after")
    def _counted(self) -> "ChatCompletion":
        """A count of no tokens for a text that is there is no count."""
        if self.usage is not None and not self.usage.completion_tokens and any(one.message.content for one in self.choices):
            self.usage = None
        return self

    @classmethod
    def read(cls, body: bytes | str) -> "ChatCompletion":
        """The reply that the body of a response holds; raises ValidationError."""
        found = read_json(body)
        return cls.model_validate_json(found) if isinstance(found, str) else cls.model_validate(found)


@dataclass(frozen=True)
class ServerError:
    """An error that a server reports in a response that says that all is well."""

    status: int | None
    """The status that the response should have had; None where the error does not say."""
    words: str
    """The error in the server's words."""


def error_in(body: bytes) -> ServerError | None:
    """The error that a response of status 200 holds in place of a reply; None where it holds none."""
    read = read_json(body)
    found = _object(read) if isinstance(read, str) else read
    if found is None or found.get("choices"):
        return None
    error = found.get("error") or (found if found.get("object") == "error" else None)
    if not error:
        return None
    told = {**found, **error} if isinstance(error, Mapping) else found
    codes = (told.get(name) for name in ("status", "status_code", "code"))
    status = next((code for code in map(_status, codes) if code is not None), None)
    return ServerError(status, json.dumps(error, ensure_ascii=False))


def read_json(body: bytes | str) -> "str | dict[str, JsonValue]":
    """The JSON text of a body, or the object that an event stream makes."""
    text = (body.decode("utf-8", errors="replace") if isinstance(body, bytes) else body).removeprefix("\ufeff").strip()
    if text.startswith(_STREAM):
        return _from_stream(text)
    if text.endswith(DONE):
        text = text.removesuffix(DONE).rstrip().removesuffix("data:").rstrip()
    return text


def _from_stream(text: str) -> dict[str, JsonValue]:
    """What the events of a stream say together, of the first choice alone."""
    whole: dict[str, JsonValue] | None = None
    said: list[str] = []
    refused: list[str] = []
    apart: dict[str, JsonValue] = {}
    end: JsonValue = None
    usage: JsonValue = None
    begun = False
    for event in _events(text):
        if event.get("error") or event.get("object") == "error":
            return {"error": event.get("error") or event}
        usage = event.get("usage") or usage
        choices = event.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict) or choice.get("index") not in (0, None):
                continue
            if isinstance(choice.get("message"), dict):
                whole = event
            begun = True
            delta = choice.get("delta")
            if isinstance(delta, dict):
                said += _texts(delta.get("content"))
                refused += _texts(delta.get("refusal"))
                apart |= {name: delta[name] for name in _APART if delta.get(name)}
            end = choice.get("finish_reason") or end
    if whole is not None:
        return whole
    if not begun:
        return {"choices": [], "usage": usage}
    if end is None and not text.endswith(DONE):
        end = BROKEN_OFF
    message: JsonValue = {"content": "".join(said) if said else None, "refusal": "".join(refused) or None, **apart}
    return {"choices": [{"message": message, "finish_reason": end}], "usage": usage}


def _events(text: str) -> Iterator[dict[str, JsonValue]]:
    """The objects in the data of a stream's events; comments and what is no object are passed over."""
    for block in text.replace("\r\n", "\n").replace("\r", "\n").split("\n\n"):
        lines = [line.removeprefix("data:").removeprefix(" ") for line in block.split("\n") if line.startswith("data:")]
        # Servers that leave out the empty line between events put a whole object on each line.
        for data in ["\n".join(lines)] if len(lines) == 1 or _object("\n".join(lines)) is not None else lines:
            found = _object(data)
            if found is not None:
                yield found


def _object(text: str) -> dict[str, JsonValue] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _texts(content: object) -> list[str]:
    """The texts of a content: itself, or those of its parts."""
    if isinstance(content, str):
        return [content]
    found = []
    for part in content if isinstance(content, list) else ():
        if isinstance(part, str):
            found.append(part)
        elif (
            isinstance(part, Mapping)
            and part.get("type", "text") in ("text", "output_text")
            and isinstance(part.get("text"), str)
        ):
            found.append(part["text"])
    return found


def _count(value: object) -> int | None:
    """A count of tokens, or None where it cannot be one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_TOKENS:
        return None
    return int(value) if value == int(value) else None


def _status(value: object) -> int | None:
    """A status of HTTP that means an error, as a number or in digits."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) == 3:
        value = int(value)
    return value if isinstance(value, int) and value in _ERROR_STATUSES else None


def token_log_probabilities(body: bytes) -> float | None:
    """The sum of the log-probabilities of a reply's tokens, as servers give them that were asked for `logprobs`; else None."""
    try:
        content = json.loads(body)["choices"][0]["logprobs"]["content"]
        return math.fsum(float(token["logprob"]) for token in content)
    except (ValueError, KeyError, IndexError, TypeError):
        return None
