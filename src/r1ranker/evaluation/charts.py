"""Small SVG charts for the report. In: numbers and names. Out: inline SVG, colours by CSS class.

Every mark has a `<title>`, which browsers show on hover. Classes used: `axis`, `grid`, `tick`, `name`, and the
class of a series, which sets `color`. Charts scale with the page, since they only state a viewBox.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 400, 230
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 10, 38
LETTER = 6.0
"""Width of a letter of a name."""
BESIDE = 16
"""Letters of a name beside a chart."""
WIDEST = 168
"""Of a name; a longer one is cut, and told whole on hover."""
MARKED = 60
"""Lines of at most this many points mark each of them."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values `low..high` to pixels `start..end`, in decades where `log`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return round(self.start + (at - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """Four or so round values within the scale."""
        return log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high)


@dataclass(frozen=True, slots=True)
class Dot:
    """A named point of a scatter chart; `kind` is its CSS class. x: 0 is free, None unknown."""

    name: str
    x: float | None
    y: float
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Interval:
    """A named value with its interval; hollow marks are a second measure."""

    name: str
    value: float
    low: float
    high: float
    kind: str = ""
    hollow: bool = False
    note: str = ""


def ticks(low: float, high: float) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten within low..high, four or so."""
    power = 10 ** math.floor(math.log10((high - low) / 4))
    step = min((m * power for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs((high - low) / s - 4))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{k * step:.10g}") for k in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within low..high; also 2 and 5 times them where those are fewer than three."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    within = [10.0**p for p in powers if low <= 10.0**p <= high]
    return within if len(within) > 2 else [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]


def number(value: float) -> str:
    """Short, and never 1e+03: 12.5k, 340, 0.62, 3e-05."""
    rounded = float(f"{value:.4g}")
    for unit, size in (("M", 1e6), ("k", 1e4)):
        if abs(rounded) >= size:
            return f"{rounded / (1e6 if unit == 'M' else 1e3):.10g}{unit}"
    return f"{rounded:.10g}" if abs(value) >= 999.5 else f"{value:.3g}"


def line_chart(series: Mapping[str, Points], kinds: Mapping[str, str], x_label: str, *, shares: bool = False) -> Markup:
    """Lines by name; `kinds` gives each its CSS class. Points that are not finite are left out. shares: read in %."""
    known = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in series.items()}
    everything = [point for points in known.values() for point in points]
    if not everything:
        return Markup("")
    x = Scale(*_span([p[0] for p in everything], pad=0), LEFT, WIDTH - RIGHT)
    y = Scale(*_span([p[1] for p in everything], pad=0.06), HEIGHT - BOTTOM, TOP)
    marks = [_line(name, points, kinds.get(name, ""), x, y) for name, points in known.items() if points]
    return _svg([*_frame(x, y, x_label, shares=shares), *marks], HEIGHT, f"{x_label}: {', '.join(known)}")


def curve_chart(lines: Mapping[str, Points], dots: Sequence[Dot], x_label: str, y_label: str) -> Markup:
    """Lines with their names at their ends and small dots without, over a logarithmic x axis; the class of a line is
    its name. Points at x 0 have no place on it and are left out."""
    shown = {name: [p for p in points if p[0] > 0] for name, points in lines.items()}
    everything = [*(p for points in shown.values() for p in points), *((dot.x, dot.y) for dot in dots if dot.x)]
    right = WIDTH - max(RIGHT, *(_width(name) + 14 for name in shown))
    x = Scale(min(p[0] for p in everything), max(p[0] for p in everything), LEFT, right, log=True)
    y = Scale(*_span([p[1] for p in everything], pad=0.06), HEIGHT - BOTTOM, TOP)
    marks = [
        Markup('<g class="{}"><polyline points="{}"><title>{}</title></polyline></g>').format(
            name, " ".join(f"{x(a)},{y(b)}" for a, b in points), name
        )
        for name, points in shown.items()
    ]
    marks += [
        Markup('<circle class="dot" cx="{}" cy="{}" r="2.2"><title>{}, {}: {}</title></circle>').format(
            x(dot.x), y(dot.y), dot.name, number(dot.x), number(dot.y)
        )
        for dot in dots
        if dot.x
    ]
    marks += _names([(name, right - 5, y(points[-1][1])) for name, points in shown.items()], right, WIDTH)
    return _svg([*_frame(x, y, x_label), *marks], HEIGHT, f"{y_label} against {x_label}")


def scatter_chart(dots: Sequence[Dot], x_label: str, y_label: str) -> Markup:
    """Dots over a logarithmic x axis. What has no place on it is a line across: dashed what is free, dotted and
    with a question mark what nobody knows."""
    levels = [dot for dot in dots if not dot.x]
    placed = [(dot, dot.x) for dot in dots if dot.x]
    names = [f"{_cut(d.name, BESIDE)} ?" if d.x is None else _cut(d.name, BESIDE) for d in levels]
    right = WIDTH - max([RIGHT, *(_width(name) + 14 for name in names)])
    xs = [x for _, x in placed] or [1.0]
    x = Scale(min(xs) / 1.6, max(xs) * 1.6, LEFT, right, log=True)
    y = Scale(*_span([dot.y for dot in dots], pad=0.1), HEIGHT - BOTTOM, TOP)
    marks = [
        Markup('<g class="{}"><title>{}: {}, {}</title><line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/></g>').format(
            d.kind,
            d.name,
            number(d.y),
            f"{x_label} unknown" if d.x is None else f"0 {x_label}",
            "unknown" if d.x is None else "level",
            LEFT,
            right,
            y(d.y),
            y(d.y),
        )
        for d in levels
    ]
    marks += [
        Markup('<g class="{}"><title>{}: {} {}, {} {}</title><circle class="dot" cx="{}" cy="{}" r="5"/></g>').format(
            d.kind, d.name, y_label, number(d.y), number(at), x_label, x(at), y(d.y)
        )
        for d, at in placed
    ]
    marks += _names([(d.name, x(at), y(d.y)) for d, at in placed], LEFT, right)
    marks += _names([(name, right - 5, y(d.y)) for name, d in zip(names, levels, strict=True)], right, WIDTH)
    return _svg([*_frame(x, y, x_label), *marks], HEIGHT, f"{y_label} against {x_label}")


