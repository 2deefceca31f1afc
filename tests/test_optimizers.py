"""Torch's optimizers under the three engines: what is in their groups, whose step it is, and what is refused."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.optim import optimizer as torch_optimizer
from torch.optim.lr_scheduler import ExponentialLR

from unigen import routines
from unigen.engines import engine_named
from unigen.engines.moves import settings
from unigen.networks import networks
from unigen.pair import Pair, PairError, Unsupported
from unigen.pairs import latent

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
        engine_named(engine).advance(
            routines.maximum_likelihood, pair, made, rows[part], None if rates is None else rates[part]
        )
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


def clip(optimizer: Any, *_: Any) -> None:
    nn.utils.clip_grad_value_([p for part in optimizer.param_groups for p in part["params"]], 0.1)


def stepped(pair: Pair) -> Groups:
    """An optimizer with a step of its own."""
    made = torch.optim.SGD(pair.group("theta"), lr=0.1)
    step = made.step

    def clipped() -> None:
        clip(made)
        step()

    made.step = clipped  # type: ignore
    return {"theta": made}


def wrapped(pair: Pair) -> Groups:
    """One whose step wraps that of a scheduler, with its marks."""
    made = scheduled(pair)
    step: Any = made["theta"].step

    @functools.wraps(step)
    def clipped() -> None:
        clip(made["theta"])
        step()

    made["theta"].step = clipped  # type: ignore
    return made


def scheduled(pair: Pair) -> Groups:
    made = torch.optim.SGD(pair.group("theta"), lr=0.1)
    ExponentialLR(made, 0.5)
    return {"theta": made}


@pytest.mark.parametrize("make", [stepped, wrapped])
def test_a_step_of_ones_own_is_taken_or_refused(make: Any, interpreted: None) -> None:
    assert off("compiled", make) < 1e-13
    with pytest.raises(Unsupported, match="no hooks of SGD.step, nor another in its place"):
        trained("xla", make)


@pytest.mark.parametrize("register", ["register_optimizer_step_pre_hook", "register_optimizer_step_post_hook"])
def test_hooks_of_all_optimizers_are_run_or_refused(register: str, interpreted: None) -> None:
    seen = []
    hook = getattr(torch_optimizer, register)(lambda optimizer, *_: (clip(optimizer), seen.append(optimizer))[1])
    try:
        assert off("compiled", scheduled) < 1e-13 and len(seen) == 12
        with pytest.raises(Unsupported, match="no hooks of SGD.step"):
            trained("xla", scheduled)
    finally:
        hook.remove()


@ENGINES
def test_a_scheduler_is_no_hook(engine: str, interpreted: None) -> None:
    assert off(engine, scheduled) < 1e-13


def shared(pair: Pair) -> Groups:
    both = torch.optim.Adam([*pair.group("theta"), *pair.group("phi")])
    return {"theta": both, "phi": both}


def adam(pair: Pair) -> Any:
    return torch.optim.Adam(pair.group("theta"))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (shared, PairError, "optimizer of theta holds a tensor that is no parameter of theta, as where it serves two"),
        (lambda pair: shared(pair) | {"phi": torch.optim.Adam(pair.group("phi"))}, PairError, "no parameter of theta"),
        (adam, TypeError, "optimizers are a dict by parameter group.*got Adam"),
        (lambda pair: {"theta": "adam"}, TypeError, "optimizer of theta is a str; give one of torch.optim"),
        (lambda pair: {"theta": ExponentialLR(adam(pair), 0.5)}, TypeError, "optimizer of theta is a ExponentialLR"),
        (lambda pair: {"theta": pyro.optim.Adam({"lr": 0.1})}, TypeError, "optimizer of theta is a PyroOptim"),
        (lambda pair: {"theta": torch.optim.LBFGS(pair.group("theta"))}, PairError, "LBFGS, evaluates its objective"),
        (lambda pair: {"thet": adam(pair)}, PairError, "'thet', which is no parameter group; did you mean 'theta'"),
    ],
    ids=["of two groups", "of more", "no dict", "a name", "a scheduler", "of Pyro", "LBFGS", "of no group"],
)
@pytest.mark.parametrize("engine", ["eager", "compiled", "xla"])
def test_what_are_no_optimizers_of_the_groups_is_refused(engine: str, make: Any, error: Any, words: str) -> None:
    pair = latent(networks("mlp", (2,), 1, hidden=(3,)), "normal")
    before = copy.deepcopy(pair.state_dict())
    with pytest.raises(error, match=words):
        engine_named(engine).advance(routines.wake_sleep, pair, make(pair), [[torch.ones(4, 2)]])
    assert all(torch.equal(value, before[name]) for name, value in pair.state_dict().items())


@pytest.mark.parametrize("rates", [[[0.1, 0.1]] * 6, [[]] * 6, [[0.1]] * 5, []], ids=["long", "short", "few", "none"])
@pytest.mark.parametrize("engine", ["eager", "compiled", "xla"])
def test_rates_that_do_not_fit_are_refused(engine: str, rates: Any, interpreted: None) -> None:
    pair = start()
    with pytest.raises(
        ValueError, match=r"rates .* for 6 steps; give a row a step, with one for each of the 1 parameter"
    ):
        engine_named(engine).advance(routines.maximum_likelihood, pair, {"theta": adam(pair)}, batches(), rates)
    assert all(torch.equal(*both) for both in zip(pair.parameters(), start().parameters(), strict=True))


@ENGINES
def test_rates_may_be_a_tensor(engine: str, interpreted: None) -> None:
    assert off(engine, lambda pair: {"theta": adam(pair)}, rates=torch.linspace(0.1, 0.2, 6).view(6, 1)) < 1e-13


ADAMS = {
    "lr": {"lr": torch.tensor(0.1)},
    "betas": {"betas": (torch.tensor(0.9), torch.tensor(0.99))},
    "decay": {"weight_decay": torch.tensor(0.1)},
}


@pytest.mark.parametrize("name", ADAMS)
def test_factors_of_adam_in_less_than_the_precision_of_the_weights(name: str, interpreted: None) -> None:
    """Torch computes them with the precision of a tensor among the settings."""

    def make(pair: Pair) -> Groups:
        return {"theta": torch.optim.AdamW(pair.group("theta"), **{"lr": 0.1, **ADAMS[name]})}

    assert off("compiled", make) < 1e-13
    with pytest.raises(Unsupported, match="AdamW has a tensor of fewer digits than its weights"):
        trained("xla", make)


TENSORS = {
    "Adam of as many digits": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.1, dtype=torch.float64)),
    "Adam, fused": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.1), fused=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=torch.tensor(0.9)),
    "Nesterov": lambda p: torch.optim.SGD(p, lr=torch.tensor(0.01), momentum=torch.tensor(0.9), nesterov=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=torch.tensor(0.01), weight_decay=torch.tensor(0.1)),
}


@pytest.mark.parametrize("name", TENSORS)
@ENGINES
def test_settings_may_be_tensors(engine: str, name: str, interpreted: None) -> None:
    assert off(engine, lambda pair: {"theta": TENSORS[name](pair.group("theta"))}) < 1e-13


@ENGINES
def test_a_momentum_of_none_is_one_that_begins(engine: str, interpreted: None) -> None:
    def forget(made: Groups) -> None:
        for state in made["theta"].state.values():
            state["momentum_buffer"] = None

    def make(pair: Pair) -> Groups:
        return {"theta": torch.optim.SGD(pair.group("theta"), lr=0.01, momentum=0.9, dampening=0.5)}

    states = [trained(each, make, between=forget)[0].state_dict() for each in (engine, "eager")]
    torch.testing.assert_close(*states, rtol=0, atol=1e-13)


@ENGINES
def test_a_scheduler_sees_the_steps(engine: str, interpreted: None) -> None:
    schedulers: list[Any] = []

    def make(pair: Pair) -> Groups:
        made = {"theta": torch.optim.SGD(pair.group("theta"), lr=0.1)}
        schedulers.append(ExponentialLR(made["theta"], 0.5))
        return made

    assert off(engine, make, between=lambda made: schedulers[-1].step()) < 1e-13  # it warns where it sees none
