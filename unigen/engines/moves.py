"""How torch optimizers move a pair's parameters: their state before a call, their numbers a step, their state after it.

The rules are in ``unigen.engines.updates``; here they meet torch's parameter groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from unigen.engines.capture import Climb, parameters
from unigen.engines.rules import READ, set_rates
from unigen.engines.updates import Rule, rule_of
from unigen.pair import Pair

__all__ = ["Optimizers", "Part", "count_steps", "factors", "memories", "named", "parts", "settings"]

Optimizers = Mapping[str, torch.optim.Optimizer]
"""A torch optimizer by parameter group."""


class Part(NamedTuple):
    """The parameters of one torch parameter group that are updated together: in which climbs, and from which step on."""

    optimizer: torch.optim.Optimizer
    place: int  # among all parameter groups
    group: dict[str, Any]
    climbs: tuple[int, ...]
    start: int
    names: list[str]


def named(pair: Pair) -> dict[str, Tensor]:
    """Return the parameters by name, walking the pair's modules once."""
    found: dict[str, Tensor] = pair.compiled.setdefault("xla parameters", {}) or parameters(pair)
    pair.compiled["xla parameters"] = found
    return found


def parts(pair: Pair, optimizers: Optimizers, all_climbs: Sequence[Climb]) -> list[Part]:
    """Return how the optimizers move the parameters in one step, and give each parameter the state it starts from."""
    names = {id(parameter): name for name, parameter in named(pair).items()}
    found: dict[tuple[Any, ...], Part] = {}
    place = 0
    for which, optimizer in optimizers.items():
        rule = rule_of(optimizer)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = names.get(id(parameter), "")
                climbs = tuple(
                    number
                    for number, climb in enumerate(all_climbs)
                    if name.startswith(f"{which}.") and name in climb.gradients
                )
                if not climbs:
                    continue
                state = _state(optimizer, parameter, group)
                start = int(state["step"]) if rule.counts else int(state.get("momentum_buffer") is not None)
                for memory in rule.memory(group):
                    if state.get(memory) is None:
                        state[memory] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                key = (place, climbs, start)
                found.setdefault(key, Part(optimizer, place, group, climbs, start, [])).names.append(name)
            place += 1
    return list(found.values())


def _state(optimizer: torch.optim.Optimizer, parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of a parameter as torch's optimizer starts it; an SGD without momentum has none."""
    rule = rule_of(optimizer)
    if not rule.counts and not rule.memory(group):
        return {}
    state: dict[str, Any] = optimizer.state[parameter]
    if rule.counts and not state:
        fused = bool(group.get("fused")) or bool(group.get("capturable"))
        wide = torch.get_default_dtype() == torch.float64 and not fused
        device = parameter.device if fused else None
        state["step"] = torch.zeros((), dtype=torch.float64 if wide else torch.float32, device=device)
    return state


def settings(group: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Return the numbers of a parameter group that the rules read, by name: whatever else is in it makes no other program."""
    found = {name: group[name] for name in READ if name in group}
    return tuple((name, tuple(map(float, v)) if name == "betas" else float(v)) for name, v in found.items())


def factors(parts: list[Part], rates: Sequence[Sequence[float]] | None, count: int, rows: int) -> Any:
    """Return the numbers that depend on the step alone, (rows, F), of which ``count`` rows are used."""
    columns = [numpy.zeros((rows, 0))]
    for part in parts:
        lrs = (float(part.group["lr"]),) * count if rates is None else tuple(float(row[part.place]) for row in rates)
        numbers = _numbers(rule_of(part.optimizer), settings(part.group), lrs, part.start, len(part.climbs))
        columns.append(numpy.concatenate([numbers, numpy.zeros((rows - count, numbers.shape[1]))]))
    return numpy.concatenate(columns, 1)


@lru_cache(maxsize=8)  # groups, and pairs that advance together, often have the same
def _numbers(rule: Rule, group: tuple[tuple[str, Any], ...], lrs: tuple[float, ...], start: int, turns: int) -> Any:
    named, count = dict(group), len(lrs)
    numbers = [rule.factors(named, lrs[i // turns], start + i + 1) for i in range(count * turns)]
    return numpy.reshape(numbers, (count, -1))


def memories(pair: Pair, parts: list[Part]) -> dict[str, list[Tensor]]:
    """Return the optimizers' state by parameter, in the order of its rule."""
    tensors = named(pair)
    return {
        name: [part.optimizer.state[tensors[name]][memory] for memory in rule_of(part.optimizer).memory(part.group)]
        for part in parts
        for name in part.names
    }


def count_steps(
    pair: Pair, optimizers: Optimizers, parts: list[Part], count: int, rates: Sequence[Sequence[float]] | None
) -> None:
    """Leave the optimizers' numbers of steps and learning rates as torch would, and its mark of a step, for schedulers."""
    tensors = named(pair)
    for part in parts:
        part.optimizer._opt_called = True  # type: ignore[attr-defined]
        if rule_of(part.optimizer).counts:
            for name in part.names:
                part.optimizer.state[tensors[name]]["step"] += count * len(part.climbs)
    if rates is not None:
        set_rates(optimizers, rates[-1])
