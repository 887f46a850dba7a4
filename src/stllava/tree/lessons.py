"""Labelled conversations as trees: what sft learns from and dpo replays."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from stllava.config import TrainingOptions
from stllava.dropped import Dropped
from stllava.errors import ItemError, StllavaError
from stllava.model.load import Policy, Prefix
from stllava.model.prompt import Segment, segments, self_question
from stllava.model.train import Items, Watch, fit
from stllava.records import Conversation, content_id
from stllava.tree.forward import Tree, collate, forwards, grow, longest, token_log_probabilities
from stllava.tree.layout import cut_branches


class Lessons:
    """All conversations about one set of images become one tree, the images computed once, or several of `most` tokens.

    Conversations that cannot be learned from (unusable image, nothing to learn, longer than the context) are left
    out and counted in `dropped`.
    """

    def __init__(
        self, policy: Policy, conversations: Sequence[Conversation], *, images: Path, sq_r: float, seed: int, most: int
    ) -> None:
        self.policy, self.sq_r, self.seed = policy, sq_r, seed
        self.dropped = Dropped()
        groups: dict[Prefix, list[Conversation]] = {}
        for conversation in conversations:
            pieces = segments(policy.chat, conversation.messages, images=len(conversation.images))
            head = pieces[0].text if conversation.images else ""
            prefix = Prefix(head, conversation.images, images)
            try:
                self._check(prefix, conversation, pieces)
            except ItemError as error:
                self.dropped.fault(error)
            else:
                groups.setdefault(prefix, []).append(conversation)
        self.groups = [
            (prefix, [together[index] for index in part])
            for prefix, together in groups.items()
            for part in cut_branches(policy.length(prefix), [self._tokens(one) for one in together], most=most)
        ]
        if not self.groups:
            raise StllavaError(
                f"none of {len(conversations)} conversations can be learned from ({self.dropped.told()})",
                expected="conversations with an answer to learn, usable images, within the model's context",
                remedy="Check the conversations and the image root.",
            )

    def learn(
        self, options: TrainingOptions, work: Path, *, watch: Watch | None = None, merge: bool = True
    ) -> dict[str, list[tuple[float, float]]]:
        """Train the policy in place; checkpoints go to `work`. Returns the curves."""
        policy = self.policy
        return fit(
            policy,
            Items(len(self.groups), self.tree),
            collate=lambda trees: [
                collate(policy, [trees[index] for index in part]) for part in forwards(policy, trees, most=options.tokens)
            ],
            count=lambda batch: {"tokens": float(len(batch["labels"]))},
            loss=negative_log_likelihood,
            watch=watch,
            options=options,
            seed=self.seed,
            work=work,
            label="sft",
            merge=merge,
        )

    def tree(self, index: int, epoch: int) -> Tree:
        """The tree of one set of images, its virtual-user turns drawn anew each epoch."""
        prefix, conversations = self.groups[index]
        chains = []
        for conversation in conversations:
            draw = random.Random(content_id(self.seed, epoch, conversation.id))
            turns = [draw.random() < self.sq_r for _ in conversation.messages]
            pieces = segments(self.policy.chat, self_question(conversation.messages, turns), images=len(prefix.images))
            chains.append(pieces[1:] if prefix.images else pieces)
        return grow(self.policy, prefix, chains)

    def _tokens(self, conversation: Conversation) -> int:
        """Tokens behind the images."""
        pieces = segments(self.policy.chat, conversation.messages, images=len(conversation.images))
        return sum(len(self.policy.tokens(piece.text)) for piece in (pieces[1:] if conversation.images else pieces))

    def _check(self, prefix: Prefix, conversation: Conversation, pieces: list[Segment]) -> None:
        """Raise ItemError where nothing can be learned from a conversation."""
        if not any(message.role == "assistant" for message in conversation.messages):
            raise ItemError("nothing to learn", f"{conversation.id} has no turn of the assistant")
        length = longest(self.policy, grow(self.policy, prefix, [pieces[1:] if prefix.images else pieces]))
        if length > self.policy.context:
            raise ItemError(
                "longer than the context", f"{conversation.id} has {length} tokens, the context {self.policy.context}"
            )


def negative_log_likelihood(
    model: nn.Module, batch: dict[str, Tensor], counts: Mapping[str, float]
) -> tuple[Tensor, dict[str, float]]:
    """This forward's share of the mean negative log-likelihood of the step's learned tokens."""
    return -token_log_probabilities(model, batch).sum() / counts["tokens"], {}
