"""Figures of samples against torchmetrics, POT, closed forms, exact means and laws; wrong variants are rejected.

Statistical tests state their false-alarm rate; where a seed is drawn afresh it is in the failure's message.
"""

import math
import secrets

import numpy as np
import ot
import pytest
import torch
from scipy.stats import binom, mannwhitneyu

from unigen.divergences import gaussian_kernel, median_bandwidth, mmd_squared, wasserstein_2_normals
from unigen.evaluate.coverage import share_figure
from unigen.evaluate.neighbours import (
    expected_coverage,
    memorization,
    precision_recall_density_coverage,
    save_neighbours,
)
from unigen.evaluate.sample_figures import SampleFigure, jackknife, matched
from unigen.evaluate.scores import (
    exact_wasserstein,
    frechet_inception_distance,
    inception_score,
    kernel_inception_distance,
    maximum_mean_discrepancy,
    sliced_wasserstein,
)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def skewed(seed: int, n: int, dimension: int = 12) -> torch.Tensor:
    """Rows like a network's features: positive, correlated, of unequal scale."""
    mix = normal(77, dimension, dimension) / math.sqrt(dimension)
    return (normal(seed, n, dimension) @ mix * torch.linspace(0.3, 3, dimension) + 0.3).relu()


@pytest.fixture(autouse=True)
def global_stream_is_untouched():
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())


DISTANCES = [
    frechet_inception_distance,
    kernel_inception_distance,
    maximum_mean_discrepancy,
    sliced_wasserstein,
    exact_wasserstein,
    lambda x, y, **more: precision_recall_density_coverage(x, y, **more)["density"],
    lambda x, y, **more: memorization(x, y, normal(5, 50, 12), **more),
]


# ---- what every figure has ----


@pytest.mark.parametrize("distance", DISTANCES)
def test_every_figure_carries_its_numbers_of_rows_and_refuses_unequal_ones(distance):
    x, y = skewed(1, 60), skewed(2, 50) + 0.1
    with pytest.raises(ValueError, match="60 rows of data and 50 samples, which are compared in equal numbers only"):
        distance(x, y)
    thinned = distance(x, y, subsample=3)
    assert (thinned.n_real, thinned.n_fake, thinned.n) == (50, 50, 50)
    chosen = torch.randperm(60, generator=torch.Generator().manual_seed(3))[:50]
    same = distance(x[chosen], y)
    assert thinned == same and thinned != distance(x[:50], y)
    low, high = same.interval
    assert low <= same.value <= high and same.standard_error > 0
    assert "n_real = 50, n_fake = 50" in str(same)
    assert same.as_json()["n_real"] == 50
    damaged = y.clone()
    damaged[3, 0] = math.nan
    with pytest.raises(ValueError, match="1 of 50 rows of samples are not finite"):
        distance(x[:50], damaged)
    with pytest.raises(ValueError, match=r"\(50, 12\) and \(50, 11\)"):
        distance(x[:50], y[:, :11])


def test_matched_thins_either_side():
    x, y = normal(1, 5, 2), normal(2, 9, 2)
    for one, other in ((x, y), (y, x)):
        thinned = matched(one, other, subsample=0)
        assert len(thinned[0]) == len(thinned[1]) == 5
        longer = thinned[0] if one is y else thinned[1]
        assert {tuple(row) for row in longer.tolist()} < {tuple(row) for row in y.tolist()}
    with pytest.raises(ValueError, match="At least 2 rows of data"):
        matched(x[:1], x)


# ---- the same figures from torchmetrics, on the same features ----


class Rows(torch.nn.Module):
    """A feature extractor that gives its input back."""

    num_features = 12

    def forward(self, x):
        return x


