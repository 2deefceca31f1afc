"""Intervals of Student's law: of a mean over runs, of a mean over data, and of paired differences.

    mean -+ t s / sqrt(n),   s^2 = sum_i (v_i - mean)^2 / (n - 1),   t the 97.5 % quantile with n - 1 degrees of freedom

Exact where the values are independent and normal. Source: Student (1908), The probable error of a mean, Biometrika 6.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Mean", "mean_interval", "quantile"]


class Mean(NamedTuple):
    """A mean of ``n`` values; its 95 % interval is ``value`` -+ ``reach``, which is None for a single value."""

    value: float
    reach: float | None
    n: int


def mean_interval(values: Sequence[float]) -> Mean:
    """Return the mean of values with its 95 % interval, t s / sqrt(n).

    >>> mean_interval([1.0, 2.0, 6.0]).reach == quantile(3) * (7 / 3) ** 0.5
    True
    """
    if not values:
        raise ValueError("A mean needs at least one value, got none.")
    n = len(values)
    reach = quantile(n) * statistics.stdev(values) / math.sqrt(n) if n > 1 else None
    return Mean(statistics.fmean(values), reach, n)


def quantile(n: int) -> float:
    """Return the 97.5 % quantile of Student's law for a mean of n >= 2 values, which has n - 1 degrees of freedom.

    >>> round(quantile(3), 4)
    4.3027
    """
    from scipy.special import stdtrit

    if n < 2:
        raise ValueError(f"An interval of a mean needs at least two values, got {n}.")
    return float(stdtrit(n - 1, 0.975))
