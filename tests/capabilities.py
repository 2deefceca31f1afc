"""Which routine runs on which pair by which engine: ``python -m tests.capabilities`` prints the README's table.

Each cell is tried: an engine takes a step on a small pair of the family, or refuses it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.families import CATALOGUE, FAMILIES
from unigen.engines import ENGINES, engine_named
from unigen.optimizers import optimizers_for
from unigen.pair import PairError
from unigen.phases import Routine

__all__ = ["runs", "table"]


def runs(engine: str, routine: Routine, family: str) -> bool:
    """Try one step; an engine refuses a pair before it."""
    pair, x = FAMILIES[family]()
    try:
        engine_named(engine).advance(routine, pair, optimizers_for(routine, pair), [[x] * routine.batches])
    except PairError:
        return False
    return True


def table(try_it: Callable[[str, Routine, str], bool] = runs) -> str:
    """Return the table in Markdown, a row a routine, with the pair families that each engine runs it on."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, routine, family in CATALOGUE:
        row: dict[str, Any] = found.setdefault(name.split(" on ")[0], {engine: [] for engine in ENGINES})
        for engine in ENGINES:
            if try_it(engine, routine, family):
                row[engine].append(family)
    lines = ["| routine | " + " | ".join(f"`{engine}`" for engine in ENGINES) + " |", "|---" * (len(ENGINES) + 1) + "|"]
    for name, row in found.items():
        first = row[ENGINES[0]]
        cells = ["all of them" if row[e] == first and e != ENGINES[0] else ", ".join(row[e]) or "no" for e in ENGINES]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