@pytest.mark.filterwarnings("ignore")
def test_fid_is_that_of_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid")
    x, y = skewed(1, 400), skewed(2, 400) * 1.2 + 0.2
    theirs = fid.FrechetInceptionDistance(feature=Rows(), input_img_size=(12,)).set_dtype(torch.float64)
    theirs.update(x, real=True)
    theirs.update(y, real=False)
    expected = theirs.compute().item()
    ours = frechet_inception_distance(x, y)
    assert ours.value == pytest.approx(expected, rel=1e-8)
    # the divisor n in the covariances is a different number, far beyond the tolerance
    moments = [part for rows in (x, y) for part in (rows.mean(0), rows.T.cov(correction=0))]
    assert wasserstein_2_normals(*moments).item() ** 2 != pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_kid_is_that_of_torchmetrics():
    kid = pytest.importorskip("torchmetrics.image.kid")
    x, y = skewed(1, 300), skewed(2, 300) * 1.2 + 0.2
    theirs = kid.KernelInceptionDistance(feature=Rows(), subsets=1, subset_size=300, normalize=True)
    theirs.real_features, theirs.fake_features = [x], [y]
    with torch.random.fork_rng():
        expected = theirs.compute()[0].item()
    ours = kernel_inception_distance(x, y, permutations=None)
    assert ours.value == pytest.approx(expected, rel=1e-6)
    assert ours.value == pytest.approx(kid.poly_mmd(x, y).item(), rel=1e-12)
    with_diagonal = kid.poly_kernel(x, x).mean() + kid.poly_kernel(y, y).mean() - 2 * kid.poly_kernel(x, y).mean()
    assert with_diagonal.item() != pytest.approx(expected, rel=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_inception_score_is_that_of_torchmetrics():
    inception = pytest.importorskip("torchmetrics.image.inception")
    logits = 2 * normal(3, 500, 10)
    theirs = inception.InceptionScore(feature=Rows(), normalize=True, splits=1)
    theirs.features = [logits]
    with torch.random.fork_rng():
        expected = theirs.compute()[0].item()
    assert inception_score(logits.log_softmax(-1)).value == pytest.approx(expected, rel=1e-6)


def test_inception_score_at_the_extremes():
    certain = torch.eye(4, dtype=torch.float64).repeat(25, 1).log()
    assert inception_score(certain).value == pytest.approx(4.0, abs=1e-12)
    assert inception_score(certain[::4]).value == pytest.approx(1.0, abs=1e-12)  # one class only
    assert inception_score(torch.full((100, 4), -math.log(4.0))).value == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(ValueError, match="sum to one"):
        inception_score(normal(1, 20, 4))


# ---- transport ----


@pytest.mark.parametrize("order", [1, 2])
def test_sliced_wasserstein_is_that_of_pot(order):
    x, y = normal(1, 80, 3), normal(2, 80, 3) * 1.3 + 0.5
    u = torch.randn(3, 60, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    expected = ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), projections=(u / u.norm(dim=0)).numpy(), p=order)
    ours = sliced_wasserstein(x, y, order, directions=60, seed=4, groups=None)
    assert ours.value == pytest.approx(float(expected), rel=1e-12)


def test_wasserstein_of_a_shift_is_the_shift():
    x = normal(1, 60, 3)
    shift = torch.tensor([3.0, 4.0, 0.0], dtype=torch.float64)
    for order in (1, 2):
        assert exact_wasserstein(x, x + shift, order, groups=None).value == pytest.approx(5.0, abs=1e-9)
    # sliced: E |u . shift| = |shift| E|u_1| = 5 / 2 in three dimensions, where u_1 is uniform on [-1, 1];
    # its standard deviation over directions is 5 / sqrt(12), so five standard errors fail one time in 1.7 million
    sliced = sliced_wasserstein(x, x + shift, directions=4000, groups=None, seed=secrets.randbits(31)).value
    assert abs(sliced - 2.5) < 5 * 5 / math.sqrt(12 * 4000)


# ---- kernels ----


@pytest.mark.parametrize("groups", [None, 2, 7])
def test_mmd_in_groups_is_the_u_statistic_of_all_rows(groups):
    x, y = skewed(1, 53), skewed(2, 53) + 0.1
    kernel = gaussian_kernel([factor * median_bandwidth(x) for factor in (0.5, 1, 2)])
    ours = maximum_mean_discrepancy(x, y, groups=groups, permutations=None)
    assert ours.value == pytest.approx(mmd_squared(x, y, kernel).item(), abs=1e-14)
    if groups is not None:  # the one pass gives what leaving groups out one by one gives
        _, error = jackknife(lambda a, b: mmd_squared(a, b, kernel), x, y, groups=groups)
        assert ours.standard_error == pytest.approx(error.item(), rel=1e-9)


