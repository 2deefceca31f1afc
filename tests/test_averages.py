"""Running averages of the weights: by hand, by every engine, through a checkpoint, and put in the place of the weights."""

from __future__ import annotations

import copy

import pytest
import torch

from unigen import fit, routines
from unigen.averages import Averages, averaged
from unigen.checkpoints import CheckpointError, Checkpoints
from unigen.data import Loader, load
from unigen.networks import networks
from unigen.pairs import adversarial, latent, rbm
from unigen.together import Lane, fit_together
from unigen.training import Interrupted

ENGINES = ("eager", "compiled", "xla")
pytestmark = pytest.mark.usefixtures("interpreted")


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def small(kind=latent, seed: int = 0):
    return kind(networks("mlp", (1, 8, 8), 3, hidden=(16,), seed=seed))


def weights(pair):
    return {name: own.detach().clone() for name, own in pair.named_groups()}


def largest(one, other):
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("routine", [routines.vae, routines.gan], ids=str)
def test_averages_are_those_of_the_weights_after_each_step(digits, engine, routine):
    pair = small(adversarial if routine is routines.gan else latent)
    expected, seen = weights(pair), []

    def by_hand(state, history):
        seen.append(state.step)
        for name, own in weights(state.pair).items():
            expected[name] = 0.9 * expected[name] + 0.1 * own

    torch.manual_seed(0)
    fit(
        Loader(digits, 64),
        routine,
        pair,
        steps=7,
        engine=engine,
        average=0.9,
        record_every=1,
        callbacks=[by_hand],
        progress=False,
    )
    assert seen == list(range(1, 8)) and pair.averages is not None
    assert largest(pair.averages.weights, expected) < 1e-6
    assert largest(pair.averages.weights, weights(pair)) > 1e-4


@pytest.mark.parametrize("engine", ENGINES)
def test_calls_of_many_steps_average_each_of_them_and_change_no_weight(digits, engine):
    def run(**how):
        torch.manual_seed(0)
        pair = small()
        fit(Loader(digits, 64), routines.vae, pair, steps=30, engine=engine, progress=False, **how)
        return pair

    one, many, without = run(average=0.8, record_every=1), run(average=0.8, record_every=30), run()
    assert largest(one.averages.weights, many.averages.weights) == 0
    assert largest(weights(one), weights(without)) == 0 and without.averages is None


@pytest.mark.parametrize("engine", ENGINES)
def test_a_resumed_run_has_the_averages_of_the_run_left_alone(digits, engine, tmp_path):
    def run(directory, asked=lambda: False):
        torch.manual_seed(0)
        pair, how = small(), {"steps": 12, "average": 0.9, "checkpoint_every": 4, "record_every": 2}
        fit(
            Loader(digits, 64),
            routines.vae,
            pair,
            engine=engine,
            checkpoints=directory,
            interrupted=asked,
            progress=False,
            **how,
        )
        return pair

    whole, calls = run(tmp_path / "whole"), []

    def third_time():
        calls.append(1)
        return len(calls) == 3

    with pytest.raises(Interrupted):
        run(tmp_path / "cut", third_time)
    resumed = run(tmp_path / "cut")
    for name, average in whole.averages.weights.items():
        assert torch.equal(average, resumed.averages.weights[name])
    with pytest.raises(CheckpointError, match="other averages of the weights: decay 0.9 in it, none here"):
        torch.manual_seed(0)
        fit(Loader(digits, 64), routines.vae, small(), steps=12, engine=engine, checkpoint_every=4, record_every=2,
            checkpoints=Checkpoints(tmp_path / "cut"), progress=False)  # fmt: skip


def test_seeds_in_one_program_have_averages_of_their_own(digits):
    pairs = [small(seed=seed) for seed in (0, 1)]
    starts = [weights(pair) for pair in pairs]
    lanes = [Lane(Loader(digits, 64, seed=seed), pair, seed) for seed, pair in enumerate(pairs)]
    fit_together(routines.vae, lanes, steps=1, average=0.75)
    for pair, start in zip(pairs, starts, strict=True):
        expected = {name: 0.75 * start[name] + 0.25 * own for name, own in weights(pair).items()}
        assert largest(pair.averages.weights, expected) < 1e-6


def test_weights_come_back_to_the_last_bit(digits):
    pair = small()
    with pytest.raises(ValueError, match="train it by fit"), averaged(pair):
        pass
    torch.manual_seed(0)
    fit(Loader(digits, 64), routines.vae, pair, steps=5, average=0.5, progress=False)
    before = weights(pair)
    with pytest.raises(KeyError), averaged(pair) as same:
        assert same is pair and largest(weights(pair), pair.averages.weights) == 0
        raise KeyError
    assert largest(weights(pair), before) == 0
    assert largest(copy.deepcopy(pair).averages.weights, pair.averages.weights) == 0


@pytest.mark.parametrize("decay", (-0.1, 1.0, float("nan"), "0.9", True))
def test_a_decay_outside_of_its_range_is_refused(decay):
    with pytest.raises(ValueError, match="at least 0 and less than 1"):
        Averages.begin(small(), decay)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_pair_that_is_moved_takes_averages_and_chains_along(engine):
    x = torch.bernoulli(torch.full((8, 6), 0.4), generator=torch.Generator().manual_seed(0))
    pair, routine = rbm(6, 3, seed=0), routines.persistent_contrastive_divergence
    fit(x, routine, pair, steps=1, average=0.9, progress=False)
    pair.double()
    assert {part.dtype for part in (*pair.chains.values(), *pair.averages.weights.values())} == {torch.float64}
    before = {name: average.clone() for name, average in pair.averages.weights.items()}
    fit(x.double(), routine, pair, steps=1, engine=engine, progress=False)
    expected = {name: 0.9 * before[name] + 0.1 * own for name, own in weights(pair).items()}
    assert largest(expected, pair.averages.weights) < 1e-12
    assert {chain.dtype for chain in pair.chains.values()} == {torch.float64}


def test_averages_of_a_network_that_is_replaced_begin_anew(digits):
    pair = small()
    fit(Loader(digits, 64), routines.vae, pair, steps=3, average=0.9, progress=False)
    kept, other = pair.averages.weights["theta.generator.output.weight"].clone(), small(seed=1)
    pair.guide = other.guide
    fit(Loader(digits, 64), routines.vae, pair, steps=0, progress=False)
    assert torch.equal(pair.averages.weights["theta.generator.output.weight"], kept)
    assert largest({n: a for n, a in pair.averages.weights.items() if n[:3] == "phi"}, weights(pair)) == 0
    pair.model.generator.output = torch.nn.Linear(16, 64)
    fit(Loader(digits, 64), routines.vae, pair, steps=0, progress=False)
    assert (
        largest(
            pair.averages.weights, weights(pair) | {n: a for n, a in pair.averages.weights.items() if "hidden" in n}
        )
        == 0
    )
