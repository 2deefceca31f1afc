"""Pareto k-hat: how heavy the tail of importance weights is, and so whether an estimate that rests on them can be trusted.

The largest weights are fitted by a generalized Pareto distribution of shape k: moments of order below 1/k exist. Over 0.7 an
estimate by importance sampling needs more samples than anybody has. The fit is the quasi-Bayesian one of Zhang and Stephens.
Sources: Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling, JMLR 25, arXiv:1507.02646; Zhang
and Stephens (2009), Technometrics 51; Yao, Vehtari, Simpson and Gelman (2018), arXiv:1802.02538, for variational guides.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unigen.evaluate.figure import Figure

__all__ = ["UNRELIABLE", "figures_of_k_hat", "k_hat_figures", "pareto_k_hat"]

UNRELIABLE = 0.7
MOST_NUMBERS = 2**25


def pareto_k_hat(log_weights: Tensor) -> Tensor:
    """Return k-hat of each datum, float64 (N,), from log weights (S, N); nan where a datum's weights have no tail.

    The tail is the largest min(S/5, 3 sqrt(S)) weights, at least 5; k is drawn towards 1/2 by ten pseudo-observations.
    Raises ValueError for fewer than 25 weights a datum.
    """
    samples = len(log_weights)
    if samples < 25:
        raise ValueError(f"k-hat needs at least 25 weights a datum; got {samples}")
    tail = math.ceil(min(samples / 5, 3 * math.sqrt(samples)))
    scaled = log_weights.double() - log_weights.double().amax(0)
    top = scaled.sort(0).values[-tail - 1 :]
    cutoff = top[0].clamp_min(math.log(torch.finfo(torch.float64).tiny))
    excess = top[1:].exp() - cutoff.exp()  # ascending, above the cutoff
    rows = max(1, MOST_NUMBERS // (tail * (30 + math.isqrt(tail))))
    found = torch.cat([_fit(part) for part in excess.split(rows, 1)])
    return torch.where((excess > 0).all(0), found, math.nan)


def _fit(excess: Tensor) -> Tensor:
    """Return the shape of generalized Pareto distributions fitted to ascending excesses (M, N), M points each, (N,)."""
    points = len(excess)
    candidates = 30 + math.isqrt(points)
    index = torch.arange(1, candidates + 1, dtype=excess.dtype, device=excess.device)[:, None]
    quartile = excess[int(points / 4 + 0.5) - 1]
    inverse = 1 / excess[-1] + (1 - (candidates / (index - 0.5)).sqrt()) / (3 * quartile)  # (candidates, N)
    shape = torch.log1p(-inverse[:, None] * excess).mean(1)
    log_likelihood = points * (torch.log(-inverse / shape) - shape - 1)
    posterior = torch.softmax(log_likelihood, 0)
    shape = torch.log1p(-(posterior * inverse).sum(0) * excess).mean(0)
    return (points * shape + 5) / (points + 10)


def k_hat_figures(log_weights: Tensor) -> tuple[Figure, Figure]:
    """Return the median of k-hat over data, with its quartiles as the interval, and the share of data above 0.7."""
    return figures_of_k_hat(pareto_k_hat(log_weights), len(log_weights))


def figures_of_k_hat(k: Tensor, samples: int) -> tuple[Figure, Figure]:
    """Return the figures of k-hats (N,) that were read from so many weights a datum."""
    rows = len(k)
    known = k[~k.isnan()]
    share = float((known > UNRELIABLE).double().mean()) if len(known) else math.nan
    how = f"{samples} importance weights a datum" + (
        f", {rows - len(known)} without a tail" if len(known) < rows else ""
    )
    warning = f"unreliable: over {UNRELIABLE} for {share:.0%} of the data" if share > 0 else ""
    if not len(known):
        middle, interval = math.nan, None
    else:
        low, middle, high = torch.quantile(known, known.new_tensor([0.25, 0.5, 0.75])).tolist()
        interval = (low, high)
    error = math.sqrt(share * (1 - share) / len(known)) if len(known) else None
    median = Figure(
        "Pareto k-hat, median", middle, "estimate", "", rows, None, interval, how, warning=warning, per_datum=k
    )
    return median, Figure("Pareto k-hat, share over 0.7", share, "estimate", "", rows, error, how=how, warning=warning)
