"""What of the data samples reach: the modes of a known mixture, or the classes of labelled data.

    KL(shares of samples over modes or classes || uniform), in nats: 0 when even, log M when one of M has all

From n samples the plain estimate is too large by about (M - 1) / (2 n) where all modes are reached, which is said, not corrected.
"""

import math

import torch
from torch import Tensor

from unigen.divergences import kullback_leibler_divergence
from unigen.evaluate.sample_figures import GROUPS, SampleFigure, jackknife, sample_figure, share_interval
from unigen.evaluate.samples import Predictor, class_coverage, mixture_metrics

__all__ = ["labelled_coverage", "mixture_coverage", "share_figure"]


def share_figure(name: str, count: int, n: int, how: str, features: str = "coordinates") -> SampleFigure:
    """Return the figure of a share of n independent samples, with the interval of `share_interval`."""
    share = count / n
    error = math.sqrt(share * (1 - share) / n)
    between = share_interval(share, n)
    return SampleFigure(name, share, "estimate", "", n, error, between, how, n_fake=n, features=features)


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
    """Count the classes that samples cover, as `class_coverage` does, with KL(their classes || uniform), by name.

    data_labels: of as many rows of data as there are samples, whose shares then stand in the place of uniform ones.
    """
    n = len(fake)
    if data_labels is not None and len(data_labels) != n:
        raise ValueError(
            f"Got {len(data_labels)} labels of data and {n} samples, which are compared in equal numbers only."
        )
    labels = classifier.predict(fake)
    found = class_coverage(labels[:, None], _Known(), classes, data_labels)
    to = "uniform" if data_labels is None else "the data's classes"
    reference = torch.full((classes,), 1 / classes, dtype=torch.float64)
    if data_labels is not None:
        reference = torch.bincount(data_labels.long().cpu(), minlength=classes).double() / n

    def divergence(rows: Tensor) -> Tensor:
        shares = torch.bincount(rows.cpu(), minlength=classes).double() / len(rows)
        return kullback_leibler_divergence(shares, reference)

    n_real = 0 if data_labels is None else n
    how = f"a class counts from a tenth of its share; {to} as reference"
    covered = SampleFigure(
        "classes covered",
        float(found.covered),
        "estimate",
        f"of {classes}",
        n,
        how=how,
        n_real=n_real,
        n_fake=n,
        features=features,
    )
    error = jackknife(divergence, labels, groups=groups, seed=seed)
    kl = _divergence(f"KL to {to}", error, n, classes, groups, "classes of samples", features, n_real)
    return {"classes": covered, "class_kl": kl}


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


class _Known:
    """Give back labels (N, 1) as they are."""

    def predict(self, x: Tensor) -> Tensor:
        return x[:, 0]
