"""What readers may say of what they are shown, and by which key: one list for the page, the server and the votes on disk."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeGuard, get_args

from stllava.errors import StllavaError
from stllava.records import ItemChoice, ItemKind, ReviewVote, VoteChoice

ReviewKind = Literal["verdicts", "predictions", "questions", "pictures"]
"""What is read: verdicts on two answers, a benchmark's answers, a policy's questions, or pictures of an imported set."""
Side = Literal["left", "right"]
Shown = Literal["left", "right", "equal", "both wrong", "bad question", "bad image", "cannot tell"]
"""A choice between two answers as it is made on the page, where nobody knows which answer is which."""

LONGEST_ANSWER = 4000
"""Letters of a right answer that a reader may type."""


@dataclass(frozen=True)
class Button:
    """A choice as the page offers it."""

    key: str
    """Which key chooses it."""
    choice: str
    """What is posted."""
    label: str
    """What stands on the button behind the key."""
    meaning: str
    """What the list of keys says."""
    said: str = ""
    """How the page says that somebody chose it."""


_BAD_QUESTION = Button("q", "bad question", "bad question", "the question is no good", "the question is no good")
_BAD_IMAGE = Button("i", "bad image", "bad image", "the image is no good", "the image is no good")
_CANNOT_TELL = Button("?", "cannot tell", "cannot tell", "you cannot tell", "you cannot tell")
BUTTONS: Mapping[ReviewKind, tuple[Button, ...]] = {
    "verdicts": (
        Button("1", "left", "is better", "the first answer is better", "answer 1 is better"),
        Button("2", "right", "is better", "the second answer is better", "answer 2 is better"),
        Button("0", "equal", "equal", "both are as good", "both are as good"),
        Button("b", "both wrong", "both wrong", "both are wrong", "both are wrong"),
        _BAD_QUESTION,
        _BAD_IMAGE,
        _CANNOT_TELL,
    ),
    "predictions": (
        Button("1", "right", "right", "the answer is right"),
        Button("2", "wrong", "wrong", "the answer is wrong"),
        Button("r", "bad reference", "bad reference", "the reference is wrong, so it says nothing of the answer"),
        _BAD_QUESTION,
        _BAD_IMAGE,
        _CANNOT_TELL,
    ),
    "questions": (
        Button("1", "valid", "valid", "the question makes sense for this image, which can answer it"),
        Button("2", "not valid", "not valid", "it makes no sense, or this image cannot answer it"),
        _CANNOT_TELL,
    ),
    "pictures": (
        Button("1", "burned", "text is left", "letters, digits or a code are left in the picture"),
        Button("2", "not burned", "no text is left", "none are"),
        _CANNOT_TELL,
    ),
}
"""The choices of each kind, in the order in which they are shown."""
GOOD: Mapping[ItemKind, tuple[ItemChoice, ItemChoice]] = {
    "predictions": ("right", "wrong"),
    "questions": ("valid", "not valid"),
    "pictures": ("not burned", "burned"),
}
"""What a reader says of what is good, and of what is not."""


def is_pair_choice(choice: str | None) -> TypeGuard[VoteChoice]:
    """Whether it is a choice between two answers."""
    return choice in get_args(VoteChoice)


def is_shown_choice(choice: str) -> TypeGuard[Shown]:
    """Whether it is a choice between two answers as the page shows them."""
    return choice in get_args(Shown)


def is_item_choice(choice: str | None, kind: ItemKind) -> TypeGuard[ItemChoice]:
    """Whether it is one of the choices that readers have of what they are shown one by one."""
    return any(button.choice == choice for button in BUTTONS[kind])


def refuse_other_votes(votes: Iterable[ReviewVote], kind: ReviewKind, *, folder: Path) -> None:
    """Refuse votes that were given on something else than what is read in this folder.

    Raises:
        StllavaError: Where a vote says what nobody can say of it.
    """
    for vote in votes:
        said = vote.choice
        fits = is_pair_choice(said) if kind == "verdicts" else is_item_choice(said, kind)
        if said is not None and not fits:
            raise StllavaError(
                f"{vote.reader}'s vote {vote.number} in {folder} says {said!r}, which nobody can say of {kind}",
                expected=f"votes on {kind} alone",
                remedy="Keep votes on different things in different folders, as `stllava review` writes them.",
            )
