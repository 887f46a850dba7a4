"""What is learned from, and the borders of turns."""

from pathlib import Path

import pytest

from stllava.errors import StllavaError
from stllava.model.load import Policy, load_policy
from stllava.model.prompt import prompt, segments, self_question
from stllava.records import Message, Role

TALK = [
    Message(role="system", content="be brief"),
    Message(role="user", content="Describe the image."),
    Message(role="assistant", content="normal chest ct."),
    Message(role="user", content="is there a nodule?"),
    Message(role="assistant", content="no"),
    Message(role="user", content="what organ is shown?"),
    Message(role="assistant", content="lung"),
]


@pytest.fixture
def policy(tiny_model: Path) -> Policy:
    return load_policy(tiny_model)


def test_the_label_mask_holds_exactly_the_answers_and_the_virtual_users_questions(policy: Policy) -> None:
    asked = self_question(TALK, [True, True, False])
    pieces = segments(policy.chat, asked, images=1)
    ids = [(token, piece.learn) for piece in pieces for token in policy.tokens(piece.text)]
    runs: list[list[int]] = [[]]
    for token, learn in ids:
        if learn:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    decoded = [str(policy.tokenizer.decode(run)).strip() for run in runs if run]
    assert decoded == [
        "normal chest ct.<|end|>",
        "is there a nodule?<|end|>",
        "no<|end|>",
        "lung<|end|>",
    ]


def test_the_first_user_turn_is_never_the_virtual_users() -> None:
    assert [message.role for message in self_question(TALK, [True] * 3)] == [
        "system",
        "user",
        "assistant",
        "virtual_user",
        "assistant",
        "virtual_user",
        "assistant",
    ]


def test_the_segments_are_the_chat_templates_own_text(policy: Policy) -> None:
    pieces = segments(policy.chat, TALK, images=1)
    first = {"type": "image"}
    conversation: list[dict[str, object]] = [
        {"role": m.role, "content": [*([first] if index == 1 else []), {"type": "text", "text": m.content}]}
        for index, m in enumerate(TALK)
    ]
    assert "".join(piece.text for piece in pieces) == policy.chat.apply_chat_template(conversation, tokenize=False)
    assert pieces[0].text.endswith("<image>")


@pytest.mark.parametrize("speaker", ["assistant", "virtual_user"])
def test_a_prompt_is_the_beginning_of_what_training_sees(policy: Policy, speaker: Role) -> None:
    said = [*TALK[:3], Message(role=speaker, content="is there a mass?")]
    opened, ending = prompt(policy.chat, TALK[:3], images=1, speaker=speaker)
    whole = segments(policy.chat, said, images=1)
    assert opened == whole[: len(opened)]
    assert said[-1].content + ending == whole[len(opened)].text


def test_image_places_in_the_text_are_refused(policy: Policy) -> None:
    with pytest.raises(StllavaError, match="2 image places for 1 images"):
        segments(policy.chat, [Message(role="user", content="what is <image>?")], images=1)


class _Template:
    """A processor with a template of the test's own."""

    image_token = "<image>"
    chat_template = ""

    def __init__(self, known: set[str]) -> None:
        self.known = known

    def apply_chat_template(self, conversation: list[dict[str, object]], *, tokenize: bool) -> str:
        return "".join(f"{turn['role']}: {turn['content']}\n" for turn in conversation if turn["role"] in self.known)


def test_a_template_that_leaves_out_the_virtual_user_is_refused_with_the_way_out() -> None:
    with pytest.raises(StllavaError, match="set sq_r to 0"):
        segments(_Template({"user", "assistant"}), self_question(TALK[1:], [True] * 3), images=0)
