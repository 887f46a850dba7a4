"""What is learned from, and the borders of turns."""

from copy import copy
from pathlib import Path

import pytest
from pydantic import ValidationError
from tokenizers import pre_tokenizers

from stllava.data.conversations import conversation
from stllava.errors import StllavaError
from stllava.model.load import Policy, load_policy
from stllava.model.prompt import ChatProcessor, closing, prompt, segments, self_question, virtual_role
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


def test_an_image_place_in_the_text_is_text_and_one_that_the_template_adds_is_refused(policy: Policy) -> None:
    pieces = segments(policy.chat, [Message(role="user", content="what is <image>?")], images=1)
    places = [policy.tokenizer.convert_tokens_to_ids("<image>")]
    assert [token for piece in pieces for token in policy.tokens(piece.text) if token in places] == places
    with pytest.raises(StllavaError, match="2 image places for 1 images"):
        segments(chat(policy, CHATML.replace("TEXT", "<image><image>TEXT")), TALK[1:2], images=1)


def test_a_turn_that_the_template_opens_with_nothing_is_learned_right_behind_the_one_before(policy: Policy) -> None:
    policy.tokenizer.add_special_tokens({"additional_special_tokens": ["[INST]", "[/INST]"]})
    policy.processor.chat_template = chat(policy, MISTRAL).chat_template
    pieces = segments(policy.chat, self_question(TALK[1:5], [True] * 2), images=0)
    assert [(piece.text, piece.learn) for piece in pieces] == [
        ("[INST]Describe the image.[/INST]", False),
        ("normal chest ct.<|end|>", True),
        ("[INST]", False),
        ("is there a nodule?[/INST]", True),
        ("no<|end|>", True),
    ]
    assert {token for piece in pieces if piece.learn for token in policy.tokens(piece.text)[-1:]} <= policy.stop_ids


def test_a_turn_without_image_places_is_written_as_before_and_an_old_file_reads() -> None:
    old = '{"role":"user","content":"is it?"}'
    assert Message.model_validate_json(old).model_dump_json() == old
    placed = Message(role="user", content="Is  older than ?", image_offsets=(3, 15))
    assert Message.model_validate_json(placed.model_dump_json()) == placed


@pytest.mark.parametrize("offsets", [(-1,), (3, 2), (17,)], ids=["negative", "descending", "behind the end"])
def test_image_places_outside_the_text_are_refused(offsets: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="ascending places in a text of 16 characters"):
        Message(role="user", content="Is  older than ?", image_offsets=offsets)


def test_where_the_images_stand_is_part_of_what_a_conversation_is() -> None:
    answer = Message(role="assistant", content="no")
    plain = conversation(("a.png", "b.png"), (Message(role="user", content="Is  older than ?"), answer))
    placed = Message(role="user", content="Is  older than ?", image_offsets=(3, 15))
    assert conversation(("a.png", "b.png"), (placed, answer)).id != plain.id


def chat(policy: Policy, template: str) -> ChatProcessor:
    """The policy's processor with another chat template, in which TEXT stands for a turn's content."""
    made = copy(policy.chat)
    made.chat_template = template.replace("TEXT", "{{ message['content'][-1]['text'] }}").replace("\n", "{{ '\n' }}")
    return made


MISTRAL = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}[INST]TEXT[/INST]"
    "{%- elif message['role'] == 'assistant' -%}TEXT<|end|>"
    "{%- else -%}{{ raise_exception('unknown role') }}{%- endif -%}{%- endfor -%}"
)
"""What Mistral Small 3 and Pixtral are published with writes nothing between [/INST] and the answer."""
CHATML = "{%- for message in messages -%}<|user|>{{ message['role'] }}\nTEXT<|end|>\n{%- endfor -%}"
PLAIN = "{%- for message in messages -%}{{ message['role'] | upper + ': ' }}TEXT{{ ' ' }}{%- endfor -%}"
REFUSING = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{ '[INST] ' }}TEXT{{ ' [/INST]' }}"
    "{%- elif message['role'] == 'assistant' -%}{{ ' ' }}TEXT<|end|>"
    "{%- else -%}{{ raise_exception('unknown role') }}{%- endif -%}{%- endfor -%}"
)
ALTERNATING = (
    "{%- for message in messages -%}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('take turns') }}{%- endif -%}"
    "<|user|>{{ message['role'] }}\nTEXT<|system|>\n{%- endfor -%}"
)
DROPPING = CHATML.replace("in messages -%}", "in messages if message['role'] in ('user', 'assistant') -%}")
CONFUSING = "{%- for message in messages -%}{{ 'Q: ' if message['role'] == 'user' else 'A: ' }}TEXT<|end|>{%- endfor -%}"
SHORT = "{%- for message in messages[:2] -%}{{ message['role'] }}\nTEXT<|end|>{%- endfor -%}"
TEMPLATES = {"chatml": CHATML, "plain": PLAIN, "refusing": REFUSING, "alternating": ALTERNATING, "dropping": DROPPING}


