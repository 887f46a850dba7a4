"""Experts that reply by rule, through the same prompts, orders and readers as a model: for tests, docs and experiments."""

from collections.abc import Callable, Iterable

from pydantic import JsonValue

from stllava.config import ScriptedOptions, SimulatedOptions
from stllava.data.borrowing import bare
from stllava.experts.model.reply_log import Exchange, FreeBackend, JudgeRequest, as_body
from stllava.experts.model.rubric import Mode, unfenced
from stllava.experts.rules.fallible import chance
from stllava.experts.rules.oracle import RULE, Oracle
from stllava.experts.rules.reference import ReferenceJudge
from stllava.metrics.robust import normalise


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
    """A rule judge with faults of known size: what a real expert's faults would do can be measured with it."""

    def __init__(self, options: SimulatedOptions, *, judge: Oracle | ReferenceJudge) -> None:
        """Compare two answers as `judge` does, but wrongly, or by their order, as often as the options say."""
        self._options, self._judge = options, judge

    @property
    def name(self) -> str:
        """`simulated`, and its faults."""
        return f"simulated, {self._options.wrong:.0%} wrong, {self._options.order_bias:.0%} by order"

    @property
    def identity(self) -> dict[str, JsonValue]:
        """Its rule and its faults."""
        rule = RULE if isinstance(self._judge, Oracle) else self._judge.prompt_hash
        faults = self._options.resume_key()
        changed = self._options.model_dump(mode="json", exclude_defaults=True)
        # Faults that came later count only where it has them: they leave earlier draws as they were.
        return {"expert": "simulated", "rule": rule, "wrong": faults["wrong"], "order_bias": faults["order_bias"], **changed}

    def ask(self, requests: Iterable[JudgeRequest], record: Callable[[Exchange], None]) -> None:
        """ServerReply to every request."""
        for request in requests:
            record(Exchange.of(request, model=self.name, body=as_body(f"Verdict: {self._verdict(request)}")))

    def _verdict(self, request: JudgeRequest) -> str:
        texts = shown(request)
        question = unfenced(request.text)["question"]
        scores = self._judge.score(question, request.images, texts).scores
        if scores is None or chance("abstains", *request.images, bare(question)) < self._options.abstains:
            return "abstain"
        if chance("order", request.id) < self._options.order_bias:
            return "1"
        first, second = scores
        if first == second:
            return "tie"
        # The same two answers are judged wrongly in every order: such an error no swapping finds.
        wrong = chance("wrong", request.subject, *sorted(texts)) < self._options.wrong
        return "1" if (first > second) != wrong else "2"


def shown(request: JudgeRequest) -> list[str]:
    """The answers in a prompt, in their order, as its marks enclose them."""
    found = unfenced(request.text)
    return [found[f"answer {number}"] for number in range(1, len(request.order) + 1)]
