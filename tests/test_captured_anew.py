"""What a captured program has read of the pair beside the values of tensors, and what a caller may change between two calls."""

from __future__ import annotations

import contextlib
import copy
import random
import re
import warnings
from collections import UserDict, deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn
from worlds import InverseFlow

from unigen.engines import ENGINES, engine_named
from unigen.engines.draw import Draw
from unigen.evaluate import guide_draws, log_likelihood
from unigen.networks import networks
from unigen.optimizers import optimizers_for
from unigen.pair import Pair, PairError, Unsupported
from unigen.pairs import latent
from unigen.phases import PHI, Optimizer, Phase, Wake
from unigen.routines import maximum_likelihood, vae
from unigen.streams import own_of_python
from unigen.training import fit

pytestmark = pytest.mark.usefixtures("interpreted")


class Model(nn.Module):
    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.expand(*z.shape[:-1], 2), 1.0).to_event(1), obs=x)


class Guide(nn.Module):
    """All but a point, so that engines with noise of their own agree."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.drop, self.temperature = nn.Linear(2, 1), nn.Dropout(1.0), 1.0
        self.layers, self.plain, self.settings = 1, torch.tensor(1.0, dtype=torch.float64), {"scale": 1.0}
        self.register_buffer("shift", torch.tensor(0.0))

    def forward(self, x: Tensor) -> None:
        scale = self.temperature * self.layers * self.plain * self.settings["scale"]
        with pyro.plate("data", len(x)):
            loc = self.drop(self.net(x) * scale + self.shift)
            pyro.sample("z", dist.Normal(loc, 1e-13).to_event(1))


GUIDE = Guide()
GUIDE.drop.eval()


def aim(draw: Draw) -> Tensor:
    return -(draw["z"] - draw.x.sum(-1, keepdim=True) - 1).square().sum(-1)


ROUTINE = (Phase(aim, Wake(), PHI),)


def frozen(pair: Pair) -> None:
    pair.guide.net.weight.requires_grad_(False)


def replaced(pair: Pair) -> None:
    pair.guide.net = nn.Linear(2, 1, dtype=torch.float64)
    for parameter in pair.guide.net.parameters():
        nn.init.constant_(parameter, 0.3)


def annealed(pair: Pair) -> None:
    pair.guide.temperature = 0.25


def training(pair: Pair) -> None:
    pair.guide.drop.train()


def clipped(pair: Pair) -> None:
    pair.guide.net.weight.register_hook(lambda slope: slope.clamp(min=-0.01, max=0.02))


DATA = torch.linspace(-1, 2, 16, dtype=torch.float64).view(8, 2)


def moved_buffer(pair: Pair) -> None:
    pair.guide.shift = torch.tensor(2.0, dtype=torch.float64)


def seen(pair: Pair) -> None:
    pair.guide.net.register_forward_hook(lambda module, given, out: out * 0.3)


def seen_before(pair: Pair) -> None:
    pair.guide.net.register_forward_pre_hook(lambda module, given: (given[0] * 0.3,))


def another_forward(pair: Pair) -> None:
    net = pair.guide.net
    net.forward = lambda x: 0.3 * nn.functional.linear(x, net.weight, net.bias)


def counted(pair: Pair) -> None:
    pair.guide.layers = 3


def replaced_tensor(pair: Pair) -> None:
    pair.guide.plain = torch.tensor(0.3, dtype=torch.float64)


def set_globally(pair: Pair) -> None:
    pair.guide.settings["scale"] = 0.3


CHANGES = (frozen, replaced, annealed, training, clipped, moved_buffer, seen, seen_before, another_forward, counted)
CHANGES += (replaced_tensor, set_globally)


def step(pair: Pair, engine: str) -> list[Tensor]:
    before = [parameter.detach().clone() for parameter in pair.guide.parameters()]
    optimizers = optimizers_for(ROUTINE, pair, Optimizer("SGD", 0.1))
    fit(DATA, ROUTINE, pair, optimizers, steps=1, engine=engine, progress=False)
    return [now.detach() - then for now, then in zip(pair.guide.parameters(), before, strict=True)]


@pytest.mark.parametrize("engine", ["compiled", "xla"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_between_two_calls_is_the_change_of_eager(change: Callable[[Pair], None], engine: str) -> None:
    pair = Pair(Model(), Guide()).double()
    pair.guide.drop.eval()
    other, steps = copy.deepcopy(pair), []
    for each, name in ((pair, "eager"), (other, engine)):
        first = step(each, name)
        change(each)
        second = step(each, name)
        steps.append([*first, *second])
        assert change is not replaced or all(float(part.abs().max()) > 1e-3 for part in second)
        assert any(float((a - b).abs().max()) > 1e-3 for a, b in zip(first, second, strict=True))
    for mine, theirs in zip(*steps, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


def filled() -> Pair:
    pair = Pair(Model(), copy.deepcopy(GUIDE)).double()
    for parameter in pair.guide.parameters():
        nn.init.constant_(parameter, 0.3)
    return pair


BETA, LISTED, ARRAY, NAMED = 1.0, [1.0], numpy.ones(1), SimpleNamespace(inner=SimpleNamespace(beta=1.0))


class Weighted:
    beta = 1.0

    def factor(self) -> float:
        return self.beta

    def __call__(self, draw: Draw) -> Tensor:
        return aim(draw) * self.factor()


WEIGHTED = Weighted()


def enclosing() -> tuple[Callable[[Draw], Tensor], Callable[[float], None]]:
    beta = 1.0

    def objective(draw: Draw) -> Tensor:
        return aim(draw) * beta

    def put(value: float) -> None:
        nonlocal beta
        beta = value

    return objective, put


ENCLOSED, put_enclosed = enclosing()


def of_global(draw: Draw) -> Tensor:
    return sum(aim(draw) * BETA for _ in range(1))


def of_list(draw: Draw) -> Tensor:
    return aim(draw) * LISTED[0]


def of_array(draw: Draw) -> Tensor:
    return aim(draw) * torch.from_numpy(ARRAY)


def of_attribute(draw: Draw) -> Tensor:
    return aim(draw) * NAMED.inner.beta


def of_argument(draw: Draw, settings: SimpleNamespace) -> Tensor:
    return aim(draw) * settings.inner.beta


def put_everywhere(value: float) -> None:
    global BETA
    BETA, LISTED[0], ARRAY[0], NAMED.inner.beta, WEIGHTED.beta = (value,) * 5
    put_enclosed(value)


READING = [of_global, of_list, of_array, of_attribute, ENCLOSED, WEIGHTED, partial(of_argument, settings=NAMED)]


@pytest.mark.parametrize("engine", ["compiled", "xla"])
@pytest.mark.parametrize(
    "objective", READING, ids=lambda objective: getattr(objective, "__name__", type(objective).__name__)
)
def test_a_number_of_python_that_a_callback_changes_is_the_number_of_eager(objective: Any, engine: str) -> None:
    ends = []
    for name in ("eager", engine):
        put_everywhere(1.0)
        pair = filled()
        routine = (Phase(objective, Wake(), PHI),)
        optimizers = optimizers_for(routine, pair, Optimizer("SGD", 0.01))
        betas = iter((3.0, 0.5, 1.0))
        fit(
            DATA,
            routine,
            pair,
            optimizers,
            steps=6,
            engine=name,
            record_every=2,
            callbacks=[lambda state, history, betas=betas: put_everywhere(next(betas))],
            progress=False,
        )
        ends.append([parameter.detach() for parameter in pair.guide.parameters()])
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-11)


class Slotted:
    __slots__ = ("beta",)

    def __init__(self) -> None:
        self.beta = 1.0


def one() -> Tensor:
    return torch.tensor(1.0, dtype=torch.float64)


# how something is made, how a program reads a number there, and how another is put there
Held = tuple[Callable[[], Any], Callable[[Any], Any], Callable[[Any, float], Any]]
HELD: dict[str, Held] = {
    "dict in a dict": (lambda: {"kl": {"beta": 1.0}}, lambda h: h["kl"]["beta"], lambda h, b: h["kl"].update(beta=b)),
    "list in a list": (lambda: [[1.0]], lambda h: h[0][0], lambda h, b: h[0].insert(0, b)),
    "long dict": (lambda: dict.fromkeys(range(100), 1.0), lambda h: h[70], lambda h, b: h.update({70: b})),
    "deque": (lambda: deque([1.0]), lambda h: h[0], lambda h, b: h.appendleft(b)),
    "UserDict": (lambda: UserDict(beta=1.0), lambda h: h["beta"], lambda h, b: h.update(beta=b)),
    "slots": (Slotted, lambda h: h.beta, lambda h, b: setattr(h, "beta", b)),
    "getattr": (
        lambda: SimpleNamespace(beta=1.0),
        lambda h: getattr(h, "beta"),  # noqa: B009
        lambda h, b: setattr(h, "beta", b),
    ),
    "vars": (lambda: SimpleNamespace(beta=1.0), lambda h: vars(h)["beta"], lambda h, b: setattr(h, "beta", b)),
    "function": (lambda: lambda: None, lambda h: h.beta, lambda h, b: setattr(h, "beta", b)),
    "tensor in a dict": (lambda: {"beta": one()}, lambda h: h["beta"], lambda h, b: h.update(beta=one() * b)),
    "data of a tensor": (one, lambda h: h, lambda h, b: setattr(h, "data", one() * b)),
    "long array": (lambda: numpy.ones(100), lambda h: torch.from_numpy(h)[70], lambda h, b: h.fill(b)),
    "longer array": (lambda: numpy.ones(70000), lambda h: torch.from_numpy(h)[70], lambda h, b: h.fill(b)),
}


class Holding:
    """An objective that reads a number somewhere."""

    def __init__(self, make: Callable[[], Any], read: Callable[[Any], Any]) -> None:
        self.held, self.read = make(), read

    def __call__(self, draw: Draw) -> Tensor:
        return aim(draw) * self.read(self.held)


@pytest.mark.parametrize("engine", ["compiled", "xla"])
@pytest.mark.parametrize("held", HELD)
def test_a_number_is_found_wherever_it_is_held(held: str, engine: str) -> None:
    make, read, put = HELD[held]
    ends = []
    for name in ("eager", engine):
        pair, objective = filled(), Holding(make, read)
        put(objective.held, 1.0)
        routine = (Phase(objective, Wake(), PHI),)
        optimizers = optimizers_for(routine, pair, Optimizer("SGD", 0.01))
        for beta in (1.0, 0.5, 1.0):
            put(objective.held, beta)
            fit(DATA, routine, pair, optimizers, steps=1, engine=name, progress=False)
        ends.append([parameter.detach() for parameter in pair.guide.parameters()])
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-11)


class Remembering(Guide):
    calls = 0

    def forward(self, x: Tensor) -> None:
        self.calls += 1
        self.last = self.net(x)
        super().forward(x)


def of_last(draw: Draw) -> Tensor:
    return aim(draw) - draw.pair.guide.last.square().sum(-1)


@pytest.mark.parametrize("engine", ["compiled", "xla"])
def test_what_a_program_writes_itself_is_no_change(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    captured = []
    module = engine_named(engine)
    name = "_Phase" if engine == "compiled" else "capture_phase"
    original = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *given: captured.append(1) or original(*given))
    pair = Pair(Model(), Remembering()).double()
    pair.guide.drop.eval()
    for _ in range(3):
        fit(DATA, (Phase(of_last, Wake(), PHI),), pair, steps=1, engine=engine, progress=False)
        pair.guide(DATA)
    assert len(captured) == 2  # the second to see that what is counted changes nothing


class Counting(Model):
    """A model that counts its calls, and weighs by the count."""

    count = 0

    def forward(self, x: Tensor) -> None:
        self.count += 1
        with poutine.scale(scale=min(1.0, self.count / 40)):
            super().forward(x)


class Keeping(Model):
    """The same, by a number that stands in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = {"count": 0}

    def forward(self, x: Tensor) -> None:
        self.kept["count"] += 1
        with poutine.scale(scale=torch.tensor(min(1.0, self.kept["count"] / 40))):
            super().forward(x)


