"""Exact means of the engine's estimators: the same phase under every outcome of its pair's random choices.

A messenger outside the engine's own puts scripted outcomes in the place of what a program drew: every value of a discrete
site with its probability, Gauss-Hermite nodes for a normal one (exact for polynomials). Data are run one row at a time and
weighted by the data distribution, so that p_data may be any table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy
import torch
from pyro.distributions import Independent, Normal
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.overrides import TorchFunctionMode

from unigen.engines import eager
from unigen.engines.draw import Draw, Programs
from unigen.pair import Pair
from unigen.phases import Enumerate, Expectation, Phase, Tilted

__all__ = ["Bits", "Mean", "drawn", "expected", "gradient", "hermite", "on_samples", "weights_of"]


def hermite(count: int) -> tuple[Tensor, Tensor]:
    """Return nodes and weights (count,) of E f(e), e ~ N(0, 1), exact for polynomials of degree 2 count - 1."""
    nodes, weights = numpy.polynomial.hermite_e.hermegauss(count)
    return torch.from_numpy(nodes), torch.from_numpy(weights / math.sqrt(2 * math.pi))


class Mean(NamedTuple):
    """The mean of an estimator over its outcomes: value, gradient along the moved parameters, and its second moment."""

    value: Tensor
    gradient: Tensor
    second: Tensor


Choose = Callable[[str, Any], "tuple[Tensor, float] | None"]


class _Script(Messenger):
    """Replace what a program has just drawn by what ``choose(name, distribution)`` returns; replays are left alone."""

    def __init__(self, choose: Choose) -> None:
        super().__init__()
        self.choose = choose
        self.handed: list[Tensor] = []
        self.probability = 1.0

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) or msg["is_observed"] or any(msg["value"] is old for old in self.handed):
            return
        chosen = self.choose(msg["name"], msg["fn"])
        if chosen is None:
            self.handed.append(msg["value"])
            return
        value, probability = chosen
        msg["value"] = value if msg["value"].requires_grad else value.detach()
        self.handed.append(msg["value"])
        self.probability *= probability


class _Outcomes:
    """Joint outcomes, one after another: the index of each choice in turn; ``counts`` says how many values each had."""

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes
        self.indices: Sequence[int] = ()
        self.counts: list[int] = []

    def walk(self) -> Iterator[None]:
        """Stand at each joint outcome in turn; the first run says how many choices there are."""
        yield
        for indices in list(product(*(range(count) for count in self.counts)))[1:]:
            self.indices, self.counts = indices, []
            yield

    def _index(self, count: int) -> int:
        place = len(self.counts)
        self.counts.append(count)
        return self.indices[place] if place < len(self.indices) else 0

    def __call__(self, name: str, fn: Any) -> tuple[Tensor, float] | None:
        base = fn
        while isinstance(base, Independent):
            base = base.base_dist
        if hasattr(base, "joint_values"):
            values = base.joint_values()
            value = values[self._index(len(values))]
        elif getattr(base, "has_enumerate_support", False):
            support = base.enumerate_support(expand=False).reshape(-1)
            size = base.batch_shape.numel()
            index = self._index(len(support) ** size)
            digits = [index // len(support) ** place % len(support) for place in range(size)]
            value = support[digits].reshape(base.batch_shape)
        elif isinstance(base, Normal):
            nodes, weights = hermite(self.nodes)
            size = base.batch_shape.numel()
            index = self._index(self.nodes**size)
            digits = [index // self.nodes**place % self.nodes for place in range(size)]
            return base.loc + base.scale * nodes[digits].reshape(base.batch_shape), float(weights[digits].prod())
        else:
            return None  # a value that no chance decides
        return value, float(fn.log_prob(value).detach().sum().exp())


def _run(phase: Phase, pair: Pair, x: Any) -> tuple[Tensor, Tensor]:
    moved = pair.group(*phase.move)
    value, surrogate = eager.objective(phase, pair, x)
    slopes = torch.autograd.grad(surrogate, moved, allow_unused=True)
    return value, torch.cat([_slope(g, p) for g, p in zip(slopes, moved, strict=True)])


def _slope(slope: Tensor | None, parameter: Tensor) -> Tensor:
    return torch.zeros(parameter.numel(), dtype=parameter.dtype) if slope is None else slope.reshape(-1)


def expected(phase: Phase, pair: Pair, data: Iterable[tuple[float | Tensor, Any]], nodes: int = 3) -> Mean:
    """Return the exact mean of the engine's estimate of a phase over data [(probability, batch), ...] and its own chance.

    ``nodes``: Gauss-Hermite points a normal number. The gradient is flat, in the order of ``pair.group(*phase.move)``. The
    global random stream is left as it was.
    """
    means = []
    enumerated = isinstance(phase.under, Enumerate) or getattr(phase.under, "base", None) == Enumerate()
    with torch.random.fork_rng(devices=[]):
        for share, x in data:
            Programs(pair).layout(pair.bind(x))  # probed now: the probe's own draws are no outcomes
            if enumerated:
                means.append((float(share), *_run(phase, pair, x)))
                continue
            outcomes = _Outcomes(nodes)
            for _ in outcomes.walk():
                with _Script(outcomes) as script:
                    value, slope = _run(phase, pair, x)
                means.append((float(share) * script.probability, value, slope))
    p = torch.tensor([mean[0] for mean in means], dtype=torch.float64)
    slopes = torch.stack([mean[2] for mean in means])
    return Mean(p @ torch.stack([mean[1] for mean in means]).double(), p @ slopes, p @ slopes.square())


def _given(values: dict[str, Tensor]) -> Choose:
    def choose(name: str, fn: Any) -> tuple[Tensor, float] | None:
        if name not in values:
            return None
        base = fn
        while isinstance(base, Independent):
            base = base.base_dist
        noise = values[name]
        return (base.loc + base.scale * noise if isinstance(base, Normal) else noise), 1.0

    return choose


def on_samples(phase: Phase, pair: Pair, x: Any, values: dict[str, Tensor]) -> Mean:
    """Return the engine's estimate on given samples by site name: the noise of a normal site, the value of another."""
    with torch.random.fork_rng(devices=[]):
        Programs(pair).layout(pair.bind(x))
        with _Script(_given(values)):
            value, slope = _run(phase, pair, x)
    return Mean(value, slope, slope.square())


