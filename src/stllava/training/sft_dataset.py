"""Labelled conversations as trees: what sft learns from and dpo replays."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from stllava.config import TrainingOptions
from stllava.dropped import Dropped
from stllava.errors import ItemError, StllavaError, TextError
from stllava.model.load import Policy, Prefix
from stllava.model.prompt import REFUSED, Lesson, RefusedTurnsError, Segment, lessons_of, self_question
from stllava.records import Conversation, Message, content_id
from stllava.training.step_sharing import Items, StepParts
from stllava.training.trainer import StepCheck, fit
from stllava.tree.forward import Tree, build_tree, collate, longest_chain, token_log_probabilities
from stllava.tree.layout import cut_branches


class SftDataset:
    """All conversations about one set of images become one tree, the images computed once, or several of `max_tokens` tokens.

    Conversations that cannot be learned from (unusable image, nothing to learn, longer than the context, turns that the
    chat template refuses) are left out and counted in `dropped`.
    """

    def __init__(
        self,
        policy: Policy,
        conversations: Sequence[Conversation],
        *,
        images: Path,
        self_question_ratio: float,
        seed: int,
        max_tokens: int,
    ) -> None:
        self.policy, self.self_question_ratio, self.seed = policy, self_question_ratio, seed
        self.dropped = Dropped()
        groups: dict[Prefix, list[Conversation]] = {}
        refusal: RefusedTurnsError | None = None
        for conversation in conversations:
            try:
                prefixes = self._read(conversation, images)
            except ItemError as error:
                self.dropped.fault(error)
            except RefusedTurnsError as error:
                self.dropped.fault(TextError(REFUSED, str(error)))
                refusal = error
            else:
                for prefix in prefixes:
                    groups.setdefault(prefix, []).append(conversation)
        self.groups = [
            (prefix, [together[index] for index in part])
            for prefix, together in groups.items()
            for part in cut_branches(policy.length(prefix), [self._tokens(prefix, one) for one in together], most=max_tokens)
        ]
        if not self.groups and refusal is not None:
            raise refusal
        if not self.groups:
            raise StllavaError(
                f"none of {len(conversations)} conversations can be learned from ({self.dropped.told()})",
                expected="conversations with an answer to learn, usable images, within the model's context",
                remedy="Check the conversations and the image root.",
            )

    def tree(self, index: int, epoch: int) -> Tree:
        """The tree of one set of images, its virtual-user turns drawn anew each epoch."""
        prefix, conversations = self.groups[index]
        chains = []
        for conversation in conversations:
            draw = random.Random(content_id(self.seed, epoch, conversation.id))
            turns = [draw.random() < self.self_question_ratio for _ in conversation.messages]
            messages = self_question(conversation.messages, turns)
            chains += self._chains(prefix, conversation, messages)
        return build_tree(self.policy, prefix, chains)

    def _lessons(self, conversation: Conversation, messages: Sequence[Message]) -> list[Lesson]:
        return lessons_of(self.policy.chat, messages, images=len(conversation.images))

    def _chains(self, prefix: Prefix, conversation: Conversation, messages: Sequence[Message]) -> list[tuple[Segment, ...]]:
        """What is read of a conversation behind the images of a prefix."""
        lessons = self._lessons(conversation, messages)
        return [_behind(lesson) for lesson in lessons if lesson.images == len(prefix.images)]

    def _tokens(self, prefix: Prefix, conversation: Conversation) -> int:
        """Tokens behind the images of a prefix."""
        chains = self._chains(prefix, conversation, conversation.messages)
        return sum(len(self.policy.tokens(piece.text)) for chain in chains for piece in chain)

    def _read(self, conversation: Conversation, images: Path) -> list[Prefix]:
        """The prefixes behind which a conversation is learned; raises ItemError for one that cannot be."""
        if not any(message.role == "assistant" for message in conversation.messages):
            raise TextError("nothing to learn", f"nobody answers in {conversation.id}")
        prefixes = []
        for lesson in self._lessons(conversation, conversation.messages):
            seen = conversation.images[: lesson.images]
            prefix = Prefix(lesson.segments[0].text if seen else "", seen, images)
            if longest_chain(self.policy, build_tree(self.policy, prefix, [_behind(lesson)])) > self.policy.context:
                raise TextError("longer than the context", f"{conversation.id} does not fit into {self.policy.context} tokens")
            prefixes.append(prefix)
        return list(dict.fromkeys(prefixes))


def _behind(lesson: Lesson) -> tuple[Segment, ...]:
    """What a lesson reads behind its images."""
    return lesson.segments[1:] if lesson.images else lesson.segments


def fit_conversations(
    dataset: SftDataset, options: TrainingOptions, work: Path, *, watch: StepCheck | None = None, merge: bool = True
) -> dict[str, list[tuple[float, float]]]:
    """Train the data set's policy in place on conversations; checkpoints go to `work`. Returns the curves.

    Args:
        dataset: What is learned, and by whom.
        options: Rates, batch size and the like.
        work: Folder of the checkpoints; a whole one in it is resumed.
        watch: Called with every step's figures.
        merge: Merge adapters into the policy's weights at the end.
    """
    policy = dataset.policy
    return fit(
        policy,
        Items(len(dataset.groups), dataset.tree),
        step=StepParts(list, lambda tree: tree, lambda trees: collate(policy, trees), options.max_tokens_per_forward),
        count=lambda batch: {"tokens": float(len(batch["labels"]))},
        loss=negative_log_likelihood,
        watch=watch,
        options=options,
        seed=dataset.seed,
        work=work,
        label="sft",
        merge=merge,
    )


def negative_log_likelihood(
    model: nn.Module, batch: dict[str, Tensor], counts: Mapping[str, float]
) -> tuple[Tensor, dict[str, float]]:
    """This forward's share of the mean negative log-likelihood of the step's learned tokens."""
    return -token_log_probabilities(model, batch).sum() / counts["tokens"], {}
