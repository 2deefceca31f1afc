"""Divergences between distributions: closed forms against quadrature and tables, estimates against their standard errors.

Statistical checks draw a fresh seed and print it. Each compares at 6 standard errors of at least 20,000 samples: a false alarm
of about 2e-9 a comparison, under 1e-7 for the file.
"""

import math
import random

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Distribution

from unigen.densities import DENSITIES
from unigen.divergences import (
    Estimate,
    block_estimate,
    cross_entropy_between,
    energy_distance,
    entropy,
    entropy_of,
    f_divergence,
    f_divergence_between,
    f_divergences,
    jensen_shannon_between,
    jensen_shannon_divergence,
    kullback_leibler_between,
    kullback_leibler_divergence,
)

INF = math.inf
N = 20_000
LOG_2 = math.log(2)


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=torch.float64)


def mixture(weight: float, mean: float) -> Distribution:
    parts = dist.Normal(t(0.0, mean), t(1.0, 0.5))
    return dist.MixtureSameFamily(dist.Categorical(t(weight, 1 - weight)), parts)


@pytest.fixture
def seed():
    value = random.SystemRandom().randrange(2**31)
    print(f"seed {value}")
    return value


@pytest.fixture(autouse=True)
def global_stream_is_untouched():
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())


def integral(function) -> float:
    x = torch.linspace(-15, 15, 30_001, dtype=torch.float64)
    return torch.trapezoid(function(x), x).item()


def within(estimate: Estimate, truth: float) -> None:
    assert not estimate.exact and estimate.standard_error > 0
    assert abs(estimate.value.item() - truth) < 6 * estimate.standard_error.item()


CLOSED = {
    "normals": (dist.Normal(t(0.3), t(0.8)), dist.Normal(t(-0.5), t(1.4))),
    "normal and laplace": (dist.Laplace(t(0.2), t(0.7)), dist.Normal(t(0.0), t(1.3))),
    "gammas": (dist.Gamma(t(2.0), t(1.5)), dist.Gamma(t(3.0), t(1.0))),
}


@pytest.mark.parametrize("p, q", CLOSED.values(), ids=CLOSED)
def test_closed_forms_are_the_integrals(p, q):
    found = kullback_leibler_between(p, q)

    def on_support(x):
        return x.clamp_min(1e-9) if isinstance(p, dist.Gamma) else x

    def density(x):
        return (
            torch.where(x > 0, p.log_prob(on_support(x)).exp(), 0.0)
            if isinstance(p, dist.Gamma)
            else p.log_prob(x).exp()
        )

    expected = integral(lambda x: density(x) * (p.log_prob(on_support(x)) - q.log_prob(on_support(x))))
    assert found.exact and found.standard_error.item() == 0 and found.samples == 0
    assert found.value.item() == pytest.approx(expected, abs=2e-4 if isinstance(p, dist.Gamma | dist.Laplace) else 1e-9)
    crossed = cross_entropy_between(p, q)
    assert crossed.exact
    assert crossed.value.item() == pytest.approx(entropy_of(p).value.item() + found.value.item(), abs=1e-12)


def test_entropies_in_closed_form_and_their_units():
    sigma = 0.7
    assert entropy_of(dist.Normal(t(3.0), t(sigma))).value.item() == pytest.approx(
        0.5 * math.log(2 * math.pi * math.e * sigma**2), abs=1e-12
    )
    assert entropy_of(dist.Bernoulli(t(0.5)), base=2).value.item() == pytest.approx(1.0, abs=1e-12)
    rows = dist.Normal(torch.zeros(3, 2).double(), t(1.0)).to_event(1)
    assert entropy_of(rows).value.shape == (3,)


def check_estimates(kullback_leibler, seed):
    p, q = mixture(0.3, 2.0), mixture(0.6, -1.0)
    truth = integral(lambda x: p.log_prob(x).exp() * (p.log_prob(x) - q.log_prob(x)))
    within(kullback_leibler(p, q, N, seed), truth)


