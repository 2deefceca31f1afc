"""The pairs: likelihoods, special distributions, flows, mixtures, Boltzmann machines and their kernels, all shapes.

Oracles are exact: sums over every grey level or every state, autograd's Jacobian, a quadrature grid, the transition matrix
of a kernel, the Metropolis ratio by hand. No test here is statistical.
"""

import itertools
import math
import sys
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn

from unigen import routines
from unigen.divergences import f_divergence, f_divergences
from unigen.engines import eager
from unigen.engines.checks import check
from unigen.engines.programs import Programs
from unigen.evaluate import Annealing, Protocol, annealed_log_likelihood, evaluate, guide_draws, reconstruct, sample
from unigen.kernels import Gibbs, Langevin
from unigen.networks import networks
from unigen.objectives import FGan, log_p, log_q
from unigen.pair import Pair, PairError
from unigen.pairs import Likelihood, adversarial, flow, latent, mixture, rbm, sigmoid_belief
from unigen.pairs.likelihoods import DiscretizedLogistic, Implicit, Stratified
from unigen.pairs.mixture import SMALLEST_SCALE
from unigen.phases import Phase, Sleep, Wake
from unigen.training import fit

DOUBLE = torch.float64
LOG_2_PI = math.log(2 * math.pi)


def drawn(pair: Pair, expectation: Any, x: Tensor, move: tuple[str, ...] = ()) -> Any:
    return eager.draw(expectation, Programs(pair, move), pair.bind(x))


def optimizers_of(pair: Pair, lr: float = 1e-2) -> dict[str, torch.optim.Optimizer]:
    return {group: torch.optim.Adam(pair.group(group), lr) for group in ("theta", "phi", "psi") if pair.group(group)}


# -- likelihoods -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 3, 16, 256])
def test_the_discretized_logistic_sums_to_one(levels):
    loc = torch.tensor([-3.0, -0.2, 0.0, 0.37, 0.5, 1.0, 1.4, 7.0], dtype=DOUBLE)[:, None]
    scale = torch.tensor([1e-3, 0.02, 0.3, 1.0, 30.0], dtype=DOUBLE)
    grid = torch.arange(levels, dtype=DOUBLE).view(-1, 1, 1) / (levels - 1)
    total = torch.logsumexp(DiscretizedLogistic(loc, scale, levels).log_prob(grid), 0)
    assert total.abs().max() < 1e-10


def test_the_discretized_logistic_is_a_difference_of_sigmoids():
    loc, scale = torch.rand(50, dtype=DOUBLE), 0.05 + torch.rand(50, dtype=DOUBLE)
    value = torch.randint(1, 255, (50,)).double() / 255
    upper, lower = (value + 0.5 / 255 - loc) / scale, (value - 0.5 / 255 - loc) / scale
    # the difference is taken in the lower tail, where sigmoids keep their digits: sigma(u) - sigma(l) = sigma(-l) - sigma(-u)
    upper, lower = torch.where(upper + lower > 0, -lower, upper), torch.where(upper + lower > 0, -upper, lower)
    expected = torch.log(torch.sigmoid(upper) - torch.sigmoid(lower))
    assert (DiscretizedLogistic(loc, scale).log_prob(value) - expected).abs().max() < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("log_scale", [-9.0, -2.0, 4.0])
def test_the_discretized_logistic_has_finite_gradients_far_in_the_tails(dtype, log_scale):
    loc = torch.tensor([-50.0, -1.0, 0.5, 2.0, 50.0], dtype=dtype).requires_grad_()
    raw = torch.tensor(log_scale, dtype=dtype).requires_grad_()
    grid = torch.arange(256, dtype=dtype)[:, None] / 255
    density = DiscretizedLogistic(loc, raw.exp(), 256).log_prob(grid)
    gradients = torch.autograd.grad(density.sum(), [loc, raw])
    assert torch.isfinite(density).all() and all(torch.isfinite(gradient).all() for gradient in gradients)
    outside = torch.autograd.grad(DiscretizedLogistic(loc, raw.exp(), 256).log_prob(grid[100]).sum(), loc)[0]
    assert (outside[:2] > 0).all() and (outside[3:] < 0).all()  # the mean is always pulled towards the data


def test_the_discretized_logistic_samples_its_grid():
    value = DiscretizedLogistic(torch.rand(20), torch.tensor(0.5), 5).sample((1000,))
    assert value.shape == (1000, 20) and set((4 * value).unique().tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0}


@pytest.mark.parametrize("levels", [1, 0, -4])
def test_a_single_grey_level_is_refused(levels):
    with pytest.raises(ValueError, match=f"at least two grey levels.*{levels}"):
        Likelihood("discretized_logistic", levels=levels)


