"""The identities of the field, each checked against the library's own engine: one module a chapter, one object an identity.

``identities()`` lists them by name, ``residuals`` computes |left - right| on random draws. From the command line, with
``theory`` on the path: ``python -m identities`` lists, ``python -m identities check [NAME ...]`` checks.
"""

from __future__ import annotations

from importlib import import_module

import torch

from identities.identity import Identity, distance

__all__ = ["CHAPTERS", "NO_IDENTITY", "Identity", "chapter_of", "identities", "residual", "residuals"]

CHAPTERS = (
    "information",
    "variational",
    "autoencoding",
    "estimators",
    "wake_sleep",
    "adversarial",
    "critics",
    "unified",
    "standard_equation",
    "regularization",
    "flows",
)
"""The modules that hold identities, in the order of the site."""

NO_IDENTITY = {
    "G8": "names: the glossary of theory/pair.md and the aliases of unigen.pair.Pair, held by tests/test_site.py"
}
"""Requirements of the theory that are no identity, with what they are instead."""


def identities() -> dict[str, Identity]:
    """Return every identity by name, chapter by chapter, in the order of the files."""
    found: dict[str, Identity] = {}
    for chapter in CHAPTERS:
        for value in vars(import_module(f"identities.{chapter}")).values():
            if isinstance(value, Identity):
                if found.setdefault(value.name, value) is not value:
                    raise ValueError(f"two identities are named {value.name!r}; give each its own name")
    return found


def chapter_of(identity: Identity) -> str:
    """Return the name of the module that holds an identity."""
    for chapter in CHAPTERS:
        if any(value is identity for value in vars(import_module(f"identities.{chapter}")).values()):
            return chapter
    raise ValueError(f"identity {identity.name!r} is in no chapter: {', '.join(CHAPTERS)}")


def residuals(identity: Identity, draws: int = 20, seed: int = 0, wrong: bool = False) -> list[float]:
    """Return the largest |left - right| of each of ``draws`` random draws; ``wrong``: of the planted mistake.

    The draws come from a generator of their own, seeded by ``seed``: the global random stream is left as it was.
    """
    if draws < 1:
        raise ValueError(f"an identity is checked on at least one draw; got draws={draws}")
    generator = torch.Generator().manual_seed(seed)
    sides = identity.wrong if wrong else identity.check
    return [distance(*sides(generator)) for _ in range(draws)]


def residual(identity: Identity, draws: int = 20, seed: int = 0) -> float:
    """Return the largest |left - right| over ``draws`` random draws."""
    return max(residuals(identity, draws, seed))
