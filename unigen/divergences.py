r"""Divergences between distributions: the f-divergences and their duals, MMD, and discrete KL, JS, entropy, W1.

An f-divergence is D_f(P || Q) = E_Q[f(p/q)] for a convex f. Its conjugate f*(t) = sup_u {u t - f(u)} gives the
variational bound, with a critic T = g_f(v) whose activation g_f keeps T inside the domain of f*:

    D_f(P || Q) >= E_P[T] - E_Q[f*(T)],   with equality at T = f'(p/q).

Where the tables of the f-GAN paper disagree with themselves, the generator f decides here: `jensen_shannon` is then
*twice* the Jensen-Shannon divergence, and `gan` is that minus log 4; `pearson` divides by q and `neyman` by p.

The maximum mean discrepancy is MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y). All logarithms are natural.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from unigen.names import nearest_name

__all__ = [
    "FDivergence",
    "GaussianKernel",
    "Kernel",
    "PolynomialKernel",
    "energy_kernel",
    "entropy",
    "f_divergence",
    "f_divergences",
    "gan",
    "gaussian_kernel",
    "jeffreys",
    "jensen_shannon",
    "jensen_shannon_divergence",
    "kullback_leibler",
    "kullback_leibler_divergence",
    "median_bandwidth",
    "mmd_squared",
    "neyman",
    "pearson",
    "permutation_test",
    "polynomial_kernel",
    "reverse_kullback_leibler",
    "squared_hellinger",
    "wasserstein_1",
]

Elementwise = Callable[[Tensor], Tensor]
Kernel = Callable[[Tensor, Tensor], Tensor]

LOG_2 = math.log(2.0)


@dataclass(frozen=True)
class FDivergence:
    """Describe one f-divergence D_f(P || Q) = E_Q[f(p/q)]; two descriptions are equal when their names are.

    name: the registered name.
    f: the generator, of the density ratio u = p/q >= 0.
    conjugate: f*(t), of a critic's value t; +inf where t is above `critic_upper_bound`.
    activation: g_f(v), increasing, from any real v to the domain of f*.
    conjugate_of_activation: f*(g_f(v)), in one stable formula: finite, with finite gradients, where the two
        functions applied one after the other would round to the edge of the domain.
    optimal_critic: T*(u) = f'(u), the critic at which the bound is tight; T*(1) is the threshold between P and Q.
    critic_upper_bound: the upper end of the domain of f*, which is also the slope of f at infinity.

    Source: Nowozin, Cseke and Tomioka (2016), f-GAN, arXiv:1606.00709, tables 1 and 2, checked.
    """

    name: str
    f: Elementwise = field(compare=False, repr=False)
    conjugate: Elementwise = field(compare=False, repr=False)
    activation: Elementwise = field(compare=False, repr=False)
    conjugate_of_activation: Elementwise = field(compare=False, repr=False)
    optimal_critic: Elementwise = field(compare=False, repr=False)
    critic_upper_bound: float = field(compare=False, repr=False)

    def value(self, p: Tensor, q: Tensor) -> Tensor:
        """Sum q f(p/q) over the last dimension, with p times the slope of f at infinity where q is zero.

        p, q: probabilities, shape (..., C). Returns shape (...), in nats; inf where the supports forbid a finite value.
        Raises ValueError for two shapes, negative entries, or sums other than one.
        """
        _check_probabilities(p, q)
        ratio = p / torch.where(q > 0, q, 1.0)
        regular = torch.where(q > 0, q * self.f(torch.where(q > 0, ratio, 1.0)), 0.0)
        outside = (q == 0) & (p > 0)
        # Where q is positive the slope multiplies 1, not p: an infinite slope must not reach p's gradient there.
        singular = torch.where(outside, self.critic_upper_bound * torch.where(outside, p, 1.0), 0.0)
        return (regular + singular).sum(-1)


def _below(upper: float, formula: Elementwise) -> Elementwise:
    """Extend a conjugate by +inf above the end of its domain, where the bare formula is nan or, worse, finite."""

    def conjugate(t: Tensor) -> Tensor:
        inside = t <= upper
        return torch.where(inside, formula(torch.where(inside, t, upper - 1.0)), math.inf)

    return conjugate


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
    conjugate=lambda t: torch.exp(t - 1),
    activation=_identity,
    conjugate_of_activation=lambda v: torch.exp(v - 1),
    optimal_critic=lambda u: 1 + torch.log(u),
    critic_upper_bound=math.inf,
)

reverse_kullback_leibler = FDivergence(  # sum q log(q/p)
    name="reverse_kullback_leibler",
    f=lambda u: -torch.log(u),
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
    conjugate=lambda t: t**2 / 4 + t,
    activation=_identity,
    conjugate_of_activation=lambda v: v**2 / 4 + v,
    optimal_critic=lambda u: 2 * (u - 1),
    critic_upper_bound=math.inf,
)

neyman = FDivergence(  # sum (p - q)^2 / p
    name="neyman",
    f=lambda u: (1 - u) ** 2 / u,
    conjugate=_below(1.0, lambda t: 2 - 2 * torch.sqrt(1 - t)),
    activation=_one_minus_exp,
    conjugate_of_activation=lambda v: -2 * torch.expm1(-v / 2),
    optimal_critic=lambda u: 1 - u**-2,
    critic_upper_bound=1.0,
)

squared_hellinger = FDivergence(  # sum (sqrt p - sqrt q)^2
    name="squared_hellinger",
    f=lambda u: (torch.sqrt(u) - 1) ** 2,
    conjugate=_below(1.0, lambda t: t / (1 - t)),
    activation=_one_minus_exp,
    conjugate_of_activation=lambda v: torch.expm1(v),
    optimal_critic=lambda u: 1 - torch.rsqrt(u),
    critic_upper_bound=1.0,
)

jensen_shannon = FDivergence(  # sum p log(2p/(p+q)) + q log(2q/(p+q)), twice the divergence in [0, log 2]
    name="jensen_shannon",
    f=lambda u: torch.xlogy(u, 2 * u / (1 + u)) + LOG_2 - torch.log1p(u),
    conjugate=_below(LOG_2, lambda t: -torch.log1p((-torch.expm1(t)).clamp_min(-1.0))),
    activation=lambda v: LOG_2 + logsigmoid(v),
    conjugate_of_activation=lambda v: softplus(v) - LOG_2,
    optimal_critic=lambda u: LOG_2 - torch.log1p(1 / u),
    critic_upper_bound=LOG_2,
)

gan = FDivergence(  # sum p log(p/(p+q)) + q log(q/(p+q)): the optimal value of the GAN game, -log 4 at P = Q
    name="gan",
    f=lambda u: torch.xlogy(u, u / (1 + u)) - torch.log1p(u),
    conjugate=_below(0.0, lambda t: -torch.log(-torch.expm1(t))),
    activation=lambda v: logsigmoid(v),
    conjugate_of_activation=lambda v: softplus(v),
    optimal_critic=lambda u: -torch.log1p(1 / u),
    critic_upper_bound=0.0,
)

jeffreys = FDivergence(  # sum (p - q) log(p/q)
    name="jeffreys",
    f=lambda u: (u - 1) * torch.log(u),
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
    """
    if name in f_divergences:
        return f_divergences[name]
    nearest = nearest_name(name, f_divergences)
    raise ValueError(
        f"There is no f-divergence {name!r}; the nearest name is {nearest!r}, of {', '.join(f_divergences)}."
    )


