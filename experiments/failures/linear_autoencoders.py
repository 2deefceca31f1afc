"""Linear autoencoders in closed form: the plain one finds the principal subspace, the denoising one is a Wiener filter.

* x = W E x with a code smaller than x: the best W spans the first principal components (Baldi and Hornik 1989);
* x = W E (x + noise) with a code as large as x: the best W E is S (S + s^2 I)^-1, S the covariance of x (Wiener 1949). Its error
  on corrupted data is below that of the plain autoencoder, whose W E is the identity: it has learned nothing of what data are.

Both are a pair with a linear generator and a linear guide that climbs E log p(x|z), a normal of fixed scale; the denoising guide
corrupts what it sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro.nn import PyroModule
from torch import Tensor, nn

from failures.drawing import BLUE, GREEN, GREY, ORANGE, panels
from unigen import PHI, THETA, Pair, Phase, Wake, fit
from unigen.objectives import BetaElbo
from unigen.optimizers import Falling
from unigen.streams import isolated


@dataclass(frozen=True)
class Settings:
    """Rows (``rows``, ``dimension``), a code of ``code``, noise of standard deviation ``noise``, ``steps`` of training."""

    rows: int = 2000
    dimension: int = 6
    code: int = 2
    noise: float = 0.7
    steps: int = 2000
    seed: int = 0


class Linear(PyroModule):
    """x ~ N(W z, I)."""

    def __init__(self, code: int, dimension: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.3 * torch.randn(dimension, code, dtype=torch.float64))

    def forward(self, x: Tensor) -> None:
        """Draw z and x."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.weight.shape[1]), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.weight.T, 1.0).to_event(1), obs=x)


class Encoder(PyroModule):
    """z = E (x + noise e), e ~ N(0, I)."""

    def __init__(self, code: int, dimension: int, noise: float) -> None:
        super().__init__()
        self.noise = noise
        self.weight = nn.Parameter(0.3 * torch.randn(code, dimension, dtype=torch.float64))

    def forward(self, x: Tensor) -> None:
        """Encode, after corruption."""
        seen = x + self.noise * torch.randn_like(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(seen @ self.weight.T, event_dim=1))


def data(settings: Settings) -> Tensor:
    """Return centred rows with a spectrum that falls by halves."""
    with isolated(settings.seed):
        rotation = torch.linalg.qr(torch.randn(settings.dimension, settings.dimension, dtype=torch.float64))[0]
        rows = torch.randn(settings.rows, settings.dimension, dtype=torch.float64)
    rows = rows * 2.0 * 0.6 ** torch.arange(settings.dimension, dtype=torch.float64) @ rotation
    return rows - rows.mean(0)


def trained(x: Tensor, code: int, noise: float, settings: Settings) -> Tensor:
    """Train an autoencoder and return W E, (dimension, dimension)."""
    with isolated(settings.seed + 1):
        pair: Any = Pair(Linear(code, x.shape[1]), Encoder(code, x.shape[1], noise))
        optimizers = {group: torch.optim.Adam(pair.group(group), lr=0.02) for group in ("theta", "phi")}
        phases = (Phase(BetaElbo(0.0), Wake(), THETA + PHI),)
        fit(x, phases, pair, optimizers, steps=settings.steps, schedule=Falling(1e-5), progress=False)
    return (pair.model.weight @ pair.guide.weight).detach()


def angle(one: Tensor, other: Tensor) -> float:
    """Return the largest principal angle between the column spaces of two matrices (D, k), in radians."""
    first, second = torch.linalg.qr(one)[0], torch.linalg.qr(other)[0]
    outside = second - first @ (first.T @ second)  # its norm is the sine, which keeps its digits at small angles
    return torch.asin(torch.linalg.matrix_norm(outside, 2).clamp(max=1.0)).item()


def error(matrix: Tensor, covariance: Tensor, noise: float) -> float:
    """Return the exact mean squared error a coordinate of x against matrix (x + noise e)."""
    rest = matrix - torch.eye(len(matrix), dtype=matrix.dtype)
    return ((rest @ covariance @ rest.T).trace() + noise**2 * matrix.square().sum()).item() / len(matrix)


def measure(settings: Settings, run_all: Any = map) -> dict[str, Any]:
    """Return the angle to the principal subspace, the distance to the Wiener filter, and errors over the noise."""
    x = data(settings)
    covariance = x.T @ x / len(x)
    small = trained(x, settings.code, 0.0, settings)
    principal = torch.linalg.eigh(covariance)[1][:, -settings.code :]
    full, denoising = (trained(x, settings.dimension, noise, settings) for noise in (0.0, settings.noise))
    identity = torch.eye(settings.dimension, dtype=torch.float64)
    wiener = covariance @ torch.linalg.inv(covariance + settings.noise**2 * identity)
    noises = torch.linspace(0, 2 * settings.noise, 41).tolist()
    matrices = {"autoencoder": full, "denoising autoencoder": denoising, "Wiener filter": wiener}
    return {
        "angle": angle(torch.linalg.svd(small)[0][:, : settings.code], principal),
        "to wiener": (torch.linalg.matrix_norm(denoising - wiener) / torch.linalg.matrix_norm(wiener)).item(),
        "noises": noises,
        "noise": settings.noise,
        "errors": {name: [error(matrix, covariance, s) for s in noises] for name, matrix in matrices.items()},
        "error at the noise": {name: error(matrix, covariance, settings.noise) for name, matrix in matrices.items()},
    }


def line_of_figures(found: dict[str, Any]) -> str:
    """Say the angle, the distance and the errors."""
    errors = ", ".join(f"{name} {value:.4f}" for name, value in found["error at the noise"].items())
    return (
        f"angle to the principal subspace {found['angle']:.1e}; denoising autoencoder off the Wiener filter by "
        f"{found['to wiener']:.1%}; squared error on corrupted data: {errors}"
    )


def draw(found: dict[str, Any]) -> Figure:
    """Draw the error on corrupted data over the noise."""
    figure, (axis,) = panels(1, width=5.2)
    styles = {"autoencoder": (ORANGE, "-"), "denoising autoencoder": (BLUE, "-"), "Wiener filter": (GREEN, "--")}
    for name, (color, style) in styles.items():
        axis.plot(found["noises"], found["errors"][name], style, color=color, linewidth=2, label=name)
    axis.axvline(found["noise"], color=GREY, linestyle=":", linewidth=1)
    axis.text(found["noise"], axis.get_ylim()[1] * 0.96, " noise trained on", fontsize=7.5, color=GREY)
    axis.set(xlabel="standard deviation of the corruption", ylabel="mean squared error a coordinate")
    axis.set_title("copying learns nothing; denoising learns the data")
    axis.legend(fontsize=8, frameon=False, loc="upper left")
    return figure
