"""The classifier, what samples cover of classes and modes, and nearest rows: by hand, by double loops and known laws."""

import dataclasses
import math

import pytest
import torch
from scipy.stats import binom
from sklearn.datasets import load_digits

from unigen.data import load
from unigen.evaluate import labelled_coverage, mixture_coverage, mixture_metrics, nearest_rows, train_classifier
from unigen.evaluate.coverage import share_figure
from unigen.evaluate.sample_metrics import sample_metrics


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(autouse=True)
def global_stream_is_untouched():
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())


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


# ---- classes ----


class FirstColumn:
    """Classify a row by its first entry."""

    def predict(self, x):
        return x[:, 0].long()


def covered(*counts: int, data_labels: torch.Tensor | None = None) -> tuple[float, float]:
    """Return the classes that so many samples of each cover, and the divergence of their shares."""
    rows = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))[:, None].double()
    found = labelled_coverage(rows, FirstColumn(), len(counts), data_labels, groups=None)
    return found["classes"].value, found["class_kl"].value


def test_labelled_coverage_by_hand():
    rows = torch.tensor([0] * 50 + [1] * 25 + [2] * 25)[:, None].double()
    found = labelled_coverage(rows, FirstColumn(), 4)
    assert (found["classes"].value, found["classes"].units, found["classes"].n_real) == (3.0, "of 4", 0)
    assert found["class_kl"].value == pytest.approx(0.5 * math.log(2), abs=1e-12)
    labels = torch.tensor([0] * 25 + [1] * 25 + [2] * 50)
    against = labelled_coverage(rows, FirstColumn(), 4, labels)["class_kl"]
    assert against.value == pytest.approx(0.25 * math.log(2), abs=1e-12) and against.n_real == 100
    assert against.standard_error > 0


def test_a_dataset_has_the_classes_of_its_labels_or_those_that_the_classifier_finds():
    plane = load("moons")
    rows = (torch.arange(100) % 2)[:, None].expand(100, 2).float()
    labelled = dataclasses.replace(plane, test=rows, test_labels=rows[:, 0].long())
    for dataset in (labelled, dataclasses.replace(labelled, test_labels=None)):
        found = sample_metrics(dataset, rows[:40], classifier=FirstColumn(), quick=True, permutations=None, groups=None)
        assert (found["classes"].value, found["classes"].units) == (2, "of 2")
        assert found["class_kl"].value == pytest.approx(0, abs=1e-12)


def test_a_class_is_covered_from_one_tenth_of_its_share():
    # Ten equal classes: one tenth of a tenth is exactly one sample of 100, and more than nine of 1000.
    assert covered(1, *[11] * 9)[0] == 10
    assert covered(9, 191, *[100] * 8)[0] == 9


def test_coverage_against_the_datas_histogram():
    count, divergence = covered(90, 10, data_labels=torch.tensor([0] * 90 + [1] * 10))
    assert count == 2 and divergence == pytest.approx(0.0, abs=1e-15)
    # A class that the data lack is never covered, and makes the KL infinite.
    assert covered(80, 10, 10, data_labels=torch.tensor([0] * 90 + [1] * 10)) == (2.0, math.inf)


def test_labelled_coverage_refusals():
    rows = torch.arange(3.0)[:, None]
    with pytest.raises(ValueError, match="0..1, but got 0 to 2"):
        labelled_coverage(rows, FirstColumn(), 2, groups=None)
    with pytest.raises(ValueError, match="at least one sample"):
        labelled_coverage(rows[:0], FirstColumn(), 2)
    with pytest.raises(ValueError, match="2 labels of data and 3 samples"):
        labelled_coverage(rows, FirstColumn(), 3, torch.tensor([0, 1]))


# ---- modes ----

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


RING = torch.tensor([[math.cos(a), math.sin(a)] for a in torch.arange(8) * math.pi / 4], dtype=torch.float64)


def test_mixture_coverage_is_mixture_metrics_with_errors():
    rows = RING[torch.arange(400) % 6] + 0.02 * normal(1, 400, 2)
    found, plain = mixture_coverage(rows, RING, 0.02), mixture_metrics(rows, RING, 0.02)
    assert found["modes"].value == plain.modes_captured == 6 and found["modes"].units == "of 8"
    assert found["high_quality"].value == plain.high_quality
    assert found["reverse_kl"].value == plain.reverse_kullback_leibler
    assert found["reverse_kl"].value == pytest.approx(math.log(8 / 6), abs=0.01)
    assert "too large by about 0.0088" in found["reverse_kl"].how
    nowhere = mixture_coverage(rows + 10, RING, 0.02)["reverse_kl"]
    assert nowhere.value == math.inf and nowhere.standard_error is None and nowhere.as_json()["value"] is None


def test_the_interval_of_a_share_covers_it():
    # The exact coverage of Wilson's interval, summed over binomial probabilities; its least near 0 or 1 is about 0.93.
    n = 60
    for p in (0.05, 0.3, 0.5, 0.9, 0.99):
        inside = 0.0
        for count in range(n + 1):
            low, high = share_figure("share", count, n, "").interval
            inside += binom.pmf(count, n, p) * (low <= p <= high)
        assert inside > 0.9


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
