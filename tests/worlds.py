"""Pairs small enough to enumerate, by name: bits, symbols, normals, adversaries, a Boltzmann machine.

Some are programs written here, others the package's own pairs with a few units; each comes with its densities by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from oracles import (
    Density,
    Parameters,
    Tiny,
    TinyGan,
    bits,
    log_bit,
    log_category,
    log_normal,
    scatter,
)
from pyro.distributions import constraints
from pyro.distributions.torch_transform import TransformModule
from pyro.nn import PyroModule
from replay import hermite
from torch import Tensor, nn

from unigen.networks import Baseline, networks
from unigen.pair import Pair
from unigen.pairs import adversarial, latent, mixture, rbm, sigmoid_belief
from unigen.pairs.likelihoods import Stratified

__all__ = ["WORLDS", "baseline_by_hand", "one_layer", "smooth_gan"]

# -- networks of psi ---------------------------------------------------------------------------------------------------


class Bump(nn.Module):
    """f(x) = a.x + tanh(b.x + c)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(size)), nn.Parameter(torch.zeros(size))
        self.c = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.a + torch.tanh(x @ self.b + self.c)


class Lookup(nn.Module):
    """f(x) = table[x] for a symbol x."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.table[x]


def bump(t: Parameters, name: str, x: Tensor) -> Tensor:
    """``Bump`` by hand."""
    a, b, c = (t[f"psi.{name}.{part}"] for part in "abc")
    return (x * a).sum(-1) + torch.tanh((x * b).sum(-1) + c)


def lookup(t: Parameters, name: str, x: Tensor) -> Tensor:
    """``Lookup`` by hand."""
    return t[f"psi.{name}.table"][x]


MEAN = -0.75  # the running mean of the NVIL baseline, as if training had gone on for a while


def baseline_by_hand(t: Parameters, x: Tensor) -> Tensor:
    """NVIL's baseline, C_psi(x) + c; (N, S) of local signals."""
    hidden = torch.tanh(
        x @ t["psi.baseline.network.hidden.layers.0.weight"].T + t["psi.baseline.network.hidden.layers.0.bias"]
    )
    output = hidden @ t["psi.baseline.network.output.weight"].T + t["psi.baseline.network.output.bias"]
    return (output.squeeze(-1) if output.shape[-1] == 1 else output) + MEAN


def psi_of(size: int, outputs: int = 1) -> dict[str, nn.Module]:
    """Return a baseline, a critic and a constraint over rows of this size."""
    baseline = Baseline(size, (3,), outputs=outputs)
    baseline.mean.fill_(MEAN)
    return {"baseline": baseline, "critic": Bump(size), "constraint": Bump(size)}


# -- Bernoulli pairs ---------------------------------------------------------------------------------------------------


class OneLayerModel(PyroModule):
    """z ~ Bernoulli(a), x ~ Bernoulli(W z + b + c prod(z))."""

    def __init__(self, dimension: int, latent: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(latent))
        self.weight = nn.Parameter(torch.zeros(dimension, latent))
        self.b, self.c = nn.Parameter(torch.zeros(dimension)), nn.Parameter(torch.zeros(dimension))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(logits=self.a).to_event(1))
            logits = z @ self.weight.T + self.b + self.c * z.prod(-1, keepdim=True)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


class OneLayerGuide(PyroModule):
    """z ~ Bernoulli(V x + d + e prod(x))."""

    def __init__(self, dimension: int, latent: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(latent, dimension))
        self.d, self.e = nn.Parameter(torch.zeros(latent)), nn.Parameter(torch.zeros(latent))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            logits = x @ self.weight.T + self.d + self.e * x.prod(-1, keepdim=True)
            pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))


