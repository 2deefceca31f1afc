"""A whole step as one CUDA graph: every kernel of its phases and updates, launched by one call of the driver.

The graph reads and writes the tensors of the pair and its optimizers where they lie, takes the batch from a copy of its own,
and advances torch's random stream as the same kernels launched one by one would.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Replay", "watched"]

Batch = Sequence[Mapping[str, Any]]


def watched(step: Callable[[Batch], Tensor], batch: Batch) -> tuple[Tensor, bool]:
    """Return what the step returns, and whether the host waited for the GPU in it, which no CUDA graph can hold.

    A failed recording would leave torch's random stream unusable.
    """
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            values = step(batch)
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return values, any("called a synchronizing CUDA operation" in str(warning.message) for warning in caught)


class Replay:
    """``step``, which takes a batch of CUDA tensors and has run on one of these shapes before, recorded as a graph."""

    def __init__(self, step: Callable[[Batch], Tensor], batch: Batch) -> None:
        self.batch = [
            {name: value.clone() if isinstance(value, Tensor) else value for name, value in data.items()}
            for data in batch
        ]
        self.inputs = _tensors(self.batch)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(_tensors(batch)[0].device), torch.cuda.graph(self.graph):
            self.values = step(self.batch)

    def __call__(self, batch: Batch) -> Tensor:
        """Take the step on another batch of these shapes and return what ``step`` would."""
        torch._foreach_copy_(self.inputs, _tensors(batch))
        self.graph.replay()
        return self.values.clone()


def _tensors(batch: Batch) -> list[Tensor]:
    return [value for data in batch for value in data.values() if isinstance(value, Tensor)]
