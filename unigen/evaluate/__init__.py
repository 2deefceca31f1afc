"""One evaluator for every routine: likelihood, samples, and what a pair makes."""

from unigen.evaluate.coverage import labelled_coverage, mixture_coverage
from unigen.evaluate.dreams import Samples, reconstruct, sample
from unigen.evaluate.features import Features, LeNet, features_of, lenet, principal_components
from unigen.evaluate.likelihood import LogLikelihood, log_likelihood
from unigen.evaluate.neighbours import (
    expected_coverage,
    memorization,
    precision_recall_density_coverage,
    save_neighbours,
)
from unigen.evaluate.sample_figures import SampleFigure, jackknife
from unigen.evaluate.sample_metrics import sample_metrics
from unigen.evaluate.samples import (
    Classifier,
    Coverage,
    MixtureMetrics,
    NearestRows,
    SampleDistance,
    class_coverage,
    mixture_metrics,
    nearest_rows,
    sample_distance,
    train_classifier,
)
from unigen.evaluate.scores import (
    exact_wasserstein,
    frechet_inception_distance,
    inception_score,
    kernel_inception_distance,
    maximum_mean_discrepancy,
    sliced_wasserstein,
)

__all__ = [
    "Classifier",
    "Coverage",
    "Features",
    "LeNet",
    "LogLikelihood",
    "MixtureMetrics",
    "NearestRows",
    "SampleDistance",
    "SampleFigure",
    "Samples",
    "class_coverage",
    "exact_wasserstein",
    "expected_coverage",
    "features_of",
    "frechet_inception_distance",
    "inception_score",
    "jackknife",
    "kernel_inception_distance",
    "labelled_coverage",
    "lenet",
    "log_likelihood",
    "maximum_mean_discrepancy",
    "memorization",
    "mixture_coverage",
    "mixture_metrics",
    "nearest_rows",
    "precision_recall_density_coverage",
    "principal_components",
    "reconstruct",
    "sample",
    "sample_distance",
    "sample_metrics",
    "save_neighbours",
    "sliced_wasserstein",
    "train_classifier",
]