def _one_layer_densities() -> tuple[Density, Density, Density]:
    def log_prior(t: Parameters, z: Tensor) -> Tensor:
        return log_bit(t["theta.a"], z).sum(-1)

    def log_likelihood(t: Parameters, x: Tensor, z: Tensor) -> Tensor:
        logits = (t["theta.weight"] * z.unsqueeze(-2)).sum(-1) + t["theta.b"] + t["theta.c"] * z.prod(-1, keepdim=True)
        return log_bit(logits, x).sum(-1)

    def log_q(t: Parameters, x: Tensor, z: Tensor) -> Tensor:
        logits = (t["phi.weight"] * x.unsqueeze(-2)).sum(-1) + t["phi.d"] + t["phi.e"] * x.prod(-1, keepdim=True)
        return log_bit(logits, z).sum(-1)

    return log_prior, log_likelihood, log_q


def one_layer(latent: int = 2, dimension: int = 2) -> Tiny:
    """A layer of bits below a row of bits."""
    pair = Pair(OneLayerModel(dimension, latent), OneLayerGuide(dimension, latent), psi_of(dimension))
    scatter(pair, 1)
    xs = bits(dimension)
    return Tiny(
        pair, xs[torch.tensor([1, 2, 3, 0, 2, 1]) % len(xs)], xs, bits(latent), *_one_layer_densities(), psi=bump
    )


class PlatedModel(OneLayerModel):
    """The same model with its bits in a plate of their own instead of an event, to the left of the rows."""

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            with pyro.plate("bits", len(self.a), dim=-2):
                z = pyro.sample("z", dist.Bernoulli(logits=self.a[:, None]))
            z = z.transpose(-1, -2)
            logits = z @ self.weight.T + self.b + self.c * z.prod(-1, keepdim=True)
            if logits.dim() > 2:  # particles lie to the left of both plates
                logits = logits.unsqueeze(-3)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


class PlatedGuide(OneLayerGuide):
    """The guide of ``PlatedModel``."""

    def forward(self, x: Tensor) -> None:
        logits = x @ self.weight.T + self.d + self.e * x.prod(-1, keepdim=True)
        with pyro.plate("bits", len(self.d), dim=-2), pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=logits.transpose(-1, -2)))


def plated() -> Tiny:
    """``one_layer`` whose latents have a plate inside the datum."""
    pair = Pair(PlatedModel(2, 2), PlatedGuide(2, 2), psi_of(2))
    scatter(pair, 2)
    return Tiny(pair, bits(2)[[1, 2, 3]], bits(2), bits(2), *_one_layer_densities(), psi=bump)


class TwoLayerModel(PyroModule):
    """top ~ Bernoulli(a), middle ~ Bernoulli(W top + b), x ~ Bernoulli(U middle + c + d top)."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(()))
        self.w, self.b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
        self.u = nn.Parameter(torch.zeros(2, 2))
        self.c, self.d = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Bernoulli(logits=self.a)).unsqueeze(-1)
            middle = pyro.sample("middle", dist.Bernoulli(logits=self.w * top + self.b).to_event(1))
            logits = middle @ self.u.T + self.c + self.d * top
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


class TwoLayerGuide(PyroModule):
    """middle ~ Bernoulli(V x + e), top ~ Bernoulli(f . middle + g . x + h): the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.v, self.e = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))
        self.f, self.g = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
        self.h = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            middle = pyro.sample("middle", dist.Bernoulli(logits=x @ self.v.T + self.e).to_event(1))
            pyro.sample("top", dist.Bernoulli(logits=middle @ self.f + x @ self.g + self.h))


def two_layer() -> Tiny:
    """A scalar site over a site of two bits over a row of two bits; z = (top, middle)."""

    def log_prior(t: Parameters, z: Tensor) -> Tensor:
        top, middle = z[..., 0], z[..., 1:]
        return log_bit(t["theta.a"], top) + log_bit(t["theta.w"] * z[..., :1] + t["theta.b"], middle).sum(-1)

    def log_likelihood(t: Parameters, x: Tensor, z: Tensor) -> Tensor:
        logits = (t["theta.u"] * z[..., None, 1:]).sum(-1) + t["theta.c"] + t["theta.d"] * z[..., :1]
        return log_bit(logits, x).sum(-1)

    def log_q(t: Parameters, x: Tensor, z: Tensor) -> Tensor:
        top, middle = z[..., 0], z[..., 1:]
        first = log_bit((t["phi.v"] * x.unsqueeze(-2)).sum(-1) + t["phi.e"], middle).sum(-1)
        return first + log_bit((t["phi.f"] * middle).sum(-1) + (t["phi.g"] * x).sum(-1) + t["phi.h"], top)

    pair = Pair(TwoLayerModel(), TwoLayerGuide(), psi_of(2))
    scatter(pair, 3)
    return Tiny(pair, bits(2)[[1, 2, 3]], bits(2), bits(3), log_prior, log_likelihood, log_q, psi=bump)


