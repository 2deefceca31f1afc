"""Guides that transform what they draw: Pyro's flows, whose transforms remember, and Pyro's autoguides, with auxiliary sites.

The means of their gradients are held to quadrature in test_exactness.py, by the worlds "flow" and "autoguide".
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from pyro.infer import autoguide
from torch import Tensor, nn

from unigen import Pair, fit, routines
from unigen.engines import eager
from unigen.engines.programs import Programs
from unigen.evaluate import (
    Annealing,
    Protocol,
    evaluate,
    guide_draws,
    log_importance_weights,
    log_likelihood,
)
from unigen.optimizers import optimizers_for
from unigen.pair import PairError
from unigen.phases import Optimizer, Sleep, Wake

D = 3
INVERTIBLE = {
    "affine_autoregressive": lambda: transforms.affine_autoregressive(D, [6]),
    "affine_coupling": lambda: transforms.affine_coupling(D, [6]),
    "spline": lambda: transforms.spline(D),
    "spline_coupling": lambda: transforms.spline_coupling(D, hidden_dims=[6]),
    "householder": lambda: transforms.householder(D),
    "composed": lambda: transforms.ComposeTransformModule(
        [transforms.affine_coupling(D, [6]), transforms.permute(D), transforms.affine_autoregressive(D, [6])],
        cache_size=1,
    ),
    "inverse": lambda: transforms.affine_autoregressive(D, [6]).inv,
}
WITHOUT_INVERSE = {
    "planar": lambda: transforms.planar(D),
    "radial": lambda: transforms.radial(D),
    "sylvester": lambda: transforms.sylvester(D),
    "neural_autoregressive": lambda: transforms.neural_autoregressive(D, [6]),
}


class Model(nn.Module):
    """z ~ N(0, I), x ~ N(W z + b, I)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D, 2)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(D), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.layer(z), 1.0).to_event(1), obs=x)