class Averaging(Guide):
    """A guide with a running mean that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.zeros(1)

    def forward(self, x: Tensor) -> None:
        self.mean = 0.9 * self.mean + 0.1 * self.net(x).detach().mean(0)
        super().forward(x - self.mean)


class Last(Guide):
    """A guide that remembers its last output in a dict, from call to call the same."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> None:
        before = self.outputs.get("last", torch.zeros(8, 1))
        self.outputs["last"] = self.net(x).detach()
        super().forward(x - before)


class OfPython(Model):
    """A model that asks Python for random numbers."""

    def forward(self, x: Tensor) -> None:
        super().forward(x * (random.random() < 2))


class OfNumpy(Model):
    """A model that asks numpy for them."""

    def forward(self, x: Tensor) -> None:
        super().forward(x * float(numpy.random.uniform() < 2))  # noqa: NPY002


@pytest.mark.parametrize("engine", ["compiled", "xla"])
@pytest.mark.parametrize("guide", [Averaging, Last])
def test_a_program_that_keeps_a_tensor_is_refused_and_left_as_it_was(guide: type[Guide], engine: str) -> None:
    pair = Pair(Model(), guide())
    pair.guide.drop.eval()
    pair.guide.plain = torch.tensor(1.0)
    x = DATA.float()
    fit(x, ROUTINE, pair, steps=1, progress=False)
    kept = dict(vars(pair.guide)), dict(getattr(pair.guide, "outputs", {}))
    with pytest.raises(Unsupported, match="'(mean|outputs)' changes by a call of the program.*copy_"):
        fit(x, ROUTINE, pair, steps=1, engine=engine, progress=False)
    assert all(vars(pair.guide)[name] is value for name, value in kept[0].items())
    assert all(pair.guide.outputs[name] is value for name, value in kept[1].items())


