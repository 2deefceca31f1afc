"""Training to the end: Adam whose rates fall to zero, so that what is left of the noise is small."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from unigen.optimizers import Falling
from unigen.pair import Pair
from unigen.training import fit

__all__ = ["seeds", "train"]


def train(
    x: Any, routine: Any, pair: Pair, steps: int, *, theta: float = 0.0, phi: float = 0.0, psi: float = 0.0
) -> None:
    """Climb from the given rates, of those groups that the routine moves; a group of rate zero takes part, and stays."""
    rates = {"theta": theta, "phi": phi, "psi": psi}
    moved = {group for phase in routine for group in phase.move if pair.group(group)}
    optimizers = {group: torch.optim.Adam(pair.group(group), rates[group], fused=True) for group in sorted(moved)}
    fit(x, routine, pair, optimizers, steps=steps, schedule=Falling(0.0), progress=False)


def seeds(always: int, nightly: int) -> Any:
    """Parametrize ``seed`` by 0, 1, ..., the first ``always`` of them in every run of the tests, all ``nightly``."""
    slow = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(always, nightly)]
    return pytest.mark.parametrize("seed", [*range(always), *slow])
