"""The contact sheet: every picture whose pixels were changed or kept back, for a human to confirm.

Writes `changes-001.html` and on, each whole in itself: pictures are inside, nothing is loaded, no script runs. Only the
picture as it was written is shown, with the black places outlined: the one before would hold the name that was removed, and
a picture that was kept back is not shown at all.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from stllava.data.images import jpeg_uri
from stllava.intake.deidentify.burned_text import Action, Box
from stllava.store import write_whole

PAGE = 60
THUMBNAIL = 320
"""Longer side of a picture on the sheet, in pixels: small enough for thousands, large enough to see letters left over."""
_OUTLINE = (255, 80, 0)

_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Changes to pixels, page {{ number }}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
body { font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem; color: #222; background: #fff }
ul { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 1rem; list-style: none; padding: 0 }
li { border: 1px solid #bbb; border-radius: 6px; padding: .5rem } img { display: block; max-width: 100% }
code { font-size: 13px } .quarantined { background: #fff3ea } label { display: block; margin-top: .3rem }
</style></head><body>
<h1>Changes to pixels</h1>
<p>Every picture in which text was blacked out, and every one that was kept back for text. Each is shown as it was written,
black places outlined in orange; how it looked before is not shown, because that would repeat what was removed. Please look for
letters that are left over. Ticks are for your own eyes and are not stored; <code>stllava review</code> on this folder keeps
what you say of each picture.</p>
<p>Page {{ number }}: {% for action, count in counts %}{{ count }} {{ action }}{{ ", " if not loop.last }}
{% else %}no picture was changed or kept back
{% endfor %}.
{% if number > 1 %}<a href="{{ name(number - 1) }}">page before</a>{% endif %}
{% if more %}<a href="{{ name(number + 1) }}">next page</a>{% endif %}</p>
<ul>
{% for change, picture in rows %}
<li class="{{ change.action }}"><code>{{ change.image_id }}</code> · {{ change.action }}: {{ change.reason }}
{% if picture %}<img src="{{ picture }}" alt="{{ change.image_id }} as written">{% else %}
<p>Not written, and not shown.</p>{% endif %}
{% if change.boxes %}<details><summary>{{ change.boxes | length }} places</summary>
{% for box in change.boxes %}<div>x {{ box.left }} to {{ box.right }}, y {{ box.top }} to {{ box.bottom }}</div>
{% endfor %}</details>{% endif %}
<label><input type="checkbox"> confirmed</label></li>
{% endfor %}
</ul></body></html>
"""


@dataclass(frozen=True)
class Change:
    """One picture on the sheet."""

    image_id: str
    """Its hidden id."""
    action: Action
    reason: str
    boxes: tuple[Box, ...] = ()
    """What was blacked out."""
    pixels: NDArray[np.uint8] | None = None
    """[H, W] or [H, W, 3] as written; None when it was kept back."""


def write_sheets(changes: Iterable[Change], to: Path, *, size: int = PAGE) -> list[Path]:
    """Write pages of `size` changes into the folder and return them; one page is in memory, and one without changes says so."""
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(_TEMPLATE)
    paths: list[Path] = []
    for number, (rows, more) in enumerate(_pages(changes, size), 1):
        counts = sorted(Counter(change.action for change, _ in rows).items())
        page = template.render(number=number, rows=rows, more=more, counts=counts, name=page_name)
        paths.append(to / page_name(number))
        write_whole(paths[-1], page)
    return paths


def page_name(number: int) -> str:
    """File name of a page, from 1."""
    return f"changes-{number:03d}.html"


def _pages(changes: Iterable[Change], size: int) -> Iterator[tuple[list[tuple[Change, str]], bool]]:
    """Rows of each page and whether another follows; thumbnails stand for the pixels, which are let go."""
    rows: list[tuple[Change, str]] = []
    for change in changes:
        if len(rows) == size:
            yield rows, True
            rows = []
        # What was kept back is not shown even where its pixels are at hand.
        shown = change.pixels if change.action != "quarantined" else None
        picture = "" if shown is None else thumbnail(shown, change.boxes)
        rows.append((Change(change.image_id, change.action, change.reason, change.boxes), picture))
    yield rows, False


def thumbnail(pixels: NDArray[np.uint8], boxes: Iterable[Box]) -> str:
    """The picture, reduced and its boxes outlined, as a data URI."""
    image = Image.fromarray(pixels).convert("RGB")
    scale = min(1.0, THUMBNAIL / max(image.size))
    if scale < 1:
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    pen = ImageDraw.Draw(image)
    for box in boxes:
        left, top = round(box.left * scale), round(box.top * scale)
        right, bottom = max(left, round(box.right * scale) - 1), max(top, round(box.bottom * scale) - 1)
        pen.rectangle((left, top, right, bottom), outline=_OUTLINE)
    return jpeg_uri(image, quality=80)
