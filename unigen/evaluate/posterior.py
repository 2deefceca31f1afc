"""The guide against the posterior: KL(q || p(z|x)), Pareto k-hat, active units, moments, and reference draws.

    KL(q(z|x) || p(z|x)) = log p(x) - ELBO(x) >= 0

With a lower bound in the place of log p(x) the difference bounds the divergence from below, in expectation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unigen.engines.programs import Programs, device_of, lengths_of
from unigen.engines.sites import Site, family_of
from unigen.evaluate.figure import Figure, Refused, mean_figure
from unigen.evaluate.latents import columns_of, pieces_of
from unigen.evaluate.modes import evaluating
from unigen.pair import Pair
from unigen.reference import Posterior, sample
from unigen.streams import isolated

__all__ = [
    "ActiveUnits",
    "active_units",
    "against_nuts",
    "against_reference",
    "guide_draws",
    "posterior_gap",
]

ACTIVE = 1e-2  # the variance over data above which a unit counts as active (Burda et al. 2016)


def posterior_gap(evidence: Figure, elbo: Figure, rows: Tensor | None = None) -> Figure:
    """Return KL(q(z|x) || p(z|x)) = log p(x) - ELBO, averaged over the data that the evidence is of.

    evidence: log p(x), exact or a lower bound such as annealed importance sampling's. elbo: the mean log weight a datum. rows:
    which of the ELBO's data the evidence is of, int64, in its order; None for all. ValueError for an upper bound, and for
    numbers of data that differ.
    """
    if evidence.kind not in ("exact", "lower bound"):
        raise ValueError(f"a divergence from the posterior cannot be read from an {evidence.kind} of log p(x)")
    if evidence.per_datum is None or elbo.per_datum is None:
        raise ValueError(
            "a divergence from the posterior is read per datum, and one of the figures has no such numbers"
        )
    of_elbo = elbo.per_datum if rows is None else elbo.per_datum[rows.to(elbo.per_datum.device)]
    if len(of_elbo) != len(evidence.per_datum):
        raise ValueError(
            f"log p(x) is of {len(evidence.per_datum)} data and the ELBO of {len(of_elbo)}; give rows, the numbers of those of "
            "the ELBO's data that log p(x) is of"
        )
    per_datum = evidence.per_datum.double() - of_elbo.double()
    kind = "estimate" if evidence.kind == "exact" else "lower bound"
    return mean_figure("KL(q || posterior)", per_datum, kind, how=f"log p(x) minus ELBO; {evidence.how}")


class ActiveUnits(NamedTuple):
    """How many latent units are active, and the variance over data of each unit's posterior mean, by site (units,)."""

    figure: Figure
    variances: dict[str, Tensor]


