"""Annealed importance sampling and its bounds, against closed forms and enumeration; each with a planted fault."""

from __future__ import annotations

import math

import numpy
import pyro
import pyro.distributions as dist
import pytest
import torch
from gaussians import ExactGuide, Line
from pyro.nn import PyroModule

import unigen.evaluate.annealing as annealing
from unigen import Pair
from unigen.engines.lowering import Given, precision, run, to_jax
from unigen.engines.surroundings import Draws
from unigen.evaluate.annealing import (
    Annealing,
    annealed_log_likelihood,
    bidirectional_monte_carlo,
    inverse_temperatures,
)
from unigen.evaluate.annealing_xla import NAMES, record
from unigen.evaluate.boltzmann import boltzmann_log_likelihood, log_partition
from unigen.evaluate.figure import Refused
from unigen.evaluate.latents import LatentSpace, frozen
from unigen.networks import networks
from unigen.pairs import adversarial, flow, latent, rbm, sigmoid_belief


@pytest.fixture
def seed():
    """A fresh seed, printed where a test fails."""
    value = torch.seed() % 2**31
    print(f"seed {value}")
    torch.manual_seed(value)
    return value


def draw_from(line, rows):
    with torch.no_grad():
        z = torch.randn(rows, line.a.shape[1], dtype=torch.float64)
        return z @ line.a.T + line.s * torch.randn(rows, len(line.a), dtype=torch.float64)


