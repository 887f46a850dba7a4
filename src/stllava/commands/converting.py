"""`stllava convert`: this product's training data in others' form."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from stllava.store import nothing_left
from stllava.text import show


def conversations(source: Positional[Path], *, to: Path, replace: bool = False) -> None:
    """Write labelled conversations as LLaVA JSON.

    Args:
        source: A JSONL file of conversations.
        to: The JSON file.
        replace: Write over a file that is there.
    """
    from stllava.data.conversations import read_conversations
    from stllava.data.exchange import to_llava

    read, dropped = read_conversations(source)
    if not read:
        raise nothing_left(f"the rows of {source}", dropped, remedy="Check the file (docs/data.md says what is read).")
    show(f"{to_llava(read, to=to, replace=replace)} conversations in {to}")
    if dropped:
        show(f"  left out: {', '.join(f'{count} {cause}' for cause, count in dropped.items())}")


def preferences(
    folder: Positional[Path],
    *,
    to: Path,
    form: Annotated[Literal["trl", "llava"], arg(name="format")] = "trl",
    images: Path | None = None,
    replace: bool = False,
) -> None:
    """Write pairs as JSONL with the columns of TRL's DPO, or what is chosen in them as LLaVA JSON.

    Args:
        folder: Folder of the pairs.
        to: The file.
        form: trl for the pairs, llava for the chosen answers as conversations.
        images: Root to put before each image's path for TRL, which knows no root.
        replace: Write over a file that is there.
    """
    from stllava.data.exchange import chosen_answers, to_llava, to_trl

    if form == "trl":
        show(f"{to_trl(folder, to=to, images=images, replace=replace)} pairs in {to}")
    else:
        show(f"{to_llava(chosen_answers(folder), to=to, replace=replace)} conversations in {to}")
