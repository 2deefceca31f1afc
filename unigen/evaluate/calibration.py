"""Simulation-based calibration: where the truth ranks among posterior draws, over data simulated from the model.

    z* ~ p(z), x* ~ p(x|z*), z_1, ..., z_L ~ q(z|x*):  rank = #{l: f(z_l) < f(z*)} is uniform on 0, ..., L for q = p(z|x)

for every function f. Uniformity is tested by chi-square over bins, and by the empirical distribution function under bands
that hold at all ranks at once, whose coverage is computed exactly by a recursion over the ranks.
Sources: Talts, Betancourt, Simpson, Vehtari and Gelman (2018), arXiv:1804.06788; Säilynoja, Bürkner and Vehtari (2022),
arXiv:2103.10522; Modrák et al. (2023), arXiv:2211.02383, for the likelihood as a function that also sees what is ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unigen.engines.draw import Draw
from unigen.engines.programs import Programs, device_of
from unigen.evaluate.annealing import simulate
from unigen.evaluate.figure import Figure, Refused
from unigen.evaluate.latents import check_densities, columns_of, rows_of
from unigen.evaluate.modes import evaluating
from unigen.pair import Pair
from unigen.streams import isolated

__all__ = [
    "Calibration",
    "chi_square_p_values",
    "ecdf_band",
    "ecdf_p_values",
    "simulation_based_calibration",
]

AT_ONCE = 2**24
ULPS = 16  # of log p(x|z), by which equal latents may differ where one product of matrices holds many of them
Posterior = Callable[[dict[str, Any], int], Mapping[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Calibration:
    """Ranks 0 to L of the truth, int64 (N, Q), for Q quantities named ``labels``, and each one's p-values (Q,).

    ``p_values``: of each quantity, twice the smaller one of its two tests. ``p_value``: of all, by Bonferroni.
    """

    labels: tuple[str, ...]
    draws: int
    ranks: Tensor = field(repr=False)
    chi_square: Tensor = field(repr=False)
    ecdf: Tensor = field(repr=False)

    @property
    def p_values(self) -> Tensor:
        return (2 * torch.minimum(self.chi_square, self.ecdf)).clamp(max=1)

    @property
    def p_value(self) -> float:
        return min(1.0, float(self.p_values.min()) * len(self.labels))

    def rejected(self, level: float = 1e-5) -> tuple[str, ...]:
        """Return the quantities whose ranks are not uniform, each at this level."""
        return tuple(label for label, p in zip(self.labels, self.p_values.tolist(), strict=True) if p < level)

    def figures(self, level: float = 1e-5) -> tuple[Figure, Figure]:
        """Return the p-value, and the largest distance of a rank's distribution from the uniform one.

        The distance has the Dvoretzky-Kiefer-Wolfowitz interval of 95 % over all quantities.
        """
        rows, wrong = len(self.ranks), self.rejected(level)
        count = _counts(self.ranks, self.draws).cumsum(0)[:-1].double() / rows
        uniform = torch.arange(1, self.draws + 1, dtype=torch.float64, device=count.device)[:, None] / (self.draws + 1)
        deviation, index = (count - uniform).abs().amax(0).max(0)
        warning = (
            f"not calibrated: {len(wrong)} of {len(self.labels)} quantities rejected at {level:g}" if wrong else ""
        )
        how = f"ranks among {self.draws} draws, {rows} simulated data, {len(self.labels)} quantities"
        radius = math.sqrt(math.log(2 * len(self.labels) / 0.05) / (2 * rows))
        interval = (max(0.0, float(deviation) - radius), min(1.0, float(deviation) + radius))
        worst = f"{how}; the worst is {self.labels[int(index)]}"
        return (
            Figure("calibration, p-value", self.p_value, "estimate", "", rows, how=how, warning=warning),
            Figure("calibration, distance of ranks", float(deviation), "distance", "", rows, None, interval, worst,
                   warning=warning),
        )  # fmt: skip


@torch.no_grad()
def simulation_based_calibration(
    pair: Pair,
    like: Any,
    n: int = 2000,
    draws: int = 127,
    posterior: Posterior | None = None,
    coordinates: int | None = None,
    seed: int = 0,
) -> Calibration:
    """Rank the truth among draws of the guide, over n data simulated from the model.

    like: data that give dimension, dtype, device and covariates. draws: L; L + 1 is best a multiple of 16. posterior: instead
    of the guide, a function of (data by argument, L) to draws by site (L, ...), such as a sampler; it is asked for one
    simulated batch after another. coordinates: of each latent site, at most so many, evenly spaced; None for all. Quantities
    are these coordinates, and log p(x|z). Ties, as between bits, are broken at random, and so are numbers of log p(x|z) that are
    apart by rounding alone. Refused where the model has no latent
    or no density.
    """
    if pair.likelihood == "none":
        raise Refused(
            "calibration simulates latents and data from the model and reads its density, which this pair lacks"
        )
    if n < 16 or draws < 15:
        raise ValueError(f"calibration needs at least 16 simulations and 15 draws; got {n} and {draws}")
    data = pair.bind(like)
    ranks: list[Tensor] = []
    labels: list[str] = []
    with isolated(seed, device_of(data)), evaluating(pair):
        check_densities(pair, data)
        numbers = max((v[:1].numel() if v.dim() else 1 for v in data.values() if isinstance(v, Tensor)), default=1)
        batched = Programs(pair).layout(data).batched
        most = max(1, AT_ONCE // (numbers * draws)) if batched else 1
        for first in range(0, n, most):
            truth, simulated = simulate(pair, data, first, min(most, n - first))
            if not truth:
                raise Refused("this pair has no latent whose posterior could be calibrated")
            labels, found = _ranks(pair, simulated, truth, draws, posterior, coordinates)
            ranks.append(found)
    every = torch.cat(ranks)
    return Calibration(tuple(labels), draws, every, chi_square_p_values(every, draws), ecdf_p_values(every, draws))


def _ranks(
    pair: Pair,
    data: dict[str, Any],
    truth: dict[str, Tensor],
    draws: int,
    posterior: Posterior | None,
    coordinates: int | None,
) -> tuple[list[str], Tensor]:
    """Return the names of the quantities and the rank of each datum's truth, (N, Q)."""
    rows = rows_of(pair, data)
    if posterior:
        values = dict(posterior(data, draws))
    else:
        sites = Programs(pair).run("guide", data, particles=draws)
        values = {name: site.value for name, site in sites.items() if site.latent}
    if set(values) != set(truth):
        raise Refused(
            f"the posterior to be calibrated draws {', '.join(sorted(values)) or 'nothing'}, and the model's latents are "
            f"{', '.join(sorted(truth))}; give a guide or a posterior that draws the same sites"
        )
    # the truth is one particle more: computed apart, what is equal would differ by rounding
    beside = {name: torch.cat([truth[name].expand(1, *drawn.shape[1:]), drawn]) for name, drawn in values.items()}
    latents, likelihood = _model_at(pair, data, beside, draws + 1)
    labels, ranks = [], []
    for name, column in latents.items():
        every = column.reshape(draws + 1, rows, -1)
        width = every.shape[-1]
        chosen = list(range(0, width, -(-width // (coordinates or width))))
        ranks.append(_rank(every[0, :, chosen], every[1:, :, chosen]))
        labels += [name] if width == 1 else [f"{name}[{index}]" for index in chosen]
    every = likelihood.reshape(draws + 1, rows, 1)
    ranks.append(_rank(every[0], every[1:], ULPS * torch.finfo(every.dtype).eps * every[0].abs()))
    return [*labels, "log p(x|z)"], torch.cat(ranks, 1).cpu()


def _model_at(
    pair: Pair, data: dict[str, Any], values: dict[str, Tensor], particles: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the latents' values as columns, and log p(x|z)."""
    sites = Programs(pair).run("model", data, values=values, particles=particles).values()
    reader = Draw(Programs(pair), data, particles, "guide")
    densities = [reader.per_datum(site, site.value) for site in sites if site.observed and not site.weightless]
    latents = {site.name: columns_of(site, pair.batch_plate) for site in sites if not site.observed}
    return latents, torch.stack(torch.broadcast_tensors(*densities)).sum(0)


def _rank(truth: Tensor, draws: Tensor, slack: Tensor | float = 0.0) -> Tensor:
    """Return how many of (L, N, Q) are below (N, Q), ties, at most ``slack`` apart, counted by a uniform share of them."""
    tied = (draws == truth) | ((draws - truth).abs() <= slack)
    below, equal = ((draws < truth) & ~tied).sum(0), tied.sum(0)
    return below + (torch.rand(below.shape, device=below.device) * (equal + 1)).long().clamp(max=draws.shape[0])


# -- tests of uniformity -----------------------------------------------------------------------------------------------


def _counts(ranks: Tensor, draws: int) -> Tensor:
    """Count each rank of each quantity, (L + 1, Q)."""
    if ranks.numel() and (int(ranks.min()) < 0 or int(ranks.max()) > draws):
        raise ValueError(f"ranks lie in 0 to {draws}; got {int(ranks.min())} to {int(ranks.max())}")
    return torch.stack([torch.bincount(column, minlength=draws + 1) for column in ranks.T], 1)


def chi_square_p_values(ranks: Tensor, draws: int, bins: int = 16) -> Tensor:
    """Return the chi-square p-value of each quantity's ranks (N, Q) over bins that L + 1 ranks fill evenly, (Q,).

    bins: at most so many, the most that divide L + 1. The p-value is asymptotic in N / bins.
    """
    bins = max(count for count in range(1, bins + 1) if (draws + 1) % count == 0)
    if bins == 1:
        raise ValueError(f"{draws + 1} ranks cannot be put into equal bins; give a number of draws such as 127")
    observed = _counts(ranks, draws).reshape(bins, -1, ranks.shape[1]).sum(1).double()
    expected = len(ranks) / bins
    statistic = ((observed - expected).square() / expected).sum(0)
    return torch.special.gammaincc(torch.full_like(statistic, (bins - 1) / 2), statistic / 2)


def ecdf_p_values(ranks: Tensor, draws: int) -> Tensor:
    """Return for each quantity's ranks (N, Q) the p-value of the most improbable count of ranks below a threshold, (Q,).

    At each of the L thresholds the count is binomial; the smallest of the L two-sided tail probabilities is the statistic,
    whose law is computed exactly.
    """
    rows = len(ranks)
    tails = _tails(rows, draws)  # (L, N + 1)
    below = _counts(ranks, draws).cumsum(0)[:-1]  # (L, Q)
    smallest = tails.gather(1, below.to(tails.device)).amin(0)
    known = {level: 1 - _coverage(tails, level) for level in set(smallest.tolist())}
    p_values = [known[level] for level in smallest.tolist()]
    return torch.tensor(p_values, dtype=torch.float64, device=ranks.device).clamp(0, 1)


def ecdf_band(rows: int, draws: int, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
    """Return the band (L,), (L,) in which the share of ranks below 1, ..., L lies at once with at least the confidence."""
    if not 0 < confidence < 1:
        raise ValueError(f"the confidence of a band lies between 0 and 1; got {confidence}")
    tails, low, high = _tails(rows, draws), math.log(1e-300), math.log(1 - confidence)
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _coverage(tails, math.exp(middle)) >= confidence else (low, middle)
    inside = tails > math.exp(low)
    first = inside.int().argmax(1)
    last = rows - inside.flip(1).int().argmax(1)
    return first.double() / rows, last.double() / rows


def _binomial(rows: Tensor, successes: Tensor, probability: Tensor, log_factorial: Tensor) -> Tensor:
    """Return the probability of so many successes, 0 where there cannot be so many; ``log_factorial`` of 0, 1, ..., N."""
    possible = (successes >= 0) & (successes <= rows)
    k = torch.where(possible, successes, 0)
    rest = rows - k
    mass = log_factorial[rows] - log_factorial[k] - log_factorial[rest]
    mass = mass + k * probability.log() + rest * torch.log1p(-probability)
    return torch.where(possible, mass.exp(), 0.0)


def _log_factorial(rows: int) -> Tensor:
    return torch.lgamma(torch.arange(1, rows + 2, dtype=torch.float64))


def _tails(rows: int, draws: int) -> Tensor:
    """Return min(1, 2 P(C <= c), 2 P(C >= c)) for the count C of ranks below each threshold 1 to L, (L, N + 1)."""
    probability = torch.arange(1, draws + 1, dtype=torch.float64)[:, None] / (draws + 1)
    mass = _binomial(torch.tensor(rows), torch.arange(rows + 1), probability, _log_factorial(rows))
    lower = mass.cumsum(1)
    upper = mass.flip(1).cumsum(1).flip(1)
    return (2 * torch.minimum(lower, upper)).clamp(max=1)


def _coverage(tails: Tensor, level: float) -> float:
    """Return the probability that every count's tail probability is above a level.

    The counts are a Markov chain: of the N - c ranks not below threshold i, each is below the next with probability
    1 / (L + 1 - i).
    """
    draws, rows = len(tails), tails.shape[1] - 1
    log_factorial = _log_factorial(rows)
    mass, states = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.long)
    for index in range(draws):
        inside = (tails[index] > level).nonzero()[:, 0]
        if not len(inside):
            return 0.0
        step = torch.tensor(1 / (draws + 1 - index), dtype=torch.float64)
        moves = _binomial(rows - states[:, None], inside[None, :] - states[:, None], step, log_factorial)
        mass, states = mass @ moves, inside
    return float(mass.sum())
