"""One evaluator for every routine: so far, of samples (`samples`)."""

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
    "MixtureMetrics",
    "NearestRows",
    "SampleDistance",
    "class_coverage",
    "mixture_metrics",
    "nearest_rows",
    "sample_distance",
    "train_classifier",
]
