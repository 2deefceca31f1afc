"""What a captured program has read of Python: where that changes between two calls, the program is captured anew.

A captured program runs none of the Python that made it, so a number that came from a global, a closure or an attribute is
a constant of it. ``Pair.signature`` tells of the pair's modules. Here the code of objectives and programs tells which names
it reads, and what stands there is looked up before each call: numbers and strings by value, lists, dicts and arrays by their
contents, however nested, everything else by identity. The code of libraries is taken to have constants alone. What the code
itself writes (``self.last = z``) must not count for what it computes next, and is put back after a capture.
"""

from __future__ import annotations

import dis
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import lru_cache, partial
from types import CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any, TypeVar

import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn

from unigen.engines.kept import PLAIN, Kept, Place, contents, items_of, look, parts_of
from unigen.engines.programs import RAISED
from unigen.engines.tape import EAGERLY
from unigen.pair import HOOKS, Pair, Unsupported
from unigen.phases import Phase

__all__ = ["mode_of", "settled"]

FRAMEWORKS = {"torch", "torchvision", "pyro", "numpyro", "jax", "numpy", "unigen"}
MOST_ITEMS, MOST_OBJECTS = 64, 4096  # in a longer list or dict are no objects with settings
Captured = TypeVar("Captured")
MANY = 8  # captures of one routine, after which there will be more


def mode_of(phases: tuple[Phase, ...], pair: Pair) -> int:
    """Return a number for what programs of these phases are captured with beside tensors, equal where that is equal.

    ``settled`` is to be called where one is captured.
    """
    every = pair.compiled.setdefault("readings", {})
    if phases not in every:
        every[phases] = _Readings(phases, pair)
    readings: _Readings = every[phases]
    return readings.mode()


def settled(
    phases: tuple[Phase, ...], pair: Pair, capture: Callable[[], Captured], same: Callable[[Captured, Captured], bool]
) -> Captured:
    """Return what ``capture`` gives; what changes meanwhile is changed by the programs themselves.

    Where that is something they may read, as of a program that counts its calls or keeps a running mean, the capture is made
    once more, from other numbers in the tensors that change: raises ``Unsupported`` where the two are not the ``same``, since a
    captured program keeps nothing. Tensors that the capture has left in attributes and containers are taken out again, with a
    warning for what the programs do not read.
    """
    readings: _Readings = pair.compiled["readings"][phases]
    walk = readings.walks[-1]
    kept = Kept((*walk.places, *walk.own), walk.unread)
    try:
        found = capture()
        changed = kept.changed()
        if changed:
            kept.put_others()
            again = None
            with suppress(*RAISED):  # what the first made is of no use to the second
                again = capture()
            if again is None or not same(found, again):
                raise Unsupported(
                    f"{', '.join(map(repr, changed))} changes by a call of the program, and with it what the next one computes, "
                    "where a captured program stays as it is; keep it in a registered buffer and write into that in place, as by "
                    f"copy_, or {EAGERLY}"
                )
    finally:
        undone = kept.put_back()
    told = pair.compiled.setdefault("told", {})
    new = [name for name in dict.fromkeys(undone) if name not in told]
    if new:
        told.update(dict.fromkeys(new))
        warnings.warn(
            f"a program runs only when it is captured, so {', '.join(map(repr, new))}, which it writes, is not kept up to date; "
            f"to look at it between steps, {EAGERLY}",
            stacklevel=6,
        )
    readings.after = readings.read()
    return found


class _Readings:
    """Of one routine and pair: where its code looks, and what was there when its programs were captured."""

    def __init__(self, phases: tuple[Phase, ...], pair: Pair) -> None:
        self.phases, self.pair = phases, pair
        self.walks: list[_Walk] = []  # kept, so that nothing new gets the identity of what a program was captured with
        self.modes: list[tuple[Any, ...]] = []
        self.after: tuple[Any, ...] = ()
        self.number = 0

    def read(self) -> tuple[Any, ...]:
        return (_outside(), self.pair.signature(), *(look(place.value()) for place in self.walks[-1].places))

    def mode(self) -> int:
        if not self.walks or self.read() != self.after:
            if self.walks:
                self.pair.refresh()
            self.walks.append(_Walk(self.phases, self.pair))
            self.after = self.read()
            now = (tuple(place.name for place in self.walks[-1].places), *self.after)
            numbers = self.pair.compiled.setdefault("modes", {})
            self.number = numbers.setdefault(now, len(numbers))
            if now not in self.modes:
                self.modes.append(now)
                if len(self.modes) == MANY:
                    warnings.warn(self._slow(), stacklevel=5)
        return self.number

    def _slow(self) -> str:
        (names, _, _, *before), (_, _, _, *now) = self.modes[-2:]
        changed = {repr(name): None for name, a, b in zip(names, before, now, strict=False) if a != b}
        return (
            f"{', '.join(changed) or 'what a module holds beside tensors'} changes between calls, and the programs were captured "
            f"{MANY} times, which takes long; keep it in a tensor that changes in place"
        )


def _outside() -> tuple[Any, ...]:
    """Return what a caller may have entered: automatic casts, Pyro's handlers."""
    kinds = ("cpu", "cuda")
    casts = tuple(torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) for kind in kinds)
    return *casts, *map(id, _PYRO_STACK)


