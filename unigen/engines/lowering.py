"""Lowering: a tape of torch operations (``unigen.engines.tape``) as a pure JAX function, by the table of operations.

``lower(function, *example)`` does it for any deterministic torch function; its derivative is the one that torch recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from unigen.engines.operations import find
from unigen.engines.operations.table import jax_dtype, numpy_of
from unigen.engines.recorder import capture
from unigen.engines.tape import ELSEWHERE, Node, Ref, Shape, Tape
from unigen.pair import Unsupported

__all__ = ["FromKey", "Given", "Result", "check_lowers", "lower", "precision", "run", "to_jax"]


def precision(double: bool = True) -> Any:
    """Return a context in which JAX has 64-bit numbers (or not), without a change of its global configuration."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(double)
    from jax import experimental  # JAX before 0.8

    return experimental.enable_x64(double)  # type: ignore[attr-defined]


def to_jax(tensor: Tensor) -> Any:
    """Return a copy of a tensor as a JAX array, of 32 bits where 64 are switched off."""
    return jax.device_put(numpy.array(numpy_of(tensor.cpu()), dtype=jax_dtype(tensor.dtype)))


# -- noise -------------------------------------------------------------------------------------------------------------


class FromKey:
    """Fresh noise: the random operation number i of a tape draws with the key folded with i."""

    def __init__(self, key: Any) -> None:
        self.key = key

    def draw(self, node: Node, shape: Shape, arguments: Any, named: Any) -> Any:
        entry = find(node.name)
        if entry is None or node.draw is None:
            raise _no_entry(node)
        key = jax.random.fold_in(self.key, node.draw)
        return entry.function(key, shape.sizes, jax_dtype(shape.dtype), *arguments, **named)


