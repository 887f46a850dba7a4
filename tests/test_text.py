"""What a server, a model or a file says is shown on the terminal and never obeyed by it."""

import logging
import re
import unicodedata
from io import StringIO
from pathlib import Path

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

import stllava
from helpers.judging import answers_of, write_answers, write_image
from stllava import cli
from stllava.cli import PrintableFormatter, main, show_crash
from stllava.commands import COMMANDS
from stllava.commands.telling import tell
from stllava.config import ChatOptions
from stllava.experts import build
from stllava.experts.backends.chat_server import ChatServer
from stllava.experts.model.reply_log import Exchange
from stllava.generation import chat
from stllava.progress import Progress
from stllava.records import Manifest
from stllava.remote import rate_limiter
from stllava.text import aligned, counted, printable, show

HOSTILE = [
    pytest.param("\x1b[2J\x1b[31mred", id="colour"),
    pytest.param("\x1b]0;owned\x07title", id="window title"),
    pytest.param("\x1b]52;c;cm0gLXJmIH4=\x07", id="clipboard"),  # NVIDIA/garak#997
    pytest.param("\x1b]8;;http://evil.example\x1b\\here\x1b]8;;\x1b\\", id="link"),
    pytest.param("\x9b31mred\x9d0;owned\x9c", id="eight-bit controls"),
    pytest.param("all is well\rstllava: all is lost", id="carriage return"),
    pytest.param("abc\b\b\bxyz\x7f", id="backspace"),
    pytest.param("\u202egnp.exe\u202c \u2066x\u2069 \u200f \u061c", id="bidirectional overrides"),
    pytest.param("one\u2028two\u2029three\x85four\x0bfive\x0csix", id="odd line breaks"),
    pytest.param("half \ud83d a character", id="lone surrogate"),
    pytest.param("nul \x00 bell \x07 shift \x0e", id="other controls"),
]


