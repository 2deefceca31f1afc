"""unigen equals the libraries where those are right, and hand-written losses elsewhere: values and gradients.

Pyro's ``Trace_ELBO`` and ``RenyiELBO`` (reparameterized guide) are compared sample by sample, on common random numbers.
``TraceMeanField_ELBO`` differs from ``vae`` by log p(z) - log q(z|x) against its mean -KL: for normal p and q that is a
polynomial of degree two in the standard noise, so the two noises +1 and -1 average it exactly. ``TraceEnum_ELBO`` and
``Enumerate()`` are both exact. All in float64; no test here is statistical.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from unigen import routines
from unigen.engines import eager
from unigen.engines.sites import Site, check_sampler
from unigen.networks import networks
from unigen.objectives import GradientPenalized, elbo, iwae, log_evidence
from unigen.pair import Pair, PairError
from unigen.pairs import adversarial, latent, mixture
from unigen.phases import PHI, THETA, Enumerate, Phase, Wake

ROWS, DIMENSION = 7, 6
BOTH = THETA + PHI


def rows() -> Tensor:
    return torch.rand(ROWS, DIMENSION, dtype=torch.float64)


def latent_pair(likelihood: str) -> Pair:
    return latent(networks("mlp", (DIMENSION,), 2, hidden=(5,), seed=4), likelihood).double()


def game(likelihood: str = "bernoulli") -> Pair:
    return adversarial(networks("mlp", (DIMENSION,), 2, hidden=(5,), seed=5), likelihood).double()


def gradients(loss: Tensor, pair: Pair, *groups: str) -> list[Tensor]:
    parameters = pair.group(*groups)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def ours(phase: Phase, pair: Pair, x: Tensor, seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(seed)
    value, surrogate = eager.objective(phase, pair, x)
    return value, gradients(surrogate, pair, *phase.move)


def theirs(
    loss: Callable[[], Tensor], pair: Pair, seed: int = 0, groups: tuple[str, ...] = BOTH
) -> tuple[Tensor, list[Tensor]]:
    """Return the value and gradients per datum that a summed loss of a library stands for."""
    torch.manual_seed(seed)
    ascent = -loss() / ROWS
    return ascent.detach(), gradients(ascent, pair, *groups)


def agree(one: tuple[Tensor, list[Tensor]], other: tuple[Tensor, list[Tensor]], tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(one[0], other[0], rtol=0, atol=tolerance)
    assert len(one[1]) == len(other[1]) > 0
    assert any(bool(gradient.abs().max() > 1e-4) for gradient in one[1])  # else equality would say nothing
    for mine, its in zip(one[1], other[1], strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=tolerance)


# -- Pyro --------------------------------------------------------------------------------------------------------------

every_likelihood = pytest.mark.parametrize("likelihood", ["bernoulli", "normal", "discretized_logistic"])


@every_likelihood
def test_vae_is_trace_elbo_sample_by_sample(likelihood):
    pair, x = latent_pair(likelihood), rows()
    loss = Trace_ELBO()
    agree(ours(routines.vae[0], pair, x), theirs(lambda: loss.differentiable_loss(pair.model, pair.guide, x), pair))


def test_elbo_of_particles_is_trace_elbo_of_particles():
    pair, x = latent_pair("bernoulli"), rows()
    loss = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    agree(
        ours(Phase(elbo, Wake(4), BOTH), pair, x),
        theirs(lambda: loss.differentiable_loss(pair.model, pair.guide, x), pair),
    )


@every_likelihood
@pytest.mark.parametrize("k", [1, 2, 5])
def test_iwae_is_renyi_at_zero_sample_by_sample(likelihood, k):
    pair, x = latent_pair(likelihood), rows()
    value, gradient = ours(Phase(iwae, Wake(k), BOTH), pair, x)
    if k == 1:
        agree((value, gradient), ours(routines.vae[0], pair, x))
    loss = RenyiELBO(alpha=0, num_particles=k, vectorize_particles=True, max_plate_nesting=1)
    torch.manual_seed(0)
    expected = -loss.loss(pair.model, pair.guide, x) / ROWS
    assert value.item() == pytest.approx(expected, abs=1e-12)
    for parameter in pair.parameters():
        parameter.grad = None
    torch.manual_seed(0)
    loss.loss_and_grads(pair.model, pair.guide, x)
    its = [-p.grad / ROWS for p in pair.group(*BOTH)]
    agree((value, gradient), (torch.tensor(expected, dtype=value.dtype), its))


@every_likelihood
def test_vae_is_trace_mean_field_elbo_in_expectation(likelihood, monkeypatch):
    pair, x = latent_pair(likelihood), rows()
    loss = TraceMeanField_ELBO()
    sign = 1 - 2 * torch.randint(0, 2, (ROWS, 2)).double()
    results = []
    for noise in (sign, -sign):
        monkeypatch.setattr(
            "torch.distributions.normal._standard_normal", lambda shape, dtype, device, noise=noise: noise.expand(shape)
        )
        results.append(
            (
                ours(routines.vae[0], pair, x),
                theirs(lambda: loss.differentiable_loss(pair.model, pair.guide, x), pair),
            )
        )
    # one noise alone differs, or the average would prove nothing
    assert not torch.allclose(results[0][0][0], results[0][1][0], rtol=0, atol=1e-6)

    def average(which: int) -> tuple[Tensor, list[Tensor]]:
        (one, first), (other, second) = results[0][which], results[1][which]
        return (one + other) / 2, [(a + b) / 2 for a, b in zip(first, second, strict=True)]

    agree(average(0), average(1))


class TwoBits(PyroModule):
    """z1 ~ Bernoulli, z2 ~ Bernoulli(z1), x ~ Normal(z1, z2)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor(0.3))
        self.second = nn.Parameter(torch.tensor([-0.4, 0.8]))
        self.loc = nn.Parameter(torch.randn(2, 2, DIMENSION))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Bernoulli(logits=self.first)).long()
            z2 = pyro.sample("z2", dist.Bernoulli(logits=self.second[z1])).long()
            pyro.sample("x", dist.Normal(self.loc[z1, z2], 0.7).to_event(1), obs=x)


