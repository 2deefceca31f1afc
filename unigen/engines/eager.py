"""The reference engine: phases executed on Pyro's effect handlers (with ``programs`` and ``draw``, which know them).

``objective(phase, pair, x)`` returns ``(value, surrogate)``; the gradient of the surrogate along the phase's parameters is
an unbiased estimate of the gradient of E_under[maximize] - E_against[maximize], the weights of a tilted expectation and the end
of a chain held fixed. ``step`` runs every phase of a routine.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial, reduce, singledispatch
from typing import Any

import torch
from torch import Tensor

from unigen.engines.checks import check_once, check_optimizers, check_rates
from unigen.engines.draw import Draw
from unigen.engines.programs import Programs, enumerate_sites
from unigen.engines.rules import set_rates
from unigen.objectives import elbo, iwae, log_weight
from unigen.pair import Pair, PairError
from unigen.phases import (
    Baseline,
    Chain,
    DoublyReparameterized,
    Enumerate,
    Expectation,
    LeaveOneOut,
    Phase,
    Resampled,
    Routine,
    Sleep,
    StickingTheLanding,
    Tilted,
    Wake,
    name_of,
)

__all__ = ["CHUNK", "advance", "draw", "finite_parameters", "objective", "solve", "step"]

CHUNK = 1  # the steps of a call of ``advance`` by ``fit``


# -- expectations: what each draws -------------------------------------------------------------------------------------


@singledispatch
def draw(expectation: Expectation, programs: Programs, data: dict[str, Any]) -> Draw:
    """Draw from an expectation. A new expectation is a frozen dataclass and one registration here."""
    raise TypeError(f"the eager engine knows no expectation {expectation!r}")


@draw.register
def _wake(expectation: Wake, programs: Programs, data: dict[str, Any]) -> Draw:
    labels = {}
    if expectation.dreams:
        dreamt = programs.dream(data)
        like = next(iter(dreamt.values()))
        labels = {"y": torch.cat([like.new_ones(len(like)), like.new_zeros(len(like))])}
        rows = [
            name
            for name, value in data.items()
            if isinstance(value, Tensor) and value.dim() and len(value) == len(like)
        ]
        data = data | {name: torch.cat([data[name], dreamt.get(name, data[name])]) for name in rows}
    return Draw(programs, data, particles=expectation.particles, first="guide", labels=labels)


@draw.register
def _sleep(expectation: Sleep, programs: Programs, data: dict[str, Any]) -> Draw:
    return Draw(programs, data, particles=expectation.particles, first="model")


@draw.register
def _enumerate(expectation: Enumerate, programs: Programs, data: dict[str, Any]) -> Draw:
    values, rows = enumerate_sites(programs, data)
    result = Draw(programs, data, particles=rows, first="guide", values=values)
    result.enumerated = True
    result.log_base = result.log_q
    return result


@draw.register
def _tilted(expectation: Tilted, programs: Programs, data: dict[str, Any]) -> Draw:
    result = draw(expectation.base, programs.without_gradient_through_samples(), data)
    log_w = expectation.log_w(result).detach()
    if result.log_base is not None:
        if result.dry and bool((result.log_base == -math.inf).any()):
            raise PairError(
                f"the guide gives some value of {', '.join(result.sites('guide'))} probability 0, which no weight can undo; give "
                "every value some, such as a logit of -50 in the place of -inf"
            )
        log_w = log_w + result.log_base.detach()
    if log_w.dim() == 0 or (expectation.dim == 0 and result.particles is None):
        raise PairError(f"{expectation} has nothing to normalize over: give its base particles, or a batch of data")
    result.weights, result.weights_dim = torch.softmax(log_w, expectation.dim), expectation.dim
    return result


@draw.register
def _chain(expectation: Chain, programs: Programs, data: dict[str, Any]) -> Draw:
    pair, key, moved = programs.pair, str(expectation), programs.moved_by(expectation.kernel, data)
    start = data
    if expectation.persistent and key in pair.chains:
        start = start | {moved: pair.chains[key]}
    for _ in range(expectation.steps):
        start = expectation.kernel(programs, start)
    if expectation.persistent and not programs.dry:
        pair.chains[key] = start[moved].detach().clone()
    return Draw(programs.without_gradient_through_samples(), start, particles=None, first="guide")


# -- the estimate of an expectation ------------------------------------------------------------------------------------


def _estimate(
    phase: Phase, expectation: Expectation, programs: Programs, data: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Return (value, surrogate) of E_expectation[maximize]."""
    if isinstance(phase.estimator, DoublyReparameterized | Resampled):
        return _importance_weighted(phase, phase.estimator, expectation, programs, data)
    sample = draw(expectation, programs, data)
    f = phase.maximize(sample)
    couples = getattr(phase.maximize, "couples_data", False)
    sample.check_value(f, name_of(phase.maximize), couples)
    if programs.dry:
        _check_linear(phase, sample, f)
    if sample.weights is not None:
        if f.dim() != sample.weights.dim():
            raise PairError(f"{expectation} weighs particles, of which {name_of(phase.maximize)} has no value each")
        value = (sample.weights * f).sum(sample.weights_dim).mean()
        return value.detach(), value
    if sample.enumerated and f.dim() == sample.depth:
        value = (sample.log_q.exp() * f).sum(0).mean()
        return value.detach(), value
    surrogate = f.mean()
    scores = {} if sample.enumerated else sample.scores
    if scores:
        if couples:
            raise PairError(
                f"{name_of(phase.maximize)} couples the rows of a batch, so discrete site '{sample.score_sites[0]}' has no "
                "per-datum score function; use a reparameterizable likelihood"
            )
        signals = _signals(phase, sample, f.detach())
        if isinstance(signals, dict):
            term = reduce(torch.add, [score * signals[name] for name, score in scores.items()])
        else:  # (N,) broadcasts against (K, N): the whole signal belongs to each particle
            term = reduce(torch.add, scores.values()) * signals
        if f.dim() < term.dim():
            term = term.sum(0)
        surrogate = surrogate + term.mean()
    return f.mean().detach(), surrogate


