"""Chat templates with places for thoughts, and images between words: what is learned, and what a server is asked.

The templates below do in words of ours what those of published models do: Qwen3.5 and GLM-4.5V (told not to think, they
write an empty thought; thoughts are taken out of earlier turns), Gemma 4 (the empty thought stands in the request for an
answer only), Qwen3-VL-Thinking and the distilled DeepSeek-R1 (they cannot be told not to). Where TRL is installed with the
published ones, those are tried too.
"""

import json
from collections.abc import Callable
from copy import copy
from importlib.resources import files
from pathlib import Path

import httpx2
import pytest
import torch
from PIL import Image
from transformers import LlamaConfig

from helpers.architectures import id_of, llava_of, text_options, tokenizer_of
from helpers.families import FAMILIES
from stllava.config import EndpointOptions, SamplingOptions
from stllava.data.conversations import conversation
from stllava.errors import TextError
from stllava.generation.endpoint import EndpointSampler
from stllava.generation.local_sampler import LocalSampler
from stllava.generation.sampler import Prompt
from stllava.model.load import Policy, load_policy
from stllava.model.prompt import (
    ChatProcessor,
    Segment,
    lessons_of,
    open_turn,
    prompt,
    said_in,
    segments,
    self_question,
    server_turn,
    virtual_role,
)
from stllava.model.template import closing, thinks
from stllava.records import Message, Role
from stllava.training.sft_dataset import SftDataset
from stllava.tree.forward import build_tree, collate, token_log_probabilities

PARTS = "{%- for part in message['content'] -%}{{ '<image>' if part['type'] == 'image' else part['text'] }}{%- endfor -%}"
LAST = (
    "{%- set last = namespace(user=-1) -%}"
    "{%- for message in messages -%}{%- if message['role'] == 'user' -%}{%- set last.user = loop.index0 -%}{%- endif -%}"
    "{%- endfor -%}"
)
REFUSED = "{%- if message['role'] not in ('system', 'user', 'assistant') -%}{{ raise_exception('who?') }}{%- endif -%}"
TURN = f"{{%- for message in messages -%}}{REFUSED}<|user|>{{{{ message['role'] }}}}\n"
THOUGHT = "<think>\n\n</think>\n\n"
ANSWERS = "{%- if message['role'] == 'assistant' and loop.index0 > last.user -%}" + THOUGHT + "{%- endif -%}"
QWEN3_5 = (
    LAST + TURN + ANSWERS + PARTS + "<|end|>\n{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|user|>assistant\n"
    "{%- if enable_thinking is defined and enable_thinking is false -%}" + THOUGHT + "{%- else -%}<think>\n{%- endif -%}"
    "{%- endif -%}"
)
GLM = (
    f"{{%- for message in messages -%}}{REFUSED}"
    "{%- if message['role'] == 'assistant' -%}<|assistant|>\n<think></think>\n{%- else -%}<|user|>\n{%- endif -%}" + PARTS + ""
    "{{ '/nothink' if message['role'] == 'user' and enable_thinking is defined and not enable_thinking }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>"
    "{{ '\n<think></think>' if enable_thinking is defined and not enable_thinking }}{%- endif -%}"
)
GEMMA4 = (
    TURN + PARTS + "<|end|>\n{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|user|>assistant\n"
    "{%- if not enable_thinking -%}<|system|>thought\n<|vuser|>{%- endif -%}{%- endif -%}"
)
THINKING = (
    LAST + TURN + ANSWERS + PARTS + "<|end|>\n{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|user|>assistant\n<think>\n{%- endif -%}"
)
R1 = TURN + PARTS + "<|end|>\n{%- endfor -%}{%- if add_generation_prompt -%}<|user|>assistant\n<think>\n{%- endif -%}"
PLAIN = TURN + PARTS + "<|end|>\n{%- endfor -%}{%- if add_generation_prompt -%}<|user|>assistant\n{%- endif -%}"
TEMPLATES = {"qwen3_5": QWEN3_5, "glm": GLM, "gemma4": GEMMA4, "qwen3_vl_thinking": THINKING, "r1": R1, "plain": PLAIN}
TALK = [
    Message(role="user", content="Describe the image."),
    Message(role="assistant", content="normal chest ct."),
    Message(role="user", content="is there a nodule?"),
    Message(role="assistant", content="no"),
    Message(role="user", content="what organ is shown?"),
    Message(role="assistant", content="lung"),
]
PUBLISHED = ("qwen3_5_think", "qwen3_5_nothink", "qwen3_6", "qwen3_8", "gemma4", "gemma4_v5", "glm4moe", "lfm2_2_5_vl")


