"""``y[mask] = x[mask]`` as a program of fixed shapes, which is ``y = torch.where(mask, x, y)``.

How many elements a mask of booleans selects depends on its values, so no engine that writes a program down has a shape for
them. Where a program changes them one by one and puts them elsewhere by the same mask, as splines do with what lies outside
of their box, it needs none: while it is written down, a selection keeps the shape of the whole, with its derivative, and its
elements outside of the mask mean nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unigen.engines.places import place_of
from unigen.engines.tape import EAGERLY
from unigen.pair import Unsupported

__all__ = ["Selections", "without_masks"]

_KEEP = ("aten.detach.default", "aten.alias.default", "aten.zeros_like.default")  # of a selection another one
_BESIDE = ("aten.new_zeros.default", "aten.new_empty.default")  # as prim.device does, these read no values
_PUT = ("aten.index_put.default", "aten.index_put_.default", "aten._index_put_impl_.default")


class Selections(TorchDispatchMode):
    """Let a program put what a mask selects elsewhere by the same mask, changed one by one, and refuse what else it does with it.

    ``fixed``: whether a mask is the same in every later run, so that it may select as it does.
    """

    def __init__(self, fixed: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.fixed = fixed
        self.selected: dict[int, tuple[Tensor, Tensor]] = {}  # by id: a selection and its mask
        self.sizes = _Sizes(self)
        self.working = False

    def __enter__(self) -> Selections:
        self.sizes.__enter__()
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.sizes.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before, self.working = self.working, True
        try:
            return self._done(func, args, kwargs or {})
        finally:
            self.working = before

    def _done(self, func: Any, args: Any, named: Any) -> Any:
        name = str(func)
        mask = self._mask(name, args)
        if mask is not None and name == "aten.index.Tensor":
            return self._select(args[0].clone(), mask)
        if mask is not None and self._alike(args[2], args[0], mask):
            return self._put(name, mask, *args)
        given = [leaf for leaf in tree_leaves((args, named)) if id(leaf) in self.selected]
        if not given or name.startswith("prim.") or name in _BESIDE:
            return func(*args, **named)
        whole, mask = self.selected[id(given[0])]
        if name not in _KEEP and not (torch.Tag.pointwise in func.tags and self._beside(whole, mask, args, named)):
            raise _refusal(name)
        return self._select(func(*args, **named), mask)

    def _beside(self, whole: Tensor, mask: Tensor, *given: Any) -> bool:
        """Whether all tensors are selections as this one, or the same for each of its elements."""
        tensors = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
        return all(
            tensor.shape == whole.shape and self.selected[id(tensor)][1] is mask
            if id(tensor) in self.selected
            else tensor.dim() <= whole.dim() - mask.dim()
            for tensor in tensors
        )

    def _mask(self, name: str, args: Any) -> Tensor | None:
        """Return the mask by which an operation selects or puts, where that is one mask that is not fixed."""
        if name != "aten.index.Tensor" and name not in _PUT:
            return None
        indices = args[1]
        if len(indices) != 1 or not isinstance(indices[0], Tensor) or indices[0].dtype != torch.bool:
            return None
        mask: Tensor = indices[0]
        return None if mask.dim() == 0 or self.fixed(mask) else mask

    def _alike(self, values: Tensor, target: Tensor, mask: Tensor) -> bool:
        """Whether values are a number, a selection by this mask, or the zeros that autograd makes in the place of one."""
        by = self.selected[id(values)][1] if id(values) in self.selected else mask
        return values.dim() == 0 or (values.shape == target.shape and by is mask)

    def _select(self, whole: Tensor, mask: Tensor) -> Tensor:
        self.selected[id(whole)] = whole, mask
        return whole

    def _put(
        self, name: str, mask: Tensor, target: Tensor, _: Any, values: Tensor, accumulate: bool = False, *more: Any
    ) -> Tensor:
        inside = mask.reshape(mask.shape + (1,) * (target.dim() - mask.dim()))
        put = torch.where(inside, target + values if accumulate else values, target)
        return target.copy_(put) if name.split(".")[1].endswith("_") else put


class _Sizes(TorchFunctionMode):
    """Refuse to tell a program the sizes of a selection, which are those of the whole."""

    def __init__(self, selections: Selections) -> None:
        super().__init__()
        self.selections = selections

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _SIZES and not self.selections.working and id(args[0]) in self.selections.selected:
            raise _refusal(func.__name__)
        return func(*args, **(kwargs or {}))


_SIZES = (
    *(getattr(Tensor, name).__get__ for name in ("shape", "ndim")), torch.numel, Tensor.numel, Tensor.nelement, Tensor.size,
    Tensor.dim, Tensor.ndimension, Tensor.stride, Tensor.__len__,
)  # fmt: skip


def _refusal(name: str) -> Unsupported:
    return Unsupported(
        f"{name} of x[mask] makes the program depend on the values of its data, which decide how many elements a mask selects, in "
        f"{place_of(sys._getframe())}; write it with torch.where, or {EAGERLY}"
    )


def without_masks(name: str, args: Any, fixed: Callable[[Tensor], bool]) -> Any:
    """Return the arguments of an operation with each fixed mask among its indices as the numbers of what it picks."""
    if name.split(".")[1] not in ("index", "index_put", "index_put_", "_unsafe_index"):
        return args
    indices: list[Any] = []
    for index in args[1]:
        masks = isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
        if masks and fixed(index):
            indices += [column.clone() for column in index.nonzero().unbind(1)]  # each a memory of its own
        else:
            indices.append(index)
    return (args[0], indices, *args[2:])
