"""Divergences against exact oracles: closed forms, numeric suprema, double loops, enumeration, linear programs."""

import itertools
import math

import pytest
import torch

from unigen.divergences import (
    FDivergence,
    cross_entropy,
    energy_kernel,
    entropy,
    f_divergence,
    f_divergences,
    gaussian_kernel,
    jensen_shannon_divergence,
    kullback_leibler_divergence,
    median_bandwidth,
    mmd_squared,
    mutual_information,
    permutation_test,
    polynomial_kernel,
    wasserstein_1,
)

every = pytest.mark.parametrize("entry", f_divergences.values(), ids=f_divergences)

# D(P || Q) written out for probability vectors, independently of the generators.
CLOSED_FORMS = {
    "kullback_leibler": lambda p, q: (p * (p / q).log()).sum(-1),
    "reverse_kullback_leibler": lambda p, q: (q * (q / p).log()).sum(-1),
    "pearson": lambda p, q: ((p - q) ** 2 / q).sum(-1),
    "neyman": lambda p, q: ((p - q) ** 2 / p).sum(-1),
    "squared_hellinger": lambda p, q: ((p.sqrt() - q.sqrt()) ** 2).sum(-1),
    "jensen_shannon": lambda p, q: (p * (2 * p / (p + q)).log() + q * (2 * q / (p + q)).log()).sum(-1),
    "gan": lambda p, q: (p * (p / (p + q)).log() + q * (q / (p + q)).log()).sum(-1),
    "jeffreys": lambda p, q: ((p - q) * (p / q).log()).sum(-1),
}

INF, LOG_2 = math.inf, math.log(2)
# p log(2p/(p+q)) + q log(2q/(p+q)), summed over (p, q) = (1, 1/2) and (0, 1/2).
MIXED = math.log(4 / 3) + math.log(2 / 3) / 2 + LOG_2 / 2
# For P = (1, 0) and Q = (1/2, 1/2); for the two exchanged; for P = (1, 0) and Q = (0, 1).
EDGES = {
    "kullback_leibler": (LOG_2, INF, INF),
    "reverse_kullback_leibler": (INF, LOG_2, INF),
    "pearson": (1.0, INF, INF),
    "neyman": (INF, 1.0, INF),
    "squared_hellinger": (2 - math.sqrt(2), 2 - math.sqrt(2), 2.0),
    "jensen_shannon": (MIXED, MIXED, 2 * LOG_2),
    "gan": (MIXED - 2 * LOG_2, MIXED - 2 * LOG_2, 0.0),
    "jeffreys": (INF, INF, INF),
}


def tables(seed: int, rows: int = 50, classes: int = 7) -> torch.Tensor:
    draws = torch.empty(rows, classes, dtype=torch.float64)
    draws.exponential_(generator=torch.Generator().manual_seed(seed))
    return draws / draws.sum(-1, keepdim=True)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bound(entry: FDivergence, p: torch.Tensor, q: torch.Tensor, critic: torch.Tensor) -> torch.Tensor:
    return (p * critic - q * entry.conjugate(critic)).sum(-1)


def test_registry_names_are_the_entries_names_and_closed_forms_cover_them():
    assert list(f_divergences) == [entry.name for entry in f_divergences.values()]
    assert set(f_divergences) == set(CLOSED_FORMS) == set(EDGES)


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="'pearsons'; the nearest name is 'pearson'"):
        f_divergence("pearsons")


@every
def test_entries_compare_and_hash_by_name(entry):
    same = FDivergence(entry.name, *[torch.exp] * 6, 0.0)
    assert same == entry and hash(same) == hash(entry)
    assert [other for other in f_divergences.values() if other == entry] == [entry]
    with pytest.raises(AttributeError):
        entry.name = "other"


@every
def test_value_equals_the_closed_form(entry):
    p, q = tables(0), tables(1)
    torch.testing.assert_close(entry.value(p, q), CLOSED_FORMS[entry.name](p, q), rtol=1e-11, atol=1e-11)
    at_equality = -2 * LOG_2 if entry.name == "gan" else 0.0
    torch.testing.assert_close(
        entry.value(p, p), torch.full((50,), at_equality, dtype=torch.float64), rtol=0, atol=1e-14
    )


