"""Variational inference and EM: one bound, its gap, and what climbs it (rows A12, C8, D1, D2, E6).

L(q) = E_q[log p(x, z) - log q(z|x)] = log p(x) - KL(q || p(z|x)). Left sides come from the engine, right ones by hand.
"""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Generator, Tensor, nn

from identities.exact import drawn, expected, gradient, hermite, weights_of
from identities.identity import Sides, identity, stack
from identities.tables import latent_pair, normals, rows_of, scatter, simplex
from unigen import routines
from unigen.divergences import entropy, kullback_leibler_divergence
from unigen.engines import eager
from unigen.objectives import elbo, log_weight
from unigen.pair import Pair
from unigen.pairs import mixture
from unigen.phases import (
    PHI,
    Enumerate,
    Phase,
    Tilted,
)

__all__ = [
    "covering_and_seeking_modes",
    "e_step_is_the_posterior",
    "em_gain",
    "evidence_decomposes",
    "explaining_away",
    "fishers_identity",
    "free_energy",
    "variational_em_fixed_point",
]

NEAL = "Neal & Hinton 1998"


@identity(
    "log p(x) = L(q) + KL(q(z|x) || p(z|x))",
    "Jordan et al. 1999; Kingma & Welling 2014",
    ("unigen.objectives.elbo", "unigen.routines.vae"),
    ("A12",),
    "the divergence from the posterior to q",
)
def evidence_decomposes(generator: Generator, wrong: bool) -> Sides:
    pair, tables = latent_pair(generator)
    p = simplex(generator, 3)
    bound = expected(routines.vae[0], pair, rows_of(p)).value
    q, posterior = tables.q, tables.posterior
    gap = kullback_leibler_divergence(posterior, q) if wrong else kullback_leibler_divergence(q, posterior)
    return stack(bound + (p * gap).sum()), stack((p * tables.log_evidence).sum())


@identity(
    "-L(q) = E_q[-log p(x, z)] - H(q): the free energy is energy minus entropy",
    NEAL + "; Dayan et al. 1995",
    ("unigen.objectives.elbo", "unigen.divergences.entropy"),
    ("A12",),
    "energy plus entropy",
)
def free_energy(generator: Generator, wrong: bool) -> Sides:
    pair, tables = latent_pair(generator)
    p = simplex(generator, 3)
    bound = expected(Phase(elbo, Enumerate(), PHI), pair, rows_of(p)).value
    energy = -(tables.q * tables.log_joint).sum(-1)
    sign = 1 if wrong else -1
    return stack(-bound), stack((p * (energy + sign * entropy(tables.q.detach()))).sum())


@identity(
    "E-step: the weights w ~ p(x, z) over every z are the posterior p(z|x), so KL(q* || p(z|x)) = 0 and L(q*) = log p(x)",
    "Dempster, Laird & Rubin 1977; " + NEAL,
    ("unigen.routines.em", "unigen.phases.Tilted", "unigen.phases.Enumerate"),
    ("D1",),
    "weights by the likelihood p(x|z) alone",
)
def e_step_is_the_posterior(generator: Generator, wrong: bool) -> Sides:
    pair, tables = latent_pair(generator)
    x = torch.arange(3)
    weights = weights_of(drawn(routines.em[0].under, pair, x))
    posterior = torch.softmax(tables.log_likelihood, -1) if wrong else tables.posterior
    gap = kullback_leibler_divergence(weights.T, tables.posterior.detach())
    bound = (weights.T * (tables.log_joint - weights.T.log())).sum(-1)
    return stack(weights.T, gap, bound), stack(posterior, torch.zeros(3), tables.log_evidence)


def _mixture_log_joint(pair: Any, x: Tensor) -> Tensor:
    """log p(x, z), (N, Z), of a mixture of normals."""
    loc, scale = pair.model.loc, pair.model.log_scale.exp()
    density = -(((x[:, None] - loc) / scale) ** 2) / 2 - scale.log() - math.log(2 * math.pi) / 2
    return torch.log_softmax(pair.model.logits, -1) + density.sum(-1)


@identity(
    "log p_new(x) - log p_old(x) = [Q(new) - Q(old)] + KL(p_old(z|x) || p_new(z|x)): EM never descends",
    "Dempster, Laird & Rubin 1977; " + NEAL,
    ("unigen.routines.em", "unigen.pairs.mixture"),
    ("D1", "D2", "D3"),
    "the gain of Q taken for the whole gain",
)
def em_gain(generator: Generator, wrong: bool) -> Sides:
    x = normals(generator, 6, 2)
    pair: Any = scatter(mixture(2, x), generator)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        before = _mixture_log_joint(pair, x)
        with torch.enable_grad():
            old = eager.step(routines.em, pair, {}, x)[0]  # the value of Q where the step began
        after = _mixture_log_joint(pair, x)
        posterior = torch.softmax(before, -1)
        new = (posterior * after).sum(-1).mean()
        moved = (posterior * (torch.log_softmax(before, -1) - torch.log_softmax(after, -1))).sum(-1).mean()
    gain = (torch.logsumexp(after, -1) - torch.logsumexp(before, -1)).mean()
    left = stack(gain, torch.relu(-gain), torch.relu(old - new))
    return left, stack(new - old + (0 if wrong else moved), 0.0, 0.0)