class Guide(nn.Module):
    """z = f(u), u ~ N(m(x), s(x)^2)."""

    def __init__(self, transform: Any) -> None:
        super().__init__()
        self.layer, self.transform = nn.Linear(2, 2 * D), transform
        inside = transform if isinstance(transform, nn.Module) else transform.inv
        self.inside = inside  # the parameters, where the transform is the inverse of a module

    def distribution(self, x: Tensor) -> Any:
        loc, log_scale = self.layer(x).chunk(2, -1)
        return dist.TransformedDistribution(dist.Normal(loc, log_scale.exp()).to_event(1), [self.transform])

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.distribution(x))


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    """Pyro's autoregressive transform makes zeros of the default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def pair_of(make: Any) -> tuple[Pair, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Pair(Model(), Guide(make())), torch.randn(4, 2)


def slope(pair: Pair, function: Any, direction: list[Tensor], h: float = 1e-5) -> float:
    """Return the derivative of a function of a pair along a direction of phi, by differences of pairs that remember nothing."""
    ends = []
    for step in (h, -h):
        moved = copy.deepcopy(pair)
        with torch.no_grad():
            for parameter, part in zip(moved.group("phi"), direction, strict=True):
                parameter.add_(step * part)
            ends.append(float(function(moved)))
    return (ends[0] - ends[1]) / (2 * h)


@pytest.mark.parametrize("name", INVERTIBLE)
def test_a_fixed_sample_has_the_gradient_of_the_inverse(name: str) -> None:
    pair, x = pair_of(INVERTIBLE[name])
    still, phase = copy.deepcopy(pair), routines.reweighted_wake_sleep(5)[0]
    torch.manual_seed(5)
    _, surrogate = eager.objective(phase, pair, x)
    gradient = torch.autograd.grad(surrogate, pair.group("phi"))
    torch.manual_seed(5)
    draw = eager.draw(phase.under, Programs(pair), {"x": x})
    z, weights = draw["z"].clone(), draw.weights
    direction = [torch.randn_like(g) for g in gradient]
    ours = sum(float((g * part).sum()) for g, part in zip(gradient, direction, strict=True))
    theirs = slope(still, lambda p: (weights * p.guide.distribution(x).log_prob(z)).sum(0).mean(), direction)
    assert ours == pytest.approx(theirs, abs=1e-6 * max(1.0, abs(ours)))


@pytest.mark.parametrize("name", INVERTIBLE)
def test_sticking_the_landing_holds_the_density_still(name: str) -> None:
    pair, x = pair_of(INVERTIBLE[name])
    still, phase = copy.deepcopy(pair), routines.vae(estimator="sticking_the_landing")[0]
    torch.manual_seed(5)
    _, surrogate = eager.objective(phase, pair, x)
    gradient = torch.autograd.grad(surrogate, pair.group("phi"))

    def landed(moved: Pair) -> Tensor:  # z moves with phi, and log q is that of the pair that stays
        torch.manual_seed(5)
        z = eager.draw(Wake(), Programs(moved), {"x": x})["z"].clone()
        joint = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + dist.Normal(still.model.layer(z), 1.0).log_prob(x).sum(-1)
        return (joint - still.guide.distribution(x).log_prob(z)).mean()

    direction = [torch.randn_like(g) for g in gradient]
    ours = sum(float((g * part).sum()) for g, part in zip(gradient, direction, strict=True))
    assert ours == pytest.approx(slope(copy.deepcopy(still), landed, direction), abs=1e-6 * max(1.0, abs(ours)))


@pytest.mark.parametrize("name", WITHOUT_INVERSE)
def test_a_flow_without_an_inverse_climbs_by_the_path_and_is_refused_elsewhere(name: str) -> None:
    pair, x = pair_of(WITHOUT_INVERSE[name])
    fit(x, routines.vae(2), pair, steps=2, progress=False)
    assert torch.isfinite(log_likelihood(pair, x, particles=4).per_datum).all()
    refused = (routines.reweighted_wake_sleep(3), routines.wake_sleep, routines.iwae(3, "doubly_reparameterized"))
    for routine in (*refused, routines.iwae(3, draws=1)):
        with pytest.raises(PairError, match="without an inverse.*use vae, iwae without draws, or"):
            fit(x, routine, pair_of(WITHOUT_INVERSE[name])[0], steps=1, progress=False)


def test_annealing_starts_from_a_guide_that_has_a_density_everywhere() -> None:
    protocol = Protocol(4, 30, 2, Annealing(10, 2, 2), simulated=4, calibration=16, samples=0)
    for makers, start in ((INVERTIBLE["affine_coupling"], "guide"), (WITHOUT_INVERSE["planar"], "prior")):
        pair, x = pair_of(makers)
        assert f"from the {start}" in evaluate(pair, x, protocol)["log p(x)"].how


def test_an_observed_flow_has_the_weights_of_now() -> None:
    """The same tensor of data at every step: a transform that remembered would return the inverse by the weights of before."""

    class Flow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transform = transforms.affine_coupling(D, [6])

        def forward(self, x: Tensor) -> None:
            base = dist.Normal(x.new_zeros(D), 1.0).to_event(1)
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.TransformedDistribution(base, [self.transform]), obs=x)

    pair = Pair(Flow(), likelihood="exact").double()
    other, x = copy.deepcopy(pair), torch.randn(8, D, dtype=torch.float64)
    fit(x, routines.maximum_likelihood, pair, steps=5, progress=False)
    fit([x.clone() for _ in range(5)], routines.maximum_likelihood, other, steps=5, progress=False)
    for ours, theirs in zip(pair.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_module_of_two_names_keeps_its_parameters() -> None:
    """To hold the guide still its parameters are exchanged for a while; one met twice must find its own way back."""
    pair, x = pair_of(INVERTIBLE["affine_coupling"])
    pair.guide.same = pair.guide.layer
    before = list(pair.parameters())
    fit(x, routines.vae(estimator="sticking_the_landing"), pair, steps=2, progress=False)
    assert all(one is other and one.requires_grad for one, other in zip(pair.parameters(), before, strict=True))


def test_a_flow_that_remembers_can_be_copied() -> None:
    pair, x = pair_of(INVERTIBLE["composed"])
    fit(x, routines.vae, pair, steps=2, progress=False)
    draw = eager.draw(Wake(), Programs(pair, ("phi",)), {"x": x})
    assert draw.log_q.requires_grad
    other = copy.deepcopy(pair)
    for ours, theirs in zip(pair.parameters(), other.parameters(), strict=True):
        assert ours is not theirs and torch.equal(ours, theirs)
    assert log_likelihood(other, x, 3, seed=1).value == log_likelihood(pair, x, 3, seed=1).value


def test_a_saturated_squashing_keeps_what_it_remembers() -> None:
    class Squashed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.tensor(30.0))

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                base = dist.Normal(self.loc, 1.0).expand([len(x)])
                tanh = transforms.TanhTransform(cache_size=1)
                pyro.sample("z", dist.TransformedDistribution(base, [tanh]))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(x.new_tensor(-1.0), 1.0).expand([len(x)]))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    draw = eager.draw(Wake(), Programs(Pair(model, Squashed()), ("phi",), carry=False), {"x": torch.zeros(50)})
    assert (draw["z"] == 1).all()  # where atanh is infinite
    assert torch.isfinite(draw.sites("guide")["z"].fn.log_prob(draw["z"])).all()


# -- autoguides --------------------------------------------------------------------------------------------------------


class Rates(pyro.nn.PyroModule):
    """p ~ Beta(2, 3), x ~ Bernoulli(p): one latent of all rows, with a closed posterior."""

    def forward(self, x: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(x.new_tensor(2.0), x.new_tensor(3.0)))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Bernoulli(p), obs=x)

    @staticmethod
    def exact(x: Tensor) -> Tensor:
        ones, rows = x.sum(), len(x)
        beta = lambda a, b: torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)  # noqa: E731
        return beta(2 + ones, 3 + rows - ones) - beta(torch.tensor(2.0).to(x), torch.tensor(3.0).to(x))


class LogitNormal(nn.Module):
    """sigmoid(N(loc, scale^2)), which ``AutoNormal`` is, by hand."""

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(loc.clone()), nn.Parameter(scale.log())

    def forward(self, x: Tensor) -> None:
        base = dist.Normal(self.loc, self.log_scale.exp())
        pyro.sample("p", dist.TransformedDistribution(base, [transforms.SigmoidTransform()]))


def climb(pair: Pair, x: Tensor, engine: str = "eager") -> None:
    routine = routines.vae(10)
    fit(
        x,
        routine,
        pair,
        optimizers_for(routine, pair, Optimizer("Adam", 0.03)),
        steps=300,
        engine=engine,
        progress=False,
    )


def auto(kind: Any, x: Tensor) -> Pair:
    model = Rates()
    guide = kind(model)
    guide(x)  # an autoguide has its parameters after its first call
    return Pair(model, guide).double()


@pytest.fixture
def rows() -> Tensor:
    return (torch.arange(12) % 3 == 0).double()


@pytest.mark.parametrize(
    "routine",
    [
        routines.vae,
        routines.vae(4),
        routines.vae(4, "sticking_the_landing"),
        routines.vae(4, "score_function"),
        routines.iwae(4),
        routines.iwae(4, "doubly_reparameterized"),
        routines.reweighted_wake_sleep(4, sleep=False),
    ],
    ids=lambda routine: routine.name,
)
def test_autonormal_is_the_guide_written_by_hand(routine: Any, rows: Tensor) -> None:
    pair = auto(autoguide.AutoNormal, rows)
    hand = Pair(Rates(), LogitNormal(pair.guide.locs.p.detach(), pair.guide.scales.p.detach()).double())
    found = []
    for each in (pair, hand):
        torch.manual_seed(7)
        value, surrogate = eager.objective(routine[0], each, rows)
        found.append((float(value), float(torch.autograd.grad(surrogate, each.group("phi")[:1])[0])))
    assert found[0] == pytest.approx(found[1], abs=1e-10)


@pytest.mark.parametrize(
    "kind",
    ["AutoNormal", "AutoDiagonalNormal", "AutoMultivariateNormal", "AutoLowRankMultivariateNormal", "AutoStructured"],
)
def test_autoguides_bound_the_evidence(kind: str, rows: Tensor) -> None:
    pair = auto(getattr(autoguide, kind), rows)
    climb(pair, rows)
    exact, weights = float(Rates.exact(rows)), log_importance_weights(pair, rows, 4000)
    assert float(weights.mean()) < exact  # the posterior is no logit-normal
    assert float(torch.logsumexp(weights, 0)) - torch.tensor(4000.0).log().item() == pytest.approx(exact, abs=0.05)
    assert guide_draws(pair, rows, 20).keys() == {"p"}


@pytest.mark.parametrize("engine", ["compiled", "xla"])
def test_autoguides_on_other_engines(engine: str, rows: Tensor) -> None:
    pair = auto(autoguide.AutoMultivariateNormal, rows)
    climb(pair, rows, engine)
    weights = log_importance_weights(pair, rows, 4000)
    assert float(weights.mean()) == pytest.approx(float(Rates.exact(rows)), abs=0.1)


def test_what_an_autoguide_cannot_do_is_refused(rows: Tensor) -> None:
    with pytest.raises(PairError, match="'p_unconstrained' is auxiliary, so that its program has no density"):
        fit(rows, (routines.Phase(routines.log_q, Sleep(), ("phi",)),), auto(autoguide.AutoNormal, rows), steps=1)
    with pytest.raises(PairError, match="Delta that parameters move"):
        fit(rows, routines.reweighted_wake_sleep(3, sleep=False), auto(autoguide.AutoDelta, rows), steps=1)
    with pytest.raises(PairError, match="an autoguide makes its own at its first call"):
        fit(rows, routines.vae, Pair(Rates(), autoguide.AutoNormal(Rates())), steps=1)


def test_a_function_with_hidden_parameters_is_told_to_be_a_module() -> None:
    network = nn.Linear(1, 2)

    def guide(x: Tensor) -> None:
        pyro.module("network", network)
        with pyro.plate("data", len(x)):
            loc, log_scale = network(x[:, None]).unbind(-1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(PairError, match="the guide is a function"):
        fit(torch.randn(4), routines.vae, Pair(model, guide), steps=1)
