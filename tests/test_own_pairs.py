"""Pairs as users write them, against closed forms: labels that are observed, deterministic values, covariates first, ..."""

import math
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import config_enumerate
from pyro.infer.reparam import LocScaleReparam
from pyro.nn import PyroModule
from torch import Tensor, nn

from unigen import routines
from unigen.engines import eager
from unigen.engines.checks import check
from unigen.engines.programs import Programs
from unigen.evaluate import Annealing, annealed_log_likelihood, log_likelihood, sample
from unigen.kernels import Langevin
from unigen.objectives import elbo, log_p, log_q
from unigen.pair import Pair, PairError
from unigen.pairs.likelihoods import Implicit, Stratified
from unigen.phases import PHI, THETA, Chain, Phase, ScoreFunction, Sleep, Tilted, Wake
from unigen.training import fit


@pytest.fixture(autouse=True)
def float64() -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


class Labelled(PyroModule):
    """y ~ Bernoulli(1/2), latent where it is not given; z ~ N(0, 1); x ~ N(2 y + z, 1), so that p(x | y) = N(2 y, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.5 * torch.ones(len(x))), obs=y)
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(2 * y + z + self.b, 1.0), obs=x)


class ObservingGuide(PyroModule):
    """z ~ p(z | x, y); y ~ Bernoulli(sigmoid(c x)), observed where it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.ones(()))
        self.s = nn.Parameter(torch.tensor(-math.log(2.0) / 2))

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(logits=self.c * x), obs=y)
            pyro.sample("z", dist.Normal((x - 2 * y) / 2, self.s.exp()))


def test_given_labels_that_the_guide_observes_are_not_subtracted() -> None:
    """q(z | x, y) is the posterior, so that every bound is log p(x, y)."""
    x, y = torch.randn(50), (torch.rand(50) < 0.5).double()
    pair, data = Pair(Labelled(), ObservingGuide()), {"x": x, "y": y}
    exact = dist.Normal(2 * y, 2**0.5).log_prob(x).mean() + math.log(0.5)
    value, _ = eager.objective(Phase(elbo, Wake(), THETA + PHI), pair, data)
    assert torch.isclose(value, exact, rtol=0, atol=1e-12)
    assert log_likelihood(pair, data, 10).value == pytest.approx(float(exact), abs=1e-10)
    annealed = annealed_log_likelihood(pair, data, Annealing(distributions=3, chains=2, leapfrogs=1))
    assert annealed.value == pytest.approx(float(exact), abs=1e-6)
    for estimator in ("sticking_the_landing", "score_function"):
        (phase,) = routines.vae(estimator=estimator)
        assert torch.isclose(eager.objective(phase, pair, data)[0], exact, rtol=0, atol=1e-12)


def test_the_sleep_phase_still_learns_the_labels_that_the_guide_observes() -> None:
    pair = Pair(Labelled(), ObservingGuide())
    _, surrogate = eager.objective(Phase(log_q, Sleep(), PHI), pair, {"x": torch.randn(50), "y": torch.zeros(50)})
    (slope,) = torch.autograd.grad(surrogate, pair.guide.c)
    assert float(slope.abs()) > 1e-3


class Deterministic(PyroModule):
    """z ~ N(0, 1); x ~ N(a z + b, 1), with or without a statement for the mean."""

    def __init__(self, stated: bool) -> None:
        super().__init__()
        self.stated = stated
        self.a, self.b = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.tensor(-0.2))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            mean = self.a * z + self.b
            mean = pyro.deterministic("mean", mean) if self.stated else mean
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


