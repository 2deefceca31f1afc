"""Runs aggregated over seeds, as columns that compare like with like.

Over n >= 2 seeds a cell is the mean and the reach of its 95 % interval over them, a ± t s / sqrt(n) (`unigen.intervals`); of a
single seed it is the value with the standard error of its own evaluation, a (s). Exact log-likelihoods and lower bounds,
and figures of different kinds, are different columns; figures computed in different ways are not ranked.
"""

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os.path import commonprefix

from unigen.figures import number
from unigen.intervals import Mean, mean_interval
from unigen.measured import Key, Measured, headed, likelihood_of, measure, order
from unigen.results import STATUSES, Run, as_mapping, as_sequence, as_text

__all__ = [
    "DASH",
    "Cell",
    "Column",
    "Table",
    "aggregate",
    "decimals_of",
    "grouped",
    "paired",
    "refusals",
    "tabulate",
    "tally",
    "with_rows",
]

DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class Cell:
    text: str
    best: bool = False
    span: int = 1


@dataclass(frozen=True)
class Column:
    heading: str
    unit: str
    note: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """Rows are routines: `names` and `seeds` (how many are complete) beside the columns of numbers; `notes`: on what is missing."""

    names: tuple[str, ...]
    seeds: tuple[str, ...]
    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()


