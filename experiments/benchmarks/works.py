"""What is timed: a pair, a routine and data, and the same algorithm by hand over the same networks, in plain torch.

``losses`` are what a careful user writes without a framework: one function of a batch for each phase, and the parameters
that it moves; sums of log densities are written out, nothing is traced or recorded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unigen import routines
from unigen.networks import networks
from unigen.pair import Pair
from unigen.pairs import adversarial, latent, sigmoid_belief
from unigen.pairs.latent import SMALLEST_SCALE, UNIT
from unigen.pairs.likelihoods import Likelihood
from unigen.phases import Routine

__all__ = ["WORKS", "Loss", "Work"]

Loss = tuple[Callable[[Tensor], Tensor], list[nn.Parameter]]
BATCH = 128


@dataclass(frozen=True)
class Work:
    """``make(seed)`` returns the pair. ``x(rows)``: a batch. ``by_hand(pair)``: its losses, one a phase. ``steps``: of one
    timed stretch, some two to eight tenths of a second. ``peers``: which other libraries run the same algorithm. ``seeds``:
    runs that a step advances.
    """

    name: str
    routine: Routine
    make: Callable[[int], Any]
    x: Callable[[int], Tensor]
    by_hand: Callable[[Any], list[Loss]]
    steps: int
    peers: tuple[str, ...] = ()
    seeds: int = 1


def normal_log_density(value: Tensor, loc: Any, scale: Any) -> Tensor:
    log_scale = scale.log() if isinstance(scale, Tensor) else math.log(scale)
    return (-0.5 * ((value - loc) / scale) ** 2 - log_scale - 0.5 * math.log(2 * math.pi)).sum(-1)


def bernoulli_log_density(value: Tensor, logits: Tensor) -> Tensor:
    return -F.binary_cross_entropy_with_logits(logits, value.expand(logits.shape), reduction="none").sum(-1)


def _inferred(pair: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    loc, raw = pair.guide.head(pair.guide.trunk(x)).chunk(2, -1)
    return loc, F.softplus(raw + UNIT) + SMALLEST_SCALE


def _log_likelihood(pair: Any, x: Tensor, z: Tensor) -> Tensor:
    raw = pair.model.generator(z)
    if pair.model.likelihood.name == "bernoulli":
        return bernoulli_log_density(x, raw)
    return normal_log_density(x, raw, pair.model.likelihood.log_scale.exp())


def _vae(pair: Any) -> list[Loss]:
    def loss(x: Tensor) -> Tensor:
        loc, scale = _inferred(pair, x)
        z = loc + scale * torch.randn_like(loc)
        bound = _log_likelihood(pair, x, z) + normal_log_density(z, 0.0, 1.0) - normal_log_density(z, loc, scale)
        return -bound.mean()

    return [(loss, pair.group("theta", "phi"))]


def _reweighted(particles: int) -> Callable[[Any], list[Loss]]:
    def by_hand(pair: Any) -> list[Loss]:
        def wake(x: Tensor) -> Tensor:
            loc, scale = _inferred(pair, x)
            with torch.no_grad():
                z = loc + scale * torch.randn((particles, *loc.shape), device=x.device)
            log_p = _log_likelihood(pair, x, z) + normal_log_density(z, 0.0, 1.0)
            log_q = normal_log_density(z, loc, scale)
            weights = torch.softmax((log_p - log_q).detach(), 0)
            return -(weights * (log_p + log_q)).sum(0).mean()

        def sleep(x: Tensor) -> Tensor:
            with torch.no_grad():
                z = torch.randn(len(x), pair.model.latent, device=x.device)
                dreamt = torch.bernoulli(torch.sigmoid(pair.model.generator(z)))
            return -normal_log_density(z, *_inferred(pair, dreamt)).mean()

        return [(wake, pair.group("theta", "phi")), (sleep, pair.group("phi"))]

    return by_hand


def _belief(pair: Any) -> list[Loss]:
    up, down, top = pair.guide.up, pair.model.down, pair.model.top

    def wake(x: Tensor) -> Tensor:
        layers = [x]
        with torch.no_grad():
            for linear in up:
                layers.append(torch.bernoulli(torch.sigmoid(linear(2 * layers[-1] - 1))))
        log_p = bernoulli_log_density(layers[-1], top.expand(layers[-1].shape))
        for linear, above, below in zip(down, layers[1:], layers, strict=False):
            log_p = log_p + bernoulli_log_density(below, linear(2 * above - 1))
        return -log_p.mean()

    def sleep(x: Tensor) -> Tensor:
        with torch.no_grad():
            layers = [torch.bernoulli(torch.sigmoid(top.expand(len(x), -1)))]
            for linear in reversed(down):
                layers.append(torch.bernoulli(torch.sigmoid(linear(2 * layers[-1] - 1))))
        layers = layers[::-1]
        pairs = zip(up, layers, layers[1:], strict=False)
        return -sum(bernoulli_log_density(above, linear(2 * below - 1)) for linear, below, above in pairs).mean()

    return [(wake, pair.group("theta")), (sleep, pair.group("phi"))]


def _gan(pair: Any) -> list[Loss]:
    def log_odds(x: Tensor) -> Tensor:
        return pair.guide.head(pair.guide.trunk(x)).squeeze(-1)

    def generated(x: Tensor) -> Tensor:
        z = torch.randn(2 * len(x), pair.model.latent, device=x.device)[
            len(x) :
        ]  # as the pair draws, so that a test can compare
        return torch.sigmoid(pair.model.generator(z))

    def discriminate(x: Tensor) -> Tensor:
        with torch.no_grad():
            made = generated(x)
        odds = log_odds(torch.cat([x, made]))
        labels = torch.cat([odds.new_ones(len(x)), odds.new_zeros(len(x))])
        return F.binary_cross_entropy_with_logits(odds, labels)

    def fool(x: Tensor) -> Tensor:
        return F.softplus(-log_odds(generated(x))).mean() / 2

    return [(discriminate, pair.group("phi")), (fool, pair.group("theta"))]


def _bits(rows: int) -> Tensor:
    return (torch.rand(rows, 784) < 0.2).float()


def _toy(seed: int) -> Pair:
    return latent(networks("mlp", (2,), 2, hidden=(64,), seed=seed), Likelihood("normal", bounded=False))


def _image(kind: type | Any, hidden: int, size: int) -> Callable[[int], Pair]:
    return lambda seed: kind(networks("mlp", (1, 28, 28), size, hidden=(hidden,), activation="relu", seed=seed))


WORKS = [
    Work(
        "2-D toy pair, 64 hidden, z = 2",
        routines.vae,
        _toy,
        lambda n: torch.randn(n, 2),
        _vae,
        1000,
        ("svi", "numpyro"),
    ),
    Work("VAE 784-400-20", routines.vae, _image(latent, 400, 20), _bits, _vae, 320, ("svi", "numpyro")),
    Work(
        "RWS, 8 particles, 784-256-20",
        routines.reweighted_wake_sleep(8),
        _image(latent, 256, 20),
        _bits,
        _reweighted(8),
        40,
        ("numpyro",),
    ),
    Work(
        "wake-sleep, SBN 200-200-200",
        routines.wake_sleep,
        lambda seed: sigmoid_belief(784, (200, 200, 200), seed=seed),
        _bits,
        _belief,
        80,
        ("numpyro",),
    ),
    Work("GAN 784-256-20", routines.gan, _image(adversarial, 256, 20), _bits, _gan, 80),
    Work(
        "convolutional VAE 28x28",
        routines.vae,
        lambda seed: latent(networks("conv", (1, 28, 28), 20, hidden=(256,), seed=seed)),
        _bits,
        _vae,
        8,
        ("svi", "numpyro"),
    ),
    Work(
        "10 seeds of the toy pair", routines.vae, _toy, lambda n: torch.randn(n, 2), _vae, 600, ("svi", "numpyro"), 10
    ),
]
