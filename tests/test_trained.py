"""Models trained to the end, held to the figures that they are known to reach.

Likelihoods, divergences and variances are exact, by enumeration, closed forms or quadrature; where a figure is an estimate, the
test says how often a correct program would fail it.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from climbing import seeds, train
from oracles import bits, log_bit
from replay import expected, outcomes, prepare, replay
from torch import Tensor
from worlds import WORLDS

from unigen import routines
from unigen.densities import GaussianMixture, Moons
from unigen.divergences import gaussian_kernel, median_bandwidth, permutation_test
from unigen.engines import eager
from unigen.engines.programs import Programs
from unigen.networks import Baseline, networks
from unigen.objectives import critic
from unigen.pair import Pair
from unigen.pairs import Likelihood, adversarial, flow, rbm, sigmoid_belief
from unigen.phases import PHI, Phase, Routine, ScoreFunction, Sleep, Wake
from unigen.phases import Baseline as BaselineOf

DOUBLE = torch.float64


# -- belief networks ---------------------------------------------------------------------------------------------------


def belief_densities(pair: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return log p(x, h) and log q(h|x), (N, M), over every value h of all hidden units, written out."""
    down, up = pair.model.down, pair.guide.up
    widths = [linear.in_features for linear in down]
    h = [part.float() for part in bits(sum(widths)).split(widths, 1)]  # nearest the data first
    with torch.no_grad():
        log_p = log_bit(pair.model.top, h[-1]).sum(-1)
        log_q = torch.zeros(())
        for linear, back, above, below in zip(down[1:], up[1:], h[1:], h, strict=False):
            log_p = log_p + log_bit(linear(2 * above - 1), below).sum(-1)
            log_q = log_q + log_bit(back(2 * below - 1), above).sum(-1)
        log_p = log_p + log_bit(down[0](2 * h[0] - 1), x[:, None]).sum(-1)
        return log_p, log_q + log_bit(up[0](2 * x - 1)[:, None], h[0]).sum(-1)


def evidence(pair: Pair, x: Tensor) -> float:
    """Return the mean log p(x)."""
    return float(torch.logsumexp(belief_densities(pair, x)[0], 1).mean())


def bound(pair: Pair, x: Tensor) -> float:
    """Return the mean elbo, E_q included."""
    log_p, log_q = belief_densities(pair, x)
    return float((log_q.exp() * (log_p - log_q)).sum(1).mean())


def words() -> Tensor:
    """Eight of the 64 rows of six bits: three bits, each said twice."""
    return bits(3).float().repeat(1, 2)


@pytest.mark.parametrize("routine", [routines.wake_sleep, routines.nvil], ids=lambda routine: routine.name)
def test_a_belief_network_of_thirteen_units_gains_likelihood(routine: Routine) -> None:
    """Row C1: the exact log p(x) rises, by four fifths of what there is to gain at least."""
    torch.manual_seed(0)
    pair, x = sigmoid_belief(6, (4, 3), psi={"baseline": Baseline(6, (8,))}), words()
    before, best = evidence(pair, x), -math.log(8)
    train(x.repeat(25, 1), routine, pair, 400, theta=0.03, phi=0.03, psi=0.01)
    assert best >= evidence(pair, x) >= before + 0.8 * (best - before)


def test_a_helmholtz_machine_learns_patterns() -> None:
    """Row C3: KL(data || model) < 0.1 nat, the data the eight 3x3 images of which each column is full or empty."""
    torch.manual_seed(0)
    x = bits(3).float().repeat(1, 3)
    pair = sigmoid_belief(9, (6,))
    train(x.repeat(25, 1), routines.wake_sleep, pair, 600, theta=0.05, phi=0.05)
    assert 0 <= -math.log(8) - evidence(pair, x) < 0.1


@seeds(1, 5)
def test_baselines_raise_the_bound_of_a_belief_network(seed: int) -> None:
    """Row D10: at equal steps and rates the exact bound with NVIL's baselines is above that of the bare score function."""
    reached = []
    for routine in (routines.nvil, routines.reinforce):
        torch.manual_seed(seed)
        pair = sigmoid_belief(6, (4, 3), psi={"baseline": Baseline(6, (8,))}, seed=seed)
        train(words().repeat(4, 1), routine, pair, 250, theta=0.03, phi=0.03, psi=0.01)
        reached.append(bound(pair, words()))
    assert reached[0] > reached[1]


def test_a_learned_baseline_lowers_the_variance() -> None:
    """Row D9, without Monte Carlo error: the variance of one sample's gradient, summed over phi, by every outcome."""
    torch.manual_seed(0)
    tiny = WORLDS["one bit"]()
    pair = tiny.pair
    pair.psi = {"baseline": Baseline(2, (3,)).double()}
    train(bits(2).repeat(64, 1), (routines.nvil[1],), pair, 300, psi=0.05)

    def variance(phase: Phase) -> float:
        mean = expected(phase, pair, tiny.batch(1)).gradient
        prepare(pair, tiny.batch(1))
        runs = list(outcomes(lambda: replay(phase, pair, tiny.batch(1))))
        second = sum(float(p) * sum(float(g.square().sum()) for g in gradients) for p, (_, gradients) in runs)
        return second - sum(float(g.square().sum()) for g in mean.values())

    elbo = routines.reinforce[0].maximize
    bare = variance(Phase(elbo, Wake(), PHI, estimator=ScoreFunction()))
    helped = variance(Phase(elbo, Wake(), PHI, estimator=ScoreFunction(), control_variate=BaselineOf("baseline")))
    assert 0 < helped < bare / 2


