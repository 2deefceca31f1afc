"""A figure of samples: its numbers of rows, its error by the jackknife, and the refusal of unequal numbers.

    se^2 = (g - 1)/g sum_b (T_b - mean T)^2,   T_b the statistic without the b-th of g groups of rows

The variance of the jackknife is not too small in expectation (Efron and Stein 1981, The jackknife estimate of variance, Annals of
Statistics 9). It is that of the figure at its number of rows, and says nothing of a bias.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unigen.evaluate.figure import Figure

__all__ = [
    "GROUPS",
    "SampleFigure",
    "check_rows",
    "groups_of",
    "interval",
    "jackknife",
    "matched",
    "sample_figure",
    "share_interval",
    "spread",
]

GROUPS = 10
"""The groups of rows that the jackknife leaves out in turn."""


@dataclass(frozen=True)
class SampleFigure(Figure):
    """A figure of samples: beside the rest, ``n_real`` and ``n_fake`` rows, what ``features`` they are, and a ``p_value``.

    ``n_real`` is 0 where no data enter. ``p_value``: of the hypothesis that samples and data have one law.
    """

    n_real: int = 0
    n_fake: int = 0
    features: str = "coordinates"
    p_value: float | None = None

    def __str__(self) -> str:
        error = "" if self.standard_error is None else f" ± {self.standard_error:.2g}"
        test = "" if self.p_value is None else f", p = {self.p_value:.2g}"
        return f"{self.name} {self.value:.4g}{error}{test} ({self.features}; n_real = {self.n_real}, n_fake = {self.n_fake})"


def matched(real: Tensor, fake: Tensor, subsample: int | None = None, least: int = 2) -> tuple[Tensor, Tensor]:
    """Return data and samples as float64 rows (n, D), equally many and finite, or raise ValueError in one sentence.

    subsample: a seed, by which the longer one is thinned to the length of the other; None refuses unequal lengths.
    """
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(
            f"Expected data (n, D) and samples (n, D) with one D, but got {tuple(real.shape)} and {tuple(fake.shape)}."
        )
    for name, rows in (("data", real), ("samples", fake)):
        if len(rows) < least:
            raise ValueError(f"At least {least} rows of {name} are needed here, but got {len(rows)}.")
        finite = torch.isfinite(rows).all(1)
        if not bool(finite.all()):
            raise ValueError(
                f"{int((~finite).sum())} of {len(rows)} rows of {name} are not finite; none can be compared."
            )
    if len(real) != len(fake):
        if subsample is None:
            raise ValueError(
                f"Got {len(real)} rows of data and {len(fake)} samples, which are compared in equal numbers only; "
                "cut the longer, or give subsample=SEED to thin it."
            )
        n, generator = min(len(real), len(fake)), torch.Generator().manual_seed(subsample)
        longer = real if len(real) > n else fake
        thinned = longer[torch.randperm(len(longer), generator=generator)[:n].to(longer.device)]
        real, fake = (thinned, fake) if len(real) > n else (real, thinned)
    return real.detach().double(), fake.detach().double()


def check_rows(samples: Tensor, others: Tensor, what: str) -> None:
    """Raise ValueError unless both are rows of one width, and neither is empty."""
    if samples.ndim != 2 or others.ndim != 2 or samples.shape[1] != others.shape[1] or 0 in (len(samples), len(others)):
        raise ValueError(
            f"Expected samples (N, D) and {what} (M, D) with one D and at least one row each, "
            f"but got {tuple(samples.shape)} and {tuple(others.shape)}."
        )


def jackknife(
    statistic: Callable[..., Tensor], *samples: Tensor, groups: int | None = GROUPS, seed: int = 0
) -> tuple[Tensor, Tensor | None]:
    """Return a statistic of equally long samples, and its standard error by leaving out one group of rows in turn.

    statistic: maps samples to a tensor of any shape. groups: at least 2, of rows drawn by ``seed``; None for no error.
    se^2 = (g - 1)/g sum_b (T_b - mean T)^2 with T_b the statistic without group b.
    Source: Efron and Stein (1981); Kunsch (1989), Annals of Statistics 17, for groups.
    """
    value = statistic(*samples)
    if groups is None:
        return value, None
    parts = groups_of(len(samples[0]), groups, seed)
    everything = torch.arange(len(samples[0]))
    left = []
    for part in parts:
        kept = everything[torch.isin(everything, part, invert=True)]
        left.append(statistic(*(rows[kept.to(rows.device)] for rows in samples)))
    return value, spread(torch.stack(left))


def groups_of(n: int, groups: int, seed: int) -> tuple[Tensor, ...]:
    """Return n rows in random groups, each the numbers of its rows."""
    if not 2 <= groups <= n // 2:
        raise ValueError(f"The jackknife leaves out one of 2 to {n // 2} groups of {n} rows, but got groups={groups}.")
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tensor_split(groups)


def spread(left: Tensor) -> Tensor:
    """Return the jackknife's standard error from the statistics without each group, (groups, ...)."""
    return ((len(left) - 1) * left.var(0, correction=0)).sqrt()


def interval(
    value: float, error: float | None, groups: int | None, low: float = -math.inf, high: float = math.inf
) -> Any:
    """Return value -+ t se, cut to what is possible: 95 %, t of Student's law with groups - 1 degrees of freedom."""
    if error is None or groups is None:
        return None
    from scipy.special import stdtrit

    reach = float(stdtrit(groups - 1, 0.975)) * error
    return max(low, value - reach), min(high, value + reach)


def share_interval(share: float, n: int) -> tuple[float, float]:
    """Return the interval of Wilson (1927), 95 %, for a share of n independent rows; it has a width at shares 0 and 1 too.

    >>> [round(end, 4) for end in share_interval(0.0, 100)]
    [0.0, 0.037]
    """
    z = 1.959963984540054
    center, reach = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = (center - reach) / (1 + z**2 / n), (center + reach) / (1 + z**2 / n)
    return low if share > 0 else 0.0, high if share < 1 else 1.0


def sample_figure(
    name: str, found: tuple[Tensor, Tensor | None], n: tuple[int, int], groups: int | None, **more: Any
) -> SampleFigure:
    """Return the figure of a value with the error that `jackknife` found, and its interval."""
    value, error = float(found[0]), None if found[1] is None else float(found[1])
    limits = {bound: more.pop(bound) for bound in ("low", "high") if bound in more}
    more = {"kind": "distance", "units": ""} | more
    between = interval(value, error, groups, **limits)
    return SampleFigure(name, value, n=n[1], n_real=n[0], n_fake=n[1], standard_error=error, interval=between, **more)