def aggregate(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the standard error of the mean, s / sqrt(n); None for the error of a single value."""
    if not values:
        raise ValueError("A mean needs at least one value, got none.")
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), error


def tabulate(runs: Sequence[Run], part: str = "results") -> Table:
    """Aggregate the complete runs of each routine over seeds into columns that compare like with like.

    part: "results" (log-likelihoods, leading figures of samples, times), or all of "distances" of samples, "shares" of samples
    and data, or "posterior". An exclamation mark is a warning, which `notes` has. Bold (`best`) goes to the best mean of a column
    and to every one that the 95 % interval of its paired difference does not tell from it; never across an exact value and a
    bound, and never where runs of one figure were computed in different ways.
    """
    routines, measured = grouped(runs, part)
    complete = {slug: sum(run.status == "complete" for run in group) for slug, group in routines.items()}
    keys = sorted({m.key: None for group in measured.values() for m in group}, key=order)
    columns = [_column(key, {s: [m for m in g if m.key == key] for s, g in measured.items()}, complete) for key in keys]
    if part == "results":
        _say_none(columns, routines, measured, sum(key[0] == "log_likelihood" for key in keys))
    seeds = tuple(tally(group) for group in routines.values())
    names = {slug: group[0].name for slug, group in routines.items()}
    rows: Sequence[int] = range(len(names))
    if part != "results":
        rows = [row for row in rows if any(column.cells[row].text != DASH for column in columns)]
    return with_rows(rows, Table(tuple(names.values()), seeds, tuple(columns), _warnings(names, measured)))


def refusals(runs: Sequence[Run]) -> list[tuple[str, str, str]]:
    """Return what the evaluator refused, of which routines, and why."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for run in runs:
        for refusal in map(as_mapping, as_sequence(run.result.get("refusals"))):
            name, why = as_text(refusal.get("name")), as_text(refusal.get("why"))
            if why:
                found.setdefault((name, why), {})[run.name] = None
    return [(name, ", ".join(routines), why) for (name, why), routines in found.items()]


def with_rows(rows: Sequence[int], whole: Table) -> Table:
    """Return some rows of a table."""
    columns = tuple(replace(column, cells=tuple(column.cells[row] for row in rows)) for column in whole.columns)
    names, seeds = (tuple(part[row] for row in rows) for part in (whole.names, whole.seeds))
    return Table(names, seeds, columns, whole.notes)


def _warnings(names: dict[str, str], measured: dict[str, list[Measured]]) -> tuple[str, ...]:
    """Return the first warning of each routine's figure, each warning of a routine once."""
    first: dict[tuple[str, str], str] = {}
    for slug, group in measured.items():
        for m in group:
            if m.warning:
                first.setdefault((slug, m.key[0]), m.warning)
    return tuple(dict.fromkeys(f"! {names[slug]}: {warning}" for (slug, _), warning in first.items()))


def grouped(runs: Sequence[Run], part: str) -> tuple[dict[str, list[Run]], dict[str, list[Measured]]]:
    """Return the runs of each routine, and what the complete ones measured."""
    routines: dict[str, list[Run]] = {}
    for run in runs:
        routines.setdefault(run.slug, []).append(run)
    complete = {slug: [run for run in group if run.status == "complete"] for slug, group in routines.items()}
    found = measure([run for group in complete.values() for run in group], part)
    return routines, {slug: [m for m in found if m.slug == slug] for slug in routines}


def _say_none(
    columns: list[Column], routines: dict[str, list[Run]], measured: dict[str, list[Measured]], likelihoods: int
) -> None:
    """Write across the columns of log-likelihoods why a routine has none, in the words of its runs."""
    without = {
        slug: next(as_text(likelihood_of(run).get("how")) or "implicit: none" for run in none)
        for slug, group in routines.items()
        if (none := [run for run in group if likelihood_of(run).get("kind") == "none"])
    }
    if without and not likelihoods:
        columns.insert(0, Column("log-likelihood", "", "", tuple(Cell(DASH) for _ in routines)))
        likelihoods = 1
    for row, slug in enumerate(routines):
        if slug in without and not any(m.key[0] == "log_likelihood" for m in measured[slug]):
            for index in range(likelihoods):
                cell = Cell(without[slug], span=likelihoods) if index == 0 else Cell("", span=0)
                cells = columns[index].cells
                columns[index] = replace(columns[index], cells=(*cells[:row], cell, *cells[row + 1 :]))


def _column(key: Key, groups: dict[str, list[Measured]], complete: dict[str, int]) -> Column:
    heading, direction = headed(key)
    means = {slug: mean_interval([m.value for m in group]) for slug, group in groups.items() if group}
    everything = [m for group in groups.values() for m in group]
    units, hows = (list(dict.fromkeys(getattr(m, name) for m in everything)) for name in ("unit", "how"))
    largest = max(abs(mean.value) for mean in means.values())
    scale, unit = 1.0, units[0] if len(units) == 1 else ""
    if key[1] == "time":
        scale, unit = (1e-3, "ms") if key[0] == "seconds_per_step" and largest < 1 else (1.0, "s")
    elif 0 < largest < 0.01:
        scale, power = (1e-3, "10\N{SUPERSCRIPT MINUS}³") if largest >= 1e-5 else (1e-6, "10\N{SUPERSCRIPT MINUS}⁶")
        unit = f"{power} {unit}".rstrip()
    errors = {slug: mean.reach if mean.n > 1 else groups[slug][0].spread for slug, mean in means.items()}
    whole = (
        all(m.value.is_integer() for m in everything) and key[1] != "time" and not any(m.interval for m in everything)
    )
    decimals = decimals_of([(mean.value / scale, (errors[s] or 0.0) / scale) for s, mean in means.items()], whole)
    decimals = min(decimals, 2) if key[1] == "time" else decimals
    best = _best(groups, means, direction) if len(hows) == 1 else set()
    cells = []
    for slug, group in groups.items():
        if slug not in means:
            cells.append(Cell(DASH))
            continue
        text = _shown(means[slug], group[0], scale, decimals)
        text += " !" if any(m.warning for m in group) else ""
        text += f" {group[0].unit}" if len(units) > 1 and group[0].unit else ""
        text += f" ({len(group)} of {complete[slug]} seeds)" if len(group) < complete[slug] else ""
        cells.append(Cell(text, slug in best))
    arrow = {1: " ↑", -1: " ↓", 0: ""}[direction]
    return Column(heading + arrow, unit, _in_common(hows), tuple(cells))


def _in_common(hows: Sequence[str]) -> str:
    """Say how values were computed: the beginning that all have in common where there are more than two ways."""
    if len(hows) < 3:
        return "; ".join(filter(None, hows))
    start = re.split(r"[;:,](?=[^;:,]*$)", commonprefix(list(hows)))[0]
    return start or f"{hows[0]}; and {len(hows) - 1} others"


def _shown(mean: Mean, first: Measured, scale: float, decimals: int) -> str:
    text = number(mean.value / scale, decimals)
    if mean.reach is not None:
        return text + f" ± {number(mean.reach / scale, decimals)}"
    if first.interval is not None and not first.error:  # a share of 0 or 1 has no standard error, but an interval
        return text + " [" + ", ".join(number(end / scale, decimals) for end in first.interval) + "]"
    return text + (f" ({number(first.error / scale, decimals)})" if first.error is not None else "")


def decimals_of(means: Sequence[tuple[float, float]], whole: bool) -> int:
    """Decimals for a column: two digits of a typical error, or four digits of the largest mean."""
    errors = [error for _, error in means if error]
    if errors:
        return min(max(1 - math.floor(math.log10(statistics.median(errors))), 0), 4)
    largest = max(abs(mean) for mean, _ in means)
    return 0 if whole or largest == 0 else min(max(3 - math.floor(math.log10(largest)), 0), 4)


def _best(groups: dict[str, list[Measured]], means: dict[str, Mean], direction: int) -> set[str]:
    if direction == 0 or len(means) < 2:
        return set()
    several = [slug for slug in means if means[slug].n > 1]  # beside them one seed says nothing about others
    top = max(several or means, key=lambda slug: direction * means[slug].value)
    if several:
        best = {slug for slug in several if slug == top or _as_good(groups[top], groups[slug], direction)}
    else:
        best = {slug for slug in means if means[slug].value == means[top].value}
    return best if len(best) < len(means) else set()


def _as_good(better: Sequence[Measured], worse: Sequence[Measured], direction: int) -> bool:
    """Whether the seeds that both have, at least two, do not tell the second from the first."""
    found = [direction * difference for difference in paired(better, worse)]
    mean = mean_interval(found) if len(found) > 1 else None
    return mean is not None and (mean.reach is None or mean.value - mean.reach <= 0)


def paired(ones: Sequence[Measured], others: Sequence[Measured]) -> list[float]:
    """Return the differences of values at the seeds that both have."""
    at = {other.seed: other.value for other in others}
    return [one.value - at[one.seed] for one in ones if one.seed in at]


def tally(group: Sequence[Run]) -> str:
    counts = {status: sum(run.status == status for run in group) for status in STATUSES}
    if counts["complete"] == len(group):
        return str(len(group))
    others = ", ".join(f"{count} {status}" for status, count in counts.items() if count and status != "complete")
    return f"{counts['complete']} of {len(group)}: {others}"
