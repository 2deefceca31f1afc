"""Print how reliable runs are: kills, full disks, corrupted files, signals, cuts, other environments, watchers, neighbours.

    python -m tests.stress                    # all figures, minutes
    python -m tests.stress --quick            # the short version
    python -m tests.stress --only B1 --kills 1000
    python -m tests.stress --quick --plant    # each figure with a fault planted that it must notice

Writes one table in Markdown, a row a figure: how many trials of how many went as promised. What was wrong with the others
goes to stderr, and the exit code is then 1; with ``--plant``, it is 1 where a planted fault went unnoticed. Wants ``os.fork``.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

import disks  # noqa: E402
import kills  # noqa: E402
import sameness  # noqa: E402
from children import ASKING, Tally  # noqa: E402
from resuming import ARMS, arm  # noqa: E402

import unigen.checkpoints  # noqa: E402
import unigen.evaluate.dreams  # noqa: E402
import unigen.evaluate.likelihood  # noqa: E402
import unigen.lock  # noqa: E402
import unigen.resume  # noqa: E402
import unigen.signals  # noqa: E402
from unigen import fit  # noqa: E402
from unigen.data import Loader  # noqa: E402
from unigen.environment import environment  # noqa: E402

SOME = ("wgan_gp", "persistent contrastive divergence", "vae with batch norm and dropout")


@dataclass(frozen=True)
class Work:
    """What a figure is asked for."""

    quick: bool
    kills: int
    chance: random.Random
    root: Path

    @property
    def arms(self) -> tuple[str, ...]:
        return SOME if self.quick else tuple(ARMS)


def total(tallies: Iterable[Tally]) -> Tally:
    """Add tallies up."""
    found = Tally()
    for tally in tallies:
        found.add(tally)
    return found


def shares(count: int, parts: int) -> list[int]:
    """Cut a count into equal parts, to a unit."""
    return [count * (part + 1) // parts - count * part // parts for part in range(parts)]


def killed(work: Work) -> Tally:
    """`kill -9` at random instants, restarted by the same call: the bits of the run left alone, at most 3 steps lost"""
    sent, chance, commands = signal.SIGKILL, work.chance, work.kills // 10  # of whole commands, the others of fit
    split = zip(work.arms, shares(work.kills - commands, len(work.arms)), strict=True)
    found = [kills.killed(name, n, sent, chance, work.root / name) for name, n in split]
    found.append(kills.ended_anywhere("ring", commands, sent, chance, work.root / "command"))
    if not work.quick:
        found.append(kills.ended_anywhere("seeds in one program", 4, sent, chance, work.root / "together"))
    return total(found)


def killed_elsewhere(work: Work) -> Tally:
    """`kill -9` of runs by the engines compiled and xla: the bits of the run left alone by the same engine, as many steps lost"""
    ways = (("xla", "vae"), ("compiled", "persistent contrastive divergence"))
    sent, chance = signal.SIGKILL, work.chance
    return total(kills.killed(name, 3, sent, chance, work.root / f"{engine} {name}", engine) for engine, name in ways)


def killed_saves(work: Work) -> Tally:
    """killed at each of six points of a save: the newest complete checkpoint loads, the next save is whole"""
    return disks.killed_saves(1 if work.quick else 10, work.root)


@functools.cache
def _cuts(work: Work) -> tuple[Tally, Tally]:
    found = [sameness.cuts(name, work.root / name) for name in work.arms]
    return total(bits for bits, _ in found), total(order for _, order in found)


def cut(work: Work) -> Tally:
    """cut at every step of three epochs and resumed: the bits and records of the uncut run"""
    return _cuts(work)[0]


def ordered(work: Work) -> Tally:
    """the same cuts: every epoch meets each datum once, in the order of the uncut run"""
    return _cuts(work)[1]


def cut_elsewhere(work: Work) -> Tally:
    """the same cuts by the engines compiled and xla: bits, records and order of the run uncut by the same engine"""
    ways = [("xla", name) for name in ARMS] + [("compiled", "persistent contrastive divergence")]
    found = [sameness.cuts_elsewhere(name, work.root / f"{engine} {name}", engine) for engine, name in ways]
    return total(tally for pair in found for tally in pair)


def corrupted(work: Work) -> Tally:
    """flipped bits, truncations, zeroed pages; missing, swapped and foreign files: rejected, the one before is taken"""
    count = 30 if work.quick else 300
    spoils = (disks.flip, disks.truncate, disks.zero_page)
    found = [disks.corrupted(spoil, count, work.chance, work.root / spoil.__name__) for spoil in spoils]
    return total([*found, disks.missing_and_swapped(work.root / "files")])


def refused(work: Work) -> Tally:
    """a disk that is full, read-only, gone or broken: path and bytes named, exit code 1, resumed after the cure"""
    return disks.refused(work.root, work.quick)


def signalled(work: Work) -> Tally:
    """SIGTERM, SIGINT, SIGUSR1 at any instant of a run or command: ended in 10 s with 128 + its number, resumed to the bits"""
    counts = (1, 1) if work.quick else (8, 7)
    found = []
    for sent in ASKING:
        names = work.chance.sample(work.arms, 1 if work.quick else 4)
        found += [
            kills.killed(name, n, sent, work.chance, work.root / f"{sent.name} {name}")
            for name, n in zip(names, shares(counts[0], len(names)), strict=True)
        ]
        found.append(kills.ended_anywhere("ring", counts[1], sent, work.chance, work.root / f"{sent.name} command"))
    places = [(place, sent) for place in kills.PLACES for sent in ASKING]
    places = work.chance.sample(places, 3) if work.quick else places
    return total([*found, kills.ended_at(places, work.chance, work.root / "places")])


def drifted(work: Work) -> Tally:
    """resumed where a version, the code, the device, the threads or a mode is another: warned and noted by name"""
    return sameness.drifted(work.root)


def watched(work: Work) -> Tally:
    """evaluated, logged, drawn, reported and saved at eight frequencies: the bits of the unwatched run"""
    found = [sameness.watched(name, work.root / name) for name in work.arms]
    return total(found if work.quick else [*found, sameness.commands_watched(work.root / "command")])


def neighbours(work: Work) -> Tally:
    """each routine after each other in one process, also after one that an exception ended: the bits of the run alone"""
    return sameness.one_after_another(work.root, work.chance, 6 if work.quick else None)


def alone(work: Work) -> Tally:
    """a second process in a run's directory: refused, and told who is there"""
    return sameness.refused_at_the_door(work.root)


