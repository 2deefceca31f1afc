"""Refuse a wrong pairing of routine and pair before the first step, in one sentence that names the site and a remedy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from unigen.pair import Pair, PairError
from unigen.phases import Phase, Routine

__all__ = ["check", "check_once"]


def check(routine: Routine | Iterable[Phase], pair: Pair, x: Any) -> None:
    """Try every phase on ``x`` without a step; parameters, buffers, chains and random streams stay as they are.

    Raises ``PairError`` (a ``ValueError``) with the phase and the reason: a group without parameters, a site that has no
    density, no reparameterization, no value or no per-datum shape, a network that psi lacks, a phase without gradient.
    """
    from unigen.engines.eager import objective

    devices = {value.device for value in pair.bind(x).values() if isinstance(value, Tensor) and value.is_cuda}
    buffers = pair.group_buffers("theta", "phi", "psi")
    before = [buffer.clone() for buffer in buffers]
    try:
        with torch.random.fork_rng(devices=list(devices)):
            for number, phase in enumerate(routine, 1):
                _check_phase(phase, f"phase {number} ({phase})", pair, x)
    finally:
        with torch.no_grad():
            for buffer, old in zip(buffers, before, strict=True):
                buffer.copy_(old)


def _check_phase(phase: Phase, where: str, pair: Pair, x: Any) -> None:
    """Try one phase; ``where`` names it in messages."""
    from unigen.engines.eager import objective

    for group in phase.move:
        if not pair.group(group):
            raise PairError(f"{where} moves {group}, but the pair has no {group} parameters; {_REMEDY[group]}")
    if phase.solve and (phase.move != ("theta",) or not hasattr(pair.model, "solve")):
        raise PairError(
            f"{where} wants the maximizer in closed form, but {type(pair.model).__name__} has no solve(draw); climb instead, "
            "such as em(closed_form=False)"
        )
    try:
        _, surrogate = objective(phase, pair, x, dry=True)
        moved = pair.group(*phase.move)
        gradients = torch.autograd.grad(surrogate, moved, allow_unused=True) if surrogate.requires_grad else (None,)
    except PairError as error:
        raise PairError(f"{where}: {error}") from None
    except torch.OutOfMemoryError:
        raise  # the machine's limit, not the pair's
    except (ValueError, RuntimeError, TypeError, LookupError, AttributeError, AssertionError, StopIteration) as error:
        reason = str(error).strip().split("\n")[0]
        raise PairError(f"{where} cannot run on this pair: {reason or type(error).__name__}") from error
    if all(gradient is None for gradient in gradients):
        raise PairError(f"{where} has no gradient along {', '.join(phase.move)}; move the group its objective reads")


_REMEDY = {
    "theta": "give the model networks",
    "phi": "give the pair a guide with networks, or use a routine for explicit models (maximum_likelihood)",
    "psi": "pass psi={name: network} to the pair",
}


def check_once(routine: Routine | Iterable[Phase], pair: Pair, x: Any) -> None:
    """``check`` at the first use of a routine with a pair."""
    key = tuple(routine)
    if key not in pair.checked:
        check(key, pair, x)
        pair.checked.add(key)
