"""Torch's optimizers under the three engines: what is in their groups, whose step it is, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from unigen import routines
from unigen.engines import engine_named
from unigen.engines.moves import settings
from unigen.pair import Pair

Groups = dict[str, torch.optim.Optimizer]


class Line(PyroModule):
    """A model without latents, whose gradients have no noise."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 1)

    def forward(self, x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(self.net(x), 1.0).to_event(1), obs=y)


def start() -> Pair:
    torch.manual_seed(0)
    return Pair(Line()).double()


def batches(count: int = 6) -> list[list[Any]]:
    rows = torch.linspace(-1, 2, 8, dtype=torch.float64).view(4, 2)
    return [[(rows + index, rows[:, :1] - index)] for index in range(count)]


def trained(
    engine: str, make: Callable[[Pair], Groups], rates: Any = None, between: Callable[[Groups], Any] = lambda made: None
) -> tuple[Pair, Groups]:
    """Take six steps in two calls of an engine."""
    pair, rows = start(), batches()
    made = make(pair)
    for part in (slice(2), slice(2, 6)):
        engine_named(engine).advance(routines.maximum_likelihood, pair, made, rows[part], rates and rates[part])
        between(made)
    return pair, made


def off(engine: str, make: Callable[[Pair], Groups], **more: Any) -> float:
    """Return how far an engine's parameters and state end from those of eager."""
    (pair, made), (same, others) = (trained(each, make, **more) for each in (engine, "eager"))
    assert any(not torch.equal(*both) for both in zip(same.parameters(), start().parameters(), strict=True))
    ends = list(zip(pair.parameters(), same.parameters(), strict=True))
    for one, other in ends:
        state, copied = made["theta"].state.get(one, {}), others["theta"].state.get(other, {})
        assert list(state) == list(copied)
        ends += [(state[key], copied[key]) for key in state]
    return max(float((one - other).detach().abs().max()) for one, other in ends)


ENGINES = pytest.mark.parametrize("engine", ["compiled", "xla"])


@pytest.mark.parametrize(
    "make",
    [
        lambda pair: torch.optim.Adam(pair.model.named_parameters(), lr=0.1),
        lambda pair: torch.optim.SGD([{"params": pair.group("theta"), "tags": ["a"], "of": {"a": 1}}], lr=0.01),
    ],
    ids=["named parameters", "a list and a dict"],
)
@ENGINES
def test_a_group_may_hold_more_than_its_rule_reads(engine: str, make: Any, interpreted: None) -> None:
    assert off(engine, lambda pair: {"theta": make(pair)}) < 1e-13


def test_what_no_rule_reads_makes_no_other_program() -> None:
    group = {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.0, "initial_lr": 0.2, "name": "first"}
    assert settings(group) == settings(group | {"lr": 0.2, "initial_lr": 0.4, "name": "second"})
