"""Nearest neighbours: precision, recall, density and coverage of samples, and samples that copy training rows.

B(x) is the closed ball round a row whose radius reaches its k-th nearest row of its own side:

    precision = mean_fake 1[in some B(real)]           recall   = mean_real 1[in some B(fake)]
    density   = mean_fake #{B(real) round it} / k      coverage = mean_real 1[some fake is in B(real)]

For one law on both sides E density = 1 and E coverage = 1 - prod_{j=1..k} (n - j) / (2 n - j), about 1 - 2^-k, where no two
distances are equal; those of binary rows often are, and closed balls then hold more.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from unigen.evaluate.sample_figures import (
    GROUPS,
    SampleFigure,
    check_rows,
    jackknife,
    matched,
    sample_figure,
    share_interval,
)

__all__ = [
    "NearestRows",
    "expected_coverage",
    "memorization",
    "nearest_rows",
    "precision_recall_density_coverage",
    "save_neighbours",
]

AT_ONCE = 1000  # rows of a table of distances at a time
SLACK = 1e-10  # of the greatest squared norm, by which rounding may part equal squared distances

MEANINGS = {
    "precision": "share of samples among the data's neighbours",
    "recall": "share of data among the samples' neighbours",
    "density": "data's neighbourhoods round a sample, over k: 1 for the data's own law, more where distances tie",
    "coverage": "share of data with a sample in their neighbourhood",
}


def precision_recall_density_coverage(
    real: Tensor,
    fake: Tensor,
    neighbours: int = 5,
    *,
    features: str = "coordinates",
    subsample: int | None = None,
    groups: int | None = GROUPS,
    seed: int = 0,
) -> dict[str, SampleFigure]:
    """Compute precision and recall (Kynkaanniemi et al. 2019) and density and coverage (Naeem et al. 2020), by name.

    real, fake: rows (n, D). neighbours: k, from 1 to n - 2. Precision and recall fall with the dimension, to 0.48
    for one normal law in 1000 dimensions, and an outlier of the data makes precision generous; the other two have known means.
    Sources: arXiv:1904.06991; arXiv:2002.09797.
    """
    real, fake = matched(real, fake, subsample)
    n = len(real)
    fewest = n if groups is None else n - -(-n // max(groups, 1))
    if not 1 <= neighbours < fewest:
        raise ValueError(
            f"The k-th nearest of {fewest} rows needs neighbours from 1 to {fewest - 1}, but got {neighbours}."
        )
    found = jackknife(lambda x, y: _shares(x, y, neighbours), real, fake, groups=groups, seed=seed)
    figures = {}
    for index, (name, meaning) in enumerate(MEANINGS.items()):
        one = (found[0][index], None if found[1] is None else found[1][index])
        how = f"{meaning}; k = {neighbours}"
        high = math.inf if name == "density" else 1.0
        made = sample_figure(name, one, (n, n), groups, kind="estimate", features=features, how=how, low=0.0, high=high)
        if name != "density" and made.interval is not None:
            # at 0 or 1 the groups agree, though rows are few: never narrower than for independent rows
            alone = share_interval(made.value, n)
            made = replace(made, interval=(min(made.interval[0], alone[0]), max(made.interval[1], alone[1])))
        figures[name] = made
    return figures


def expected_coverage(n: int, neighbours: int = 5) -> float:
    """Return the mean coverage of n samples of the data's own law, 1 - prod_{j=1..k} (n - j) / (2 n - j), exactly.

    A row is not covered where its k nearest of all 2 n - 1 others are data.

    >>> round(expected_coverage(10_000), 4)
    0.9688
    """
    return 1 - math.prod((n - j) / (2 * n - j) for j in range(1, neighbours + 1))


def _radii(rows: Tensor, neighbours: int) -> Tensor:
    """Return each row's distance to its k-th nearest other row, (n,)."""
    # each row is its own nearest, so that the k-th other is number k + 1
    return torch.cat([torch.cdist(part, rows).kthvalue(neighbours + 1).values for part in rows.split(AT_ONCE)])


def _shares(real: Tensor, fake: Tensor, neighbours: int) -> Tensor:
    """Return precision, recall, density and coverage, (4,)."""
    center = real.mean(0)  # about it the expanded squares of the distances lose fewer digits
    real, fake = real - center, fake - center
    slack = SLACK * torch.cat([real, fake]).square().sum(1).max()
    around_real, around_fake = (_radii(rows, neighbours).square() + slack for rows in (real, fake))
    counts = torch.zeros(len(fake), dtype=torch.long, device=fake.device)  # of the data's balls round each sample
    recalled, covered = [], []
    for rows, reach in zip(real.split(AT_ONCE), around_real.split(AT_ONCE), strict=True):
        squares = torch.cdist(rows, fake).square()
        inside = squares <= reach[:, None]
        counts += inside.sum(0)
        covered.append(inside.any(1))
        recalled.append((squares <= around_fake).any(1))
    recall, coverage = torch.cat(recalled).double().mean(), torch.cat(covered).double().mean()
    return torch.stack([(counts > 0).double().mean(), recall, counts.double().mean() / neighbours, coverage])


