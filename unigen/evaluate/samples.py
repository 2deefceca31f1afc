"""Evaluate samples by themselves: kernel distances to data, class coverage, mixture modes, nearest training rows.

Every function is a pure function of its arguments and its seed: the global random state is neither read nor moved.
Samples and data are rows, shape (N, D); a value that estimates carries its standard error and its sample size.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unigen.divergences import (
    Kernel,
    block_estimate,
    entropy,
    gaussian_kernel,
    kullback_leibler_divergence,
    median_bandwidth,
    mmd_squared,
    polynomial_kernel,
)

__all__ = [
    "Classifier",
    "Coverage",
    "MixtureMetrics",
    "NearestRows",
    "SampleDistance",
    "class_coverage",
    "mixture_metrics",
    "nearest_rows",
    "sample_distance",
    "train_classifier",
]


def _check_pair(samples: Tensor, others: Tensor, what: str) -> None:
    if samples.ndim != 2 or others.ndim != 2 or samples.shape[1] != others.shape[1] or 0 in (len(samples), len(others)):
        raise ValueError(
            f"Expected samples (N, D) and {what} (M, D) with one D and at least one row each, "
            f"but got {tuple(samples.shape)} and {tuple(others.shape)}."
        )


@dataclass(frozen=True)
class SampleDistance:
    """Hold an unbiased estimate of MMD^2, its standard error, the rows on each side, and the kernel's name."""

    value: float
    standard_error: float
    n: int
    kernel: str


def sample_distance(
    samples: Tensor,
    data: Tensor,
    kernel: str | Kernel = "gaussian",
    features: Callable[[Tensor], Tensor] | None = None,
    blocks: int = 10,
    seed: int = 0,
) -> SampleDistance:
    """Estimate MMD^2 between samples and data: the mean of its U-statistic over disjoint blocks of shuffled rows.

    samples, data: shape (N, D), the same N, as even unbiased scores at unequal sizes differ in noise.
    kernel: "gaussian", of bandwidths (0.5, 1, 2) times the median distance between the *data's* rows; "cubic",
        (x.y / D + 1)^3, the kernel inception distance when `features` are a classifier's; or any kernel.
    features: maps rows (N, D) to the features (N, F) that are compared; None compares the rows.
    blocks: how many blocks, from 2. They share no row, so std / sqrt(blocks) is an honest standard error, where
        the overlapping subsets of the original protocol make it too small.
    Raises ValueError for unequal sizes or fewer than two rows a block.
    Source: Binkowski et al. (2018), arXiv:1801.01401; Zaremba, Gretton and Blaschko (2013), B-test.
    """
    _check_pair(samples, data, "data")
    n = len(data)
    if len(samples) != n:
        raise ValueError(
            f"Sample distances compare equal numbers of rows, but got {len(samples)} samples and {n} rows of data; "
            "cut the longer one."
        )
    with torch.no_grad():
        x, y = (samples, data) if features is None else (features(samples), features(data))
        name = kernel if isinstance(kernel, str) else getattr(kernel, "__name__", repr(kernel))
        if kernel == "gaussian":
            median = median_bandwidth(y)
            kernel = gaussian_kernel((0.5 * median, median, 2 * median))
        elif kernel == "cubic":
            kernel = polynomial_kernel(degree=3)
        elif isinstance(kernel, str):
            raise ValueError(
                f"There is no kernel {kernel!r}; expected 'gaussian', 'cubic' or a function of two samples."
            )
        distance = partial(mmd_squared, kernel=kernel)
        found = block_estimate(distance, x.double(), y.double(), blocks, seed)
    return SampleDistance(found.value.item(), found.standard_error.item(), n, name)


