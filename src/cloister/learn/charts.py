"""Small charts as inline SVG: no script, no font, no colour of their own (a page's style sheet gives these).

Each chart is drawn in about the width of a phone, so that its text keeps its size there; wider pages set several
side by side. Values under the pointer show by `:hover`, in every browser without a line of JavaScript.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 330.0, 205.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 10.0, 12.0, 26.0
LAYERS = 10  # colours that the style sheet has for layers
MOST_STOPS = 120  # places where a pointer finds values; more would only make the page heavy


@dataclass(frozen=True)
class Series:
    """A line. Attributes: name: shown. role: class of the style sheet. values: one a round, None is a gap."""

    name: str
    role: str
    values: Sequence[float | None]


@dataclass(frozen=True)
class Reference:
    """A level to compare with."""

    name: str
    role: str
    value: float


@dataclass(frozen=True)
class Scale:
    """Maps values to places. Attributes: low, high: of the values. start, stop: of the places."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        return self.start + (value - self.low) / (span if span > 0 else 1.0) * (self.stop - self.start)


def number(value: float | None) -> str:
    """Three digits after the point for what is near one, fewer for large values, powers of ten for extremes."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    if size and (size >= 1e6 or size < 5e-4):
        return f"{value:.2e}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.1f}" if size >= 100 else f"{value:.3f}"


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) inside [low, high], at most about `most` of them."""
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return [low]
    raw = span / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def lines(rounds: Sequence[int], series: Sequence[Series], references: Sequence[Reference] = ()) -> Markup:
    """Learning curves over `rounds`, with dashed levels. Returns an empty string where there is no finite value."""
    present = [value for line in series for value in line.values if value is not None and math.isfinite(value)]
    levels = [reference.value for reference in references if _finite(reference.value)]
    if not present:
        return Markup("")
    low, high = min(present + levels), max(present + levels)
    margin = 0.07 * (high - low) or 0.05 * abs(high) or 0.5
    down = Scale(low - margin, high + margin, HEIGHT - BOTTOM, TOP)
    across = Scale(min(rounds), max(rounds), LEFT + 6, WIDTH - RIGHT - 6)
    parts = [*_grid(down), *_rounds_axis(rounds, across)]
    for reference in references:
        if _finite(reference.value):
            y = down(reference.value)
            parts.append(f'<path class="level {reference.role}" d="M{LEFT:.1f} {y:.1f}H{WIDTH - RIGHT:.1f}"/>')
    for line in series:
        parts.extend(_line(rounds, line, across, down))
    parts.extend(_stops(rounds, series, across))
    return _svg(parts, HEIGHT, f"{', '.join(line.name for line in series)} by round")


def strip(values: Sequence[tuple[str, float]], levels: Sequence[Reference], *, label: str) -> Markup:
    """Each site's own model as a dot on one axis, and levels (federated, pooled) as marks across it."""
    height, axis = 92.0, 62.0
    every = [value for _, value in values if _finite(value)] + [ref.value for ref in levels if _finite(ref.value)]
    if not every:
        return Markup("")
    margin = 0.08 * (max(every) - min(every)) or 0.05 * abs(every[0]) or 0.5
    across = Scale(min(every) - margin, max(every) + margin, 14, WIDTH - 14)
    parts = [f'<path class="grid" d="M14 {axis:.1f}H{WIDTH - 14:.1f}"/>']
    for tick in ticks(across.low, across.high):
        x = across(tick)
        parts.append(f'<path class="grid" d="M{x:.1f} {axis:.1f}v4"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{axis + 17:.1f}" text-anchor="middle">{_tick(tick)}</text>')
    for order, (site, value) in enumerate(sorted(values, key=lambda pair: pair[1])):
        if _finite(value):
            y = axis - 9 - 9 * (order % 3)  # neighbours in value do not hide each other
            title = f"<title>{escape(site)}: {number(value)}</title>"
            parts.append(f'<circle class="dot local" cx="{across(value):.1f}" cy="{y:.1f}" r="4.5">{title}</circle>')
    for reference in levels:
        if _finite(reference.value):
            x = across(reference.value)
            title = f"<title>{escape(reference.name)}: {number(reference.value)}</title>"
            parts.append(f'<path class="mark {reference.role}" d="M{x:.1f} 14V{axis:.1f}">{title}</path>')
    return _svg(parts, height, label)