class NearestRows(NamedTuple):
    """Hold, for every sample, the distance to its nearest training row, (N,), and that row's index, (N,)."""

    distances: Tensor
    indices: Tensor


@torch.no_grad()
def nearest_rows(samples: Tensor, train: Tensor, chunk: int = 256) -> NearestRows:
    """Find each sample's nearest training row in Euclidean distance; a memorized row has distance exactly 0.

    samples: shape (N, D). train: shape (M, D). chunk: how many samples at a time, which bounds memory at chunk * M.
    """
    check_rows(samples, train, "training rows")
    # About the mean of the rows the expanded square loses fewer digits.
    center = train.double().mean(0)
    samples, train = samples.double() - center, train.double() - center
    half_norms = (train**2).sum(1) / 2
    indices = torch.cat([(half_norms - part @ train.T).argmin(1) for part in samples.split(chunk)])
    # The expanded square finds the row; the difference itself measures it, so that a copy is at distance zero.
    distances = torch.cat(
        [
            (part - train[rows]).norm(dim=1)
            for part, rows in zip(samples.split(chunk), indices.split(chunk), strict=True)
        ]
    )
    return NearestRows(distances, indices)


def memorization(
    real: Tensor,
    fake: Tensor,
    train: Tensor,
    *,
    features: str = "coordinates",
    subsample: int | None = None,
) -> SampleFigure:
    """Compute P(a sample is nearer to its nearest training row than a fresh row of data to its own); 1/2 is ideal.

    real: rows of data that were not trained on, (n, D). fake: samples, (n, D). train: training rows, (m, D). Near 1 the samples
    are copies. The p-value is one-sided, of the Mann-Whitney test by its normal limit, against samples that are too near; ties
    count half. The standard error is that of the two sets of distances (DeLong et al. 1988).
    Source: Meehan et al. (2020), arXiv:2004.05675.
    """
    real, fake = matched(real, fake, subsample)
    n = len(real)
    near_fake, near_real = (nearest_rows(rows, train).distances.sort().values for rows in (fake, real))
    # for each distance, the share of the other side that is farther, or nearer; ties count half
    farther = 1 - _rank(near_real, near_fake)
    nearer = _rank(near_fake, near_real)
    value, error = farther.mean(), ((farther.var() + nearer.var()) / n).sqrt()
    _, tied = torch.cat([near_fake, near_real]).unique(return_counts=True)
    spread = math.sqrt(n * n / 12 * (2 * n + 1 - float((tied.double() ** 3 - tied).sum()) / (2 * n * (2 * n - 1))))
    p_value = 0.5 * math.erfc(n * n * float(value - 0.5) / spread / math.sqrt(2)) if spread > 0 else 1.0
    copies = int((near_fake == 0).sum())
    reach = 1.96 * float(error)
    return SampleFigure(
        "memorization",
        float(value),
        "estimate",
        "",
        n,
        float(error),
        (max(0.0, float(value) - reach), min(1.0, float(value) + reach)),
        how=f"P(sample nearer to training rows than data), {len(train)} training rows, {copies} exact copies among samples",
        n_real=n,
        n_fake=n,
        features=features,
        p_value=p_value,
    )


def _rank(sorted_rows: Tensor, values: Tensor) -> Tensor:
    """Return for each value the share of rows below it, ties counted half."""
    below = torch.searchsorted(sorted_rows, values) + torch.searchsorted(sorted_rows, values, right=True)
    return below.double() / (2 * len(sorted_rows))


def save_neighbours(path: Path, fake: Tensor, train: Tensor, shape: tuple[int, ...], columns: int = 10) -> None:
    """Save a PNG of samples above their nearest training rows: first the first samples, then those nearest to any row.

    fake: (n, D) in [0, 1]. train: (m, D). shape: of one image, with D entries. columns: samples in a row of the picture.
    """
    from unigen.runs import save_grid

    found = nearest_rows(fake, train)
    columns = min(columns, len(fake))
    suspicious = found.distances.argsort()[:columns]
    blocks = []
    for chosen in (torch.arange(columns, device=fake.device), suspicious):
        blocks += [fake[chosen], train[found.indices[chosen]].to(fake)]
    save_grid(path, torch.cat(blocks), shape, columns)
