"""Every engine gives the values, gradients and steps of ``eager``, for every routine on every pair family, with the same noise.

``compiled``: its graph is run operation by operation, where the random operations draw what ``eager`` draws, and compiled,
where what they drew is handed in. ``xla`` is handed what torch drew. Gradients are read off a step of plain gradient descent
with rate 1: theta' = theta + g.
"""

import copy
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from tests.families import CATALOGUE
from tests.test_isolation import CASES, FAMILIES
from unigen import routines
from unigen.engines import compiled, eager, xla
from unigen.engines.checks import check_once
from unigen.engines.surroundings import Draws
from unigen.networks import networks
from unigen.optimizers import optimizers_for
from unigen.pair import Pair, PairError, Unsupported
from unigen.pairs import adversarial
from unigen.pairs.likelihoods import Likelihood
from unigen.phases import PHI, THETA, Optimizer, Phase, Routine, Wake
from unigen.training import State, fit

every_case = pytest.mark.parametrize(("routine", "family"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])


def world(family: str, dtype: torch.dtype = torch.float64) -> tuple[Pair, Tensor]:
    pair, x = FAMILIES[family]()
    return pair.to(dtype), x.to(dtype)


def descents(pair: Pair, rate: float = 1.0) -> dict[str, torch.optim.Optimizer]:
    return {group: torch.optim.SGD(pair.group(group), rate) for group in ("theta", "phi", "psi") if pair.group(group)}


def difference(one: Pair, other: Pair) -> float:
    """The largest absolute difference of parameters, buffers and chains."""
    ours = [*one.parameters(), *one.buffers(), *one.chains.values()]
    theirs = [*other.parameters(), *other.buffers(), *other.chains.values()]
    return max(float((a.detach() - b.detach()).abs().max()) for a, b in zip(ours, theirs, strict=True))


def both(
    engine: Any,
    routine: Any,
    pair: Pair,
    x: Tensor,
    make: Callable[[Pair], Any],
    steps: int,
    more: Sequence[Tensor] | None = None,
) -> tuple[float, float]:
    """Take the same steps by ``eager`` and by an engine; return the largest differences of values and of tensors.

    ``more``: the batches of a phase's repetitions, by default ``x`` again.
    """
    other, seed = copy.deepcopy(pair), torch.seed() % 2**31
    batches = [[x] * max(phase.steps for phase in routine) if more is None else [x, *more]] * steps
    torch.manual_seed(seed)
    expected = eager.advance(tuple(routine), pair, make(pair), batches)
    torch.manual_seed(seed)
    values = engine.advance(tuple(routine), other, make(other), batches)
    return float((values - expected).abs().max()), difference(pair, other)


def given(
    routine: Any,
    pair: Pair,
    x: Tensor,
    make: Callable[[Pair], Any],
    steps: int,
    more: Sequence[Tensor] | None = None,
) -> tuple[float, float]:
    """Take the same steps by ``eager`` and by ``xla`` on the noise that torch drew; return what ``both`` does."""
    other = copy.deepcopy(pair)
    batches = [[x] * max(phase.steps for phase in routine) if more is None else [x, *more]] * steps
    check_once(tuple(routine), pair, x)  # which draws, too
    optimizers, rows, noise = make(pair), [], []
    for batch in batches:
        with Draws() as draws:
            rows.append(eager.advance(tuple(routine), pair, optimizers, [batch]))
        noise.append(draws.taken)
    values = xla.advance(tuple(routine), other, make(other), batches, noise=noise)
    return float((values - torch.cat(rows)).abs().max()), difference(pair, other)


def xla_takes_the_step_of_eager(routine: Routine, pair: Pair, x: Tensor) -> None:
    """Assert it in double precision, to 1e-9 of values and gradients."""
    before = [parameter.detach().clone() for parameter in pair.parameters()]
    rate = 1.0 if routine.batches == 1 else 1e-3  # repeated steps of rate 1 would amplify roundings
    value, tensors = given(routine, pair, x, lambda p: descents(p, rate), 1)
    # over 60 pairs the penalty of wgan_gp has gradients of up to 7e5, which agree to 2e-14 of their size
    size = max(float((p.detach() - old).abs().max()) for p, old in zip(pair.parameters(), before, strict=True)) / rate
    assert size > 0 and value < 1e-9 and tensors < 1e-9 * rate * max(1.0, 1e-3 * size)


