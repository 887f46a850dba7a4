"""Experts that reply by rule, through the same prompts, orders and readers as a model: for tests, docs and experiments."""

from collections.abc import Callable, Iterable

from pydantic import JsonValue

from stllava.config import ScriptedOptions, SimulatedOptions
from stllava.experts.model.reply_log import Exchange, FreeBackend, JudgeRequest, as_body
from stllava.experts.model.rubric import Mode, unfenced
from stllava.experts.rules.oracle import RULE, Oracle
from stllava.metrics.robust import normalise
from stllava.records import content_id


class ScriptedBackend(FreeBackend):
    """Likes answers with certain words, the more of them the better; reads nothing but what the prompt's marks enclose."""

    def __init__(self, options: ScriptedOptions, *, mode: Mode, correct: bool = False) -> None:
        """Reply with a verdict on two answers, or with scores; to `correct`, also with a liked word where no answer has one."""
        self._options, self._mode, self._correct = options, mode, correct

    @property
    def name(self) -> str:
        """`scripted`."""
        return "scripted"

    @property
    def identity(self) -> dict[str, JsonValue]:
        """Its script."""
        return {"expert": "scripted", **self._options.resume_key()}

    def ask(self, requests: Iterable[JudgeRequest], record: Callable[[Exchange], None]) -> None:
        """ServerReply to every request."""
        for request in requests:
            marks = [self._mark(text) for text in shown(request)]
            liked = "I like some words."
            if self._correct and max(marks) == 1:
                liked += f"\nCorrection: {self._options.prefer[0]}"
            if self._mode == "scores":
                reply = f"{liked}\nScores: {', '.join(map(str, marks))}"
            else:
                first, second = marks
                reply = f"{liked}\nVerdict: {'tie' if first == second else '1' if first > second else '2'}"
            record(Exchange.of(request, model=self.name, body=as_body(reply)))

    def _mark(self, text: str) -> int:
        words = f" {normalise(text)} "
        return min(10, 1 + sum(f" {normalise(phrase)} " in words for phrase in self._options.prefer))


class SimulatedBackend(FreeBackend):
    """The oracle with faults of known size: what a real expert's faults would do can be measured with it."""

    def __init__(self, options: SimulatedOptions, *, oracle: Oracle) -> None:
        """Compare two answers as `oracle` does, but wrongly, or by their order, as often as the options say."""
        self._options, self._oracle = options, oracle

    @property
    def name(self) -> str:
        """`simulated`, and its faults."""
        return f"simulated, {self._options.wrong:.0%} wrong, {self._options.order_bias:.0%} by order"

    @property
    def identity(self) -> dict[str, JsonValue]:
        """Its rule and its faults."""
        return {"expert": "simulated", "rule": RULE, **self._options.resume_key()}

    def ask(self, requests: Iterable[JudgeRequest], record: Callable[[Exchange], None]) -> None:
        """ServerReply to every request."""
        for request in requests:
            record(Exchange.of(request, model=self.name, body=as_body(f"Verdict: {self._verdict(request)}")))

    def _verdict(self, request: JudgeRequest) -> str:
        texts = shown(request)
        scores = self._oracle.score(unfenced(request.text)["question"], request.images, texts).scores
        if scores is None:
            return "abstain"
        if _chance("order", request.id) < self._options.order_bias:
            return "1"
        first, second = scores
        if first == second:
            return "tie"
        # The same two answers are judged wrongly in every order: such an error no swapping finds.
        wrong = _chance("wrong", request.subject, *sorted(texts)) < self._options.wrong
        return "1" if (first > second) != wrong else "2"


def shown(request: JudgeRequest) -> list[str]:
    """The answers in a prompt, in their order, as its marks enclose them."""
    found = unfenced(request.text)
    return [found[f"answer {number}"] for number in range(1, len(request.order) + 1)]


def _chance(*parts: str) -> float:
    """A number from 0 to 1 that depends on the parts alone."""
    return int(content_id("chance", *parts), 16) / 16**16
