"""The results of `unigen compare` as plain text and Markdown: the table, its notes, and the paired differences."""

import re
from collections.abc import Iterable
from pathlib import Path

from unigen.differences import differences
from unigen.results import read_runs
from unigen.tabulation import Table, aggregate, refusals, tabulate

__all__ = ["CONVENTION", "aggregate", "differences", "table", "table_markdown", "tabulate"]

CONVENTION = (
    "a ± h: mean over seeds with its 95 % interval, by Student's t; a (s), a [low, high]: one seed, with the standard error \
or the interval of its evaluation"
)


def table(directory: str | Path) -> str:
    """Return the results as aligned plain text: the table, how columns were computed, what was refused, paired differences."""
    runs = read_runs(Path(directory))
    results, paired = tabulate(runs), differences(runs)
    refused = [f"{name}, not to be had for {routines}: {why}" for name, routines, why in refusals(runs)]
    said = _printed([CONVENTION] * bool(results.columns) + refused)
    text = "\n".join([*_aligned(results), "", *_notes(results), *said]) + "\n"
    if paired.columns:
        text += "\n".join(["", "paired differences", *_aligned(paired), "", *_notes(paired)]) + "\n"
    return text


def _aligned(results: Table) -> list[str]:
    head = [["routine", "seeds", *(column.heading for column in results.columns)]]
    head.append(["", "", *(column.unit for column in results.columns)])
    body = [[name, seeds, *cells] for name, seeds, cells in _text_rows(results)]
    lines = [_printed(row) for row in [*head, *body]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = ["  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
             for row in lines]  # fmt: skip
    rule = "-" * (sum(widths) + 2 * len(widths) - 2)
    return [text.rstrip() for text in [*texts[:2], rule, *texts[2:]]]


def _notes(results: Table) -> list[str]:
    return _printed([*(f"{c.heading}: {c.note}" for c in results.columns if c.note), *results.notes])


def table_markdown(directory: str | Path) -> str:
    """Return the results table in Markdown; bold marks the best of a column and what its interval does not tell from it."""
    results = tabulate(read_runs(Path(directory)))

    def plain(text: str) -> str:
        return re.sub(r"([\\`*_|<>\[\]&])", r"\\\1", _printed([text])[0])

    headings = [f"{c.heading} ({c.unit})" if c.unit else c.heading for c in results.columns]
    rows = [["routine", "seeds", *map(plain, headings)], [":--", ":--", *["--:"] * len(results.columns)]]
    for index, (name, seeds, cells) in enumerate(_text_rows(results)):
        marks = ["**" if column.cells[index].best else "" for column in results.columns]
        rows.append([plain(name), plain(seeds), *(m + plain(c) + m for m, c in zip(marks, cells, strict=True))])
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _printed(texts: Iterable[str]) -> list[str]:
    """Replace control characters, so that a name cannot move a terminal's cursor or break a line."""
    return ["".join(character if character.isprintable() else "?" for character in text) for text in texts]


def _text_rows(results: Table) -> Iterable[tuple[str, str, list[str]]]:
    for index, (name, seeds) in enumerate(zip(results.names, results.seeds, strict=True)):
        yield name, seeds, [column.cells[index].text for column in results.columns]
