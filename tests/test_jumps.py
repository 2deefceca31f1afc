"""A density that jumps as a latent moves is warned of where the gradient goes along the path of its noise, and only there."""

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal, init_to_value
from torch import Tensor, nn

from tests.families import CATALOGUE, FAMILIES
from unigen import routines
from unigen.engines.checks import check
from unigen.engines.jumps import jumps
from unigen.engines.programs import Programs
from unigen.pair import Pair

JUMPING = {
    "where": lambda z: torch.where(z > 0, 2.0, -2.0),
    "round": torch.round,
    "small": lambda z: z + 0.1 * (z > 0.3),
    "sign": torch.sign,
    "index": lambda z: z.new_tensor([0.0, 1.0, 3.0])[z.clamp(-1, 1).floor().long() + 1],
}
CONTINUOUS = {
    "line": lambda z: 3 * z,
    "relu": lambda z: torch.relu(50 * z),
    "where": lambda z: torch.where(z > 0, z, 0.1 * z),
    "steep": lambda z: 4 * torch.sigmoid(1000 * z),
    "absolute": torch.abs,
    "clamp": lambda z: z.clamp(-0.1, 0.1),
    "large": lambda z: 1e4 * torch.sin(z),
}


class Model(nn.Module):
    """z ~ N(0, 1); x ~ N(f(z) + b, 1)."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f, self.b = f, nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(self.f(z) + self.b, 1.0), obs=x)


class Guide(nn.Module):
    """z ~ N(a x, s)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.s = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.a * x, self.s.exp()))


class Changepoint(nn.Module):
    """Global: t ~ Gamma(2, 1/5) or N(10, 5), where the mean of twenty counts changes, abruptly or over a width of one."""

    def __init__(self, abrupt: bool, positive: bool) -> None:
        super().__init__()
        self.abrupt, self.positive = abrupt, positive

    def forward(self, x: Tensor) -> None:
        t = pyro.sample("t", dist.Gamma(2.0, 0.2) if self.positive else dist.Normal(10.0, 5.0))
        after = torch.arange(len(x)) - t
        share = (after > 0).to(x) if self.abrupt else torch.sigmoid(after)
        with pyro.plate("times", len(x)):
            pyro.sample("x", dist.Poisson(3 + 4 * share), obs=x)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def number(request: pytest.FixtureRequest) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


def sentence(pair: Pair, x: Any) -> str | None:
    return jumps(Programs(pair), pair.bind(x))


@pytest.mark.parametrize("rows", [16, 100])
@pytest.mark.parametrize("kind", JUMPING)
def test_a_jump_is_seen(kind: str, rows: int, number: torch.dtype) -> None:
    """Of sixteen lines, each some two standard deviations long, one crosses the place but for once in thousands of draws."""
    found = sentence(Pair(Model(JUMPING[kind]), Guide()), torch.linspace(-1, 1, rows))
    assert found is not None and "site 'x' of the model jumps" in found and "as 'z' moves" in found


@pytest.mark.parametrize("kind", CONTINUOUS)
@pytest.mark.parametrize("rows", [1, 3, 16, 100])
def test_what_is_continuous_is_no_jump(kind: str, rows: int, number: torch.dtype) -> None:
    assert sentence(Pair(Model(CONTINUOUS[kind]), Guide()), torch.linspace(-1, 1, rows)) is None


class Saturated(nn.Module):
    """z ~ Beta(1, 1) in the model and Beta(2, 0.05) in the guide, whose draws are at 1 but for rounding."""

    def __init__(self, of_guide: bool) -> None:
        super().__init__()
        self.of_guide, self.b = of_guide, nn.Parameter(torch.tensor(0.05 if of_guide else 1.0))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Beta(x.new_full((len(x),), 2.0 if self.of_guide else 1.0), self.b))
            if not self.of_guide:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_rounding_of_the_values_is_no_jump(number: torch.dtype) -> None:
    """log(1 - z) steps with the last digit of z."""
    for seed in range(5):
        assert (
            sentence(Pair(Saturated(False), Saturated(True)), torch.randn(30, generator=torch.manual_seed(seed)))
            is None
        )


@pytest.mark.parametrize("auto", [AutoNormal, AutoMultivariateNormal])
@pytest.mark.parametrize("positive", [False, True])
def test_a_changepoint(auto: Any, positive: bool) -> None:
    """Global latents too, and constrained ones, by autoguides that draw them through a point mass."""
    x = torch.tensor([3.0, 2, 4, 3, 2, 3, 4, 2, 1, 5, 8, 6, 7, 9, 8, 7, 7, 8, 4, 9])
    for abrupt in (True, False):
        model = Changepoint(abrupt, positive)
        guide = auto(model, init_loc_fn=init_to_value(values={"t": torch.tensor(10.0)}), init_scale=0.5)
        guide(x)
        found = sentence(Pair(model, guide), x)
        assert (found is not None) == abrupt, found


def test_only_where_the_gradient_goes_along_the_path() -> None:
    pair, x = Pair(Model(JUMPING["where"]), Guide()), torch.linspace(-1, 1, 20)
    for routine in (routines.vae(), routines.iwae(3), routines.iwae(3, "doubly_reparameterized")):
        with pytest.warns(
            UserWarning,
            match=r"density of site 'x' of the model jumps by .* as 'z' moves.*vae\(estimator=score_function\)",
        ):
            check(routine, pair, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for routine in (
            routines.by_name("vae(estimator=score_function)"),
            routines.wake_sleep(),
            routines.reweighted_wake_sleep(3),
        ):
            check(routine, pair, x)


@pytest.mark.parametrize("family", sorted({family for _, _, family in CATALOGUE}))
def test_no_pair_of_the_package_jumps(family: str) -> None:
    pair, x = FAMILIES[family]()
    assert sentence(pair, x) is None