def steep():
    """Ten latents, twenty dimensions, little noise: a posterior some thirty nats from the prior."""
    return Line(torch.randn(20, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 0.5)


def weights(line, guide, settings, seed, rows=300):
    """Return w / p(x) forwards and p(x) / w backwards of simulated data, each (S, N): of mean 1."""
    pair = Pair(line, guide)
    with frozen(pair, seed, "cpu"):
        values, data = annealing.simulate(pair, {"x": torch.zeros(1, len(line.a), dtype=torch.float64)}, 0, rows)
        space = LatentSpace(pair, data, settings.chains)
        bar = annealing._bar(settings, 1, "", False)
        tuned = annealing._pilot(pair, data, settings, rows, bar)
        path = annealing.Path(space, settings.start)
        exact = line.exact(data["x"])
        forward, _ = annealing._anneal(path, path.begin(), settings, tuned, False, bar)
        back, _ = annealing._anneal(path, path.at(space.pack(values)), settings, tuned, True, bar)
    return (forward - exact).exp(), (exact - back).exp()


def score(means):
    """Return how many standard errors a mean over independent data lies from 1."""
    return float((means.mean() - 1) / (means.std() / math.sqrt(len(means))))


# False alarms of the z-scores at 6: 2e-9 for a normal mean; the weights are bounded (a wide guide's forwards, a narrow
# guide's backwards), and each of the 300 means averages 128 chains.
@pytest.mark.parametrize(("distributions", "engine"), ((1, "eager"), (5, "eager"), (5, "xla")))
def test_weights_forwards_and_inverse_weights_backwards_have_mean_one(seed, distributions, engine):
    settings = Annealing(distributions, 128, 3, engine=engine)
    line = Line()
    forward, _ = weights(line, ExactGuide(line, 1.5, 0.5), settings, seed)
    assert abs(score(forward.mean(0))) < 6
    _, back = weights(line, ExactGuide(line, 0.7, 0.2), settings, seed + 1)
    assert abs(score(back.mean(0))) < 6


@pytest.mark.parametrize("engine", ("eager", "xla"))
def test_a_transition_that_leaves_another_distribution_invariant_is_found(seed, monkeypatch, engine):
    line, settings = Line(), Annealing(5, 128, 3, start="prior", engine=engine)

    def at_the_wrong_temperature(path, state, b, *rest, original=annealing.transition):
        return original(path, state, (b + 1) / 2, *rest)

    monkeypatch.setattr(annealing, "transition", at_the_wrong_temperature)
    forward, _ = weights(line, ExactGuide(line), settings, seed)
    assert float((forward.mean(0) > 1).double().mean()) > 0.9  # 0.99 and more; a half of the rows where it is right


@pytest.mark.parametrize("start", ("guide", "prior"))
def test_a_lowered_transition_is_that_of_torch_with_the_same_noise(seed, start):
    line = Line()
    pair = Pair(line, ExactGuide(line, 1.5, 0.5))
    with frozen(pair, seed, "cpu"):
        path = annealing.Path(LatentSpace(pair, {"x": draw_from(line, 6)}, 4), start)
        state = path.begin()
        step, scale = torch.full((6,), 0.3, dtype=torch.float64), torch.rand(state.u.shape[-1], dtype=torch.float64)
        move = annealing._plain(path, 3)
        tape = record(move, state, step, scale)
        b = torch.tensor(0.3, dtype=torch.float64)  # not the one it was recorded at
        with Draws() as draws:
            after, rate = move(state, b, step, scale)
        inputs = dict(zip((*NAMES, "b", "step", "scale"), (*state, b, step, scale), strict=True))
        with precision():
            found = run(
                tape,
                {name: to_jax(tensor) for name, tensor in inputs.items()},
                {number: to_jax(tensor) for number, tensor in tape.constants.items()},
                Given([to_jax(draw) for draw in draws.taken]),
            ).outputs
            for one, other in zip((*after, rate), found, strict=True):
                assert float((one - torch.tensor(numpy.asarray(other))).abs().max()) < 1e-10


def test_both_engines_bound_alike_and_draw_from_the_seed(seed):
    line = Line()
    pair, x = Pair(line, ExactGuide(line, 1.5, 0.5)), draw_from(line, 40)
    settings = Annealing(100, 16, 5, engine="xla")
    found, again = (annealed_log_likelihood(pair, x, settings, seed) for _ in range(2))
    assert torch.equal(found.per_datum, again.per_datum) and "engine xla" in found.how
    assert abs(found.value - float(line.exact(x).mean())) < 0.1
    with pytest.raises(ValueError, match="engine='jax'; .*eager"):
        Annealing(engine="jax")


def test_annealing_finds_the_evidence_from_prior_and_guide(seed):
    line = Line()
    x = draw_from(line, 60)
    pair = Pair(line, ExactGuide(line, 1.5, 0.5))
    for start in ("prior", "guide"):
        found = annealed_log_likelihood(pair, x, Annealing(150, 16, start=start), seed)
        assert abs(found.value - float(line.exact(x).mean())) < 0.05
        assert (found.kind, found.n, found.units) == ("lower bound", 60, "nats")
        assert start in found.how and not found.warning


def test_bounds_on_simulated_data_hold_each_and_on_average(seed):
    line = Line()
    pair = Pair(line, ExactGuide(line, 1.5))
    found = bidirectional_monte_carlo(pair, torch.zeros(1, 3, dtype=torch.float64), 100, Annealing(150, 8), seed)
    check_bounds(found, simulated(pair, line, 100, seed))
    assert found.gap.value < 0.1


def simulated(pair, line, rows, seed):
    """Return log p(x), exact, of the data that a bidirectional run of this seed simulates."""
    with frozen(pair, seed, "cpu"):
        like = {"x": torch.zeros(1, len(line.a), dtype=torch.float64)}
        return line.exact(annealing.simulate(pair, like, 0, rows)[1]["x"])


def check_bounds(found, exact):
    """Each run by its exact budget: P(lower > exact + 20) < e^-20, so 200 checks alarm with 4e-7; the means by z = 6."""
    lower, upper = found.lower.per_datum - exact, found.upper.per_datum - exact
    assert float(lower.abs().median()) < 0.5  # these are the data that were simulated
    assert (lower < 20).all() and (upper > -20).all()
    assert lower.mean() < 6 * lower.std() / math.sqrt(len(lower))
    assert upper.mean() > -6 * upper.std() / math.sqrt(len(upper))


@pytest.mark.slow
def test_the_gap_closes_at_ten_thousand_distributions(seed):
    line = steep()
    pair = Pair(line)
    like = torch.zeros(1, 20, dtype=torch.float64)
    found = bidirectional_monte_carlo(pair, like, 100, Annealing(10_000, 4, start="prior"), seed)
    exact = simulated(pair, line, 100, seed)
    check_bounds(found, exact)
    assert found.gap.value <= 0.1
    assert abs(float(found.lower.per_datum.mean() - exact.mean())) < 0.05


def test_too_few_distributions_show_in_the_gap_and_in_a_warning():
    line = steep()
    found = bidirectional_monte_carlo(
        Pair(line), torch.zeros(1, 20, dtype=torch.float64), 20, Annealing(10, 8, start="prior"), seed=0
    )
    assert found.gap.value > 5 and "one chain" in found.lower.warning


class Positive(PyroModule):
    """z ~ Gamma(2, 1), x ~ Poisson(z): p(x) = (x + 1) / 2^(x + 2), a negative binomial."""

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(x.new_tensor(2.0), 1.0))
            pyro.sample("x", dist.Poisson(z), obs=x)


