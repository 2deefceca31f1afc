"""Every routine trained to the end, where the answer is known: the posterior for the guide, the most likely for the model.

The guide's families here contain the posterior, so that every routine that moves a guide has one fixed point, p(z|x). The
oracles are closed forms (linear-Gaussian posterior, probabilistic PCA), enumeration, and EM run until it stands still.
"""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from climbing import seeds, train
from gaussians import Line
from oracles import bits, parameters
from pyro.nn import PyroModule
from torch import Tensor, nn
from worlds import one_layer

from unigen import routines
from unigen.engines import eager
from unigen.networks import Baseline, networks
from unigen.pair import Pair
from unigen.pairs import Likelihood, latent, mixture
from unigen.phases import Routine

DOUBLE = torch.float64


def each(*table: Routine, nightly: tuple[Routine, ...] = ()) -> Any:
    """Parametrize ``routine`` by a table, and by what only the nightly run takes."""
    slow = [pytest.param(routine, marks=pytest.mark.slow) for routine in nightly]
    return pytest.mark.parametrize("routine", [*table, *slow], ids=lambda routine: routine.name)


# -- the guide reaches the posterior -----------------------------------------------------------------------------------


class Distance(NamedTuple):
    """How far q(z|x) is from p(z|x), the worst over data: relative errors of mean and deviation, and the KL in nats."""

    mean: float
    deviation: float
    kl: float


def close(found: Distance) -> bool:
    return found.mean <= 0.01 and found.deviation <= 0.01 and found.kl <= 1e-3


class LinearGuide(PyroModule):
    """z ~ N(g x + d, exp(s)^2), which holds the posterior of ``Line`` in one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.offset, self.log_scale = (nn.Parameter(torch.zeros(1, dtype=DOUBLE)) for _ in range(3))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.gain * x + self.offset, self.log_scale.exp()).to_event(1))


class LinearCritic(nn.Module):
    """f(x) = w x + b."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).squeeze(-1)


def normal_distance(routine: Routine, seed: int) -> Distance:
    """Train the guide of z ~ N(0, 1), x ~ N(z, 0.4^2), and compare where the posterior's mean is not near zero."""
    torch.manual_seed(seed)
    line = Line(torch.ones(1, 1, dtype=DOUBLE), 0.4)
    guide = LinearGuide()
    pair = Pair(line, guide, {"critic": LinearCritic()})
    train(math.sqrt(1.16) * torch.randn(8192, 1, dtype=DOUBLE), routine, pair, 200, phi=0.05, psi=0.05)
    gain, covariance = (part.detach() for part in line.posterior())
    x = torch.tensor([[-2.0], [-1.5], [-1.0], [1.0], [1.5], [2.0]], dtype=DOUBLE)
    p = torch.distributions.Normal(x @ gain.T, covariance.sqrt())
    with torch.no_grad():
        q = torch.distributions.Normal(guide.gain * x + guide.offset, guide.log_scale.exp())
    kl = torch.distributions.kl_divergence(q, p).max()
    return Distance(float((q.mean / p.mean - 1).abs().max()), float((q.stddev / p.stddev - 1).abs().max()), float(kl))


@seeds(2, 20)
@each(
    routines.vae,
    routines.vae(estimator="score_function"),
    routines.vae(estimator="sticking_the_landing"),
    routines.iwae(2),
    routines.wake_sleep,
    routines.reweighted_wake_sleep(3),
    routines.aavae,
    nightly=(
        routines.iwae(2, estimator="doubly_reparameterized"),
        routines.variational_em,
        routines.vae(5),
        routines.beta_vae(1.0),
        routines.iwae(2, draws=1),
        routines.iwae(5, estimator="doubly_reparameterized", draws=2),
        routines.reweighted_wake_sleep(5, sleep=False),
        routines.reweighted_wake_sleep(5, wake=False),
    ),
)
def test_a_normal_guide_reaches_the_conjugate_posterior(routine: Routine, seed: int) -> None:
    found = normal_distance(routine, seed)
    assert close(found), found


def bit_distance(routine: Routine, seed: int) -> Distance:
    """Train the guide of one bit over one bit, from a random start, and compare under both x."""
    torch.manual_seed(seed)
    tiny = one_layer(1, 1)
    tiny.pair.psi = {"baseline": Baseline(1, (3,)).double()}
    with torch.no_grad():
        for parameter in tiny.pair.group("phi"):
            parameter.normal_()
        for parameter in tiny.pair.group("theta"):
            parameter.mul_(0.5)  # then no posterior probability is so small that 1% of it asks for more data
    tiny.x = bits(1)
    copies = 65536 if routine == routines.iwae(2) else 8192  # the bare score function of iwae is the noisiest here
    train(tiny.x.repeat(copies, 1), routine, tiny.pair, 200, phi=0.1, psi=0.1)
    t = parameters(tiny.pair)
    with torch.no_grad():
        tables = tiny.tables(t, t, 2)
        p, q = torch.softmax(tables.p, 1), tables.q.exp()
    kl = (q * (q.log() - p.log())).sum(1).max()
    mean = (q[:, 1] / p[:, 1] - 1).abs().max()
    deviation = ((q.prod(1) / p.prod(1)).sqrt() - 1).abs().max()
    return Distance(float(mean), float(deviation), float(kl))


