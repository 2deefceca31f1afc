"""The identities on the site: a box below each equation, and the page that holds every check, its code and its residual.

Residuals are computed while the site is built; one above its tolerance is a warning, and a warning fails the build.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from docutils import nodes
from identities import CHAPTERS, Identity, chapter_of, identities, residual
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

__all__ = ["DRAWS", "IdentityBox", "page", "setup"]

DRAWS = 5
"""Random draws an identity at build time; the test and ``unigen theory check`` take 20."""

IDENTITIES, DATA = "<!-- identities -->", re.compile(r"<!-- data (unigen[.\w]*) -->")
ROOT = Path(__file__).parents[2]
logger = logging.getLogger(__name__)


@cache
def measured(name: str) -> float:
    """Return the residual of an identity, computed once a build."""
    identity = identities()[name]
    value = residual(identity, DRAWS)
    if not value <= identity.tolerance:
        logger.warning("the identity %s fails: residual %.1e above %.0e", name, value, identity.tolerance)
    return value


def _code(identity: Identity) -> str:
    links = [f"{{py:obj}}`{path.removeprefix('unigen.')} <{path}>`" for path in identity.objects]
    return ", ".join(links)


class IdentityBox(SphinxDirective):
    """Show the residual of an identity, with links to its code and to its test: the argument is its name."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        identity = identities().get(self.arguments[0])
        if identity is None:
            raise self.error(f"no identity {self.arguments[0]!r}")
        text = (
            f"Checked: residual {measured(identity.name):.1e}. Code: {_code(identity)}. "
            f"Test: [{identity.name}](#identity-{identity.name})."
        )
        box = nodes.container(classes=["identity"])
        self.state.nested_parse([text], self.content_offset, box)
        return [box]


def page() -> str:
    """Return the Markdown of every identity, chapter by chapter."""
    lines = []
    for chapter in CHAPTERS:
        lines += [f"## {chapter.replace('_', ' ').capitalize()}", ""]
        for one in identities().values():
            if chapter_of(one) != chapter:
                continue
            lines += [
                f"(identity-{one.name})=",
                f"### {one.name}",
                "",
                f"Equation {{eq}}`{one.name}`: `{one.statement}`",
                "",
                f"- Source: {one.source}",
                f"- Code: {_code(one)}",
                f"- Residual: {measured(one.name):.1e} over {DRAWS} random draws; it may be {one.tolerance:.0e}",
                f"- Planted mistake that the test rejects: {one.mistake}",
                f"- Test: `pytest tests/test_theory.py -k {one.name}`, which runs [these lines](#the-tests)",
                "",
                f"```{{literalinclude}} identities/{chapter}.py",
                f":pyobject: {one.name.replace('-', '_')}",
                "```",
                "",
            ]
    return "\n".join(lines)


def _data(found: re.Match[str]) -> str:
    """Return the entries of a module's public objects that are neither classes nor functions, which autodoc passes over."""
    module = import_module(found[1])
    public = {name: one for name, one in vars(module).items() if name in module.__all__}  # in the order of the file
    names = [name for name, one in public.items() if not inspect.isroutine(one) and not inspect.isclass(one)]
    entries = [f".. autodata:: {found[1]}.{name}\n   :no-value:\n" for name in names]
    return "\n".join(["```{eval-rst}", *entries, "```"])


def _fill(app: Any, docname: str, source: list[str]) -> None:
    text = DATA.sub(_data, source[0])
    source[0] = text.replace(IDENTITIES, page()) if IDENTITIES in text else text


def _outdated(app: Any, env: Any, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """Every page is read again when the code changes: its figures are drawn by the code."""
    digest = hashlib.sha256()
    for path in sorted(
        path for folder in ("unigen", "theory", "experiments") for path in (ROOT / folder).rglob("*.py")
    ):
        digest.update(path.read_bytes())
    before, env.code_digest = getattr(env, "code_digest", None), digest.hexdigest()
    return [] if before == env.code_digest else sorted(env.found_docs)


def setup(app: Any) -> dict[str, bool]:
    """Register the directive ``identity`` and the page."""
    app.add_directive("identity", IdentityBox)
    app.connect("source-read", _fill)
    app.connect("env-get-outdated", _outdated)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
