"""The log-likelihood of test data, and what kind of number it is: exact, a lower bound, or none.

    L_K(x) = E_q log (1/K) sum_k w_k,  w_k = p(x, z_k) / q(z_k|x),  L_1 = ELBO <= L_K <= L_{K+1} <= log p(x)

On data simulated with their latents, one of the K particles is an exact posterior sample, and the same average bounds
log p(x) from above. Sources: Burda, Grosse and Salakhutdinov (2016), arXiv:1509.00519; Sobolev and Vetrov (2019),
arXiv:1905.03290, for the bound from above.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from pyro.distributions import Delta, Unit
from torch import Tensor
from torch.overrides import TorchFunctionMode

from unigen.engines.draw import Draw
from unigen.engines.eager import draw
from unigen.engines.probes import check_enumerable, check_values
from unigen.engines.programs import Programs, device_of, enumerate_sites, reason_of
from unigen.engines.sites import Site, base_of, check_angles, check_auxiliary, check_sampler, family_of
from unigen.evaluate.annealing import simulate
from unigen.evaluate.boltzmann import boltzmann_log_likelihood, log_partition
from unigen.evaluate.figure import Bounds, Figure, Refused, mean_figure
from unigen.evaluate.latents import (
    check_densities,
    check_not_empty,
    check_observations,
    observations,
    pieces_of,
    rows_of,
)
from unigen.evaluate.modes import evaluating
from unigen.objectives import log_evidence, log_weight
from unigen.pair import Pair, PairError
from unigen.pairs.rbm import BoltzmannMachine
from unigen.phases import Enumerate, Wake
from unigen.streams import isolated

__all__ = [
    "bound_figure",
    "bound_of",
    "enumerated_log_likelihood",
    "importance_weighted_curve",
    "importance_weighted_sandwich",
    "log_importance_weights",
    "log_likelihood",
    "warning_of_densities",
]

# numbers of the largest tensor of one piece: what lies near the cache of a processor is the fastest there, and on a GPU memory
# is the bound
MOST_VALUES_AT_ONCE, ON_A_GPU = 2**21, 2**27


def log_likelihood(pair: Pair, x: Any, particles: int = 500, seed: int = 0) -> Figure:
    """Return the mean of log p(x) as well as the pair allows, with log p(x) of every datum: exact, or a lower bound.

    x: the data, as ``pair.bind`` takes them. Exact by change of variables, by enumeration or by an enumerable partition
    function where ``pair.likelihood`` is ``"exact"``; the importance-weighted bound with K = ``particles`` samples of the
    guide (Burda et al. 2016) where it is ``"bound"``. ``Refused`` where it is ``"none"``; ``Refused`` or ``PairError`` where the
    programs have no density a datum: one that is scaled, as to anneal a KL term, or masked in one program alone, a guide that
    is a point, particles or data that mix. Random streams are left as they are.
    """
    if pair.likelihood == "none":
        raise Refused(
            "the partition function of this RBM is not enumerable; log_partition anneals it"
            if isinstance(pair.model, BoltzmannMachine)
            else "an implicit model has no likelihood; gaussian_observation_log_likelihood adds noise, under that name"
        )
    if isinstance(pair.model, BoltzmannMachine):
        return boltzmann_log_likelihood(pair, x, log_partition(pair))
    if pair.likelihood == "exact":
        found = enumerated_log_likelihood(pair, x)
    else:
        per_datum = log_importance_weights(pair, x, particles, seed, lambda weights: bound_of(weights, particles))
        found = bound_figure(per_datum, particles, particles)
    return replace(found, warning=warning_of_densities(pair, x))


@torch.no_grad()
def warning_of_densities(pair: Pair, x: Any, simulated: bool = False) -> str:
    """Return a warning, or "", of densities that are none: of a ``pyro.factor``, whose number nothing holds to be a normalized
    log density, and of grey values under a Bernoulli, where data are not ``simulated``.
    """
    data = pair.bind(x)
    some = pieces_of(pair, data, 2)[0]
    with isolated(0, device_of(some)), evaluating(pair):
        sites = Programs(pair).run("model", some).values()
    factors = ", ".join(repr(site.name) for site in sites if isinstance(base_of(site.fn), Unit))
    bits = [] if simulated else [site for site in observations(pair, data) if family_of(site.fn) == "Bernoulli"]
    found = []
    if factors:
        found.append(f"log p(x) only where the model's factors ({factors}) are normalized log densities")
    if any(bool(((site.value != 0) & (site.value != 1)).any()) for site in bits):
        found.append("no log density of grey values: the mean log probability of the bits whose probabilities they are")
    return "; ".join(found)


@torch.no_grad()
def log_importance_weights(
    pair: Pair, x: Any, particles: int, seed: int = 0, reduce: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Draw log w = log p(x, z) - log q(z|x) for z ~ q(z|x), float64 (K, N): what curve, k-hat and ELBO are read from.

    x: the data, as ``pair.bind`` takes them. reduce: what is kept of the weights (K, n) of some of the data, (..., n); with it
    memory does not grow with K times N. Refused for a pair without a density. Random streams are left as they are.
    """
    data = pair.bind(x)
    if pair.likelihood != "none":
        check_observations(pair, data)
    if pair.likelihood == "none" or not _infers(pair, data):
        raise Refused(
            "importance weights need a density of the model and a guide that infers its latents, which this pair lacks"
        )
    with isolated(seed, device_of(data)), evaluating(pair):
        parts = (_log_weights(pair, piece, particles) for piece in pieces_of(pair, data, 1000))
        return torch.cat([reduce(part) if reduce else part for part in parts], -1)


