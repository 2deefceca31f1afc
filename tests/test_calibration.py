"""Simulation-based calibration: right guides pass, wrong ones do not, and the tests' levels are what they say."""

from __future__ import annotations

import math
from itertools import product

import numpy
import pyro
import pyro.distributions as dist
import pytest
import torch
from gaussians import ExactGuide, Line
from pyro.nn import PyroModule

from unigen import Pair
from unigen.evaluate.calibration import (
    Calibration,
    _rank,
    chi_square_p_values,
    ecdf_band,
    ecdf_p_values,
    simulation_based_calibration,
)
from unigen.evaluate.figure import Refused
from unigen.evaluate.rank_plot import ecdf_differences, save_ranks
from unigen.networks import networks
from unigen.pairs import adversarial, flow, sigmoid_belief

LIKE = torch.zeros(1, 3, dtype=torch.float64)


@pytest.fixture
def seed():
    """A fresh seed, printed where a test fails."""
    value = torch.seed() % 2**31
    print(f"seed {value}")
    return value


def calibrated(stretch, shift, seed, n=2000, draws=127):
    line = Line()
    return simulation_based_calibration(Pair(line, ExactGuide(line, stretch, shift)), LIKE, n, draws, seed=seed)


def test_the_exact_posterior_is_calibrated(seed):
    found = calibrated(1.0, 0.0, seed)  # false alarm: 1e-5 for each of three quantities
    assert found.labels == ("z[0]", "z[1]", "log p(x|z)") and found.ranks.shape == (2000, 3)
    assert not found.rejected(1e-5), found.p_values
    p, distance = found.figures()
    assert not p.warning and distance.interval[0] <= distance.value <= distance.interval[1]


# At these sizes the noncentrality of chi-square is 400 for a scale of 0.8, 160 for 1.25 and 0.2 deviations (each of both
# coordinates), against a threshold of 53: missed with a probability below 1e-5.
@pytest.mark.parametrize(("stretch", "shift", "n"), ((0.8, 0.0, 2000), (1.25, 0.0, 4000), (1.0, 0.2, 4000)))
def test_a_wrong_guide_is_rejected(seed, stretch, shift, n):
    found = calibrated(stretch, shift, seed, n)
    assert {"z[0]", "z[1]"} <= set(found.rejected(1e-5))
    assert "not calibrated" in found.figures()[0].warning


@pytest.mark.slow
@pytest.mark.parametrize(("stretch", "shift"), ((0.8, 0.0), (1.25, 0.0), (1.0, 0.2)))
def test_wrong_guides_are_rejected_in_at_least_95_percent_of_fifty_runs(seed, stretch, shift):
    rejected = sum(bool(calibrated(stretch, shift, seed + run).rejected(1e-5)) for run in range(50))
    assert rejected >= 0.95 * 50


class Regression(PyroModule):
    """w ~ N(0, 1), y_i ~ N(w x_i, 1): one datum."""

    def forward(self, x, y):
        w = pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)


def sampler(stretch):
    def posterior(data, draws):
        precision = 1 + data["x"].square().sum()
        noise = torch.randn(draws, 1, dtype=torch.float64)
        return {"w": (data["x"] @ data["y"]) / precision + stretch * noise / precision.sqrt()}

    return posterior


def test_a_sampler_of_a_pair_of_one_datum_is_calibrated(seed):
    data = (torch.tensor([0.5, -1.0, 1.0], dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    right = simulation_based_calibration(Pair(Regression()), data, 300, 31, sampler(1.0), seed)
    assert right.labels == ("w", "log p(x|z)") and not right.rejected(1e-6)  # false alarm 2e-6
    wrong = simulation_based_calibration(Pair(Regression()), data, 300, 31, sampler(0.3), seed)
    assert "w" in wrong.rejected(1e-6)


class Coin(PyroModule):
    """z ~ Bernoulli(0.3), x ~ Bernoulli(0.9 if z else 0.2)."""

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(x.new_tensor(0.3)))
            pyro.sample("x", dist.Bernoulli(0.2 + 0.7 * z), obs=x)


def test_bits_are_ranked_with_their_ties_broken(seed):
    def guide(x, shift=0.0):
        odds = torch.where(x > 0, 0.3 * 0.9 / (0.7 * 0.2), 0.3 * 0.1 / (0.7 * 0.8)).log()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=odds + shift))

    right = simulation_based_calibration(Pair(Coin(), lambda x: guide(x)), torch.zeros(1), 2000, 127, seed=seed)
    assert not right.rejected(1e-6)  # false alarm 2e-6
    wrong = Pair(Coin(), lambda x: guide(x, 1.0))
    assert "z" in simulation_based_calibration(wrong, torch.zeros(1), 4000, 127, seed=seed).rejected(1e-6)


def test_equal_latents_have_equal_likelihoods_whatever_stands_beside_them(seed):
    """z ~ Bernoulli(1/2), x ~ N(f(z), 9 I), f of a product of matrices, which rounds otherwise beside other rows."""
    means = 3 * torch.linspace(-1, 1, 20)

    def of(z):
        return (z[..., None] * means) * (1 + 2e-7 * z.dim())

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("x", dist.Normal(of(z), 3.0).to_event(1), obs=x)

    def guide(x):
        one, zero = (dist.Normal(of(torch.tensor(z)), 3.0).log_prob(x).sum(-1) for z in (1.0, 0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=one - zero))

    found = simulation_based_calibration(Pair(model, guide), torch.zeros(1, 20), 2000, 127, seed=seed)
    assert not found.rejected(1e-6), found.p_values  # false alarm 2e-6
    alike = torch.full((1, 1), -1000.0).expand(127, 2000, 1)
    ranks = _rank(torch.nextafter(alike[0], torch.zeros(())), alike, 1e-3)
    assert chi_square_p_values(ranks, 127) > 1e-6 and (_rank(alike[0] + 0.01, alike, 1e-3) == 127).all()


