"""Distances between samples and data, each with its numbers of rows, its error, and a p-value where a test stands behind it.

    FID = |m - m'|^2 + tr(S + S' - 2 (S^1/2 S' S^1/2)^1/2),   KID = MMD^2 with (x.y / D + 1)^3,   IS = exp E KL(p(y|x) || p(y))

Rows are coordinates or features, (n, D). Samples and data are compared in equal numbers only, as every one of these figures
moves with the number of rows. The standard error is a jackknife's (`sample_figures`) and says nothing of a bias. No global
random stream is read or moved.
"""

import math

import torch
from torch import Tensor

from unigen.divergences import (
    Kernel,
    gaussian_kernel,
    kullback_leibler_divergence,
    median_bandwidth,
    permutation_test,
    polynomial_kernel,
    wasserstein,
    wasserstein_2_normals,
)
from unigen.evaluate.sample_figures import GROUPS, SampleFigure, groups_of, jackknife, matched, sample_figure, spread

__all__ = [
    "exact_wasserstein",
    "frechet_inception_distance",
    "inception_score",
    "kernel_inception_distance",
    "maximum_mean_discrepancy",
    "sliced_wasserstein",
]

AT_ONCE = 1000  # rows of a kernel's table at a time


def frechet_inception_distance(
    real: Tensor,
    fake: Tensor,
    *,
    features: str = "coordinates",
    subsample: int | None = None,
    groups: int | None = GROUPS,
    seed: int = 0,
) -> SampleFigure:
    """Compute FID, the squared W2 distance of the normals with the rows' means and covariances (divisor n - 1).

    real, fake: features (n, D), as many of one as of the other. features: what they are, for the name of the figure.
    Biased upwards, by an amount that depends on the law of the samples, so that it can even misorder two models at equal n
    (Binkowski et al. 2018); no unbiased estimator exists. With n <= D a covariance is singular, and the figure warns.
    Source: Heusel et al. (2017), arXiv:1706.08500.
    """
    real, fake = matched(real, fake, subsample)
    n, dimension = real.shape

    def statistic(x: Tensor, y: Tensor) -> Tensor:
        moments = [part for rows in (x, y) for part in (rows.mean(0), rows.T.cov().reshape(dimension, dimension))]
        return wasserstein_2_normals(*moments) ** 2

    warning = f"singular covariances: {n} rows of {dimension} features" if n <= dimension else ""
    found = jackknife(statistic, real, fake, groups=groups, seed=seed)
    how = "biased upwards, compare at equal n only"
    return sample_figure("FID", found, (n, n), groups, features=features, how=how, warning=warning, low=0.0)


def maximum_mean_discrepancy(
    real: Tensor,
    fake: Tensor,
    kernel: Kernel | None = None,
    *,
    features: str = "coordinates",
    subsample: int | None = None,
    permutations: int | None = 200,
    groups: int | None = GROUPS,
    seed: int = 0,
) -> SampleFigure:
    """Estimate MMD^2 without bias over all rows, with the p-value of a permutation test.

    kernel: by default the mean of three Gaussians, of 1/2, 1 and 2 times the median distance: between rows of *data* for
    the value, which no sample can then widen; between all rows for the test, which is exact only with a kernel that a permutation
    leaves as it is. permutations: None for no test. Source: Gretton et al. (2012), JMLR 13.
    """
    real, fake = matched(real, fake, subsample)
    how = "unbiased U-statistic; Gaussian kernels of 1/2, 1 and 2 median distances"
    test_kernel = kernel
    if kernel is None:
        kernel, test_kernel = (
            gaussian_kernel([factor * median_bandwidth(rows) for factor in (0.5, 1.0, 2.0)])
            for rows in (real, torch.stack([real, fake], 1).flatten(0, 1))  # alternating, as rows at even steps enter
        )
    else:
        how = f"unbiased U-statistic; kernel {getattr(kernel, '__name__', kernel)}"
    return _kernel_figure("MMD²", real, fake, kernel, test_kernel, how, features, permutations, groups, seed)


def kernel_inception_distance(
    real: Tensor,
    fake: Tensor,
    *,
    features: str = "coordinates",
    subsample: int | None = None,
    permutations: int | None = 200,
    groups: int | None = GROUPS,
    seed: int = 0,
) -> SampleFigure:
    """Estimate KID, MMD^2 with the kernel (x.y / D + 1)^3 of features, without bias over all rows, and test it.

    One U-statistic of all n rows has less variance than the mean over random subsets of the original protocol, and the
    same mean. Arguments as for `maximum_mean_discrepancy`. Source: Binkowski et al. (2018), arXiv:1801.01401.
    """
    real, fake = matched(real, fake, subsample)
    kernel, how = polynomial_kernel(3), "unbiased U-statistic; cubic kernel"
    return _kernel_figure("KID", real, fake, kernel, kernel, how, features, permutations, groups, seed)


def _kernel_figure(
    name: str,
    real: Tensor,
    fake: Tensor,
    kernel: Kernel,
    test_kernel: Kernel | None,
    how: str,
    features: str,
    permutations: int | None,
    groups: int | None,
    seed: int,
) -> SampleFigure:
    n, p_value = len(real), None
    if permutations is not None and test_kernel is not None:
        p_value = permutation_test(real, fake, test_kernel, permutations, torch.Generator().manual_seed(seed))
        how += f"; p-value of {permutations} permutations"
    parts = torch.arange(n).split(AT_ONCE) if groups is None else groups_of(n, groups, seed)
    order, sizes = torch.cat(parts).to(real.device), [len(part) for part in parts]
    value, left = _mmd_leaving_out(real[order], fake[order], sizes, kernel)
    error = None if groups is None else spread(left)
    return sample_figure(name, (value, error), (n, n), groups, features=features, how=how, p_value=p_value)


