"""IWAE through few of its particles, drawn by their weights: over all draws the mean is the gradient through all."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from pyro.infer import autoguide
from torch import Tensor, nn

from unigen import DoublyReparameterized, PairError, Resampled, routines
from unigen.engines import compiled, eager, xla
from unigen.engines.checks import check_once
from unigen.engines.eager import _systematic
from unigen.engines.surroundings import Draws
from unigen.networks import networks
from unigen.optimizers import optimizers_for
from unigen.pair import Pair
from unigen.pairs.deep_latent import deep_latent
from unigen.pairs.latent import latent
from unigen.phases import Optimizer, Phase, Wake

pytestmark = pytest.mark.usefixtures("interpreted", "in_double")
PARTICLES = 3


class Model(nn.Module):
    """z ~ N(0, I), x ~ N(A z, I)."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([[1.0, -0.5], [0.3, 0.8]]))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.a.T, 1.0).to_event(1), obs=x)


class Guide(nn.Module):
    """z from a family about a linear map of x."""

    def __init__(self, family: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.family = family
        self.b, self.s = nn.Parameter(torch.tensor([[0.4, 0.1], [-0.2, 0.6]])), nn.Parameter(torch.tensor([-0.3, 0.2]))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.family(x @ self.b.T, self.s))


class FlowGuide(Guide):
    """A flow behind a normal."""

    def __init__(self) -> None:
        super().__init__(FAMILIES["normal"])
        self.flow = transforms.affine_autoregressive(2, [4])

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(self.family(x @ self.b.T, self.s), [self.flow]))


class Restless(Guide):
    """A guide that is another one each time."""

    def forward(self, x: Tensor) -> None:
        self.calls = getattr(self, "calls", 0) + 1
        super().forward(x + self.calls)


def _full(loc: Tensor, s: Tensor) -> Any:
    return dist.MultivariateNormal(loc, scale_tril=torch.diag(s.exp()) + torch.tensor([[0.0, 0.0], [0.7, 0.0]]) * s[0])


FAMILIES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "normal": lambda loc, s: dist.Normal(loc, s.exp()).to_event(1),
    "Laplace": lambda loc, s: dist.Laplace(loc, s.exp()).to_event(1),
    "Cauchy": lambda loc, s: dist.Cauchy(loc, s.exp()).to_event(1),
    "uniform": lambda loc, s: dist.Uniform(loc - s.exp(), loc + 2 * s.exp()).to_event(1),
    "log-normal": lambda loc, s: dist.LogNormal(loc, s.exp()).to_event(1),
    "Gumbel": lambda loc, s: dist.Gumbel(loc, s.exp()).to_event(1),
    "multivariate normal": _full,
}


def shared(layers: int) -> Pair:
    net = networks("mlp", (1, 1, 2), 2, hidden=(3,))
    return (latent(net) if layers == 1 else deep_latent(net, (2,), (3,))).double()


def automatic() -> Pair:
    def model(x: Tensor) -> None:
        rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
        size = pyro.sample("size", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(size, rate), obs=x[:, 0])

    guide = autoguide.AutoMultivariateNormal(model)
    guide(torch.zeros(4, 2))
    return Pair(model, guide, batch_plate=None)


PAIRS: dict[str, Callable[[], Pair]] = {
    **{name: lambda family=family: Pair(Model(), Guide(family)) for name, family in FAMILIES.items()},
    "flow": lambda: Pair(Model(), FlowGuide()),
    "one layer": lambda: shared(1),
    "two layers": lambda: shared(2),
}