@every_case
def test_a_graph_takes_the_step_of_eager(routine: Routine, family: str, interpreted: None) -> None:
    pair, x = world(family)
    value, tensors = both(compiled, routine, pair, x, descents, 1)
    assert value < 1e-9 and tensors < 1e-9


@every_case
def test_a_graph_takes_the_step_of_eager_in_single_precision(routine: Routine, family: str, interpreted: None) -> None:
    pair, x = world(family, torch.float32)
    value, tensors = both(compiled, routine, pair, x, descents, 1)
    size = max(float(p.detach().abs().max()) for p in pair.parameters())
    assert value < 5e-6 * max(1.0, size) * 10 and tensors < 5e-6 * max(1.0, size)


SPREAD = (
    "em on mixture",
    "iwae on deep_latent",
    "posterior_regularization on flow",
    "rule_distillation on sigmoid_belief",
    "gan on adversarial",
    "persistent, two sweeps",
)


def in_ci(*names: str, among: Sequence[tuple[str, Routine, str]] = CASES) -> pytest.MarkDecorator:
    """Return the cases as parameters, all but the named ones slow."""
    assert set(names) <= {case[0] for case in among}
    cases = [pytest.param(*c[1:], id=c[0], marks=() if c[0] in names else pytest.mark.slow) for c in among]
    return pytest.mark.parametrize(("routine", "family"), cases)


def once() -> list[tuple[str, Routine, str]]:
    """Return a case of every routine of the catalogue, the families in turn, and a chain of two sweeps."""
    routines: dict[str, list[tuple[str, Routine, str]]] = {}
    for case in CATALOGUE:
        routines.setdefault(case[0].split(" on ")[0], []).append(case)
    return [*(each[number % len(each)] for number, each in enumerate(routines.values())), CASES[-1]]


@in_ci(*SPREAD)
def test_xla_takes_the_step_of_eager(routine: Routine, family: str) -> None:
    xla_takes_the_step_of_eager(routine, *world(family))


class Handed(Interpreter):
    """Run a graph and note what its random operations drew."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.drawn: list[Tensor] = []

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if is_random(n):
            self.drawn.append(result.clone())
        return result


def is_random(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def with_noise_as_arguments(graph: GraphModule) -> GraphModule:
    """Replace the random operations of a graph by further arguments, in their order."""
    changed = copy.deepcopy(graph)
    last = [node for node in changed.graph.nodes if node.op == "placeholder"][-1]
    for number, node in enumerate([node for node in changed.graph.nodes if is_random(node)]):
        with changed.graph.inserting_after(last):
            last = changed.graph.placeholder(f"noise_{number}")
        last.meta = dict(node.meta)
        node.replace_all_uses_with(last)
        changed.graph.erase_node(node)
    changed.recompile()
    return changed


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile with the noise of the same graph run operation by operation: on clones, since graphs write in place."""
    compile_it = compiled._compile

    def wrapped(graph: GraphModule, arguments: list[Tensor]) -> Callable[..., list[Tensor]]:
        functions: list[Any] = []

        def run(*tensors: Tensor) -> list[Tensor]:
            notes = Handed(graph)
            notes.run(*[tensor.clone() for tensor in tensors])
            if not functions:
                functions.append(compile_it(with_noise_as_arguments(graph), [*tensors, *notes.drawn]))
            return functions[0](*tensors, *notes.drawn)

        return run

    monkeypatch.setattr(compiled, "_compile", wrapped)


QUICK = (
    "vae on latent",
    "wake_sleep on sigmoid_belief",
    "wgan_gp on adversarial",
    "persistent, two sweeps",
    "em on mixture",
)


@in_ci(*QUICK)
def test_a_compiled_graph_takes_the_step_of_eager(routine: Routine, family: str, handed: None) -> None:
    pair, x = world(family)
    before = [parameter.detach().clone() for parameter in pair.parameters()]
    rate = 1.0 if routine.batches == 1 else 1e-3  # repeated steps of rate 1 would amplify roundings
    value, tensors = both(compiled, routine, pair, x, lambda p: descents(p, rate), 1)
    # over 60 pairs the penalty of wgan_gp has gradients of up to 7e5, which agree to 2e-14 of their size
    size = max(float((p.detach() - old).abs().max()) for p, old in zip(pair.parameters(), before, strict=True)) / rate
    assert value < 1e-9 and tensors < 1e-9 * rate * max(1.0, 1e-3 * size)


