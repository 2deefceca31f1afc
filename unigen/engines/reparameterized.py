"""A value of a distribution as the reparameterized sample of its own noise: the same number, with the path's derivative."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Delta, MaskedDistribution
from torch import Tensor
from torch.distributions import (
    Cauchy,
    Independent,
    Laplace,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    Uniform,
)

from unigen.engines.inverses import forget

__all__ = ["reparameterized"]


def reparameterized(fn: Any, value: Tensor) -> Tensor | None:
    """Return ``value``, which may not need a gradient, with that of ``fn.rsample`` where it drew this value; None where unknown.

    >>> loc = torch.tensor(1.0, requires_grad=True)
    >>> reparameterized(Normal(loc, 2.0), torch.tensor(3.0))
    tensor(3., grad_fn=<AddBackward0>)
    """
    if isinstance(fn, Independent | MaskedDistribution):
        return reparameterized(fn.base_dist, value)
    if isinstance(fn, TransformedDistribution):
        return _transformed(fn, value)
    if isinstance(fn, Normal | Laplace | Cauchy):
        return fn.loc + fn.scale * ((value - fn.loc) / fn.scale).detach()
    if isinstance(fn, Uniform):
        width = fn.high - fn.low
        return fn.low + width * ((value - fn.low) / width).detach()
    if isinstance(fn, MultivariateNormal):
        root = fn._unbroadcasted_scale_tril
        away = (value - fn.loc).detach().unsqueeze(-1)
        noise = torch.linalg.solve_triangular(root.detach(), away, upper=False)
        return fn.loc + (root @ noise).squeeze(-1)
    return fn.rsample() if isinstance(fn, Delta) else None


def _transformed(fn: TransformedDistribution, value: Tensor) -> Tensor | None:
    forget(fn)  # an inverse that is remembered has the weights and the gradient of its time
    noise = value
    with torch.no_grad():
        for transform in reversed(fn.transforms):
            noise = transform.inv(noise)
    forget(fn)
    moved = reparameterized(fn.base_dist, noise)
    if moved is not None:
        for transform in fn.transforms:
            moved = transform(moved)
    return moved
