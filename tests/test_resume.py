"""Resume: cut anywhere, a run ends in the same bits as the run that was never stopped, and says what happened."""

from __future__ import annotations

import re
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from resuming import ARMS, arm, data, digest, scramble
from sameness import cuts, run

from unigen import fit, routines
from unigen.checkpoints import CheckpointError, Checkpoints
from unigen.data import Loader
from unigen.networks import Baseline
from unigen.optimizers import Falling
from unigen.pair import Pair
from unigen.pairs import sigmoid_belief
from unigen.phases import PHI, THETA, Phase, Wake
from unigen.resume import ResumeWarning
from unigen.runs import load_weights, save_weights
from unigen.snapshots import attributes, capture, capture_streams, restore, restore_streams
from unigen.training import Interrupted, TrainingError


@pytest.fixture(autouse=True)
def _every_stream_as_found():
    before = capture_streams()
    yield
    restore_streams(before)


@pytest.mark.filterwarnings("ignore:a phase in closed form maximizes each batch")
@pytest.mark.parametrize("name", ARMS)
def test_a_cut_at_every_step_ends_in_the_same_bits_and_sees_the_same_data(tmp_path, name):
    for tally in cuts(name, tmp_path):
        assert tally.good == tally.of == 8 and not tally.wrong


@pytest.mark.parametrize("spoil", ["bytes", "missing"])
def test_a_broken_checkpoint_is_passed_over_with_a_warning_and_the_run_still_ends_the_same(tmp_path, spoil):
    start = capture_streams()
    state, _ = run("wake-sleep")
    restore_streams(start)
    kept = Checkpoints(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run("wake-sleep", checkpoints=kept, checkpoint_every=2, record_every=1, callbacks=[stop_at(7)])
    assert kept.steps() == [4, 6]
    file = kept.path(6) / "pair.safetensors"
    file.write_bytes(file.read_bytes()[:-1]) if spoil == "bytes" else file.unlink()
    with pytest.warns(ResumeWarning, match="resumed at step 4: step-000000000006 was rejected: pair.safetensors"):
        again, history = run("wake-sleep", 1, checkpoints=kept, checkpoint_every=2, record_every=1)
    assert digest(again) == digest(state)
    assert "step-000000000006 was rejected" in history.notes[1]


def stop_at(step: int):
    def callback(state, history):
        if state.step == step:
            raise KeyboardInterrupt

    return callback


def test_a_finished_run_is_not_run_again(tmp_path):
    state, history = run("vae", checkpoints=tmp_path)
    wanted, seen = digest(state), []
    again, repeated = run("vae", 1, checkpoints=tmp_path, callbacks=[lambda state, history: seen.append(state.step)])
    assert digest(again) == wanted and seen == []
    assert (repeated.steps, repeated.seconds, repeated.values) == (history.steps, history.seconds, history.values)


def test_a_run_that_a_callback_ended_stays_ended(tmp_path):
    def enough(state, history):
        raise StopIteration

    state, _ = run("vae", checkpoints=tmp_path, callbacks=[enough])
    assert state.step == 2
    again, _ = run("vae", 1, checkpoints=tmp_path)
    assert again.step == 2 and digest(again) == digest(state)


def test_a_budget_of_seconds_goes_on_where_it_was(tmp_path):
    settings = {"steps": None, "seconds": 0.3, "record_every": 5, "checkpoint_every": 9}
    with pytest.raises(KeyboardInterrupt):
        run("vae", checkpoints=tmp_path, callbacks=[stop_at(10)], **settings)
    state, history = run("vae", 1, checkpoints=tmp_path, **settings)
    assert history.notes == ["resumed at step 9"] and history.steps[:2] == [5, 10]
    assert history.seconds == sorted(history.seconds) and history.seconds[-1] >= 0.3
    again, repeated = run("vae", 1, checkpoints=tmp_path, **settings)
    assert again.step == state.step and repeated.seconds == history.seconds


def test_each_process_of_a_run_compiles_and_none_is_counted(tmp_path):
    settings = {"checkpoints": tmp_path, "engine": "xla", "record_every": 1, "checkpoint_every": 3}
    with pytest.raises(KeyboardInterrupt):
        run("vae", callbacks=[stop_at(5)], **settings)
    state, history = run("vae", 1, **settings)
    assert history.notes == ["resumed at step 3"] and history.untimed == 2
    assert history.seconds[0] == 0 and history.seconds[3] == history.seconds[2] < history.seconds[4]
    again, repeated = run("vae", 2, **settings)
    assert repeated.compiling == history.compiling > 0 and repeated.seconds == history.seconds and repeated.untimed == 2


def test_asked_to_end_a_run_saves_and_goes_on_later_to_the_same_bits(tmp_path):
    start = capture_streams()
    state, _ = run("reweighted wake-sleep")
    restore_streams(start)
    calls = iter([False, False, True])
    with pytest.raises(Interrupted, match="step 3"):
        run("reweighted wake-sleep", checkpoints=tmp_path, checkpoint_every=100, interrupted=lambda: next(calls))
    again, history = run("reweighted wake-sleep", 1, checkpoints=tmp_path, checkpoint_every=100)
    assert history.notes == ["resumed at step 3"] and digest(again) == digest(state)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 10}, "whose steps is 9 and not 10"),
        ({"schedule": Falling(1e-4)}, "whose schedule is"),
        ({"record_every": 3}, "whose record_every is 2 and not 3"),
        ({"loader": Loader(data(), 20, seed=6)}, "whose data is .*'seed': 5.* and not .*'seed': 6"),
        ({"loader": data().train}, "whose data is"),
        ({"name": "wake-sleep"}, "whose phases is"),
        ({"checkpoints": {"run": {"seed": 1}}}, "whose seed is 0 and not 1"),
    ],
)
def test_a_different_run_is_not_resumed(tmp_path, change, words):
    run("vae", checkpoints=Checkpoints(tmp_path, run={"seed": 0}))
    mine = Checkpoints(tmp_path, **{"run": {"seed": 0}, **change.pop("checkpoints", {})})
    with pytest.raises(CheckpointError, match=words):
        run(change.pop("name", "vae"), checkpoints=mine, **change)


