"""A conversation in the terminal: what is streamed is what the sampler says, whole characters at a time."""

import builtins
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from helpers.architectures import ARCHITECTURES
from stllava.cli import main
from stllava.config import SamplingOptions
from stllava.errors import StllavaError
from stllava.generation.chat import BROKEN, Stream, say, talk
from stllava.generation.local_sampler import LocalSampler
from stllava.generation.sampler import Prompt
from stllava.model.load import Policy, load_policy
from stllava.records import Image, Message
from stllava.store import read_jsonl

GREEDY = SamplingOptions(temperature=0.0, max_new_tokens=12)
ODD = "Lungenödem, größer als 3 µm: 肺水肿 🫁 no."


@pytest.fixture(scope="module")
def images(phantoms: Path) -> list[Path]:
    return [phantoms / "images" / one.path for one in read_jsonl(phantoms / "images.jsonl", Image)]


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str | type[BaseException]) -> None:
    """Lines typed one after the other, the last of them the end of input."""
    waiting: Iterator[str | type[BaseException]] = iter(lines)

    def read(_: str) -> str:
        line = next(waiting, EOFError)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr(builtins, "input", read)


def turns(*texts: str) -> tuple[Message, ...]:
    return tuple(Message(role="assistant" if place % 2 else "user", content=text) for place, text in enumerate(texts))


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_what_is_streamed_is_the_samplers_greedy_text(name: str, images: list[Path]) -> None:
    policy = ARCHITECTURES[name]()
    sampler = LocalSampler(policy, root=images[0].parent, tokens=4096)
    for asked in (turns("Describe the image."), turns("Is there a nodule?", "yes", "Where is it?")):
        prompt = Prompt(asked, (images[0].name,))
        (wanted,) = sampler.complete([prompt], k=1, sampling=GREEDY, seed=0)[0]
        pieces: list[str] = []
        assert say(sampler, prompt, sampling=GREEDY, tell=pieces.append) == wanted.text == "".join(pieces)


def test_a_models_own_penalty_does_not_change_what_is_said(tiny_model: Path, images: list[Path]) -> None:
    policy = load_policy(tiny_model)
    sampler = LocalSampler(policy, root=images[0].parent, tokens=4096)
    prompt = Prompt(turns("what is seen?"), (images[0].name,))
    (wanted,) = sampler.complete([prompt], k=1, sampling=GREEDY, seed=0)[0]
    assert policy.model.generation_config is not None
    policy.model.generation_config.repetition_penalty = 50.0
    assert say(sampler, prompt, sampling=GREEDY, tell=lambda _: None) == wanted.text


@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_no_piece_ends_within_a_character(name: str) -> None:
    policy = ARCHITECTURES[name]()
    tokens = policy.tokens(ODD)
    assert len(tokens) > len(ODD)
    pieces: list[str] = []
    stream = Stream(policy, pieces.append)
    stream.put(torch.tensor([list(policy.tokens("a prompt that is not told"))]))
    for token in (*tokens, sorted(policy.stop_ids)[0]):
        stream.put(torch.tensor([token]))
    stream.end()
    assert "".join(pieces) == stream.text == ODD
    assert len(pieces) > 10
    assert not any(BROKEN in piece for piece in pieces)


def test_bytes_that_never_become_a_character_are_told_at_the_end(tiny_model: Path) -> None:
    policy = load_policy(tiny_model)
    pieces: list[str] = []
    stream = Stream(policy, pieces.append)
    for token in (0, *policy.tokens("no 肺")[:-1]):
        stream.put(torch.tensor([token]))
    assert "".join(pieces) == "no"
    stream.end()
    assert "".join(pieces) == stream.text
    assert stream.text.endswith(BROKEN)


