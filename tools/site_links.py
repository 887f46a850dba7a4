"""A hook of mkdocs: links that lead out of docs/ become the path that they lead to, since the site holds no such file.

And a bar in code in a table loses the backslash that GitHub wants before it: Python-Markdown would show it.

mkdocs.yml names it. Links inside docs/ stay as they are, and `mkdocs build --strict` checks them.
"""

import posixpath
import re
from typing import Any

LINK = re.compile(r"\[([^\]\n]*)\]\((\.\./[^)\s]*)\)")
ROW = re.compile(r"^\|.*$", re.MULTILINE)
CODE = re.compile(r"`[^`\n]*`")


def on_page_markdown(markdown: str, *, page: Any, **_: object) -> str:
    """The page with such links as code, and such bars bare."""
    folder = posixpath.dirname(f"docs/{page.file.src_uri}")

    def written(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[2].partition("#")[0]))
        return match[0] if target.startswith("docs/") else f"{match[1]} (`{target}`)"

    rows = ROW.sub(lambda row: CODE.sub(lambda code: code[0].replace(r"\|", "|"), row[0]), markdown)
    return LINK.sub(written, rows)
