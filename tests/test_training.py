"""``fit``: budgets, determinism, schedules, records, and refusals before the first step."""

from __future__ import annotations

import copy
import dataclasses
import time

import numpy as np
import pyro
import pytest
import torch

from unigen import PHI, PSI, THETA, Phase, Sleep, Wake, fit, routines
from unigen.checkpoints import CheckpointError
from unigen.data import Loader, load
from unigen.engines import engine_named
from unigen.engines.checks import check_optimizers
from unigen.networks import networks
from unigen.objectives import elbo, log_p, log_q
from unigen.optimizers import Falling, optimizers_for
from unigen.pair import PairError
from unigen.pairs import latent, mixture
from unigen.phases import Optimizer
from unigen.training import MOST_COMPILED, TrainingError


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def small(seed: int = 0):
    return latent(networks("mlp", (1, 8, 8), 3, hidden=(16,), seed=seed))


def parameters(pair):
    return torch.cat([p.detach().flatten() for p in pair.parameters()])


def test_a_budget_of_steps_is_kept_and_recorded(digits):
    state, history = fit(Loader(digits, 64), routines.wake_sleep, small(), steps=13, record_every=5, progress=False)
    assert state.step == 13
    assert history.steps == [5, 10, 13]
    assert all(len(row) == 2 for row in history.values)
    assert history.seconds == sorted(history.seconds)


def test_a_budget_of_seconds_ends(digits):
    state, _ = fit(Loader(digits, 64), routines.vae, small(), seconds=0.2, progress=False)
    assert state.step > 0


def test_what_compiles_for_ever_ends_a_budget_of_seconds(digits, monkeypatch):
    module = engine_named("eager")
    original = module.advance

    def compiling(phases, pair, *rest):
        pair.compiled[len(pair.compiled)] = 1
        time.sleep(0.02)
        return original(phases, pair, *rest)

    monkeypatch.setattr(module, "advance", compiling)
    _, history = fit(Loader(digits, 64), routines.vae, small(), seconds=0.2, progress=False)
    assert history.untimed == MOST_COMPILED and history.compiling > 0.02 * MOST_COMPILED
    assert history.seconds[-1] > 0.1


def test_a_closed_form_is_told_of_batches_that_it_will_forget(digits):
    pair = mixture(3, digits.train, likelihood="bernoulli")
    with pytest.warns(UserWarning, match="maximizes each batch alone"):
        fit(Loader(digits, 400), routines.em, pair, steps=1, progress=False)
    fit(Loader(digits, len(digits.train)), routines.em, pair, steps=1, progress=False)
    fit(Loader(digits, 400).at(0), routines.em, pair, steps=1, progress=False)


@pytest.mark.parametrize("engine", ("eager", "compiled", "xla"))
def test_what_compiles_is_no_part_of_a_budget_of_seconds(digits, engine, interpreted, monkeypatch):
    module, shapes = engine_named(engine), set()
    original = module.advance

    def slow(phases, pair, optimizers, batches, rates):
        new = {len(batch[0]) for batch in batches} - shapes
        shapes.update(new)
        time.sleep(0.6 * len(new) + 0.02 * len(batches))
        return original(phases, pair, optimizers, batches, rates)

    monkeypatch.setattr(module, "advance", slow)
    data = dataclasses.replace(digits, train=digits.train[:90], train_labels=digits.train_labels[:90])
    settings = {"seconds": 0.5, "engine": engine, "record_every": 1, "progress": False}
    state, history = fit(Loader(data, 60), routines.vae, small(), **settings)  # batches of 60 and 30 rows
    if engine == "eager":
        assert state.step == 1 and history.seconds[-1] >= 0.6 and history.compiling == history.untimed == 0
    else:
        assert state.step > 2 and history.seconds[-1] >= 0.5 and history.seconds[0] == 0
        assert history.untimed in (1, 2) and history.compiling >= 1.2


def test_records_are_means_over_the_steps_between_them(digits):
    start = small()
    torch.manual_seed(1)
    _, each = fit(Loader(digits, 64), routines.vae, copy.deepcopy(start), steps=6, record_every=1, progress=False)
    torch.manual_seed(1)
    _, three = fit(Loader(digits, 64), routines.vae, copy.deepcopy(start), steps=6, record_every=3, progress=False)
    expected = torch.tensor(each.values).reshape(2, 3, 1).mean(1)
    assert torch.allclose(torch.tensor(three.values), expected, rtol=1e-6)


