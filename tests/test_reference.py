"""Reference posteriors against closed forms and against the reference draws of posteriordb.

Exact: the density in unconstrained space integrates to one, and equals its formula. Statistical: every moment within 5 Monte
Carlo standard errors, both sides' combined, from a fresh seed that is printed. The false-alarm rate is 6e-7 a moment for a
known error, and about 2e-6 for one that is itself estimated to 5%; a run of the quick tests compares about 80 moments, the
slow ones another 80, so that one in some thousand runs of either fails by chance.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pyro
import pyro.distributions as dist
import pyro.distributions.constraints as constraints
import pytest
import torch
from families import FAMILIES
from gaussians import Line
from posteriors import POSTERIORS, ROOT, Problem, recursion
from pyro.distributions.torch_transform import TransformModule
from pyro.infer.reparam import TransformReparam
from pyro.nn import PyroModule, PyroSample
from torch import Tensor

from unigen import reference
from unigen.datachecks import DataError
from unigen.engines import unconstrained
from unigen.engines.programs import Programs
from unigen.engines.sites import log_prob_at
from unigen.engines.unconstrained import Unconstrained, in_double
from unigen.pair import Pair, PairError
from unigen.pairs.likelihoods import Implicit
from unigen.reference import Posterior, sample

DOUBLE = torch.float64


def fresh() -> int:
    """Return a seed that no one chose, and print it."""
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed={seed}")
    return seed


def arviz() -> Any:
    return reference._needed("arviz")


def standard_error(values: numpy.ndarray) -> numpy.ndarray:
    """Return the Monte Carlo standard error of the mean of (chains, draws, ...), for walkers that depend on each other too.

    The average over chains is one series, whose autocorrelation holds whatever the chains have in common.
    """
    series = {"average": values.mean(0, keepdims=True)}
    return arviz().mcse(arviz().from_dict(posterior=series))["average"].values


def errors(values: Tensor, exact: Any) -> numpy.ndarray:
    """Return how many standard errors the mean of (chains, draws, ...) lies from its exact value."""
    found = numpy.asarray(values)
    return numpy.abs(found.mean((0, 1)) - numpy.asarray(exact)) / standard_error(found)


def plant_missing_jacobian(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every change of variables pass for one that keeps volumes."""
    true = unconstrained.biject_to

    class Careless:
        def __init__(self, support: Any) -> None:
            self.transform = true(support)
            self.inverse_shape = self.transform.inverse_shape

        def __call__(self, u: Tensor) -> Tensor:
            return self.transform(u)

        def log_abs_det_jacobian(self, u: Tensor, z: Tensor) -> Tensor:
            return torch.zeros(())

    monkeypatch.setattr(unconstrained, "biject_to", Careless)


# -- the density in unconstrained space, exactly -----------------------------------------------------------------------


def density(model: Callable[..., Any], data: Any = ()) -> tuple[Callable[[Any], numpy.ndarray], int]:
    """Return the lowered log density of rows of u, and the length of u."""
    import jax

    from unigen.engines.lowering import lower, precision

    with in_double(pair := Pair(model)), precision():
        latents = Unconstrained(pair, data)
        lowered = lower(latents.log_density, latents.point)

    def rows(u: Any) -> numpy.ndarray:
        with precision():
            return numpy.asarray(jax.jit(jax.vmap(lowered))(u))

    return rows, latents.size


SUPPORTS = {
    "real": lambda: dist.Normal(1.0, 2.0),
    "positive": lambda: dist.Gamma(3.0, 1.5),
    "interval": lambda: dist.Uniform(-1.0, 3.0),
    "unit interval": lambda: dist.Beta(2.0, 3.0),
    "above a bound": lambda: dist.Pareto(torch.tensor(2.0), torch.tensor(3.0)),
    "simplex": lambda: dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])),
    "correlation": lambda: dist.LKJCholesky(2, torch.tensor(2.0)),
    "transformed": lambda: dist.LogNormal(0.5, 0.7),
    "angle": lambda: dist.VonMises(1.0, 2.0),  # one turn of a density that repeats itself
    "angles": lambda: dist.VonMises(torch.zeros(1), 2.0).to_event(1),
}


def mass(support: str) -> float:
    """Return the integral of the density in u by the trapezoid rule, whose error is far below 1e-9 here."""
    log_density, size = density(lambda: pyro.sample("z", SUPPORTS[support]()))
    step = 0.02 if size == 1 else 0.2
    axis = numpy.arange(-45, 45, step)
    grid = numpy.stack([part.ravel() for part in numpy.meshgrid(*[axis] * size, indexing="ij")], -1)
    return float(numpy.exp(log_density(grid)).sum() * step**size)


@pytest.mark.parametrize("support", SUPPORTS)
def test_the_density_in_u_integrates_to_one(support):
    assert mass(support) == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("support", [name for name in SUPPORTS if name != "real"])
def test_without_its_jacobian_it_does_not(support, monkeypatch):
    plant_missing_jacobian(monkeypatch)
    assert not mass(support) == pytest.approx(1, abs=1e-2)