def adam(lr=1e-2, **settings):
    return lambda parameters: torch.optim.Adam(parameters, lr, **settings)


def given(directory, optimizer=None, routine=routines.vae, loader=None, **settings):
    """Run four steps of a vae with an optimizer of one's own for each group."""
    pair = arm("vae")[0]
    own = {group: (optimizer or adam())(pair.group(group)) for group in ("theta", "phi")}
    loader = data().train[:20] if loader is None else loader
    return fit(loader, routine, pair, own, steps=4, checkpoints=directory, progress=False, **settings)


def weighted(weight):
    def objective(draw):
        return weight * (draw.log_p - draw.log_q)

    return (Phase(objective, Wake(), THETA + PHI),)


class Own:
    """A loader that says nothing of its data."""

    def __init__(self, x):
        self.x = x

    def at(self, index):
        return self.x + 0.0 * torch.rand(1) if index else (self.x > torch.rand(1)).float()


RESAMPLED = [routines.iwae(5, "doubly_reparameterized", draws) for draws in (1, 4)]
SETTINGS = {
    "lr": ({}, {"optimizer": adam(1e-1)}, "lr of phi is '0.01' and not '0.1'|lr of theta is '0.01' and not '0.1'"),
    "lr, a tensor": ({}, {"optimizer": adam(torch.tensor(1e-1))}, "lr of theta is '0.01' and not '0.1"),
    "weight decay": ({}, {"optimizer": adam(weight_decay=0.5)}, r"weight_decay of theta is '0.0' and not '0.5'"),
    "betas": ({}, {"optimizer": adam(betas=(0.1, 0.2))}, "betas of theta is"),
    "lr under a schedule": ({"schedule": Falling(1e-4)}, {"optimizer": adam(1e-1), "schedule": Falling(1e-4)}, "lr of"),
    "lambdas": ({"schedule": lambda lr, at: lr}, {"schedule": lambda lr, at: 2 * lr}, "scheduled lr of theta is"),
    "partials": (
        {"schedule": partial(lambda low, lr, at: lr, 1.0)},
        {"schedule": partial(lambda low, lr, at: low, 1.0)},
        "scheduled lr of theta is",
    ),
    "draws": ({"routine": RESAMPLED[0]}, {"routine": RESAMPLED[1]}, "estimator of phase 1 is .*draws=1.*draws=4"),
    "closures": (
        {"routine": weighted(1.0)},
        {"routine": weighted(-3.0)},
        "weight of the objective of phase 1 is '1.0'",
    ),
    "data": ({"loader": Own(torch.zeros(5, 64))}, {"loader": Own(torch.ones(5, 64))}, "first batch is"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_of_other_settings_is_not_resumed(tmp_path, name):
    first, other, words = SETTINGS[name]
    given(tmp_path, **first)
    with pytest.raises(CheckpointError, match=words):
        given(tmp_path, **other)
    scramble()
    assert given(tmp_path, **first)[1].notes == ["resumed at step 4"]


@pytest.mark.parametrize("end", ["stopped", "cut"])
def test_a_run_with_a_schedule_goes_on_with_the_same_optimizers(tmp_path, end):
    """The rates that it reached are the schedule's; those of the optimizers are as they were, and still tell two runs apart."""
    settings = {"steps": 8, "schedule": Falling(1e-5), "record_every": 1, "checkpoint_every": 2, "progress": False}
    ends, x = [], data().train[:20]
    for directory in (None, tmp_path):
        torch.manual_seed(0)
        pair = arm("vae")[0]
        own = {group: adam()(pair.group(group)) for group in ("theta", "phi")}
        if directory is not None:
            cut = {"callbacks": [stop_at(5)]} if end == "cut" else {"interrupted": lambda: True}
            with pytest.raises(KeyboardInterrupt):
                fit(x, routines.vae, pair, own, checkpoints=directory, **settings, **cut)
            scramble()
        state, history = fit(x, routines.vae, pair, own, checkpoints=directory, **settings)
        assert [part["lr"] for optimizer in own.values() for part in optimizer.param_groups] == [1e-2, 1e-2]
        ends.append(digest(state))
    assert ends[0] == ends[1] and "resumed at step" in history.notes[0]
    own["theta"].param_groups[0]["lr"] = 5e-3
    with pytest.raises(CheckpointError, match="lr of theta is '0.01' and not '0.005'"):
        fit(x, routines.vae, pair, own, checkpoints=tmp_path, **settings)


def test_a_checkpoint_of_an_earlier_version_has_no_settings_and_is_resumed(tmp_path, monkeypatch):
    def captured(state):
        now = capture(state)
        former = {name: part for name, part in now.items() if name not in ("attributes", "buffers")}
        return former | {"pair": now["pair"] | now["buffers"]}

    name = "vae with batch norm and dropout"
    with monkeypatch.context() as earlier:
        earlier.setattr("unigen.resume._settings", lambda *_: {})
        earlier.setattr("unigen.resume.capture", captured)
        state, _ = run(name, checkpoints=tmp_path)
    wanted = digest(state)
    again, history = run(name, 1, checkpoints=tmp_path)
    assert history.notes == ["resumed at step 9"] and digest(again) == wanted


class Scaled(torch.optim.SGD):
    """Has an attribute of its own."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.05)
        self.factor = 0.5

    @torch.no_grad()
    def step(self, closure=None):
        for own in self.param_groups[0]["params"]:
            if own.grad is not None:
                own.sub_(self.factor * own.grad)


def test_an_optimizer_with_attributes_of_its_own_is_resumed(tmp_path):
    given(tmp_path, Scaled)
    assert given(tmp_path, Scaled)[1].notes == ["resumed at step 4"]


class Causal(torch.nn.Module):
    """A model with a mask of -inf, and a temperature."""

    def __init__(self):
        super().__init__()
        self.w, self.b = torch.nn.Parameter(torch.zeros(4, 4)), torch.nn.Parameter(torch.zeros(4))
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))
        self.temperature = 1.0

    def forward(self, x):
        logits = torch.softmax(self.w / self.temperature + self.mask, -1).sum(0) + self.b
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def causal(directory, model=None, **settings):
    x, pair = torch.tensor([[1.0, 0.0, 1.0, 1.0]]), Pair(model or Causal())
    return fit(x, routines.maximum_likelihood, pair, steps=8, checkpoints=directory, progress=False, **settings)


def anneal(state, history):
    if state.step == 2:
        state.pair.model.temperature = 0.3


def freeze(state, history):
    if state.step == 2:
        state.pair.model.w.requires_grad_(False)


def count(state, history):
    state.pair.model.temperature += 1  # from where it is
    state.pair.eval()


@pytest.mark.parametrize("callback", [anneal, freeze, count])
def test_what_a_callback_changes_beside_tensors_is_there_after_a_cut(tmp_path, callback):
    def cut(directory, *callbacks):
        return causal(directory, record_every=1, checkpoint_every=1, callbacks=[callback, *callbacks])[0]

    state = cut(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        cut(tmp_path / "cut", stop_at(5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = cut(tmp_path / "cut")
    assert torch.equal(again.pair.model.w, state.pair.model.w)
    assert attributes(again.pair) == attributes(state.pair)


def test_a_module_that_is_given_another_number_is_told_that_it_has_the_checkpoints(tmp_path):
    causal(tmp_path)
    other = Causal()
    other.temperature = 7.0
    with pytest.warns(ResumeWarning, match="model.temperature was float 7.0 here, and is float 1.0 as in the checkp"):
        causal(tmp_path, model=other)
    assert other.temperature == 1.0


def test_a_buffer_may_hold_infinity_but_not_nan(tmp_path):
    state, _ = causal(tmp_path)
    assert causal(tmp_path)[1].notes == ["resumed at step 8"]
    save_weights(tmp_path / "weights", state.pair)
    load_weights(tmp_path / "weights", Pair(Causal()))
    content = Checkpoints(tmp_path).load().content
    moved = content | {"pair": {}, "buffers": content["pair"] | content["buffers"]}
    with pytest.raises(ValueError, match="model.w is nothing in it"):
        restore(moved, state)
    state.pair.model.mask[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match="buffers: model.mask is NaN in 1 of its 16"):
        Checkpoints(tmp_path / "new").save(1, capture(state))
    save_weights(tmp_path / "weights", state.pair)
    with pytest.raises(ValueError, match="model.mask is not finite"):
        load_weights(tmp_path / "weights", Pair(Causal()))


def test_a_pair_of_other_shapes_is_refused_before_it_is_touched(tmp_path):
    run("nvil", checkpoints=tmp_path)
    _, routine, loader = arm("nvil")
    other = sigmoid_belief(64, (7,), psi={"baseline": Baseline(64, (8,))})
    before = [p.clone() for p in other.parameters()]
    with pytest.raises(CheckpointError, match="not of this pair: .* is float32"):
        fit(
            loader,
            routine,
            other,
            steps=9,
            record_every=2,
            schedule=Falling(1e-5),
            checkpoints=tmp_path,
            progress=False,
        )
    assert all(map(torch.equal, before, other.parameters()))


def test_without_resume_earlier_checkpoints_are_refused_and_stay(tmp_path):
    run("vae", checkpoints=tmp_path)
    before = Checkpoints(tmp_path).steps()
    with pytest.raises(ValueError, match="has checkpoints already"):
        run("vae", checkpoints=tmp_path, resume=False)
    assert Checkpoints(tmp_path).steps() == before


def test_a_loader_without_indices_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="a Loader or one batch, not a list"):
        run("vae", loader=[data().train[:20]], checkpoints=tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("torch.get_num_threads", lambda: 77, "threads was .*, is 77"),
        ("unigen.environment._code", lambda: "abc", "code was [0-9a-f]{64}, is abc"),
        ("torch.are_deterministic_algorithms_enabled", lambda: True, "deterministic was False, is True"),
    ],
)
def test_another_environment_is_said_and_noted(tmp_path, monkeypatch, name, changed, words):
    with pytest.raises(KeyboardInterrupt):
        run("vae", checkpoints=tmp_path, checkpoint_every=1, callbacks=[stop_at(4)])
    monkeypatch.setattr(name, changed)
    with pytest.warns(ResumeWarning, match=f"not bit-identical: {words}"):
        _, history = run("vae", checkpoints=tmp_path, checkpoint_every=1)
    assert re.search(words, history.notes[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, history = run("vae", checkpoints=tmp_path, checkpoint_every=1)  # the same again: nothing new to say
    assert re.search(words, history.notes[1]) and len(history.notes) == 3


@pytest.mark.parametrize("where", ["parameter", "value"])
def test_what_is_not_finite_never_reaches_a_checkpoint(tmp_path, where):
    kept = Checkpoints(tmp_path)
    pair, routine, loader = arm("vae")

    def poison(state, history):
        if state.step == 4:
            next(iter(pair.model.parameters())).data.view(-1)[0] = float("nan")

    settings = {"callbacks": [poison], "record_every": 1 if where == "parameter" else 4}
    with pytest.raises((CheckpointError, TrainingError), match="step (4.*not finite|5)") as raised:
        fit(
            loader,
            routine,
            pair,
            steps=9,
            checkpoints=kept,
            checkpoint_every=1 if where == "parameter" else 5,
            progress=False,
            **settings,
        )
    assert isinstance(raised.value, CheckpointError if where == "parameter" else TrainingError)
    assert kept.steps() == ([2, 3] if where == "parameter" else [])
    if kept.steps():
        found = kept.load()
        assert found.step == 3 and all(bool(torch.isfinite(t).all()) for t in found.content["pair"].values())
