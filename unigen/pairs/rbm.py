"""The restricted Boltzmann machine: p(x, h) = exp(x'W h + b'x + c'h) / Z over bits, with an empty guide.

As a pair it has one site x with the unnormalized log density -F(x) = b'x + sum_j softplus(c_j + x'W_j); its partition
function cancels in contrastive divergence (Hinton 2002) and is enumerable for few units.
"""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.functional import softplus

from unigen.pair import Pair
from unigen.streams import isolated

__all__ = ["BoltzmannMachine", "RestrictedBoltzmann", "rbm"]

MOST_UNITS = 20
BLOCK = 2**14  # values of the smaller layer that are summed at once


class RestrictedBoltzmann(dist.TorchDistribution):
    """Bits x (D,) with log density -F(x) up to log Z; ``gibbs`` is one sweep x -> h -> x.

    ``weight`` (D, H), ``visible`` (D,), ``hidden`` (H,).
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.independent(constraints.boolean, 1)
    has_rsample = False
    normalized = False  # log_prob lacks -log Z: engines refuse it where log p must mean something by itself

    def __init__(self, weight: Tensor, visible: Tensor, hidden: Tensor, batch_shape: Any = ()) -> None:
        self.weight, self.visible, self.hidden = weight, visible, hidden
        super().__init__(torch.Size(batch_shape), visible.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> RestrictedBoltzmann:
        return RestrictedBoltzmann(self.weight, self.visible, self.hidden, batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return value @ self.visible + softplus(value @ self.weight + self.hidden).sum(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        raise NotImplementedError("an RBM has no exact sampler; run a Chain with the kernel Gibbs()")

    def gibbs(self, x: Tensor) -> Tensor:
        """Sample h ~ p(h|x), then x ~ p(x|h)."""
        h = torch.bernoulli(torch.sigmoid(x @ self.weight + self.hidden))
        return torch.bernoulli(torch.sigmoid(h @ self.weight.T + self.visible))

    def log_partition(self) -> Tensor:
        """log Z by enumerating the smaller layer; ``ValueError`` above ``MOST_UNITS`` units."""
        weight, inner, outer = self.weight, self.visible, self.hidden
        if len(outer) < len(inner):
            weight, inner, outer = weight.T, outer, inner
        if len(inner) > MOST_UNITS:
            raise ValueError(f"log Z of an RBM enumerates its smaller layer: {len(inner)} units, at most {MOST_UNITS}")
        parts = []
        for codes in torch.arange(2 ** len(inner), device=weight.device).split(BLOCK):
            bits = (codes[:, None] >> torch.arange(len(inner), device=weight.device)) & 1
            bits = bits.to(weight.dtype)
            parts.append(torch.logsumexp(bits @ inner + softplus(bits @ weight + outer).sum(-1), 0))
        return torch.logsumexp(torch.stack(parts), 0)


class BoltzmannMachine(PyroModule):
    """The program of one site x (N, D)."""

    def __init__(self, dimension: int, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.01 * torch.randn(dimension, hidden))
        self.visible = nn.Parameter(torch.zeros(dimension))
        self.hidden = nn.Parameter(torch.zeros(hidden))

    @property
    def distribution(self) -> RestrictedBoltzmann:
        """The distribution of one row."""
        return RestrictedBoltzmann(self.weight, self.visible, self.hidden)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", self.distribution, obs=x)


def rbm(dimension: int, hidden: int = 100, *, mean: Tensor | None = None, seed: int = 0) -> Pair:
    """Return the pair for binary rows (N, dimension); ``mean`` (dimension,) sets the visible bias to its logit."""
    if dimension < 1 or hidden < 1:
        raise ValueError(f"an RBM has at least one visible and one hidden unit; got {dimension} and {hidden}")
    with isolated(seed):
        model = BoltzmannMachine(dimension, hidden)
    if mean is not None:
        with torch.no_grad():
            model.visible.copy_(torch.logit(mean.clamp(0.001, 0.999)))
    return Pair(model, likelihood="exact" if min(dimension, hidden) <= MOST_UNITS else "none")