def test_likelihoods_by_hand():
    raw, x = torch.randn(7, 5, dtype=DOUBLE), torch.randint(0, 2, (7, 5)).double()
    probability = torch.sigmoid(raw)
    expected = (x * probability.log() + (1 - x) * (1 - probability).log()).sum(-1)
    bernoulli, bounded = Likelihood("bernoulli"), Likelihood("normal").double()
    free = Likelihood("normal", bounded=False).double()
    torch.testing.assert_close(bernoulli.distribution(raw).log_prob(x), expected)
    for normal, mean in ((bounded, probability), (free, raw)):
        scale = normal.log_scale.exp()
        by_hand = (-0.5 * ((x - mean) / scale).square() - scale.log() - 0.5 * LOG_2_PI).sum(-1)
        torch.testing.assert_close(normal.distribution(raw).log_prob(x), by_hand)
        torch.testing.assert_close(normal.mean(raw), mean)
    for name in ("bernoulli", "normal", "discretized_logistic"):
        distribution = Likelihood(name, levels=16).double().distribution(raw)
        assert distribution.event_shape == (5,) and distribution.batch_shape == (7,)
        assert distribution.sample().shape == (7, 5)


def test_the_implicit_site_carries_gradient_and_has_no_density():
    value = torch.randn(3, 4, requires_grad=True)
    site = Implicit(value)
    assert site.batch_shape == (3,) and site.event_shape == (4,)
    assert site.expand((2, 3)).rsample().shape == (2, 3, 4)
    assert torch.equal(torch.autograd.grad(site.rsample().sum(), value)[0], torch.ones(3, 4))
    with pytest.raises(NotImplementedError, match="no density"):
        site.log_prob(value)


def test_the_label_is_stratified():
    label = Stratified.of(torch.zeros(3, 4))
    assert torch.equal(label.rsample(), torch.tensor([1.0, 1, 1, 0, 0, 0]))
    assert label.expand((2, 6)).rsample().shape == (2, 6)
    assert torch.allclose(label.log_prob(label.rsample()).exp(), torch.full((6,), 0.5))


# -- flows -------------------------------------------------------------------------------------------------------------

KINDS = ("affine_coupling", "affine_autoregressive")
every_flow = pytest.mark.parametrize("kind", KINDS)
in_double = pytest.mark.usefixtures("double")
before_and_after = pytest.mark.parametrize("trained", [False, True], ids=["at the start", "after training"])


@pytest.fixture
def double():
    """Pyro inverts an autoregressive transform in torch's default dtype, whatever the dtype of its weights."""
    torch.set_default_dtype(DOUBLE)
    yield
    torch.set_default_dtype(torch.float32)


def built(kind: str, dimension: int, trained: bool) -> Any:
    """A flow fitted (or not) to a bent sheet of noise."""
    noise = torch.randn(256, dimension, dtype=DOUBLE)
    x = noise.clone()
    x[:, 0] = 2 * noise[:, 0]
    x[:, 1] = 0.5 * noise[:, 1] + 0.4 * noise[:, 0].square()
    pair = flow(dimension, kind=kind, steps=3, hidden=(16,), start=x.float()).double()
    if trained:
        optimizers = optimizers_of(pair)
        first, last = [eager.step(routines.maximum_likelihood, pair, optimizers, x)[0] for _ in range(25)][::24]
        assert last > first
    return pair


@every_flow
@in_double
@before_and_after
@pytest.mark.parametrize("dimension", [2, 3, 5])
def test_the_density_of_a_flow_is_its_jacobian(kind, trained, dimension):
    pair = built(kind, dimension, trained)
    x = 1.5 * torch.randn(6, dimension, dtype=DOUBLE)
    flowing = pair.model.distribution()

    def inverse(row: Tensor) -> Tensor:
        for transform in reversed(flowing.transforms):
            row = transform.inv(row)
        return row

    jacobians = torch.stack([torch.autograd.functional.jacobian(inverse, row) for row in x])
    base = torch.stack([inverse(row) for row in x])
    expected = (-0.5 * base.square() - 0.5 * LOG_2_PI).sum(-1) + torch.linalg.slogdet(jacobians)[1]
    found = drawn(pair, Wake(), x).log_p
    assert found.shape == (6,) and (found - expected).abs().max() < 1e-8


@every_flow
@in_double
@before_and_after
def test_a_flow_integrates_to_one(kind, trained):
    pair = built(kind, 2, trained)
    line = torch.linspace(-30, 30, 601, dtype=DOUBLE)
    density = drawn(pair, Wake(), torch.cartesian_prod(line, line)).log_p.exp()
    assert abs(density.sum().item() * (line[1] - line[0]).item() ** 2 - 1) < 1e-3