class OfX(PyroModule):
    """z ~ N(w x, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.w * x, 1.0))


def first_datum(draw: Any) -> Tensor:
    """f(x) = x: what a tilt or a score weighs."""
    return draw.x


@pytest.mark.parametrize(
    "phase",
    [
        Phase(log_p, Tilted(Sleep(3), first_datum, dim=0), THETA),
        Phase(first_datum, Sleep(), THETA, estimator=ScoreFunction()),
        Phase(first_datum, Sleep(), THETA),
        Phase(log_p, Sleep(), THETA, estimator=ScoreFunction()),
    ],
    ids=["tilted", "score", "path", "log_p"],
)
def test_a_deterministic_value_that_is_read_changes_no_gradient(phase: Phase) -> None:
    found = []
    for stated in (False, True):
        torch.manual_seed(1)
        pair = Pair(Deterministic(stated), OfX())
        value, surrogate = eager.objective(phase, pair, torch.randn(20))
        found.append([value, *torch.autograd.grad(surrogate, pair.group("theta"))])
    assert all(torch.equal(plain, with_it) for plain, with_it in zip(*found, strict=True))


class Changed(PyroModule):
    """z ~ N(0, 1); a function of x is observed, and not x."""

    def __init__(self, of_x: Any) -> None:
        super().__init__()
        self.of_x, self.b = of_x, nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            fn = dist.Normal(z + self.b, 1.0)
            if mask is not None:
                x, fn = torch.where(mask, x, 0.0), fn.mask(mask)
            pyro.sample("x", fn.to_event(1), obs=self.of_x(x))


class Encoder(PyroModule):
    """z ~ N(w x, 1), of rows of two."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.w * x.reshape(len(x), 2), 1.0).to_event(1))


@pytest.mark.parametrize("of_x", [lambda x: (x - 100) / 10, lambda x: x.exp(), lambda x: x.flatten(1)])
def test_dreams_on_another_scale_than_the_data_are_refused(of_x: Any) -> None:
    x = torch.randn(8, 2, 1) if of_x(torch.ones(1, 2, 1)).dim() == 2 else torch.randn(8, 2)
    pair = Pair(Changed(of_x), Encoder())
    check(routines.vae(), pair, x)
    with pytest.raises(PairError, match=r"site 'x' observes something else than the argument 'x'"):
        check(routines.wake_sleep(), pair, x)
    with pytest.raises(PairError, match=r"site 'x' observes something else than the argument 'x'"):
        sample(pair, 3, x)


def test_what_a_mask_leaves_out_may_be_observed_otherwise() -> None:
    pair = Pair(Changed(lambda x: x), Encoder())
    check(routines.wake_sleep(), pair, {"x": torch.randn(8, 2), "mask": torch.rand(8, 2) < 0.7})


class Counting(PyroModule):
    """z ~ Binomial(n, 0.3), n data or three; x ~ N(z + b, 1)."""

    def __init__(self, fixed: bool) -> None:
        super().__init__()
        self.fixed, self.b = fixed, nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, n: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Binomial(3 if self.fixed else n, torch.full((len(x),), 0.3)))
            pyro.sample("x", dist.Normal(z + self.b, 1.0), obs=x)


class CountingGuide(PyroModule):
    """z ~ Binomial(n, sigmoid(a x))."""

    def __init__(self, fixed: bool) -> None:
        super().__init__()
        self.fixed, self.a = fixed, nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Tensor, n: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Binomial(3 if self.fixed else n, logits=self.a * x))


def test_values_that_depend_on_the_data_are_not_summed_once_for_all() -> None:
    x = torch.randn(5)
    data = {"x": x, "n": torch.full((5,), 3.0)}
    fixed = Pair(Counting(True), CountingGuide(True), likelihood="exact")
    table = dist.Binomial(3, torch.tensor(0.3)).log_prob(torch.arange(4.0)) + dist.Normal(
        torch.arange(4.0), 1.0
    ).log_prob(x[:, None])
    assert log_likelihood(fixed, data, 1).value == pytest.approx(float(table.logsumexp(1).mean()), abs=1e-12)
    with pytest.raises(PairError, match=r"site 'z' \(Binomial\) has as many values as the data n say"):
        check(routines.maximum_likelihood(), Pair(Counting(False), CountingGuide(False), likelihood="exact"), data)


