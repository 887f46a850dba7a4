"""The prompt of an expert that is a model: a rubric from a file, and the answers as data inside it.

Nothing in a question, an answer or a context can forge the prompt's structure: each stands between lines with a mark
that none of the texts holds, and what a chat template might take for a token of its own is written with other brackets.
Pure: reads the rubric's file, writes nothing.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Formatter
from typing import Literal

from pydantic import JsonValue

from stllava.errors import StllavaError
from stllava.records import Context, content_id

Mode = Literal["scores", "pairwise"]
FIELDS = frozenset({"with_context", "context", "count", "mark", "question", "answers", "form"})
NEEDED = frozenset({"mark", "question", "answers", "form"})
_TOKEN = re.compile(r"<(?=[^\s\d=<])|\[(?=/?[A-Z][A-Z_]*\])")
"""Opens what may be a special token: `<|im_end|>`, `<image>`, `</s>`, `<<SYS>>`, `[INST]`; not `a < b` or `<5 mm`."""
_FENCE = re.compile(r"==== ([0-9a-f]{8}) (end of )?(.+) ====")
"""A line around a text: the mark, whether it ends, the title."""
_WRITTEN = {"<": "‹", "[": "⟦"}
_UNSEEN = ("Cc", "Cf", "Cs", "Co")
_SEEN = "\n\t\u200c\u200d"
"""Characters of these categories that stay: line breaks, and the joiners that some scripts need."""
_FORMS = {
    ("pairwise", True): (
        'Reply with JSON alone: {"reason": "…", "verdict": "1"}, where verdict is "1" (answer 1 is better), "2" (answer 2 is '
        'better), "tie" or "abstain".'
    ),
    ("pairwise", False): 'End with one line that says "Verdict: 1", "Verdict: 2", "Verdict: tie" or "Verdict: abstain".',
    ("scores", True): (
        'Reply with JSON alone: {"reason": "…", "scores": [8, 3]}, with one score for each answer in the order shown, or '
        '{"reason": "…", "scores": []} to abstain.'
    ),
    ("scores", False): (
        'End with one line that says "Scores: " and one number for each answer in the order shown, such as "Scores: 8, 3", or '
        '"Scores: abstain".'
    ),
}

_NONE_RIGHT = {
    "pairwise": "neither answer is right, also give the right one: the better of the two",
    "scores": "no answer deserves 8 or more, also give the right one: the best of them",
}
_CORRECTIONS = {
    True: (
        ' If {none_right} with as few words changed as it takes, in a third field "correction" before the last one. '
        'Else, and where you do not know it, leave that field an empty text: "correction": "".'
    ),
    False: (
        ' If {none_right} with as few words changed as it takes, on a line of its own before that one, such as "Correction: a '
        'mass in the left lung". Else, and where you do not know it, leave that line out.'
    ),
}


@dataclass(frozen=True)
class Rubric:
    """A prompt with places for what is judged."""

    template: str
    """The text, with places in braces."""
    mode: Mode
    """What it asks for."""
    structured: bool
    """Whether the reply is to be JSON."""
    correct: bool = False
    """Whether the right answer is asked for where none is right."""

    @property
    def hash(self) -> str:
        """Hash of everything here that shapes a prompt."""
        return content_id("rubric", self.template, self.form)

    @property
    def form(self) -> str:
        """In which form the reply is to come."""
        form = _FORMS[self.mode, self.structured]
        return form + _CORRECTIONS[self.structured].format(none_right=_NONE_RIGHT[self.mode]) if self.correct else form

    def write(self, question: str, answers: Sequence[str], contexts: Sequence[Context]) -> str:
        """The prompt that shows these answers in this order."""
        texts = [harmless(text) for text in (question, *answers, *(context.text for context in contexts))]
        mark = unused_mark(texts)
        known = "".join(
            fenced(context.kind, text, mark) + "\n" for context, text in zip(contexts, texts[1 + len(answers) :], strict=True)
        )
        return self.template.format(
            with_context=f", {_listed([context.kind for context in contexts])} of it" if contexts else "",
            context=f"What is known of the image from elsewhere:\n\n{known}" if contexts else "",
            count=len(answers),
            mark=mark,
            question=texts[0],
            answers="".join(
                fenced(f"answer {number}", text, mark) + "\n" for number, text in enumerate(texts[1 : 1 + len(answers)], 1)
            ),
            form=self.form,
        )

    def schema(self, count: int) -> dict[str, JsonValue]:
        """The JSON schema of a reply about so many answers."""
        verdict: dict[str, JsonValue]
        if self.mode == "pairwise":
            verdict = {"verdict": {"type": "string", "enum": ["1", "2", "tie", "abstain"]}}
        else:
            verdict = {"scores": {"type": "array", "items": {"type": "number"}, "description": f"{count} scores, or none"}}
        correction: dict[str, JsonValue] = {"correction": {"type": "string"}} if self.correct else {}
        properties: dict[str, JsonValue] = {"reason": {"type": "string"}, **correction, **verdict}
        return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def load_rubric(path: Path | None, *, mode: Mode, structured: bool, correct: bool = False) -> Rubric:
    """The rubric of a file, or the one that is shipped; a file without the places it needs is refused."""
    if path is None:
        shipped = resources.files("stllava.prompts") / f"{mode}.txt"
        return Rubric(shipped.read_text(encoding="utf-8"), mode, structured, correct)
    if not path.is_file():
        raise StllavaError(f"no rubric {path}", expected="a text file", remedy="Check the path, or leave rubric out.")
    template = path.read_text(encoding="utf-8")
    try:
        places = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise _bad_rubric(path, f"its braces do not match ({error})") from None
    if missing := NEEDED - places:
        raise _bad_rubric(path, f"it has no place for {', '.join(sorted(missing))}")
    if unknown := places - FIELDS:
        raise _bad_rubric(path, f"it has places that nothing fills: {', '.join(sorted(unknown))}")
    return Rubric(template, mode, structured, correct)


def harmless(text: str) -> str:
    """The text without control and invisible characters, special tokens written with other brackets."""
    seen = "".join(one for one in text if one in _SEEN or unicodedata.category(one) not in _UNSEEN)
    return _TOKEN.sub(lambda found: _WRITTEN[found[0]], seen)


def unused_mark(texts: Sequence[str]) -> str:
    """Eight hexadecimal digits that depend on the texts and stand in none of them."""
    tries = 0
    while any((mark := content_id("mark", tries, list(texts))[:8]) in text for text in texts):
        tries += 1
    return mark


def fenced(title: str, text: str, mark: str) -> str:
    """A text between lines that carry the mark."""
    return f"==== {mark} {title} ====\n{text}\n==== {mark} end of {title} ====\n"


def unfenced(prompt: str) -> dict[str, str]:
    """The fenced texts of a prompt by title: what a reader that trusts the marks alone makes of it."""
    found: dict[str, str] = {}
    mark = title = ""
    lines = prompt.split("\n")
    for number, line in enumerate(lines):
        fence = _FENCE.fullmatch(line)
        if fence is None or fence[1] != (mark := mark or fence[1]):
            continue
        if not title and not fence[2]:
            title, start = fence[3], number + 1
        elif fence[2] and fence[3] == title:
            found[title], title = "\n".join(lines[start:number]), ""
    return found


def _listed(kinds: Sequence[str]) -> str:
    names = [f"a {kind}" for kind in dict.fromkeys(kinds)]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _bad_rubric(path: Path, problem: str) -> StllavaError:
    return StllavaError(
        f"the rubric {path} cannot be used: {problem}",
        expected=f"a text with the places {', '.join('{' + name + '}' for name in sorted(NEEDED))}",
        remedy="Start from the one that is shipped (docs/expert.md); write {{ for a brace that is no place.",
    )