@every_flow
@in_double
@before_and_after
def test_a_flow_goes_there_and_back(kind, trained, monkeypatch):
    pair = built(kind, 4, trained)
    noise = torch.randn(50, 4, dtype=DOUBLE)
    monkeypatch.setattr("torch.normal", lambda *_, **__: noise)
    monkeypatch.setattr("torch.distributions.normal._standard_normal", lambda *_, **__: noise)
    x = drawn(pair, Sleep(), torch.zeros_like(noise))["x"]
    moved = drawn(pair, Sleep(), torch.zeros_like(noise), ("theta",))["x"]
    assert moved.requires_grad and not x.requires_grad and torch.equal(x, moved.detach())
    back = x.clone()  # a new tensor: no cache can know it
    for transform in reversed(pair.model.distribution().transforms):
        back = transform.inv(back)
    assert (back - noise).abs().max() < 1e-8


@every_flow
@in_double
def test_a_flow_forgets_its_cache_when_its_weights_move(kind):
    pair, x = built(kind, 3, False), torch.randn(5, 3, dtype=DOUBLE)
    dream = drawn(pair, Sleep(), x)["x"]  # fills the caches of every transform
    densities = [drawn(pair, Wake(), dream).log_p]
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    densities.append(drawn(pair, Wake(), dream).log_p)
    fresh = drawn(pair, Wake(), dream.clone()).log_p
    assert torch.equal(densities[1], fresh) and not torch.allclose(densities[0], fresh)


# -- mixtures ----------------------------------------------------------------------------------------------------------


def two_dimensional(rows: int = 120) -> Tensor:
    centre = torch.tensor([[0.0, 0.0], [3.0, 1.0], [-1.0, 4.0]], dtype=DOUBLE)
    return centre[torch.arange(rows) % 3] + torch.randn(rows, 2, dtype=DOUBLE)


def evidence(pair: Pair, x: Tensor) -> float:
    return eager.objective(routines.maximum_likelihood[0], pair, x)[0].item()


def test_the_evidence_of_a_mixture_is_exact():
    x = two_dimensional()
    pair: Any = mixture(3, x.float()).double()
    model = pair.model
    with torch.no_grad():
        model.logits.normal_()
    total = torch.zeros(len(x), dtype=DOUBLE)
    for k in range(3):
        scale = model.log_scale[k].exp()
        one = torch.exp(-0.5 * ((x - model.loc[k]) / scale).square()) / (scale * math.sqrt(2 * math.pi))
        total = total + torch.softmax(model.logits, 0)[k] * one.prod(-1)
    assert evidence(pair, x) == pytest.approx(total.log().mean().item(), abs=1e-12)


@pytest.mark.parametrize("likelihood", ["normal", "bernoulli"])
def test_em_never_lowers_the_evidence(likelihood):
    for seed in range(20):
        x = two_dimensional(60) if likelihood == "normal" else (torch.rand(60, 6) < torch.rand(6)).double()
        pair = mixture(4, x.float(), likelihood=likelihood, seed=seed).double()
        values = [evidence(pair, x)]
        for _ in range(6):
            eager.step(routines.em, pair, {}, x)
            values.append(evidence(pair, x))
        assert all(after >= before - 1e-10 for before, after in itertools.pairwise(values)), values
        assert values[-1] > values[0] + 1e-3


def test_em_reaches_the_closed_form_of_clusters_far_apart():
    centre = torch.tensor([[-500.0, 0.0], [500.0, 100.0]], dtype=DOUBLE)
    label = (torch.arange(90) % 3 == 0).long()
    x = centre[label] + torch.randn(90, 2, dtype=DOUBLE)
    pair: Any = mixture(2, x.float()).double()
    with torch.no_grad():
        pair.model.loc.copy_(centre + 5)
    for _ in range(3):
        eager.step(routines.em, pair, {}, x)
    share = torch.softmax(pair.model.logits, 0)
    for k in range(2):
        rows = x[label == k]
        assert share[k].item() == pytest.approx(len(rows) / 90, abs=1e-12)
        torch.testing.assert_close(pair.model.loc[k], rows.mean(0), rtol=0, atol=1e-10)
        torch.testing.assert_close(pair.model.log_scale[k].exp(), rows.std(0, correction=0), rtol=0, atol=1e-10)


def test_em_keeps_a_floor_under_the_scales():
    x = torch.cat([torch.zeros(10, 2), 5 + torch.randn(20, 2)]).double()
    pair: Any = mixture(2, x.float()).double()
    with torch.no_grad():
        pair.model.loc.copy_(torch.tensor([[0.0, 0.0], [5.0, 5.0]]))
    values = []
    for _ in range(10):
        eager.step(routines.em, pair, {}, x)
        values.append(evidence(pair, x))
    assert pair.model.log_scale.exp().min().item() == pytest.approx(SMALLEST_SCALE)
    assert all(after >= before - 1e-10 for before, after in itertools.pairwise(values))


# -- Boltzmann machines and kernels ------------------------------------------------------------------------------------


