"""An expert that is a model: asked by a prompt, in several orders, its replies kept before they are read.

Every reply goes into a log on disk; verdicts are read from there, so that they can be read again, by another rule
if need be, without asking or paying again.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock

from stllava.config import JudgeOptions
from stllava.errors import StllavaError
from stllava.experts.expert import SHOWN_OF_A_REPLY, UNREADABLE, Verdict, no_verdict
from stllava.experts.model.ordering import aggregate, distinct, orders
from stllava.experts.model.reply_log import Exchange, JudgeBackend, JudgeRequest, ReplyLog, ReplyText, reply_text
from stllava.experts.model.rubric import Mode, Rubric
from stllava.experts.model.verdict_parser import RAISE, ParsedReply, parse_scores, parse_verdict
from stllava.metrics.robust import normalise
from stllava.progress import Progress
from stllava.records import Answers, Context, VerdictCause, content_id


@dataclass(frozen=True)
class JudgeReply:
    """What came of one request: the exchange as it was logged, its words, and what they say."""

    request: JudgeRequest
    exchange: Exchange | None
    """None where the log holds none."""
    text: ReplyText
    parsed: ParsedReply

    @property
    def words(self) -> str:
        """The model's words, or why there are none."""
        return self.text.text or self.text.detail


class FirstReplies:
    """Stops an expert whose first dozen replies hold no verdict: the others would cost as much and say as little."""

    def __init__(self, expert: str) -> None:
        self._expert = expert
        self.readable = False
        """Whether a verdict was read."""
        self._causes: Counter[VerdictCause] = Counter()
        self._examples: dict[VerdictCause, str] = {}

    def count(self, parsed: ParsedReply, words: str) -> None:
        """Take a reply with what it says; raises StllavaError where it is one too many. An abstention could be read."""
        if parsed.scores is not None:
            self.readable = True
        elif parsed.cause is not None and parsed.cause != "abstained":
            self._causes[parsed.cause] += 1
            # Where a reply was cut off, the parser says so, and the words alone do not.
            cut = RAISE in parsed.reason
            self._examples.setdefault(parsed.cause, f"{words[-SHOWN_OF_A_REPLY // 2 :]} – {parsed.reason}" if cut else words)
            if self._causes.total() >= UNREADABLE:
                said = f"its first {self._causes.total()} replies"
                raise no_verdict(self._expert, said, self._causes, self._examples, ended=False)


