"""Runs that must be the same run: cut anywhere (B3, B4), elsewhere (B11), watched (B12), after others (B13), alone (B14)."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import random
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from children import Tally, fork, wait
from families import CATALOGUE, FAMILIES
from kills import command, written
from resuming import ARMS, arm, digest, only, scramble
from torch import Tensor

import unigen.resume
from unigen import fit
from unigen.checkpoints import Checkpoints
from unigen.data import Loader
from unigen.engines import engine_named
from unigen.environment import environment
from unigen.evaluate import log_likelihood, reconstruct, sample
from unigen.lock import DirectoryInUse, locked
from unigen.optimizers import Falling
from unigen.report import render
from unigen.resume import ResumeWarning
from unigen.runs import append_metrics, save_grid
from unigen.snapshots import capture_streams, restore_streams
from unigen.streams import isolated
from unigen.training import History, State

__all__ = [
    "Recording",
    "commands_watched",
    "cuts",
    "cuts_elsewhere",
    "de_bruijn",
    "drifted",
    "one_after_another",
    "refused_at_the_door",
    "replaced",
    "run",
    "watched",
]

STEPS = 9  # three epochs of three batches


def run(name: str, seed: int = 0, loader: Any = None, **settings: Any) -> tuple[State, History]:
    """Run an arm for three epochs with a falling learning rate; records are two steps apart, so that cuts fall between."""
    pair, routine, own = arm(name, seed)
    settings = {"steps": STEPS, "record_every": 2, "schedule": Falling(1e-5), "progress": False, **settings}
    return fit(own if loader is None else loader, routine, pair, **settings)


class Recording:
    """A loader that notes which batches it was asked for, and which rows these were."""

    def __init__(self, loader: Loader) -> None:
        self.loader, self.asked, self.rows = loader, list[int](), list[list[int]]()
        self.seed, self.batch_size, self.dataset = loader.seed, loader.batch_size, loader.dataset

    def at(self, index: int) -> Tensor:
        self.asked.append(index)
        self.rows.append(self.loader.indices(*divmod(index, self.loader.steps_per_epoch)).tolist())
        return self.loader.at(index)


# -- cut at every step (B3), no datum twice (B4) -----------------------------------------------------------------------


def cuts(name: str, root: Path, engine: str = "eager") -> tuple[Tally, Tally]:
    """Cut a run of three epochs by an engine at every step; a trial of both tallies is a cut.

    The first tally: the resumed run ends in the same bits, records the same values, and says where it was resumed. The
    second: over both parts, each epoch meets every row once, in the order of the uncut run.
    """
    bits, order, by = Tally(), Tally(), f"{name} by {engine}"
    engine_named(engine)  # importing JAX draws from numpy's stream
    scramble()
    start = capture_streams()
    state, plain = run(name, engine=engine)
    wanted = digest(state)
    restore_streams(start)
    every, whole = Checkpoints(root / "every", keep=STEPS + 1), Recording(arm(name)[2])
    state, history = run(name, loader=whole, checkpoints=every, checkpoint_every=1, engine=engine)
    if digest(state) != wanted or history.values != plain.values or every.steps() != list(range(1, STEPS + 1)):
        bits(False, f"{by}: checkpoints changed the run")
    batches = ARMS[name][0].batches
    for cut in range(1, STEPS):
        scramble()
        rest = Recording(arm(name)[2])
        kept = only(every, cut, Checkpoints(root / str(cut)))
        state, resumed = run(name, 1, rest, checkpoints=kept, checkpoint_every=100, engine=engine)
        same = digest(state) == wanted and (resumed.steps, resumed.values) == (plain.steps, plain.values)
        bits(same and resumed.notes == [f"resumed at step {cut}"], f"{by}: cut at step {cut}")
        seen = [row for batch in whole.rows[: cut * batches] + rest.rows for row in batch]
        size = len(whole.dataset.train)
        epochs = [sorted(seen[begin : begin + size]) for begin in range(0, STEPS // 3 * size * batches, size)]
        once = all(epoch == list(range(size)) for epoch in epochs) and len(seen) == len(epochs) * size
        order(once and whole.asked[: cut * batches] + rest.asked == whole.asked, f"{by}: rows after step {cut}")
    return bits, order


def cuts_elsewhere(name: str, root: Path, engine: str) -> tuple[Tally, Tally]:
    """Return ``cuts`` made in a process of their own: an engine that starts threads would spoil later forks."""
    root.mkdir(parents=True)

    def work() -> None:
        parts = [dataclasses.asdict(tally) for tally in cuts(name, root, engine)]
        (root / "tallies").write_text(json.dumps(parts))

    code = wait(fork(work, root / "said"))
    if code:
        failed = Tally()
        failed(False, f"{name} by {engine}: exit code {code}: {(root / 'said').read_text()[-400:]}")
        return failed, failed
    bits, order = (Tally(**part) for part in json.loads((root / "tallies").read_text()))
    return bits, order


# -- another environment (B11) -----------------------------------------------------------------------------------------


def drifted(root: Path) -> Tally:
    """Resume where one thing of the recorded environment is another; good is a warning and a note that name it.

    The last trial takes two threads in place of one, in truth: the result must then agree to 1 in 1000.
    """
    tally = Tally()
    start = capture_streams()
    kept = Checkpoints(root / "start", keep=STEPS + 1)
    state, _ = run("vae", checkpoints=kept, checkpoint_every=1)
    wanted, weights = digest(state), [p.detach().clone() for p in state.pair.parameters()]
    real: dict[str, Any] = environment("cpu")
    names = [(name, None) for name in real if name != "versions"] + [("versions", name) for name in real["versions"]]
    for number, (name, inner) in enumerate(names):
        other = {**real, name: {**real[name], inner: "other"} if inner else "other"}
        with replaced(unigen.resume, "environment", lambda device, other=other: other):
            end, said, notes = _resumed(kept, 4, root / str(number))
        named = f"{inner or name} was {real[name][inner] if inner else real[name]}, is other"
        good = any("not bit-identical" in words and named in words for words in said) and named in " ".join(notes)
        tally(good and digest(end) == wanted, f"{inner or name} differs: {said}")
    end, said, _ = _resumed(kept, 4, root / "same")
    tally(not said and digest(end) == wanted, f"nothing differs: {said}")
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        end, said, _ = _resumed(kept, 4, root / "threads")
    finally:
        torch.set_num_threads(threads)
    close = all(torch.allclose(a, b, 1e-3, 1e-3) for a, b in zip(end.pair.parameters(), weights, strict=True))
    tally(close and any(f"threads was {threads}, is {threads + 1}" in words for words in said), f"threads: {said}")
    restore_streams(start)
    return tally


def _resumed(source: Checkpoints, step: int, target: Path) -> tuple[State, list[str], list[str]]:
    kept = Checkpoints(target)
    shutil.copytree(source.path(step), kept.path(step))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state, history = run("vae", 1, checkpoints=kept, checkpoint_every=100)
    return state, [str(w.message) for w in caught if issubclass(w.category, ResumeWarning)], history.notes


# -- watched at any frequency (B12) ------------------------------------------------------------------------------------


def watched(name: str, root: Path) -> Tally:
    """Evaluate, log, draw and save at several frequencies; good is a run that ends in the bits of the unwatched one."""
    tally, start = Tally(), capture_streams()
    wanted = digest(run(name, record_every=STEPS)[0])
    x = arm(name)[2].dataset.test[:12]
    root.mkdir(parents=True)

    def evaluate(state: State, history: History) -> None:
        sample(state.pair, 5, x, seed=3)
        if state.pair.likelihood != "none":
            log_likelihood(state.pair, x, 3, seed=1)
            reconstruct(state.pair, x[:4], seed=4)

    def draw(state: State, history: History) -> None:
        save_grid(root / "samples.png", sample(state.pair, 4, x, seed=3).mean, (1, 8, 8))

    def log(state: State, history: History) -> None:
        folder = root / "comparison" / "vae" / "seed-0"
        folder.mkdir(parents=True, exist_ok=True)
        append_metrics(folder / "metrics.jsonl", {"step": state.step, "values": {"1 elbo": history.values[-1][0]}})
        render(root / "comparison")

    ways: dict[str, dict[str, Any]] = {
        "recorded every step": {"record_every": 1},
        "evaluated every step": {"record_every": 1, "callbacks": [evaluate]},
        "evaluated every 4 steps": {"record_every": 4, "callbacks": [evaluate]},
        "drawn every 2 steps": {"record_every": 2, "callbacks": [draw]},
        "reported every 3 steps": {"record_every": 3, "callbacks": [log]},
        "saved every step": {"checkpoint_every": 1},
        "saved every 4 steps": {"checkpoint_every": 4},
        "all of it": {"record_every": 1, "checkpoint_every": 1, "callbacks": [evaluate, draw, log]},
    }
    for number, (way, settings) in enumerate(ways.items()):
        restore_streams(start)
        saved = {"checkpoints": root / str(number)} if "checkpoint_every" in settings else {}
        tally(digest(run(name, **settings, **saved)[0]) == wanted, f"{name}: {way}")
    restore_streams(start)
    return tally


def commands_watched(root: Path) -> Tally:
    """Run a command with other numbers of evaluations; good is equal weights, samples and results."""
    tally, found = Tally(), {}
    root.mkdir(parents=True)
    for number in (3, 0, 1, 30):
        out = root / str(number)
        code = wait(fork(command("ring", out, "--evaluations", str(number)), root / "said"))
        files = written(out) if code == 0 else {}
        found[number] = {name: parts[1:] for name, parts in files.items()}
        if number != 3:
            for name in found[3]:
                tally(found[number].get(name) == found[3][name], f"{number} evaluations of {name}: exit code {code}")
    return tally


# -- one after another in a process (B13) ------------------------------------------------------------------------------


def de_bruijn(count: int) -> list[int]:
    """Return a sequence in which every ordered pair of numbers below ``count`` stands side by side exactly once.

    >>> de_bruijn(3)
    [0, 0, 1, 0, 2, 1, 1, 2, 2, 0]
    """
    order = [
        number
        for low in range(count)
        for high in range(low, count)
        for number in ((low, high) if high > low else (low,))
    ]
    return [*order, order[0]]


def routines_once() -> list[tuple[str, Any, str]]:
    """Return every routine, on the first family of pairs that it is declared for."""
    found = {}
    for name, routine, family in CATALOGUE:
        found.setdefault(name.split(" on ")[0], (name, routine, family))
    return list(found.values())


def one_after_another(root: Path, chance: random.Random, routines: int | None = None) -> Tally:
    """Run every routine right after every other, and after itself, in one process; a trial is an ordered pair.

    Good is a run whose end has the bits of the same run in a process of its own, and that leaves no state behind it: an
    empty parameter store, and torch's and Pyro's modes as they were. Then the same where the first of the two is ended by
    an exception in the middle of a program. ``routines``: how many of them, at random; default all.
    """
    tally, cases = Tally(), routines_once()
    cases = chance.sample(cases, min(routines or len(cases), len(cases)))
    root.mkdir(parents=True)
    alone = []
    for number in range(len(cases)):
        code = wait(fork(lambda number=number: (root / str(number)).write_text(_end(cases[number]))))
        alone.append((root / str(number)).read_text() if code == 0 else f"exit code {code}")
    before, modes = None, _modes()
    for number in de_bruijn(len(cases)):
        same, clean = _end(cases[number]) == alone[number], _modes() == modes
        if before is not None:
            tally(
                same and clean,
                f"{cases[number][0]} after {cases[before][0]}{'' if clean else ', which left something'}",
            )
        before = number
    for first, second in itertools.product(range(len(cases)), repeat=2):
        ended = _aborted(cases[first], chance)
        same, clean = _end(cases[second]) == alone[second], _modes() == modes
        tally(ended and same and clean, f"{cases[second][0]} after {cases[first][0]} was ended by an exception")
    return tally


def _end(case: tuple[str, Any, str]) -> str:
    _, routine, family = case
    former = capture_streams()
    random.seed(13)
    np.random.seed(13)
    try:
        with isolated(11):
            pair, x = FAMILIES[family]()
            return digest(fit(x, routine, pair, steps=2, progress=False)[0])
    finally:
        random.setstate(former["python"])  # what a run does to torch's stream outside, _modes tells
        np.random.seed(13)


def _aborted(case: tuple[str, Any, str], chance: random.Random) -> bool:
    """Let the model raise after one of its calls, and return whether that ended the run."""
    _, routine, family = case
    last = chance.choice((1, 2, 3))

    class Enough(Exception):
        pass

    with isolated(12):
        pair, x = FAMILIES[family]()
        calls = 0

        def stop(*_: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == last:
                raise Enough

        pair.model.register_forward_hook(stop)
        try:
            fit(x, routine, pair, steps=4, progress=False)
        except Enough:
            return True
    return False


def _modes() -> dict[str, Any]:
    """Return the state of this process that a run could leave changed."""
    return {
        "store": len(pyro.get_param_store()),
        "handlers": len(pyro.poutine.runtime._PYRO_STACK),
        "settings": pyro.settings.get(),
        "validation": torch.distributions.Distribution._validate_args,
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "stream": torch.get_rng_state().sum().item(),
        "random": hash(random.getstate()),
    }


# -- one process in a directory (B14) ----------------------------------------------------------------------------------


def refused_at_the_door(root: Path) -> Tally:
    """Let second processes into a directory that is in use; good is when each is refused and told who is there."""
    tally, directory = Tally(), root / "run"
    directory.mkdir(parents=True)

    def enter() -> None:
        try:
            with locked(directory):
                pass
        except DirectoryInUse as error:
            print(error)
            raise SystemExit(2) from None

    with locked(directory):
        for number in range(20):
            code = wait(fork(enter if number < 17 else command("ring", directory), root / "said"))
            words = (root / "said").read_text()
            tally(code == 2 and f"is in use by process {os.getpid()} on" in words, f"process {number}: {code}: {words}")
    tally.wrong += [] if wait(fork(enter)) == 0 else ["the directory stayed locked"]
    return tally


@contextlib.contextmanager
def replaced(home: Any, name: str, value: Any) -> Iterator[None]:
    """Put a value in place of another for a while."""
    former = getattr(home, name)
    setattr(home, name, value)
    try:
        yield
    finally:
        setattr(home, name, former)
