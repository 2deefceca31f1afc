"""The tape of one run of a torch function: the list of the operations that torch carried out.

The function runs for real, once, below autograd, so a tape holds what torch did and nothing else: gradients that the function
asks for are part of it, as torch's own derivatives, after every ``detach`` and ``no_grad``. A tape is in single-assignment
form: a write in place makes a new value, and views of what was written are taken anew when they are read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions, decomposition_table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from unigen.engines.operations import find, functional_name
from unigen.engines.surroundings import plainly
from unigen.pair import Unsupported

__all__ = ["Node", "Ref", "Shape", "Tape", "capture"]

ELSEWHERE = "use engine='eager' or engine='compiled'"


@dataclass(frozen=True)
class Ref:
    """A value of a tape, by number."""

    number: int


@dataclass(frozen=True)
class Shape:
    """The shape and dtype of a value."""

    sizes: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Node:
    """One operation: its name in the table, its arguments with ``Ref`` for tensors, the values it makes, and its place."""

    name: str
    arguments: tuple[Any, ...]
    named: tuple[tuple[str, Any], ...]
    results: tuple[int, ...]
    draw: int | None = None  # which of the tape's random draws it makes
    where: str = field(default="", compare=False)

    def refs(self) -> list[int]:
        """Return the numbers of the values that it reads."""
        return [leaf.number for leaf in tree_leaves((self.arguments, self.named)) if isinstance(leaf, Ref)]


@dataclass(eq=False)
class Tape:
    """The operations of one run. ``inputs``, ``outputs``, ``written`` (the last value of each input that was written to)
    and ``constants`` are numbers of values; ``draws`` are the results of the random operations, in their order. ``outside``:
    the tensors that the run found and did not make, with their versions.
    """

    shapes: list[Shape]
    nodes: list[Node]
    inputs: dict[str, int]
    outputs: list[int | None]
    written: dict[str, int]
    constants: dict[int, Any]
    draws: list[Tensor]
    outside: list[tuple[Tensor, int]] = field(default_factory=list)

    @property
    def stale(self) -> bool:
        """Whether a tensor from outside that the run took for a constant has been written to since."""
        return any(tensor._version != version for tensor, version in self.outside)

    @cached_property
    def key(self) -> tuple[Any, ...]:
        """All of the tape but the values of its constants and draws: tapes of one key compute the same function."""
        return (
            tuple(self.shapes), tuple(self.live()), tuple(self.inputs.items()), tuple(self.outputs),
            tuple(self.written.items()), tuple(self.constants),
        )  # fmt: skip

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tape) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def bare(self) -> Tape:
        """Return the tape without the constants' values, which are then handed to each evaluation."""
        return replace(self, constants=dict.fromkeys(self.constants), draws=[], outside=[])

    def live(self) -> list[Node]:
        """Return the operations that an output or a written input needs."""
        wanted = {number for number in self.outputs if number is not None} | set(self.written.values())
        kept = []
        for node in reversed(self.nodes):
            if wanted.intersection(node.results):
                kept.append(node)
                wanted.update(node.refs())
        return kept[::-1]


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


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # type: ignore[no-any-return]


