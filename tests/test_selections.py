"""``y[mask] = x[mask]`` in a program that an engine writes down: the gradients of eager, or a refusal."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from torch import Tensor, nn

from unigen import Pair, fit, routines
from unigen.optimizers import optimizers_for
from unigen.pair import Unsupported
from unigen.phases import Optimizer

pytestmark = pytest.mark.usefixtures("interpreted", "in_double")
ENGINES = ["compiled", "xla"]


class Flow(nn.Module):
    """x = f(u), u ~ N(0, 4 I)."""

    def __init__(self, transform: Any) -> None:
        super().__init__()
        self.transform = transform
        self.inside = transform if isinstance(transform, nn.Module) else transform.inv  # the parameters of an inverse

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            base = dist.Normal(x.new_zeros(3), 2.0).to_event(1)
            pyro.sample("x", dist.TransformedDistribution(base, [self.transform]), obs=x)


class Shift(nn.Module):
    """x ~ N(f(x0), I) with weights; ``f`` has a mask in it that depends on the data and the weights."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.Parameter(torch.tensor([0.5, -1.0, 2.0]))

    def forward(self, x: Tensor, start: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.function(start * self.weights, start), 1.0).to_event(1), obs=x)


def ends(engine: str, start: Pair, batches: Any) -> list[Tensor]:
    pair, routine = copy.deepcopy(start), routines.maximum_likelihood()
    optimizers = optimizers_for(routine, pair, Optimizer("SGD", 0.01))
    fit(batches, routine, pair, optimizers, steps=4, engine=engine, progress=False)
    return [parameter.detach() for parameter in pair.parameters()]


SPLINES = {
    "linear": lambda: transforms.spline(3),
    "quadratic, forwards": lambda: transforms.spline(3, order="quadratic").inv,
    "quadratic": lambda: transforms.spline(3, order="quadratic"),  # with an assert in it
    "coupling": lambda: transforms.spline_coupling(3, hidden_dims=[6]),
    "autoregressive": lambda: transforms.spline_autoregressive(3, [6]).inv,
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", SPLINES)
def test_splines(name: str, engine: str) -> None:
    """Batches of one shape have other numbers of elements outside of the box, which ends at 3."""
    torch.manual_seed(0)
    pair, few = Pair(Flow(SPLINES[name]()), likelihood="exact"), torch.linspace(-4, 4, 15).reshape(5, 3)
    batches = [few, 2 * few]
    assert [int((x.abs() > 3).sum()) for x in batches] == [4, 10]
    torch.testing.assert_close(ends(engine, pair, batches), ends("eager", pair, batches), rtol=1e-9, atol=1e-11)


def put(y: Tensor, x: Tensor) -> Tensor:
    y = y.clone()
    y[x > 0] = x[x > 0]  # two masks, of the same numbers
    return y


def changed(y: Tensor, x: Tensor) -> Tensor:
    y, mask = y.clone(), y > 0
    y[mask] = (2 * y[mask]).log() + y[mask]  # of the others, no number
    return y


def added(y: Tensor, x: Tensor) -> Tensor:
    y, mask = y * 1, x > 0
    y[mask] += 1
    return y


def of_rows(y: Tensor, x: Tensor) -> Tensor:
    y, mask = y.clone(), x.sum(-1) > 0
    y[mask] = y[mask] * torch.tensor([1.0, 2.0, 3.0])
    return y


def number(y: Tensor, x: Tensor) -> Tensor:
    y = y.clone()
    y[y > 0] = 0.3
    return y


def fixed(y: Tensor, x: Tensor) -> Tensor:
    mask = torch.tensor([True, False, True])
    return y * y[:, mask].sum(-1, keepdim=True)


def summed(y: Tensor, x: Tensor) -> Tensor:
    return y + 0 * y[y > 0].sum()


def turned(y: Tensor, x: Tensor) -> Tensor:
    y, mask = y.clone(), x > 0
    y[mask] = y[mask] + 0 * y[mask].flip(0)
    return y


def counted(y: Tensor, x: Tensor) -> Tensor:
    y, mask = y.clone(), x > 0
    y[mask] = y[mask] + 0 * len(y[mask])
    return y


def measured(y: Tensor, x: Tensor) -> Tensor:
    y, mask = y.clone(), x > 0
    y[mask] = y[mask] + 0 * y[mask].shape[0]
    return y


def data() -> list[tuple[Tensor, Tensor]]:
    stream = torch.Generator().manual_seed(1)
    return [tuple(torch.randn(2, 5, 3, generator=stream, dtype=torch.float64)) for _ in range(2)]  # type: ignore[misc]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("function", [changed, added, of_rows, number], ids=lambda f: f.__name__)
def test_what_a_mask_selects_may_be_changed_one_by_one(function: Any, engine: str) -> None:
    pair, batches = Pair(Shift(function), likelihood="exact"), data()
    theirs = ends("eager", pair, batches)
    assert all(parameter.isfinite().all() for parameter in theirs)
    torch.testing.assert_close(ends(engine, pair, batches), theirs, rtol=1e-9, atol=1e-11)


def test_a_mask_that_stays_selects_as_it_does() -> None:
    pair, batches = Pair(Shift(fixed), likelihood="exact"), data()
    torch.testing.assert_close(ends("xla", pair, batches), ends("eager", pair, batches), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("function", [put, summed, turned, counted, measured], ids=lambda f: f.__name__)
def test_other_uses_are_refused(function: Any, engine: str) -> None:
    with pytest.raises(
        Unsupported, match=r"of x\[mask\] .*test_selections\.py:\d+; write it with torch\.where|cannot express"
    ):
        ends(engine, Pair(Shift(function), likelihood="exact"), data())