class Shown(Guide):
    """A guide that keeps what it computes for a plot, and results that it needs again."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[Tensor] = []
        self.masks: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> None:
        if len(x) not in self.masks:
            self.masks[len(x)] = torch.ones(len(x), 1, dtype=x.dtype)
        out = self.net(x).detach()
        self.shown = out
        self.history.append(out)
        super().forward(x * self.masks[len(x)])


@pytest.mark.parametrize("engine", ["compiled", "xla"])
def test_what_a_program_keeps_to_be_shown_is_none_of_the_capture(engine: str) -> None:
    ends = []
    for name in ("eager", engine):
        guide = Shown()
        for parameter in guide.parameters():
            nn.init.constant_(parameter, 0.3)
        pair = Pair(Model(), guide).double()
        pair.guide.drop.eval()
        optimizers = optimizers_for(ROUTINE, pair, Optimizer("SGD", 0.01))
        seen: list[float] = []
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for x in (DATA, DATA[:5], DATA):
                show = [lambda state, history, seen=seen, guide=guide: seen.append(guide.shown.sum().item())]
                fit(x, ROUTINE, pair, optimizers, steps=2, engine=name, progress=False, callbacks=show)
        ends.append([parameter.detach() for parameter in pair.guide.parameters()])
        assert all(type(part) is Tensor for part in (*guide.history, *guide.masks.values())) and seen
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-11)
    sentences = [str(each.message) for each in told if "runs only when it is captured" in str(each.message)]
    named = [name for sentence in sentences for name in re.findall(r"'(\w+)',", sentence)]
    assert sorted(named) == ["history", "masks", "shown"]  # each once


class Given(Model):
    def forward(self, x: Tensor, settings: Any) -> None:
        with poutine.scale(scale=settings.beta):
            super().forward(x)


@pytest.mark.parametrize("engine", ["compiled", "xla"])
@pytest.mark.parametrize("kind", [SimpleNamespace, Weighted])
def test_an_object_that_is_given_as_data_is_refused(kind: type, engine: str) -> None:
    settings = kind()
    settings.beta = 0.5
    pair = Pair(Given(), Guide()).double()
    with pytest.raises(
        PairError, match=f"data 'settings' is an object, of {kind.__name__}, in which numbers may change"
    ):
        fit({"x": DATA, "settings": settings}, ROUTINE, pair, steps=1, engine=engine, progress=False)


@pytest.mark.parametrize("engine", ["compiled", "xla"])
@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Counting, "'count' changes by a call of the program"),
        (Keeping, "'kept' changes by a call of the program"),
        (OfPython, "draws random numbers of Python or numpy"),
        (OfNumpy, "draws random numbers of Python or numpy"),
    ],
)
def test_a_program_that_changes_by_itself_is_refused(model: type[Model], words: str, engine: str) -> None:
    pair = Pair(model(), Guide()).double()
    fit(DATA, vae, pair, steps=2, progress=False)
    with pytest.raises(PairError, match=f"{words}.*engine='eager'"):
        fit(DATA, vae, pair, steps=2, engine=engine, progress=False)


def test_what_a_capture_draws_of_python_is_put_back() -> None:
    for draw in (random.random, numpy.random.uniform):
        before = random.getstate(), str(numpy.random.get_state())  # noqa: NPY002
        with own_of_python() as drawn:
            assert not drawn()
            draw()
            assert drawn()
        assert (random.getstate(), str(numpy.random.get_state())) == before  # noqa: NPY002


@pytest.mark.parametrize("engine", ["compiled", "xla"])
def test_two_arguments_of_one_tensor_may_differ_in_the_next_batch(engine: str) -> None:
    torch.manual_seed(0)
    clean, ends = torch.randn(8, 2, dtype=torch.float64), []
    noisy = clean + torch.randn_like(clean)
    for name in ("eager", engine):
        torch.manual_seed(0)
        pair = Pair(Denoising()).double()
        optimizers = optimizers_for(maximum_likelihood, pair, Optimizer("SGD", 0.1))
        for batch in ((clean, clean), (noisy, clean)):
            fit(batch, maximum_likelihood, pair, optimizers, steps=1, engine=name, progress=False)
        ends.append([parameter.detach() for parameter in pair.model.parameters()])
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-11)


class Selecting(Model):
    """A model that picks columns by a mask that is a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = torch.zeros(2, dtype=torch.bool)

    def forward(self, x: Tensor) -> None:
        w = torch.ones(2, dtype=x.dtype)
        w[self.mask] = 0.5
        with poutine.scale(scale=w.sum()):
            super().forward(x)


