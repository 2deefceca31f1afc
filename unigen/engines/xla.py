"""The xla engine: the same Pyro programs, captured once a phase and run as one JAX program of many steps.

A phase becomes a tape of torch operations (``capture``), a tape a JAX function (``lowering``), a routine a loop of steps with
its optimizers (``loop``, ``updates``). After each call of ``advance`` parameters, buffers, chains and the optimizers' states
are in their torch tensors again. Fresh noise comes from one key a step, drawn from torch's global stream on the CPU, so that
it does not depend on how steps are gathered into calls. What cannot be expressed is refused before the first step.

Python runs once: whatever a program reads beside its parameters, buffers and data (an attribute, a global) is a constant of
it, and it is captured anew where that has changed (``readings``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy
import torch
from torch import Tensor

from unigen.engines.arrays import constants_of, halves, noise_of, pooled, seen
from unigen.engines.capture import Climb, buffers, capture_phase
from unigen.engines.checks import check_once, check_optimizers, check_rates
from unigen.engines.loop import AVERAGE, Plan, Update, compiled
from unigen.engines.lowering import precision
from unigen.engines.moves import Optimizers, Part, count_steps, factors, memories, named, settings
from unigen.engines.moves import parts as parts_of
from unigen.engines.programs import shapes_of
from unigen.engines.readings import mode_of, settled
from unigen.engines.tape import ELSEWHERE
from unigen.engines.updates import rule_of
from unigen.pair import Pair, Unsupported
from unigen.phases import Phase, Routine

__all__ = ["CHUNK", "advance", "advance_many"]

CHUNK = 1000  # the steps of a call of ``advance`` by ``fit``
# by JAX's platform: the steps between two questions to the host whether there are more, and the bytes of batches in a call
BLOCK = defaultdict(lambda: 32, cpu=1)
MOST_BYTES = defaultdict(lambda: 2**28, cpu=2**27)


# -- one step: which climbs, on which batches --------------------------------------------------------------------------


class _Step(NamedTuple):
    """One step: its climbs, the number of the phase of each, which of the step's batches each takes, the shapes of those,
    and whether the next step is like it (a persistent chain begins but once).
    """

    climbs: list[Climb]
    phases: list[int]
    places: list[int]
    shapes: tuple[Any, ...]
    lasting: bool


def _steps(phases: tuple[Phase, ...], pair: Pair, batches: Sequence[Sequence[Mapping[str, Any]]]) -> list[_Step]:
    """Return what a step on each of the batches is, from the pair's chains as they are."""
    mode = mode_of(phases, pair)
    found: list[_Step] = []
    before: Any = None
    for mine in batches:
        shapes = tuple(map(shapes_of, mine))
        found.append(found[-1] if shapes == before else _step(phases, pair, mine, shapes, mode))
        before = shapes
    return found


def _step(phases: tuple[Phase, ...], pair: Pair, batches: Sequence[Any], shapes: tuple[Any, ...], mode: int) -> _Step:
    """Return the climbs of one step, captured or remembered."""
    before = shapes_of(pair.chains)
    steps, known = pair.compiled.setdefault("xla steps", {}), pair.compiled.setdefault("xla", {})
    if (phases, shapes, before, mode) in steps:
        step: _Step = steps[phases, shapes, before, mode]
        if not any(climb.stale for climb in step.climbs):
            return step
    chains, more = dict(pair.chains), len(batches) - 1
    climbs, numbers, places = [], [], []
    for number, phase in enumerate(phases):
        for repetition in range(phase.steps):
            place = 1 + (repetition - 1) % more if repetition and more else 0
            key = (phase, shapes[place], shapes_of(chains), mode)
            if key not in known or known[key][0].stale:
                captured = partial(capture_phase, phase, pair, batches[place], chains)
                known[key] = settled(phases, pair, captured, lambda one, other: one[0].same(other[0]))
            climb, ends = known[key]
            chains |= ends
            climbs.append(climb)
            numbers.append(number)
            places.append(place)
    taken = tuple(shapes[place] for place in places)
    step = _Step(climbs, numbers, places, taken, before == shapes_of(chains))
    steps[phases, shapes, before, mode] = step
    return step


def _plan(step: _Step, parts: list[Part], given: bool, seeds: bool, decay: float | None, block: int) -> Plan:
    shapes = list(dict.fromkeys(step.shapes))
    updates: list[list[Update]] = [[] for _ in step.climbs]
    column = 0
    for part in parts:
        rule = rule_of(part.optimizer)
        width = len(rule.factors(part.group, 0.0, 1))
        for climb in part.climbs:
            columns = tuple(range(column, column + width))
            fixed = settings(part.group)
            updates[climb] += [Update(name, type(part.optimizer), fixed, columns) for name in part.names]
            column += width
    return Plan(
        tuple(climb.bare() for climb in step.climbs),
        tuple(step.phases),
        tuple(map(tuple, updates)),
        tuple(shapes.index(shape) for shape in step.shapes),
        given,
        any(climb.projection is not None for climb in step.climbs),
        seeds,
        not step.lasting,
        decay,
        block,
    )