def gradient(routine: Any, pair: Pair, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    (phase,) = routine
    torch.manual_seed(4)
    value, surrogate = eager.objective(phase, pair, x)
    own = pair.group(*phase.move)
    slopes = torch.autograd.grad(surrogate, own, allow_unused=True)
    return value, [torch.zeros_like(p) if g is None else g for p, g in zip(own, slopes, strict=True)]


@pytest.mark.parametrize("whole_by, by", [(None, Resampled()), (DoublyReparameterized(), DoublyReparameterized(1))])
@pytest.mark.parametrize("name", [*PAIRS, "autoguide"])
def test_its_mean_over_draws_is_the_gradient_through_all(
    name: str, whole_by: Any, by: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    pair, x = automatic() if name == "autoguide" else PAIRS[name](), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    whole = gradient(routines.iwae(PARTICLES, whole_by), pair, x)
    weights: list[Tensor] = []
    data = len(x) if name != "autoguide" else None
    mean = [torch.zeros_like(p) for p in pair.group("theta", "phi")]
    total = 0.0
    for rows in product(range(PARTICLES), repeat=data or 1):

        def fixed(w: Tensor, draws: int, rows: tuple[int, ...] = rows) -> Tensor:
            weights[:] = [w]
            return torch.tensor(rows)[None] if data else torch.tensor(rows)

        monkeypatch.setattr(eager, "_systematic", fixed)
        value, slopes = gradient(routines.iwae(PARTICLES, by), pair, x)
        torch.testing.assert_close(value, whole[0], rtol=1e-12, atol=1e-12)
        chance = weights[0].reshape(PARTICLES, -1)[list(rows), range(len(rows))].prod()
        total += float(chance)
        mean = [m + chance * g for m, g in zip(mean, slopes, strict=True)]
    assert total == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(mean, whole[1], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("draws", [1, 2, 5])
def test_rows_are_drawn_by_their_weights(draws: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a grid of the one uniform number, exactly as often as the weights say; of several, within one of it each time."""
    points = 2**12
    weights = torch.tensor([0.0, 0.25, 0.5, 0.125, 0.0, 0.125])
    monkeypatch.setattr(torch, "rand_like", lambda w: (torch.arange(points) + 0.5) / points)
    rows = _systematic(weights[:, None].expand(-1, points), draws)
    counts = nn.functional.one_hot(rows, len(weights)).sum(0)  # (points, K)
    torch.testing.assert_close(counts.double().mean(0), draws * weights, atol=1e-3, rtol=0)
    assert ((counts - draws * weights).abs() < 1).all()


@pytest.mark.parametrize("engine", [compiled, xla], ids=["compiled", "xla"])
@pytest.mark.parametrize("by", [Resampled(2), DoublyReparameterized(2)], ids=lambda by: type(by).__name__)
@pytest.mark.parametrize("name", PAIRS)
def test_engines_agree(name: str, by: Any, engine: Any) -> None:
    """On the same noise: a compiled graph, run operation by operation, draws as eager does."""
    torch.manual_seed(0)
    x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    routine, pair = routines.iwae(PARTICLES, by), PAIRS[name]()
    check_once(routine, pair, x)
    twin = copy.deepcopy(pair)
    ours, theirs = (optimizers_for(routine, each, Optimizer("SGD", 0.1)) for each in (pair, twin))
    torch.manual_seed(1)
    with Draws() as draws:
        expected = eager.advance(routine, pair, ours, [[x]])
    torch.manual_seed(1)
    given = {"noise": [draws.taken]} if engine is xla else {}
    found = engine.advance(routine, twin, theirs, [[x]], **given)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(list(twin.parameters()), list(pair.parameters()), rtol=1e-9, atol=1e-9)


def test_what_it_cannot_do_is_refused() -> None:
    x = torch.tensor([[0.0, 1.0], [1.0, 0.0]])

    def refused(guide: Guide, routine: Any = None) -> str:
        routine = routine or routines.iwae(3, draws=1)
        pair = Pair(Model(), guide)
        with pytest.raises(PairError) as caught:
            eager.step(routine, pair, optimizers_for(routine, pair, Optimizer("SGD", 0.1)), x)
        return str(caught.value)

    assert "site 'z' (Gamma) has no reparameterization that Resampled knows" in refused(
        Guide(lambda loc, s: dist.Gamma(loc.exp(), s.exp()).to_event(1))
    )
    assert "Resampled runs the pair twice" in refused(Restless(FAMILIES["normal"]))
    elbo = (Phase(routines.vae[0].maximize, Wake(3), ("theta", "phi"), estimator=Resampled()),)
    assert "Resampled is the estimator of iwae under Wake(particles)" in refused(Guide(FAMILIES["normal"]), elbo)
    for estimator, found in ((None, Resampled(2)), ("doubly_reparameterized", DoublyReparameterized(2))):
        declared = routines.iwae(3, estimator, draws=2)
        assert declared[0].estimator == found and routines.by_name(declared.name) == declared
    with pytest.raises(
        ValueError, match="draws is for no estimator or 'doubly_reparameterized'; got estimator='pathwise'"
    ):
        routines.iwae(3, "pathwise", draws=2)
    with pytest.raises(ValueError, match="Resampled takes a positive whole number of draws; got draws=0"):
        Resampled(0)
