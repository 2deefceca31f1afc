"""What the transforms of a distribution remember of their last call: an inverse, with the gradient and the weights it had.

A transform with a cache returns the x it once computed y from. That is right within one draw, exact and without an inverse. It is
wrong for a y that was drawn without gradient or is given: log q(y) then lacks the gradient of f^-1_phi(y) along phi, or is of
weights that have moved since, and nothing says so. So the engine lets transforms forget, and the inverse is computed anew.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.distributions.transforms import Permute
from torch import Tensor, nn
from torch.distributions import Independent, transforms

from unigen.pair import PairError

__all__ = ["forget", "inverting", "rounding"]

FIXED = (
    transforms.CorrCholeskyTransform,
    transforms.ExpTransform,
    transforms.SigmoidTransform,
    transforms.SoftplusTransform,
    transforms.StickBreakingTransform,
    transforms.TanhTransform,
    Permute,
)
"""Transforms without parameters: what they remember holds whatever moves, and is the more accurate where they saturate."""


def forget(fn: Any) -> None:
    """Let every transform of a distribution forget its last call, but for those of ``FIXED``."""
    while fn is not None:
        for transform in getattr(fn, "transforms", ()):
            for part in _parts(transform):
                if getattr(part, "_cache_size", 0) and not isinstance(part, FIXED):
                    part._cached_x_y = None, None
        fn = getattr(fn, "base_dist", None)


@contextmanager
def inverting(name: str, fn: Any) -> Iterator[None]:
    """Refuse a site whose density or noise fails for want of an inverse; what failed otherwise is raised as it is."""
    try:
        yield
    except (NotImplementedError, KeyError) as error:
        while not hasattr(fn, "transforms") and hasattr(fn, "base_dist"):
            fn = fn.base_dist
        # torch's transforms without an inverse say nothing, and Pyro's miss what they would remember
        if not hasattr(fn, "transforms") or (str(error) and "intermediates cache" not in str(error)):
            raise
        kinds = ", ".join(type(transform).__name__ for transform in fn.transforms)
        raise PairError(
            f"site '{name}' has a transform without an inverse ({kinds}), so its density is to be had for its own samples with "
            "their gradient alone; use vae, iwae without draws, or a transform that has one, such as affine_coupling"
        ) from None


@torch.no_grad()
def rounding(fn: Any, value: Tensor) -> Tensor | None:
    """Return how far the log density of a flow at ``value`` is from what double precision gives, None of what is no flow.

    A trained flow stretches space by powers of ten here and there, and its inverse, computed anew, loses as many digits.
    """
    flow = fn.base_dist if isinstance(fn, Independent) else fn
    if not any(
        isinstance(part, nn.Module) for transform in getattr(flow, "transforms", ()) for part in _parts(transform)
    ):
        return None
    forget(fn)
    exact = copy.deepcopy(fn)
    for transform in (exact.base_dist if isinstance(exact, Independent) else exact).transforms:
        for part in _parts(transform):
            if isinstance(part, nn.Module):
                part.double()
    try:
        difference = fn.log_prob(value.clone()).double() - exact.log_prob(value.double())
    except (RuntimeError, NotImplementedError, KeyError):  # without an inverse, or of networks that it does not hold
        return None
    finally:
        forget(fn)
    return difference.abs()


def _parts(transform: Any) -> Iterator[Any]:
    """Walk a transform and what it is composed of."""
    yield transform
    inside = [getattr(transform, "base_transform", None)]
    if isinstance(transform, transforms._InverseTransform):  # which keeps nothing itself
        inside.append(transform._inv)
    for part in (*getattr(transform, "parts", ()), *getattr(transform, "transforms", ()), *inside):
        if part is not None:
            yield from _parts(part)
