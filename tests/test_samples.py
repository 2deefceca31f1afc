"""The sample evaluator against constructed samples, hand counts, double loops and known laws."""

import dataclasses
import math

import pytest
import torch
from sklearn.datasets import load_digits

from unigen.divergences import energy_kernel, gaussian_kernel, median_bandwidth, mmd_squared, polynomial_kernel
from unigen.evaluate import (
    class_coverage,
    mixture_metrics,
    nearest_rows,
    sample_distance,
    train_classifier,
)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(autouse=True)
def global_stream_is_untouched():
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())


# ---- sample_distance ----


@pytest.mark.parametrize("kernel", ["gaussian", "cubic", energy_kernel])
def test_sample_distance_is_the_mean_over_disjoint_blocks(kernel):
    x, y = normal(0, 23, 3), normal(1, 23, 3) + 0.4
    got = sample_distance(x, y, kernel, blocks=5, seed=7)
    median = median_bandwidth(y)
    function = {"gaussian": gaussian_kernel((median / 2, median, 2 * median)), "cubic": polynomial_kernel(3)}.get(
        kernel, energy_kernel
    )
    stream = torch.Generator().manual_seed(7)
    orders = [torch.randperm(23, generator=stream) for _ in range(2)]
    values, start = [], 0
    for size in (5, 5, 5, 4, 4):
        rows = slice(start, start + size)
        values.append(mmd_squared(x[orders[0][rows]], y[orders[1][rows]], function).item())
        start += size
    mean = sum(values) / 5
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / 4)
    assert got.value == pytest.approx(mean, abs=1e-12)
    assert got.standard_error == pytest.approx(spread / math.sqrt(5), abs=1e-12)
    assert (got.n, got.kernel) == (23, kernel if isinstance(kernel, str) else "energy_kernel")
    assert got == sample_distance(x, y, kernel, blocks=5, seed=7) != sample_distance(x, y, kernel, blocks=5, seed=8)


def test_sample_distance_sees_features_only_through_the_function():
    x, y = normal(2, 40, 3), normal(3, 40, 3)
    through = sample_distance(x, y, "cubic", features=lambda rows: rows[:, :1] ** 2)
    assert through == sample_distance(x[:, :1] ** 2, y[:, :1] ** 2, "cubic")


def test_bandwidths_come_from_the_data_only():
    # Were the samples in the median, outliers among them would widen the kernel and shrink their own distance.
    data, near, far = normal(4, 60, 2), normal(5, 60, 2) + 50, normal(5, 60, 2) + 5000
    assert sample_distance(near, data).value == pytest.approx(sample_distance(far, data).value, abs=1e-6)


def test_standard_error_covers_the_truth():
    # Cubic kernel, D = 1, P = N(0, 1), Q = N(1, 1): (xy + 1)^3 = 1 + 3 xy + 3 x^2 y^2 + x^3 y^3, so that
    # MMD^2 = 3 (m1 - m1')^2 + 3 (m2 - m2')^2 + (m3 - m3')^2 = 3 + 3 + 16 with moments (0, 1, 0) and (1, 2, 4).
    inside = 0
    for seed in range(60):
        estimate = sample_distance(normal(100 + seed, 400, 1), normal(900 + seed, 400, 1) + 1, "cubic", blocks=20)
        inside += abs(estimate.value - 22.0) < 3 * estimate.standard_error
    # Student's t with 19 degrees gives 0.7 % outside; the skew of the blocks raises that to some 3 %: more than 10 of
    # 60 outside then has probability below 1e-5.
    assert inside >= 50


def test_sample_distance_refusals():
    x = normal(6, 20, 2)
    with pytest.raises(ValueError, match="19 samples and 20 rows of data"):
        sample_distance(x[:19], x)
    with pytest.raises(ValueError, match="11 blocks of 20 rows"):
        sample_distance(x, x, blocks=11)
    with pytest.raises(ValueError, match="no kernel 'linear'; expected 'gaussian', 'cubic'"):
        sample_distance(x, x, kernel="linear")
    with pytest.raises(ValueError, match=r"\(20, 1\) and \(20, 2\)"):
        sample_distance(x[:, :1], x)


# ---- the classifier ----


@pytest.fixture(scope="module")
def digits():
    images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    images = images.float() / 16
    test = torch.arange(len(images)) % 5 == 0
    return images[~test], labels[~test], images[test], labels[test]