def bars(rounds: Sequence[int], stacks: Sequence[tuple[str, Sequence[float]]], unit: str = "") -> Markup:
    """Stacked bars, one a round. Args: stacks: name and value for each round; drawn in this order from the floor."""
    totals = [sum(values[at] for _, values in stacks) for at in range(len(rounds))]
    if not totals or max(totals) <= 0:
        return Markup("")
    height = 170.0
    down = Scale(0, max(totals) * 1.08, height - BOTTOM, TOP)
    step = (WIDTH - RIGHT - LEFT) / len(rounds)
    width = max(min(0.72 * step, 26.0), 1.0)
    across = Scale(0, max(len(rounds) - 1, 1), LEFT + step / 2, WIDTH - RIGHT - step / 2)
    parts = [
        *_grid(down, most=4),
        *_rounds_axis(rounds, Scale(rounds[0], rounds[-1], across.start, across.stop), height),
    ]
    for at, round_ in enumerate(rounds):
        floor, told = 0.0, []
        x = across(at) - width / 2
        column = []
        for layer, (name, values) in enumerate(stacks):
            top, bottom = down(floor + values[at]), down(floor)
            floor += values[at]
            told.append(f"{name} {number(values[at])}{unit}")
            if bottom - top > 0:
                shape = f'x="{x:.1f}" y="{top:.2f}" width="{width:.1f}" height="{bottom - top:.2f}"'
                column.append(f'<rect class="layer l{layer}" {shape}/>')
        title = f"<title>Round {round_}: {escape(', '.join(told))}</title>"
        parts.append(f"<g>{title}{''.join(column)}</g>")
    return _svg(parts, height, f"{', '.join(name for name, _ in stacks)} by round")


def heat(
    rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float | None]], *, label: str
) -> Markup:
    """A value for each pair, as a shade and a number. Args: values: by row, then by column; None is a gap."""
    present = [value for row in values for value in row if value is not None and math.isfinite(value)]
    if not present:
        return Markup("")
    shade = Scale(min(present), max(present), 0.08, 0.85)
    margin = min(96.0, 12.0 + 6.5 * max(map(len, rows)))
    wide, high = (WIDTH - margin - 4) / len(columns), 30.0
    parts = []
    for at, name in enumerate(columns):
        x = margin + wide * (at + 0.5)
        parts.append(f'<text class="tick" x="{x:.1f}" y="12" text-anchor="middle">{escape(name)}</text>')
    for down, (name, row) in enumerate(zip(rows, values, strict=True)):
        y = 20 + high * down
        parts.append(
            f'<text class="tick" x="{margin - 8:.1f}" y="{y + 19:.1f}" text-anchor="end">{escape(name)}</text>'
        )
        for at, value in enumerate(row):
            x = margin + wide * at
            told = f"{name}, {columns[at]}: {number(value)}"
            opacity = shade(value) if _finite(value) and value is not None else 0.0
            shape = f'x="{x:.1f}" y="{y:.1f}" width="{wide - 2:.1f}" height="{high - 2:.1f}" rx="3"'
            parts.append(
                f"<g><title>{escape(told)}</title>"
                f'<rect class="cell" {shape} fill-opacity="{opacity:.2f}"/>'
                f'<text class="value" x="{x + wide / 2 - 1:.1f}" y="{y + 19:.1f}" text-anchor="middle">'
                f"{number(value)}</text></g>"
            )
    return _svg(parts, 20 + high * len(rows), label)


