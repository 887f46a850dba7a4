"""What requests may cost: tokens, US dollars and the limits on them."""

from threading import Lock

from stllava.config import ChatOptions
from stllava.errors import StllavaError
from stllava.remote.completion import ChatCompletion, ChatUsage

CHARACTERS_A_TOKEN = 3.5
"""Of English prose, on the low side: estimates shall not be too small."""
MILLION = 1e6
MOST_IMAGE_TOKENS, MOST_OWN_TOKENS, MOST_REPLY_TOKENS = 100_000, 10_000, 1_000_000
"""Beyond these, of an image, of what a server adds to a prompt and of a reply, a count is not believed."""


class LimitError(StllavaError):
    """The next request could pass a limit in the options."""


class BudgetSpentError(LimitError):
    """The next request could cost more than is left of what all experts of a stage may cost together."""


class CostLimit:
    """What the requests of one or several experts may cost together; threads share it."""

    def __init__(self, dollars: float) -> None:
        self.dollars, self._lock = dollars, Lock()
        self._taken = 0.0

    def take(self, cost: float) -> None:
        """Reserve so many US dollars, or raise BudgetSpentError."""
        with self._lock:
            if self._taken + cost > self.dollars:
                raise BudgetSpentError(
                    f"${self._taken:.4f} of ${self.dollars:.4f} is spent or reserved for requests under way, which leaves too "
                    f"little for the next one, of ${cost:.4f} at most",
                    expected="a budget that suffices",
                    remedy="Raise judge.budget_cost and give the same command again: every reply is kept.",
                )
            self._taken += cost

    def add(self, cost: float) -> None:
        """Count what was spent beside what was reserved, or give back what a reservation did not cost."""
        with self._lock:
            self._taken += cost


class Budget:
    """Lets requests be sent while they are within the limits, and counts what they cost; threads share it."""

    def __init__(self, options: ChatOptions, *, cost: float = 0.0, requests: int = 0, shared: CostLimit | None = None) -> None:
        """Start from what was spent before; what is spent counts towards a `shared` limit too."""
        if options.max_cost and not options.input_price and not options.output_price:
            raise StllavaError(
                "max_cost is set, but no price is",
                expected="input_price and output_price in US dollars a million tokens",
                remedy="Set them from the provider's price list, or limit max_requests instead.",
            )
        self._options, self._lock, self._shared = options, Lock(), shared
        self.cost, self.requests = cost, requests
        if shared is not None:
            shared.add(cost)
        self._reserved = 0.0
        self._before = cost / requests if requests else 0.0
        self._image_tokens = float(options.image_tokens)

    def tokens(self, text: str, images: int) -> int:
        """Tokens of a prompt and its reply, at most: an estimate, corrected by what replies say of images."""
        return int(len(text) / CHARACTERS_A_TOKEN + images * self._image_tokens) + self._options.max_tokens

    def max_cost(self, text: str, images: int) -> float:
        """US dollars a request costs at most."""
        options = self._options
        prompt = self.tokens(text, images) - options.max_tokens
        return (prompt * options.input_price + options.max_tokens * options.output_price) / MILLION

    def reservation(self, text: str, images: int) -> float:
        """What to reserve for a request: the most it costs, and no less than those of earlier starts did on average."""
        return max(self.max_cost(text, images), self._before)

    def reserve(self, cost: float, *, requests: int = 1) -> None:
        """Allow a sending that may cost so much, or raise LimitError; `settle` gives back what it did not cost."""
        options = self._options
        with self._lock:
            if options.max_requests and self.requests + requests > options.max_requests:
                raise LimitError(
                    f"max_requests {options.max_requests} is reached",
                    expected="a limit that suffices",
                    remedy="Raise it and give the same command again: every reply is kept.",
                )
            if options.max_cost and self.cost + self._reserved + cost > options.max_cost:
                raise LimitError(
                    f"${self.cost:.4f} is spent, ${self._reserved:.4f} is reserved for requests under way, and the next one, "
                    f"of ${cost:.4f} at most, could pass max_cost ${options.max_cost:g}",
                    expected="a limit that suffices",
                    remedy="Raise it and give the same command again: every reply is kept.",
                )
            if self._shared is not None:
                self._shared.take(cost)
            self.requests += requests
            self._reserved += cost

    def hold(self, cost: float) -> None:
        """Reserve for a sending of an earlier start, which cannot be taken back."""
        with self._lock:
            self._reserved += cost
            self.requests += 1
            if self._shared is not None:
                self._shared.add(cost)

    def settle(self, reserved: float, cost: float) -> None:
        """Count what a request that was reserved for really cost."""
        with self._lock:
            self._reserved -= reserved
            self.cost += cost
            if self._shared is not None:
                self._shared.add(cost - reserved)

    @property
    def priced(self) -> bool:
        """Whether the options name a price."""
        return bool(self._options.input_price or self._options.output_price)

    def price(self, reply: ChatCompletion | None, text: str, images: int) -> float:
        """US dollars of a reply to a prompt: by its own count of tokens or, where that cannot be, the most it may cost.

        What is no completion (None) or says nothing at all costs nothing.
        """
        if reply is None:
            return 0.0
        if reply.usage is None or not _believable(reply.usage, text, images):
            return self.max_cost(text, images) if reply.choices else 0.0
        self._learn(reply.usage, text, images)
        options, usage = self._options, reply.usage
        return (usage.prompt_tokens * options.input_price + usage.completion_tokens * options.output_price) / MILLION

    def _learn(self, usage: ChatUsage, text: str, images: int) -> None:
        """Correct the estimate of an image's tokens by a reply's count."""
        if images:
            seen = (usage.prompt_tokens - len(text) / CHARACTERS_A_TOKEN) / images
            with self._lock:
                self._image_tokens = max(self._image_tokens, seen)


def _believable(usage: ChatUsage, text: str, images: int) -> bool:
    """Whether a prompt and a reply can have so many tokens: one never has more than the text has bytes."""
    most = len(text.encode(errors="replace")) + MOST_IMAGE_TOKENS * images + MOST_OWN_TOKENS
    return usage.prompt_tokens <= most and usage.completion_tokens <= MOST_REPLY_TOKENS
