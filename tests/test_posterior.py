"""The guide against the posterior: divergence, k-hat, active units and reference draws, against closed forms and arviz."""

from __future__ import annotations

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from gaussians import ExactGuide, Line

from unigen import Pair
from unigen.evaluate.annealing import Annealing, annealed_log_likelihood
from unigen.evaluate.figure import Figure, Refused, mean_figure
from unigen.evaluate.likelihood import importance_weighted_curve, log_importance_weights
from unigen.evaluate.pareto import k_hat_figures, pareto_k_hat
from unigen.evaluate.posterior import active_units, against_nuts, against_reference, guide_draws, posterior_gap
from unigen.pairs import flow, sigmoid_belief
from unigen.reference import Posterior


@pytest.fixture
def seed():
    """A fresh seed, printed where a test fails."""
    value = torch.seed() % 2**31
    print(f"seed {value}")
    torch.manual_seed(value)
    return value


def divergence(stretch, shift, line):
    """KL of the stretched, shifted guide from the posterior, in closed form: the same for every datum."""
    covariance = line.posterior()[1].detach()
    offset = shift * covariance.diagonal().sqrt()
    mahalanobis = offset @ torch.linalg.solve(covariance, offset)
    return float(0.5 * (2 * stretch**2 + mahalanobis - 2 - 4 * math.log(stretch)))


def test_annealing_minus_elbo_is_the_divergence_from_the_posterior(seed):
    line = Line()
    pair = Pair(line, ExactGuide(line, 1.5, 0.5))
    x = torch.randn(40, 3, dtype=torch.float64)
    elbo = importance_weighted_curve(log_importance_weights(pair, x, 2000, seed), (1,))[0]
    rows = torch.randperm(40)[:30]
    annealed = annealed_log_likelihood(pair, x[rows], Annealing(100, 16, 5), seed)
    found = posterior_gap(annealed, elbo, rows)
    # the mean of 80,000 log weights of deviation 2, and of 30 annealed values of deviation below 0.1
    assert abs(found.value - divergence(1.5, 0.5, line)) < 0.15
    assert (found.kind, found.n, found.units) == ("lower bound", 30, "nats")
    exact = mean_figure("log p(x)", line.exact(x), "exact")
    assert posterior_gap(exact, elbo).kind == "estimate"
    assert abs(posterior_gap(exact, elbo).value - divergence(1.5, 0.5, line)) < 0.06
    with pytest.raises(ValueError, match="upper bound"):
        posterior_gap(mean_figure("log p(x)", line.exact(x), "upper bound"), elbo)
    with pytest.raises(ValueError, match="of 30 data and the ELBO of 40; give rows"):
        posterior_gap(annealed, elbo)


