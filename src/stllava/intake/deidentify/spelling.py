"""One spelling of patients' numbers, names and days, so that what is meant alike reads alike. Reads and writes nothing.

Case, padding, marks between letters and digits, leading zeros and the parts that HL7 puts behind a number make no difference.
Words that stand for nobody ("ANONYMOUS", "0") are no number and no name.
"""

import re
import unicodedata
from collections.abc import Iterator
from datetime import date

from stllava.metrics.words import composed

_PLACEHOLDERS = """
anon anonym anonymised anonymized anonymous deid deidentified dummy empty hidden id masked na name nil nn no nobody noid none
noname null number of patient patientid patientname redacted removed test unknown unnamed unspecified x xx xxx xxxx
"""
_NOBODY = frozenset(_PLACEHOLDERS.split())
LONG = 8
"""Digits from which a number is one however it is grouped, as health services group theirs: 943-476-5919."""
_TOKENS = re.compile(r"\d+|[^\W\d_]+|[\W_]+")
_WORDS = re.compile(r"[^\W_]+")
_DAY = re.compile(r"(\d{4})([-./ ]?)(\d{2})\2(\d{2})(?:[T ]?\d{2}.*)?", re.ASCII)
_NEVER = date(1900, 1, 1)
"""What programs write, or days before it, where they take the day away."""


def number_of(text: str, issuer: str) -> tuple[str, str]:
    """A patient's number and its issuer in one spelling; empty where the text is no number, or nobody's."""
    parts = text.split("^")
    if len(parts) > 3 and parts[3].strip() and (any(map(str.isdecimal, parts[0])) or not number_key(parts[0])):
        # As HL7 writes it: the number, two parts about its check digit, and who issued it.
        text, issuer = parts[0], issuer or parts[3]
    number = number_key(text)
    return number, number_key(next((part for part in issuer.split("&") if part.strip()), "")) if number else ""


def number_key(text: str) -> str:
    """One spelling of a number: without case, marks but those between digits, and leading zeros; empty of nobody's."""
    tokens = _tokens(text)
    letters = any(token[0].isalnum() and not token[0].isdecimal() for token in tokens)
    whole = whole_key(text)
    if not letters and len(whole) >= LONG:
        return whole
    key = "".join(_joined(tokens))
    return "" if key.replace("-", "").strip("0") == "" or key.replace("-", "") in _NOBODY else key


def whole_key(text: str) -> str:
    """The spelling of a number whose groups of digits are not divided."""
    return "".join(token for token in _tokens(text) if token[0].isalnum()).lstrip("0")


def _tokens(text: str) -> list[str]:
    """Runs of digits, of letters and of marks, digits in ASCII; a spreadsheet's fraction of nought is left out."""
    plain = "".join(composed(text.replace("\0", " ")).casefold().split())
    tokens = [_decimal(token) if token[0].isdecimal() else token for token in _TOKENS.findall(plain)]
    return tokens[:1] if tokens[1:] == [".", "0"] and tokens[0].isdecimal() else tokens


def _joined(tokens: list[str]) -> Iterator[str]:
    """Letters, digits without leading zeros, and a dash between two runs of digits that are apart."""
    around = zip(["", *tokens], tokens, [*tokens[1:], ""], strict=False)
    for before, token, behind in around:
        if token[0].isdecimal():
            yield token.lstrip("0") or "0"
        elif token[0].isalnum():
            yield token
        elif before[:1].isdecimal() and behind[:1].isdecimal():
            yield "-"


def _decimal(digits: str) -> str:
    return "".join(str(unicodedata.decimal(digit)) for digit in digits)


def name_key(text: str) -> str:
    """The words of a name, without accents, in order of the alphabet, so that DOE^JANE is Jane Doe; empty of nobody's."""
    first = next((group for group in text.replace("\0", " ").split("=") if group.strip("^ ")), "")
    bare = "".join(letter for letter in unicodedata.normalize("NFKD", composed(first)) if not unicodedata.combining(letter))
    words = sorted(_WORDS.findall(bare.casefold()))
    return "" if _NOBODY.issuperset(words) or max(map(len, words)) < 2 else " ".join(words)


def plain_day(text: str) -> str:
    """A day as YYYYMMDD, however its parts are divided and whatever time follows; empty of what is no day of an examination."""
    match = _DAY.fullmatch(text.strip("\0 "))
    try:
        day = None if match is None else date(int(match[1]), int(match[3]), int(match[4]))
    except ValueError:
        return ""
    return day.isoformat().replace("-", "") if day is not None and day > _NEVER else ""


def folded(text: str) -> str:
    """A text in lower case, with single blanks between its words."""
    return " ".join(text.replace("\0", " ").casefold().split())
