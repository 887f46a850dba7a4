"""What tests of experts share: answers on disk, a server that judges by rule, and faults it can have."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread

import httpx2
import numpy as np
from PIL import Image
from pydantic import JsonValue

from stllava.config import AnswerOptions, JudgeOptions
from stllava.experts.model.rubric import unfenced
from stllava.records import Answers, Judgment, Sampling, VerdictCause, content_id
from stllava.stages.judge import judge
from stllava.store import Stage, read_records

SAMPLING = Sampling(temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=8, seed=0)
FAULTS = ("429", "500", "time-out", "half a body", "wrong JSON", "empty choices", "refusal", "duplicate")
WORDS = ("effusion", "nodule", "normal", "fracture", "mass", "edema")


def answers_of(question: str, completions: Sequence[str], *, image: str = "scan.png") -> Answers:
    """Answers to a question about an image."""
    return Answers(
        id=content_id("answers", image, question, list(completions)),
        question_id=content_id(image, question),
        images=(image,),
        question=question,
        completions=tuple(completions),
        policy="policy",
        sampling=SAMPLING,
    )


def many_answers(count: int) -> list[Answers]:
    """So many questions about one image, two different answers each, some as good as each other."""
    made = []
    for number in range(count):
        draw = np.random.default_rng(number)
        one, other = (" ".join(draw.choice(WORDS, size=draw.integers(1, 5))) for _ in range(2))
        made.append(answers_of(f"What is seen at place {number}?", (f"{one} a", f"{other} b")))
    return made


def write_answers(folder: Path, given: Sequence[Answers]) -> Path:
    """The folder of a finished answer stage."""
    stage = Stage("answer", folder, AnswerOptions(), inputs={}, existing="resume")
    stage.write_records("answers", given)
    stage.finish(counts_in=len(given), counts_out=len(given))
    return folder


def judgment_on(
    answers: Answers, scores: Sequence[float] | None, *, expert: str = "chat", cause: VerdictCause = "abstained"
) -> Judgment:
    """What an expert of this name says of a set of answers."""
    return Judgment(
        id=content_id("judgment", answers.id, expert, list(scores or ())),
        answers_id=answers.id,
        scores=None if scores is None else tuple(scores),
        cause=cause if scores is None else None,
        reason="",
        expert=expert,
        prompt_hash="",
    )


def write_judgments(folder: Path, judgments: Sequence[Judgment]) -> Path:
    """The folder of a finished judge stage."""
    stage = Stage("judge", folder, JudgeOptions(), inputs={}, existing="resume")
    stage.write_records("judgments", judgments)
    stage.finish(counts_in=len(judgments), counts_out=len(judgments))
    return folder


def pictures_of(root: Path) -> list[str]:
    """Every picture below an image root, in order."""
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))


def write_judged(
    folder: Path, options: JudgeOptions, *, images: Sequence[str], questions: Sequence[str], completions: Sequence[str]
) -> tuple[Path, Path]:
    """The folders of the same answers to some questions about every image, and of an expert's judgments of them."""
    given = [answers_of(question, completions, image=image) for image in images for question in questions]
    answers, judgments = write_answers(folder / "answers", given), folder / "judgments"
    judge(options, answers=answers, to=judgments)
    return answers, judgments


def write_image(root: Path, name: str = "scan.png") -> Path:
    """An image root with one small image."""
    root.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / name)
    return root


def judgments_of(folder: Path) -> dict[str, Judgment]:
    """The judgments of a finished stage, by answers."""
    return {one.answers_id: one for one in read_records(folder, "judgments", Judgment)}


def prompt_of(body: dict[str, JsonValue]) -> str:
    """The text of a chat request."""
    messages = body["messages"]
    assert isinstance(messages, list)
    turn = messages[0]
    assert isinstance(turn, dict)
    parts = turn["content"]
    assert isinstance(parts, list)
    return "".join(str(part["text"]) for part in parts if isinstance(part, dict) and part["type"] == "text")


