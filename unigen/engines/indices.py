"""``x[k]`` for a tensor k of one number, whose value torch would read: a program that is written down chooses the element then.

What torch returns there is a view of x. Here it is a copy, so that a program that writes to it is refused, and so is one that
writes to x and reads the copy afterwards.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import EllipsisType, NoneType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unigen.engines.places import place_of
from unigen.engines.tape import EAGERLY
from unigen.pair import Unsupported

__all__ = ["Indices"]


class Indices(TorchDispatchMode):
    """Let a program index by tensors of one number, and refuse what would show that the result is no view.

    ``fixed``: whether such a tensor is the same in every later run, so that torch may read it.
    """

    def __init__(self, fixed: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.indexing = _Indexing(self)
        self.fixed = fixed
        self.copies: dict[int, tuple[Tensor, Tensor]] = {}  # by their memory, with what each is a copy of
        self.stale: set[int] = set()

    def __enter__(self) -> Indices:
        self.indexing.__enter__()
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.indexing.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if self.copies:
            written = _memories((args[:1], named.get("out"))) if func._schema.is_mutable else set()
            if written & self.copies.keys() or _memories((args, named)) & self.stale:
                raise Unsupported(
                    f"the program writes to x[k], or to x before it reads x[k], for a tensor k of one number, in "
                    f"{place_of(sys._getframe())}; write it with torch.where, or {EAGERLY}"
                )
            self.stale |= {copy for copy, (_, x) in self.copies.items() if _memory(x) in written}
        return func(*args, **named)

    def take(self, x: Tensor, indices: tuple[Any, ...]) -> Tensor:
        """Return ``x[indices]``."""
        taken = x
        for place, index in enumerate(indices):
            if _is_number(index):
                before = indices[:place]
                if any(other is Ellipsis for other in before):
                    dim = x.dim() - sum(map(_dimensions, indices[place:]))
                else:
                    dim = sum(map(_dimensions, before))
                chosen = index.reshape(1).to(x.device, torch.int64)
                taken = taken.index_select(dim, torch.where(chosen < 0, chosen + x.shape[dim], chosen))
        self.copies[_memory(taken)] = taken, x
        return taken[tuple(0 if _is_number(index) else index for index in indices)]


class _Indexing(TorchFunctionMode):
    def __init__(self, indices: Indices) -> None:
        super().__init__()
        self.indices = indices

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__ and isinstance(args[0], Tensor):
            indices = args[1] if isinstance(args[1], tuple) else (args[1],)
            read = [index for index in indices if _is_number(index) and not self.indices.fixed(index)]
            if read and all(isinstance(index, _KINDS) for index in indices):
                return self.indices.take(args[0], indices)
        return func(*args, **(kwargs or {}))


_KINDS = (int, slice, Tensor, NoneType, EllipsisType)
_MASKS = (torch.bool, torch.uint8)


def _is_number(index: Any) -> bool:
    whole = isinstance(index, Tensor) and not (index.is_floating_point() or index.dtype in _MASKS)
    return whole and index.dim() == 0


def _dimensions(index: Any) -> int:
    """Return how many dimensions of a tensor an index takes."""
    if isinstance(index, Tensor) and index.dtype in _MASKS:
        return index.dim()
    return 0 if index is None or index is Ellipsis or isinstance(index, bool) else 1


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # type: ignore[no-any-return]


def _memories(tree: Any) -> set[int]:
    return {_memory(leaf) for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}