@pytest.fixture(scope="module")
def digit_classifier(digits):
    return train_classifier(digits[0], digits[1], classes=10, seed=0)


def test_classifier_reads_digits(digits, digit_classifier):
    _, _, test, labels = digits
    accuracy = digit_classifier.accuracy(test, labels)
    assert accuracy >= 0.95
    assert accuracy == (digit_classifier.predict(test) == labels).sum().item() / len(labels)
    features = digit_classifier.features(test)
    assert features.shape == (len(test), 256) and (features >= 0).all()
    assert torch.equal(digit_classifier.output(features).argmax(-1), digit_classifier.predict(test))
    assert not any(parameter.requires_grad for parameter in digit_classifier.parameters())


def test_classifier_is_a_pure_function_of_its_seed(digits):
    x, labels = digits[0][:200], digits[1][:200]

    def weights(seed, ambient):
        with torch.random.fork_rng():
            torch.manual_seed(ambient)
            trained = train_classifier(x, labels, 10, seed, hidden=8, steps=20)
        return torch.cat([tensor.flatten() for tensor in trained.state_dict().values()])

    assert torch.equal(weights(0, 1), weights(0, 2))
    assert not torch.equal(weights(0, 1), weights(1, 1))


def test_classifier_ignores_the_scale_of_rows(digits):
    x, labels, test, test_labels = digits
    trained = train_classifier(255 * x + 1000, labels, 10, seed=1, steps=400)
    assert trained.accuracy(255 * test + 1000, test_labels) >= 0.95


def test_classifier_trains_inside_no_grad():
    x = torch.tensor([[-1.0], [1.0]])
    with torch.no_grad():
        trained = train_classifier(x, torch.tensor([0, 1]), 2, seed=0, hidden=16, steps=100, batch_size=8)
    assert trained.predict(torch.tensor([[-2.0], [2.0]], dtype=torch.float64)).tolist() == [0, 1]


def test_classifier_refuses_labels_outside_the_classes():
    with pytest.raises(ValueError, match="0..9, but got 0 to 10"):
        train_classifier(torch.zeros(2, 3), torch.tensor([0, 10]), 10, seed=0)
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(3,\)"):
        train_classifier(torch.zeros(2, 3), torch.zeros(3).long(), 10, seed=0)


# ---- class_coverage ----


class FirstColumn:
    """Classify a row by its first entry."""

    def predict(self, x):
        return x[:, 0].long()


def rows_of(*counts: int) -> torch.Tensor:
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))[:, None].double()


def test_coverage_by_hand():
    coverage = class_coverage(rows_of(50, 25, 25, 0), FirstColumn(), classes=4)
    assert coverage.fractions == (0.5, 0.25, 0.25, 0.0)
    assert (coverage.covered, coverage.classes, coverage.n) == (3, 4, 100)
    assert coverage.entropy == pytest.approx(1.5 * math.log(2), abs=1e-15)
    assert coverage.kullback_leibler == pytest.approx(0.5 * math.log(2), abs=1e-15)
    with pytest.raises(dataclasses.FrozenInstanceError):
        coverage.covered = 4


def test_a_class_is_covered_from_one_tenth_of_its_share():
    # Ten equal classes: one tenth of a tenth is exactly one sample of 100, and more than nine of 1000.
    assert class_coverage(rows_of(1, *[11] * 9), FirstColumn(), classes=10).covered == 10
    assert class_coverage(rows_of(9, 191, *[100] * 8), FirstColumn(), classes=10).covered == 9
    assert class_coverage(rows_of(9, 191, *[100] * 8), FirstColumn(), classes=10, least_ratio=0.09).covered == 10


def test_coverage_against_the_datas_histogram():
    labels = torch.tensor([0] * 9 + [1])
    same = class_coverage(rows_of(90, 10), FirstColumn(), 2, data_labels=labels)
    assert same.kullback_leibler == pytest.approx(0.0, abs=1e-15) and same.covered == 2
    # A class that the data lack is never covered, and makes the KL infinite.
    extra = class_coverage(rows_of(80, 10, 10), FirstColumn(), 3, data_labels=labels)
    assert extra.covered == 2 and extra.kullback_leibler == math.inf


