"""Every experiment script, run in a reduced size."""

from __future__ import annotations

import math

import posterior_regularization
import pytest


def test_a_fixed_constraint_moves_its_statistic_to_the_target():
    found = posterior_regularization.main(posterior_regularization.Settings(steps=400, seeds=(0,)))
    assert abs(found["share without"] - 0.5) < 0.05
    assert (
        abs(found["share with"] - 0.7) < 0.05
    )  # 50,000 samples: three standard errors are 0.006, the rest is training
    # at the fixed point the cost is 0.087 nats; after 400 steps neither flow has converged
    assert math.isfinite(found["cost in nats"])


def test_the_strength_solves_the_fixed_point_equation():
    strength = posterior_regularization.strength
    for share in (0.2, 0.5, 0.6):
        for target in (share, share + 0.1):
            alpha = strength(target, share)
            tilted = target * math.exp(alpha) / (target * math.exp(alpha) + 1 - target)
            assert (share + tilted) / 2 == pytest.approx(target, abs=1e-12)
    with pytest.raises(ValueError, match="between 0.25 and 0.75"):
        strength(0.8, 0.5)
