"""The likelihood of a decoder that has no observation model, once one is added to it; and kernel density estimates.

    z ~ N(0, I), x ~ N(G(z), s^2 I), s tuned on validation data by annealed importance sampling

Source: Wu, Burda, Salakhutdinov and Grosse (2017), arXiv:1611.04273. That figure is one of decoder and noise together: it
compares decoders under the same protocol, and is no likelihood of the implicit model itself. Kernel density estimates are
here for the record only: they rank models wrongly (Theis, van den Oord and Bethge 2016, arXiv:1511.01844; Wu et al., Table 2).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from unigen.evaluate.annealing import Annealing, annealed_log_likelihood
from unigen.evaluate.figure import Figure, Refused, mean_figure
from unigen.pair import Pair
from unigen.pairs.adversarial import AdversarialModel
from unigen.pairs.latent import LatentModel

__all__ = ["gaussian_observation", "gaussian_observation_log_likelihood", "kernel_density_estimate"]

FACTOR, MOST_TRIES = 1.5, 12
DISCREDITED = "discredited: kernel density estimates rank models wrongly (Wu et al. 2017, Table 2)"


class _Observed(PyroModule):
    """z ~ N(0, I), x ~ N(G(z), s^2 I)."""

    def __init__(self, decoder: nn.Module, latent: int, scale: float) -> None:
        super().__init__()
        self.decoder, self.latent, self.scale = decoder, latent, scale

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent), 1.0, validate_args=False).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), self.scale, validate_args=False).to_event(1), obs=x)


class _Mean(nn.Module):
    def __init__(self, model: AdversarialModel | LatentModel) -> None:
        super().__init__()
        self.generator, self.likelihood = model.generator, model.likelihood

    def forward(self, z: Tensor) -> Tensor:
        return self.likelihood.mean(self.generator(z))


def gaussian_observation(pair: Pair, scale: float) -> Pair:
    """Return the pair z ~ N(0, I), x ~ N(G(z), scale^2 I) over the generator G of a pair, whose weights it shares.

    Refused for a pair whose model is no decoder of a standard normal z.
    """
    model = pair.model
    if not isinstance(model, AdversarialModel | LatentModel):
        raise Refused(
            "Gaussian observation noise is added to a decoder of a standard normal latent, which this pair is not"
        )
    if not scale > 0:
        raise ValueError(f"the scale of observation noise must be positive; got {scale}")
    return Pair(_Observed(_Mean(model), model.latent, scale))


def gaussian_observation_log_likelihood(
    pair: Pair,
    x: Tensor,
    validation: Tensor,
    settings: Annealing | None = None,
    tuning: Annealing | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Figure:
    """Bound log p(x) of a decoder with Gaussian observation noise from below, its scale tuned on validation data.

    x, validation: rows (N, D). settings, tuning: of the annealing on each. The scale climbs by factors of 1.5 from half the
    standard deviation of the data for as long as the validation bound grows. For binary data the figure is that of a
    density at the corners of a cube: it compares decoders with each other, and with nothing else. ``Refused`` for validation
    data of which no two differ.
    """
    if len(validation) < 2 or not bool((validation != validation[:1]).any()):
        raise Refused(
            f"observation noise starts at half the standard deviation of the validation data, and {len(validation)} rows of which "
            "no two differ have none; give rows that differ"
        )
    settings = settings or Annealing()
    tuning = tuning or dataclasses.replace(settings, distributions=max(1, settings.distributions // 4))
    start = 0.5 * float(validation.double().var(0).mean().sqrt())

    def bound(power: int) -> float:
        observed = gaussian_observation(pair, start * FACTOR**power)
        return annealed_log_likelihood(observed, validation, tuning, seed, progress).value

    scale = start * FACTOR ** _climb(bound)
    found = annealed_log_likelihood(gaussian_observation(pair, scale), x, settings, seed + 1, progress)
    how = f"{found.how}; Gaussian noise {scale:.3g}, tuned on {len(validation)} validation data (Wu et al. 2017)"
    return dataclasses.replace(found, name="log p(x) with Gaussian observation noise", how=how)


def _climb(bound: Callable[[int], float]) -> int:
    """Return the power at which a function of one peak is greatest."""
    known: dict[int, float] = {}

    def at(power: int) -> float:
        if power not in known:
            known[power] = bound(power)
        return known[power]

    best, direction = 0, 1 if at(1) > at(0) else -1
    while len(known) < MOST_TRIES and at(best + direction) > at(best):
        best += direction
    return best


def kernel_density_estimate(samples: Tensor, x: Tensor, validation: Tensor, rows: int = 500) -> Figure:
    """Estimate log p(x) by Gaussian kernels at samples, their width tuned on validation data: for the record only.

    samples: (S, D). x: (N, D). validation: (M, D). rows: at most so many data at a time, which bounds memory.
    """
    centers = samples.double()
    dimension = centers.shape[1]

    def estimate(data: Tensor, width: float) -> Tensor:
        constant = math.log(len(centers)) + 0.5 * dimension * math.log(2 * math.pi * width**2)
        return torch.cat(
            [
                torch.logsumexp(-0.5 * (torch.cdist(part.double(), centers) / width).square(), 1) - constant
                for part in data.split(rows)
            ]
        )

    start = 0.5 * float(validation.double().var(0).mean().sqrt())
    width = start * FACTOR ** _climb(lambda power: float(estimate(validation, start * FACTOR**power).mean()))
    how = f"Gaussian kernels of width {width:.3g} at {len(samples)} samples"
    return mean_figure("log p(x) by kernel density", estimate(x, width), "estimate", how=how, warning=DISCREDITED)