class UnplatedModel(PyroModule):
    """One datum of three observations: z ~ Bernoulli(a), s ~ Categorical(b), x_i ~ Bernoulli(c_s + d z)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(3))
        self.c, self.d = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> None:
        z = pyro.sample("z", dist.Bernoulli(logits=self.a))
        s = pyro.sample("s", dist.Categorical(logits=self.b))
        with pyro.plate("observations", len(x)):
            pyro.sample("x", dist.Bernoulli(logits=self.c[s] + self.d * z), obs=x)


class UnplatedGuide(PyroModule):
    """z ~ Bernoulli(v . x + e), s ~ Categorical(f + g z)."""

    def __init__(self) -> None:
        super().__init__()
        self.v, self.e = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(()))
        self.f, self.g = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> None:
        z = pyro.sample("z", dist.Bernoulli(logits=x @ self.v + self.e))
        pyro.sample("s", dist.Categorical(logits=self.f + self.g * z.unsqueeze(-1)))


def unplated() -> Tiny:
    """A pair without a batch plate: global latents z = (bit, category), densities of shape () and (K,)."""

    def log_prior(t: Parameters, z: Tensor) -> Tensor:
        return log_bit(t["theta.a"], z[..., 0]) + log_category(t["theta.b"], z[..., 1].long())

    def log_likelihood(t: Parameters, x: Tensor, z: Tensor) -> Tensor:
        return log_bit(t["theta.c"][z[..., 1:].long()] + t["theta.d"] * z[..., :1], x).sum(-1)

    def log_q(t: Parameters, x: Tensor, z: Tensor) -> Tensor:
        first = log_bit((t["phi.v"] * x).sum(-1) + t["phi.e"], z[..., 0])
        return first + log_category(t["phi.f"] + t["phi.g"] * z[..., :1], z[..., 1].long())

    pair = Pair(UnplatedModel(), UnplatedGuide())
    scatter(pair, 4)
    zs = torch.tensor(list(product((0.0, 1.0), (0.0, 1.0, 2.0))), dtype=torch.float64)
    x = bits(3)[[5]]
    return Tiny(pair, x, bits(3), zs, log_prior, log_likelihood, log_q, shape=lambda x: x[0])


class LocalModel(PyroModule):
    """One datum of three observations, each with its own bit: z_i ~ Bernoulli(a), x_i ~ Bernoulli(c + d z_i)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c, self.d = (nn.Parameter(torch.zeros(())) for _ in range(3))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("observations", len(x)):
            z = pyro.sample("z", dist.Bernoulli(logits=self.a))
            pyro.sample("x", dist.Bernoulli(logits=self.c + self.d * z), obs=x)


class LocalGuide(PyroModule):
    """z_i ~ Bernoulli(v x_i + e + f i)."""

    def __init__(self) -> None:
        super().__init__()
        self.v, self.e, self.f = (nn.Parameter(torch.zeros(())) for _ in range(3))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("observations", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=self.v * x + self.e + self.f * torch.arange(len(x))))


def local() -> Tiny:
    """A pair without a batch plate whose latents lie in a plate inside the datum."""

    def log_prior(t: Parameters, z: Tensor) -> Tensor:
        return log_bit(t["theta.a"], z).sum(-1)

    def log_likelihood(t: Parameters, x: Tensor, z: Tensor) -> Tensor:
        return log_bit(t["theta.c"] + t["theta.d"] * z, x).sum(-1)

    def log_q(t: Parameters, x: Tensor, z: Tensor) -> Tensor:
        return log_bit(t["phi.v"] * x + t["phi.e"] + t["phi.f"] * torch.arange(3), z).sum(-1)

    pair = Pair(LocalModel(), LocalGuide(), batch_plate=None)
    scatter(pair, 14)
    return Tiny(pair, bits(3)[[5]], bits(3), bits(3), log_prior, log_likelihood, log_q, shape=lambda x: x[0])


