"""An optimal discriminator leaves the generator without gradient; a critic does not.

The data are N(0, 1), the generator x = t + z makes N(t, 1), a distance t away. With D* = p_data / (p_data + p_g),

* minimax: the gradient of E_g log(1 - D*) is that of 2 JS, and fades like the overlap of the two densities;
* non-saturating: the gradient of E_g log D* does not fade: it grows with t (and is that of no divergence that is bounded);
* the best 1-Lipschitz critic: E_g f* has slope 1 at every distance. (One trained with the gradient penalty lambda (s - 1)^2 instead
  of the bound weighs it against the gap s t, and has slope s = 1 + t / (2 lambda).)

(Goodfellow et al. 2014; Arjovsky and Bottou 2017; Arjovsky, Chintala and Bottou 2017.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro.nn import PyroModule
from torch import Tensor, nn

from failures.drawing import BLUE, GREEN, GREY, ORANGE, RED, panels
from unigen import THETA, Pair, Phase, Sleep, fit, routines
from unigen.engines.eager import objective
from unigen.networks import MLPTrunk, Networks
from unigen.objectives import Scaled
from unigen.optimizers import optimizers_for
from unigen.pairs import Likelihood, adversarial
from unigen.pairs.likelihoods import Implicit, Stratified
from unigen.phases import Optimizer
from unigen.streams import isolated


@dataclass(frozen=True)
class Settings:
    """``farthest``: the largest distance t, and ``distances`` up to it; ``apart``, ``steps``, ``seed``: the trained networks."""

    farthest: float = 10.0
    distances: int = 41
    apart: float = 8.0
    steps: int = 1500
    seed: int = 0


# -- the exact game ----------------------------------------------------------------------------------------------------

REACH = 14.0


class ShiftedModel(PyroModule):
    """p(y) p(x|y): the data for y = 1, t + z for y = 0, with z on the same grid as the data."""

    def __init__(self, t: float) -> None:
        super().__init__()
        self.t = nn.Parameter(torch.tensor(t, dtype=torch.float64))

    def forward(self, x: Tensor) -> None:
        """Draw y and x."""
        with pyro.plate("data", 2 * len(x)):
            pyro.sample("y", Stratified.of(x))
            pyro.sample("x", Implicit(torch.cat([x, self.t + x])))


class OptimalDiscriminator(PyroModule):
    """q(y|x) at its optimum against N(t, 1): log odds log N(x; 0, 1) - log N(x; t, 1) = t^2/2 - t x."""

    def __init__(self, t: float) -> None:
        super().__init__()
        self.t = t

    def log_odds(self, x: Tensor) -> Tensor:
        """Return the log odds at x (..., 1)."""
        return self.t**2 / 2 - self.t * x[..., 0]

    def forward(self, x: Tensor) -> None:
        """Infer y."""
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=self.log_odds(x), validate_args=False))


class OptimalCritic(OptimalDiscriminator):
    """The 1-Lipschitz f with the largest E_data f - E_g f: f(x) = -x for data on the left."""

    def log_odds(self, x: Tensor) -> Tensor:
        """Return f(x)."""
        return -x[..., 0]


@dataclass(frozen=True)
class Integrated:
    """The objective times the normal density of a row's grid point: a mean over rows is then an integral over z."""

    objective: Any

    def __call__(self, draw: Any) -> Tensor:
        grid = draw.pair.grid[:, 0]
        weight = 2 * REACH * torch.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi)
        return torch.cat([weight, weight]) * self.objective(draw)


PHASES = {
    # twice, since the phases of a GAN average over both labels
    "minimax": (Scaled(routines.gan_minimax[1].maximize, 2), OptimalDiscriminator),
    "non-saturating": (Scaled(routines.gan[1].maximize, 2), OptimalDiscriminator),
    "critic": (routines.wgan[1].maximize, OptimalCritic),
}


def generator_gradient(name: str, t: float, nodes: int = 2801) -> float:
    """Return the ascent direction of t under one of ``PHASES``, by the library's phase on a grid of z."""
    climbed, guide = PHASES[name]
    pair: Any = Pair(ShiftedModel(t), guide(t), likelihood="none")
    pair.grid = torch.linspace(-REACH, REACH, nodes, dtype=torch.float64)[:, None]
    _, surrogate = objective(Phase(Integrated(climbed), Sleep(), THETA), pair, pair.grid)
    (gradient,) = torch.autograd.grad(surrogate, pair.group("theta"))
    return gradient.item() * nodes / (nodes - 1)  # the grid's step is 2 REACH / (nodes - 1)


# -- trained networks --------------------------------------------------------------------------------------------------