def test_estimates_are_within_their_standard_errors(seed):
    p, q = mixture(0.3, 2.0), mixture(0.6, -1.0)
    with pytest.raises(ValueError, match="no closed form of KL.MixtureSameFamily"):
        kullback_leibler_between(p, q)
    check_estimates(lambda p, q, n, s: kullback_leibler_between(p, q, n, seed=s), seed)
    with pytest.raises(AssertionError):  # the other direction
        check_estimates(lambda p, q, n, s: kullback_leibler_between(q, p, n, seed=s), seed)

    def m(x):
        return torch.logaddexp(p.log_prob(x), q.log_prob(x)) - math.log(2)

    within(entropy_of(p, N, seed=seed), integral(lambda x: -p.log_prob(x).exp() * p.log_prob(x)))
    within(cross_entropy_between(p, q, N, seed=seed), integral(lambda x: -p.log_prob(x).exp() * q.log_prob(x)))
    halves = [integral(lambda x, a=a: a.log_prob(x).exp() * (a.log_prob(x) - m(x))) for a in (p, q)]
    within(jensen_shannon_between(p, q, N, seed=seed), sum(halves) / 2)
    in_bits = entropy_of(p, N, base=2, seed=seed)
    in_nats = entropy_of(p, N, seed=seed)
    assert in_bits.value.item() * math.log(2) == pytest.approx(in_nats.value.item())
    assert in_bits.standard_error.item() * math.log(2) == pytest.approx(in_nats.standard_error.item())


def test_the_standard_error_is_honest(seed):
    # 300 estimates of a known value: their z-scores have variance 1; chi-square(300)/300 leaves (0.55, 1.65) with
    # probability below 1e-7.
    p, q = mixture(0.3, 2.0), mixture(0.6, -1.0)
    truth = integral(lambda x: p.log_prob(x).exp() * (p.log_prob(x) - q.log_prob(x)))
    found = [kullback_leibler_between(p, q, 2000, seed=seed + 10 * i) for i in range(300)]
    z = torch.stack([(e.value - truth) / e.standard_error for e in found])
    assert 0.55 < z.square().mean().item() < 1.65


# Light-tailed ratios in both directions, so that every f has a finite variance.
@pytest.mark.parametrize("name", f_divergences)
def test_f_divergences_from_samples(name, seed):
    p, q = mixture(0.3, 1.0), mixture(0.6, 1.0)
    entry = f_divergence(name)
    truth = integral(lambda x: q.log_prob(x).exp() * entry.f((p.log_prob(x) - q.log_prob(x)).exp()))
    within(f_divergence_between(name, p, q, N, seed=seed), truth)


@pytest.mark.parametrize("name", f_divergences)
def test_f_divergences_on_finite_supports_are_the_tables(name):
    for first, second in (((0.2, 0.5, 0.3), (0.6, 0.3, 0.1)), ((0.5, 0.5, 0.0), (0.25, 0.25, 0.5))):
        for p, q in ((t(*first), t(*second)), (t(*second), t(*first))):
            found = f_divergence_between(name, dist.Categorical(p), dist.Categorical(q))
            assert found.exact
            assert found.value.item() == pytest.approx(f_divergence(name).value(p, q).item(), abs=1e-12)
            if f_divergence(name).logarithmic:
                bits = f_divergence_between(name, dist.Categorical(p), dist.Categorical(q), base=2)
                assert bits.value.item() == pytest.approx(f_divergence(name).value(p, q, base=2).item(), abs=1e-12)
            else:
                with pytest.raises(ValueError, match="no unit to change; got base=2"):
                    f_divergence_between(name, dist.Categorical(p), dist.Categorical(q), base=2)


