"""Refuse a wrong pairing of routine and pair before the first step, in one sentence that names the site and a remedy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import constraints

from unigen.datachecks import DataError
from unigen.engines.programs import Programs, base_of, family_of
from unigen.pair import Pair, PairError
from unigen.phases import Phase, Routine

__all__ = ["check", "check_once"]


def check(routine: Routine | Iterable[Phase], pair: Pair, x: Any) -> None:
    """Try every phase on ``x`` without a step; parameters, buffers, chains and random streams stay as they are.

    Raises ``PairError`` (a ``ValueError``) with the phase and the reason: a group without parameters, a site that has no
    density, no reparameterization, no value or no per-datum shape, a network that psi lacks, a phase without gradient, a
    parameter that no phase gives one; ``DataError`` for data that are empty or not finite.
    """
    _check_routine(routine)
    data = pair.bind(x)
    _check_data(data)
    devices = {value.device for value in data.values() if isinstance(value, Tensor) and value.is_cuda}
    buffers = pair.group_buffers("theta", "phi", "psi")
    before = [buffer.clone() for buffer in buffers]
    try:
        with torch.random.fork_rng(devices=list(devices)):
            with _refusals("the pair"):
                _check_sites(pair, x)
            reached: set[int] = set()
            for number, phase in enumerate(routine, 1):
                reached |= _check_phase(phase, f"phase {number} ({phase})", pair, x)
            for _ in range(_DRAWS):
                if not _unreached(routine, pair, reached):
                    break
                for phase in routine:
                    reached |= _gradients(phase, pair, x)
            if missing := _unreached(routine, pair, reached):
                group, name = missing[0]
                raise PairError(
                    f"parameter {name!r} of {group} gets no gradient in any phase; use it in the {_PROGRAM[group]}, remove it, "
                    "or freeze it by requires_grad_(False)"
                )
    finally:
        with torch.no_grad():
            for buffer, old in zip(buffers, before, strict=True):
                buffer.copy_(old)


def _check_routine(routine: Any) -> None:
    if isinstance(routine, str) or not all(isinstance(phase, Phase) for phase in _tuple(routine)):
        raise PairError(f"a routine is a tuple of phases, such as routines.vae; got {routine!r}")


def _check_data(data: dict[str, Any]) -> None:
    """Refuse data that are no tensors, empty or not finite."""
    for name, value in data.items():
        if not isinstance(value, Tensor):
            if hasattr(value, "__len__") and not isinstance(value, str):
                raise PairError(f"data {name!r} is a {type(value).__name__}; give a torch tensor")
            continue
        if value.layout is not torch.strided or value.is_complex():
            kind = "complex" if value.is_complex() else str(value.layout).removeprefix("torch.")
            raise DataError(f"data {name!r} is a {kind} tensor; give a dense tensor of real numbers")
        if value.numel() == 0:
            raise DataError(f"data {name!r} is an empty batch, of shape {tuple(value.shape)}; give at least one datum")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value)).sum())
            raise DataError(
                f"data {name!r} has NaN or infinity in {bad} of {value.numel()} values; give finite ones, with a mask as "
                "another argument where some are missing"
            )


def _tuple(routine: Any) -> tuple[Any, ...]:
    return tuple(routine) if isinstance(routine, Iterable) else (None,)


@contextmanager
def _refusals(where: str) -> Iterator[None]:
    """Turn whatever a program raises into a ``PairError`` that says where."""
    try:
        yield
    except PairError as error:
        raise PairError(f"{where}: {error}") from None
    except torch.OutOfMemoryError:
        raise  # the machine's limit, not the pair's
    except (ValueError, RuntimeError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError) as error:
        reason = str(error).strip().split("\n")[0]
        raise PairError(f"{where} cannot run on this data: {reason or type(error).__name__}") from error


def _check_sites(pair: Pair, x: Any) -> None:
    """Compare the sites that the two programs share: one size, both discrete or neither, no value outside the support."""
    programs, data = Programs(pair), pair.bind(x)
    with torch.no_grad():
        guide, model = programs.run("guide", data), programs.run("model", data)
    for name in guide.keys() & model.keys():
        ours, theirs = guide[name].fn, model[name].fn
        if model[name].observed:
            continue
        if ours.event_shape != theirs.event_shape:
            raise PairError(
                f"site '{name}' has event shape {tuple(ours.event_shape)} in the guide and {tuple(theirs.event_shape)} in the "
                "model; give both the same size"
            )
        kinds = _support(ours), _support(theirs)
        if isinstance(base_of(ours), Delta) or kinds in (("bounded", "real"), ("bounded", "bounded")):
            continue
        if kinds[0] != kinds[1]:
            raise PairError(
                f"site '{name}' has a {kinds[1]} support in the model ({family_of(theirs)}) and a {kinds[0]} one in the guide "
                f"({family_of(ours)}); give the guide a distribution of the model's support"
            )


def _support(fn: Any) -> str:
    support = fn.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return "discrete" if support.is_discrete else "real" if support is constraints.real else "bounded"


def _check_phase(phase: Phase, where: str, pair: Pair, x: Any) -> set[int]:
    """Try one phase and return the parameters (by id) that it moves; ``where`` names it in messages."""
    for group in phase.move:
        if not pair.group(group) and not (group == "theta" and "phi" in phase.move):  # a Bayesian model may be fixed
            raise PairError(f"{where} moves {group}, but the pair has no {group} parameters; {_REMEDY[group]}")
    if phase.solve and (phase.move != ("theta",) or not hasattr(pair.model, "solve")):
        raise PairError(
            f"{where} wants the maximizer in closed form, but {type(pair.model).__name__} has no solve(draw); climb instead, "
            "such as em(closed_form=False)"
        )
    with _refusals(where):
        reached = _gradients(phase, pair, x)
    if not reached:
        raise PairError(f"{where} has no gradient along {', '.join(phase.move)}; move the group its objective reads")
    return reached


def _gradients(phase: Phase, pair: Pair, x: Any) -> set[int]:
    """Return the ids of the parameters that one draw of a phase gives a gradient, or that it sets in closed form."""
    from unigen.engines.eager import objective

    moved = pair.group(*phase.move)
    _, surrogate = objective(phase, pair, x, dry=True)
    if not surrogate.requires_grad or not moved:
        return set()
    gradients = torch.autograd.grad(surrogate, moved, allow_unused=True)
    reached = {id(parameter) for parameter, gradient in zip(moved, gradients, strict=True) if gradient is not None}
    return {id(parameter) for parameter in moved} if phase.solve and reached else reached


def _unreached(routine: Routine | Iterable[Phase], pair: Pair, reached: set[int]) -> list[tuple[str, str]]:
    """Return the (group, name) of the parameters that a routine moves without ever giving them a gradient.

    A network of psi of which no parameter is reached is one that this routine does not read, as where a pair serves several.
    """
    moved = {group for phase in routine for group in phase.move}
    missing = []
    for group in ("theta", "phi", "psi"):
        named = pair.named_group(group) if group in moved else []
        read = {name.split(".")[0] for name, parameter in named if id(parameter) in reached}
        for name, parameter in named:
            unread = group == "psi" and name.split(".")[0] not in read
            if parameter.requires_grad and id(parameter) not in reached and not unread:
                missing.append((group, name))
    return missing


_DRAWS = 30  # a program may take another branch at each draw: one of probability 1/2 is missed once in 2^31 checks
_PROGRAM = {"theta": "model", "phi": "guide", "psi": "networks"}
_REMEDY = {
    "theta": "give the model networks, or use a routine that moves the guide (vae, iwae)",
    "phi": "give the pair a guide with networks, or use a routine for explicit models (maximum_likelihood)",
    "psi": "pass psi={name: network} to the pair",
}


def check_once(routine: Routine | Iterable[Phase], pair: Pair, x: Any) -> None:
    """``check`` at the first use of a routine with a pair."""
    _check_routine(routine)
    key = tuple(routine)
    try:
        hash(key)
    except TypeError as error:
        raise PairError(f"a phase must be hashable, so its settings are tuples, not lists: {error}") from None
    if key not in pair.checked:
        check(key, pair, x)
        pair.checked.add(key)
