"""The table of operations: the name of a torch operation, and the JAX function that means the same.

A function takes what the operation takes, JAX arrays in the place of tensors, and returns an array or a tuple of them; the
interpreter (``unigen.engines.lowering``) casts each to the dtype that torch gave it, and refuses another shape. An operation
that writes in place has no entry of its own: it means its functional form, whose result takes the place of what was written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import torch
from torch import Tensor

__all__ = ["TABLE", "Operation", "find", "functional_name", "jax_dtype", "numpy_of", "operation"]

Function = Callable[..., Any]


@dataclass(frozen=True)
class Operation:
    """What an operation means. ``writes``: the positions of arguments whose new values follow its results. ``random``: the
    function takes a key and the shape and dtype of its result before the operation's own arguments.
    """

    function: Function
    writes: tuple[int, ...] = ()
    random: bool = False


TABLE: dict[str, Operation] = {}
"""The entries by name, ``"aten.mul"``, or with an overload where overloads differ, ``"aten.pow.Scalar"``."""


def operation(*names: str, writes: tuple[int, ...] = (), random: bool = False) -> Callable[[Function], Function]:
    """Enter a function under the names of torch operations (without ``aten.``)."""

    def enter(function: Function) -> Function:
        for name in names:
            TABLE[name if name.startswith("unigen.") else f"aten.{name}"] = Operation(function, writes, random)
        return function

    return enter


def functional_name(name: str) -> str:
    """Return the operation that makes what this one writes: ``aten.add_.Tensor`` -> ``aten.add.Tensor``.

    >>> functional_name("aten.add_.Tensor"), functional_name("aten.add.out")
    ('aten.add.Tensor', 'aten.add.out')
    """
    space, kind, *overload = name.split(".")
    if kind.endswith("_") and not kind.endswith("__"):
        kind = kind[:-1]
    return ".".join((space, kind, *overload))


def find(name: str) -> Operation | None:
    """Return the entry of an operation, its in-place form included, or None."""
    functional = functional_name(name)
    return TABLE.get(functional) or TABLE.get(functional.rsplit(".", 1)[0])


def jax_dtype(dtype: Any) -> Any:
    """Return JAX's dtype for torch's, of 32 bits where JAX has no 64 switched on."""
    name = str(dtype).removeprefix("torch.")
    return jax.dtypes.canonicalize_dtype(jnp.dtype(_RENAMED.get(name, name)))


def numpy_of(tensor: Tensor) -> Any:
    """Return a tensor of the CPU as numpy's array over the same memory, bfloat16, which torch does not give to numpy, too."""
    if tensor.dtype is torch.bfloat16:
        return tensor.detach().contiguous().view(torch.int16).numpy().view(jnp.bfloat16)
    return tensor.detach().numpy()


_RENAMED = {"float": "float32", "double": "float64", "long": "int64", "int": "int32", "half": "float16"}
