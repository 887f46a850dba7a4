"""A judge and the servers there are: what one request is refused for costs no other, and what all are is told at once."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

import httpx2
import pytest
from pydantic import JsonValue

from helpers.judging import (
    JudgeServer,
    answers_of,
    completion,
    judgments_of,
    many_answers,
    prompt_of,
    verdict_on,
    write_answers,
    write_image,
)
from stllava.cli import main
from stllava.config import ChatOptions, JudgeOptions
from stllava.errors import NothingLeftError, StllavaError
from stllava.experts import build
from stllava.experts.backends.chat_server import ChatServer
from stllava.records import Sample
from stllava.remote import rate_limiter
from stllava.remote.refusals import KINDS, refusal_of
from stllava.stages.judge import check, judge
from stllava.store import EXCHANGES, read_manifest

URL = "http://127.0.0.1:9/v1"
Handler = Callable[[httpx2.Request], httpx2.Response]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow one another at once."""
    monkeypatch.setattr(rate_limiter, "FIRST_WAIT", 0.0)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Handler], Counter[str]]:
    """Let the stage's server be this function; gives what it is asked, by prompt."""

    def listen(handler: Handler) -> Counter[str]:
        asked: Counter[str] = Counter()

        def hear(request: httpx2.Request) -> httpx2.Response:
            asked[prompt_of(json.loads(request.content))] += 1
            return handler(request)

        monkeypatch.setattr(build, "ChatServer", partial(ChatServer, transport=httpx2.MockTransport(hear)))
        return asked

    return listen


Use = Callable[[Handler], Counter[str]]


@pytest.fixture
def given(tmp_path: Path) -> tuple[Path, Path]:
    """Answers to 40 questions and the image that they are about."""
    return write_answers(tmp_path / "answers", many_answers(40)), write_image(tmp_path / "images")


def options(**chat: object) -> JudgeOptions:
    """Judge by pairs, asking a server, one request at a time."""
    named = {"url": URL, "model": "vlm", "structured": False, "concurrency": 1, "retries": 2} | chat
    return JudgeOptions(expert="chat", mode="pairwise", chat=ChatOptions.model_validate(named))


def good(request: httpx2.Request) -> httpx2.Response:
    """A verdict."""
    return httpx2.Response(200, json=completion(verdict_on(prompt_of(json.loads(request.content)))))


