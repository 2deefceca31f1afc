"""The sigmoid belief network and its recognition network, 1 to 3 (or more) layers (Neal 1992; Hinton et al. 1995).

p: h_L ~ Bernoulli(sigma(b_L)), h_l ~ Bernoulli(sigma(W_l s(h_{l+1}) + b_l)), x from h_1; q runs the other way, from x up.
s(h) = 2h - 1 maps bits to +-1 (Mnih & Gregor 2014; Le et al. 2019).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from unigen.pair import Pair
from unigen.streams import isolated

__all__ = ["BeliefNetwork", "RecognitionNetwork", "sigmoid_belief"]


def _bits(logits: Tensor) -> Any:
    return dist.Bernoulli(logits=logits, validate_args=False).to_event(1)


class BeliefNetwork(PyroModule):
    """Sites h1 (nearest the data) to hL, and x; ``layers``: widths of h1, ..., hL."""

    def __init__(self, dimension: int, layers: Sequence[int]) -> None:
        super().__init__()
        widths = [dimension, *layers]
        self.top = nn.Parameter(torch.zeros(widths[-1]))
        self.down = nn.ModuleList(nn.Linear(above, below) for below, above in zip(widths, widths[1:], strict=False))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            h = pyro.sample(f"h{len(self.down)}", _bits(self.top))
            for level in range(len(self.down) - 1, 0, -1):
                h = pyro.sample(f"h{level}", _bits(self.down[level](2 * h - 1)))
            pyro.sample("x", _bits(self.down[0](2 * h - 1)), obs=x)


class RecognitionNetwork(PyroModule):
    """q(h1|x) q(h2|h1) ... , factorial within a layer."""

    def __init__(self, dimension: int, layers: Sequence[int]) -> None:
        super().__init__()
        widths = [dimension, *layers]
        self.up = nn.ModuleList(nn.Linear(below, above) for below, above in zip(widths, widths[1:], strict=False))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            h = x
            for level, linear in enumerate(self.up, 1):
                h = pyro.sample(f"h{level}", _bits(linear(2 * h - 1)))


def sigmoid_belief(
    dimension: int,
    layers: Sequence[int] = (200,),
    *,
    mean: Tensor | None = None,
    seed: int = 0,
    psi: Mapping[str, nn.Module] | None = None,
) -> Pair:
    """Return the pair for binary rows x (N, dimension), its weights a pure function of ``seed``.

    ``mean``: (dimension,), the training mean in [0, 1]; the visible bias starts at its logit.
    """
    if not layers or min(layers) < 1:
        raise ValueError(f"a belief network has at least one layer of at least one unit; got {tuple(layers)}")
    with isolated(seed):
        model, guide = BeliefNetwork(dimension, layers), RecognitionNetwork(dimension, layers)
        with torch.no_grad():
            for name, parameter in (*model.named_parameters(), *guide.named_parameters()):
                if name.endswith("weight"):
                    nn.init.xavier_uniform_(parameter)
                else:
                    parameter.zero_()
            if mean is not None:
                model.get_parameter("down.0.bias").copy_(torch.logit(mean.clamp(0.001, 0.999)))
    return Pair(model, guide, psi)
