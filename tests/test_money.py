"""What a judge costs: every billed reply is counted, useless ones and repeated ones too, and no limit is passed."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock

import httpx2
import pytest
from pydantic import JsonValue

from helpers.judging import completion, judgments_of, many_answers, prompt_of, verdict_on, write_answers, write_image
from stllava.cli import main
from stllava.config import ChatOptions, JudgeOptions
from stllava.errors import NothingLeftError, StllavaError
from stllava.experts import build
from stllava.experts.backends.chat_server import ChatServer
from stllava.experts.model.reply_log import JudgeRequest, ReplyLog
from stllava.remote import rate_limiter
from stllava.remote.budget import Budget, BudgetSpentError, CostLimit, LimitError
from stllava.stages.judge import judge, plan
from stllava.store import EXCHANGES

URL = "http://127.0.0.1:9/v1"
PRICES: dict[str, object] = {"input_price": 3.0, "output_price": 7.0, "max_tokens": 50, "image_tokens": 200}
USELESS = ("no choice", "no text", "an error too", "broken off", "not JSON")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow one another at once."""
    monkeypatch.setattr(rate_limiter, "FIRST_WAIT", 0.0)


@dataclass
class Meter:
    """A server that bills every reply by the tokens it tells, useless ones too; which ones are depends on the request alone."""

    share: float = 0.0
    more: int = 0
    """Tokens of every image beyond what the tests' options reckon with."""
    billed: int = 0
    """Millionths of a US dollar."""
    asked: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    """Replies by what is wrong with them."""
    lock: Lock = field(default_factory=Lock)

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        """As the transport of a client."""
        body = json.loads(request.content)
        prompt = prompt_of(body)
        with self.lock:
            self.asked[prompt] += 1
            chance = int(hashlib.sha256(f"{prompt} {self.asked[prompt]}".encode()).hexdigest()[:8], 16) / 16**8
            wrong = USELESS[int(chance / self.share * len(USELESS))] if chance < self.share else ""
            self.sent[wrong] += 1
            said = completion(verdict_on(prompt))
            tokens = 150 + self.more + int(1000 * chance) % 50, 10 + int(100_000 * chance) % 40
            usage: JsonValue = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
            replies: dict[str, dict[str, JsonValue]] = {
                "no choice": {"choices": []},
                "no text": completion(None),
                "an error too": {"error": {"message": "I was cut short", "code": 502}},
                "broken off": {"choices": [{"message": {"content": "half"}, "finish_reason": "abort"}]},
            }
            reply = replies.get(wrong, said) | {"usage": usage}
            if wrong == "not JSON":  # The reply is lost, and its count with it.
                return httpx2.Response(200, content=b"<html>bad gateway</html>")
            self.billed += tokens[0] * 3 + tokens[1] * 7
            self.answered[prompt] += not wrong
            return httpx2.Response(200, json=reply)


def use(monkeypatch: pytest.MonkeyPatch, server: Meter) -> None:
    """Let the stage's server be this one."""
    monkeypatch.setattr(build, "ChatServer", partial(ChatServer, transport=httpx2.MockTransport(server)))


def options(**chat: object) -> JudgeOptions:
    """Judge by pairs, asking a server that has a price."""
    given = {"url": URL, "model": "vlm", "structured": False, "concurrency": 8, "retries": 8} | PRICES | chat
    return JudgeOptions(expert="chat", mode="pairwise", chat=ChatOptions.model_validate(given))


def spent(folder: Path) -> float:
    """US dollars by the log of replies."""
    reply_log = ReplyLog(folder, name="expert")
    reply_log.close()
    return reply_log.cost


