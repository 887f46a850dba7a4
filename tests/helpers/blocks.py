"""The code blocks of a page, and the commands of those that are a shell's.

A block stands in a fence that names its language. What cannot be run where the tests run has a mark right before its fence
that says what is not here: `<!-- needs: a GPU -->`.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parent.parent.parent
RUN = ("sh", "python")
"""Languages whose blocks are run, or marked."""
TITLE = re.compile(r'title="(.*?)"')
MARK = re.compile(r"<!--\s*needs:\s*(.*?)\s*-->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A code block of a page."""

    page: str
    """The page's path in the repository."""
    line: int
    """Line of the page, counted from 1, in which its fence or, without one, its text begins."""
    language: str
    """First word behind the fence; empty where there is none."""
    name: str
    """The fence's `title`, such as a record's class; empty where it has none."""
    text: str
    needs: str
    """What it needs that is not here; empty where it is not marked."""

    @property
    def place(self) -> str:
        """File and line."""
        return f"{self.page}:{self.line}"

    @property
    def first_line(self) -> int:
        """Line of the page in which the text begins."""
        return self.line + (1 if self.language else 0)


def blocks_of(text: str, page: str) -> Iterator[Block]:
    """The blocks of a page, in order; a block in a list or a quotation is one too."""
    needs = ""
    for token in MarkdownIt("commonmark").parse(text):
        if token.type == "html_block" and (mark := MARK.fullmatch(token.content.strip())):
            needs = mark[1]
            continue
        if token.type in ("fence", "code_block") and token.map is not None:
            language, name = token.info.partition(" ")[0], TITLE.search(token.info)
            yield Block(page, token.map[0] + 1, language, name[1] if name else "", token.content, needs)
        needs = ""


def marks_in(text: str) -> int:
    """How many marks a page has, wherever they stand; one in a code span is none."""
    tokens = MarkdownIt("commonmark").parse(text)
    every = [one for token in tokens for one in (token, *(token.children or ())) if one.type in ("html_block", "html_inline")]
    return sum(len(MARK.findall(token.content)) for token in every)


def command_lines(block: Block) -> Iterator[tuple[int, str]]:
    """The commands of a shell block, each on one line, with the line in the page where it begins."""
    line, begun = 0, ""
    for number, text in enumerate(block.text.splitlines(), block.first_line):
        line = line if begun else number
        begun += text.removesuffix("\\")
        if not text.endswith("\\"):
            yield line, begun
            begun = ""
    if begun:
        yield line, begun


def words_of(line: str) -> list[list[str]]:
    """The words of each command of a line, without comments, redirections and what joins commands."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("();<>|&"):
            commands.append([])
        else:
            commands[-1].append(word)
    return [words for words in commands if words]
