"""Adversaries: the optimal discriminator, the value of the game, saturation (rows A11, F2, F3, F5, F6).

C(G) = max_D E_data log D + E_g log(1 - D) = -log 4 + 2 JS(p_data, p_g), at D* = p_data / (p_data + p_g).
The engine's phases average over both halves of a batch, so a phase of ``gan`` is half of the sum above.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from identities.exact import expected, gradient, on_samples
from identities.identity import Sides, identity, stack
from identities.smooth import generate, log_odds, smooth_pair
from identities.tables import gan_pair, normals, rows_of, simplex
from unigen import routines
from unigen.divergences import (
    f_divergence,
    jensen_shannon_divergence,
    kullback_leibler_divergence,
    wasserstein_1,
)

__all__ = [
    "gan_steps_are_cross_entropies",
    "generated",
    "minimax_descends_jensen_shannon",
    "optimal_discriminator",
    "parallel_lines",
    "saturation",
    "set_odds",
    "two_losses_make_a_critic",
    "value_of_the_game",
]

GOODFELLOW = "Goodfellow et al. 2014"


def generated(pair: Any) -> Tensor:
    """p_g over symbols."""
    return torch.softmax(pair.model.table[0], -1)


def set_odds(pair: Any, odds: Tensor) -> None:
    with torch.no_grad():
        pair.guide.odds.copy_(odds)


@identity(
    "D* = p_data / (p_data + p_g): the discriminator's gradient vanishes there, and nowhere above",
    GOODFELLOW,
    ("unigen.routines.gan", "unigen.objectives.log_q"),
    ("F5",),
    "D* = p_data",
)
def optimal_discriminator(generator: Generator, wrong: bool) -> Sides:
    pair, p = gan_pair(generator), simplex(generator, 3)
    g = generated(pair).detach()
    best = p if wrong else p / (p + g)
    set_odds(pair, torch.logit(best))
    mean = expected(routines.gan[0], pair, rows_of(p))
    set_odds(pair, torch.logit(best) + 0.5 * normals(generator, 3))
    other = expected(routines.gan[0], pair, rows_of(p)).value
    return stack(mean.gradient, torch.relu(other - mean.value)), torch.zeros(4, dtype=torch.float64)


@identity(
    "C(G) = -log 4 + 2 JS(p_data, p_g), and -log 4 where p_g = p_data",
    GOODFELLOW,
    ("unigen.routines.gan", "unigen.divergences.jensen_shannon_divergence", "unigen.divergences.gan"),
    ("F2", "F6"),
    "-log 4 + JS",
)
def value_of_the_game(generator: Generator, wrong: bool) -> Sides:
    pair, p = gan_pair(generator), simplex(generator, 3)
    g = generated(pair).detach()
    set_odds(pair, torch.log(p / g))
    value = 2 * expected(routines.gan[0], pair, rows_of(p)).value
    set_odds(pair, torch.zeros(3))
    equal = 2 * expected(routines.gan[0], pair, rows_of(g)).value
    js = jensen_shannon_divergence(p, g)
    by_generator = f_divergence("gan").value(p, g)
    right = -math.log(4) + (1 if wrong else 2) * js
    return stack(value, by_generator, equal), stack(right, right, -math.log(4))


@identity(
    "at D*, grad_theta E_g log(1 - D*) = 2 grad_theta JS(p_data, p_g): minimax descends the Jensen-Shannon divergence",
    GOODFELLOW + "; Arjovsky & Bottou 2017",
    ("unigen.routines.gan_minimax",),
    ("F2", "F7", "A13"),
    "the non-saturating generator descends it",
)
def minimax_descends_jensen_shannon(generator: Generator, wrong: bool) -> Sides:
    pair, p = gan_pair(generator), simplex(generator, 3)
    g = generated(pair)
    set_odds(pair, torch.log(p / g.detach()))
    phase = routines.gan[1] if wrong else routines.gan_minimax[1]
    climbed = expected(phase, pair, rows_of(p)).gradient  # half of -E_g log(1 - D)
    return -2 * climbed, gradient(2 * jensen_shannon_divergence(p, g), pair, "theta")


@identity(
    "max_D E_q log D = the label's cross-entropy: D-step and G-step are -BCE with the true and with the reversed label",
    "Hu, Yang, Salakhutdinov & Xing 2018, Eq. 3 and 5; " + GOODFELLOW,
    ("unigen.routines.gan", "unigen.pairs.adversarial", "unigen.objectives.log_q_reversed"),
    ("G1",),
    "the generator's label not reversed",
)
def gan_steps_are_cross_entropies(generator: Generator, wrong: bool) -> Sides:
    pair = smooth_pair(generator)
    x, noise = normals(generator, 3, 2), normals(generator, 6, 1)
    steps = [on_samples(phase, pair, x, {"z": noise}) for phase in routines.gan]
    odds = log_odds(pair, torch.cat([x, generate(pair, noise[3:])]))
    y = torch.cat([torch.ones(3), torch.zeros(3)]).double()
    d_step = -binary_cross_entropy_with_logits(odds, y)
    g_step = -binary_cross_entropy_with_logits(odds, y if wrong else 1 - y)
    slopes = [gradient(d_step, pair, "phi", keep=True), gradient(g_step, pair, "theta")]
    left = stack(*[part for step in steps for part in (step.value, step.gradient)])
    return left, stack(d_step, slopes[0], g_step, slopes[1])


@identity(
    "grad_theta = (1 - D) grad l(G(z)) for the non-saturating loss, D grad l(G(z)) for minimax, l = log D - log(1 - D)",
    GOODFELLOW + "; Arjovsky & Bottou 2017",
    ("unigen.routines.gan", "unigen.routines.gan_minimax"),
    ("F3", "F7"),
    "the two losses exchanged",
)
def saturation(generator: Generator, wrong: bool) -> Sides:
    pair, x, noise = smooth_pair(generator), normals(generator, 1, 2), normals(generator, 2, 1)
    with torch.no_grad():
        pair.guide.head.bias.sub_(4.0)  # a discriminator that is sure of itself
    odds = log_odds(pair, generate(pair, noise[1:])).squeeze()
    slope, d = gradient(odds, pair, "theta"), torch.sigmoid(odds).detach()
    losses = [routines.gan[1], routines.gan_minimax[1]]
    non_saturating, minimax = (on_samples(phase, pair, x, {"z": noise}).gradient for phase in losses)
    shares = (d, 1 - d) if wrong else (1 - d, d)
    return stack(non_saturating, minimax), stack(shares[0] * slope / 2, shares[1] * slope / 2)


@identity(
    "grad gan + grad gan_minimax = (1/2) grad E_g[log D - log(1 - D)], the generator's step on the log odds as a critic",
    "from log s(l) + (-log s(-l)) = l; Goodfellow 2016",
    ("unigen.routines.gan", "unigen.routines.gan_minimax", "unigen.routines.wgan"),
    ("F3",),
    "the difference of the two",
)
def two_losses_make_a_critic(generator: Generator, wrong: bool) -> Sides:
    pair, p = gan_pair(generator), simplex(generator, 3)
    gan, minimax, wgan = (
        expected(routine[1], pair, rows_of(p)).gradient
        for routine in (routines.gan, routines.gan_minimax, routines.wgan)
    )
    exact = gradient((generated(pair) * pair.guide.odds.detach()).sum() / 2, pair, "theta")
    return stack(gan + (-minimax if wrong else minimax), wgan / 2), stack(exact, exact)


def _tables_of(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two samples of points (n, 2) as tables over every point that occurs."""
    points, index = torch.unique(torch.cat([one, other]), dim=0, return_inverse=True)
    counts = [torch.bincount(part, minlength=len(points)).double() for part in index.split(len(one))]
    return counts[0] / len(one), counts[1] / len(other)


