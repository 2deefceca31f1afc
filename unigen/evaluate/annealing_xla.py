"""Annealed importance sampling as one JAX program: ``transition`` is recorded once, lowered, and looped over distributions.

The recorded transition is that of ``unigen.evaluate.annealing``, with its gradients and its random operations; nothing of
it is written twice. Its noise comes from a key drawn from torch's stream on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy
import torch
from torch import Tensor

from unigen.engines.lowering import FromKey, check_lowers, precision, run
from unigen.engines.recorder import capture
from unigen.engines.tape import Tape
from unigen.pair import Unsupported

__all__ = ["Move", "record", "sweep"]

Move = Callable[..., tuple[tuple[Tensor, ...], Tensor]]
"""(state, b, step, scale) to the next state and the acceptance rate (S, N): a transition, in torch."""

CALL = 50  # distributions of one call, between which a bar moves
NAMES = ("u", "log_start", "log_joint")


def record(move: Move, state: tuple[Tensor, ...], step: Tensor, scale: Tensor) -> Tape:
    """Return a transition as a tape; ``Unsupported`` where it cannot be lowered."""
    tensors = [*state, state[0].new_tensor(0.5), step, scale]
    inputs = {name: t.detach().clone() for name, t in zip((*NAMES, "b", "step", "scale"), tensors, strict=True)}

    def once() -> list[Tensor]:
        *now, b, step, scale = inputs.values()
        after, rate = move(tuple(now), b, step, scale)
        return [*after, rate]

    device = state[0].device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        tape = capture(once, inputs, list(inputs))
    check_lowers(tape)
    return tape


def sweep(
    tape: Tape, state: tuple[Tensor, ...], grid: Tensor, steps: Tensor, scales: Tensor, reverse: bool, bar: Any
) -> tuple[Tensor, float]:
    """Return log w (S, N), float64, and the mean acceptance of a run through the distributions.

    ``grid``: b_0 to b_T, float64. ``steps`` (T, N), ``scales`` (T, d). ``reverse``: from b_T to b_0.
    """
    count, key = len(steps), int(torch.randint(0, 2**62, ()))
    try:
        device = jax.devices("gpu" if state[0].is_cuda else "cpu")[0]
    except RuntimeError:
        raise Unsupported("the pair lies on a GPU, and this JAX has none; anneal with engine='eager'") from None
    program = _program(tape.bare(), reverse)
    with precision(), jax.default_device(device):
        now = tuple(_array(tensor) for tensor in state)
        carry = (now, jnp.zeros(now[1].shape, jnp.float64), jnp.zeros((), now[1].dtype))
        fixed = (
            {number: _array(tensor) for number, tensor in tape.constants.items()},
            *(_array(tensor) for tensor in (grid, steps, scales)),
            jax.random.key(key, impl="threefry2x32"),
        )
        for first in range(0, count, CALL):
            last = min(count, first + CALL)
            carry = jax.block_until_ready(program(first, last, carry, *fixed))
            bar.update(last - first)
        _, log_weight, total = carry
        return torch.tensor(numpy.asarray(log_weight), device=state[0].device), float(total) / count


@lru_cache(maxsize=8)
def _program(tape: Tape, reverse: bool) -> Any:
    """Return the compiled loop over distributions of a transition, whatever its data."""

    @jax.jit
    def many(first: Any, last: Any, carry: Any, constants: Any, grid: Any, steps: Any, scales: Any, key: Any) -> Any:
        def moved(now: Any, t: Any) -> Any:
            inputs = dict(zip(NAMES, now, strict=True)) | {"b": grid[t].astype(now[0].dtype)}
            inputs |= {"step": steps[t - 1], "scale": scales[t - 1]}
            *after, rate = run(tape, inputs, constants, FromKey(jax.random.fold_in(key, t))).outputs
            return tuple(after), rate.mean()

        def gained(now: Any, t: Any) -> Any:
            return (grid[t] - grid[t - 1]) * (now[2].astype(jnp.float64) - now[1].astype(jnp.float64))

        def turn(index: Any, carry: Any) -> Any:
            now, log_weight, total = carry
            if reverse:
                t = len(steps) - index
                now, rate = moved(now, t)
                return now, log_weight + gained(now, t), total + rate
            after, rate = moved(now, index + 1)
            return after, log_weight + gained(now, index + 1), total + rate

        return jax.lax.fori_loop(first, last, turn, carry)

    return many


def _array(tensor: Tensor) -> Any:
    return jnp.array(tensor.detach().cpu().numpy())
