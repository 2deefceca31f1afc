"""Tables: random distributions on a few symbols, and pairs whose programs are nothing but tables of log-probabilities.

The pairs are ordinary Pyro programs that the engine runs; what they mean is read off their parameters by ``log_softmax``.
"""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Generator, Tensor, nn

from unigen.pair import Pair
from unigen.pairs.likelihoods import Stratified

__all__ = ["LatentTables", "Lookup", "gan_pair", "latent_pair", "normals", "rows_of", "scatter", "simplex"]


def normals(generator: Generator, *shape: int) -> Tensor:
    """Draw standard normal numbers, float64."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def rows_of(p: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return every symbol as a batch of one row, with its probability: the data distribution p as ``expected`` takes it."""
    return [(share, torch.tensor([x])) for x, share in enumerate(p)]


def simplex(generator: Generator, *shape: int) -> Tensor:
    """Draw probabilities (..., C) that sum to one over the last dimension, all positive."""
    return torch.softmax(normals(generator, *shape), -1)


def scatter(pair: Pair, generator: Generator, scale: float = 0.7) -> Pair:
    """Give every parameter a random value of this size, in double precision."""
    pair.double()
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.copy_(scale * normals(generator, *parameter.shape))
    return pair


class Lookup(nn.Module):
    """f(x) = table[x] for a symbol x."""

    def __init__(self, symbols: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(symbols))

    def forward(self, x: Tensor) -> Tensor:
        return self.table[x]


# -- z ~ Categorical, x ~ Categorical given z ----------------------------------------------------------------------------


class _LatentModel(PyroModule):
    """z ~ Categorical(prior), x ~ Categorical(table_z)."""

    def __init__(self, latents: int, symbols: int) -> None:
        super().__init__()
        self.prior, self.table = nn.Parameter(torch.zeros(latents)), nn.Parameter(torch.zeros(latents, symbols))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=self.prior))
            pyro.sample("x", dist.Categorical(logits=self.table[z]), obs=x)


class _LatentGuide(PyroModule):
    """z ~ Categorical(table_x)."""

    def __init__(self, latents: int, symbols: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(symbols, latents))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=self.table[x]))


class LatentTables:
    """Read a pair of ``latent_pair``: tables with x in rows and z in columns, that carry gradient."""

    def __init__(self, pair: Any) -> None:
        self.pair = pair

    @property
    def log_prior(self) -> Tensor:
        """log p(z), (Z,)."""
        return torch.log_softmax(self.pair.model.prior, -1)

    @property
    def log_likelihood(self) -> Tensor:
        """log p(x|z), (X, Z)."""
        return torch.log_softmax(self.pair.model.table, -1).T

    @property
    def log_joint(self) -> Tensor:
        """log p(x, z), (X, Z)."""
        return self.log_prior + self.log_likelihood

    @property
    def log_evidence(self) -> Tensor:
        """log p(x), (X,)."""
        return torch.logsumexp(self.log_joint, -1)

    @property
    def posterior(self) -> Tensor:
        """p(z|x), (X, Z), by Bayes."""
        joint = self.log_joint.exp()
        return joint / joint.sum(-1, keepdim=True)

    @property
    def q(self) -> Tensor:
        """q(z|x), (X, Z)."""
        return torch.softmax(self.pair.guide.table, -1)


def latent_pair(generator: Generator, latents: int = 3, symbols: int = 3) -> tuple[Pair, LatentTables]:
    """Return a pair of random tables with a psi network ``critic`` and ``constraint``, and its tables."""
    psi = {"critic": Lookup(symbols), "constraint": Lookup(symbols)}
    pair = scatter(Pair(_LatentModel(latents, symbols), _LatentGuide(latents, symbols), psi), generator)
    return pair, LatentTables(pair)


# -- a generator of symbols against a discriminator of symbols -----------------------------------------------------------


class _Rows(dist.TorchDistribution):
    """Symbols (2N,): the data in the first half of the rows, Categorical(logits) in the second."""

    arg_constraints: dict[str, Any] = {}
    has_rsample = False

    def __init__(self, data: Tensor, logits: Tensor) -> None:
        self.data, self.logits = data, logits
        super().__init__(logits.shape[:-1], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Rows:
        return _Rows(self.data, self.logits.expand(*batch_shape, self.logits.shape[-1]))

    def joint_values(self) -> Tensor:
        """Return every value of all rows, (S^N, 2N)."""
        rows, symbols = len(self.data), self.logits.shape[-1]
        generated = torch.cartesian_prod(*[torch.arange(symbols)] * rows).reshape(-1, rows)
        return torch.cat([self.data.expand(len(generated), -1), generated], -1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        generated = dist.Categorical(logits=self.logits[len(self.data) :]).sample(sample_shape)
        return torch.cat([self.data, generated], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        rows = len(self.data)
        log_p = torch.log_softmax(self.logits[rows:], -1).gather(-1, value[rows:, None]).squeeze(-1)
        return torch.cat([torch.zeros_like(log_p), log_p])


class _GanModel(PyroModule):
    """y stratified, z uniform where there are latents, x ~ Categorical(table_z) where y = 0, the data where y = 1."""

    def __init__(self, symbols: int, latents: int) -> None:
        super().__init__()
        self.latents = latents
        self.table = nn.Parameter(torch.zeros(max(latents, 1), symbols))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", 2 * len(x)):
            pyro.sample("y", Stratified.of(x.double()))
            z = torch.zeros(2 * len(x), dtype=torch.long)
            if self.latents:
                z = pyro.sample("z", dist.Categorical(logits=torch.zeros(self.latents, dtype=self.table.dtype)))
            pyro.sample("x", _Rows(x, self.table[z]))


class _GanGuide(PyroModule):
    """y ~ Bernoulli(odds_x); with latents z ~ Categorical(code_{y, x}) too."""

    def __init__(self, symbols: int, latents: int) -> None:
        super().__init__()
        self.odds = nn.Parameter(torch.zeros(symbols))
        self.code = nn.Parameter(torch.zeros(2, symbols, latents)) if latents else None

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(logits=self.odds[x]))
            if self.code is not None:
                pyro.sample("z", dist.Categorical(logits=self.code[y.long(), x]))


def gan_pair(generator: Generator, symbols: int = 3, latents: int = 0) -> Any:
    """Return a GAN over symbols as a pair of random tables: ``model.table``, ``guide.odds``, psi ``constraint``.

    With ``latents`` the generator has a code z, and the guide infers it from x and y (InfoGAN).
    """
    psi = {"constraint": Lookup(symbols)}
    return scatter(Pair(_GanModel(symbols, latents), _GanGuide(symbols, latents), psi, likelihood="none"), generator)