def _infers(pair: Pair, data: dict[str, Any]) -> bool:
    """Say whether the guide infers anything; refuse densities that are scaled, and guides without a density."""
    with isolated(0, device_of(data)), evaluating(pair):
        some = check_densities(pair, data)
        guide, model = (Programs(pair).run(which, some, particles=2) for which in ("guide", "model"))
    check_auxiliary(guide.values())
    check_sampler(guide.values())
    check_angles(guide, model)
    for name in guide.keys() & model.keys():
        _check_spread(guide[name], model[name])
    if pair.likelihood == "bound" and all(site.observed or site.weightless for site in model.values()):
        raise Refused(
            "this model has no latent, so that its log p(x) is exact, not a bound; say so where the pair is made, by "
            "Pair(..., likelihood='exact')"
        )
    return bool(guide)


def _check_spread(site: Site, prior: Site) -> None:
    """Refuse a site that the guide holds at one point where the model has a density. ``site``: of two particles.

    An autoguide's point mass is a function of a random auxiliary site, and a discrete latent has a mass at its point.
    """
    if isinstance(base_of(site.fn), Delta) and site.latent and not isinstance(base_of(prior.fn), Delta):
        first, second = site.value  # particles stand before all else
        if not prior.fn.support.is_discrete and torch.equal(first, second):
            raise Refused(
                f"the guide holds site '{site.name}' at one point (Delta), where log p(x, z) is no bound of log p(x), and has no "
                "density to weight samples by; annealed_log_likelihood does without the guide"
            )