def test_earlier_turns_stay_in_the_conversation_and_another_image_begins_a_new_one(
    tiny_model: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heard: list[Prompt] = []

    def listen(_: LocalSampler, prompt: Prompt, **__: object) -> str:
        heard.append(prompt)
        return f"answer {len(heard)}"

    monkeypatch.setattr("stllava.generation.chat.say", listen)
    typed(monkeypatch, "one?", "two?", f"/image {images[1]}", "three?", "/image gone.png", "four?", "")
    talk(tiny_model, images[0], question=None, sampling=GREEDY)
    assert [[turn.content for turn in prompt.messages] for prompt in heard] == [
        ["one?"],
        ["one?", "answer 1", "two?"],
        ["three?"],
        ["three?", "answer 3", "four?"],
    ]
    assert [prompt.images for prompt in heard] == [(images[0].name,)] * 2 + [(images[1].name,)] * 2
    assert "gone.png does not exist" in capsys.readouterr().out


def test_the_command_streams_an_answer_sampled_as_its_flags_say(
    tiny_model: Path, images: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = []
    for most in (2, 40):
        main(["chat", str(tiny_model), str(images[0]), "--question", "what?", "--sampling.max-new-tokens", str(most)])
        lengths.append(len(capsys.readouterr().out))
    assert lengths[0] < lengths[1]


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt], ids=["end of input", "Ctrl-C"])
def test_the_end_of_input_ends_the_conversation(
    end: type[BaseException], tiny_model: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, end)
    talk(tiny_model, images[0], question=None, sampling=GREEDY)


def test_an_interrupt_ends_the_answer_and_keeps_what_was_said(tiny_model: Path, images: list[Path]) -> None:
    policy = load_policy(tiny_model)
    sampler = LocalSampler(policy, root=images[0].parent, tokens=4096)
    prompt = Prompt(turns("what is seen?"), (images[0].name,))
    long = GREEDY.model_copy(update={"max_new_tokens": 64})
    whole = say(sampler, prompt, sampling=long, tell=lambda _: None)
    pieces: list[str] = []

    def interrupt(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    said = say(sampler, prompt, sampling=long, tell=interrupt)
    assert 0 < len(said) < len(whole)
    assert whole.startswith(said.rstrip(BROKEN))


def test_sampled_answers_depend_on_the_seed_alone(
    tiny_model: Path, images: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    warm = SamplingOptions(temperature=1.5, top_k=0, top_p=1.0, max_new_tokens=12)
    told = []
    for seed in (1, 1, 2):
        talk(tiny_model, images[0], question="what is seen?", sampling=warm, seed=seed)
        told.append(capsys.readouterr().out)
    assert told[0] == told[1] != told[2]


def test_an_image_that_cannot_be_read_is_named_before_the_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "torn.png").write_bytes(b"\x89PNG torn")
    with pytest.raises(StllavaError, match=r"torn\.png.*an image that can be read"):
        talk(tmp_path / "no model", tmp_path / "torn.png", question="?", sampling=GREEDY)


def test_a_conversation_that_fills_the_context_is_refused(tiny_model: Path, images: list[Path]) -> None:
    policy: Policy = load_policy(tiny_model)
    sampler = LocalSampler(policy, root=images[0].parent, tokens=4096)
    prompt = Prompt(turns("what? " * policy.context), (images[0].name,))
    with pytest.raises(StllavaError, match=f"made for {policy.context}"):
        say(sampler, prompt, sampling=GREEDY, tell=lambda _: None)


def test_half_a_character_is_no_question_and_the_conversation_goes_on(
    tiny_model: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bytes of a terminal that is not set to UTF-8 come as lone surrogates; the tokenizer's TypeError ended everything."""
    with pytest.raises(StllavaError, match=r"\\udcff.*no Unicode"):
        talk(tiny_model, images[0], question="bad \udcff?", sampling=GREEDY)
    typed(monkeypatch, "bad \udcff?", "Is there a nodule?")
    talk(tiny_model, images[0], question=None, sampling=GREEDY)
    lines = capsys.readouterr().out.splitlines()
    assert "no Unicode" in lines[0]
    assert len(lines) > 1
