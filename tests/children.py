"""Forked children whose end is looked at, and tallies of how many trials went as promised.

Forking wants a process with one thread: these are for tests/stress.py, not for a process that runs other tests.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tqdm.auto import tqdm

from unigen.signals import ASKING, asked_to_end

__all__ = ["ASKING", "Tally", "ended", "fork", "killed_at", "wait"]


@dataclass
class Tally:
    """How many trials of how many were good, and what was wrong with the others."""

    good: int = 0
    of: int = 0
    wrong: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def __call__(self, good: bool, what: str) -> bool:
        self.of += 1
        self.good += bool(good)
        if not good:
            self.wrong.append(what)
        return bool(good)

    def add(self, other: Tally) -> None:
        self.good += other.good
        self.of += other.of
        self.wrong += other.wrong
        self.skipped += other.skipped


def fork(work: Callable[[], object], said: Path | None = None) -> int:
    """Do work in a child, and return its process id; what it prints goes to the file ``said``, where there is one.

    The child exits as a script would: 0, the code of ``SystemExit``, 130 or 143 when a signal ended it, 1 after an error.
    Signals that arrive while it starts wait until it can take them. Its progress bars have a lock of their own: tqdm's is
    shared by all processes of one parent, and a child that is killed while it holds it would stop each of the others.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    child = os.fork()
    if child:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
        return child
    code = 1
    try:
        if said is not None:
            handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
        faulthandler.enable()
        tqdm.set_lock(threading.RLock())
        with asked_to_end(at_once=True):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
            work()
            signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)  # it is done: what comes now comes too late
            code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except KeyboardInterrupt as end:
        code = getattr(end, "code", 130)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise AssertionError("not reached")


def wait(child: int, seconds: float = 600) -> int:
    """Return a child's exit code, the negative signal where one killed it.

    A child that still runs after some seconds is ended by SIGABRT, for which it prints where it stood.
    """
    code = ended(child, seconds)
    if code is None:
        os.kill(child, signal.SIGABRT)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code


def ended(child: int, seconds: float) -> int | None:
    """Return a child's exit code, or None where it still runs after some seconds."""
    until = time.monotonic() + seconds
    while True:
        process, status = os.waitpid(child, os.WNOHANG)
        if process:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            return None
        time.sleep(0.001)


def killed_at(
    child: int, seconds: float, sent: signal.Signals, done: Callable[[], bool], begun: Callable[[], bool] = lambda: True
) -> tuple[int, float | None]:
    """Send a signal to a child some seconds after it has begun, and return its exit code, and how long it took to end after it.

    The time is None where the child ended by itself before, or was done.
    """
    code = None
    while code is None and not begun():
        code = ended(child, 0.001)
    code = ended(child, seconds) if code is None else code
    if code is not None:
        return code, None
    late = done()
    os.kill(child, sent)
    asked = time.monotonic()
    code = wait(child)
    return code, None if late and code == 0 else time.monotonic() - asked