@every
def test_the_generator_of_a_log_ratio_is_the_generator(entry):
    log_ratio = torch.cat(
        [torch.linspace(-30, 30, 601, dtype=torch.float64), torch.logspace(-8, 0, 9, dtype=torch.float64)]
    )
    u = log_ratio.exp()
    expected = entry.f(u) / u.clamp_min(1)
    torch.testing.assert_close(entry.of_log_ratio(log_ratio), expected, rtol=1e-9, atol=1e-13)
    at = torch.tensor([-2.0, 0.0, 1.5], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    (ours,) = torch.autograd.grad((torch.where(at > 0, at.exp(), 1.0) * q * entry.of_log_ratio(at)).sum(), at)
    (theirs,) = torch.autograd.grad((q * entry.f(at.exp())).sum(), at)
    torch.testing.assert_close(ours, theirs)


@every
def test_single_precision_holds_ratios_that_it_cannot_write(entry):
    p, q = torch.tensor([0.5, 0.5]), torch.softmax(torch.tensor([0.0, -95.0]), 0)  # a ratio of 1e41
    for first, second in ((p, q), (q, p)):
        exact = CLOSED_FORMS[entry.name](first.double(), second.double())
        found = entry.value(first, second)
        assert found.dtype == torch.float32 and found.item() == pytest.approx(exact.to(found).item(), rel=1e-6)


def test_single_precision_holds_tables_of_small_numbers():
    p, q = torch.tensor([0.5, 0.5]), torch.softmax(torch.tensor([0.0, -95.0]), 0)
    truth = math.log(0.5) - 0.5 * (torch.log_softmax(torch.tensor([0.0, -95.0]).double(), 0).sum().item())
    assert kullback_leibler_divergence(p, q).item() == pytest.approx(truth, rel=1e-6)
    assert cross_entropy(p, q).item() == pytest.approx(truth + LOG_2, rel=1e-6)
    small = 1e-25  # whose square single precision cannot write: a rare event that tells another one for certain
    joint = torch.tensor([[1.0, 0.0], [0.0, small]])
    assert mutual_information(joint).item() == pytest.approx(-small * math.log(small), rel=1e-5)


@every
def test_value_has_the_slope_at_a_zero_of_p(entry):
    p = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([0.25, 0.75], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(entry.value(p, q), p)
    u = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(entry.f(u), u)
    torch.testing.assert_close(gradient[0], slope, equal_nan=True)


@every
def test_value_on_support_mismatch(entry):
    corner, other, even = (torch.tensor(row).double() for row in ([1.0, 0.0], [0.0, 1.0], [0.5, 0.5]))
    got = [entry.value(p, q).item() for p, q in ((corner, even), (even, corner), (corner, other))]
    assert got == pytest.approx(EDGES[entry.name], abs=1e-15)


@every
def test_generator_is_convex_with_known_value_at_one(entry):
    u = torch.logspace(-3, 3, 4001, dtype=torch.float64)
    chords = entry.f(u).diff() / u.diff()
    assert (chords.diff() > 0).all()
    assert entry.f(torch.ones((), dtype=torch.float64)).item() == pytest.approx(-2 * LOG_2 * (entry.name == "gan"))


@every
def test_optimal_critic_is_the_slope_of_the_generator(entry):
    u = torch.logspace(-4, 4, 401, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(entry.f(u).sum(), u)
    torch.testing.assert_close(entry.optimal_critic(u.detach()), slope, rtol=1e-9, atol=1e-11)
    assert (slope <= entry.critic_upper_bound).all()
    if entry.critic_upper_bound < INF:
        assert entry.optimal_critic(torch.tensor(1e20).double()).item() == pytest.approx(
            entry.critic_upper_bound, abs=1e-9
        )


@every
def test_dual_is_tight_at_the_optimal_critic(entry):
    p, q = tables(2), tables(3)
    torch.testing.assert_close(
        bound(entry, p, q, entry.optimal_critic(p / q)), entry.value(p, q), rtol=1e-10, atol=1e-10
    )


@every
def test_dual_is_below_the_divergence_elsewhere(entry):
    p, q = tables(4), tables(5)
    critic = entry.activation(3 * normal(6, 200, 50, 7))
    assert (bound(entry, p, q, critic) < entry.value(p, q)).all()
    # Next to the optimum too, where a wrong factor would break through the ceiling.
    best = entry.optimal_critic(p / q)
    for step in (-1e-3, 1e-3):
        inside = torch.where(best + step < entry.critic_upper_bound, best + step, best - 1e-3)
        assert (bound(entry, p, q, inside) < entry.value(p, q)).all()


@every
def test_conjugate_is_the_supremum(entry):
    u = torch.logspace(-6, 6, 200_001, dtype=torch.float64)
    if entry.name == "pearson":  # conjugate of the whole parabola, see the module
        u = torch.linspace(-10, 10, 200_001, dtype=torch.float64)
    for t in entry.activation(torch.linspace(-3, 3, 13, dtype=torch.float64)):
        supremum = (u * t - entry.f(u)).max().item()
        exact = entry.conjugate(t).item()
        assert supremum - 1e-9 <= exact <= supremum + 1e-6 * (1 + abs(exact))


@every
def test_conjugate_is_infinite_outside_its_domain(entry):
    if entry.critic_upper_bound == INF:
        assert entry.conjugate(torch.tensor([-50.0, 50.0])).isfinite().all()
        return
    t = torch.tensor([entry.critic_upper_bound + 1e-3, entry.critic_upper_bound + 5], requires_grad=True)
    assert (entry.conjugate(t) == INF).all()
    inside = torch.tensor([entry.critic_upper_bound - 1e-3, -50.0])
    assert entry.conjugate(inside).isfinite().all()


@every
def test_activation_maps_the_line_into_the_domain(entry):
    v = torch.linspace(-30, 30, 601, dtype=torch.float64)
    critic = entry.activation(v)
    assert (critic.diff() > 0).all() and (critic < entry.critic_upper_bound).all()
    composed = entry.conjugate_of_activation(v)
    torch.testing.assert_close(
        entry.conjugate(critic), composed, rtol=2e-3, atol=1e-12
    )  # the composition itself rounds
    middle = v.abs() < 5
    torch.testing.assert_close(entry.conjugate(critic)[middle], composed[middle], rtol=1e-11, atol=1e-13)


@every
def test_activations_are_finite_with_finite_gradients_in_single_precision(entry):
    v = torch.tensor([-80.0, -40.0, -1.0, 0.0, 1.0, 40.0, 80.0], requires_grad=True)
    for function in (entry.activation, entry.conjugate_of_activation):
        values = function(v)
        (gradient,) = torch.autograd.grad(values.sum(), v)
        assert values.isfinite().all() and gradient.isfinite().all()


@every
def test_derivatives_to_second_order(entry):
    v = torch.tensor([-20.0, -2.5, -0.1, 0.0, 0.7, 3.0], dtype=torch.float64, requires_grad=True)
    t = entry.activation(torch.tensor([-2.0, 0.0, 0.5, 2.0], dtype=torch.float64)).requires_grad_()
    for function, at in ((entry.conjugate_of_activation, v), (entry.conjugate, t)):
        assert torch.autograd.gradcheck(function, (at,))
        assert torch.autograd.gradgradcheck(function, (at,))


@every
def test_value_gradients_on_the_support_are_not_spoilt_by_zeros(entry):
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)

    def padded(logits):
        return torch.cat([logits.softmax(-1), torch.zeros(1, dtype=torch.float64)])

    q = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    plain, with_zero = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    entry.value(plain.softmax(-1), q).backward()
    entry.value(padded(with_zero), torch.cat([q, torch.zeros(1, dtype=torch.float64)])).backward()
    torch.testing.assert_close(with_zero.grad, plain.grad, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("t", [-1e6, -300.0, -30.0, -1.0, -1e-3, 0.0, 1e-3, 0.5, 1.0, 2.0, 30.0, 300.0])
def test_jeffreys_conjugate_solves_its_equation(t):
    # With s = log W(exp(1 - t)): f* = exp(-s) - 1 - s, and the maximizer u = exp(-s) has f'(u) = t.
    at = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    (u,) = torch.autograd.grad(f_divergence("jeffreys").conjugate(at), at)  # the slope of f* is the maximizer
    log_u = u.log().item()
    assert 1 + log_u - math.exp(-log_u) == pytest.approx(t, rel=1e-12, abs=1e-12)


def test_probabilities_are_checked():
    p = torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match="one shape"):
        f_divergence("gan").value(p, torch.tensor([1.0]))
    with pytest.raises(ValueError, match="least entry of -0.5"):
        kullback_leibler_divergence(p, torch.tensor([-0.5, 1.5]))
    with pytest.raises(ValueError, match="sums from 0.9"):
        entropy(torch.tensor([0.4, 0.5]))
    with pytest.raises(ValueError, match="floating-point"):
        entropy(torch.tensor([1, 0]))


def test_entropy_and_divergences_by_hand():
    p, q = torch.tensor([0.5, 0.25, 0.25, 0.0]).double(), torch.tensor([0.25, 0.25, 0.25, 0.25]).double()
    assert entropy(p).item() == pytest.approx(1.5 * LOG_2, abs=1e-15)
    assert kullback_leibler_divergence(p, q).item() == pytest.approx(0.5 * LOG_2, abs=1e-15)
    assert kullback_leibler_divergence(q, p).item() == INF
    corner, other = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 1.0]).double()
    assert jensen_shannon_divergence(corner, other).item() == pytest.approx(LOG_2, abs=1e-15)
    assert entropy(corner).item() == 0.0