class SymbolModel(PyroModule):
    """z ~ Categorical(a), x ~ Categorical(table_z)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.table = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3, 3))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=self.a))
            pyro.sample("x", dist.Categorical(logits=self.table[z]), obs=x)


class SymbolGuide(PyroModule):
    """z ~ Categorical(table_x)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(3, 3))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=self.table[x]))


def symbols() -> Tiny:
    """A mixture of categoricals over three symbols."""

    def log_prior(t: Parameters, z: Tensor) -> Tensor:
        return log_category(t["theta.a"], z[..., 0])

    def log_likelihood(t: Parameters, x: Tensor, z: Tensor) -> Tensor:
        logits = t["theta.table"][z[..., 0]]
        shape = torch.broadcast_shapes(logits.shape[:-1], x.shape[:-1])
        return log_category(logits.expand(*shape, 3), x[..., 0].expand(shape))

    def log_q(t: Parameters, x: Tensor, z: Tensor) -> Tensor:
        logits = t["phi.table"][x[..., 0]]
        shape = torch.broadcast_shapes(logits.shape[:-1], z.shape[:-1])
        return log_category(logits.expand(*shape, 3), z[..., 0].expand(shape))

    def table(t: Parameters, name: str, x: Tensor) -> Tensor:
        return lookup(t, name, x[..., 0])

    pair = Pair(SymbolModel(), SymbolGuide(), {"critic": Lookup(3), "constraint": Lookup(3)})
    scatter(pair, 5)
    xs = torch.arange(3)[:, None]
    return Tiny(pair, xs[[2, 0, 1]], xs, xs, log_prior, log_likelihood, log_q, psi=table, shape=lambda x: x[..., 0])


# -- the package's own discrete pairs ----------------------------------------------------------------------------------


def belief(layers: tuple[int, ...], outputs: int = 1) -> Tiny:
    """``sigmoid_belief`` over two bits; z = (h_L, ..., h_1). ``outputs``: of the baseline."""
    widths = layers[::-1]

    def split(z: Tensor) -> list[Tensor]:
        return list(z.split(widths, -1))[::-1]  # h_1, ..., h_L

    def dense(t: Parameters, name: str, h: Tensor) -> Tensor:
        return (t[f"{name}.weight"] * (2 * h - 1).unsqueeze(-2)).sum(-1) + t[f"{name}.bias"]

    def log_prior(t: Parameters, z: Tensor) -> Tensor:
        h = split(z)
        total = log_bit(t["theta.top"], h[-1]).sum(-1)
        for level in range(1, len(h)):
            total = total + log_bit(dense(t, f"theta.down.{level}", h[level]), h[level - 1]).sum(-1)
        return total

    def log_likelihood(t: Parameters, x: Tensor, z: Tensor) -> Tensor:
        return log_bit(dense(t, "theta.down.0", split(z)[0]), x).sum(-1)

    def log_q(t: Parameters, x: Tensor, z: Tensor) -> Tensor:
        total, below = torch.zeros(()), x
        for level, h in enumerate(split(z)):
            total = total + log_bit(dense(t, f"phi.up.{level}", below), h).sum(-1)
            below = h
        return total

    pair = sigmoid_belief(2, layers, psi=psi_of(2, outputs))
    scatter(pair, 6)
    return Tiny(pair, bits(2)[[1, 2, 3]], bits(2), bits(sum(layers)), log_prior, log_likelihood, log_q, psi=bump)


