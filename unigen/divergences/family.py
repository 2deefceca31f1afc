r"""The f-divergences D_f(P || Q) = E_Q[f(p/q)], f convex, with conjugates, activations and optimal critics.

The conjugate f*(t) = sup_u {u t - f(u)} gives the variational bound, with a critic T = g_f(v) whose activation g_f keeps T
inside the domain of f*:

    D_f(P || Q) >= E_P[T] - E_Q[f*(T)],   with equality at T = f'(p/q).

Where the tables of the f-GAN paper disagree with themselves, the generator f decides here: `jensen_shannon` is then
*twice* the Jensen-Shannon divergence, and `gan` is that minus log 4; `pearson` divides by q and `neyman` by p.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from unigen.divergences.discrete import check_probabilities, nats_per_unit
from unigen.names import nearest_name

__all__ = [
    "FDivergence",
    "f_divergence",
    "f_divergences",
    "gan",
    "jeffreys",
    "jensen_shannon",
    "kullback_leibler",
    "neyman",
    "pearson",
    "reverse_kullback_leibler",
    "squared_hellinger",
]

Elementwise = Callable[[Tensor], Tensor]

LOG_2 = math.log(2.0)


@dataclass(frozen=True)
class FDivergence:
    """Describe one f-divergence D_f(P || Q) = E_Q[f(p/q)]; two descriptions are equal when their names are.

    name: the registered name.
    f: the generator, of the density ratio u = p/q >= 0.
    of_log_ratio: f(u) / max(u, 1) at l = log u, any real number, so that q f(p/q) = max(p, q) of_log_ratio(log p - log q):
        it overflows nowhere that this does not.
    conjugate: f*(t), of a critic's value t; +inf where t is above `critic_upper_bound`.
    activation: g_f(v), increasing, from any real v to the domain of f*.
    conjugate_of_activation: f*(g_f(v)), in one stable formula: finite, with finite gradients, where the two
        functions applied one after the other would round to the edge of the domain.
    optimal_critic: T*(u) = f'(u), the critic at which the bound is tight; T*(1) is the threshold between P and Q.
    critic_upper_bound: the upper end of the domain of f*, which is also the slope of f at infinity.

    logarithmic: whether f is made of logarithms, so that the divergence has a unit: nats, or that of a `base`.

    Source: Nowozin, Cseke and Tomioka (2016), f-GAN, arXiv:1606.00709.

    Theory: f-divergence-is-tight, f-divergence-is-bounded [nguyen2010, nowozin2016].
    """

    name: str
    f: Elementwise = field(compare=False, repr=False)
    of_log_ratio: Elementwise = field(compare=False, repr=False)
    conjugate: Elementwise = field(compare=False, repr=False)
    activation: Elementwise = field(compare=False, repr=False)
    conjugate_of_activation: Elementwise = field(compare=False, repr=False)
    optimal_critic: Elementwise = field(compare=False, repr=False)
    critic_upper_bound: float = field(compare=False, repr=False)
    logarithmic: bool = field(default=True, compare=False, repr=False)

    def value(self, p: Tensor, q: Tensor, base: float = math.e) -> Tensor:
        """Sum q f(p/q) over the last dimension, with p times the slope of f at infinity where q is zero.

        p, q: probabilities, shape (..., C). Returns shape (...), in nats or the unit of `base`; inf where the supports forbid
        a finite value. Raises ValueError for two shapes, negative entries, sums other than one, or a base of a divergence
        without logarithms.
        """
        check_probabilities(p, q)
        unit = self.unit(base)
        inside, missing, outside = (p > 0) & (q > 0), (p == 0) & (q > 0), (p > 0) & (q == 0)
        wide_p, wide_q = (torch.where(inside, table, 1.0).double() for table in (p, q))
        log_ratio = wide_p.log() - wide_q.log()  # the ratio itself would overflow in single precision
        terms = torch.where(log_ratio > 0, wide_p, wide_q) * self.of_log_ratio(log_ratio)
        at_zero = q * self.f(torch.where(missing, p / torch.where(missing, q, 1.0), 1.0))
        regular = torch.where(inside, terms, torch.where(missing, at_zero, 0.0).double())
        # Where q is positive the slope multiplies 1, not p: an infinite slope must not reach p's gradient there.
        singular = torch.where(outside, self.critic_upper_bound * torch.where(outside, p, 1.0), 0.0)
        return (regular + singular).sum(-1).to(p.dtype) / unit

    def unit(self, base: float) -> float:
        """Return log(base), the size of one unit in nats; ValueError for a divergence that has no unit."""
        if base != math.e and not self.logarithmic:
            raise ValueError(
                f"The f-divergence {self.name!r} holds no logarithm, so it has no unit to change; got base={base!r}, expected none."
            )
        return nats_per_unit(base)


def _below(upper: float, formula: Elementwise) -> Elementwise:
    """Extend a conjugate by +inf above the end of its domain, where the bare formula is nan or, worse, finite."""

    def conjugate(t: Tensor) -> Tensor:
        inside = t <= upper
        return torch.where(inside, formula(torch.where(inside, t, upper - 1.0)), math.inf)

    return conjugate


def _by_side(below: Elementwise, above: Elementwise) -> Elementwise:
    """Return f(u) / max(u, 1) of any l = log u from f(u) at l <= 0, and f(u) / u at l > 0 as a function of -l."""

    def of_log_ratio(log_ratio: Tensor) -> Tensor:
        larger = log_ratio > 0
        low = torch.where(larger, -log_ratio, log_ratio)
        return torch.where(larger, above(low), below(low))

    return of_log_ratio


def _kullback_leibler(log_u: Tensor) -> Tensor:
    return log_u * torch.exp(log_u)


def _square(log_u: Tensor) -> Tensor:
    return torch.expm1(log_u) ** 2


def _square_over_ratio(log_u: Tensor) -> Tensor:
    return -torch.expm1(log_u) * torch.expm1(-log_u)


def _hellinger(log_u: Tensor) -> Tensor:
    return torch.expm1(log_u / 2) ** 2


def _jensen_shannon(log_u: Tensor) -> Tensor:
    u = torch.exp(log_u)
    return u * (LOG_2 + log_u - torch.log1p(u)) + LOG_2 - torch.log1p(u)


def _gan(log_u: Tensor) -> Tensor:
    u = torch.exp(log_u)
    return u * (log_u - torch.log1p(u)) - torch.log1p(u)


def _jeffreys(log_u: Tensor) -> Tensor:
    return torch.expm1(log_u) * log_u


def _log_inverse_ratio(t: Tensor) -> Tensor:
    """Solve exp(s) + s = 1 - t for s, the log of Lambert's W(exp(1 - t)), by Newton's method."""
    y = 1 - t
    # The left side is convex and increasing in s, and this start lies right of the root: the steps cannot overshoot.
    s = torch.minimum(y, torch.log(y.clamp_min(1.0)))
    for _ in range(7):
        exp_s = torch.exp(s)
        s = s - (exp_s + s - y) / (1 + exp_s)
    return s


def _jeffreys_conjugate(t: Tensor) -> Tensor:
    """Compute W + 1/W + t - 2 at W = W(exp(1 - t)), in the form that neither overflows nor cancels."""
    s = _log_inverse_ratio(t)
    return torch.expm1(-s) - s


def _identity(v: Tensor) -> Tensor:
    return v


def _one_minus_exp(v: Tensor) -> Tensor:
    return -torch.expm1(-v)


kullback_leibler = FDivergence(  # sum p log(p/q)
    name="kullback_leibler",
    f=lambda u: torch.xlogy(u, u),
    of_log_ratio=_by_side(_kullback_leibler, torch.neg),
    conjugate=lambda t: torch.exp(t - 1),
    activation=_identity,
    conjugate_of_activation=lambda v: torch.exp(v - 1),
    optimal_critic=lambda u: 1 + torch.log(u),
    critic_upper_bound=math.inf,
)

reverse_kullback_leibler = FDivergence(  # sum q log(q/p)
    name="reverse_kullback_leibler",
    f=lambda u: -torch.log(u),
    of_log_ratio=_by_side(torch.neg, _kullback_leibler),
    conjugate=_below(0.0, lambda t: -1 - torch.log(-t)),
    activation=lambda v: -torch.exp(-v),
    conjugate_of_activation=lambda v: v - 1,
    optimal_critic=lambda u: -1 / u,
    critic_upper_bound=0.0,
)

# The conjugate is that of the whole parabola, as in the paper: restricted to u >= 0 it would be flat (-1) below
# t = -2, a bound no less valid but without gradient there.
pearson = FDivergence(  # sum (p - q)^2 / q
    name="pearson",
    f=lambda u: (u - 1) ** 2,
    of_log_ratio=_by_side(_square, _square_over_ratio),
    conjugate=lambda t: t**2 / 4 + t,
    activation=_identity,
    conjugate_of_activation=lambda v: v**2 / 4 + v,
    optimal_critic=lambda u: 2 * (u - 1),
    critic_upper_bound=math.inf,
    logarithmic=False,
)

neyman = FDivergence(  # sum (p - q)^2 / p
    name="neyman",
    f=lambda u: (1 - u) ** 2 / u,
    of_log_ratio=_by_side(_square_over_ratio, _square),
    conjugate=_below(1.0, lambda t: 2 - 2 * torch.sqrt(1 - t)),
    activation=_one_minus_exp,
    conjugate_of_activation=lambda v: -2 * torch.expm1(-v / 2),
    optimal_critic=lambda u: 1 - u**-2,
    critic_upper_bound=1.0,
    logarithmic=False,
)

squared_hellinger = FDivergence(  # sum (sqrt p - sqrt q)^2
    name="squared_hellinger",
    f=lambda u: (torch.sqrt(u) - 1) ** 2,
    of_log_ratio=_by_side(_hellinger, _hellinger),
    conjugate=_below(1.0, lambda t: t / (1 - t)),
    activation=_one_minus_exp,
    conjugate_of_activation=lambda v: torch.expm1(v),
    optimal_critic=lambda u: 1 - torch.rsqrt(u),
    critic_upper_bound=1.0,
    logarithmic=False,
)

jensen_shannon = FDivergence(  # sum p log(2p/(p+q)) + q log(2q/(p+q)), twice the divergence in [0, log 2]
    name="jensen_shannon",
    f=lambda u: torch.xlogy(u, 2 * u / (1 + u)) + LOG_2 - torch.log1p(u),
    of_log_ratio=_by_side(_jensen_shannon, _jensen_shannon),
    conjugate=_below(LOG_2, lambda t: -torch.log1p((-torch.expm1(t)).clamp_min(-1.0))),
    activation=lambda v: LOG_2 + logsigmoid(v),
    conjugate_of_activation=lambda v: softplus(v) - LOG_2,
    optimal_critic=lambda u: LOG_2 - torch.log1p(1 / u),
    critic_upper_bound=LOG_2,
)

gan = FDivergence(  # sum p log(p/(p+q)) + q log(q/(p+q)): the optimal value of the GAN game, -log 4 at P = Q
    name="gan",
    f=lambda u: torch.xlogy(u, u / (1 + u)) - torch.log1p(u),
    of_log_ratio=_by_side(_gan, _gan),
    conjugate=_below(0.0, lambda t: -torch.log(-torch.expm1(t))),
    activation=lambda v: logsigmoid(v),
    conjugate_of_activation=lambda v: softplus(v),
    optimal_critic=lambda u: -torch.log1p(1 / u),
    critic_upper_bound=0.0,
)

jeffreys = FDivergence(  # sum (p - q) log(p/q)
    name="jeffreys",
    f=lambda u: (u - 1) * torch.log(u),
    of_log_ratio=_by_side(_jeffreys, _jeffreys),
    conjugate=_jeffreys_conjugate,
    activation=_identity,
    conjugate_of_activation=_jeffreys_conjugate,
    optimal_critic=lambda u: 1 + torch.log(u) - 1 / u,
    critic_upper_bound=math.inf,
)

f_divergences: dict[str, FDivergence] = {
    entry.name: entry
    for entry in (
        kullback_leibler,
        reverse_kullback_leibler,
        pearson,
        neyman,
        squared_hellinger,
        jensen_shannon,
        gan,
        jeffreys,
    )
}


def f_divergence(name: str) -> FDivergence:
    """Look up an f-divergence by its name; ValueError names the nearest valid one.

    >>> f_divergence("pearson").value(torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75]))
    tensor(0.3333)

    Theory: f-divergence-is-tight [nowozin2016].
    """
    if name in f_divergences:
        return f_divergences[name]
    nearest = nearest_name(name, f_divergences)
    raise ValueError(
        f"There is no f-divergence {name!r}; the nearest name is {nearest!r}, of {', '.join(f_divergences)}."
    )
