"""The engines, by name: each takes the steps of a routine on a pair (``advance``), and all take the same steps, to rounding.

``eager`` is the reference, on Pyro's handlers. ``compiled`` makes a phase, its gradient and its update one graph. ``xla`` makes
many steps one JAX program.
"""

import importlib
from types import ModuleType

import numpy

from unigen.names import nearest

__all__ = ["ENGINES", "engine_named"]

ENGINES = ("eager", "compiled", "xla")


def engine_named(name: str) -> ModuleType:
    """Return an engine by name, imported when it is asked for; ``ValueError`` with the nearest name otherwise."""
    if name not in ENGINES:
        raise ValueError(f"no engine {name!r}; {nearest(name, ENGINES)}")
    before = numpy.random.get_state()  # noqa: NPY002 - importing jax draws from numpy's global stream
    try:
        return importlib.import_module(f"unigen.engines.{name}")
    finally:
        numpy.random.set_state(before)  # noqa: NPY002
