"""What of the data samples reach: the modes of a known mixture, or the classes of labelled data.

    KL(shares of samples over modes or classes || uniform), in nats: 0 when even, log M when one of M has all

From n samples the plain estimate is too large by about (M - 1) / (2 n) where all modes are reached, which is said, not corrected.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unigen.divergences import kullback_leibler_divergence
from unigen.evaluate.classifier import Predictor, check_labels
from unigen.evaluate.sample_figures import (
    GROUPS,
    SampleFigure,
    check_rows,
    jackknife,
    sample_figure,
    share_interval,
)

__all__ = ["MixtureMetrics", "labelled_coverage", "mixture_coverage", "mixture_metrics", "share_figure"]


def share_figure(name: str, count: int, n: int, how: str, features: str = "coordinates") -> SampleFigure:
    """Return the figure of a share of n independent samples, with the interval of `share_interval`."""
    share = count / n
    error = math.sqrt(share * (1 - share) / n)
    between = share_interval(share, n)
    return SampleFigure(name, share, "estimate", "", n, error, between, how, n_fake=n, features=features)


LEAST_RATIO = 0.1  # of a class's share, from which it counts as covered


@dataclass(frozen=True)
class MixtureMetrics:
    """Hold the three numbers of the PacGAN protocol, with the number of modes and of samples."""

    modes_captured: int
    high_quality: float
    reverse_kullback_leibler: float
    modes: int
    n: int


def mixture_metrics(samples: Tensor, means: Tensor, std: float, hq: float = 3.0) -> MixtureMetrics:
    """Score samples of an equal mixture of isotropic Gaussians: modes captured, high-quality share, reverse KL.

    A sample belongs to its nearest mean, and is of high quality when less than `hq` standard deviations away. A mode is
    captured by one such sample. The reverse KL is KL(high-quality samples over modes || uniform), in nats: 0 when even,
    log(modes) when one mode has all, inf when no sample is of high quality.
    samples: shape (N, D). means: shape (M, D). std: of every component, in the units of the rows.
    Source: Lin et al. (2018), PacGAN, arXiv:1712.04086; Srivastava et al. (2017), VEEGAN.
    """
    check_rows(samples, means, "means")
    if not std > 0 or not hq > 0:
        raise ValueError(f"std and hq must be positive, but got {std} and {hq}.")
    distances = torch.cdist(samples.double(), means.double(), compute_mode="donot_use_mm_for_euclid_dist")
    distance, nearest = distances.min(1)
    counts = torch.bincount(nearest[distance < hq * std], minlength=len(means)).double()
    total = int(counts.sum())
    shares = counts / max(total, 1)
    uniform = torch.full_like(shares, 1 / len(means))
    return MixtureMetrics(
        modes_captured=int((counts > 0).sum()),
        high_quality=total / len(samples),
        reverse_kullback_leibler=kullback_leibler_divergence(shares, uniform).item() if total else math.inf,
        modes=len(means),
        n=len(samples),
    )


def mixture_coverage(
    fake: Tensor, means: Tensor, std: float, hq: float = 3.0, *, groups: int | None = GROUPS, seed: int = 0
) -> dict[str, SampleFigure]:
    """Score samples of an equal mixture of round normals, as `mixture_metrics` does, with errors, by name.

    fake: (n, D). means: (M, D). std: of each component. hq: the reach of a mode, in std.
    Source: Lin et al. (2018), PacGAN, arXiv:1712.04086; Srivastava et al. (2017), VEEGAN.
    """
    found = mixture_metrics(fake, means, std, hq)
    n, how = found.n, f"{hq:g} standard deviations round {found.modes} known modes"

    def reverse(rows: Tensor) -> Tensor:
        return torch.tensor(mixture_metrics(rows, means, std, hq).reverse_kullback_leibler, dtype=torch.float64)

    modes = SampleFigure(
        "modes captured", float(found.modes_captured), "exact", f"of {found.modes}", n, how=how, n_fake=n
    )
    good = share_figure("high-quality share", round(found.high_quality * n), n, how)
    error = jackknife(reverse, fake, groups=groups, seed=seed)
    kl = _divergence("reverse KL to the modes", error, n, found.modes, groups, how, "coordinates")
    return {"modes": modes, "high_quality": good, "reverse_kl": kl}


def labelled_coverage(
    fake: Tensor,
    classifier: Predictor,
    classes: int,
    data_labels: Tensor | None = None,
    *,
    features: str = "own classifier",
    groups: int | None = GROUPS,
    seed: int = 0,
) -> dict[str, SampleFigure]:
    """Count the classes that samples cover, with KL(shares of their classes || uniform), by name.

    A class counts as covered where its share of the samples is at least a tenth of its share of the data; one that the data
    lack is never covered. fake: (n, D). classifier: of 0 to ``classes`` - 1. data_labels: of as many rows of data as there are
    samples, whose shares then stand in the place of uniform ones.
    """
    n = len(fake)
    if n == 0:
        raise ValueError("labelled_coverage needs at least one sample, but got none.")
    if data_labels is not None and len(data_labels) != n:
        raise ValueError(
            f"Got {len(data_labels)} labels of data and {n} samples, which are compared in equal numbers only."
        )

    def shares(labels: Tensor) -> Tensor:
        check_labels(labels, classes)
        return torch.bincount(labels.long().cpu(), minlength=classes).double() / len(labels)

    labels = classifier.predict(fake)
    even = torch.full((classes,), 1 / classes, dtype=torch.float64)
    reference = even if data_labels is None else shares(data_labels)
    to = "uniform" if data_labels is None else "the data's classes"
    # the slack keeps a share of exactly one tenth covered in spite of rounding; shares differ by far more
    covered = (shares(labels) * (1 + 1e-12) >= LEAST_RATIO * reference) & (reference > 0)
    n_real = 0 if data_labels is None else n
    how = f"a class counts from a tenth of its share; {to} as reference"
    count = SampleFigure(
        "classes covered",
        float(covered.sum()),
        "estimate",
        f"of {classes}",
        n,
        how=how,
        n_real=n_real,
        n_fake=n,
        features=features,
    )

    def divergence(labels: Tensor) -> Tensor:
        return kullback_leibler_divergence(shares(labels), reference)

    error = jackknife(divergence, labels, groups=groups, seed=seed)
    kl = _divergence(f"KL to {to}", error, n, classes, groups, "classes of samples", features, n_real)
    return {"classes": count, "class_kl": kl}


def _divergence(
    name: str,
    found: tuple[Tensor, Tensor | None],
    n: int,
    modes: int,
    groups: int | None,
    how: str,
    features: str,
    n_real: int = 0,
) -> SampleFigure:
    value, error = found
    if error is not None and not bool(error.isfinite()):
        error = None  # an infinite value has no error
    how += f"; too large by about {(modes - 1) / (2 * n):.2g}"
    return sample_figure(
        name, (value, error), (n_real, n), groups, kind="estimate", units="nats", how=how, features=features, low=0.0
    )