@pytest.mark.parametrize("engine", ("eager", "compiled", "xla"))
def test_callbacks_far_apart_see_every_record_and_leave_the_same_history(digits, engine, interpreted):
    def run(callback_every, seen):
        torch.manual_seed(1)
        pair = small()
        _, history = fit(
            Loader(digits, 64),
            routines.vae,
            pair,
            steps=11,
            engine=engine,
            record_every=2,
            callback_every=callback_every,
            callbacks=[lambda state, history: seen.append((state.step, list(history.steps)))],
            progress=False,
        )
        return history, parameters(pair)

    often, rarely = [], []
    (history, moved), (other, same) = run(None, often), run(4, rarely)
    assert [step for step, _ in often] == [2, 4, 6, 8, 10, 11]
    assert rarely == [(4, [2, 4]), (8, [2, 4, 6, 8]), (11, [2, 4, 6, 8, 10, 11])]
    assert history.steps == other.steps and history.values == other.values
    assert other.seconds == sorted(other.seconds)
    assert torch.equal(moved, same)
    with pytest.raises(ValueError, match="callback_every=3 is no multiple of record_every=2"):
        run(3, [])


def test_equal_seeds_give_bitwise_equal_parameters_and_callbacks_change_nothing(digits):
    def run(callbacks, record_every):
        torch.manual_seed(3)
        pair = small()
        fit(
            Loader(digits, 50, seed=2),
            routines.reweighted_wake_sleep(3),
            pair,
            steps=20,
            callbacks=callbacks,
            record_every=record_every,
            progress=False,
        )
        return parameters(pair)

    seen = []
    assert torch.equal(run([], 20), run([lambda state, history: seen.append(state.step)], 2))
    assert seen == list(range(2, 21, 2))


def test_phases_with_repetitions_get_fresh_batches():
    asked = []

    class Counting:
        def at(self, step):
            asked.append(step)
            return torch.zeros(4, 64) + (torch.arange(64) % 2)

    routine = (Phase(log_q, Sleep(), PHI, steps=3), Phase(log_p, Wake(), THETA))
    fit(Counting(), routine, small(), steps=2, progress=False)
    assert asked == [0, 1, 2, 3, 4, 5]


def test_an_iterable_of_batches_is_restarted_and_an_empty_one_refused():
    batches = [torch.zeros(4, 64), [torch.ones(4, 64)]]  # a DataLoader of a TensorDataset gives lists
    state, _ = fit(batches, routines.vae, small(), steps=5, progress=False)
    assert state.step == 5
    with pytest.raises(ValueError, match="no batch"):
        fit([], routines.vae, small(), steps=1, progress=False)


def test_what_is_no_routine_pair_or_optimizer_is_refused_in_a_sentence():
    x, pair = torch.zeros(4, 64), small()
    fit(x, (phase for phase in routines.wake_sleep), pair, steps=1, progress=False)
    for routine in ("vae", routines.vae[0], ()):
        with pytest.raises(PairError, match="a routine is a tuple of phases"):
            fit(x, routine, pair, steps=1)
    with pytest.raises(TypeError, match="trains a Pair; got Tensor"):
        fit(pair, routines.vae, x, steps=1)
    with pytest.raises(TypeError, match="dict by parameter group.*got Adam"):
        fit(x, routines.vae, pair, torch.optim.Adam(pair.parameters()), steps=1)
    theta = torch.optim.Adam(pair.group("theta"))
    with pytest.raises(TypeError, match="optimizer of phi is a PyroOptim; give one of torch.optim"):
        fit(x, routines.vae, pair, {"theta": theta, "phi": pyro.optim.Adam({"lr": 1e-3})}, steps=1)
    with pytest.raises(PairError, match="optimizer of phi, LBFGS, evaluates its objective several times a step"):
        fit(x, routines.vae, pair, {"theta": theta, "phi": torch.optim.LBFGS(pair.group("phi"))}, steps=1)


def rates_of(digits, settings: Optimizer, schedule: Falling) -> list[dict[str, float]]:
    """Return the learning rate of each group at each of ten steps."""
    pair, rates = small(), []
    fit(
        Loader(digits, 64),
        routines.vae,
        pair,
        optimizers_for(routines.vae, pair, settings),
        steps=10,
        schedule=schedule,
        record_every=1,
        callbacks=[
            lambda state, history: rates.append({g: o.param_groups[0]["lr"] for g, o in state.optimizers.items()})
        ],
        progress=False,
    )
    return rates


FALLING = [1e-2 - 9.9e-3 * k / 10 for k in range(10)]


def test_the_learning_rate_falls_linearly(digits):
    rates = rates_of(digits, Optimizer("SGD", 1e-2), Falling(1e-4))
    assert [rate["phi"] for rate in rates] == pytest.approx(FALLING)


def test_phi_has_a_rate_of_its_own_that_falls_in_proportion(digits):
    settings = Optimizer("SGD", 1e-2, phi=0.25)
    assert str(settings) == "SGD(lr=0.01, of phi 0.0025)"
    rates = rates_of(digits, settings, Falling(1e-4, settings.lr))
    assert rates == [pytest.approx({"theta": rate, "phi": rate / 4}) for rate in FALLING]


