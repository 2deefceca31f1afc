"""The evaluator of log-likelihoods, against closed forms; what a pair makes; and random streams left alone."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from gaussians import ExactGuide, Line
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch.distributions import constraints

import unigen.evaluate.likelihood as likelihood_module
from unigen import Pair, PairError
from unigen.datachecks import DataError
from unigen.evaluate import (
    Protocol,
    annealed_log_likelihood,
    bidirectional_monte_carlo,
    evaluate,
    log_likelihood,
    reconstruct,
    sample,
)
from unigen.evaluate.annealing import Annealing, simulate
from unigen.evaluate.calibration import simulation_based_calibration
from unigen.evaluate.figure import Refused
from unigen.evaluate.likelihood import (
    enumerated_log_likelihood,
    importance_weighted_curve,
    importance_weighted_sandwich,
    log_importance_weights,
)
from unigen.evaluate.observation import gaussian_observation_log_likelihood, kernel_density_estimate
from unigen.networks import fingerprint, networks
from unigen.pairs import Likelihood, adversarial, flow, latent, mixture, rbm, sigmoid_belief
from unigen.streams import isolated


@pytest.fixture
def x():
    return torch.randn(7, 3, dtype=torch.float64)


def test_with_the_exact_posterior_every_weight_is_the_evidence(x):
    line = Line()
    found = log_likelihood(Pair(line, ExactGuide(line)), x, particles=3)
    assert (found.per_datum - line.exact(x)).abs().max() < 1e-10
    assert (found.name, found.kind, found.n) == ("log p(x), K = 3", "lower bound", 7)
    assert found.value == pytest.approx(float(line.exact(x).mean()))
    assert found.standard_error == pytest.approx(float(line.exact(x).std() / math.sqrt(7)))


def test_the_bound_tightens_to_the_evidence(x):
    line = Line()
    pair = Pair(line, ExactGuide(line, 1.5))
    exact = line.exact(x).mean()
    # var(w)/p^2 is below 1 for this guide, so at K = 20,000 the bound is within 6/sqrt(20,000) of the truth (6 sigma)
    assert abs(log_likelihood(pair, x, particles=20_000).value - exact) < 0.05
    assert log_likelihood(pair, x.repeat(200, 1), particles=1).value < exact


def test_pieces_do_not_change_the_number_of_particles(x, monkeypatch):
    line = Line()
    monkeypatch.setattr(likelihood_module, "MOST_VALUES_AT_ONCE", 50 * 3 * 2)
    found = log_likelihood(Pair(line, ExactGuide(line)), x, particles=123)
    assert found.how == "importance-weighted bound, K = 123"
    assert (found.per_datum - line.exact(x)).abs().max() < 1e-10


def test_a_mixture_a_flow_and_a_small_rbm_are_exact():
    rows = torch.randn(50, 2)
    pair = mixture(3, rows)
    components = dist.Normal(pair.model.loc, pair.model.log_scale.exp()).to_event(1)
    by_hand = dist.MixtureSameFamily(dist.Categorical(logits=pair.model.logits), components).log_prob(rows)
    found = log_likelihood(pair, rows)
    assert found.kind == "exact" and torch.allclose(found.per_datum, by_hand, atol=1e-5)
    pair = flow(2, start=rows)
    assert torch.allclose(log_likelihood(pair, rows).per_datum, pair.model.distribution().log_prob(rows), atol=1e-5)
    machine = rbm(4, 3)
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
    found = log_likelihood(machine, every)
    assert found.kind == "exact" and found.per_datum.exp().sum() == pytest.approx(1, abs=1e-5)


def test_what_has_no_likelihood_says_why():
    with pytest.raises(Refused, match="implicit model"):
        log_likelihood(adversarial(networks("mlp", (1, 8, 8), 2, hidden=(4,))), torch.zeros(2, 64))
    with pytest.raises(Refused, match="not enumerable"):
        log_likelihood(rbm(30, 30), torch.zeros(2, 30))


def pairs():
    shared = networks("mlp", (1, 8, 8), 2, hidden=(4,))
    return {
        "latent": latent(shared),
        "normal": latent(shared.copy(), "normal"),
        "discretized": latent(shared.copy(), "discretized_logistic"),
        "adversarial": adversarial(shared.copy()),
        "belief": sigmoid_belief(64, (3, 2)),
        "mixture": mixture(2, torch.rand(10, 64)),
        "rbm": rbm(64, 5),
        "flow": flow(64),
    }


@pytest.mark.parametrize("name", pairs())
def test_samples_have_the_rows_asked_for_and_repeat(name):
    pair, like = pairs()[name], torch.zeros(3, 64)
    one, two, other = (sample(pair, 5, like, seed=seed) for seed in (1, 1, 2))
    rebuilt = reconstruct(pair, like)
    if pair.likelihood != "none":
        log_likelihood(pair, torch.rand(3, 64).round() if name != "flow" else torch.rand(3, 64), particles=2)
    assert one.x.shape == one.mean.shape == (5, 64)
    assert torch.equal(one.x, two.x) and not torch.equal(one.x, other.x)
    assert torch.isfinite(one.x).all()
    assert (rebuilt is None) == (name in ("adversarial", "rbm", "flow"))


def test_evaluation_leaves_the_random_stream_alone():
    pair, rows = latent(networks("mlp", (1, 8, 8), 2, hidden=(4,))), torch.rand(3, 64).round()
    before = torch.get_rng_state()
    log_likelihood(pair, rows, particles=4)
    sample(pair, 5, rows)
    reconstruct(pair, rows)
    assert torch.equal(before, torch.get_rng_state())


# -- the curve of bounds, exact sums, bounds on simulated data ---------------------------------------------------------


@pytest.fixture
def seed():
    """A fresh seed, printed where a test fails."""
    value = torch.seed() % 2**31
    print(f"seed {value}")
    return value


def test_the_curve_rises_and_ends_in_the_single_bound(seed):
    line = Line()
    x = torch.randn(300, 3, dtype=torch.float64)
    weights = log_importance_weights(Pair(line, ExactGuide(line, 1.5)), x, 100, seed)
    elbo, ten, all_of_them = importance_weighted_curve(weights, (1, 10, 100))
    exact = line.exact(x)
    assert torch.allclose(all_of_them.per_datum, torch.logsumexp(weights, 0) - math.log(100))
    assert torch.allclose(elbo.per_datum, weights.mean(0))
    for lower, upper in ((elbo.per_datum, ten.per_datum), (ten.per_datum, all_of_them.per_datum)):
        difference = upper - lower  # of the same weights: Jensen's inequality holds for each datum, up to rounding
        assert (difference > -1e-12).all() and difference.mean() > 0
    gap = all_of_them.per_datum - exact
    assert abs(gap.mean()) < 0.1 and gap.mean() < 6 * gap.std() / math.sqrt(300)
    with pytest.raises(ValueError, match="K = 101"):
        importance_weighted_curve(weights, (101,))


def test_weights_in_pieces_are_as_many(monkeypatch):
    line = Line()
    x = torch.randn(5, 3, dtype=torch.float64)
    monkeypatch.setattr(likelihood_module, "MOST_VALUES_AT_ONCE", 40)
    weights = log_importance_weights(Pair(line, ExactGuide(line)), x, 7)
    assert weights.shape == (7, 5) and (weights - line.exact(x)).abs().max() < 1e-10


def test_a_wide_layer_bounds_a_piece_as_wide_data_do(monkeypatch):
    """Weights (K, N) whose model goes through 500 units: no tensor is larger than the most values, but for one particle's."""
    line = Line()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            wide = z[..., None].expand(*z.shape, 250) + 0.0
            sizes.append(wide.numel())
            pyro.sample("x", dist.Normal(wide.mean(-1) @ line.a.T, 1.0).to_event(1), obs=x)

    sizes, x = [], torch.randn(200, 3, dtype=torch.float64)
    guide = Pair(Line(), ExactGuide(Line())).guide
    for most, particles in ((40_000, 10), (2_000_000, 20)):
        monkeypatch.setattr(likelihood_module, "MOST_VALUES_AT_ONCE", most)
        sizes.clear()
        assert log_importance_weights(Pair(model, guide), x, particles).shape == (particles, 200)
        assert max(sizes) == max(most // (200 * 500), 1) * 200 * 500


def tables(pair):
    """Return log p(x) of every x of a belief network of 4, 3 and 2 bits, by sums written out."""
    bits = {size: torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * size) for size in (4, 3, 2)}
    x, low, high = (bits[size].double() for size in (4, 3, 2))
    (w, b), (v, c) = ((layer.weight.double(), layer.bias.double()) for layer in pair.model.down)

    def mass(logits, value):
        return torch.prod(torch.sigmoid(torch.where(value > 0, logits, -logits)), -1)

    top = mass(pair.model.top.double(), high)
    middle = mass((2 * high - 1) @ v.T + c, low[:, None])  # (low, high)
    bottom = mass((2 * low - 1) @ w.T + b, x[:, None])  # (x, low)
    return x, torch.log(bottom @ middle @ top).detach()


