"""An expert that is a model: asked by a prompt, in several orders, its replies kept before they are read.

Every reply goes into a journal on disk; verdicts are read from there, so that they can be read again, by another rule
if need be, without asking or paying again.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock

from stllava.config import JudgeOptions
from stllava.experts.expert import SHOWN_OF_A_REPLY, UNREADABLE, Verdict, no_verdict
from stllava.experts.model.ordering import Order, distinct, orders, together
from stllava.experts.model.reply_log import Exchange, Journal, Request, Said, Speaker, said
from stllava.experts.model.rubric import Mode, Rubric
from stllava.experts.model.verdict_parser import RAISE, Reading, read_scores, read_verdict
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


class FirstReplies:
    """Stops an expert whose first dozen replies hold no verdict: the others would cost as much and say as little."""

    def __init__(self, expert: str) -> None:
        self._expert = expert
        self.readable = False
        """Whether a verdict was read."""
        self._causes: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def count(self, reading: Reading, words: str) -> None:
        """Take a reply with what it says; raises StllavaError where it is one too many. An abstention is a reading."""
        if reading.scores is not None:
            self.readable = True
        elif reading.cause is not None and reading.cause != "abstained":
            self._causes[reading.cause] += 1
            # Where a reply was cut off, the reader says so, and the words alone do not.
            cut = RAISE in reading.reason
            self._examples.setdefault(reading.cause, f"{words[-SHOWN_OF_A_REPLY // 2 :]} – {reading.reason}" if cut else words)
            if self._causes.total() >= UNREADABLE:
                said = f"its first {self._causes.total()} replies"
                raise no_verdict(self._expert, said, self._causes, self._examples, ended=False)


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

    def most(self, request: Request) -> float | None:
        """US dollars that a request costs at most; None where no price is known."""
        return self._speaker.most(request)

    @property
    def damage(self) -> str:
        """What is lost of its journal, in a sentence; empty where nothing is."""
        return self._journal.damage

    def prepare(self, given: Iterable[Answers]) -> None:
        """Ask everything that the journal does not hold an answer to; stop early where no reply holds a verdict."""
        total = sum(self._count(answers) for answers in given)
        done = total - sum(len(self.missing(answers)) for answers in given) if self._journal else 0
        if done == total:
            return
        first = FirstReplies(self.name)
        first.readable = done > 0 and any(one.reading.scores is not None for answers in given for one in self.heard(answers))
        with Progress("judge", total, unit="requests", done=done) as progress:
            turn = Lock()

            def heard(exchange: Exchange) -> None:
                self._journal.add(exchange)
                with turn:
                    spent = f", ${self._journal.cost:.2f}" if self._journal.cost else ""
                    progress.advance(extra=f"{self._journal.attempts} sent{spent}")
                    if not first.readable and exchange.body is not None:
                        reply = said(exchange)
                        first.count(self._read(reply, len(exchange.order)), reply.text or reply.detail)

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
        result = together(answers.final_answers, readings, mode=self._rubric.mode)
        spent = [self._journal.spent(request.id, exchange) for request, exchange in heard]
        usage = Counter(requests=sum(attempts for _, attempts in spent))
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
            cost=sum(cost for cost, _ in spent),
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
        shown = orders(distinct(answers.final_answers), mode=self._rubric.mode, count=self._options.orders)
        return sum(1 for _ in shown) * self._options.repeats

    def _requests(self, answers: Answers) -> Iterator[Request]:
        texts = answers.final_answers
        places = distinct(texts)
        mode: Mode = self._rubric.mode
        known = self._known(answers)
        for order in orders(places, mode=mode, count=self._options.orders):
            text = self._rubric.write(answers.question, [texts[place] for place in order], known)
            for repeat in range(self._options.repeats):
                key = content_id("request", self._identity, answers.id, list(answers.images), list(order), text, repeat)
                yield Request(key, answers.id, order, repeat, text, answers.images, self._rubric.schema(len(order)))
