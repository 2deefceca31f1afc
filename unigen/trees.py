"""Trees of plain values and tensors, split into what JSON holds and named tensors, and joined again, without pickle.

A tensor becomes {"$tensor": its name}, a tuple {"$tuple": [...]}; dicts have strings as keys, numbers are finite, but in buffers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["TreeError", "pack", "unfit", "unpack"]


class TreeError(ValueError):
    """A value that no checkpoint may hold; the sentence says where it stands in the tree."""


def unfit(tensor: Tensor, buffer: bool = False) -> int:
    """Return how many numbers of a tensor no file may hold: all that are not finite, of a buffer, as a mask of -inf, NaN."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return 0
    return int((tensor.isnan() if buffer else ~tensor.isfinite()).sum())


def pack(tree: Any, tensors: dict[str, Tensor], where: str, name: str = "") -> Any:
    """Return the JSON of a tree, and put a copy of each of its tensors on the CPU into ``tensors``.

    ``where``: what the tree is called in an error. A tensor's name is the path of keys that leads to it (``name`` so far).
    Raises ``TreeError`` for a number that is not finite (in the tree "buffers", for NaN), and for a value that is neither
    plain nor a tensor.
    """
    at = f"{where}: {name}" if name else where
    if isinstance(tree, Tensor):
        return {"$tensor": _put(tree, tensors, at, name or "tensor", where == "buffers")}
    if isinstance(tree, dict):
        for key in tree:
            if not isinstance(key, str) or key.startswith("$"):
                raise TreeError(f"{at} has the key {key!r}; keys are strings that do not start with $")
        return {key: pack(part, tensors, where, _join(name, key)) for key, part in tree.items()}
    if isinstance(tree, list | tuple):
        parts = [pack(part, tensors, where, _join(name, str(index))) for index, part in enumerate(tree)]
        return parts if isinstance(tree, list) else {"$tuple": parts}
    if isinstance(tree, float) and not math.isfinite(tree):
        raise TreeError(f"{at} is {tree}, and a checkpoint holds finite numbers only")
    if tree is None or type(tree) in (bool, int, float, str):
        return tree
    raise TreeError(f"{at} is a {type(tree).__name__}; a checkpoint holds tensors, numbers, strings, lists and dicts")


def unpack(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """Return the tree whose JSON and tensors ``pack`` made; ``KeyError`` where a tensor is missing."""
    if isinstance(tree, dict):
        if "$tensor" in tree:
            return tensors[tree["$tensor"]]
        if "$tuple" in tree:
            return tuple(unpack(part, tensors) for part in tree["$tuple"])
        return {key: unpack(part, tensors) for key, part in tree.items()}
    return [unpack(part, tensors) for part in tree] if isinstance(tree, list) else tree


def _join(name: str, key: str) -> str:
    return f"{name}/{key}" if name else key


def _put(tensor: Tensor, tensors: dict[str, Tensor], at: str, name: str, buffer: bool) -> str:
    if tensor.layout is not torch.strided or tensor.is_quantized:
        derived = "; register a buffer that is derived with persistent=False" if buffer else ""
        raise TreeError(f"{at} is a {tensor.layout} tensor; a checkpoint holds dense ones{derived}")
    copy = tensor.detach().to("cpu", copy=True).contiguous()
    if bad := unfit(copy, buffer):
        what = "NaN" if buffer else "not finite"
        raise TreeError(
            f"{at} is {what} in {bad} of its {copy.numel()} entries; try a smaller learning rate, or look for bad data"
        )
    while name in tensors:  # only where a key has a slash in it
        name += "'"
    tensors[name] = copy
    return name