def test_a_small_belief_network_is_summed_and_bounded_from_both_sides(seed):
    pair = sigmoid_belief(4, (3, 2), seed=seed)
    pair.double()
    x, exact = tables(pair)
    found = enumerated_log_likelihood(pair, x)
    assert found.kind == "exact" and (found.per_datum - exact).abs().max() < 1e-10
    both = importance_weighted_sandwich(pair, x, 400, 50, seed)
    # E[upper - lower] >= 0 and both are within the gap of the mean of log p(x) over the data that were simulated
    entropy = float((exact.exp() * exact).sum())
    spread = float((exact.exp() * (exact - entropy).square()).sum().sqrt()) / 20
    assert -6 * both.gap.standard_error < both.gap.value < importance_weighted_sandwich(pair, x, 400, 1, seed).gap.value
    assert both.lower.value - 6 * spread < entropy < both.upper.value + 6 * spread


def test_one_posterior_sample_makes_an_upper_bound_and_a_guide_sample_does_not(seed):
    line = Line()
    pair = Pair(line, ExactGuide(line, 0.5, 1.0))
    like = torch.zeros(1, 3, dtype=torch.float64)
    both = importance_weighted_sandwich(pair, like, 500, 4, seed)
    with isolated(seed):
        exact = line.exact(simulate(pair, {"x": like}, 0, 500)[1]["x"])
    above, below = both.upper.per_datum - exact, both.lower.per_datum - exact
    assert above.mean() > 6 * above.std() / math.sqrt(500)  # so poor a guide leaves bounds that are far apart
    assert below.mean() < -6 * below.std() / math.sqrt(500)


