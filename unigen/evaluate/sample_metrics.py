"""The examination that samples of every model are given: each figure of samples that a dataset permits, in one order."""

import importlib.util
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unigen.data import Dataset
from unigen.evaluate.classifier import Predictor
from unigen.evaluate.coverage import labelled_coverage, mixture_coverage
from unigen.evaluate.features import Features, features_of
from unigen.evaluate.neighbours import memorization, precision_recall_density_coverage
from unigen.evaluate.sample_figures import GROUPS, SampleFigure
from unigen.evaluate.scores import (
    exact_wasserstein,
    frechet_inception_distance,
    inception_score,
    kernel_inception_distance,
    maximum_mean_discrepancy,
    sliced_wasserstein,
)

__all__ = ["leading_distance", "sample_metrics"]

LENET_CLASSES = 10
QUICK_ROWS = 1000  # of distances between rows, whose cost is quadratic
MOST_FOR_EXACT_TRANSPORT = 1000  # the network simplex takes about n^3 operations for each group of the jackknife


@torch.no_grad()
def sample_metrics(
    dataset: Dataset,
    fake: Tensor,
    features: Features | None = None,
    classifier: Predictor | None = None,
    *,
    permutations: int | None = 200,
    groups: int | None = GROUPS,
    quick: bool = False,
    seed: int = 0,
) -> dict[str, SampleFigure]:
    """Compute every figure of samples that a dataset permits, by name, against as many of its test rows, drawn by ``seed``.

    fake: samples (n, D), in the units of the test rows. features: by default `features_of(dataset)`. classifier: of the dataset's
    labels, by default that of the features. permutations, groups: of tests and of the jackknife, None for none. quick: without
    the exact Wasserstein distance and memorization, which take longer than the rest, and distances of the first 1000 samples.
    Distances are of features, memorization of the rows themselves. The exact Wasserstein distance needs n <= 1000 and POT; the
    inception score and the classes need a classifier, the modes a dataset whose density is a mixture.
    Raises ValueError for more samples than test rows, or samples that are not finite.
    """
    n = len(fake)
    if n > len(dataset.test):
        raise ValueError(f"Got {n} samples but only {len(dataset.test)} test rows; draw at most as many samples.")
    features = features or features_of(dataset)
    compared = fake[:QUICK_ROWS] if quick else fake
    drawn = torch.randperm(len(dataset.test), generator=torch.Generator().manual_seed(seed))[: len(compared)]
    real = dataset.test[drawn].to(fake)  # not the first rows: the order of MNIST's follows the writers
    x, y, said = features(real), features(compared), features.name
    plain = "pixels" if len(dataset.shape) == 3 else "coordinates"
    named: dict[str, Any] = {"features": said, "groups": groups, "seed": seed}
    tested = named | {"permutations": permutations}
    found = {
        "fid": frechet_inception_distance(x, y, **named),
        "kid": kernel_inception_distance(x, y, **tested),
        "mmd": maximum_mean_discrepancy(x, y, **tested),
        **precision_recall_density_coverage(x, y, **named),
        "sliced_wasserstein": sliced_wasserstein(x, y, **named),
    }
    if not quick and n <= MOST_FOR_EXACT_TRANSPORT and importlib.util.find_spec("ot"):
        found["wasserstein"] = exact_wasserstein(x, y, **named)
    if features.classifier is not None:
        found["inception_score"] = inception_score(features.classifier.log_probabilities(fake), **named)
        of_data = inception_score(features.classifier.log_probabilities(real), **named)
        of_data = replace(of_data, name="inception score of data", n_real=len(real), n_fake=0)
        found["inception_score_of_data"] = of_data
    classifier = classifier or features.classifier
    if classifier is not None:
        theirs = classifier is features.classifier
        by, classes = (said, LENET_CLASSES) if theirs else ("own classifier", _classes(dataset, classifier, fake))
        found |= labelled_coverage(fake, classifier, classes, features=by, groups=groups, seed=seed)
    means = getattr(dataset.density, "means", None)
    if means is not None:
        std: float = dataset.density.std  # type: ignore[union-attr]
        found |= mixture_coverage(fake, means.to(fake), std, groups=groups, seed=seed)
    if not quick:
        found["memorization"] = memorization(real, fake, dataset.train.to(fake), features=plain)
    return found


def _classes(dataset: Dataset, classifier: Predictor, fake: Tensor) -> int:
    """Return how many classes a dataset's labels have, or where it has none those that a classifier finds, in samples too."""
    known = [labels for labels in (dataset.train_labels, dataset.test_labels) if labels is not None and len(labels)]
    found = known or [classifier.predict(rows) for rows in (dataset.test.to(fake.device), fake)]
    return 1 + max(int(labels.max()) for labels in found)


@torch.no_grad()
def leading_distance(real: Tensor, fake: Tensor, features: Features) -> SampleFigure:
    """Compute the distance that learning curves show, unbiased however few the rows: KID of a network's features, else MMD^2.

    real, fake: as many rows of one as of the other, (n, D). The cubic kernel of KID hardly sees a difference of plain pixels.
    """
    x, y = features(real), features(fake)
    distance = maximum_mean_discrepancy if features.classifier is None else kernel_inception_distance
    return distance(x, y, features=features.name, permutations=None, groups=None)
