"""Replies as servers end them: what may be read, what is asked again, what is neither."""

import json
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

import pytest
from pydantic import JsonValue

from helpers.judging import answers_of
from stllava.config import JudgeOptions
from stllava.experts.model.model_expert import ModelExpert
from stllava.experts.model.reply_log import Exchange, FreeBackend, JudgeRequest, ReplyLog, as_body, cut_off, fault, reply_text
from stllava.experts.model.rubric import load_rubric

CUT = ["length", "max_tokens", "MAX_TOKENS", "model_length", "max_new_tokens"]
"""As OpenAI, Anthropic, Gemini, Mistral and text-generation-inference call it."""
ENDED = ["stop", "STOP", "end_turn", "eos", "eos_token", "stop_sequence", "COMPLETE", "", None]


def body_of(text: str | None, finish: str | None, *, refusal: str | None = None) -> str:
    """A server's reply that ended so."""
    message = {"role": "assistant", "content": text, "refusal": refusal}
    return json.dumps({"choices": [{"message": message, "finish_reason": finish}]})


def exchange_of(body: str) -> Exchange:
    """A reply in the reply_log."""
    request = JudgeRequest(id="x", subject="a", order=(0, 1), repeat=0, text="", images=(), schema={})
    return Exchange.of(request, model="m", body=body)


@pytest.mark.parametrize("finish", CUT)
def test_words_that_a_limit_cut_off_are_no_verdict_and_not_asked_again(finish: str) -> None:
    body = body_of("Answer 1 is better in style, but\nVerdict: 1", finish)
    assert fault(body.encode()) is None, "the same request would be cut off again, and paid for again"
    assert cut_off(body.encode())
    told = reply_text(exchange_of(body))
    assert told.cause == "unparsed"
    assert "max_tokens" in told.detail
    assert told.text.endswith("Verdict: 1"), "what was paid for stays to be looked at"


@pytest.mark.parametrize("finish", CUT)
@pytest.mark.parametrize("text", [None, "", " \n"], ids=["none", "empty", "blank"])
def test_a_cut_off_reply_without_text_names_the_remedy(text: str | None, finish: str) -> None:
    body = body_of(text, finish)
    assert "raise max_tokens" in (fault(body.encode()) or "")
    assert cut_off(body.encode())
    told = reply_text(exchange_of(body))
    assert told.cause == "unparsed"
    assert "raise max_tokens" in told.detail


@pytest.mark.parametrize("finish", ENDED)
def test_a_reply_that_came_to_its_end_is_read(finish: str | None) -> None:
    body = body_of("Verdict: 1", finish)
    assert fault(body.encode()) is None
    assert not cut_off(body.encode())
    assert reply_text(exchange_of(body)).cause is None


@pytest.mark.parametrize("finish", ["error", "abort", "tool_calls", "insufficient_system_resource"])
def test_a_reply_that_broke_off_is_asked_for_again(finish: str) -> None:
    body = body_of("Verdict: 1", finish)
    assert finish in (fault(body.encode()) or "")
    assert reply_text(exchange_of(body)).cause == "failed"


@pytest.mark.parametrize("finish", ["content_filter", "SAFETY", "RECITATION"])
def test_a_reply_that_was_held_back_is_a_refusal(finish: str) -> None:
    body = body_of("Verdict: 1", finish)
    assert fault(body.encode()) is None
    assert reply_text(exchange_of(body)).cause == "refused"


def test_a_refusal_that_was_cut_off_is_a_refusal() -> None:
    assert reply_text(exchange_of(body_of(None, "length", refusal="I cannot look"))).cause == "refused"


class CutOff(FreeBackend):
    """A model whose replies end at their last token."""

    name = "cut off"
    identity: dict[str, JsonValue] = {}  # noqa: RUF012 - as the protocol has it

    def ask(self, requests: Iterable[JudgeRequest], record: Callable[[Exchange], None]) -> None:
        """Reply to every request."""
        for request in requests:
            record(Exchange.of(request, model=self.name, body=as_body("Verdict: 1", finished=False)))


def test_a_judgment_of_cut_off_replies_says_what_to_raise(tmp_path: Path) -> None:
    rubric = load_rubric(None, mode="pairwise", structured=False)
    answers = answers_of("what?", ("a nodule", "a mass"))
    with closing(ReplyLog(tmp_path, name="expert")) as reply_log:
        expert = ModelExpert(CutOff(), rubric, reply_log=reply_log, options=JudgeOptions())
        expert.prepare([answers])
        verdict = expert.judge(answers)
    assert (verdict.scores, verdict.cause) == (None, "unparsed")
    assert "raise max_tokens" in verdict.reason
    assert verdict.raw == ("Verdict: 1", "Verdict: 1")