def shares(rows: Sequence[tuple[str, Sequence[float]]], names: Sequence[str], *, label: str) -> Markup:
    """A bar across for each row, cut into layers. Args: rows: name and a value for each layer. names: of layers."""
    most = max((sum(values) for _, values in rows), default=0.0)
    if most <= 0:
        return Markup("")
    margin = min(110.0, 12.0 + 6.5 * max(len(name) for name, _ in rows))
    high = 20.0 if len(rows) <= 20 else 12.0
    across = Scale(0, most, margin, WIDTH - 46)
    parts = []
    for down, (name, values) in enumerate(rows):
        y, left = 4 + high * down, 0.0
        parts.append(
            f'<text class="tick" x="{margin - 8:.1f}" y="{y + high - 6:.1f}" text-anchor="end">{escape(name)}</text>'
        )
        told = ", ".join(f"{names[layer]} {number(value)}" for layer, value in enumerate(values) if value)
        column = []
        for layer, value in enumerate(values):
            start, stop = across(left), across(left + value)
            left += value
            if stop > start:
                shape = f'x="{start:.2f}" y="{y:.1f}" width="{stop - start:.2f}" height="{high - 3:.1f}"'
                column.append(f'<rect class="layer l{layer % LAYERS}" {shape}/>')
        parts.append(f"<g><title>{escape(name)}: {escape(told)}</title>{''.join(column)}</g>")
        place = f'x="{across(left) + 5:.1f}" y="{y + high - 6:.1f}"'
        parts.append(f'<text class="tick" {place}>{left:,.0f}</text>')
    return _svg(parts, 8 + high * len(rows), label)


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _tick(value: float) -> str:
    size = abs(value)
    if size and (size >= 1e6 or size < 1e-4):
        return f"{value:.0e}"
    return f"{value:,.10g}" if size >= 1 or not size else f"{value:.4g}"


def _grid(down: Scale, most: int = 5) -> Iterable[str]:
    for tick in ticks(down.low, down.high, most):
        y = down(tick)
        yield f'<path class="grid" d="M{LEFT:.1f} {y:.1f}H{WIDTH - RIGHT:.1f}"/>'
        yield f'<text class="tick" x="{LEFT - 7:.1f}" y="{y + 3.5:.1f}" text-anchor="end">{_tick(tick)}</text>'


def _rounds_axis(rounds: Sequence[int], across: Scale, height: float = HEIGHT) -> Iterable[str]:
    whole = [tick for tick in ticks(min(rounds), max(rounds), 6) if float(tick).is_integer()]
    for tick in whole or [rounds[0]]:
        place = f'x="{across(tick):.1f}" y="{height - BOTTOM + 17:.1f}" text-anchor="middle"'
        yield f'<text class="tick" {place}>{int(tick)}</text>'


def _line(rounds: Sequence[int], line: Series, across: Scale, down: Scale) -> Iterable[str]:
    points = [
        (across(at), down(value))
        for at, value in zip(rounds, line.values, strict=True)
        if value is not None and _finite(value)
    ]
    if not points:
        return
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    yield f'<path class="line {line.role}" d="M{path}"/>'
    x, y = points[-1]
    yield f'<circle class="end {line.role}" cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>'


def _stops(rounds: Sequence[int], series: Sequence[Series], across: Scale) -> Iterable[str]:
    """Invisible columns that show, under the pointer, a line and the values of that round."""
    stride = math.ceil(len(rounds) / MOST_STOPS)
    width = stride * (across.stop - across.start) / max(len(rounds) - 1, 1)
    for at in range(0, len(rounds), stride):
        values = [line.values[at] for line in series]
        if not any(_finite(value) for value in values):
            continue
        x = across(rounds[at])
        told = f"round {rounds[at]}: " + ", ".join(
            f"{line.name} {number(value)}" for line, value in zip(series, values, strict=True) if _finite(value)
        )
        anchor, place = ("start", x + 5) if x < (across.start + across.stop) / 2 else ("end", x - 5)
        band = f'x="{x - width / 2:.1f}" y="{TOP:.1f}" width="{width:.1f}" height="{HEIGHT - BOTTOM - TOP:.1f}"'
        yield (
            f'<g class="stop"><rect {band}/><path d="M{x:.1f} {TOP:.1f}V{HEIGHT - BOTTOM:.1f}"/>'
            f'<text x="{place:.1f}" y="{TOP + 9:.1f}" text-anchor="{anchor}">{escape(told)}</text></g>'
        )


def _svg(parts: Iterable[str], height: float, label: str) -> Markup:
    # every part is numbers and escaped text
    head = f'<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-label="{escape(label)}">'
    return Markup(head + "".join(parts) + "</svg>")