def _check_probabilities(*vectors: Tensor) -> None:
    if any(vector.shape != vectors[0].shape for vector in vectors):
        shapes = " and ".join(str(tuple(vector.shape)) for vector in vectors)
        raise ValueError(f"Probability vectors must have one shape, but got {shapes}.")
    for vector in vectors:
        if vector.ndim == 0 or not vector.is_floating_point():
            raise ValueError(
                f"Expected floating-point probabilities (..., C), but got {tuple(vector.shape)} of {vector.dtype}."
            )
        total = vector.detach().sum(-1)
        tolerance = torch.finfo(vector.dtype).eps ** 0.5
        if not bool((vector >= 0).all()) or not bool(((total - 1).abs() <= tolerance).all()):
            raise ValueError(
                "Probabilities must be nonnegative and sum to one over the last dimension, but got a least entry of "
                f"{vector.min().item():.6g} and sums from {total.min().item():.6g} to {total.max().item():.6g}."
            )


def entropy(p: Tensor) -> Tensor:
    """Compute the Shannon entropy H(p) = -sum p log p, in nats, of probabilities (..., C); returns shape (...)."""
    _check_probabilities(p)
    return torch.special.entr(p).sum(-1)


def kullback_leibler_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Compute KL(p || q) = sum p (log p - log q), in nats; inf where p is positive and q is zero.

    p, q: probabilities, shape (..., C). Returns shape (...). ValueError for shapes or sums that do not fit.
    """
    _check_probabilities(p, q)
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1)


def jensen_shannon_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Compute JS(p, q) = KL(p || m)/2 + KL(q || m)/2 with m = (p + q)/2, in nats, in [0, log 2].

    p, q: probabilities, shape (..., C). Returns shape (...). Half of the f-divergence named `jensen_shannon`.
    """
    _check_probabilities(p, q)
    mixture = (p + q) / 2
    return (kullback_leibler_divergence(p, mixture) + kullback_leibler_divergence(q, mixture)) / 2


