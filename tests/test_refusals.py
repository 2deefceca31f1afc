"""A wrong pairing is refused before anything changes, by a ``ValueError`` of one sentence with the site and a remedy.

Each entry of ``PAIRINGS`` is a routine, a pair and data that do not fit, with words that the message must hold; ``CALLS``
are constructions refused at once.
"""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from unigen import routines
from unigen.engines import eager
from unigen.engines.checks import check
from unigen.kernels import Gibbs, Langevin
from unigen.networks import Baseline, Networks, fingerprint, networks
from unigen.objectives import BetaElbo, FGan, Mmd, elbo, iwae, log_evidence, log_p, log_q, log_weight
from unigen.pair import Pair, PairError
from unigen.pairs import Likelihood, adversarial, flow, latent, mixture, rbm, sigmoid_belief
from unigen.pairs.likelihoods import Implicit, Stratified
from unigen.phases import (
    PHI,
    THETA,
    Chain,
    DoublyReparameterized,
    Enumerate,
    Expectation,
    LeaveOneOut,
    Pathwise,
    Phase,
    Routine,
    ScoreFunction,
    Sleep,
    StickingTheLanding,
    Tilted,
    Wake,
)
from unigen.phases import Baseline as Subtracted

BOTH = THETA + PHI
ROWS, DIMENSION = 4, 6
PLATE = "data"


def rows() -> Tensor:
    return (torch.rand(ROWS, DIMENSION) < 0.5).float()


