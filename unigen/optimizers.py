"""The optimizers of a routine's parameter groups, and how their learning rates fall."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from unigen.names import nearest
from unigen.pair import Pair
from unigen.phases import Optimizer, Phase, Routine

__all__ = ["Falling", "optimizers_for"]


@dataclass(frozen=True)
class Falling:
    """A learning rate that falls linearly from lr to ``last`` over the budget: lr + (last - lr) progress.

    ``first``: the rate that falls to ``last``; any other, that of phi say, falls to the same fraction of its own. Without
    it every rate falls to ``last``.
    """

    last: float
    first: float | None = None

    def __call__(self, lr: float, progress: float) -> float:
        last = self.last if self.first is None else self.last * (lr / self.first)
        return lr + (last - lr) * min(max(progress, 0.0), 1.0)


def optimizers_for(
    routine: Routine | Iterable[Phase], pair: Pair, optimizer: Optimizer | None = None
) -> dict[str, torch.optim.Optimizer]:
    """Return one torch optimizer for each group that the routine moves, by the routine's own settings unless given."""
    settings = optimizer or (routine.optimizer if isinstance(routine, Routine) else Optimizer())
    phases = tuple(routine)
    made: dict[str, torch.optim.Optimizer] = {}
    pair.refresh()
    for group in ("theta", "phi", "psi"):
        parameters = pair.group(group)
        if not parameters or not any(group in phase.move for phase in phases):
            continue
        if settings.name == "Adam":
            made[group] = torch.optim.Adam(parameters, lr=settings.rate(group), betas=settings.betas, fused=True)
        elif settings.name == "RMSprop":
            made[group] = torch.optim.RMSprop(parameters, lr=settings.rate(group), capturable=parameters[0].is_cuda)
        elif settings.name == "SGD":
            made[group] = torch.optim.SGD(parameters, lr=settings.rate(group), fused=True)
        else:
            raise ValueError(f"no optimizer {settings.name!r}; {nearest(settings.name, ('Adam', 'RMSprop', 'SGD'))}")
    return made