def _mmd_leaving_out(x: Tensor, y: Tensor, sizes: list[int], kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Return MMD^2 of all rows, and without each group, (groups,), in one pass; groups are consecutive rows, ``sizes`` of them."""
    counts = x.new_tensor(sizes)
    value, left = x.new_zeros(()), torch.zeros_like(counts)
    for one, other, sign in ((x, x, 1), (y, y, 1), (x, y, -2)):
        within, start, sums = one is other, 0, []
        for rows in one.split(sizes):
            table = kernel(rows, other)
            if within:
                table.diagonal(start)[: len(rows)].zero_()
            start += len(rows)
            sums.append(torch.stack([part.sum() for part in table.split(sizes, 1)]))
        pairs = counts[:, None] * counts - (counts.diag() if within else 0)
        value = value + sign * torch.stack(sums).sum() / pairs.sum()
        left = left + sign * _without(torch.stack(sums)) / _without(pairs)
    return value, left


def _without(table: Tensor) -> Tensor:
    """Return the sum of a square table without row and column b, for each b."""
    return table.sum() - table.sum(0) - table.sum(1) + table.diagonal()


def inception_score(
    log_probabilities: Tensor, *, features: str = "", groups: int | None = GROUPS, seed: int = 0
) -> SampleFigure:
    """Compute exp of the mean over samples of KL(p(y|x) || p(y)), from 1 to the number of classes, by a classifier.

    log_probabilities: log p(y|x), (n, C), of samples, or of as many data for what data score. features: the classifier's name.
    One mean over all n, without the splits of the original protocol, whose mean is lower.
    Source: Salimans et al. (2016), Improved techniques for training GANs, arXiv:1606.03498.
    """
    if log_probabilities.ndim != 2 or len(log_probabilities) < 2:
        raise ValueError(f"Expected log p(y|x) of shape (n, C) with n >= 2, but got {tuple(log_probabilities.shape)}.")
    rows = log_probabilities.detach().double()
    if not bool(torch.isclose(rows.exp().sum(1), rows.new_ones(()), atol=1e-4).all()):
        raise ValueError(
            "Expected log-probabilities whose exponentials sum to one in each row; give log_softmax(logits)."
        )

    def statistic(log_p: Tensor) -> Tensor:
        p = torch.softmax(log_p, 1)  # sums to one in double precision, too
        return kullback_leibler_divergence(p, p.mean(0).expand_as(p)).mean().exp()

    found = jackknife(statistic, rows, groups=groups, seed=seed)
    limits = {"low": 1.0, "high": float(rows.shape[1])}
    how = f"of {rows.shape[1]} classes, without splits; biased downwards where rows are few"
    return sample_figure(
        "inception score", found, (0, len(rows)), groups, kind="estimate", features=features, how=how, **limits
    )


def sliced_wasserstein(
    real: Tensor,
    fake: Tensor,
    order: float = 1.0,
    *,
    directions: int = 200,
    features: str = "coordinates",
    subsample: int | None = None,
    groups: int | None = GROUPS,
    seed: int = 0,
) -> SampleFigure:
    """Estimate (E_u W_r(u.x, u.y)^r)^(1/r) over directions u, uniform on the sphere and drawn by ``seed``.

    order: r >= 1. In the units of the rows. The error is that of the rows, for these directions.
    Source: Rabin et al. (2011); Bonneel et al. (2015), Sliced and Radon Wasserstein barycenters.
    """
    real, fake = matched(real, fake, subsample)
    if not 1 <= order < math.inf or directions < 1:
        raise ValueError(f"Expected a finite order from 1 and directions from 1, but got {order} and {directions}.")
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(real.shape[1], directions, generator=generator, dtype=torch.float64).to(real.device)
    u = u / u.norm(dim=0)

    def statistic(x: Tensor, y: Tensor) -> Tensor:
        gaps = ((x @ u).sort(0).values - (y @ u).sort(0).values).abs()
        return (gaps**order).mean() ** (1 / order)

    found = jackknife(statistic, real, fake, groups=groups, seed=seed)
    how = f"order {order:g}, {directions} directions; biased upwards, compare at equal n only"
    name = "sliced Wasserstein distance"
    return sample_figure(
        name, found, (len(real), len(fake)), groups, features=features, how=how, units="of rows", low=0.0
    )


def exact_wasserstein(
    real: Tensor,
    fake: Tensor,
    order: float = 1.0,
    *,
    features: str = "coordinates",
    subsample: int | None = None,
    groups: int | None = GROUPS,
    seed: int = 0,
) -> SampleFigure:
    """Compute W_r between the rows, exactly, by the network simplex: about n^3 operations, and as many again a group.

    order: r >= 1. In the units of the rows; biased upwards, by n^(-1/D) where D > 2. ImportError where POT is missing.
    Source: Villani (2009), Optimal transport; `unigen.divergences.wasserstein`.
    """
    real, fake = matched(real, fake, subsample)
    found = jackknife(lambda x, y: wasserstein(x, y, order), real, fake, groups=groups, seed=seed)
    how = f"order {order:g}, exact coupling; biased upwards, compare at equal n only"
    name = "Wasserstein distance"
    return sample_figure(
        name, found, (len(real), len(fake)), groups, features=features, how=how, units="of rows", low=0.0
    )