@pytest.mark.parametrize("engine", ["compiled", "xla"])
def test_a_mask_that_is_a_plain_attribute_may_change_in_place(engine: str) -> None:
    ends = []
    for name in ("eager", engine):
        pair = Pair(Selecting(), copy.deepcopy(GUIDE)).double()
        pair.guide.plain = one()
        optimizers = optimizers_for(JOINT, pair, Optimizer("SGD", 0.01))
        for _ in range(2):
            fit(DATA, JOINT, pair, optimizers, steps=1, engine=name, progress=False)
            pair.model.mask.fill_(True)
        ends.append([parameter.detach() for parameter in pair.guide.parameters()])
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-11)


class Denoising(nn.Module):
    """The clean x given a noisy one."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 2)

    def forward(self, noisy: Tensor, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.net(noisy), 1.0).to_event(1), obs=x)


class Refilled:
    """Batches in one tensor that each fills anew."""

    def __iter__(self) -> Iterator[Tensor]:
        batch = torch.empty_like(DATA)
        for number in range(12):
            yield batch.copy_(DATA + number)


@pytest.mark.parametrize("engine", ["compiled", "xla"])
def test_batches_may_come_in_one_tensor(engine: str) -> None:
    ends = []
    for name in ("eager", engine):
        pair = filled()
        routine = (Phase(joint, Wake(), PHI),)
        optimizers = optimizers_for(routine, pair, Optimizer("SGD", 0.01))
        _, history = fit(Refilled(), routine, pair, optimizers, steps=12, record_every=1, engine=name, progress=False)
        ends.append(torch.tensor(history.values))
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("engine", ["compiled", "xla"])
def test_a_program_that_is_captured_time_and_again_is_told_why(engine: str) -> None:
    pair = Pair(Model(), Guide()).double()
    pair.guide.drop.eval()
    put_everywhere(1.0)
    with pytest.warns(
        UserWarning, match="'BETA' changes between calls, and the programs were captured 8 times"
    ) as told:
        fit(
            DATA,
            (Phase(of_global, Wake(), PHI),),
            pair,
            steps=12,
            engine=engine,
            record_every=1,
            callbacks=[lambda state, history: put_everywhere(1.0 + state.step)],
            progress=False,
        )
    assert len(told) == 1


def joint(draw: Draw) -> Tensor:
    return draw.log_p


JOINT = (Phase(joint, Wake(), PHI),)


@pytest.mark.parametrize("engine", ["compiled", "xla"])
def test_a_handler_that_the_caller_enters_counts(engine: str) -> None:
    ends = []
    for name in ("eager", engine):
        pair = filled()
        routine = (Phase(joint, Wake(), PHI),)
        optimizers = optimizers_for(routine, pair, Optimizer("SGD", 0.01))
        for scale in (1.0, 0.5, 0.1):
            with pyro.poutine.scale(scale=scale):
                fit(DATA, routine, pair, optimizers, steps=1, engine=name, progress=False)
        ends.append([parameter.detach() for parameter in pair.guide.parameters()])
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("engine", ["compiled", "xla"])
def test_a_permutation_that_a_program_looks_at(engine: str, in_double: None) -> None:
    """An inverse autoregressive flow goes through the numbers of a buffer, and is captured anew where they are others."""
    ends, x = [], torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    start = Pair(InverseFlow(), likelihood="exact")
    start.model.norm = nn.Identity()
    routine = maximum_likelihood()
    for name in ("eager", engine):
        pair = copy.deepcopy(start)
        optimizers = optimizers_for(routine, pair, Optimizer("SGD", 0.1))
        found = []
        for _ in range(3):
            fit(x, routine, pair, optimizers, steps=2, engine=name, progress=False)
            found.append([parameter.detach().clone() for parameter in pair.parameters()])
            permutation = pair.model.step.arn.permutation
            permutation.copy_(permutation.roll(1))
        ends.append(found)
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-11)


class Rows(nn.Module):
    """x ~ Normal(table[k], 1), with one k for all data."""

    def __init__(self, index: Callable[[Rows, Tensor], Tensor | int]) -> None:
        super().__init__()
        self.index, self.attribute = index, torch.tensor(1)
        self.table = nn.Parameter(torch.arange(8.0).reshape(4, 2).sin())
        self.register_buffer("buffer", torch.tensor(1))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = self.index(self, x)
            pyro.sample("x", dist.Normal(self.table[k] + self.table[0, k - 2], 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("engine", ["compiled", "xla"])
@pytest.mark.parametrize(
    "index",
    [
        pytest.param(lambda rows, x: rows.buffer, id="buffer"),
        pytest.param(lambda rows, x: rows.attribute, id="attribute"),
        pytest.param(lambda rows, x: int(rows.attribute), id="attribute that is read"),
        pytest.param(lambda rows, x: x[:, 0].argmax(), id="data"),
        pytest.param(lambda rows, x: rows.table[:2, 1].argmax() + 1, id="weights"),
    ],
)
def test_an_index_of_one_number_may_change(
    index: Callable[[Rows, Tensor], Tensor | int], engine: str, in_double: None
) -> None:
    start, ends = Pair(Rows(index), likelihood="exact"), []
    for name in ("eager", engine):
        pair, found = copy.deepcopy(start), []
        optimizers = optimizers_for(maximum_likelihood, pair, Optimizer("SGD", 0.1))
        for k in (1, 2):
            pair.model.buffer.fill_(k)
            pair.model.attribute.fill_(k)
            x = torch.eye(3, 2).roll(k, 0) + pair.model.table.detach()[0]
            fit(x, maximum_likelihood, pair, optimizers, steps=2, engine=name, progress=False)
            with torch.no_grad():
                pair.model.table[:2, 1] = pair.model.table[:2, 1].flip(0)
            found.append(pair.model.table.detach().clone())
        ends.append(found)
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-11)


def written_row(rows: Rows, k: Tensor) -> Tensor:
    bank = rows.table.clone()
    bank[k].mul_(3.0)
    return bank.sum(0)


def row_of_what_is_written(rows: Rows, k: Tensor) -> Tensor:
    bank = rows.table.clone()
    row = bank[k]
    bank.mul_(3.0)
    return row


class Written(Rows):
    """x ~ Normal of rows of the table, by a program that writes to them."""

    def __init__(self, index: Callable[[Rows, Tensor], Tensor], row: Callable[[Rows, Tensor], Tensor]) -> None:
        super().__init__(index)
        self.row = row

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.row(self, self.index(self, x)), 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("engine", ["compiled", "xla"])
@pytest.mark.parametrize("row", [written_row, row_of_what_is_written])
@pytest.mark.parametrize("kind", ["buffer", "attribute", "data"])
def test_a_program_may_write_to_a_row_only_by_a_number_that_stays(
    kind: str, row: Callable[[Rows, Tensor], Tensor], engine: str, in_double: None
) -> None:
    start = Pair(
        Written(lambda rows, x: x[:, 0].argmax() if kind == "data" else getattr(rows, kind), row), likelihood="exact"
    )
    ends = []
    for name in ("eager", engine):
        pair = copy.deepcopy(start)
        optimizers = optimizers_for(maximum_likelihood, pair, Optimizer("SGD", 0.1))
        refused = (
            pytest.raises(Unsupported, match="writes to x.k..*test_captured_anew")
            if kind == "data" and name != "eager"
            else None
        )
        with refused or contextlib.nullcontext():
            fit(torch.eye(3, 2), maximum_likelihood, pair, optimizers, steps=2, engine=name, progress=False)
            ends.append(pair.model.table.detach())
    if kind != "data":
        torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-11)


class OfMaskedWeights(nn.Module):
    """x ~ N(w, 1), w the exponential of weights where a mask of floating numbers is 1, as in block autoregressive flows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1.0, 1.0, 3))
        self.register_buffer("mask", torch.tensor([1.0, 0.0, 1.0]))

    def forward(self, x: Tensor) -> None:
        w = torch.zeros_like(self.weight)
        w[self.mask.bool()] = self.weight[self.mask.bool()].exp()
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("engine", ["compiled", "xla"])
def test_a_mask_of_floating_numbers_that_a_program_looks_at(engine: str, in_double: None) -> None:
    ends, x = [], torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    for name in ("eager", engine):
        pair, found = Pair(OfMaskedWeights(), likelihood="exact"), []
        optimizers = optimizers_for(maximum_likelihood(), pair, Optimizer("SGD", 0.1))
        for _ in range(2):
            fit(x, maximum_likelihood(), pair, optimizers, steps=2, engine=name, progress=False)
            found.append(pair.model.weight.detach().clone())
            pair.model.mask.copy_(1 - pair.model.mask)
        ends.append(found)
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-11)


