"""Options of experts, of their verdicts and of the pairs these make."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, JsonValue, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from stllava.config.base import NamedModel, NamedPath, Options, Rate, Share
from stllava.config.generation import ServeOptions

SERVED_WITH = frozenset({"serve", "arguments", "weights"})
"""Options of a server that is started here which shape its replies."""


WORDS_OF_KIND = 3
"""Words at the beginning of a question that say what kind it is."""


class ChatOptions(ServeOptions):
    """A vision-language model behind an OpenAI-compatible server, as an expert (docs/expert.md)."""

    part: ClassVar[str] = "judge.chat"
    runtime_only = ServeOptions.runtime_only | {
        "requests_per_minute",
        "tokens_per_minute",
        "input_price",
        "output_price",
        "image_tokens",
        "max_cost",
        "max_requests",
        "batch",
        "poll",
    }

    weights: NamedModel = ""
    """With serve: folder or name of the transformers image-text-to-text model that is served."""
    temperature: Rate = 0.0
    """Softmax temperature of its replies; 0 is greedy."""
    max_tokens: PositiveInt = 1024
    """Longest reply, in tokens."""
    structured: bool = True
    """Ask for JSON by schema; set false where the server refuses `response_format`."""
    max_side: Annotated[int, Field(ge=32)] = 1024
    """Images whose longer side has more pixels than this are scaled down before they are sent."""
    requests_per_minute: NonNegativeInt = 0
    """Maximum requests per minute; 0 sets no limit."""
    tokens_per_minute: NonNegativeInt = 0
    """Maximum tokens per minute, prompts and replies together; 0 sets no limit."""
    input_price: Rate = 0.0
    """US dollars a million tokens of prompt."""
    output_price: Rate = 0.0
    """US dollars a million tokens of reply."""
    image_tokens: NonNegativeInt = 1000
    """Tokens that the server counts for an image; used for estimates until its replies tell."""
    max_cost: Rate = 0.0
    """US dollars after which the stage stops, to be resumed with more; 0 sets no limit."""
    max_requests: NonNegativeInt = 0
    """Requests, repeated ones included, after which the stage stops, to be resumed with more; 0 sets no limit."""
    batch: bool = False
    """Send the requests through the provider's batch API: cheaper, and answered within a day."""
    poll: PositiveFloat = 30.0
    """Seconds between two questions whether a batch is done."""

    @model_validator(mode="after")
    def _a_batch_is_one_servers(self) -> "ChatOptions":
        if self.batch and len(self.urls) > 1:
            raise ValueError("one url with batch: a provider's batch is all of one server's")
        return self

    @model_validator(mode="after")
    def _serves_weights(self) -> "ChatOptions":
        if bool(self.serve) != bool(self.weights):
            raise ValueError("serve and weights together: what serves, and the model that is served")
        if self.serve and self.batch:
            raise ValueError("serve or batch: a server that is started here has no batch API")
        return self

    def resume_key(self) -> dict[str, JsonValue]:
        """What replies depend on; what a server is started with only where one is."""
        kept = super().resume_key()
        return kept if self.serve else {name: value for name, value in kept.items() if name not in SERVED_WITH}


class LocalExpertOptions(Options):
    """A vision-language model in this process, as an expert."""

    renamed: ClassVar[Mapping[str, str]] = {"tokens": "max_cache_tokens"}

    model: NamedModel = ""
    """Folder or name of a transformers image-text-to-text model."""
    max_new_tokens: PositiveInt = 512
    """Longest reply, in tokens."""
    max_cache_tokens: PositiveInt = 32768
    """Maximum number of tokens in the cache at once; fewer need less memory and more time."""


class ScriptedOptions(Options):
    """An expert that follows a script: for tests, examples and trying out a recipe without a model."""

    prefer: tuple[str, ...] = ("yes",)
    """Words it likes: the more of them an answer has, the better it is."""