def states(size: int) -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=size)), dtype=DOUBLE)


def machine(dimension: int, hidden: int) -> Any:
    pair: Any = rbm(dimension, hidden).double()
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.normal_()
    return pair


@pytest.mark.parametrize(("dimension", "hidden"), [(3, 4), (4, 3), (1, 1), (5, 2)])
def test_log_z_is_the_sum_over_every_state(dimension, hidden, monkeypatch):
    monkeypatch.setattr(sys.modules["unigen.pairs.rbm"], "BLOCK", 3)
    pair = machine(dimension, hidden)
    model, x, h = pair.model, states(dimension), states(hidden)
    energy = x @ model.weight @ h.T + (x @ model.visible)[:, None] + (h @ model.hidden)[None]
    assert model.distribution.log_partition().item() == pytest.approx(torch.logsumexp(energy, (0, 1)).item(), abs=1e-12)
    torch.testing.assert_close(model.distribution.log_prob(x), torch.logsumexp(energy, 1))


def test_log_z_refuses_what_it_cannot_enumerate():
    with pytest.raises(ValueError, match="21 units, at most 20"):
        rbm(30, 21).model.distribution.log_partition()  # type: ignore[union-attr]


def test_gibbs_leaves_the_machine_invariant(monkeypatch):
    pair = machine(3, 2)
    x, h = states(3), states(2)
    log_p_of_x = pair.model.distribution.log_prob(x)
    stationary = torch.softmax(log_p_of_x, 0)
    transition = torch.zeros(8, 8, dtype=DOUBLE)
    for hidden in h:
        seen: list[Tensor] = []

        def bernoulli(probability: Tensor, hidden: Tensor = hidden, seen: list[Tensor] = seen) -> Tensor:
            seen.append(probability)
            return hidden.expand(probability.shape) if len(seen) == 1 else probability

        monkeypatch.setattr("torch.bernoulli", bernoulli)
        Gibbs()(Programs(pair), {"x": x})
        to_hidden = torch.where(hidden > 0, seen[0], 1 - seen[0]).prod(-1)  # p(h|x), one for each x
        to_visible = torch.where(x[None] > 0, seen[1][:, None], 1 - seen[1][:, None]).prod(-1)  # p(x'|h)
        transition += to_hidden[:, None] * to_visible
    assert (transition.sum(1) - 1).abs().max() < 1e-12
    assert (stationary @ transition - stationary).abs().max() < 1e-12
    assert not torch.allclose(transition, stationary.expand(8, 8), atol=1e-3)  # one sweep is no independent sample


def coupled(x: Tensor, inner: bool = True) -> None:
    """x of two elements apart, in a plate of their own, and a factor that couples them."""
    with pyro.plate("data", len(x), dim=-2) if inner else nullcontext():
        with pyro.plate("elements", 2, dim=-1):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
        pyro.factor("tie", -(x.prod(-1, keepdim=True) - 1).square() if inner else -(x.prod() - 1).square())


@pytest.mark.parametrize("kind", ["rows", "one datum", "scaled", "masked", "inner plate", "one datum of a plate"])
def test_langevin_accepts_by_the_metropolis_ratio(kind, monkeypatch):
    size, plated = 0.7, not kind.startswith("one datum")
    pair = built("affine_coupling", 2, True)
    flowing = pair.model
    programs = {
        "one datum": lambda x: pyro.sample("x", flowing.distribution(), obs=x),
        "scaled": poutine.scale(flowing, scale=3.0),
        "masked": lambda x: poutine.mask(flowing, mask=x[:, 0] > 0)(x),
        "inner plate": coupled,
        "one datum of a plate": partial(coupled, inner=False),
    }
    if kind in programs:
        program = programs[kind]
        pair = Pair(lambda x: program(x))
    x, there = torch.randn(40, 2, dtype=DOUBLE), torch.randn(40, 2, dtype=DOUBLE)
    rows = [slice(None)] if plated else list(range(40))
    answers = []
    for row in rows:
        start, end = x[row], there[row]

        def log_density(value: Tensor) -> tuple[Tensor, Tensor]:
            leaf = value.clone().requires_grad_()
            density = drawn(pair, Wake(), leaf, ("theta",)).log_p
            return density.detach(), torch.autograd.grad(density.sum(), leaf)[0]

        (here, slope), (other, back) = log_density(start), log_density(end)

        def log_q(to: Tensor, origin: Tensor, drift: Tensor) -> Tensor:
            mean = origin + 0.5 * size**2 * drift
            return torch.distributions.Normal(mean, size).log_prob(to).sum(-1)

        ratio = other + log_q(start, end, back) - here - log_q(end, start, slope)
        noise = (end - start - 0.5 * size**2 * slope) / size
        monkeypatch.setattr("torch.randn_like", lambda *_, noise=noise, **__: noise)
        for factor, accepted in ((-1e-6, True), (1e-6, False)):
            uniform = SimpleNamespace(log=(ratio + factor).clone)  # by its logarithm: exp may be zero, once in 40 runs
            monkeypatch.setattr("torch.rand_like", lambda *_, uniform=uniform, **__: uniform)
            moved = Langevin(size)(Programs(pair), {"x": start})["x"]
            torch.testing.assert_close(moved, end if accepted else start, rtol=0, atol=1e-12)
        answers.append(ratio)
    assert torch.cat([answer.reshape(-1) for answer in answers]).std() > 0.1


