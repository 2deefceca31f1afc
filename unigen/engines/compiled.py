"""The compiled engine: a phase, its gradient and its update as one graph, compiled by TorchInductor.

``pure`` writes the phase of ``eager`` down with its gradient inside, ``rules`` adds the update of the optimizer, and the
whole is compiled once for each shape of a batch. A step then costs what its kernels cost: no handlers, no tape, no guards.
On a GPU a step, all its phases and updates, is compiled at its first time, watched at its second, whether it waits for the
host anywhere, and where it does not, recorded at its third as one CUDA graph, and replayed from then on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from unigen.engines.checks import check_dense, check_once, check_optimizers, check_rates
from unigen.engines.eager import finite_parameters
from unigen.engines.programs import shapes_of
from unigen.engines.pure import capture, chains_of, enumerate_first, gradient
from unigen.engines.readings import mode_of, settled
from unigen.engines.replay import Replay, watched
from unigen.engines.rules import Moments, moments_of, set_rates, update
from unigen.engines.tape import EAGERLY, alike
from unigen.pair import Pair, Unsupported
from unigen.phases import Phase, Routine

__all__ = ["CHUNK", "advance"]

CHUNK = 20  # the steps of a call, between which nobody looks

Optimizers = Mapping[str, torch.optim.Optimizer]


class _Tensors:
    """The tensors that a phase reads and writes, in the order in which its graph takes them, but for the data."""

    def __init__(self, phase: Phase, pair: Pair, optimizers: Optimizers) -> None:
        groups = [group for group in phase.move if group in optimizers and not phase.solve]
        parts = [(optimizers[group], part) for group in groups for part in optimizers[group].param_groups]
        moments = [moments_of(optimizer, part) for optimizer, part in parts]
        known = [each for each in moments if each is not None]
        # one optimizer without a rule, and every optimizer of the phase takes its own step
        self.moments: list[Moments] = known if len(known) == len(moments) else []
        self.others = [] if len(known) == len(moments) else [optimizers[group] for group in groups]
        self.settings = [part for _, part in parts] if self.moments else []
        self.rules = tuple((part.rule, tuple(map(id, part.parameters))) for part in self.moments)
        self.steps = [count for part in self.moments for count in part.steps]
        self.state = [tensor.detach() for tensor in pair.group("theta", "phi", "psi")]
        self.state += pair.group_buffers("theta", "phi", "psi")
        for part in self.moments:
            self.state += [*part.steps, *(tensor for each in part.state.values() for tensor in each)]


class _Phase:
    """One phase for one shape of the data, compiled."""

    def __init__(self, phase: Phase, pair: Pair, tensors: _Tensors, data: dict[str, Any]) -> None:
        self.phase, self.pair = phase, pair
        self.moments, self.separate = tensors.moments, bool(tensors.others)
        self.own = pair.group(*phase.move)
        self.names = [name for name, value in data.items() if isinstance(value, Tensor)]
        self.fixed = {name: value for name, value in data.items() if not isinstance(value, Tensor)}
        self.chains = chains_of(phase, pair, data)
        enumerate_first(phase, pair, self.fixed | {name: data[name] for name in self.names})
        device = next(
            (tensor.device for tensor in (*tensors.state, *data.values()) if isinstance(tensor, Tensor)), None
        )
        self.rates = [torch.zeros((), dtype=torch.float64, device=device) for _ in self.moments]
        self.rates_now: list[float] = []
        self.moved: list[Tensor] = []  # those of its own that have a gradient
        self.counted: list[int] = []  # the places of their counts of updates among those of the optimizers
        self.looked: list[tuple[Tensor, int]] = []  # constants, and their versions
        read: list[Tensor] = []
        self.graph = _dense(self._captured(self._arguments(tensors, data), read))
        self.looked += [(tensor, tensor._version) for tensor in read]
        self.replayable = _stays(self.graph)
        self.function: Callable[..., list[Tensor]] | None = None  # compiled at the first step

    def _captured(self, arguments: list[Tensor], read: list[Tensor]) -> torch.fx.GraphModule:
        """Return the graph; of a program that looks at the numbers in a buffer with some as constants (``capture_phase``)."""
        check_dense(self.pair)
        try:
            return capture(self._run, arguments, "compiled", read=read)
        except Unsupported:
            every = self.pair.group_buffers("theta", "phi", "psi")
            whole = [own for own in every if not own.is_floating_point()]
            for constants, fewer in ((whole, []), (every, whole)):
                if len(constants) > len(fewer):
                    self.looked = [(own, own._version) for own in constants]
                    with suppress(Unsupported):
                        return capture(self._run, arguments, "compiled", constants, read)
            raise

    @property
    def stale(self) -> bool:
        """Whether a constant of the graph has changed since."""
        return any(own._version != version for own, version in self.looked)

    def same(self, other: _Phase) -> bool:
        """Whether both compute the same."""
        constants = [
            [getattr(graph, str(node.target)) for node in graph.graph.nodes if node.op == "get_attr"]
            for graph in (self.graph, other.graph)
        ]
        return self.graph.code == other.graph.code and alike(*constants)

    def held(self, tensors: _Tensors) -> list[Tensor]:
        """Return what the graph reads and writes in place."""
        return [*tensors.state, *self.rates, *(self.pair.chains[key] for key in self.chains)]

    def _arguments(self, tensors: _Tensors, data: Mapping[str, Any]) -> list[Tensor]:
        return [*self.held(tensors), *(data[name] for name in self.names)]

    def _run(self, *arguments: Tensor) -> list[Tensor]:
        """Return the value, and where the optimizers step by themselves the gradient; everything else is in place."""
        following, pair = iter(arguments), self.pair
        parameters = {id(own): next(following) for own in pair.group("theta", "phi", "psi")}
        buffers = {id(own): next(following) for own in pair.group_buffers("theta", "phi", "psi")}
        moments = []
        for part in self.moments:
            counts = [next(following) for _ in part.steps]
            moments.append((counts, {name: [next(following) for _ in each] for name, each in part.state.items()}))
        rates = [next(following) for _ in self.rates]
        chains = {key: next(following) for key in self.chains}
        data = self.fixed | dict(zip(self.names, following, strict=True))

        constant = {id(own) for own, _ in self.looked}
        written = {key: buffer.clone() for key, buffer in buffers.items() if key not in constant}
        new = {id(own): parameters[id(own)].clone() for own in self.own} if self.phase.solve else {}
        after = dict(chains)
        value, slopes = gradient(self.phase, pair, data, parameters | new, written, after)
        found = {id(own): slope for own, slope in zip(self.own, slopes, strict=False) if slope is not None}
        self.moved = [own for own in self.own if id(own) in found]
        counted = [id(own) for part in self.moments if part.steps for own in part.parameters]
        self.counted = [index for index, owner in enumerate(counted) if owner in found]
        with torch.no_grad():
            for part, (counts, state), lr in zip(self.moments, moments, rates, strict=True):
                for index, own in enumerate(part.parameters):
                    if id(own) not in found:
                        continue
                    count = counts[index] if counts else None
                    now = {name: each[index] for name, each in state.items()}
                    new[id(own)], later = update(part.rule, lr, count, parameters[id(own)], found[id(own)], now)
                    for name, tensor in later.items():
                        now[name].copy_(tensor)
            if not self.separate:
                ends = [new[id(own)] if id(own) in new else parameters[id(own)].clone() for own in self.own]
                value = finite_parameters(value, ends)
                if self.phase.project is not None:
                    self.phase.project(ends)
                for own, end in zip(self.own, ends, strict=True):
                    parameters[id(own)].copy_(end)
            for own in pair.group_buffers(*self.phase.move):
                if id(own) in written:
                    buffers[id(own)].copy_(written[id(own)])
            for key, chain in chains.items():
                chain.copy_(after[key])
        return [value, *(found[id(own)] for own in self.moved)] if self.separate else [value]

    def set_rates(self, wanted: list[float]) -> None:
        """Let the next steps have these learning rates, one a parameter group."""
        if wanted != self.rates_now:
            for rate, lr in zip(self.rates, wanted, strict=True):
                rate.fill_(lr)
            self.rates_now = wanted

    @torch.no_grad()
    def __call__(self, tensors: _Tensors, data: Mapping[str, Any]) -> Tensor:
        if self.counted:
            torch._foreach_add_([tensors.steps[index] for index in self.counted], 1)
        arguments = self._arguments(tensors, data)
        if self.function is None:
            self.function = _compile(self.graph, arguments)
        value, *found = self.function(*arguments)
        if self.separate:
            for parameter in self.pair.group(*self.phase.move, frozen=True):
                parameter.grad = None
            for own, slope in zip(self.moved, found, strict=True):
                own.grad = slope
            for optimizer in tensors.others:
                optimizer.step()
            value = finite_parameters(value, self.own)
            if self.phase.project is not None:
                self.phase.project(self.own)
        return value


class _Step:
    """A step of a routine on batches of these shapes: its phases in order, each with the place of the batch it takes.

    For one call of ``advance``, during which tensors stay where they are.
    """

    def __init__(
        self,
        phases: tuple[Phase, ...],
        pair: Pair,
        mode: int,
        tensors: Sequence[_Tensors],
        batch: Sequence[dict[str, Any]],
    ) -> None:
        self.climbs: list[tuple[int, _Phase, _Tensors, int]] = []  # number of the phase, compiled, its tensors, place
        for number, (phase, own) in enumerate(zip(phases, tensors, strict=True)):
            for repetition in range(phase.steps):
                place = (repetition - 1) % (len(batch) - 1) + 1 if repetition and len(batch) > 1 else 0
                key = (phase, mode, own.rules, shapes_of(batch[place]))
                if key not in pair.compiled or pair.compiled[key].stale:
                    captured = partial(_Phase, phase, pair, own, batch[place])
                    pair.compiled[key] = settled(phases, pair, captured, lambda one, other: one.same(other))
                self.climbs.append((number, pair.compiled[key], own, place))
        self.pair = pair
        self.key = tuple((climb, place) for _, climb, _, place in self.climbs)
        self.replay: Replay | None = None

    def run(self, batch: Sequence[Mapping[str, Any]]) -> Tensor:
        """Take the step and return the value of each phase, (phases,)."""
        values: dict[int, Tensor] = {}
        for number, climb, own, place in self.climbs:
            value = climb(own, batch[place])
            values[number] = value + 0 * values[number] if number in values else value  # not finite once, not finite
        return torch.stack(list(values.values()))

    def __call__(self, batch: Sequence[Mapping[str, Any]]) -> Tensor:
        for _, climb, own, _ in self.climbs:
            climb.set_rates([float(part["lr"]) for part in own.settings])
        way = self.replay or self._way(batch)
        return way(batch)

    def _way(self, batch: Sequence[Mapping[str, Any]]) -> Callable[[Any], Tensor]:
        """Return how the step is taken this time; a replay is kept while nobody else holds the tensors that it writes."""
        held = [tensor for _, climb, own, _ in self.climbs for tensor in climb.held(own)]
        given = [value for data in batch for value in data.values() if isinstance(value, Tensor)]
        whole = all(climb.replayable and not climb.separate for _, climb, _, _ in self.climbs)
        if not whole or not all(tensor.is_cuda for tensor in (*held, *given)):
            return self.run
        where = tuple(tensor.data_ptr() for tensor in held)
        replays = self.pair.compiled.setdefault("replays", {})

        def compile_and_take(batch: Any) -> Tensor:
            replays[self.key] = where, watch
            return self.run(batch)

        def watch(batch: Any) -> Tensor:
            values, waits = watched(self.run, batch)
            replays[self.key] = where, self.run if waits else record
            return values

        def record(batch: Any) -> Tensor:
            replays[self.key] = where, Replay(self.run, batch)
            return replays[self.key][1](batch)

        known = replays.get(self.key)
        way = known[1] if known is not None and known[0] == where else compile_and_take
        self.replay = way if isinstance(way, Replay) else None
        return way


def _dense(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Return a graph; refuse sparse tensors in it, with which the compiler fails at the first step."""
    for node in graph.graph.nodes:
        value = node.meta.get("val", getattr(graph, str(node.target), None))
        if isinstance(value, Tensor) and value.layout is not torch.strided:
            kind = str(value.layout).removeprefix("torch.")
            raise Unsupported(
                f"engine 'compiled' has dense tensors alone, and {node.target} is a {kind} one; {EAGERLY}"
            )
    return graph