def components(likelihood: str) -> Tiny:
    """``mixture`` of three components over two dimensions."""

    def log_prior(t: Parameters, z: Tensor) -> Tensor:
        return log_category(t["theta.logits"], z[..., 0])

    def log_likelihood(t: Parameters, x: Tensor, z: Tensor) -> Tensor:
        loc = t["theta.loc"][z[..., 0]]
        if likelihood == "bernoulli":
            return log_bit(loc, x).sum(-1)
        return log_normal(x, loc, t["theta.log_scale"][z[..., 0]].exp()).sum(-1)

    def log_q(t: Parameters, x: Tensor, z: Tensor) -> Tensor:
        features = torch.cat([x, x**2], -1)
        logits = (t["phi.linear.weight"] * features.unsqueeze(-2)).sum(-1) + t["phi.linear.bias"]
        shape = torch.broadcast_shapes(logits.shape[:-1], z.shape[:-1])
        return log_category(logits.expand(*shape, 3), z[..., 0].expand(shape))

    if likelihood == "bernoulli":
        x = bits(2)[[1, 2, 3, 3]]
    else:
        x = torch.tensor([[0.3, -0.8], [1.1, 0.4], [-0.6, 0.9], [0.2, 1.7]], dtype=torch.float64)
    pair = mixture(3, x, likelihood=likelihood)
    scatter(pair, 7)
    zs = torch.arange(3)[:, None]
    return Tiny(pair, x, bits(2), zs, log_prior, log_likelihood, log_q, psi=bump)


def nothing_latent() -> Tiny:
    """x ~ Categorical(a), no latents and no guide."""

    class Model(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.zeros(3))

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Categorical(logits=self.a), obs=x)

    def log_likelihood(t: Parameters, x: Tensor, z: Tensor) -> Tensor:
        index = x[..., 0]
        return log_category(t["theta.a"].expand(*index.shape, 3), index)

    def zero(t: Parameters, *_: Tensor) -> Tensor:
        return torch.zeros(1, dtype=torch.float64)

    pair = Pair(Model(), likelihood="exact")
    scatter(pair, 8)
    xs = torch.arange(3)[:, None]
    return Tiny(pair, xs[[2, 0]], xs, torch.zeros(1, 1), zero, log_likelihood, zero, shape=lambda x: x[..., 0])


def boltzmann() -> Tiny:
    """``rbm`` of three visible and two hidden bits; log_likelihood is x'W h + b'x + c'h, without log Z."""

    def energy(t: Parameters, x: Tensor, h: Tensor) -> Tensor:
        pairwise = ((x.unsqueeze(-1) * t["theta.weight"]).sum(-2) * h).sum(-1)
        return pairwise + (x * t["theta.visible"]).sum(-1) + (h * t["theta.hidden"]).sum(-1)

    def zero(t: Parameters, *_: Tensor) -> Tensor:
        return torch.zeros((), dtype=torch.float64)

    pair = rbm(3, 2)
    scatter(pair, 9)
    return Tiny(pair, bits(3)[[5, 3, 6]], bits(3), bits(2), zero, energy, zero)


# -- normal latents ----------------------------------------------------------------------------------------------------


class NormalModel(PyroModule):
    """z ~ N(0, I), x ~ Bernoulli(tanh(W z) + b)."""

    def __init__(self, dimension: int, latent: int) -> None:
        super().__init__()
        self.weight, self.b = nn.Parameter(torch.zeros(dimension, latent)), nn.Parameter(torch.zeros(dimension))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior(x))
            logits = torch.tanh(z @ self.weight.T) + self.b
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def prior(self, x: Tensor) -> dist.Distribution:
        return dist.Normal(x.new_zeros(self.weight.shape[1]), 1.0).to_event(1)


class NormalGuide(PyroModule):
    """z ~ N(V x + d, exp(s + 0.2 u.x)^2)."""

    def __init__(self, dimension: int, latent: int) -> None:
        super().__init__()
        self.weight, self.d = nn.Parameter(torch.zeros(latent, dimension)), nn.Parameter(torch.zeros(latent))
        self.s, self.u = nn.Parameter(torch.zeros(latent)), nn.Parameter(torch.zeros(dimension))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            scale = (self.s + 0.2 * (x @ self.u).unsqueeze(-1) - 0.5).exp()
            pyro.sample("z", dist.Normal(x @ self.weight.T + self.d, scale).to_event(1))


