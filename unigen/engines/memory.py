"""The memory of one run: which value of the tape each tensor holds, through views and writes in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unigen.engines.operations import find, functional_name
from unigen.engines.places import Places
from unigen.engines.tape import EAGERLY, ELSEWHERE, Node, Ref, Shape, frozen
from unigen.pair import Unsupported

__all__ = ["Memory", "shares"]


@dataclass
class _Store:
    """A piece of memory: how often it was written to, and its latest value as its first tensor sees it."""

    keep: Any
    origin: str  # the name of the input that owns it, "" for what the run made, else why it must not be written
    own: bool = True
    version: int = 0


@dataclass
class _Seen:
    """A tensor of the run: its value, as of a version of its store, and how it is viewed from ``parent``."""

    tensor: Tensor
    store: _Store
    value: int
    version: int = 0
    parent: _Seen | None = None
    view: tuple[str, tuple[Any, ...], dict[str, Any], int] | None = None


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_nested


def _not_dense(tensor: Tensor, what: str) -> Unsupported:
    kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
    return Unsupported(f"{what} is a {kind} tensor, where the xla engine has dense ones alone; {EAGERLY}")


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # type: ignore[no-any-return]


def _geometry(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.stride(), tensor.storage_offset(), tensor.dtype


class Memory:
    """The values of a run so far, by the tensors that hold them, and the operations and constants that made them.

    ``static``: the values that no input changes. ``outside``: the tensors that the run found and did not make.
    """

    def __init__(self, inputs: Mapping[str, Tensor], fixed: Sequence[str]) -> None:
        self.places = Places()
        self.shapes: list[Shape] = []
        self.nodes: list[Node] = []
        self.constants: dict[int, Tensor] = {}
        self.outside: list[tuple[Tensor, int]] = []
        self.static: set[int] = set()
        self.seen: dict[int, _Seen] = {}
        self.stores: dict[int, tuple[_Store, _Seen]] = {}
        self.inputs: dict[str, _Seen] = {}
        self.first: dict[str, int] = {}
        for name, tensor in inputs.items():
            if id(tensor) not in self.seen:
                if not _is_dense(tensor):
                    raise _not_dense(tensor, f"'{name}'")
                self.new(tensor, _Store(tensor.untyped_storage(), f"'{name}'", own=name not in fixed))
            self.inputs[name] = self.seen[id(tensor)]
            self.first[name] = self.inputs[name].value

    def number(self, tensor: Tensor) -> int:
        """Return the number of a new value, of the tensor's shape."""
        self.shapes.append(Shape(tuple(tensor.shape), tensor.dtype))
        return len(self.shapes) - 1

    def new(self, tensor: Tensor, store: _Store | None = None) -> _Seen:
        """Take a tensor that an operation made, in memory of its own."""
        if not _is_dense(tensor):
            raise _not_dense(tensor, f"a result of {self.places.here()}")
        store = store or _Store(tensor.untyped_storage(), "")
        seen = _Seen(tensor, store, self.number(tensor), store.version)
        self.seen[id(tensor)] = seen
        self.stores.setdefault(_storage(tensor), (store, seen))
        return seen

    def constant(self, tensor: Tensor, own: bool = False) -> _Seen:
        """Take a tensor that no operation of the run made for a constant."""
        if not _is_dense(tensor):
            raise _not_dense(tensor, f"a tensor that {self.places.here()} reads")
        known = self.stores.get(_storage(tensor))
        if known is not None and tensor.numel():
            store, root = known
            if _geometry(tensor) != _geometry(root.tensor):
                raise Unsupported(
                    f"{self.places.here()} reads a view, made before, of a tensor of the run; make the view where it is used, "
                    f"or {ELSEWHERE}"
                )
            seen = _Seen(tensor, store, self.read(root), store.version, root, ("aten.alias", (), {}, 0))
            self.seen[id(tensor)] = seen
            return seen
        seen = self.new(tensor, _Store(tensor.untyped_storage(), "a tensor that is no buffer of the pair", own=own))
        if not own:
            self.outside.append((tensor, tensor._version))  # itself: here a detached one counts its own writes
        # what was made for the run may be written to: a copy
        self.constants[seen.value] = tensor.detach().clone() if own else tensor.detach()
        self.static.add(seen.value)
        return seen

    def settled(self, tensor: Tensor) -> int:
        """Return the number of a new value, which is a constant: what the tensor holds now."""
        number = self.number(tensor)
        self.constants[number] = tensor.detach().clone()
        self.static.add(number)
        return number

    def find(self, tensor: Tensor) -> _Seen:
        """Return what is known of a tensor; one that is not is a constant."""
        return self.seen.get(id(tensor)) or self.constant(tensor)

    def read(self, seen: _Seen) -> int:
        """Return the number of the tensor's latest value."""
        if seen.version != seen.store.version:
            if seen.parent is not None and seen.view is not None:
                name, arguments, named, index = seen.view
                seen.value = self.emit(name, (Ref(self.read(seen.parent)), *arguments), named, seen.tensor, index)
            seen.version = seen.store.version
        return seen.value

    def write(self, seen: _Seen, value: int) -> None:
        """Give a tensor a new value, and with it the memory that it views."""
        if not seen.store.own:
            raise Unsupported(
                f"{self.places.here()} writes in place to {seen.store.origin}; write to a copy, or {ELSEWHERE}"
            )
        if seen.parent is not None and seen.view is not None:
            name, arguments, named, index = seen.view
            parent = self.read(seen.parent)
            back = (Ref(parent), Ref(value), name, arguments, tuple(named.items()), index)
            self.write(seen.parent, self.emit("unigen.write_view", back, {}, seen.parent.tensor))
        else:
            seen.store.version += 1
        seen.value, seen.version = value, seen.store.version

    def emit(self, name: str, arguments: Any, named: Any, like: Tensor, index: int = 0) -> int:
        """Add an operation and return the number of its result, of the shape of ``like``; ``index``: which of several."""
        number = self.number(like)
        results = (-1,) * index + (number,)
        node = Node(name, frozen(tuple(arguments)), frozen(tuple(named.items())), results, where=self.places.here())
        self.nodes.append(node)
        if all(ref in self.static for ref in node.refs()):
            self.static.add(number)
        return number

    def view(self, name: str, tensor: Tensor, source: Tensor, rest: Any, named: Any, index: int) -> None:
        """Take a tensor for what the operation shows of ``source``; ``index``: which of its results."""
        parent = self.find(source)
        if name == "aten.as_strided.default":  # it counts in memory: say how the source lies there
            sizes, strides, *offset = rest
            start = offset[0] if offset and offset[0] is not None else source.storage_offset()
            name, named = "unigen.strided", {}
            rest = (sizes, strides, start, source.stride(), source.storage_offset())
        if name == "aten.unbind.int":  # each piece by itself, else a loop over n rows would cut n * n of them
            name, rest, named, index = "aten.select.int", (rest[0] if rest else 0, index), {}, 0
        number = self.emit(name, (Ref(self.read(parent)), *rest), named, tensor, index)
        view = (name, tuple(rest), dict(named), index)
        self.seen[id(tensor)] = _Seen(tensor, parent.store, number, parent.store.version, parent, view)

    def view_in_place(self, name: str, tensor: Tensor, rest: Any) -> Tensor:
        """``t.squeeze_()`` and the like: the same tensor, seen otherwise from now on."""
        parent = self.find(tensor)
        if name.startswith(("aten.detach_", "aten.requires_grad_")):
            return tensor
        before = replace(parent)
        view: tuple[str, tuple[Any, ...], dict[str, Any], int] = (functional_name(name), tuple(rest), {}, 0)
        if find(view[0]) is None:
            raise Unsupported(f"{name} changes a tensor's shape in place, in {self.places.here()}; {ELSEWHERE}")
        number = self.emit(view[0], (Ref(self.read(before)), *rest), {}, tensor)
        self.seen[id(tensor)] = _Seen(tensor, parent.store, number, parent.store.version, before, view)
        return tensor


def shares(one: Any, other: Tensor) -> bool:
    """Whether two tensors lie in the same memory; False where ``one`` is none."""
    if not isinstance(one, Tensor) or not _is_dense(one) or not _is_dense(other):
        return False
    return one.numel() > 0 and _storage(one) == _storage(other)