def test_permutation_tests_keep_their_level():
    # With 19 permutations p <= 0.05 has probability 1/20 under one law, exactly as the law is continuous.
    seed, runs = secrets.randbits(31), 300
    print(f"seed {seed}")
    for distance, expected in ((maximum_mean_discrepancy, 0.05), (kernel_inception_distance, 0.05)):
        rejected = 0
        for run in range(runs):
            x, y = normal(seed + 2 * run, 12, 2), normal(seed + 2 * run + 1, 12, 2)
            rejected += distance(x, y, permutations=19, groups=None, seed=run).p_value <= 0.05
        # a false alarm on either side in 2e-6 of the runs
        low, high = binom.ppf([1e-6, 1 - 1e-6], runs, expected)
        assert low <= rejected <= high, f"{distance.__name__}: {rejected} of {runs}, seed {seed}"
        assert maximum_mean_discrepancy(x, y + 3, permutations=99, groups=None).p_value == 0.01


def test_a_kernel_that_knows_the_sides_breaks_the_level():
    # The planted fault: a kernel fitted to the data, so that no permutation can be as extreme as what was observed.
    for run in range(50):
        x, y = normal(run, 12, 2), normal(1000 + run, 12, 2)

        def knowing(a, b, x=x):
            inside = [torch.isin(rows[:, 0], x[:, 0]).double() for rows in (a, b)]
            return inside[0][:, None] * inside[1]

        assert maximum_mean_discrepancy(x, y, knowing, permutations=19, groups=None).p_value == 0.05


def test_a_difference_is_found():
    x, y = skewed(1, 200), skewed(2, 200)
    assert kernel_inception_distance(x, y * 1.3, permutations=199).p_value == 1 / 200
    far, near = maximum_mean_discrepancy(x, y * 1.5), maximum_mean_discrepancy(x, y * 1.3)
    assert far.value > near.value > 0 and far.p_value == near.p_value == 1 / 201
    assert near.interval[0] > 0


# ---- the error ----


def unequal(seed: int, n: int, shift: float) -> tuple[torch.Tensor, torch.Tensor]:
    return normal(2 * seed, n, 2), normal(2 * seed + 1, n, 2) * (1 + shift) + shift


@pytest.mark.parametrize("shift", [0.0, 0.5])
@pytest.mark.parametrize("name", ["fid", "mmd", "sliced", "coverage", "score"])
def test_the_jackknife_is_not_too_small(name, shift):
    statistic = {
        "fid": frechet_inception_distance,
        "mmd": lambda x, y: maximum_mean_discrepancy(x, y, gaussian_kernel(1.0), permutations=None),
        "sliced": lambda x, y: sliced_wasserstein(x, y, directions=20),
        "coverage": lambda x, y: precision_recall_density_coverage(x, y)["coverage"],
        "score": lambda x, y: inception_score((x @ y.new_ones(2, 3).cumsum(1)).log_softmax(-1)),
    }[name]
    seed, runs = secrets.randbits(30), 200
    found = [statistic(*unequal(seed + run, 100, shift)) for run in range(runs)]
    truth = torch.tensor([one.value for one in found]).var().item()
    estimated = torch.tensor([one.standard_error**2 for one in found]).mean().item()
    # 199 truth / sigma^2 is about chi-square with 199 degrees of freedom, above 1.65 * 199 with probability 1e-8; the mean of
    # 200 jackknife variances of 10 groups has a relative deviation near 0.04. Half the variance would be rejected at 0.5 < 0.6.
    assert estimated > 0.6 * truth, f"{name}: {estimated:.3g} for {truth:.3g}, seed {seed}"
    if shift and name != "coverage":  # and where the statistic is smooth it is not much too large
        assert estimated < 1.8 * truth, f"{name}: {estimated:.3g} for {truth:.3g}, seed {seed}"


