"""Every phase of every routine is unbiased, exactly: replayed under every outcome, against the enumerated objective.

Nothing here is statistical. Discrete choices are exhausted (1e-10 in float64), normal latents integrated by Gauss-Hermite
(1e-8). The table is in cases.py, the densities by hand in oracles.py and worlds.py, the replay in replay.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from cases import CASES, Case, Context, complete, errors, evidence, exact, importance_bound
from oracles import bits, parameters
from replay import Midpoints, expected, outcomes, prepare, replay
from torch import Tensor
from torch.fx import GraphModule
from worlds import WORLDS, one_layer, smooth_gan

from tests.test_engines import is_random
from unigen import routines
from unigen.engines import compiled, eager
from unigen.engines.programs import Programs
from unigen.objectives import Network
from unigen.phases import Enumerate, Phase, Routine, Sleep, Tilted, Wake


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_mean_of_the_estimator_is_the_gradient(case: Case) -> None:
    value, gradient = exact(case, case.build())
    assert any(bool((g.abs() > 1e-3).any()) for g in gradient.values()), "the case has no gradient to get wrong"
    found = errors(case)
    assert found.keys() == gradient.keys() | {"value"}
    for name, error in found.items():
        assert error <= case.tolerance, f"{name} is off by {error:.3g}"


# -- compiled: the mean of its graph over every outcome ----------------------------------------------------------------


def scripted(graph: GraphModule) -> GraphModule:
    """Let the random operations of a graph ask the samplers that ``outcomes`` scripts."""

    def normal(like: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.distributions.Normal(torch.zeros_like(like), 1.0).sample()

    def multinomial(probabilities: Tensor, count: int, *_: Any, **__: Any) -> Tensor:
        return torch.distributions.Categorical(probabilities).sample((count,)).T

    samplers: dict[str, Callable[..., Tensor]] = {
        "bernoulli": lambda probabilities, *_, **__: torch.bernoulli(probabilities),
        "multinomial": multinomial,
        "normal_": normal,
        "rand_like": lambda like, *_, **__: torch.rand_like(like),
    }
    changed = copy.deepcopy(graph)
    for node in changed.graph.nodes:
        if is_random(node):
            node.target = samplers[node.target._opname]
    changed.recompile()
    return changed


def errors_of_the_graph(case: Case, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """As ``errors``, but of the graph of one step by ``compiled`` with rate 1, run operation by operation."""
    tiny, made = case.build(), []
    phase = replace(case.phase, steps=1, project=None)
    pair, x = tiny.pair, tiny.batch(case.rows)

    def caught(graph: GraphModule, arguments: list[Tensor]) -> GraphModule:
        made.append((scripted(graph), [argument.clone() for argument in arguments], [a.data_ptr() for a in arguments]))
        return graph

    moved = [(name, p) for name, p in parameters(pair).items() if name.split(".")[0] in phase.move]
    optimizers = {group: torch.optim.SGD(pair.group(group), 1.0) for group in phase.move}
    monkeypatch.setattr(compiled, "_compile", caught)
    compiled.advance((phase,), pair, optimizers, [[x]])
    ((graph, arguments, where),) = made

    def run() -> list[Tensor]:
        now = [argument.clone() for argument in arguments]
        (value,) = graph(*now)  # which writes the parameters in place
        return [value, *(now[where.index(p.data_ptr())] - arguments[where.index(p.data_ptr())] for _, p in moved)]

    total, sums = 0.0, [torch.zeros(()), *(torch.zeros_like(p) for _, p in moved)]
    for probability, each in outcomes(run, tiny.nodes, tiny.live):
        total += probability
        sums = [known + probability * new for known, new in zip(sums, each, strict=True)]
    assert abs(total - 1) <= 1e-10
    value, gradient = exact(case, case.build())
    found = {name: float((mean - gradient[name]).abs().max()) for (name, _), mean in zip(moved, sums[1:], strict=True)}
    return found | {"value": abs(float(sums[0]) - value)}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if number % 24 == 1 else pytest.mark.slow) for number, case in enumerate(CASES)],
    ids=lambda case: case.name,
)
def test_mean_of_the_graph_is_the_gradient(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, error in errors_of_the_graph(case, monkeypatch).items():
        assert error <= case.tolerance, f"{name} is off by {error:.3g}"


def test_every_routine_is_in_the_table() -> None:
    tested = {id_ for case in CASES for id_ in [(case.phase.maximize, case.phase.under, case.phase.against)]}
    fixed = {
        name for name in ("gan", "gan_minimax", "vae", "wake_sleep", "variational_em", "nvil", "reinforce", "aavae")
    }
    fixed |= {"maximum_likelihood", "wgan", "wgan_gp", "mmd"}
    for name in fixed:
        for phase in routines.catalogue()[name]:
            assert (phase.maximize, phase.under, phase.against) in tested, f"{name}: {phase}"
    declared = {case.name.split(" ")[0].split("(")[0] for case in CASES}
    assert declared >= set(routines.catalogue())


# -- A3: batches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("routine", "index", "rows"),
    [
        (routines.vae, 0, 6),
        (routines.wake_sleep, 0, 6),
        (routines.vimco(2), 0, 4),
        (routines.reweighted_wake_sleep(2), 0, 4),
        (routines.iwae(2), 0, 4),
        (routines.nvil, 0, 6),
        (routines.nvil, 1, 6),
        (routines.reinforce, 0, 6),
        (routines.beta_vae(3.0), 0, 6),
        (routines.variational_em, 0, 6),
        (routines.variational_em, 1, 6),
        (routines.maximum_likelihood, 0, 6),
        (routines.em(closed_form=False), 0, 6),
        (routines.rule_distillation(strength=3.0, share=0.4), 0, 6),
    ],
    ids=lambda value: value.name if isinstance(value, Routine) else str(value),
)
def test_average_over_every_subset_is_the_full_gradient(routine: Routine, index: int, rows: int) -> None:
    tiny, phase = one_layer(1), routine[index]
    full = expected(phase, tiny.pair, tiny.x[:rows])
    assert max(float(gradient.abs().max()) for gradient in full.gradient.values()) > 1e-3
    for size in range(1, rows):
        subsets = list(combinations(range(rows), size))
        means = [expected(phase, tiny.pair, tiny.x[list(subset)]) for subset in subsets]
        assert sum(mean.value for mean in means) / len(means) == pytest.approx(full.value, abs=1e-10)
        for name, gradient in full.gradient.items():
            average = sum((mean.gradient[name] for mean in means), torch.zeros(())) / len(means)
            assert float((average - gradient).abs().max()) <= 1e-10, (size, name)


PER_DATUM = [
    (routines.vae, 0, 1),
    (routines.beta_vae, 0, 1),
    (routines.nvil, 0, 1),
    (routines.nvil, 1, 1),
    (routines.wake_sleep, 0, 1),
    (routines.iwae(3), 0, 3),
    (routines.vimco(3), 0, 3),
    (routines.reweighted_wake_sleep(3), 0, 3),
    (routines.maximum_likelihood, 0, 1),
    (routines.em(closed_form=False), 0, 1),
]


@pytest.mark.parametrize(
    ("routine", "index", "particles"), PER_DATUM, ids=[f"{routine.name} {i + 1}" for routine, i, _ in PER_DATUM]
)
def test_a_datum_does_not_feel_its_batch(routine: Routine, index: int, particles: int) -> None:
    """Batch size 1 = batch size 64 per datum: values, weights, and the mean of the gradients."""
    tiny, phase = one_layer(2, 6), routine[index]
    pair, x = tiny.pair, bits(6)
    prepare(pair, x)
    buffers = [buffer for group in ("theta", "phi", "psi") for buffer in pair.group_buffers(group)]
    before = [buffer.clone() for buffer in buffers]

    def once(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, float, list[torch.Tensor]]:
        for buffer, old in zip(buffers, before, strict=True):
            buffer.copy_(old)
        with Midpoints(particles):
            draw = eager.draw(phase.under, Programs(pair, phase.move, phase.estimator), pair.bind(rows))
            f, weights = phase.maximize(draw).detach(), draw.weights
            for buffer, old in zip(buffers, before, strict=True):
                buffer.copy_(old)
            return f, weights, *replay(phase, pair, rows)

    f, weights, value, gradient = once(x)
    alone = [once(row[None]) for row in x]
    assert float((f - torch.cat([one[0] for one in alone], -1)).abs().max()) <= 1e-10
    if weights is not None:
        assert float((weights - torch.cat([one[1] for one in alone if one[1] is not None], -1)).abs().max()) <= 1e-10
    assert value == pytest.approx(sum(one[2] for one in alone) / 64, abs=1e-10)
    for position, g in enumerate(gradient):
        mean = torch.stack([one[3][position] for one in alone]).mean(0)
        assert float((g - mean).abs().max()) <= 1e-10


# -- A6: bounds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", ["one layer", "two layers", "symbols", "belief 2-1", "mixture of bits", "unplated"])
def test_bounds_are_ordered(world: str) -> None:
    """ELBO = IWAE_1 <= IWAE_2 <= IWAE_3 <= IWAE_4 <= log p(x), strictly where q is not the posterior."""
    tiny = WORLDS[world]()
    x = tiny.batch(1)
    values = [expected(routines.vae[0], tiny.pair, x).value]
    values += [expected(routines.iwae(k)[0], tiny.pair, x).value for k in (1, 2, 3)]
    t = parameters(tiny.pair)
    context = Context(tiny.tables(t, t, 1), None)
    values += [float(importance_bound(4, context).detach())]
    values += [float(evidence(context).detach())]
    values += [expected(routines.maximum_likelihood[0], tiny.pair, x).value]
    assert values[0] == pytest.approx(values[1], abs=1e-12)
    assert values[-1] == pytest.approx(values[-2], abs=1e-12)
    for lower, upper in zip(values[1:], values[2:-1], strict=False):
        assert upper - lower > 1e-6  # this q is far from the posterior, so each bound is strict


def test_bounds_meet_at_the_posterior() -> None:
    """With q(z|x) = p(z|x) every bound is log p(x), each sample's weight too."""
    tiny = WORLDS["symbols"]()
    t = parameters(tiny.pair)
    everything = tiny.tables(t, t, 3)
    with torch.no_grad():
        t["phi.table"][tiny.x[:3, 0]] = everything.p
    log_p = expected(routines.maximum_likelihood[0], tiny.pair, tiny.batch(1)).value
    for routine in (routines.vae, routines.iwae(2), routines.iwae(3)):
        assert expected(routine[0], tiny.pair, tiny.batch(1)).value == pytest.approx(log_p, abs=1e-12)
    fisher = expected(routines.em(closed_form=False)[0], tiny.pair, tiny.batch(2)).gradient
    for routine in (routines.vae, routines.reweighted_wake_sleep(2)):
        gradient = expected(routine[0], tiny.pair, tiny.batch(2)).gradient
        for name, g in fisher.items():  # at the posterior they all climb log p(x)
            assert float((gradient[name] - g).abs().max()) <= 1e-12