def _check_linear(phase: Phase, sample: Draw, f: Tensor) -> None:
    """Refuse to leave out the score of q where its mean is not zero: where z decides how much log q counts, as in iwae."""
    if not isinstance(phase.estimator, StickingTheLanding):
        return
    held = [density for density in sample.held_densities() if density.requires_grad]
    if not held or not f.requires_grad:
        return
    counts = torch.autograd.grad(f.sum(), held, create_graph=True, allow_unused=True, materialize_grads=True)
    for count in counts:
        if count.requires_grad or (sample.particles is not None and bool((count != count[:1]).any())):
            raise PairError(
                f"{phase.estimator} leaves out a term whose mean is zero only where log q counts the same whatever z is, as in "
                f"elbo, and not in {name_of(phase.maximize)}; use DoublyReparameterized with iwae, or leave the estimator out"
            )


def _signals(phase: Phase, sample: Draw, signal: Tensor) -> Tensor | dict[str, Tensor]:
    """Return what multiplies the score, or that of each latent site of the guide, less what its value cannot change."""
    variate = phase.control_variate
    if variate is None:
        return signal
    if not isinstance(variate, Baseline):
        return signal - _control_variate(phase, sample, signal)
    if sample.first == "model":
        raise PairError(
            f"{variate} is read at what {phase.under} draws, so that it is no constant beside the score; use LeaveOneOut()"
        )
    predicted = sample.network(variate.network)(sample.x).detach()
    local = sample.local_signals(signal, predicted)
    if local is None:
        return signal - predicted
    if phase.maximize is not elbo or sample.first != "guide":
        raise PairError(
            f"a baseline of {predicted.shape[-1]} outputs is for elbo under Wake, whose terms belong to sites, not for "
            f"{name_of(phase.maximize)} under {phase.under}; give it one output"
        )
    return {
        name: each - prediction for (name, each), prediction in zip(local.items(), predicted.unbind(-1), strict=True)
    }


def _control_variate(phase: Phase, sample: Draw, signal: Tensor) -> Tensor:
    """A baseline that is independent of the particle it is subtracted from, so that the estimate stays unbiased."""
    variate = phase.control_variate
    if not isinstance(variate, LeaveOneOut):
        raise TypeError(f"the eager engine knows no control variate {variate!r}")
    if sample.particles is None or sample.particles < 2:
        raise PairError(f"{variate} needs at least two particles; got {phase.under}")
    others = sample.particles - 1
    if signal.dim() == sample.depth:  # one value a particle: the mean of the others
        return (signal.sum(0) - signal) / others
    if phase.maximize is not iwae:
        raise PairError(f"{variate} is defined for iwae or a value a particle, not for {name_of(phase.maximize)}")
    # VIMCO (Mnih & Rezende 2016): w_k becomes the geometric mean of the others
    log_w = log_weight(sample).detach()
    geometric = (log_w.sum(0) - log_w) / others
    swapped = log_w.unsqueeze(0).expand(sample.particles, *log_w.shape).clone()
    index = torch.arange(sample.particles, device=log_w.device)
    swapped[index, index] = geometric
    return torch.logsumexp(swapped, 1) - math.log(sample.particles)