def test_a_support_that_depends_on_another_site():
    """a ~ U(0, 1), b ~ U(0, a), x ~ N(b, 1): log p(x | b) + log a(1 - a) + log s(1 - s), with a and s logistic in u."""

    def model(x):
        a = pyro.sample("a", dist.Uniform(0.0, 1.0))
        b = pyro.sample("b", dist.Uniform(0.0, a))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    x = torch.randn(3, dtype=DOUBLE)
    log_density, size = density(model, x)
    u = torch.randn(7, size, dtype=DOUBLE)
    a, s = torch.sigmoid(u).unbind(-1)
    expected = dist.Normal((a * s).unsqueeze(-1), 1.0).log_prob(x).sum(-1) + (a * (1 - a)).log() + (s * (1 - s)).log()
    assert numpy.abs(log_density(u.numpy()) - expected.numpy()).max() < 1e-12


SHIFT = dist.transforms.AffineTransform
BOUNDED = {
    "pareto": (lambda s: dist.Pareto(s, torch.tensor(3.0)), lambda s: s <= 2),
    "uniform": (lambda s: dist.Uniform(0.0, s), lambda s: s >= 3),
    "shifted exponential": (
        lambda s: dist.TransformedDistribution(dist.Exponential(torch.tensor(1.0)), [SHIFT(s, 1.0)]),
        lambda s: s <= 2,
    ),
    "scaled beta": (
        lambda s: dist.TransformedDistribution(dist.Beta(torch.tensor(2.0), torch.tensor(3.0)), [SHIFT(0.0, s)]),
        lambda s: s >= 3,
    ),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_data_outside_of_bounds_that_a_latent_moves_have_no_density(name):
    """s ~ LogNormal(0, 1), and rows of x in [2, 3], whose distribution reaches to s or begins there."""
    of, inside = BOUNDED[name]

    def model(x):
        s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", of(s), obs=x)

    x = torch.tensor([2.0, 3.0 - 1e-9, 2.5], dtype=DOUBLE)
    log_density, _ = density(model, x)
    u = torch.linspace(-2, 3, 50, dtype=DOUBLE)
    found, s = log_density(u[:, None].numpy()), u.exp()
    for value, scale, at in zip(found, s, u, strict=True):
        if inside(scale):
            expected = of(scale).log_prob(x).sum() + dist.Normal(0.0, 1.0).log_prob(at)
            assert value == pytest.approx(float(expected), abs=1e-5)
        else:
            assert value == -numpy.inf


class Silent(dist.Normal):
    """A normal distribution that does not say where it has its mass."""

    @property
    def support(self):
        raise NotImplementedError


@pytest.mark.filterwarnings("ignore:.*does not define `support`")
def test_a_distribution_may_keep_its_support_to_itself():
    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        pyro.sample("x", Silent(m, 1.0), obs=x)

    log_density, _ = density(model, torch.tensor(0.5, dtype=DOUBLE))
    expected = dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.2)) + dist.Normal(0.2, 1.0).log_prob(torch.tensor(0.5))
    assert log_density(numpy.array([[0.2]])) == pytest.approx(float(expected), abs=1e-6)
    base = dist.TransformedDistribution(Silent(0.0, 1.0, validate_args=False), [SHIFT(1.0, 2.0)], validate_args=False)
    assert torch.equal(log_prob_at(base, torch.tensor(0.3)), base.log_prob(torch.tensor(0.3)))


def test_counts_beyond_their_number_are_refused():
    def model(x):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Binomial(torch.tensor(3.0), p), obs=x)

    with pytest.raises(PairError, match="'x' has no density at its value"):
        density(model, torch.tensor([1.0, 5.0], dtype=DOUBLE))


@pytest.mark.parametrize("name", ["pareto", "shifted exponential"])
def test_a_pair_that_trusts_its_arguments_has_none_there_either(name):
    x = torch.tensor([[1.0, 2.5, 3.0], [4.0, 2.0, 1.9]])
    trusting = dist.Pareto(torch.tensor(2.0), torch.tensor(3.0), validate_args=False)
    if name == "shifted exponential":
        base = dist.Exponential(torch.tensor(1.0), validate_args=False)
        trusting = dist.TransformedDistribution(base, [SHIFT(2.0, 1.0)], validate_args=False)
    for fn, value in ((trusting.expand((2, 3)), x), (trusting.expand((2, 3)).to_event(1), x)):
        found, plain = log_prob_at(fn, value), fn.log_prob(value)
        inside = (x >= 2) if fn.event_dim == 0 else (x >= 2).all(-1)
        assert torch.equal(found, torch.where(inside, plain, -torch.inf)) and bool(plain[~inside].isfinite().all())


def test_scales_and_masks_count_as_pyro_counts_them():
    def model(x, kept):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=2.5), pyro.poutine.mask(mask=kept):
            pyro.sample("x", dist.Normal(w, 0.5), obs=x)

    x, kept = torch.randn(4, dtype=DOUBLE), torch.tensor([True, False, True, True])
    log_density, _ = density(model, (x, kept))
    w = torch.tensor(0.3, dtype=DOUBLE)
    expected = dist.Normal(0.0, 1.0).log_prob(w) + 2.5 * dist.Normal(w, 0.5).log_prob(x)[kept].sum()
    assert log_density(w.reshape(1, 1).numpy())[0] == pytest.approx(expected.item(), abs=1e-12)


def width(x):
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(0.0, w.prod().abs()), obs=x)


