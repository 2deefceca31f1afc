"""SIGTERM and SIGINT ask a run to end, once; a second one ends the process at once.

The handler only sets a flag: ``fit(..., interrupted=asked)`` ends its step, saves a checkpoint, and raises.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Asked", "asked_to_end"]


class Asked:
    """Whether the process was asked to end: ``asked()``. ``asked.code`` is then 128 + the signal (130, 143), else 0."""

    code: int = 0

    def __call__(self) -> bool:
        return self.code != 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.code:
            os._exit(128 + number)
        self.code = 128 + number


@contextmanager
def asked_to_end(*numbers: signal.Signals) -> Iterator[Asked]:
    """Note signals (default SIGTERM and SIGINT) instead of dying of them; the former handlers come back at the end.

    Outside the main thread, where python takes no signals, nothing is noted.
    """
    asked, former = Asked(), {}
    if threading.current_thread() is threading.main_thread():
        former = {n: signal.signal(n, asked._note) for n in numbers or (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