def test_the_jackknife_of_a_mean_is_the_classical_error():
    x = normal(1, 60, 1)
    value, error = jackknife(lambda rows: rows.mean(), x, groups=60 // 2)
    means = x[torch.randperm(60, generator=torch.Generator().manual_seed(0))].reshape(30, 2).mean(1)
    assert value == x.mean() and error.item() == pytest.approx((means.std() / math.sqrt(30)).item(), rel=1e-9)
    with pytest.raises(ValueError, match="2 to 30 groups of 60 rows, but got groups=31"):
        jackknife(lambda rows: rows.mean(), x, groups=31)


# ---- the bias of FID ----


def relu_moments(mean: float, covariance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute mean and covariance of relu(x), x normal, exactly: by Mehler's series in normalized Hermite polynomials.

    relu(m + s u) = sum_k c_k h_k(u) and E h_j(u) h_k(v) = 1[j = k] r^k for a correlation r.
    """
    s = covariance.diagonal().sqrt()
    a = mean / s
    density, below = torch.exp(-(a**2) / 2) / math.sqrt(2 * math.pi), torch.special.ndtr(a)
    coefficients, hermite = [s * below], [torch.ones_like(a), -a]
    for k in range(2, 26):
        coefficients.append(s * density * hermite[k - 2] / math.sqrt(math.factorial(k)))
        hermite.append(-a * hermite[-1] - (len(hermite) - 1) * hermite[-2])
    first = mean * below + s * density
    correlation = covariance / s / s[:, None]
    second = sum(c * c[:, None] * correlation ** (k + 1) for k, c in enumerate(coefficients))
    second.diagonal().copy_((mean**2 + s**2) * below + mean * s * density - first**2)
    return first, second


def models(dimension: int) -> tuple[tuple, list, list[float]]:
    """Return the data's moments, the models' laws before relu, and the models' true FID.

    Data relu N(1, I); models relu N(0, I) and relu N(1, 0.8 S + 0.2 I), S = 4/d C C'.
    """
    unit = torch.eye(dimension, dtype=torch.float64)
    c = normal(0, dimension, dimension)
    data = relu_moments(1.0, unit)
    laws = [(0.0, unit), (1.0, 0.8 * 4 / dimension * c @ c.T + 0.2 * unit)]
    return data, laws, [wasserstein_2_normals(*relu_moments(*law), *data).item() ** 2 for law in laws]


def relu_rows(seed: int, n: int, mean: float, covariance: torch.Tensor) -> torch.Tensor:
    return (mean + normal(seed, n, len(covariance)) @ torch.linalg.cholesky(covariance).T).relu()


def test_relu_moments_are_those_of_samples():
    covariance = torch.tensor([[1.5, 0.9], [0.9, 2.0]], dtype=torch.float64)
    mean, spread = relu_moments(1.0, covariance)
    rows = (1 + normal(1, 400_000, 2) @ torch.linalg.cholesky(covariance).T).relu()
    assert (rows.mean(0) - mean).abs().max() < 5 * 1.5 / math.sqrt(400_000)
    assert (rows.T.cov() - spread).abs().max() < 0.02


def test_fid_misorders_two_models():
    _, laws, truths = models(512)
    real = relu_rows(1, 4096, 1.0, torch.eye(512, dtype=torch.float64))
    estimates = [
        frechet_inception_distance(real, relu_rows(seed, 4096, *law), groups=None).value
        for seed, law in enumerate(laws, 2)
    ]
    assert truths[0] > truths[1] + 1.5
    assert estimates[0] < estimates[1] - 3
    # and both by their bias, which is upwards
    assert all(estimate > truth for estimate, truth in zip(estimates, truths, strict=True))


@pytest.mark.slow
def test_fid_misorders_two_models_as_published():
    # Binkowski et al. (2018): 2048 dimensions, 50,000 samples against the data's own moments, for a matrix C of
    # theirs; their deviations over draws are 0.2 and 0.5, and the second truth differs a little with C.
    data, laws, truths = models(2048)
    assert truths[0] == pytest.approx(1123.0, abs=0.05) and truths[1] == pytest.approx(1114.8, abs=2)
    estimates = []
    for seed, law in enumerate(laws, 2):
        rows = relu_rows(seed, 50_000, *law)
        estimates.append(wasserstein_2_normals(rows.mean(0), rows.T.cov(), *data).item() ** 2)
    assert estimates[0] == pytest.approx(1133.7, abs=5 * 0.2), estimates
    assert estimates[1] - truths[1] == pytest.approx(1136.2 - 1114.8, abs=5 * 0.5), estimates
    assert estimates[0] < estimates[1]


def test_fid_of_few_rows_warns():
    assert "12 rows of 12 features" in frechet_inception_distance(skewed(1, 12), skewed(2, 12), groups=2).warning
    assert frechet_inception_distance(skewed(1, 40), skewed(2, 40)).warning == ""


# ---- neighbours ----


def by_loops(real: list, fake: list, k: int) -> dict[str, float]:
    def radius(rows, i):
        return sorted(math.dist(rows[i], other) for j, other in enumerate(rows) if j != i)[k - 1]

    around_real = [radius(real, i) for i in range(len(real))]
    around_fake = [radius(fake, i) for i in range(len(fake))]
    inside = [[math.dist(x, y) <= around_real[i] for y in fake] for i, x in enumerate(real)]
    columns = list(zip(*inside, strict=True))
    return {
        "precision": sum(map(any, columns)) / len(fake),
        "recall": sum(any(math.dist(x, y) <= around_fake[j] for j, y in enumerate(fake)) for x in real) / len(real),
        "density": sum(map(sum, inside)) / (k * len(fake)),
        "coverage": sum(map(any, inside)) / len(real),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_to_coverage_are_the_double_loops(k):
    x, y = normal(1, 40, 2), normal(2, 40, 2) * 0.7 + 0.3
    ours = precision_recall_density_coverage(x, y, k, groups=4)
    expected = by_loops(x.tolist(), y.tolist(), k)
    assert {name: one.value for name, one in ours.items()} == pytest.approx(expected, abs=1e-12)
    assert by_loops(x.tolist(), y.tolist(), k + 1) != pytest.approx(expected, abs=1e-3)
    assert (
        expected["precision"] > expected["recall"] and expected["density"] != expected["coverage"]
    )  # none for another


def test_equal_distances_of_bits_are_equal_whatever_the_order_of_the_columns():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.bernoulli(torch.linspace(0.02, 0.98, 64).expand(150, 64), generator=generator) for _ in range(2))

    def apart(a, b):  # whole numbers
        return (a[:, None].long() - b[None].long()).abs().sum(-1)

    k, distances = 5, apart(x, y)
    inside = distances <= apart(x, x).kthvalue(k + 1).values[:, None]
    expected = {
        "precision": inside.any(0).double().mean().item(),
        "recall": (distances <= apart(y, y).kthvalue(k + 1).values).any(1).double().mean().item(),
        "density": inside.double().sum(0).mean().item() / k,
        "coverage": inside.any(1).double().mean().item(),
    }
    for columns in (torch.arange(64), torch.arange(64).flip(0), torch.randperm(64, generator=generator)):
        for unit in (1.0, 1 / 255):
            found = precision_recall_density_coverage(unit * x[:, columns], unit * y[:, columns], k, groups=None)
            assert {name: one.value for name, one in found.items()} == pytest.approx(expected, abs=1e-12)
    assert "more where distances tie" in found["density"].how and found["density"].value > 1.1


def test_density_and_coverage_have_their_exact_means():
    seed, runs, n = secrets.randbits(30), 300, 40
    values = []
    for run in range(runs):
        found = precision_recall_density_coverage(
            skewed(seed + 2 * run, n, 3), skewed(seed + 2 * run + 1, n, 3), groups=None
        )
        values.append([found["density"].value, found["coverage"].value])
    means, errors = torch.tensor(values).mean(0), torch.tensor(values).std(0) / math.sqrt(runs)
    truths = torch.tensor([1.0, expected_coverage(n)])
    assert ((means - truths).abs() < 5.5 * errors).all(), f"{means} for {truths}, seed {seed}"  # false alarm 1e-7
    # the errors tell k from k - 1, and the exact mean from its limit 1 - 2^-k
    assert abs(means[1] - expected_coverage(n, 4)) > 5.5 * errors[1]


def test_an_outlier_of_the_data_makes_precision_generous_but_not_density():
    x, y = normal(1, 200, 2), normal(2, 200, 2) + 8
    apart = precision_recall_density_coverage(x, y)
    outlier = precision_recall_density_coverage(torch.cat([x[:-1], x.new_tensor([[40.0, 40.0]])]), y)
    assert apart["precision"].value == 0 and outlier["precision"].value == 1
    assert outlier["density"].value == pytest.approx(1 / 5, abs=1e-12)  # one ball of k = 5


def test_collapse_keeps_precision_and_loses_recall_and_coverage():
    x = normal(1, 300, 2)
    y = 0.05 * normal(2, 300, 2)
    found = precision_recall_density_coverage(x, y)
    assert found["precision"].value > 0.9 and found["recall"].value < 0.05 and found["coverage"].value < 0.2


@pytest.mark.slow
def test_the_published_table_of_the_standard_normal():
    # Naeem et al. (2020): N(0, I) against itself, 1000 dimensions, 10,000 rows, k = 5. One draw each, theirs and ours, apart by
    # the deviations that ten draws of 2500 rows show, which are larger.
    small = torch.tensor(
        [[one.value for one in _table(2500, seed).values()] for seed in range(10)], dtype=torch.float64
    )
    ours = torch.tensor([one.value for one in _table(10_000, 100).values()], dtype=torch.float64)
    published = torch.tensor([0.4772, 0.4705, 1.0555, 0.9735], dtype=torch.float64)
    assert ((ours - published).abs() < 4 * math.sqrt(2) * small.std(0)).all(), ours


def _table(n: int, seed: int) -> dict[str, SampleFigure]:
    return precision_recall_density_coverage(normal(2 * seed, n, 1000), normal(2 * seed + 1, n, 1000), groups=None)


def test_a_full_share_still_has_an_interval():
    x = normal(1, 50, 2)
    found = precision_recall_density_coverage(x, x)["coverage"]  # a closed ball holds its own centre
    assert (found.value, found.standard_error, found.interval[1]) == (1.0, 0.0, 1.0)
    assert found.interval[0] == pytest.approx(share_figure("", 50, 50, "").interval[0]) and found.interval[0] < 0.95


def test_neighbours_refusals():
    x = normal(1, 20, 2)
    with pytest.raises(ValueError, match="neighbours from 1 to 17, but got 18"):
        precision_recall_density_coverage(x, x + 1, 18)
    with pytest.raises(ValueError, match="got 0"):
        precision_recall_density_coverage(x, x + 1, 0)


# ---- memorization ----


def test_memorization_is_the_mann_whitney_test():
    train, real, fake = normal(1, 100, 3), normal(2, 40, 3), normal(3, 40, 3) * 0.8
    fake[:10] = train[:10]  # ties at distance zero
    ours = memorization(real, fake, train)
    near_fake, near_real = (torch.cdist(rows, train).min(1).values for rows in (fake, real))
    near_fake[:10] = 0.0
    theirs = mannwhitneyu(near_fake, near_real, alternative="less", method="asymptotic", use_continuity=False)
    assert ours.value == pytest.approx(1 - theirs.statistic / 1600, abs=1e-12)
    assert ours.p_value == pytest.approx(theirs.pvalue, rel=1e-9)
    assert "10 exact copies" in ours.how


def test_memorization_tells_copies_from_fresh_rows():
    train, real = normal(1, 300, 3), normal(2, 200, 3)
    copies = memorization(real, train[:200] + 1e-3 * normal(3, 200, 3), train)
    assert copies.value > 0.99 and copies.p_value < 1e-10
    rejected = sum(
        memorization(normal(50 + run, 30, 3), normal(500 + run, 30, 3), train).p_value < 0.05 for run in range(300)
    )
    assert binom.ppf(1e-6, 300, 0.05) <= rejected <= binom.ppf(1 - 1e-6, 300, 0.05)  # false alarm 2e-6


def test_the_picture_of_neighbours(tmp_path):
    from PIL import Image

    train = torch.rand(30, 784, generator=torch.Generator().manual_seed(1))
    fake = torch.rand(12, 784, generator=torch.Generator().manual_seed(2))
    fake[11] = train[7]
    save_neighbours(tmp_path / "neighbours.png", fake, train, (1, 28, 28), columns=5)
    with Image.open(tmp_path / "neighbours.png") as opened:
        grey = opened.convert("L")
    picture = (torch.from_numpy(np.array(grey)).float() / 255)[None]
    assert picture.shape[1:] == (4 * 30 + 2, 5 * 30 + 2)
    cells = [[picture[0, 30 * r + 2 : 30 * r + 30, 30 * c + 2 : 30 * c + 30] for c in range(5)] for r in range(4)]
    for cell, row in ((cells[0][0], fake[0]), (cells[2][0], fake[11]), (cells[3][0], train[7])):
        assert (cell.flatten() - row).abs().max() < 1 / 255
