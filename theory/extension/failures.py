"""The failures on the site: a box below each figure, and the page that holds every script and its tests.

The figure itself is drawn by a cell of the chapter, from ``experiments/failures``; ``links`` finds the tests of each.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

from docutils import nodes
from failures import NAMES
from links import tests_of_failures
from sphinx.util.docutils import SphinxDirective

__all__ = ["FailureBox", "page", "setup"]

FAILURES = "<!-- failures -->"


class FailureBox(SphinxDirective):
    """Link the script and the tests of a failure, and say how to draw it in full: the argument is its name."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        if name not in NAMES:
            raise self.error(f"no failure {name!r}")
        text = (
            f"Drawn by [experiments/failures/{name}.py](#failure-{name.replace('_', '-')}) when this page was built. "
            f"Tests: [{name}](#tests-of-{name.replace('_', '-')}). "
            f"In full: `python experiments/failures --only {name}`."
        )
        box = nodes.container(classes=["identity"])
        self.state.nested_parse([text], self.content_offset, box)
        return [box]


def page() -> str:
    """Return the Markdown of every failure: what it is, its tests, its script."""
    lines = []
    for name in NAMES:
        what = (inspect.getdoc(import_module(f"failures.{name}")) or "").split("\n", 1)[0]
        anchor = name.replace("_", "-")
        lines += [f"(failure-{anchor})=", f"## {name.replace('_', ' ').capitalize()}", "", what, ""]
        lines += ["```{literalinclude} ../experiments/failures/" + name + ".py", "```", ""]
        lines += [f"(tests-of-{anchor})=", "### " + f"Tests of {name.replace('_', ' ')}", ""]
        lines += [
            f"`pytest tests/test_failures.py -m 'slow or not slow' -k '{' or '.join(tests_of_failures()[name])}'`",
            "",
        ]
        for test in tests_of_failures()[name]:
            lines += ["```{literalinclude} ../tests/test_failures.py", f":pyobject: {test}", "```", ""]
    return "\n".join(lines)


def _fill(app: Any, docname: str, source: list[str]) -> None:
    if FAILURES in source[0]:
        source[0] = source[0].replace(FAILURES, page())


def setup(app: Any) -> dict[str, bool]:
    """Register the directive ``failure`` and the page."""
    app.add_directive("failure", FailureBox)
    app.connect("source-read", _fill)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
