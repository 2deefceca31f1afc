"""End runs by ``kill -9`` or a signal at random instants, start them again by the same call, compare with runs left alone.

    python tests/stress.py --kills 200
    python tests/stress.py --kills 50 --signal SIGTERM

Prints one row a routine: kills, runs finished, how many of these ended in the same bits (parameters, buffers, chains,
optimizers, every random stream), and the most steps that one kill cost: at most the interval of checkpoints, none after
SIGTERM or SIGINT, which must end a run within 10 seconds with exit code 143 or 130. Exits with 1 where any of it fails, or
a checkpoint was rejected. Wants ``os.fork``.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from resuming import ARMS, arm, digest  # noqa: E402

from unigen import fit  # noqa: E402
from unigen.resume import ResumeWarning  # noqa: E402
from unigen.signals import asked_to_end  # noqa: E402
from unigen.training import Falling, Interrupted  # noqa: E402

STEPS, INTERVAL = 40, 3
ASKING = (signal.SIGTERM, signal.SIGINT)


@dataclass
class Row:
    """What happened to one routine."""

    routine: str
    kills: int = 0
    finished: int = 0
    equal: int = 0
    lost: int = 0
    errors: int = 0
    allowed: int = INTERVAL

    @property
    def good(self) -> bool:
        return self.equal == self.finished > 0 and self.errors == 0 and self.lost <= self.allowed


def train(name: str, directory: Path | None, result: Path, interrupted: Callable[[], bool]) -> None:
    """Run an arm as a script would, log every step, and write the digest of where it ended."""
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    warnings.simplefilter("error", ResumeWarning)
    pair, routine, loader = arm(name)
    handle = os.open(result.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    state, _ = fit(
        loader,
        routine,
        pair,
        steps=STEPS,
        schedule=Falling(1e-5),
        record_every=1,
        callbacks=[lambda state, history: os.write(handle, f"{state.step}\n".encode()) and None],
        checkpoints=directory,
        checkpoint_every=INTERVAL,
        interrupted=interrupted,
        progress=False,
    )
    result.write_text(digest(state))


def fork(name: str, directory: Path | None, result: Path) -> int:
    """Train in a child and return its process id; the child exits with 0, 130 or 143 when asked to end, 1 after an error."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)  # until the child can take them
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with asked_to_end() as asked:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
                try:
                    train(name, directory, result, asked)
                    code = 0
                except Interrupted:
                    code = asked.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
    return child


def ended(child: int) -> int | None:
    """Return a child's exit code, or None where it still runs."""
    process, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if process else None


def stress(name: str, kills: int, sent: signal.Signals, chance: random.Random, root: Path) -> Row:
    """End runs of one routine until there were ``kills`` and the last run has finished."""
    killed, alone = -sent if sent == signal.SIGKILL else 128 + sent, root / "alone"
    row = Row(name, allowed=INTERVAL if sent == signal.SIGKILL else 0)
    root.mkdir()
    began = time.monotonic()
    code = os.waitstatus_to_exitcode(os.waitpid(fork(name, root / "first", alone), 0)[1])
    duration = time.monotonic() - began
    if code:
        row.errors += 1
        return row
    os.waitpid(fork(name, None, root / "plain"), 0)
    wanted = (root / "plain").read_text()
    row.errors += alone.read_text() != wanted  # checkpoints must not change a run either
    number = 0
    while row.kills < kills or not row.finished:
        number, finished = number + 1, False
        directory, result = root / f"run-{number}", root / f"result-{number}"
        while not finished:
            log = result.with_suffix(".log")
            before = log.read_text().splitlines() if log.exists() else []
            child = fork(name, directory, result)
            until = time.monotonic() + (chance.uniform(0, duration) if row.kills < kills else 120)
            while (code := ended(child)) is None and time.monotonic() < until:
                time.sleep(0.001)
            if code is None:
                os.kill(child, sent)
                asked = time.monotonic()
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                row.kills += code == killed
                row.errors += time.monotonic() - asked > 10
            after = log.read_text().splitlines() if log.exists() else []
            if before and len(after) > len(before):
                row.lost = max(row.lost, int(before[-1]) + 1 - int(after[len(before)]))
            finished = code == 0
            if code not in (0, killed):
                row.errors += 1
                return row
        row.finished += 1
        row.equal += result.read_text() == wanted
    return row


def main() -> int:
    """Print the table and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="kills in all, shared among the routines")
    parser.add_argument("--signal", default="SIGKILL", choices=("SIGKILL", "SIGTERM", "SIGINT"), help="what ends a run")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="decides the instants")
    parser.add_argument("--routines", nargs="*", default=list(ARMS), choices=list(ARMS), help="default: all")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    pair, routine, loader = arm("vae")
    fit(loader, routine, pair, steps=1, progress=False)  # what torch imports at the first step, once for all children
    chance = random.Random(chosen.seed)
    print(
        f"{chosen.signal}, seed {chosen.seed}, {STEPS} steps a run, a checkpoint every {INTERVAL}, torch {torch.__version__}"
    )
    print(f"{'routine':<36}{'kills':>7}{'runs':>7}{'equal':>7}{'steps lost':>12}")
    rows = []
    with tempfile.TemporaryDirectory() as root:
        for number, name in enumerate(chosen.routines):
            share = chosen.kills * (number + 1) // len(chosen.routines) - chosen.kills * number // len(chosen.routines)
            row = stress(name, share, signal.Signals[chosen.signal], chance, Path(root, str(number)))
            rows.append(row)
            mark = "" if row.good else "   FAILED"
            print(f"{name:<36}{row.kills:>7}{row.finished:>7}{row.equal:>7}{row.lost:>12}{mark}", flush=True)
    kills, runs, equal = (sum(getattr(row, field) for row in rows) for field in ("kills", "finished", "equal"))
    print(f"{'all':<36}{kills:>7}{runs:>7}{equal:>7}{max(row.lost for row in rows):>12}")
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