def test_a_buffer_that_is_looked_at_and_written_to_is_refused(in_double: None) -> None:
    pair = Pair(InverseFlow(), likelihood="exact")
    before = copy.deepcopy(pair.state_dict())
    with pytest.raises(Unsupported, match="_local_scalar_dense"):
        fit(torch.randn(5, 3), maximum_likelihood(), pair, steps=1, engine="compiled", progress=False)
    torch.testing.assert_close(pair.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("engine", ["compiled", "xla"])
def test_automatic_casts_that_the_caller_enters_count(engine: str) -> None:
    """The gradient of a mean over many rows, to the three digits of bfloat16."""
    x = torch.randn(4096, 2, generator=torch.Generator().manual_seed(0))
    steps: dict[str, list[list[Tensor]]] = {"eager": [], engine: []}
    for name, found in steps.items():
        pair = Pair(Model(), Guide()).float()
        pair.guide.plain = pair.guide.plain.float()
        pair.guide.drop.eval()
        for enabled in (False, True):
            for parameter in pair.guide.parameters():
                nn.init.constant_(parameter, 0.3)
            optimizers = optimizers_for(ROUTINE, pair, Optimizer("SGD", 1.0))
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                fit(x, ROUTINE, pair, optimizers, steps=1, engine=name, progress=False)
            found.append([parameter.detach().clone() for parameter in pair.guide.parameters()])
    torch.testing.assert_close(*(found[0] for found in steps.values()), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*(found[1] for found in steps.values()), rtol=1e-2, atol=1e-3)
    assert all(any(bool((a != b).any()) for a, b in zip(*found, strict=True)) for found in steps.values())


@pytest.mark.parametrize("engine", ENGINES)
def test_another_guide_is_the_one_that_is_trained_and_evaluated(engine: str) -> None:
    ends = []
    for replaced_first in (False, True):
        guides = [copy.deepcopy(GUIDE), copy.deepcopy(GUIDE)]
        nn.init.constant_(guides[1].net.bias, 2.0)
        pair = Pair(Model(), guides[0 if replaced_first else 1]).double()
        if replaced_first:
            fit(DATA, ROUTINE, pair, steps=1, engine=engine, progress=False)
            log_likelihood(pair, DATA, 2)
            pair.guide = guides[1].double()
        fit(DATA, ROUTINE, pair, steps=2, engine=engine, progress=False)
        ends.append([*(p.detach() for p in pair.guide.parameters()), sample_of(pair)])
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-9)


