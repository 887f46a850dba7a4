"""What judges say: an expert's verdicts, people's votes, and how far an expert can be trusted."""

from typing import Literal

from pydantic import Field

from stllava.records.record import Keyed, Record

VerdictCause = Literal["abstained", "unparsed", "refused", "failed", "same text"]
"""Why an expert gives no verdict: it will not say, its words cannot be read, it or its provider declines, no reply came, or it
compares answers and all of them are the same text."""


class Context(Keyed):
    """What an expert may know of an image beyond its pixels."""

    id: str
    """Hash of image, question, kind and text."""
    image: str
    """Path relative to the image root."""
    question: str | None = None
    """The one question it is about; None when it holds for every question about the image."""
    kind: Literal["caption", "report", "reference answer"]
    """What it is."""
    text: str
    """Its words."""


class Comparison(Record):
    """What an expert says of two completions, all orders in which it saw them taken together."""

    first: int
    """Place of one among the completions."""
    second: int
    """Place of the other, behind the first one's."""
    winner: int | None
    """Place of the better one; None for a tie and where there is no verdict."""
    cause: VerdictCause | None = None
    """Why there is no verdict; None when there is one, a tie among them."""
    flipped: bool = False
    """Whether another order made the other one win: it counts as a tie."""


class Judgment(Keyed):
    """An expert's verdict on one set of answers."""

    id: str
    """Hash of answers id, expert and prompt."""
    answers_id: str
    """The answers judged."""
    scores: tuple[float, ...] | None
    """One score per completion from 0 to 1, higher is better; None when there is no verdict."""
    cause: VerdictCause | None
    """Why there is no verdict; None when there is one."""
    reason: str
    """The expert's grounds in words."""
    expert: str
    """Which expert judged."""
    prompt_hash: str
    """Hash of the rubric or rule the expert applied."""
    comparisons: tuple[Comparison, ...] = ()
    """What it says of every two different completions; empty for experts whose scores say it all."""
    context: tuple[str, ...] = ()
    """Ids of the contexts it was shown."""
    raw: tuple[str, ...] = ()
    """Raw replies in every order asked; empty for experts that send none."""
    usage: dict[str, int] = Field(default_factory=dict)
    """Tokens or calls used, by name."""
    cost: float = 0.0
    """What it cost, in US dollars."""
    agreement: float | None = None
    """Of a panel, the share of its members' votes that the verdict follows; None for one expert alone."""
    correction: str | None = Field(default=None, exclude_if=lambda text: text is None)
    """The right answer where the expert found none right and was asked to correct; None otherwise."""

    @property
    def is_own_vote(self) -> bool:
        """Whether the policy's own answers voted (the expert `itself`), and no other was asked."""
        return self.expert == "itself"


class Vote(Keyed):
    """What a person says of two completions: the truth that an expert can be checked against."""

    id: str
    """Hash of answers id, places and voter, or your own."""
    answers_id: str
    """The answers they are of."""
    first: int
    """Place of one completion."""
    second: int
    """Place of the other."""
    winner: int | None
    """Place of the better one; None for a tie."""


class Rate(Record):
    """A share with its 95 % interval."""

    value: float
    """The share; of an agreement, Cohen's kappa."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""
    n: int
    """What it is a share of."""


class DistilledCheck(Record):
    """How far a distilled judge can be trusted: on images it was not trained on, answer by answer, right or wrong.

    Every interval is resampled by image.
    """

    teacher: str
    """The expert whose verdicts it learned."""
    images: int
    """Images held out."""
    answers: int
    """Different answers to questions about them."""
    same: Rate | None
    """Answers of which judge and teacher say the same."""
    agreement: Rate | None
    """Cohen's kappa of judge and teacher; None where nothing was held out."""
    truth_agreement: Rate | None
    """Cohen's kappa of judge and truth; None without a truth."""
    teacher_truth_agreement: Rate | None
    """Cohen's kappa of teacher and truth on the same answers; None without a truth."""

    @property
    def sentence(self) -> str:
        """What was found, in a sentence."""
        if self.same is None or self.agreement is None:
            return "No image was held out, so how far the judge agrees with its teacher is not known."
        told = (
            f"On {self.answers} answers about {self.images} images held out, the judge says what {self.teacher} says of "
            f"{self.same.value:.1%}; {_kappa(self.agreement)}"
        )
        if self.truth_agreement is None or self.teacher_truth_agreement is None:
            return f"{told}."
        return (
            f"{told}. With the truth: {_kappa(self.truth_agreement)}; of its teacher, {_kappa(self.teacher_truth_agreement)}."
        )


def _kappa(rate: Rate) -> str:
    return f"Cohen's kappa {rate.value:.2f} [{rate.low:.2f}, {rate.high:.2f}]"


