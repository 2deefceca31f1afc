"""The latent-variable pair: z ~ N(0, I), x ~ p_theta(x|z); q_phi(z|x) = N(mu(x), diag sigma(x)^2).

The pair of the VAE (Kingma & Welling 2014), of IWAE, and of wake-sleep on continuous latents.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.functional import softplus

from unigen.networks import Networks
from unigen.pair import Pair
from unigen.pairs.likelihoods import Likelihood

__all__ = ["LatentGuide", "LatentModel", "latent"]

UNIT = 0.5413248546129181  # softplus(UNIT) = 1: a head that starts near zero starts at the prior's scale
SMALLEST_SCALE = 1e-4


class LatentModel(PyroModule):
    """p(z) p_theta(x|z) for rows x (N, D) and latents z (N, latent)."""

    def __init__(self, generator: nn.Module, latent: int, likelihood: Likelihood) -> None:
        super().__init__()
        self.generator, self.latent, self.likelihood = generator, latent, likelihood

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent), 1.0, validate_args=False).to_event(1))
            pyro.sample("x", self.likelihood.distribution(self.generator(z)), obs=x)


class LatentGuide(PyroModule):
    """q_phi(z|x), a diagonal normal; the head's two halves are its mean and, by softplus, its standard deviation."""

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc, raw = self.head(self.trunk(x)).chunk(2, -1)
            # softplus, not exp: wake-sleep trains the guide on dreams alone, and exp explodes off them
            pyro.sample("z", dist.Normal(loc, softplus(raw + UNIT) + SMALLEST_SCALE, validate_args=False).to_event(1))


def latent(
    networks: Networks, likelihood: Likelihood | str = "bernoulli", psi: Mapping[str, nn.Module] | None = None
) -> Pair:
    """Return the pair over a network set; ``likelihood`` by name or as a ``Likelihood``. It offers a bound on log p(x)."""
    likelihood = Likelihood(likelihood) if isinstance(likelihood, str) else likelihood
    model = LatentModel(networks.generator, networks.latent, likelihood)
    return Pair(model, LatentGuide(networks.trunk, networks.head(2 * networks.latent)), psi)
