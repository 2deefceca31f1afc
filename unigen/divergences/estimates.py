"""Divergences between distributions of torch and Pyro: closed form where it exists, else a Monte Carlo estimate with its error.

    H(p) = E_p[-log p],  H(p, q) = E_p[-log q],  KL(p || q) = E_p[log p - log q],  D_f(P || Q) = E_Q[f(p/q)]

Every function returns an `Estimate`. What is closed (a formula, or the sum over a finite support) has standard error zero and is
differentiable; an estimate is neither. Samples are drawn from a stream of their own, by seed: the global random state is neither
read nor moved. A sample of p that q forbids makes a divergence inf, and proves it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Binomial, Categorical, Independent, Poisson, kl_divergence

from unigen.divergences.discrete import nats_per_unit
from unigen.divergences.family import f_divergence
from unigen.streams import isolated

__all__ = [
    "Estimate",
    "block_estimate",
    "cross_entropy_between",
    "entropy_of",
    "f_divergence_between",
    "jensen_shannon_between",
    "kullback_leibler_between",
]

MOST_OUTCOMES = 2**20


@dataclass(frozen=True, eq=False)
class Estimate:
    """Hold a value, its standard error, and the number of samples behind it.

    value, standard_error: the distributions' batch shape, or (). samples: 0 for a closed form, whose standard error is 0.

    Theory: monte-carlo [kullback1951].
    """

    value: Tensor
    standard_error: Tensor
    samples: int

    @property
    def exact(self) -> bool:
        """Whether the value is a closed form."""
        return self.samples == 0


def _exact(value: Tensor, base: float) -> Estimate:
    return Estimate(value / nats_per_unit(base), torch.zeros_like(value), 0)


def _mean(values: Tensor, base: float) -> Estimate:
    """The mean over the first dimension; an infinite value is no accident of the draw: the mean is inf for certain."""
    values = values / nats_per_unit(base)
    mean, count = values.mean(0), len(values)
    spread = torch.where(values.isfinite(), values, 0.0).std(0) / math.sqrt(count)
    return Estimate(mean, torch.where(mean.isfinite(), spread, 0.0), count)


def _log_prob(distribution: Any, x: Tensor) -> Tensor:
    """log p(x), -inf where p forbids x: outside the support, where a validating distribution would raise, and at p(x) = 0."""
    if isinstance(distribution, Independent):
        inner = _log_prob(distribution.base_dist, x)
        return inner.sum(tuple(range(-distribution.reinterpreted_batch_ndims, 0)))
    try:
        inside = distribution.support.check(x)
    except NotImplementedError:
        return distribution.log_prob(x)
    if not inside.all():
        event = inside.reshape(*inside.shape, *(1,) * len(distribution.event_shape))
        with isolated(0, x.device), torch.no_grad():  # any value that is inside will do
            filler = distribution.sample(x.shape[: x.ndim - len(distribution.batch_shape + distribution.event_shape)])
        x = torch.where(event, x, filler)
    return torch.where(inside & ~_ruled_out(distribution, x), distribution.log_prob(x), -math.inf)


def _ruled_out(distribution: Any, x: Tensor) -> Tensor:
    """Where a probability given as 0 rules x out; torch moves it to the smallest spacing of the dtype, log_prob with it.

    That shift is told from a small probability given by logits: there the probability is not 0 at those logits.
    """
    if not isinstance(distribution, Bernoulli | Binomial | Categorical):
        return torch.zeros((), dtype=torch.bool, device=x.device)
    probs, logits = distribution.probs, distribution.logits
    edge = math.log(torch.finfo(probs.dtype).eps)
    never = (probs == 0) & ((logits - edge).abs() < 0.01)
    if isinstance(distribution, Categorical):
        index = x.long().unsqueeze(-1)
        return never.expand(*x.shape, never.shape[-1]).gather(-1, index).squeeze(-1)
    always = (probs == 1) & ((logits + edge).abs() < 0.01)
    most = distribution.total_count if isinstance(distribution, Binomial) else 1
    return (never & (x > 0)) | (always & (x < most))


def _outcomes(distribution: Any) -> Tensor | None:
    """Every value of a distribution with a small finite support, (M, batch, event), else None."""
    if not getattr(distribution, "has_enumerate_support", False):
        return None
    try:
        values = distribution.enumerate_support()
    except (NotImplementedError, ValueError):  # an event of many discrete parts has no table
        return None
    return values if len(values) <= MOST_OUTCOMES else None


def _samples(distribution: Any, samples: int | None, seed: int, what: str) -> Tensor:
    if samples is None:
        raise ValueError(f"There is no closed form of {what}; give samples=10_000, or so, to estimate it.")
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 2:
        raise ValueError(f"An estimate with a standard error needs a whole number of samples from 2; got {samples!r}.")
    with isolated(seed, _device_of(distribution)), torch.no_grad():
        return distribution.sample((samples,))


def _device_of(distribution: Any) -> torch.device:
    cards = list(range(torch.cuda.device_count()))
    if not cards:
        return torch.device("cpu")
    with torch.random.fork_rng(devices=cards), torch.no_grad():
        return distribution.sample().device


def _formula(closed: Callable[[], Tensor]) -> Tensor | None:
    """The closed form, or None where torch has none."""
    try:
        return closed()
    except NotImplementedError:
        return None


def _closed_kullback_leibler(p: Any, q: Any) -> Tensor:
    """Torch's formula, with 0 log 0 = 0 in that of two Poissons; NotImplementedError where there is none."""
    if isinstance(p, Independent) and isinstance(q, Independent) and p.base_dist.event_shape == q.base_dist.event_shape:
        inner = _closed_kullback_leibler(p.base_dist, q.base_dist)
        return inner.sum(tuple(range(-p.reinterpreted_batch_ndims, 0)))
    if isinstance(p, Poisson) and isinstance(q, Poisson):
        return torch.xlogy(p.rate, p.rate) - torch.xlogy(p.rate, q.rate) - p.rate + q.rate
    return kl_divergence(p, q)


