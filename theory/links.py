"""The links between equations, code, tests and literature, read from the sources and resolved without building the site.

A public docstring ends in ``Theory: label, label [key, key].``: labels of equations in the chapters, keys of refs.bib.
An identity is named as the label of its equation, and says itself which public objects it is about. A failure is a module of
``experiments/failures``, drawn by a cell of one chapter; its tests are those of tests/test_failures.py that name the module.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections import Counter
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from failures import NAMES
from identities import Identity, identities

from unigen import divergences, logic, objectives, routines
from unigen.phases import Routine

__all__ = [
    "Reference",
    "Sources",
    "cited",
    "equations",
    "problems",
    "public",
    "reference",
    "sources",
    "tests_of_failures",
]

HERE = Path(__file__).parent
LINE = re.compile(r"^Theory:\s+(?P<labels>[\w\s,-]+?)\s*\[(?P<keys>[\w\s,-]+)\]\.$", re.M)


@dataclass(frozen=True)
class Reference:
    """What a docstring names: labels of equations, keys of refs.bib."""

    labels: tuple[str, ...]
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Sources:
    """What is linked: chapters, public docstrings, identities, the tests of failures, each by name; the text of refs.bib."""

    chapters: dict[str, str]
    bibliography: str
    docstrings: dict[str, str]
    identities: dict[str, Identity]
    failures: dict[str, tuple[str, ...]]


def public() -> dict[str, Any]:
    """Return every public routine, objective, divergence and rule by its dotted name."""
    found: dict[str, Any] = {f"unigen.routines.{name}": one for name, one in routines.catalogue().items()}
    for module in (objectives, divergences, logic):
        found |= {f"{module.__name__}.{name}": getattr(module, name) for name in module.__all__}
    return {name: one for name, one in found.items() if _documented(one)}


def _documented(one: Any) -> bool:
    instance = isinstance(one, Routine | divergences.FDivergence)
    return instance or inspect.isroutine(one) or inspect.isclass(one)


def reference(docstring: str) -> Reference | None:
    """Return what the last line ``Theory: ...`` of a docstring names, or None."""
    found = LINE.search(docstring)
    return Reference(_names(found["labels"]), _names(found["keys"])) if found else None


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def sources() -> Sources:
    """Read the sources as they are."""
    return Sources(
        {path.relative_to(HERE).as_posix(): path.read_text(encoding="utf-8") for path in _pages()},
        (HERE / "refs.bib").read_text(encoding="utf-8"),
        {name: inspect.getdoc(one) or "" for name, one in public().items()},
        identities(),
        tests_of_failures(),
    )


def tests_of_failures() -> dict[str, tuple[str, ...]]:
    """Return the names of the tests of each failure: the functions that read its module, directly or by another."""
    tree = ast.parse((HERE.parent / "tests" / "test_failures.py").read_text(encoding="utf-8"))
    functions = {one.name: one for one in tree.body if isinstance(one, ast.FunctionDef)}
    read = {
        name: {node.id for node in ast.walk(one) if isinstance(node, ast.Name)} & {*NAMES, *functions}
        for name, one in functions.items()
    }
    reaches = {name: used.union(*(read[other] for other in used if other in read)) for name, used in read.items()}
    return {
        name: tuple(test for test in functions if test.startswith("test_") and name in reaches[test]) for name in NAMES
    }


def _pages() -> list[Path]:
    return sorted(path for path in HERE.rglob("*.md") if "_build" not in path.parts)


def equations(chapter: str) -> list[str]:
    """Return the labels of a chapter's equations, in order."""
    return re.findall(r"^```\{math\}\n:label: ([\w-]+)$", chapter, re.M)


def cited(text: str) -> set[str]:
    """Return the keys that a page cites."""
    return {key for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text) for key in _names(keys)}


def problems(given: Sources) -> list[str]:
    """Return one sentence a broken link, in either direction; none where every link holds."""
    named = {name: reference(text) for name, text in given.docstrings.items()}
    labels = Counter(label for text in given.chapters.values() for label in equations(text))
    entries = Counter(re.findall(r"^@\w+\{([\w-]+),", given.bibliography, re.M))
    return [
        *(f"two equations are labelled {label}" for label, count in labels.items() if count > 1),
        *(f"two entries of refs.bib are called {key}" for key, count in entries.items() if count > 1),
        *_from_code(given, named, labels, entries),
        *_from_equations(given, named, labels),
        *_within_chapters(given, labels),
        *_failures(given),
        *_literature(given, named, entries),
    ]


