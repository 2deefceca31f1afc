"""The log density of a distribution, where bits have one that is faster than torch's own."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Bernoulli
from pyro.distributions.util import sum_rightmost
from torch import Tensor

from unigen.engines.sites import base_of
from unigen.softplus import bit_log_density

__all__ = ["log_density"]


def log_density(fn: Any, value: Tensor) -> Tensor:
    """Return ``fn.log_prob(value)``, of bits with log odds by ``bit_log_density``."""
    base = base_of(fn)
    logits = vars(base).get("logits") if type(base) is Bernoulli else None
    if logits is None:
        return fn.log_prob(value)
    if base._validate_args:
        base._validate_sample(value)
    return sum_rightmost(bit_log_density(*torch.broadcast_tensors(logits, value)), fn.event_dim)
