"""Update rules of optimizers, as torch's optimizers compute them and on their state: Adam, AdamW, RMSprop, SGD.

Whatever depends on the number of a step alone is computed on the host in double precision, as torch does (``factors``); the
rest is one line of arithmetic a tensor (``update``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import torch

from unigen.engines.rules import coarse, hooked
from unigen.engines.tape import ELSEWHERE
from unigen.pair import Unsupported

__all__ = ["RULES", "Rule", "rule_of"]

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Rule:
    """One optimizer. ``memory(settings)``: the names of its state, tensors like the parameter. ``factors(settings, lr, step)``:
    numbers of a step (counted from 1). ``update(settings, factors, parameter, gradient, memory)``: the new parameter and memory.
    """

    memory: Callable[[Settings], tuple[str, ...]]
    factors: Callable[[Settings, float, int], tuple[float, ...]]
    update: Callable[[Settings, Any, Any, Any, tuple[Any, ...]], tuple[Any, tuple[Any, ...]]]
    counts: bool = True  # whether torch keeps the number of steps


def _signed(settings: Settings, gradient: Any) -> Any:
    return -gradient if settings.get("maximize") else gradient


# -- Adam (Kingma & Ba 2015), AdamW (Loshchilov & Hutter 2019) ---------------------------------------------------------


def _adam_factors(settings: Settings, lr: float, step: int) -> tuple[float, ...]:
    one, two = settings["betas"]
    return lr / (1 - one**step), (1 - two**step) ** 0.5, 1 - lr * settings["weight_decay"]


def _adam(settings: Settings, factors: Any, p: Any, gradient: Any, memory: tuple[Any, ...]) -> Any:
    mean, square = memory
    size, root, kept = factors
    (one, two), decay = settings["betas"], settings["weight_decay"]
    g = _signed(settings, gradient)
    if decay and settings.get("decoupled_weight_decay"):
        p = p * kept
    elif decay:
        g = g + decay * p
    mean = mean + (1 - one) * (g - mean)
    square = two * square + (1 - two) * g * g
    return p - size * mean / (jnp.sqrt(square) / root + settings["eps"]), (mean, square)


# -- RMSprop (Tieleman & Hinton 2012) ----------------------------------------------------------------------------------


def _rmsprop_memory(settings: Settings) -> tuple[str, ...]:
    momentum = ("momentum_buffer",) if settings["momentum"] > 0 else ()
    return ("square_avg", *momentum, *(("grad_avg",) if settings["centered"] else ()))


def _rmsprop(settings: Settings, factors: Any, p: Any, gradient: Any, memory: tuple[Any, ...]) -> Any:
    (lr,), state = factors, dict(zip(_rmsprop_memory(settings), memory, strict=True))
    g, alpha = _signed(settings, gradient), settings["alpha"]
    if settings["weight_decay"]:
        g = g + settings["weight_decay"] * p
    state["square_avg"] = average = alpha * state["square_avg"] + (1 - alpha) * g * g
    if settings["centered"]:
        state["grad_avg"] = centre = state["grad_avg"] + (1 - alpha) * (g - state["grad_avg"])
        average = average - centre * centre
    move = g / (jnp.sqrt(average) + settings["eps"])
    if settings["momentum"] > 0:
        state["momentum_buffer"] = move = settings["momentum"] * state["momentum_buffer"] + move
    return p - lr * move, tuple(state.values())


# -- stochastic gradient descent ---------------------------------------------------------------------------------------


def _sgd_factors(settings: Settings, lr: float, step: int) -> tuple[float, ...]:
    return lr, 1.0 if step == 1 else 1 - settings["dampening"]  # the first gradient enters the momentum undamped


def _sgd(settings: Settings, factors: Any, p: Any, gradient: Any, memory: tuple[Any, ...]) -> Any:
    lr, undamped = factors
    g = _signed(settings, gradient)
    if settings["weight_decay"]:
        g = g + settings["weight_decay"] * p
    if not settings["momentum"]:
        return p - lr * g, ()
    momentum = settings["momentum"] * memory[0] + undamped * g
    return p - lr * (g + settings["momentum"] * momentum if settings["nesterov"] else momentum), (momentum,)


ADAM = Rule(lambda settings: ("exp_avg", "exp_avg_sq"), _adam_factors, _adam)

RULES: dict[type[torch.optim.Optimizer], Rule] = {
    torch.optim.Adam: ADAM,
    torch.optim.AdamW: ADAM,
    torch.optim.RMSprop: Rule(_rmsprop_memory, lambda settings, lr, step: (lr,), _rmsprop),
    torch.optim.SGD: Rule(
        lambda settings: ("momentum_buffer",) if settings["momentum"] else (), _sgd_factors, _sgd, counts=False
    ),
}
"""The rules by torch's class."""


def rule_of(optimizer: torch.optim.Optimizer) -> Rule:
    """Return an optimizer's rule; ``Unsupported`` for another class (subclasses too), ``amsgrad``, settings as coarse tensors,
    or a step not torch's own.
    """
    rule = RULES.get(type(optimizer))
    if rule is None:
        known = ", ".join(kind.__name__ for kind in RULES)
        raise Unsupported(f"the xla engine has no optimizer {type(optimizer).__name__}, only {known}; {ELSEWHERE}")
    if any(group.get("amsgrad") for group in optimizer.param_groups):
        raise Unsupported(f"the xla engine has no amsgrad; {ELSEWHERE}")
    if any(map(coarse, optimizer.param_groups)):
        name = type(optimizer).__name__
        raise Unsupported(
            f"{name} has a tensor of fewer digits than its weights among its settings, and computes by them; the xla engine does "
            f"not: give a float or a tensor of the weights' dtype, or {ELSEWHERE}"
        )
    if hooked(optimizer):
        raise Unsupported(
            f"the xla engine runs no hooks of {type(optimizer).__name__}.step, nor another in its place; {ELSEWHERE}"
        )
    return rule
