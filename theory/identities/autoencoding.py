"""The VAE's bound in closed form, its optimum for a linear decoder, and importance weighting (rows D5, E4, E5).

L = E_q log p(x|z) - KL(q || N(0, I)). With a linear generator every term is a polynomial of z: quadrature is exact.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor

from identities.exact import expected, gradient
from identities.identity import Sides, identity, stack
from identities.tables import latent_pair, normals, rows_of, scatter, simplex
from unigen import routines
from unigen.divergences import kullback_leibler_divergence
from unigen.networks import networks
from unigen.pairs import latent
from unigen.pairs.likelihoods import Likelihood

__all__ = [
    "guide_by_hand",
    "iwae_gap",
    "linear_bound",
    "linear_pair",
    "linear_vae_is_ppca",
    "vae_loss_in_closed_form",
]


def linear_pair(generator: Generator, dimension: int, codes: int) -> Any:
    """Return the package's latent pair with a linear generator and a linear guide: x ~ N(W z + b, s^2 I)."""
    pair = latent(networks("mlp", (dimension,), codes, hidden=()), Likelihood("normal", bounded=False))
    return scatter(pair, generator, 0.5)


def guide_by_hand(pair: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The guide's mean and standard deviation, by hand; softplus is one at the head's zero."""
    output = x @ pair.guide.head.weight.T + pair.guide.head.bias
    loc, raw = output.chunk(2, -1)
    return loc, torch.log1p((raw + math.log(math.e - 1)).exp()) + 1e-4


def linear_bound(pair: Any, x: Tensor, half: float = 0.5) -> Tensor:
    """E_q log p(x|z) - KL(q || N(0, I)) in closed form, for one row x (1, D)."""
    weight, bias = pair.model.generator.output.weight, pair.model.generator.output.bias
    variance = (2 * pair.model.likelihood.log_scale).exp()
    loc, scale = guide_by_hand(pair, x)
    error = (x - loc @ weight.T - bias).square().sum() + (weight.square() * scale.square()).sum()
    reconstruction = -error / (2 * variance) - x.numel() / 2 * (2 * math.pi * variance).log()
    return reconstruction - half * (loc.square() + scale.square() - 1 - 2 * scale.log()).sum()


@identity(
    "L = E_q log p(x|z) - KL(q || N(0, I)), KL = (1/2) sum(m^2 + s^2 - 1 - log s^2)",
    "Kingma & Welling 2014",
    ("unigen.routines.vae", "unigen.pairs.latent"),
    ("E4",),
    "the divergence from the prior without its 1/2",
)
def vae_loss_in_closed_form(generator: Generator, wrong: bool) -> Sides:
    pair, x = linear_pair(generator, 3, 1), normals(generator, 1, 3)
    mean = expected(routines.vae[0], pair, [(1.0, x)], nodes=4)
    bound = linear_bound(pair, x, 1.0 if wrong else 0.5)
    return stack(mean.value, mean.gradient), stack(bound, gradient(bound, pair, "theta", "phi"))


@identity(
    "max_q L = log N(x; b, W W' + s^2 I) for a linear VAE with orthogonal columns: PPCA's evidence, at each sample of z",
    "Tipping & Bishop 1999; Lucas et al. 2019",
    ("unigen.routines.vae", "unigen.pairs.latent"),
    ("D5", "E4"),
    "the evidence without the noise on the diagonal",
)
def linear_vae_is_ppca(generator: Generator, wrong: bool) -> Sides:
    pair, x = linear_pair(generator, 3, 2), normals(generator, 1, 3)
    output, head = pair.model.generator.output, pair.guide.head
    with torch.no_grad():
        basis = torch.linalg.qr(normals(generator, 3, 2)).Q
        weight = basis * normals(generator, 2).exp()
        output.weight.copy_(weight)
        variance = (2 * pair.model.likelihood.log_scale).exp()
        spread = variance / (variance + weight.square().sum(0))  # the posterior's variances
        head.weight.zero_()
        head.weight[:2].copy_(spread[:, None] * weight.T / variance)
        head.bias[:2].copy_(-(head.weight[:2] @ output.bias))
        head.bias[2:].copy_(torch.log(torch.expm1(spread.sqrt() - 1e-4)) - math.log(math.e - 1))
    bound = expected(routines.vae[0], pair, [(1.0, x)], nodes=3)
    noise = (0.5 if wrong else 1.0) * variance
    covariance = (weight @ weight.T + noise * torch.eye(3, dtype=torch.float64)).detach()
    evidence = torch.distributions.MultivariateNormal(output.bias.detach(), covariance).log_prob(x[0])
    at_optimum = torch.zeros_like(gradient(linear_bound(pair, x), pair, "phi"))
    return stack(bound.value, bound.gradient[-len(at_optimum) :]), stack(evidence, at_optimum)


@identity(
    "log p(x) - L_K = KL(q(z_1) ... q(z_K) || p*), p* the mixture of the posterior in one place and q in the others",
    "Burda, Grosse & Salakhutdinov 2016; Domke & Sheldon 2018",
    ("unigen.objectives.iwae", "unigen.routines.iwae"),
    ("E5",),
    "the bound of two particles taken for that of three",
)
def iwae_gap(generator: Generator, wrong: bool) -> Sides:
    pair, tables = latent_pair(generator, latents=2)
    p = simplex(generator, 3)
    q, posterior = tables.q.detach(), tables.posterior.detach()
    bounds, gaps = [], []
    for k in (1, 2, 3):
        bounds.append(expected(routines.iwae(k)[0], pair, rows_of(p)).value)
        places = torch.cartesian_prod(*[torch.arange(2)] * k).reshape(-1, k)
        guide = q[:, places].prod(-1)  # (X, 2^k)
        target = torch.stack(
            [torch.stack([(posterior if i == j else q)[:, places[:, j]] for j in range(k)]).prod(0) for i in range(k)]
        )
        gaps.append((p * kullback_leibler_divergence(guide, target.mean(0))).sum())
    if wrong:
        bounds[2] = bounds[1]
    order = torch.relu(bounds[0] - bounds[1]) + torch.relu(bounds[1] - bounds[2])
    evidence = (p * tables.log_evidence).sum()
    return stack(*bounds, order), stack(*[evidence - gap for gap in gaps], 0.0)
