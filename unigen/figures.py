"""Geometry of line charts: series of points become panels of ticks, paths and markers that a template draws as SVG.

Nothing here writes markup. A panel holds numbers, labels and path data only, so every label passes through the
template's escaping, and one drawing serves light pages, dark pages and paper.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Panel", "Series", "averaged", "log_ticks", "number", "panel", "thinned", "ticks", "worth_showing"]

Point = tuple[float, float]
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 52.0, 10.0, 10.0, 40.0
LARGEST = 1e100  # a diverged value beyond this is not drawn (nor are infinities and NaN): differences stay finite


@dataclass(frozen=True)
class Series:
    """One line: finite points in the order of x, a colour number, and whether it is one seed of many (`faint`)."""

    label: str
    points: tuple[Point, ...]
    color: int = 0
    faint: bool = False
    hollow: bool = False
    marked: bool = False


@dataclass(frozen=True)
class Tick:
    position: float
    label: str


@dataclass(frozen=True)
class Marker:
    x: float
    y: float
    label: str


@dataclass(frozen=True)
class Curve:
    label: str
    color: int
    path: str
    markers: tuple[Marker, ...]
    faint: bool
    hollow: bool


@dataclass(frozen=True)
class Panel:
    """A chart ready to draw: an inner frame at (`left`, `top`) whose own coordinates hold ticks and curves."""

    title: str
    x_label: str
    y_label: str
    width: float
    height: float
    left: float
    top: float
    inner_width: float
    inner_height: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    curves: tuple[Curve, ...]
    hidden: int


def number(value: float, decimals: int) -> str:
    """Write a number with a true minus sign, with commas from 10,000 on and in powers of ten from 10,000,000 on."""
    if abs(value) >= 1e7:
        return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")
    digits = f"{value:,.{decimals}f}" if abs(value) >= 10_000 else f"{value:.{decimals}f}"
    if float(digits.replace(",", "")) == 0:
        digits = digits.lstrip("-")
    return digits.replace("-", "\N{MINUS SIGN}")


def ticks(low: float, high: float, count: int = 5) -> list[tuple[float, str]]:
    """Choose about `count` round values in [low, high], a step of 1, 2 or 5 times a power of ten, with their labels."""
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"ticks need two finite ends with low < high, got {low} and {high}.")
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next((factor for factor in (1, 2, 5) if factor * power >= rough * (1 - 1e-9)), 10)
    exponent = math.floor(math.log10(step * (1 + 1e-9)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    values = [index * step for index in range(first, last + 1)]
    if exponent < -4:
        return [(value, f"{value:.3g}".replace("-", "\N{MINUS SIGN}")) for value in values]
    return [(value, number(value, max(0, -exponent))) for value in values]


def log_ticks(low: float, high: float, most: int = 7) -> list[tuple[float, str]]:
    """Choose up to `most` values in [low, high], 1, 2 or 5 times powers of ten, or round ones in a short range, with labels."""
    if not (0 < low < high < math.inf):
        raise ValueError(f"ticks of a logarithmic axis need finite ends with 0 < low < high, got {low} and {high}.")
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [f * 10.0**e for e in range(first, last + 1) for f in factors if low <= f * 10.0**e <= high]
        if 2 <= len(found) <= most:
            break
    else:
        if len(found) < 2:
            return [(value, label) for value, label in ticks(low, high, 4) if value > 0]
        found = found[:: -(-len(found) // most)]
    return [(value, f"{value:g}" if value < 1e4 else number(value, 0)) for value in found]


def averaged(runs: Sequence[Sequence[tuple[float, float, float]]]) -> list[tuple[float, float, float]]:
    """Average (step, x, y) over runs, at the steps that every run has.

    Steps that only some seeds reached are left out: a mean whose members change along the axis shows jumps that no
    seed has.
    """
    tables = [{step: (x, y) for step, x, y in run} for run in runs]
    if not tables:
        return []
    shared = sorted(set.intersection(*(set(table) for table in tables)))
    return [
        (step, math.fsum(t[step][0] for t in tables) / len(tables), math.fsum(t[step][1] for t in tables) / len(tables))
        for step in shared
    ]


def thinned(points: Sequence[Point], most: int = 160) -> list[Point]:
    """Reduce a long line to at most `most` points, each the mean of its neighbours."""
    size = math.ceil(len(points) / most)
    if size <= 1:
        return list(points)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(math.fsum(x for x, _ in g) / len(g), math.fsum(y for _, y in g) / len(g)) for g in groups]


def worth_showing(series: Sequence[Series]) -> tuple[float, float] | None:
    """Choose the y range of curves that climb: their second halves, and enough below to see the approach.

    Early values are often hundreds of nats below the end, and a range that holds them all shows nothing else. A curve
    that diverged, to more than eight times as far below the best as the median late value, does not stretch it.
    """
    values = [y for line in series for _, y in line.points]
    late = sorted(y for line in series for _, y in line.points[len(line.points) // 2 :])
    if not late:
        return None
    top = max(values)
    spread = max(top - late[(len(late) - 1) // 2], 1e-6 * abs(top))
    worst = max(late[0], top - 8 * spread)
    return max(min(values), worst - max(0.8 * (top - worst), spread)), top


def panel(
    series: Sequence[Series],
    *,
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    width: float = 500.0,
    height: float = 330.0,
    y_range: tuple[float, float] | None = None,
    tick_count: int = 5,
    logarithmic: bool = False,
) -> Panel | None:
    """Lay out one chart, its x axis `logarithmic` or not; None when there is no finite point to draw."""
    least = 1 / LARGEST if logarithmic else -LARGEST
    lines = [
        Series(s.label, kept, s.color, s.faint, s.hollow, s.marked)
        for s in series
        if (kept := tuple((x, y) for x, y in s.points if least < x < LARGEST and abs(y) < LARGEST))
    ]
    if not lines:
        return None
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    place = math.log10 if logarithmic else float
    if logarithmic:
        margin = max(0.04 * (place(max(xs)) - place(min(xs))), 0.1)  # decades
        x_low, x_high = place(min(xs)) - margin, place(max(xs)) + margin
        x_ticks = log_ticks(10**x_low, 10**x_high)
    else:
        x_low, x_high = _widened(min(0.0, min(xs)), max(xs), 0.0, 0.02)
        x_ticks = ticks(x_low, x_high, tick_count)
    y_low, y_high = _widened(*(y_range or (min(ys), max(ys))), 0.05, 0.05)
    top = MARGIN_TOP
    inner_width = width - MARGIN_LEFT - MARGIN_RIGHT
    inner_height = height - top - (MARGIN_BOTTOM if x_label else MARGIN_BOTTOM / 2)

    def across(x: float) -> float:
        return round((place(x) - x_low) / (x_high - x_low) * inner_width, 1)

    def down(y: float) -> float:
        # values far outside the frame are drawn just outside it: the frame clips, and coordinates stay small
        return round(min(max((y_high - y) / (y_high - y_low), -9.0), 9.0) * inner_height, 1)

    curves = tuple(
        Curve(
            line.label,
            line.color,
            "M" + "L".join(f"{across(x)} {down(y)}" for x, y in line.points),
            tuple(
                Marker(across(x), down(y), f"{line.label}: {number(y, 2)} at {number(x, 0 if x >= 100 else 1)}")
                for x, y in line.points
            )
            if line.marked
            else (),
            line.faint,
            line.hollow,
        )
        for line in lines
    )
    return Panel(
        title=title,
        x_label=x_label,
        y_label=y_label,
        width=width,
        height=height,
        left=MARGIN_LEFT,
        top=top,
        inner_width=inner_width,
        inner_height=inner_height,
        x_ticks=tuple(Tick(across(value), label) for value, label in x_ticks),
        y_ticks=tuple(Tick(down(value), label) for value, label in ticks(y_low, y_high, tick_count)),
        curves=curves,
        hidden=sum(1 for y in ys if y < y_low or y > y_high),
    )


def _widened(low: float, high: float, below: float, above: float) -> tuple[float, float]:
    """Pad a range by shares of itself; a single value gets room on both sides."""
    extent = high - low
    if extent <= 1e-9 * max(abs(low), abs(high)):
        extent = max(abs(high) * 0.1, 1e-6)
        return low - extent, high + extent
    return low - below * extent, high + above * extent
