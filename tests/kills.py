"""Runs that are ended by ``kill -9`` or a signal and started again by the same call, against runs left alone (B1, B7)."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import math
import os
import random
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from children import ASKING, Tally, fork, killed_at, wait
from resuming import arm, digest

from unigen import fit
from unigen.cli import main
from unigen.optimizers import Falling
from unigen.resume import ResumeWarning
from unigen.signals import Ended, asked_to_end
from unigen.training import Interrupted

__all__ = ["INTERVAL", "PLACES", "STEPS", "command", "ended_anywhere", "ended_at", "killed", "train", "written"]

STEPS, INTERVAL = 40, 3


# -- fit ---------------------------------------------------------------------------------------------------------------


def train(name: str, directory: Path | None, result: Path, engine: str = "eager") -> None:
    """Run an arm as a script would, log every step, and write the digest of where it ended."""
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    warnings.simplefilter("error", ResumeWarning)
    pair, routine, loader = arm(name)
    handle = os.open(result.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with asked_to_end() as asked:
        try:
            state, _ = fit(
                loader,
                routine,
                pair,
                steps=STEPS,
                engine=engine,
                schedule=Falling(1e-5),
                record_every=1,
                callbacks=[lambda state, history: os.write(handle, f"{state.step}\n".encode()) and None],
                checkpoints=directory,
                checkpoint_every=INTERVAL,
                interrupted=asked,
                progress=False,
            )
        except Interrupted as error:
            error.code = asked.code
            raise
        if asked():  # after the last step
            raise Ended(asked.code)
    result.write_text(digest(state))


def killed(
    name: str, kills: int, sent: signal.Signals, chance: random.Random, root: Path, engine: str = "eager"
) -> Tally:
    """End runs of one arm by an engine until there were ``kills`` and the last run has finished; a trial is a kill.

    Good is a kill after which the run went on with at most an interval of checkpoints lost (none after SIGTERM and SIGINT,
    which end it within 10 seconds with the right code), and ended in the same bits as the run left alone.
    """
    tally, allowed = Tally(), 0 if sent in ASKING else INTERVAL
    expected = 128 + sent if sent in ASKING else -sent
    root.mkdir(parents=True)
    began = time.monotonic()
    alone = wait(fork(lambda: train(name, None, root / "alone", engine)))
    duration = time.monotonic() - began
    if alone:
        tally(False, f"{name}: left alone, it ended with {alone}")
        return tally
    wanted, number, count = (root / "alone").read_text(), 0, 0
    while count < kills:
        number, trials = number + 1, []
        directory, result = root / f"run-{number}", root / f"result-{number}"
        log = result.with_suffix(".log")
        code, lost, before = expected, 0, 0
        while code == expected:
            child = fork(lambda directory=directory, result=result: train(name, directory, result, engine))
            if count < kills:
                seconds, steps = duration, 0
                if engine != "eager":  # compiled for longer than it trains: an instant of a step
                    seconds, steps = 0.02, before + chance.randint(1, STEPS // 2)
                code, took = killed_at(
                    child,
                    chance.uniform(0, seconds),
                    sent,
                    result.exists,
                    lambda log=log, steps=steps: len(_steps(log)) >= steps,
                )
            else:
                code, took = wait(child, 120), None
            if code == 0 and took is not None:
                tally(False, f"{name}, run {number}: went on as if no signal had come")
            taken = _steps(log)
            if before and len(taken) > before:
                lost = max(lost, taken[before - 1] + 1 - taken[before])
            before = len(taken)
            if code == expected:
                count += 1
                trials.append(took is not None and took <= 10)
        same = code == 0 and result.read_text() == wanted
        what = f"{name}, run {number}: ended with {code}, {'the same' if same else 'other'} bits, {lost} steps lost"
        for prompt in trials:
            tally(prompt and same and lost <= allowed, what)
        if not trials and not same:
            tally(False, what)
        if code:
            break
    return tally


def _steps(log: Path) -> list[int]:
    """Return the steps that a run has logged, those of all its processes."""
    return [int(line) for line in log.read_text().splitlines()] if log.exists() else []


# -- the whole command -------------------------------------------------------------------------------------------------

_TINY = "--hidden 16 --batch-size 32 --particles 3 --test-size 40 --seeds 0 --evaluations 3"
COMMANDS = {
    "seeds in one program": "compare --data ring --routines vae wake_sleep --steps 60 --engine xla".split()
    + _TINY.replace("--seeds 0", "--seeds 0 1").split(),
    "ring": f"compare --data ring --routines wake_sleep reweighted_wake_sleep gan --steps 30 {_TINY}".split(),
    "digits": f"compare --data digits --routines vae persistent_contrastive_divergence --steps 12 {_TINY} --units 6".split(),
}
PLACES = {
    "while data are read": ("unigen.data", "read"),
    "while pairs are checked": ("unigen.planning", "check"),
    "while a classifier is trained": ("unigen.compare", "train_classifier"),
    "before the first step": ("unigen.resume", "environment"),
    "while a checkpoint is written": ("unigen.checkpoints", "put"),
    "during an evaluation on validation data": ("unigen.arms", "log_likelihood"),
    "during the evaluation on test data": ("unigen.compare", "evaluate"),
    "while sampling": ("unigen.evaluate.examination", "sample"),
    "while pictures are drawn": ("unigen.compare", "save_samples"),
    "while a result is written": ("unigen.compare", "write_json"),
    "while the report is rendered": ("unigen.cli", "render"),
}
"""A function that the command calls, by the module that looks it up."""


def command(name: str, out: Path, *more: str) -> Callable[[], None]:
    """Return the work of a child: a comparison by the command line."""

    def work() -> None:
        os.environ["CI"] = "1"
        main([*COMMANDS[name], "--out", str(out), *more])

    return work


def written(out: Path) -> dict[str, object]:
    """Return what a comparison wrote, without its times and without where it was resumed."""
    found: dict[str, object] = {}
    for folder in sorted(out.glob("*/seed-*")):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        result = json.loads((folder / "result.json").read_text())
        for entry in (*lines, result):
            for name in [name for name in entry if name.startswith("seconds") or name == "notes"]:
                del entry[name]
        pictures = {file.name: file.read_bytes() for file in sorted(folder.glob("*.png"))}
        weights = (folder / "weights.safetensors").read_bytes()
        found[folder.parent.name] = (lines, result, pictures, weights)
    return found


def ended_anywhere(name: str, kills: int, sent: signal.Signals, chance: random.Random, root: Path) -> Tally:
    """End a command ``kills`` times, at random instants of all that it does; a trial is a signal.

    Good is a signal that ended it within 10 seconds and with the right code, where the command, started again after at most
    four of them, wrote the files that it writes alone.
    """
    tally, expected = Tally(), 128 + sent if sent in ASKING else -sent
    root.mkdir(parents=True)
    began = time.monotonic()
    code = wait(fork(command(name, root / "alone"), root / "said"))
    duration, count, number = time.monotonic() - began, 0, 0
    if code:
        tally(False, f"left alone, the command ended with {code}: {_words(root / 'said')}")
        return tally
    wanted = written(root / "alone")
    while count < kills:
        out, code, times = root / f"out-{(number := number + 1)}", expected, []
        while code == expected:
            child = fork(command(name, out), root / "said")
            if count < kills and len(times) < 4:
                code, took = killed_at(child, chance.uniform(0, duration), sent, (out / "report.html").exists)
            else:
                code, took = wait(child), None
            if code == 0 and took is not None:
                tally(False, f"{name}, {out.name}: went on as if no signal had come")
            if code == expected and took is not None:
                times.append(took)
                count += 1
        same = code == 0 and written(out) == wanted and (out / "report.html").is_file()
        what = f"{name}, {out.name}: ended with {code}, {'the same' if same else 'other'} files"
        for took in times:
            tally(same and took <= 10, f"{what}, {took:.1f} s")
        if code:
            tally(False, f"{what}: {_words(root / 'said')}")
            break
    return tally


def ended_at(places: list[tuple[str, signal.Signals]], chance: random.Random, root: Path) -> Tally:
    """End a command in the middle of one thing that it does, and start it again; a trial is a place and a signal."""
    tally = Tally()
    root.mkdir(parents=True)
    code = wait(fork(lambda: _counted(root / "alone", root / "calls"), root / "said"))
    if code:
        tally(False, f"left alone, the command ended with {code}: {_words(root / 'said')}")
        return tally
    wanted, calls = written(root / "alone"), json.loads((root / "calls").read_text())
    for number, (place, sent) in enumerate(places):
        out, stamp, call = root / f"out-{number}", root / f"stamp-{number}", chance.randint(1, calls[place])

        def work(place=place, sent=sent, out=out, stamp=stamp, call=call) -> None:
            _signalled(*PLACES[place], call, sent, stamp)
            command("digits", out)()

        code = wait(fork(work, root / "said"))
        took = time.monotonic() - float(stamp.read_text()) if stamp.exists() else math.inf
        again = wait(fork(command("digits", out), root / "again"))
        same = again == 0 and written(out) == wanted
        what = f"{sent.name} {place}, call {call} of {calls[place]}: ended with {code} after {took:.1f} s"
        what += f", then with {again} and {'the same' if same else 'other'} files: {_words(root / 'said')}"
        tally(code == 128 + sent and same and took <= 10, what)
    return tally


def _counted(out: Path, calls: Path) -> None:
    """Run a command and write how often it calls each of ``PLACES``."""
    counts = dict.fromkeys(PLACES, 0)

    def counting(place: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **keywords: Any) -> Any:
            counts[place] += 1
            return original(*arguments, **keywords)

        return counted

    for place, (module, name) in PLACES.items():
        home = importlib.import_module(module)
        setattr(home, name, counting(place, getattr(home, name)))
    with contextlib.suppress(SystemExit):
        command("digits", out)()
    calls.write_text(json.dumps(counts))


def _signalled(module: str, name: str, call: int, sent: signal.Signals, stamp: Path) -> None:
    """Let a function of this process, when it is called for the ``call``-th time, send a signal to the process first."""
    home = importlib.import_module(module)
    original, calls = getattr(home, name), itertools.count(1)

    def counted(*arguments: Any, **keywords: Any) -> Any:
        if next(calls) == call:
            stamp.write_text(str(time.monotonic()))
            os.kill(os.getpid(), sent)
        return original(*arguments, **keywords)

    setattr(home, name, counted)


def _words(said: Path) -> str:
    return said.read_text(errors="replace")[-400:]