def test_discrete_divergences_agree_with_the_family():
    p, q = tables(7), tables(8)
    torch.testing.assert_close(kullback_leibler_divergence(p, q), f_divergence("kullback_leibler").value(p, q))
    torch.testing.assert_close(2 * jensen_shannon_divergence(p, q), f_divergence("jensen_shannon").value(p, q))
    torch.testing.assert_close(jensen_shannon_divergence(p, q), jensen_shannon_divergence(q, p))
    cross_entropy = -(p * q.log()).sum(-1)
    torch.testing.assert_close(cross_entropy - entropy(p), kullback_leibler_divergence(p, q))


def test_wasserstein_1_by_hand_and_against_the_linear_program():
    x, y = torch.tensor([3.0, 0.0, 1.0]).double(), torch.tensor([8.0, 5.0, 6.0]).double()
    assert wasserstein_1(x, y).item() == pytest.approx(5.0, abs=1e-14)
    assert wasserstein_1(x, x.flip(0)).item() == 0.0
    # Sizes 2 and 3: mass 1/2 at 0 and 2; 1/3 at 0, 1, 4: |F - G| is 1/6 on (0, 1), 1/6 on (1, 2), 1/3 on (2, 4).
    assert wasserstein_1(torch.tensor([0.0, 2.0]), torch.tensor([0.0, 1.0, 4.0])).item() == pytest.approx(1.0)
    ot = pytest.importorskip("ot")
    x, y = normal(9, 6), normal(10, 11)
    plan_cost = ot.emd2([], [], (x[:, None] - y).abs().numpy())
    assert wasserstein_1(x, y).item() == pytest.approx(plan_cost, abs=1e-12)


