"""On a CUDA device: a replayed step is the step launched kernel by kernel, and every engine takes the step of ``eager``."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.test_engines import both, descents, difference, every_case, world, xla_takes_the_step_of_eager
from unigen.engines import compiled
from unigen.engines.replay import Replay
from unigen.optimizers import optimizers_for
from unigen.pair import Pair
from unigen.phases import Routine

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def on_device(family: str) -> tuple[Pair, Tensor]:
    pair, x = world(family)
    return pair.cuda(), x.cuda()


@every_case
def test_a_replayed_step_is_the_step(routine: Routine, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pair, x = on_device(family)
    monkeypatch.setattr(compiled, "_compile", lambda graph, arguments: graph)  # the graph is what is tested
    if any(phase.solve for phase in routine):
        pytest.skip("solved in closed form, whose pivots are read on the host")
    other, made = copy.deepcopy(pair), []

    def recorded(step: Callable[[Any], Tensor], batch: Any) -> Replay:
        made.append(Replay(step, batch))
        return made[-1]

    batches = [[x] * max(phase.steps for phase in routine)] * 5
    ends, streams = [], []
    for each, replay in ((pair, recorded), (other, lambda step, batch: step)):
        monkeypatch.setattr(compiled, "Replay", replay)
        torch.cuda.manual_seed(7)
        ends.append(compiled.advance(tuple(routine), each, optimizers_for(routine, each), batches))
        streams.append(torch.cuda.get_rng_state())
    assert torch.equal(ends[0], ends[1]) and difference(pair, other) == 0
    assert torch.equal(*streams)
    assert made or family == "mixture" or "Enumerate" in repr(tuple(routine))  # sums over states ask the host


@every_case
def test_a_graph_takes_the_step_of_eager(routine: Routine, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_compile", lambda graph, arguments: graph)
    pair, x = on_device(family)
    value, tensors = both(compiled, routine, pair, x, descents, 1)
    assert value < 1e-9 and tensors < 1e-9


@every_case
def test_xla_takes_the_step_of_eager(routine: Routine, family: str) -> None:
    xla_takes_the_step_of_eager(routine, *on_device(family))