def wasserstein_1(x: Tensor, y: Tensor) -> Tensor:
    """Compute W1 = integral |F_x - F_y| between two samples on the line; with equal sizes, mean |sort x - sort y|.

    x: shape (n,). y: shape (m,), sizes may differ. Returns a scalar, differentiable in both samples.
    """
    if x.ndim != 1 or y.ndim != 1 or len(x) == 0 or len(y) == 0:
        raise ValueError(
            f"wasserstein_1 compares two nonempty samples of shape (n,), but got {tuple(x.shape)} and {tuple(y.shape)}."
        )
    x, y = x.sort().values, y.sort().values
    knots = torch.cat([x, y]).sort().values
    left = knots[:-1].detach()
    # Counts over a common denominator keep |F_x - F_y| exactly zero where the two distributions agree.
    below_x = torch.searchsorted(x.detach().contiguous(), left, right=True)
    below_y = torch.searchsorted(y.detach().contiguous(), left, right=True)
    gap = (below_x * len(y) - below_y * len(x)).abs().to(knots.dtype) / (len(x) * len(y))
    return (gap * knots.diff()).sum()


def _check_rows(x: Tensor, y: Tensor, least: int) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"Expected samples of shapes (n, D) and (m, D) with one D, but got {tuple(x.shape)} and {tuple(y.shape)}."
        )
    if min(len(x), len(y)) < least:
        raise ValueError(f"At least {least} rows of each sample are needed, but got {len(x)} and {len(y)}.")