def sample_of(pair: Pair) -> Tensor:
    return guide_draws(pair, DATA, 1)["z"].double()


def test_programs_that_do_not_go_together_leave_the_pair_as_it_was() -> None:
    pair = Pair(Model(), Guide(), {"critic": nn.Linear(2, 1)})
    before = pair.guide
    with pytest.raises(PairError, match="guide argument 'y' is not one of the model's: x"):
        pair.guide = lambda y: None
    with pytest.raises(PairError, match="belongs to both phi and psi"):
        pair.psi = {"critic": pair.guide.net}
    assert pair.guide is before and [name for name, _ in pair.named_group("psi")] == ["critic.weight", "critic.bias"]
    pair.guide = before.forward
    assert not pair.group("phi") and pair.guide == before.forward
    pair.guide, pair.psi = before, None
    assert len(pair.group("phi")) == 2 and not pair.group("psi")


def test_an_optimizer_of_a_network_that_was_replaced_is_refused() -> None:
    pair = Pair(Model(), Guide()).double()
    optimizers = optimizers_for(ROUTINE, pair)
    replaced(pair)
    with pytest.raises(PairError, match="optimizer of phi holds a tensor that is no parameter of phi"):
        fit(torch.zeros(8, 2, dtype=torch.float64), ROUTINE, pair, optimizers, steps=1, progress=False)