class AuditedKind(Record):
    """How often an expert errs about questions that begin alike."""

    opening: str
    """Their first words."""
    wrong: Rate
    """Verdicts on single answers that are wrong."""


class AuditedTopic(Record):
    """How often an expert errs about something it errs about more than elsewhere."""

    word: str
    """What the question or the answer names, in the one form of its spellings."""
    wrong: Rate
    """Of verdicts on single answers that name it and no topic before it, those that are wrong."""
    misses: Rate | None
    """Of the right ones among these answers, those that are called wrong."""
    false_alarms: Rate | None
    """Of the wrong ones, those that are called right."""


class ExpertAudit(Record):
    """How often an expert errs, by its verdicts on answers to questions with known answers.

    Equal answers to a question count once; those that the label calls partly right do not count. Every interval is
    resampled by image.
    """

    expert: str
    """Who was audited."""
    questions: int
    """Questions with a verdict and a known answer."""
    wrong: Rate | None
    """Of verdicts on single answers, those that call a right one wrong or a wrong one right; None without any."""
    misses: Rate | None
    """Of right answers, those that are called wrong."""
    false_alarms: Rate | None
    """Of wrong answers, those that are called right."""
    wrong_pairs: Rate | None
    """Of the pairs that `pair` makes of these verdicts, those whose rejected answer is the better one; pairs of answers that
    are equally good do not count."""
    wrong_chosen: Rate | None
    """Of the same pairs, those whose chosen answer is wrong."""
    kinds: tuple[AuditedKind, ...] = ()
    """The same of questions that begin alike, where there are 30 verdicts or more that name no topic."""
    topics: tuple[AuditedTopic, ...] = ()
    """What it errs about more than elsewhere, the clearest first."""
    elsewhere: Rate | None = None
    """Of verdicts that name no topic, those that are wrong; None without a topic, where it is `wrong`."""

    @property
    def sentences(self) -> tuple[str, ...]:
        """What was found."""
        if self.wrong is None:
            return (f"The audit of {self.expert} found no verdict on an answer that is known.",)
        told = f"By {self.questions} labelled questions, {self.expert} is wrong about {_share(self.wrong)} of single answers"
        parts = {"it calls right answers wrong": self.misses, "and wrong ones right": self.false_alarms}
        more = ", ".join(f"{text} in {_share(found)}" for text, found in parts.items() if found is not None)
        sentences = [f"{told}: {more}."]
        if self.wrong_pairs is not None and self.wrong_chosen is not None:
            sentences.append(
                f"Of the pairs that come of it, {_share(self.wrong_pairs)} are the wrong way round, and "
                f"{_share(self.wrong_chosen)} choose a wrong answer."
            )
        rest = self.elsewhere or self.wrong
        worst = sorted((kind for kind in self.kinds if kind.wrong.low > rest.value), key=lambda kind: -kind.wrong.value)
        about = [
            *(f"“{topic.word}” {_share(topic.wrong)}" for topic in self.topics[:5]),
            *(f"“{kind.opening} …” {_share(kind.wrong)}" for kind in worst[:3]),
        ]
        if about:
            sentences.append(f"It errs more about {', '.join(about)} than elsewhere ({_share(rest)}).")
        return tuple(sentences)


def _share(rate: Rate) -> str:
    return f"{rate.value:.1%} [{rate.low:.1%}, {rate.high:.1%}]"


class Flip(Record):
    """Two answers of which an expert preferred whichever stood first, or second."""

    image: str
    """Path relative to the image root."""
    question: str
    """The question."""
    answers: tuple[str, str]
    """Both, in the order of the first reply."""
    replies: tuple[str, str]
    """What it said of them in that order, and in the other."""


class JudgeCheck(Record):
    """How far an expert can be trusted, measured on a sample of answers; every interval is resampled by image."""

    expert: str
    """Who was checked."""
    questions: int
    """Sets of answers in the sample."""
    requests: int
    """Replies it is measured on."""
    flips: Rate | None
    """Position bias: comparisons in which the other order made the other answer win."""
    first_wins: Rate | None
    """Of all replies that prefer one of two answers, those that prefer the one shown first; 0.5 is fair."""
    repeats: Rate | None
    """Self-agreement: comparisons with the same outcome when asked the same again."""
    longer_wins: Rate | None
    """Length bias: of all decided comparisons of answers of different length, those the longer one wins."""
    longer_wins_adjusted: Rate | None
    """The same where the truth calls the longer one better as often as worse; 0.5 is fair. None without a truth."""
    agreement: Rate | None
    """Cohen's kappa with the truth over win, tie and loss; None without a truth."""
    truth: str
    """What the truth was: oracle, people, or an empty string."""
    examples: tuple[Flip, ...]
    """Some of the flips."""