@dataclass(frozen=True)
class GaussianKernel:
    """Evaluate the mean over bandwidths of exp(-|x - y|^2 / (2 bandwidth^2)): (n, D), (m, D) -> (n, m)."""

    bandwidths: tuple[float, ...]

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        # The kernel is translation invariant: about y's mean the expanded square loses fewer digits.
        center = y.mean(0)
        x, y = x - center, y - center
        squares = ((x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T).clamp_min(0.0)
        return torch.stack([torch.exp(-squares / (2 * width**2)) for width in self.bandwidths]).mean(0)


@dataclass(frozen=True)
class PolynomialKernel:
    """Evaluate (x.y / D + 1)^degree: (n, D), (m, D) -> (n, m)."""

    degree: int

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** self.degree


def gaussian_kernel(bandwidths: float | Iterable[float]) -> GaussianKernel:
    """Build the equal mixture of Gaussian kernels with the given positive bandwidths, in the units of the rows.

    >>> gaussian_kernel([0.5, 1])
    GaussianKernel(bandwidths=(0.5, 1.0))
    """
    listed = bandwidths if isinstance(bandwidths, Iterable) else (bandwidths,)
    widths = tuple(float(width) for width in listed)
    if not widths or not all(0 < width < math.inf for width in widths):
        raise ValueError(f"A Gaussian kernel needs one or more positive finite bandwidths, but got {widths}.")
    return GaussianKernel(widths)


def polynomial_kernel(degree: int = 3) -> PolynomialKernel:
    """Build the kernel (x.y / D + 1)^degree; degree 3 is that of the kernel inception distance.

    Source: Binkowski, Sutherland, Arbel and Gretton (2018), Demystifying MMD GANs, arXiv:1801.01401.
    """
    if degree != int(degree) or degree < 1:
        raise ValueError(f"The degree of a polynomial kernel must be a whole number from 1, but got {degree!r}.")
    return PolynomialKernel(int(degree))


def energy_kernel(x: Tensor, y: Tensor) -> Tensor:
    """Evaluate -|x - y|, for which MMD^2 is the energy distance: (n, D), (m, D) -> (n, m).

    Positive definite only conditionally, which is enough for a difference of distributions.
    Source: Sejdinovic, Sriperumbudur, Gretton and Fukumizu (2013), Annals of Statistics 41(5).
    """
    # The matrix-product mode would lose half the digits of a small distance.
    return -torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def median_bandwidth(x: Tensor, rows: int = 2000) -> float:
    """Compute the median distance between two different rows of x, shape (n, D), the median heuristic.

    At most `rows` rows, evenly spaced, enter. ValueError when fewer than two rows, or when the median is zero.
    """
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"median_bandwidth needs a sample of shape (n, D) with n >= 2, but got {tuple(x.shape)}.")
    stride = -(-len(x) // max(rows, 2))
    median = torch.pdist(x[::stride].double()).median().item()
    if not 0 < median < math.inf:
        raise ValueError(f"The median distance between rows is {median}; choose the bandwidths by hand instead.")
    return median


def mmd_squared(x: Tensor, y: Tensor, kernel: Kernel) -> Tensor:
    """Estimate MMD^2(P, Q) without bias: mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean k(x_i, y_j).

    x: shape (n, D). y: shape (m, D), each with two rows or more. Returns a differentiable scalar, perhaps negative.
    Source: Gretton et al. (2012), A kernel two-sample test, JMLR 13, equation 3.
    """
    _check_rows(x, y, least=2)
    n, m = len(x), len(y)
    k_xx, k_yy = kernel(x, x), kernel(y, y)
    within_x = (k_xx.sum() - k_xx.diagonal().sum()) / (n * (n - 1))
    within_y = (k_yy.sum() - k_yy.diagonal().sum()) / (m * (m - 1))
    return within_x + within_y - 2 * kernel(x, y).mean()


def permutation_test(x: Tensor, y: Tensor, kernel: Kernel, permutations: int, generator: torch.Generator) -> float:
    """Test P = Q by permuting the pooled rows: p = (1 + #{MMD^2 permuted >= MMD^2 observed}) / (1 + permutations).

    x: shape (n, D). y: shape (m, D). permutations: how many, from 1. generator: the CPU stream they are drawn from.
    Returns the p-value, valid at every level for every n and m. Source: Gretton et al. (2012), JMLR 13, section 8.
    """
    _check_rows(x, y, least=2)
    if permutations < 1:
        raise ValueError(f"permutation_test needs at least one permutation, but got {permutations}.")
    n, m = len(x), len(y)
    with torch.no_grad():
        pooled = torch.cat([x, y]).double()
        gram = kernel(pooled, pooled)
        gram = gram - torch.diag(gram.diagonal())
        orders = [torch.arange(n + m)] + [torch.randperm(n + m, generator=generator) for _ in range(permutations)]
        is_x = (torch.stack(orders) < n).to(gram)  # (1 + permutations, n + m)
        products = is_x @ gram
        sum_xx = (products * is_x).sum(1)
        sum_xy = (products * (1 - is_x)).sum(1)
        sum_yy = gram.sum() - sum_xx - 2 * sum_xy
        statistics = sum_xx / (n * (n - 1)) + sum_yy / (m * (m - 1)) - 2 * sum_xy / (n * m)
        # Equal splits differ by rounding only and must count as ties, or the p-value would be too small.
        slack = 1e-10 * gram.abs().max()
        exceeding = (statistics[1:] >= statistics[0] - slack).sum().item()
    return (1 + exceeding) / (1 + permutations)