def mark_of(text: str) -> int:
    """How good the server thinks an answer is."""
    return 1 + sum(WORDS.index(word) for word in text.split() if word in WORDS) % 9


def verdict_on(prompt: str) -> str:
    """The server's words on a prompt: scores, or a verdict on two answers."""
    found = unfenced(prompt)
    marks = [mark_of(found[f"answer {number}"]) for number in range(1, len(found)) if f"answer {number}" in found]
    if '"scores"' in prompt or "Scores:" in prompt:
        return f"I looked at the image.\nScores: {', '.join(map(str, marks))}"
    first, second = marks
    return f"I looked at the image.\nVerdict: {'tie' if first == second else '1' if first > second else '2'}"


def completion(text: str | None, *, choices: int = 1, refusal: str | None = None) -> dict[str, JsonValue]:
    """The body of a reply."""
    message: JsonValue = {"role": "assistant", "content": text, "refusal": refusal}
    one: JsonValue = {"index": 0, "message": message, "finish_reason": "stop"}
    usage: JsonValue = {"prompt_tokens": 100, "completion_tokens": 20}
    return {"object": "chat.completion", "choices": [one] * choices, "usage": usage}


@dataclass
class JudgeServer:
    """A server that judges by rule; a share of its replies is faulty, which ones depends on request and attempt alone."""

    share: float = 0.0
    seconds: float = 0.0
    key: str = ""
    asked: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    refused: set[str] = field(default_factory=set)
    faults: Counter[str] = field(default_factory=Counter)
    bodies: list[dict[str, JsonValue]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    busy: int = 0
    busiest: int = 0
    lock: Lock = field(default_factory=Lock)

    def respond(self, content: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes, str]:
        """Status, headers and body of a reply, and the fault it has."""
        body = json.loads(content)
        prompt = prompt_of(body)
        with self.lock:
            self.bodies.append(body)
            self.headers.append(headers)
            self.asked[prompt] += 1
            attempt = self.asked[prompt]
            self.busy += 1
            self.busiest = max(self.busiest, self.busy)
        time.sleep(self.seconds)
        chance = int(hashlib.sha256(f"{prompt} {attempt}".encode()).hexdigest()[:8], 16) / 16**8
        fault = FAULTS[int(chance / self.share * len(FAULTS))] if chance < self.share else ""
        with self.lock:
            self.busy -= 1
            self.faults[fault] += 1
            if fault in ("", "duplicate"):
                self.answered[prompt] += 1
            if fault == "refusal":
                self.refused.add(prompt)
        good = completion(verdict_on(prompt), choices=2 if fault == "duplicate" else 1)
        status = {"429": 429, "500": 500}.get(fault, 200)
        told: dict[str, JsonValue] = {
            "429": {"error": {"message": f"slow down, {self.key}"}},
            "500": {"error": {"message": f"out of order, {self.key}"}},
            "empty choices": {"choices": []},
            "refusal": completion(None, refusal="I cannot look at this."),
        }.get(fault, good)  # type: ignore[assignment]
        made = json.dumps(told).encode()
        if fault == "wrong JSON":
            made = b"<html>bad gateway</html>"
        if fault == "half a body":
            made = made[: len(made) // 2]
        return status, {"Retry-After": "0"} if fault == "429" else {}, made, fault

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        """As the transport of a client."""
        status, headers, body, fault = self.respond(request.content, dict(request.headers))
        if fault == "time-out":
            raise httpx2.ReadTimeout("timed out")
        if fault == "half a body":
            raise httpx2.RemoteProtocolError("peer closed connection without sending complete message body")
        return httpx2.Response(status, headers=headers, content=body)


class Listening:
    """A judge server on a port of this machine; use as a context manager."""

    def __init__(self, server: JudgeServer) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                status, headers, body, fault = server.respond(content, dict(self.headers))
                if fault == "time-out":
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body) * (2 if fault == "half a body" else 1)))
                self.end_headers()
                self.wfile.write(body)
                self.close_connection = fault == "half a body"

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                """A client that was killed."""

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def __enter__(self) -> "Listening":
        self.thread = Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()
