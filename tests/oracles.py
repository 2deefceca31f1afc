"""Oracles: the densities of a pair, written a second time by hand, over every value of its variables.

A ``Tiny`` holds a Pyro pair and plain functions log p(z), log p(x|z), log q(z|x) of its parameters; ``Tables`` spreads them
over every value of x and z. Nothing here calls an engine, an objective or a Pyro distribution: that is what makes the
tables an oracle. Parameters are named by group, ``theta.weight``; everything is float64. The pairs are in worlds.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any

import torch
from replay import hermite
from torch import Tensor, nn

from unigen.pair import Pair

__all__ = [
    "Density",
    "GanTables",
    "Parameters",
    "Tables",
    "Tiny",
    "TinyGan",
    "bits",
    "log_bit",
    "log_category",
    "log_normal",
    "parameters",
    "scatter",
    "tuples",
]

Parameters = Mapping[str, Tensor]


def parameters(pair: Pair) -> dict[str, Tensor]:
    """Return the pair's own parameters by group and name."""
    return {f"{group}.{name}": p for group in ("theta", "phi", "psi") for name, p in pair.named_group(group)}


def bits(count: int) -> Tensor:
    """Return every string of ``count`` bits, (2^count, count)."""
    return torch.tensor(list(product((0.0, 1.0), repeat=count)), dtype=torch.float64)


def tuples(size: int, count: int) -> Tensor:
    """Return every ``count``-tuple of indices below ``size``, (size^count, count)."""
    return torch.tensor(list(product(range(size), repeat=count)))


def log_bit(logits: Tensor, value: Tensor) -> Tensor:
    """log Bernoulli(value; sigma(logits)), elementwise."""
    return value * logits - torch.log1p(logits.exp())


def log_normal(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """log N(value; loc, scale^2), elementwise."""
    return -0.5 * ((value - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)


def log_category(logits: Tensor, index: Tensor) -> Tensor:
    """log Categorical(index; softmax(logits)), the last dimension of logits the categories."""
    log_p = logits - logits.exp().sum(-1, keepdim=True).log()
    return (log_p * nn.functional.one_hot(index, logits.shape[-1])).sum(-1)


def scatter(module: nn.Module, seed: int) -> None:
    """Give every parameter values of size 0.7, so that no symmetry hides an error; double precision."""
    module.double()
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=stream, dtype=torch.float64))


# -- a pair and its densities by hand ----------------------------------------------------------------------------------

Density = Callable[..., Tensor]


def absent(t: Parameters, name: str, x: Tensor) -> Tensor:
    """Stand for the networks of a pair without psi."""
    raise KeyError(name)


@dataclass
class Tiny:
    """A pair with its densities: functions of (parameters, x (..., D), z (..., d)) that broadcast over leading dimensions.

    ``x``: data rows (N, D). ``xs``: every value of x, (X, D). ``zs``: every value of z, (M, d). With ``guide`` instead of
    ``zs`` the latents are normal: ``guide(t, x)`` is (loc, scale), and z ~ N(0, I) a priori. ``batch``: what the pair takes.
    """

    pair: Pair
    x: Tensor
    xs: Tensor
    zs: Tensor | None
    log_prior: Density
    log_likelihood: Density
    log_q: Density
    guide: Callable[..., tuple[Tensor, Tensor]] | None = None
    latent: int = 1
    psi: Density = absent
    nodes: int = 40
    shape: Callable[[Tensor], Any] = field(default=lambda x: x)
    live: Any = None

    def batch(self, rows: int) -> Any:
        """Return the first rows as the pair wants them."""
        return self.shape(self.x[:rows])

    def tables(self, t: Parameters, drawn_by: Parameters, rows: int) -> Tables:
        return Tables(self, t, drawn_by, self.x[:rows])