def _importance_weighted(
    phase: Phase,
    estimator: DoublyReparameterized | Resampled,
    expectation: Expectation,
    programs: Programs,
    data: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    if phase.maximize is not iwae or not isinstance(expectation, Wake) or expectation.particles is None:
        raise PairError(f"{type(estimator).__name__} is the estimator of iwae under Wake(particles)")
    if estimator.draws is None:
        return _doubly_reparameterized(phase, expectation, programs, data)
    return _resampled(estimator, estimator.draws, expectation, programs, data)


def _doubly_reparameterized(
    phase: Phase, expectation: Wake, programs: Programs, data: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """sum_k w_k^2 d log w_k / dz dz/dphi, and the usual sum_k w_k d log p / dtheta (Tucker et al. 2019)."""
    sample = draw(expectation, programs.with_model_frozen(), data)
    _ = sample.scores  # refuses a site without reparameterization
    log_w = log_weight(sample)
    normalized = torch.softmax(log_w.detach(), 0)
    surrogate = (normalized.square() * log_w).sum(0).mean()
    still = partial(Draw, programs.without_gradient_through_samples(), data, expectation.particles, "guide")
    if programs.dry:
        _check_apart(phase, programs.pair, still(values=sample.detached()).log_p)
    if "theta" in phase.move:
        fixed = still(values=sample.detached())
        surrogate = surrogate + (normalized * fixed.log_p).sum(0).mean()
    return iwae(sample).mean().detach(), surrogate


def _check_apart(phase: Phase, pair: Pair, log_p: Tensor) -> None:
    """Refuse a model that reads the guide's parameters, as a mixture of its posteriors for a prior does (VampPrior)."""
    phi = pair.group("phi")
    if log_p.requires_grad and any(g is not None for g in torch.autograd.grad(log_p.sum(), phi, allow_unused=True)):
        raise PairError(
            f"{type(phase.estimator).__name__} takes the gradient along phi for what comes through z alone, and log p of this "
            "model has one at fixed z, as with a prior that reads the guide; leave the estimator out, or give it draws"
        )


def _resampled(
    estimator: DoublyReparameterized | Resampled,
    draws: int,
    expectation: Wake,
    programs: Programs,
    data: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """d log w_k, k drawn by the weights: its mean over k is sum_k w_k d log w_k (Burda et al. 2016).

    Doubly reparameterized, what comes through z counts w_k, without the score of q: in the mean w_k^2.
    """
    with torch.no_grad():
        every = draw(expectation, programs.without_gradient_through_samples(), data)
        log_w = log_weight(every)
        weights = torch.softmax(log_w, 0)
        rows = _systematic(weights, draws)
        values = every.chosen(rows)
    share = weights.gather(0, rows) if isinstance(estimator, DoublyReparameterized) else None
    sample = Draw(programs, every.data, draws, "guide", values, every.labels, along=estimator, share=share)
    again = log_weight(sample)
    sample.check_repeats(again, lambda: log_w.gather(0, rows), "pair")
    return iwae(every).mean(), again.mean()


def _systematic(weights: Tensor, draws: int) -> Tensor:
    """Draw rows by weights (K, N) that sum to one: (draws, N), by one uniform number for each of the N."""
    first = torch.rand_like(weights[0])
    at = torch.stack([(first + number) / draws for number in range(draws)])
    return (weights.cumsum(0)[:-1] <= at.unsqueeze(1)).sum(1)


def objective(phase: Phase, pair: Pair, x: Any, *, dry: bool = False) -> tuple[Tensor, Tensor]:
    """Estimate E_under[maximize] - E_against[maximize] on the batch ``x``.

    Returns ``(value, surrogate)``, both scalars in the units of the objective (nats): the value is detached, the gradient of
    the surrogate along ``phase.move`` is the estimated ascent direction. ``dry`` leaves persistent chains as they are.
    Raises ``PairError`` for a pairing that has no such gradient.
    """
    data = pair.bind(x)
    programs = Programs(pair, phase.move, phase.estimator, allow_unnormalized=phase.against is not None, dry=dry)
    value, surrogate = _estimate(phase, phase.under, programs, data)
    if phase.against is not None:
        other_value, other_surrogate = _estimate(phase, phase.against, programs, data)
        value, surrogate = value - other_value, surrogate - other_surrogate
    return value, surrogate


# -- steps -------------------------------------------------------------------------------------------------------------


def _climb(phase: Phase, pair: Pair, optimizers: Mapping[str, torch.optim.Optimizer], x: Any) -> Tensor:
    moved = pair.group(*phase.move)
    kept = pair.group_buffers(*(group for group in ("theta", "phi", "psi") if group not in phase.move))
    before = [b.clone() for b in kept]
    if phase.solve:
        value = solve(phase, pair, x)
    else:
        for parameter in pair.group(*phase.move, frozen=True):  # one frozen since has its last gradient still
            parameter.grad = None
        value, surrogate = objective(phase, pair, x)
        if not surrogate.requires_grad:
            raise PairError(f"the phase '{phase}' does not depend on {', '.join(phase.move)}")
        (-surrogate).backward(inputs=moved)
        for group in phase.move:
            if group in optimizers:  # a Bayesian model may have no parameters
                optimizers[group].step()
    with torch.no_grad():
        value = finite_parameters(value, moved)
        if phase.project is not None:
            phase.project(moved)
        for buffer, old in zip(kept, before, strict=True):
            buffer.copy_(old)
    return value


SMALL = 2**12  # numbers; a larger parameter takes longer to copy than to sum


def finite_parameters(value: Tensor, parameters: Collection[Tensor]) -> Tensor:
    """Return the value of a phase, or nan where a parameter that it has moved is not finite.

    So one number tells whether value, gradient and parameters are finite, and nobody waits for a device a parameter.
    Small ones are summed as one, since they cost a call each and not their numbers. To be called without gradients.
    """
    small, parts = [], []
    for parameter in parameters:
        if parameter.numel() > SMALL:
            parts.append(parameter.sum())
        else:
            small.append(parameter.flatten())
    if small:
        parts.append(torch.cat(small).sum())
    for part in parts:
        value = torch.add(value, part, alpha=0)  # 0 * nan and 0 * inf are nan
    return value


@torch.no_grad()
def solve(phase: Phase, pair: Pair, x: Any) -> Tensor:
    """Set theta to the maximizer of E_under[log p] in closed form, and return the value before the step."""
    sample = draw(phase.under, Programs(pair, phase.move), pair.bind(x))
    value = (sample.weights * phase.maximize(sample)).sum(sample.weights_dim).mean()
    model: Any = pair.model  # it has solve(draw): checked before the first step
    model.solve(sample)
    return value


def step(
    routine: Routine | Iterable[Phase],
    pair: Pair,
    optimizers: Mapping[str, torch.optim.Optimizer],
    x: Any,
    more: Sequence[Any] = (),
) -> list[Tensor]:
    """Run the phases of a routine once, in order, and return one value (a detached scalar) a phase.

    ``optimizers``: one torch optimizer a parameter group, over exactly ``pair.group(name)``. ``x``: a batch, as
    ``pair.bind`` takes it. ``more``: further batches for the repetitions of a phase with ``steps > 1`` (else ``x`` again).
    Before its first step a routine is checked against the pair (``unigen.engines.checks``).
    """
    check_once(routine, pair, x)
    check_optimizers(routine, pair, optimizers)
    return _step(routine, pair, optimizers, x, more)


def _step(
    routine: Routine | Iterable[Phase],
    pair: Pair,
    optimizers: Mapping[str, torch.optim.Optimizer],
    x: Any,
    more: Sequence[Any],
) -> list[Tensor]:
    values: list[Tensor] = []
    for number, phase in enumerate(routine, 1):
        try:
            value = _climb(phase, pair, optimizers, x)
            for repetition in range(1, phase.steps):
                batch = more[(repetition - 1) % len(more)] if more else x
                value = _climb(phase, pair, optimizers, batch) + 0 * value  # not finite once, not finite
        except Exception as error:
            first = next((n for n, value in enumerate(values, 1) if not value.isfinite()), number)
            error.add_note(f"phase '{first} {tuple(routine)[first - 1]}'")
            raise
        values.append(value)
    if pair.averages is not None:
        pair.averages.update(pair)
    return values


def advance(
    routine: Routine | Iterable[Phase],
    pair: Pair,
    optimizers: Mapping[str, torch.optim.Optimizer],
    batches: Sequence[Sequence[Any]],
    rates: Sequence[Sequence[float]] | None = None,
) -> Tensor:
    """Take a step of the routine on each of ``batches`` and return the values of its phases, (steps, phases).

    ``batches``: for each step the batch and the further ones of ``step``. ``rates``: for each step the learning rate of
    each parameter group of each optimizer, in their order. A value is not finite where its phase, or a parameter that the
    phase has moved, is not.
    """
    check_once(routine, pair, batches[0][0])
    check_optimizers(routine, pair, optimizers)
    check_rates(optimizers, rates, len(batches))
    rows = []
    for index, (x, *more) in enumerate(batches):
        if rates is not None:
            set_rates(optimizers, rates[index])
        rows.append(torch.stack(_step(routine, pair, optimizers, x, more)))
    return torch.stack(rows)