@pytest.mark.parametrize("count", [pytest.param(2000, marks=pytest.mark.slow), 200])
def test_billed_but_useless_replies_count_to_the_cent_and_no_limit_is_passed(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, root = write_answers(tmp_path / "answers", many_answers(count)), write_image(tmp_path / "images")
    use(monkeypatch, calm := Meter())
    judge(options(), answers=given, root=root, to=tmp_path / "calm")
    use(monkeypatch, server := Meter(share=0.3))
    limit = 0.0
    for limit in (calm.billed / 3e6, calm.billed / 2e6, calm.billed / 1e6):
        with pytest.raises(StllavaError, match="could pass max_cost"):
            judge(options(max_cost=limit), answers=given, root=root, to=tmp_path / "out")
        assert server.billed / 1e6 <= limit
        assert spent(tmp_path / "out") == pytest.approx(server.billed / 1e6, abs=1e-9)
        assert limit - server.billed / 1e6 < 8 * 0.002, "no more is held back than requests in flight may cost"
    manifest = judge(options(max_cost=10.0), answers=given, root=root, to=tmp_path / "out").manifest
    assert set(server.sent) == {"", *USELESS}
    assert server.billed > 1.2 * calm.billed, "useless replies were billed"
    assert manifest.measures["cost"] == pytest.approx(server.billed / 1e6, abs=1e-9)
    assert manifest.measures["requests"] == server.asked.total()
    assert max(server.answered.values()) == 1
    truth, found = judgments_of(tmp_path / "calm"), judgments_of(tmp_path / "out")
    assert {key: one.scores for key, one in found.items()} == {key: one.scores for key, one in truth.items()}
    assert sum(one.cost for one in found.values()) == pytest.approx(server.billed / 1e6, abs=1e-9)


def test_an_error_of_a_limit_names_what_is_spent_and_what_is_reserved() -> None:
    budget = Budget(ChatOptions.model_validate({"url": URL, "max_cost": 0.1} | PRICES), cost=0.02, shared=CostLimit(0.08))
    budget.reserve(0.05)
    with pytest.raises(
        LimitError, match=r"\$0\.0200 is spent, \$0\.0500 is reserved for requests under way, .* \$0\.0400 at most"
    ):
        budget.reserve(0.04)
    with pytest.raises(BudgetSpentError, match=r"\$0\.0700 of \$0\.0800 is spent or reserved .* \$0\.0200 at most"):
        budget.reserve(0.02)


def test_a_budget_in_dollars_holds_where_replies_cost_more_than_was_reckoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, root = write_answers(tmp_path / "answers", many_answers(60)), write_image(tmp_path / "images")
    use(monkeypatch, server := Meter(more=5000))
    wrong = options(concurrency=2).model_copy(update={"budget_cost": 0.2})
    result = judge(wrong, answers=given, root=root, to=tmp_path / "out")
    measures = result.manifest.measures
    assert server.billed / 1e6 <= 0.2 + 2 * 0.016, "no more than what was under way"
    assert measures["cost"] == pytest.approx(server.billed / 1e6, abs=1e-9)
    assert 0 < measures["asked"] == measures["verdicts"] == len(judgments_of(tmp_path / "out"))
    assert measures["asked"] + measures["not_chosen"] == 60
    assert any("was spent before" in note for note in result.notes)
    before = server.billed
    (tmp_path / "out" / "manifest.json").unlink()
    assert judge(wrong, answers=given, root=root, to=tmp_path / "out").manifest.outputs == result.manifest.outputs
    assert server.billed == before, "what is spent stays spent"
    # One request at a time: of two under way both would be paid for, which is a whole question.
    poor = options(concurrency=1).model_copy(update={"budget_cost": 0.005})
    with pytest.raises(NothingLeftError, match="no question is judged"):
        judge(poor, answers=given, root=root, to=tmp_path / "poor")


def test_a_budget_in_dollars_is_spent_where_replies_cost_less_than_was_reckoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, root = write_answers(tmp_path / "answers", many_answers(150)), write_image(tmp_path / "images")
    use(monkeypatch, server := Meter())
    limit = 0.08
    limited = options(max_tokens=300).model_copy(update={"budget_cost": limit})
    whole = judge(limited, answers=given, root=root, to=tmp_path / "whole").manifest
    assert 0.9 * limit < server.billed / 1e6 <= limit
    assert whole.measures["asked"] + whole.measures["not_chosen"] == 150
    assert whole.measures["asked"] == whole.measures["verdicts"] == len(judgments_of(tmp_path / "whole"))
    at_most = plan(limited, answers=given, root=root, to=tmp_path / "plan").cost
    assert at_most is not None
    assert at_most <= limit
    for sent in (20, 80):
        stopping = Meter()

        def stop(request: httpx2.Request, stopping: Meter = stopping, sent: int = sent) -> httpx2.Response:
            if stopping.asked.total() >= sent:
                raise KeyboardInterrupt
            return stopping(request)

        monkeypatch.setattr(build, "ChatServer", partial(ChatServer, transport=httpx2.MockTransport(stop)))
        with pytest.raises(KeyboardInterrupt):
            judge(limited, answers=given, root=root, to=tmp_path / f"stopped-{sent}")
        use(monkeypatch, stopping)
        resumed = judge(limited, answers=given, root=root, to=tmp_path / f"stopped-{sent}").manifest
        assert resumed.outputs == whole.outputs


@pytest.mark.parametrize(
    "usage",
    [
        pytest.param(None, id="null"),
        pytest.param({"prompt_tokens": -1_000_000, "completion_tokens": -1_000_000}, id="negative"),
        pytest.param({"prompt_tokens": 10**15, "completion_tokens": 1}, id="absurd"),
        pytest.param({"prompt_tokens": 300_000, "completion_tokens": 1}, id="more than the text has bytes"),
        pytest.param({"prompt_tokens": 100, "completion_tokens": 10_000_000}, id="a reply longer than any"),
        pytest.param({"prompt_tokens": 0, "completion_tokens": 0}, id="zeros"),
        pytest.param({"prompt_tokens": "many", "completion_tokens": None}, id="words"),
    ],
)
def test_a_count_that_cannot_be_costs_the_most_that_it_can(
    usage: JsonValue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, root = write_answers(tmp_path / "answers", many_answers(10)), write_image(tmp_path / "images")

    def reply(request: httpx2.Request) -> httpx2.Response:
        said = completion(verdict_on(prompt_of(json.loads(request.content))))
        return httpx2.Response(200, json=said | {"usage": usage})

    most = plan(options(), answers=given, root=root, to=tmp_path / "out").cost
    monkeypatch.setattr(build, "ChatServer", partial(ChatServer, transport=httpx2.MockTransport(reply)))
    manifest = judge(options(), answers=given, root=root, to=tmp_path / "out").manifest
    assert most is not None
    assert manifest.measures["cost"] == pytest.approx(most)
    assert manifest.measures["verdicts"] == 10
    with pytest.raises(StllavaError, match="could pass max_cost"):
        judge(options(max_cost=most / 2), answers=given, root=root, to=tmp_path / "other")


def test_a_thought_that_only_the_total_counts_is_paid_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, root = write_answers(tmp_path / "answers", many_answers(1)), write_image(tmp_path / "images")

    def reply(request: httpx2.Request) -> httpx2.Response:
        said = completion(verdict_on(prompt_of(json.loads(request.content))))
        return httpx2.Response(200, json=said | {"usage": {"prompt_tokens": 200, "completion_tokens": 5, "total_tokens": 1205}})

    monkeypatch.setattr(build, "ChatServer", partial(ChatServer, transport=httpx2.MockTransport(reply)))
    manifest = judge(options(), answers=given, root=root, to=tmp_path / "out").manifest
    assert manifest.measures["cost"] == pytest.approx(2 * (200 * 3 + 1005 * 7) / 1e6)


def test_a_dry_run_without_a_price_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = write_answers(tmp_path / "answers", many_answers(3))
    words = ["judge", "--dry-run", "--answers", str(given), "--root", str(write_image(tmp_path / "images"))]
    words += ["--to", str(tmp_path / "out"), "--mode", "pairwise", "--expert"]
    main([*words, "chat", "--chat.url", URL])
    assert capsys.readouterr().out.endswith("\n6 requests, price not given (input_price, output_price)\n")
    main([*words, "chat", "--chat.url", URL, "--chat.input-price", "2", "--chat.output-price", "8"])
    told = capsys.readouterr().out
    assert "6 requests, $0.0" in told
    assert told.endswith(" at most\n")
    main([*words, "scripted"])
    assert capsys.readouterr().out.endswith("\n6 requests, at no cost\n")


def test_without_a_price_no_cost_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given, root = write_answers(tmp_path / "answers", many_answers(3)), write_image(tmp_path / "images")
    use(monkeypatch, Meter())
    manifest = judge(options(input_price=0, output_price=0), answers=given, root=root, to=tmp_path / "out").manifest
    assert "cost" not in manifest.measures
    assert "$" not in capsys.readouterr().err


def test_replies_that_were_paid_for_are_found_again_by_later_versions() -> None:
    """The ids of requests hold the options: one more that shapes no reply must not change them."""
    identity = ChatOptions(url=URL, model="vlm", header_variables={"api-key": "X"}, timeout=1.0).resume_key()
    assert identity == {
        "url": URL,
        "model": "vlm",
        "temperature": 0.0,
        "max_tokens": 1024,
        "structured": True,
        "extra": {},
        "max_side": 1024,
    }


def test_what_came_of_a_request_before_its_reply_is_remembered_by_the_reply_log(tmp_path: Path) -> None:
    request = JudgeRequest("0" * 16, "a", (0, 1), 0, "text", (), {})
    server = ChatServer(
        options().chat, root=tmp_path, folder=tmp_path, reply_log=(reply_log := ReplyLog(tmp_path, name="expert"))
    )
    useless = json.dumps({"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 10}}).encode()
    assert server.keep_fault(request, useless, reserved=0.0) is not None
    assert server.keep_fault(request, useless, reserved=0.0) is not None
    reply_log.close()
    again = ReplyLog(tmp_path, name="expert")
    assert again.cost == pytest.approx(2 * (100 * 3 + 10 * 7) / 1e6)
    assert again.attempts == 2
    cost, attempts = again.spent(request.id, again.get(request.id))
    assert cost == pytest.approx(again.cost)
    assert attempts == 2
    again.close()
    assert (tmp_path / EXCHANGES / "expert.jsonl").is_file()