@pytest.mark.parametrize("world", ["one layer", "two layers", "unplated", "normal"])
def test_mean_score_is_zero(world: str) -> None:
    """A constant objective has no gradient, although each sample's score has one."""
    from unigen.phases import PHI, ScoreFunction

    def three(draw: Any) -> torch.Tensor:
        return 3 + 0 * draw.log_q

    tiny = WORLDS[world]()
    phase = Phase(three, Wake(), PHI, estimator=ScoreFunction())
    estimate = expected(phase, tiny.pair, tiny.batch(1))
    assert max(float(g.abs().max()) for g in estimate.gradient.values()) <= 1e-12
    prepare(tiny.pair, tiny.batch(1))
    singles = [gradients for _, (_, gradients) in outcomes(lambda: replay(phase, tiny.pair, tiny.batch(1)))]
    assert max(float(g.abs().max()) for gradients in singles for g in gradients) > 0.1


# -- EM in closed form -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", ["mixture of normals", "mixture of bits"])
def test_closed_form_em_never_lowers_the_likelihood(world: str) -> None:
    tiny = WORLDS[world]()
    likelihood = []
    for _ in range(12):
        t = parameters(tiny.pair)
        likelihood.append(float(evidence(Context(tiny.tables(t, t, 4), None)).detach()))
        eager.step(routines.em, tiny.pair, {}, tiny.x)
    gains = [after - before for before, after in zip(likelihood, likelihood[1:], strict=False)]
    assert min(gains) >= -1e-12
    assert gains[0] > 1e-3