def test_an_optimizer_of_two_groups_which_would_step_twice_is_refused() -> None:
    pair = latent(networks("mlp", (4,), 2, hidden=(3,)), "normal")
    both = torch.optim.SGD([*pair.group("theta"), *pair.group("phi")], 0.1)
    with pytest.raises(PairError, match="theta, as where it serves two groups"):
        fit(torch.rand(8, 4), vae, pair, {"theta": both, "phi": both}, steps=1, progress=False)


def test_hooks_of_an_optimizer_run_before_its_step() -> None:
    pair = Pair(Model(), Guide()).double()
    pair.guide.drop.eval()
    optimizer = torch.optim.Adam(pair.group("phi"), 0.1)
    norms: list[float] = []

    def clip(*_: object) -> None:
        norms.append(float(nn.utils.clip_grad_norm_(pair.group("phi"), 1e-3)))

    optimizer.register_step_pre_hook(clip)
    x = torch.linspace(-1, 2, 16, dtype=torch.float64).view(8, 2)
    fit(x, ROUTINE, pair, {"phi": optimizer}, steps=3, engine="compiled", progress=False)
    assert len(norms) == 3 and norms[0] > 0.1
    moments = torch.cat([optimizer.state[p]["exp_avg"].flatten() for p in pair.group("phi")])
    assert float(moments.norm()) <= 1e-3


@pytest.mark.parametrize("engine", ["compiled", "xla"])
def test_a_hook_after_the_gradient_is_in_place_is_refused(engine: str) -> None:
    pair = Pair(Model(), Guide()).double()
    pair.guide.net.weight.register_post_accumulate_grad_hook(lambda parameter: None)
    with pytest.raises(Unsupported, match="register_post_accumulate_grad_hook, which only engine='eager' runs"):
        step(pair, engine)