def test_em_in_closed_form_needs_no_optimizer(digits):
    pair = mixture(4, digits.train, likelihood="normal")
    state, history = fit(digits.train, routines.em, pair, steps=3, record_every=1, progress=False)
    assert state.optimizers.keys() <= {"theta"}
    assert [row[0] for row in history.values] == sorted(row[0] for row in history.values)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({}, ValueError, "budget"),
        ({"steps": -1}, ValueError, "steps is -1, expected an integer of at least 0"),
        ({"steps": 2.5}, ValueError, "steps is 2.5, expected an integer"),
        ({"steps": "3"}, ValueError, "steps is '3', expected an integer"),
        ({"seconds": float("nan")}, ValueError, "seconds is nan, expected a finite number"),
        ({"seconds": "1"}, ValueError, "seconds is '1', expected a finite number"),
        ({"seconds": -1}, ValueError, "seconds is -1, expected a finite number"),
        ({"steps": 1, "record_every": -1}, ValueError, "record_every is -1, expected an integer of at least 1"),
        ({"steps": 1, "record_every": 0}, ValueError, "record_every is 0"),
        ({"steps": 1, "callback_every": 2.5}, ValueError, "callback_every is 2.5"),
        ({"steps": 1, "checkpoint_every": "a"}, ValueError, "checkpoint_every is 'a'"),
        ({"steps": 1, "checkpoints": __file__}, CheckpointError, "test_training.py cannot be made: File exists"),
        (
            {"steps": 1, "optimizers": {"psy": None}},
            PairError,
            "'psy', which is no parameter group; did you mean 'psi'",
        ),
        ({"steps": 1, "engine": "eagre"}, ValueError, "did you mean 'eager'"),
        ({"steps": 1, "optimizers": {}}, PairError, "no optimizer"),
        ({"steps": 1, "routine": routines.nvil}, PairError, "psi"),
        ({"steps": 1, "routine": routines.gan}, PairError, "site 'y'.*adversarial"),
    ],
)
def test_what_is_wrong_is_refused_before_the_first_step(digits, change, error, words):
    pair = small()
    before = parameters(pair).clone()
    settings = {"routine": routines.vae, "progress": False, **change}
    with pytest.raises(error, match=words):
        fit(Loader(digits, 64), settings.pop("routine"), pair, **settings)
    assert torch.equal(parameters(pair), before)


def test_numbers_of_numpy_are_numbers(digits, tmp_path):
    settings = {"steps": np.int64(2), "seconds": np.float32(1e3), "record_every": np.int64(1), "checkpoints": tmp_path}
    assert fit(Loader(digits, 64), routines.vae, small(), progress=False, **settings)[0].step == 2


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_an_optimizer_of_a_part_of_its_group_is_refused_unless_the_rest_is_frozen(digits, engine):
    def run(pair, part, callbacks=()):
        adams = {group: torch.optim.Adam(pair.group(group)) for group in ("theta", "phi")}
        adams["theta"] = torch.optim.Adam(part)
        settings = {"engine": engine, "record_every": 1, "callbacks": callbacks, "progress": False}
        return fit(digits.train[:8], routines.vae, pair, adams, steps=2, **settings)

    pair = small()
    name, first = pair.named_group("theta")[0]
    before = parameters(pair).clone()
    with pytest.raises(PairError, match=f"optimizer of theta leaves out '{name}'"):
        run(pair, pair.group("theta")[1:])
    assert torch.equal(parameters(pair), before)
    first.requires_grad_(False)
    run(pair, pair.group("theta"))
    with pytest.raises(PairError, match=f"optimizer of theta leaves out '{name}'"):
        run(pair, pair.group("theta"), [lambda state, history: first.requires_grad_(True)])


def test_an_optimizer_may_leave_a_network_of_psi_to_other_routines():
    pair = latent(
        networks("mlp", (1, 8, 8), 3, hidden=(8,)), psi={"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)}
    )
    phase = Phase(elbo, Wake(), PSI)
    check_optimizers((phase,), pair, {"psi": torch.optim.Adam(pair.psi["a"].parameters())})
    with pytest.raises(PairError, match="leaves out 'a.bias'"):
        check_optimizers((phase,), pair, {"psi": torch.optim.Adam([pair.psi["a"].weight])})


def test_a_value_that_is_not_finite_ends_the_run(digits):
    pair = small()
    with torch.no_grad():
        next(iter(pair.model.parameters())).fill_(float("nan"))
    with pytest.raises(TrainingError, match="phase '1 .*step 1"):
        fit(Loader(digits, 64), routines.vae, pair, steps=5, record_every=1, progress=False)
