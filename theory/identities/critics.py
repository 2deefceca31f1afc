"""Critics: what the optimal discriminator leaves the generator, the f-GAN's and the WGAN's value (rows A13, F7, F13, F16).

max_T E_data T - E_g f*(T) = D_f(p_data || p_g); max over 1-Lipschitz f of E_data f - E_g f = W1(p_data, p_g).
"""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Generator, Tensor, nn

from identities.adversarial import generated, set_odds
from identities.exact import expected, gradient, hermite, on_samples
from identities.identity import Sides, identity, stack
from identities.smooth import generate, smooth_pair
from identities.tables import gan_pair, normals, rows_of, simplex
from unigen import routines
from unigen.divergences import (
    f_divergence,
    f_divergences,
    wasserstein_1,
)
from unigen.pair import Pair
from unigen.pairs.likelihoods import Implicit, Stratified
from unigen.phases import PHI, ClipWeights, Phase, Sleep

__all__ = [
    "OPTIMAL_ODDS",
    "critic_keeps_its_slope",
    "f_gan_is_tight",
    "lipschitz_bound",
    "optimal_discriminator_saturates",
    "wgan_value",
]


class _Shifted(PyroModule):
    """The data where y = 1, x = t + z where y = 0, z ~ N(0, 1)."""

    def __init__(self, t: Tensor) -> None:
        super().__init__()
        self.t = nn.Parameter(t.clone())

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", 2 * len(x)):
            pyro.sample("y", Stratified.of(x))
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", Implicit(torch.cat([x, self.t + z[len(x) :]])))


