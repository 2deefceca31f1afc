"""A phase changes bitwise only what it names: parameters, gradients, optimizer state and buffers; a check changes nothing.

Every routine of the catalogue runs on every pair family that it is declared for, one phase at a time. All the networks
hold batch norm, so that a program that runs without being moved would show in its buffers.
"""

import math

import pytest
import torch
from families import CATALOGUE, FAMILIES
from torch import Tensor

from unigen import routines
from unigen.engines import eager
from unigen.engines.checks import check
from unigen.objectives import elbo, iwae, log_p
from unigen.pair import Pair
from unigen.phases import (
    PHI,
    PSI,
    THETA,
    DoublyReparameterized,
    LeaveOneOut,
    Pathwise,
    Phase,
    Routine,
    ScoreFunction,
    StickingTheLanding,
    Wake,
)

GROUPS = THETA + PHI + PSI


def first_pixels(draw) -> Tensor:
    """A fixed constraint on x."""
    return draw["x"][..., :3].sum(-1)


BOTH = THETA + PHI
VARIANTS: list[tuple[str, Routine, str]] = [
    ("iwae doubly reparameterized", routines.iwae(3, DoublyReparameterized()), "latent"),
    ("vae sticking the landing", Routine((Phase(elbo, Wake(), BOTH, estimator=StickingTheLanding()),)), "latent"),
    ("vae pathwise, guide alone", Routine((Phase(elbo, Wake(), PHI, estimator=Pathwise()),)), "latent"),
    ("vae score function", Routine((Phase(elbo, Wake(), BOTH, estimator=ScoreFunction()),)), "latent"),
    (
        "vae leave one out",
        Routine((Phase(elbo, Wake(3), BOTH, estimator=ScoreFunction(), control_variate=LeaveOneOut()),)),
        "sigmoid_belief",
    ),
    ("log p along psi beside theta", Routine((Phase(log_p, Wake(), THETA),)), "sigmoid_belief"),
    ("em climbed", routines.em(closed_form=False), "mixture"),
    ("reweighted, sleep alone", routines.reweighted_wake_sleep(3, wake=False), "sigmoid_belief"),
    ("reweighted, wake alone", routines.reweighted_wake_sleep(3, sleep=False), "latent"),
    ("regularized, explicit, learned", routines.posterior_regularization("constraint"), "latent"),
    ("regularized, explicit, fixed", routines.posterior_regularization(first_pixels, learn=False), "latent"),
    (
        "regularized, explicit, fixed, bits",
        routines.posterior_regularization(first_pixels, learn=False),
        "sigmoid_belief",
    ),
    ("regularized, implicit, learned", routines.posterior_regularization("constraint", implicit=True), "adversarial"),
    (
        "regularized, implicit, fixed",
        routines.posterior_regularization(first_pixels, learn=False, implicit=True),
        "adversarial",
    ),
    ("regularized after vae", routines.posterior_regularization("constraint", base=routines.vae), "latent"),
    *(
        (f"f_gan {name}", routines.f_gan(name), "adversarial")
        for name in ("kullback_leibler", "reverse_kullback_leibler", "pearson", "neyman", "squared_hellinger", "gan")
    ),
]
PERSISTENT = routines.contrastive_divergence(2, persistent=True)
CASES = [*CATALOGUE, *VARIANTS, ("persistent, two sweeps", PERSISTENT, "rbm")]
every_case = pytest.mark.parametrize(("routine", "family"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])


def optimizers_of(pair: Pair) -> dict[str, torch.optim.Optimizer]:
    """One Adam a group, its state and every gradient already filled."""
    optimizers: dict[str, torch.optim.Optimizer] = {}
    for group in GROUPS:
        parameters = pair.group(group)
        if parameters:
            optimizers[group] = torch.optim.Adam(parameters, 1e-2)
            for parameter in parameters:
                parameter.grad = torch.randn_like(parameter)
            optimizers[group].step()
    return optimizers


def state_of(pair: Pair, optimizers: dict[str, torch.optim.Optimizer], group: str) -> dict[str, Tensor | None]:
    """Everything that belongs to a group, cloned: parameters, gradients, buffers, optimizer state."""
    state: dict[str, Tensor | None] = {}
    for name, parameter in pair.named_group(group):
        state[f"parameter {name}"] = parameter.detach().clone()
        state[f"gradient {name}"] = None if parameter.grad is None else parameter.grad.clone()
        if group in optimizers:
            for key, value in optimizers[group].state[parameter].items():
                state[f"optimizer {key} {name}"] = value.clone()
    for index, buffer in enumerate(pair.group_buffers(group)):
        state[f"buffer {index}"] = buffer.clone()
    return state


def same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other if one is None or other is None else one.dtype == other.dtype and torch.equal(one, other)


def changed(before: dict[str, Tensor | None], after: dict[str, Tensor | None]) -> list[str]:
    assert before.keys() == after.keys()
    return [name for name in before if not same(before[name], after[name])]


