"""A phase as a tape: what one climb of a phase computes from parameters, buffers, chains and data, gradients included.

The eager engine's ``objective`` runs once on the pair itself, which is left as it was. Inputs are named by group
(``theta.decoder.weight``), ``buffer.theta.0``, ``chain.<expectation>`` and ``data.<argument>``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unigen.engines import eager
from unigen.engines.checks import check_dense, check_kept
from unigen.engines.holdings import Holdings
from unigen.engines.lowering import check_lowers
from unigen.engines.pure import check_hooks, enumerate_first
from unigen.engines.recorder import capture
from unigen.engines.tape import Tape, alike
from unigen.pair import Pair, PairError, Unsupported
from unigen.phases import Phase

__all__ = ["Climb", "buffers", "capture_phase", "parameters"]

GROUPS = ("theta", "phi", "psi")


def parameters(pair: Pair) -> dict[str, Tensor]:
    """Return the pair's parameters by name, the group first."""
    return dict(pair.named_groups())


def buffers(pair: Pair) -> dict[str, Tensor]:
    """Return the pair's buffers by name, the group first."""
    return {
        f"buffer.{group}.{index}": buffer for group in GROUPS for index, buffer in enumerate(pair.group_buffers(group))
    }


@dataclass(frozen=True)
class Climb:
    """One climb of a phase: ``tape`` has the outputs value, the gradient of minus the surrogate for each of ``moved`` (None
    where there is none), and the new state of each of ``chains``. ``kept`` are the inputs whose new values stay.
    ``projection``: a tape from the parameters after the step to what the phase's projection makes of them.
    """

    tape: Tape
    moved: tuple[str, ...]
    chains: tuple[str, ...]
    kept: tuple[str, ...]
    projection: Tape | None = None
    draws: int = 0  # how many random results an eager climb has

    @property
    def gradients(self) -> frozenset[str]:
        """The parameters that have a gradient."""
        ends = self.tape.outputs[1 : 1 + len(self.moved)]
        return frozenset(name for name, end in zip(self.moved, ends, strict=True) if end is not None)

    @property
    def stale(self) -> bool:
        """Whether a constant of the climb has changed since."""
        return self.tape.stale or (self.projection is not None and self.projection.stale)

    def same(self, other: Climb) -> bool:
        """Whether both compute the same, from the same constants."""
        constants = [
            [*climb.tape.constants.values(), *(climb.projection.constants.values() if climb.projection else ())]
            for climb in (self, other)
        ]
        return self == other and alike(*constants)

    def bare(self) -> Climb:
        """Return the climb without the values of constants, as a key by which compiled programs are found."""
        projection = None if self.projection is None else self.projection.bare()
        return replace(self, tape=self.tape.bare(), projection=projection)


def capture_phase(
    phase: Phase, pair: Pair, data: Mapping[str, Any], chains: Mapping[str, Tensor]
) -> tuple[Climb, dict[str, Tensor]]:
    """Return one climb of a phase on data of this shape, and the states of the chains after it.

    ``data``: as ``Pair.bind`` returns it; ``chains``: the persistent chains that the climb starts from. The pair, its
    chains and torch's random streams stay as they are. Raises ``Unsupported``, or ``PairError`` as the eager engine does.

    A program that looks at the numbers in a buffer, as an inverse autoregressive flow goes through its permutation, is
    captured with the buffers of whole numbers as constants, or else with all; where one changes, the climb is ``stale``.
    """
    check_dense(pair)
    stored = buffers(pair)
    floating = {name: buffer for name, buffer in stored.items() if buffer.is_floating_point()}
    enumerate_first(phase, pair, data)
    try:
        return _capture(phase, pair, data, chains, stored)
    except Unsupported:
        for inputs, more in ((floating, stored), ({}, floating)):
            if len(inputs) < len(more):
                with suppress(Unsupported):
                    return _capture(phase, pair, data, chains, inputs)
        raise


def _capture(
    phase: Phase, pair: Pair, data: Mapping[str, Any], chains: Mapping[str, Tensor], stored: Mapping[str, Tensor]
) -> tuple[Climb, dict[str, Tensor]]:
    """``stored``: the buffers that are inputs."""
    weights = parameters(pair)
    tensors = {f"data.{name}": value for name, value in data.items() if isinstance(value, Tensor)}
    inputs = {**weights, **stored, **{f"chain.{key}": value for key, value in chains.items()}, **tensors}
    moved = [name for name, own in weights.items() if name.split(".")[0] in phase.move and own.requires_grad]
    for name in moved:
        check_hooks(weights[name])
    found: dict[str, Tensor] = {}

    def run() -> Sequence[Tensor | None]:
        gradients: Sequence[Tensor | None] = [None] * len(moved)
        if phase.solve:
            value = eager.solve(phase, pair, dict(data))
        else:
            value, surrogate = eager.objective(phase, pair, dict(data))
            if not surrogate.requires_grad:
                raise PairError(f"the phase '{phase}' does not depend on {', '.join(phase.move)}")
            gradients = torch.autograd.grad(-surrogate, [weights[name] for name in moved], allow_unused=True)
        found.update(pair.chains)
        return [value, *gradients, *pair.chains.values()]

    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.callback(setattr, pair, "chains", pair.chains)
        held = Holdings(pair)
        stack.callback(held.put_back, flags=False)  # what turns by itself is told by ``settled``
        pair.chains = dict(chains)
        fixed = [*tensors, *(() if phase.solve else weights)]
        tape = capture(run, inputs, fixed)
        check_kept(held)
    check_lowers(tape)
    mine = [f"buffer.{group}." for group in phase.move] + [f"{group}." for group in phase.move if phase.solve]
    kept = tuple(name for name in tape.written if name.startswith(tuple(mine)))
    projection = None if phase.project is None else _capture_projection(phase, [weights[name] for name in moved], moved)
    climb = Climb(tape, tuple(moved), tuple(found), kept, projection, len(tape.draws))
    return climb, {k: v.detach() for k, v in found.items()}


def _capture_projection(phase: Phase, weights: list[Tensor], moved: list[str]) -> Tape:
    copies = [weight.detach().clone() for weight in weights]

    def project() -> Sequence[Tensor]:
        with torch.no_grad():
            phase.project(copies)  # type: ignore[misc]
        return copies

    tape = capture(project, dict(zip(moved, copies, strict=True)))
    check_lowers(tape)
    return tape