def test_refusals_are_sentences():
    shared = networks("mlp", (1, 8, 8), 2, hidden=(4,))
    rows = torch.zeros(2, 64)
    for call in (log_importance_weights, importance_weighted_sandwich):
        for pair in (adversarial(shared), flow(64), rbm(64, 30)):
            with pytest.raises(Refused, match="guide"):
                call(pair, rows, 2)
    with pytest.raises(Refused, match="site 'z'"):
        enumerated_log_likelihood(latent(shared.copy()), rows)


def three_means(x):
    """z ~ Categorical(1/4, 1/4, 1/2), x ~ N((0, 1, 5)[z], 1)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.25, 0.25, 0.5])))
        pyro.sample("x", dist.Normal(torch.tensor([0.0, 1.0, 5.0])[z.long().clamp(max=2)], 1.0), obs=x)


def test_a_sum_over_a_guide_of_other_values_than_the_models_is_refused():
    x = torch.tensor([5.0, 0.0, 1.0, 4.0])
    means = dist.Normal(torch.tensor([0.0, 1.0, 5.0]), 1.0)
    exact = dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.25, 0.25, 0.5])), means).log_prob(x)

    def guessing(fn):
        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", fn)

        return Pair(three_means, guide)

    found = enumerated_log_likelihood(guessing(dist.Categorical(torch.ones(3))), x)
    assert torch.allclose(found.per_datum, exact, atol=1e-5)
    for fn, values in (
        (dist.Categorical(torch.ones(2)), 2),
        (dist.Categorical(torch.ones(4)), 4),
        (dist.Bernoulli(0.5), 2),
    ):
        with pytest.raises(Refused, match=rf"site 'z' has {values} values in the guide .* 3 in the model"):
            enumerated_log_likelihood(guessing(fn), x)
    small = guessing(dist.Categorical(torch.ones(2)))
    with pytest.raises(Refused, match="the guide has no density at some latents that the model draws"):
        importance_weighted_sandwich(small, x, 50, 2)
    examined = evaluate(small, x, Protocol(4, 30, 2, Annealing(3, 2, 2), simulated=20, calibration=16))
    assert examined["log p(x), K = 30"].value < float(exact.mean()) and not any(
        f.kind == "exact" for f in examined.figures
    )

    def counted(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Poisson(torch.tensor(1.0)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(Refused, match="no finite number in the model .Poisson"):
        enumerated_log_likelihood(Pair(counted, small.guide), x)


class Ising(dist.TorchDistribution):
    """Three bits, each coupled with the next; it does not list its values."""

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.independent(constraints.boolean, 1)

    def __init__(self):
        super().__init__(torch.Size(), torch.Size([3]))

    @staticmethod
    def energy(z):
        return (z[..., :-1] * z[..., 1:]).sum(-1)

    def log_prob(self, z):
        every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
        return self.energy(z) - torch.logsumexp(self.energy(every), 0)

    def sample(self, sample_shape=()):
        return torch.bernoulli(torch.full((*sample_shape, *self.batch_shape, 3), 0.5))

    def expand(self, batch_shape, _instance=None):
        new = Ising()
        new._batch_shape = torch.Size(batch_shape)
        return new


def test_a_prior_that_does_not_list_its_values_is_summed_over_the_guides():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Ising())
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.5)).to_event(1))

    x = torch.tensor([0.5, 2.0])
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    exact = torch.logsumexp(Ising().log_prob(every) + dist.Normal(every.sum(-1), 1.0).log_prob(x[:, None]), 1)
    found = enumerated_log_likelihood(Pair(model, guide), x)
    assert found.kind == "exact" and torch.allclose(found.per_datum.float(), exact, atol=1e-6)


# -- decoders without an observation model -----------------------------------------------------------------------------


def linear_decoder():
    shared = networks("mlp", (2,), 1, hidden=(), seed=3)
    pair = adversarial(shared, Likelihood("normal", bounded=False))
    return pair, shared.generator


class Annealed(Line):
    """A model whose KL term is annealed while it trains, the way of Pyro's tutorials."""

    always = False

    def forward(self, x):
        with pyro.poutine.scale(scale=0.25 if self.training or self.always else 1.0):
            super().forward(x)