def test_the_persistent_chain_goes_on_and_the_other_restarts():
    x = states(4)
    pair = machine(4, 3)
    routine = routines.contrastive_divergence(1, persistent=True)
    eager.step(routine, pair, optimizers_of(pair, 1e-9), x)
    (first,) = (chain.clone() for chain in pair.chains.values())
    seen = []
    pair.model.register_forward_hook(lambda module, inputs, kwargs, out: seen.append(kwargs["x"]), with_kwargs=True)
    eager.step(routine, pair, optimizers_of(pair, 1e-9), x)
    assert any(torch.equal(value, first) for value in seen)
    seen.clear()
    eager.step(routines.contrastive_divergence, pair, optimizers_of(pair, 1e-9), x)
    assert torch.equal(seen[0], x) and not any(torch.equal(value, first) for value in seen)


# -- belief networks, and the shapes of images -------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [(5,), (5, 4), (5, 4, 3)])
def test_belief_networks_of_every_depth(layers):
    mean = torch.linspace(0, 1, 7)
    pair: Any = sigmoid_belief(7, layers, mean=mean)
    torch.testing.assert_close(pair.model.down[0].bias, torch.logit(mean.clamp(0.001, 0.999)))
    x = (torch.rand(6, 7) < 0.5).float()
    awake, asleep = drawn(pair, Wake(2), x), drawn(pair, Sleep(), x)
    for level, width in enumerate(layers, 1):
        assert awake[f"h{level}"].shape == (2, 6, width) and asleep[f"h{level}"].shape == (6, width)
        assert set(awake[f"h{level}"].unique().tolist()) <= {0.0, 1.0}
    assert awake.log_p.shape == awake.log_q.shape == (2, 6) and asleep.log_p.shape == asleep.log_q.shape == (6,)
    assert asleep["x"].shape == (6, 7) and awake.latents == [f"h{level}" for level in range(len(layers), 0, -1)]
    for routine in (routines.wake_sleep, routines.reweighted_wake_sleep(2), routines.vimco(2), routines.reinforce):
        assert all(torch.isfinite(value) for value in eager.step(routine, pair, optimizers_of(pair), x))


@pytest.mark.parametrize("likelihood", ["bernoulli", "normal", "discretized_logistic"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)], ids=str)
@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_latent_and_adversarial_pairs_of_every_image(kind, shape, likelihood):
    size = math.prod(shape)
    shared = networks(kind, shape, 3, hidden=(12,), channels=4)
    pair, game = latent(shared, likelihood), adversarial(shared, likelihood)
    x = (torch.rand(2, size) < 0.5).float()
    awake, asleep = drawn(pair, Wake(2), x), drawn(pair, Sleep(), x)
    assert awake["z"].shape == (2, 2, 3) and awake.log_p.shape == awake.log_q.shape == (2, 2)
    assert asleep["x"].shape == (2, size) and asleep.log_q.shape == (2,)
    assert bool(torch.isfinite(awake.log_p).all()) and bool(torch.isfinite(awake.log_q).all())
    played = drawn(game, Sleep(), x)
    assert played["x"].shape == (4, size) and torch.equal(played["x"][:2], x) and played.log_q.shape == (4,)
    assert 0 <= played["x"].min() and played["x"].max() <= 1
    assert all(torch.isfinite(v) for v in eager.step(routines.vae, pair, optimizers_of(pair), x))
    assert all(torch.isfinite(v) for v in eager.step(routines.gan, game, optimizers_of(game), x))


def test_a_phase_of_log_p_sees_the_likelihood_and_the_prior_apart():
    pair = latent(networks("mlp", (5,), 2, hidden=(4,)), "normal").double()
    sample = drawn(pair, Wake(3), torch.rand(4, 5, dtype=DOUBLE))
    prior = (-0.5 * sample["z"].square() - 0.5 * LOG_2_PI).sum(-1)
    torch.testing.assert_close(sample.log_prior, prior)
    torch.testing.assert_close(sample.log_likelihood + prior, log_p(sample))
    assert Phase(log_p, Wake(3), ("theta",)).move == ("theta",)


# -- data that may be left out -----------------------------------------------------------------------------------------