class _LinearOdds(PyroModule):
    """q(y|x): Bernoulli with odds a x + b."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(a.clone()), nn.Parameter(b.clone())

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=(self.a * x + self.b).squeeze(-1)))


def _two_normals(t: Tensor) -> Pair:
    """Data N(0, 1), generated N(t, 1), and the optimal discriminator: log p/q = t^2/2 - t x."""
    return Pair(_Shifted(t), _LinearOdds(-t, t**2 / 2), likelihood="none")


@identity(
    "|d/dt 2 JS(N(0,1), N(t,1))| <= (|t|/2) exp(-t^2/8), which is what minimax leaves the generator at the optimal D",
    "Arjovsky & Bottou 2017; here by s(l) <= exp(l/2)/2 and the Bhattacharyya coefficient",
    ("unigen.routines.gan_minimax", "unigen.pairs.likelihoods.Implicit"),
    ("A13", "F7"),
    "a bound that falls as exp(-t^2)",
    tolerance=1e-8,
)
def optimal_discriminator_saturates(generator: Generator, wrong: bool) -> Sides:
    t = 1.2 + 0.6 * torch.rand((), generator=generator, dtype=torch.float64)
    pair, zero = _two_normals(t), torch.zeros(1, 1, dtype=torch.float64)
    nodes, weights = hermite(60)
    climbed = torch.zeros((), dtype=torch.float64)  # half of -d/dt E log(1 - D*)
    for node, weight in zip(nodes, weights, strict=True):
        noise = torch.stack([0 * node, node])[:, None]
        climbed = climbed + weight * on_samples(routines.gan_minimax[1], pair, zero, {"z": noise}).gradient[0]
    x = torch.linspace(-12, 14, 1301, dtype=torch.float64)
    moved = t.clone().requires_grad_()
    p, q = (torch.exp(-((x - m) ** 2) / 2) / math.sqrt(2 * math.pi) for m in (torch.zeros(()), moved))
    mixture = (p + q) / 2
    js = (torch.xlogy(p, p / mixture) + torch.xlogy(q, q / mixture)).sum() * (x[1] - x[0])  # 2 JS, by trapezoids
    (slope,) = torch.autograd.grad(js, moved)
    bound = t / 2 * torch.exp(-(t**2) / (1 if wrong else 8))
    return stack(-2 * climbed, torch.relu(slope.abs() - bound)), stack(slope, 0.0)


@identity(
    "at the optimal odds l(x) = t^2/2 - t x a sample moves by -t as a critic's, whatever x, and by -t D(x) as minimax's",
    "Arjovsky, Chintala & Bottou 2017",
    ("unigen.routines.wgan", "unigen.routines.gan_minimax", "unigen.objectives.critic_gap"),
    ("F7", "A13", "F15"),
    "the critic's slope scaled by D too",
)
def critic_keeps_its_slope(generator: Generator, wrong: bool) -> Sides:
    t = 2 + 4 * torch.rand((), generator=generator, dtype=torch.float64)
    pair, zero = _two_normals(t), torch.zeros(1, 1, dtype=torch.float64)
    left, right = [], []
    for z in normals(generator, 3):
        noise = torch.stack([0 * z, z])[:, None]
        by_critic, by_label = (
            on_samples(phase, pair, zero, {"z": noise}).gradient
            for phase in (routines.wgan[1], routines.gan_minimax[1])
        )
        d = torch.sigmoid(t**2 / 2 - t * (t + z))
        left += [by_critic, 2 * by_label]
        right += [-t * d if wrong else -t, -t * d]
    return stack(*left), stack(*right)


OPTIMAL_ODDS: dict[str, Any] = {  # v with g_f(v) = f'(u), by inverting each activation
    "kullback_leibler": lambda u: 1 + u.log(),
    "reverse_kullback_leibler": lambda u: u.log(),
    "pearson": lambda u: 2 * (u - 1),
    "neyman": lambda u: 2 * u.log(),
    "squared_hellinger": lambda u: u.log() / 2,
    "jensen_shannon": lambda u: u.log(),
    "gan": lambda u: u.log(),
    "jeffreys": lambda u: 1 + u.log() - 1 / u,
}


@identity(
    "max_T E_data T - E_g f*(T) = D_f(p_data || p_g): the f-GAN's critic step at g_f(v) = f'(p/q), for every f",
    "Nowozin, Cseke & Tomioka 2016",
    ("unigen.routines.f_gan", "unigen.objectives.FGan", "unigen.divergences.f_divergences"),
    ("F16", "A9"),
    "the divergence the other way round",
)
def f_gan_is_tight(generator: Generator, wrong: bool) -> Sides:
    pair, p = gan_pair(generator, symbols=2), simplex(generator, 2)
    g = generated(pair).detach()
    left: list[Tensor] = []
    right: list[Tensor] = []
    for name in f_divergences:
        set_odds(pair, OPTIMAL_ODDS[name](p / g))
        mean = expected(routines.f_gan(name)[0], pair, rows_of(p))
        divergence = f_divergence(name).value(g, p) if wrong else (g * f_divergence(name).f(p / g)).sum()
        left += [mean.value, mean.gradient]
        right += [divergence, torch.zeros(2)]
    return stack(*left), stack(*right)


@identity(
    "E_data f - E_g f = W1 for the critic of slope sign(F_g - F_data): the WGAN's value, and its generator's gradient",
    "Arjovsky, Chintala & Bottou 2017",
    ("unigen.routines.wgan", "unigen.objectives.critic_gap"),
    ("F13", "A8"),
    "a critic of slope two",
)
def wgan_value(generator: Generator, wrong: bool) -> Sides:
    pair, p = gan_pair(generator), simplex(generator, 3)
    points, g = normals(generator, 3).sort().values, generated(pair)
    below = (g - p).cumsum(0)[:-1]  # F_g - F_data between the points
    distance = (below.abs() * points.diff()).sum()
    potential = torch.cat([points.new_zeros(1), (torch.sign(below.detach()) * points.diff()).cumsum(0)])
    set_odds(pair, (2 if wrong else 1) * potential)
    critic, generator_step = (expected(phase, pair, rows_of(p)) for phase in routines.wgan)
    exact = gradient(distance, pair, "theta")
    return stack(critic.value, -generator_step.gradient), stack(distance, exact)


@identity(
    "E_p f - E_q f <= K W1 for a K-Lipschitz f, K <= product of the clipped layers' norms; equal for f(x) = K x and a shift",
    "Arjovsky, Chintala & Bottou 2017; Villani 2009",
    ("unigen.phases.ClipWeights", "unigen.routines.wgan", "unigen.divergences.wasserstein_1"),
    ("F13",),
    "a critic of any slope read as W1",
)
def lipschitz_bound(generator: Generator, wrong: bool) -> Sides:
    pair = smooth_pair(generator, 1)
    x, noise = normals(generator, 4, 1), normals(generator, 8, 1)
    with torch.no_grad():
        ClipWeights(0.3)(pair.group("phi"))
    gap = on_samples(Phase(routines.wgan[0].maximize, Sleep(), PHI), pair, x, {"z": noise}).value
    slopes = (pair.guide.head.weight.abs() @ pair.guide.trunk.layers[0].weight.abs()).sum().detach()  # tanh has slope 1
    generated = generate(pair, noise[4:]).squeeze(-1).detach()
    w = wasserstein_1(x.squeeze(-1), generated)
    greatest = max(float(parameter.detach().abs().max()) for parameter in pair.group("phi"))
    k, shift = 0.5 + normals(generator).abs(), normals(generator).abs()
    linear = (k * (x + shift)).mean() - (k * x).mean()
    line = x.squeeze(-1)
    distance = wasserstein_1(line + shift, line)
    left = stack(torch.relu(gap - slopes * w), max(0.0, greatest - 0.3), linear)
    return left, stack(0.0, 0.0, distance if wrong else k * distance)
