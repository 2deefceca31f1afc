"""Parallel lines: two distributions on lines a distance theta apart, and three divergences that cannot see theta.

P is uniform on {0} x [0, 1], Q on {theta} x [0, 1]. For theta != 0: KL(P || Q) = KL(Q || P) = inf, JS = log 2, W1 = |theta|;
only W1 has a slope that says where to go. (Arjovsky, Chintala and Bottou 2017.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from failures.drawing import BLUE, GREEN, GREY, ORANGE, panels
from unigen.divergences import jensen_shannon_divergence, kullback_leibler_divergence, wasserstein_1


@dataclass(frozen=True)
class Settings:
    """What is compared: ``positions`` of theta, evenly from -1 to 1 (odd, so that 0 is one of them); ``points`` a line."""

    positions: int = 41
    points: int = 50


def line(theta: Tensor | float, points: int) -> Tensor:
    """Return points (points, 2) spread evenly over the line at theta."""
    height = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    return torch.stack([torch.as_tensor(theta, dtype=torch.float64).expand(points), height], -1)


def tables(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return two samples of points (n, 2) as probability tables over every point that occurs."""
    points, index = torch.unique(torch.cat([one, other]), dim=0, return_inverse=True)
    first, second = (
        torch.bincount(part, minlength=len(points)).double() for part in index.split([len(one), len(other)])
    )
    return first / len(one), second / len(other)


def measure(settings: Settings, run_all: Any = map) -> dict[str, Any]:
    """Return theta and, at each, both KL, JS, W1 and the slopes of JS (central differences) and W1 (autograd)."""
    thetas = torch.linspace(-1, 1, settings.positions, dtype=torch.float64)
    thetas[settings.positions // 2] = 0.0
    rows = []
    for theta in thetas:
        moved = theta.clone().requires_grad_()
        p, q = tables(line(0.0, settings.points), line(theta, settings.points))
        # The cheapest plan moves every point straight across: the distance is that of the first coordinates.
        distance = wasserstein_1(line(0.0, settings.points)[:, 0], line(moved, settings.points)[:, 0])
        (slope,) = torch.autograd.grad(distance, moved)
        rows.append(
            torch.stack(
                [
                    kullback_leibler_divergence(p, q),
                    kullback_leibler_divergence(q, p),
                    jensen_shannon_divergence(p, q),
                    distance.detach(),
                    slope,
                ]
            )
        )
    kl, reverse, shannon, wasserstein, slope = torch.stack(rows, 1)
    shannon_slope = torch.zeros_like(shannon)
    shannon_slope[1:-1] = (shannon[2:] - shannon[:-2]) / (thetas[2:] - thetas[:-2])
    return {
        "theta": thetas,
        "kl": kl,
        "reverse kl": reverse,
        "js": shannon,
        "w1": wasserstein,
        "w1 slope": slope,
        "js slope": shannon_slope,
    }


def line_of_figures(found: dict[str, Any]) -> str:
    """Say the four numbers in one line."""
    apart = found["theta"] != 0
    return (
        f"at theta != 0: KL {found['kl'][apart].min():.4g} and {found['reverse kl'][apart].min():.4g}, JS "
        f"{found['js'][apart].min():.6f} to {found['js'][apart].max():.6f} (log 2 = {torch.tensor(2.0).log():.6f}), "
        f"W1 - |theta| at most {(found['w1'] - found['theta'].abs()).abs().max():.1e}"
    )


def draw(found: dict[str, Any]) -> Figure:
    """Draw the divergences, and their slopes, against theta."""
    figure, (left, right) = panels(2)
    theta, apart = found["theta"], found["theta"] != 0
    top = 1.12
    left.plot(theta, found["w1"], color=BLUE, label="Wasserstein $W_1$", linewidth=2)
    left.plot(theta[apart], found["js"][apart], ".", color=ORANGE, markersize=4, label="Jensen-Shannon")
    left.plot(
        theta[apart], torch.full((int(apart.sum()),), top), "^", color=GREY, markersize=3, label="KL, both ways: ∞"
    )
    left.plot([0], [0], "o", color=GREEN, markersize=5, label="all four at θ = 0")
    left.set(xlabel="distance θ between the lines", ylabel="divergence (nats; $W_1$: length)", ylim=(-0.05, 1.7))
    left.set_title("only $W_1$ falls towards θ = 0")
    left.legend(fontsize=8, frameon=False, loc="upper center", ncols=2)
    inner = apart.clone()
    inner[[0, -1]] = False
    middle = len(theta) // 2
    inner[middle - 1 : middle + 2] = False  # differences across the jump at 0 are no slopes
    for part in (inner & (theta < 0), inner & (theta > 0)):
        right.plot(theta[part], found["w1 slope"][part], color=BLUE, linewidth=2)
        right.plot(theta[part], found["js slope"][part], color=ORANGE, linewidth=2)
    right.plot([], [], color=BLUE, label="slope of $W_1$: sign(θ)")
    right.plot([], [], color=ORANGE, label="slope of Jensen-Shannon: 0")
    right.set(xlabel="distance θ between the lines", ylabel="derivative by θ", ylim=(-1.25, 1.25))
    right.set_title("what gradient descent would get")
    right.legend(fontsize=8, frameon=False, loc="upper left")
    return figure
