"""Replies of servers in all the forms they come in; where a form is known from a bug report, its case says so."""

import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue, ValidationError

from stllava.experts.model.reply_log import fault
from stllava.remote.completion import BROKEN_OFF, ChatCompletion, error_in


def reply(content: JsonValue, *, finish: JsonValue = "stop", **more: JsonValue) -> bytes:
    """The body of a reply."""
    choice: JsonValue = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish}
    return json.dumps({"object": "chat.completion", "choices": [choice], **more}).encode()


def events(*chunks: JsonValue, done: bool = True, gap: str = "\n\n") -> bytes:
    """The body of an event stream."""
    lines = [f"data: {json.dumps(chunk)}" for chunk in chunks] + ["data: [DONE]"] * done
    return (gap.join(lines) + gap).encode()


def piece(text: str | None, *, finish: str | None = None, index: int = 0, **more: JsonValue) -> dict[str, JsonValue]:
    """An event of a stream."""
    delta: JsonValue = {"role": "assistant", "content": text, "reasoning_content": "hm"}
    return {"object": "chat.completion.chunk", "choices": [{"index": index, "delta": delta, "finish_reason": finish}], **more}


USAGE: JsonValue = {"prompt_tokens": 9, "completion_tokens": 3}
FORMS = [
    pytest.param(reply("Verdict: 1"), id="plain"),
    pytest.param(b"\xef\xbb\xbf" + reply("Verdict: 1"), id="byte order mark"),
    pytest.param(b"\n\n \r\n" * 50 + reply("Verdict: 1"), id="empty lines first"),  # deepseek-ai/DeepSeek-V3#599
    pytest.param(reply("Verdict: 1") + b"\ndata: [DONE]\n\n", id="end mark behind it"),  # decolua/9router#3492
    pytest.param(b"data: " + reply("Verdict: 1") + b"\n\ndata: [DONE]\n\n", id="a whole reply as an event"),
    pytest.param(reply([{"type": "text", "text": "Verdict"}, {"type": "text", "text": ": 1"}]), id="parts"),
    pytest.param(reply({"type": "text", "text": "Verdict: 1"}), id="one part"),
    pytest.param(reply(["Verdict", ": 1"]), id="parts that are strings"),
    pytest.param(
        reply([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "Verdict: 1"}]),
        id="a thought in parts",
    ),
    pytest.param(
        reply([{"type": "image_url", "image_url": {}}, {"type": "text", "text": "Verdict: 1"}]), id="an image in parts"
    ),
    pytest.param(reply("Verdict: 1", finish={"type": "stop", "matched": 2}), id="finish reason as an object"),
    pytest.param(reply("Verdict: 1", finish=None), id="no finish reason"),
    pytest.param(reply("Verdict: 1", usage=None), id="null usage"),
    pytest.param(reply("Verdict: 1", error=None), id="null error"),
    pytest.param(
        events(piece(""), piece("Verdict"), piece(": 1"), piece(None, finish="stop")), id="stream"
    ),  # unslothai/unsloth#6570
    pytest.param(
        events(piece("Verdict: 1"), piece(None, finish="stop"), {"choices": [], "usage": USAGE}, done=False),
        id="stream without an end mark",
    ),
    pytest.param(
        events(piece("Verdict: 1"), piece(None, finish="stop"), gap="\n"), id="stream without empty lines"
    ),  # owndev/Open-WebUI-Functions#54
    pytest.param(
        b": keep-alive\n\n: OPENROUTER PROCESSING\n\n" + events(piece("Verdict: 1", finish="stop")), id="stream with comments"
    ),  # tmc/langchaingo#1171
    pytest.param(
        b"event: message\r\nid: 1\r\n" + events(piece("Verdict: 1", finish="stop"), gap="\r\n\r\n"),
        id="stream of Windows lines",
    ),
    pytest.param(
        events(piece("Verdict: 1", finish="stop"), piece("Verdict: 2", finish="stop", index=1)), id="stream of two choices"
    ),
]


@pytest.mark.parametrize("body", FORMS)
def test_a_reply_is_read_in_every_form_it_comes_in(body: bytes) -> None:
    read = ChatCompletion.read(body)
    assert read.choices[0].message.content == "Verdict: 1"
    assert fault(body) is None
    assert error_in(body) is None


def test_an_event_stream_that_breaks_off_is_no_reply() -> None:
    body = events(piece("Verdict: 1"), done=False)
    assert ChatCompletion.read(body).choices[0].finish_reason == BROKEN_OFF
    assert fault(body) == "the reply did not come to its end (the stream broke off)"


def test_a_stream_keeps_its_usage_and_its_finish_reason() -> None:
    body = events(piece("Ver", usage=None), piece("dict", finish="length"), {"choices": [], "usage": USAGE})
    read = ChatCompletion.read(body)
    assert (read.choices[0].end, read.choices[0].message.content) == ("length", "Verdict")
    assert read.usage is not None
    assert (read.usage.prompt_tokens, read.usage.completion_tokens) == (9, 3)


