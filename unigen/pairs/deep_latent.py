"""The latent-variable pair of several stochastic layers, z_1 nearest the data to z_L (Rezende et al. 2014; Burda et al. 2016).

    p: z_L ~ N(0, I),  z_l ~ N(m(z_{l+1}), diag s(z_{l+1})^2),  x ~ p_theta(x|z_1)
    q: z_1 ~ N(mu(x), diag sigma(x)^2),  z_{l+1} ~ N(mu(z_l), diag sigma(z_l)^2)

Every conditional has a network of its own; Burda, Grosse and Salakhutdinov (2016) put tanh layers 200-200 between x and
z_1 (100) and 100-100 between z_1 and z_2 (50).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.functional import softplus

from unigen.networks import MLP, Networks
from unigen.pair import Pair
from unigen.pairs.latent import SMALLEST_SCALE, UNIT
from unigen.pairs.likelihoods import Likelihood
from unigen.streams import isolated

__all__ = ["DeepLatentGuide", "DeepLatentModel", "deep_latent"]


def _normal(raw: Tensor) -> Any:
    """The two halves of ``raw`` are mean and, by softplus, standard deviation; raw = 0 is the standard normal."""
    loc, scale = raw.chunk(2, -1)
    return dist.Normal(loc, softplus(scale + UNIT) + SMALLEST_SCALE, validate_args=False).to_event(1)


class DeepLatentModel(PyroModule):
    """Sites zL (the top) to z1, and x; ``down[l]`` maps z_{l+2} to mean and scale of z_{l+1}, counted from zero."""

    def __init__(self, generator: nn.Module, down: Sequence[nn.Module], top: int, likelihood: Likelihood) -> None:
        super().__init__()
        self.generator, self.top, self.likelihood = generator, top, likelihood
        self.down = nn.ModuleList(down)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            prior = dist.Normal(x.new_zeros(self.top), 1.0, validate_args=False).to_event(1)
            z = pyro.sample(f"z{len(self.down) + 1}", prior)
            for level in range(len(self.down), 0, -1):
                z = pyro.sample(f"z{level}", _normal(self.down[level - 1](z)))
            pyro.sample("x", self.likelihood.distribution(self.generator(z)), obs=x)


class DeepLatentGuide(PyroModule):
    """q(z1|x) q(z2|z1) ..., each a diagonal normal; ``up[l]`` maps z_{l+1} to mean and scale of z_{l+2}."""

    def __init__(self, trunk: nn.Module, head: nn.Module, up: Sequence[nn.Module]) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head
        self.up = nn.ModuleList(up)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z1", _normal(self.head(self.trunk(x))))
            for level, network in enumerate(self.up, 2):
                z = pyro.sample(f"z{level}", _normal(network(z)))


def deep_latent(
    networks: Networks,
    widths: Sequence[int] = (50,),
    hidden: Sequence[int] = (100, 100),
    likelihood: Likelihood | str = "bernoulli",
    psi: Mapping[str, nn.Module] | None = None,
    *,
    activation: str = "tanh",
) -> Pair:
    """Return the pair over a network set, which holds the networks between x and z1. It offers a bound on log p(x).

    ``widths``: of z2, z3, ...; z1 has ``networks.latent``, and with no widths the pair is the shallow one. ``hidden``: of the
    networks between z1 and z2, in the guide's direction; each further level halves them. Weights depend on the seed of the set.
    """
    if any(width < 1 for width in (*widths, *hidden)):
        raise ValueError(f"layers have at least one unit; got widths {tuple(widths)} and hidden {tuple(hidden)}")
    likelihood = Likelihood(likelihood) if isinstance(likelihood, str) else likelihood
    down, up = [], []
    below = networks.latent
    like = next(networks.generator.parameters())
    with isolated(networks.seed), torch.device("cpu"):
        for level, width in enumerate(widths):
            inner = tuple(max(1, units >> level) for units in hidden)
            down.append(MLP(width, inner[::-1], 2 * below, activation).to(like))
            up.append(MLP(below, inner, 2 * width, activation).to(like))
            below = width
    model = DeepLatentModel(networks.generator, down, below, likelihood)
    return Pair(model, DeepLatentGuide(networks.trunk, networks.head(2 * networks.latent), up), psi)