# -- Boltzmann machines ------------------------------------------------------------------------------------------------


def bars_and_stripes() -> Tensor:
    """The 14 images of 3x3 whose rows, or whose columns, are each full or empty."""
    rows = [[bit for bit in line for _ in range(3)] for line in itertools.product((0.0, 1.0), repeat=3)]
    columns = [list(line) * 3 for line in itertools.product((0.0, 1.0), repeat=3)]
    return torch.tensor(sorted({tuple(image) for image in rows + columns}))


@pytest.mark.parametrize(
    ("k", "rows", "steps", "most"), [(5, 20, 600, 0.5), pytest.param(25, 70, 4000, 0.05, marks=pytest.mark.slow)]
)
def test_persistent_chains_learn_bars_and_stripes(k: int, rows: int, steps: int, most: float) -> None:
    """Row C5: KL(data || model) by the exact partition function, < 0.05 nat in the end, of 3.6 at the start.

    Chains that must cross between 14 far modes need many sweeps: 8000 steps of 5 still leave 0.1 nat. The short run asks for
    less.
    """
    torch.manual_seed(0)
    x = bars_and_stripes()
    pair: Any = rbm(9, 16)
    train(x.repeat(rows, 1), routines.persistent_contrastive_divergence(k), pair, steps, theta=0.02)
    with torch.no_grad():
        machine = pair.model.distribution
        kl = -math.log(14) - (machine.log_prob(x) - machine.log_partition()).mean()
    assert 0 <= kl < most


def test_the_gradient_of_contrastive_divergence_approaches_the_exact_one() -> None:
    """Row C5. The mean over 2^16 chains has a standard error of 1/512 at most in each of 11 entries: 0.012 is six of them."""
    torch.manual_seed(0)
    pair: Any = rbm(3, 2).double()
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.normal_(0, 2)  # a machine that mixes slowly
    x = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]], dtype=DOUBLE)
    machine = pair.model.distribution
    exact = torch.autograd.grad((machine.log_prob(x) - machine.log_partition()).mean(), list(pair.parameters()))
    errors = []
    for k in (1, 2, 4, 32):
        phase = routines.contrastive_divergence(k)[0]
        _, surrogate = eager.objective(phase, pair, x.repeat(2**15, 1))
        gradient = torch.autograd.grad(surrogate, list(pair.parameters()))
        errors.append(max(float((g - e).abs().max()) for g, e in zip(gradient, exact, strict=True)))
    assert errors[0] > errors[1] + 0.024 > errors[2] + 0.048 > errors[3] + 0.072 and errors[3] < 0.012, errors


# -- adversaries -------------------------------------------------------------------------------------------------------


@seeds(1, 20)
def test_a_discriminator_of_symbols_reaches_the_optimal_one(seed: int) -> None:
    """Rows A12 and F5: D(x) = p/(p + q) to 1e-3 after training, the generator held; there its mean gradient is zero."""
    torch.manual_seed(seed)
    tiny = WORLDS["symbol gan"]()
    pair, x = tiny.pair, torch.tensor([2, 0, 1, 1])
    p = torch.bincount(x).double() / 4
    q = torch.softmax(pair.model.table.detach(), 0)
    train(x.repeat(8192), routines.gan, pair, 200, phi=0.03)
    found = torch.sigmoid(pair.guide.odds.detach())
    assert (found - p / (p + q)).abs().max() <= 1e-3
    with torch.no_grad():
        pair.guide.odds.copy_((p / q).log())
    assert all(float(g.abs().max()) < 1e-12 for g in expected(routines.gan[0], pair, x).gradient.values())


def game(dimension: int, hidden: tuple[int, ...] = (16,)) -> Any:
    """Return a game over rows (N, dimension), on all of the line."""
    return adversarial(networks("mlp", (dimension,), dimension, hidden=hidden), Likelihood("normal", bounded=False))


def generated(pair: Pair, rows: int) -> Tensor:
    """Return what the generator makes, (rows, D)."""
    like = torch.zeros(rows, pair.model.latent)
    with torch.no_grad():
        return eager.draw(Sleep(), Programs(pair), {"x": like})["x"][rows:]


@pytest.mark.parametrize(
    "routine",
    [routines.gan, routines.gan_minimax, routines.f_gan, routines.wgan, routines.wgan_gp, routines.mmd, routines.iwgan],
    ids=lambda routine: routine.name,
)
def test_the_gradient_of_every_sample_criterion_reaches_the_generator(routine: Routine) -> None:
    """Row F1: each parameter of the generator gets a gradient of its own."""
    torch.manual_seed(0)
    pair = game(1)
    _, surrogate = eager.objective(routine[-1], pair, 3 + 0.5 * torch.randn(64, 1))
    assert all(bool(g.abs().max() > 0) for g in torch.autograd.grad(surrogate, pair.group("theta")))


