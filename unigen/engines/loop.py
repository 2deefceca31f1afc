"""Many steps as one JAX program: the climbs of a routine in order, the optimizers' updates, and a loop around them.

Everything that shapes the program is in a ``Plan``, by which compiled programs are found again, also for another pair of the
same structure. The number of steps is no part of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from unigen.engines.capture import Climb
from unigen.engines.lowering import FromKey, Given, run
from unigen.engines.updates import RULES

__all__ = ["AVERAGE", "Plan", "Update", "compiled"]

AVERAGE = "average."  # in a state, before the name of a parameter: its running average


@dataclass(frozen=True)
class Update:
    """How an optimizer moves one parameter: the torch class, its settings, and where its factors stand in a step's row."""

    parameter: str
    kind: type
    settings: tuple[tuple[str, Any], ...]
    factors: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """A step. ``climbs`` in order, with the number of the phase that each belongs to; ``updates`` for each climb; ``pools``:
    which pool of batches each climb takes its data from. ``given``: the noise is handed in. ``checked``: values are not
    finite where a moved parameter is not. ``seeds``: run many pairs at once, every array with a first axis of them.
    ``single``: one step, which may begin a chain. ``block``: steps between two questions whether there are more; each waits
    for a GPU.
    """

    climbs: tuple[Climb, ...]
    phases: tuple[int, ...]
    updates: tuple[tuple[Update, ...], ...]
    pools: tuple[int, ...]
    given: bool = False
    checked: bool = False
    seeds: bool = False
    single: bool = False
    decay: float | None = None  # of averaged weights
    block: int = 1


def _step(plan: Plan, state: Any, memory: Any, constants: Any, batches: Any, key: Any, factors: Any, noise: Any) -> Any:
    """Return the state and the optimizers' memory after one step, and the value of each phase before it."""
    values: dict[int, Any] = {}
    for number, climb in enumerate(plan.climbs):
        inputs = {name: state[name] for name in climb.tape.inputs if not name.startswith("data.")} | batches[number]
        source = Given(noise[number]) if plan.given else FromKey(jax.random.fold_in(key, number))
        result = run(climb.tape, inputs, constants[number][0], source)
        value, rest = result.outputs[0], result.outputs[1:]
        gradients = dict(zip(climb.moved, rest, strict=False))
        state = state | {name: result[name] for name in climb.kept}
        state |= {f"chain.{key}": end for key, end in zip(climb.chains, rest[len(climb.moved) :], strict=True)}
        for update in plan.updates[number]:
            name, rule = update.parameter, RULES[update.kind]
            numbers = tuple(factors[index].astype(state[name].dtype) for index in update.factors)
            state[name], memory[name] = rule.update(
                dict(update.settings), numbers, state[name], gradients[name], memory[name]
            )
        if plan.checked:
            value = value + 0 * sum(state[name].sum() for name in climb.moved)
        if climb.projection is not None:
            moved = {name: state[name] for name in climb.moved}
            projected = run(climb.projection, moved, constants[number][1]).outputs
            state |= dict(zip(climb.moved, projected, strict=True))
        phase = plan.phases[number]
        values[phase] = value + 0 * values[phase] if phase in values else value
    if plan.decay is not None:
        averages = {name: value for name, value in state.items() if name.startswith(AVERAGE)}
        for name, old in averages.items():
            state[name] = old + (1 - plan.decay) * (state[name.removeprefix(AVERAGE)] - old)
    return state, memory, jnp.stack(list(values.values()))


def _finite(*arrays: Any) -> Any:
    """Whether every number is finite: one sum an array, since a sum is finite only if its terms are, or huge."""
    floats = [array for array in arrays if jnp.issubdtype(array.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(array.sum()) for array in floats]).all()


@lru_cache(maxsize=64)
def compiled(plan: Plan) -> Any:
    """Return the compiled loop of a plan.

    It takes (count, state, memory, constants, pools, slots, keys, factors, noise) and returns (state, memory, values,
    whether state and values are finite).
    ``pools[p]``: batches by name, stacked; ``slots`` (steps, climbs): which of its pool a climb takes; ``keys``
    (steps, 2), ``factors`` (steps, F), ``noise``: for each climb its random results, stacked over steps.
    """

    def advance(
        count: Any, state: Any, memory: Any, constants: Any, pools: Any, slots: Any, keys: Any, factors: Any, noise: Any
    ) -> Any:
        def at(index: Any) -> Any:
            batches = [
                {name: stack[slots[index, number]] for name, stack in pools[pool].items()}
                for number, pool in enumerate(plan.pools)
            ]
            key = jax.random.wrap_key_data(keys[index], impl="threefry2x32")
            given = [[draws[index] for draws in part] for part in noise]
            return batches, key, factors[index], given

        def body(index: Any, carry: Any) -> Any:
            state, memory, values = carry
            batches, key, numbers, given = at(index)
            state, memory, row = _step(plan, dict(state), dict(memory), constants, batches, key, numbers, given)
            return state, memory, values.at[index].set(row)

        def blocked(number: Any, carry: Any) -> Any:
            def one(place: Any, carry: Any) -> Any:
                index = number * plan.block + place
                return jax.tree.map(lambda new, old: jnp.where(index < count, new, old), body(index, carry), carry)

            return jax.lax.fori_loop(0, plan.block, one, carry)

        batches, key, numbers, given = at(0)
        if plan.single:
            state, memory, row = _step(plan, dict(state), dict(memory), constants, batches, key, numbers, given)
            return state, memory, row[None], _finite(row, *state.values())
        row = jax.eval_shape(lambda: _step(plan, dict(state), dict(memory), constants, batches, key, numbers, given)[2])
        values = jnp.zeros((slots.shape[0], *row.shape), row.dtype)
        carry = (state, memory, values)
        if plan.block == 1:
            state, memory, values = jax.lax.fori_loop(0, count, body, carry)
        else:
            state, memory, values = jax.lax.fori_loop(0, (count + plan.block - 1) // plan.block, blocked, carry)
        return state, memory, values, _finite(values, *state.values())

    if plan.seeds:
        advance = jax.vmap(advance, in_axes=(None, 0, 0, 0, 0, None, 0, 0, None))
    return jax.jit(advance)