class Given:
    """Noise given from outside: what each random operation of the tape returns, in their order."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.values = values

    def draw(self, node: Node, shape: Shape, arguments: Any, named: Any) -> Any:
        return self.values[node.draw or 0]


# -- the interpreter ---------------------------------------------------------------------------------------------------


def _no_entry(node: Node) -> Unsupported:
    return Unsupported(f"the xla engine has no operation {node.name}, which {node.where} needs; {ELSEWHERE}")


def check_lowers(tape: Tape) -> None:
    """Raise ``Unsupported`` if an operation that a result needs has no entry in the table."""
    for node in tape.live():
        entry = find(node.name)
        if entry is None or entry.random != (node.draw is not None):
            raise _no_entry(node)


class Result(dict[str, Any]):
    """The new values of the inputs that a tape writes to, by name; ``outputs`` are its results."""

    outputs: list[Any]


def run(tape: Tape, inputs: Mapping[str, Any], constants: Mapping[int, Any], noise: Any = None) -> Result:
    """Evaluate a tape on JAX arrays: its inputs by name, its constants by number, its noise from ``FromKey`` or ``Given``."""
    values: dict[int, Any] = {tape.inputs[name]: inputs[name] for name in tape.inputs}
    values.update({number: jnp.asarray(constant) for number, constant in constants.items()})
    for node in tape.live():
        entry = find(node.name)
        if entry is None:
            raise _no_entry(node)
        arguments = tree_map(lambda leaf: values[leaf.number] if isinstance(leaf, Ref) else leaf, node.arguments)
        named = {name: values[leaf.number] if isinstance(leaf, Ref) else leaf for name, leaf in node.named}
        if node.draw is not None:
            if noise is None:
                raise Unsupported(
                    f"{node.where} draws random numbers ({node.name}), and the function has no source of them"
                )
            made = noise.draw(node, tape.shapes[node.results[0]], arguments, named)
        else:
            try:
                made = entry.function(*arguments, **named)
            except NotImplementedError as error:
                raise Unsupported(f"the xla engine has no {error}, which {node.where} needs; {ELSEWHERE}") from None
        parts = made if isinstance(made, tuple | list) else (made,)
        for number, part in zip(node.results, parts, strict=False):
            if number >= 0:
                values[number] = None if part is None else _checked(node, part, tape.shapes[number])
    result = Result({name: values[number] for name, number in tape.written.items()})
    result.outputs = [None if number is None else values[number] for number in tape.outputs]
    return result


def _checked(node: Node, value: Any, shape: Shape) -> Any:
    value = jnp.asarray(value)
    if value.shape != shape.sizes:
        raise Unsupported(
            f"{node.name} of {node.where} has shape {value.shape} in JAX and {shape.sizes} in torch; {ELSEWHERE}"
        )
    return value.astype(jax_dtype(shape.dtype))


# -- functions ---------------------------------------------------------------------------------------------------------


def lower(function: Callable[..., Tensor], *example: Tensor) -> Callable[..., Any]:
    """Return ``function`` as a JAX function of arrays with the shapes and dtypes of ``example``.

    The function takes tensors and returns one tensor, the same at each call. The result can be jitted, vmapped and
    differentiated once in reverse mode; its gradient is torch's own, with every ``detach`` and ``no_grad``.

    Raises ``Unsupported`` for an operation that has no entry, for random numbers, and for results that depend on data.

    >>> log_density = lower(lambda z: -z.square().sum() / 2, torch.zeros(3))
    >>> jax.grad(log_density)(jnp.ones(3)).tolist()
    [-1.0, -1.0, -1.0]
    """
    leaves = [tensor.detach().clone() for tensor in example]
    names = [f"argument {index}" for index in range(len(leaves))]
    floating = [leaf.is_floating_point() for leaf in leaves]
    with torch.enable_grad():
        forward = capture(lambda: [function(*leaves)], dict(zip(names, leaves, strict=True)), names)
        live = [leaf.requires_grad_() for leaf, floats in zip(leaves, floating, strict=True) if floats]
        result = function(*leaves)
        tapes = [forward]
        if result.requires_grad:
            cotangent = torch.ones_like(result)
            inputs = dict(zip([*names, "cotangent"], [*leaves, cotangent], strict=True))

            def derivative() -> Sequence[Tensor | None]:
                y = function(*leaves)
                return [y, *torch.autograd.grad(y, live, cotangent, allow_unused=True)]

            tapes.append(capture(derivative, inputs, list(inputs)))
    for tape in tapes:
        check_lowers(tape)
    # numpy, not JAX: an array of JAX belongs to the precision that it was made in
    constants = [{n: numpy_of(t.cpu()).copy() for n, t in tape.constants.items()} for tape in tapes]

    def value(*arguments: Any) -> Any:
        return run(tapes[0], _bound(arguments), constants[0]).outputs[0]

    def _bound(arguments: Sequence[Any]) -> dict[str, Any]:
        bound = {}
        for name, argument, leaf in zip(names, arguments, leaves, strict=True):
            array = jnp.asarray(argument)
            if array.shape != tuple(leaf.shape):
                raise ValueError(f"{name} has shape {array.shape}; the function was lowered for {tuple(leaf.shape)}")
            bound[name] = array.astype(jax_dtype(leaf.dtype))
        return bound

    lowered = jax.custom_vjp(value)

    def ahead(*arguments: Any) -> Any:
        return value(*arguments), arguments

    def back(arguments: Any, cotangent: Any) -> Any:
        if len(tapes) == 1:
            gradients: list[Any] = []
        else:
            gradients = run(tapes[1], _bound(arguments) | {"cotangent": cotangent}, constants[1]).outputs[1:]
        found = iter(gradients)
        slopes = []
        for argument, floats in zip(arguments, floating, strict=True):
            slope = next(found, None) if floats else numpy.zeros(jnp.shape(argument), jax.dtypes.float0)
            slopes.append(jnp.zeros_like(argument) if slope is None else slope)
        return tuple(slopes)

    lowered.defvjp(ahead, back)
    return lowered
