"""The tape of one run of a torch function: the list of the operations that torch carried out.

A tape is in single-assignment form: a write in place makes a new value, and views of what was written are taken anew when
they are read. ``unigen.engines.recorder`` makes tapes, ``unigen.engines.lowering`` evaluates them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

__all__ = ["DRAWS", "EAGERLY", "ELSEWHERE", "Node", "Ref", "Shape", "Tape", "alike", "frozen"]

EAGERLY = "use engine='eager'"
ELSEWHERE = f"{EAGERLY} or engine='compiled'"
DRAWS = f"the program draws random numbers of Python or numpy, which would be drawn once and stay; draw torch's, or {EAGERLY}"


@dataclass(frozen=True)
class Ref:
    """A value of a tape, by number."""

    number: int


@dataclass(frozen=True)
class Shape:
    """The shape and dtype of a value."""

    sizes: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Node:
    """One operation: its name in the table, its arguments with ``Ref`` for tensors, the values it makes, and its place."""

    name: str
    arguments: tuple[Any, ...]
    named: tuple[tuple[str, Any], ...]
    results: tuple[int, ...]
    draw: int | None = None  # which of the tape's random draws it makes
    where: str = field(default="", compare=False)

    def refs(self) -> list[int]:
        """Return the numbers of the values that it reads."""
        return [leaf.number for leaf in tree_leaves((self.arguments, self.named)) if isinstance(leaf, Ref)]


@dataclass(eq=False)
class Tape:
    """The operations of one run. ``inputs``, ``outputs``, ``written`` (the last value of each input that was written to)
    and ``constants`` are numbers of values; ``draws`` are the results of the random operations, in their order. ``outside``:
    the tensors that the run found and did not make, with their versions.
    """

    shapes: list[Shape]
    nodes: list[Node]
    inputs: dict[str, int]
    outputs: list[int | None]
    written: dict[str, int]
    constants: dict[int, Any]
    draws: list[Tensor]
    outside: list[tuple[Tensor, int]] = field(default_factory=list)

    @property
    def stale(self) -> bool:
        """Whether a tensor from outside that the run took for a constant has been written to since."""
        return any(tensor._version != version for tensor, version in self.outside)

    @cached_property
    def key(self) -> tuple[Any, ...]:
        """All of the tape but the values of its constants and draws: tapes of one key compute the same function."""
        return (
            tuple(self.shapes), tuple(self.live()), tuple(self.inputs.items()), tuple(self.outputs),
            tuple(self.written.items()), tuple(self.constants),
        )  # fmt: skip

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tape) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def bare(self) -> Tape:
        """Return the tape without the constants' values, which are then handed to each evaluation."""
        return replace(self, constants=dict.fromkeys(self.constants), draws=[], outside=[])

    def live(self) -> list[Node]:
        """Return the operations that an output or a written input needs."""
        wanted = {number for number in self.outputs if number is not None} | set(self.written.values())
        kept = []
        for node in reversed(self.nodes):
            if wanted.intersection(node.results):
                kept.append(node)
                wanted.update(node.refs())
        return kept[::-1]


def alike(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Whether two sequences hold the same numbers."""
    return len(one) == len(other) and all(
        a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
        for a, b in zip(one, other, strict=True)
    )


def frozen(tree: Any) -> Any:
    """Return the arguments of an operation with tuples for lists, so that tapes can be compared."""
    return tuple(frozen(part) for part in tree) if isinstance(tree, list | tuple) else tree