class Classifier(nn.Module):
    """Classify rows with one hidden layer; `train_classifier` builds it, and it is frozen afterwards."""

    shift: Tensor
    scale: Tensor

    def __init__(self, dimension: int, hidden: int, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        # skip_init, because a linear layer's own initialization draws from the global random state.
        self.hidden = nn.utils.skip_init(nn.Linear, dimension, hidden, dtype=torch.float32)
        self.output = nn.utils.skip_init(nn.Linear, hidden, classes, dtype=torch.float32)
        for layer in (self.hidden, self.output):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / layer.in_features), generator=generator)
            nn.init.zeros_(layer.bias)
        self.register_buffer("shift", torch.zeros((), dtype=torch.float32))
        self.register_buffer("scale", torch.ones((), dtype=torch.float32))

    def _hidden(self, x: Tensor) -> Tensor:
        return torch.relu(self.hidden((x.float() - self.shift) / self.scale))

    def forward(self, x: Tensor) -> Tensor:
        """Map rows (N, D) to logits (N, classes)."""
        return self.output(self._hidden(x))

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """Map rows (N, D) to the hidden layer, (N, hidden), for a kernel distance on features."""
        return self._hidden(x)

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Map rows (N, D) to the most probable labels, (N,), int64."""
        return self(x).argmax(-1)

    def accuracy(self, x: Tensor, labels: Tensor) -> float:
        """Compute the share of rows (N, D) whose predicted label equals the given one, (N,)."""
        return (self.predict(x) == labels).double().mean().item()


def train_classifier(
    x: Tensor, labels: Tensor, classes: int, seed: int, hidden: int = 256, steps: int = 1500, batch_size: int = 256
) -> Classifier:
    """Train a classifier of one hidden layer by Adam with a cosine schedule, as a pure function of its seed.

    x: rows, shape (N, D), of any scale. labels: shape (N,), integers from 0 to classes - 1.
    The defaults take seconds on a CPU and reach about 98 % on MNIST's test images and on held-out digits.
    """
    if x.ndim != 2 or labels.shape != x.shape[:1] or len(x) == 0:
        raise ValueError(f"Expected x (N, D) and labels (N,), but got {tuple(x.shape)} and {tuple(labels.shape)}.")
    _check_labels(labels, classes)
    generator = torch.Generator().manual_seed(seed)
    classifier = Classifier(x.shape[1], hidden, classes, generator).to(x.device)
    x, labels = x.detach().float(), labels.long()
    classifier.shift.copy_(x.mean())
    classifier.scale.copy_(x.std().clamp_min(1e-6))
    optimizer = torch.optim.Adam(classifier.parameters(), lr=2e-3)
    with torch.enable_grad():
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 1e-3 * (1 + math.cos(math.pi * step / steps))
            rows = torch.randint(len(x), (batch_size,), generator=generator).to(x.device)
            optimizer.zero_grad()
            cross_entropy(classifier(x[rows]), labels[rows]).backward()
            optimizer.step()
    return classifier.requires_grad_(False).eval()


def _check_labels(labels: Tensor, classes: int) -> None:
    if labels.numel() and not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(
            f"Labels must lie in 0..{classes - 1}, but got {labels.min().item()} to {labels.max().item()}."
        )


class Predictor(Protocol):
    """Anything with `predict`, from rows (N, D) to labels (N,)."""

    def predict(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Coverage:
    """Hold how a classifier spreads samples over classes.

    fractions: each class's share of the samples. covered: how many of the `classes` are covered.
    entropy: of the shares, nats. kullback_leibler: KL(shares of the samples || shares of the data), nats.
    """

    fractions: tuple[float, ...]
    covered: int
    classes: int
    entropy: float
    kullback_leibler: float
    n: int


def class_coverage(
    samples: Tensor, classifier: Predictor, classes: int, data_labels: Tensor | None = None, least_ratio: float = 0.1
) -> Coverage:
    """Count the classes that samples cover, with the entropy of their class histogram and its KL to the data's.

    A class counts as covered when its share of the samples is at least `least_ratio` (one tenth) of its share of the
    data; a class that the data lack is never covered.
    samples: shape (N, D). data_labels: shape (M,), labels of the data; None stands for equal shares.
    """
    predicted = classifier.predict(samples).long()
    if len(predicted) == 0:
        raise ValueError("class_coverage needs at least one sample, but got none.")
    _check_labels(predicted, classes)
    shares = torch.bincount(predicted, minlength=classes).double() / len(predicted)
    data_shares = torch.full_like(shares, 1 / classes)
    if data_labels is not None:
        _check_labels(data_labels, classes)
        data_shares = torch.bincount(data_labels.long().to(shares.device), minlength=classes).double() / len(
            data_labels
        )
    # The slack keeps a share of exactly one tenth covered in spite of rounding; shares differ by far more.
    covered = (shares * (1 + 1e-12) >= least_ratio * data_shares) & (data_shares > 0)
    return Coverage(
        fractions=tuple(shares.tolist()),
        covered=int(covered.sum()),
        classes=classes,
        entropy=entropy(shares).item(),
        kullback_leibler=kullback_leibler_divergence(shares, data_shares).item(),
        n=len(predicted),
    )


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
    _check_pair(samples, means, "means")
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


class NearestRows(NamedTuple):
    """Hold, for every sample, the distance to its nearest training row, (N,), and that row's index, (N,)."""

    distances: Tensor
    indices: Tensor


@torch.no_grad()
def nearest_rows(samples: Tensor, train: Tensor, chunk: int = 256) -> NearestRows:
    """Find each sample's nearest training row in Euclidean distance; a memorized row has distance exactly 0.

    samples: shape (N, D). train: shape (M, D). chunk: how many samples at a time, which bounds memory at chunk * M.
    """
    _check_pair(samples, train, "training rows")
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