def test_a_constrained_latent_moves_in_its_unconstrained_form(seed):
    x = torch.arange(6.0, dtype=torch.float64).repeat(10)
    found = annealed_log_likelihood(Pair(Positive()), x, Annealing(60, 32), seed)
    exact = torch.log((x + 1) / 2 ** (x + 2))
    assert abs(float((found.per_datum - exact).mean())) < 0.05  # some 20 standard errors


NODES = torch.linspace(-math.pi, math.pi, 2001, dtype=torch.float64)
TWO_WAYS = torch.distributions.Categorical(torch.tensor([0.3, 0.7], dtype=torch.float64))


def angle():
    return dist.VonMises(NODES.new_tensor(0.5), 2.0)


def mixture():
    return dist.MixtureSameFamily(TWO_WAYS, dist.Normal(NODES.new_tensor([-1.0, 1.0]), 0.5))


class Moved(PyroModule):
    """z ~ ``prior``, x ~ N(z, 1), z and x (N, 1)."""

    def __init__(self, prior):
        super().__init__()
        self.prior = prior

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior().expand([1]).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize(("prior", "bound"), ((angle, math.pi), (mixture, 8)))
def test_an_angle_goes_round_once_and_a_mixture_has_the_support_of_its_parts(seed, prior, bound):
    """Against quadrature; ten standard errors. An angle on the whole line would end 0.7 nats below."""
    x = torch.linspace(-3, 3, 40, dtype=torch.float64)[:, None]
    z = NODES * bound / math.pi
    log_density = prior().log_prob(z) + dist.Normal(z, 1.0).log_prob(x)
    exact = log_density.logsumexp(-1) + math.log(float(z[1] - z[0]))
    found = annealed_log_likelihood(Pair(Moved(prior)), x, Annealing(100, 32), seed)
    assert abs(float((found.per_datum - exact).mean())) < 0.1


class Regression(PyroModule):
    """w ~ N(0, 1), y_i ~ N(w x_i, 1): one datum, though it has a plate."""

    def forward(self, x, y):
        w = pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)


# Over 40 seeds the error of 64 chains has a standard deviation of 0.033 nats, and the gap one of 0.034: both bounds lie
# seven deviations and more away, and the evidence of one row instead of nine would miss by several nats.
def test_a_pair_of_one_datum_is_annealed_whole(seed):
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)
    y = 0.7 * x + 0.5 * torch.cos(5 * x)
    covariance = torch.eye(9, dtype=torch.float64) + torch.outer(x, x)
    exact = torch.distributions.MultivariateNormal(torch.zeros(9, dtype=torch.float64), covariance).log_prob(y)
    found = annealed_log_likelihood(Pair(Regression()), (x, y), Annealing(60, 64), seed)
    assert found.n == 1 and abs(found.value - float(exact)) < 0.25
    both = bidirectional_monte_carlo(Pair(Regression()), (x, y), 1, Annealing(200, 64), seed)
    assert abs(both.gap.value) < 0.3


def test_pieces_are_put_together(seed, monkeypatch):
    line = Line()
    x = draw_from(line, 7)
    monkeypatch.setattr(annealing, "MOST_CHAINS_AT_ONCE", 3 * 8)
    found = annealed_log_likelihood(Pair(line, ExactGuide(line)), x, Annealing(1, 8, 1), seed)
    assert (found.per_datum - line.exact(x)).abs().max() < 1e-10  # an exact guide has one weight


def test_what_cannot_be_annealed_is_refused_in_a_sentence():
    shared = networks("mlp", (1, 8, 8), 2, hidden=(4,))
    for pair, words in (
        (sigmoid_belief(64, (3,)), "site 'h1' .* is discrete"),
        (adversarial(shared), "observation model"),
        (rbm(64, 30), "partition function"),
        (flow(64), "no latent"),
    ):
        with pytest.raises(Refused, match=words):
            annealed_log_likelihood(pair, torch.zeros(2, 64), Annealing(2, 2, 1))


def within(x, a):
    return pyro.sample("z", dist.Uniform(0.0, a.exp()).to_event(1))


def direction(x, a):
    return pyro.sample("z", dist.ProjectedNormal(x.new_ones(2)))[..., :1]


def correlation(x, a):
    return pyro.sample("z", dist.LKJCholesky(3, x.new_tensor(2.0)))[..., 2, :1]