class SimulatedOptions(Options):
    """An expert that knows, made worse on purpose, to learn what an expert's quality is worth (docs/expert.md)."""

    of: Literal["oracle", "reference"] = "oracle"
    """Which expert it is made of. One of the oracle judges pair by pair, one of the reference expert by judge.mode."""
    wrong: Share = 0.0
    """Share of verdicts that are the wrong way round: of comparisons, whatever the order, or of single answers' scores."""
    order_bias: Share = 0.0
    """Share of replies that prefer the answer shown first, whatever it says; only where it judges pair by pair."""
    abstains: Share = 0.0
    """Share of questions on which it will not say."""
    confuses: dict[str, str] = Field(default={})
    """Classes that it mixes up, each with the one it takes it for and the other way round: {glioma: meningioma}."""
    confused: Share = 1.0
    """Share of the images of either class of such a pair that it takes for the other, in every question about them."""

    @model_validator(mode="after")
    def _only_references_name_classes(self) -> "SimulatedOptions":
        if self.confuses and self.of == "oracle":
            raise ValueError("confuses with of: reference, whose answers name the classes")
        return self


class ItselfOptions(Options):
    """No expert: what most of the policy's own answers to a question say counts as right."""

    min_agreement: Annotated[float, Field(gt=0, le=1)] = 0.6
    """It abstains on a question where a smaller share of the answers than this says the same."""
    min_precision: Share = 0.9
    """Where labelled questions were answered too: it also abstains where the share of the answers that says the same was right
    on fewer of those than this."""
    labels: NonNegativeInt = 500
    """Maximum number of questions of the validation split that the policy answers in each round of a run, to find out how far
    its agreement can be trusted; 0: min_agreement decides alone."""


class DistilledOptions(Options):
    """A judge that `stllava distill` made of another expert's verdicts, in this process."""

    # A stage notes the weights themselves, wherever they lie.
    runtime_only = frozenset({"model", "max_tokens_per_forward"})

    model: NamedModel = ""
    """Folder of the judge."""
    min_confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.5
    """It abstains on a question where it is less sure than this that some answer is right, or that it is wrong."""
    max_tokens_per_forward: PositiveInt = 16384
    """Maximum tokens per forward pass, padding included."""


