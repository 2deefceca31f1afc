"""Random streams kept apart: initial weights, training and evaluation each draw from one of their own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy
import torch

__all__ = ["isolated", "own_of_python"]


@contextmanager
def isolated(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Draw from a random stream of its own on the CPU and on ``device``; the streams outside are untouched.

    Not by ``torch.manual_seed``, which would seed every device, also those that are not forked here.
    """
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def own_of_python() -> Iterator[Callable[[], bool]]:
    """Leave the random streams of Python and numpy as they were; what is given says whether something was drawn from them."""
    python, of_numpy = random.getstate(), numpy.random.get_state()  # noqa: NPY002

    def drawn() -> bool:
        now = numpy.random.get_state()  # noqa: NPY002
        return random.getstate() != python or not all(map(numpy.array_equal, now, of_numpy))

    try:
        yield drawn
    finally:
        random.setstate(python)
        numpy.random.set_state(of_numpy)  # noqa: NPY002
