"""Inline SVG charts: pure functions from numbers to markup, coloured by the page's CSS, every text escaped.

By hand, because the page holds no script and asks for nothing: plotting libraries bring scripts, or fonts and random ids that
make the same figures other bytes. Three kinds of charts need no more.

`shade` places a policy between the start (0) and the last round (1) on the page's colour ramp; None is a baseline.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from stllava.report.wording import percent, points
from stllava.text import shorten

WIDTH = 340
ROW = 26
MOST_POINTS = 240


@dataclass(frozen=True)
class Dot:
    """One value with its interval, all between 0 and 1."""

    label: str
    value: float
    low: float
    high: float
    shade: float | None
    best: bool = False


@dataclass(frozen=True)
class Line:
    """One named series of (step, value)."""

    label: str
    points: tuple[tuple[float, float], ...]
    shade: float | None


def _tone(shade: float | None) -> str:
    return 'class="base"' if shade is None else f'class="tone" style="--t:{shade:.2f}"'


def _number(value: float) -> str:
    """A coordinate, short and never -0."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def _svg(title: str, height: float, body: Sequence[str]) -> Markup:
    """`body` is markup whose texts are escaped already."""
    label = escape(title)
    head = f'<svg viewBox="0 0 {WIDTH} {_number(height)}" role="img" aria-label="{label}"><title>{label}</title>'
    return Markup(head + "".join(body) + "</svg>")


def interval_chart(title: str, dots: Sequence[Dot]) -> Markup:
    """Dots with 95 % intervals on a 0 to 100 % axis, one row a policy; the first dot's value is the dashed line."""
    left, right, top = 98.0, 290.0, 8.0
    bottom = top + ROW * len(dots)

    def x(share: float) -> float:
        return left + (right - left) * min(max(share, 0.0), 1.0)

    body = []
    for tick in (0, 25, 50, 75, 100):
        at = _number(x(tick / 100))
        body.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{top}" y2="{bottom}"/>')
        body.append(f'<text class="tick" x="{at}" y="{bottom + 15}" text-anchor="middle">{tick}</text>')
    if dots:
        at = _number(x(dots[0].value))
        body.append(f'<line class="from" x1="{at}" x2="{at}" y1="{top}" y2="{bottom}"/>')
    for place, dot in enumerate(dots):
        y = top + ROW * (place + 0.5)
        low, mid, high = (_number(x(share)) for share in (dot.low, dot.value, dot.high))
        weight = ' font-weight="650"' if dot.best else ""
        text = "label" if dot.shade is not None else "label soft"
        name = escape(shorten(dot.label, 15))
        body.append(
            f'<text class="{text}" x="0" y="{y + 4}"{weight}>{name}</text>'
            f"<g {_tone(dot.shade)}><title>{escape(dot.label)}: {percent(dot.value)} %, "
            f"95 % interval {percent(dot.low)} to {percent(dot.high)}</title>"
            f'<line class="span" x1="{low}" x2="{high}" y1="{y}" y2="{y}"/>'
            + (f'<circle class="halo" cx="{mid}" cy="{y}" r="8.5"/>' if dot.best else "")
            + f'<circle class="dot" cx="{mid}" cy="{y}" r="{"4" if dot.shade is None else "5"}"/></g>'
            f'<text class="{text} num" x="{WIDTH - 2}" y="{y + 4}" text-anchor="end"{weight}>{percent(dot.value)}</text>'
        )
    return _svg(title, bottom + 22, body)


def difference_chart(title: str, value: float, low: float, high: float, *, extent: float) -> Markup:
    """One paired difference with its interval around zero, on an axis of ± extent."""
    middle, reach = WIDTH / 2, WIDTH / 2 - 22

    def x(share: float) -> str:
        return _number(middle + reach * min(max(share / extent, -1.0), 1.0))

    tone = "up" if low > 0 else "down" if high < 0 else "flat"
    end = points(extent).removesuffix(".0")
    body = [
        f'<line class="axis" x1="{x(-extent)}" x2="{x(extent)}" y1="14" y2="14"/>',
        f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="4" y2="24"/>',
        f'<g class="{tone}"><line class="span" x1="{x(low)}" x2="{x(high)}" y1="14" y2="14"/>'
        f'<circle class="dot" cx="{x(value)}" cy="14" r="5.5"/></g>',
        f'<text class="tick" x="{x(0)}" y="38" text-anchor="middle">0</text>',
        f'<text class="tick" x="{x(extent)}" y="38" text-anchor="middle">{end}</text>',
        f'<text class="tick" x="{x(-extent)}" y="38" text-anchor="middle">{end.replace("+", "−")}</text>',
    ]
    return _svg(title, 44, body)