def test_closed_form_em_solves_the_m_step() -> None:
    """At the new parameters E_old-posterior[log p(x, z)] is stationary."""
    tiny = WORLDS["mixture of normals"]()
    fixed = {name: value.detach().clone() for name, value in parameters(tiny.pair).items()}
    old = tiny.tables(fixed, fixed, 4).p
    posterior = old.exp() / old.exp().sum(1, keepdim=True)
    value = eager.step(routines.em, tiny.pair, {}, tiny.x)[0]
    t = parameters(tiny.pair)
    theta = {name: p for name, p in t.items() if name.startswith("theta")}
    q = (posterior * tiny.tables(t, t, 4).p).sum(1).mean()
    assert max(float(g.abs().max()) for g in torch.autograd.grad(q, list(theta.values()))) <= 1e-12
    assert float(value) == pytest.approx(float(complete(Context(None, tiny.tables(fixed, fixed, 4)))), abs=1e-12)
    assert float(q.detach()) > float(value)


# -- chains ------------------------------------------------------------------------------------------------------------


def test_persistent_chains_carry_on_where_they_stopped() -> None:
    """Over two steps the stored state moves by the squared transition matrix; contrastive divergence stores nothing."""
    tiny = WORLDS["rbm"]()
    phase = routines.persistent_contrastive_divergence(1)[0]
    prepare(tiny.pair, tiny.batch(1))
    t = parameters(tiny.pair)
    joint = tiny.log_likelihood(t, tiny.xs[:, None], tiny.zs).detach().exp()
    transition = (joint / joint.sum(1, keepdim=True)) @ (joint / joint.sum(0)).T
    start = int((tiny.xs == tiny.x[0]).all(1).nonzero())

    def two_steps() -> int:
        tiny.pair.chains = {}
        for _ in range(2):
            eager.objective(phase, tiny.pair, tiny.batch(1))
        (state,) = tiny.pair.chains.values()
        return int((tiny.xs == state[0]).all(1).nonzero())

    reached = torch.zeros(len(tiny.xs), dtype=torch.float64)
    for probability, state in outcomes(two_steps):
        reached[state] += probability
    assert float((reached - torch.linalg.matrix_power(transition, 2)[start]).abs().max()) <= 1e-12
    tiny.pair.chains = {}
    eager.objective(routines.contrastive_divergence(1)[0], tiny.pair, tiny.batch(1))
    assert tiny.pair.chains == {}


