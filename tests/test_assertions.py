"""Assertions on values in a program that an engine writes down: it goes on, and is nan where eager raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from unigen import Pair, routines
from unigen.engines import compiled, eager, xla
from unigen.optimizers import optimizers_for
from unigen.pair import Unsupported
from unigen.phases import Optimizer

pytestmark = pytest.mark.usefixtures("interpreted", "in_double")
ENGINES = {"compiled": compiled, "xla": xla}
ASSERTIONS = """
assert (x > 0).all()
assert x.min() > 0, f"x is {x}, not positive"
assert 0 < x.min() < 100
assert not (x <= 0).any()
assert x.dim() == 2 and (x > 0).all() and (x < 100).all(), "x"
assert bool((x > 0).all())
assert (x > 0).all().item()
assert torch.allclose(x, x.abs())
torch._assert((x > 0).all(), "x")
if not (x > 0).all(): raise ValueError("x is not positive")
if (x <= 0).any(): raise ValueError("x: " + str(x.min()))
for row in x: assert row.min() > 0
""".strip().splitlines()
BRANCHES = """
assert (x > 0).all() or (x < 0).all()
y = x if (x > 0).all() else -x
if not (x > 0).all(): x = -x
while (x < 0).any(): x = x + 1
y = x * bool((x > 0).all())
y = x * x.min().item()
""".strip().splitlines()


def program(statement: str) -> Callable[[Tensor], Any]:
    """Return a function with the statement in it as Python has it: pytest writes the assert statements of tests anew."""
    names: dict[str, Any] = {"torch": torch}
    exec(f"def look(x):\n    {statement}\n", names)
    look: Callable[[Tensor], Any] = names["look"]
    return look


class Looks(nn.Module):
    """x ~ N(m, I), after a look at x."""

    def __init__(self, look: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.look = look
        self.m = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> None:
        self.look(x)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.m, 1.0).to_event(1), obs=x)


def trained(engine: Any, statement: str, batches: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the values of maximum likelihood on the batches, and the parameter after them."""
    pair, routine = Pair(Looks(program(statement)), likelihood="exact"), routines.maximum_likelihood()
    optimizers = optimizers_for(routine, pair, Optimizer("SGD", 0.1))
    values = engine.advance(routine, pair, optimizers, [[x] for x in batches])
    return values[:, 0], pair.model.m.detach()


GOOD = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
BAD = torch.tensor([[1.0, 2.0, 3.0], [4.0, -5.0, 6.0]])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("statement", ASSERTIONS)
def test_an_assertion_holds_or_the_value_is_nan(statement: str, engine: str) -> None:
    good, bad = GOOD.double(), BAD.double()
    values, m = trained(ENGINES[engine], statement, [good, good + 1])
    expected, at = trained(eager, statement, [good, good + 1])
    torch.testing.assert_close((values, m), (expected, at), rtol=1e-12, atol=1e-12)
    with pytest.raises((AssertionError, ValueError)):
        trained(eager, statement, [good, bad])
    values, _ = trained(ENGINES[engine], statement, [good, bad])
    assert values.isnan().tolist() == [False, True]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("statement", BRANCHES)
def test_a_choice_between_two_ways_is_refused(statement: str, engine: str) -> None:
    with pytest.raises(Unsupported):
        trained(ENGINES[engine], statement, [GOOD.double()])