@pytest.mark.parametrize("logit", (-95.0, -1000.0))
def test_f_divergences_of_log_probabilities_that_are_no_probabilities(logit):
    p, q = dist.Bernoulli(torch.tensor(0.5)), dist.Bernoulli(logits=torch.tensor(logit))
    # q is zero to eleven digits, but for its logarithm
    close = {
        "kullback_leibler": math.log(0.5) - 0.5 * logit,
        "reverse_kullback_leibler": LOG_2,
        "squared_hellinger": 2 - math.sqrt(2),
        "jensen_shannon": 0.5 * LOG_2 + 0.5 * math.log(2 / 3) + math.log(4 / 3),
        "gan": 0.5 * math.log(1 / 3) + math.log(2 / 3),
        "jeffreys": -0.5 * logit,
        "neyman": 1.0,
    }
    for name, truth in close.items():
        found = f_divergence_between(name, p, q)
        assert found.exact and found.value.item() == pytest.approx(truth, rel=1e-5), name
    assert f_divergence_between("kullback_leibler", q, p).value.item() == pytest.approx(LOG_2, rel=1e-5)
    assert f_divergence_between("jeffreys", q, p).value.item() == pytest.approx(-0.5 * logit, rel=1e-5)


def test_f_divergences_of_densities_far_apart_are_finite(seed):
    p, q = dist.Normal(0.0, 1.0), dist.Normal(200.0, 1.0)  # log ratios of 20,000
    for name, truth in (
        ("jensen_shannon", 2 * LOG_2),
        ("gan", 0.0),
        ("squared_hellinger", 2.0),
        ("kullback_leibler", 2e4),
    ):
        found = f_divergence_between(name, p, q, N, seed=seed)
        assert abs(found.value.item() - truth) <= 6 * found.standard_error.item() + 1e-5 * (1 + truth), name


def test_the_unit_of_an_estimate_is_that_of_its_standard_error():
    p, q = mixture(0.3, 1.0), mixture(0.6, 1.0)
    nats, bits = (f_divergence_between("jensen_shannon", p, q, 100, base=base, seed=0) for base in (math.e, 2))
    assert bits.value.item() == pytest.approx(nats.value.item() / math.log(2), rel=1e-12)
    assert bits.standard_error.item() == pytest.approx(nats.standard_error.item() / math.log(2), rel=1e-12)


def test_finite_supports_are_summed_and_differentiable():
    logits = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    p, q = dist.Categorical(logits=logits[0]), dist.Categorical(logits=logits[1])
    tables = logits.softmax(-1)
    for found, expected in (
        (jensen_shannon_between(p, q), jensen_shannon_divergence(*tables)),
        (kullback_leibler_between(p, q), kullback_leibler_divergence(*tables)),
        (entropy_of(p), entropy(tables[0])),
    ):
        assert found.exact
        torch.testing.assert_close(found.value, expected, rtol=1e-12, atol=1e-12)
        (gradient,) = torch.autograd.grad(found.value, logits, retain_graph=True)
        (right,) = torch.autograd.grad(expected, logits, retain_graph=True)
        torch.testing.assert_close(gradient, right, rtol=1e-10, atol=1e-12)


MISMATCHED = {
    "uniforms": (dist.Uniform(t(0.0), t(2.0)), dist.Uniform(t(0.0), t(1.0))),
    "normal in a uniform": (dist.Normal(t(0.0), t(1.0)), dist.Uniform(t(0.0), t(1.0))),
    "categoricals": (dist.Categorical(t(0.5, 0.5, 0.0)), dist.Categorical(t(1.0, 0.0, 0.0))),
    "bernoullis": (dist.Bernoulli(t(0.5)), dist.Bernoulli(t(0.0))),
    "binomials": (dist.Binomial(3, t(0.5)), dist.Binomial(2, t(0.5))),
    "normal in a half-normal": (dist.Normal(t(0.0), t(1.0)), dist.HalfNormal(t(1.0))),
    "student in a gamma": (dist.StudentT(t(3.0)), dist.Gamma(t(1.0), t(1.0))),
    "mixture in a beta": (mixture(0.5, 1.0), dist.Beta(t(2.0), t(2.0))),
}