class Energy(dist.TorchDistribution):
    """exp(-(x - m)^2 / 2), unnormalized."""

    arg_constraints: dict[str, Any] = {}
    support = dist.constraints.real_vector
    normalized = False

    def __init__(self, m: Tensor) -> None:
        self.m = m
        super().__init__(m.shape[:-1], m.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Energy":
        return Energy(self.m.expand(torch.Size(batch_shape) + self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return -(value - self.m).square().sum(-1) / 2


class Conditional(PyroModule):
    """x given the covariate c, which stands before it."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([[1.0]]))

    def forward(self, c: Tensor, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", Energy(c @ self.a), obs=x)


@pytest.mark.parametrize("engine", ["eager", "compiled", "xla"])
def test_a_persistent_chain_is_of_x_where_a_covariate_stands_before_it(engine: str) -> None:
    """The chain moves by its kernel alone: it forgets the data, and never holds the covariate."""
    c, x = torch.randn(16, 1), 100 + torch.randn(16, 1)
    phases = (Phase(log_p, Wake(), THETA, against=Chain(Langevin(0.5), 1, persistent=True)),)
    pair = Pair(Conditional(), likelihood="none")
    if engine == "eager":
        fit({"c": c, "x": x}, phases, pair, steps=3, engine=engine)
    else:
        from unigen.engines.pure import chains_of

        chains_of(phases[0], pair, pair.bind({"c": c, "x": x}))
    (chain,) = pair.chains.values()
    assert bool((chain > 50).all())
    assert eager.draw(Wake(), Programs(pair), pair.bind({"c": c, "x": x})).x is x


class Vamp(PyroModule):
    """A prior that is the guide's posterior at one pseudo-datum (Tomczak & Welling 2018)."""

    def __init__(self, guide: Any) -> None:
        super().__init__()
        self.held, self.u, self.b = [guide], nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.held[0].w * self.u.expand(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z + self.b, 1.0), obs=x)


def test_doubly_reparameterized_gradients_of_a_prior_that_reads_the_guide_are_refused() -> None:
    guide = OfX()
    pair = Pair(Vamp(guide), guide)
    check(routines.iwae(3), pair, torch.randn(4))
    check(routines.iwae(3, "doubly_reparameterized", draws=2), pair, torch.randn(4))
    with pytest.raises(
        PairError, match=r"DoublyReparameterized takes the gradient along phi for what comes through z alone"
    ):
        check(routines.iwae(3, "doubly_reparameterized"), pair, torch.randn(4))


class Generator(PyroModule):
    """x = z + b where y = 0, the data where y = 1."""

    def __init__(self, stratified: bool) -> None:
        super().__init__()
        self.stratified, self.b = stratified, nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", 2 * len(x)):
            y = pyro.sample(
                "y", Stratified.of(x) if self.stratified else dist.Bernoulli(torch.full((2 * len(x),), 0.5))
            )
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", Implicit(torch.where(y[..., None] > 0.5, torch.cat([x, x], -2), z + self.b)))


class Critic(PyroModule):
    """Bernoulli with log odds a x."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[-2]):
            pyro.sample("y", dist.Bernoulli(logits=self.a * x[..., 0]))


@pytest.mark.parametrize("routine", [routines.mmd(), routines.wgan_gp()], ids=str)
def test_objectives_of_two_halves_want_the_data_first(routine: Any) -> None:
    check(routine, Pair(Generator(True), Critic(), likelihood="none"), torch.randn(20, 1))
    with pytest.raises(PairError, match="first half of the plate"):
        check(routine, Pair(Generator(False), Critic(), likelihood="none"), torch.randn(20, 1))


class Bare(dist.TorchDistribution):
    """Two independent bits, whose log_prob has the shape of the rows that it is given, not that of a batch."""

    arg_constraints: dict[str, Any] = {}
    support = dist.constraints.independent(dist.constraints.boolean, 1)

    def __init__(self, logits: Tensor, batch: Any = ()) -> None:
        self.logits = logits
        super().__init__(torch.Size(batch), logits.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Bare":
        return Bare(self.logits, batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return dist.Bernoulli(logits=self.logits).log_prob(value).sum(-1)


class OfBits(PyroModule):
    """x ~ Bare, without a latent."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.3, -1.0]))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", Bare(self.logits), obs=x)


def test_a_density_without_the_shape_of_the_batch() -> None:
    x = (torch.rand(6, 2) < 0.5).double()
    pair = Pair(OfBits(), likelihood="exact")
    exact = dist.Bernoulli(logits=pair.model.logits).log_prob(x).sum(-1).mean().detach()
    check(routines.maximum_likelihood(), pair, x)
    assert log_likelihood(pair, x, 1).value == pytest.approx(float(exact), abs=1e-12)


@pytest.mark.parametrize(
    "handler",
    [
        poutine.mask(mask=True),
        config_enumerate,
        poutine.infer_config(config_fn=lambda site: {}),
        lambda f: poutine.mask(poutine.scale(f, 2.0), True),
    ],
    ids=["mask", "config_enumerate", "infer_config", "two"],
)
def test_a_program_inside_of_a_pyro_handler_has_its_arguments(handler: Any) -> None:
    class Handled(Deterministic):
        forward = handler(Deterministic.forward)

    pair = Pair(Handled(False), OfX())
    assert pair.arguments == ("x",)
    eager.objective(Phase(elbo, Wake(), THETA + PHI), pair, torch.randn(4))


def test_a_function_is_a_reparameterized_model() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 2.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z_decentered", dist.Normal(0.4 * x, 5**-0.5))  # of the posterior N(4/5 x, 4/5), halved

    x = torch.randn(4)
    decentered = poutine.reparam(model, config={"z": LocScaleReparam(0.0)})
    value = log_likelihood(Pair(decentered, guide), x, 1).per_datum
    assert torch.allclose(value, dist.Normal(0.0, 5**0.5).log_prob(x), atol=1e-5)


class Regression(PyroModule):
    """z ~ N(0, 1); x ~ N(c z + b, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, c: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(c * z + self.b, 1.0), obs=x)


class RegressionGuide(PyroModule):
    """z ~ N(w x c, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor, c: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.w * x * c, 1.0))


