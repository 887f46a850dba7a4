"""An expert that is a model: asked by a prompt, in several orders, its replies kept before they are read.

Every reply goes into a journal on disk; verdicts are read from there, so that they can be read again, by another rule
if need be, without asking or paying again.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock

from stllava.config import JudgeOptions
from stllava.experts.exchange import Exchange, Journal, Request, Said, Speaker, said
from stllava.experts.expert import Verdict
from stllava.experts.orders import Order, distinct, orders, together
from stllava.experts.replies import Reading, read_scores, read_verdict
from stllava.experts.rubric import Mode, Rubric
from stllava.metrics.robust import normalise
from stllava.progress import Progress
from stllava.records import Answers, Context, content_id


@dataclass(frozen=True)
class Heard:
    """One reply and what it says."""

    order: Order
    """Places of the completions it saw, first shown first."""
    repeat: int
    """Which time it was asked the same."""
    text: str
    """Its words, or why there are none."""
    reading: Reading
    """What they say."""


class ModelExpert:
    """Judges by asking a model."""

    def __init__(
        self, speaker: Speaker, rubric: Rubric, *, journal: Journal, options: JudgeOptions, contexts: Sequence[Context] = ()
    ) -> None:
        """Ask `speaker` by `rubric`, showing what `contexts` know of an image; keep what it says in `journal`."""
        self._speaker, self._rubric, self._journal, self._options = speaker, rubric, journal, options
        self._identity = speaker.identity
        self.prompt_hash = content_id(rubric.hash, options.orders, options.repeats)
        """Hash of the rubric, and of the number of orders and repeats."""
        self._contexts: dict[str, list[Context]] = {}
        for context in contexts:
            self._contexts.setdefault(context.image, []).append(context)

    @property
    def name(self) -> str:
        """The model, and where it is."""
        return self._speaker.name

    @property
    def method(self) -> str:
        """What it is shown and asked."""
        mode, options = self._rubric.mode, self._options
        task = "to score all answers at once" if mode == "scores" else "which of two answers is better, for every two"
        times = f" and {options.repeats} times in each" if options.repeats > 1 else ""
        context = " and what is known of it" if self._contexts else ""
        order = f"in {options.orders} orders" if options.orders > 1 else "in one order"
        asked = f"It is a model that sees the image{context}, and is asked {task}, {order}{times}"
        return f"{asked}; where replies differ, it is a tie."

    def missing(self, answers: Answers) -> list[Request]:
        """What is to be asked about one set of answers and the journal does not hold an answer to."""
        return [request for request in self._requests(answers) if request.id not in self._journal]

    def most(self, request: Request) -> float:
        """US dollars that a request costs at most."""
        return self._speaker.most(request)

    def prepare(self, given: Iterable[Answers]) -> None:
        """Ask everything that the journal does not hold an answer to."""
        total = sum(self._count(answers) for answers in given)
        done = total - sum(len(self.missing(answers)) for answers in given) if self._journal else 0
        with Progress("judge", total, unit="requests", done=done) as progress:
            turn = Lock()

            def heard(exchange: Exchange) -> None:
                self._journal.add(exchange)
                with turn:
                    progress.advance(extra=f"{self._journal.attempts} sent, ${self._journal.cost:.2f}")

            if done < total:
                self._speaker.ask((request for answers in given for request in self.missing(answers)), heard)

    def heard(self, answers: Answers) -> list[Heard]:
        """The replies about one set of answers, as they are in the journal."""
        found = []
        for request in self._requests(answers):
            reply = said(self._journal.get(request.id))
            reading = self._read(reply, len(request.order))
            found.append(Heard(request.order, request.repeat, reply.text or reply.detail, reading))
        return found

    def judge(self, answers: Answers) -> Verdict:
        """What the replies in the journal say."""
        heard = [(request, self._journal.get(request.id)) for request in self._requests(answers)]
        replies = [said(exchange) for _, exchange in heard]
        readings = [
            (request.order, self._read(reply, len(request.order))) for (request, _), reply in zip(heard, replies, strict=True)
        ]
        result = together(answers.completions, readings, mode=self._rubric.mode)
        usage = Counter(requests=sum(exchange.attempts for _, exchange in heard if exchange is not None))
        for reply in replies:
            usage.update(reply.usage)
        reasons = [reading.reason for _, reading in readings if (reading.scores is None) == (result.scores is None)]
        return Verdict(
            scores=result.scores,
            cause=result.cause,
            reason=reasons[0] if reasons else "All answers are the same text.",
            comparisons=result.comparisons,
            context=tuple(context.id for context in self._known(answers)),
            raw=tuple(reply.text or reply.detail for reply in replies),
            usage=dict(usage) if heard else {},
            cost=sum(exchange.cost for _, exchange in heard if exchange is not None),
        )

    def _read(self, reply: Said, count: int) -> Reading:
        if reply.cause is not None:
            return Reading(None, reply.cause, reply.detail)
        return read_verdict(reply.text) if self._rubric.mode == "pairwise" else read_scores(reply.text, count)

    def _known(self, answers: Answers) -> list[Context]:
        question = normalise(answers.question)
        return [
            context
            for image in answers.images
            for context in self._contexts.get(image, ())
            if context.question is None or normalise(context.question) == question
        ]

    def _count(self, answers: Answers) -> int:
        """How many requests there are about one set of answers."""
        shown = orders(distinct(answers.completions), mode=self._rubric.mode, count=self._options.orders)
        return sum(1 for _ in shown) * self._options.repeats

    def _requests(self, answers: Answers) -> Iterator[Request]:
        places = distinct(answers.completions)
        mode: Mode = self._rubric.mode
        known = self._known(answers)
        for order in orders(places, mode=mode, count=self._options.orders):
            text = self._rubric.write(answers.question, [answers.completions[place] for place in order], known)
            for repeat in range(self._options.repeats):
                key = content_id("request", self._identity, answers.id, list(answers.images), list(order), text, repeat)
                yield Request(key, answers.id, order, repeat, text, answers.images, self._rubric.schema(len(order)))