class Labelled(PyroModule):
    """y ~ Categorical, z ~ N(0, 1), x ~ N(W (y, z), 1): a label that is latent where it is not given (Kingma et al. 2014)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            label = pyro.sample("y", dist.OneHotCategorical(x.new_ones(3) / 3), obs=y)
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.linear(torch.cat([label, z], -1)), 1.0).to_event(1), obs=x)


class LabelledGuide(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.classifier, self.linear = nn.Linear(2, 3), nn.Linear(5, 1)

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            label = pyro.sample("y", dist.OneHotCategorical(logits=self.classifier(x))) if y is None else y
            both = torch.cat([x.expand(*label.shape[:-1], 2), label], -1)
            pyro.sample("z", dist.Normal(self.linear(both), 1.0).to_event(1))


def unlabelled(program: type[Any]) -> Any:
    """The same program without the argument for a label."""

    class Without(program):
        def forward(self, x: Tensor) -> None:
            super().forward(x)

    return Without()


@pytest.mark.parametrize(
    "routine",
    [routines.wake_sleep, routines.reweighted_wake_sleep(3), routines.vimco(3)],
    ids=lambda routine: routine.name,
)
def test_a_label_that_is_left_out_is_latent_in_every_phase(routine):
    pair, plain = Pair(Labelled(), LabelledGuide()), Pair(unlabelled(Labelled), unlabelled(LabelledGuide))
    plain.load_state_dict(pair.state_dict())
    x = torch.randn(6, 2)
    for phase in routine:
        gradients = []
        for each in (pair, plain):
            torch.manual_seed(3)
            _, surrogate = eager.objective(phase, each, {"x": x})
            gradients.append(torch.autograd.grad(surrogate, each.group(*phase.move), allow_unused=True))
        assert all(g is not None for g in gradients[0])
        for ours, theirs in zip(*gradients, strict=True):
            assert torch.equal(ours, theirs)


def test_a_network_of_left_out_labels_waits_for_the_batch_that_has_none():
    pair, x, y = Pair(Labelled(), LabelledGuide()), torch.randn(6, 2), torch.eye(3)[torch.arange(6) % 3]
    kept = [parameter.clone() for parameter in pair.guide.classifier.parameters()]

    def moved():
        return any(not torch.equal(a, b) for a, b in zip(kept, pair.guide.classifier.parameters(), strict=True))

    labelled, mixed = [{"x": x, "y": y}], [{"x": x, "y": y}, {"x": x}]
    routine = routines.reinforce
    with pytest.warns(UserWarning, match="'classifier.weight' of phi gets no gradient from a batch that gives y"):
        fit(labelled, routine, pair, steps=2)
    assert not moved()
    fit(mixed, routine, pair, steps=2)
    assert moved()
    pair.guide.idle = nn.Linear(2, 1)
    with pytest.raises(PairError, match="'idle.weight' of phi gets no gradient"):
        fit(mixed, routine, Pair(pair.model, pair.guide), steps=2)


def test_a_label_that_is_given_is_dreamt_with_the_rest():
    pair, x, y = Pair(Labelled(), LabelledGuide()), torch.randn(6, 2), torch.eye(3)[torch.arange(6) % 3]
    draw = eager.draw(Sleep(), Programs(pair, ("phi",)), {"x": x, "y": y})
    assert set(draw.sites("guide")) == {"z"} and not torch.equal(draw["x"], x)


# -- events of any shape -----------------------------------------------------------------------------------------------


class ImageGame(PyroModule):
    """A generator of images (1, 4, 4), beside data of that shape; ``flat``: as rows of 16."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.flat, self.linear = flat, nn.Linear(2, 16)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", 2 * len(x)):
            pyro.sample("y", Stratified.of(x))
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            made = self.linear(z[len(x) :])
            both = torch.cat([x, made if self.flat else made.reshape(-1, 1, 4, 4)])
            pyro.sample("x", Implicit(both) if self.flat else Implicit(both).to_event(2))