class Shift(nn.Module):
    """G(z) = t + z."""

    def __init__(self, t: float) -> None:
        super().__init__()
        self.t = nn.Parameter(torch.tensor(t))

    def forward(self, z: Tensor) -> Tensor:
        """Map z (..., 1) to x (..., 1)."""
        return self.t + z


def trained(phase: Phase, settings: Settings, x: Tensor) -> tuple[Tensor, Tensor]:
    """Train a discriminator or critic alone, by its phase; return its log odds and their slope at x (n,)."""
    with isolated(settings.seed):
        networks = Networks(Shift(settings.apart), MLPTrunk(1, (64, 64), "tanh"), 1, (1,), 64, settings.seed)
        pair: Any = adversarial(networks, Likelihood("normal", bounded=False))
        batches = [torch.randn(128, 1) for _ in range(50)]
        optimizers = optimizers_for((phase,), pair, Optimizer("Adam", 2e-3))
        fit(batches, (phase,), pair, optimizers, steps=settings.steps, progress=False)
    at = x.to(torch.float32)[:, None].requires_grad_()
    odds = pair.guide.head(pair.guide.trunk(at))
    (slope,) = torch.autograd.grad(odds.sum(), at)
    return odds[:, 0].detach(), slope[:, 0]


def measure(settings: Settings, run_all: Any = map) -> dict[str, Any]:
    """Return the three gradients over distances, and D and the critic along the line, trained with the generator fixed."""
    t = torch.linspace(0, settings.farthest, settings.distances)
    gradients = {name: torch.tensor([generator_gradient(name, float(at)) for at in t]) for name in PHASES}
    x = torch.linspace(-3, settings.apart + 3, 400)
    odds, odds_slope = trained(routines.gan[0], settings, x)
    critic, critic_slope = trained(routines.wgan_gp[0], settings, x)
    probability = torch.sigmoid(odds)
    return {
        "t": t,
        **gradients,
        "x": x,
        "apart": settings.apart,
        "probability": probability,
        "probability slope": probability * (1 - probability) * odds_slope,
        "score": critic - critic.mean(),
        "score slope": critic_slope,
    }


def where_generated(found: dict[str, Any]) -> Tensor:
    """Return the mask of x within two standard deviations of the generator's mean."""
    return (found["x"] - found["apart"]).abs() < 2


def line_of_figures(found: dict[str, Any]) -> str:
    """Say the gradients at the largest distance, and the slopes of the trained networks where the generator is."""
    here = where_generated(found)
    return (
        f"gradient at distance {found['t'][-1]:g}: minimax {found['minimax'][-1].abs():.1e}, non-saturating "
        f"{found['non-saturating'][-1].abs():.2f}, critic {found['critic'][-1].abs():.2f}; trained, where the generator is: "
        f"slope of D at most {found['probability slope'][here].abs().max():.1e}, of the critic "
        f"{found['score slope'][here].abs().min():.2f} to {found['score slope'][here].abs().max():.2f}"
    )


def draw(found: dict[str, Any]) -> Figure:
    """Draw the trained networks along the line, and the generator's gradient over the distance."""
    figure, (left, right) = panels(2)
    x = found["x"]
    for mean, color, name in ((0.0, GREY, "data"), (found["apart"], GREEN, "generated")):
        left.fill_between(
            x, torch.exp(-((x - mean) ** 2) / 2) / 2.5066, color=color, alpha=0.35, linewidth=0, label=name
        )
    left.plot(x, found["probability"], color=ORANGE, linewidth=2, label="discriminator D(x)")
    left.set(xlabel="x", ylabel="density;  D(x)", ylim=(-0.03, 1.35))
    score = left.twinx()
    score.plot(x, found["score"], color=BLUE, linewidth=2)
    score.set_ylabel("critic f(x)", color=BLUE)
    score.tick_params(labelsize=8, colors=BLUE)
    score.spines["top"].set_visible(False)
    left.plot([], [], color=BLUE, linewidth=2, label="critic f(x)")
    left.set_title("trained: D is flat at the samples, f is not")
    left.legend(fontsize=7, frameon=False, ncols=2, loc="upper center")
    t = found["t"][1:]
    for name, color in (("minimax", RED), ("non-saturating", ORANGE), ("critic", BLUE)):
        right.semilogy(t, found[name][1:].abs(), color=color, linewidth=2, label=name)
    right.set(xlabel="distance t of generator and data", ylabel="|gradient| of the generator", ylim=(1e-8, 100))
    right.set_title("exact, with the best D and the best critic")
    right.legend(fontsize=8, frameon=False, loc="lower left")
    return figure
