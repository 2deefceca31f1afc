"""The results table of `unigen compare`: runs aggregated over seeds, as columns, plain text and Markdown.

Over n seeds a table shows the mean and the standard error of the mean, s / sqrt(n), s with n - 1 in its denominator.
Exact log-likelihoods and lower bounds, and bounds computed in different ways, are different columns.
"""

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unigen.figures import number
from unigen.results import STATUSES, Run, as_mapping, as_number, as_text, read_runs

__all__ = ["Cell", "Column", "Table", "aggregate", "table", "table_markdown", "tabulate"]

# name: (heading, +1 where higher is better and -1 where lower is)
METRICS = {
    "mmd": ("MMD", -1),
    "kid": ("KID", -1),
    "fid": ("FID", -1),
    "coverage": ("class coverage", 1),
    "modes": ("modes", 1),
    "high_quality": ("high-quality fraction", 1),
    "reverse_kl": ("reverse KL over modes", -1),
}


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
    """Rows are routines: `names` and `seeds` (how many are complete) beside the columns of numbers."""

    names: tuple[str, ...]
    seeds: tuple[str, ...]
    columns: tuple[Column, ...]


def aggregate(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the standard error of the mean, s / sqrt(n); None for the error of a single value."""
    if not values:
        raise ValueError("A mean needs at least one value, got none.")
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), error


def table(directory: str | Path) -> str:
    """Return the results table as aligned plain text, with a note on how each column was computed."""
    results = tabulate(read_runs(Path(directory)))
    head = [["routine", "seeds", *(column.heading for column in results.columns)]]
    head.append(["", "", *(column.unit for column in results.columns)])
    body = [[name, seeds, *cells] for name, seeds, cells in _text_rows(results)]
    lines = [[_printable(cell) for cell in row] for row in [*head, *body]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = ["  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
             for row in lines]  # fmt: skip
    rule = "-" * (sum(widths) + 2 * len(widths) - 2)
    notes = [_printable(f"{column.heading}: {column.note}") for column in results.columns if column.note]
    return "\n".join(text.rstrip() for text in [*texts[:2], rule, *texts[2:], *([""] if notes else []), *notes]) + "\n"


def table_markdown(directory: str | Path) -> str:
    """Return the results table in Markdown; bold marks the best of a column and what is within two standard errors."""
    results = tabulate(read_runs(Path(directory)))

    def plain(text: str) -> str:
        return re.sub(r"([\\`*_|<>\[\]&])", r"\\\1", _printable(text))

    headings = [f"{c.heading} ({c.unit})" if c.unit else c.heading for c in results.columns]
    rows = [["routine", "seeds", *map(plain, headings)], [":--", ":--", *["--:"] * len(results.columns)]]
    for index, (name, seeds, cells) in enumerate(_text_rows(results)):
        marks = ["**" if column.cells[index].best else "" for column in results.columns]
        rows.append([plain(name), plain(seeds), *(m + plain(c) + m for m, c in zip(marks, cells, strict=True))])
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _printable(text: str) -> str:
    """Replace control characters, so that a name cannot move a terminal's cursor or break a line."""
    return "".join(character if character.isprintable() else "?" for character in text)


@dataclass(frozen=True)
class _Measured:
    """One number of one run, with what it is a number of; `key` says which column it may stand in."""

    key: tuple[str, str, str]
    value: float
    unit: str = ""
    how: str = ""


def tabulate(runs: Sequence[Run]) -> Table:
    """Aggregate the complete runs of each routine over seeds into columns that compare like with like.

    Bold (`best`) goes to the best mean of a column and to every mean within two standard errors of the difference from
    it; never across an exact value and a bound, and never where runs of one metric were computed in different ways.
    """
    routines: dict[str, list[Run]] = {}
    for run in runs:
        routines.setdefault(run.slug, []).append(run)
    measured = {slug: [m for run in group if run.status == "complete" for m in _measure(run)]
                for slug, group in routines.items()}  # fmt: skip
    without = {  # why a routine has no likelihood, in the words of its runs
        slug: next(as_text(_likelihood(run).get("how")) or "implicit: none" for run in none)
        for slug, group in routines.items()
        if (none := [run for run in group if _likelihood(run).get("kind") == "none"])
    }
    complete = {slug: sum(run.status == "complete" for run in group) for slug, group in routines.items()}
    keys = sorted({m.key: None for group in measured.values() for m in group}, key=_order)
    columns = [_column(key, {s: [m for m in g if m.key == key] for s, g in measured.items()}, complete) for key in keys]
    likelihoods = sum(key[0] == "log_likelihood" for key in keys)
    if without and not likelihoods:
        columns.insert(0, Column("log-likelihood", "", "", tuple(Cell("\N{EN DASH}") for _ in routines)))
        likelihoods = 1
    for row, slug in enumerate(routines):
        if slug in without and not any(m.key[0] == "log_likelihood" for m in measured[slug]):
            for index in range(likelihoods):
                cell = Cell(without[slug], span=likelihoods) if index == 0 else Cell("", span=0)
                cells = columns[index].cells
                columns[index] = replace(columns[index], cells=(*cells[:row], cell, *cells[row + 1 :]))
    seeds = tuple(_tally(group) for group in routines.values())
    names = tuple(group[0].name for group in routines.values())
    return Table(names, seeds, tuple(columns))


def _likelihood(run: Run) -> dict[str, Any]:
    return as_mapping(run.result.get("log_likelihood"))


def _measure(run: Run) -> Iterable[_Measured]:
    likelihood = _likelihood(run)
    kind, how = as_text(likelihood.get("kind")), as_text(likelihood.get("how"))
    if kind != "none" and (value := as_number(likelihood.get("value"))) is not None:
        yield _Measured(("log_likelihood", kind, how), value, as_text(likelihood.get("units")) or "nats", how)
    for name, raw in as_mapping(run.result.get("metrics")).items():
        metric = as_mapping(raw)
        if (value := as_number(metric.get("value"))) is not None:
            of = as_number(metric.get("of"))
            yield _Measured((name, "", ""), value, f"of {of:g}" if of is not None else "", as_text(metric.get("how")))
    for name in ("seconds_per_step", "seconds"):
        if (value := as_number(run.result.get(name))) is not None:
            yield _Measured((name, "time", ""), value)


def _order(key: tuple[str, str, str]) -> tuple[int, str, str]:
    name, kind, how = key
    if name == "log_likelihood":
        return {"exact": -3, "bound": -2}.get(kind, -1), kind, how
    if kind == "time":
        return 900 + len("seconds_per_step") - len(name), "", ""
    return list(METRICS).index(name) if name in METRICS else 100, name, ""


def _heading(key: tuple[str, str, str]) -> tuple[str, int]:
    """The heading of a column and its direction: 1 where higher is better, -1 where lower, 0 where neither."""
    name, kind, how = key
    if name == "log_likelihood":
        particles = re.search(r"\bK\s*=\s*([\d,]*\d)", how)
        bound = f"lower bound (K = {particles[1]})" if particles else "lower bound"
        return {"exact": "exact log-likelihood", "bound": bound}.get(
            kind, f"log-likelihood ({kind or 'kind not said'})"
        ), 1
    if kind == "time":
        return ("time per step" if name == "seconds_per_step" else "time in total"), 0
    return METRICS.get(name, (name.replace("_", " "), 0))


def _column(key: tuple[str, str, str], groups: dict[str, list[_Measured]], complete: dict[str, int]) -> Column:
    heading, direction = _heading(key)
    means = {slug: aggregate([m.value for m in group]) for slug, group in groups.items() if group}
    everything = [m for group in groups.values() for m in group]
    units, hows = ({getattr(m, name): None for m in everything} for name in ("unit", "how"))
    largest = max(abs(mean) for mean, _ in means.values())
    scale, unit = 1.0, next(iter(units)) if len(units) == 1 else ""
    if key[1] == "time":
        scale, unit = (1e-3, "ms") if key[0] == "seconds_per_step" and largest < 1 else (1.0, "s")
    elif 0 < largest < 0.01:
        scale, unit = (1e-3, "10\N{SUPERSCRIPT MINUS}³") if largest >= 1e-5 else (1e-6, "10\N{SUPERSCRIPT MINUS}⁶")
    decimals = _decimals([(mean / scale, error and error / scale) for mean, error in means.values()],
                         not key[1] and all(m.value.is_integer() for m in everything))  # fmt: skip
    decimals = min(decimals, 2) if key[1] == "time" else decimals
    best = _best(means, direction) if len(hows) == 1 else set()
    cells = []
    for slug, group in groups.items():
        if slug not in means:
            cells.append(Cell("\N{EN DASH}"))
            continue
        mean, error = means[slug]
        text = number(mean / scale, decimals) + (f" ± {number(error / scale, decimals)}" if error is not None else "")
        text += f" {group[0].unit}" if len(units) > 1 and group[0].unit else ""
        text += f" ({len(group)} of {complete[slug]} seeds)" if len(group) < complete[slug] else ""
        cells.append(Cell(text, slug in best))
    arrow = {1: " ↑", -1: " ↓", 0: ""}[direction]
    return Column(heading + arrow, unit, "; ".join(how for how in hows if how), tuple(cells))


def _decimals(means: Sequence[tuple[float, float | None]], whole: bool) -> int:
    """Decimals for a column: two digits of a typical standard error, or four digits of the largest mean."""
    errors = [error for _, error in means if error]
    if errors:
        return min(max(1 - math.floor(math.log10(statistics.median(errors))), 0), 4)
    largest = max(abs(mean) for mean, _ in means)
    return 0 if whole or largest == 0 else min(max(3 - math.floor(math.log10(largest)), 0), 4)


def _best(means: dict[str, tuple[float, float | None]], direction: int) -> set[str]:
    if direction == 0 or len(means) < 2:
        return set()
    top, top_error = max(means.values(), key=lambda pair: direction * pair[0])
    best = {
        slug
        for slug, (mean, error) in means.items()
        if direction * (top - mean) <= 2 * math.hypot(error or 0.0, top_error or 0.0)
    }
    return best if len(best) < len(means) else set()


def _tally(group: Sequence[Run]) -> str:
    counts = {status: sum(run.status == status for run in group) for status in STATUSES}
    if counts["complete"] == len(group):
        return str(len(group))
    others = ", ".join(f"{count} {status}" for status, count in counts.items() if count and status != "complete")
    return f"{counts['complete']} of {len(group)}: {others}"


def _text_rows(results: Table) -> Iterable[tuple[str, str, list[str]]]:
    for index, (name, seeds) in enumerate(zip(results.names, results.seeds, strict=True)):
        yield name, seeds, [column.cells[index].text for column in results.columns]
