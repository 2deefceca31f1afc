"""softplus, log sigma and the log density of bits, where torch's own are slow: in float32 on a processor.

    softplus(x) = max(x, 0) + log(1 + exp(-|x|)),  log sigma(x) = -softplus(-x),  log p(b) = b l - softplus(l) for log odds l

torch takes log1p of exp(-|x|), which there costs ten times what log costs and, by ``binary_cross_entropy_with_logits``, half of a
step of a VAE on images. The logarithm of a number from 1 to 2 is as good in a sum of log densities: it is exact to 6e-8,
though not relative to a softplus that is itself that small, as a scale may be. In float64, ``torch.nn.functional.softplus``
leaves out exp(-x) above x = 20, up to 2e-9; these do not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["bit_log_density", "logsigmoid", "softplus"]


def softplus(x: Tensor) -> Tensor:
    """Return log(1 + exp(x)), (...)."""
    return _Softplus.apply(x)


def logsigmoid(x: Tensor) -> Tensor:
    """Return log sigma(x) = -log(1 + exp(-x)), (...)."""
    return -softplus(-x)


def bit_log_density(logits: Tensor, value: Tensor) -> Tensor:
    """Return value * logits - softplus(logits) of two tensors of one shape."""
    return _BitLogDensity.apply(logits, value)


def _beyond_the_kink(x: Tensor) -> Tensor:
    """Return log(1 + exp(-|x|)), in memory of its own."""
    small = x.abs().neg_().exp_()
    return small.add_(1).log_() if x.device.type == "cpu" and x.dtype == torch.float32 else small.log1p_()


class _Softplus(torch.autograd.Function):
    """With its slope in closed form, which saves most of the passes over memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _beyond_the_kink(x).add_(x.clamp(min=0))

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return slope * torch.sigmoid(x)


class _BitLogDensity(torch.autograd.Function):
    """In an order in which a bit that is all but certain loses nothing to its log odds."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(logits, value)
        return (value * logits).sub_(logits.clamp(min=0)).sub_(_beyond_the_kink(logits))

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None]:
        logits, value = ctx.saved_tensors
        needed = ctx.needs_input_grad
        return slope * (value - torch.sigmoid(logits)) if needed[0] else None, slope * logits if needed[1] else None