class TwoBitsGuide(PyroModule):
    """q(z1|x) q(z2|z1, x)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(DIMENSION, 3)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            first, off, on = self.linear(x).unbind(-1)
            z1 = pyro.sample("z1", dist.Bernoulli(logits=first))
            pyro.sample("z2", dist.Bernoulli(logits=off * (1 - z1) + on * z1))


def discrete_pairs() -> list[Pair]:
    return [Pair(TwoBits(), TwoBitsGuide()).double(), mixture(3, rows().float(), seed=6).double()]


@pytest.mark.parametrize("pair", discrete_pairs(), ids=["two bits", "mixture"])
def test_enumerated_elbo_is_trace_enum_elbo(pair):
    x = rows()
    loss = TraceEnum_ELBO(max_plate_nesting=1)
    guide = config_enumerate(pair.guide, "parallel")
    agree(
        ours(Phase(elbo, Enumerate(), BOTH), pair, x),
        theirs(lambda: loss.differentiable_loss(pair.model, guide, x), pair),
    )


@pytest.mark.parametrize("pair", discrete_pairs(), ids=["two bits", "mixture"])
def test_maximum_likelihood_is_trace_enum_elbo_of_the_model_alone(pair):
    x = rows()
    loss = TraceEnum_ELBO(max_plate_nesting=1)
    model = config_enumerate(pair.model, "parallel")
    agree(
        ours(Phase(log_evidence, Enumerate(), THETA), pair, x),
        theirs(lambda: loss.differentiable_loss(model, lambda x: None, x), pair, groups=THETA),
    )


# -- losses written by hand --------------------------------------------------------------------------------------------


def play(pair: Any, x: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return G(z) for the generated rows, and the noise stream as the pair's model uses it."""
    torch.manual_seed(seed)
    z = torch.randn(2 * ROWS, pair.model.latent, dtype=x.dtype)[ROWS:]
    return torch.sigmoid(pair.model.generator(z)), z


