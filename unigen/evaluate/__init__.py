"""One evaluator for every routine: likelihood, samples, and what a pair makes."""

from unigen.evaluate.annealing import Annealing, annealed_log_likelihood, bidirectional_monte_carlo
from unigen.evaluate.boltzmann import boltzmann_log_likelihood, log_partition
from unigen.evaluate.calibration import Calibration, simulation_based_calibration
from unigen.evaluate.classifier import Classifier, train_classifier
from unigen.evaluate.coverage import MixtureMetrics, labelled_coverage, mixture_coverage, mixture_metrics
from unigen.evaluate.dreams import Samples, reconstruct, sample
from unigen.evaluate.examination import Examination, Protocol, evaluate
from unigen.evaluate.features import Features, LeNet, features_of, lenet, principal_components
from unigen.evaluate.figure import Figure, Refusal, Refused
from unigen.evaluate.likelihood import (
    importance_weighted_curve,
    importance_weighted_sandwich,
    log_importance_weights,
    log_likelihood,
)
from unigen.evaluate.neighbours import (
    NearestRows,
    expected_coverage,
    memorization,
    nearest_rows,
    precision_recall_density_coverage,
    save_neighbours,
)
from unigen.evaluate.observation import gaussian_observation_log_likelihood, kernel_density_estimate
from unigen.evaluate.pareto import k_hat_figures, pareto_k_hat
from unigen.evaluate.posterior import active_units, against_nuts, against_reference, guide_draws, posterior_gap
from unigen.evaluate.rank_plot import save_ranks
from unigen.evaluate.sample_figures import SampleFigure, jackknife
from unigen.evaluate.sample_metrics import sample_metrics
from unigen.evaluate.scores import (
    exact_wasserstein,
    frechet_inception_distance,
    inception_score,
    kernel_inception_distance,
    maximum_mean_discrepancy,
    sliced_wasserstein,
)

__all__ = [
    "Annealing",
    "Calibration",
    "Classifier",
    "Examination",
    "Features",
    "Figure",
    "LeNet",
    "MixtureMetrics",
    "NearestRows",
    "Protocol",
    "Refusal",
    "Refused",
    "SampleFigure",
    "Samples",
    "active_units",
    "against_nuts",
    "against_reference",
    "annealed_log_likelihood",
    "bidirectional_monte_carlo",
    "boltzmann_log_likelihood",
    "evaluate",
    "exact_wasserstein",
    "expected_coverage",
    "features_of",
    "frechet_inception_distance",
    "gaussian_observation_log_likelihood",
    "guide_draws",
    "importance_weighted_curve",
    "importance_weighted_sandwich",
    "inception_score",
    "jackknife",
    "k_hat_figures",
    "kernel_density_estimate",
    "kernel_inception_distance",
    "labelled_coverage",
    "lenet",
    "log_importance_weights",
    "log_likelihood",
    "log_partition",
    "maximum_mean_discrepancy",
    "memorization",
    "mixture_coverage",
    "mixture_metrics",
    "nearest_rows",
    "pareto_k_hat",
    "posterior_gap",
    "precision_recall_density_coverage",
    "principal_components",
    "reconstruct",
    "sample",
    "sample_metrics",
    "save_neighbours",
    "save_ranks",
    "simulation_based_calibration",
    "sliced_wasserstein",
    "train_classifier",
]