def direction(x):
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("x", dist.Normal((w / w.norm()).sum(), 1.0), obs=x)


SINGULAR = {width: lambda w: (0.0, w.prod().abs()), direction: lambda w: ((w / w.norm()).sum(), 1.0)}


@pytest.mark.parametrize("model", SINGULAR)
def test_a_model_that_is_singular_at_the_middle_of_its_supports(model):
    x = torch.tensor(0.4, dtype=DOUBLE)
    log_density, _ = density(model, x)
    for w in torch.tensor([[0.3, -2.0], [1.0, 0.5]], dtype=DOUBLE):
        expected = dist.Normal(0.0, 1.0).log_prob(w).sum() + dist.Normal(*SINGULAR[model](w)).log_prob(x)
        assert log_density(w[None].numpy())[0] == pytest.approx(expected.item(), abs=1e-12)


class Noise(PyroModule):
    """w ~ N(0, scale), x ~ N(w, scale): with a scale that is given in single precision, in evaluation mode alone."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(self.layer.weight, 2.0)

    def forward(self, x):
        assert not self.layer.training
        scale = self.layer(torch.ones(1))
        with pyro.plate("rows", 1):
            pyro.sample("x", dist.Normal(pyro.sample("w", dist.Normal(0.0, scale)), scale), obs=x)


HANDLED = {
    "condition": lambda model: pyro.poutine.condition(model, data={}),
    "do": lambda model: pyro.poutine.do(model, data={}),
    "reparam": lambda model: pyro.poutine.reparam(model, config={}),
    "two": lambda model: pyro.poutine.scale(pyro.poutine.condition(model, data={}), scale=1.0),
}


@pytest.mark.parametrize("handler", HANDLED)
def test_a_module_in_a_handler(handler):
    module, x = Noise(), torch.tensor([0.7], dtype=DOUBLE)
    log_density, _ = density(HANDLED[handler](module), x)
    w = torch.tensor([0.3], dtype=DOUBLE)
    expected = dist.Normal(0.0, 2.0).log_prob(w) + dist.Normal(w, 2.0).log_prob(x)
    assert log_density(w[None].numpy())[0] == pytest.approx(expected.item(), abs=1e-7)
    assert module.layer.weight.dtype == torch.float32 and module.layer.training


def test_the_parameter_store_stays_as_it_was():
    def model(x):
        loc = pyro.param("loc", torch.tensor(2.0))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample("x", dist.Normal(pyro.sample("w", dist.Normal(loc, scale)), 1.0), obs=x)

    store = pyro.get_param_store()
    with store.scope():
        pyro.param("scale", torch.tensor(3.0), constraint=constraints.positive)
        before = store._params["scale"]
        log_density, _ = density(model, torch.tensor(0.5, dtype=DOUBLE))
        assert set(store) == {"scale"} and store._params["scale"] is before and before.dtype == torch.float32
    w = torch.tensor(0.3, dtype=DOUBLE)
    expected = dist.Normal(2.0, 3.0).log_prob(w) + dist.Normal(w, 1.0).log_prob(torch.tensor(0.5))
    assert log_density(w.reshape(1, 1).numpy())[0] == pytest.approx(expected.item(), abs=1e-6)


def test_a_factor_in_a_plate_counts_for_each_row():
    def model():
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 3):
            pyro.factor("f", -(w**4))
            pyro.deterministic("d", w)

    log_density, _ = density(model)
    expected = dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.5)).item() - 3 * 0.5**4
    assert log_density(numpy.array([[0.5]]))[0] == pytest.approx(expected, abs=1e-6)


def test_a_model_may_index_its_data():
    """By a plate, by a mask, and a constant table by data."""

    def model(x, group):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        kept = ~x.isnan()
        x, scale = x[kept], torch.tensor([1.0, 2.0])[group[kept]]
        with pyro.plate("data", len(x)) as rows:
            pyro.sample("y", dist.Normal(w, scale[rows]), obs=x[rows])

    x, group = torch.tensor([0.3, -1.0, torch.nan, 2.0], dtype=DOUBLE), torch.tensor([0, 1, 1, 0])
    log_density, _ = density(model, (x, group))
    scale = torch.tensor([1.0, 2.0, 1.0], dtype=DOUBLE)
    for w in torch.tensor([-1.0, 0.5, 2.0], dtype=DOUBLE):
        expected = dist.Normal(0.0, 1.0).log_prob(w) + dist.Normal(w, scale).log_prob(x[[0, 1, 3]]).sum()
        assert log_density(w.reshape(1, 1).numpy())[0] == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_the_density_of_a_pair_is_that_of_the_eager_engine(training):
    """With batch norm, by its running statistics whatever the mode, which stay as they are."""
    import jax

    from unigen.engines.lowering import lower, precision

    pair, x = FAMILIES["latent"]()
    pair.double().train(training)
    with torch.no_grad():
        pair.model(x.double())  # moves the statistics of a pair in training mode
    before = [buffer.clone() for buffer in pair.buffers()]
    with in_double(pair), precision():
        latents = Unconstrained(pair, x)
        u = torch.randn(latents.size)
        value, slope = jax.value_and_grad(lower(latents.log_density, u))(u.numpy())
    assert pair.training == training and all(map(torch.equal, before, pair.buffers()))
    z = u.reshape(len(x), -1).requires_grad_()
    pair.eval()
    sites = Programs(pair).run("model", {"x": x.double()}, values={"z": z}, grad=True)
    expected = torch.stack([site.fn.log_prob(site.value).sum() for site in sites.values()]).sum()
    (gradient,) = torch.autograd.grad(expected, z)
    assert float(value) == pytest.approx(expected.item(), abs=1e-10)
    assert numpy.abs(numpy.asarray(slope) - gradient.reshape(-1).numpy()).max() < 1e-10


def test_priors_that_modules_hold():
    """A layer whose weight is a ``PyroSample``, made and checked outside of the run."""
    layer = PyroModule[torch.nn.Linear](2, 1, bias=False)
    layer.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))

    class Regression(PyroModule):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, y):
            mean = self.layer(x).squeeze(-1)
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(mean, 0.5), obs=y)

    x, y = torch.randn(5, 2, dtype=DOUBLE), torch.randn(5, dtype=DOUBLE)
    log_density, size = density(Regression(), (x, y))
    u = torch.randn(size, dtype=DOUBLE)
    expected = dist.Normal(0.0, 1.0).log_prob(u).sum() + dist.Normal(x @ u, 0.5).log_prob(y).sum()
    assert log_density(u.reshape(1, -1).numpy())[0] == pytest.approx(expected.item(), abs=1e-12)


# -- posteriors of closed form -----------------------------------------------------------------------------------------


def regression(x, y):
    """Global latents beside the plate of the data: w ~ N(0, 1), b ~ N(0, 2), y ~ N(w x + b, 1/2)."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(w * x + b, 0.5), obs=y)