# -- the engine --------------------------------------------------------------------------------------------------------


class _Run(NamedTuple):
    """One of the pairs that advance together."""

    pair: Pair
    optimizers: Optimizers
    batches: Sequence[Sequence[Any]]
    rates: Sequence[Sequence[float]] | None
    keys: Tensor


def advance(
    routine: Routine | Iterable[Phase],
    pair: Pair,
    optimizers: Optimizers,
    batches: Sequence[Sequence[Any]],
    rates: Sequence[Sequence[float]] | None = None,
    *,
    noise: Sequence[Sequence[Tensor]] | None = None,
) -> Tensor:
    """Take a step of the routine on each of ``batches`` and return the values of its phases, (steps, phases).

    As ``unigen.engines.eager.advance``. ``noise``: for tests, for each step what the random operations of an eager step
    return, in their order (``unigen.engines.surroundings.Draws``), in the place of fresh noise.

    Raises ``Unsupported`` (a ``PairError``) before the first step for what this engine cannot express.
    """
    keys = torch.randint(0, 2**62, (len(batches),))
    return _advance(tuple(routine), [_Run(pair, optimizers, batches, rates, keys)], noise)[0]


def advance_many(
    routine: Routine | Iterable[Phase],
    pairs: Sequence[Pair],
    optimizers: Sequence[Optimizers],
    batches: Sequence[Sequence[Sequence[Any]]],
    rates: Sequence[Sequence[Sequence[float]]] | None = None,
    *,
    keys: Sequence[Tensor] | None = None,
) -> Tensor:
    """Advance several pairs of one structure in one program and return their values, (pairs, steps, phases).

    Everything is a sequence over the pairs of what ``advance`` takes. ``keys``: for each pair one int64 key a step, drawn
    from the pair's own stream, ``torch.randint(0, 2**62, (steps,))``; by default from the global one, pair after pair.

    Raises ``Unsupported`` where the pairs, their optimizers or their batches differ in more than numbers.
    """
    if not len(pairs) == len(optimizers) == len(batches) or len({len(part) for part in batches}) > 1:
        raise ValueError("advance_many takes optimizers and equally many batches for each pair")
    if keys is None:
        keys = [torch.randint(0, 2**62, (len(part),)) for part in batches]
    runs = [
        _Run(pair, optimizers[i], batches[i], None if rates is None else rates[i], keys[i])
        for i, pair in enumerate(pairs)
    ]
    return _advance(tuple(routine), runs, None, seeds=True)


