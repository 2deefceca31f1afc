"""Running averages of the weights: w̄ <- d w̄ + (1 - d) w after every step, from w̄ = w at the first.

They belong to a pair as its persistent chains do: every engine moves them, and a checkpoint holds them. Averages of iterates
are due to Polyak and Juditsky (1992); the exponential ones are usual for generators of GANs (Yazici et al. 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from unigen.pair import Pair

__all__ = ["Averages", "averaged"]


@dataclass(frozen=True, eq=False)
class Averages:
    """``decay`` d in [0, 1), and ``weights``, the averages by the names of ``Pair.named_groups``, ``of`` these parameters."""

    decay: float
    weights: dict[str, Tensor]
    of: dict[str, Tensor]

    @classmethod
    def begin(cls, pair: Pair, decay: float) -> Averages:
        """Return averages that start at the weights of a pair; ``ValueError`` for a decay outside [0, 1)."""
        if isinstance(decay, bool) or not isinstance(decay, Real) or not 0 <= decay < 1:
            raise ValueError(
                f"the decay of averaged weights is at least 0 and less than 1, such as 0.999; got {decay!r}"
            )
        of: dict[str, Tensor] = dict(pair.named_groups())
        return cls(float(decay), {name: own.detach().clone() for name, own in of.items()}, of)

    def follow(self, pair: Pair) -> Averages:
        """Return these averages where the parameters are those of before; of others they begin."""
        now = Averages.begin(pair, self.decay)
        kept = [name for name, own in now.of.items() if self.of.get(name) is own]
        return replace(now, weights=now.weights | {name: self.weights[name] for name in kept})

    def moved(self, pair: Pair, move: Callable[[Tensor], Tensor]) -> Averages:
        """Return the averages of a pair that was moved to another device or dtype by ``move``."""
        return replace(
            self, weights={name: move(average) for name, average in self.weights.items()}, of=dict(pair.named_groups())
        )

    @torch.no_grad()
    def update(self, pair: Pair) -> None:
        """Take a step's weights in."""
        own: list[Tensor] = [parameter for _, parameter in pair.named_groups()]
        if own:
            torch._foreach_lerp_(list(self.weights.values()), own, 1 - self.decay)


@contextmanager
def averaged(pair: Pair) -> Iterator[Pair]:
    """Put the averages in the place of the weights, to evaluate or sample; after it the weights are back, to the last bit.

    Raises ``ValueError`` for a pair that was trained without (``fit(..., average=0.999)``).

    >>> from unigen import fit, routines
    >>> from unigen.pairs import sigmoid_belief
    >>> state, _ = fit(torch.bernoulli(torch.rand(8, 4)), routines.wake_sleep, sigmoid_belief(4, (2,)), steps=3,
    ...                average=0.9, progress=False)
    >>> with averaged(state.pair) as pair:
    ...     drawn = pair.model(torch.zeros(5, 4))
    """
    if pair.averages is None:
        raise ValueError("this pair has no averaged weights; train it by fit(..., average=0.999)")
    own = dict(pair.named_groups())
    before = {name: parameter.detach().clone() for name, parameter in own.items()}
    try:
        with torch.no_grad():
            for name, average in pair.averages.weights.items():
                own[name].copy_(average)
        yield pair
    finally:
        with torch.no_grad():
            for name, old in before.items():
                own[name].copy_(old)
