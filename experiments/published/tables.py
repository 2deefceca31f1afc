"""The tables of a grid: negative log-likelihoods beside print, paired differences, and whether the orderings in print hold.

Over n seeds a table shows the mean and its standard error s / sqrt(n); a verdict reads the 95% interval of Student's law.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.special import stdtrit

from published.grid import Record, Study
from unigen.figures import number

__all__ = ["Claim", "above", "claims_table", "difference", "draw", "results_table"]

Cell = tuple[str, str]  # study and routine


@dataclass(frozen=True)
class Claim:
    """In print, ``better`` has the lower negative log-likelihood than ``worse``; each is (study, routine)."""

    better: Cell
    worse: Cell


def aggregate(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and its standard error, None of a single value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), error


def difference(records: Sequence[Record], one: Cell, other: Cell) -> tuple[float, float | None, float] | None:
    """Return the mean over seeds of nll(one) - nll(other), its standard error, and the half width of its 95% interval.

    Paired: of the seeds that both have. None where there is none; a single seed has no error, and an infinite interval.

    >>> runs = [Record("a", name, seed, nll, 0, 1, 1) for name, seed, nll in (("x", 0, 3), ("y", 0, 1), ("x", 1, 5), ("y", 1, 2))]
    >>> difference(runs, ("a", "x"), ("a", "y"))[:2]
    (2.5, 0.5)
    """
    by_run = {(record.study, record.routine, record.seed): record.nll for record in records}
    seeds = sorted({record.seed for record in records})
    pairs = [(by_run.get((*one, seed)), by_run.get((*other, seed))) for seed in seeds]
    values = [a - b for a, b in pairs if a is not None and b is not None]
    if not values:
        return None
    mean, error = aggregate(values)
    return mean, error, math.inf if error is None else float(stdtrit(len(values) - 1, 0.975)) * error


def results_table(
    studies: Sequence[Study],
    records: Sequence[Record],
    baseline: Callable[[str], str],
    units: bool = False,
    some_rows: bool = False,
) -> list[str]:
    """Return a Markdown table, one row a study and routine; ``baseline``: the routine that a routine is paired with.

    Figures in print are of all test data, so the error of a difference from them is that over seeds, and with ``some_rows``, where
    the runs were examined on a part, that over test data as well.
    """
    head = ["networks", "routine", "seeds", "NLL, nats", "published", "ours - published", "paired difference"]
    rows = [head + ["active units"] * units + ["s a run"]]
    for study in studies:
        for routine in study.settings.routines:
            runs = [record for record in records if (record.study, record.routine) == (study.name, routine)]
            if not runs:
                rows.append([study.title, f"`{routine}`", "0", *[""] * (len(rows[0]) - 3)])
                continue
            mean, error = aggregate([run.nll for run in runs])
            published, other = study.published.get(routine), baseline(routine)
            paired = difference(records, (study.name, routine), (study.name, other)) if other != routine else None
            over_rows = statistics.fmean(run.standard_error for run in runs) if some_rows else 0.0
            off = math.hypot(error or 0.0, over_rows) or None
            active = [
                "+".join(f"{sum(run.active[site] for run in runs) / len(runs):.1f}" for site in runs[0].active)
            ] * units
            rows.append([
                study.title, f"`{routine}`", str(len(runs)), _shown(mean, error), str(published or ""),
                f"{signed(mean - published.value)}{_error(off)}" if published else "",
                f"{signed(paired[0])}{_error(paired[1])} from `{other}`" if paired else "",
                *active, f"{sum(run.seconds for run in runs) / len(runs):.0f}" + _on(runs),
            ])  # fmt: skip
    return ["| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]]


def claims_table(studies: Sequence[Study], records: Sequence[Record], claims: Sequence[Claim]) -> list[str]:
    """Return a Markdown table of the orderings in print: hold, reversed, or not told apart at 95% over the seeds."""
    titles = {study.name: study.title for study in studies}
    published = {(study.name, routine): value for study in studies for routine, value in study.published.items()}
    asked = {(study.name, routine) for study in studies for routine in study.settings.routines}
    rows = [
        ["in print the lower NLL", "than", "networks", "published difference", "ours, paired", "verdict"],
        ["---"] * 6,
    ]
    for claim in claims:
        found = difference(records, claim.better, claim.worse)
        if found is None and not {claim.better, claim.worse} <= asked:
            continue
        ours, verdict = "", "no runs in common"
        if found is not None:
            mean, error, half = found
            ours = signed(mean) + _error(error)
            verdict = "not told apart" if abs(mean) <= half else "holds" if mean < 0 else "reversed"
        printed = [published.get(claim.better), published.get(claim.worse)]
        known = [value for value in printed if value is not None]
        gap = signed(known[0].value - known[1].value) if len(known) == 2 else ""
        gap += " (unverified)" if gap and not all(value.verified for value in known) else ""
        where = dict.fromkeys(titles.get(study, study) for study, _ in (claim.better, claim.worse))
        rows.append([
            f"`{claim.better[1]}`", f"`{claim.worse[1]}`", " / ".join(where), gap, ours, verdict,
        ])  # fmt: skip
    return ["| " + " | ".join(row) + " |" for row in rows]


def _shown(mean: float, error: float | None) -> str:
    return number(mean, 2) + _error(error)


def _on(runs: Sequence[Record]) -> str:
    devices = dict.fromkeys(run.device for run in runs if run.device)
    return f" ({', '.join(devices)})" * bool(devices)


def _error(error: float | None) -> str:
    return f" ± {number(error, 2)}" if error is not None else ""


def signed(value: float) -> str:
    """Return a number with two decimals and its sign."""
    return ("+" if value > 0 else "") + number(value, 2)


def above(studies: Sequence[Study], records: Sequence[Record], most: float = 3.0) -> list[str]:
    """Return a line on which cells lie at most ``most`` nats above the figure in print, where there is one, and which have no
    runs."""
    gaps, empty = {}, []
    for study in studies:
        for routine, value in study.published.items():
            runs = [record.nll for record in records if (record.study, record.routine) == (study.name, routine)]
            cell = f"`{routine}` on {study.title}"
            if runs:
                gaps[cell] = sum(runs) / len(runs) - value.value
            elif routine in study.settings.routines:
                empty.append(cell)
    missed = [f"{cell} ({signed(gap)})" for cell, gap in gaps.items() if gap > most]
    if not gaps:
        return []
    return [
        f"At most {most:g} nats above print: {len(gaps) - len(missed)} of {len(gaps)} cells."
        + (f" Not: {', '.join(missed)}." if missed else "")
        + (f" Without runs: {', '.join(empty)}." if empty else "")
    ]


def draw(path: Path, studies: Sequence[Study], records: Sequence[Record]) -> None:
    """Draw every run as a dot, one panel a study, beside the figures in print: diamonds, hollow where unverified."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for study in studies for name in study.settings.routines))
    figure = Figure(figsize=(3.0 * len(studies) + 1.2, 0.34 * len(names) + 1.1), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(studies), sharey=True, squeeze=False)[0]
    for study, axes in zip(studies, panels, strict=True):
        for place, name in enumerate(names):
            runs = [record.nll for record in records if (record.study, record.routine) == (study.name, name)]
            axes.plot(runs, [place] * len(runs), "o", color="#1f5fa8", markersize=4, alpha=0.7)
            value = study.published.get(name)
            if value is not None:
                face = "#c0504d" if value.verified else "none"
                axes.plot([value.value], [place], "D", color="#c0504d", markerfacecolor=face, markersize=5)
        axes.set_title(study.title, fontsize=9)
        axes.grid(axis="x", alpha=0.3)
        axes.tick_params(labelsize=8)
        axes.set_xlabel("NLL, nats", fontsize=8)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    figure.savefig(path)
