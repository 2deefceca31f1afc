"""The log-likelihood of test data, and what kind of number it is: exact, a lower bound, or none."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unigen.engines.eager import draw
from unigen.engines.programs import Programs
from unigen.evaluate.modes import evaluating
from unigen.objectives import log_evidence, log_weight
from unigen.pair import Pair
from unigen.pairs.rbm import BoltzmannMachine
from unigen.phases import Enumerate, Wake
from unigen.streams import isolated

__all__ = ["LogLikelihood", "log_likelihood"]

MOST_VALUES_AT_ONCE = 2**25  # numbers of data space evaluated in one piece: bounds memory


@dataclass(frozen=True)
class LogLikelihood:
    """Mean log p(x) in nats a datum, with its standard error over the data.

    ``kind``: ``"exact"``, ``"bound"`` (a lower bound in expectation) or ``"none"``. ``how`` says it in words.
    ``particles``: K of the importance-weighted bound. ``per_datum``: (N,).
    """

    value: float | None
    standard_error: float | None
    kind: str
    how: str
    n: int
    particles: int | None = None
    per_datum: Tensor | None = None


@torch.no_grad()
def log_likelihood(pair: Pair, x: Tensor, particles: int = 500, seed: int = 0) -> LogLikelihood:
    """Estimate the mean of log p(x) over rows x (N, D), as well as the pair allows.

    Exact by change of variables, by enumeration or by an enumerable partition function where ``pair.likelihood`` is
    ``"exact"``; the importance-weighted bound with K = ``particles`` samples of the guide (Burda et al. 2016, Eq. 8) where
    it is ``"bound"``; no number where it is ``"none"``. Random streams outside are untouched.
    """
    if pair.likelihood == "none":
        why = "unnormalized: none" if isinstance(pair.model, BoltzmannMachine) else "implicit: none"
        return LogLikelihood(None, None, "none", why, len(x))
    with isolated(seed, x.device), evaluating(pair):
        if isinstance(pair.model, BoltzmannMachine):
            distribution = pair.model.distribution
            values = distribution.log_prob(x) - distribution.log_partition()
        elif pair.likelihood == "exact":
            pieces = x.split(max(1, MOST_VALUES_AT_ONCE // (64 * x[0].numel())))
            values = torch.cat([log_evidence(draw(Enumerate(), Programs(pair), pair.bind(piece))) for piece in pieces])
        else:
            values = _importance_weighted(pair, x, particles)
    kind = pair.likelihood
    how = "exact" if kind == "exact" else f"importance-weighted bound, K = {particles}"
    error = float(values.std() / math.sqrt(len(x))) if len(x) > 1 else None
    k = particles if kind == "bound" else None
    return LogLikelihood(float(values.mean()), error, kind, f"{how}, {len(x)} test data", len(x), k, values)


def _importance_weighted(pair: Pair, x: Tensor, particles: int) -> Tensor:
    """Return log (1/K) sum_k w_k for each row, (N,), in pieces that fit memory."""
    at_once = min(particles, 50)
    rows = max(1, min(len(x), MOST_VALUES_AT_ONCE // (at_once * x[0].numel()), 1000))
    values = []
    for piece in x.split(rows):
        total = torch.full((len(piece),), -math.inf, device=x.device, dtype=x.dtype)
        done = 0
        while done < particles:
            now = min(at_once, particles - done)
            sample = draw(Wake(now), Programs(pair), pair.bind(piece))
            total = torch.logaddexp(total, torch.logsumexp(log_weight(sample), 0))
            done += now
        values.append(total - math.log(particles))
    return torch.cat(values)