def test_scaled_densities_have_no_likelihood(x):
    line = Annealed()
    pair = Pair(line, ExactGuide(line))
    found = log_likelihood(pair, x, particles=3)  # in evaluation mode its scale is 1
    assert (found.per_datum - line.exact(x)).abs().max() < 1e-10
    line.always = True
    for figure in (
        lambda: log_likelihood(pair, x, particles=3),
        lambda: enumerated_log_likelihood(Pair(line, ExactGuide(line)), x),
        lambda: importance_weighted_sandwich(pair, x, 3, 3),
        lambda: annealed_log_likelihood(pair, x, Annealing(4, 2)),
        lambda: simulation_based_calibration(pair, x, n=16, draws=15),
    ):
        with pytest.raises(Refused, match="site 'z' in the model is scaled by 0.25, as by poutine.scale"):
            figure()


class Turned(Line):
    """``Line`` of data with their dimensions first."""

    def forward(self, x):
        super().forward(x.mT)


class TurnedGuide(ExactGuide):
    def forward(self, x):
        super().forward(x.mT)


def test_data_that_are_not_along_the_first_dimension_are_refused(x):
    line = Turned()
    rows, columns = x.shape
    for figure in (log_likelihood, enumerated_log_likelihood, importance_weighted_sandwich, annealed_log_likelihood):
        with pytest.raises(
            Refused, match=rf"site 'z' is of {rows} data, by the plate 'data', .* {columns} rows;.*transpose"
        ):
            figure(Pair(line, TurnedGuide(line)), x.mT)


