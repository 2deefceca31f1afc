"""A small pair of every family, whose networks hold batch norm, and every routine on every family that it is declared for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unigen import routines
from unigen.networks import Baseline, Networks
from unigen.pair import Pair
from unigen.pairs import adversarial, deep_latent, flow, latent, mixture, rbm, sigmoid_belief

__all__ = ["CATALOGUE", "FAMILIES", "RowNorm"]

ROWS, DIMENSION, LATENT = 4, 6, 2


class RowNorm(nn.Module):
    """Batch norm over all leading dimensions, (..., width) -> (..., width), so that particles may lead."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.reshape(-1, x.shape[-1])).reshape(x.shape)


class Scalar(nn.Module):
    """A psi network f(x), (..., D) -> (...), with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(DIMENSION, 5), RowNorm(5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).squeeze(-1)


def normalized_networks() -> Networks:
    generator = nn.Sequential(nn.Linear(LATENT, 5), RowNorm(5), nn.Tanh(), nn.Linear(5, DIMENSION))
    trunk = nn.Sequential(nn.Linear(DIMENSION, 5), RowNorm(5), nn.Tanh())
    return Networks(generator, trunk, LATENT, (DIMENSION,), 5)


def networks_of_psi(outputs: int = 1) -> dict[str, nn.Module]:
    return {"critic": Scalar(), "constraint": Scalar(), "baseline": Baseline(DIMENSION, (5,), outputs=outputs)}


def bits() -> Tensor:
    return (torch.rand(ROWS, DIMENSION) < 0.5).float()


def _latent() -> tuple[Pair, Tensor]:
    return latent(normalized_networks(), "bernoulli", networks_of_psi()), bits()


def _deep_latent() -> tuple[Pair, Tensor]:
    return deep_latent(normalized_networks(), (3,), (4,), "bernoulli", networks_of_psi()), bits()


def _adversarial() -> tuple[Pair, Tensor]:
    return adversarial(normalized_networks(), "bernoulli", networks_of_psi()), bits()


def _sigmoid_belief() -> tuple[Any, Tensor]:
    pair: Any = sigmoid_belief(DIMENSION, (4, 3), psi=networks_of_psi(2))
    pair.model.down[0] = nn.Sequential(pair.model.down[0], RowNorm(DIMENSION))
    pair.guide.up[0] = nn.Sequential(pair.guide.up[0], RowNorm(4))
    return pair, bits()


def _mixture() -> tuple[Any, Tensor]:
    x = torch.randn(ROWS, DIMENSION)
    pair: Any = mixture(3, x)
    pair.guide.linear = nn.Sequential(pair.guide.linear, RowNorm(3))
    pair.psi.update(networks_of_psi())
    return pair, x


def _flow() -> tuple[Pair, Tensor]:
    x = torch.randn(ROWS, DIMENSION)
    pair = flow(DIMENSION, steps=2, hidden=(5,), start=x)
    pair.psi.update(networks_of_psi())
    return pair, x


def _rbm() -> tuple[Pair, Tensor]:
    return rbm(DIMENSION, 3), bits()


FAMILIES: dict[str, Callable[[], tuple[Pair, Tensor]]] = {
    "latent": _latent,
    "deep_latent": _deep_latent,
    "adversarial": _adversarial,
    "sigmoid_belief": _sigmoid_belief,
    "mixture": _mixture,
    "flow": _flow,
    "rbm": _rbm,
}

# on a GAN posterior regularization has its implicit form alone: the explicit one reads a density
CATALOGUE = [
    (
        f"{name} on {family}",
        routine(implicit=True) if (name, family) == ("posterior_regularization", "adversarial") else routine,
        family,
    )
    for name, routine in routines.catalogue().items()
    for family in routine.pairs
]
