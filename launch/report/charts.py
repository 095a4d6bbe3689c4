"""Charts as inline SVG.

Colours and type come from the page's style sheet, so that they follow light and dark mode.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup, escape

WIDTH = 1006
"""Pixels inside a card of the page."""
_MAX_POINTS = 240
_MAX_BARS = 32
_MAX_LINEAR = 12.0
"""Times an even share: an axis that goes further is logarithmic."""
_LOG_FLOOR = 0.02
_LETTER = 6.3
"""Mean width of a letter of the 11 px chart type."""


@dataclass(frozen=True)
class Series:
    """One line of a chart; `style` is a class of the style sheet that sets its colour."""

    name: str
    style: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass
class _Plot:
    """A plot area with linear scales; `parts` collects the elements of its SVG."""

    width: int
    height: int
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    bottom: int = 38
    left: int = 40
    right: int = 10
    top: int = 14
    parts: list[str] = field(default_factory=list)

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / ((high - low) or 1) * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.height - self.bottom - (value - low) / ((high - low) or 1) * (self.height - self.top - self.bottom)

    def text(self, x: float, y: float, text: str, anchor: str = "middle", style: str = "") -> None:
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{style}">{escape(text)}</text>')

    def y_axis(self, show: Callable[[float], str]) -> None:
        self.y_marks([(tick, show(tick)) for tick in ticks(*self.y_range)])

    def y_marks(self, marks: Sequence[tuple[float, str]]) -> None:
        for value, text in marks:
            y = self.y(value)
            self.parts.append(f'<path class="grid" d="M{self.left} {y:.1f}H{self.width - self.right}"/>')
            self.text(self.left - 7, y + 3.5, text, "end")

    def x_axis(self, label: str, marks: Sequence[tuple[float, str]]) -> None:
        base = self.height - self.bottom
        self.parts.append(f'<path class="axis" d="M{self.left} {base}H{self.width - self.right}"/>')
        for value, text in marks:
            self.text(self.x(value), base + 15, text)
        self.text((self.left + self.width - self.right) / 2, self.height - 4, label, style="name")

    def line(self, series: Series, style: str = "line") -> None:
        points = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in zip(series.x, series.y, strict=True))
        self.parts.append(f'<polyline class="{style} {series.style}" points="{points}"/>')

    def svg(self, label: str, style: str = "") -> Markup:
        return _svg(self.width, self.height, label, "".join(self.parts), style)


def _svg(width: int, height: int, label: str, body: str, style: str = "") -> Markup:
    # Names in `body` that come from outside were escaped where they were put in.
    return Markup(  # noqa: S704
        f'<svg class="{style}" viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img" '
        f'aria-label="{escape(label)}">{body}</svg>'
    )


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from `low` to `high`, roughly `about` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number as an axis shows it: 0.5, 20, 12k, 3M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.4g}{unit}"
    return f"{value:.4g}"


def bars(names: Sequence[str], pool: np.ndarray, selected: np.ndarray, width: int) -> Markup:
    """Two bars a class, pool beside selected, as multiples of an even share; curves where there are too many classes."""
    if len(names) > _MAX_BARS:
        return curves(pool, selected, width, "classes, largest first")
    before, after = _multiples(pool), _multiples(selected)
    room = (width - 50) / len(names)
    is_tight = max(map(len, names)) * _LETTER > room
    plot = _Plot(width, 250 if is_tight else 230, (0, len(names)), _from_zero(before, after), 78 if is_tight else 38)
    plot.y_axis(_times)
    base, bar = plot.y(0), room * 0.36
    for index, name in enumerate(names):
        x = plot.x(index + 0.5)
        for left, value, count, style in (
            (x - bar, before[index], pool[index], "pool"),
            (x, after[index], selected[index], "sel"),
        ):
            top = plot.y(value)
            plot.parts.append(
                f'<rect class="fill {style}" x="{left:.1f}" y="{top:.1f}" width="{bar:.1f}" height="{base - top:.1f}">'
                f"<title>{escape(name)}: {int(count):,} {'selected' if style == 'sel' else 'in the pool'}, "
                f"{value:.2f} times an even share</title></rect>"
            )
        if is_tight:
            shown = name if len(name) <= 11 else name[:10] + "…"
            spot = f"{x + 4:.1f} {base + 9:.1f}"
            plot.parts.append(f'<text transform="translate({spot}) rotate(-55)" text-anchor="end">{escape(shown)}</text>')
        else:
            plot.text(x, base + 15, name)
    plot.x_axis("class", [])
    _even(plot, 1)
    return plot.svg("Samples by class, before and after selection")


def curves(pool: np.ndarray, selected: np.ndarray, width: int, label: str) -> Markup:
    """Sizes of groups before and after selection, each sorted, as multiples of an even share; logarithmic for a long tail."""
    before, after = (np.sort(_multiples(counts))[::-1] for counts in (pool, selected))
    is_log = max(before[0], after[0]) > _MAX_LINEAR
    y_range = _from_zero(before, after)
    if is_log:
        before, after = (np.log10(np.maximum(values, _LOG_FLOOR)) for values in (before, after))
        y_range = math.log10(_LOG_FLOOR), float(max(before[0], after[0])) * 1.05
    plot = _Plot(width, 230, (0, max(len(pool) - 1, 1)), y_range)
    if is_log:
        plot.y_marks([(power, _times(10.0**power)) for power in range(-1, math.floor(y_range[1]) + 1)])
        label += "; log scale"
    else:
        plot.y_axis(_times)
    places = np.unique(np.linspace(0, len(pool) - 1, min(len(pool), _MAX_POINTS)).round().astype(int))
    base = plot.y(y_range[0])
    for values, style in ((before, "pool"), (after, "sel")):
        series = Series("", style, places.tolist(), values[places].tolist())
        inner = " ".join(f"L{plot.x(x):.1f} {plot.y(y):.1f}" for x, y in zip(series.x, series.y, strict=True))
        end = plot.x(float(places[-1]))
        plot.parts.append(f'<path class="area {style}" d="M{plot.left} {base:.1f} {inner} L{end:.1f} {base:.1f}Z"/>')
        plot.line(series)
    last = len(pool)
    middle = [(float(t), short(t)) for t in ticks(0, last) if 0 < t < 0.92 * last]
    plot.x_axis(label, [(0, "1"), *middle, (last - 1, short(last))] if last > 1 else [(0, "1")])
    _even(plot, 0 if is_log else 1)
    return plot.svg(f"Sorted sizes: {label}, before and after selection")


def _multiples(counts: np.ndarray) -> np.ndarray:
    shares: np.ndarray = counts / max(counts.sum(), 1) * len(counts)
    return shares


def _from_zero(*values: np.ndarray) -> tuple[float, float]:
    return 0.0, max(1.2, *(float(v.max(initial=0)) for v in values)) * 1.05


def _times(value: float) -> str:
    return f"{short(value)}\u00d7"


def _even(plot: _Plot, value: float) -> None:
    y = plot.y(value)
    plot.parts.append(f'<path class="even" d="M{plot.left} {y:.1f}H{plot.width - plot.right}"/>')
    plot.text(plot.width - plot.right, y - 5, "even", "end", "name")


def lines(
    series: Sequence[Series], width: int, x_label: str, height: int = 250, show: Callable[[float], str] = short
) -> Markup:
    """Curves over a numeric axis."""
    all_x = [x for curve in series for x in curve.x]
    all_y = [y for curve in series for y in curve.y]
    low, high = min(all_y), max(all_y)
    margin = (high - low or abs(high) or 1) * 0.06
    plot = _Plot(width, height, (min(all_x), max(all_x)), (low - margin, high + margin), left=46)
    plot.y_axis(show)
    for curve in series:
        plot.line(curve)
    plot.x_axis(x_label, [(t, short(t)) for t in ticks(*plot.x_range)])
    return plot.svg(f"{', '.join(curve.name for curve in series)} by {x_label}")


def dots(series: Sequence[Series], names: Sequence[str], width: int, show: Callable[[float], str]) -> Markup:
    """Dots over named places, each with its value beside it."""
    values = [y for curve in series for y in curve.y]
    low, high = min(values), max(values)
    margin = (high - low or abs(high) or 1) * 0.3
    plot = _Plot(width, 250, (-0.4, len(names) - 0.6), (max(0.0, low - margin), high + margin), 30)
    plot.left = 46
    plot.y_axis(show)
    for curve in series:
        plot.line(curve)
        for index, (x, y) in enumerate(zip(curve.x, curve.y, strict=True)):
            others = [v for other in series if other is not curve for u, v in zip(other.x, other.y, strict=True) if u == x]
            neighbours = [*curve.y[max(index - 1, 0) : index], *curve.y[index + 1 : index + 2]]
            # Out of the way of other curves, else of its own, which comes from above on both sides of a minimum.
            is_below = any(v > y for v in others) if others else min(neighbours, default=y) > y
            plot.parts.append(f'<circle class="fill dot {curve.style}" cx="{plot.x(x):.1f}" cy="{plot.y(y):.1f}" r="4.5"/>')
            plot.text(plot.x(x), plot.y(y) + (19 if is_below else -11), show(y), style="value")
    plot.x_axis("", [(float(i), name) for i, name in enumerate(names)])
    return plot.svg(f"{', '.join(curve.name for curve in series)} by round")


@dataclass(frozen=True)
class Flow:
    """A stream of samples in the flow chart."""

    name: str
    count: int
    style: str


def flow(total: int, streams: Sequence[Flow], outcome: Sequence[Flow], width: int) -> Markup:
    """Ribbons from `total` files to `streams`, and from the first of these, the pool, to its `outcome`."""
    scale = 210 / max(total, 1)
    middles = _stack(streams, scale, 26)
    height = int(max(middles[-1][0] + max(middles[-1][1], 14) + 12, 240))
    columns = (0, int(width * 0.38), int(width * 0.75))
    parts: list[str] = []
    top = (height - total * scale) / 2

    def node(column: int, y: float, tall: float, name: str, count: int, style: str) -> None:
        x = columns[column]
        parts.append(f'<rect class="fill {style}" x="{x}" y="{y:.1f}" width="10" height="{tall:.1f}" rx="1.5"/>')
        parts.append(
            f'<text class="flow" x="{x + 20}" y="{y + tall / 2 + 4.5:.1f}"><tspan class="big">{count:,}</tspan>'
            f'<tspan dx="6">{escape(name)}</tspan></text>'
        )

    def ribbon(column: int, y: float, to: float, tall: float, style: str) -> None:
        left, right = columns[column] + 10, columns[column + 1]
        middle = (left + right) / 2
        parts.append(
            f'<path class="ribbon {style}" d="M{left} {y:.1f}C{middle} {y:.1f} {middle} {to:.1f} {right} {to:.1f}'
            f'v{tall:.1f}C{middle} {to + tall:.1f} {middle} {y + tall:.1f} {left} {y + tall:.1f}Z"/>'
        )

    start = top
    for stream, (y, tall) in zip(streams, middles, strict=True):
        ribbon(0, start, y, tall, stream.style)
        start += stream.count * scale
    if outcome:
        start = middles[0][0]
        for stream, (y, tall) in zip(outcome, _stack(outcome, scale, 26), strict=True):
            ribbon(1, start, y, tall, stream.style)
            start += stream.count * scale
            node(2, y, tall, stream.name, stream.count, stream.style)
    node(0, top, total * scale, "files found", total, "ink")
    for stream, (y, tall) in zip(streams, middles, strict=True):
        node(1, y, tall, stream.name, stream.count, stream.style)
    return _svg(width, height, "From the files found to what was selected", "".join(parts), "wide")


def _stack(streams: Sequence[Flow], scale: float, pitch: float) -> list[tuple[float, float]]:
    """Top and height of nodes under each other, far enough apart for a line of text each."""
    spots, y = [], 8.0
    for stream in streams:
        tall = max(stream.count * scale, 1.5)
        spots.append((y, tall))
        y += max(tall + 14, pitch)
    return spots


def scatter(points: np.ndarray, colours: Sequence[str], is_selected: np.ndarray, size: int) -> Markup:
    """`points` (N, 2) in [0, 1]; selected ones are larger, ringed, and on top. Circles keep the order of the rows."""
    spots = points * (size - 28) + 14
    order = np.argsort(is_selected, kind="stable")
    parts = []
    for row in order:
        radius, style = (4.6, ' class="on"') if is_selected[row] else (3.1, "")
        x, y = spots[row]
        parts.append(f'<circle{style} cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colours[row]}" data-i="{row}"/>')
    parts.append('<circle class="cursor" r="9"/>')
    return _svg(size, size, "Map of the embeddings; selected samples are ringed", "".join(parts), "map")


def palette(num: int) -> list[str]:
    """Distinct colours, readable on light and on dark."""
    first = ["#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0"]
    if num <= len(first):
        return first[:num]
    return [f"hsl({index * 137.508 % 360:.0f} 62% {(50, 62, 42)[index % 3]}%)" for index in range(num)]
