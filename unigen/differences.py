"""Paired differences between routines: of one seed both start from the same weights and read the data in the same order.

    d_s = v_s(routine) - v_s(reference),   mean -+ t s / sqrt(n) over the n seeds that both completed

Pairing removes what a seed does to both. The intervals are of one difference each, without a correction for their number.
"""

from collections import Counter
from collections.abc import Sequence

from unigen.figures import number
from unigen.intervals import Mean, mean_interval
from unigen.measured import Key, Measured, headed, order
from unigen.results import Run
from unigen.tabulation import DASH, Cell, Column, Table, decimals_of, grouped, paired, tally, with_rows

__all__ = ["differences"]


def differences(runs: Sequence[Run]) -> Table:
    """Subtract from each routine's log-likelihood, and distance of samples, those of the first routine that has one, seed by seed.

    A cell is the mean difference over the seeds that both completed and the reach of its 95 % interval. Of a single seed it is
    the mean over the test data, for a log-likelihood whose values of each datum were kept; its interval says nothing of another
    seed. Only like is subtracted from like: exact values, and bounds or distances computed in one way.
    """
    routines, measured = grouped(runs, "results")
    names = {slug: group[0].name for slug, group in routines.items()}
    shown = {m.key[0] for group in measured.values() for m in group}
    kinds = ("log_likelihood", "KID" if "KID" in shown else "MMD²")
    per_datum = {(run.slug, run.seed): run.per_datum for run in runs}
    columns, notes = [], []
    for key in sorted({m.key: None for g in measured.values() for m in g if m.key[0] in kinds}, key=order):
        groups = {slug: [m for m in group if m.key == key] for slug, group in measured.items()}
        heading, several = headed(key)[0], sum(map(bool, groups.values())) > 1
        if several and len({m.how for group in groups.values() for m in group}) > 1:
            notes.append(f"{heading}: computed in different ways, so that nothing is subtracted")
        elif several:
            column = _column(key, groups, names, per_datum)
            columns += [column] if column else []
            notes += [] if column else [f"{heading}: {_why(key)}"]
    rows = [row for row in range(len(names)) if any(column.cells[row].text != DASH for column in columns)]
    seeds = tuple(tally(group) for group in routines.values())
    return with_rows(rows, Table(tuple(names.values()), seeds, tuple(columns), tuple(notes)))


def _why(key: Key) -> str:
    of = "where no values of each datum were kept" if key[0] == "log_likelihood" else "of a distance"
    return f"one common seed, and a difference of one seed has no interval {of}"


def _column(
    key: Key,
    groups: dict[str, list[Measured]],
    names: dict[str, str],
    per_datum: dict[tuple[str, str], tuple[float, ...]],
) -> Column | None:
    """Return the differences from the first routine that has a value, or None where none has an interval."""
    reference = next(slug for slug, group in groups.items() if group)
    found: dict[str, tuple[Mean, str]] = {}
    missing = False
    for slug, group in groups.items():
        if slug == reference or not group:
            continue
        values, over = paired(group, groups[reference]), "seeds"
        if len(values) == 1 and key[0] == "log_likelihood":
            seed = next(m.seed for m in group if m.seed in {other.seed for other in groups[reference]})
            mine, theirs = per_datum[slug, seed], per_datum[reference, seed]
            if len(mine) == len(theirs):
                values, over = [one - other for one, other in zip(mine, theirs, strict=True)], "test data"
        missing |= len(values) < 2
        if len(values) > 1:
            found[slug] = mean_interval(values), over
    if not found:
        return None
    most = Counter((mean.n, over) for mean, over in found.values()).most_common(1)[0][0]
    decimals = decimals_of([(mean.value, mean.reach or 0.0) for mean, _ in found.values()], False)
    cells = []
    for slug in groups:
        if slug not in found:
            cells.append(Cell("reference" if slug == reference else DASH))
            continue
        mean, over = found[slug]
        sign = "+" if float(f"{mean.value:.{decimals}f}") > 0 else ""
        text = f"{sign}{number(mean.value, decimals)} ± {number(mean.reach or 0.0, decimals)}"
        cells.append(Cell(text + ("" if (mean.n, over) == most else f" (n = {mean.n} {over})")))
    units = [groups[reference][0].unit, f"n = {most[0]} {most[1]}"]
    note = f"minus {names[reference]}" + (f"; {_why(key)}" if missing else "")
    return Column(headed(key)[0], ", ".join(filter(None, units)), note, tuple(cells))
