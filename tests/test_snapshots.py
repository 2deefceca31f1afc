"""``capture`` and ``restore``: through a checkpoint and back, bit for bit, into a pair that started elsewhere."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from resuming import ARMS, arm, digest, scramble

from unigen import routines
from unigen.checkpoints import Checkpoints
from unigen.engines import engine_named
from unigen.networks import networks
from unigen.optimizers import optimizers_for
from unigen.pairs import latent
from unigen.snapshots import capture, capture_streams, restore, restore_streams
from unigen.training import State

OPTIMIZERS = {
    "Adam, fused": lambda p: torch.optim.Adam(p, lr=1e-3, fused=True),
    "Adam, amsgrad": lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True),
    "SGD, momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-3),
    "two groups": lambda p: torch.optim.Adam([{"params": p[:2], "lr": 1e-2}, {"params": p[2:]}], betas=(0.5, 0.9)),
}


def stepped(name: str, seed: int, count: int) -> tuple[State, object]:
    """Return an arm's state after some steps, and a function that takes more."""
    pair, routine, loader = arm(name, seed)
    state = State(pair, optimizers_for(routine, pair))

    def go(steps: int) -> None:
        for _ in range(steps):
            batches = [loader.at(state.step * routine.batches + k) for k in range(routine.batches)]
            engine_named("eager").step(routine, state.pair, state.optimizers, batches[0], batches[1:])
            state.step += 1

    go(count)
    return state, go


@pytest.mark.parametrize("name", ARMS)
def test_a_state_restored_into_another_start_goes_on_bit_for_bit(tmp_path, name):
    torch.manual_seed(random.randrange(2**32))
    state, go = stepped(name, 0, 3)
    kept = Checkpoints(tmp_path)
    kept.save(state.step, capture(state))
    at_save = digest(state)
    go(3)
    wanted = digest(state)
    other, go_on = stepped(name, 1, 1)
    scramble()
    assert digest(other) != at_save
    restore(kept.load().content, other)
    assert digest(other) == at_save
    go_on(3)
    assert digest(other) == wanted


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_restored_whole(tmp_path, name):
    def trained(seed):
        pair, routine, loader = arm("vae", seed)
        state = State(pair, {group: OPTIMIZERS[name](pair.group(group)) for group in ("theta", "phi")})
        return state, lambda: engine_named("eager").step(routine, pair, state.optimizers, loader.at(0))

    state, go = trained(0)
    go(), go()
    state.optimizers["phi"].param_groups[0]["lr"] = 3e-4
    kept = Checkpoints(tmp_path)
    kept.save(2, capture(state))
    go(), go()
    other, go_on = trained(1)
    go_on()
    restore(kept.load().content, other)
    go_on(), go_on()
    assert digest(other) == digest(state)
    assert other.optimizers["phi"].param_groups[0]["lr"] == 3e-4


def test_every_random_stream_is_restored_through_a_checkpoint(tmp_path):
    def draws():
        return [random.gauss(0, 1), random.random(), np.random.randn(3).tolist(), torch.randn(3).tolist()]

    before = capture_streams()
    try:
        draws()  # leaves half a pair of gaussians in python's and numpy's streams
        kept = Checkpoints(tmp_path)
        kept.save(1, {"random": capture_streams()})
        wanted = draws()
        scramble()
        assert draws() != wanted
        restore_streams(kept.load().content["random"])
        assert draws() == wanted
    finally:
        restore_streams(before)


def test_a_snapshot_is_a_copy_in_both_directions():
    state, go = stepped("persistent contrastive divergence", 0, 2)
    best, at_best = capture(state), digest(state)
    go(2)
    assert digest(state) != at_best
    restore(best, state)
    assert digest(state) == at_best
    go(2)
    restore(best, state)
    assert digest(state) == at_best


def test_without_streams_the_random_streams_go_on():
    state, _ = stepped("vae", 0, 1)
    best = capture(state)
    torch.randn(3)
    now = torch.get_rng_state()
    restore(best, state, streams=False)
    assert torch.equal(torch.get_rng_state(), now)


def small(hidden: int = 16) -> State:
    pair = latent(networks("mlp", (1, 8, 8), 3, hidden=(hidden,), seed=0))
    return State(pair, optimizers_for(routines.vae, pair))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda: small(17), r"not of this pair: .* is float32 \(16, .*and float32 \(17, "),
        (lambda: State(small().pair.double(), small().optimizers), "not of this pair: .* is float32 .*and float64"),
        (lambda: stepped("persistent contrastive divergence", 0, 0)[0], "not of this pair: .* nothing"),
        (lambda: State((s := small()).pair, {"phi": s.optimizers["phi"]}), "it moves theta, phi, they move phi"),
        (
            lambda: State((p := small().pair), {g: torch.optim.SGD(p.group(g), lr=0.1) for g in ("theta", "phi")}),
            "optimizer of theta: it is Adam over .* this is SGD",
        ),
        (lambda: State(small().pair, small().optimizers), "the pair lacks"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_changes(change, words):
    content, other = capture(small()), change()
    before = [p.clone() for p in other.pair.parameters()]
    stream = torch.get_rng_state()
    with pytest.raises(ValueError, match=words):
        restore(content, other)
    assert all(map(torch.equal, before, other.pair.parameters()))
    assert torch.equal(torch.get_rng_state(), stream)