def test_probabilities_given_as_zero_are_zero_and_small_ones_are_not():
    # torch's own log_prob and closed forms move a given zero to the spacing of the dtype: a finite, wrong divergence.
    half = dist.Binomial(3, t(0.5))
    assert kullback_leibler_between(half, dist.Binomial(3, t(0.0))).value.item() == INF
    assert kullback_leibler_between(half, dist.Binomial(3, t(1.0))).value.item() == INF
    assert kullback_leibler_between(
        dist.Bernoulli(t(1.0)), dist.Bernoulli(t(0.25)), base=2
    ).value.item() == pytest.approx(2, abs=1e-14)
    far = kullback_leibler_between(dist.Bernoulli(t(1.0)), dist.Bernoulli(logits=t(-800.0)))
    assert far.value.item() == pytest.approx(800.0)
    far = kullback_leibler_between(dist.Categorical(t(1.0, 0.0)), dist.Categorical(logits=t(-900.0, 0.0)))
    assert far.value.item() == pytest.approx(900.0)
    rows = dist.Bernoulli(t(0.5, 0.5)).to_event(1), dist.Bernoulli(t(0.5, 0.0)).to_event(1)
    assert cross_entropy_between(*rows, samples=100).value.item() == INF


@pytest.mark.parametrize("p, q", MISMATCHED.values(), ids=MISMATCHED)
def test_a_support_that_is_left_costs_infinity(p, q):
    # 1000 samples of these p all fall inside the support of q with probability below 1e-170
    found = kullback_leibler_between(p, q, samples=1000)
    assert found.value.item() == INF and found.standard_error.item() == 0.0
    assert cross_entropy_between(p, q, samples=1000).value.item() == INF
    shannon = jensen_shannon_between(p, q, samples=1000)
    assert 0 < shannon.value.item() <= math.log(2)
    assert math.isfinite(shannon.standard_error.item())
    assert f_divergence_between("kullback_leibler", p, q, samples=1000).value.item() == INF
    assert f_divergence_between("jensen_shannon", p, q, samples=1000).value.isfinite()