def conjugate(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the covariance of (w, b)."""
    design = torch.stack([x, torch.ones_like(x)], -1)
    covariance = torch.linalg.inv(torch.diag(torch.tensor([1.0, 0.25], dtype=DOUBLE)) + 4 * design.T @ design)
    return covariance @ (4 * design.T @ y), covariance


@pytest.mark.parametrize("sampler", reference.SAMPLERS)
def test_a_conjugate_regression(sampler):
    x = torch.tensor([-1.0, 0.5, 1.0, 2.0], dtype=DOUBLE)
    y = torch.tensor([0.1, 0.9, 0.8, 2.2], dtype=DOUBLE)
    mean, covariance = conjugate(x, y)
    posterior = sample(regression, (x, y), sampler=sampler, warmup=500, draws=3000, seed=fresh())
    centred = torch.stack([posterior.draws["w"], posterior.draws["b"]], -1) - mean
    assert (errors(centred, 0) < 5).all()
    assert (errors(centred[..., :, None] * centred[..., None, :], covariance) < 5).all()
    assert all(float(value) < 1.05 for value in posterior.rhat.values()) and posterior.divergences == 0
    if sampler in ("nuts", "hmc"):
        assert all(float(value) > 1000 for value in posterior.ess.values())
    # the planted fault: a posterior whose prior is half as wide lies elsewhere
    tighter = torch.linalg.inv(torch.linalg.inv(covariance) + torch.diag(torch.tensor([3.0, 0.75], dtype=DOUBLE)))
    moved = tighter @ torch.linalg.inv(covariance) @ mean
    assert (errors(centred, moved - mean) > 5).any()


def shares_and_rates():
    """A simplex and half-lines, of known moments."""
    pyro.sample("shares", dist.Dirichlet(torch.tensor([2.0, 3.0, 5.0])))
    with pyro.plate("rates", 2):
        pyro.sample("rate", dist.Gamma(3.0, 2.0))


def shares_and_rates_errors(draws: Any) -> numpy.ndarray:
    """Return the errors of the first two moments, in standard errors."""
    share = torch.tensor([0.2, 0.3, 0.5], dtype=DOUBLE)
    found = (
        errors(draws["shares"], share),
        errors((draws["shares"] - share).square(), share * (1 - share) / 11),
        errors(draws["rate"], numpy.full(2, 1.5)),
        errors((draws["rate"] - 1.5).square(), numpy.full(2, 0.75)),
    )
    return numpy.concatenate(found)


def supports():
    """Those, an interval, the factor of correlations, and a support that depends on another site."""
    shares_and_rates()
    pyro.sample("interval", dist.Uniform(-1.0, 3.0))
    pyro.sample("factor", dist.LKJCholesky(3, torch.tensor(2.0)))
    above = pyro.sample("above", dist.Uniform(0.0, 1.0))
    pyro.sample("below", dist.Uniform(0.0, above))


def test_constrained_supports():
    """Moments: U(-1, 3); correlations of LKJ(2) in three dimensions, (r + 1) / 2 ~ Beta(2.5, 2.5); b ~ U(0, a), a ~ U(0, 1)."""
    posterior = sample(supports, sampler="hmc", warmup=500, draws=2000, seed=fresh())
    z = posterior.draws
    correlation = (z["factor"] @ z["factor"].mT)[..., [0, 0, 1], [1, 2, 2]]
    assert (shares_and_rates_errors(z) < 5).all()
    assert errors(z["interval"], 1) < 5 and errors((z["interval"] - 1).square(), 4 / 3) < 5
    assert (errors(correlation, 0) < 5).all() and (errors(correlation.square(), 1 / 6) < 5).all()
    assert errors(z["below"], 1 / 4) < 5 and errors(z["below"].square(), 1 / 9) < 5
    assert z["factor"].shape == (4, 2000, 3, 3) and posterior.rhat["rate"].shape == (2,)
    assert (z["shares"].sum(-1) - 1).abs().max() < 1e-12 and bool((z["below"] <= z["above"]).all())


def test_constrained_supports_without_jacobian_are_found_out(monkeypatch):
    """The draws are then those of Dirichlet(1, 2, 4) and Gamma(2, 2)."""
    plant_missing_jacobian(monkeypatch)
    posterior = sample(shares_and_rates, sampler="hmc", warmup=300, draws=1000, seed=fresh())
    assert (shares_and_rates_errors(posterior.draws) > 5).any()


def test_the_latents_of_a_pair():
    """z | x = N(G x, C), independent over rows; a pair of float32 is sampled in float64, and stays as it is."""
    line = Line()
    gain, covariance = (part.detach() for part in line.posterior())
    x = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]], dtype=DOUBLE)
    pair = Pair(Line(line.a.detach().float())).train()
    before = pair.model.a
    posterior = sample(pair, x.float(), warmup=500, draws=2000, seed=fresh())
    z = posterior.draws["z"]
    centred = z - x @ gain.T
    assert z.shape == (4, 2000, 2, 2) and z.dtype == DOUBLE
    assert (errors(centred, 0) < 5).all()
    assert (errors(centred[..., :, None] * centred[..., None, :], covariance.expand(2, 2, 2)) < 5).all()
    assert (errors(centred[..., 0, :] * centred[..., 1, :], 0) < 5).all()
    assert pair.model.a is before and before.dtype == torch.float32 and before.grad is None and pair.training
    assert (errors(z - x.flip(0) @ gain.T, 0) > 5).any()  # the planted fault: rows that change places


# -- posteriordb -------------------------------------------------------------------------------------------------------

needs_posteriordb = pytest.mark.skipif(
    ROOT is None or not ROOT.is_dir(), reason="posteriordb/ is not under UNIGEN_DATA, or UNIGEN_DATA is not set"
)
QUICK = ("eight_schools-eight_schools_noncentered", "kidiq-kidscore_momiq")


def worst_error(problem: Problem, posterior: Posterior) -> float:
    """Return the largest error of a mean or standard deviation, in combined Monte Carlo standard errors of both sides."""
    known = arviz().from_dict(posterior=problem.reference()).posterior
    found = posterior.to_arviz().posterior[list(known.data_vars)]
    worst = 0.0
    for method, moment in (("mean", numpy.mean), ("sd", numpy.std)):
        ours, theirs = (arviz().mcse(side, method=method) for side in (found, known))
        for site in known.data_vars:
            gap = moment(found[site].values, (0, 1)) - moment(known[site].values, (0, 1))
            error = gap / numpy.hypot(ours[site].values, theirs[site].values)
            print(f"{problem.name}: {method} of {site} off by {numpy.round(error, 2)} standard errors")
            worst = max(worst, float(numpy.abs(error).max()))
    return worst


@needs_posteriordb
@pytest.mark.parametrize("name", QUICK)
def test_posteriordb_quickly(name):
    problem = POSTERIORS[name]
    posterior = sample(problem.model, problem.data(), seed=fresh(), **problem.options)
    print(posterior)
    assert worst_error(problem, posterior) < 5


@needs_posteriordb
@pytest.mark.slow
@pytest.mark.parametrize("name", POSTERIORS)
def test_posteriordb(name):
    """All moments at an effective sample size of 10,000 or more."""
    problem = POSTERIORS[name]
    posterior = sample(problem.model, problem.data(), warmup=2000, draws=10000, seed=fresh(), **problem.options)
    print(posterior)
    assert min(float(posterior.ess[site].min()) for site in problem.reference()) > 10000
    assert max(float(value.max()) for value in posterior.rhat.values()) < 1.01
    assert worst_error(problem, posterior) < 5


@needs_posteriordb
@pytest.mark.slow
def test_posteriordb_finds_a_wrong_prior():
    problem = POSTERIORS[QUICK[0]]

    def wrong(y, sigma):
        with pyro.poutine.scale(scale=1.2):
            problem.model(y, sigma)

    posterior = sample(wrong, problem.data(), warmup=2000, draws=10000, seed=fresh(), **problem.options)
    assert worst_error(problem, posterior) > 5


def test_a_recursion_is_its_loop():
    first, rest, factor = torch.randn((), dtype=DOUBLE), torch.randn(12, dtype=DOUBLE), torch.tensor(0.8, dtype=DOUBLE)
    loop = [first]
    for term in rest:
        loop.append(term + factor * loop[-1])
    assert (recursion(first, rest, factor) - torch.stack(loop)).abs().max() < 1e-13


# -- what is returned, and what stays as it was ------------------------------------------------------------------------


def coin():
    pyro.sample("w", dist.Normal(0.0, 1.0))


def test_streams_and_settings_stay_as_they_were():
    import jax

    state, dtype, wide = torch.get_rng_state(), torch.get_default_dtype(), jax.config.jax_enable_x64
    one, same, other = (sample(coin, sampler="aies", warmup=20, draws=20, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state) and torch.get_default_dtype() == dtype
    assert jax.config.jax_enable_x64 == wide
    assert torch.equal(one.draws["w"], same.draws["w"]) and not torch.equal(one.draws["w"], other.draws["w"])
    assert one.draws["w"].dtype == DOUBLE and one.draws["w"].shape == (4, 20)  # 2 * 1 + 2 walkers


def test_inference_mode_changes_nothing():
    settings = {"sampler": "nuts", "warmup": 20, "draws": 20, "chains": 2}
    x = torch.ones(1, dtype=DOUBLE)
    plain = sample(ordinary, x, **settings)
    with torch.inference_mode():
        switched = sample(ordinary, x.clone(), **settings)
    assert torch.equal(switched.draws["w"], plain.draws["w"]) and not switched.draws["w"].is_inference()


def test_a_reparameterized_site_is_drawn_under_its_own_name():
    def model(x):
        w = pyro.sample("w", dist.LogNormal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    reparameterized = pyro.poutine.reparam(model, config={"w": TransformReparam()})
    posterior = sample(reparameterized, torch.ones(4), warmup=50, draws=50)
    assert set(posterior.draws) == {"w", "w_base"}
    assert torch.allclose(posterior.draws["w"], posterior.draws["w_base"].exp())


def test_arviz_and_deterministic_sites():
    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.deterministic("twice", 2 * w)
        pyro.sample("x", dist.Normal(w.sum(), 0.5), obs=x)

    posterior = sample(model, {"x": torch.tensor(0.3)}, sampler="hmc", warmup=100, draws=50, chains=2)
    inference = posterior.to_arviz()
    assert torch.equal(posterior.draws["twice"], 2 * posterior.draws["w"])
    assert set(inference.posterior.data_vars) == {"w", "twice"} == set(posterior.rhat) == set(posterior.ess_tail)
    assert inference.posterior["w"].shape == (2, 50, 2) == posterior.draws["w"].shape
    assert inference.sample_stats["diverging"].shape == (2, 50) and posterior.diverging.dtype == torch.bool
    assert "2 chains of 50 draws" in str(posterior)


def test_a_constant_has_no_effective_sample_size():
    draws = {"w": torch.randn(2, 50, 2, dtype=DOUBLE), "n": torch.ones(2, 50, dtype=DOUBLE)}
    draws["w"][..., 1] = 3.0
    posterior = Posterior("nuts", draws, *reference._diagnostics(draws))
    for found in (posterior.rhat, posterior.ess, posterior.ess_tail):
        assert found["w"].isnan().tolist() == [False, True] and bool(found["n"].isnan())
    assert str(posterior).endswith("; constant, in part or whole: w, n") and "nan" not in str(posterior)


@pytest.mark.parametrize("mass", [torch.ones(2), numpy.array([1, 2]), [1.0, 2.0]], ids=["torch", "whole", "list"])
def test_a_mass_matrix_of_any_numbers(mass):
    (matrix,) = reference._mass_matrix({"inverse_mass_matrix": mass}, 2).values()
    assert matrix.dtype == numpy.float64 and matrix.tolist() == [float(value) for value in mass]


def test_chains_that_disagree_are_seen():
    """Two modes forty deviations apart, which no chain crosses; 16 chains all start at one of them once in 33,000 runs."""

    def model():
        modes = dist.Normal(torch.tensor([-20.0, 20.0]), 1.0)
        pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), modes))

    posterior = sample(model, sampler="hmc", warmup=100, draws=100, chains=16, seed=fresh())
    signs = posterior.draws["z"].sign()
    assert bool((signs == signs[:, :1]).all()) and len(set(signs[:, 0].tolist())) == 2
    assert float(posterior.rhat["z"]) > 1.05


# -- refusals ----------------------------------------------------------------------------------------------------------


def observed(w: Any, x: Any) -> None:
    pyro.sample("x", dist.Normal(w, 1.0), obs=x)


def discrete(x):
    observed(pyro.sample("k", dist.Bernoulli(0.5)), x)


def implicit(x):
    pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.sample("x", Implicit(torch.zeros(1)), obs=x.expand(1))


class Unnormalized(dist.Normal):
    normalized = False


def unnormalized(x):
    pyro.sample("x", Unnormalized(pyro.sample("w", dist.Normal(0.0, 1.0)), 1.0), obs=x)


def missing(y, x=None):
    observed(pyro.sample("w", dist.Normal(y, 1.0)), x)


def certain(x):
    observed(0.0, x)


def masked(x):
    with pyro.plate("rows", 2), pyro.poutine.mask(mask=torch.tensor([True, False])):
        pyro.sample("w", dist.Normal(0.0, 1.0))


def subsampled(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 4, subsample_size=2) as rows:
        pyro.sample("x", dist.Normal(w, 1.0), obs=x.expand(4)[rows])


def twice(x):
    for _ in range(2):
        observed(pyro.sample("w", dist.Normal(0.0, 1.0)), x)


def spherical(x):
    pyro.sample("direction", dist.ProjectedNormal(torch.ones(3)))


def branching(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    observed(w if w > 0 else 2 * w, x)


SINGLE = torch.ones(4, 4, dtype=torch.float32)


def single(x):
    w = pyro.sample("w", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    observed((SINGLE @ w).sum(), x)


def ordinary(x):
    observed(pyro.sample("w", dist.Normal(0.0, 1.0)), x)


def named(name):
    def model(x):
        observed(pyro.sample(name, dist.Normal(0.0, 1.0)), x)

    return model


def point(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    observed(pyro.sample("v", dist.Delta(2 * w)), x)


def rows(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        observed(w, x)


def six(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 6):
        observed(w, x)


def silent(x):
    raise NotImplementedError


def nothing(x):
    observed(pyro.sample("w", dist.Normal(torch.zeros(0), 1.0).to_event(1)).sum(), x)


def crowded(x):
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    observed(w.sum() + pyro.sample("w_dim_0", dist.Normal(0.0, 1.0)), x)


X = torch.tensor(0.5)
REFUSALS = {
    "discrete": (discrete, X, {}, ("site 'k'", "Bernoulli", "discrete", "sum it out")),
    "implicit": (implicit, X, {}, ("site 'x'", "implicit")),
    "unnormalized": (unnormalized, X, {}, ("site 'x'", "unnormalized")),
    "an argument missing": (missing, {}, {}, ("'y'", "missing")),
    "an observation missing": (missing, {"y": X}, {}, ("site 'x' has no data", "give 'x'")),
    "an argument too many": (missing, {"y": X, "xx": X}, {}, ("'xx'", "did you mean 'x'")),
    "no latent": (certain, X, {}, ("no latent site",)),
    "a mask": (masked, X, {}, ("site 'w'", "masked in part")),
    "a subsample": (subsampled, X, {}, ("site 'x'", "subsampled plate 'rows'")),
    "a site twice": (twice, X, {}, ("site 'w' is sampled twice",)),
    "no map": (spherical, X, {}, ("site 'direction'", "biject_to")),
    "a branch": (branching, X, {}, ("values", "test_reference.py")),
    "NaN": (ordinary, torch.tensor(float("nan")), {}, ("site 'x'", "nan", "check the data for NaN")),
    "single precision": (single, X, {}, ("float64", "parameters or buffers")),
    "data as a column": (six, torch.ones(6, 1), {}, ("'x' has shape (6, 1)", "distribution has shape (6,)")),
    "one datum for a plate": (six, torch.ones(1), {}, ("'x' has shape (1,)", "distribution has shape (6,)")),
    "None as data": (rows, {"x": None}, {}, ("'x'", "missing; got none")),
    "bits": (ordinary, torch.tensor(True), {}, ("'x' is a bool tensor", "x.double()")),
    "sparse data": (rows, torch.ones(3).to_sparse(), {}, ("'x' is a sparse_coo tensor", "dense tensor")),
    "complex data": (rows, torch.ones(3) * 1j, {}, ("'x' is a complex tensor",)),
    "data without values": (rows, torch.ones(3, device="meta"), {}, ("'x' is a meta tensor",)),
    "an error without a word": (silent, X, {}, ("cannot run on these data", "NotImplementedError")),
    "latents without elements": (nothing, X, {}, ("latent sites w have no elements",)),
    "a site named as a dimension": (crowded, X, {}, ("site 'w_dim_0' has the name of a dimension", "give it another")),
    "a sampler": (ordinary, X, {"sampler": "nut"}, ("did you mean 'nuts'",)),
    "an option": (ordinary, X, {"target_accept": 0.9}, ("did you mean 'target_accept_prob'",)),
    "odd walkers": (ordinary, X, {"sampler": "ess", "chains": 5}, ("chains=5", "even number of at least 4")),
    "few walkers": (ordinary, X, {"sampler": "aies", "chains": 2}, ("chains=2", "even number of at least 4")),
    "no draws": (ordinary, X, {"draws": 0}, ("draws is 0",)),
    "a point mass": (point, X, {}, ("site 'v' is a point mass", "pyro.deterministic('v', value)")),
    "no rows": (rows, torch.ones(0), {}, ("size cannot be zero", "give at least one datum")),
    "a site named draw": (named("draw"), X, {}, ("site 'draw'", "give it another")),
    "a site named chain": (named("chain"), X, {}, ("site 'chain'", "give it another")),
    "half a seed": (ordinary, X, {"seed": 1.5}, ("seed is 1.5, expected an integer",)),
    "no seed": (ordinary, X, {"seed": None}, ("seed is None, expected an integer",)),
    "a seed too large": (ordinary, X, {"seed": 2**70}, ("expected an integer from 0 to 9223372036854775807",)),
    "derivatives forward": (ordinary, X, {"forward_mode_differentiation": True}, ("nuts has no option 'forward_mode",)),
    "a mass matrix of another size": (
        ordinary,
        X,
        {"inverse_mass_matrix": numpy.ones(7)},
        ("inverse_mass_matrix has shape (7,), expected an array (", "by dense_mass=False"),
    ),
    "blocks of mass": (ordinary, X, {"dense_mass": [("w",)]}, ("dense_mass is [('w',)], expected True or False",)),
    "sure to accept": (ordinary, X, {"target_accept_prob": 2.0}, ("target_accept_prob is 2.0", "above 0 and below 1")),
    "a step backwards": (ordinary, X, {"step_size": -1.0}, ("step_size is -1.0, expected a number above 0",)),
    "a tree without depth": (ordinary, X, {"max_tree_depth": 0}, ("max_tree_depth is 0",)),
    "no steps": (ordinary, X, {"sampler": "hmc", "num_steps": 0}, ("num_steps is 0, expected an integer",)),
    "half a step": (ordinary, X, {"sampler": "hmc", "num_steps": 2.5}, ("num_steps is 2.5, expected an integer",)),
    "no way": (ordinary, X, {"sampler": "hmc", "trajectory_length": 0.0}, ("trajectory_length is 0.0",)),
    "an endless way": (ordinary, X, {"sampler": "hmc", "trajectory_length": numpy.inf}, ("trajectory_length is inf",)),
    "a way that is no number": (
        ordinary,
        X,
        {"sampler": "hmc", "trajectory_length": "a"},
        ("trajectory_length is 'a'",),
    ),
    "no iterations": (ordinary, X, {"sampler": "ess", "max_iter": 0}, ("max_iter is 0",)),
    "no stepping out": (ordinary, X, {"sampler": "ess", "max_steps": 0}, ("max_steps is 0",)),
    "a slice without width": (ordinary, X, {"sampler": "ess", "init_mu": numpy.nan}, ("init_mu is nan",)),
    "no function": (ordinary, X, {"kinetic_fn": 3}, ("kinetic_fn is 3, expected a function",)),
    "no moves": (ordinary, X, {"sampler": "aies", "moves": 3}, ("moves is 3, expected a dict",)),
    "a move by name": (ordinary, X, {"sampler": "ess", "moves": {"a": 1}}, ("moves is {'a': 1}, expected a dict",)),
    "moves against all odds": (ordinary, X, {"sampler": "aies", "moves": {abs: -1.0}}, ("moves is {", "-1.0}")),
    "a mass of nothing": (ordinary, X, {"inverse_mass_matrix": numpy.zeros(1)}, ("expected numbers above 0",)),
    "a mass that is no number": (ordinary, X, {"inverse_mass_matrix": [numpy.nan]}, ("expected numbers above 0",)),
    "a mass by name": (ordinary, X, {"inverse_mass_matrix": {"w": 1}}, ("{'w': 1}, expected an array",)),
    "an indefinite mass": (
        ordinary,
        X,
        {"inverse_mass_matrix": -numpy.eye(1), "dense_mass": True},
        ("expected a symmetric matrix that is positive definite",),
    ),
}


@pytest.mark.filterwarnings("ignore:.*numerical or finite.*")
@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case):
    model, data, options, words = REFUSALS[case]
    with pytest.raises(ValueError) as caught:
        sample(model, data, warmup=2, **{"draws": 4, **options})
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "engine=" not in message
    if not options:
        assert isinstance(caught.value, PairError | DataError)


def test_a_flat_density_by_intent_is_none_of_them():
    """A site under ``mask(False)`` and an ImproperUniform are flat; what follows them makes the posterior proper."""

    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).mask(False))
        v = pyro.sample("v", dist.ImproperUniform(constraints.positive, (), ()))
        pyro.sample("x", dist.Normal(torch.stack([w, v]), 1.0).to_event(1), obs=x)

    log_density, _ = density(model, torch.tensor([1.0, 2.0], dtype=DOUBLE))
    w, v = 0.4, 0.9
    expected = -((w - 1) ** 2 + (v - 2) ** 2) / 2 - numpy.log(2 * numpy.pi) + numpy.log(v)
    assert log_density(numpy.array([[w, numpy.log(v)]]))[0] == pytest.approx(expected, abs=1e-12)


class Shift(TransformModule):
    """x = u + a, which remembers the u of its last x."""

    bijective = True
    domain = codomain = constraints.real

    def __init__(self):
        super().__init__(cache_size=1)
        self.a = torch.zeros(())

    def _call(self, u):
        return u + self.a

    def _inverse(self, x):
        return x - self.a

    def log_abs_det_jacobian(self, u, x):
        return torch.zeros_like(u)


def test_a_transform_whose_parameters_are_latents_remembers_nothing():
    """The data are the same tensor in every run: remembered, their u would be that of another a, and the posterior the prior."""
    shift = Shift()

    def model(x):
        shift.a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.TransformedDistribution(dist.Normal(0.0, 1.0).expand([len(x)]), [shift]), obs=x)

    x = torch.tensor([1.0, 2.0, 4.0], dtype=DOUBLE)
    log_density, _ = density(model, x)
    for a in (-1.0, 0.5, 2.0):
        expected = -(a**2 + ((x - a) ** 2).sum()) / 2 - 2 * numpy.log(2 * numpy.pi)
        assert log_density(numpy.array([[a]]))[0] == pytest.approx(float(expected), abs=1e-12)


def test_the_example_of_the_readme(capsys):
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, re.S)
    (programs,), (example,) = ([block for block in blocks if word in block] for word in ("fit(", "reference.sample("))
    names: dict = {}
    for block in (programs.replace("steps=500", "steps=1"), example):
        exec(compile(block, "README.md", "exec"), names)  # noqa: S102 - our own file
    assert names["posterior"].draws["z"].shape == (4, 1000, 20, 1) and "nuts: 4 chains" in capsys.readouterr().out


def test_without_arviz(monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r"reference posteriors need arviz.*with its extra"):
        sample(ordinary, X)