FIGURES: dict[str, Callable[[Work], Tally]] = {
    "B1": killed,
    "B1+": killed_elsewhere,
    "B2": killed_saves,
    "B3": cut,
    "B3+": cut_elsewhere,
    "B4": ordered,
    "B5": corrupted,
    "B6": refused,
    "B7": signalled,
    "B11": drifted,
    "B12": watched,
    "B13": neighbours,
    "B14": alone,
}
LONG = ("B1+", "B3+")
"""Figures that have no short version."""


# -- planted faults: each figure must notice its own -------------------------------------------------------------------


def _forgetful(content: Any, state: Any, streams: bool = True, original: Any = unigen.resume.restore) -> None:
    original(content, state, streams=False)


def _in_place(self: Any, step: int, content: Any) -> Path:
    path: Path = self.path(step)
    path.mkdir(exist_ok=True)
    files = unigen.checkpoints._files(content)
    sums = {name: {"bytes": len(data), "sha256": unigen.checkpoints._sha256(data)} for name, data in files.items()}
    manifest = {"format": unigen.checkpoints._FORMAT, "step": step, "run": self.run, "files": sums}
    for name, data in (files | {"manifest.json": unigen.checkpoints._signed(manifest)}).items():
        unigen.checkpoints._write(path / name, data)
    return path


def _swallowing(self: Any, step: int, content: Any, original: Any = unigen.checkpoints.Checkpoints.save) -> Path:
    with contextlib.suppress(unigen.checkpoints.CheckpointError):
        original(self, step, content)
    return self.path(step)