def logits(pair: Any, x: Tensor) -> Tensor:
    return pair.guide.head(pair.guide.trunk(x)).squeeze(-1)


def by_hand(value: Tensor, pair: Pair, *groups: str) -> tuple[Tensor, list[Tensor]]:
    return value.detach(), gradients(value, pair, *groups)


def test_gan_is_two_logistic_losses():
    pair, x = game(), rows()
    fake, _ = play(pair, x)
    real, made = logits(pair, x), logits(pair, fake)
    ones, zeros = torch.ones(ROWS).double(), torch.zeros(ROWS).double()
    discriminator = binary_cross_entropy_with_logits(real, ones) + binary_cross_entropy_with_logits(made, zeros)
    agree(ours(routines.gan[0], pair, x), by_hand(-discriminator / 2, pair, "phi"))
    generator = binary_cross_entropy_with_logits(made, ones)
    reversed_ = binary_cross_entropy_with_logits(real, zeros).detach()
    agree(ours(routines.gan[1], pair, x), by_hand(-(generator + reversed_) / 2, pair, "theta"))
    agree(ours(routines.gan_minimax[1], pair, x), by_hand(discriminator / 2, pair, "theta"))


def test_gan_in_single_precision_is_two_logistic_losses_to_1e_6():
    pair, x = game().float(), rows().float()
    fake, _ = play(pair, x)
    real, made = logits(pair, x), logits(pair, fake)
    ones, zeros = torch.ones(ROWS), torch.zeros(ROWS)
    discriminator = binary_cross_entropy_with_logits(real, ones) + binary_cross_entropy_with_logits(made, zeros)
    agree(ours(routines.gan[0], pair, x), by_hand(-discriminator / 2, pair, "phi"), 1e-6)
    generator = binary_cross_entropy_with_logits(made, ones)
    reversed_ = binary_cross_entropy_with_logits(real, zeros).detach()
    agree(ours(routines.gan[1], pair, x), by_hand(-(generator + reversed_) / 2, pair, "theta"), 1e-6)


def test_f_gan_by_the_name_of_gan_is_the_minimax_game():
    pair, x = game(), rows()
    for phase, named in zip(routines.f_gan("gan"), routines.gan_minimax, strict=True):
        value, gradient = ours(phase, pair, x)
        agree((value / 2, [g / 2 for g in gradient]), ours(named, pair, x))


def test_wgan_is_the_gap_of_the_critic():
    pair, x = game(), rows()
    fake, _ = play(pair, x)
    gap = logits(pair, x).mean() - logits(pair, fake).mean()
    agree(ours(routines.wgan[0], pair, x), by_hand(gap, pair, "phi"))
    agree(ours(routines.wgan[1], pair, x), by_hand(-gap, pair, "theta"))


def test_wgan_gp_penalizes_the_slope_by_hand():
    pair, x = game(), rows()
    fake, _ = play(pair, x)
    share = torch.rand(ROWS, 1, dtype=x.dtype)
    between = (x + share * (fake - x)).detach().requires_grad_()
    (slope,) = torch.autograd.grad(logits(pair, between).sum(), between, create_graph=True)
    gap = logits(pair, x).mean() - logits(pair, fake).mean()
    penalized = gap - 3 * (slope.norm(dim=-1) - 1).square().mean()
    agree(ours(routines.wgan_gp(3.0)[0], pair, x), by_hand(penalized, pair, "phi"), 1e-10)