@seeds(2, 20)
@each(
    routines.nvil,
    routines.reinforce,
    routines.vimco(2),
    routines.wake_sleep,
    routines.rule_distillation(share=0.0),
    nightly=(
        routines.variational_em,
        routines.reweighted_wake_sleep(3),
        routines.vae,
        routines.vae(5),
        routines.beta_vae(1.0),
        routines.iwae(2),
        routines.reweighted_wake_sleep(5, sleep=False),
        routines.reweighted_wake_sleep(5, wake=False),
    ),
)
def test_a_guide_of_bits_reaches_the_enumerated_posterior(routine: Routine, seed: int) -> None:
    found = bit_distance(routine, seed)
    assert close(found), found


@pytest.mark.parametrize("distance", [normal_distance, bit_distance])
def test_another_fixed_point_is_seen(distance: Any) -> None:
    """The measure of the tests above refuses the optimum of a bound that is not tight at the posterior."""
    assert not close(distance(routines.beta_vae(1.1), 0))


# -- the model reaches the greatest likelihood -------------------------------------------------------------------------


def planted(factors: int) -> Tensor:
    """Return rows (200, 4) of one factor or two, of unlike variance."""
    loadings = torch.tensor([[1.2, -0.9, 0.7, 0.4], [0.3, 0.5, 0.8, -0.7]], dtype=DOUBLE)[:factors]
    return 0.3 + torch.randn(200, factors, dtype=DOUBLE) @ loadings + 0.6 * torch.randn(200, 4, dtype=DOUBLE)


def principal_component_evidence(x: Tensor, factors: int) -> float:
    """Return the greatest mean log p(x) of N(b, W W' + s^2 I), W (D, factors), of Tipping and Bishop (1999)."""
    values = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    dimension = len(values)
    rest = values[factors:].mean().log() * (dimension - factors)
    return float(-0.5 * (dimension * math.log(2 * math.pi) + values[:factors].log().sum() + rest + dimension))


def linear_gap(routine: Routine, seed: int, factors: int, steps: int) -> float:
    """Train a linear VAE, its guide a linear one of independent normals, and return what its evidence lacks, in nats."""
    torch.manual_seed(seed)
    x = planted(factors)
    linear = networks("mlp", (4,), factors, hidden=(), seed=seed)
    pair: Any = latent(linear, Likelihood("normal", bounded=False)).double()
    train(x, routine, pair, 100, phi=0.1)  # the guide first: wake-sleep is slow to turn a guide of the wrong sign
    train(x, routine, pair, steps, theta=0.1, phi=0.1)
    with torch.no_grad():
        generator, scale = pair.model.generator.output, pair.model.likelihood.log_scale.exp()
        covariance = generator.weight @ generator.weight.T + scale**2 * torch.eye(4, dtype=DOUBLE)
        evidence = torch.distributions.MultivariateNormal(generator.bias, covariance).log_prob(x).mean()
    return principal_component_evidence(x, factors) - float(evidence)


@seeds(1, 20)
@each(
    routines.iwae,
    routines.wake_sleep,
    nightly=(
        routines.reweighted_wake_sleep,
        routines.vae,
        routines.vae(estimator="sticking_the_landing"),
        routines.beta_vae(1.0),
        routines.variational_em,
        routines.iwae(5, estimator="doubly_reparameterized"),
    ),
)
def test_one_factor_reaches_the_evidence_of_principal_components(routine: Routine, seed: int) -> None:
    assert -1e-9 <= linear_gap(routine, seed, 1, 700) <= 1e-2


@seeds(1, 20)
def test_a_linear_vae_reaches_the_evidence_of_principal_components(seed: int) -> None:
    """Two factors: the guide's independent normals hold the posterior once W has orthogonal columns, and so it ends (row E4)."""
    assert -1e-9 <= linear_gap(routines.vae, seed, 2, 1000) <= 1e-2


def two_clusters() -> tuple[Any, Tensor]:
    """Return a mixture of two normals between two clusters that overlap a little, and their rows (200, 1)."""
    x = torch.cat([-2 + 0.7 * torch.randn(80, 1), 2 + torch.randn(120, 1)]).double()
    pair: Any = mixture(2, x.float(), psi={"baseline": Baseline(1, (3,))}).double()
    with torch.no_grad():
        pair.model.loc.copy_(torch.tensor([[-1.0], [1.0]]))
    return pair, x


def evidence(pair: Pair, x: Tensor) -> float:
    """Return the mean log p(x) of a mixture by its sum over components, written out."""
    model: Any = pair.model
    with torch.no_grad():
        parts = torch.distributions.Normal(model.loc[:, 0], model.log_scale[:, 0].exp()).log_prob(x)
        return float(torch.logsumexp(torch.log_softmax(model.logits, 0) + parts, 1).mean())


@seeds(1, 20)
@each(
    routines.em(closed_form=False),
    routines.wake_sleep,
    nightly=(
        routines.nvil,
        routines.vimco,
        routines.maximum_likelihood,
        routines.vae,
        routines.variational_em,
        routines.reinforce,
        routines.iwae,
        routines.reweighted_wake_sleep,
    ),
)
def test_a_mixture_reaches_the_likelihood_of_em(routine: Routine, seed: int) -> None:
    torch.manual_seed(seed)
    pair, x = two_clusters()
    solved = copy.deepcopy(pair)
    climbed = [evidence(solved, x)]
    for _ in range(200):
        eager.step(routines.em, solved, {}, x)
        climbed.append(evidence(solved, x))
    best = climbed[-1]
    assert best - climbed[-2] < 1e-9 and best - climbed[0] > 0.1
    rows = x.repeat(20, 1)  # the same likelihood, more samples of z
    train(rows, routine, pair, 100, phi=0.1, psi=0.1)  # the guide first, so that no component is lost
    train(rows, routine, pair, 600, theta=0.05, phi=0.05, psi=0.05)
    assert abs(evidence(pair, x) - best) <= 1e-3