@identity(
    "grad log p(x) = E_p(z|x)[grad log p(x, z)]",
    "Fisher's identity; Dempster, Laird & Rubin 1977",
    ("unigen.routines.em", "unigen.routines.maximum_likelihood"),
    ("D1",),
    "the mean over the prior",
)
def fishers_identity(generator: Generator, wrong: bool) -> Sides:
    pair, tables = latent_pair(generator)
    p = simplex(generator, 3)
    climbed = expected(routines.em(closed_form=False)[0], pair, rows_of(p)).gradient
    summed = expected(routines.maximum_likelihood[0], pair, rows_of(p)).gradient
    evidence = (p * tables.log_evidence).sum()
    if wrong:
        evidence = (p * (tables.log_prior.exp().detach() * tables.log_joint).sum(-1)).sum()
    exact = gradient(evidence, pair, "theta")
    return stack(climbed, summed), stack(exact, exact)


@identity(
    "At q = p(z|x): grad_phi L = 0 and grad_theta L = grad_theta log p(x): both half-steps rest where the joint one does",
    NEAL,
    ("unigen.routines.variational_em", "unigen.routines.vae"),
    ("D2",),
    "the guide at the prior instead",
)
def variational_em_fixed_point(generator: Generator, wrong: bool) -> Sides:
    pair, tables = latent_pair(generator)
    p = simplex(generator, 3)
    with torch.no_grad():
        target = tables.log_prior.expand(3, 3) if wrong else tables.log_joint
        pair.get_parameter("guide.table").copy_(target)
    e_step, m_step = (expected(phase, pair, rows_of(p)).gradient for phase in routines.variational_em)
    exact = gradient((p * tables.log_evidence).sum(), pair, "theta")
    return stack(e_step, m_step), stack(torch.zeros_like(e_step), exact)


# -- explaining away, covering and seeking modes -------------------------------------------------------------------------


class _Causes(PyroModule):
    """Two bits z ~ Bernoulli(prior), x = 1 where either is."""

    def __init__(self, prior: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.logit(prior))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(logits=self.logits).to_event(1))
            pyro.sample("x", dist.Bernoulli(probs=z.amax(-1)), obs=x)


class _Symptom(PyroModule):
    """q(z|x): two independent bits."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=self.logits.expand(len(x), 2)).to_event(1))


@identity(
    "cov(z1, z2 | x1 or x2) = -a b (1-a)(1-b) / (a + b - a b)^2 < 0, and the nearest factorial guide misses KL = I(z1; z2 | x)",
    "Pearl 1988; Hinton, Osindero & Teh 2006",
    ("unigen.phases.Tilted", "unigen.routines.em"),
    ("C8",),
    "causes independent a priori stay so a posteriori",
)
def explaining_away(generator: Generator, wrong: bool) -> Sides:
    prior = 0.1 + 0.8 * torch.rand(2, generator=generator, dtype=torch.float64)
    draw = drawn(Tilted(Enumerate(), log_weight), Pair(_Causes(prior), _Symptom()), torch.ones(1).double())
    z, w = draw["z"].reshape(4, 2), weights_of(draw).reshape(4)
    one, two = (w @ z).tolist()
    covariance = w @ z.prod(-1) - one * two
    factorial = torch.where(z > 0, w @ z, 1 - w @ z).prod(-1)
    gap = kullback_leibler_divergence(w, factorial)
    a, b = prior.tolist()
    union = a + b - a * b
    closed = 0.0 if wrong else -a * b * (1 - a) * (1 - b) / union**2
    marginals = torch.tensor([[one, 1 - one], [two, 1 - two]], dtype=torch.float64)
    information = entropy(marginals).sum() - entropy(w)
    return stack(covariance, torch.relu(covariance), gap), stack(closed, 0.0, information)


@identity(
    "argmin_q KL(p || q) over normals has p's mean and variance, between the modes; KL(q || p) is less at a mode",
    "Minka 2005; Theis, van den Oord & Bethge 2016",
    ("unigen.routines.em", "unigen.pairs.mixture"),
    ("E6",),
    "maximum likelihood settles on one mode",
)
def covering_and_seeking_modes(generator: Generator, wrong: bool) -> Sides:
    away, width = 2 + normals(generator).abs(), 0.2 + 0.2 * torch.rand((), generator=generator, dtype=torch.float64)
    offsets = width * torch.linspace(-1, 1, 5, dtype=torch.float64)
    x = torch.cat([away + offsets, -away + offsets])[:, None]
    pair: Any = mixture(1, x.float()).double()
    with torch.random.fork_rng(devices=[]):
        eager.step(routines.em, pair, {}, x)
    spread = (x.square().mean() - x.mean() ** 2).sqrt()
    scale = offsets.square().mean().sqrt()

    def reverse(loc: Tensor) -> Tensor:  # KL(N(loc, scale^2) || the two modes of the same scale)
        nodes, weights = hermite(30)
        at = loc + scale * nodes
        modes = torch.stack([-(((at - side * away) / scale) ** 2) / 2 for side in (1, -1)])
        return (weights * (-nodes.square() / 2 - torch.logsumexp(modes, 0) + math.log(2))).sum()

    seeking = torch.relu(reverse(away) - reverse(torch.zeros_like(away)))
    left = stack(pair.model.loc, pair.model.log_scale.exp(), seeking)
    return left, stack(away if wrong else 0.0, scale if wrong else spread, 0.0)
