"""Variational lower bounds that a critic or a score makes of a divergence: f-divergences, Donsker-Varadhan, InfoNCE.

    D_f(P || Q) >= E_P[T] - E_Q[f*(T)]            KL(P || Q) >= E_P[T] - log E_Q[exp T]
    I(X; Y) >= E (1/K) sum_i log [exp s_ii / ((1/K) sum_j exp s_ij)]

The functions take values of the critic on samples, and are differentiable in them. Values are in nats, or in the
unit of `base`.
"""

import math

import torch
from torch import Tensor

from unigen.divergences.discrete import nats_per_unit
from unigen.divergences.family import f_divergence

__all__ = ["donsker_varadhan_bound", "f_divergence_bound", "info_nce_bound"]


def _check_values(on_p: Tensor, on_q: Tensor) -> None:
    if on_p.ndim != 1 or on_q.ndim != 1 or 0 in (len(on_p), len(on_q)):
        raise ValueError(
            f"A bound takes the critic's values on two nonempty samples, (n,) and (m,), but got {tuple(on_p.shape)} and "
            f"{tuple(on_q.shape)}."
        )


def f_divergence_bound(name: str, on_p: Tensor, on_q: Tensor, base: float = math.e) -> Tensor:
    """Compute mean T(x) - mean f*(T(y)) <= D_f(P || Q), in expectation, for samples x of P and y of Q.

    name: of `f_divergences`. on_p: T at samples of P, (n,). on_q: T at samples of Q, (m,); above the domain of f* the bound
    is -inf. base: unit of the result, for a divergence that holds logarithms; T itself is in nats. Returns a scalar, tight at
    T = f'(p/q). Source: Nguyen, Wainwright and Jordan (2010); Nowozin et al. (2016).

    Theory: f-divergence-is-bounded [nguyen2010, nowozin2016].
    """
    _check_values(on_p, on_q)
    divergence = f_divergence(name)
    return (on_p.mean() - divergence.conjugate(on_q).mean()) / divergence.unit(base)


def donsker_varadhan_bound(on_p: Tensor, on_q: Tensor, base: float = math.e) -> Tensor:
    """Compute mean T(x) - log mean exp T(y), whose limit in large samples is <= KL(P || Q); tight at T = log p/q + constant.

    on_p, on_q, base: as for `f_divergence_bound`. With P the joint and Q the product of the margins this is MINE's bound on mutual
    information. Source: Donsker and Varadhan (1975); Belghazi et al. (2018), MINE.

    Theory: bounds-on-information, augmented-min-max [donsker1975].
    """
    _check_values(on_p, on_q)
    return (on_p.mean() - (torch.logsumexp(on_q, 0) - math.log(len(on_q)))) / nats_per_unit(base)


def info_nce_bound(scores: Tensor, base: float = math.e) -> Tensor:
    """Compute log K + mean_i [s_ii - logsumexp_j s_ij] <= I(X; Y), in expectation, and <= log K always.

    scores: (K, K), s_ij scores x_i with y_j for K independent pairs (x_i, y_i); best at s = log p(y|x)/p(y) + c(x), as is
    log p(x|y).
    base: unit of the result. Returns a scalar. Source: van den Oord, Li and Vinyals (2018); Poole et al. (2019).

    Theory: bounds-on-information [vandenoord2018].
    """
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or scores.shape[0] < 2:
        raise ValueError(f"Scores are a square table (K, K) of two or more pairs, but got {tuple(scores.shape)}.")
    in_nats = math.log(len(scores)) + (scores.diagonal() - torch.logsumexp(scores, 1)).mean()
    return in_nats / nats_per_unit(base)