def test_gradient_of_wgan_gp_is_the_finite_difference():
    pair, x = game(), rows()
    phase = Phase(GradientPenalized(10.0), routines.wgan_gp[0].under, PHI)
    _, gradient = ours(phase, pair, x)
    step, most = 1e-6, 0.0
    for parameter, slope in zip(pair.group("phi"), gradient, strict=True):
        flat = parameter.data.view(-1)
        for index in range(flat.numel()):
            kept, sides = flat[index].item(), []
            for side in (step, -step):
                flat[index] = kept + side
                torch.manual_seed(0)
                sides.append(eager.objective(phase, pair, x)[0].item())
            flat[index] = kept
            most = max(most, abs((sides[0] - sides[1]) / (2 * step) - slope.view(-1)[index].item()))
    assert most < 1e-7


def test_mmd_is_the_double_loop():
    pair, x = game(), rows()
    fake, _ = play(pair, x)
    centred = x - x.mean(0)
    scale = math.sqrt(2 * (centred.square().sum() / (ROWS - 1)).item())

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        square = ((a - b) / scale).square().sum()
        return sum(torch.exp(-square / (2 * width**2)) for width in (0.125, 0.25, 0.5, 1.0, 2.0)) / 5

    pairs = [(i, j) for i in range(ROWS) for j in range(ROWS)]
    apart = [(i, j) for i, j in pairs if i != j]
    within = sum(kernel(x[i], x[j]) + kernel(fake[i], fake[j]) for i, j in apart) / len(apart)
    across = sum(kernel(x[i], fake[j]) for i, j in pairs) / len(pairs)
    agree(ours(routines.mmd[0], pair, x), by_hand(-(within - 2 * across), pair, "theta"))


# -- samplers that do not draw from their densities --------------------------------------------------------------------


def correlations(size: int) -> tuple[Any, Callable[[Tensor], Tensor], float]:
    """Return LKJ(2), the square of the last entry below the diagonal of its factor, and the mean of that.

    Row i is a product of partial correlations r and lengths sqrt(1 - r^2) of r before; (r + 1) / 2 is Beta(a, a), so that
    E r^2 = 1 / (2 a + 1), with a from 2 + (size - 2) / 2 down to 2 (Lewandowski, Kurowicka & Joe 2009).
    """
    exact = 1.0
    for k in range(size - 1):
        square = 1 / (2 * (2 + (size - 2 - k) / 2) + 1)
        exact *= square if k == size - 2 else 1 - square
    return dist.LKJCholesky(size, torch.tensor(2.0)), lambda z: z[..., -1, -2].square(), exact


def two_angles() -> tuple[Any, Callable[[Tensor], Tensor], float]:
    """Return two dependent angles, the cosine of the first, and its mean by the trapezoid rule, exact to rounding here."""
    fn = dist.SineBivariateVonMises(*map(torch.tensor, (0.0, 0.0, 1.5, 1.5)), correlation=torch.tensor(0.5))
    angle = torch.linspace(-math.pi, math.pi, 201, dtype=torch.float64)[1:]
    grid = torch.stack(torch.meshgrid(angle, angle, indexing="ij"), -1)
    mass = fn.log_prob(grid).exp()
    return fn, lambda z: z[..., 0].cos(), float((grid[..., 0].cos() * mass).sum() / mass.sum())


@pytest.mark.parametrize(
    "case", (partial(correlations, 2), partial(correlations, 3), partial(correlations, 4), two_angles)
)
def test_the_samplers_that_are_refused_are_those_that_are_wrong(case: Callable[[], Any]) -> None:
    """Right within 6 standard errors, which errs in one of 10^9 runs, and wrong beyond 20. One that is mended fails here."""
    fn, function, exact = case()
    found = function(fn.sample((100_000,))).double()
    error = abs(float(found.mean()) - exact) / float(found.std() / math.sqrt(len(found)))
    assert not 6 < error < 20
    try:
        check_sampler([Site("z", fn, fn.sample(), False, (), 1.0, None, False)])
    except PairError:
        refused = True
    else:
        refused = False
    assert refused == (error > 6)
