"""The mixture: z ~ Categorical(pi), x ~ Normal(mu_z, diag sigma_z^2) or Bernoulli(p_z); the guide a softmax of x and x^2.

With features x and x^2 the guide contains the exact posterior of a Gaussian mixture. ``solve`` is EM's M-step in closed
form (Dempster, Laird & Rubin 1977).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from unigen.names import nearest
from unigen.pair import Pair
from unigen.streams import isolated

__all__ = ["MixtureGuide", "MixtureModel", "mixture"]

SMALLEST_SCALE = 1e-2
SMALLEST_PROBABILITY = 1e-3


class MixtureModel(PyroModule):
    """sum_k pi_k p_k(x) with Normal or Bernoulli components over rows x (N, D)."""

    def __init__(self, components: int, dimension: int, likelihood: str = "normal") -> None:
        super().__init__()
        self.likelihood = likelihood
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(torch.zeros(components, dimension))
        self.log_scale = nn.Parameter(torch.zeros(components, dimension)) if likelihood == "normal" else None

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=self.logits))
            loc = self.loc[z]
            if self.log_scale is None:
                pyro.sample("x", dist.Bernoulli(logits=loc, validate_args=False).to_event(1), obs=x)
            else:
                pyro.sample("x", dist.Normal(loc, self.log_scale[z].exp()).to_event(1), obs=x)

    @torch.no_grad()
    def solve(self, draw: Any) -> None:
        """Set the parameters to argmax E[log p(x, z)] for an enumerated, weighted draw; never lowers log p(x).

        Scales and probabilities keep a floor; the clipped maximizer is the maximizer under that constraint.
        """
        x, z, weights = draw["x"], draw["z"], draw.weights
        shares = torch.zeros(len(self.logits), x.shape[0], dtype=x.dtype, device=x.device)
        shares.scatter_add_(0, z.expand(weights.shape), weights)  # (components, N) responsibilities
        total = shares.sum(1).clamp_min(torch.finfo(x.dtype).tiny)
        mean = shares @ x / total[:, None]
        self.logits.copy_(torch.log(total / total.sum()).clamp_min(math.log(1e-12)))
        used = (total > 1e-8)[:, None]
        if self.log_scale is None:
            probability = mean.clamp(SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
            self.loc.copy_(torch.where(used, torch.logit(probability), self.loc))
        else:
            variance = (shares[:, :, None] * (x - mean[:, None]).square()).sum(1) / total[:, None]
            self.loc.copy_(torch.where(used, mean, self.loc))
            scale = variance.sqrt().clamp_min(SMALLEST_SCALE).log()
            self.log_scale.copy_(torch.where(used, scale, self.log_scale))


class MixtureGuide(PyroModule):
    """q(z|x) = softmax(A [x, x^2] + b)."""

    def __init__(self, components: int, dimension: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * dimension, components)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=self.linear(torch.cat([x, x.square()], -1))))


def mixture(
    components: int,
    start: Tensor,
    *,
    likelihood: str = "normal",
    seed: int = 0,
    psi: Mapping[str, nn.Module] | None = None,
) -> Pair:
    """Return a mixture over rows like ``start`` (N, D), components started at random rows of it, by ``seed``.

    ``likelihood``: ``"normal"`` or ``"bernoulli"``. log p(x) is exact, by enumeration. ``psi``: the networks that a routine
    reads beside it, such as a baseline or a constraint, by name.
    """
    if likelihood not in ("normal", "bernoulli"):
        raise ValueError(f"no mixture of {likelihood!r}; {nearest(likelihood, ('normal', 'bernoulli'))}")
    if not 1 <= components <= len(start):
        raise ValueError(
            f"a mixture of {components} components needs at least as many rows to start from: {len(start)}"
        )
    with isolated(seed):
        model, guide = MixtureModel(components, start.shape[1], likelihood), MixtureGuide(components, start.shape[1])
        with torch.no_grad():
            rows = start[torch.randperm(len(start))[:components]]
            if model.log_scale is None:
                model.loc.copy_(torch.logit(0.25 + 0.5 * rows))
            else:
                model.loc.copy_(rows)
                model.log_scale.copy_(
                    start.std(0, correction=min(1, len(start) - 1))
                    .clamp_min(SMALLEST_SCALE)
                    .log()
                    .expand_as(model.log_scale)
                )
    return Pair(model, guide, psi, likelihood="exact")