# -- equalities of declarations ----------------------------------------------------------------------------------------


def test_standard_equation_equals_the_named_routines() -> None:
    standard = routines.standard_equation
    assert standard() == routines.maximum_likelihood
    assert standard(0, 1, "jensen_shannon", "critic") == routines.gan_minimax  # the step that lowers JS
    assert standard(0, 1, "wasserstein", "critic") == routines.wgan
    for name in ("kullback_leibler", "pearson", "squared_hellinger"):
        assert standard(0, 1, name, "critic") == routines.f_gan(name)
    assert standard(0.5, 0.5, experience="constraint") == routines.posterior_regularization(
        "constraint", 2.0, learn=False
    )
    assert standard() != routines.em and standard(0, 1, "wasserstein", "critic") != routines.gan
    assert routines.beta_vae(1.0) != routines.beta_vae(4.0)
    assert Tilted(Sleep(), Network("f")) != Tilted(Enumerate(), Network("f"))


@pytest.mark.parametrize("routine", [routines.gan, routines.wgan, routines.iwgan(1)], ids=lambda r: r.name)
def test_latents_of_data_rows_do_not_matter(routine: Routine) -> None:
    """The other tests of the smooth GAN hold the unused z of the data rows at zero; here they vary as well."""
    tiny = smooth_gan()
    for phase in routine:
        fixed = expected(phase, tiny.pair, tiny.batch(1), 3, tiny.live)
        free = expected(phase, tiny.pair, tiny.batch(1), 3)
        assert free.outcomes == fixed.outcomes**2
        assert free.value == pytest.approx(fixed.value, abs=1e-12)
        for name, gradient in fixed.gradient.items():
            assert float((free.gradient[name] - gradient).abs().max()) <= 1e-12