ERRORS = [
    pytest.param({"error": {"message": "overloaded", "code": 503}}, 503, id="code"),
    pytest.param({"error": {"message": "slow down", "code": "429"}}, 429, id="code in digits"),
    pytest.param({"error": {"message": "no", "code": "context_length_exceeded", "status": 400}}, 400, id="status"),
    pytest.param({"error": "'response_format.type' must be 'text'"}, None, id="a string"),  # LM Studio
    pytest.param(
        {"object": "error", "message": "The model `x` does not exist.", "type": "NotFoundError", "code": 404}, 404, id="vLLM"
    ),  # runpod-workers/worker-vllm#57
    pytest.param({"choices": None, "error": {"message": "Provider returned error", "code": 502}}, 502, id="null choices"),
    pytest.param({"error": {"message": "x", "code": True}}, None, id="a code that is none"),
    pytest.param({"error": {"message": "x", "code": 200}}, None, id="a code that says all is well"),
]


@pytest.mark.parametrize(("body", "status"), ERRORS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])  # ggml-org/llama.cpp#14566
def test_an_error_inside_a_reply_of_status_200_is_an_error(body: Mapping[str, JsonValue], status: int, stream: bool) -> None:
    raw = events(dict(body)) if stream else json.dumps(body).encode()
    found = error_in(raw)
    assert found is not None
    assert found.status == status


@pytest.mark.parametrize("choices", [None, []], ids=["null", "empty"])  # langchain-ai/langchain#35236
def test_no_choices_are_told_as_such(choices: JsonValue) -> None:
    assert fault(json.dumps({"choices": choices}).encode()) == "the reply holds no choice"


COUNTS: list[object] = [
    pytest.param({"prompt_tokens": None, "completion_tokens": 5}, id="null"),  # openai/openai-agents-python#1179
    pytest.param({"prompt_tokens": -9, "completion_tokens": 5}, id="negative"),
    pytest.param({"prompt_tokens": 9, "completion_tokens": -5}, id="a negative reply"),
    pytest.param({"prompt_tokens": 10**30, "completion_tokens": 5}, id="absurd"),
    pytest.param({"prompt_tokens": float("nan"), "completion_tokens": 5}, id="not a number"),
    pytest.param({"prompt_tokens": float("inf"), "completion_tokens": 5}, id="infinite"),
    pytest.param({"prompt_tokens": 9.5, "completion_tokens": 5}, id="half a token"),
    pytest.param({"prompt_tokens": "9", "completion_tokens": "5"}, id="strings"),
    pytest.param({"prompt_tokens": True, "completion_tokens": True}, id="truths"),
    pytest.param({"prompt_tokens": [9], "completion_tokens": {}}, id="lists"),
    pytest.param({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, id="zeros"),  # ollama/ollama#13371
    pytest.param({"prompt_tokens": 9, "completion_tokens": 0}, id="a text of no tokens"),
    pytest.param({"total_tokens": 14}, id="a total alone"),
    pytest.param({}, id="nothing"),
    pytest.param([9, 5], id="a list"),
    pytest.param("14 tokens", id="words"),
]


@pytest.mark.parametrize("usage", COUNTS)
def test_counts_of_tokens_that_cannot_be_are_not_believed_and_the_words_are_read_all_the_same(usage: JsonValue) -> None:
    body = reply("Verdict: 1", usage=usage)
    read = ChatCompletion.read(body)
    assert read.usage is None
    assert read.choices[0].message.content == "Verdict: 1"
    assert fault(body) is None


def test_thinking_that_only_the_total_counts_is_counted_as_reply() -> None:  # router-for-me/CLIProxyAPI#5733
    read = ChatCompletion.read(reply("Verdict: 1", usage={"prompt_tokens": 21, "completion_tokens": 1, "total_tokens": 81}))
    assert read.usage is not None
    assert (read.usage.prompt_tokens, read.usage.completion_tokens) == (21, 60)


def test_a_refusal_among_parts_is_a_refusal() -> None:
    body = reply([{"type": "refusal", "refusal": "I cannot look at this."}])
    assert ChatCompletion.read(body).choices[0].message.refusal == "I cannot look at this."
    assert fault(body) is None


@given(st.one_of(st.binary(), st.text().map(str.encode)))
def test_no_bytes_raise_anything_but_a_refusal_to_read_them(body: bytes) -> None:
    error_in(body)
    try:
        ChatCompletion.read(body)
    except ValidationError:
        assert fault(body) is not None


@pytest.mark.parametrize(
    "body",
    [b"[" * 100_000, b'{"a":' * 100_000, b'{"choices": ' + b"9" * 10_000 + b"}", b"data: " + b"[" * 100_000, b":" * 100_000],
    ids=["deep list", "deep object", "long number", "deep event", "colons"],
)
def test_hostile_json_is_told_as_unusable(body: bytes) -> None:
    assert fault(body) is not None
    assert error_in(body) is None
