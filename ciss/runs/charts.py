"""Line charts as SVG, in plain text without a library: for `ciss watch` and for notebooks.

Lines differ in colour, dashes and marks, so that a chart can be read in grey and with colour blindness.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from ciss.runs.live import AGREEMENT, HOLDOUT, Curve

AFFECTS_RESULTS = False  # a change here trains nothing again, see store/code
# Okabe and Ito's colours without yellow, then dashes and marks
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777")
DASHES = ("", "7 4", "2 3", "9 3 2 3", "12 5", "4 2", "1 4")
MARKS = "osd^x+v"
WIDTH, HEIGHT = 480, 250  # of the whole chart, in its own units
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 30, 36  # margins of the plot
COLUMN, ROW = 212, 19  # of an entry of the legend
MOST_MARKS = 12  # on one line
RATIO = 30  # of the largest and smallest value, from which an axis of losses is logarithmic

Points = Sequence[tuple[float, float]]


@dataclass
class Axis:
    """Maps values to coordinates."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.logarithmic:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            values = [factor * 10.0**power for power in powers for factor in (1, 3)]
            return [value for value in values if self.low <= value <= self.high]
        rough = (self.high - self.low) / 5
        unit = 10 ** math.floor(math.log10(rough))
        unit *= next(factor for factor in (1, 2, 5, 10) if factor * unit >= rough)
        first = math.ceil(self.low / unit - 1e-9)
        return [unit * number for number in range(first, math.floor(self.high / unit + 1e-9) + 1)]


def losses(curve: Curve) -> str:
    """Every loss term over the epochs."""
    names = list(dict.fromkeys(key for row in curve.trained for key in row if key.startswith("loss/")))
    lines = {name.removeprefix("loss/"): _points(curve.trained, name) for name in names}
    values = [value for points in lines.values() for _, value in points]
    logarithmic = bool(values) and min(values) > 0 and max(values) / min(values) > RATIO
    title = "losses, mean of the epoch" + ", logarithmic axis" * logarithmic
    return chart(title, lines, curve.about["epochs"], logarithmic=logarithmic)


def scores(curve: Curve) -> str:
    """The scores of the hold-out set, or the agreement with the given labels, in percent over the epochs."""
    rows = [{"epoch": row["epoch"], **row["score"]} for row in curve.epochs if row.get("score")]
    if curve.about["score"] == AGREEMENT:
        title = f"{AGREEMENT}, in %"
        names = {"agreement": f"on {curve.about['scored_images']} fixed training images"}
    else:
        title = f"{HOLDOUT}, in %"
        names = {"all": "all", "old": "old", "new": "new"}
    lines = {label: [(x, 100 * y) for x, y in _points(rows, name)] for name, label in names.items()}
    return chart(title, {name: points for name, points in lines.items() if points}, curve.about["epochs"])


def _points(rows: list[dict], name: str) -> list[tuple[float, float]]:
    return [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]


def chart(title: str, lines: dict[str, Points], last: float, *, logarithmic: bool = False) -> str:
    """A line chart as SVG.

    Args:
        lines: points (epoch, value) by name.
        last: epoch at the right end of the axis.
        logarithmic: whether the axis of values is; values are then positive.
    """
    rows = -(-max(1, len(lines)) // 2)
    height = HEIGHT + ROW * rows
    label = f"{title}: {', '.join(lines) or 'no points yet'}"
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}" '
        'xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif" font-size="14" fill="currentColor">',
        f'<text x="{LEFT}" y="17" font-weight="600">{escape(title)}</text>',
    ]
    values = [value for points in lines.values() for _, value in points]
    if not values:
        return "".join([*parts, f'<text x="{LEFT}" y="{HEIGHT / 2}">no points yet</text></svg>'])
    if logarithmic:
        low, high = min(values) / 1.2, max(values) * 1.2
    else:
        low, high = min(0.0, min(values)), max(values)
        high += 0.05 * (high - low) or 1.0
    across = Axis(0, max(last, 1), LEFT, WIDTH - RIGHT)
    up = Axis(low, high, HEIGHT - BOTTOM, TOP, logarithmic)
    parts += _grid(across, up)
    for number, (name, points) in enumerate(lines.items()):
        parts += _line(number, [(across(x), up(y)) for x, y in points])
        x, y = LEFT + COLUMN * (number % 2), HEIGHT + ROW * (number // 2) + 6
        parts += _line(number, [(x, y), (x + 34, y)], marked=[(x + 17, y)])
        parts.append(f'<text x="{x + 42}" y="{y + 4}">{escape(name)}</text>')
    return "".join([*parts, "</svg>"])


def _grid(across: Axis, up: Axis) -> list[str]:
    """Lines and numbers of both axes."""
    parts = []
    for value in up.ticks():
        y = up(value)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="currentColor" opacity=".18"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for value in across.ticks():
        if value == round(value):
            parts.append(f'<text x="{across(value):.1f}" y="{HEIGHT - 19}" text-anchor="middle">{value:.0f}</text>')
    parts.append(f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" stroke="currentColor" fill="none"/>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}" text-anchor="middle">epoch</text>')
    return parts


def _line(number: int, points: Points, marked: Points | None = None) -> list[str]:
    """A line with marks. `number`: of the line in its chart; `marked`: where marks are; None: on some of its points."""
    colour = COLOURS[number % len(COLOURS)]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    parts = []
    if len(points) > 1:
        dashes = f' stroke-dasharray="{DASHES[number % len(DASHES)]}"' if number % len(DASHES) else ""
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2.2"{dashes}/>')
    marked = marked or points[:: 1 + len(points) // MOST_MARKS]
    parts += [_mark(MARKS[number % len(MARKS)], x, y, colour) for x, y in marked]
    return parts


def _mark(kind: str, x: float, y: float, colour: str) -> str:
    """A mark of 7 units: circle, square, diamond, triangles, x or +."""
    if kind == "o":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>'
    shapes = {
        "s": "M-3.3 -3.3h6.6v6.6h-6.6z",
        "d": "M0 -4.5L4.5 0L0 4.5L-4.5 0z",
        "^": "M0 -4.3L4.2 3.4H-4.2z",
        "v": "M0 4.3L4.2 -3.4H-4.2z",
        "x": "M-3.5 -3.5L3.5 3.5M-3.5 3.5L3.5 -3.5",
        "+": "M-4.5 0H4.5M0 -4.5V4.5",
    }
    filled = f'stroke="{colour}" stroke-width="2"' if kind in "x+" else f'fill="{colour}"'
    return f'<path transform="translate({x:.1f} {y:.1f})" d="{shapes[kind]}" {filled}/>'