def _from_code(given: Sources, named: dict[str, Reference | None], labels: Any, entries: Any) -> list[str]:
    found = []
    for name, one in named.items():
        if one is None:
            found.append(f"{name} names no equation: its docstring lacks a line 'Theory: label [key].'")
            continue
        found += [
            f"{name} names the equation {label}, which no chapter has" for label in one.labels if not labels[label]
        ]
        found += [f"{name} cites {key}, which refs.bib lacks" for key in one.keys if not entries[key]]
    for name, identity in given.identities.items():
        if not labels[name]:
            found.append(f"the identity {name} has no equation of this label in a chapter")
        found += [
            f"the identity {name} is about {path}, which does not exist" for path in identity.objects if not _is(path)
        ]
    return found


def _is(path: str) -> bool:
    module, _, name = path.rpartition(".")
    try:
        return hasattr(import_module(module), name)
    except ImportError:
        return False


def _from_equations(given: Sources, named: dict[str, Reference | None], labels: Any) -> list[str]:
    used = {label for one in named.values() if one for label in one.labels} | set(given.identities)
    found = [
        f"the equation {label} has no code: no identity, and no docstring names it"
        for label in labels
        if label not in used
    ]
    included = Counter(
        name
        for text in given.chapters.values()
        for name in re.findall(r"\{literalinclude\} \.\./unigen/routines\.py\n:pyobject: (\w+)", text)
    )
    for name in given.docstrings:
        module, _, short = name.rpartition(".")
        if module == "unigen.routines" and not included[short]:
            found.append(f"no chapter includes the declaration of {name}")
    return found


def _within_chapters(given: Sources, labels: Any) -> list[str]:
    found = []
    boxed: Counter[str] = Counter()
    for page, text in given.chapters.items():
        here = set(equations(text))
        for label in re.findall(r"\{eq\}`([^`]+)`", text):
            if not labels[label]:
                found.append(f"{page} refers to the equation {label}, which no chapter has")
        for name in re.findall(r"^```\{identity\} ([\w-]+)$", text, re.M):
            boxed[name] += 1
            if name not in given.identities:
                found.append(f"{page} shows the check of {name}, which is no identity")
            elif name not in here:
                found.append(f"{page} shows the check of {name}, whose equation is elsewhere")
        for path in re.findall(r"\{py:\w+\}`~?(unigen[\w.]+)`", text):
            if not _is(path):
                found.append(f"{page} links {path}, which does not exist")
    return found + [
        f"no chapter shows the check of the identity {name}" for name in given.identities if not boxed[name]
    ]


def _failures(given: Sources) -> list[str]:
    found = [f"the failure {name} has no test" for name, tests in given.failures.items() if not tests]
    shown: Counter[str] = Counter()
    for page, text in given.chapters.items():
        for cell, name in re.findall(
            r"```\{code-cell\} python\n((?:(?!^```).)*?)^```\n\n```\{failure\} (\w+)$", text, re.S | re.M
        ):
            if re.search(rf"^from failures import {name}( as \w+)?$", cell, re.M) and "draw(" in cell:
                shown[name] += 1
        for name in re.findall(r"^```\{failure\} (\w+)$", text, re.M):
            if name not in given.failures:
                found.append(f"{page} shows the failure {name}, which is none")
    return found + [
        f"the failure {name} is drawn by {shown[name]} cells of chapters, not by one"
        for name in given.failures
        if shown[name] != 1
    ]


def _literature(given: Sources, named: dict[str, Reference | None], entries: Any) -> list[str]:
    by_page = {page: cited(text) for page, text in given.chapters.items()}
    found = [
        f"{page} cites {key}, which refs.bib lacks"
        for page, keys in by_page.items()
        for key in keys
        if not entries[key]
    ]
    every = set().union(*by_page.values(), *(one.keys for one in named.values() if one))
    return found + [f"nothing cites the entry {key} of refs.bib" for key in entries if key not in every]