@pytest.mark.parametrize("shift", [-0.7, 0.7])
def test_wasserstein_1_of_a_shift_is_its_length_and_its_slope_the_sign(shift):
    x, theta = normal(11, 20), torch.tensor(shift, dtype=torch.float64, requires_grad=True)
    distance = wasserstein_1(x, x + theta)
    distance.backward()
    assert distance.item() == pytest.approx(abs(shift), abs=1e-14)
    assert theta.grad.item() == pytest.approx(math.copysign(1, shift), abs=1e-12)


def test_wasserstein_1_refuses_rows():
    with pytest.raises(ValueError, match=r"shape \(n,\)"):
        wasserstein_1(torch.zeros(3, 1), torch.zeros(3))


KERNELS = {
    "gaussian": (
        gaussian_kernel((0.7, 2.0)),
        lambda a, b: sum(math.exp(-(math.dist(a, b) ** 2) / (2 * s * s)) for s in (0.7, 2.0)) / 2,
    ),
    "cubic": (polynomial_kernel(3), lambda a, b: (sum(i * j for i, j in zip(a, b, strict=True)) / len(a) + 1) ** 3),
    "energy": (energy_kernel, lambda a, b: -math.dist(a, b)),
}
every_kernel = pytest.mark.parametrize("kernel, scalar", KERNELS.values(), ids=KERNELS)


@every_kernel
def test_mmd_is_the_double_loop(kernel, scalar):
    x, y = normal(12, 9, 3), normal(13, 6, 3) + 0.5
    rows_x, rows_y = x.tolist(), y.tolist()
    within_x = [scalar(a, b) for a, b in itertools.permutations(rows_x, 2)]
    within_y = [scalar(a, b) for a, b in itertools.permutations(rows_y, 2)]
    across = [scalar(a, b) for a in rows_x for b in rows_y]
    expected = sum(within_x) / len(within_x) + sum(within_y) / len(within_y) - 2 * sum(across) / len(across)
    assert mmd_squared(x, y, kernel).item() == pytest.approx(expected, abs=1e-12)