def _advance(phases: tuple[Phase, ...], runs: Sequence[_Run], noise: Any, seeds: bool = False) -> Tensor:
    batches = [[[run.pair.bind(batch) for batch in step] for step in run.batches] for run in runs]
    for run in runs:
        _refuse(phases, run)
    count, done, values = len(batches[0]), 0, []
    while done < count:
        # of all, before the first: a shape may be refused
        each = (_steps(phases, run.pair, part[done:]) for run, part in zip(runs, batches, strict=True))
        steps = list(zip(*each, strict=True))
        first = steps[0]
        if any(step.shapes != first[0].shapes for step in first):
            raise Unsupported(f"the batches of several pairs have different shapes at step {done}; {ELSEWHERE}")
        device = _device(runs[0].pair)
        size = sum(v.nbytes for batch in batches[0][done] for v in batch.values() if isinstance(v, Tensor))
        most = MOST_BYTES[device.platform]
        rows = max(1, min(CHUNK, most // max(1, size * len(runs)))) if first[0].lasting else 1
        end = done + 1
        while end < min(count, done + rows) and all(a is b for a, b in zip(steps[end - done], first, strict=True)):
            end += 1
        with precision(), jax.default_device(device):
            now = [part[done:end] for part in batches]
            given = None if noise is None else noise[done:end]
            values.append(_run(runs, first, now, done, rows, given, seeds))
        done = end
    return torch.cat(values, 1) if values else torch.zeros(len(runs), 0, len(phases))


def _refuse(phases: tuple[Phase, ...], run: _Run) -> None:
    """Raise before the first step for what no step could do."""
    if run.batches:
        check_once(phases, run.pair, run.batches[0][0])
    check_optimizers(phases, run.pair, run.optimizers)
    check_rates(run.optimizers, run.rates, len(run.batches))
    for optimizer in run.optimizers.values():
        rule_of(optimizer)


def _device(pair: Pair) -> Any:
    tensors = [*named(pair).values(), *buffers(pair).values()]
    kinds = {tensor.device.type for tensor in tensors} or {"cpu"}
    kind = "gpu" if kinds == {"cuda"} else next(iter(kinds)) if len(kinds) == 1 else "mixed"
    try:
        return jax.devices(kind)[0]
    except RuntimeError:
        raise Unsupported(
            f"the pair lies on {', '.join(sorted(kinds))}, where this JAX has no device; {ELSEWHERE}"
        ) from None


def _run(
    runs: Sequence[_Run], steps: Sequence[_Step], batches: Any, start: int, rows: int, noise: Any, seeds: bool
) -> Tensor:
    """Take a step on each of ``batches``, at most ``rows``, in one call, and put what they made into the torch tensors."""
    count = len(batches[0])
    parts = [parts_of(run.pair, run.optimizers, step.climbs) for run, step in zip(runs, steps, strict=True)]
    plan, loop, checked = _loop(runs, steps, parts, noise is not None, seeds)
    held = [_held(run.pair) for run in runs]
    state = {name: seen([tensors[name] for tensors in held], seeds) for name in held[0]}
    remembered_by = [memories(run.pair, part) for run, part in zip(runs, parts, strict=True)]
    memory = {
        name: tuple(seen(list(same), seeds) for same in zip(*(m[name] for m in remembered_by), strict=True))
        for name in remembered_by[0]
    }
    pools, slots = pooled(batches, steps[0].places, plan.pools, rows, seeds)
    keys = numpy.stack([halves(run.keys[start : start + count], rows) for run in runs])
    ahead = [None if run.rates is None else run.rates[start : start + count] for run in runs]
    numbers_of = numpy.stack([factors(part, rates, count, rows) for part, rates in zip(parts, ahead, strict=True)])
    constants = [
        [constants_of([step.climbs[number] for step in steps], which, seeds) for which in (False, True)]
        for number in range(len(plan.climbs))
    ]
    given = [[] for _ in plan.climbs] if noise is None else noise_of(steps[0].climbs, noise, rows)
    numbers = (keys, numbers_of) if seeds else (keys[0], numbers_of[0])
    arguments = (numpy.int32(count), state, memory, constants, pools, slots, *numbers, given)
    ended, remembered, values, finite = loop(*arguments)
    if not plan.checked and not numpy.all(finite):  # run again, to tell which step and phase it was
        _, _, values, _ = checked()(*arguments)
    values = torch.from_dlpack(values).clone()
    made = {name: torch.from_dlpack(array) for name, array in ended.items()}
    moments = {name: [torch.from_dlpack(array) for array in arrays] for name, arrays in remembered.items()}
    with torch.no_grad():
        for index, (run, tensors) in enumerate(zip(runs, held, strict=True)):
            for name, new in made.items():
                mine = new[index] if seeds else new
                if name.startswith("chain."):
                    run.pair.chains[name.removeprefix("chain.")] = mine.clone()
                else:
                    tensors[name].copy_(mine)
            for name, tensors_of in remembered_by[index].items():
                for old, new in zip(tensors_of, moments[name], strict=True):
                    old.copy_(new[index] if seeds else new)
            count_steps(run.pair, run.optimizers, parts[index], count, ahead[index])
    return (values if seeds else values[None])[:, :count]


def _loop(runs: Sequence[_Run], steps: Sequence[_Step], parts: Sequence[list[Part]], given: bool, seeds: bool) -> Any:
    """Return the plan, its compiled loop, and a function that returns the loop that checks every step.

    A plan is large, and compared only where the climbs or the optimizers are new to the first pair.
    """
    decays = [None if run.pair.averages is None else run.pair.averages.decay for run in runs]
    cheap = tuple(
        (tuple(map(id, step.climbs)), step.lasting, step.shapes, decay)
        + tuple((part.place, part.climbs, tuple(part.names), settings(part.group)) for part in mine)
        for step, mine, decay in zip(steps, parts, decays, strict=True)
    )
    known = runs[0].pair.compiled.setdefault("xla loops", {})
    if (cheap, given, seeds) not in known:
        block = BLOCK[_device(runs[0].pair).platform]
        plans = [
            _plan(step, mine, given, seeds, decay, block)
            for step, mine, decay in zip(steps, parts, decays, strict=True)
        ]
        if any(plan != plans[0] for plan in plans):
            raise Unsupported(f"the pairs differ in more than the numbers in them, so no program fits all; {ELSEWHERE}")
        plan = plans[0]
        keep = [step.climbs for step in steps]  # so that no other climb gets their ids
        known[cheap, given, seeds] = (plan, compiled(plan), lambda: compiled(replace(plan, checked=True))), keep
    return known[cheap, given, seeds][0]


def _held(pair: Pair) -> dict[str, Tensor]:
    """Return all that the steps of a pair may read or change, by the names of ``capture``."""
    averages = {} if pair.averages is None else pair.averages.weights
    held = named(pair) | buffers(pair) | {f"chain.{key}": chain for key, chain in pair.chains.items()}
    return held | {f"{AVERAGE}{name}": average for name, average in averages.items()}