def _stays(graph: torch.fx.GraphModule) -> bool:
    """Whether every tensor of a graph lies on a GPU: a copy from the host cannot be part of a CUDA graph.

    What nothing reads is no part of it, such as the indices that a plate makes on the host; it is dropped.
    """
    for node in reversed(list(graph.graph.nodes)):
        pure = isinstance(node.target, torch._ops.OpOverload) and not (
            node.target._schema.is_mutable or torch.Tag.nondeterministic_seeded in node.target.tags
        )
        if not node.users and (node.op == "get_attr" or (node.op == "call_function" and pure)):
            graph.graph.erase_node(node)
    graph.recompile()
    nodes = [node for node in graph.graph.nodes if node.op in ("call_function", "get_attr")]
    made = [node.meta["val"] if "val" in node.meta else getattr(graph, str(node.target), None) for node in nodes]
    return all(tensor.is_cuda for tensor in tree_leaves(made) if isinstance(tensor, Tensor))


def _compile(graph: torch.fx.GraphModule, arguments: list[Tensor]) -> Callable[..., list[Tensor]]:
    devices = {argument.device for argument in arguments if argument.is_cuda}
    with torch.random.fork_rng(devices=list(devices)), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own, about its host
        return torch._inductor.compile(graph, arguments)  # type: ignore