def written(template: str) -> str:
    """A template in which tags do not eat the line breaks of its text."""
    return template.replace("\n", "{{ '\n' }}").replace("'{{ '\n' }}<think></think>'", "'\n<think></think>'")


@pytest.fixture(params=[*TEMPLATES, *(f"published {name}" for name in PUBLISHED)])
def processor(request: pytest.FixtureRequest, tiny_model: Path) -> ChatProcessor:
    """The tiny model's processor with a chat template."""
    made = copy(load_policy(tiny_model).chat)
    name = str(request.param)
    if name in TEMPLATES:
        made.chat_template = written(TEMPLATES[name])
    else:
        pytest.importorskip("trl")
        path = files("trl") / "chat_templates" / f"{name.removeprefix('published ')}.jinja"
        made.chat_template = path.read_text(encoding="utf-8")
    return made


def text_of(pieces: object) -> str:
    return "".join(piece.text for piece in pieces)  # type: ignore[attr-defined]


def served(processor: ChatProcessor, messages: list[Message], speaker: Role) -> str:
    """What a server that renders the template puts before the model, asked as `server_turn` says."""
    turn = server_turn(processor, messages, images=0, speaker=speaker)
    told = virtual_role(processor) if speaker == "virtual_user" else speaker
    chat: list[dict[str, object]] = [{"role": one.role, "content": [{"type": "text", "text": one.content}]} for one in messages]
    left: list[dict[str, object]] = [{"role": told, "content": [{"type": "text", "text": ""}]}] if turn.continues else []
    return processor.apply_chat_template(
        [*chat, *left],
        tokenize=False,
        add_generation_prompt=not turn.continues,
        continue_final_message=turn.continues,
        **turn.variables,
    )


@pytest.mark.parametrize("count", [1, 3, 5])
def test_an_answer_is_generated_behind_the_same_text_here_and_on_a_server(processor: ChatProcessor, count: int) -> None:
    here = open_turn(processor, TALK[:count], images=0, speaker="assistant")
    there = served(processor, TALK[:count], "assistant")
    assert text_of(here.before).replace(closing(processor), "") == there.rstrip(" ").replace(closing(processor), "")
    assert there.count("<think>") == there.count("</think>"), "the prompt opens a thought and leaves it to the model to end it"


def test_the_virtual_user_asks_behind_the_same_text_here_and_on_a_server(processor: ChatProcessor) -> None:
    here = open_turn(processor, TALK[:2], images=0, speaker="virtual_user")
    there = served(processor, TALK[:2], "virtual_user")
    assert text_of(here.before).replace(closing(processor), "") == there.rstrip(" ").replace(closing(processor), "")
    # Where the template trims its texts, the line break that opens the turn is lost on a server, and so is said.
    spaced: list[dict[str, object]] = [{"role": "user", "content": [{"type": "text", "text": " a "}]}]
    trims = " a " not in processor.apply_chat_template(spaced, tokenize=False)
    assert (here.blank == "\n") is trims


def test_a_thought_belongs_to_the_opening_and_nobody_learns_it(processor: ChatProcessor) -> None:
    pieces = segments(processor, TALK, images=0)
    for index, piece in enumerate(pieces):
        if piece.learn:
            said = next(one.content for one in TALK if one.role == "assistant" and one.content in piece.text)
            before, _, behind = piece.text.partition(said)
            assert not before.strip()
            assert behind == closing(processor)
            asked = open_turn(processor, TALK[:1], images=0, speaker="assistant").before[-1].text
            opening = asked[asked.index(TALK[0].content) + len(TALK[0].content) :].splitlines(keepends=True)[1:]
            assert pieces[index - 1].text.endswith("".join(opening))