@pytest.mark.parametrize("optimizer", ["Adam", "AdamW", "decaying", "RMSprop", "SGD", "momentum", "nesterov"])
def test_a_hundred_steps(optimizer: str, interpreted: None) -> None:
    """The rule of each optimizer, in double precision, over 100 steps.

    Adam's division makes a rounding of a gradient that is near eps as large as lr / eps of it, over 100 steps by chance 1e-6
    with an eps of 1e-8; with one of 1e-4 at most 2e-11 was seen in 25 runs.
    """

    def make(pair: Pair) -> dict[str, torch.optim.Optimizer]:
        made: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
            "Adam": lambda p: torch.optim.Adam(p, 1e-2, eps=1e-4, fused=True),
            "AdamW": lambda p: torch.optim.AdamW(p, 1e-2, eps=1e-4, weight_decay=0.1),
            "decaying": lambda p: torch.optim.Adam(p, 1e-2, eps=1e-4, weight_decay=0.1),
            "RMSprop": lambda p: torch.optim.RMSprop(p, 1e-3, eps=1e-4),
            "SGD": lambda p: torch.optim.SGD(p, 1e-3, weight_decay=0.1),
            "momentum": lambda p: torch.optim.SGD(p, 1e-3, momentum=0.9),
            "nesterov": lambda p: torch.optim.SGD(p, 1e-3, momentum=0.9, nesterov=True),
        }
        return {group: made[optimizer](pair.group(group)) for group in ("theta", "phi")}

    pair, x = world("latent")
    value, tensors = both(compiled, routines.wake_sleep, pair, x, make, 100)
    assert value < 1e-6 and tensors < 1e-6


def steady(routine: Routine) -> Callable[[Pair], dict[str, torch.optim.Optimizer]]:
    """Return how the routine's own optimizers are made, with the eps of ``test_a_hundred_steps``."""

    def make(pair: Pair) -> dict[str, torch.optim.Optimizer]:
        made = optimizers_for(routine, pair)
        for part in [part for optimizer in made.values() for part in optimizer.param_groups]:
            part.update({"eps": 1e-4} if "eps" in part else {})
        return made

    return make


def stays_with_eager(way: Callable[..., tuple[float, float]], routine: Routine, family: str) -> None:
    """Assert that 100 steps with the same noise end within 1e-6 of those of ``eager``, and moved what the phases move."""
    pair, x = world(family)
    before = copy.deepcopy(pair)
    value, tensors = way(routine, pair, x, steady(routine), 100)
    assert value < 1e-6 and tensors < 1e-6
    for group in {group for phase in routine for group in phase.move}:
        ends = zip(before.group(group), pair.group(group), strict=True)
        assert max(float((old - new).detach().abs().max()) for old, new in ends) > 1e-3


@in_ci("maximum_likelihood on flow", "em on mixture", "persistent, two sweeps", among=once())
def test_a_hundred_steps_of_every_routine_as_a_graph(routine: Routine, family: str, interpreted: None) -> None:
    stays_with_eager(partial(both, compiled), routine, family)


@in_ci("gan_minimax on adversarial", "persistent, two sweeps", among=once())
def test_a_hundred_steps_of_every_routine_by_xla(routine: Routine, family: str) -> None:
    stays_with_eager(given, routine, family)


def test_an_optimizer_without_a_rule_takes_its_own_step(interpreted: None) -> None:
    pair, x = world("latent")
    value, tensors = both(
        compiled,
        routines.vae,
        pair,
        x,
        lambda p: {g: torch.optim.Adagrad(p.group(g), 0.1) for g in ("theta", "phi")},
        5,
    )
    assert value < 1e-9 and tensors < 1e-9


def test_a_run_may_change_engines(interpreted: None) -> None:
    """50 steps by one engine and 50 by the other, either order, end where 100 by ``eager`` do: the state is torch's."""
    ends = []
    for first, second in (("eager", "eager"), ("eager", "compiled"), ("compiled", "eager")):
        torch.manual_seed(0)
        pair, x = world("latent")
        optimizers = optimizers_for(routines.wake_sleep, pair)
        for engine in (first, second):
            fit(x, routines.wake_sleep, pair, optimizers, steps=50, engine=engine, progress=False)
        ends.append(pair)
    assert difference(ends[0], ends[1]) < 1e-6 and difference(ends[0], ends[2]) < 1e-6


