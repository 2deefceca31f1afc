"""SIGTERM, SIGINT and SIGUSR1 (which batch systems send some time before the end) ask a process to end; a second one ends it.

While a run trains, the handler only sets a flag: ``fit(..., interrupted=asked)`` ends its step, saves a checkpoint, and
raises. Everywhere else a command has nothing to lose, since its files are written whole, and ``Ended`` is raised on the spot.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["ASKING", "Asked", "Ended", "asked_to_end"]

ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Ended(KeyboardInterrupt):
    """A command that a signal ended; ``code`` is its exit code, 128 + the signal: 130, 138, 143."""

    def __init__(self, code: int = 130) -> None:
        super().__init__(f"ended by {signal.Signals(code - 128).name}")
        self.code = code


class Asked:
    """Whether the process was asked to end: ``asked()``. ``asked.code`` is then 128 + the signal (130, 138, 143), else 0."""

    def __init__(self, at_once: bool = False, outer: Asked | None = None) -> None:
        self.code, self.at_once, self.outer = 0, at_once, outer

    def __call__(self) -> bool:
        return self.code != 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        nested = [self]
        while nested[-1].outer is not None:
            nested.append(nested[-1].outer)
        if any(asked() for asked in nested):
            os._exit(128 + number)
        for asked in nested:
            asked.code = 128 + number
        if self.at_once:
            raise Ended(128 + number)


@contextmanager
def asked_to_end(*numbers: signal.Signals, at_once: bool = False) -> Iterator[Asked]:
    """Note signals (default ``ASKING``) instead of dying of them, and with ``at_once`` raise ``Ended`` on the spot.

    The former handlers come back at the end. Where one of these is a context of this kind, it learns of the signal too, so
    that the second signal counts as such wherever it arrives. Outside the main thread, where python takes no signals,
    nothing is noted.
    """
    numbers = numbers or ASKING
    outer = getattr(signal.getsignal(numbers[0]), "__self__", None)
    asked, former = Asked(at_once, outer if isinstance(outer, Asked) else None), {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                former[number] = signal.signal(number, asked._note)
        yield asked
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
