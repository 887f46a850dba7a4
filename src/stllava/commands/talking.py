"""`stllava chat`: talk with a policy."""

from pathlib import Path

from tyro.conf import Positional

from stllava.commands.flags import parse


def chat_command(words: list[str]) -> None:
    """`stllava chat POLICY IMAGE`."""

    def chat(policy: Positional[Path], image: Positional[Path], *, question: str | None = None) -> None:
        """Talk with a policy about an image; an empty line ends.

        Args:
            policy: Folder of the policy.
            image: The image.
            question: Ask this one question and end.
        """
        from stllava.chat import talk

        talk(policy, image, question=question)

    parse(chat, words, name="chat")