@pytest.mark.parametrize(
    ("latent", "words"),
    ((within, "not the same everywhere"), (direction, "smooth map"), (correlation, "CorrCholeskyTransform")),
)
def test_latents_that_no_chain_can_start_or_move_in_are_refused(latent, words):
    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(latent(x, a), 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match=words):
        annealed_log_likelihood(Pair(model), torch.zeros(2, 1), Annealing(2, 2, 1))


def test_settings_are_checked():
    for wrong in ({"chains": 0}, {"start": "gide"}, {"schedule": "cosine"}, {"acceptance": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Annealing(**wrong)


def test_the_schedules_rise_from_zero_to_one():
    for schedule in ("linear", "sigmoid"):
        grid = inverse_temperatures(37, schedule)
        assert grid[0] == 0 and grid[-1] == 1 and (grid.diff() > 0).all()


def test_the_network_pair_agrees_with_quadrature(seed):
    """Two latents: a grid of step 0.04 is exact to far below the tolerance, since the integrand is smooth."""
    pair = latent(networks("mlp", (1, 4, 4), 2, hidden=(8,), seed=1))
    with torch.no_grad():
        for parameter in pair.model.parameters():
            parameter.mul_(2.0)
    x = torch.bernoulli(torch.full((20, 16), 0.5))
    found = annealed_log_likelihood(pair, x, Annealing(400, 16, 5), seed)
    axis = torch.arange(-7, 7.01, 0.04)
    z = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        prior = -0.5 * z.square().sum(-1) - math.log(2 * math.pi) + 2 * math.log(0.04)
        logits = pair.model.generator(z)
        each = logits @ x.T - torch.nn.functional.softplus(logits).sum(-1, keepdim=True)  # log p(x|z), (grid, N)
        exact = float((prior.unsqueeze(-1) + each).logsumexp(0).mean())
    assert abs(found.value - exact) < 0.1


# -- the partition function of an RBM ----------------------------------------------------------------------------------


def machine(visible, hidden):
    pair = rbm(visible, hidden)
    with torch.no_grad():
        pair.model.weight.normal_(std=0.5)
        pair.model.visible.normal_(std=0.5)
        pair.model.hidden.normal_(std=0.5)
    return pair


def test_the_partition_function_is_found_and_a_wrong_one_is_not(seed, monkeypatch):
    pair = machine(20, 12)
    exact = log_partition(pair)
    found = log_partition(pair, distributions=1000, exact=False, seed=seed)
    assert (exact.kind, found.kind) == ("exact", "lower bound")
    assert abs(found.value - exact.value) < 0.1
    # of the mean weight's own error; a heavier tail than the normal's is allowed for by 8 instead of 6
    assert abs(found.value - exact.value) < 8 * found.standard_error
    from_data = log_partition(pair, torch.full((20,), 0.3), 1000, exact=False, seed=seed)
    assert abs(from_data.value - exact.value) < 0.1

    import unigen.evaluate.boltzmann as boltzmann

    monkeypatch.setattr(boltzmann, "softplus", lambda value: torch.nn.functional.softplus(value * 1.5))
    assert abs(log_partition(pair, distributions=1000, exact=False, seed=seed).value - exact.value) > 0.1


def test_the_likelihood_of_an_rbm_is_exact_or_an_upper_bound():
    pair = machine(4, 3)
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
    found = boltzmann_log_likelihood(pair, every, log_partition(pair))
    assert found.kind == "exact" and float(found.per_datum.exp().sum()) == pytest.approx(1, abs=1e-5)
    bounded = boltzmann_log_likelihood(pair, every, log_partition(pair, distributions=500, exact=False))
    assert bounded.kind == "upper bound" and bounded.value == pytest.approx(found.value, abs=0.1)
    with pytest.raises(Refused, match="only an RBM"):
        log_partition(flow(3))


class Inner(PyroModule):
    """Three latents a datum in a plate inside the batch's: z_i ~ N(0, 1), x_i ~ N(z_i, 1), so x_i ~ N(0, 2)."""

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("inner", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_a_plate_inside_the_batch_belongs_to_its_datum(seed):
    x = torch.randn(10, 3, dtype=torch.float64) * 2**0.5
    exact = torch.distributions.Normal(0.0, 2**0.5).log_prob(x).sum(1)
    settings = Annealing(40, 32, 5)
    found = annealed_log_likelihood(Pair(Inner()), x, settings, seed)
    assert found.n == 10 and float((found.per_datum - exact).abs().max()) < 0.5  # some ten standard errors of each
    both = bidirectional_monte_carlo(Pair(Inner()), x, 20, settings, seed)
    assert abs(both.gap.value) < 0.3
