"""The vocabulary: expectations, estimators, phases and routines, as frozen descriptions without torch or jax.

A learning algorithm is a short list of phases over one model/guide pair. A phase says under which expectation, which
objective, and which parameters move:

    climb  E_under[maximize] - E_against[maximize]  along  move

An engine (``unigen.engines``) gives these descriptions their meaning. Two rules hold in every engine:

1. Samples carry gradient exactly when the phase moves the program that drew them (``Wake`` draws by phi, ``Sleep`` by
   theta; tilted and chain draws never). Where a site has no reparameterization, the engine adds the score-function term.
2. Only the parameters that the phase moves change: parameters, gradients, optimizer state and buffers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import inf
from numbers import Integral, Real
from typing import Any

__all__ = [
    "PHI",
    "PSI",
    "THETA",
    "Baseline",
    "Chain",
    "ClipWeights",
    "ControlVariate",
    "DoublyReparameterized",
    "Enumerate",
    "Estimator",
    "Expectation",
    "LeaveOneOut",
    "Objective",
    "Optimizer",
    "Pathwise",
    "Phase",
    "Resampled",
    "Routine",
    "ScoreFunction",
    "Sleep",
    "StickingTheLanding",
    "Tilted",
    "Wake",
    "declare",
]

Objective = Callable[[Any], Any]
"""A function of a ``Draw`` that returns one value a datum, of shape (N,) or (K, N)."""

THETA, PHI, PSI = ("theta",), ("phi",), ("psi",)
"""The three parameter groups: the model's, the guide's, the named networks'. ``THETA + PHI`` moves both."""


# -- expectations: the joint that samples are drawn from ---------------------------------------------------------------


class Expectation:
    """A description of the joint distribution that a phase takes its samples from."""


@dataclass(frozen=True)
class Wake(Expectation):
    """x from the data, the latents z ~ q_phi(z|x) from the guide.

    ``particles``: K independent samples of z a datum; the draw is then (K, N), else (N,).
    ``dreams``: append as many x dreamt from the model as there are data; ``draw["y"]`` is 1 for data, 0 for dreams.
    """

    particles: int | None = None
    dreams: bool = False

    def __post_init__(self) -> None:
        _check_count("particles", self.particles, self)

    def __str__(self) -> str:
        inside = [str(self.particles)] * (self.particles is not None) + ["dreams"] * self.dreams
        return f"Wake({', '.join(inside)})"


@dataclass(frozen=True)
class Sleep(Expectation):
    """z, x ~ p_theta(z, x) dreamt from the model, as many as there are data; ``particles`` as in ``Wake``."""

    particles: int | None = None

    def __post_init__(self) -> None:
        _check_count("particles", self.particles, self)

    def __str__(self) -> str:
        return f"Sleep({'' if self.particles is None else self.particles})"


@dataclass(frozen=True)
class Enumerate(Expectation):
    """x from the data, and every value of the guide's discrete sites, each with its probability q_phi(z|x): exact.

    The draw has one leading row for each joint value, (M, N). Refused for a site without finite support.
    """

    def __str__(self) -> str:
        return "Enumerate()"


@dataclass(frozen=True)
class Tilted(Expectation):
    """``base`` reweighted by self-normalized weights w ~ exp(log_w), normalized along ``dim``.

    ``dim=0``: over the particles of each datum (importance sampling; with ``Enumerate`` the exact posterior).
    ``dim=-1``: over the batch (the E-step of posterior regularization, q* ~ p_theta exp(alpha f)).
    """

    base: Expectation
    log_w: Objective
    dim: int = 0

    def __str__(self) -> str:
        return f"Tilted({self.base}, {name_of(self.log_w)}, dim={self.dim})"


@dataclass(frozen=True)
class Chain(Expectation):
    """x at the end of ``steps`` transitions of a Markov kernel, started at the data, or ``persistent`` (PCD)."""

    kernel: Callable[[Any, Any], Any]
    steps: int = 1
    persistent: bool = False

    def __post_init__(self) -> None:
        if not callable(self.kernel):
            raise ValueError(f"a chain takes a kernel, as Gibbs() of unigen.kernels; got kernel={self.kernel!r:.80}")
        _check_count("steps", self.steps, self)

    def __str__(self) -> str:
        return f"Chain({self.kernel}, {self.steps}{', persistent' if self.persistent else ''})"


def _check_count(name: str, count: Any, expectation: Expectation | Estimator) -> None:
    whole = isinstance(count, Integral) and not isinstance(count, bool)
    if not (count is None and name == "particles") and not (whole and count > 0):
        raise ValueError(f"{type(expectation).__name__} takes a positive whole number of {name}; got {name}={count!r}")


# -- estimators of the gradient ----------------------------------------------------------------------------------------
# A phase without one takes the pathwise gradient where a site has a reparameterization, the score function elsewhere.


class Estimator:
    """A description of how the gradient of an expectation is estimated."""


class ControlVariate:
    """A description of what is taken from the signal of the score function, which leaves the mean of the gradient as it is."""


