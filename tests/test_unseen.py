"""What no operation of a captured program shows: values that leave torch, and random numbers that are drawn again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.utils.checkpoint import checkpoint

from unigen.engines import ENGINES, engine_named
from unigen.engines.surroundings import Draws, kept_in_torch
from unigen.objectives import elbo
from unigen.optimizers import optimizers_for
from unigen.pair import Pair, Unsupported
from unigen.phases import THETA, Enumerate, Optimizer, Phase
from unigen.routines import maximum_likelihood

pytestmark = pytest.mark.usefixtures("interpreted", "in_double")
CAPTURING = [name for name in ENGINES if name != "eager"]
Mean = Callable[["Model", Tensor], Tensor]
X = torch.full((1, 1), 3.0, dtype=torch.float64)


class Model(nn.Module):
    """x ~ N(mean(self, x), 1)."""

    def __init__(self, mean: Mean) -> None:
        super().__init__()
        self.mean = mean
        self.w = nn.Parameter(torch.ones(1))
        self.register_buffer("order", torch.tensor([0]))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.mean(self, x), 1.0).to_event(1), obs=x)


def steps(engine: str, mean: Mean, count: int = 2) -> list[tuple[float, float]]:
    """Return the value of maximum likelihood at w = 1 and its gradient, by steps with fresh noise."""
    torch.manual_seed(0)
    pair, routine = Pair(Model(mean), likelihood="exact"), maximum_likelihood()
    optimizers, found = optimizers_for(routine, pair, Optimizer("SGD", 1.0)), []
    for _ in range(count):
        value = engine_named(engine).advance(routine, pair, optimizers, [[X]])
        found.append((round(float(value), 9), round(float(pair.model.w.detach()) - 1, 9)))
        with torch.no_grad():
            pair.model.w.fill_(1.0)
    return found


class InDerivative(torch.autograd.Function):
    """x, with a derivative that numpy computes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return torch.from_numpy(1 * g.numpy())


def in_hook(model: Model, x: Tensor) -> Tensor:
    w = model.w * 1
    if w.requires_grad:
        w.register_hook(lambda g: g * float(numpy.asarray(g.norm())))
    return w.expand_as(x)


LEAVING: dict[str, Mean] = {
    "numpy": lambda model, x: model.w * torch.from_numpy(2 * x.numpy()),
    "asarray": lambda model, x: model.w * torch.from_numpy(2 * numpy.asarray(x)),
    "tolist": lambda model, x: model.w * torch.tensor(x.tolist()),
    "dlpack": lambda model, x: model.w * torch.from_numpy(2 * numpy.from_dlpack(x)),
    "of a parameter": lambda model, x: model.w * torch.from_numpy(2 * model.w.detach().numpy()),
    "in a derivative": lambda model, x: InDerivative.apply(model.w).expand_as(x),  # type: ignore[no-untyped-call]
    "in a hook": in_hook,
}
STAYING: dict[str, Mean] = {
    "what numpy made": lambda model, x: model.w * torch.from_numpy(numpy.linspace(1, 2, 1)),
    "a buffer of whole numbers": lambda model, x: model.w[model.order.tolist()] * x[:, model.order.numpy()],
}


@pytest.mark.parametrize("engine", CAPTURING)
@pytest.mark.parametrize("mean", LEAVING.values(), ids=list(LEAVING))
def test_values_that_leave_torch_are_refused(mean: Mean, engine: str) -> None:
    steps("eager", mean)
    words = r"Tensor\.\w+ looks at the value of a tensor, in .*test_unseen\.py:\d+; .*engine='eager'"
    with pytest.raises(Unsupported, match=f"{words}|engine 'compiled' cannot express .* reads the value of a tensor"):
        steps(engine, mean)


@pytest.mark.parametrize("engine", CAPTURING)
@pytest.mark.parametrize("mean", STAYING.values(), ids=list(STAYING))
def test_values_that_nothing_changes_may_leave_torch(mean: Mean, engine: str) -> None:
    assert steps(engine, mean) == steps("eager", mean)


def test_values_that_xla_itself_makes_may_leave_torch() -> None:
    def mean(model: Model, x: Tensor) -> Tensor:
        return model.w * float(torch.arange(3).numpy().sum() + torch.ones(2).tolist()[1])

    assert steps("xla", mean) == steps("eager", mean)