class Wider(Guide):
    """A guide with a number on which only some objectives depend."""

    def __init__(self) -> None:
        super().__init__()
        self.extra, self.drop = nn.Parameter(torch.tensor(0.3)), nn.Identity()


def outer(draw: Draw) -> Tensor:
    return aim(draw) - (draw.pair.guide.extra * draw.x.sum(-1) - 1).square()


OUTER = (Phase(outer, Wake(), PHI),)
Kind = type[torch.optim.Optimizer]
Train = Callable[..., object]


class AMSGrad(torch.optim.Adam):
    """An optimizer that takes its own step behind a compiled gradient."""

    def __init__(self, parameters: object, lr: object) -> None:
        super().__init__(parameters, lr, amsgrad=True)


BOUND = 0.15


def clamp(parameters: list[Tensor]) -> None:
    for parameter in parameters:
        parameter.clamp_(-BOUND, BOUND)


def divided(pair: Pair, kind: Kind, train: Train) -> None:
    weight, bias, extra = pair.guide.parameters()
    halves = [{"params": [weight, extra], "lr": 0.1}, {"params": [bias], "lr": 0.01}]
    for groups in (halves, halves[::-1], [{"params": [bias, extra, weight]}]):
        train(OUTER, kind(groups, lr=0.03))


def thawed(pair: Pair, kind: Kind, train: Train) -> None:
    optimizer = kind(pair.guide.parameters(), lr=0.03)
    for trained in (True, False, True):
        pair.guide.net.weight.requires_grad_(trained)
        train(OUTER, optimizer)


def in_turn(pair: Pair, kind: Kind, train: Train) -> None:
    optimizer = kind(pair.guide.parameters(), lr=0.03)
    for _ in range(2):
        train((*ROUTINE, *OUTER), optimizer)


def slowed(pair: Pair, kind: Kind, train: Train) -> None:
    lr = torch.tensor(0.03, dtype=torch.float64)
    optimizer = kind(pair.guide.parameters(), lr=lr)
    for _ in range(3):
        train(OUTER, optimizer)
        lr.mul_(0.3)


def held(pair: Pair, kind: Kind, train: Train) -> None:
    clip = replace(ROUTINE[0], project=clamp)
    train((*OUTER, clip), kind(pair.guide.parameters(), lr=0.03))
    assert float(pair.guide.extra.detach().abs()) <= BOUND


@pytest.mark.parametrize("engine", ["compiled", "xla"])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.RMSprop, torch.optim.SGD, AMSGrad])
@pytest.mark.parametrize("course", [divided, thawed, in_turn, slowed, held])
def test_optimizers_move_the_parameters_as_in_eager(course: Callable[..., None], kind: Kind, engine: str) -> None:
    if kind is AMSGrad and engine == "xla":
        pytest.skip("xla has no rule for it and refuses it")
    ends = []
    for name in ("eager", engine):
        pair = Pair(Model(), Wider()).double()
        for value, parameter in enumerate(pair.guide.parameters()):
            nn.init.constant_(parameter, 0.2 * value - 0.1)

        def train(routine: tuple[Phase, ...], optimizer: torch.optim.Optimizer, pair=pair, name=name) -> None:
            fit(DATA, routine, pair, {"phi": optimizer}, steps=3, engine=name, progress=False)

        course(pair, kind, train)
        ends.append([parameter.detach() for parameter in pair.guide.parameters()])
    torch.testing.assert_close(*ends, rtol=1e-8, atol=1e-9)


KINDS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "script": torch.jit.script,
    "trace": lambda net: torch.jit.trace(net, DATA[:3].float()),
    "compile": lambda net: torch.compile(net, backend="eager"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ["compiled", "xla"])
def test_a_network_that_torch_has_compiled_takes_part_as_any_other(kind: str, engine: str) -> None:
    ends = []
    for name, build in (("eager", nn.Module.eval), (engine, KINDS[kind])):
        guide = copy.deepcopy(GUIDE)
        guide.net = build(guide.net)
        pair = Pair(Model(), guide).double()
        for _ in range(2):
            fit(DATA, ROUTINE, pair, steps=2, engine=name, progress=False)
        ends.append([parameter.detach() for parameter in pair.guide.parameters()])
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("entered", [torch.no_grad, torch.inference_mode, torch.autograd.detect_anomaly])
def test_training_trains_whatever_the_caller_has_entered(entered: Callable[..., Any], engine: str) -> None:
    ends = []
    for context in (contextlib.nullcontext, entered):
        pair = Pair(Model(), copy.deepcopy(GUIDE)).double()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what anomaly detection costs
            with context():
                fit(DATA, ROUTINE, pair, steps=2, engine=engine, progress=False)
        ends.append([parameter.detach() for parameter in pair.guide.parameters()])
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-11)