def test_a_belief_network_is_ranked_by_every_unit(seed):
    found = simulation_based_calibration(sigmoid_belief(6, (3, 2)), torch.zeros(1, 6), 50, 15, seed=seed)
    assert len(found.labels) == 6 and found.ranks.shape == (50, 6)
    assert int(found.ranks.min()) >= 0 and int(found.ranks.max()) <= 15


def test_the_ecdf_test_has_exactly_its_level():
    draws, rows = 3, 5
    every = torch.tensor(list(product(range(draws + 1), repeat=rows))).T  # (rows, 4^5): all samples, equally likely
    p = ecdf_p_values(every, draws)
    for level in p.unique():
        assert float((p <= level + 1e-12).double().mean()) == pytest.approx(float(level), abs=1e-12)


def test_the_band_covers_what_it_says(seed):
    generator = torch.Generator().manual_seed(seed)
    rows, draws, samples = 100, 15, 4000
    low, high = ecdf_band(rows, draws, 0.9)
    ranks = torch.randint(draws + 1, (samples, rows), generator=generator)
    share = torch.stack([(ranks < threshold).double().mean(1) for threshold in range(1, draws + 1)], 1)
    inside = ((share >= low - 1e-9) & (share <= high + 1e-9)).all(1).double().mean()
    # at least 0.9, and little more: counts are discrete; the error of the share is 0.005, allowed six times
    assert 0.9 - 0.03 < float(inside) < 0.94 + 0.03


def test_chi_square_is_scipys_and_wants_equal_bins():
    stats = pytest.importorskip("scipy.stats")
    ranks = torch.randint(128, (500, 2), generator=torch.Generator().manual_seed(3))
    for column, p in zip(ranks.T, chi_square_p_values(ranks, 127).tolist(), strict=True):
        counts = torch.bincount(column // 8, minlength=16).numpy()
        assert p == pytest.approx(stats.chisquare(counts).pvalue, abs=1e-10)
    with pytest.raises(ValueError, match="127"):
        chi_square_p_values(ranks % 17, 16)
    with pytest.raises(ValueError, match="0 to 15"):
        ecdf_p_values(ranks, 15)


def test_what_cannot_be_calibrated_is_refused():
    with pytest.raises(Refused, match="density"):
        simulation_based_calibration(adversarial(networks("mlp", (4,), 2)), torch.zeros(1, 4))
    with pytest.raises(Refused, match="no latent"):
        simulation_based_calibration(flow(2), torch.zeros(1, 2))
    with pytest.raises(Refused, match="draws nothing"):
        simulation_based_calibration(Pair(Line()), LIKE)
    with pytest.raises(ValueError, match="at least 16"):
        calibrated(1.0, 0.0, 0, n=3)


def test_a_distance_counts_from_uniform():
    line = Line()
    found = simulation_based_calibration(Pair(line, ExactGuide(line, 1e-6, 50.0)), LIKE, 100, 15)
    distance = found.figures()[1]
    assert distance.value == pytest.approx(15 / 16) and math.isclose(float(found.ranks[:, :2].max()), 0)


# -- the picture -------------------------------------------------------------------------------------------------------


def test_curves_are_shares_of_ranks_minus_uniform_ones(seed):
    draw = numpy.random.default_rng(seed)
    ranks = draw.integers(0, 16, (40, 3))
    found = ecdf_differences(torch.tensor(ranks), 15)
    for index in range(15):
        for column in range(3):
            share = numpy.count_nonzero(ranks[:, column] <= index) / 40
            assert float(found[index, column]) == pytest.approx(share - (index + 1) / 16, abs=1e-12)
    even = torch.arange(16).repeat(5)[:, None]  # each rank five times: the curve is zero, and one rank more is seen
    assert float(ecdf_differences(even, 15).abs().max()) < 1e-12
    assert float(ecdf_differences((even + 1).clamp(max=15), 15).max()) < -0.06


def test_the_picture_shows_which_quantities_leave_the_band(tmp_path):
    even = torch.arange(128).repeat(10)
    narrow = torch.cat([torch.zeros(200, dtype=torch.long), even[:880], torch.full((200,), 127)])
    ranks = torch.stack([even, narrow, even], 1)
    found = Calibration(("even", "narrow", "also even"), 127, ranks, torch.ones(3), torch.ones(3))
    path = tmp_path / "calibration.png"
    assert save_ranks(path, found) == ("narrow",)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.read_bytes()[-8:-4] == b"IEND"
    curve = ecdf_differences(ranks, 127)[:, 1]  # too narrow: first above, then below
    assert float(curve[:40].min()) > 0.05 and float(curve[-40:].max()) < -0.05
    many = Calibration(tuple(f"z[{i}]" for i in range(20)), 127, narrow[:, None].expand(-1, 20), *torch.ones(2, 20))
    assert len(save_ranks(path, many)) == 20