def _unforeseeable(self: Any, epoch: int) -> torch.Tensor:
    return torch.randperm(len(self._rows))


FAULTS: dict[str, list[tuple[Any, str, Any]]] = {
    "B1": [(unigen.resume, "restore", _forgetful)],
    "B1+": [(unigen.resume, "restore", _forgetful)],
    "B2": [(unigen.checkpoints.Checkpoints, "save", _in_place)],
    "B3": [(unigen.resume, "restore", _forgetful)],
    "B3+": [(unigen.resume, "restore", _forgetful)],
    "B4": [(Loader, "order", _unforeseeable)],
    "B5": [(unigen.checkpoints, "_sha256", lambda data: "")],
    "B6": [(unigen.checkpoints.Checkpoints, "save", _swallowing)],
    "B7": [(unigen.signals.Asked, "__call__", lambda self: False)],
    "B11": [(unigen.resume, "differences", lambda there, here: [])],
    "B12": [
        (home, "isolated", lambda *_: contextlib.nullcontext())
        for home in (unigen.evaluate.dreams, unigen.evaluate.likelihood)
    ],
    "B13": [(sameness, "FAMILIES", {name: functools.cache(build) for name, build in sameness.FAMILIES.items()})],
    "B14": [(unigen.lock.fcntl, "flock", lambda handle, how: None)],
}


@contextlib.contextmanager
def planted(name: str) -> Iterator[None]:
    """Plant a figure's fault for a while."""
    with contextlib.ExitStack() as stack:
        for home, attribute, value in FAULTS[name]:
            stack.enter_context(sameness.replaced(home, attribute, value))
        yield


# -- the table ---------------------------------------------------------------------------------------------------------


def machine() -> str:
    """Return date, machine and versions, for the line above the table."""
    here = environment("cpu")
    versions = ", ".join(f"{name} {here['versions'][name]}" for name in ("python", "torch", "pyro-ppl"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{date.today():%d %B %Y}, {cores} CPU cores ({here['device_name']}), {versions}"


def main() -> int:
    """Print the table and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the short version, about a minute")
    parser.add_argument("--only", nargs="+", choices=list(FIGURES), help="some of the figures")
    parser.add_argument("--kills", type=int, help="kills of B1 in all (default 200; 10 with --quick)")
    parser.add_argument("--plant", action="store_true", help="plant a fault in each figure, which it must notice")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="decides every instant and choice")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    import matplotlib.figure  # noqa: F401 - what children would otherwise import again and again
    import sklearn.datasets  # noqa: F401
    import torchvision.utils  # noqa: F401

    pair, routine, loader = arm("vae")
    fit(loader, routine, pair, steps=1, progress=False)
    chance = random.Random(chosen.seed)
    memory = Path("/dev/shm")
    root = tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None)  # so that a sync costs nothing
    print(
        f"{machine()}; seed {chosen.seed}{', short version' if chosen.quick else ''}{', faults planted' * chosen.plant}"
    )
    print("\n| | what was tried, and what is promised | good |\n|---|---|---|", flush=True)
    failed = 0
    try:
        for name, figure in FIGURES.items():
            if name not in chosen.only if chosen.only else chosen.quick and name in LONG:
                continue
            began = time.perf_counter()
            count = chosen.kills or (10 if chosen.quick else 200)
            work = Work(chosen.quick, count, chance, Path(root, "cuts" if figure in (cut, ordered) else name))
            with planted(name) if chosen.plant else contextlib.nullcontext():
                tally = figure(work)
            if chosen.plant:
                _cuts.cache_clear()
                shutil.rmtree(work.root, ignore_errors=True)
            failed += (tally.good == tally.of and not tally.wrong) == chosen.plant
            skipped = f" (skipped: {'; '.join(tally.skipped)})" if tally.skipped else ""
            print(f"| {name} | {figure.__doc__}{skipped} | {tally.good}/{tally.of} |", flush=True)
            for wrong in tally.wrong[:3] if chosen.plant else tally.wrong:
                print(f"{name}: {wrong}", file=sys.stderr)
            print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