@dataclass(frozen=True)
class Pathwise(Estimator):
    """The reparameterization gradient at every site; refused where a site has none."""


@dataclass(frozen=True)
class ScoreFunction(Estimator):
    """The score-function (REINFORCE) gradient at every site, reparameterizable ones too."""


@dataclass(frozen=True)
class StickingTheLanding(Estimator):
    """Pathwise, without the score of q at the sample, whose mean is zero (Roeder, Wu & Duvenaud 2017).

    Refused where the sample decides how much log q counts, as in iwae, since then it is not (Tucker et al. 2019).
    """


@dataclass(frozen=True)
class Resampled(Estimator):
    """The pathwise gradient of ``iwae`` through ``draws`` of the K particles, taken by their weights, in the place of all.

    A step then costs K forward passes and few backward ones, and its mean is that of the whole gradient (Burda, Grosse &
    Salakhutdinov 2016). Several are taken by one systematic draw a datum.
    """

    draws: int = 1

    def __post_init__(self) -> None:
        _check_count("draws", self.draws, self)


@dataclass(frozen=True)
class DoublyReparameterized(Estimator):
    """The doubly reparameterized gradient of ``iwae`` (Tucker, Lawson, Gu & Maddison 2019).

    ``draws``: through so many of the K particles, taken by their weights, as ``Resampled``; None: through all.
    """

    draws: int | None = None

    def __post_init__(self) -> None:
        if self.draws is not None:
            _check_count("draws", self.draws, self)


@dataclass(frozen=True)
class LeaveOneOut(ControlVariate):
    """Control variate from the other particles: VIMCO for ``iwae``, the mean of the others for a value a particle."""


@dataclass(frozen=True)
class Baseline(ControlVariate):
    """Control variate from the psi network of this name: a prediction of the signal from x, which must be data (NVIL).

    A network with an output for each latent site of the guide predicts the local signal of each: the signal without what
    the site's value cannot change.
    """

    network: str = "baseline"


# -- phases and routines -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClipWeights:
    """Projection after a step: every moved weight into [-bound, bound] (WGAN; weights, not gradients)."""

    bound: float

    def __post_init__(self) -> None:
        if not isinstance(self.bound, Real) or not self.bound > 0:
            raise ValueError(f"weights are clipped to [-bound, bound] for a positive bound; got {self.bound!r}")

    def __call__(self, parameters: list[Any]) -> None:
        for parameter in parameters:
            parameter.clamp_(-self.bound, self.bound)