@every_kernel
def test_mmd_is_unbiased(kernel, scalar):
    # Every sample of two rows and of three, from two laws on three points, with its probability.
    points = [[0.0, 0.0], [1.0, -0.5], [2.0, 1.5]]
    p, q = [0.5, 0.3, 0.2], [0.1, 0.6, 0.3]
    signed = [a - b for a, b in zip(p, q, strict=True)]
    truth = sum(signed[i] * signed[j] * scalar(points[i], points[j]) for i in range(3) for j in range(3))
    rows = torch.tensor(points, dtype=torch.float64)
    mean = 0.0
    for xs in itertools.product(range(3), repeat=2):
        for ys in itertools.product(range(3), repeat=3):
            weight = math.prod(p[i] for i in xs) * math.prod(q[i] for i in ys)
            mean += weight * mmd_squared(rows[list(xs)], rows[list(ys)], kernel).item()
    assert mean == pytest.approx(truth, abs=1e-12)


@every_kernel
def test_mmd_is_differentiable_also_at_equal_rows(kernel, scalar):
    x, y = normal(14, 5, 2).requires_grad_(), normal(15, 4, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: mmd_squared(a, b, kernel), (x, y))
    repeated = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(mmd_squared(repeated, y.detach(), kernel), repeated)
    assert gradient.isfinite().all()


def test_gaussian_kernel_keeps_its_digits_far_from_the_origin():
    x, y = normal(16, 5, 2), normal(17, 5, 2)
    kernel = gaussian_kernel(1.0)
    torch.testing.assert_close(kernel(x + 1e6, y + 1e6), kernel(x, y), rtol=0, atol=1e-8)


def test_kernel_and_sample_errors():
    with pytest.raises(ValueError, match="positive finite bandwidths"):
        gaussian_kernel([1.0, 0.0])
    with pytest.raises(ValueError, match="whole number"):
        polynomial_kernel(2.5)
    with pytest.raises(ValueError, match=r"\(4, 2\) and \(4, 3\)"):
        mmd_squared(torch.zeros(4, 2), torch.zeros(4, 3), energy_kernel)
    with pytest.raises(ValueError, match="At least 2 rows"):
        mmd_squared(torch.zeros(1, 2), torch.zeros(4, 2), energy_kernel)


def test_kernels_are_values():
    assert gaussian_kernel([1, 2]) == gaussian_kernel((1.0, 2.0)) and hash(polynomial_kernel()) == hash(
        polynomial_kernel(3)
    )


def test_median_bandwidth():
    # Pairwise distances of 0, 1, 3 and 7 sorted: 1 2 3 4 6 7; the lower median is 3. Thinned to 0 and 3, it is 3.
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert median_bandwidth(line) == 3.0
    assert median_bandwidth(line, rows=2) == 3.0
    with pytest.raises(ValueError, match="by hand"):
        median_bandwidth(torch.zeros(5, 2))
    with pytest.raises(ValueError, match="n >= 2"):
        median_bandwidth(torch.zeros(1, 2))


def test_permutation_test_counts_ties_and_separated_samples():
    generator = torch.Generator().manual_seed(0)
    x = torch.arange(6.0)[:, None]
    # Constant rows: every split ties, so p is 1 exactly.
    assert permutation_test(torch.ones(4, 2), torch.ones(5, 2), gaussian_kernel(1.0), 20, generator) == 1.0
    # Far apart, only the 2 of 924 splits that separate reach the observed value: of 99, more than 4 do so with
    # probability 3e-6, the false-alarm rate here.
    p_value = permutation_test(x, x + 100, gaussian_kernel(30.0), 99, generator)
    assert 0.01 <= p_value <= 0.05


def test_permutation_test_holds_its_level_and_has_power():
    generator = torch.Generator().manual_seed(1)
    kernel = gaussian_kernel(1.0)
    null = shifted = 0
    for _ in range(200):
        x, y = torch.randn(2, 12, 2, generator=generator, dtype=torch.float64)
        null += permutation_test(x, y, kernel, 19, generator) <= 0.05
    for _ in range(40):
        x, y = torch.randn(2, 40, 2, generator=generator, dtype=torch.float64)
        shifted += permutation_test(x, y + 1.2, kernel, 39, generator) <= 0.05
    assert null <= 26  # Binomial(200, 0.05) exceeds 26 with probability 3e-6
    assert shifted >= 37  # power above 0.9; it is above 0.999 at this shift, so that fewer has probability below 1e-7


def test_permutation_test_leaves_the_global_stream_alone():
    before = torch.get_rng_state()
    x = normal(18, 5, 2)
    first, second = (
        permutation_test(x, x + 0.3, energy_kernel, 30, torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert first == second and torch.equal(before, torch.get_rng_state())
