"""Docstrings as this project writes them, turned into what Sphinx reads: plain text, with the theory linked.

Public docstrings are written to be read in a terminal: formulas in Unicode, ``code`` in double backquotes. Here every other
character that reStructuredText would take for markup is escaped, and the line ``Theory: ...`` becomes links.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from identities import identities
from links import LINE, reference

from unigen.divergences import FDivergence
from unigen.phases import Routine

__all__ = ["restructured", "setup"]


def escaped(text: str) -> str:
    """Escape everything but literals."""
    parts = re.split(r"(``.+?``)", re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", text), flags=re.S)
    return "".join(part if n % 2 else re.sub(r"([\\*_|`])", r"\\\1", part) for n, part in enumerate(parts))


def restructured(docstring: str) -> list[str]:
    """Return the lines of reStructuredText that show a docstring as it reads."""
    lines: list[str] = []
    for block in re.split(r"\n\s*\n", docstring.strip("\n")):
        rows = block.split("\n")
        if rows[0].startswith(">>>"):
            lines += rows
        elif rows[0].startswith(" "):
            lines += ["::", "", *("    " + row for row in rows)]
        elif re.match(r"([*-]|\d+\.) ", rows[0]) or any(row.startswith(" ") for row in rows[1:]):
            items = re.sub(r"\n\s+", " ", block).split("\n")  # one item a line that is not indented
            lines += ["- " + escaped(re.sub(r"^([*-]|\d+\.) ", "", item)) for item in items]
        else:
            lines += escaped(block).split("\n")
        lines.append("")
    return lines


def _theory(name: str, docstring: str) -> list[str]:
    lines = []
    named = reference(docstring)
    if named:
        shown = ", ".join(f"{label} :eq:`{label}`" for label in named.labels)
        lines += [f"**Equations:** {shown}. **Sources:** :cite:p:`{','.join(named.keys)}`.", ""]
    checks = [one.name for one in identities().values() if name in one.objects]
    if checks:
        lines += ["**Tests:** " + ", ".join(f":ref:`{check} <identity-{check}>`" for check in checks) + ".", ""]
    return lines


def _routine(routine: Routine) -> list[str]:
    phases = [f"- {escaped(str(phase))}" for phase in routine]
    settings = inspect.signature(routine.declaration).parameters.values() if routine.declaration else ()
    shown = ", ".join(str(one.replace(annotation=inspect.Parameter.empty)) for one in settings)
    return [f"**Settings:** ``{routine.name}({shown})``, runs on pairs {', '.join(routine.pairs)}.", "", *phases, ""]


def _rewrite(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    docstring = inspect.getdoc(obj) if isinstance(obj, Routine) else "\n".join(lines)
    if what == "data" and docstring == (inspect.getdoc(type(obj)) or "") or isinstance(obj, dict):
        docstring = f"Known: {', '.join(f'``{key}``' for key in obj)}." if isinstance(obj, dict) else f"``{obj}``"
    if isinstance(obj, FDivergence):
        docstring = f"The f-divergence named ``{obj.name}``.\n\n" + (LINE.search(inspect.getdoc(obj) or "") or [""])[0]
    docstring = docstring or ""
    shown = restructured(LINE.sub("", docstring))
    lines[:] = shown + (_routine(obj) if isinstance(obj, Routine) else []) + _theory(name, docstring)


def _declared_in(app: Any, module: str, name: str) -> str | None:
    """A routine's source is its declaration, not the class that it is an object of."""
    return module if module == "unigen.routines" else None


def setup(app: Any) -> dict[str, bool]:
    """Rewrite every docstring that autodoc reads."""
    app.connect("autodoc-process-docstring", _rewrite)
    app.connect("viewcode-follow-imported", _declared_in)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
