"""What a trained pair makes: samples of x, their means for the eye, and reconstructions."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from unigen.engines.eager import draw
from unigen.engines.inverses import rounding
from unigen.engines.probes import check_dreams
from unigen.engines.programs import Programs, device_of
from unigen.evaluate.latents import recycled
from unigen.evaluate.modes import evaluating
from unigen.kernels import Gibbs
from unigen.pair import Pair
from unigen.pairs.likelihoods import Stratified
from unigen.pairs.rbm import BoltzmannMachine
from unigen.phases import Wake
from unigen.streams import isolated

__all__ = ["Samples", "reconstruct", "sample"]

GIBBS_SWEEPS = 1000
MOST_ROUNDING, MOST_OFF = 1e-4, 1e-3  # nats a dimension, and the share of samples that may have more
MOST_CHECKED = 100  # rows of a dream that is looked at before the one that is wanted


class Samples(tuple[Tensor, Tensor]):
    """``x`` (n, D), samples of p(x), and ``mean`` (n, D), E[x|z] of each where the program has a latent, else x."""

    @property
    def x(self) -> Tensor:
        return self[0]

    @property
    def mean(self) -> Tensor:
        return self[1]


@torch.no_grad()
def sample(pair: Pair, n: int, like: Any, seed: int = 0) -> Samples:
    """Draw n samples of x, the first of the model's arguments that it has a site for, given its covariates.

    like: data as ``pair.bind`` takes them, at least one row: dimension, dtype, device, and covariates, which are gone through
    over and over. An RBM is sampled by 1000 sweeps of block Gibbs from random bits, which is approximate. Random streams outside
    are untouched. ``PairError`` for a model whose samples would depend on the x that is given.
    """
    data = pair.bind(like)
    with isolated(seed, device_of(data)), evaluating(pair):
        if isinstance(pair.model, BoltzmannMachine):
            data = {"x": torch.bernoulli(data["x"].new_full((n, *data["x"].shape[1:]), 0.5))}
            for _ in range(GIBBS_SWEEPS):
                data = Gibbs()(Programs(pair), data)
            return Samples((data["x"], data["x"]))
        few = recycled(pair, data, 0, min(n, MOST_CHECKED))
        check_dreams(Programs(pair), few)
        name = Programs(pair).layout(data).x
        data = recycled(pair, data, 0, n)
        data |= {name: data[name][torch.arange(n, device=device_of(data)) % len(data[name])]}
        sites = Programs(pair).run("model", data, dream=True, detach=True)
        site = sites[name]
        _warn_of_rounding(name, site.fn, site.value)
        mean = _mean(site.fn, site.value)
        if "y" in sites and isinstance(sites["y"].fn, Stratified):  # an adversarial pair: keep what it generated
            made = sites["y"].value < 0.5
            return Samples((site.value[made], mean[made]))
        return Samples((site.value, mean))


@torch.no_grad()
def reconstruct(pair: Pair, x: Any, seed: int = 0) -> Tensor | None:
    """Return E[x|z] for z ~ q(z|x), (N, D), or None for a pair that infers no latent of x; x: as ``pair.bind`` takes data."""
    data = pair.bind(x)
    with isolated(seed, device_of(data)), evaluating(pair):
        sample_of_z = draw(Wake(), Programs(pair), data)
        if pair.likelihood == "none" or not sample_of_z.sites("guide"):
            return None
        site = sample_of_z.sites("model")[Programs(pair).layout(data).x]
        return _mean(site.fn, site.value)


def _warn_of_rounding(name: str, fn: Any, value: Tensor) -> None:
    difference = rounding(fn, value) if value.dtype != torch.float64 else None
    if difference is None:
        return
    most = MOST_ROUNDING * fn.event_shape.numel()
    share = float((difference > most).double().mean())
    if share > MOST_OFF:
        warnings.warn(
            f"the flow of site '{name}' is steep for {str(value.dtype).removeprefix('torch.')}: log p of {100 * share:.2g}% of its "
            f"samples is off by more than {most:g} nats, by up to {float(difference.max()):.2g}; take the pair in double "
            "precision, pair.double(), where densities of samples count",
            stacklevel=3,
        )


def _mean(fn: Any, value: Tensor) -> Tensor:
    try:
        mean = fn.mean
    except (NotImplementedError, AttributeError):
        return value
    return mean.expand(value.shape)