class ModelExpert:
    """Judges by asking a model."""

    def __init__(
        self,
        backend: JudgeBackend,
        rubric: Rubric,
        *,
        reply_log: ReplyLog,
        options: JudgeOptions,
        contexts: Sequence[Context] = (),
    ) -> None:
        """Ask `backend` by `rubric`, showing what `contexts` know of an image; keep what it says in `reply_log`."""
        self._backend, self._rubric, self._reply_log, self._options = backend, rubric, reply_log, options
        self._identity = backend.identity
        self.prompt_hash = content_id(rubric.hash, options.orders, options.repeats)
        """Hash of the rubric, and of the number of orders and repeats."""
        self._contexts: dict[str, list[Context]] = {}
        for context in contexts:
            self._contexts.setdefault(context.image, []).append(context)

    @property
    def name(self) -> str:
        """The model, and where it is."""
        return self._backend.name

    @property
    def method(self) -> str:
        """What it is shown and asked."""
        mode, options = self._rubric.mode, self._options
        task = "to score all answers at once" if mode == "scores" else "which of two answers is better, for every two"
        times = f" and {options.repeats} times in each" if options.repeats > 1 else ""
        context = " and what is known of it" if self._contexts else ""
        order = f"in {options.orders} orders" if options.orders > 1 else "in one order"
        asked = f"It is a model that sees the image{context}, and is asked {task}, {order}{times}"
        asked += ", and for the right answer where none is" if options.correct else ""
        return f"{asked}; where replies differ, it is a tie."

    def can_judge(self, answers: Answers) -> bool:
        """Whether it is asked about a set of answers at all: not where all of them are the same text."""
        return len(distinct(answers.final_answers)) > 1

    def missing(self, answers: Answers) -> list[JudgeRequest]:
        """What is to be asked about one set of answers and the reply log does not hold an answer to."""
        return [request for request in self._requests(answers) if request.id not in self._reply_log]

    def max_cost(self, request: JudgeRequest) -> float | None:
        """US dollars that a request costs at most; None where no price is known."""
        return self._backend.max_cost(request)

    def max_cost_of(self, answers: Answers) -> float:
        """US dollars that judging a set of answers costs at most, asked or not. Raises StllavaError where no price is known."""
        total = 0.0
        for request in self._requests(answers):
            cost = self._backend.max_cost(request)
            if cost is None:
                raise StllavaError(
                    f"judge.budget_cost without prices: what {self.name} costs is not known",
                    expected="input_price and output_price of every expert that is asked",
                    remedy="Give them, or set budget, a number of questions, instead.",
                )
            total += cost
        return total

    def is_ready(self, answers: Answers) -> bool:
        """Whether the reply log holds an answer to all that is to be asked about a set of answers."""
        return not self.missing(answers)

    @property
    def cost(self) -> float:
        """US dollars that it has cost, by the log of its replies."""
        return self._reply_log.cost

    @property
    def damage(self) -> str:
        """What is lost of its reply_log, in a sentence; empty where nothing is."""
        return self._reply_log.damage

    def prepare(self, given: Iterable[Answers]) -> None:
        """Ask everything that the reply log does not hold an answer to; stop early where no reply holds a verdict."""
        total = sum(self._count(answers) for answers in given)
        done = total - sum(len(self.missing(answers)) for answers in given) if self._reply_log else 0
        if done == total:
            return
        first = FirstReplies(self.name)
        first.readable = done > 0 and any(
            reply.parsed.scores is not None for answers in given for reply in self.replies(answers)
        )
        with Progress("judge", total, unit="requests", done=done) as progress:
            lock = Lock()

            def record(exchange: Exchange) -> None:
                self._reply_log.add(exchange)
                with lock:
                    spent = f", ${self._reply_log.cost:.2f}" if self._reply_log.cost else ""
                    progress.advance(extra=f"{self._reply_log.attempts} sent{spent}")
                    if not first.readable and exchange.body is not None:
                        reply = reply_text(exchange)
                        first.count(self._parse(reply, len(exchange.order)), reply.text or reply.detail)

            self._backend.ask((request for answers in given for request in self.missing(answers)), record)

    def replies(self, answers: Answers) -> list[JudgeReply]:
        """What came of every request about one set of answers, as it stands in the log."""
        replies = []
        for request in self._requests(answers):
            exchange = self._reply_log.get(request.id)
            text = reply_text(exchange)
            replies.append(JudgeReply(request, exchange, text, self._parse(text, len(request.order))))
        return replies

    def judge(self, answers: Answers) -> Verdict:
        """What the replies in the log say."""
        replies = self.replies(answers)
        parsed = [(reply.request.order, reply.parsed) for reply in replies]
        result = aggregate(answers.final_answers, parsed, mode=self._rubric.mode)
        spent = [self._reply_log.spent(reply.request.id, reply.exchange) for reply in replies]
        usage = Counter(requests=sum(attempts for _, attempts in spent))
        for reply in replies:
            usage.update(reply.text.usage)
        reasons = [one.reason for _, one in parsed if (one.scores is None) == (result.scores is None)]
        return Verdict(
            scores=result.scores,
            cause=result.cause,
            reason=reasons[0] if reasons else "All answers are the same text, so it was not asked.",
            comparisons=result.comparisons,
            context=tuple(context.id for context in self._known(answers)),
            raw=tuple(reply.words for reply in replies),
            usage=dict(usage) if replies else {},
            cost=sum(cost for cost, _ in spent),
            correction=result.correction,
        )

    def _parse(self, reply: ReplyText, count: int) -> ParsedReply:
        if reply.cause is not None:
            return ParsedReply(None, reply.cause, reply.detail)
        return parse_verdict(reply.text) if self._rubric.mode == "pairwise" else parse_scores(reply.text, count)

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

    def _requests(self, answers: Answers) -> Iterator[JudgeRequest]:
        texts = answers.final_answers
        places = distinct(texts)
        mode: Mode = self._rubric.mode
        known = self._known(answers)
        for order in orders(places, mode=mode, count=self._options.orders):
            text = self._rubric.write(answers.question, [texts[place] for place in order], known)
            for repeat in range(self._options.repeats):
                key = content_id("request", self._identity, answers.id, list(answers.images), list(order), text, repeat)
                yield JudgeRequest(key, answers.id, order, repeat, text, answers.images, self._rubric.schema(len(order)))