def test_other_threads_may_look_at_values_meanwhile() -> None:
    before, found = Tensor.numpy, []
    with kept_in_torch(lambda _: False), Draws():  # a mode of this thread
        with pytest.raises(Unsupported):
            torch.ones(2).numpy()
        thread = threading.Thread(target=lambda: found.append(torch.ones(2).numpy().sum()))
        thread.start()
        thread.join()
    assert found == [2.0]
    assert Tensor.numpy is before


@contextmanager
def seeded(seed: Callable[[], Any]) -> Iterator[None]:
    with torch.random.fork_rng():
        seed()
        yield


def under(seed: Callable[[], Any], draw: Callable[[Tensor], Tensor]) -> Mean:
    def mean(model: Model, x: Tensor) -> Tensor:
        with seeded(seed):
            return model.w * draw(x)

    return mean


OWN = torch.Generator().manual_seed(3)
STATE = torch.get_rng_state()
SEEDS: dict[str, Callable[[], Any]] = {
    "manual_seed": lambda: torch.manual_seed(0),  # as steps() has it
    "set_rng_seed": lambda: pyro.set_rng_seed(3),
    "seed": torch.seed,
    "set_rng_state": lambda: torch.set_rng_state(STATE),
    "of the generator": lambda: torch.default_generator.manual_seed(3),
}
AGAIN: dict[str, Mean] = {
    **{name: under(seed, torch.randn_like) for name, seed in SEEDS.items()},
    "own generator": lambda model, x: model.w * torch.randn(1, generator=OWN),
    "in place": lambda model, x: model.w * torch.empty(1).normal_(generator=OWN),
    "forked": lambda model, x: model.w * under(lambda: None, torch.randn_like)(model, x) * torch.randn(1),
    "checkpoint": lambda model, x: checkpoint(lambda w: dropout(w.expand_as(x)).tanh(), model.w, use_reentrant=False),
}
ONCE: dict[str, Mean] = {
    **{name: under(seed, torch.ones_like) for name, seed in SEEDS.items() if name != "set_rng_seed"},  # Python's too
    "checkpoint": lambda model, x: checkpoint(lambda w: (w * x).tanh().exp(), model.w, use_reentrant=False),
}


@pytest.mark.parametrize("engine", CAPTURING)
@pytest.mark.parametrize("mean", AGAIN.values(), ids=list(AGAIN))
def test_random_numbers_that_come_again_are_refused(mean: Mean, engine: str) -> None:
    steps("eager", mean)
    with pytest.raises(Unsupported, match=r"aten\.\w+\.\w+ draws from a generator, or from a state .*engine='eager'"):
        steps(engine, mean)


@pytest.mark.parametrize("engine", CAPTURING)
@pytest.mark.parametrize("mean", ONCE.values(), ids=list(ONCE))
def test_streams_that_are_set_where_nothing_is_drawn(mean: Mean, engine: str) -> None:
    assert steps(engine, mean) == steps("eager", mean)


class Mixture(nn.Module):
    """z ~ one of three, x ~ N(the mean of z, of which some are dropped, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.ones(3, 1))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(x.new_ones(3)))
            pyro.sample("x", dist.Normal(dropout(self.means)[z], 1.0).to_event(1), obs=x)


def uniform(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Categorical(x.new_ones(3)))


@pytest.mark.parametrize("engine", CAPTURING)
def test_what_is_found_out_of_a_batch_of_another_size_draws_nothing(engine: str) -> None:
    pair, phases = Pair(Mixture(), uniform), (Phase(elbo, Enumerate(), THETA),) * 2
    for rows in (4, 2):
        values = engine_named(engine).advance(
            phases, pair, optimizers_for(phases, pair, Optimizer()), [[X.expand(rows, 1)]]
        )
        assert values.isfinite().all()


def dropped(model: Model, x: Tensor) -> Tensor:
    return dropout(model.w.expand_as(x), 0.5)


def dropped_outside(model: Model, x: Tensor) -> Tensor:
    kept = dropout(torch.ones_like(x), 0.5)
    return checkpoint(lambda w: w * kept, model.w, use_reentrant=False)  # type: ignore[no-any-return]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mean", [dropped, dropped_outside])
def test_value_and_gradient_are_of_the_same_noise(mean: Mean, engine: str) -> None:
    at = {h: round(float(dist.Normal(float(h), 1.0).log_prob(X)), 9) for h in (0, 2)}  # w dropped, or twice it
    assert set(steps(engine, mean, 20)) == {(at[0], 0.0), (at[2], 2.0)}
