"""One evaluator for every routine: likelihood, samples, and what a pair makes."""

from unigen.evaluate.dreams import Samples, reconstruct, sample
from unigen.evaluate.likelihood import LogLikelihood, log_likelihood
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

__all__ = [
    "Classifier",
    "Coverage",
    "LogLikelihood",
    "MixtureMetrics",
    "NearestRows",
    "SampleDistance",
    "Samples",
    "class_coverage",
    "log_likelihood",
    "mixture_metrics",
    "nearest_rows",
    "reconstruct",
    "sample",
    "sample_distance",
    "train_classifier",
]
