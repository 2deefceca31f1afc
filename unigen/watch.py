"""Watching a run for numbers that are not finite: one number a phase tells, and only then somebody looks for the cause.

An engine returns for each phase a value that is not finite where its objective or a parameter that it has moved is not. A
gradient that is not finite makes such a parameter, bad data such an objective.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unigen.failures import out_of_memory
from unigen.phases import Phase

if TYPE_CHECKING:
    from unigen.training import State

__all__ = ["TrainingError", "Watch"]


class TrainingError(RuntimeError):
    """A run that cannot go on; the sentence names the phase, the step, what is not finite and what to try."""


class Watch:
    """Called after each step with its values, raises ``TrainingError`` where one is not finite.

    On a GPU the values of a step are read while the next one runs, so that nobody waits; ``settle`` reads the last.
    """

    def __init__(self, names: Sequence[str], phases: Sequence[Phase]) -> None:
        self.names, self.phases = names, phases
        self.waiting: tuple[State, int, Tensor, Any, Sequence[Sequence[Any]]] | None = None

    def __call__(self, state: State, values: Tensor, batches: Sequence[Sequence[Any]]) -> None:
        """Take the values (steps, phases) of the steps after ``state.step``, taken on ``batches``."""
        if not values.is_cuda:
            if not math.isfinite(values.sum().item()):
                self._explain(state, state.step, values, batches)
            return
        self.settle()
        read = torch.empty(values.shape, dtype=values.dtype, device="cpu", pin_memory=True).copy_(
            values, non_blocking=True
        )
        done = torch.cuda.Event()
        done.record()
        self.waiting = (state, state.step, read, done, batches)

    def settle(self) -> None:
        """Look at the values that have not been looked at."""
        if self.waiting is not None:
            state, step, values, done, batches = self.waiting
            self.waiting = None
            done.synchronize()
            if not math.isfinite(values.sum().item()):
                self._explain(state, step, values, batches)

    def failed(self, state: State, error: Exception, batches: Sequence[Sequence[Any]]) -> None:
        """Raise ``TrainingError`` where an error came from numbers that are not finite, such as a distribution's refusal."""
        if out_of_memory(error):
            return
        culprits = [culprit for batch in batches for culprit in _culprits(state, batch)]
        if culprits:
            where = next(iter(getattr(error, "__notes__", ())), "the routine")
            self._raise(where, state.step + 1, culprits, error)

    def _explain(self, state: State, step: int, values: Tensor, batches: Sequence[Sequence[Any]]) -> None:
        """Name the first phase with a value that is not finite, and what else is not: data, gradients, parameters."""
        bad = (~values.isfinite()).nonzero().tolist()
        if bad:  # else the sum of finite values overflowed, and a later step tells
            row, column = bad[0]
            culprits = _culprits(state, batches[row], self.phases[column].move)
            found = list(culprits) or [f"its value is {values[row, column].item()}"]
            self._raise(f"phase '{self.names[column]}'", step + row + 1, found)

    def _raise(self, where: str, step: int, culprits: list[str], error: Exception | None = None) -> None:
        remedy = "try a smaller learning rate, a bounded variance or smaller weights at the start"
        if culprits[0].startswith("data"):
            remedy = "look for bad data"
        raise TrainingError(f"{where} is not finite at step {step}: {'; '.join(culprits)}; {remedy}") from error


def _culprits(state: State, batch: Sequence[Any], first: Sequence[str] = ()) -> Iterator[str]:
    for x in batch:
        for name, value in state.pair.bind(x).items():
            dense = isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta
            if dense and not (finite := value.isfinite()).all():
                yield f"data '{name}' has {int((~finite).sum())} entries that are not finite"
    for group in sorted(("theta", "phi", "psi"), key=lambda group: group not in first):
        named = state.pair.named_group(group)
        slopes = [name for name, own in named if own.grad is not None and not own.grad.isfinite().all()]
        broken = [name for name, own in named if not own.isfinite().all()]
        for what, names in (("gradient of", slopes), ("parameter", broken)):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                yield f"{group} {what} '{names[0]}'{more}"
