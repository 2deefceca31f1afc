"""Mode covering against mode seeking: one normal for two modes, fitted by either direction of KL, by a VAE and by GANs.

The target is 0.7 N(-2, 1/4) + 0.3 N(2, 1/4). Whoever has one mode must choose:

* KL(target || p), maximum likelihood: the mean and variance of the target, so much of p lies between the modes (blur);
* KL(p || target), variational inference: one mode, which one depends on the start;
* a VAE with an affine decoder is one normal, and covers; a GAN with an affine generator is one normal, and (with the
  non-saturating loss, three steps of the discriminator for one) mostly drops one of the modes, not always the minor one.

(Minka 2005; Hu, Yang, Salakhutdinov and Xing 2018, lemma 1: the generator's step holds KL(p_g || Q) - JS.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro.nn import PyroModule
from torch import Tensor, nn

from failures.drawing import BLUE, GREEN, GREY, ORANGE, RED, panels, seeds
from unigen import PHI, Pair, Phase, Wake, fit, routines
from unigen.divergences import Estimate, kullback_leibler_between
from unigen.networks import MLPTrunk, Networks
from unigen.objectives import elbo
from unigen.optimizers import Falling, optimizers_for
from unigen.pairs import Likelihood, adversarial, latent, mixture
from unigen.phases import Optimizer
from unigen.streams import isolated


@dataclass(frozen=True)
class Settings:
    """``rows`` of data, ``fit_steps`` of the variational fit, ``steps`` of each GAN and VAE, ``seeds`` of both."""

    rows: int = 20_000
    fit_steps: int = 600
    steps: int = 1500
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)


WEIGHTS, MEANS, SCALE = (0.7, 0.3), (-2.0, 2.0), 0.5


def target() -> Any:
    """Return the two-mode distribution."""
    parts = dist.Normal(torch.tensor(MEANS), torch.tensor((SCALE, SCALE)))
    return dist.MixtureSameFamily(dist.Categorical(torch.tensor(WEIGHTS)), parts)


def rows(settings: Settings, seed: int = 0) -> Tensor:
    """Return data (rows, 1)."""
    with isolated(seed):
        return target().sample((settings.rows, 1))


def maximum_likelihood(settings: Settings) -> tuple[float, float]:
    """Return (mean, scale) of one normal fitted by EM, whose M-step is closed."""
    data = rows(settings)
    pair: Any = mixture(1, data)
    fit(data, routines.em, pair, {}, steps=1, progress=False)
    return pair.model.loc.item(), pair.model.log_scale.exp().item()


class Belief(PyroModule):
    """z ~ the target: a model without data."""

    def forward(self) -> None:
        """Draw z."""
        pyro.sample("z", target())


class OneNormal(PyroModule):
    """q(z) = N(loc, scale^2)."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(torch.tensor(start)), nn.Parameter(torch.tensor(0.0))

    def forward(self) -> None:
        """Infer z."""
        pyro.sample("z", dist.Normal(self.loc, self.log_scale.exp()))


def variational(settings: Settings, start: float) -> tuple[float, float]:
    """Return (mean, scale) of the normal that climbs the bound from ``start``."""
    pair: Any = Pair(Belief(), OneNormal(start))
    optimizers = {"phi": torch.optim.Adam(pair.group("phi"), lr=0.05)}
    with isolated(0):
        phases = (Phase(elbo, Wake(256), PHI),)
        fit((), phases, pair, optimizers, steps=settings.fit_steps, schedule=Falling(1e-3), progress=False)
    return pair.guide.loc.item(), pair.guide.log_scale.exp().item()


def one_normal(job: tuple[str, int, Settings]) -> tuple[float, float]:
    """Train a GAN or a VAE with an affine generator; return (mean, scale) of what it generates."""
    name, seed, settings = job
    data = rows(settings, seed + 1)
    with isolated(seed + 100):
        networks = Networks(nn.Linear(1, 1), MLPTrunk(1, (32, 32), "tanh"), 1, (1,), 32, seed)
        likelihood = Likelihood("normal", bounded=False)
        pair: Any = (adversarial if name == "gan" else latent)(networks, likelihood)
        discriminate, generate = routines.gan
        routine = (replace(discriminate, steps=3), generate) if name == "gan" else routines.vae.phases
        # the bound is flat along a common shift of both programs, which needs the larger rate
        settled = Optimizer("Adam", 5e-3 if name == "gan" else 2e-2, (0.5, 0.999))
        batches = list(data.split(200))
        optimizers = optimizers_for(routine, pair, settled)
        fit(batches, routine, pair, optimizers, steps=settings.steps, schedule=Falling(1e-4), progress=False)
    layer = networks.generator
    variance = layer.weight.item() ** 2 + (likelihood.log_scale.exp().item() ** 2 if name == "vae" else 0.0)
    return layer.bias.item(), variance**0.5