class Stretch(TransformModule):
    """z = a + exp(c) u, which remembers the u of its last z, as Pyro's flows do."""

    bijective = True
    domain = codomain = constraints.real_vector

    def __init__(self, latent: int) -> None:
        super().__init__(cache_size=1)
        self.a, self.c = nn.Parameter(torch.zeros(latent)), nn.Parameter(torch.zeros(latent))

    def _call(self, u: Tensor) -> Tensor:
        return self.a + self.c.exp() * u

    def _inverse(self, z: Tensor) -> Tensor:
        return (z - self.a) / self.c.exp()

    def log_abs_det_jacobian(self, u: Tensor, z: Tensor) -> Tensor:
        return self.c.sum().expand(u.shape[:-1])


class InverseFlow(PyroModule):
    """x by an inverse autoregressive flow, whose density goes through the numbers of a permutation, one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.step = dist.transforms.affine_autoregressive(3, [4])
        self.norm = nn.BatchNorm1d(3)  # has a buffer of whole numbers that each step writes to

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            base = dist.Normal(torch.zeros_like(x), self.norm(x.detach()).abs() + 1).to_event(1)
            pyro.sample("x", dist.TransformedDistribution(base, [self.step]), obs=x)


class FlowPrior(NormalModel):
    """z = a + exp(c) u, u ~ N(0, I), and x as in ``NormalModel``."""

    def __init__(self, dimension: int, latent: int) -> None:
        super().__init__(dimension, latent)
        self.flow = Stretch(latent)

    def prior(self, x: Tensor) -> dist.Distribution:
        return dist.TransformedDistribution(super().prior(x), [self.flow])


class FlowGuide(NormalGuide):
    """z = a + exp(c) u, u as the z of ``NormalGuide``."""

    def __init__(self, dimension: int, latent: int) -> None:
        super().__init__(dimension, latent)
        self.flow = Stretch(latent)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            scale = (self.s + 0.2 * (x @ self.u).unsqueeze(-1) - 0.5).exp()
            base = dist.Normal(x @ self.weight.T + self.d, scale).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [self.flow]))


class AuxiliaryGuide(NormalGuide):
    """z = 0.5 + 1.5 u, as autoguides write it: u is auxiliary, z a point mass with the density of the change of variables."""

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            scale = (self.s + 0.2 * (x @ self.u).unsqueeze(-1) - 0.5).exp()
            base = dist.Normal(x @ self.weight.T + self.d, scale).to_event(1)
            u = pyro.sample("z_base", base, infer={"is_auxiliary": True})
            log_density = u.new_full(u.shape[:-1], -u.shape[-1] * math.log(1.5))
            pyro.sample("z", dist.Delta(0.5 + 1.5 * u, log_density, event_dim=1))


def normal(
    latent: int = 1, guide_of: type[NormalGuide] = NormalGuide, model_of: type[NormalModel] = NormalModel
) -> Tiny:
    """Normal latents by Gauss-Hermite quadrature."""

    def log_prior(t: Parameters, z: Tensor) -> Tensor:
        if model_of is FlowPrior:
            return log_normal(z, t["theta.flow.a"], t["theta.flow.c"].exp()).sum(-1)
        return log_normal(z, torch.zeros(()), torch.ones(())).sum(-1)

    def log_likelihood(t: Parameters, x: Tensor, z: Tensor) -> Tensor:
        return log_bit(torch.tanh((t["theta.weight"] * z.unsqueeze(-2)).sum(-1)) + t["theta.b"], x).sum(-1)

    def guide(t: Parameters, x: Tensor) -> tuple[Tensor, Tensor]:
        loc = (t["phi.weight"] * x.unsqueeze(-2)).sum(-1) + t["phi.d"]
        scale = (t["phi.s"] + 0.2 * (t["phi.u"] * x).sum(-1, keepdim=True) - 0.5).exp()
        if guide_of is FlowGuide:
            return t["phi.flow.a"] + t["phi.flow.c"].exp() * loc, t["phi.flow.c"].exp() * scale
        return (0.5 + 1.5 * loc, 1.5 * scale) if guide_of is AuxiliaryGuide else (loc, scale)

    def log_q(t: Parameters, x: Tensor, z: Tensor) -> Tensor:
        return log_normal(z, *guide(t, x)).sum(-1)

    pair = Pair(model_of(2, latent), guide_of(2, latent), psi_of(2))
    scatter(pair, 10)
    with torch.no_grad():  # a gentle slope: the nodes then integrate to far below 1e-8
        for parameter in pair.parameters():
            parameter.mul_(0.4)
    return Tiny(pair, bits(2)[[1, 2, 3]], bits(2), None, log_prior, log_likelihood, log_q, guide, latent, psi=bump)


def latent_pair() -> Tiny:
    """``latent`` over a network set of two hidden units, with one normal latent."""

    def layer(t: Parameters, name: str, h: Tensor) -> Tensor:
        return (t[f"{name}.weight"] * h.unsqueeze(-2)).sum(-1) + t[f"{name}.bias"]

    def log_prior(t: Parameters, z: Tensor) -> Tensor:
        return log_normal(z, torch.zeros(()), torch.ones(())).sum(-1)

    def log_likelihood(t: Parameters, x: Tensor, z: Tensor) -> Tensor:
        hidden = torch.tanh(layer(t, "theta.generator.hidden.layers.0", z))
        return log_bit(layer(t, "theta.generator.output", hidden), x).sum(-1)

    def guide(t: Parameters, x: Tensor) -> tuple[Tensor, Tensor]:
        output = layer(t, "phi.head", torch.tanh(layer(t, "phi.trunk.layers.0", x)))
        # softplus(0.5413...) = 1: the head's zero is the prior's scale; 1e-4 is the smallest scale
        return output[..., :1], torch.log1p((output[..., 1:] + math.log(math.e - 1)).exp()) + 1e-4

    def log_q(t: Parameters, x: Tensor, z: Tensor) -> Tensor:
        return log_normal(z, *guide(t, x)).sum(-1)

    pair = latent(networks("mlp", (1, 1, 2), 1, hidden=(2,)), psi=psi_of(2))
    scatter(pair, 11)
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.mul_(0.4)
    return Tiny(pair, bits(2)[[1, 2, 3]], bits(2), None, log_prior, log_likelihood, log_q, guide, psi=bump)


# -- adversarial pairs -----------------------------------------------------------------------------------------------


class Symbols(dist.TorchDistribution):
    """Symbols (2N,): the data in the first half of the rows, Categorical(logits) in the second."""

    arg_constraints: dict[str, Any] = {}
    has_rsample = False

    def __init__(self, data: Tensor, logits: Tensor) -> None:
        self.data, self.logits = data, logits
        super().__init__(logits.shape[:-1], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Symbols:
        return Symbols(self.data, self.logits.expand(*batch_shape, self.logits.shape[-1]))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        generated = dist.Categorical(logits=self.logits[..., len(self.data) :, :]).sample(sample_shape)
        return torch.cat([self.data.expand(*generated.shape[:-1], -1), generated], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        size = len(self.data)
        log_p = dist.Categorical(logits=self.logits[..., size:, :]).log_prob(value[..., size:])
        return torch.cat([torch.zeros_like(value[..., :size], dtype=log_p.dtype).expand_as(log_p), log_p], -1)


class SymbolGenerator(PyroModule):
    """y stratified; z ~ Bernoulli(a) where there is ``mixed``; x ~ Categorical(table_z) where y = 0, the data where y = 1."""

    def __init__(self, mixed: bool) -> None:
        super().__init__()
        self.mixed = mixed
        self.table = nn.Parameter(torch.zeros(2, 3) if mixed else torch.zeros(3))
        self.a = nn.Parameter(torch.zeros(())) if mixed else None

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", 2 * len(x)):
            pyro.sample("y", Stratified.of(x.double()))
            if self.mixed:
                z = pyro.sample("z", dist.Bernoulli(logits=self.a))
                logits = self.table[z.long()]
            else:
                logits = self.table.expand(2 * len(x), 3)
            pyro.sample("x", Symbols(x, logits))


class SymbolDiscriminator(PyroModule):
    """y ~ Bernoulli(odds_x)."""

    def __init__(self) -> None:
        super().__init__()
        self.odds = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[-1]):
            pyro.sample("y", dist.Bernoulli(logits=self.odds[x]))


def symbol_gan(mixed: bool) -> TinyGan:
    """A generator of symbols, so that its step needs the score function; with ``mixed`` it has a latent bit too."""

    def generated(t: Parameters) -> tuple[Tensor, Tensor]:
        table = t["theta.table"].reshape(-1, 3)
        p = table.exp() / table.exp().sum(-1, keepdim=True)
        if mixed:
            one = 1 / (1 + (-t["theta.a"]).exp())
            p = torch.stack([1 - one, one])[:, None] * p
        return p.sum(0), torch.arange(3)

    def odds(t: Parameters, x: Tensor) -> Tensor:
        return t["phi.odds"][x]

    pair = Pair(SymbolGenerator(mixed), SymbolDiscriminator(), {"constraint": Lookup(3)}, likelihood="none")
    scatter(pair, 12)
    return TinyGan(pair, torch.tensor([2, 0, 1]), generated, odds, lookup)


def smooth_gan() -> TinyGan:
    """``adversarial`` over a network set of two hidden units, one normal latent and two dimensions."""
    nodes = 12

    def layer(t: Parameters, name: str, h: Tensor) -> Tensor:
        return (t[f"{name}.weight"] * h.unsqueeze(-2)).sum(-1) + t[f"{name}.bias"]

    def generated(t: Parameters) -> tuple[Tensor, Tensor]:
        z, weights = hermite(nodes)
        hidden = torch.tanh(layer(t, "theta.generator.hidden.layers.0", z[:, None]))
        return weights, 1 / (1 + (-layer(t, "theta.generator.output", hidden)).exp())

    def odds(t: Parameters, x: Tensor) -> Tensor:
        return layer(t, "phi.head", torch.tanh(layer(t, "phi.trunk.layers.0", x))).squeeze(-1)

    def rows_that_matter(shape: torch.Size) -> Tensor:
        mask = torch.ones(shape, dtype=torch.bool)
        mask[..., : shape[-2] // 2, :] = False  # rows of data ignore their z, as smooth_gan's own test shows
        return mask

    pair = adversarial(networks("mlp", (1, 1, 2), 1, hidden=(2,)), psi={"constraint": Bump(2)})
    scatter(pair, 13)
    x = torch.tensor([[0.2, 0.9], [0.7, 0.4], [0.5, 0.1]], dtype=torch.float64)
    return TinyGan(pair, x, generated, odds, bump, nodes, rows_that_matter)


WORLDS: dict[str, Callable[[], Any]] = {
    "one layer": one_layer,
    "one bit": lambda: one_layer(1, 2),
    "plated": plated,
    "two layers": two_layer,
    "unplated": unplated,
    "unplated locals": local,
    "symbols": symbols,
    "belief 2": lambda: belief((2,)),
    "belief 2-1": lambda: belief((2, 1)),
    "belief 2-1, local signals": lambda: belief((2, 1), outputs=2),
    "belief 1-1-1, local signals": lambda: belief((1, 1, 1), outputs=3),
    "mixture of normals": lambda: components("normal"),
    "mixture of bits": lambda: components("bernoulli"),
    "no latents": nothing_latent,
    "rbm": boltzmann,
    "normal": normal,
    "normal 2": lambda: normal(2),
    "flow": lambda: normal(1, FlowGuide),
    "flow prior": lambda: normal(1, FlowGuide, FlowPrior),
    "autoguide": lambda: normal(1, AuxiliaryGuide),
    "latent": latent_pair,
    "symbol gan": lambda: symbol_gan(False),
    "mixed symbol gan": lambda: symbol_gan(True),
    "smooth gan": smooth_gan,
}