def _log_weights(pair: Pair, data: dict[str, Any], particles: int) -> Tensor:
    rows = rows_of(pair, data)
    at_once = max(1, min(particles, _most(data) // _numbers(pair, data)))
    parts = []
    for done in range(0, particles, at_once):
        now = min(at_once, particles - done)
        weight = log_weight(draw(Wake(now), Programs(pair), data))
        parts.append(weight.double().reshape(now, rows))
    return torch.cat(parts)


class _Largest(TorchFunctionMode):
    """How many numbers the largest tensor has that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.numbers = max(self.numbers, made.numel())
        return made


def _numbers(pair: Pair, data: dict[str, Any]) -> int:
    """Return how many numbers the largest tensor has that one particle of these data takes: the data, or a wide layer."""
    given = max((value.numel() for value in data.values() if isinstance(value, Tensor)), default=1)
    some = pieces_of(pair, data, 100)[0]
    with isolated(0, device_of(data)), _Largest() as largest:
        log_weight(draw(Wake(), Programs(pair), some))
    return max(given, largest.numbers * rows_of(pair, data) // rows_of(pair, some))


def _most(data: dict[str, Any]) -> int:
    return MOST_VALUES_AT_ONCE if device_of(data).type == "cpu" else ON_A_GPU


def importance_weighted_curve(log_weights: Tensor, particles: Sequence[int] = (1, 10, 100)) -> tuple[Figure, ...]:
    """Return L_K for each K, from the same weights (S, N): averaged over the disjoint groups of K that they hold.

    particles: each K from 1 to S, in any order. Every L_K is unbiased for its bound, and in expectation they rise with K.
    """
    return tuple(bound_figure(bound_of(log_weights, k), k, len(log_weights)) for k in particles)


def bound_of(log_weights: Tensor, k: int) -> Tensor:
    """Return L_K of each datum (N,) from its log weights (S, N), the mean over the disjoint groups of K that they hold."""
    most, rows = log_weights.shape
    if not 1 <= k <= most:
        raise ValueError(f"a bound of K = {k} particles cannot be read from {most} of them; give K from 1 to {most}")
    groups = log_weights[: most // k * k].reshape(most // k, k, rows)
    return (torch.logsumexp(groups, 1) - math.log(k)).mean(0)


def bound_figure(per_datum: Tensor, k: int, most: int) -> Figure:
    """Return the figure of L_K (N,) that was read from ``most`` weights a datum."""
    how = f"importance-weighted bound, K = {k}" + (f", {most // k} groups" if most >= 2 * k else "")
    return mean_figure("ELBO" if k == 1 else f"log p(x), K = {k}", per_datum, "lower bound", how=how)


@torch.no_grad()
def importance_weighted_sandwich(pair: Pair, like: Any, n: int = 100, particles: int = 500, seed: int = 0) -> Bounds:
    """Bound log p(x) of n data simulated from the model from both sides by K importance weights; also for discrete latents.

    like: data that give dimension, dtype, device and covariates. The upper bound exchanges one of the K guide samples for
    the latent that the datum was simulated from, which is an exact posterior sample.
    """
    data = pair.bind(like)
    if pair.likelihood == "none" or not _infers(pair, data):
        raise Refused("simulated data bound a pair that has a density and a guide, which this pair lacks")
    with isolated(seed, device_of(data)), evaluating(pair):
        values, simulated = simulate(pair, data, 0, n)
        rows = rows_of(pair, simulated)
        true = Draw(Programs(pair), simulated, particles=None, first="guide", values=values)
        try:
            with_truth = log_weight(true).double().reshape(rows)
        except PairError:
            raise
        except ValueError as error:
            raise Refused(
                "the guide has no density at some latents that the model draws, so that nothing bounds log p(x) from above "
                f"({reason_of(error)}); give its sites the support that they have in the model"
            ) from None
        weights = _log_weights(pair, simulated, particles)
    how = f"importance weights, K = {particles}, on simulated data"
    below = torch.logsumexp(weights, 0) - math.log(particles)
    above = torch.logaddexp(torch.logsumexp(weights[1:], 0), with_truth) - math.log(particles)
    name = "log p(x), simulated data"
    return Bounds(
        mean_figure(name, below, "lower bound", how=how),
        mean_figure(name, above, "upper bound", how=how),
        mean_figure("gap of the bounds", above - below, "upper bound", how=how),
    )


@torch.no_grad()
def enumerated_log_likelihood(pair: Pair, x: Any, most: int = 2**16) -> Figure:
    """Return log p(x), exact, by the sum over every value of discrete latents, or as it stands where there is none.

    most: the greatest number of joint values of a datum's latents. Refused where a latent is not discrete, has more, or has
    other values in the guide, whose values are summed, than in the model.
    """
    if pair.likelihood == "none":
        raise Refused(
            "no density to sum: an implicit model has none, and an RBM's is known up to its partition function"
        )
    data = pair.bind(x)
    check_not_empty(data)
    try:
        with isolated(0, device_of(data)), evaluating(pair):
            check_enumerable(Programs(pair), data)
            check_values(Programs(pair), data)
            check_observations(pair, data)
            check_densities(pair, data)
            values, count = enumerate_sites(Programs(pair), data)
            if count > most:
                raise PairError(f"the latents have {count} joint values, more than the {most} that were to be summed")
            rows = max(1, rows_of(pair, data) * _most(data) // max(64, count) // _numbers(pair, data))
            pieces = [log_evidence(draw(Enumerate(), Programs(pair), piece)) for piece in pieces_of(pair, data, rows)]
    except PairError as error:
        raise Refused(str(error)) from None
    how = f"the sum over {count} values of the latents" if values else "the density itself"
    return mean_figure("log p(x)", torch.cat([piece.reshape(-1) for piece in pieces]), "exact", how=how)