@pytest.mark.parametrize(
    ("figure", "pair"),
    [
        (log_likelihood, sigmoid_belief(3, (2,))),
        (enumerated_log_likelihood, sigmoid_belief(3, (2,))),
        (log_likelihood, rbm(3, 2)),
    ],
)
def test_data_that_a_distribution_cannot_take_are_refused_in_any_row(figure, pair):
    bits = torch.bernoulli(torch.full((1500, 3), 0.5))
    bits[1200] = 2
    with pytest.raises(DataError, match=r"'x' has values in \[0, 2\] that its distribution \(.*\) cannot take"):
        figure(pair, bits)


def test_grey_values_are_none_of_an_rbm():
    with pytest.raises(DataError, match="cannot take"):
        log_likelihood(rbm(3, 2), torch.full((4, 3), 0.5))


def test_grey_values_of_bits_are_warned_of():
    pair, bits = sigmoid_belief(3, (2,)), torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    assert log_likelihood(pair, bits, particles=3).warning == ""
    assert "no log density of grey values" in log_likelihood(pair, bits / 2, particles=3).warning


def test_a_number_that_is_none_is_refused_where_a_mask_leaves_it_out(x):
    class Masked(Line):
        def forward(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z @ self.a.T, self.s).mask(~x.isnan()).to_event(1), obs=x)

    class Guide(ExactGuide):
        def forward(self, x):
            super().forward(x.nan_to_num())

    line, x = Masked(), x.clone()
    x[1, 0] = torch.nan
    for figure in (log_likelihood, annealed_log_likelihood):
        with pytest.raises(DataError, match="data 'x' have values that their distribution refuses.*nan_to_num"):
            figure(Pair(line, Guide(line)), x)


class Pointed(ExactGuide):
    """The mean of the posterior, as a point mass."""

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(x @ self.gain.T, event_dim=1))


class Shifted(ExactGuide):
    """The posterior, with half of its covariance from an auxiliary site: its density of z alone is the posterior's."""

    auxiliary = True

    def forward(self, x):
        half = dist.MultivariateNormal(x.new_zeros(2), scale_tril=self.factor / math.sqrt(2))
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", half, infer={"is_auxiliary": self.auxiliary})
            pyro.sample("z", dist.MultivariateNormal(x @ self.gain.T + u, scale_tril=half.scale_tril))


class WithReverse(Line):
    """``Line`` with r(u|x, z), the posterior of the auxiliary u of ``Shifted``."""

    def forward(self, x):
        gain, covariance = self.posterior()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.a.T, self.s).to_event(1), obs=x)
            pyro.sample("u", dist.MultivariateNormal((z - x @ gain.T) / 2, covariance / 4))


def test_a_guide_that_is_one_point_has_no_weights(x):
    line = Line()
    pair = Pair(line, Pointed(line))
    for figure in (
        lambda: log_likelihood(pair, x, particles=3),
        lambda: importance_weighted_sandwich(pair, x, 3, 3),
    ):
        with pytest.raises(Refused, match="holds site 'z' at one point"):
            figure()
    found = annealed_log_likelihood(pair, x, Annealing(400, 16))
    assert (found.per_datum - line.exact(x)).mean().abs() < 0.1