def _named(*distributions: Any) -> str:
    return " and ".join(type(distribution).__name__ for distribution in distributions)


def _fitted(p: Any, q: Any) -> tuple[Any, Any]:
    """p and q, of one event shape, over the batch that their batches broadcast to; both are then drawn and summed over it."""
    if p.event_shape != q.event_shape:
        raise ValueError(
            f"The distributions have event shapes {tuple(p.event_shape)} and {tuple(q.event_shape)}; expected one shape "
            "(to_event moves batch dimensions into the event)."
        )
    try:
        batch = torch.broadcast_shapes(p.batch_shape, q.batch_shape)
    except RuntimeError:
        raise ValueError(
            f"The distributions have batch shapes {tuple(p.batch_shape)} and {tuple(q.batch_shape)}; expected shapes that "
            "broadcast."
        ) from None
    try:
        p, q = (each if each.batch_shape == batch else each.expand(batch) for each in (p, q))
    except NotImplementedError:
        raise ValueError(
            f"The distributions have batch shapes {tuple(p.batch_shape)} and {tuple(q.batch_shape)}, and {_named(p, q)} are not "
            "both written to expand; give them one batch shape."
        ) from None
    return p, q


def _expectation(
    p: Any, integrand: Callable[[Tensor], Tensor], samples: int | None, base: float, seed: int, what: str
) -> Estimate:
    """E_p[integrand(x)]: summed over a finite support, else estimated; where p is zero nothing is added."""
    outcomes = _outcomes(p)
    if outcomes is not None:
        log_p = _log_prob(p, outcomes)
        values = integrand(outcomes)
        used = log_p > -math.inf
        return _exact((torch.where(used, log_p, -math.inf).exp() * torch.where(used, values, 0.0)).sum(0), base)
    x = _samples(p, samples, seed, what)
    with torch.no_grad():
        return _mean(integrand(x), base)


def entropy_of(p: Any, samples: int | None = None, base: float = math.e, seed: int = 0) -> Estimate:
    """Compute H(p) = -E_p[log p], differential for densities (then perhaps negative).

    p: a torch or Pyro distribution. samples: how many to draw where there is no closed form; without them ValueError.
    base: unit of the result, nats by default. seed: of the samples. Source: Cover and Thomas (2006).

    >>> entropy_of(torch.distributions.Normal(0.0, 1.0), base=2).value
    tensor(2.0471)

    Theory: entropies-in-closed-form, monte-carlo [cover2006].
    """
    closed = None if _outcomes(p) is not None else _formula(p.entropy)
    if closed is not None:
        return _exact(closed, base)
    return _expectation(p, lambda x: -_log_prob(p, x), samples, base, seed, f"the entropy of {_named(p)}")


def cross_entropy_between(p: Any, q: Any, samples: int | None = None, base: float = math.e, seed: int = 0) -> Estimate:
    """Compute H(p, q) = -E_p[log q], as H(p) + KL(p || q) where both are closed.

    Arguments as for `kullback_leibler_between`; inf where p reaches outside the support of q.

    Theory: cross-entropy-excess, monte-carlo [cover2006].
    """
    p, q = _fitted(p, q)
    closed = None if _outcomes(p) is not None else _formula(lambda: p.entropy() + _closed_kullback_leibler(p, q))
    if closed is not None:
        return _exact(closed, base)
    return _expectation(p, lambda x: -_log_prob(q, x), samples, base, seed, f"the cross-entropy of {_named(p, q)}")