def test_k_hat_is_arviz(seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arviz = pytest.importorskip("arviz")
    for samples in (100, 500, 2000):
        weights = torch.randn(samples, 6, dtype=torch.float64) * torch.tensor([0.1, 0.5, 1.0, 2.0, 4.0, 8.0])
        theirs = torch.as_tensor(arviz.psislw(weights.T.numpy())[1])
        assert (pareto_k_hat(weights) - theirs).abs().max() < 1e-9
        assert (pareto_k_hat(weights * 1.001) - theirs).abs().max() > 1e-9  # a figure that feels its weights


def test_k_hat_finds_the_shape_of_a_tail(seed):
    uniform = torch.rand(40_000, 20, dtype=torch.float64)
    for shape in (0.3, 1.0):  # w = u^-k has a Pareto tail of shape k; 20 fits of 600 points err by about 0.05 each
        assert abs(float(pareto_k_hat(-shape * uniform.log()).mean()) - shape) < 0.1


def test_a_narrow_guide_is_labelled_unreliable(seed):
    line = Line()
    x = torch.randn(200, 3, dtype=torch.float64)
    good, _ = k_hat_figures(log_importance_weights(Pair(line, ExactGuide(line, 1.2)), x, 1000, seed))
    # over 200 data the median of k-hat is 0.90 with a deviation of 0.015, the share over 0.7 is 0.86 with one of 0.025
    median, share = k_hat_figures(log_importance_weights(Pair(line, ExactGuide(line, 0.2)), x, 1000, seed))
    assert good.value < 0.5 and median.value > 0.7 and share.value > 0.5
    assert "unreliable" in median.warning and share.warning == median.warning
    assert median.interval[0] <= median.value <= median.interval[1]


def test_equal_weights_have_no_tail():
    median, share = k_hat_figures(torch.zeros(100, 3))
    assert math.isnan(median.value) and "3 without a tail" in median.how and share.standard_error is None
    with pytest.raises(ValueError, match="at least 25"):
        pareto_k_hat(torch.zeros(10, 3))


def test_active_units_are_those_whose_mean_follows_the_data(seed):
    def guide(x):
        with pyro.plate("data", len(x)):
            loc = torch.stack([x[:, 0], 0.05 * x[:, 1], torch.zeros(len(x))], 1)
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1), obs=x)

    x = torch.randn(2500, 2)
    found = active_units(Pair(model, guide), x)
    assert found.figure.value == 1 and found.figure.units == "of 3" and found.figure.n == 2500
    assert torch.allclose(
        found.variances["z"],
        torch.cov(torch.stack([x[:, 0], 0.05 * x[:, 1], 0 * x[:, 0]])).diagonal().double(),
        atol=1e-6,
    )
    both = active_units(sigmoid_belief(6, (3, 2)), torch.rand(50, 6).round())
    assert both.figure.units == "of 5" and set(both.variances) == {"h1", "h2"}
    with pytest.raises(Refused, match="infers no units"):
        active_units(flow(2), x)


def test_samples_noise_does_not_activate_a_unit(seed):
    """Two layers: the upper one's mean is known from samples of the lower one only, which hold no data here."""

    def guide(x):
        with pyro.plate("data", len(x)):
            low = pyro.sample("low", dist.Normal(x.new_zeros(len(x)), 1.0))
            pyro.sample("high", dist.Normal(low, 1.0))

    found = active_units(Pair(lambda x: None, guide), torch.zeros(20_000), draws=2)
    # the plain variance of one draw's mean is 1; the covariance of two independent ones is 0 with error 0.007
    assert abs(float(found.variances["high"])) < 0.045


def test_reference_draws_show_what_is_wrong(seed):
    true = {"w": torch.randn(4000, 2), "s": torch.randn(4000)}
    same = against_reference({"w": torch.randn(4000, 2), "s": torch.randn(4000)}, true)
    for figures in same.values():
        error, ratio, distance = figures
        assert error.value < 6 * error.standard_error and abs(ratio.value - 1) < 6 * ratio.standard_error
        assert distance.value < 0.2 and distance.kind == "distance"
    draws = {"w": torch.stack([torch.randn(4000), 0.5 + 0.5 * torch.randn(4000)], 1), "s": torch.randn(4000)}
    error, ratio, distance = against_reference(draws, true)["w"]
    assert error.name.endswith("w[1]") and error.value == pytest.approx(0.5, abs=0.12)
    assert ratio.name.endswith("w[1]") and ratio.value == pytest.approx(0.5, abs=0.06)
    # |0.5 - 0.5 u| integrated over the standard normal u
    normal = torch.distributions.Normal(0.0, 1.0)
    grid = normal.icdf((torch.arange(10_000) + 0.5) / 10_000)
    assert distance.value == pytest.approx(float((0.5 - 0.5 * grid).abs().mean()), abs=0.12)
    with pytest.raises(ValueError, match="one of guide and reference"):
        against_reference({"w": true["w"]}, true)
    with pytest.raises(ValueError, match="coordinates"):
        against_reference({"w": true["w"][:, :1], "s": true["s"]}, true)


