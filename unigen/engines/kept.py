"""What stands in a place of Python: in a form that can be compared between two calls, and put back after a capture."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from functools import lru_cache
from itertools import islice
from types import CellType, MemberDescriptorType
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

__all__ = ["PLAIN", "Kept", "Place", "contents", "items_of", "look", "parts_of"]

PLAIN = (bool, int, float, complex, str, bytes, type(None), numpy.generic, torch.dtype, torch.device, torch.Size)
MOST_NUMBERS = 2**14  # of more, in an array or in nested lists and dicts, a sample is compared
MOST_PUT_BACK = 4096  # a longer list or dict is data
NOTHING = object()  # stands where nothing does


class Place(NamedTuple):
    """Where something stands: at a ``key`` of a dict, in a cell, or in one of the ``__slots__`` of ``key``."""

    name: str
    holder: Any
    key: Any = None

    def value(self, default: Any = None) -> Any:
        """Return what stands there, or the default where a dict has no such key."""
        if type(self.holder) is CellType:
            return contents(self.holder)
        if type(self.holder) is MemberDescriptorType:
            return getattr(self.key, self.name, None)
        return self.holder.get(self.key, default)

    def put(self, value: Any) -> None:
        """Let a value stand there, or nothing where it is ``NOTHING``."""
        if type(self.holder) is CellType:
            self.holder.cell_contents = value
        elif type(self.holder) is MemberDescriptorType:
            setattr(self.key, self.name, value)
        elif value is NOTHING:
            del self.holder[self.key]
        elif isinstance(self.holder, MutableMapping):  # what a class has is not put back
            self.holder[self.key] = value


@lru_cache(maxsize=4096)
def items_of(kind: type) -> Callable[[Any], Iterable[tuple[Any, Any]]] | None:
    """Return the function that lists what a container of this kind holds; None for what is no container."""
    if issubclass(kind, Mapping):
        return kind.items
    return enumerate if issubclass(kind, list | tuple | deque | set | frozenset) and kind is not torch.Size else None


def look(value: Any, most: int = MOST_NUMBERS) -> Any:
    """Return a value in a form that can be compared: of a container what it holds, of more than ``most`` a sample."""
    if isinstance(value, PLAIN):
        return type(value), value
    items = items_of(type(value)) if most else None  # type: ignore[arg-type]
    if items is not None:
        number = len(value)
        picked = islice(items(value), 0, None, 1 + number // most)
        return type(value), number, tuple((key, look(part, most // (number + 1))) for key, part in picked)
    if isinstance(value, numpy.ndarray):
        return value.dtype, value.shape, value.ravel()[:: 1 + value.size // MOST_NUMBERS].tobytes()
    if isinstance(value, Tensor) and value.layout is torch.strided and type(value) is Tensor:
        return "object", id(value), value.data_ptr()
    return "object", id(value)


class Kept:
    """What stands in places and in the containers there, to see and to undo what a capture does to it.

    ``read``: places that the programs may read; ``unread``: those that they only write.
    """

    def __init__(self, read: Iterable[Place], unread: Iterable[Place]) -> None:
        self.read = [(place, place.value(NOTHING)) for place in read]
        self.unread = [(place, place.value(NOTHING)) for place in unread]
        self.containers: dict[int, tuple[str, Any, Any]] = {}  # with what they held
        waiting = [(place.name, value) for place, value in (*self.read, *self.unread)]
        while waiting:
            name, value = waiting.pop()
            mapping = isinstance(value, MutableMapping)
            changes = mapping or isinstance(value, list | deque)
            if changes and len(value) <= MOST_PUT_BACK and id(value) not in self.containers:
                self.containers[id(value)] = name, value, dict(value) if mapping else list(value)
                self.read += [(Place(name, value, key), part) for key, part in (value.items() if mapping else ())]
                waiting += [(name, part) for part in parts_of(value)]
        self.looked = [look(value) for _, value in self.read]

    def changed(self) -> list[str]:
        """Return the names of what is not what it was, of what the programs may read."""
        now = [look(place.value(NOTHING)) for place, _ in self.read]
        return list(dict.fromkeys(p.name for (p, _), a, b in zip(self.read, self.looked, now, strict=True) if a != b))

    def put_others(self) -> None:
        """Let other numbers stand where a tensor is new, like those before, so that a program which reads them computes
        something else; take out what a dict had not, as of one that remembers results.
        """
        for place, value in self.read:
            if type(value) is Tensor and place.value() is not value:
                place.put((value.detach() == 0).to(value.dtype))
        for _, holder, before in self.containers.values():
            for key in list(holder) if isinstance(before, dict) else ():
                if key not in before and _is_made(holder[key]):
                    del holder[key]

    def put_back(self) -> list[str]:
        """Put back what stood where tensors or objects are new; return the names of containers, and of what is only written."""
        undone = []
        for name, holder, before in self.containers.values():
            known = set(map(id, parts_of(before)))
            if any(id(part) not in known and _is_made(part) for part in parts_of(holder)):
                holder.clear()
                (holder.update if isinstance(holder, MutableMapping) else holder.extend)(before)
                undone.append(name)
        for places in (self.read, self.unread):
            for place, value in places:
                if place.value(NOTHING) is not value and _is_made(place.value()):
                    place.put(value)
                    undone += [place.name] if places is self.unread else []
        return undone


def parts_of(container: Any) -> Iterable[Any]:
    """Return the values of a mapping, or what another container holds."""
    return container.values() if isinstance(container, Mapping) else container


def contents(cell: CellType) -> Any:
    """Return what a variable of an enclosing function is, None where it is not assigned yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _is_made(value: Any) -> bool:
    """Whether something is, holds or may hold a tensor."""
    return not all(isinstance(leaf, PLAIN) for leaf in tree_leaves(value))
