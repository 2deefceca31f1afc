"""The package's adversarial pair over small networks, and its two networks by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from identities.tables import scatter
from unigen.networks import networks
from unigen.pairs import adversarial

__all__ = ["dense", "generate", "log_odds", "smooth_pair"]


def smooth_pair(generator: Generator, dimension: int = 2) -> Any:
    """Return the package's adversarial pair: G from one normal number to (0, 1)^dimension, three hidden units each."""
    return scatter(adversarial(networks("mlp", (dimension,), 1, hidden=(3,)), "bernoulli"), generator)


def dense(layer: Any, h: Tensor) -> Tensor:
    """W h + b of a linear layer."""
    return h @ layer.weight.T + layer.bias


def generate(pair: Any, z: Tensor) -> Tensor:
    """G(z), by hand; the Bernoulli likelihood's mean squashes it."""
    generator = pair.model.generator
    return torch.sigmoid(dense(generator.output, torch.tanh(dense(generator.hidden.layers[0], z))))


def log_odds(pair: Any, x: Tensor) -> Tensor:
    """log D - log(1 - D), by hand."""
    return dense(pair.guide.head, torch.tanh(dense(pair.guide.trunk.layers[0], x))).squeeze(-1)