@lru_cache(maxsize=4096)
def _of_library(name: str | None) -> bool:
    root = (name or "").partition(".")[0]
    file = getattr(sys.modules.get(root), "__file__", None) or ""
    return root in FRAMEWORKS or (root in sys.stdlib_module_names and root != "__main__") or "-packages" in file


def _classes(kind: type) -> Iterator[Mapping[str, Any]]:
    """Yield what the classes of users define, of a class and those above it."""
    return (vars(each) for each in kind.__mro__ if not _of_library(each.__module__))


class _Walk:
    """All that the code of phases and programs reaches by the names that it reads: ``places``.

    ``own``: those that it writes too; ``unread``: those that it only writes.
    """

    def __init__(self, phases: tuple[Phase, ...], pair: Pair) -> None:
        self.attributes: set[str] = set()  # that some code reads
        self.written: set[str] = set()
        known = -1
        while known != len(self.attributes):  # one found late may be of an object that was seen early
            known = len(self.attributes)
            self.places: list[Place] = []
            self.unread: list[Place] = []
            self.seen: dict[int, Any] = {}
            self.waiting: list[Any] = [*_PYRO_STACK, pair.guide, pair.model, *pair.modules(), *phases]
            while self.waiting and len(self.seen) < MOST_OBJECTS:
                value = self.waiting.pop()
                if not isinstance(value, (*PLAIN, Tensor)) and id(value) not in self.seen:
                    self.seen[id(value)] = value
                    self.waiting += self._parts(value)
        self.own = [place for place in self.places if place.name in self.written]
        self.places = [place for place in self.places if place.name not in self.written]

    def _parts(self, value: Any) -> Iterator[Any]:
        """Yield what a value leads to, and note the places where it is found."""
        if isinstance(value, FunctionType):
            yield from self._function(value)
        elif isinstance(value, MethodType):
            yield from (value.__func__, value.__self__)
        elif isinstance(value, partial):
            yield from (value.func, *value.args, *value.keywords.values())
        elif isinstance(value, staticmethod | classmethod):
            yield value.__func__
        elif isinstance(value, property):
            yield value.fget
        elif items_of(type(value)) is not None:  # type: ignore[arg-type]
            if len(value) <= MOST_ITEMS:
                yield from parts_of(value)
            yield from self._object(value)
        elif isinstance(value, ModuleType):
            if not _of_library(value.__name__):
                yield from self._among(vars(value), self.attributes)
        elif isinstance(value, type):
            for defined in _classes(value):
                yield from self._among(defined, self.attributes)
        else:
            yield from self._object(value)

    def _among(self, holder: Mapping[str, Any], names: set[str]) -> Iterator[Any]:
        for name in sorted(names.intersection(holder)):
            self.places.append(Place(name, holder, name))
            yield holder[name]

    def _object(self, value: Any) -> Iterator[Any]:
        if type(value).__module__.partition(".")[0] not in FRAMEWORKS:
            own = getattr(value, "__dict__", {})
            known = set(own)
            for defined in _classes(type(value)):
                yield from self._among(defined, self.attributes | {"forward", "__call__"})
                known.update(defined)
                slots = (name for name in self.attributes & set(defined) if type(defined[name]) is MemberDescriptorType)
                for place in [Place(name, defined[name], value) for name in sorted(slots)]:
                    self.places.append(place)
                    yield place.value()
            for name in sorted(self.attributes & known):
                self.places.append(Place(name, own, name))  # it may be given one in the place of its class's
                yield own.get(name)
            self.unread += [Place(name, own, name) for name in sorted(self.written - self.attributes)]
        elif is_dataclass(value):  # a phase, or what one is made of
            yield from (getattr(value, field.name, None) for field in fields(value))
        if isinstance(value, nn.Module):
            yield vars(value).get("forward")
            yield from value.children()
            for held in (
                *(getattr(value, name) for name in HOOKS),
                *(p._backward_hooks for p in value.parameters(recurse=False)),
            ):
                yield from (held or {}).values()

    def _function(self, function: FunctionType) -> Iterator[Any]:
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        yield from (function.__defaults__ or ())
        yield from (function.__kwdefaults__ or {}).values()
        if _of_library(function.__module__):
            yield from map(contents, cells.values())
            return
        self.places += [Place(name, cell) for name, cell in cells.items()]
        yield from map(contents, cells.values())
        yield from self._among(vars(function), self.attributes)
        yield from self._among(function.__globals__, self._read_by(function.__code__))

    def _read_by(self, code: CodeType) -> set[str]:
        """Return the globals that some code reads; note the attributes that it reads, by ``getattr`` too, and what it writes."""
        found: set[str] = set()
        for instruction in dis.get_instructions(code):
            name = instruction.argval
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL"):
                found.add(name)
            elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"):
                self.attributes.add(name)
            elif instruction.opname == "LOAD_CONST" and isinstance(name, str):  # as getattr(settings, "beta") reads it
                self.attributes.add(name)
            if instruction.opname in ("STORE_GLOBAL", "STORE_ATTR", "STORE_DEREF"):
                self.written.add(name)
        for part in code.co_consts:
            if isinstance(part, CodeType):
                found |= self._read_by(part)
        return found