class Tables:
    """The densities over every latent value (N, M) and every dream (S,): parameters ``t``, samples drawn by ``drawn_by``.

    ``weight`` (N, M): the guide's probability of a value. ``dream_weight`` (S,): the model's, of x and z together.
    """

    def __init__(self, tiny: Tiny, t: Parameters, drawn_by: Parameters, x: Tensor) -> None:
        self.tiny, self.t, self.drawn_by, self.x = tiny, t, drawn_by, x

    @cached_property
    def _nodes(self) -> tuple[Tensor, Tensor]:
        nodes, weights = hermite(self.tiny.nodes)
        index = tuples(self.tiny.nodes, self.tiny.latent)
        return nodes[index], weights[index].prod(-1)

    def _z(self, x: Tensor) -> Tensor:
        if self.tiny.guide is None:
            assert self.tiny.zs is not None
            return self.tiny.zs.expand(*x.shape[:-1], *self.tiny.zs.shape)
        loc, scale = self.tiny.guide(self.drawn_by, x)
        return loc.unsqueeze(-2) + scale.unsqueeze(-2) * self._nodes[0]

    @cached_property
    def weight(self) -> Tensor:
        if self.tiny.guide is not None:
            return self._nodes[1].expand(len(self.x), -1)
        return self.tiny.log_q(self.drawn_by, self.x.unsqueeze(1), self._z(self.x)).exp()

    @cached_property
    def prior(self) -> Tensor:
        return self.tiny.log_prior(self.t, self._z(self.x)).expand(len(self.x), -1)

    @cached_property
    def likelihood(self) -> Tensor:
        return self.tiny.log_likelihood(self.t, self.x.unsqueeze(1), self._z(self.x))

    @property
    def p(self) -> Tensor:
        return self.prior + self.likelihood

    @cached_property
    def q(self) -> Tensor:
        return self.tiny.log_q(self.t, self.x.unsqueeze(1), self._z(self.x))

    # every dream (x, z), x the slow index

    @cached_property
    def _dream_z(self) -> Tensor:
        return self._nodes[0] if self.tiny.zs is None else self.tiny.zs

    def _dreams(self, density: Density, t: Parameters) -> Tensor:
        return density(t, self.tiny.xs.unsqueeze(1), self._dream_z.unsqueeze(0)).reshape(-1)

    @cached_property
    def dream_x(self) -> Tensor:
        return self.tiny.xs.repeat_interleave(len(self._dream_z), 0)

    @cached_property
    def dream_weight(self) -> Tensor:
        likelihood = self._dreams(self.tiny.log_likelihood, self.drawn_by).exp()
        if self.tiny.zs is None:
            return self._nodes[1].repeat(len(self.tiny.xs)) * likelihood
        return self.tiny.log_prior(self.drawn_by, self._dream_z).exp().repeat(len(self.tiny.xs)) * likelihood

    @cached_property
    def dream_p(self) -> Tensor:
        prior = self.tiny.log_prior(self.t, self._dream_z).repeat(len(self.tiny.xs))
        return prior + self._dreams(self.tiny.log_likelihood, self.t)

    @cached_property
    def dream_q(self) -> Tensor:
        return self._dreams(self.tiny.log_q, self.t)

    def at(self, x: Tensor) -> Tables:
        """Return the tables for other data rows."""
        return Tables(self.tiny, self.t, self.drawn_by, x)

    def f(self, name: str, x: Tensor) -> Tensor:
        """Return a psi network at rows x."""
        return self.tiny.psi(self.t, name, x)


# -- adversarial pairs -------------------------------------------------------------------------------------------------


@dataclass
class TinyGan:
    """An adversarial pair: ``generated(t)`` is (probability (S,), x (S, ...)), ``odds(t, x)`` log q(1|x) - log q(0|x)."""

    pair: Pair
    x: Tensor
    generated: Callable[[Parameters], tuple[Tensor, Tensor]]
    odds: Density
    psi: Density = absent
    nodes: int = 40
    live: Any = None

    def batch(self, rows: int) -> Tensor:
        return self.x[:rows]

    def tables(self, t: Parameters, drawn_by: Parameters, rows: int) -> GanTables:
        return GanTables(self, t, drawn_by, self.x[:rows])


class GanTables:
    """Log odds of the data (N,), of every generated value (S,), and its probability ``weight`` (S,)."""

    def __init__(self, tiny: TinyGan, t: Parameters, drawn_by: Parameters, x: Tensor) -> None:
        self.tiny, self.t, self.x = tiny, t, x
        self.weight, self.generated = tiny.generated(drawn_by)
        self.real_odds, self.odds = tiny.odds(t, x), tiny.odds(t, self.generated)

    def f(self, name: str, x: Tensor) -> Tensor:
        """Return a psi network at rows x."""
        return self.tiny.psi(self.t, name, x)

    def fixed_odds(self) -> Tensor:
        """Return the log odds of what is generated, by parameters held fixed; x itself is not held."""
        return self.tiny.odds({name: value.detach() for name, value in self.t.items()}, self.generated)
