"""What a server's refusal means: whether asking again can help, whether other requests will fare better, what to do.

Servers agree neither on statuses nor on codes, so their words are searched for what they are known to say. Pure.
"""

from dataclasses import dataclass
from typing import Literal

AGAIN = frozenset({408, 409, 425, 429})
"""Statuses of 4xx that pass: time-outs, conflicts, too many requests."""


@dataclass(frozen=True)
class Refusal:
    """What one kind of refusal means."""

    name: str
    """The kind, in a word."""
    reach: Literal["request", "all", "unknown"]
    """Whether it is about this request alone, about every request, or about every one if none was ever answered."""
    again: bool
    """Whether the same request may succeed later."""
    remedy: str
    """What to do about it; empty where the server's own words must do."""
    words: tuple[str, ...] = ()
    """What servers say, in lower case; any of these."""
    statuses: frozenset[int] = frozenset()
    """Statuses that mean it without a word."""


KINDS = (
    Refusal(
        "quota",
        "all",
        again=False,
        remedy="Top up the account or raise its limit at the provider, then give the same command again: every reply is kept.",
        # Not "exceeded your current quota": Gemini says that of limits a minute, which pass.
        words=("insufficient_quota", "insufficient balance", "insufficient credits", "billing_hard_limit"),
        statuses=frozenset({402}),
    ),
    Refusal(
        "filter",
        "request",
        again=False,
        remedy="The provider's content filter held it back: ask the provider for another filter, or use another server.",
        words=("content_filter", "content management policy", "responsibleaipolicyviolation", "content_policy_violation"),
    ),
    Refusal(
        "image",
        "unknown",
        again=False,
        remedy="Name a vision-language model, and start llama.cpp's server with --mmproj.",
        words=(
            "does not support image",
            "image input is not supported",
            "image_url is not supported",
            "is not a multimodal model",
            "unknown variant `image_url`",
            "no endpoints found that support image input",
            "mmproj",
        ),
    ),
    Refusal(
        "size",
        "request",
        again=False,
        remedy="Lower max_side, so that images are sent smaller, or let the server take larger requests.",
        words=("request entity too large", "payload too large", "request_too_large", "image exceeds", "maximum image size"),
        statuses=frozenset({413}),
    ),
    Refusal(
        "context",
        "request",
        again=False,
        remedy="Start the server with a longer context (vLLM --max-model-len, llama.cpp -c, Ollama num_ctx), or send less: "
        "a smaller max_side or max_tokens, mode pairwise, shorter contexts.",
        words=(
            "context length",
            "context_length",
            "context size",
            "context window",
            "exceed_context_size",
            "maximum model length",
            "max_model_len",
            "max model len",
            "prompt is too long",
            "input is too long",
            "too many tokens",
            "reduce the length",
            "maximum number of tokens",
        ),
    ),
    Refusal(
        "max_tokens",
        "unknown",
        again=False,
        remedy="Set extra to {max_tokens: null, max_completion_tokens: 4000}.",
        words=("max_completion_tokens",),
    ),
    Refusal(
        "response_format",
        "unknown",
        again=False,
        remedy="Set structured to false: the form of the reply is then asked for in words.",
        words=("response_format", "json_schema", "structured output", "guided_json", "response schema"),
    ),
    Refusal(
        "temperature",
        "unknown",
        again=False,
        remedy="Set extra to {temperature: null}.",
        words=("'temperature' does not support", "temperature is not supported", "parameter: 'temperature'"),
    ),
    Refusal(
        "field",
        "unknown",
        again=False,
        remedy="Leave the field that it names out of the requests: extra {FIELD: null}.",
        words=(
            "unrecognized request argument",
            "extra inputs are not permitted",
            "unsupported parameter",
            "unknown field",
            "unknown parameter",
            "unexpected keyword",
        ),
    ),
    Refusal(
        "key",
        "all",
        again=False,
        remedy="Check the key in the variable that key_variable names; a server that wants it in a header of its own, such as "
        "Azure's api-key, is told by header_variables.",
        statuses=frozenset({401, 403}),
    ),
    Refusal(
        "address",
        "all",
        again=False,
        remedy="Check model, and url: it ends before /chat/completions.",
        statuses=frozenset({404, 405}),
    ),
    Refusal(
        "rate",
        "unknown",
        again=True,
        remedy="Lower concurrency, or set requests_per_minute and tokens_per_minute to the server's limits.",
        statuses=frozenset({429}),
    ),
    Refusal(
        "certificate",
        "all",
        again=False,
        remedy="Write the host in url as its certificate names it, and use https only if the server supports it.",
        words=("certificate verify failed", "wrong version number", "wrong_version_number"),
    ),
    Refusal(
        "host",
        "unknown",
        again=True,
        remedy="Check the host in url.",
        words=("name or service not known", "temporary failure in name resolution", "nodename nor servname"),
    ),
    Refusal(
        "nobody",
        "unknown",
        again=True,
        remedy="Start the server, or check the port in url.",
        words=("connection refused",),
    ),
    Refusal(
        "time",
        "unknown",
        again=True,
        remedy="Raise timeout, or lower concurrency where the server is merely busy.",
        words=("(timeout)",),
    ),
)
_ASKERS_FAULT = Refusal("refused", "unknown", again=False, remedy="")
_SERVERS_FAULT = Refusal("failing", "unknown", again=True, remedy="")
_REDIRECT = Refusal(
    "redirect",
    "all",
    again=False,
    remedy="Nothing was sent there. Set url to that address if you trust it, and send_images if images may go there.",
)


def refusal_of(status: int | None, words: str) -> Refusal:
    """What a response of this status, or an error of None, with these words means."""
    if status is not None and 300 <= status < 400:
        return _REDIRECT
    said = words.lower()
    for kind in KINDS:
        if status in kind.statuses or any(phrase in said for phrase in kind.words):
            return kind
    fatal = status is not None and 400 <= status < 500 and status not in AGAIN
    return _ASKERS_FAULT if fatal else _SERVERS_FAULT


def advice(words: str) -> str:
    """What to do about a failure that was told in these words; empty where nothing is known to help."""
    said = words.lower()
    for kind in KINDS:
        if any(phrase in said for phrase in (*kind.words, *(f"status {code}:" for code in kind.statuses))):
            return kind.remedy
    return ""