def test_a_smaller_last_batch_is_captured_once_more(interpreted: None) -> None:
    pair, x = world("latent")
    fit([x, x[:3]], routines.vae, pair, steps=10, engine="compiled", progress=False)
    assert sum(isinstance(key, tuple) for key in pair.compiled) == 2


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("SGD", 1e-12),
        ("Adam", 1e-6),
    ],  # Adam divides by the gradient's size, and so makes rounding of the smallest ones large
)
def test_learning_rates_fall_within_a_call(interpreted: None, name: Any, bound: float) -> None:
    ends = []
    for engine in ("eager", "compiled"):
        torch.manual_seed(0)
        pair, x = world("latent")
        fit(
            x,
            routines.vae,
            pair,
            optimizers_for(routines.vae, pair, Optimizer(name, 1e-3)),
            steps=30,
            engine=engine,
            progress=False,
            schedule=lambda lr, t: lr * (1 - t),
            record_every=30,
        )
        ends.append(pair)
    assert difference(*ends) < bound


def test_the_way_of_recording_changes_nothing(interpreted: None) -> None:
    ends = []
    for every in (1, 7, 30):
        torch.manual_seed(0)
        pair, x = world("latent")
        fit(x, routines.vae, pair, steps=30, engine="compiled", progress=False, record_every=every)
        ends.append(pair)
    assert difference(ends[0], ends[1]) == difference(ends[0], ends[2]) == 0


def test_a_killed_compiled_run_goes_on_to_the_same_bits(tmp_path: Any) -> None:
    """Compiled in earnest: cut at step 13 of 30, and resumed by other objects."""

    def stop(state: State, _: Any) -> None:
        if state.step == 13:
            raise StopIteration

    ends = []
    for cut in (False, True):
        torch.manual_seed(3)
        pair, x = world("latent", torch.float32)
        start = copy.deepcopy(pair)
        more: dict[str, Any] = {"engine": "compiled", "progress": False, "record_every": 13}
        torch.manual_seed(4)
        if cut:
            with pytest.raises(KeyboardInterrupt):
                fit(
                    x,
                    routines.vae,
                    pair,
                    steps=30,
                    checkpoints=tmp_path,
                    interrupted=iter([False, True]).__next__,
                    **more,
                )
            torch.manual_seed(5)
            pair = start
            fit(x, routines.vae, pair, steps=30, checkpoints=tmp_path, **more)
        else:
            fit(x, routines.vae, pair, steps=30, **more)
        ends.append(pair)
    assert difference(*ends) == 0


def test_a_program_that_looks_at_values_is_refused_before_the_first_step(interpreted: None) -> None:
    def looking(draw: Any) -> Tensor:
        return draw.log_p if float(draw["z"].detach().sum()) > 0 else 2 * draw.log_p

    pair, x = world("latent")
    before = copy.deepcopy(pair)
    with pytest.raises(Unsupported, match="engine 'compiled' cannot express .* use engine='eager'"):
        fit(x, Routine((Phase(looking, Wake(), THETA + PHI),)), pair, steps=3, engine="compiled", progress=False)
    assert difference(before, pair) == 0


def test_a_wrong_pairing_is_refused_as_by_eager() -> None:
    pair, x = world("adversarial")
    with pytest.raises(PairError, match="site .z. of the model has no value from the guide"):
        fit(x, routines.vae, pair, steps=3, engine="compiled", progress=False)


def test_an_engine_that_is_not_there() -> None:
    pair, x = world("latent")
    with pytest.raises(ValueError, match="no engine 'compield'; did you mean 'compiled'"):
        fit(x, routines.vae, pair, steps=3, engine="compield")


@pytest.mark.parametrize("engine", ["eager", "compiled", "xla"])
def test_a_frozen_parameter_stays(engine: str, interpreted: None) -> None:
    """A GAN's generator has the scale of its likelihood frozen; nothing moves it."""
    likelihood = Likelihood("normal", bounded=False)
    pair = adversarial(networks("mlp", (2,), 2, hidden=(5,)), likelihood)
    before = {name: p.detach().clone() for name, p in pair.named_group("theta")}
    fit(torch.randn(6, 2), routines.gan, pair, steps=3, engine=engine, progress=False)
    moved = {name for name, p in pair.named_group("theta") if not torch.equal(p, before[name])}
    frozen = {name for name, p in pair.named_group("theta") if not p.requires_grad}
    assert frozen and moved == set(before) - frozen


def test_importing_an_engine_draws_nothing() -> None:
    script = (
        "import random, numpy, torch; from unigen.engines import engine_named; "
        "numpy.random.seed(0); before = numpy.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist();"
        "[engine_named(e) for e in ('eager', 'compiled', 'xla')]; "
        "assert before == (numpy.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist())"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