def advance(
    routine: Routine | Iterable[Phase],
    pair: Pair,
    optimizers: Optimizers,
    batches: Sequence[Sequence[Any]],
    rates: Sequence[Sequence[float]] | None = None,
) -> Tensor:
    """Take a step of the routine on each of ``batches`` and return the values, (steps, phases); see ``eager.advance``.

    Raises ``Unsupported``, a ``PairError``, before the first step for a program that has no graph.
    """
    phases = tuple(routine)
    check_once(phases, pair, batches[0][0])
    check_optimizers(phases, pair, optimizers)
    check_rates(optimizers, rates, len(batches))
    mode = mode_of(phases, pair)
    tensors = [_Tensors(phase, pair, optimizers) for phase in phases]
    bound = [[pair.bind(x) for x in batch] for batch in batches]
    shapes = [tuple(map(shapes_of, batch)) for batch in bound]
    plans = {
        shape: _Step(phases, pair, mode, tensors, batch)
        for shape, batch in dict(zip(shapes, bound, strict=True)).items()
    }
    values = []
    for index, (shape, batch) in enumerate(zip(shapes, bound, strict=True)):
        if rates is not None:
            set_rates(optimizers, rates[index])
        values.append(plans[shape](batch))
        if pair.averages is not None:
            pair.averages.update(pair)
    return torch.stack(values)