@pytest.mark.parametrize("asking", [False, True], ids=["answers", "answers and questions"])
def test_training_reads_every_turn_behind_the_text_behind_which_it_is_generated(
    processor: ChatProcessor, *, asking: bool
) -> None:
    talk = self_question(TALK, [asking] * 3)
    spoken = [index for index, turn in enumerate(talk) if turn.role in ("assistant", "virtual_user")]
    read: list[tuple[str, str]] = []
    for lesson in lessons_of(processor, talk, images=0):
        for index, piece in enumerate(lesson.segments):
            if piece.learn:
                read.append((text_of(lesson.segments[:index]), piece.text))
    generated = []
    for index in spoken:
        turn = open_turn(processor, talk[:index], images=0, speaker=talk[index].role)
        generated.append((text_of(turn.before), f"{turn.blank}{talk[index].content}{turn.ending}"))
    assert read == generated


def test_a_template_without_thoughts_is_learned_from_one_text(tiny_model: Path) -> None:
    made = copy(load_policy(tiny_model).chat)
    made.chat_template = written(PLAIN)
    assert len(lessons_of(made, TALK, images=0)) == 1
    made = copy(made)
    made.chat_template = written(QWEN3_5)
    assert len(lessons_of(made, TALK, images=0)) == 3
    assert len(lessons_of(made, TALK[:2], images=0)) == 1


def thinker(template: str) -> Policy:
    """A tiny LLaVA with a template that can think."""
    special = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>", "<image>"]
    tokenizer = tokenizer_of(special, end="</s>", begin=None)
    return llava_of(tokenizer, LlamaConfig(**text_options(tokenizer)), spoken=written(template), seed=4)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, name in enumerate("abc"):
        Image.linear_gradient("L").rotate(90 * number).resize((48, 48)).convert("RGB").save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.mark.parametrize("template", [QWEN3_5, GLM], ids=["qwen3_5", "glm"])
def test_the_tree_of_a_conversation_with_thoughts_holds_each_answer_as_if_it_stood_alone(template: str, root: Path) -> None:
    policy = thinker(template)
    lessons = SftDataset(
        policy, [conversation(("a.png",), tuple(TALK))], images=root, self_question_ratio=0.0, seed=0, max_tokens=512
    )
    tree = lessons.tree(0, 0)
    with torch.inference_mode():
        packed = token_log_probabilities(policy.model, collate(policy, [tree]))
        alone = []
        for index in (1, 3, 5):
            turn = open_turn(policy.chat, TALK[:index], images=1, speaker="assistant")
            chain = [
                *(Segment(piece.text, False) for piece in turn.before[1:]),
                said_in(policy.chat, turn, TALK[index].content),
            ]
            alone.append(token_log_probabilities(policy.model, collate(policy, [build_tree(policy, tree.prefix, [chain])])))
    assert torch.allclose(packed, torch.cat(alone), atol=1e-4)


def vllm_like(policy: Policy, prompts: list[str]) -> Callable[[httpx2.Request], httpx2.Response]:
    """A server that renders a request's messages by the chat template as vLLM does, notes the prompt and says yes."""

    def reply(request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.content)
        turns = []
        for turn in body["messages"]:
            parts = turn["content"] if isinstance(turn["content"], list) else [{"type": "text", "text": turn["content"]}]
            turns.append(turn | {"content": [{"type": "image"} if part["type"] == "image_url" else part for part in parts]})
        text = policy.chat.apply_chat_template(
            turns,
            tokenize=False,
            add_generation_prompt=body.get("add_generation_prompt", True),
            continue_final_message=body.get("continue_final_message", False),
            **body.get("chat_template_kwargs", {}),
        )
        prompts.append(text)
        message = {"role": "assistant", "content": "yes"}
        return httpx2.Response(200, json={"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    return reply


def endpoint(policy: Policy, root: Path, prompts: list[str]) -> EndpointSampler:
    options = EndpointOptions(url="http://127.0.0.1:1/v1", model="policy", concurrency=1, retries=0)
    transport = httpx2.MockTransport(vllm_like(policy, prompts))
    return EndpointSampler(options, root=root, virtual="user", chat=policy.chat, transport=transport)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("speaker", ["assistant", "virtual_user"])
def test_what_is_sent_to_a_server_becomes_the_local_prompt(template: str, speaker: Role, root: Path) -> None:
    policy, prompts = thinker(template), list[str]()
    sampler = endpoint(policy, root, prompts)
    for history in (TALK[:1], TALK[:3]) if speaker == "assistant" else (TALK[:2], TALK[:4]):
        asked = Prompt(tuple(history), ("a.png",), speaker)
        sampler.check(asked)
        sampler.complete([asked], k=1, sampling=SamplingOptions(), seed=0)
        here, _ = prompt(policy.chat, history, images=1, speaker=speaker)
        end = closing(policy.chat)
        assert prompts[-1].rstrip(" ").replace(end, "") == text_of(here).replace(end, "")


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("is there <|end|> in it?", "special token in the text"),
        ("what is <image>?", "special token in the text"),
        ("is it <think>so</think> or not?", "changed by the chat template"),
        ("is it so?", None),
        (" is it so?\n", None),
    ],
)
def test_a_server_is_not_sent_what_its_template_would_write_differently(text: str, cause: str | None, root: Path) -> None:
    cutting = QWEN3_5.replace("part['text']", "part['text'].split('</think>')[-1] | trim")
    sampler = endpoint(thinker(cutting), root, [])
    asked = Prompt((Message(role="user", content=text),), ("a.png",))
    if cause is None:
        sampler.check(asked)
        return
    with pytest.raises(TextError) as caught:
        sampler.check(asked)
    assert caught.value.cause == cause