def test_dreams_beside_data_take_the_covariates_of_their_rows() -> None:
    critic = nn.Sequential(nn.Unflatten(-1, (-1, 1)), nn.Linear(1, 1), nn.Flatten(-2))
    pair = Pair(Regression(), RegressionGuide(), {"critic": critic})
    drawn = eager.draw(Wake(dreams=True), Programs(pair), {"x": torch.arange(3.0), "c": torch.tensor([5.0, 6.0, 7.0])})
    assert drawn.data["c"].tolist() == [5, 6, 7, 5, 6, 7] and drawn.data["x"][:3].tolist() == [0, 1, 2]
    assert len(drawn.log_p) == 6


def test_local_baselines_over_labelled_and_unlabelled_batches() -> None:
    """What a site cannot change is found for each set of data that is given."""
    pair = Pair(Labelled(), ObservingGuide(), {"baseline": nn.Linear(1, 2)})
    x, y = torch.randn(6), torch.ones(6)
    programs = partial(eager.draw, Wake(), Programs(pair, PHI))
    for data, sites in (({"x": x}, {"y", "z"}), ({"x": x, "y": y}, {"z"}), ({"x": x}, {"y", "z"})):
        drawn = programs(pair.bind(data))
        assert set(drawn.local_signals(elbo(drawn).detach(), torch.zeros(6, len(sites)))) == sites


def test_a_model_without_data() -> None:
    """A density alone, as of z ~ N(0, 1) with no argument, is a pair too."""

    class Alone(PyroModule):
        def forward(self) -> None:
            pyro.sample("z", dist.Normal(0.0, 1.0))

    class Moved(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.m = nn.Parameter(torch.tensor(2.0))

        def forward(self) -> None:
            pyro.sample("z", dist.Normal(self.m, 1.0))

    pair = Pair(Alone(), Moved())
    check(routines.vae(), pair, ())
    assert Programs(pair).layout({}).x == ""
