"""A figure: one number of an evaluation with what it is a number of, and a refusal in the place of one that cannot be had.

bits per dimension = -log p / (D log 2), plus log2(levels) where the D values are levels of grey spread over [0, 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["KINDS", "Bounds", "Figure", "Refusal", "Refused", "bits_per_dimension", "mean_figure"]

KINDS = ("exact", "lower bound", "upper bound", "estimate", "distance")


class Refused(ValueError):
    """A figure that cannot be had for this pair; the sentence says why, and what can be had instead."""


@dataclass(frozen=True)
class Figure:
    """One number: its ``name``, ``value``, ``kind`` (one of ``KINDS``), ``units``, and ``n``, the data behind it.

    ``standard_error``: of the value; ``interval``: instead of it where the error is no single number. ``how``: the protocol
    in words. ``bits_per_dimension``: of a log-likelihood; a lower bound in nats is an upper bound there. ``warning``: why
    the number is not to be relied on, or "". ``per_datum``: (N,) where there is one number a datum.
    """

    name: str
    value: float
    kind: str
    units: str
    n: int
    standard_error: float | None = None
    interval: tuple[float, float] | None = None
    how: str = ""
    bits_per_dimension: float | None = None
    warning: str = ""
    per_datum: Tensor | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"a figure of kind {self.kind!r} is none of {', '.join(KINDS)}")

    def as_json(self) -> dict[str, Any]:
        """Return the figure as JSON has it: without its numbers per datum, and None for what is not finite."""
        entries = {name: value for name, value in vars(self).items() if name != "per_datum"}
        entries["interval"] = None if self.interval is None else list(self.interval)
        return {name: None if _infinite(value) else value for name, value in entries.items()}


def _infinite(value: object) -> bool:
    parts = value if isinstance(value, list) else [value]
    return any(isinstance(part, float) and not math.isfinite(part) for part in parts)


@dataclass(frozen=True)
class Refusal:
    """A figure that cannot be had: its ``name``, and in one sentence why, and what to do instead."""

    name: str
    why: str


class Bounds(NamedTuple):
    """Bounds on log p(x) of simulated data, and their difference; figures over the data."""

    lower: Figure
    upper: Figure
    gap: Figure


def bits_per_dimension(nats: float, dimension: int, levels: int | None = None) -> float:
    """Return -log p / (D log 2) of a datum, plus log2(levels) where ``levels`` of grey were dequantized to [0, 1).

    ``nats``: log p of a datum. ``dimension``: D. ``levels``: None for the mass of discrete data, and for densities of data
    that have no levels, where the bits are relative to the unit of x.

    >>> bits_per_dimension(-784 * math.log(2), 784)
    1.0
    """
    return -nats / (dimension * math.log(2)) + (math.log2(levels) if levels else 0.0)


def mean_figure(name: str, per_datum: Tensor, kind: str, units: str = "nats", **more: Any) -> Figure:
    """Return the figure of a mean over data (N,), with the standard error of that mean over the data, s / sqrt(N)."""
    values = per_datum.detach().double()
    error = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else None
    if error is not None and not torch.isfinite(values).all():
        error = None
    return Figure(
        name, float(values.mean()), kind, units, len(values), error, per_datum=per_datum.detach().cpu(), **more
    )