def obeyed(text: str) -> list[str]:
    """The characters of a text that a terminal would obey."""
    bad = [one for one in text if unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp") and one not in "\n\t"]
    return bad + [one for one in text if one in "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_that_a_terminal_obeys_is_left_and_nothing_is_hidden(text: str) -> None:
    made = printable(text)
    assert obeyed(text)
    assert not obeyed(made)
    assert made.encode("utf-8")
    plain = [one for one in text if one not in obeyed(text)]
    shown = iter(made)
    assert all(one in shown for one in plain), "every readable character is still there, in order"


@given(st.text(st.characters()))
def test_whatever_is_said_only_characters_that_show_are_left(text: str) -> None:
    assert not obeyed(printable(text))
    assert printable(printable(text)) == printable(text)


@pytest.mark.parametrize("text", ["Lungenödem, 3 µm", "肺水肿 🫁\n\tno", "C:\\x1b", "ذات الرئة", "दिल\u200dका"])
def test_plain_text_of_any_language_is_shown_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_a_line_break_of_windows_is_a_line_break() -> None:
    assert printable("one\r\ntwo") == "one\ntwo"


def test_nothing_but_the_one_function_and_the_progress_line_writes_to_the_terminal() -> None:
    sources = Path(stllava.__file__).parent
    writers = {
        path.relative_to(sources).as_posix()
        for path in sources.rglob("*.py")
        if re.search(r"\bprint\(|std(?:out|err)\.write|self\.stream\.write", path.read_text(encoding="utf-8"))
    }
    assert writers == {"progress.py", "report/model_card.py"}, (
        "report/model_card.py holds a program for the reader of a model card"
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_the_command_line_shows_an_error_without_obeying_it(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([text])
    told = capsys.readouterr()
    assert not obeyed(told.out + told.err)


@pytest.mark.parametrize("text", HOSTILE)
def test_progress_manifests_warnings_crashes_and_answers_are_shown_without_being_obeyed(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = StringIO()
    with Progress(f"judge {text}", 1, unit="requests", stream=stream) as progress:
        progress.advance(extra=text)
    tell(
        Manifest(
            stage="answer",
            config={},
            inputs={},
            outputs={},
            counts_in=1,
            counts_out=0,
            dropped={text: 1},
            measures={text: 1.0},
            versions={},
            commit="",
            started="",
            seconds=0.0,
            device="cpu",
        )
    )
    chat._write(text)
    error = ValueError(text)
    show_crash(ValueError, error, error.__traceback__)
    record = logging.LogRecord("stllava", logging.WARNING, "", 0, "%s", (text,), None)
    told = capsys.readouterr()
    assert not obeyed(stream.getvalue() + told.out + told.err + PrintableFormatter().format(record))


@pytest.mark.parametrize("text", HOSTILE)
def test_a_judges_dry_run_shows_answers_without_obeying_them(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    safe = text.replace("\ud83d", "")  # No record can hold half a character.
    given = write_answers(tmp_path / "answers", [answers_of(f"what {safe}?", (f"a {safe}", "b"))])
    words = ["judge", "--expert", "chat", "--chat.url", "http://127.0.0.1:9/v1", "--dry-run", "--answers", str(given)]
    main([*words, "--root", str(write_image(tmp_path / "images")), "--to", str(tmp_path / "out")])
    assert not obeyed(capsys.readouterr().out)


def test_a_servers_words_reach_neither_terminal_nor_reply_log_as_escapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rate_limiter, "FIRST_WAIT", 0.0)
    words = "".join(str(param.values[0]) for param in HOSTILE).replace("\ud83d", "")

    def refuse(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(500, content=words.encode())

    def make(options: ChatOptions, **more: object) -> ChatServer:
        return ChatServer(options, transport=httpx2.MockTransport(refuse), **more)  # type: ignore[arg-type]

    monkeypatch.setattr(build, "ChatServer", make)
    given = write_answers(tmp_path / "answers", [answers_of(f"what {number}?", ("a", "b")) for number in range(12)])
    flags = ["--expert", "chat", "--chat.url", "http://127.0.0.1:9/v1", "--chat.retries", "0", "--chat.concurrency", "1"]
    flags += ["--answers", str(given), "--root", str(write_image(tmp_path / "i")), "--to", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main(["judge", *flags])
    told = capsys.readouterr()
    assert "owned" in told.err
    assert not obeyed(told.out + told.err)
    lines = (tmp_path / "out" / "exchanges" / "expert.jsonl").read_bytes().split(b"\n")[:-1]
    assert lines
    assert not any(obeyed(Exchange.model_validate_json(line).failure or "") for line in lines)


def test_what_is_shown_ends_as_asked(capsys: pytest.CaptureFixture[str]) -> None:
    show("one", 2)
    show("three", end="")
    assert capsys.readouterr().out == "one\n2\nthree"
    assert COMMANDS["judge"].summary in cli.usage()


def test_the_columns_of_a_table_stand_below_each_other() -> None:
    rows = [("policy", "open"), ("blind-round-10 *", "7.5"), ("sft", "")]
    assert aligned(rows) == ["policy            open", "blind-round-10 *  7.5", "sft"]
    assert aligned(rows, numbers=True) == ["policy            open", "blind-round-10 *   7.5", "sft"]
    assert aligned([]) == []


def test_one_is_no_plural() -> None:
    assert [counted(count, "pair") for count in (0, 1, 2)] == ["0 pairs", "1 pair", "2 pairs"]
    assert [counted(count, "reply", "replies") for count in (1, 2)] == ["1 reply", "2 replies"]


def test_a_share_is_told_in_percent(capsys: pytest.CaptureFixture[str]) -> None:
    told = {"verdict_share": 0.9876, "asked": 12.0}
    empty = {
        "config": {},
        "inputs": {},
        "outputs": {},
        "dropped": {},
        "versions": {},
        "commit": "",
        "started": "",
        "device": "cpu",
    }
    tell(Manifest.model_validate({"stage": "judge", "counts_in": 1, "counts_out": 1, "seconds": 0.0, "measures": told} | empty))
    assert "  verdict_share: 98.8%\n  asked: 12\n" in capsys.readouterr().out