def test_a_point_among_discrete_values_is_a_bound():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(x.new_tensor(0.25)))
            pyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta((x > 1).to(x.dtype)))

    x = torch.tensor([-1.0, 0.5, 3.0], dtype=torch.float64)
    found = log_likelihood(Pair(model, guide), x, particles=2).per_datum
    z = (x > 1).double()
    joint = dist.Bernoulli(0.25).log_prob(z) + dist.Normal(2 * z, 1.0).log_prob(x)
    assert (found - joint).abs().max() < 1e-6


def test_an_auxiliary_site_wants_its_reverse_density(x):
    line = WithReverse()
    guide = Shifted(line)
    with pytest.raises(PairError, match="site 'u' of the guide is auxiliary"):
        log_likelihood(Pair(Line(), guide), x, particles=3)
    guide.auxiliary = False
    found = log_likelihood(Pair(line, guide), x, particles=2)  # r is the posterior of u: every weight is the evidence
    assert (found.per_datum - line.exact(x)).abs().max() < 1e-9


def test_a_global_latent_is_refused_by_every_likelihood_and_the_rest_is_found(x):
    def model(x):
        shift = pyro.sample("shift", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(shift, 1.0).expand([3]).to_event(1), obs=x)

    def guide(x):
        pyro.sample("shift", dist.Normal(x.mean(), 0.1))

    pair = Pair(model, guide)
    for figure in (log_likelihood, lambda pair, x: annealed_log_likelihood(pair, x, Annealing(4, 2))):
        with pytest.raises(PairError, match="site 'shift' is global"):
            figure(pair, x)
    refusals = evaluate(pair, x, quick=True).refusals
    assert any("site 'shift' is global" in refusal.why for refusal in refusals), refusals


def test_a_guide_of_so_many_data_is_examined_on_all_of_them_at_once():
    """An autoguide has a parameter for each datum: no piece of the data, and none that are simulated, are its own."""
    x = torch.randn(150, 3)

    class Model(PyroModule):
        def forward(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
                pyro.sample("x", dist.Normal(z[..., None], 1.0).expand([*z.shape, 3]).to_event(1), obs=x)

    model = Model()
    guide = AutoNormal(model, init_scale=0.5)  # the posterior's: 1 / 4 of variance
    guide(x)
    with torch.no_grad():
        guide.locs.z.copy_(x.sum(-1) / 4)
    pair = Pair(model, guide)
    exact = dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 1).log_prob(x)
    assert (log_likelihood(pair, x, particles=2).per_datum - exact).abs().max() < 1e-4
    whys = {refusal.name: refusal.why for refusal in evaluate(pair, x, Protocol(particles=50)).refusals}
    for name, rows in (("bounds on simulated data", 50), ("calibration", 500)):
        assert f"cannot run on {rows} rows of data and the guide's values" in whys[name], whys


def conditional(teacher=False):
    """z ~ N(y, 1), x ~ N(z, 0.01), beside the true values of x with ``teacher``; and the posterior."""

    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(y, 1.0))
            pyro.sample("x", dist.Normal(z + x if teacher else z, 0.01), obs=x)

    def guide(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((y + x * 1e4) / (1 + 1e4), (1 + 1e4) ** -0.5))

    return Pair(model, guide)


def test_samples_and_reconstructions_of_a_pair_with_covariates():
    pair, y = conditional(), torch.tensor([-100.0, 100.0], dtype=torch.float64)
    made = sample(pair, 5, {"x": torch.zeros_like(y), "y": y})  # each within ten deviations of the y that is its turn
    assert (made.x - torch.tensor([-100.0, 100.0, -100.0, 100.0, -100.0])).abs().max() < 10
    assert (made.x - made.mean).abs().max() < 0.1
    rebuilt = reconstruct(pair, (y + 1, y))
    assert (rebuilt - y - 1).abs().max() < 0.1


