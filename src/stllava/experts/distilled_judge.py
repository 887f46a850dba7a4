"""A judge distilled from another one's verdicts: a model in this process that says of one answer whether it is right.

`stllava distill` makes the model. An answer's score is the probability of yes against no behind the prompt
(`prompts/distilled.txt`), from packed forwards; nothing is sampled, and there is no order that could matter.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from itertools import islice
from pathlib import Path

from stllava.config import DistilledOptions
from stllava.dropped import SET_ASIDE, Dropped
from stllava.errors import ItemError, StllavaError, cause_of
from stllava.experts.expert import FreeExpert, Verdict
from stllava.model.load import Policy, fingerprint, load_policy
from stllava.progress import Progress
from stllava.records import Answers, Keyed, Message, content_id
from stllava.store import MANIFEST, executor, read_manifest
from stllava.tree.scoring import answer_log_probabilities

RIGHT, WRONG = "yes", "no"
PROMPT = (resources.files("stllava.prompts") / "distilled.txt").read_text(encoding="utf-8").strip()
"""What it is asked, with places for a question and an answer."""


def judging_prompt(question: str, answer: str) -> Message:
    """The turn that asks whether an answer is right."""
    return Message(role="user", content=PROMPT.format(question=question, answer=answer))


def distinct_texts(answers: Answers) -> list[str]:
    """The different final answers, in their order."""
    return list(dict.fromkeys(answers.final_answers))


def right_shares(
    policy: Policy, asked: Sequence[tuple[tuple[str, ...], str, str]], *, images: Path, max_tokens: int
) -> list[float | ItemError]:
    """The probability of yes against no for every (images, question, answer), or why it cannot be asked."""
    prompts = [((judging_prompt(question, answer),), shown) for shown, question, answer in asked]
    found = answer_log_probabilities(policy, prompts, [(RIGHT, WRONG)] * len(prompts), images=images, max_tokens=max_tokens)
    return [each if isinstance(each, ItemError) else 1 / (1 + math.exp(min(each[1] - each[0], 700.0))) for each in found]


def refuse_other_models(folder: Path) -> None:
    """Raise StllavaError where a folder is not there, holds no model, or one that another stage made, such as a policy."""
    made = read_manifest(folder).stage if (folder / MANIFEST).is_file() else "distill"
    if made == "distill" and (folder / "config.json").is_file():
        return
    found = f"is what {made} made" if made != "distill" else "holds no config.json" if folder.is_dir() else "is not there"
    raise StllavaError(
        f"judge.distilled.model names {folder}, which {found}",
        expected="the folder that `stllava distill` wrote",
        remedy="Correct judge.distilled.model, or make a judge with `stllava distill` (docs/expert.md).",
    )


class AnswerShares(Keyed):
    """How likely the model is to call each answer to a question right."""

    id: str
    """Id of the answers."""
    shares: dict[str, float]
    """By the answer's text."""
    failure: str = ""
    """Why one cannot be asked about; empty where all can."""


@dataclass(frozen=True)
class DistilledWork:
    """Scores a chunk of answers; can be sent to another process until it is first called, which loads the model."""

    options: DistilledOptions
    """The model."""
    root: Path
    """The image root."""
    notes = ()
    """Nothing that a reader of the manifest must know."""

    @cached_property
    def policy(self) -> Policy:
        """The model, once it is asked."""
        return load_policy(Path(self.options.model))

    @property
    def device(self) -> str:
        """Where it computes."""
        return str(self.policy.device)

    def __call__(self, chunk: Sequence[Answers]) -> tuple[list[AnswerShares], Dropped]:
        """What it says of every different answer."""
        asked = [(row, text) for row in chunk for text in distinct_texts(row)]
        found = right_shares(
            self.policy,
            [(row.images, row.question, text) for row, text in asked],
            images=self.root,
            max_tokens=self.options.max_tokens_per_forward,
        )
        shares: dict[str, dict[str, float]] = {row.id: {} for row in chunk}
        failures: dict[str, str] = {}
        for (row, text), share in zip(asked, found, strict=True):
            if isinstance(share, ItemError):
                failures[row.id] = f"{cause_of(share)}: {share}"
            else:
                shares[row.id][text] = share
        return [AnswerShares(id=key, shares=of, failure=failures.get(key, "")) for key, of in shares.items()], Dropped()

    def set_aside(self, chunk: Sequence[Answers], detail: str) -> tuple[list[AnswerShares], Dropped]:
        """Answers that nobody can score have no verdict."""
        return [AnswerShares(id=row.id, shares={}, failure=f"{SET_ASIDE}: {detail}") for row in chunk], Dropped()

    def close(self) -> None:
        """Drop the model."""
        self.__dict__.pop("policy", None)


class DistilledJudge(FreeExpert):
    """Scores each answer by how likely its model is to call it right."""

    def __init__(self, options: DistilledOptions, *, root: Path, chunk: int) -> None:
        """Images are relative to `root`; so many answers are scored together, and the model is loaded for the first of them."""
        if not options.model:
            raise StllavaError(
                "the distilled expert has no model",
                expected="the folder that `stllava distill` wrote",
                remedy="Set judge.distilled.model.",
            )
        self._options, self._root, self._chunk = options, root, chunk
        refuse_other_models(Path(options.model))
        self._weights = fingerprint(Path(options.model))
        self._shares: dict[str, dict[str, float] | str] = {}

    @property
    def name(self) -> str:
        """`distilled`, and which weights."""
        return f"distilled {self._weights[:8]}"

    @property
    def method(self) -> str:
        """What it is asked, and when it abstains."""
        band = self._options.min_confidence
        unsure = f"; it abstains where it is less than {band:.0%} sure of some answer" if band > 0.5 else ""
        return (
            "It is a model trained on the verdicts of another expert; it sees the image and one answer, and the score is the "
            f"probability with which it calls that answer right{unsure}."
        )

    @property
    def prompt_hash(self) -> str:
        """Hash of its prompt, its weights and its band."""
        return content_id("distilled", PROMPT, self._weights, self._options.min_confidence)

    def prepare(self, given: Iterable[Answers]) -> None:
        """Score every different answer, all of an image together, here or where the chunks of stages are worked on."""
        rows = iter(row for row in given if row.id not in self._shares)
        total = sum(1 for row in given if row.id not in self._shares)
        if not total:
            return
        work = DistilledWork(self._options, self._root)
        chunks = enumerate(iter(lambda: list(islice(rows, self._chunk)), []))
        with Progress("judge", total, unit="questions") as progress:
            for _, scored in executor().map(work, chunks, record_type=AnswerShares):
                for row in scored.records:
                    self._shares[row.id] = row.failure or row.shares
                progress.advance(len(scored.records))

    def judge(self, answers: Answers) -> Verdict:
        """Score each completion, or abstain where the model is not sure enough."""
        shares = self._shares[answers.id]
        if isinstance(shares, str):
            return Verdict(scores=None, cause="failed", reason=shares)
        text, least = min(shares.items(), key=lambda item: abs(item[1] - 0.5))
        if max(least, 1 - least) < self._options.min_confidence:
            reason = f"It is not sure of {text!r}: right with a probability of {least:.2f}."
            return Verdict(scores=None, cause="abstained", reason=reason)
        scores = tuple(shares[text] for text in answers.final_answers)
        right = sum(share >= 0.5 for share in shares.values())
        return Verdict(scores=scores, cause=None, reason=f"It takes {right} of {len(shares)} different answers for right.")
