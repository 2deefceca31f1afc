"""Divergences between distributions: tables, f-divergences, kernels, transport, estimates and variational bounds.

* `discrete`: information content, entropies, mutual information, KL and JS of probability tables.
* `family`: the f-divergences E_Q[f(p/q)] with their conjugates, activations and optimal critics.
* `kernels`: MMD^2 and the energy distance between samples, without bias, and the permutation test.
* `transport`: Wasserstein distances on the line, exactly in any dimension, their duals, and between normals.
* `estimates`: the same between torch's and Pyro's distributions, closed or estimated with a standard error.
* `bounds`: lower bounds from a critic's values.

Logarithms are natural unless a `base` says otherwise.
"""

from unigen.divergences.bounds import (
    donsker_varadhan_bound,
    f_divergence_bound,
    info_nce_bound,
)
from unigen.divergences.discrete import (
    conditional_entropy,
    cross_entropy,
    entropy,
    information_content,
    jensen_shannon_divergence,
    kullback_leibler_divergence,
    mutual_information,
)
from unigen.divergences.estimates import (
    Estimate,
    block_estimate,
    cross_entropy_between,
    entropy_of,
    f_divergence_between,
    jensen_shannon_between,
    kullback_leibler_between,
)
from unigen.divergences.family import (
    FDivergence,
    f_divergence,
    f_divergences,
    gan,
    jeffreys,
    jensen_shannon,
    kullback_leibler,
    neyman,
    pearson,
    reverse_kullback_leibler,
    squared_hellinger,
)
from unigen.divergences.kernels import (
    GaussianKernel,
    Kernel,
    PolynomialKernel,
    energy_distance,
    energy_kernel,
    gaussian_kernel,
    median_bandwidth,
    mmd_squared,
    permutation_test,
    polynomial_kernel,
)
from unigen.divergences.transport import (
    Transport,
    optimal_transport,
    wasserstein,
    wasserstein_1,
    wasserstein_1_critic,
    wasserstein_2_normals,
)

__all__ = [
    "Estimate",
    "FDivergence",
    "GaussianKernel",
    "Kernel",
    "PolynomialKernel",
    "Transport",
    "block_estimate",
    "conditional_entropy",
    "cross_entropy",
    "cross_entropy_between",
    "donsker_varadhan_bound",
    "energy_distance",
    "energy_kernel",
    "entropy",
    "entropy_of",
    "f_divergence",
    "f_divergence_between",
    "f_divergence_bound",
    "f_divergences",
    "gan",
    "gaussian_kernel",
    "info_nce_bound",
    "information_content",
    "jeffreys",
    "jensen_shannon",
    "jensen_shannon_between",
    "jensen_shannon_divergence",
    "kullback_leibler",
    "kullback_leibler_between",
    "kullback_leibler_divergence",
    "median_bandwidth",
    "mmd_squared",
    "mutual_information",
    "neyman",
    "optimal_transport",
    "pearson",
    "permutation_test",
    "polynomial_kernel",
    "reverse_kullback_leibler",
    "squared_hellinger",
    "wasserstein",
    "wasserstein_1",
    "wasserstein_1_critic",
    "wasserstein_2_normals",
]
