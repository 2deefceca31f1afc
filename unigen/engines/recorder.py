"""The recorder of a run: a torch function becomes a tape.

The function runs for real, once, below autograd, so a tape holds what torch did and nothing else: gradients that the function
asks for are part of it, as torch's own derivatives, after every ``detach`` and ``no_grad``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions, decomposition_table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from unigen.engines.assertions import Assertions
from unigen.engines.indices import Indices
from unigen.engines.memory import Memory, shares
from unigen.engines.operations import find, functional_name
from unigen.engines.programs import gpus_of
from unigen.engines.selections import Selections, without_masks
from unigen.engines.surroundings import OneStream, kept_in_torch, plainly
from unigen.engines.tape import DRAWS, EAGERLY, Node, Ref, Tape, frozen
from unigen.pair import Unsupported
from unigen.streams import own_of_python

__all__ = ["capture"]

_OUT = ("out",)
_CHECKS = ("aten._linalg_check_errors.default", "aten._assert_async.default", "aten._assert_async.msg")


@cache
def _decompositions() -> Mapping[Any, Callable[..., Any]]:
    """Return what torch itself writes in terms of other operations; to collect it takes a while."""
    return {**decomposition_table, **core_aten_decompositions()}


class _Recorder(TorchDispatchMode):
    """Write down every operation below autograd while it runs."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory = memory
        self.draws: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named, name, memory = kwargs or {}, str(func), self.memory
        if name == "aten.lift_fresh.default" and id(args[0]) not in memory.seen:
            memory.constant(args[0], own=True)
        args = without_masks(name, args, self.fixed)
        written = _written(func, args, named)
        random = torch.Tag.nondeterministic_seeded in func.tags
        entry = find(name)
        if entry is None and not random and not written:
            taken_apart = _decompositions().get(func)
            if taken_apart is not None:
                with self:
                    found = taken_apart(*args, **named)
                if found is not NotImplemented:  # some take only some arguments apart
                    return found
            if func._can_decompose():  # below autograd, where a composition arrives whole
                with self:
                    return func.decompose(*args, **named)
        seen_written = [memory.find(tensor) for tensor in written]
        arguments, keywords = tree_map(self._ref, (tuple(args), dict(named)))
        refs = [leaf.number for leaf in tree_leaves((arguments, keywords)) if isinstance(leaf, Ref)]
        static = not random and all(ref in memory.static for ref in refs)
        result = func(*args, **named)
        if torch.Tag.inplace_view in func.tags:
            return memory.view_in_place(name, args[0], arguments[1:])
        if name in _CHECKS:
            return result
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if not static and (len(made) == 0 or torch.Tag.data_dependent_output in func.tags or _grows(name, args)):
            raise Unsupported(
                f"{name} makes the program depend on the values of its data, in {memory.places.here()}; "
                f"write it with torch.where, or {EAGERLY}"
            )
        memory.places.keep()
        views = {}
        for tensor in made:
            source = next((t for t in tree_leaves((args, named)) if shares(t, tensor)), None)
            if source is not None and not any(tensor is t for t in written):
                views[id(tensor)] = source
        if views and not written:
            for index, tensor in enumerate(made):
                if id(tensor) not in memory.seen and id(tensor) in views:
                    memory.view(name, tensor, views[id(tensor)], arguments[1:], keywords, index)
            return result
        fresh = [tensor for tensor in made if not any(tensor is t for t in written)]
        if static and entry is None:  # nothing of it will change: no entry is needed
            for tensor in fresh:
                memory.constant(tensor, own=True)
            for seen, tensor in zip(seen_written, written, strict=True):
                memory.write(seen, memory.settled(tensor))
            return result
        leaves = [leaf for leaf in tree_leaves(result) if not any(leaf is tensor for tensor in written)]
        results = [memory.new(leaf).value if isinstance(leaf, Tensor) else -1 for leaf in leaves]
        replaced = [memory.number(tensor) for tensor in written]
        draw = None
        if random:
            draw = len(self.draws)
            self.draws.append((*fresh, *written)[0].detach().clone())
        functional, keywords = functional_name(name), {k: v for k, v in keywords.items() if k not in _OUT}
        made_of = frozen(arguments), frozen(tuple(keywords.items()))
        node = Node(functional, *made_of, (*results, *replaced), draw, memory.places.here())
        memory.nodes.append(node)
        if static:
            memory.static.update(node.results)
        for seen, number in zip(seen_written, replaced, strict=True):
            memory.write(seen, number)
        return result

    def _ref(self, leaf: Any) -> Any:
        return Ref(self.memory.read(self.memory.find(leaf))) if isinstance(leaf, Tensor) else leaf

    def fixed(self, tensor: Tensor) -> bool:
        """Whether a tensor holds the same in every later run."""
        return self.memory.read(self.memory.find(tensor)) in self.memory.static


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


def capture(
    function: Callable[..., Sequence[Tensor | None]],
    inputs: Mapping[str, Tensor],
    fixed: Sequence[str] = (),
) -> Tape:
    """Run ``function()`` once for real and return its tape; the function returns a sequence of tensors (or None).

    ``inputs``: by name, the tensors that may differ in later runs; every other tensor that the run meets is a constant.
    ``fixed``: the names of inputs that the run must not write to. Distributions do not validate their arguments meanwhile.
    The run leaves the random streams as they are; it does whatever it does to the tensors that it writes to.

    Raises ``Unsupported`` where the run depends on values that may differ in later runs; but where one of two answers does
    nothing but raise, the results of later runs that would have raised are nan.
    """
    memory = Memory(inputs, fixed)
    recorder = _Recorder(memory)
    with ExitStack() as stack:
        stack.enter_context(plainly())
        stack.enter_context(torch.autograd.set_detect_anomaly(False))  # which would look at values
        stack.enter_context(torch.random.fork_rng(devices=gpus_of(inputs)))
        stack.enter_context(recorder)
        stack.enter_context(Indices(recorder.fixed))
        stack.enter_context(Selections(recorder.fixed))
        stack.enter_context(kept_in_torch(recorder.fixed))
        stack.enter_context(OneStream(memory.places.here))
        assertions = stack.enter_context(Assertions())
        drawn = stack.enter_context(own_of_python())
        results = assertions.held(function())
        if drawn():
            raise Unsupported(DRAWS)
    outputs = [None if tensor is None else memory.read(memory.find(tensor)) for tensor in results]
    written = {}
    for name, seen in memory.inputs.items():
        if seen.store.version:
            written[name] = memory.read(seen)
    tape = Tape(
        memory.shapes,
        memory.nodes,
        memory.first,
        outputs,
        written,
        memory.constants,
        recorder.draws,
        memory.outside,
    )
    read = {ref for node in tape.live() for ref in node.refs()} | {*tape.outputs, *written.values()}
    tape.constants = {number: tensor for number, tensor in tape.constants.items() if number in read}
    return tape