class JudgeOptions(Options):
    """An expert scores the answers."""

    runtime_only = frozenset({"max_failed", "max_flips", "rubric", "context", "panel"})

    expert: Literal["oracle", "reference", "chat", "local", "distilled", "itself", "scripted", "simulated", "panel"] = "oracle"
    """oracle: knows the phantoms' truth; reference: compares with reference answers to the same question; chat, local:
    a vision-language model behind a server or here; distilled: what `stllava distill` made of another expert's verdicts;
    itself: no expert, what most of the policy's answers say; scripted: by rule; simulated: one that knows, made worse;
    panel: several."""
    mode: Literal["scores", "pairwise"] = "scores"
    """What a model is asked: to score all answers to a question at once, or which of two is better, for every two."""
    orders: PositiveInt = 2
    """Number of orders in which a model is shown the same answers; where its verdicts differ, it is a tie."""
    correct: bool = False
    """Where no answer is right, also take the expert's own: the best answer with as few words changed as it takes. `pair`
    makes it the chosen answer."""
    repeats: PositiveInt = 1
    """How often a model is asked in each order; all of its verdicts count together."""
    rubric: NamedPath | None = None
    """Your own prompt in place of the one that is shipped (docs/expert.md)."""
    context: NamedPath | None = None
    """JSONL of Context records that a model is shown: captions, reports, reference answers."""
    show_references: bool = False
    """Show a model the reference answers to the same question about the same image, where there are any."""
    chat: ChatOptions = ChatOptions()
    """The server of `chat`."""
    local: LocalExpertOptions = LocalExpertOptions()
    """The model of `local`."""
    distilled: DistilledOptions = DistilledOptions()
    """The model of `distilled`."""
    itself: ItselfOptions = ItselfOptions()
    """When `itself` abstains."""
    scripted: ScriptedOptions = ScriptedOptions()
    """The script of `scripted`."""
    simulated: SimulatedOptions = SimulatedOptions()
    """The faults of `simulated`."""
    panel: tuple[NamedPath, ...] = ()
    """YAML files, each with these options of one member of `panel`."""
    verdict: Literal["majority", "mean"] = "majority"
    """How a panel decides: by votes on every two answers, or by the mean of its members' scores."""
    budget: NonNegativeInt = 0
    """Maximum number of questions whose answers are judged, in a run over all rounds; 0 judges all. Those that teach most are
    chosen over the whole set, and what was judged in an earlier round costs nothing."""
    budget_cost: Rate = 0.0
    """The same in US dollars, by the prices given and the most that each request can cost; nothing more is sent once it is
    spent, where replies cost more than that. 0 sets no limit."""
    selection: Literal["informative", "random"] = "informative"
    """How questions are chosen within a budget: where answers split, spread over kinds of question and images; or by chance."""
    consensus: bool = False
    """Within a budget, also take what the expert `itself` would say of the questions that are not asked."""
    audit: NonNegativeInt = 0
    """In a run, the number of labelled questions (of the validation split) whose answers the expert judges before the first
    round, for an estimate of its errors; 0: none. They count in the budget, and take half of it at most."""
    smooth_labels: bool = False
    """Take the share of pairs that the audit finds to be the wrong way round as dpo.label_smoothing; with its losses sigmoid
    and hinge."""
    chunk: PositiveInt = 512
    """Number of questions whose answers a distilled judge scores together; shards of the work are made of whole chunks."""
    max_failed: Share = 0.05
    """The stage stops when a larger share of questions than this has no verdict because requests failed."""
    max_flips: Share = 0.5
    """The stage stops when the order of the answers decides a larger share of comparisons than this."""

    @model_validator(mode="after")
    def _order_means_something(self) -> "JudgeOptions":
        if self.expert == "simulated" and self.simulated.order_bias and not self.compares:
            raise ValueError("mode pairwise with simulated.order_bias: single answers are shown in no order")
        return self

    @model_validator(mode="after")
    def _budget_buys_verdicts(self) -> "JudgeOptions":
        if self.expert == "itself" and self.is_limited:
            raise ValueError("no budget with the expert itself: its verdicts cost nothing")
        if self.consensus and not self.is_limited:
            raise ValueError("budget or budget_cost with consensus, which is about the questions that a budget leaves out")
        if self.selection == "random" and not self.is_limited:
            raise ValueError("budget or budget_cost with selection random: without one every question is judged")
        return self

    @model_validator(mode="after")
    def _only_who_knows_corrects(self) -> "JudgeOptions":
        by_comparing = self.expert == "simulated" and self.simulated.of == "oracle"
        if self.correct and (self.expert in ("itself", "distilled") or by_comparing):
            who = "simulated of the oracle" if by_comparing else self.expert
            raise ValueError(f"correct false with the expert {who}, which knows no right answer that it was not given")
        return self

    @model_validator(mode="after")
    def _audits_ask_who_can_tell(self) -> "JudgeOptions":
        if self.audit and self.rule in ("oracle", "simulated", "itself"):
            raise ValueError(
                "audit with an expert that can judge answers about labelled images: not itself, nor one that knows phantoms"
            )
        if self.budget and 2 * self.audit > self.budget:
            raise ValueError(
                f"judge.budget of at least {2 * self.audit}, of which an audit of {self.audit} takes half, or a smaller one"
            )
        if self.smooth_labels and not self.audit:
            raise ValueError("smooth_labels with an audit that finds the pairs' errors")
        return self

    @property
    def compares(self) -> bool:
        """Whether it is asked which of two answers is better."""
        return self.mode == "pairwise" or (self.expert == "simulated" and self.simulated.of == "oracle")

    @property
    def rule(self) -> str:
        """Which expert says what can be judged: the one that a simulated expert of references is made of, else itself."""
        return "reference" if self.expert == "simulated" and self.simulated.of == "reference" else self.expert

    @property
    def votes(self) -> bool:
        """Whether the policy's own vote judges, everything or what a budget leaves out."""
        return self.expert == "itself" or (self.consensus and self.is_limited)

    @property
    def is_limited(self) -> bool:
        """Whether only what fits a budget is judged."""
        return bool(self.budget or self.budget_cost)

    @property
    def is_paid(self) -> bool:
        """Whether a verdict costs money, or the time of a large model, so that none is asked for twice."""
        return self.expert in ("chat", "local", "panel")


ErrorShare = Annotated[float, Field(gt=0, lt=1)]
"""A share of verdicts that are wrong: of an expert that never is, or always, nothing could be reckoned."""