def _geometry(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.stride(), tensor.storage_offset(), tensor.dtype


@cache
def _decompositions() -> Mapping[Any, Callable[..., Any]]:
    """Return what torch itself writes in terms of other operations; to collect it takes a while."""
    return {**decomposition_table, **core_aten_decompositions()}


class _Recorder(TorchDispatchMode):
    """Write down every operation below autograd while it runs."""

    def __init__(self, inputs: Mapping[str, Tensor], fixed: Sequence[str]) -> None:
        super().__init__()
        self.shapes: list[Shape] = []
        self.nodes: list[Node] = []
        self.constants: dict[int, Tensor] = {}
        self.draws: list[Tensor] = []
        self.outside: list[tuple[Tensor, int]] = []
        self.static: set[int] = set()
        self.seen: dict[int, _Seen] = {}
        self.stores: dict[int, tuple[_Store, _Seen]] = {}
        self.places: dict[int, str] = {}  # by autograd's sequence number, for the derivatives
        self.inputs: dict[str, _Seen] = {}
        self.first: dict[str, int] = {}
        for name, tensor in inputs.items():
            if id(tensor) not in self.seen:
                self._new(tensor, _Store(tensor.untyped_storage(), f"'{name}'", own=name not in fixed))
            self.inputs[name] = self.seen[id(tensor)]
            self.first[name] = self.inputs[name].value

    # -- values --

    def _number(self, tensor: Tensor) -> int:
        self.shapes.append(Shape(tuple(tensor.shape), tensor.dtype))
        return len(self.shapes) - 1

    def _new(self, tensor: Tensor, store: _Store | None = None) -> _Seen:
        store = store or _Store(tensor.untyped_storage(), "")
        seen = _Seen(tensor, store, self._number(tensor), store.version)
        self.seen[id(tensor)] = seen
        self.stores.setdefault(_storage(tensor), (store, seen))
        return seen

    def _constant(self, tensor: Tensor, own: bool = False) -> _Seen:
        """Take a tensor that no operation of the run made for a constant."""
        known = self.stores.get(_storage(tensor))
        if known is not None and tensor.numel():
            store, root = known
            if _geometry(tensor) != _geometry(root.tensor):
                raise Unsupported(
                    f"{self.place()} reads a view, made before, of a tensor of the run; make the view where it is used, "
                    f"or {ELSEWHERE}"
                )
            seen = _Seen(tensor, store, self.read(root), store.version, root, ("aten.alias", (), {}, 0))
            self.seen[id(tensor)] = seen
            return seen
        seen = self._new(tensor, _Store(tensor.untyped_storage(), "a tensor that is no buffer of the pair", own=own))
        if not own:
            self.outside.append((tensor.detach(), tensor._version))
        # what was made for the run may be written to: a copy
        self.constants[seen.value] = tensor.detach().clone() if own else tensor.detach()
        self.static.add(seen.value)
        return seen

    def find(self, tensor: Tensor) -> _Seen:
        return self.seen.get(id(tensor)) or self._constant(tensor)

    def read(self, seen: _Seen) -> int:
        """Return the number of the tensor's latest value."""
        if seen.version != seen.store.version:
            if seen.parent is not None and seen.view is not None:
                name, arguments, named, index = seen.view
                seen.value = self._emit(name, (Ref(self.read(seen.parent)), *arguments), named, seen.tensor, index)
            seen.version = seen.store.version
        return seen.value

    def write(self, seen: _Seen, value: int) -> None:
        """Give a tensor a new value, and with it the memory that it views."""
        if not seen.store.own:
            raise Unsupported(f"{self.place()} writes in place to {seen.store.origin}; write to a copy, or {ELSEWHERE}")
        if seen.parent is not None and seen.view is not None:
            name, arguments, named, index = seen.view
            parent = self.read(seen.parent)
            back = (Ref(parent), Ref(value), name, arguments, tuple(named.items()), index)
            self.write(seen.parent, self._emit("unigen.write_view", back, {}, seen.parent.tensor))
        else:
            seen.store.version += 1
        seen.value, seen.version = value, seen.store.version

    def _emit(self, name: str, arguments: Any, named: Any, like: Tensor, index: int = 0) -> int:
        number = self._number(like)
        results = (-1,) * index + (number,)
        node = Node(name, _frozen(tuple(arguments)), _frozen(tuple(named.items())), results, where=self.place())
        self.nodes.append(node)
        if all(ref in self.static for ref in node.refs()):
            self.static.add(number)
        return number

    # -- operations --

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        name = str(func)
        if name == "aten.lift_fresh.default" and id(args[0]) not in self.seen:
            self._constant(args[0], own=True)
        args, named = self._masks(name, args, named)
        written = _written(func, args, named)
        random = torch.Tag.nondeterministic_seeded in func.tags
        entry = find(name)
        if entry is None and not random and not written:
            taken_apart = _decompositions().get(func)
            if taken_apart is not None:
                with self:
                    return taken_apart(*args, **named)
            if func._can_decompose():  # below autograd, where a composition arrives whole
                with self:
                    return func.decompose(*args, **named)
        seen_written = [self.find(tensor) for tensor in written]
        arguments, keywords = tree_map(self._ref, (tuple(args), dict(named)))
        refs = [leaf.number for leaf in tree_leaves((arguments, keywords)) if isinstance(leaf, Ref)]
        static = not random and all(ref in self.static for ref in refs)
        result = func(*args, **named)
        if torch.Tag.inplace_view in func.tags:
            return self._viewed_in_place(name, args[0], arguments[1:])
        if name in _CHECKS:
            return result
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if not static and (len(made) == 0 or torch.Tag.data_dependent_output in func.tags or _grows(name, args)):
            raise Unsupported(
                f"{name} makes the program depend on the values of its data, in {self.place()}; write it with torch.where, or "
                f"{ELSEWHERE}"
            )
        sequence = torch._C._autograd._get_sequence_nr()
        self.places[sequence - 1] = self.place()
        views = {}
        for tensor in made:
            source = next((t for t in tree_leaves((args, named)) if _shares(t, tensor)), None)
            if source is not None and not any(tensor is t for t in written):
                views[id(tensor)] = source
        if views and not written:
            for index, tensor in enumerate(made):
                if id(tensor) not in self.seen and id(tensor) in views:
                    self._view(name, tensor, views[id(tensor)], arguments[1:], keywords, index)
            return result
        fresh = [tensor for tensor in made if not any(tensor is t for t in written)]
        if static and entry is None:  # nothing of it will change: no entry is needed
            for tensor in fresh:
                self._constant(tensor, own=True)
            for seen, tensor in zip(seen_written, written, strict=True):
                number = self._number(tensor)
                self.constants[number] = tensor.detach().clone()
                self.static.add(number)
                self.write(seen, number)
            return result
        leaves = [leaf for leaf in tree_leaves(result) if not any(leaf is tensor for tensor in written)]
        results = [self._new(leaf).value if isinstance(leaf, Tensor) else -1 for leaf in leaves]
        replaced = [self._number(tensor) for tensor in written]
        draw = None
        if random:
            draw = len(self.draws)
            self.draws.append((*fresh, *written)[0].detach().clone())
        functional, keywords = functional_name(name), {k: v for k, v in keywords.items() if k not in _OUT}
        made_of = _frozen(arguments), _frozen(tuple(keywords.items()))
        node = Node(functional, *made_of, (*results, *replaced), draw, self.place())
        self.nodes.append(node)
        if static:
            self.static.update(node.results)
        for seen, number in zip(seen_written, replaced, strict=True):
            self.write(seen, number)
        return result

    def _ref(self, leaf: Any) -> Any:
        return Ref(self.read(self.find(leaf))) if isinstance(leaf, Tensor) else leaf

    def _view(self, name: str, tensor: Tensor, source: Tensor, rest: Any, named: Any, index: int) -> None:
        parent = self.find(source)
        if name == "aten.as_strided.default":  # it counts in memory: say how the source lies there
            sizes, strides, *offset = rest
            start = offset[0] if offset and offset[0] is not None else source.storage_offset()
            name, named = "unigen.strided", {}
            rest = (sizes, strides, start, source.stride(), source.storage_offset())
        if name == "aten.unbind.int":  # each piece by itself, else a loop over n rows would cut n * n of them
            name, rest, named, index = "aten.select.int", (rest[0] if rest else 0, index), {}, 0
        number = self._emit(name, (Ref(self.read(parent)), *rest), named, tensor, index)
        view = (name, tuple(rest), dict(named), index)
        self.seen[id(tensor)] = _Seen(tensor, parent.store, number, parent.store.version, parent, view)

    def _viewed_in_place(self, name: str, tensor: Tensor, rest: Any) -> Tensor:
        """``t.squeeze_()`` and the like: the same tensor, seen otherwise from now on."""
        parent = self.find(tensor)
        if name.startswith(("aten.detach_", "aten.requires_grad_")):
            return tensor
        before = _Seen(tensor, parent.store, parent.value, parent.version, parent.parent, parent.view)
        view: tuple[str, tuple[Any, ...], dict[str, Any], int] = (functional_name(name), tuple(rest), {}, 0)
        if find(view[0]) is None:
            raise Unsupported(f"{name} changes a tensor's shape in place, in {self.place()}; {ELSEWHERE}")
        number = self._emit(view[0], (Ref(self.read(before)), *rest), {}, tensor)
        self.seen[id(tensor)] = _Seen(tensor, parent.store, number, parent.store.version, before, view)
        return tensor

    def _masks(self, name: str, args: Any, named: Any) -> tuple[Any, Any]:
        """Turn a fixed mask among the indices into the numbers of what it picks."""
        if name.split(".")[1] not in ("index", "index_put", "index_put_", "_unsafe_index"):
            return args, named
        indices: list[Any] = []
        for index in args[1]:
            masks = isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
            if masks and self.read(self.find(index)) in self.static:
                indices += [column.clone() for column in index.nonzero().unbind(1)]  # each a memory of its own
            else:
                indices.append(index)
        return (args[0], indices, *args[2:]), named

    # -- where --

    def place(self) -> str:
        """Say which line of which program is running, and for which site."""
        node = torch._C._current_autograd_node()
        if node is not None:
            forward = self.places.get(node._sequence_nr(), "")
            return f"the derivative ({node.name()}) of {forward}" if forward else f"a derivative ({node.name()})"
        return _place(sys._getframe(1))


_OUT = ("out",)
_CHECKS = ("aten._linalg_check_errors.default", "aten._assert_async.default", "aten._assert_async.msg")
_ENGINE = tuple(
    f"engines/{name}.py" for name in ("tape", "surroundings", "capture", "eager", "draw", "programs", "xla")
)


def _place(frame: FrameType | None) -> str:
    line, site, within = "", "", 0
    while frame is not None and within < 100:
        code, within = frame.f_code, within + 1
        path = code.co_filename.replace("\\", "/")
        if not site and path.endswith("engines/programs.py") and code.co_name == "_pyro_sample":
            site = str(frame.f_locals["msg"]["name"])
        if not site and path.endswith("engines/draw.py") and code.co_name == "per_datum":
            site = str(frame.f_locals["site"].name)
        inside = any(part in path for part in ("/torch/", "/pyro/", "<", "/contextlib.py")) or path.endswith(_ENGINE)
        if not line and not inside:
            line = f"{path}:{frame.f_lineno}"
        frame = frame.f_back
    return (f"site '{site}', " if site else "") + (line or "the run")


def _frozen(tree: Any) -> Any:
    """Return the arguments of an operation with tuples for lists, so that tapes can be compared."""
    return tuple(_frozen(part) for part in tree) if isinstance(tree, list | tuple) else tree


def _written(func: Any, args: Any, named: Any) -> list[Tensor]:
    """Return the tensors that an operation writes to."""
    entry = find(str(func))
    if entry is not None and entry.writes:
        if "batch_norm" in str(func) and not args[5]:  # in evaluation mode its running statistics stay
            return []
        return [args[index] for index in entry.writes if index < len(args) and args[index] is not None]
    found: list[Tensor] = []
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[index] if index < len(args) else named.get(argument.name)
            found += [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return found


def _grows(name: str, args: Any) -> bool:
    """Whether the shape of the result depends on values."""
    kind = name.split(".")[1]
    if kind in ("index", "_unsafe_index"):
        return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return kind in ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave")


def _shares(one: Any, other: Tensor) -> bool:
    return isinstance(one, Tensor) and one.numel() > 0 and _storage(one) == _storage(other)


def capture(
    function: Callable[..., Sequence[Tensor | None]],
    inputs: Mapping[str, Tensor],
    fixed: Sequence[str] = (),
) -> Tape:
    """Run ``function()`` once for real and return its tape; the function returns a sequence of tensors (or None).

    ``inputs``: by name, the tensors that may differ in later runs; every other tensor that the run meets is a constant.
    ``fixed``: the names of inputs that the run must not write to. Distributions do not validate their arguments meanwhile.
    The run's random numbers come from torch's global streams; it does whatever it does to the tensors that it writes to.

    Raises ``Unsupported`` where the run depends on values that may differ in later runs.
    """
    recorder = _Recorder(inputs, fixed)
    with ExitStack() as stack:
        stack.enter_context(plainly())
        stack.enter_context(recorder)
        results = function()
    outputs = [None if tensor is None else recorder.read(recorder.find(tensor)) for tensor in results]
    written = {}
    for name, seen in recorder.inputs.items():
        if seen.store.version:
            written[name] = recorder.read(seen)
    tape = Tape(
        recorder.shapes,
        recorder.nodes,
        recorder.first,
        outputs,
        written,
        recorder.constants,
        recorder.draws,
        recorder.outside,
    )
    read = {ref for node in tape.live() for ref in node.refs()} | {*tape.outputs, *written.values()}
    tape.constants = {number: tensor for number, tensor in tape.constants.items() if number in read}
    return tape