# Images between words. LLaVA's own files hold several in one text, and in later turns (M4-Instruct, Mantis).


PAIR = Message(role="user", content="Is  older than ?", image_offsets=(3, 15))


def test_images_stand_where_the_text_has_them_in_training_and_in_a_prompt(root: Path) -> None:
    policy = thinker(PLAIN)
    talk = [PAIR, Message(role="assistant", content="no")]
    pieces = segments(policy.chat, talk, images=2)
    assert text_of(pieces).startswith("<|user|>user\nIs <image> older than <image>?<|end|>\n")
    assert pieces[0].text.endswith("older than <image>")
    opened, _ = prompt(policy.chat, talk[:1], images=2, speaker="assistant")
    assert opened == pieces[: len(opened)]
    whole = lessons_of(policy.chat, talk, images=2)
    assert [lesson.images for lesson in whole] == [2]
    tokens = [token for piece in opened[1:] for token in policy.tokens(piece.text)]
    request = LocalSampler(policy, root=root, tokens=4096).request(Prompt((PAIR,), ("a.png", "b.png")))
    assert request.ids == tuple(tokens)
    place = id_of(policy.processor.tokenizer, "<image>")
    assert [number == place for number in policy.encode(request.prefix).ids].count(True) == 2 * 16


def test_a_server_is_sent_images_where_the_text_has_them(root: Path) -> None:
    policy, prompts = thinker(PLAIN), list[str]()
    sampler = endpoint(policy, root, prompts)
    asked = Prompt((PAIR,), ("a.png", "b.png"))
    sampler.check(asked)
    sampler.complete([asked], k=1, sampling=SamplingOptions(), seed=0)
    assert prompts == [text_of(prompt(policy.chat, [PAIR], images=2, speaker="assistant")[0])]


def test_an_answer_before_a_later_image_is_learned_without_it_and_as_in_the_whole(root: Path) -> None:
    policy = thinker(PLAIN)
    talk = (
        Message(role="user", content="what is ?", image_offsets=(8,)),
        Message(role="assistant", content="the lung"),
        Message(role="user", content="and the second ?", image_offsets=(15,)),
        Message(role="assistant", content="a normal chest"),
        Message(role="user", content="sure?"),
        Message(role="assistant", content="yes"),
    )
    row = conversation(("a.png", "b.png"), talk)
    lessons = SftDataset(policy, [row], images=root, self_question_ratio=1.0, seed=0, max_tokens=512)
    assert [len(prefix.images) for prefix, _ in lessons.groups] == [1, 2]
    trees = [lessons.tree(index, 0) for index in range(2)]
    learned = [
        [str(policy.tokenizer.decode([*tree.nodes[node].ids])) for leaf in tree.leaves for node in leaf] for tree in trees
    ]
    # The third question shows no image, so it may be the model's own to ask.
    assert learned == [["the lung<|end|>"], ["a normal chest<|end|>", "sure?<|end|>", "yes<|end|>"]]
    with torch.inference_mode():
        ours = [token_log_probabilities(policy.model, collate(policy, [tree])) for tree in trees]
        plain = whole_log_probabilities(policy, talk, root)
    assert torch.allclose(torch.cat(ours), plain, atol=1e-4)


