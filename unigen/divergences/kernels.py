r"""Kernel distances between samples: MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y), the energy distance, and a test.

The estimates are U-statistics: without bias, hence perhaps below zero. Rows are data, (n, D); a value is in the kernel's
units, which for the energy distance are those of the rows.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "GaussianKernel",
    "Kernel",
    "PolynomialKernel",
    "energy_distance",
    "energy_kernel",
    "gaussian_kernel",
    "median_bandwidth",
    "mmd_squared",
    "permutation_test",
    "polynomial_kernel",
]

Kernel = Callable[[Tensor, Tensor], Tensor]


def _check_rows(x: Tensor, y: Tensor, least: int) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"Expected samples of shapes (n, D) and (m, D) with one D, but got {tuple(x.shape)} and {tuple(y.shape)}."
        )
    if min(len(x), len(y)) < least:
        raise ValueError(f"At least {least} rows of each sample are needed, but got {len(x)} and {len(y)}.")


@dataclass(frozen=True)
class GaussianKernel:
    """Evaluate the mean over bandwidths of exp(-|x - y|^2 / (2 bandwidth^2)): (n, D), (m, D) -> (n, m).

    Theory: mmd-is-unbiased [gretton2012].
    """

    bandwidths: tuple[float, ...]

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        # The kernel is translation invariant: about y's mean the expanded square loses fewer digits.
        center = y.mean(0)
        x, y = x - center, y - center
        squares = ((x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T).clamp_min(0.0)
        return torch.stack([torch.exp(-squares / (2 * width**2)) for width in self.bandwidths]).mean(0)


@dataclass(frozen=True)
class PolynomialKernel:
    """Evaluate (x.y / D + 1)^degree: (n, D), (m, D) -> (n, m).

    Theory: mmd-is-unbiased [binkowski2018].
    """

    degree: int

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** self.degree


def gaussian_kernel(bandwidths: float | Iterable[float]) -> GaussianKernel:
    """Build the equal mixture of Gaussian kernels with the given positive bandwidths, in the units of the rows.

    >>> gaussian_kernel([0.5, 1])
    GaussianKernel(bandwidths=(0.5, 1.0))

    Theory: mmd-is-unbiased [gretton2012].
    """
    listed = bandwidths if isinstance(bandwidths, Iterable) else (bandwidths,)
    widths = tuple(float(width) for width in listed)
    if not widths or not all(0 < width < math.inf for width in widths):
        raise ValueError(f"A Gaussian kernel needs one or more positive finite bandwidths, but got {widths}.")
    return GaussianKernel(widths)


def polynomial_kernel(degree: int = 3) -> PolynomialKernel:
    """Build the kernel (x.y / D + 1)^degree; degree 3 is that of the kernel inception distance.

    Source: Binkowski, Sutherland, Arbel and Gretton (2018), Demystifying MMD GANs, arXiv:1801.01401.

    Theory: mmd-is-unbiased [binkowski2018].
    """
    if degree != int(degree) or degree < 1:
        raise ValueError(f"The degree of a polynomial kernel must be a whole number from 1, but got {degree!r}.")
    return PolynomialKernel(int(degree))


def energy_kernel(x: Tensor, y: Tensor) -> Tensor:
    """Evaluate -|x - y|, for which MMD^2 is the energy distance: (n, D), (m, D) -> (n, m).

    Positive definite only conditionally, which is enough for a difference of distributions.
    Source: Sejdinovic, Sriperumbudur, Gretton and Fukumizu (2013), Annals of Statistics 41(5).

    Theory: energy-distance [sejdinovic2013].
    """
    # The matrix-product mode would lose half the digits of a small distance.
    return -torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def median_bandwidth(x: Tensor, rows: int = 2000) -> float:
    """Compute the median distance between two different rows of x, shape (n, D), the median heuristic.

    At most `rows` rows, evenly spaced, enter. ValueError when fewer than two rows, or when the median is zero.

    Theory: mmd-is-unbiased [gretton2012].
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
    Source: Gretton et al. (2012), A kernel two-sample test, JMLR 13.

    Theory: mmd-is-unbiased [gretton2012].
    """
    _check_rows(x, y, least=2)
    n, m = len(x), len(y)
    k_xx, k_yy = kernel(x, x), kernel(y, y)
    within_x = (k_xx.sum() - k_xx.diagonal().sum()) / (n * (n - 1))
    within_y = (k_yy.sum() - k_yy.diagonal().sum()) / (m * (m - 1))
    return within_x + within_y - 2 * kernel(x, y).mean()


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """Estimate 2 E|x - y| - E|x - x'| - E|y - y'| without bias, over pairs of different rows.

    x: shape (n, D). y: shape (m, D), each with two rows or more. Returns a differentiable scalar in the units of the rows, perhaps
    negative; zero in the mean only where the distributions agree. ValueError for other shapes.
    Source: Szekely and Rizzo (2013), Energy statistics, Journal of Statistical Planning and Inference 143(8).

    Theory: energy-distance [sejdinovic2013].
    """
    return mmd_squared(x, y, energy_kernel)


def permutation_test(x: Tensor, y: Tensor, kernel: Kernel, permutations: int, generator: torch.Generator) -> float:
    """Test P = Q by permuting the pooled rows: p = (1 + #{MMD^2 permuted >= MMD^2 observed}) / (1 + permutations).

    x: shape (n, D). y: shape (m, D). permutations: how many, from 1. generator: the CPU stream they are drawn from.
    Returns the p-value, valid at every level for every n and m. Source: Gretton et al. (2012), JMLR 13.

    Theory: mmd-is-unbiased [gretton2012].
    """
    _check_rows(x, y, least=2)
    if permutations < 1:
        raise ValueError(f"permutation_test needs at least one permutation, but got {permutations}.")
    n, m = len(x), len(y)
    with torch.no_grad():
        pooled = torch.cat([x, y]).double()
        orders = [torch.arange(n + m)] + [torch.randperm(n + m, generator=generator) for _ in range(permutations)]
        is_x = (torch.stack(orders) < n).to(pooled)  # (1 + permutations, n + m)
        sum_xx, sum_xy = is_x.new_zeros(2, len(orders))
        total = largest = is_x.new_zeros(())
        for rows in torch.arange(n + m, device=pooled.device).split(1000):  # bounds memory
            gram = kernel(pooled[rows], pooled)
            gram[torch.arange(len(rows), device=pooled.device), rows] = 0.0
            products = is_x[:, rows] @ gram
            sum_xx = sum_xx + (products * is_x).sum(1)
            sum_xy = sum_xy + (products * (1 - is_x)).sum(1)
            total, largest = total + gram.sum(), torch.maximum(largest, gram.abs().max())
        sum_yy = total - sum_xx - 2 * sum_xy
        statistics = sum_xx / (n * (n - 1)) + sum_yy / (m * (m - 1)) - 2 * sum_xy / (n * m)
        # Equal splits differ by rounding only and must count as ties, or the p-value would be too small.
        slack = 1e-10 * largest
        exceeding = (statistics[1:] >= statistics[0] - slack).sum().item()
    return (1 + exceeding) / (1 + permutations)