@every_case
@pytest.mark.parametrize("filled", [True, False], ids=["gradients before", "no gradients before"])
def test_a_phase_changes_only_what_it_names(routine, family, filled):
    pair, x = FAMILIES[family]()
    optimizers = optimizers_of(pair)
    if not filled:
        for parameter in pair.parameters():
            parameter.grad = None
    for phase in routine:
        before = {group: state_of(pair, optimizers, group) for group in GROUPS}
        (value,) = eager.step((phase,), pair, optimizers, x)
        assert torch.isfinite(value) and value.dim() == 0 and not value.requires_grad
        for group in GROUPS:
            difference = changed(before[group], state_of(pair, optimizers, group))
            if group not in phase.move:
                assert not difference, f"{phase} changed {group}: {difference}"
                continue
            assert any(name.startswith("parameter") for name in difference), f"{phase} left {group} as it was"
            if not phase.solve and group != "psi":  # of psi a phase reads one network
                assert {f"optimizer step {name}" for name, _ in pair.named_group(group)} <= set(difference)
        if not filled:
            for group in set(GROUPS) - set(phase.move):
                assert all(parameter.grad is None for parameter in pair.group(group))
            for parameter in pair.parameters():
                parameter.grad = None


@every_case
def test_a_check_changes_nothing(routine, family):
    pair, x = FAMILIES[family]()
    optimizers = optimizers_of(pair)
    eager.step(routine, pair, optimizers, x)  # so that a persistent chain exists
    before = {group: state_of(pair, optimizers, group) for group in GROUPS}
    chains = {name: chain.clone() for name, chain in pair.chains.items()}
    stream, data = torch.get_rng_state(), x.clone()
    check(routine, pair, x)
    assert all(not changed(before[group], state_of(pair, optimizers, group)) for group in GROUPS)
    assert pair.chains.keys() == chains.keys()
    assert all(torch.equal(chain, chains[name]) for name, chain in pair.chains.items())
    assert torch.equal(torch.get_rng_state(), stream) and torch.equal(x, data)
    assert all(not parameter.requires_grad or parameter.is_leaf for parameter in pair.parameters())


def test_a_refused_check_changes_nothing_either():
    pair, x = FAMILIES["latent"]()
    optimizers = optimizers_of(pair)
    before = {group: state_of(pair, optimizers, group) for group in GROUPS}
    stream = torch.get_rng_state()
    with pytest.raises(ValueError, match="iwae needs|particles"):
        check((*routines.vae, Phase(iwae, Wake(), BOTH)), pair, x)
    assert all(not changed(before[group], state_of(pair, optimizers, group)) for group in GROUPS)
    assert torch.equal(torch.get_rng_state(), stream)


@pytest.mark.parametrize(
    ("family", "phase", "module"),
    [
        ("adversarial", routines.gan[1], lambda pair: pair.guide.trunk),
        ("adversarial", routines.gan[0], lambda pair: pair.model.generator),
        ("latent", routines.variational_em[0], lambda pair: pair.model.generator),
        ("latent", routines.wake_sleep[0], lambda pair: pair.guide.trunk),
        ("latent", routines.aavae[1], lambda pair: pair.psi["critic"]),
        ("latent", routines.aavae[0], lambda pair: pair.model.generator),
        ("sigmoid_belief", routines.nvil[0], lambda pair: pair.psi["baseline"]),
        ("sigmoid_belief", routines.nvil[1], lambda pair: pair.guide.up[0]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_program_that_runs_without_moving_keeps_its_buffers(family, phase, module):
    pair, x = FAMILIES[family]()
    optimizers = optimizers_of(pair)
    check((phase,), pair, x)
    ran: list[bool] = []
    module(pair).register_forward_hook(lambda *_: ran.append(True))
    before = [buffer.clone() for buffer in module(pair).buffers()]
    eager.step((phase,), pair, optimizers, x)
    assert ran and before
    assert all(torch.equal(old, new) for old, new in zip(before, module(pair).buffers(), strict=True))


def test_buffers_of_a_moved_program_do_move():
    pair, x = FAMILIES["latent"]()
    optimizers = optimizers_of(pair)
    before = [buffer.clone() for buffer in pair.model.generator.buffers()]
    eager.step(routines.vae, pair, optimizers, x)
    assert all(not torch.equal(old, new) for old, new in zip(before, pair.model.generator.buffers(), strict=True))


def test_nvil_tracks_its_running_baseline_in_the_phase_of_psi_alone():
    pair, x = FAMILIES["sigmoid_belief"]()
    optimizers = optimizers_of(pair)
    baseline = pair.psi["baseline"]
    eager.step((routines.nvil[0],), pair, optimizers, x)
    assert not baseline.mean.any()
    eager.step((routines.nvil[1],), pair, optimizers, x)
    assert float(baseline.mean[0]) < 0  # log p(x, h) - log q(h|x) of bits is negative on average


def test_wgan_clips_the_moved_weights_alone():
    pair, x = FAMILIES["adversarial"]()
    optimizers = optimizers_of(pair)
    before = [parameter.detach().clone() for parameter in pair.group("theta")]
    eager.step((routines.wgan[0],), pair, optimizers, x)
    assert max(parameter.abs().max().item() for parameter in pair.group("phi")) <= math.nextafter(0.01, 1)
    assert all(torch.equal(old, new) for old, new in zip(before, pair.group("theta"), strict=True))


def test_dry_objectives_leave_persistent_chains():
    pair, x = FAMILIES["rbm"]()
    eager.step(PERSISTENT, pair, optimizers_of(pair), x)
    (chain,) = pair.chains.values()
    before = chain.clone()
    eager.objective(PERSISTENT[0], pair, x, dry=True)
    assert all(torch.equal(after, before) for after in pair.chains.values())