class Bits(TorchFunctionMode):
    """Put scripted bits, one tensor a call, in the place of what ``torch.bernoulli`` draws, as a Markov kernel calls it.

    ``probability``: that of the bits of each row.
    """

    def __init__(self, *values: Tensor) -> None:
        super().__init__()
        self.values = list(values)
        self.probability = torch.ones((), dtype=torch.float64)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.bernoulli:
            return func(*args, **(kwargs or {}))
        value = self.values.pop(0)
        self.probability = self.probability * torch.where(value > 0, args[0], 1 - args[0]).prod(-1)
        return value


def drawn(expectation: Expectation, pair: Pair, x: Any, values: dict[str, Tensor] | None = None) -> Draw:
    """Return what the engine draws from an expectation, on given samples where it samples."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        Programs(pair).layout(pair.bind(x))
        if values is None and not isinstance(expectation, Enumerate | Tilted):
            raise ValueError(f"{expectation} samples: give the values of its sites")
        with _Script(_given(values or {})):
            draw = eager.draw(expectation, Programs(pair, ("theta",)), pair.bind(x))
            _ = draw.log_p
    return draw


def weights_of(draw: Draw) -> Tensor:
    """Return the self-normalized weights of a tilted draw."""
    if draw.weights is None:
        raise ValueError("the draw has no weights; draw from a Tilted expectation")
    return draw.weights


def gradient(value: Tensor, pair: Pair, *groups: str, keep: bool = False) -> Tensor:
    """Return the gradient of a scalar along parameter groups, flat, in the order of ``pair.group``; ``keep`` its graph."""
    parameters = pair.group(*groups)
    slopes = torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=keep)
    return torch.cat([_slope(slope, parameter) for slope, parameter in zip(slopes, parameters, strict=True)])