@identity(
    "parallel lines at distance |t| > 0: KL = inf both ways, JS = log 2 whatever t, W1 = |t| with slope sign(t); all 0 at t = 0",
    "Arjovsky, Chintala & Bottou 2017",
    ("unigen.divergences.wasserstein_1", "unigen.divergences.jensen_shannon_divergence"),
    ("A11", "A13"),
    "a Jensen-Shannon divergence that grows with the distance",
)
def parallel_lines(generator: Generator, wrong: bool) -> Sides:
    t = torch.sign(normals(generator)) * (0.5 + torch.rand((), generator=generator, dtype=torch.float64))
    height = torch.rand(20, generator=generator, dtype=torch.float64)

    def line(at: Tensor | float) -> Tensor:
        return torch.stack([torch.as_tensor(at, dtype=torch.float64).expand(20), height], -1)

    near, far, same = (_tables_of(line(0.0), line(at)) for at in (t, 2 * t, 0.0))
    moved = t.clone().requires_grad_()
    w = wasserstein_1(line(0.0)[:, 0], line(moved)[:, 0])  # mass moves across, at its own height
    (slope,) = torch.autograd.grad(w, moved)
    divergences = kullback_leibler_divergence(*near), kullback_leibler_divergence(*near[::-1])
    shannon = [jensen_shannon_divergence(*tables) for tables in (near, far, same)]
    left = stack(*divergences, *shannon, w, slope)
    grown = (2 if wrong else 1) * math.log(2)
    return left, stack(math.inf, math.inf, math.log(2), grown, 0.0, t.abs(), torch.sign(t))
