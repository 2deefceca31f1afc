"""An identity of the field as an object: what it says, where it is from, what of unigen it is about, and how to check it.

Both sides are computed by independent routes: the library's own engine on a pair small enough to enumerate, against the
formula written out by hand. Each identity also carries a planted mistake, which the same check must reject.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

__all__ = ["Identity", "Sides", "distance", "identity", "stack"]

Sides = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Identity:
    """State left = right, with two routes to compute it.

    name: what the command line, the tests and the equation's label on the site call it. statement: one line of
    mathematics. source: paper and equation. objects: dotted names of what it is about in unigen. rows: the requirements
    that it covers. check: generator -> (left, right), for one random draw. wrong: the same with ``mistake`` planted in one
    side. tolerance: on the largest entry of |left - right|.
    """

    name: str
    statement: str
    source: str
    objects: tuple[str, ...]
    rows: tuple[str, ...]
    mistake: str
    check: Callable[[Generator], Sides] = field(compare=False, repr=False)
    wrong: Callable[[Generator], Sides] = field(compare=False, repr=False)
    tolerance: float = 1e-10


def identity(
    statement: str,
    source: str,
    objects: tuple[str, ...],
    rows: tuple[str, ...],
    mistake: str,
    tolerance: float = 1e-10,
) -> Callable[[Callable[[Generator, bool], Sides]], Identity]:
    """Turn a function (generator, wrong) -> (left, right) into the ``Identity`` of its name, hyphens for underscores."""

    def wrap(sides: Callable[[Generator, bool], Sides]) -> Identity:
        return Identity(
            sides.__name__.replace("_", "-"),
            statement,
            source,
            objects,
            rows,
            mistake,
            lambda generator: sides(generator, False),
            lambda generator: sides(generator, True),
            tolerance,
        )

    return wrap


def stack(*parts: Tensor | float) -> Tensor:
    """Flatten numbers and tensors of any shape into one float64 vector."""
    return torch.cat([torch.as_tensor(part, dtype=torch.float64).detach().reshape(-1) for part in parts])


def distance(left: Tensor, right: Tensor) -> float:
    """Return the largest |left - right|: 0 where both are the same infinity, infinite where either is not a number.

    Raises ``ValueError`` for two shapes, which would compare by broadcasting.
    """
    if left.shape != right.shape:
        raise ValueError(f"two sides of one identity have one shape; got {tuple(left.shape)} and {tuple(right.shape)}")
    gap = torch.where(left == right, 0.0, (left - right).abs().double())
    return float(torch.nan_to_num(gap, nan=math.inf, posinf=math.inf).max())
