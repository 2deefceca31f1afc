"""The update rules of torch's optimizers as tensor programs, for engines that take a phase and its update as one graph.

Each rule reads and writes the state of a ``torch.optim`` optimizer in the layout of torch, so that a run may change engines
and a checkpoint knows none. An optimizer without a rule here takes its own step after a compiled gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import optimizer as torch_optimizer
from torch.utils._pytree import tree_leaves

__all__ = ["READ", "Moments", "coarse", "hooked", "moments_of", "set_rates", "update"]

READ = "alpha betas centered dampening decoupled_weight_decay eps maximize momentum nesterov weight_decay".split()
"""The settings of a parameter group that a rule may read, beside the learning rate."""


class Moments(NamedTuple):
    """What the rule of one parameter group of an optimizer needs: fixed settings, and tensors that change in place.

    ``rule``: its name with every setting but the learning rate. ``parameters``: those of the group. ``steps``: the number
    of updates taken, a tensor a parameter. ``state``: by name a tensor a parameter.
    """

    rule: tuple[Any, ...]
    parameters: list[Tensor]
    steps: list[Tensor]
    state: dict[str, list[Tensor]]


def hooked(optimizer: Any) -> bool:
    """Say whether something of the caller's runs before, after or in the place of each step of a torch optimizer.

    Torch's schedulers put a wrapper there, which notes the step and runs it.
    """
    own = vars(optimizer).get("step")
    scheduled = hasattr(own, "_wrapped_by_lr_sched") and getattr(own, "__wrapped__", None) is type(optimizer).step
    hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    everywhere = torch_optimizer._global_optimizer_pre_hooks or torch_optimizer._global_optimizer_post_hooks
    return bool(hooks or everywhere or (own is not None and not scheduled))


def set_rates(optimizers: Mapping[str, torch.optim.Optimizer], rates: Sequence[float]) -> None:
    """Give the parameter groups of the optimizers, in their order, a learning rate each."""
    parts = [part for optimizer in optimizers.values() for part in optimizer.param_groups]
    for part, lr in zip(parts, rates, strict=True):
        part["lr"] = float(lr)


def coarse(part: dict[str, Any]) -> bool:
    """Say whether torch computes Adam's factors with fewer digits than the weights have: those of a tensor in its settings."""
    factors = (part["lr"], *part["betas"], part["weight_decay"]) if "betas" in part and not part.get("fused") else ()
    kinds = {factor.dtype for factor in factors if isinstance(factor, Tensor)}
    return any(torch.promote_types(kind, own.dtype) != kind for kind in kinds for own in part["params"])


def _rule_of(optimizer: torch.optim.Optimizer, part: dict[str, Any]) -> tuple[Any, ...] | None:
    kind = type(optimizer)
    fixed = tree_leaves([part[name] for name in READ if name in part])
    moving = any(isinstance(number, Tensor) for number in fixed)  # whose value may change in its place
    if hooked(optimizer) or part.get("maximize") or part.get("differentiable") or moving or coarse(part):
        return None
    if kind in (torch.optim.Adam, torch.optim.AdamW) and not part["amsgrad"]:
        decoupled = bool(part.get("decoupled_weight_decay", kind is torch.optim.AdamW))
        return ("Adam", *part["betas"], part["eps"], part["weight_decay"], decoupled)
    if kind is torch.optim.RMSprop and not part["momentum"] and not part["centered"]:
        return ("RMSprop", part["alpha"], part["eps"], part["weight_decay"])
    if kind is torch.optim.SGD and not part["dampening"]:
        return ("SGD", part["momentum"], part["nesterov"], part["weight_decay"])
    return None


_STATE = {"Adam": ("exp_avg", "exp_avg_sq"), "RMSprop": ("square_avg",), "SGD": ()}


def moments_of(optimizer: torch.optim.Optimizer, part: dict[str, Any]) -> Moments | None:
    """Return what ``update`` needs for one of ``optimizer.param_groups``, or None where there is no rule for it.

    State that torch would make at the first step is made here, as torch makes it, and its mark of a step, for schedulers.
    """
    rule = _rule_of(optimizer, part)
    if rule is None:
        return None
    optimizer._opt_called = True  # type: ignore[attr-defined]
    names = ("momentum_buffer",) if rule[0] == "SGD" and rule[1] else _STATE[rule[0]]
    counted = rule[0] != "SGD"
    for parameter in part["params"]:
        state = optimizer.state[parameter]
        if counted and "step" not in state:
            device = parameter.device if part.get("fused") or part.get("capturable") else "cpu"
            state["step"] = torch.zeros((), device=device)
        for name in names:
            if state.get(name) is None:  # 0 is where a first momentum of torch's SGD comes out as the gradient
                state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    states = [optimizer.state[parameter] for parameter in part["params"]]
    steps = [state["step"] for state in states] if counted else []
    return Moments(rule, list(part["params"]), steps, {name: [state[name] for state in states] for name in names})


def update(
    rule: tuple[Any, ...],
    lr: Tensor,
    step: Tensor | None,
    parameter: Tensor,
    gradient: Tensor,
    state: dict[str, Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the parameter after one descent along ``gradient``, and its new state, by the rule of torch's optimizer.

    ``lr``: (), float64. ``step``: (), the number of updates, this one included, for rules that count them.
    """
    lr = lr.to(torch.float64)
    if rule[0] == "Adam":
        _, beta1, beta2, eps, decay, decoupled = rule
        if decay and decoupled:
            parameter = parameter * (1 - lr * decay).to(parameter.dtype)
        elif decay:
            gradient = gradient + decay * parameter
        count = step.to(torch.float64)  # type: ignore[union-attr]
        first = torch.lerp(state["exp_avg"], gradient, 1 - beta1)
        second = state["exp_avg_sq"] * beta2 + (1 - beta2) * (gradient * gradient)
        size = (lr / (1 - beta1**count)).to(parameter.dtype)
        root = torch.sqrt(1 - beta2**count).to(parameter.dtype)
        moved = parameter - size * (first / (second.sqrt() / root + eps))
        return moved, {"exp_avg": first, "exp_avg_sq": second}
    if rule[0] == "RMSprop":
        _, alpha, eps, decay = rule
        if decay:
            gradient = gradient + decay * parameter
        square = state["square_avg"] * alpha + (1 - alpha) * (gradient * gradient)
        return parameter - lr.to(parameter.dtype) * (gradient / (square.sqrt() + eps)), {"square_avg": square}
    _, momentum, nesterov, decay = rule
    if decay:
        gradient = gradient + decay * parameter
    if not momentum:
        return parameter - lr.to(parameter.dtype) * gradient, {}
    buffer = state["momentum_buffer"] * momentum + gradient
    direction = gradient + momentum * buffer if nesterov else buffer
    return parameter - lr.to(parameter.dtype) * direction, {"momentum_buffer": buffer}
