"""The standard equation, min over q and theta of -alpha H(q) + beta D(q, p_theta) - E_q[f], and its cases (row G7).

Likelihood: f = log p_data, beta -> 0. Variational EM: f = log p(x|z), D to the prior. A learned critic, max over f with
E_data f beside it, alpha = 0: gan_minimax, f_gan, wgan. (Hu & Xing 2022, arXiv 2108.07783.)
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from identities.critics import OPTIMAL_ODDS
from identities.exact import drawn, expected, gradient, weights_of
from identities.identity import Sides, identity, stack
from identities.regularization import perfect_sample, shares
from identities.tables import gan_pair, latent_pair, normals, rows_of, simplex
from unigen import routines
from unigen.divergences import (
    entropy,
    f_divergence,
    f_divergences,
    jensen_shannon_divergence,
    kullback_leibler_divergence,
)

__all__ = [
    "augmented_min_max",
    "standard_equation_adversaries",
    "standard_equation_is_the_bound",
    "standard_equation_likelihood",
    "standard_equation_teacher",
]

XING = "Hu & Xing 2022"


def _equation(q: Tensor, p: Tensor, f: Tensor, alpha: Tensor | float, beta: Tensor | float) -> Tensor:
    """-alpha H(q) - beta E_q log p - E_q f, D the cross-entropy."""
    return -alpha * entropy(q) - beta * (q * p.log()).sum(-1) - (q * f).sum(-1)


@identity(
    "q* ~ exp((beta log p + f) / alpha): SE(q) - SE(q*) = alpha KL(q || q*) for every q",
    XING,
    ("unigen.routines.standard_equation", "unigen.divergences.entropy"),
    ("G7", "I2"),
    "alpha and beta exchanged",
)
def standard_equation_teacher(generator: Generator, wrong: bool) -> Sides:
    p, q, f = simplex(generator, 4), simplex(generator, 4), normals(generator, 4)
    alpha, beta = 0.3 + torch.rand(2, generator=generator, dtype=torch.float64)
    teacher = torch.softmax((alpha * p.log() + f) / beta if wrong else (beta * p.log() + f) / alpha, 0)
    gap = _equation(q, p, f, alpha, beta) - _equation(teacher, p, f, alpha, beta)
    pair, tables, dreams, data = perfect_sample(generator)  # the engine's teacher, alpha = beta
    routine = routines.standard_equation(float(alpha), float(alpha), experience="constraint")
    found = shares(weights_of(drawn(routine[0].under, pair, data, dreams)), dreams["x"])
    reward = pair.get_parameter("psi.constraint.table").detach()
    exact = torch.softmax(tables.log_evidence.detach() + reward / alpha, 0)
    return stack(gap, found), stack(alpha * kullback_leibler_divergence(q, teacher), exact)


@identity(
    "f = log p_data, alpha = 1, beta -> 0: q* = p_data and the theta-step is maximum likelihood, -grad KL(p_data || p_theta)",
    XING,
    ("unigen.routines.standard_equation", "unigen.routines.maximum_likelihood"),
    ("G7",),
    "KL(p_theta || p_data)",
)
def standard_equation_likelihood(generator: Generator, wrong: bool) -> Sides:
    pair, tables = latent_pair(generator)
    p = simplex(generator, 3)
    model = tables.log_evidence.exp()
    mean = expected(routines.standard_equation()[0], pair, rows_of(p))
    divergence = kullback_leibler_divergence(model, p) if wrong else kullback_leibler_divergence(p, model)
    q_star = torch.softmax(p.log(), 0)
    least = _equation(q_star, model.detach(), p.log(), 1.0, 0.0)
    slope = gradient(-divergence, pair, "theta")
    return stack(mean.value, mean.gradient, q_star, least), stack(-divergence - entropy(p), slope, p, 0.0)


@identity(
    "f = log p(x|z), alpha = beta = 1, D the cross-entropy to p(z): the standard equation is -L(q), the negative bound",
    XING,
    ("unigen.routines.standard_equation", "unigen.routines.variational_em"),
    ("G7", "A12"),
    "beta = 2, the prior counted twice",
)
def standard_equation_is_the_bound(generator: Generator, wrong: bool) -> Sides:
    pair, tables = latent_pair(generator)
    p = simplex(generator, 3)
    mean = expected(routines.variational_em[0], pair, rows_of(p))
    per_row = _equation(tables.q, tables.log_prior.exp(), tables.log_likelihood, 1.0, 2.0 if wrong else 1.0)
    total = (p * per_row).sum()
    return stack(-mean.value, -mean.gradient), stack(total, gradient(total, pair, "phi"))


@identity(
    "alpha = 0, beta = 1, a learned critic: max_f min_q D(q, p) - E_q f + E_data f = D(p_data, p), JS (gan_minimax), D_f, W1",
    XING,
    (
        "unigen.routines.standard_equation",
        "unigen.routines.gan_minimax",
        "unigen.routines.f_gan",
        "unigen.routines.wgan",
    ),
    ("G7", "F2", "F16"),
    "the divergences of p_theta from the data exchanged",
)
def standard_equation_adversaries(generator: Generator, wrong: bool) -> Sides:
    pair, p = gan_pair(generator, symbols=2), simplex(generator, 2)
    g = torch.softmax(pair.model.table[0], -1).detach()
    points = normals(generator, 2).sort().values
    step = points.diff()[0]

    def value(divergence: str, odds: Tensor) -> Tensor:
        with torch.no_grad():
            pair.guide.odds.copy_(odds)
        return expected(routines.standard_equation(0, 1, divergence, "critic")[0], pair, rows_of(p)).value

    left = [(2 * value("jensen_shannon", torch.log(p / g)) + math.log(4)) / 2]
    right = [jensen_shannon_divergence(p, g)]
    for name in f_divergences:
        if name != "jensen_shannon":  # which is the vanilla game above
            left.append(value(name, OPTIMAL_ODDS[name](p / g)))
            right.append(f_divergence(name).value(g, p) if wrong else f_divergence(name).value(p, g))
    left.append(value("wasserstein", torch.stack([0 * step, torch.sign(p[1] - g[1]) * step])))
    right.append((p[1] - g[1]).abs() * step)
    for name in f_divergences:  # the game itself, at the critic f = dD/dq where q is the data
        logits = p.log().requires_grad_()
        q = torch.softmax(logits, 0)
        distance = f_divergence(name).value(q, g)
        (f,) = torch.autograd.grad(distance, q, retain_graph=True)
        game = distance - (q * f).sum() + (p * f).sum()
        (slope,) = torch.autograd.grad(game, logits)
        left += [game.detach(), *slope]
        right += [f_divergence(name).value(p, g), *torch.zeros(2)]
    return stack(*left), stack(*right)


@identity(
    "min_q KL(q || p) - E_q f = -log E_p exp(f), and max_f E_data f - log E_p exp(f) = KL(p_data || p) at f = log p_data/p",
    "Donsker & Varadhan 1975; " + XING,
    ("unigen.divergences.kullback_leibler_divergence",),
    ("G7", "A9"),
    "E_p exp(f) - 1 for its logarithm, a looser bound off the optimum",
)
def augmented_min_max(generator: Generator, wrong: bool) -> Sides:
    p, data, f = simplex(generator, 4), simplex(generator, 4), normals(generator, 4)
    least = torch.softmax(p.log() + f, 0)
    inner = kullback_leibler_divergence(least, p) - (least * f).sum()
    log_mean = (p * f.exp()).sum() - 1 if wrong else (p * f.exp()).sum().log()
    best = (data.log() - p.log() + 3.0).requires_grad_()  # a critic is free up to a constant
    outer = (data * best).sum() - (p * best.exp()).sum().log()
    (slope,) = torch.autograd.grad(outer, best)
    return stack(inner, outer, slope), stack(-log_mean, kullback_leibler_divergence(data, p), torch.zeros(4))