def shares(normal: tuple[float, float]) -> tuple[float, float]:
    """Return how much of a normal lies nearer the minor mode (x > 0), and how much between the modes (|x| < 1)."""
    distribution = dist.Normal(*map(torch.tensor, normal))
    below = distribution.cdf(torch.tensor([-1.0, 0.0, 1.0]))
    return (1 - below[1]).item(), (below[2] - below[0]).item()


def divergences(normal: tuple[float, float], samples: int = 20_000) -> tuple[Estimate, Estimate]:
    """Return KL(target || normal) and KL(normal || target), estimated."""
    distribution = dist.Normal(*map(torch.tensor, normal))
    return (
        kullback_leibler_between(target(), distribution, samples),
        kullback_leibler_between(distribution, target(), samples),
    )


def measure(settings: Settings, run_all: Any = map) -> dict[str, Any]:
    """Return (mean, scale) of every fit."""
    jobs = [(name, seed, settings) for name in ("gan", "vae") for seed in settings.seeds]
    fitted = list(run_all(one_normal, jobs))
    return {
        "forward": maximum_likelihood(settings),
        "reverse": [variational(settings, start) for start in (-1.0, 1.0)],
        "gan": fitted[: len(settings.seeds)],
        "vae": fitted[len(settings.seeds) :],
    }


def dropped(normal: tuple[float, float]) -> bool:
    """Whether one of the two modes gets less than a tenth of its share of the data."""
    minor = shares(normal)[0]
    return minor < WEIGHTS[1] / 10 or 1 - minor < WEIGHTS[0] / 10


def line_of_figures(found: dict[str, Any]) -> str:
    """Say where the mass lies."""
    gan, vae = found["gan"], found["vae"]
    between = [shares(normal)[1] for normal in vae]
    seeking = ", ".join(f"{shares(one)[1]:.3f}" for one in found["reverse"])
    minor = [shares(normal)[0] for normal in gan]
    return (
        f"share between the modes: KL(target || p) fit {shares(found['forward'])[1]:.3f}, KL(p || target) fits {seeking}, VAEs "
        f"{min(between):.3f} to {max(between):.3f}; a mode is dropped by {sum(map(dropped, gan))} of {len(gan)} GANs, by "
        f"{sum(map(dropped, vae))} of {len(vae)} VAEs (share of the minor mode, 0.300 of the data, in the GANs: "
        f"{', '.join(f'{share:.3f}' for share in minor)})"
    )


def draw(found: dict[str, Any]) -> Figure:
    """Draw the target and the normals fitted to it."""
    figure, (left, right) = panels(2, sharey=True)
    x = torch.linspace(-6, 6, 600)

    def density(normal: tuple[float, float]) -> Tensor:
        return dist.Normal(*map(torch.tensor, normal)).log_prob(x).exp()

    for axis in (left, right):
        axis.fill_between(x, target().log_prob(x).exp(), color=GREY, alpha=0.3, linewidth=0, label="target")
        axis.set(xlabel="x", ylim=(0, 1.15))
    left.plot(x, density(found["forward"]), color=BLUE, linewidth=2, label="KL(target || p): covers")
    for index, (normal, name) in enumerate(zip(found["reverse"], ("from the left", "from the right"), strict=True)):
        style = ("-", "--")[index]
        left.plot(x, density(normal), color=RED, linestyle=style, linewidth=2, label=f"KL(p || target), {name}: seeks")
    left.set(ylabel="density")
    left.set_title("one normal for two modes")
    for index, (name, color, label) in enumerate((("vae", GREEN, "VAE"), ("gan", ORANGE, "GAN"))):
        for seed, normal in enumerate(found[name]):
            shown = f"{label}, {seeds(len(found[name]))}" if seed == 0 else None
            right.plot(x, density(normal), color=color, linewidth=1.2, alpha=0.9, label=shown, zorder=3 + index)
    right.set_title("affine VAEs cover both, most affine GANs drop one")
    for axis in (left, right):
        axis.legend(fontsize=7.5, frameon=False, loc="upper right")
    return figure