def whole_log_probabilities(policy: Policy, talk: tuple[Message, ...], root: Path) -> torch.Tensor:
    """The learned tokens' log-probabilities by one plain forward of the whole conversation with both images."""
    texts = ["<|user|>user\nwhat is <image>?<|end|>\n<|user|>assistant\n", "the lung<|end|>"]
    texts += ["\n<|user|>user\nand the second <image>?<|end|>\n<|user|>assistant\n", "a normal chest<|end|>"]
    texts += ["\n<|user|>user\n", "sure?<|end|>", "\n<|user|>assistant\n", "yes<|end|>"]
    pictures = [Image.open(root / name) for name in ("a.png", "b.png")]
    made = policy.processor(text=["".join(texts)], images=pictures, return_tensors="pt", add_special_tokens=False)
    logits = policy.model(**made).logits[0].log_softmax(-1)
    ids = made["input_ids"][0]
    end, values = len(ids), []
    for text, learned in list(zip(texts, [False, True, False, True, False, True, False, True], strict=True))[::-1]:
        size = len(policy.tokens(text)) + 15 * text.count("<image>")
        if learned:
            values.append(logits[range(end - size - 1, end - 1), ids[end - size : end]])
        end -= size
    return torch.cat(values[::-1])


@pytest.mark.parametrize(
    ("turns", "detail"),
    [
        ((PAIR, Message(role="assistant", content="no")), "name 2 places for 1 images"),
        (
            (Message(role="user", content="what?"), Message(role="assistant", content="no", image_offsets=(0,))),
            "a turn that is not the user's shows an image",
        ),
    ],
    ids=["too many", "in an answer"],
)
def test_places_that_do_not_fit_are_counted(turns: tuple[Message, ...], detail: str, root: Path) -> None:
    policy = thinker(PLAIN)
    good = conversation(("a.png",), (Message(role="user", content="what?"), Message(role="assistant", content="a lung")))
    lessons = SftDataset(
        policy, [good, conversation(("a.png",), turns)], images=root, self_question_ratio=0.0, seed=0, max_tokens=512
    )
    assert lessons.dropped == {"image places": 1}
    assert detail in lessons.dropped.examples["image places"]


def test_a_template_that_shows_all_images_first_costs_the_row_that_places_them(root: Path) -> None:
    first = PLAIN.replace(
        PARTS,
        "{%- for part in message['content'] if part['type'] == 'image' -%}<image>{%- endfor -%}"
        "{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}",
    )
    policy = thinker(first)
    good = conversation(("a.png",), (Message(role="user", content="what?"), Message(role="assistant", content="a lung")))
    rows = [good, conversation(("a.png", "b.png"), (PAIR, Message(role="assistant", content="no")))]
    assert SftDataset(policy, rows, images=root, self_question_ratio=0.0, seed=0, max_tokens=512).dropped == {"image places": 1}
    text = "Is the one older than the other?"
    texts = []
    for offsets in ((), (0, 0), (len(text), len(text))):
        asked = Message(role="user", content=text, image_offsets=offsets)
        rows[1] = conversation(("a.png", "b.png"), (asked, Message(role="assistant", content="no")))
        assert not SftDataset(policy, rows, images=root, self_question_ratio=0.0, seed=0, max_tokens=512).dropped
        texts.append(text_of(segments(policy.chat, rows[1].messages, images=2)))
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "paligemma"])
def test_every_family_keeps_the_places_of_images(family: str) -> None:
    policy = FAMILIES[family]()
    pieces = segments(policy.chat, [PAIR, Message(role="assistant", content="no")], images=2)
    before, between, behind = text_of(pieces).split(policy.chat.image_token)
    assert "Is " in before
    assert "older than" in between
    assert "?" in behind


def test_paligemma_reads_images_first_and_says_so() -> None:
    with pytest.raises(TextError, match="shows the images elsewhere"):
        segments(FAMILIES["paligemma"]().chat, [PAIR, Message(role="assistant", content="no")], images=2)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_that_cannot_be_told_not_to_think_learns_a_conversation_from_one_text(family: str) -> None:
    policy = FAMILIES[family]()
    lessons = lessons_of(policy.chat, self_question(TALK, [True] * 3), images=1)
    assert thinks(policy.chat) or len(lessons) == 1