class ImageCritic(PyroModule):
    """A convolution whose features are averaged, so that it would take images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.linear = nn.Conv2d(1, 3, 2), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            features = torch.tanh(self.convolution(x.reshape(len(x), 1, -1, 4))).mean((-1, -2))
            pyro.sample("y", dist.Bernoulli(logits=self.linear(features).squeeze(-1)))


@pytest.mark.parametrize("routine", [routines.gan, routines.wgan_gp, routines.mmd], ids=lambda routine: routine.name)
def test_a_game_of_images_is_that_of_their_rows(routine):
    images, rows = (Pair(ImageGame(flat), ImageCritic(), likelihood="none") for flat in (False, True))
    rows.load_state_dict(images.state_dict())
    x = torch.randn(5, 1, 4, 4)
    for phase in routine:
        found = []
        for pair, data in ((images, x), (rows, x.flatten(1))):
            torch.manual_seed(3)
            value, surrogate = eager.objective(phase, pair, data)
            found.append([value, *torch.autograd.grad(surrogate, pair.group(*phase.move))])
        for ours, theirs in zip(*found, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-6)


# -- deterministic values and factors ----------------------------------------------------------------------------------


class Said(PyroModule):
    """z ~ N(0, I), x ~ N(W z, I); says W z by ``pyro.deterministic``, or has a factor."""

    def __init__(self, says: str = "") -> None:
        super().__init__()
        self.says, self.linear = says, nn.Linear(2, 3)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            loc = self.linear(z)
            if self.says == "value":
                pyro.deterministic("loc", loc, event_dim=1)
            if self.says == "factor":
                pyro.factor("tilt", -z.square().sum(-1))
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


class SaidGuide(PyroModule):
    """z ~ N(V x, 1); says V x beside the plate."""

    def __init__(self, says: bool = False) -> None:
        super().__init__()
        self.says, self.linear = says, nn.Linear(3, 2)

    def forward(self, x: Tensor) -> None:
        loc = self.linear(x)
        if self.says:
            loc = pyro.deterministic("of_z", loc, event_dim=1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def gradients(routine: Any, pair: Pair, x: Tensor) -> list[Tensor]:
    found: list[Tensor] = []
    for phase in routine:
        torch.manual_seed(3)
        value, surrogate = eager.objective(phase, pair, x)
        found += [value, *torch.autograd.grad(surrogate, pair.group(*phase.move))]
    return found


@pytest.mark.parametrize(
    "routine",
    [
        routines.vae(3, "sticking_the_landing"),
        routines.iwae(3, "doubly_reparameterized"),
        routines.wake_sleep,
        routines.reweighted_wake_sleep(3),
    ],
    ids=lambda routine: routine.name,
)
def test_deterministic_values_change_nothing(routine):
    plain, saying = Pair(Said(), SaidGuide()), Pair(Said("value"), SaidGuide(True))
    saying.load_state_dict(plain.state_dict())
    x = torch.randn(5, 3)
    for ours, theirs in zip(gradients(routine, saying, x), gradients(routine, plain, x), strict=True):
        assert torch.equal(ours, theirs)
    draw = eager.draw(Wake(), Programs(saying), {"x": x})
    assert draw["loc"].shape == (5, 3) and draw["of_z"].shape == (5, 2)
    assert guide_draws(saying, x, 7).keys() == {"z"}
    settings = Annealing(20, 2, 2)
    ours, theirs = (annealed_log_likelihood(pair, x, settings, seed=1) for pair in (saying, plain))
    assert ours.value == pytest.approx(theirs.value, abs=1e-5) and "from the guide" in ours.how


def test_a_factor_counts_and_is_not_dreamt():
    pair, x = Pair(Said("factor"), SaidGuide()), torch.randn(5, 3)
    draw = eager.draw(Wake(), Programs(pair), {"x": x})
    tilt = -draw["z"].square().sum(-1)
    sites = draw.sites("model")
    plain = sites["z"].fn.log_prob(draw["z"]) + sites["x"].fn.log_prob(x)
    assert torch.allclose(draw.log_p, plain + tilt, atol=1e-5)
    with pytest.raises(PairError, match="'tilt' is a factor"):
        check(routines.wake_sleep, pair, x)
    check(routines.reweighted_wake_sleep(3, sleep=False), pair, x)
    refused = [refusal.name for refusal in evaluate(pair, x, Protocol(5, 30, 2, Annealing(10, 2, 2), 4)).refusals]
    assert refused == ["bounds on simulated data", "calibration"]


@pytest.mark.parametrize("name", ["x_0", "evidence"])
def test_an_observation_that_is_no_argument_is_not_dreamt(name):
    """The guide would see the data in its place, or a condition would be forgotten, and the sleep phase learn from both."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            if name == "evidence":
                pyro.sample("x", dist.Normal(x.new_zeros(3), 1.0).to_event(1), obs=x)
                pyro.sample("evidence", dist.Bernoulli(logits=z.sum(-1)), obs=x.new_ones(len(x)))
            else:
                pyro.sample("x_0", dist.Normal(z, 1.0).to_event(1), obs=x[:, :2])

    pair, x = Pair(model, SaidGuide()), torch.randn(5, 3)
    check(routines.iwae(3), pair, x)
    with pytest.raises(PairError, match=f"site '{name}' is observed and named as no argument"):
        check((Phase(log_q, Sleep(), ("phi",)),), pair, x)
    found = evaluate(pair, x, Protocol(5, 30, 2, Annealing(10, 2, 2), 4))
    assert [refusal.name for refusal in found.refusals] == ["bounds on simulated data", "calibration"]


# -- data of another name, a latent named y ----------------------------------------------------------------------------


