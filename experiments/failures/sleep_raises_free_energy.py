"""A sleep phase can raise the free energy: wake-sleep descends no single objective.

Wake descends the free energy F = E_data E_q[log q(z|x) - log p(x, z)] along theta; sleep descends E_p(x, z)[-log q(z|x)] along phi.
Sleep's direction is KL(p || q) under the model's own dreams, F's is KL(q || p) under the data: where the guide cannot be
exact the two want different guides, and sleep undoes what F had won. The pair is that of ``explaining_away``; both quantities are
computed exactly, by enumeration, before and after every phase. (Hinton, Dayan, Frey and Neal 1995.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from failures import explaining_away
from failures.drawing import BLUE, GREY, ORANGE, RED, panels
from unigen import PHI, Enumerate, Pair, Phase, fit, routines
from unigen.engines.eager import draw as draw_from
from unigen.engines.programs import Programs
from unigen.objectives import elbo
from unigen.streams import isolated


@dataclass(frozen=True)
class Settings:
    """``rounds`` of wake and sleep, ``steps`` of each on ``dreams`` rows, after ``settle`` steps of the bound along phi.

    ``cause``: the log odds of a cause. Of the data as many are x = 1 as the model makes at the start.
    """

    cause: float = -1.0
    rounds: int = 12
    steps: int = 10
    settle: int = 1000
    dreams: int = 4000
    lr: float = 0.5
    seed: int = 0


@torch.no_grad()
def exactly(pair: Pair, data: Tensor) -> tuple[float, float]:
    """Return the free energy of the data and the loss of sleep, both in nats, every value enumerated."""
    x = torch.tensor([0.0, 1.0], dtype=torch.float64)
    drawn = draw_from(Enumerate(), Programs(pair), pair.bind(x))
    share = torch.stack([(data == value).double().mean() for value in x])
    free_energy = (share * (drawn.log_q.exp() * (drawn.log_q - drawn.log_p)).sum(0)).sum()
    return free_energy.item(), -(drawn.log_p.exp() * drawn.log_q).sum().item()


def measure(settings: Settings, run_all: Any = map) -> dict[str, Any]:
    """Return the free energy and the sleep loss after the start and after every phase, in turn wake and sleep."""
    pair = explaining_away.house(explaining_away.Settings(cause=settings.cause))
    with torch.no_grad():
        drawn = draw_from(Enumerate(), Programs(pair), pair.bind(torch.ones(1, dtype=torch.float64)))
    ones = round(settings.dreams * drawn.log_p.exp().sum().item())
    data = torch.cat([torch.ones(ones), torch.zeros(settings.dreams - ones)]).double()
    optimizers = {group: torch.optim.SGD(pair.group(group), lr=settings.lr) for group in ("theta", "phi")}
    wake, sleep = routines.wake_sleep
    with isolated(settings.seed):
        settled = (Phase(elbo, Enumerate(), PHI),)
        both = torch.tensor([0.0, 1.0], dtype=torch.float64)
        fast = {"phi": torch.optim.SGD(pair.group("phi"), lr=1.0)}
        fit(both, settled, pair, fast, steps=settings.settle, progress=False)
        values = [exactly(pair, data)]
        for _ in range(settings.rounds):
            for phase in (wake, sleep):
                fit(data, (phase,), pair, optimizers, steps=settings.steps, progress=False)
                values.append(exactly(pair, data))
    free_energy, sleep_loss = torch.tensor(values, dtype=torch.float64).T
    return {"free energy": free_energy, "sleep loss": sleep_loss}


def changes(found: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Return what each wake phase adds to the free energy, and each sleep phase to the free energy and to its own loss."""
    energy, loss = found["free energy"].diff(), found["sleep loss"].diff()
    return energy[0::2], energy[1::2], loss[1::2]


def line_of_figures(found: dict[str, Any]) -> str:
    """Count the phases that raised the free energy."""
    wake, sleep, own = changes(found)
    return (
        f"free energy rose in {int((sleep > 0).sum())} of {len(sleep)} sleep phases (most by {sleep.max():.3f} nats) and in "
        f"{int((wake > 0).sum())} of {len(wake)} wake phases; the sleep loss fell in {int((own < 0).sum())} of {len(own)}"
    )


def draw(found: dict[str, Any]) -> Figure:
    """Draw the free energy phase by phase, and the sleep loss."""
    figure, (left, right) = panels(2)
    for axis, values, name in (
        (left, found["free energy"], "free energy F (nats)"),
        (right, found["sleep loss"], "sleep loss (nats)"),
    ):
        axis.plot(values, color=GREY, linewidth=0.8)
        for index in range(1, len(values)):
            asleep = index % 2 == 0
            color = (RED if values[index] > values[index - 1] else ORANGE) if asleep else BLUE
            axis.plot([index - 1, index], values[index - 1 : index + 1], color=color, linewidth=2.4)
        axis.set(xlabel="phase: wake, sleep, wake, sleep, ...", ylabel=name)
    left.plot([], [], color=BLUE, linewidth=2.4, label="wake")
    left.plot([], [], color=ORANGE, linewidth=2.4, label="sleep")
    left.plot([], [], color=RED, linewidth=2.4, label="sleep, rising")
    left.legend(fontsize=8, frameon=False)
    left.set_title("sleep phases raise the free energy")
    right.set_title("while each lowers its own loss")
    return figure
