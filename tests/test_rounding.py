"""Single precision against double: a flow whose inverse loses the digits of its samples says so."""

import copy
import warnings

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms

from unigen.engines.inverses import rounding
from unigen.evaluate import sample
from unigen.pair import Pair
from unigen.pairs import flow

ROWS = 2000


def steep(kind: str, factor: float) -> Pair:
    """A flow whose last layers' weights are multiplied, as training does with them."""
    pair = flow(2, kind=kind, steps=6, hidden=(16,), start=torch.randn(100, 2))
    with torch.no_grad():
        for step in pair.model.steps:
            network = step.nn if kind == "affine_coupling" else step.arn
            network.layers[-1].weight.mul_(factor)
    return pair


@pytest.mark.parametrize("kind", ["affine_coupling", "affine_autoregressive"])
def test_a_steep_flow_is_warned_of_and_a_gentle_one_is_not(kind: str) -> None:
    """The size that the warning names is that of density against density, in single and in double precision."""
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=r"flow of site 'x' is steep for float32: log p of \d.*double precision"):
        sample(steep(kind, 8.0), ROWS, torch.zeros(4, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(steep(kind, 1.0), ROWS, torch.zeros(4, 2))
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            sample(steep(kind, 8.0).double(), ROWS, torch.zeros(4, 2, dtype=torch.float64))
        finally:
            torch.set_default_dtype(before)


def test_rounding_is_the_difference_of_two_densities() -> None:
    torch.manual_seed(0)
    pair = steep("affine_coupling", 8.0)
    fn = pair.model.distribution()
    value = fn.sample((ROWS,))
    found = rounding(fn, value)
    exact = copy.deepcopy(pair).double().model.distribution().log_prob(value.double())
    difference = (pair.model.distribution().log_prob(value).double() - exact).abs().detach()
    assert found is not None and torch.allclose(found, difference, rtol=1e-3, atol=1e-5) and float(found.max()) > 1e-3
    assert next(pair.model.parameters()).dtype == torch.float32


def test_what_is_no_flow_or_has_no_inverse_has_no_rounding() -> None:
    value = torch.randn(3, 2)
    normal = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    assert rounding(normal, value) is None
    assert rounding(dist.TransformedDistribution(normal, [transforms.ExpTransform()]), value.exp()) is None
    assert rounding(dist.TransformedDistribution(normal, [transforms.planar(2)]), value) is None
