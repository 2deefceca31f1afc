"""The flow: x = f_K(... f_1(z)), z ~ N(0, I), a Pyro ``TransformedDistribution`` with an empty guide.

log p(x) = log N(z; 0, I) - sum_k log |det df_k/dz_{k-1}|, exact (Dinh, Krueger & Bengio 2015; Dinh et al. 2017).
"""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from pyro.nn import PyroModule
from torch import Tensor, nn

from unigen.names import nearest
from unigen.pair import Pair
from unigen.streams import isolated

__all__ = ["FLOWS", "FlowModel", "flow"]

FLOWS = ("affine_coupling", "affine_autoregressive")


class FlowModel(PyroModule):
    """p_theta(x) for rows x (N, D), a composition of Pyro transforms.

    ``shift``, ``scale`` (D,): a fixed affine map after the transforms, so that they see data of unit size.
    """

    def __init__(self, kind: str, steps: list[nn.Module], shift: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.kind = kind
        self.steps = nn.ModuleList(steps)
        self.register_buffer("shift", shift.clone())
        self.register_buffer("scale", scale.clone())

    def distribution(self) -> dist.TransformedDistribution:
        """Return the distribution of one row; its transforms' caches are cleared, weights may have moved."""
        chain: list[object] = []
        order = torch.arange(len(self.shift) - 1, -1, -1, device=self.shift.device)
        reverse = transforms.Permute(order)  # made here, since a transform does not move to a device with its module
        for step in self.steps:
            step.clear_cache()  # type: ignore[operator]
            # an autoregressive transform is parallel in one direction only: give it to the density (MAF)
            transform = step.inv if self.kind == "affine_autoregressive" else step
            chain += [reverse, transform] if chain else [transform]
        chain.append(transforms.AffineTransform(self.shift, self.scale, event_dim=1))
        base = dist.Normal(torch.zeros_like(self.shift), torch.ones_like(self.scale)).to_event(1)
        return dist.TransformedDistribution(base, chain)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", self.distribution(), obs=x)


def flow(
    dimension: int,
    *,
    kind: str = "affine_coupling",
    steps: int = 6,
    hidden: tuple[int, ...] = (64, 64),
    start: Tensor | None = None,
    seed: int = 0,
    psi: Mapping[str, nn.Module] | None = None,
) -> Pair:
    """Return a flow over rows (N, dimension), its weights a pure function of ``seed``; log p(x) is exact.

    ``kind``: one of ``FLOWS``. ``start``: training rows, whose mean and standard deviation normalize the data. ``psi``: the
    networks that a routine reads beside it, such as a constraint, by name.
    """
    if kind not in FLOWS:
        raise ValueError(f"no flow {kind!r}; {nearest(kind, FLOWS)}")
    if dimension < 2:
        raise ValueError(f"a flow of this family needs at least two dimensions; got {dimension}")
    if not hidden:
        raise ValueError("the networks of a flow have at least one hidden layer; got none")
    build = getattr(transforms, kind)
    with isolated(seed):
        layers = [build(dimension, hidden_dims=list(hidden)) for _ in range(steps)]
    shift = torch.zeros(dimension) if start is None else start.mean(0)
    scale = torch.ones(dimension)
    if start is not None:
        scale = start.std(0, correction=min(1, len(start) - 1)).clamp_min(1e-3)
    return Pair(FlowModel(kind, layers, shift, scale), psi=psi, likelihood="exact")