@torch.no_grad()
def active_units(pair: Pair, x: Any, draws: int = 8, seed: int = 0) -> ActiveUnits:
    """Count the units u with Var_x E_q[u|x] > 0.01 (Burda, Grosse and Salakhutdinov 2016).

    draws: of the guide, in two halves, whose covariance over data is free of the draws' own noise. At least two, and as
    many data; refused for a guide that infers nothing.
    """
    data = pair.bind(x)
    halves: list[dict[str, list[Tensor]]] = [{}, {}]
    with isolated(seed, device_of(data)), evaluating(pair):
        for piece in pieces_of(pair, data, 1000):
            for half in halves:
                sites = Programs(pair).run("guide", piece, particles=max(1, draws // 2))
                for name, site in sites.items():
                    if not site.latent or family_of(site.fn) == "Categorical":
                        continue  # no latent of the model, or labels, without an order or a scale
                    half.setdefault(name, []).append(
                        columns_of(site, pair.batch_plate, _conditional_mean(site)).double().mean(0)
                    )
    if not halves[0]:
        raise Refused("this pair's guide infers no units: nothing, or labels without a scale")
    variances = {}
    rows = 0
    for name in halves[0]:
        one, other = (torch.cat([torch.atleast_2d(part) for part in half[name]]) for half in halves)
        rows = len(one)
        if rows < 2:
            raise Refused("a unit is active when its mean varies over data, of which there are fewer than two")
        variances[name] = ((one - one.mean(0)) * (other - other.mean(0))).sum(0) / (rows - 1)
    active = sum(int((variance > ACTIVE).sum()) for variance in variances.values())
    units = sum(len(variance) for variance in variances.values())
    parts = ", ".join(f"{int((v > ACTIVE).sum())} of {len(v)} in {name}" for name, v in variances.items())
    how = f"variance over data of the guide's mean above {ACTIVE:g}: {parts}"
    return ActiveUnits(Figure("active units", float(active), "estimate", f"of {units}", rows, how=how), variances)


def _conditional_mean(site: Site) -> Tensor:
    """Return E[site | the sites above], or the sample where a distribution has no mean or one outside its support."""
    try:
        mean = site.fn.mean.expand(site.value.shape)
    except (NotImplementedError, AttributeError, RuntimeError):
        return site.value
    return site.value if bool(mean.isnan().any()) else mean


@torch.no_grad()
def guide_draws(pair: Pair, x: Any, draws: int = 1000, seed: int = 0) -> dict[str, Tensor]:
    """Draw from the guide by site, (draws, ...): what reference draws of the same sites are compared with."""
    data = pair.bind(x)
    with isolated(seed, device_of(data)), evaluating(pair):
        sites = Programs(pair).run("guide", data, particles=draws)
        return {name: site.value for name, site in sites.items() if site.latent}


def against_reference(
    draws: Mapping[str, Tensor], reference: Posterior | Mapping[str, Tensor]
) -> dict[str, tuple[Figure, ...]]:
    """Compare draws of a guide with reference draws of the posterior, such as a long Markov chain's, site by site.

    draws: (S, ...) by site, as ``guide_draws`` gives them. reference: what ``unigen.reference.sample`` returns, whose other
    sites are left out and whose draws count by their effective sample size; or independent draws (R, ...) by site, of the same
    sites and shapes. Returns for each site, over its coordinates: the largest error of the mean in reference standard
    deviations, the ratio of standard deviations that is farthest from 1, and the largest Wasserstein-1 distance between the
    draws of a coordinate, in reference standard deviations. A coordinate that is the same number in all draws of both sides
    counts as right, and one that is so in the reference alone is infinitely far off. Standard errors are of the coordinate
    named; figures against chains that disagree (R-hat over 1.01) or diverged are labelled unreliable. ValueError where sites
    or shapes differ.
    """
    effective: dict[str, Tensor] = {}
    warning = ""
    if isinstance(reference, Posterior):
        effective = {name: ess.reshape(-1) for name, ess in reference.ess.items()}
        worst = max(float(rhat.nan_to_num().max()) for rhat in reference.rhat.values())
        if worst > 1.01 or reference.divergences:
            warning = f"unreliable: R-hat {worst:.3f}, {reference.divergences} divergences of the reference"
        reference = {name: value.flatten(0, 1) for name, value in reference.draws.items() if name in draws}
    missing = set(reference) ^ set(draws)
    if missing:
        raise ValueError(
            f"sites {', '.join(sorted(missing))} are in one of guide and reference draws only; give the same"
        )
    found = {}
    for name, true in reference.items():
        mine = draws[name].reshape(len(draws[name]), -1).double()
        theirs = true.reshape(len(true), -1).double().to(mine.device)
        if mine.shape[1] != theirs.shape[1]:
            raise ValueError(
                f"site '{name}' has {mine.shape[1]} coordinates in the guide's draws and {theirs.shape[1]} in the reference"
            )
        if min(len(mine), len(theirs)) < 2:
            raise ValueError(f"site '{name}' has fewer than two draws on one side; give more")
        size = effective.get(name, torch.full((1,), float(len(theirs)))).to(theirs)
        figures = _site_against_reference(name, mine, theirs, size)
        found[name] = tuple(dataclasses.replace(figure, warning=warning) for figure in figures)
    return found


def against_nuts(
    pair: Pair, x: Any, draws: int = 1000, *, chains: int = 4, warmup: int = 500, seed: int = 0, progress: bool = False
) -> tuple[Figure, ...]:
    """Compare the guide with the posterior p(z|x) of each of a few data, as NUTS draws it (``unigen.reference.sample``).

    draws: of each chain, and as many in all of the guide. Returns, each averaged over the coordinates of a datum's latents, with
    the standard error over data: the error of the mean and the Wasserstein-1 distance, in standard deviations of the posterior,
    and the ratio of standard deviations, guide to posterior, a geometric mean. Chains that disagree or diverged are labelled
    unreliable. Raises what ``sample`` raises, a ``PairError`` for discrete latents among them.
    """
    reference = sample(pair, x, chains=chains, warmup=warmup, draws=draws, seed=seed, progress=progress)
    names = set(reference.draws)
    drawn = {name: value for name, value in guide_draws(pair, x, chains * draws, seed).items() if name in names}
    compared = against_reference(drawn, reference)
    rows = max(lengths_of(pair.bind(x)), default=1)
    shift, ratio, distance = (
        torch.cat([torch.as_tensor(figures[part].per_datum).reshape(rows, -1) for figures in compared.values()], 1)
        for part in range(3)
    )
    ess = torch.cat([reference.ess[name].reshape(-1) for name in compared]).double()
    floor = float(((1 / (chains * draws) + 1 / ess) * 2 / math.pi).sqrt().mean())
    how = f"{shift.shape[1]} coordinates a datum, {chains} chains of {draws} draws by NUTS, least ESS {float(ess.min()):.0f}"
    warning = next(iter(compared.values()))[0].warning
    return (
        mean_figure("guide against NUTS, error of the mean", shift.mean(1), "estimate", "sd",
                    how=f"{how}; an exact guide has {floor:.2g}", warning=warning),
        mean_figure("guide against NUTS, ratio of deviations", ratio.log().mean(1).exp(), "estimate", "",
                    how=how, warning=warning),
        mean_figure("guide against NUTS, Wasserstein-1", distance.mean(1), "distance", "sd", how=how, warning=warning),
    )  # fmt: skip


def _moments(draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return which coordinates of draws (S, D) are one number, their means and their deviations, exact for these, each (D,)."""
    fixed = (draws == draws[:1]).all(0)
    return fixed, torch.where(fixed, draws[0], draws.mean(0)), torch.where(fixed, 0.0, draws.std(0))


def _site_against_reference(name: str, mine: Tensor, theirs: Tensor, size: Tensor) -> tuple[Figure, ...]:
    n = len(mine)
    (fixed, mean, deviation), (fixed_there, true_mean, scale) = map(_moments, (mine, theirs))
    ratio = (deviation / scale).nan_to_num(1.0, math.inf)
    shift = ((mean - true_mean).abs() / scale).nan_to_num(0.0, math.inf)
    error = (ratio.square() / n + 1 / size).sqrt()
    shift_error = torch.where(fixed & fixed_there, 0.0, error)
    ratio_error = ratio * (1 / (2 * (n - 1)) + 1 / (2 * (size - 1))).sqrt()
    grid = (torch.arange(200, dtype=mine.dtype, device=mine.device) + 0.5) / 200
    apart = (torch.quantile(mine, grid, 0) - torch.quantile(theirs, grid, 0)).abs().mean(0)
    distance = (apart / scale).nan_to_num(0.0, math.inf)
    how = f"{n} draws against {len(theirs)} reference draws"
    worst = int(shift.argmax()), int(ratio.log().abs().argmax()), int(distance.argmax())

    def at(index: int) -> str:
        return f"{name}[{index}]" if mine.shape[1] > 1 else name

    return (
        Figure(f"error of the mean, {at(worst[0])}", float(shift[worst[0]]), "estimate", "reference sd", n,
               float(shift_error[worst[0]]), how=how, per_datum=shift),
        Figure(f"ratio of deviations, {at(worst[1])}", float(ratio[worst[1]]), "estimate", "", n,
               float(ratio_error[worst[1]]), how=how, per_datum=ratio),
        Figure(f"Wasserstein-1 distance, {at(worst[2])}", float(distance[worst[2]]), "distance", "reference sd", n,
               how=how, per_datum=distance),
    )  # fmt: skip