def test_a_coordinate_that_is_one_number_on_both_sides_is_not_the_worst(seed):
    torch.manual_seed(seed)
    mine, theirs = (torch.cat([torch.full((2000, 1), 0.1), torch.randn(2000, 1)], 1) for _ in range(2))
    alike = against_reference({"L": mine}, {"L": theirs})["L"]
    assert all(figure.name.endswith("L[1]") for figure in alike) and alike[1].value == pytest.approx(1, abs=0.2)
    assert [figure.per_datum[0].item() for figure in alike] == [0, 1, 0]
    free = torch.randn(2000, 2)
    for draws, reference, expected in (
        (free, theirs, [math.inf, math.inf, math.inf]),
        (mine + torch.tensor([0.1, 0.0]), theirs, [math.inf, 1, math.inf]),
        (mine, free, [None, 0, None]),
    ):
        found = against_reference({"L": draws}, {"L": reference})["L"]
        for figure, value in zip(found, expected, strict=True):
            assert value is None or figure.per_datum[0].item() == value
            assert value in (None, 1) or figure.name.endswith("L[0]")


def test_chains_count_by_their_effective_size_and_those_that_disagree_are_labelled(seed):
    chains = {"w": torch.randn(4, 500, 2), "twice": torch.randn(4, 500)}  # a deterministic site is not the guide's

    def posterior(ess, rhat=1.0, diverged=False):
        ones = {name: torch.ones(value.shape[2:]) for name, value in chains.items()}
        diverging = torch.full((4, 500), diverged)
        sizes = {name: ess * value for name, value in ones.items()}
        return Posterior("nuts", chains, {name: rhat * value for name, value in ones.items()}, sizes, sizes, diverging)

    draws = {"w": torch.randn(3000, 2)}
    independent = against_reference(draws, {"w": chains["w"].flatten(0, 1)})["w"]
    full, few = (against_reference(draws, posterior(ess))["w"] for ess in (2000.0, 20.0))
    for one, other, fewer in zip(independent, full, few, strict=True):
        assert one.value == other.value == fewer.value and one.standard_error == other.standard_error
        assert not fewer.warning
    assert few[0].standard_error == pytest.approx(math.sqrt(1 / 3000 + 1 / 20), rel=0.01)  # both are standard normal
    for wrong in (posterior(2000.0, rhat=1.2), posterior(2000.0, diverged=True)):
        assert all("unreliable" in figure.warning for figure in against_reference(draws, wrong)["w"])


@pytest.mark.parametrize(("stretch", "shift"), [(1.0, 0.0), (1.0, 0.5), (0.6, 0.3)])
def test_a_guide_against_nuts_on_a_conjugate_pair(stretch, shift):
    """Closed forms: W1 of N(shift, stretch^2) from N(0, 1). Errors are some 0.03, of which 0.15 is five."""
    line = Line()
    x = torch.linspace(-1, 1, 18, dtype=torch.float64).reshape(6, 3)
    error, ratio, distance = against_nuts(Pair(line, ExactGuide(line, stretch, shift)), x, chains=2)
    assert error.n == 6 and "2 coordinates a datum, 2 chains of 1000 draws" in error.how and not error.warning
    assert error.value == pytest.approx(shift, abs=0.15) and ratio.value == pytest.approx(stretch, abs=0.1)
    normal = torch.distributions.Normal(0.0, 1.0)
    grid = normal.icdf((torch.arange(10_000) + 0.5) / 10_000)
    assert distance.value == pytest.approx(float((shift + (stretch - 1) * grid).abs().mean()), abs=0.15)


def test_guide_draws_repeat_and_leave_the_stream_alone():
    line = Line()
    pair = Pair(line, ExactGuide(line))
    x = torch.zeros(1, 3, dtype=torch.float64)
    before = torch.get_rng_state()
    one, two = guide_draws(pair, x, 10, 1)["z"], guide_draws(pair, x, 10, 1)["z"]
    assert one.shape == (10, 1, 2) and torch.equal(one, two) and torch.equal(before, torch.get_rng_state())


def test_a_figure_has_a_kind():
    with pytest.raises(ValueError, match="exact, lower bound"):
        Figure("x", 1.0, "guess", "", 1)
    assert Figure("x", math.nan, "exact", "", 1).as_json()["value"] is None
