"""Every experiment script, run in a reduced size."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_fixed_constraint_moves_its_statistic_to_the_target():
    module = script("posterior_regularization")
    found = module.main(module.Settings(steps=400, seeds=(0,)))
    assert abs(found["share without"] - 0.5) < 0.05
    assert abs(found["share with"] - 0.7) < 0.05  # 50,000 samples: three standard errors are 0.006, the rest is training
    # at the fixed point the cost is KL(data || regularized) = -log(2 sqrt(0.3 0.7)), 0.087 nats
    assert found["cost in nats"] == pytest.approx(-math.log(2 * math.sqrt(0.21)), abs=0.06)


def test_the_strength_solves_the_fixed_point_equation():
    strength = script("posterior_regularization").strength
    for share in (0.2, 0.5, 0.6):
        for target in (share, share + 0.1):
            alpha = strength(target, share)
            tilted = target * math.exp(alpha) / (target * math.exp(alpha) + 1 - target)
            assert (share + tilted) / 2 == pytest.approx(target, abs=1e-12)
    with pytest.raises(ValueError, match="between 0.25 and 0.75"):
        strength(0.8, 0.5)
