"""The game min over x, max over y of xy: gradient play goes round the equilibrium, or away from it.

With step eta and radius r = |(x, y)|, from any start:

* simultaneous play: r_t = (1 + eta^2)^(t/2) r_0, away for every eta;
* alternating play: x^2 + y^2 - eta x y keeps its value, round for ever; the mean of its iterates goes to 0 like 1/t;
* extragradient: r_t = (1 - eta^2 + eta^4)^(t/2) r_0, inwards for eta < 1. (Korpelevich 1976; Gidel et al. 2019.)

A player is a parameter group: x is the model's, y the guide's. Alternating play is a routine of two phases, simultaneous play one
phase that moves both, extragradient play two phases, of which the second starts where the first did.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from pyro.nn import PyroModule
from torch import Tensor, nn

from failures.drawing import BLUE, GREEN, GREY, ORANGE, RED, panels
from unigen import PHI, THETA, Pair, Phase, Wake, fit
from unigen.objectives import Negative


@dataclass(frozen=True)
class Settings:
    """The game: step ``eta``, number of ``steps``, and where it starts."""

    eta: float = 0.1
    steps: int = 1000
    start: tuple[float, float] = (1.0, 1.0)


class Player(PyroModule):
    """One number, and no random choice."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))

    def forward(self, x: Tensor) -> None:
        """Play the number; the data are of no concern."""


def payoff(draw: Any) -> Tensor:
    """x y: what the guide climbs and the model descends."""
    return draw.pair.model.value * draw.pair.guide.value


def both_payoffs(draw: Any) -> Tensor:
    """Each player's payoff with the other's move held fixed: its gradient is (-y, x)."""
    x, y = draw.pair.model.value, draw.pair.guide.value
    return x.detach() * y - x * y.detach()


SIMULTANEOUS = (Phase(both_payoffs, Wake(), THETA + PHI),)
ALTERNATING = (Phase(Negative(payoff), Wake(), THETA), Phase(payoff, Wake(), PHI))
EXTRAGRADIENT = SIMULTANEOUS + SIMULTANEOUS


class LookAhead(torch.optim.SGD):
    """Extragradient as an optimizer: every second step takes its gradient at the point of the step before, and starts before it."""

    def step(self, closure: Any = None) -> None:
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        if any("start" not in self.state[parameter] for parameter in parameters):
            for parameter in parameters:
                self.state[parameter]["start"] = parameter.detach().clone()
            super().step()
        else:
            with torch.no_grad():
                for parameter in parameters:
                    parameter.copy_(self.state[parameter].pop("start"))
            super().step()


def play(routine: tuple[Phase, ...], settings: Settings, optimizer: type[torch.optim.SGD] = torch.optim.SGD) -> Tensor:
    """Return the iterates (steps + 1, 2) of (x, y)."""
    pair = Pair(Player(settings.start[0]), Player(settings.start[1]))
    path = [settings.start]
    fit(
        torch.zeros(1),
        routine,
        pair,
        {group: optimizer(pair.group(group), lr=settings.eta) for group in ("theta", "phi")},
        steps=settings.steps,
        record_every=1,
        callbacks=[lambda state, history: path.append((pair.model.value.item(), pair.guide.value.item()))],
        progress=False,
    )
    return torch.tensor(path, dtype=torch.float64)


def measure(settings: Settings, run_all: Any = map) -> dict[str, Any]:
    """Return the path of each way to play, and the running mean of the alternating one."""
    alternating = play(ALTERNATING, settings)
    count = torch.arange(1, len(alternating) + 1, dtype=torch.float64)[:, None]
    return {
        "eta": settings.eta,
        "simultaneous": play(SIMULTANEOUS, settings),
        "alternating": alternating,
        "averaged": alternating.cumsum(0) / count,
        "extragradient": play(EXTRAGRADIENT, settings, LookAhead),
    }


def growth(path: Tensor) -> float:
    """Return the last radius over the first."""
    return (path[-1].norm() / path[0].norm()).item()


def line_of_figures(found: dict[str, Any]) -> str:
    """Say how far each way of playing has come."""
    steps, eta = len(found["simultaneous"]) - 1, found["eta"]
    return (
        f"radius after {steps} steps over the first: simultaneous {growth(found['simultaneous']):.2f} (formula "
        f"{(1 + eta**2) ** (steps / 2):.2f}), alternating {growth(found['alternating']):.3f}, averaged "
        f"{growth(found['averaged']):.4f}, extragradient {growth(found['extragradient']):.4f} (formula "
        f"{(1 - eta**2 + eta**4) ** (steps / 2):.4f})"
    )


COLORS = {"simultaneous": RED, "alternating": ORANGE, "averaged": BLUE, "extragradient": GREEN}


def draw(found: dict[str, Any]) -> Figure:
    """Draw the first rounds of each path, and every radius over the steps."""
    figure, (left, right) = panels(2)
    shown = min(len(found["alternating"]), int(3 * math.pi / found["eta"]))
    for name, color in COLORS.items():
        path = found[name]
        left.plot(path[:shown, 0], path[:shown, 1], color=color, linewidth=1.4, label=name)
        right.semilogy(path.norm(dim=1), color=color, linewidth=1.6, label=name)
    left.plot([0], [0], "+", color=GREY, markersize=10)
    left.set(xlabel="x, which descends xy", ylabel="y, which climbs xy", aspect="equal")
    left.set_title(f"the first {shown} steps")
    right.set(xlabel="step", ylabel="distance from the equilibrium", ylim=(2e-6, 700))
    right.set_title("play decides, not the game")
    right.legend(fontsize=8, frameon=False, ncols=2, loc="lower center")
    return figure