class PairOptions(Options):
    """Which answers to a question become pairs; ties and abstentions never do."""

    renamed: ClassVar[Mapping[str, str]] = {
        "most": "max_pairs_per_question",
        "denials": "max_denial_share",
        "least": "min_chosen_score",
        "alike": "max_similarity",
    }

    margin: PositiveFloat = 0.2
    """Minimum difference of two scores, which go from 0 to 1, that makes a pair; of a group, that of its best and worst."""
    pairs: Literal["extremes", "all", "group"] = "extremes"
    """extremes: the best answer against the worst; all: every two answers whose scores differ by the margin; group: every two
    whose scores differ by more than rounding, weighed so that together they are the group's advantages, which are the scores
    less their mean, over their standard deviation (for dpo.loss group)."""
    max_pairs_per_question: PositiveInt | None = None
    """Maximum number of pairs per question, those that differ most first; no limit when absent."""
    gain_weight: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How much more a pair counts whose chosen answer the image makes likelier, where image gains are known: its weight is
    1 + gain_weight × tanh(gain in nats), divided by the mean of all; 0 weighs all alike."""
    counter_pairs: bool = False
    """Beside its other pairs, let a question reject an answer that is right of another image asked the same and wrong of this
    one: what cannot be told from the question alone."""
    question_pairs: NonNegativeInt = 0
    """Beside its other pairs, teach what to ask: at most so many pairs of questions an image, one whose answers made a pair
    over one that the expert could not judge or whose answers are all right."""
    balance: bool = True
    """Choose yes as often as no among questions that begin alike: a policy that asks about what is not there learns no. A
    group (pairs: group) stays or goes as a whole, by its best answer."""
    max_denial_share: Share = 0.1
    """Largest share of chosen answers such as "there is no …" to questions that take for granted what is not there."""
    balance_length: bool = False
    """Choose the longer answer as often as the shorter one: against an expert that takes length for quality."""
    min_chosen_score: Share = 0.5
    """Minimum score of a chosen answer, of a group that of its best: the best of bad answers is not worth learning."""
    min_confidence: Share = 0.0
    """Choose an answer only where it is right with this probability, given the expert's errors and how many of the policy's
    answers say the same; 0 believes the expert. Above 0.5, one answer to a question can be chosen at most."""
    pool_paraphrases: bool = True
    """With min_confidence, let a verdict on an answer count for the same answer to every question about the same images that
    asks the same in other words, as the answers show; false where questions only seem to be alike."""
    expert_error: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of the expert's verdicts on single answers that are wrong, for min_confidence; in a run with judge.audit, 0 stands
    for what the audit finds."""
    expert_errors: dict[str, Annotated[float, Field(ge=0, lt=0.5)]] = Field(default={})
    """The same of questions that begin with these three words, where it errs more or less than elsewhere: {what type of: 0.4};
    in a run with judge.audit, what that finds of kinds that stand out."""
    expert_errors_about: dict[str, tuple[ErrorShare, ErrorShare]] = Field(default={})
    """The same of all that names something, in the answer or in the question behind its first three words: two shares above
    0, of right answers that it calls wrong and of wrong ones that it calls right. {glioma: [0.4, 0.2]} in a recipe; where
    several words are named, the first of this list counts. In a run with judge.audit, what that finds is added."""
    max_similarity: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Drop pairs whose texts are so similar or more: 1 only equal ones, 0.9 those that share nine tenths of their words."""

    @property
    def pools_wordings(self) -> bool:
        """Whether verdicts count for the same answer in other words too."""
        return self.pool_paraphrases and self.min_confidence > 0

    @model_validator(mode="after")
    def _errors_are_reckoned_with(self) -> "PairOptions":
        if (self.expert_error or self.expert_errors or self.expert_errors_about) and not self.min_confidence:
            raise ValueError("min_confidence above 0, which alone takes expert_error, expert_errors and expert_errors_about")
        if not self.pool_paraphrases and not self.min_confidence:
            raise ValueError("min_confidence above 0 with pool_paraphrases: without it no wording counts for another")
        odd = [opening for opening in self.expert_errors if not _is_opening(opening)]
        if odd:
            raise ValueError(f"the first three words of questions, in small letters, as keys of expert_errors, not {odd[0]!r}")
        return self

    @model_validator(mode="after")
    def _groups_stay_whole(self) -> "PairOptions":
        if self.pairs == "group" and (
            self.gain_weight or self.counter_pairs or self.question_pairs or self.max_pairs_per_question
        ):
            raise ValueError(
                "no gain_weight, no counter_pairs, no question_pairs and no max_pairs_per_question with pairs: group, whose "
                "weights are the advantages within the whole group"
            )
        return self


def _is_opening(text: str) -> bool:
    """Whether a question can begin with these words, by which its kind is told: three, or fewer where it has no more."""
    words = text.lower().split()
    return text == " ".join(words) and 1 <= len(words) <= WORDS_OF_KIND