def line_chart(title: str, lines: Sequence[Line], *, share: bool, unit: str = "step") -> Markup:
    """Series over steps, or another `unit`: faint as measured, bold as a running mean; `share` fixes the axis at 0 to 100 %."""
    drawn = [
        Line(line.label, tuple(spot for spot in line.points if all(map(math.isfinite, spot))), line.shade) for line in lines
    ]
    drawn = [line for line in drawn if line.points]
    if not drawn:
        return _svg(title, 40, ['<text class="tick" x="0" y="24">nothing recorded</text>'])
    left, right, top, bottom = 46.0, WIDTH - (52.0 if len(drawn) > 1 else 10.0), 10.0, 160.0
    steps = [step for line in drawn for step, _ in line.points]
    values = [value for line in drawn for _, value in line.points]
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0] if share else nice_ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]
    start, end = min(steps), max(steps)

    def x(step: float) -> float:
        return left + (right - left) * ((step - start) / (end - start) if end > start else 0.5)

    def y(value: float) -> float:
        return bottom - (bottom - top) * (min(max(value, low), high) - low) / (high - low)

    def path(spots: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{_number(x(step))} {_number(y(value))}" for step, value in spots)

    body = []
    for tick in ticks:
        at = y(tick)
        name = f"{100 * tick:.0f} %" if share else f"{tick:g}".replace("-", "−")
        body.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        body.append(f'<text class="tick" x="{left - 7}" y="{at + 4:.1f}" text-anchor="end">{name}</text>')
    for place, anchor, name in (
        (left, "start", f"{start:g}"),
        ((left + right) / 2, "middle", escape(unit)),
        (right, "end", f"{end:g}"),
    ):
        body.append(f'<text class="tick" x="{place}" y="{bottom + 17}" text-anchor="{anchor}">{name}</text>')
    ends = []
    for line in drawn:
        spots, smooth = thin(line.points), thin(running_mean(line.points))
        raw = f'<path class="raw" d="{path(spots)}"/>' if smooth != spots else ""
        last = smooth[-1]
        dot = f'<circle class="dot" cx="{_number(x(last[0]))}" cy="{_number(y(last[1]))}" r="3"/>'
        body.append(f'<g {_tone(line.shade)}>{raw}<path class="line" d="{path(smooth)}"/>{dot}</g>')
        ends.append(y(last[1]))
    if len(drawn) > 1:
        for line, at in zip(drawn, spread(ends, gap=14.0, low=top + 4, high=bottom), strict=True):
            label = escape(shorten(line.label, 9))
            body.append(f'<g {_tone(line.shade)}><text class="end" x="{right + 7}" y="{at + 4:.1f}">{label}</text></g>')
    return _svg(title, bottom + 24, body)


def nice_ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that span the values."""
    if high <= low:
        low, high = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= 0.85 * rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * place, 12) + 0.0 for place in range(first, last + 1)]


def running_mean(spots: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Centred mean over a twelfth of the series; short series stay as they are."""
    reach = len(spots) // 24
    if reach == 0:
        return list(spots)
    sums = [0.0]
    for _, value in spots:
        sums.append(sums[-1] + value)
    smooth = []
    for place, (step, _) in enumerate(spots):
        first, last = max(0, place - reach), min(len(spots), place + reach + 1)
        smooth.append((step, (sums[last] - sums[first]) / (last - first)))
    return smooth


def thin(spots: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most about MOST_POINTS points, evenly taken, the last one always."""
    stride = -(-len(spots) // MOST_POINTS)
    return [spot for place, spot in enumerate(spots) if place % stride == 0 or place == len(spots) - 1]


def spread(places: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """The places moved apart to at least `gap`, in the same order from top to bottom and within low and high."""
    order = sorted(range(len(places)), key=lambda index: (places[index], index))
    moved = list(places)
    at = low - gap
    for index in order:
        at = moved[index] = max(places[index], at + gap)
    at = high + gap
    for index in reversed(order):
        at = moved[index] = min(moved[index], at - gap)
    return moved