@pytest.mark.parametrize(
    ("template", "role"),
    [
        (CHATML, "virtual_user"),
        (PLAIN, "virtual_user"),
        (REFUSING, "user"),
        (ALTERNATING, "user"),
        (DROPPING, "user"),
        (CONFUSING, "user"),
    ],
    ids=["chatml", "plain", "refusing", "alternating", "dropping", "confusing"],
)
def test_the_virtual_user_has_a_role_of_its_own_where_the_template_opens_one_and_else_speaks_as_a_user(
    policy: Policy, template: str, role: Role
) -> None:
    assert virtual_role(chat(policy, template)) == role


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("speaker", ["assistant", "virtual_user"])
def test_with_any_template_a_prompt_is_the_beginning_of_what_training_sees(
    policy: Policy, template: str, speaker: Role
) -> None:
    processor = chat(policy, template)
    talk = self_question(TALK[1:6], [True] * 3)[: 5 if speaker == "assistant" else 4]
    opened, ending = prompt(processor, talk, images=0, speaker=speaker)
    whole = segments(processor, [*talk, Message(role=speaker, content="lung")], images=0)
    assert opened == whole[: len(opened)]
    assert whole[len(opened)].text.strip() == "lung" + ending.strip()
    assert [piece.learn for piece in opened] == [False, True] * (len(opened) // 2) + [False]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_with_any_template_every_learned_turn_is_what_was_said_and_a_token_that_stops(policy: Policy, template: str) -> None:
    policy.processor.chat_template = chat(policy, template).chat_template
    asked = self_question(TALK[1:], [True] * 3)
    learned = [policy.tokens(piece.text) for piece in segments(policy.chat, asked, images=0) if piece.learn]
    assert all(ids[-1] in policy.stop_ids and not policy.stop_ids & set(ids[:-1]) for ids in learned)
    said = [str(policy.tokenizer.decode([*ids], skip_special_tokens=True)).strip() for ids in learned]
    assert said == [turn.content for turn in asked if turn.role != "user"]


def test_the_template_says_what_ends_a_turn_and_the_tokenizer_where_it_does_not(policy: Policy) -> None:
    endings = {name: closing(chat(policy, template)) for name, template in TEMPLATES.items()}
    assert endings == {
        "chatml": "<|end|>",
        "plain": "<|end|>",
        "refusing": "<|end|>",
        "alternating": "<|system|>",
        "dropping": "<|end|>",
    }


def test_a_model_that_is_told_to_speak_as_a_user_goes_on_behind_the_users_opening_words(policy: Policy) -> None:
    opened, _ = prompt(chat(policy, REFUSING), TALK[1:3], images=0, speaker="virtual_user")
    assert opened[-1].text.endswith("[INST]")


def test_a_template_that_holds_no_second_question_is_refused_with_the_way_out(policy: Policy) -> None:
    with pytest.raises(StllavaError, match=r"writes 2 of 4 turns .* set self_question_ratio to 0"):
        segments(chat(policy, SHORT), self_question(TALK[1:5], [True] * 3), images=0)
    assert len(segments(chat(policy, SHORT), TALK[1:3], images=0)) == 2


def test_a_refused_system_turn_is_named(policy: Policy) -> None:
    with pytest.raises(StllavaError, match=r"refuses the turns system, user, assistant \(unknown role\)"):
        segments(chat(policy, REFUSING), TALK[:3], images=0)


def test_a_tokenizer_without_an_end_token_is_refused_where_the_template_has_none(policy: Policy) -> None:
    policy.tokenizer.eos_token = None
    with pytest.raises(StllavaError, match="a tokenizer with an eos_token"):
        segments(chat(policy, PLAIN), TALK[1:3], images=0)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_text_begins_with_the_tokenizers_first_token_exactly_once(policy: Policy, template: str) -> None:
    policy.tokenizer.bos_token = "<|user|>"
    policy.tokenizer.add_bos_token = True
    opened, _ = prompt(chat(policy, template), TALK[1:2], images=0, speaker="assistant")
    ids = [token for piece in opened for token in policy.tokens(piece.text)]
    first = policy.tokenizer.bos_token_id
    assert ids[0] == first
    assert ids[1] != first


@pytest.mark.parametrize("prefix_space", [True, False], ids=["a tokenizer that writes blanks", "one that does not"])
def test_turns_are_cut_into_tokens_as_if_they_were_not_cut(policy: Policy, *, prefix_space: bool) -> None:
    policy.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    processor = chat(policy, PLAIN)
    pieces = segments(processor, TALK[1:3], images=0)
    whole = processor.apply_chat_template(
        [{"role": turn.role, "content": [{"type": "text", "text": turn.content}]} for turn in TALK[1:3]], tokenize=False
    )
    assert [token for piece in pieces for token in policy.tokens(piece.text)] == [*policy.tokens(whole.rstrip() + "<|end|>")]
