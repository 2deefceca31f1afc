"""The GAN as a pair: y ~ p(y), z ~ N(0, I), x ~ p_theta(x|y); the guide is the discriminator q_phi(y|x).

p_theta(x|y=1) is the data, p_theta(x|y=0) the implicit generator G(z) (Hu et al. 2018, Eq. 4; Goodfellow et al. 2014).
x is what the guide sees and y what it infers, so the discriminator's step is the sleep phase of phi. The plate holds the
batch of data first (y = 1), then as many generated rows (y = 0): objectives rely on that order.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from unigen.networks import Networks
from unigen.pair import Pair
from unigen.pairs.likelihoods import Implicit, Likelihood, Stratified

__all__ = ["AdversarialModel", "Discriminator", "adversarial"]


class AdversarialModel(PyroModule):
    """p(y) p(z) p_theta(x|y, z): rows x (2N, D), the first N the data, the others G(z)."""

    def __init__(self, generator: nn.Module, latent: int, likelihood: Likelihood) -> None:
        super().__init__()
        self.generator, self.latent, self.likelihood = generator, latent, likelihood

    def forward(self, x: Tensor) -> None:
        rows = len(x)
        with pyro.plate("data", 2 * rows):
            pyro.sample("y", Stratified.of(x))
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent), 1.0, validate_args=False).to_event(1))
            generated = self.likelihood.mean(self.generator(z[..., rows:, :]))  # rows with y = 1 need no G(z)
            both = torch.cat([x.expand(generated.shape), generated], -2)
            pyro.sample("x", Implicit(both, bounded=self.likelihood.bounded))


class Discriminator(PyroModule):
    """q_phi(y|x): Bernoulli with the head's output as log odds."""

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[-2]):
            pyro.sample("y", dist.Bernoulli(logits=self.head(self.trunk(x)).squeeze(-1), validate_args=False))


def adversarial(
    networks: Networks, likelihood: Likelihood | str = "bernoulli", psi: Mapping[str, nn.Module] | None = None
) -> Pair:
    """Return the GAN over a network set: the generator of ``latent``, and its inference trunk with a head for y.

    ``likelihood`` only maps the generator's raw output to data space (its mean): of one that is given, the pair takes a
    copy, whose scale is frozen. log p(x) is not to be had.
    """
    likelihood = Likelihood(likelihood) if isinstance(likelihood, str) else copy.deepcopy(likelihood)
    likelihood.requires_grad_(False)
    model = AdversarialModel(networks.generator, networks.latent, likelihood)
    return Pair(model, Discriminator(networks.trunk, networks.head(1)), psi, likelihood="none")