def interval_chart(intervals: Sequence[Interval], label: str) -> Markup:
    """Dot and whisker, a row for each name; hollow marks stand just below the full ones. The axis begins and ends where
    the intervals do."""
    names = list(dict.fromkeys(interval.name for interval in intervals))
    row, left = 24, 16 + min(WIDEST, max(map(_width, names), default=0))
    height = len(names) * row + TOP + 24
    low, high = _span([value for one in intervals for value in (one.low, one.high, one.value)] or [0, 1], pad=0.05)
    x = Scale(max(0.0, low), min(1.0, high) if high <= 1.1 else high, left, WIDTH - RIGHT)
    marks = []
    for value in x.ticks():
        marks.append(
            Markup('<line class="grid" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(x(value), TOP, height - 22)
        )
        marks.append(_text(x(value), height - 7, f"{value:g}", "tick", "middle"))
    for place, name in enumerate(names):
        marks.append(_text(left - 10, TOP + place * row + 16, name, "name", "end"))
    for one in intervals:
        y = TOP + names.index(one.name) * row + (16.5 if one.hollow else 7.5)
        marks.append(
            Markup(
                '<g class="{}"><title>{}</title><line class="whisker" x1="{}" x2="{}" y1="{}" y2="{}"/>'
                '<circle class="{}" cx="{}" cy="{}" r="3.6"/></g>'
            ).format(
                one.kind,
                _told(one),
                x(one.low),
                x(one.high),
                y,
                y,
                "hollow" if one.hollow else "dot",
                x(one.value),
                y,
            )
        )
    return _svg(marks, height, label)


def _told(one: Interval) -> str:
    return f"{one.name}: {one.note} {one.value:.3f}, 95 % interval {one.low:.3f} to {one.high:.3f}"


def _line(name: str, points: Points, kind: str, x: Scale, y: Scale) -> Markup:
    path = " ".join(f"{x(a)},{y(b)}" for a, b in points)
    marked = points if len(points) <= MARKED else points[-1:]
    dots = [
        Markup('<circle class="dot" cx="{}" cy="{}" r="2.2"><title>{}, {}: {}</title></circle>').format(
            x(a), y(b), name, number(a), number(b)
        )
        for a, b in marked
    ]
    return Markup('<g class="{}"><polyline points="{}"><title>{}</title></polyline>{}</g>').format(
        kind, path, name, Markup("").join(dots)
    )


def _names(places: Sequence[tuple[str, float, float]], left: float, right: float) -> list[Markup]:
    """Names beside their dots, moved up or down between `left` and `right` until they cover no dot and no name."""
    taken = [(x - 5, x + 5, y) for _, x, y in places if x > left]
    marks = []
    for name, x, y in sorted(places, key=lambda place: place[2]):
        width = min(WIDEST, _width(name))
        sides = [first for first in (x + 9, x - 9 - width) if first >= left and first + width <= right] or [x + 9]
        spots = [
            (first, at)
            for move in range(0, HEIGHT, 3)
            for first in sides
            for at in dict.fromkeys((y + move, y - move))
            if TOP <= at <= HEIGHT - BOTTOM - 4
        ]
        free = (spot for spot in spots if not any(_covers(spot, width, one) for one in taken))
        first, at = next(free, (sides[0], y))
        taken.append((first, first + width, at))
        marks.append(
            _text(first + width if first < x else first, at + 4, name, "name", "end" if first < x else "start")
        )
    return marks


def _covers(spot: tuple[float, float], width: float, other: tuple[float, float, float]) -> bool:
    return spot[0] < other[1] and spot[0] + width > other[0] and abs(spot[1] - other[2]) < 12


def _cut(name: str, letters: int) -> str:
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


def _width(name: str) -> float:
    return LETTER * len(name)


def _span(values: Sequence[float], pad: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high == 0:
        return 0.0, 1.0
    if low == high:
        low, high = low - abs(low) / 2, high + abs(high) / 2
    return low - pad * (high - low), high + pad * (high - low)


def _frame(x: Scale, y: Scale, x_label: str, *, shares: bool = False) -> list[Markup]:
    marks = []
    for value in y.ticks():
        marks.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(LEFT, x.end, y(value), y(value))
        )
        marks.append(_text(LEFT - 7, y(value) + 4, f"{100 * value:.4g} %" if shares else number(value), "tick", "end"))
    marks.append(Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(LEFT, x.end, y.start, y.start))
    for value in x.ticks():
        marks.append(
            Markup('<line class="axis" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(x(value), y.start, y.start + 4)
        )
        marks.append(_text(x(value), y.start + 16, number(value), "tick", "middle"))
    marks.append(_text((x.start + x.end) / 2, y.start + 32, x_label, "tick", "middle"))
    return marks


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> Markup:
    shown = _cut(text, int(WIDEST / LETTER)) if kind == "name" else text
    told = Markup("<title>{}</title>").format(text) if shown != text else ""
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}{}</text>').format(
        kind, round(x, 1), round(y, 1), anchor, told, shown
    )


def _svg(marks: Sequence[Markup], height: float, label: str) -> Markup:
    head = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">'
    return Markup(head) + Markup("").join(marks) + Markup("</svg>")