def saying(text: str | None, *, finish: str = "stop") -> Handler:
    """The same words to everybody."""
    choice: JsonValue = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return lambda _: httpx2.Response(200, json={"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 3}})


def refusing(status: int, body: JsonValue, *, places: range) -> Handler:
    """A server that refuses some questions and answers the others."""
    refused = [f"at place {place}?".encode() for place in places]

    def handle(request: httpx2.Request) -> httpx2.Response:
        if any(place in request.content for place in refused):
            return httpx2.Response(status, json=body)
        return good(request)

    return handle


VLLM: JsonValue = {
    "object": "error",
    "message": "This model's maximum context length is 4096 tokens. However, you requested 5120 tokens. Reduce the length.",
    "code": 400,
}
CONTEXT = [
    pytest.param(400, VLLM, id="vLLM"),  # vllm-project/vllm#20409
    pytest.param(400, {"error": {"code": "context_length_exceeded", "message": "Input too long"}}, id="OpenAI"),
    pytest.param(
        400,
        {
            "error": {
                "code": 400,
                "message": "request (4390 tokens) exceeds the available context size (4096 tokens), try again",
            }
        },
        id="llama.cpp",
    ),
    pytest.param(
        500,
        {"error": {"code": 500, "message": "Context size has been exceeded.", "type": "server_error"}},
        id="llama.cpp as 500",
    ),  # ggml-org/llama.cpp#19774
    pytest.param(200, {"error": {"code": 400, "message": "maximum context length is 4096 tokens"}}, id="inside a 200"),
    pytest.param(422, {"detail": "prompt is too long: 5120 tokens > 4096 maximum"}, id="another status"),
]


@pytest.mark.parametrize(("status", "body"), CONTEXT)
def test_a_context_that_some_requests_exceed_fails_these_alone_and_once(
    status: int, body: JsonValue, use: Use, given: tuple[Path, Path], tmp_path: Path
) -> None:
    asked = use(refusing(status, body, places=range(2)))  # The very first ones.
    manifest = judge(options(), answers=given[0], root=given[1], to=tmp_path / "out").manifest
    assert manifest.measures["no_verdict_failed"] == 2
    assert manifest.measures["verdicts"] == 38
    assert set(asked.values()) == {1}


def test_a_context_that_too_many_requests_exceed_is_told_with_what_helps(
    use: Use, given: tuple[Path, Path], tmp_path: Path
) -> None:
    use(refusing(400, VLLM, places=range(10)))
    with pytest.raises(StllavaError, match=r"10 of 40 questions have no verdict .*maximum context length") as caught:
        judge(options(), answers=given[0], root=given[1], to=tmp_path / "out")
    assert "--max-model-len" in str(caught.value)
    assert "raise max_failed" in str(caught.value)
    assert "same command" not in str(caught.value), "it would be refused again"


def test_a_context_that_every_request_exceeds_ends_the_stage(use: Use, tmp_path: Path) -> None:
    asked = use(refusing(400, VLLM, places=range(200)))
    answers = write_answers(tmp_path / "answers", many_answers(100))
    with pytest.raises(StllavaError, match=r"refused each of the first 50 requests.*--max-model-len"):
        judge(options(), answers=answers, root=write_image(tmp_path / "images"), to=tmp_path / "out")
    assert asked.total() == 50


AZURE_FILTER: JsonValue = {
    "error": {
        "code": "content_filter",
        "message": "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.",
        "innererror": {"code": "ResponsibleAIPolicyViolation"},
    }
}


def test_a_filter_that_refuses_by_status_refuses_that_question_and_is_not_asked_again(
    use: Use, given: tuple[Path, Path], tmp_path: Path
) -> None:  # compl-ai/compl-ai#20
    asked = use(refusing(400, AZURE_FILTER, places=range(1)))
    manifest = judge(options(), answers=given[0], root=given[1], to=tmp_path / "out").manifest
    assert manifest.measures["no_verdict_refused"] == 1
    assert "no_verdict_failed" not in manifest.measures
    judge(options(), answers=given[0], root=given[1], to=tmp_path / "out", existing="replace")
    assert set(asked.values()) == {1}


TO_ALL = [
    pytest.param(
        400, {"error": "'response_format.type' must be 'text'"}, "Set structured to false", id="response_format"
    ),  # LM Studio
    pytest.param(400, {"error": {"message": "json_schema is not supported by this model"}}, "structured to false", id="schema"),
    pytest.param(
        400,
        {"error": {"message": "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."}},
        "{max_tokens: null, max_completion_tokens: 4000}",
        id="max_completion_tokens",
    ),
    pytest.param(
        400,
        {"error": {"message": "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1)"}},
        "{temperature: null}",
        id="temperature",
    ),  # decolua/9router#560
    pytest.param(
        422, {"detail": [{"msg": "Extra inputs are not permitted", "loc": ["body", "seed"]}]}, "{FIELD: null}", id="field"
    ),
    pytest.param(
        500, {"error": {"message": "image input is not supported - hint: provide the mmproj"}}, "--mmproj", id="blind llama.cpp"
    ),
    pytest.param(
        404, {"error": {"message": "No endpoints found that support image input"}}, "vision-language", id="blind router"
    ),
    pytest.param(404, {"error": {"message": "model 'vlm' not found, try pulling it first"}}, "Check model", id="no such model"),
    pytest.param(401, {"message": "Access denied due to missing subscription key."}, "header_variables", id="no key"),
    pytest.param(402, {"error": {"message": "Insufficient Balance"}}, "Top up", id="no money"),  # DeepSeek
    pytest.param(
        429,
        {"error": {"message": "You exceeded your current quota", "type": "insufficient_quota", "code": "insufficient_quota"}},
        "Top up",
        id="no money as 429",
    ),  # langchain-ai/langchainjs#1929
    pytest.param(
        200, {"object": "error", "message": "The model `x` does not exist.", "code": 404}, "Check model", id="404 in 200"
    ),
    pytest.param(301, {}, "Set url to that address", id="redirect"),
]


@pytest.mark.parametrize(("status", "body", "remedy"), TO_ALL)
def test_what_every_request_would_be_refused_for_ends_the_stage_at_once_with_what_helps(
    status: int, body: JsonValue, remedy: str, use: Use, given: tuple[Path, Path], tmp_path: Path
) -> None:
    asked = use(lambda _: httpx2.Response(status, json=body, headers={"Location": "https://elsewhere.example/v1"}))
    with pytest.raises(StllavaError) as caught:
        judge(options(), answers=given[0], root=given[1], to=tmp_path / "out")
    assert remedy in str(caught.value)
    assert asked.total() == 1
    assert "https://elsewhere.example/v1" in str(caught.value) or status != 301


@pytest.mark.parametrize(
    ("status", "body"),
    [(413, {"detail": "Request Entity Too Large"}), (400, {"error": {"message": "image exceeds 5 MB maximum: 6500712 bytes"}})],
    ids=["413", "a limit of images"],  # gptme/gptme#185
)
def test_a_request_that_is_too_large_fails_alone_and_too_many_name_max_side(
    status: int, body: JsonValue, use: Use, given: tuple[Path, Path], tmp_path: Path
) -> None:
    asked = use(refusing(status, body, places=range(1)))
    manifest = judge(options(), answers=given[0], root=given[1], to=tmp_path / "few").manifest
    assert manifest.measures["no_verdict_failed"] == 1
    assert set(asked.values()) == {1}
    use(refusing(status, body, places=range(20)))
    with pytest.raises(StllavaError, match="Lower max_side"):
        judge(options(), answers=given[0], root=given[1], to=tmp_path / "many")


def test_a_busy_server_that_says_so_inside_a_200_is_asked_again(use: Use, given: tuple[Path, Path], tmp_path: Path) -> None:
    turns = count()

    def handle(request: httpx2.Request) -> httpx2.Response:
        if next(turns) % 2 == 0:  # open-webui/computer#293
            return httpx2.Response(200, json={"error": {"message": "Provider returned error", "code": 429}})
        return good(request)

    asked = use(handle)
    manifest = judge(options(), answers=given[0], root=given[1], to=tmp_path / "out").manifest
    assert manifest.measures["verdicts"] == 40
    assert set(asked.values()) == {2}


PASSING = [
    pytest.param(lambda _: httpx2.Response(429, json={}), "Lower concurrency, or set requests_per_minute", id="busy"),
    pytest.param(lambda _: httpx2.Response(503, json={}), "Start or repair it", id="failing"),
    pytest.param(lambda request: broken(httpx2.ReadTimeout, "", request), "Raise timeout, or lower concurrency", id="slow"),
    pytest.param(
        lambda request: broken(httpx2.ConnectError, "[Errno 111] Connection refused", request), "check the port", id="nobody"
    ),
    pytest.param(
        lambda request: broken(httpx2.ConnectError, "[Errno -2] Name or service not known", request),
        "Check the host",
        id="host",
    ),
]


def broken(error: type[httpx2.TransportError], words: str, request: httpx2.Request) -> httpx2.Response:
    """No reply."""
    raise error(words, request=request)


@pytest.mark.parametrize(("server", "remedy"), PASSING)
def test_a_server_that_never_answers_is_told_with_what_helps_against_that(
    server: Handler, remedy: str, use: Use, given: tuple[Path, Path], tmp_path: Path
) -> None:
    asked = use(server)
    with pytest.raises(StllavaError, match=r"answered none of the last 10 requests") as caught:
        judge(options(retries=0), answers=given[0], root=given[1], to=tmp_path / "out")
    assert remedy in str(caught.value)
    assert asked.total() == 10


def test_a_certificate_that_is_not_the_servers_ends_the_stage_at_once(
    use: Use, given: tuple[Path, Path], tmp_path: Path
) -> None:
    asked = use(
        lambda request: broken(httpx2.ConnectError, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed", request)
    )
    with pytest.raises(StllavaError, match="as its certificate names it"):
        judge(options(), answers=given[0], root=given[1], to=tmp_path / "out")
    assert asked.total() == 1


def test_geminis_limit_a_minute_is_not_taken_for_an_empty_account() -> None:
    assert refusal_of(429, "You exceeded your current quota, please check your plan. Please retry in 36.9s").again


def test_every_refusal_that_cannot_pass_says_what_to_do() -> None:
    assert all(kind.remedy for kind in KINDS)
    assert not any(kind.again for kind in KINDS if kind.name not in ("rate", "time", "host", "nobody"))


STREAM = "text/event-stream; charset=utf-8"


def test_a_server_that_streams_though_told_not_to_is_read(use: Use, given: tuple[Path, Path], tmp_path: Path) -> None:
    def stream(request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.content)
        assert body["stream"] is False
        words = verdict_on(prompt_of(body))
        parts: Iterator[JsonValue] = ({"choices": [{"index": 0, "delta": {"content": one}}]} for one in words)
        ends: list[JsonValue] = [
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
            {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": len(words)}},
        ]
        said = "".join(f"data: {json.dumps(one)}\n\n" for one in (*parts, *ends)) + "data: [DONE]\n\n"
        return httpx2.Response(200, content=f": OPENROUTER PROCESSING\n\n{said}".encode(), headers={"Content-Type": STREAM})

    use(stream)
    manifest = judge(options(), answers=given[0], root=given[1], to=tmp_path / "out").manifest
    assert manifest.measures["verdicts"] == 40
    assert manifest.measures["prompt_tokens"] == 80 * 9


@pytest.mark.parametrize("text", [None, "", "<think>hm"], ids=["null", "empty", "a thought"])
def test_a_reply_without_text_that_ended_by_length_is_not_asked_again_at_the_same_price(
    text: str | None, use: Use, given: tuple[Path, Path], tmp_path: Path
) -> None:  # codelibs/fess#3061
    turns = count()

    def handle(request: httpx2.Request) -> httpx2.Response:
        return saying(text, finish="length")(request) if next(turns) % 4 == 3 else good(request)

    asked = use(handle)
    manifest = judge(options(max_cost=1.0, input_price=1.0), answers=given[0], root=given[1], to=tmp_path / "out").manifest
    assert manifest.measures["no_verdict_unparsed"] > 0
    judge(options(), answers=given[0], root=given[1], to=tmp_path / "out", existing="replace")
    assert set(asked.values()) == {1}


# ---- a judge that gets nothing ----

NOTHING = [
    pytest.param(saying("I like both answers, honestly."), "unparsed", "I like both answers", id="unparsed"),
    pytest.param(saying("", finish="length"), "unparsed", "Raise max_tokens", id="cut off"),
    pytest.param(saying("I'm sorry, but I can't help with medical images."), "refused", "medical images", id="refused"),
    pytest.param(saying("half", finish="content_filter"), "refused", "content filter", id="filtered"),
]


@pytest.mark.parametrize(("server", "cause", "example"), NOTHING)
def test_a_judge_whose_first_dozen_replies_hold_no_verdict_stops(
    server: Handler, cause: str, example: str, use: Use, given: tuple[Path, Path], tmp_path: Path
) -> None:
    asked = use(server)
    with pytest.raises(StllavaError, match=rf"no verdict on its first 12 replies; 12 times .*\({cause}\)") as caught:
        judge(options(), answers=given[0], root=given[1], to=tmp_path / "out")
    assert example in str(caught.value)
    assert asked.total() == 12
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_stopped_judge_goes_on_once_the_server_is_repaired_and_pays_for_nothing_twice(
    use: Use, given: tuple[Path, Path], tmp_path: Path
) -> None:
    first = use(saying("Hard to say."))
    with pytest.raises(StllavaError, match="no verdict on its first 12 replies"):
        judge(options(), answers=given[0], root=given[1], to=tmp_path / "out")
    later = use(good)
    manifest = judge(options(), answers=given[0], root=given[1], to=tmp_path / "out").manifest
    assert not set(first) & set(later)
    assert manifest.measures["verdicts"] == 34
    assert manifest.measures["no_verdict_unparsed"] == 6


def test_a_judge_that_read_verdicts_before_is_not_stopped_by_a_dozen_without(
    use: Use, given: tuple[Path, Path], tmp_path: Path
) -> None:
    use(good)
    with pytest.raises(StllavaError, match="max_requests"):
        judge(options(max_requests=40), answers=given[0], root=given[1], to=tmp_path / "out")
    asked = use(saying("Hard to say."))
    manifest = judge(options(), answers=given[0], root=given[1], to=tmp_path / "out").manifest
    assert asked.total() == 40
    assert manifest.measures["verdicts"] == 20


def test_at_most_what_is_in_flight_is_paid_for_beyond_the_dozen(use: Use, given: tuple[Path, Path], tmp_path: Path) -> None:
    asked = use(saying("Hard to say."))
    with pytest.raises(StllavaError, match="no verdict on its first"):
        judge(options(concurrency=8), answers=given[0], root=given[1], to=tmp_path / "out")
    assert 12 <= asked.total() < 12 + 8


def test_replies_that_cannot_be_used_stop_it_too(use: Use, given: tuple[Path, Path], tmp_path: Path) -> None:
    asked = use(saying(None))  # A reasoning parser that takes all of it, say (ollama/ollama#13371).
    with pytest.raises(StllavaError, match=r"none of the first 12 replies .*the reply holds no text"):
        judge(options(retries=4), answers=given[0], root=given[1], to=tmp_path / "out")
    assert asked.total() == 12


def test_a_verdict_among_the_first_replies_lets_it_go_on(use: Use, given: tuple[Path, Path], tmp_path: Path) -> None:
    turns = count()
    use(lambda request: good(request) if next(turns) == 11 else saying("Hard to say.")(request))
    with pytest.raises(StllavaError, match="any of 40 questions"):
        judge(options(), answers=given[0], root=given[1], to=tmp_path / "out")  # One reply of two gives no verdict alone.


def test_abstentions_are_replies_and_a_judge_that_only_abstains_is_an_error_at_its_end(
    use: Use, given: tuple[Path, Path], tmp_path: Path
) -> None:
    asked = use(saying("The image cannot be read.\nVerdict: abstain"))
    with pytest.raises(NothingLeftError, match=r"no verdict on any of 40 questions; 40 times .*\(abstained\)"):
        judge(options(), answers=given[0], root=given[1], to=tmp_path / "out")
    assert asked.total() == 80


def test_a_judge_without_verdicts_ends_with_an_exit_code_and_an_example_that_no_terminal_obeys(
    use: Use, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use(saying("\x1b]0;owned\x07" + "Hard to say. " * 100))
    answers = write_answers(tmp_path / "answers", many_answers(3))
    flags = ["--expert", "chat", "--mode", "pairwise", "--chat.url", URL, "--chat.no-structured"]
    with pytest.raises(SystemExit) as caught:
        main(
            [
                "judge",
                *flags,
                "--answers",
                str(answers),
                "--root",
                str(write_image(tmp_path / "i")),
                "--to",
                str(tmp_path / "out"),
            ]
        )
    told = capsys.readouterr().err
    assert caught.value.code == 2
    assert r"3 times no verdict could be read from the reply (unparsed), such as “\x1b]0;owned\x07Hard to say." in told
    assert len(told.splitlines()[-1]) < 800


def test_an_expert_that_knows_nothing_of_the_questions_is_an_error_too(tmp_path: Path) -> None:
    known = Sample(id="s", image="other.png", question="where?", kind="open", targets=("left",), split="train")
    (tmp_path / "references.jsonl").write_text(known.model_dump_json() + "\n")
    answers = write_answers(tmp_path / "answers", [answers_of("what?", ("a", "b"))])
    with pytest.raises(StllavaError, match=r"no verdict on any of 1 questions; 1 time .*\(abstained\).*data\.references"):
        judge(JudgeOptions(expert="reference"), answers=answers, truth=tmp_path / "references.jsonl", to=tmp_path / "out")


def test_a_check_of_a_judge_that_gives_no_verdict_is_an_error_too(use: Use, tmp_path: Path) -> None:
    use(saying("Hard to say."))
    answers = write_answers(tmp_path / "answers", many_answers(2))
    with pytest.raises(StllavaError, match="no verdict on any of 2 questions"):
        check(options(), answers=answers, root=write_image(tmp_path / "images"), to=tmp_path / "out")


# ---- damage ----

DAMAGES = [
    pytest.param(lambda line: line[: len(line) // 2] + b"\n", id="cut"),
    pytest.param(lambda line: b"\0" * (len(line) - 1) + b"\n", id="zeros"),
    pytest.param(lambda line: b"\xff" + line, id="not UTF-8"),
    pytest.param(lambda line: b"\n", id="empty"),
    pytest.param(lambda line: b'{"id": 7}\n', id="another record"),
    pytest.param(lambda line: line[:-1], id="two lines run together"),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_line_among_paid_replies_is_told_and_no_other_reply_is_paid_for_again(
    damage: Callable[[bytes], bytes], use: Use, given: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    use(good)
    whole = judge(options(), answers=given[0], root=given[1], to=tmp_path / "out").manifest
    reply_log = tmp_path / "out" / EXCHANGES / "expert.jsonl"
    lines = reply_log.read_bytes().splitlines(keepends=True)
    reply_log.write_bytes(b"".join([*lines[:20], damage(lines[20]), *lines[21:]]))
    asked = use(good)
    again = judge(options(), answers=given[0], root=given[1], to=tmp_path / "out", existing="replace").manifest
    assert again.measures["verdicts"] == whole.measures["verdicts"] == 40
    lost = 2 if damage(b"{}\n") == b"{}" else 1
    assert asked.total() == lost
    note = "1 line is damaged in expert.jsonl and left out; replies that stood there are asked for again."
    assert note in read_manifest(tmp_path / "out").notes
    assert note in caplog.text


def test_the_order_of_a_reply_logs_lines_and_odd_line_breaks_in_replies_change_nothing(
    use: Use, given: tuple[Path, Path], tmp_path: Path
) -> None:
    def odd(request: httpx2.Request) -> httpx2.Response:
        said = "one\u2028two\u2029three\x85four\x0bfive\x0csix\x1cseven\r\n" + verdict_on(
            prompt_of(json.loads(request.content))
        )
        return httpx2.Response(200, json=completion(said))

    use(odd)
    first = judge(options(), answers=given[0], root=given[1], to=tmp_path / "out").manifest
    reply_log = tmp_path / "out" / EXCHANGES / "expert.jsonl"
    reply_log.write_bytes(b"".join(reversed(reply_log.read_bytes().splitlines(keepends=True))))
    asked = use(odd)
    again = judge(options(), answers=given[0], root=given[1], to=tmp_path / "out", existing="replace").manifest
    assert asked.total() == 0
    assert again.outputs == first.outputs


def test_faults_of_every_other_kind_leave_the_others_alone(use: Use, given: tuple[Path, Path], tmp_path: Path) -> None:
    use(faulty := JudgeServer(share=0.3))
    manifest = judge(
        options(retries=8, extra={"reasoning_effort": "low"}), answers=given[0], root=given[1], to=tmp_path / "out"
    ).manifest
    assert manifest.measures["verdicts"] + manifest.measures.get("no_verdict_refused", 0) == 40
    assert all(body["reasoning_effort"] == "low" for body in faulty.bodies)
    assert all(one.cause in (None, "refused") for one in judgments_of(tmp_path / "out").values())


def test_a_judge_that_stopped_goes_on_in_the_same_folder_with_other_options(
    use: Use, given: tuple[Path, Path], tmp_path: Path
) -> None:
    use(saying("", finish="length"))
    with pytest.raises(StllavaError, match="Raise max_tokens"):
        judge(options(), answers=given[0], root=given[1], to=tmp_path / "out")
    asked = use(good)
    manifest = judge(options(max_tokens=4000), answers=given[0], root=given[1], to=tmp_path / "out").manifest
    assert manifest.measures["verdicts"] == 40
    assert asked.total() == 80


def test_fields_of_any_form_go_into_requests_and_flags_know_numbers_from_words(
    use: Use, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bodies: list[dict[str, JsonValue]] = []

    def hear(request: httpx2.Request) -> httpx2.Response:
        bodies.append(json.loads(request.content))
        return good(request)

    use(hear)
    answers, root = write_answers(tmp_path / "answers", many_answers(1)), write_image(tmp_path / "images")
    thinking: JsonValue = {"enable_thinking": False}
    judge(options(extra={"chat_template_kwargs": thinking, "stop": ["x"]}), answers=answers, root=root, to=tmp_path / "one")
    assert (bodies[0]["chat_template_kwargs"], bodies[0]["stop"]) == (thinking, ["x"])
    flags = [
        "judge",
        "--expert",
        "chat",
        "--mode",
        "pairwise",
        "--chat.url",
        URL,
        "--chat.no-structured",
        "--answers",
        str(answers),
    ]
    flags += [
        "--chat.extra",
        "max_tokens",
        "None",
        "max_completion_tokens",
        "4000",
        "reasoning_effort",
        "low",
        "logprobs",
        "False",
    ]
    main([*flags, "--root", str(root), "--to", str(tmp_path / "two")])
    body = bodies[-1]
    assert "max_tokens" not in body
    assert (body["max_completion_tokens"], body["reasoning_effort"], body["logprobs"]) == (4000, "low", False)
