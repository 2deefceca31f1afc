"""softplus, and by it the log density of bits, in float32: torch's own in float64 is the oracle of values and derivatives."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from unigen.engines.bits import log_density
from unigen.softplus import logsigmoid, softplus

LOGITS = torch.cat([torch.linspace(-20, 20, 401), torch.tensor([-1e4, -104.0, -88.0, -1e-30, 0.0, 88.0, 104.0, 1e4])])


def both(logits: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return the density in float32, and torch's in float64, each with its slope and curvature along the logits."""
    found = []
    for dtype, density in ((torch.float32, log_density), (torch.float64, lambda fn, bits: fn.log_prob(bits))):
        at = logits.to(dtype).requires_grad_()
        log_p = density(dist.Bernoulli(logits=at, validate_args=False), value.to(dtype))
        (slope,) = torch.autograd.grad(log_p.sum(), at, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), at)
        found.append(torch.stack([log_p.detach(), slope.detach(), curvature]).double())
    return found[0], found[1]


@pytest.mark.parametrize(("function", "sign"), [(softplus, 1), (logsigmoid, -1)])
def test_softplus_and_log_sigma(function: Any, sign: int) -> None:
    x = LOGITS.double()
    exact = sign * torch.logaddexp(sign * x, torch.zeros_like(x))
    assert ((function(LOGITS) - exact).abs() <= 2e-7 * (1 + exact.abs())).all()
    torch.testing.assert_close(function(x), exact, rtol=1e-14, atol=0)
    assert torch.autograd.gradcheck(function, LOGITS[::20].double().requires_grad_())


@pytest.mark.parametrize("bit", [0.0, 0.3, 1.0])
def test_density_slope_and_curvature_are_those_of_torch(bit: float) -> None:
    mine, theirs = both(LOGITS, torch.full_like(LOGITS, bit))
    assert ((mine - theirs).abs() <= 2e-7 * (1 + theirs.abs())).all()  # three roundings


def test_a_grey_value_has_its_slope() -> None:
    value = torch.rand(5, requires_grad=True)
    logits = torch.randn(5)
    (slope,) = torch.autograd.grad(log_density(dist.Bernoulli(logits=logits, validate_args=False), value).sum(), value)
    assert torch.equal(slope, logits)


def test_shapes_are_those_of_torch() -> None:
    logits, value = torch.randn(3, 1, 4, 5), torch.bernoulli(torch.full((2, 4, 5), 0.5))
    plain = dist.Bernoulli(logits=logits)
    for fn in (plain, plain.to_event(1), plain.to_event(1).to_event(1), plain.expand((3, 2, 4, 5)).to_event(2)):
        assert log_density(fn, value).shape == fn.log_prob(value).shape
        torch.testing.assert_close(log_density(fn, value), fn.log_prob(value))


def test_what_is_no_bit_is_refused_where_torch_refuses_it() -> None:
    with pytest.raises(ValueError, match="within the support"):
        log_density(dist.Bernoulli(logits=torch.zeros(2), validate_args=True), torch.tensor([0.5, 1.0]))


@pytest.mark.parametrize(
    "fn",
    [
        dist.Bernoulli(probs=torch.tensor([0.2, 0.9])),
        dist.Bernoulli(logits=torch.randn(2)).mask(torch.tensor([True, False])),
        dist.Geometric(logits=torch.randn(2)),
    ],
)
def test_everything_else_is_left_to_its_distribution(fn: dist.Distribution) -> None:
    value = torch.tensor([1.0, 0.0]).to(fn.sample().dtype)
    assert torch.equal(log_density(fn, value), fn.log_prob(value))