def test_coverage_refusals():
    with pytest.raises(ValueError, match="0..1, but got 0 to 2"):
        class_coverage(rows_of(1, 1, 1), FirstColumn(), classes=2)
    with pytest.raises(ValueError, match="at least one sample"):
        class_coverage(torch.zeros(0, 1), FirstColumn(), classes=2)


# ---- mixture_metrics ----

GRID = torch.cartesian_prod(*[torch.arange(-4.0, 5.0, 2.0)] * 2)  # the 25 modes of the 2-D grid


def test_mixture_metrics_by_hand():
    std = 0.05
    near, far = torch.tensor([2.9 * std, 0.0]), torch.tensor([0.0, 3.1 * std])
    # Two of high quality at mode 0, one at mode 7, one outside at mode 7 and one outside at mode 9.
    samples = torch.stack([GRID[0], GRID[0] + near, GRID[7] - near, GRID[7] + far, GRID[9] - far])
    metrics = mixture_metrics(samples, GRID, std)
    assert (metrics.modes_captured, metrics.high_quality, metrics.modes, metrics.n) == (2, 0.6, 25, 5)
    expected = 2 / 3 * math.log(2 / 3 * 25) + 1 / 3 * math.log(1 / 3 * 25)
    assert metrics.reverse_kullback_leibler == pytest.approx(expected, abs=1e-12)
    assert mixture_metrics(samples, GRID, std, hq=3.2).modes_captured == 3


def test_mixture_metrics_at_the_extremes():
    even = mixture_metrics(GRID.repeat(4, 1), GRID, 0.05)
    assert (even.modes_captured, even.high_quality) == (25, 1.0)
    assert even.reverse_kullback_leibler == pytest.approx(0.0, abs=1e-14)
    collapsed = mixture_metrics(GRID[:1].repeat(9, 1), GRID, 0.05)
    assert (collapsed.modes_captured, collapsed.high_quality) == (1, 1.0)
    assert collapsed.reverse_kullback_leibler == pytest.approx(math.log(25), abs=1e-14)
    nowhere = mixture_metrics(GRID + 1, GRID, 0.05)
    assert (nowhere.modes_captured, nowhere.high_quality) == (0, 0.0)
    assert nowhere.reverse_kullback_leibler == math.inf


def test_mixture_metrics_on_the_mixture_itself():
    n, std = 20_000, 0.05
    modes = torch.randint(25, (n,), generator=torch.Generator().manual_seed(8))
    metrics = mixture_metrics(GRID.double()[modes] + std * normal(9, n, 2), GRID, std)
    truth = 1 - math.exp(-4.5)  # a 2-D Gaussian within three standard deviations: Rayleigh's law
    assert abs(metrics.high_quality - truth) < 5 * math.sqrt(truth * (1 - truth) / n)  # false alarm 6e-7
    assert metrics.modes_captured == 25
    # 2 n KL is about chi-square with 24 degrees of freedom, beyond 75 with probability 4e-7.
    assert metrics.reverse_kullback_leibler < 75 / (2 * n * metrics.high_quality)


def test_mixture_metrics_refusals():
    with pytest.raises(ValueError, match="must be positive"):
        mixture_metrics(GRID, GRID, std=0.0)
    with pytest.raises(ValueError, match=r"\(25, 2\) and \(25, 1\)"):
        mixture_metrics(GRID, GRID[:, :1], std=1.0)


# ---- nearest_rows ----


def test_nearest_rows_is_the_double_loop_over_any_chunks():
    samples, train = normal(10, 17, 4), normal(11, 23, 4)
    for chunk in (1, 5, 17, 100):
        distances, indices = nearest_rows(samples, train, chunk=chunk)
        for row, distance, index in zip(samples.tolist(), distances.tolist(), indices.tolist(), strict=True):
            each = [math.dist(row, other) for other in train.tolist()]
            assert index == each.index(min(each)) and distance == pytest.approx(min(each), abs=1e-13)


def test_memorized_rows_are_at_distance_zero():
    train = (1e4 + normal(12, 50, 784)).float()
    distances, indices = nearest_rows(train[[3, 40, 3]], train)
    assert distances.tolist() == [0.0, 0.0, 0.0] and indices.tolist() == [3, 40, 3]


def test_nearest_rows_refuses_other_widths():
    with pytest.raises(ValueError, match="training rows"):
        nearest_rows(torch.zeros(2, 3), torch.zeros(2, 4))