def kullback_leibler_between(
    p: Any, q: Any, samples: int | None = None, base: float = math.e, seed: int = 0
) -> Estimate:
    """Compute KL(p || q) = E_p[log p - log q], by torch's registry of closed forms, by enumeration, or from samples.

    p, q: torch or Pyro distributions of one event shape, whose batch shapes broadcast. samples: how many to draw from p where
    there is no closed form; without them ValueError. base: unit of the result, nats by default. seed: of the samples.
    Returns inf, not nan, where p reaches outside the support of q. Source: Kullback and Leibler (1951).

    >>> normal = torch.distributions.Normal
    >>> kullback_leibler_between(normal(1.0, 1.0), normal(0.0, 1.0)).value
    tensor(0.5000)

    Theory: monte-carlo, kl-of-normals [kullback1951].
    """
    p, q = _fitted(p, q)
    # A table before a formula: torch's formulas for tables miss zeros that are given as probabilities.
    closed = None if _outcomes(p) is not None else _formula(lambda: _closed_kullback_leibler(p, q))
    if closed is not None:
        return _exact(closed, base)
    what = f"KL({_named(p)} || {_named(q)})"
    return _expectation(p, lambda x: _log_prob(p, x) - _log_prob(q, x), samples, base, seed, what)


def jensen_shannon_between(p: Any, q: Any, samples: int | None = None, base: float = math.e, seed: int = 0) -> Estimate:
    """Compute JS(p, q) = KL(p || m)/2 + KL(q || m)/2, m = (p + q)/2: exactly on a finite support, else from samples.

    Arguments as for `kullback_leibler_between`; half of the samples' work is done under each distribution.
    Source: Lin (1991).

    Theory: jensen-shannon, monte-carlo [lin1991].
    """
    p, q = _fitted(p, q)

    def excess(own: Any, other: Any) -> Callable[[Tensor], Tensor]:
        # log p - log (p + q)/2 = log 2 - log(1 + q/p), finite wherever p is positive
        return lambda x: math.log(2) - torch.nn.functional.softplus(_log_prob(other, x) - _log_prob(own, x))

    what = f"the Jensen-Shannon divergence of {_named(p, q)}"
    halves = [
        _expectation(own, excess(own, other), samples, base, seed + 2 * side, what)
        for side, (own, other) in enumerate(((p, q), (q, p)))
    ]
    error = torch.sqrt(halves[0].standard_error ** 2 + halves[1].standard_error ** 2) / 2
    return Estimate((halves[0].value + halves[1].value) / 2, error, max(half.samples for half in halves))


def f_divergence_between(
    name: str, p: Any, q: Any, samples: int | None = None, base: float = math.e, seed: int = 0
) -> Estimate:
    """Compute D_f(P || Q) = E_Q[f(u) 1(u <= 1)] + E_P[f(u)/u 1(u > 1)], u = p/q, f by its name in `f_divergences`.

    p, q: as for `kullback_leibler_between`, but so many samples come from each, and no ratio above one weighs any. Where q is
    zero f(u)/u is the slope of f at infinity. base: as there, for a divergence that holds logarithms.
    Source: Ali and Silvey (1966); Csiszar (1967); Nowozin, Cseke and Tomioka (2016).

    Theory: f-divergence-is-tight, monte-carlo [nowozin2016].
    """
    p, q = _fitted(p, q)
    divergence = f_divergence(name)
    unit = divergence.unit(base)
    what = f"the f-divergence {name} of {_named(p, q)}"

    at_zero = float(divergence.f(torch.zeros((), dtype=torch.float64)))

    def side(x: Tensor, above: bool) -> Tensor:
        log_p, log_q = _log_prob(p, x), _log_prob(q, x)
        log_ratio = (log_p - log_q).double()
        values = divergence.of_log_ratio(torch.where(log_ratio.isfinite(), log_ratio, 0.0))
        values = torch.where(log_ratio == -math.inf, at_zero, values)
        values = torch.where(log_ratio == math.inf, divergence.critic_upper_bound, values)
        return torch.where((log_ratio > 0) == above, values, 0.0).to(log_p.dtype)

    below = _expectation(q, lambda x: side(x, False), samples, math.e, seed, what)
    above = _expectation(p, lambda x: side(x, True), samples, math.e, seed + 2, what)
    error = torch.sqrt(below.standard_error**2 + above.standard_error**2)
    return Estimate((below.value + above.value) / unit, error / unit, max(below.samples, above.samples))


def block_estimate(
    statistic: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, blocks: int = 10, seed: int = 0
) -> Estimate:
    """Average a two-sample statistic over disjoint blocks of shuffled rows; the spread over blocks is its honest error.

    statistic: of two samples (rows, D), such as MMD^2; an unbiased one keeps its mean. x: shape (n, D). y: shape (m, D).
    blocks: how many, from 2; each needs two rows of both. Returns value and standard error (), `samples` the blocks.
    Source: Zaremba, Gretton and Blaschko (2013), B-tests, NeurIPS 26.

    Theory: monte-carlo, mmd-is-unbiased [gretton2012].
    """
    if blocks < 2 or min(len(x), len(y)) < 2 * blocks:
        raise ValueError(
            f"Two or more blocks of at least two rows are needed, but got {blocks} blocks of {min(len(x), len(y))} rows."
        )
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randperm(len(rows), generator=generator).to(rows.device).tensor_split(blocks) for rows in (x, y)]
    values = torch.stack([statistic(x[i], y[j]) for i, j in zip(*parts, strict=True)])
    return Estimate(values.mean(), values.std() / math.sqrt(blocks), blocks)