def test_an_implicit_generator_fits_a_normal() -> None:
    """Row F1: N(3, 0.5) to 0.05 in mean and deviation; 2^16 draws leave standard errors of 0.002."""
    torch.manual_seed(0)
    pair = game(1)
    train([3 + 0.5 * torch.randn(128, 1) for _ in range(400)], routines.mmd, pair, 400, theta=0.05)
    made = generated(pair, 2**16)
    assert abs(float(made.mean()) - 3) < 0.05 and abs(float(made.std()) - 0.5) < 0.05


@pytest.mark.parametrize("penalty", [10.0, 50.0])
def test_the_slope_of_a_penalized_critic_tends_to_one(penalty: float) -> None:
    """Row F14: between points at distance d the best slope is 1 + d / (2 penalty), the top of s d - penalty (s - 1)^2."""
    torch.manual_seed(0)
    pair = game(2, (32,))
    with torch.no_grad():  # the generator makes the origin, the data lie at distance 2
        for parameter in pair.model.generator.parameters():
            parameter.zero_()
    x = torch.tensor([1.2, 1.6]).expand(128, 2).contiguous()

    def slope() -> Tensor:
        between = (x * torch.linspace(0, 1, len(x))[:, None]).requires_grad_()
        draw = eager.draw(Sleep(), Programs(pair), {"x": x})
        odds = critic(draw, x=torch.cat([between, between]))
        return torch.autograd.grad(odds.sum() / 2, between)[0].norm(dim=1)

    before = slope()
    train(x, (routines.wgan_gp(penalty, 1)[0],), pair, 400, phi=0.01)
    assert (before - 1).abs().max() > 0.2
    assert (slope() - (1 + 1 / penalty)).abs().max() < 0.05  # d = 2


def test_a_generator_trained_by_mmd_is_not_told_from_the_data() -> None:
    """Row F22: it passes a permutation test at the level 0.01, which the untrained generator fails.

    A generator without fault would fail it with one seed of a hundred.
    """
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    density = GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=DOUBLE), 0.5)
    pair = game(2, (32,))
    fresh = density.sample(200, generator)
    kernel = gaussian_kernel(median_bandwidth(fresh))
    p_values = [permutation_test(fresh, generated(pair, 200), kernel, 199, generator)]
    train([density.sample(128, generator) for _ in range(400)], routines.mmd, pair, 400, theta=0.01)
    p_values.append(permutation_test(fresh, generated(pair, 200), kernel, 199, generator))
    assert p_values[0] == 1 / 200 and p_values[1] > 0.01


# -- flows -------------------------------------------------------------------------------------------------------------


def log_density(pair: Pair, x: Tensor) -> Tensor:
    """Return log p(x) of a flow, (N,)."""
    with torch.no_grad():
        return eager.draw(Wake(), Programs(pair), {"x": x}).log_p


def test_a_flow_on_two_moons_beats_a_normal() -> None:
    """Row H3: by more than 0.3 nat of negative log-likelihood on fresh rows, against the normal of the data's moments."""
    torch.manual_seed(0)
    moons, generator = Moons(), torch.Generator().manual_seed(0)
    x, fresh = moons.sample(512, generator), moons.sample(4096, generator)
    pair = flow(2, steps=4, hidden=(32,), start=x)
    train(x, routines.maximum_likelihood, pair, 200, theta=0.02)
    normal = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.T, correction=0))
    assert float(log_density(pair, fresh).mean() - normal.log_prob(fresh).mean()) > 0.3


def test_a_flow_reaches_a_known_density() -> None:
    """Row H3: KL(p || flow) < 0.05 nat by quadrature, p a parabola x_2 ~ N(x_1^2 / 2, 0.5^2) over x_1 ~ N(0, 1)."""
    torch.manual_seed(0)

    def rows(count: int) -> Tensor:
        first = torch.randn(count)
        return torch.stack([first, first.square() / 2 + 0.5 * torch.randn(count)], 1)

    pair = flow(2, steps=2, hidden=(32,), start=rows(1024))
    batches = [rows(512) for _ in range(300)]
    train(batches, routines.maximum_likelihood, pair, 300, theta=0.02)
    first, second = torch.linspace(-5, 5, 401), torch.linspace(-4, 17, 841)
    x = torch.cartesian_prod(first, second)
    log_p = -0.5 * x[:, 0] ** 2 - 0.5 * ((x[:, 1] - x[:, 0] ** 2 / 2) / 0.5) ** 2 - math.log(2 * math.pi * 0.5)
    cell = (10 / 400) * (21 / 840)
    assert float(log_p.exp().sum()) * cell == pytest.approx(1, abs=1e-4)
    kl = float((log_p.exp() * (log_p - log_density(pair, x))).sum()) * cell
    assert 0 <= kl < 0.05