def test_a_model_that_reads_the_data_it_makes_has_no_samples():
    pair, x = conditional(teacher=True), torch.arange(4.0, dtype=torch.float64)
    with pytest.raises(PairError, match=r"'x' depends on the data.*teacher forcing"):
        sample(pair, 4, (x, x))
    for figure in (
        lambda: importance_weighted_sandwich(pair, (x, x), 4, 3),
        lambda: bidirectional_monte_carlo(pair, (x, x), 4, Annealing(4, 2)),
        lambda: simulation_based_calibration(pair, (x, x), n=16, draws=15),
    ):
        with pytest.raises(Refused, match=r"data cannot be simulated: .*'x' depends on the data"):
            figure()


def test_observation_noise_is_tuned_and_its_likelihood_found(seed):
    pair, generator = linear_decoder()
    torch.manual_seed(seed)
    with torch.no_grad():
        shift, direction = generator(torch.zeros(1)), generator(torch.ones(1)) - generator(torch.zeros(1))
        rows = generator(torch.randn(400, 1)) + 0.3 * torch.randn(400, 2)
    before = fingerprint(pair)
    found = gaussian_observation_log_likelihood(pair, rows[:100], rows[100:], Annealing(300, 16, 5), seed=seed)
    assert fingerprint(pair) == before
    scale = float(found.how.split("noise ")[1].split(",")[0])
    # steps of 1.5 end within half a step of the best scale, and that is within another step of the truth at 7 sigma
    assert 0.3 / 1.5**1.5 < scale < 0.3 * 1.5**1.5
    covariance = torch.outer(direction, direction) + scale**2 * torch.eye(2)
    exact = torch.distributions.MultivariateNormal(shift, covariance).log_prob(rows[:100])
    assert (found.kind, found.name) == ("lower bound", "log p(x) with Gaussian observation noise")
    # over 14 seeds the error of 200 distributions and 16 chains has a standard deviation of 0.009 nats
    assert abs(found.value - float(exact.mean())) < 0.05
    with pytest.raises(Refused, match="decoder"):
        gaussian_observation_log_likelihood(flow(2), rows, rows)


def test_a_kernel_density_is_labelled_discredited(seed):
    torch.manual_seed(seed)
    found = kernel_density_estimate(torch.randn(5000, 1), torch.randn(1000, 1), torch.randn(500, 1))
    assert found.kind == "estimate" and "discredited" in found.warning
    # the entropy of N(0, 1); the error of a mean over 1000 data is 0.02, and smoothing costs a little
    assert abs(found.value + 0.5 * math.log(2 * math.pi * math.e)) < 0.2


def test_a_factor_is_taken_at_its_word_with_a_warning():
    """The figures are those of the sample statement whose density the factor is; that it is one, nothing can say."""

    def model(x, factor=True):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            fn = dist.Normal(z, 1.0).to_event(1)
            pyro.factor("own", fn.log_prob(x)) if factor else pyro.sample("x", fn, obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.8).to_event(1))

    x = torch.randn(5, 2)
    found = log_likelihood(Pair(model, guide), x, particles=10)
    plain = log_likelihood(Pair(lambda x: model(x, False), guide), x, particles=10)
    assert found.value == plain.value and plain.warning == ""
    assert found.warning == "log p(x) only where the model's factors ('own') are normalized log densities"
    every = evaluate(Pair(model, guide), x, quick=True).figures
    assert [figure.name for figure in every if figure.warning == found.warning][:1] == ["ELBO"]


def test_a_model_without_latents_is_told_to_say_that_it_is_exact():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1), obs=x)

    x = torch.randn(5, 2)
    with pytest.raises(Refused, match="likelihood='exact'"):
        log_likelihood(Pair(model), x)
    exact = log_likelihood(Pair(model, likelihood="exact"), x).per_datum
    torch.testing.assert_close(exact, dist.Normal(0.0, 1.0).log_prob(x).sum(-1))
