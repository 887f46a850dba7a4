"""What a policy says in a round: questions from ask, answers from answer."""

from stllava.records.record import Keyed, Record
from stllava.thoughts import final_answer


class Sampling(Record):
    """How text was sampled."""

    temperature: float
    """0 means greedy."""
    top_k: int
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float
    """Keep the smallest set of tokens whose probability reaches p; 1 keeps all."""
    max_new_tokens: int
    """Longest completion, in tokens."""
    seed: int
    """Seed of the run: with the words of a prompt and the number of the answer, it starts that answer's own random numbers."""


class Question(Keyed):
    """A question the policy asked about an image."""

    id: str
    """Hash of images, text and policy."""
    images: tuple[str, ...]
    """Paths relative to the image root."""
    text: str
    """The question itself."""
    description: str
    """What the policy said of the image before it asked."""
    policy: str
    """Fingerprint of the weights that asked."""
    sampling: Sampling
    """How it was sampled."""


class Answers(Keyed):
    """K answers of the policy to one question, each given alone with the image."""

    id: str
    """Hash of question id, completions and policy."""
    question_id: str
    """The question answered."""
    images: tuple[str, ...]
    """Paths relative to the image root."""
    question: str
    """Text of the question."""
    completions: tuple[str, ...]
    """The K answers in the order they were sampled; equal texts are kept."""
    log_probabilities: tuple[float | None, ...] = ()
    """Natural logarithm of each answer's untempered probability, its end included; None where it is not known."""
    finished: tuple[bool, ...] = ()
    """Whether each came to its own end rather than to the longest it may be; empty where all did."""
    policy: str
    """Fingerprint of the weights that answered."""
    sampling: Sampling
    """How they were sampled."""

    @property
    def final_answers(self) -> tuple[str, ...]:
        """What each says behind what the policy thought aloud: what is compared and judged, while the whole is learned."""
        return tuple(map(final_answer, self.completions))

    @property
    def ended(self) -> tuple[bool, ...]:
        """Whether each completion, or another with the same words, came to its own end."""
        ended = {text for text, done in zip(self.completions, self.finished, strict=True) if done} if self.finished else None
        return tuple(ended is None or text in ended for text in self.completions)