BETWEEN = {
    "kullback_leibler": kullback_leibler_between,
    "cross_entropy": cross_entropy_between,
    "jensen_shannon": jensen_shannon_between,
    "squared_hellinger": lambda p, q, samples=None, **more: f_divergence_between(
        "squared_hellinger", p, q, samples, **more
    ),
}


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
def test_finite_supports_broadcast_whichever_batch_is_wider(between):
    rows = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1], [0.25, 0.4, 0.35]], dtype=torch.float64)
    bits = t(0.3, 0.6, 0.5)
    for family, given in ((dist.Categorical, rows), (dist.Bernoulli, bits)):
        alone = torch.stack([torch.stack([between(family(a), family(b)).value for b in given]) for a in given])
        for found, expected in (
            (between(family(given[0]), family(given)), alone[0]),
            (between(family(given), family(given[0])), alone[:, 0]),
            (between(family(given[:2, None]), family(given)), alone[:2]),
        ):
            assert found.exact and found.standard_error.shape == expected.shape
            torch.testing.assert_close(found.value, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
def test_samples_broadcast_whichever_batch_is_wider(between, seed):
    one, rows = dist.Laplace(t(0.2), t(0.7)), dist.StudentT(t(5.0, 8.0, 5.0), t(-1.0, 0.0, 2.0), t(1.0))
    for p, q in ((one, rows), (rows, one)):
        found = between(p, q, N, seed=seed)
        for row in range(3):
            third = dist.StudentT(rows.df[row], rows.loc[row], t(1.0))
            alone = between(*((one, third) if p is one else (third, one)), N, seed=seed + 10)
            error = math.hypot(found.standard_error[row].item(), alone.standard_error.item())
            assert abs(found.value[row].item() - alone.value.item()) < 6 * error


def test_a_poisson_of_rate_zero_is_a_point():
    found = kullback_leibler_between(dist.Poisson(t(0.0, 0.0, 1.0)), dist.Poisson(t(1.0, 0.0, 0.0)))
    assert found.exact and found.value.tolist() == [1.0, 0.0, INF]
    rows = (dist.Poisson(t(0.0, 2.0)).to_event(1), dist.Poisson(t(1.5, 1.0)).to_event(1))
    assert kullback_leibler_between(*rows).value.item() == pytest.approx(1.5 + 2 * LOG_2 - 1)


def test_an_estimate_of_which_one_half_is_closed_is_an_estimate():
    table, counts = dist.Categorical(t(0.5, 0.5)), dist.Poisson(t(1.0))
    for p, q in ((table, counts), (counts, table)):
        found = jensen_shannon_between(p, q, samples=100)
        assert not found.exact and found.samples == 100 and found.standard_error > 0


def test_disjoint_supports_are_log_two_apart():
    p, q = dist.Uniform(t(0.0), t(1.0)), dist.Uniform(t(2.0), t(3.0))
    assert jensen_shannon_between(p, q, 100).value.item() == pytest.approx(math.log(2), abs=1e-14)
    assert f_divergence_between("squared_hellinger", p, q, 100).value.item() == pytest.approx(2.0, abs=1e-14)


@pytest.mark.parametrize("name", DENSITIES)
def test_the_plane_densities_have_the_entropy_they_state(name, seed):
    density = DENSITIES[name]()
    x = density.sample(N, torch.Generator().manual_seed(seed)).double()
    values = -density.log_prob(x)
    error = values.std().item() / math.sqrt(N)
    # the checkerboard is uniform: no spread. Sampling in single precision moves the ring by less than 1e-3.
    assert abs(values.mean().item() - density.entropy) < 6 * error + 1e-3


class Pinned(torch.distributions.Normal):
    """A distribution without a way to expand."""

    def expand(self, batch_shape, _instance=None):
        raise NotImplementedError


def test_refusals():
    p = mixture(0.5, 1.0)
    with pytest.raises(ValueError, match="samples from 2; got 1"):
        entropy_of(p, samples=1)
    with pytest.raises(ValueError, match="event shapes"):
        kullback_leibler_between(dist.Normal(torch.zeros(2), 1.0), dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pytest.raises(ValueError, match=r"batch shapes \(2,\) and \(3,\); expected shapes that broadcast"):
        kullback_leibler_between(dist.Normal(torch.zeros(2), 1.0), dist.Normal(torch.zeros(3), 1.0))
    with pytest.raises(ValueError, match="Pinned are not both written to expand; give them one batch shape"):
        kullback_leibler_between(dist.Normal(torch.zeros(2), 1.0), Pinned(0.0, 1.0))
    with pytest.raises(ValueError, match="nearest name is 'pearson'"):
        f_divergence_between("peerson", p, p, 10)


def test_block_estimates_are_means_over_disjoint_blocks(seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(600, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    found = block_estimate(energy_distance, x, y + 1.0, blocks=20, seed=seed)
    assert found.samples == 20
    # |x - x'| is Rayleigh(sqrt 2), |x - y| Rice: their means give 2E|x-y| - E|x-x'| - E|y-y'|.
    rice = integral_of_rice(math.sqrt(2.0), math.sqrt(2.0))
    truth = 2 * rice - 2 * math.sqrt(2) * math.sqrt(math.pi / 2)
    # t with 19 degrees of freedom exceeds 12 with probability 3e-10
    assert abs(found.value.item() - truth) < 12 * found.standard_error.item()
    assert found.value.item() > 5 * found.standard_error.item() > 0
    with pytest.raises(ValueError, match="2 blocks of 3 rows"):
        block_estimate(energy_distance, x[:3], y, blocks=2)


def integral_of_rice(distance: float, spread: float) -> float:
    """E|v| for v ~ N((distance, 0), spread^2 I) on the plane."""
    r = torch.linspace(0, 20, 20_001, dtype=torch.float64)
    bessel = torch.special.i0e(r * distance / spread**2)
    density = r / spread**2 * torch.exp(-((r - distance) ** 2) / (2 * spread**2)) * bessel
    return torch.trapezoid(r * density, r).item()


def test_the_energy_distance_is_the_double_loop():
    x, y = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = y[:4] + 0.5
    across = sum(math.dist(a, b) for a in x.tolist() for b in y.tolist()) / 20
    within_x = sum(math.dist(a, b) for a in x.tolist() for b in x.tolist()) / 20
    within_y = sum(math.dist(a, b) for a in y.tolist() for b in y.tolist()) / 12
    assert energy_distance(x, y).item() == pytest.approx(2 * across - within_x - within_y, abs=1e-12)