class Picture(PyroModule):
    """y a bit, z ~ N(0, 1), picture ~ N(W (y, z), 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, picture: Tensor) -> None:
        with pyro.plate("data", len(picture)):
            y = pyro.sample("y", dist.Bernoulli(picture.new_tensor(0.5)))
            z = pyro.sample("z", dist.Normal(picture.new_tensor(0.0), 1.0))
            loc = self.linear(torch.stack(torch.broadcast_tensors(y, z), -1))
            pyro.sample("picture", dist.Normal(loc, 1.0).to_event(1), obs=picture)


class PictureGuide(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, picture: Tensor) -> None:
        logit, loc = self.linear(picture).unbind(-1)
        with pyro.plate("data", len(picture)):
            pyro.sample("y", dist.Bernoulli(logits=logit))
            pyro.sample("z", dist.Normal(loc, 1.0))


def test_data_have_the_name_that_the_model_gives_them():
    critic = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    pair, x = Pair(Picture(), PictureGuide(), {"critic": critic, "constraint": critic}), torch.randn(6, 3)
    assert sample(pair, 9, x).x.shape == (9, 3)  # a bit of that name is no label of a game
    assert reconstruct(pair, x).shape == (6, 3)
    for routine in (routines.vae, routines.aavae, routines.wake_sleep, routines.posterior_regularization()):
        check(routine, pair, x)


# -- what no group may share -------------------------------------------------------------------------------------------


class Reading(nn.Module):
    """A guide or model of z and x from a layer and, where there is one, a batch norm."""

    def __init__(self, layer: nn.Module, norm: nn.Module, model: bool) -> None:
        super().__init__()
        self.layer, self.norm, self.model = layer, norm, model

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            if not self.model:
                pyro.sample("z", dist.Normal(self.layer(self.norm(x)), 1.0).to_event(1))
                return
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.layer(self.norm(z)), 1.0).to_event(1), obs=x)


def test_a_transpose_is_no_parameter_of_its_own():
    encoder, decoder = nn.Linear(2, 2), nn.Linear(2, 2)
    decoder.weight = nn.Parameter(encoder.weight.detach().t())
    with pytest.raises(PairError, match="'layer.weight' belongs to both theta and phi"):
        Pair(Reading(decoder, nn.Identity(), model=True), Reading(encoder, nn.Identity(), model=False))
    decoder.weight = nn.Parameter(encoder.weight.detach().t().clone())
    Pair(Reading(decoder, nn.Identity(), model=True), Reading(encoder, nn.Identity(), model=False))
    Pair(nn.LazyLinear(2), nn.LazyLinear(2))  # which have no memory yet


def test_a_buffer_of_both_programs_must_not_be_written_to():
    norm, x = nn.BatchNorm1d(2, affine=False), torch.randn(8, 2)
    pair = Pair(Reading(nn.Linear(2, 2), norm, model=True), Reading(nn.Linear(2, 2), norm, model=False))
    before = norm.running_mean.clone()
    with pytest.raises(PairError, match=r"a buffer of shape \(2,\) belongs to both theta and phi and is written to"):
        check(routines.vae, pair, x)
    assert torch.equal(norm.running_mean, before)
    norm.eval()
    check(routines.vae, pair, x)


# -- f-divergences far out ---------------------------------------------------------------------------------------------


class Judged:
    """What ``FGan`` asks of a draw: labels and log odds."""

    def __init__(self, y: Tensor, log_odds: Tensor) -> None:
        self.y, self.odds = y, log_odds

    def __getitem__(self, name: str) -> Tensor:
        return self.y

    def log_odds(self, name: str) -> Tensor:
        return self.odds


@pytest.mark.parametrize("name", f_divergences)
def test_the_branch_not_taken_leaves_the_gradient_of_f_gan_alone(name: str):
    y = torch.tensor([1.0, 0.0])
    for far in (100.0, -100.0):
        found = torch.tensor([far, 0.5], requires_grad=True), torch.tensor([0.5, far], requires_grad=True)
        taken = [f_divergence(name).activation, f_divergence(name).conjugate_of_activation]
        for row, log_odds in enumerate(found):
            (gradient,) = torch.autograd.grad(FGan(name)(Judged(y, log_odds)).sum(), log_odds)
            alone = log_odds[row].detach().requires_grad_()
            (expected,) = torch.autograd.grad((2 - 4 * row) * taken[row](alone), alone)
            torch.testing.assert_close(gradient[row], expected, equal_nan=True)
            assert gradient[1 - row].isfinite()


# -- one row to start from ---------------------------------------------------------------------------------------------


def test_a_start_of_one_row_leaves_finite_weights():
    row = torch.rand(1, 3)
    for pair in (mixture(1, row), flow(3, start=row)):
        assert all(bool(tensor.isfinite().all()) for tensor in (*pair.parameters(), *pair.buffers()))
