"""Exhaustive replay: run a phase's estimator under every outcome of its random choices, each with its probability.

E[gradient] = sum_w P(w) gradient(w), exactly: bits and categories take every value, normals Gauss-Hermite nodes, uniforms
Gauss-Legendre nodes. A tape in the place of the samplers scripts the choices one after another, and a depth-first walk
turns it until every path has been run. No random stream is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from unigen.engines import eager
from unigen.engines.programs import Programs, enumerate_sites, unreached
from unigen.pair import Pair, PairError
from unigen.phases import Phase

__all__ = ["Estimate", "Midpoints", "expected", "hermite", "legendre", "noises", "outcomes", "prepare", "replay"]

Live = Callable[[torch.Size], Tensor]


def hermite(count: int) -> tuple[Tensor, Tensor]:
    """Return nodes and weights (count,) with sum_i w_i f(x_i) = E f(e), e ~ N(0, 1), for polynomials f of degree 2n - 1."""
    nodes, weights = numpy.polynomial.hermite_e.hermegauss(count)
    return torch.from_numpy(nodes), torch.from_numpy(weights / math.sqrt(2 * math.pi))


def legendre(count: int) -> tuple[Tensor, Tensor]:
    """Return nodes and weights (count,) for E f(u), u ~ Uniform(0, 1)."""
    nodes, weights = numpy.polynomial.legendre.leggauss(count)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


class _Samplers(AbstractContextManager):  # type: ignore[type-arg]
    """Put ``bits``, ``categories``, ``normals`` and ``uniforms`` of this object in the place of torch's samplers.

    ``taken``: what torch's random operations would have returned, in their order.
    """

    def bits(self, probabilities: Tensor) -> Tensor:
        raise NotImplementedError

    def categories(self, probabilities: Tensor) -> Tensor:
        raise NotImplementedError

    def normals(self, shape: torch.Size) -> Tensor:
        raise NotImplementedError

    def uniforms(self, shape: torch.Size) -> Tensor:
        raise NotImplementedError

    def __enter__(self) -> Any:
        distributions = torch.distributions
        self.taken: list[Tensor] = []
        self._saved = [
            (distributions.Bernoulli, "sample"),
            (distributions.Categorical, "sample"),
            (distributions.Normal, "sample"),
            (distributions.Normal, "rsample"),
            (torch, "bernoulli"),
            (torch, "rand_like"),
        ]
        self._originals = [getattr(owner, name) for owner, name in self._saved]

        def kept(value: Tensor) -> Tensor:
            self.taken.append(value)
            return value

        def bernoulli(fn: Any, sample_shape: Any = ()) -> Tensor:
            shape = fn._extended_shape(torch.Size(sample_shape))
            return kept(self.bits(fn.probs.detach().expand(shape)))

        def categorical(fn: Any, sample_shape: Any = ()) -> Tensor:
            shape = fn._extended_shape(torch.Size(sample_shape))
            return kept(self.categories(fn.probs.detach().expand(*shape, fn.probs.shape[-1])))

        def rsample(fn: Any, sample_shape: Any = ()) -> Tensor:
            self.taken.append(self.normals(fn._extended_shape(torch.Size(sample_shape))))
            return fn.loc + fn.scale * self.taken[-1]

        def sample(fn: Any, sample_shape: Any = ()) -> Tensor:
            noise = self.normals(fn._extended_shape(torch.Size(sample_shape)))
            return kept((fn.loc + fn.scale * noise).detach())

        def bernoulli_of(probabilities: Tensor) -> Tensor:
            return kept(self.bits(probabilities.detach()))

        def rand_like(like: Tensor) -> Tensor:
            return kept(self.uniforms(like.shape))

        replacements = [bernoulli, categorical, sample, rsample, bernoulli_of, rand_like]
        for (owner, name), replacement in zip(self._saved, replacements, strict=True):
            setattr(owner, name, replacement)
        return self

    def __exit__(self, *_: object) -> None:
        for (owner, name), original in zip(self._saved, self._originals, strict=True):
            setattr(owner, name, original)


class _Tape(_Samplers):
    """One path: the outcome of each choice in turn, zero where the path says nothing; ``options`` and the probability."""

    def __init__(self, path: list[int], nodes: int, live: Live | None) -> None:
        self.path, self.nodes, self.live = path, nodes, live
        self.options: list[int] = []
        self.probability = 1.0

    def _digits(self, base: int, count: int) -> Tensor:
        place = len(self.options)
        if place == len(self.path):
            self.path.append(0)
        self.options.append(base**count)
        return torch.tensor([self.path[place] // base**i % base for i in range(count)], dtype=torch.long)

    def bits(self, probabilities: Tensor) -> Tensor:
        value = self._digits(2, probabilities.numel()).reshape(probabilities.shape).to(probabilities.dtype)
        self.probability *= float((value * probabilities + (1 - value) * (1 - probabilities)).prod())
        return value

    def categories(self, probabilities: Tensor) -> Tensor:
        shape = probabilities.shape[:-1]
        value = self._digits(probabilities.shape[-1], shape.numel()).reshape(shape)
        self.probability *= float(probabilities.gather(-1, value.unsqueeze(-1)).prod())
        return value

    def normals(self, shape: torch.Size) -> Tensor:
        live = torch.ones(shape, dtype=torch.bool) if self.live is None else self.live(shape)
        nodes, weights = hermite(self.nodes)
        digits = self._digits(self.nodes, int(live.sum()))
        self.probability *= float(weights[digits].prod())
        value = torch.zeros(shape, dtype=torch.float64)
        value[live] = nodes[digits]
        return value

    def uniforms(self, shape: torch.Size) -> Tensor:
        nodes, weights = legendre(self.nodes)
        digits = self._digits(self.nodes, shape.numel())
        self.probability *= float(weights[digits].prod())
        return nodes[digits].reshape(shape)


class Midpoints(_Samplers):
    """Samplers without chance: particle k of K takes bit 1 where its probability exceeds (k + 1) / (K + 1).

    A row's value then depends on that row and its particle alone, so a row alone and in a batch see the same latents.
    """

    def __init__(self, particles: int) -> None:
        self.levels = torch.arange(1, particles + 1, dtype=torch.float64) / (particles + 1)

    def bits(self, probabilities: Tensor) -> Tensor:
        levels = self.levels.reshape(-1, *(1,) * (probabilities.dim() - 1))
        return (probabilities > levels).to(probabilities.dtype)


def outcomes(run: Callable[[], Any], nodes: int = 40, live: Live | None = None) -> Iterator[tuple[float, Any]]:
    """Run ``run`` once for every joint outcome of its choices; yield (probability, result).

    ``nodes``: quadrature points a normal or uniform number. ``live``: which entries of a normal sample of some shape
    matter; the others stay at zero.
    """
    for tape, result in _walk(run, nodes, live):
        yield tape.probability, result


def noises(run: Callable[[], Any], nodes: int = 40, live: Live | None = None) -> Iterator[tuple[float, list[Tensor]]]:
    """As ``outcomes``, but yield (probability, what each random operation returned)."""
    for tape, _ in _walk(run, nodes, live):
        yield tape.probability, tape.taken


def _walk(run: Callable[[], Any], nodes: int, live: Live | None) -> Iterator[tuple[_Tape, Any]]:
    path: list[int] = []
    while True:
        tape = _Tape(path, nodes, live)
        with tape:
            result = run()
        yield tape, result
        path = tape.path
        while path and path[-1] + 1 == tape.options[len(path) - 1]:
            path.pop()
        if not path:
            return
        path[-1] += 1


class Estimate(NamedTuple):
    """The mean over every outcome: the value, the gradient by parameter name, and how many outcomes there were."""

    value: float
    gradient: dict[str, Tensor]
    outcomes: int


def prepare(pair: Pair, x: Any) -> None:
    """Let the engine probe the pair's plates, supports and dependencies now, so that no replay contains the probes' draws."""
    Programs(pair).layout(pair.bind(x))
    if getattr(pair.psi["baseline"] if "baseline" in pair.psi else None, "outputs", 1) > 1:
        unreached(Programs(pair), pair.bind(x))
    with suppress(PairError):  # a support that is not finite
        enumerate_sites(Programs(pair), pair.bind(x))


def replay(phase: Phase, pair: Pair, x: Any) -> tuple[float, list[Tensor]]:
    """Run the single-sample estimator once: its value and the gradient of its surrogate along what the phase moves."""
    moved = pair.group(*phase.move)
    value, surrogate = eager.objective(phase, pair, x)
    gradients = torch.autograd.grad(surrogate, moved, allow_unused=True)
    return float(value), [torch.zeros_like(p) if g is None else g for p, g in zip(moved, gradients, strict=True)]


def expected(phase: Phase, pair: Pair, x: Any, nodes: int = 40, live: Live | None = None) -> Estimate:
    """Return the exact mean of the estimator; buffers and chains start every outcome as they are, and stay so."""
    prepare(pair, x)
    buffers = [buffer for group in ("theta", "phi", "psi") for buffer in pair.group_buffers(group)]
    before, chains = [buffer.clone() for buffer in buffers], dict(pair.chains)

    def restore() -> None:
        pair.chains = dict(chains)
        for buffer, old in zip(buffers, before, strict=True):
            buffer.copy_(old)

    def run() -> tuple[float, list[Tensor]]:
        restore()
        return replay(phase, pair, x)

    value, total, count = 0.0, 0.0, 0
    sums: Sequence[Tensor] = [torch.zeros_like(p) for p in pair.group(*phase.move)]
    for probability, (one, gradients) in outcomes(run, nodes, live):
        value, total, count = value + probability * one, total + probability, count + 1
        for summed, gradient in zip(sums, gradients, strict=True):
            summed += probability * gradient
    restore()
    if abs(total - 1) > 1e-10:
        raise ArithmeticError(f"the outcomes' probabilities sum to {total}, expected 1")
    names = [f"{group}.{name}" for group in phase.move for name, _ in pair.named_group(group)]
    return Estimate(value, dict(zip(names, sums, strict=True)), count)