def check_number(name: str, value: Any, most: float = inf, least: float = 0) -> None:
    """Refuse what is no finite number from ``least`` to ``most``."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not least <= value <= most or value == inf:
        upper = f" to {most:g}" if most < inf else ""
        raise ValueError(f"{name} is a number from {least:g}{upper}; got {str(value):.80}")


def name_of(objective: Objective) -> str:
    """Return the short name by which messages and reports call an objective."""
    return getattr(objective, "__name__", None) or getattr(objective, "name", None) or str(objective)


@dataclass(frozen=True)
class Phase:
    """Climb E_under[maximize] - E_against[maximize] along the named parameters.

    ``maximize``: a function of a draw, one value a datum. ``under``, ``against``: expectations. ``move``: parameter
    groups, of ``THETA``, ``PHI``, ``PSI``. ``steps``: repetitions, each on a fresh batch where the loader has one.
    ``estimator``, ``control_variate``: how the gradient of the expectation is estimated (see above). ``project``: called
    with the moved parameters after each step. ``solve``: set the parameters to the maximizer in closed form, by the
    model's ``solve(draw)``, instead of climbing (the M-step of EM).
    """

    maximize: Objective
    under: Expectation
    move: tuple[str, ...]
    against: Expectation | None = None
    steps: int = 1
    estimator: Estimator | None = None
    control_variate: ControlVariate | None = None
    project: Callable[[list[Any]], None] | None = None
    solve: bool = False

    def __post_init__(self) -> None:
        unknown = [group for group in self.move if group not in THETA + PHI + PSI]
        if unknown or not self.move:
            raise ValueError(f"a phase moves some of theta, phi, psi; got move={self.move!r}")
        if not callable(self.maximize):
            raise ValueError(f"a phase maximizes a function of a draw, such as objectives.elbo; got {self.maximize!r}")
        for name, kind, example in (
            ("under", Expectation, "Wake()"),
            ("against", Expectation, "Sleep()"),
            ("estimator", Estimator, "ScoreFunction()"),
            ("control_variate", ControlVariate, "LeaveOneOut()"),
        ):
            value = getattr(self, name)
            if not isinstance(value, kind) and (value is not None or name == "under"):
                raise ValueError(f"{name} of a phase is of the kind of {example}; got {name}={value!r}")
        if not isinstance(self.steps, Integral) or self.steps < 1:
            raise ValueError(f"a phase takes at least one step; got steps={self.steps!r}")
        object.__setattr__(self, "move", tuple(group for group in THETA + PHI + PSI if group in self.move))

    def expectations(self) -> Iterator[Expectation]:
        """Yield the expectations of the phase, what is tilted among them."""
        waiting = [self.under, self.against]
        while waiting:
            expectation = waiting.pop(0)
            if expectation is not None:
                yield expectation
            if isinstance(expectation, Tilted):
                waiting.append(expectation.base)

    def __str__(self) -> str:
        what = f"{'solve' if self.solve else 'climb'} {name_of(self.maximize)} under {self.under}"
        what += f" against {self.against}" if self.against else ""
        what += f" along {', '.join(self.move)}"
        what += f", {self.steps} steps" if self.steps > 1 else ""
        what += f", {type(self.estimator).__name__}" if self.estimator else ""
        what += f", {type(self.control_variate).__name__}" if self.control_variate else ""
        return what + (f", then {self.project}" if self.project else "")


@dataclass(frozen=True)
class Optimizer:
    """An optimizer by name, with the settings that the routine's source publishes or that are customary for it.

    ``phi``: the learning rate of phi as a multiple of ``lr``, that of theta and psi.
    """

    name: str = "Adam"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    phi: float = 1.0

    def rate(self, group: str) -> float:
        """Return the learning rate of a parameter group."""
        return self.lr * self.phi if group == "phi" else self.lr

    def __str__(self) -> str:
        phi = f", of phi {self.rate('phi'):g}" if self.phi != 1 else ""
        return f"{self.name}(lr={self.lr:g}{phi}" + (f", betas={self.betas})" if self.name == "Adam" else ")")


@dataclass(frozen=True)
class Routine:
    """A tuple of phases with a name, a citation and the pair families it is meant for.

    Equal and hashed by its phases alone: two declarations of the same algorithm are equal whatever their names. Calling
    a routine declares it anew with other settings: ``iwae(50)``.
    """

    phases: tuple[Phase, ...]
    name: str = field(default="routine", compare=False)
    citation: str = field(default="", compare=False)
    url: str = field(default="", compare=False)
    pairs: tuple[str, ...] = field(default=("latent",), compare=False)
    optimizer: Optimizer = field(default=Optimizer(), compare=False)
    declaration: Callable[..., tuple[Phase, ...]] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "phases", tuple(self.phases))
        if not self.phases or not all(isinstance(phase, Phase) for phase in self.phases):
            raise ValueError(f"routine {self.name!r} must be a non-empty tuple of phases")
        object.__setattr__(self, "__doc__", getattr(self.declaration, "__doc__", None))

    def __iter__(self) -> Iterator[Phase]:
        return iter(self.phases)

    def __len__(self) -> int:
        return len(self.phases)

    def __getitem__(self, index: int) -> Phase:
        return self.phases[index]

    def bind(self, *settings: Any, **named: Any) -> inspect.BoundArguments:
        """Return the declaration's arguments by name; ``TypeError`` with its signature where these do not fit it."""
        if self.declaration is None:
            raise TypeError(f"routine {self.name!r} has no settings")
        signature = inspect.signature(self.declaration)
        try:
            return signature.bind(*settings, **named)
        except TypeError as error:
            raise TypeError(f"{self.declaration.__name__}{signature}: {error}") from None

    def __call__(self, *settings: Any, **named: Any) -> Routine:
        bound = self.bind(*settings, **named)
        assert self.declaration is not None  # bound to
        shown = [name_of(v) for v in bound.args] + [f"{k}={name_of(v)}" for k, v in bound.kwargs.items()]
        base = self.declaration.__name__
        return Routine(
            self.declaration(*settings, **named),
            f"{base}({', '.join(shown)})" if shown else base,
            self.citation,
            self.url,
            self.pairs,
            self.optimizer,
            self.declaration,
        )

    @property
    def batches(self) -> int:
        """How many batches of data one step of the routine consumes."""
        return max(phase.steps for phase in self.phases)

    @property
    def formula(self) -> str:
        """The first paragraph of the declaration's docstring."""
        return inspect.cleandoc(self.__doc__ or self.name).split("\n\n")[0].replace("\n", " ")

    @property
    def summary(self) -> str:
        """The second paragraph of the declaration's docstring."""
        paragraphs = inspect.cleandoc(self.__doc__ or "").split("\n\n")
        return " ".join(paragraphs[1].split()).replace("``", "") if len(paragraphs) > 1 else ""

    def __str__(self) -> str:
        return "\n".join([self.name, *(f"  {i}. {phase}" for i, phase in enumerate(self.phases, 1))])


def declare(
    citation: str, url: str, pairs: tuple[str, ...] = ("latent",), optimizer: Optimizer | None = None
) -> Callable[[Callable[..., tuple[Phase, ...]]], Routine]:
    """Turn a function that returns a tuple of phases into the ``Routine`` of its default settings."""

    def wrap(declaration: Callable[..., tuple[Phase, ...]]) -> Routine:
        name = declaration.__name__
        return Routine(declaration(), name, citation, url, pairs, optimizer or Optimizer(), declaration)

    return wrap