def labelled() -> tuple[Tensor, Tensor]:
    """Forty rows: that dreamt labels are those of the data, which hides what reads them, has probability 2^-40."""
    x = torch.cat([rows() for _ in range(40 // ROWS)])
    return x, (x[:, 0] > 0).float()


def shared() -> Networks:
    return networks("mlp", (DIMENSION,), 2, hidden=(4,))


class Program(PyroModule):
    """A program of x whose body is a function of a linear layer and x."""

    def __init__(self, body: Callable[[nn.Module, Tensor], None], outputs: int = DIMENSION, inputs: int = DIMENSION):
        super().__init__()
        self.body, self.linear = body, nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> None:
        self.body(self.linear, x)


def normal(loc: Any, scale: float = 1.0, event: int = 1) -> Any:
    return dist.Normal(loc, scale).to_event(event)


def model_of(body: Callable[[nn.Module, Tensor], None], inputs: int = 2) -> Program:
    return Program(body, inputs=inputs)


def good_model(linear: Any, x: Tensor) -> None:
    with pyro.plate(PLATE, len(x)):
        z = pyro.sample("z", normal(torch.zeros(2)))
        pyro.sample("x", normal(linear(z)), obs=x)


def good_guide(linear: Any, x: Tensor) -> None:
    with pyro.plate(PLATE, len(x)):
        pyro.sample("z", normal(linear(x)))


def guide_of_two(linear: Any, x: Tensor) -> None:
    with pyro.plate(PLATE, len(x)):
        pyro.sample("z", dist.Categorical(logits=linear(x) + torch.tensor([0.0, 0.0, -torch.inf])))


def pair_of(model: Callable[..., None] = good_model, guide: Callable[..., None] = good_guide, **settings: Any) -> Pair:
    return Pair(Program(model, inputs=2), Program(guide, 2), **settings)


def closed_over(frozen: bool = False, announced: bool = False) -> Callable[[Tensor], None]:
    """A model that is a function of a network of nobody's."""
    linear = nn.Linear(2, DIMENSION).requires_grad_(not frozen)

    def model(x: Tensor) -> None:
        good_model(pyro.module("decoder", linear) if announced else linear, x)

    return model


def model_with_param(x: Tensor) -> None:
    scale = pyro.param("scale", torch.ones(()), constraint=dist.constraints.positive)
    with pyro.plate(PLATE, len(x)):
        z = pyro.sample("z", normal(torch.zeros(2)))
        pyro.sample("x", normal(z.sum(-1, keepdim=True).expand(-1, DIMENSION), scale), obs=x)


def implicit_model(linear: Any, x: Tensor) -> None:
    with pyro.plate(PLATE, len(x)):
        z = pyro.sample("z", normal(torch.zeros(2)))
        pyro.sample("x", Implicit(linear(z)), obs=x)


def guide_with_extra(linear: Any, x: Tensor) -> None:
    good_guide(linear, x)
    with pyro.plate(PLATE, len(x)):
        pyro.sample("extra", dist.Normal(0.0, 1.0))


def guide_with_auxiliary(linear: Any, x: Tensor) -> None:
    with pyro.plate(PLATE, len(x)):
        shift = pyro.sample("shift", normal(torch.zeros(len(x), 2)), infer={"is_auxiliary": True})
        pyro.sample("z", normal(linear(x) + shift))


def model_teacher_forced(linear: Any, x: Tensor) -> None:
    before = nn.functional.pad(x, (1, 0))[:, :-1]
    with pyro.plate(PLATE, len(x)):
        z = pyro.sample("z", normal(torch.zeros(len(x), 2)))
        pyro.sample("x", normal(linear(z) + before), obs=x)


def model_of_labels(which: str) -> Callable[..., None]:
    """A model of x and a label, which x depends on: on the value that is sampled, or on the argument that is observed."""

    class Labelled(Program):
        def forward(self, x: Tensor, label: Tensor) -> None:  # type: ignore[override]
            with pyro.plate(PLATE, len(x)):
                z = pyro.sample("z", normal(torch.zeros(len(x), 2)))
                value = pyro.sample("label", dist.Bernoulli(0.5), obs=label)
                shown = value if which == "value" else label
                pyro.sample("x", normal(self.linear(z) + shown[..., None]), obs=x)

    return Labelled(good_model, inputs=2)


def guide_with_dropout(linear: Any, x: Tensor) -> None:
    with pyro.plate(PLATE, len(x)):
        pyro.sample("z", normal(nn.functional.dropout(linear(x) + 3.0, 0.5)))


def guide_without_plate(linear: Any, x: Tensor) -> None:
    pyro.sample("z", normal(linear(x)))


def model_with_two_latents(linear: Any, x: Tensor) -> None:
    with pyro.plate(PLATE, len(x)):
        pyro.sample("scale", dist.Gamma(2.0, 2.0))
    good_model(linear, x)


def model_without_event(linear: Any, x: Tensor) -> None:
    with pyro.plate("pixels", DIMENSION, dim=-1), pyro.plate(PLATE, len(x), dim=-2):
        pass
    z = torch.zeros(len(x), 2)
    pyro.sample("z", normal(z, event=2))
    pyro.sample("x", dist.Normal(linear(z), 1.0), obs=x)


def model_rows_without_plate(linear: Any, x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
    pyro.sample("x", normal(linear(z)), obs=x)


def model_with_extra_dimension(linear: Any, x: Tensor) -> None:
    with pyro.plate(PLATE, len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0))
        pyro.sample("x", dist.Normal(linear(z), 1.0), obs=x)


def guide_with_extra_dimension(linear: Any, x: Tensor) -> None:
    with pyro.plate(PLATE, len(x), dim=-2):
        pyro.sample("z", dist.Normal(linear(x), 1.0))


def model_with_global(linear: Any, x: Tensor) -> None:
    pyro.sample("weight", dist.Normal(0.0, 1.0))
    good_model(linear, x)


def guide_with_global(linear: Any, x: Tensor) -> None:
    pyro.sample("weight", dist.Normal(linear.bias[0], 1.0))
    good_guide(linear, x)


def model_of_some_pixels(linear: Any, x: Tensor) -> None:
    """A model that goes through some pixels alone."""
    with pyro.plate(PLATE, len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
        loc = linear(z)
        for pixel in pyro.plate("pixels", DIMENSION, subsample_size=2):
            pyro.sample(f"x_{int(pixel)}", dist.Normal(loc[..., int(pixel)], 1.0), obs=x[..., int(pixel)])


def model_subsampled(linear: Any, x: Tensor) -> None:
    with pyro.plate(PLATE, 10 * len(x), subsample_size=len(x)):
        z = pyro.sample("z", normal(torch.zeros(2)))
        pyro.sample("x", normal(linear(z)), obs=x)


def model_twice(linear: Any, x: Tensor) -> None:
    with pyro.plate(PLATE, len(x)):
        pyro.sample("z", normal(torch.zeros(2)))
    good_model(linear, x)


def guide_of_one_number(linear: Any, x: Tensor) -> None:
    with pyro.plate(PLATE, len(x)):
        pyro.sample("z", normal(linear(x)[:, :1]))


def model_of_bits(linear: Any, x: Tensor) -> None:
    with pyro.plate(PLATE, len(x)):
        z = pyro.sample("z", dist.Bernoulli(logits=torch.zeros(2), validate_args=False).to_event(1))
        pyro.sample("x", normal(linear(z)), obs=x)


def model_of_positives(linear: Any, x: Tensor) -> None:
    with pyro.plate(PLATE, len(x)):
        z = pyro.sample("z", dist.Exponential(torch.ones(2), validate_args=False).to_event(1))
        pyro.sample("x", normal(linear(z)), obs=x)


def model_of_angles(linear: Any, x: Tensor) -> None:
    with pyro.plate(PLATE, len(x)):
        z = pyro.sample("z", dist.VonMises(torch.zeros(2), 1.0, validate_args=False).to_event(1))
        pyro.sample("x", normal(linear(z)), obs=x)


def model_of_correlations(linear: Any, x: Tensor) -> None:
    with pyro.plate(PLATE, len(x)):
        z = pyro.sample("z", dist.LKJCholesky(3, torch.tensor(2.0)))
        pyro.sample("x", normal(linear(z[..., 2, :2])), obs=x)


def guide_of_correlations(linear: Any, x: Tensor) -> None:
    with pyro.plate(PLATE, len(x)):
        pyro.sample("z", dist.LKJCholesky(3, linear(x)[:, 0].exp()))


def guide_of_nothing(linear: Any, x: Tensor) -> None:
    linear(x)


def model_without_data(linear: Any, x: Tensor) -> None:
    with pyro.plate(PLATE, len(x)):
        pyro.sample("z", normal(linear(torch.zeros(2))[:2]))


def bits_of_a_game(linear: Any, x: Tensor) -> None:
    with pyro.plate(PLATE, 2 * len(x)):
        pyro.sample("y", Stratified.of(x))
        z = pyro.sample("z", normal(torch.zeros(2)))
        made = pyro.sample("made", dist.Bernoulli(logits=linear(z), validate_args=False).to_event(1))
        pyro.sample("x", Implicit(torch.cat([x, made[len(x) :]])))


def player(linear: Any, x: Tensor) -> None:
    with pyro.plate(PLATE, x.shape[-2]):
        pyro.sample("y", dist.Bernoulli(logits=linear(x)[:, 0]))


class WithSpare(Program):
    """A program with a layer ``spare`` that its body uses as ``use`` says: not at all, detached, or one time in two."""

    def __init__(self, body: Callable[[nn.Module, Tensor], None], outputs: int, inputs: int, use: str = "never"):
        super().__init__(body, outputs, inputs)
        self.spare, self.use = nn.Linear(inputs, outputs, bias=False), use

    def forward(self, x: Tensor) -> None:
        def both(value: Tensor) -> Tensor:
            made = self.spare(value)
            if self.use == "never" or (self.use == "sometimes" and float(torch.rand(())) < 0.5):
                return self.linear(value)
            return self.linear(value) + (made.detach() if self.use == "detached" else made)

        both.bias = self.linear.bias  # type: ignore[attr-defined]
        self.body(both, x)  # type: ignore[arg-type]


def spare_model(use: str = "never", guide: Any = None) -> Pair:
    return Pair(WithSpare(good_model, DIMENSION, 2, use), guide or Program(good_guide, 2))


def spare_guide(use: str = "never") -> Pair:
    return Pair(Program(good_model, inputs=2), WithSpare(good_guide, 2, DIMENSION, use))


def spare_critic() -> Pair:
    critic = Baseline(DIMENSION)
    critic.spare = nn.Linear(3, 3)
    return latent(shared(), psi={"critic": critic})


def one_datum() -> Pair:
    """A pair without batch plate: z () and x (D,)."""

    def model(linear: Any, x: Tensor) -> None:
        z = pyro.sample("z", normal(torch.zeros(2)))
        pyro.sample("x", normal(linear(z)), obs=x)

    def guide(linear: Any, x: Tensor) -> None:
        pyro.sample("z", normal(linear(x)))

    return pair_of(model, guide)


def with_keywords() -> Pair:
    class Conditional(Program):
        def forward(self, x: Tensor, label: Tensor) -> None:  # type: ignore[override]
            self.body(self.linear, x)

    return Pair(Conditional(good_model, inputs=2), Program(good_guide, 2))


def bits_pair(width: int = 3, **settings: Any) -> Pair:
    return sigmoid_belief(DIMENSION, (width,), **settings)


def wide(draw: Any) -> Tensor:
    """An objective of a wrong shape."""
    return draw["x"]


def number(draw: Any) -> Any:
    """An objective that is no tensor."""
    return 1.0


def constant(draw: Any) -> Tensor:
    """An objective that depends on nothing that moves."""
    return draw["x"].sum(-1)


def unheard_of(draw: Any) -> Tensor:
    """An objective of a site that no program has."""
    return draw["label"]


def by_weight(draw: Any) -> Tensor:
    """Values whose gradient is that of iwae: weights that count as numbers."""
    log_w = log_weight(draw)
    return torch.softmax(log_w.detach(), 0) * log_w


def first_of_x(draw: Any) -> Tensor:
    """A reward of what is drawn."""
    return draw["x"][..., 0]


def averaged(draw: Any) -> Tensor:
    """A value a datum from particles, which is not iwae."""
    return elbo(draw).mean(0)


class Elsewhere(Expectation):
    """An expectation that the engine does not know."""


Pairing = tuple[Any, Pair, Any]
PATHWISE, STICKING, DOUBLY = Pathwise(), StickingTheLanding(), DoublyReparameterized()


def vae_with(estimator: Any) -> tuple[Phase, ...]:
    return (Phase(elbo, Wake(), BOTH, estimator=estimator),)


def left_out(k: int | None, objective: Any = elbo) -> tuple[Phase, ...]:
    return (Phase(objective, Wake(k), BOTH, estimator=ScoreFunction(), control_variate=LeaveOneOut()),)


GAME = ("'x'", "no density", "gan")
PAIRINGS: dict[str, tuple[Callable[[], Pairing], tuple[str, ...]]] = {
    # -- parameters of nobody --
    "a network in a closure": (
        lambda: (routines.vae, Pair(closed_over(), Program(good_guide, 2)), rows()),
        (f"a parameter of shape ({DIMENSION}, 2)", "no group", "nothing trains it", "requires_grad_(False)"),
    ),
    "a network of pyro.module": (
        lambda: (routines.vae, Pair(closed_over(announced=True), Program(good_guide, 2)), rows()),
        ("pyro.param 'decoder$$$", "no group"),
    ),
    "a pyro.param": (
        lambda: (routines.vae, Pair(model_with_param, Program(good_guide, 2)), rows()),
        ("pyro.param 'scale'", "no group"),
    ),
    # -- estimators --
    "bits, pathwise": (lambda: (vae_with(PATHWISE), bits_pair(), rows()), ("'h1'", "Bernoulli", "nvil")),
    "bits, sticking": (lambda: (vae_with(STICKING), bits_pair(), rows()), ("'h1'", "reparameterization", "vimco")),
    "bits, doubly": (
        lambda: (routines.iwae(3, DOUBLY), bits_pair(), rows()),
        ("'h1'", "DoublyReparameterized", "vimco"),
    ),
    "categorical, pathwise": (
        lambda: (vae_with(PATHWISE), mixture(2, torch.randn(ROWS, DIMENSION)), torch.randn(ROWS, DIMENSION)),
        ("'z'", "Categorical", "reweighted_wake_sleep"),
    ),
    "doubly, elbo": (
        lambda: ((Phase(elbo, Wake(3), BOTH, estimator=DOUBLY),), latent(shared()), rows()),
        ("DoublyReparameterized", "iwae"),
    ),
    "doubly, no particles": (
        lambda: ((Phase(iwae, Wake(), BOTH, estimator=DOUBLY),), latent(shared()), rows()),
        ("DoublyReparameterized", "Wake(particles)"),
    ),
    "sticking, iwae": (
        lambda: (routines.iwae(3, STICKING), latent(shared()), rows()),
        ("StickingTheLanding", "elbo", "not in iwae", "DoublyReparameterized"),
    ),
    "sticking, a weight by hand": (
        lambda: ((Phase(by_weight, Wake(3), BOTH, estimator=STICKING),), latent(shared()), rows()),
        ("StickingTheLanding", "not in by_weight"),
    ),
    "baseline, dreams": (
        lambda: ((Phase(first_of_x, Sleep(), THETA, control_variate=Subtracted()),), bits_pair(), rows()),
        ("Baseline", "what Sleep() draws", "LeaveOneOut()"),
    ),
    "tilted, one value for all particles": (
        lambda: ((Phase(iwae, Tilted(Wake(5), log_weight), THETA),), latent(shared()), rows()),
        ("weighs particles", "iwae has no value each"),
    ),
    "iwae, every value": (
        lambda: (
            (Phase(iwae, Enumerate(), THETA),),
            mixture(2, torch.randn(ROWS, DIMENSION)),
            torch.randn(ROWS, DIMENSION),
        ),
        ("Enumerate", "log_evidence"),
    ),
    "enumerated, other values than the model's": (
        lambda: (
            routines.em(False),
            Pair(mixture(3, torch.randn(ROWS, DIMENSION)).model, mixture(2, torch.randn(ROWS, DIMENSION)).guide),
            torch.randn(ROWS, DIMENSION),
        ),
        ("'z'", "2 values in the guide (Categorical)", "3 in the model"),
    ),
    **{
        f"a guide that excludes a value, {name}": (
            lambda routine=routine: (
                routine,
                Pair(mixture(3, torch.randn(ROWS, DIMENSION)).model, Program(guide_of_two, 3)),
                torch.randn(ROWS, DIMENSION),
            ),
            ("some value of z probability 0", "in the place of -inf"),
        )
        for name, routine in (("em", routines.em(False)), ("distillation", routines.rule_distillation))
    },
    "leave one out, one particle": (
        lambda: (left_out(1), bits_pair(), rows()),
        ("LeaveOneOut", "two particles", "Wake(1)"),
    ),
    "leave one out, no particles": (lambda: (left_out(None), bits_pair(), rows()), ("LeaveOneOut", "two particles")),
    "leave one out, neither": (lambda: (left_out(3, averaged), bits_pair(), rows()), ("averaged", "iwae")),
    # -- densities that are not there --
    "implicit, vae": (lambda: (routines.vae, pair_of(implicit_model), rows()), GAME),
    "implicit, iwae": (lambda: (routines.iwae, pair_of(implicit_model), rows()), GAME),
    "implicit, wake_sleep": (lambda: (routines.wake_sleep, pair_of(implicit_model), rows()), GAME),
    "implicit, reweighted": (lambda: (routines.reweighted_wake_sleep, pair_of(implicit_model), rows()), GAME),
    "implicit, regularized": (
        lambda: (routines.posterior_regularization(constant, learn=False), adversarial(shared()), rows()),
        GAME,
    ),
    "gan pair, vae": (lambda: (routines.vae, adversarial(shared()), rows()), ("'z'", "guide")),
    "gan pair, iwae": (lambda: (routines.iwae, adversarial(shared()), rows()), ("'z'", "guide")),
    "gan pair, wake_sleep": (lambda: (routines.wake_sleep, adversarial(shared()), rows()), ("'z'", "guide")),
    "gan pair, em": (lambda: (routines.em(False), adversarial(shared()), rows()), ("'z'", "guide")),
    "gan pair, reweighted": (lambda: (routines.reweighted_wake_sleep, adversarial(shared()), rows()), ("'z'", "guide")),
    "rbm, maximum_likelihood": (
        lambda: (routines.maximum_likelihood, rbm(DIMENSION, 3), rows()),
        ("'x'", "unnormalized", "contrastive_divergence"),
    ),
    "rbm, vae": (lambda: (routines.vae, rbm(DIMENSION, 3), rows()), ("phi", "guide")),
    "rbm, log p": (
        lambda: ((Phase(log_p, Wake(), THETA),), rbm(DIMENSION, 3), rows()),
        ("'x'", "contrastive_divergence"),
    ),
    "latent, rules": (lambda: (routines.rule_distillation, latent(shared()), rows()), ("'z'", "Normal")),
    "rbm, rules": (lambda: (routines.rule_distillation, rbm(DIMENSION, 3), rows()), ("phi", "guide")),
    "latent, maximum_likelihood": (
        lambda: (routines.maximum_likelihood, latent(shared()), rows()),
        ("'z'", "Normal", "vae"),
    ),
    "latent, log evidence": (
        lambda: ((Phase(log_evidence, Wake(), THETA),), latent(shared()), rows()),
        ("'z'", "latent", "iwae"),
    ),
    "latent, gan": (lambda: (routines.gan, latent(shared()), rows()), ("'y'", "adversarial")),
    "latent, critic": (lambda: (routines.wgan, latent(shared()), rows()), ("'y'", "adversarial")),
    # -- groups and networks --
    "flow, vae": (lambda: (routines.vae, flow(DIMENSION, steps=1), rows()), ("phi", "maximum_likelihood")),
    "latent, no psi": (lambda: (routines.aavae, latent(shared()), rows()), ("psi", "psi={name: network}")),
    "latent, psi misnamed": (
        lambda: (routines.aavae, latent(shared(), psi={"critik": Baseline(DIMENSION)}), rows()),
        ("'critic'", "'critik'", "did you mean"),
    ),
    "nvil, no baseline": (lambda: (routines.nvil, bits_pair(), rows()), ("'baseline'", "psi")),
    "regularized, no constraint": (
        lambda: (routines.posterior_regularization(), latent(shared()), rows()),
        ("'constraint'", "psi"),
    ),
    "nothing moves": (lambda: ((Phase(constant, Wake(), THETA),), latent(shared()), rows()), ("theta", "no gradient")),
    "parameters outside modules": (
        lambda: (routines.maximum_likelihood, Pair(lambda x: None, Program(good_guide, 2)), rows()),
        ("theta", "networks"),
    ),
    "closed form, no solve": (
        lambda: (routines.em, bits_pair(), rows()),
        ("BeliefNetwork", "solve", "closed_form=False"),
    ),
    "closed form, second phase": (
        lambda: ((*routines.wake_sleep, *routines.em), bits_pair(), rows()),
        ("phase 3", "solve", "closed_form=False"),
    ),
    "closed form, guide": (
        lambda: (
            (Phase(log_q, Tilted(Enumerate(), log_weight), PHI, solve=True),),
            mixture(2, torch.randn(ROWS, DIMENSION)),
            torch.randn(ROWS, DIMENSION),
        ),
        ("phi", "closed form"),
    ),
    # -- parameters that nothing moves --
    "unused in the model": (
        lambda: (routines.vae, spare_model(), rows()),
        ("'spare.weight'", "theta", "no gradient", "requires_grad_(False)"),
    ),
    "detached in the model": (
        lambda: (routines.wake_sleep, spare_model("detached"), rows()),
        ("'spare.weight'", "theta"),
    ),
    "unused in the guide": (lambda: (routines.vae, spare_guide(), rows()), ("'spare.weight'", "phi", "guide")),
    "unused in both of two phases": (
        lambda: (routines.reweighted_wake_sleep(2), spare_guide("detached"), rows()),
        ("'spare.weight'", "phi", "in any phase"),
    ),
    "unused in a network of psi": (lambda: (routines.aavae, spare_critic(), rows()), ("'critic.spare.weight'", "psi")),
    # -- sites of the two programs --
    "guide site extra": (
        lambda: (routines.vae, pair_of(guide=guide_with_extra), rows()),
        ("'extra'", "guide", "model"),
    ),
    "guide site extra, asleep": (
        lambda: ((routines.wake_sleep[1],), pair_of(guide=guide_with_extra), rows()),
        ("'extra'", "guide", "model"),
    ),
    "auxiliary guide site whose density nothing is set against": (
        lambda: (routines.vae, pair_of(guide=guide_with_auxiliary), rows()),
        ("'shift'", "auxiliary", "reverse density"),
    ),
    "dreams of a teacher-forced decoder": (
        lambda: (routines.wake_sleep, pair_of(model_teacher_forced), rows()),
        ("phase 2", "'x'", "depends on the data", "teacher forcing", "vae"),
    ),
    "discriminated dreams of a teacher-forced decoder": (
        lambda: ((Phase(elbo, Wake(dreams=True), THETA + PHI),), pair_of(model_teacher_forced), rows()),
        ("phase 1", "'x'", "depends on the data", "teacher forcing", "vae"),
    ),
    "dreams that read the argument of a site": (
        lambda: (routines.wake_sleep, Pair(model_of_labels("argument"), Program(good_guide, 2)), labelled()),
        ("phase 2", "'x'", "depends on the data", "read what sample statements return", "vae"),
    ),
    "model site missing": (
        lambda: (routines.vae, pair_of(model_with_two_latents), rows()),
        ("'scale'", "guide", "sample statement"),
    ),
    "site twice": (lambda: (routines.vae, pair_of(model_twice), rows()), ("'z'", "twice", "name")),
    "sizes differ": (lambda: (routines.vae, pair_of(guide=guide_of_one_number), rows()), ("'z'", "(1,)", "(2,)")),
    "bits in the model alone": (lambda: (routines.vae, pair_of(model_of_bits), rows()), ("'z'", "discrete", "guide")),
    "positive in the model alone": (
        lambda: (routines.vae, pair_of(model_of_positives), rows()),
        ("'z'", "support", "guide"),
    ),
    "an angle that goes round": (
        lambda: (routines.vae, pair_of(model_of_angles), rows()),
        ("'z'", "angle", "VonMises", "Normal"),
    ),
    "draws of a wrong sampler": (
        lambda: (routines.vimco, pair_of(model_of_correlations, guide_of_correlations), rows()),
        ("'z'", "LKJ", "sampler", "CorrCholeskyTransform"),
    ),
    "dreams of a wrong sampler": (
        lambda: ((Phase(log_p, Sleep(), THETA),), pair_of(model_of_correlations, guide_of_nothing), rows()),
        ("'z'", "LKJ", "sampler", "CorrCholeskyTransform"),
    ),
    "objective of no site": (
        lambda: ((Phase(unheard_of, Wake(), THETA),), latent(shared()), rows()),
        ("'label'", "sites: x, z"),
    ),
    "no data dreamt": (
        lambda: (
            routines.aavae,
            pair_of(model_without_data, psi={"critic": Baseline(DIMENSION)}),
            rows(),
        ),
        ("dreams no data", "obs="),
    ),
    # -- shapes and plates --
    "no to_event": (
        lambda: (routines.vae, pair_of(model_with_extra_dimension, guide_with_extra_dimension), rows()),
        ("batch shape (4, 2)", ".to_event(1)"),
    ),
    "rows without a plate": (
        lambda: (routines.vae, pair_of(model_rows_without_plate, guide_without_plate), rows()),
        ("'z'", "neither per datum nor global", "pyro.plate('data', len(x))"),
    ),
    "guide without a plate": (
        lambda: (routines.vae, pair_of(guide=guide_without_plate), rows()),
        ("'z'", "global", "plate 'data'"),
    ),
    "global beside rows": (
        lambda: (routines.vae, pair_of(model_with_global, guide_with_global), rows()),
        ("'weight'", "global", "parameter"),
    ),
    "subsampled, one by one": (
        lambda: (routines.vae, pair_of(model_of_some_pixels), rows()),
        ("'x_", "subsampled", "'pixels'", "loop over all of it"),
    ),
    "subsampled": (lambda: (routines.vae, pair_of(model_subsampled), rows()), ("'data'", "subsampled", "len(x)")),
    "objective of a wrong shape": (lambda: ((Phase(wide, Wake(), PHI),), latent(shared()), rows()), ("wide", "(4, 6)")),
    "objective without tensor": (
        lambda: ((Phase(number, Wake(), PHI),), latent(shared()), rows()),
        ("number", "float"),
    ),
    # -- expectations --
    "iwae, no particles": (
        lambda: ((Phase(iwae, Wake(), BOTH),), latent(shared()), rows()),
        ("particles", "Wake(particles=5)"),
    ),
    "tilted over nothing": (
        lambda: ((Phase(log_p, Tilted(Wake(), log_weight), THETA),), latent(shared()), rows()),
        ("Tilted", "particles"),
    ),
    "tilted over one datum": (
        lambda: ((Phase(log_p, Tilted(Sleep(), log_p, dim=-1), THETA),), one_datum(), rows()[0]),
        ("Tilted", "batch"),
    ),
    "enumerate a normal": (
        lambda: ((Phase(elbo, Enumerate(), BOTH),), latent(shared()), rows()),
        ("'z'", "Normal", "finite support", "vae"),
    ),
    "too many values": (
        lambda: ((Phase(elbo, Enumerate(), BOTH),), bits_pair(17), rows()),
        ("'h1'", "2^17", "65536", "vimco"),
    ),
    "too many joint values": (
        lambda: ((Phase(elbo, Enumerate(), BOTH),), sigmoid_belief(DIMENSION, (9, 9)), rows()),
        ("'h1'", "'h2'", "262144", "reweighted_wake_sleep"),
    ),
    "a guide with dropout, run twice": (
        lambda: (routines.iwae(3, "doubly_reparameterized"), pair_of(guide=guide_with_dropout), rows()),
        ("dropout", "evaluation mode"),
    ),
    "unknown expectation": (
        lambda: ((Phase(elbo, Elsewhere(), BOTH),), latent(shared()), rows()),
        ("Elsewhere", "expectation"),
    ),
    "mmd of bits": (
        lambda: (routines.mmd, pair_of(bits_of_a_game, player), rows()),
        ("'made'", "couples", "reparameterizable"),
    ),
    "mmd of data that are all the same": (
        lambda: (routines.mmd, adversarial(shared()), torch.ones(ROWS, DIMENSION)),
        ("widths of Mmd", "rows differ"),
    ),
    "gibbs of a flow": (
        lambda: (routines.contrastive_divergence, flow(DIMENSION, steps=1), rows()),
        ("'x'", "Gibbs", "Langevin"),
    ),
    "gibbs of no site": (
        lambda: (routines.contrastive_divergence(1, Gibbs("w")), rbm(DIMENSION, 3), rows()),
        ("'w'", "Gibbs"),
    ),
    "langevin with latents": (
        lambda: (routines.contrastive_divergence(1, Langevin()), latent(shared(), "normal"), rows()),
        ("'z'", "latent", "vae"),
    ),
    "langevin of bits": (
        lambda: (routines.contrastive_divergence(1, Langevin()), rbm(DIMENSION, 3), rows()),
        ("'x'", "discrete", "Gibbs"),
    ),
    "langevin of no data": (
        lambda: (routines.contrastive_divergence(1, Langevin(site="w")), flow(DIMENSION, steps=1), rows()),
        ("'w'", "data"),
    ),
    # -- data --
    "data by an unknown name": (lambda: (routines.vae, latent(shared()), {"y": rows()}), ("'y'", "argument", "x")),
    "too many data": (lambda: (routines.vae, latent(shared()), (rows(), rows())), ("x", "2 values")),
    "too few data": (lambda: (routines.vae, with_keywords(), rows()), ("label",)),
    "too few data, asleep": (lambda: (routines.contrastive_divergence, with_keywords(), rows()), ("label",)),
    "rows of another size": (lambda: (routines.vae, latent(shared()), rows()[:, :5]), ("(4, 5)", "(..., 6)")),
    "a list": (lambda: (routines.vae, latent(shared()), rows().tolist()), ("list", "tensor")),
    # -- what is no routine --
    "a name": (lambda: ("vae", latent(shared()), rows()), ("'vae'", "routine")),
    "one phase": (lambda: (routines.vae[0], latent(shared()), rows()), ("tuple",)),
    "settings in a list": (
        lambda: ((Phase(Mmd([0.5]), Sleep(), THETA),), adversarial(shared()), rows()),  # type: ignore[arg-type]
        ("tuple",),
    ),
}


def optimizers_of(pair: Pair) -> dict[str, torch.optim.Optimizer]:
    return {group: torch.optim.SGD(pair.group(group), 0.1) for group in ("theta", "phi", "psi") if pair.group(group)}


def sentence_of(error: BaseException, words: tuple[str, ...]) -> None:
    message = str(error)
    assert "\n" not in message and 20 < len(message) < 450, message
    for word in words:
        assert any(choice in message for choice in word.split("|")), f"{word!r} is not in: {message}"


@pytest.mark.parametrize(("build", "words"), list(PAIRINGS.values()), ids=list(PAIRINGS))
def test_a_wrong_pairing_is_refused_before_anything_changes(build, words):
    pyro.clear_param_store()
    routine, pair, x = build()
    before, stream = fingerprint(pair), torch.get_rng_state()
    with pytest.raises(PairError) as caught:
        eager.step(routine, pair, optimizers_of(pair), x)
    sentence_of(caught.value, words)
    assert fingerprint(pair) == before and not pair.chains
    assert all(parameter.grad is None for parameter in pair.parameters())
    assert torch.equal(torch.get_rng_state(), stream)
    with pytest.raises(PairError):  # and again: a refused routine is not remembered as checked
        eager.step(routine, pair, optimizers_of(pair), x)


def test_the_table_is_long_enough_and_its_programs_are_right_where_they_should_be():
    assert len(PAIRINGS) >= 40
    x = rows()
    check(routines.vae, pair_of(), x)
    check(routines.wake_sleep, pair_of(), x)
    check(routines.vae, one_datum(), x[0])
    check(routines.gan, pair_of(bits_of_a_game, player), x)
    check(routines.vae, with_keywords(), (x, x))
    check(routines.wake_sleep, Pair(model_of_labels("value"), Program(good_guide, 2)), labelled())


def test_parameters_without_gradient_that_are_as_they_should_be():
    """A frozen one, one of a group that does not move, one that some draws use, a whole network that is not read."""
    x = rows()
    pair = spare_model()
    pair.model.spare.requires_grad_(False)  # type: ignore[union-attr, operator]
    before = fingerprint(pair.model.spare)  # type: ignore[union-attr, arg-type]
    eager.step(routines.vae, pair, optimizers_of(pair), x)
    assert fingerprint(pair.model.spare) == before  # type: ignore[union-attr, arg-type]
    check((routines.wake_sleep[1],), spare_model(), x)  # theta does not move
    check(routines.aavae, latent(shared(), psi={"critic": Baseline(DIMENSION), "other": Baseline(DIMENSION)}), x)
    check(routines.vae, spare_model("sometimes"), x)  # refused once in 2^31 checks


def test_the_likelihood_of_a_game_keeps_its_scale_and_leaves_the_one_it_was_given_free():
    likelihood = Likelihood("normal")
    pair = adversarial(shared(), likelihood)
    check(routines.gan, pair, rows())
    assert likelihood.log_scale.requires_grad and "model.likelihood.log_scale" in pair.state_dict()
    check(routines.vae, latent(shared(), likelihood), rows())


def test_rows_in_a_plate_of_another_name_are_warned_of():
    pair = pair_of(batch_plate="rows")
    with pytest.warns(UserWarning, match=r"plate 'data'.*4 rows.*batch_plate='data'.*batch_plate=None"):
        check(routines.iwae(3), pair, rows())
    pair.batch_plate = None
    check(routines.iwae(3), pair, rows())  # a warning would be an error here


def test_the_reason_of_a_refused_pairing_names_the_phase():
    with pytest.raises(PairError, match=r"^phase 2 \(climb log_q_reversed under Sleep\(\) along theta\)"):
        check(routines.gan, latent(shared()), rows())


@pytest.mark.parametrize("missing", ["theta", "phi"])
def test_a_missing_optimizer_is_refused_before_anything_changes(missing):
    pair = latent(shared())
    optimizers = optimizers_of(pair)
    del optimizers[missing]
    before = fingerprint(pair)
    with pytest.raises(PairError, match=f"{missing}.*optimizer"):
        eager.step(routines.wake_sleep, pair, optimizers, rows())
    assert fingerprint(pair) == before


MODEL = Program(good_model, inputs=2)


def shared_parameter() -> Pair:
    guide = Program(good_guide, 2)
    guide.tied = MODEL.linear
    return Pair(MODEL, guide)


class OfAnother(PyroModule):
    """A guide of an argument that the model lacks."""

    def forward(self, picture: Tensor) -> None:
        return None


CALLS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "shared parameter": (shared_parameter, ("theta and phi", "copy")),
    "shared with psi": (lambda: Pair(MODEL, psi={"critic": MODEL.linear}), ("theta and psi", "copy")),
    "guide of other data": (lambda: Pair(MODEL, OfAnother()), ("'picture'", "x")),
    "likelihood of a pair": (lambda: Pair(MODEL, likelihood="exakt"), ("'exakt'", "did you mean 'exact'")),
    "likelihood": (lambda: Likelihood("bernouli"), ("'bernouli'", "did you mean 'bernoulli'")),
    "likelihood of a latent pair": (lambda: latent(shared(), "gauss"), ("'gauss'", "normal")),
    "mixture": (lambda: mixture(2, rows(), likelihood="norml"), ("'norml'", "did you mean 'normal'")),
    "mixture of too many": (lambda: mixture(9, rows()), ("9 components", "4")),
    "flow": (lambda: flow(2, kind="afine_coupling"), ("'afine_coupling'", "did you mean 'affine_coupling'")),
    "flow on a line": (lambda: flow(1), ("two dimensions", "1")),
    "belief network of no layer": (lambda: sigmoid_belief(4, ()), ("at least one layer",)),
    "rbm of no unit": (lambda: rbm(4, 0), ("at least one", "0")),
    "networks": (lambda: networks("mpl", (4,), 2), ("'mpl'", "'mlp'")),
    "nothing moves": (lambda: Phase(elbo, Wake(), ()), ("theta, phi, psi", "()")),
    "unknown group": (lambda: Phase(elbo, Wake(), ("tehta",)), ("theta, phi, psi", "tehta")),
    "a group as a string": (lambda: Phase(elbo, Wake(), "theta"), ("theta, phi, psi", "'theta'")),  # type: ignore[arg-type]
    "a control variate by name": (
        lambda: Phase(elbo, Wake(), BOTH, control_variate="baseline"),  # type: ignore[arg-type]
        ("control_variate='baseline'", "LeaveOneOut()"),
    ),
    "the class of an estimator": (
        lambda: Phase(elbo, Wake(), BOTH, estimator=ScoreFunction),  # type: ignore[arg-type]
        ("estimator=", "ScoreFunction()"),
    ),
    "the class of an expectation": (lambda: Phase(elbo, Wake, BOTH), ("under=", "Wake()")),  # type: ignore[arg-type]
    "an objective by name": (lambda: Phase("elbo", Wake(), BOTH), ("'elbo'", "function")),  # type: ignore[arg-type]
    "a guide of more arguments": (lambda: Pair(MODEL, lambda x, w, **rest: None), ("'w'", "the model's")),
    "data of numpy": (lambda: pair_of().bind(rows().numpy()), ("'x'", "ndarray", "torch tensor")),
    "no steps": (lambda: Phase(elbo, Wake(), BOTH, steps=0), ("at least one step", "0")),
    "no particles": (lambda: Wake(0), ("particles", "0")),
    "no particles asleep": (lambda: Sleep(-1), ("particles", "-1")),
    "half a particle": (lambda: Wake(2.5), ("particles", "2.5")),  # type: ignore[arg-type]
    "chain of no steps": (lambda: Chain(Gibbs(), 0), ("steps", "0")),
    "iwae of none": (lambda: routines.iwae(0), ("particles", "0")),
    "clip": (lambda: routines.wgan(clip=-0.01), ("-0.01", "positive")),
    "penalty": (lambda: routines.wgan_gp(penalty=-3), ("the penalty's weight is a number from 0; got -3",)),
    "beta": (lambda: routines.by_name("beta_vae(-1)"), ("beta is a number from 0; got -1",)),
    "no phases": (lambda: Routine(()), ("non-empty", "phases")),
    "phases that are none": (lambda: Routine((elbo,)), ("phases",)),  # type: ignore[arg-type]
    "f-divergence": (lambda: FGan("jensen_shanon"), ("jensen_shannon",)),
    "f_gan": (lambda: routines.f_gan("pearsn"), ("pearson",)),
    "no update of the guide": (lambda: routines.reweighted_wake_sleep(5, False, False), ("wake", "sleep")),
    "standard equation, critic": (lambda: routines.standard_equation(1, 1, "gan", "critic"), ("alpha=0", "beta=1")),
    "standard equation, data": (lambda: routines.standard_equation(1, 1), ("beta=0", "beta=1")),
    "standard equation, divergence": (lambda: routines.standard_equation(1, 0, "kl"), ("'cross_entropy'", "'kl'")),
    "standard equation, teacher": (lambda: routines.standard_equation(0, 0, experience=BetaElbo(1)), ("alpha > 0",)),
    "name": (lambda: routines.by_name("vea"), ("'vea'", "did you mean 'vae'")),
    "name, far off": (lambda: routines.by_name("qqqqqq"), ("'qqqqqq'", "valid:", "wake_sleep")),
    "name, no text": (lambda: routines.by_name(""), ("valid:",)),
    "name with settings": (lambda: routines.by_name("iwea(5)"), ("'iwea'", "did you mean 'iwae'")),
    "unknown setting": (lambda: routines.by_name("iwae(j=2)"), ("'j'", "iwae(k")),
    "too many settings": (lambda: routines.by_name("nvil(5)"), ("nvil()", "too many")),
    "no such estimator": (lambda: routines.by_name("vae(estimator=5)"), ("no estimator 5", "pathwise")),
    "unclosed": (lambda: routines.by_name("iwae(5"), ("iwae(5)", "iwae(name=value)")),
    "settings that are no value": (lambda: routines.by_name("wgan(clip=x)"), ("wgan(5)", "wgan(name=value)")),
    "settings that are code": (lambda: routines.by_name("iwae(__import__('os').getpid())"), ("iwae(5)",)),
    "text for a number": (lambda: routines.by_name("iwae('5')"), ("k wants an integer", "'5'")),
    "text for a strength": (lambda: routines.by_name("beta_vae('x')"), ("beta wants a number", "'x'")),
    "text for a share": (lambda: routines.by_name("standard_equation(alpha='x')"), ("alpha wants a number", "'x'")),
    "number for a text": (lambda: routines.by_name("f_gan(5)"), ("f wants a text", "5")),
    "number for a constraint": (lambda: routines.by_name("posterior_regularization(5)"), ("f wants a text", "5")),
    "number for true or false": (lambda: routines.by_name("em(1)"), ("closed_form wants true or false", "1")),
    "fraction for a count": (lambda: routines.by_name("vae(2.5)"), ("k wants an integer", "2.5")),
    "none for a count": (lambda: routines.by_name("iwae(None)"), ("k wants an integer", "None")),
    "no end of a strength": (lambda: routines.by_name("beta_vae(1e999)"), ("beta wants a number", "inf")),
    "no kernel": (lambda: routines.by_name("contrastive_divergence(kernel=3)"), ("kernel=3", "Gibbs()")),
    "a setting for Python alone": (
        lambda: routines.by_name("rule_distillation(rules=5)"),
        ("rules is neither", "Python"),
    ),
    "setting out of range": (lambda: routines.by_name("iwae(-3)"), ("iwae(-3)", "particles", "-3")),
    "unknown f by name": (lambda: routines.by_name("f_gan('pearsn')"), ("pearson",)),
}


@pytest.mark.parametrize(("call", "words"), list(CALLS.values()), ids=list(CALLS))
def test_a_wrong_construction_is_refused_at_once(call, words):
    with pytest.raises(ValueError) as caught:
        call()
    sentence_of(caught.value, words)


def test_a_frozen_network_in_a_closure_is_taken():
    pair = Pair(closed_over(frozen=True), Program(good_guide, 2))
    eager.step(routines.vae, pair, optimizers_of(pair), rows())


def test_a_bound_may_leave_values_out():
    """E_q[log p - log q] needs no values of the guide's that are all of the model's."""
    x = torch.randn(ROWS, DIMENSION)
    pair = Pair(mixture(3, x).model, mixture(2, x).guide)
    check((Phase(elbo, Enumerate(), BOTH),), pair, x)
