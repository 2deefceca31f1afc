"""Random streams kept apart: initial weights, training and evaluation each draw from one of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["isolated"]


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
