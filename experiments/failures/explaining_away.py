"""Explaining away: two independent causes become dependent once their effect is seen, and a factorial guide cannot say so.

A house shakes (x = 1) when a truck hits it or the earth quakes. Given x = 1 exactly one of the two is likely: their posterior
correlation is negative. No product q(truck) q(quake) has one, so every factorial guide pays:

* fitted by KL(p || q), as in sleep, q keeps the margins and pays the mutual information of the causes;
* fitted by KL(q || p), as in the bound, q believes in one cause and forgets the other;
* a guide that infers the quake from x and the truck pays nothing.

(Pearl 1988; Hinton, Osindero and Teh 2006.)
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

from failures.drawing import BLUE, GREEN, ORANGE, panels
from unigen import PHI, Enumerate, Pair, Phase, Tilted, fit
from unigen.divergences import kullback_leibler_divergence, mutual_information
from unigen.engines.eager import draw as draw_from
from unigen.engines.programs import Programs
from unigen.objectives import elbo, log_q, log_weight


@dataclass(frozen=True)
class Settings:
    """The model's log odds: of a cause ``cause``, of the effect ``effect`` without causes and ``jump`` more for each."""

    cause: float = -3.0
    effect: float = -6.0
    jump: float = 7.0
    steps: int = 2000
    lr: float = 0.5


class House(PyroModule):
    """p(truck) p(quake) p(x | truck, quake)."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        values = (settings.cause, settings.cause, settings.effect, settings.jump, settings.jump)
        self.odds = nn.Parameter(torch.tensor(values, dtype=torch.float64))

    def forward(self, x: Tensor) -> None:
        """Draw the causes, and the effect."""
        with pyro.plate("data", len(x)):
            truck = pyro.sample("truck", dist.Bernoulli(logits=self.odds[0]))
            quake = pyro.sample("quake", dist.Bernoulli(logits=self.odds[1]))
            pyro.sample("x", dist.Bernoulli(logits=self.odds[2] + self.odds[3] * truck + self.odds[4] * quake), obs=x)


class Guide(PyroModule):
    """q(truck | x) q(quake | x), or with ``chained`` q(quake | x, truck): tables of log odds."""

    def __init__(self, chained: bool) -> None:
        super().__init__()
        self.chained = chained
        self.truck = nn.Parameter(
            torch.tensor([0.1, 0.1], dtype=torch.float64)
        )  # off the saddle between the two causes
        self.quake = nn.Parameter(torch.zeros(2, 2 if chained else 1, dtype=torch.float64))

    def forward(self, x: Tensor) -> None:
        """Infer the causes."""
        with pyro.plate("data", len(x)):
            truck = pyro.sample("truck", dist.Bernoulli(logits=self.truck[x.long()]))
            row = truck.long() if self.chained else torch.zeros_like(truck).long()
            pyro.sample("quake", dist.Bernoulli(logits=self.quake[x.long(), row]))


def house(settings: Settings, chained: bool = False) -> Pair:
    """Return the pair of the two causes."""
    return Pair(House(settings), Guide(chained))


@torch.no_grad()
def tables(pair: Pair, x: float) -> tuple[Tensor, Tensor]:
    """Return p(truck, quake | x) and q(truck, quake | x), (2, 2) each, by enumeration."""
    drawn = draw_from(Enumerate(), Programs(pair), pair.bind(torch.tensor([x], dtype=torch.float64)))
    cell = (2 * drawn["truck"] + drawn["quake"]).long().expand(drawn.log_q.shape)[:, 0]
    joint, guide = torch.zeros(4).double(), torch.zeros(4).double()
    joint[cell], guide[cell] = drawn.log_p[:, 0].exp(), drawn.log_q[:, 0].exp()
    return (joint / joint.sum()).reshape(2, 2), guide.reshape(2, 2)


def correlation(table: Tensor) -> float:
    """Return the correlation of two bits with this joint table (2, 2)."""
    first, second = table.sum(1)[1], table.sum(0)[1]
    covariance = table[1, 1] - first * second
    return (covariance / torch.sqrt(first * (1 - first) * second * (1 - second))).item()


WAKE = (Phase(elbo, Enumerate(), PHI),)
"""The bound's direction, KL(q || p), every value enumerated."""
SLEEP = (Phase(log_q, Tilted(Enumerate(), log_weight), PHI),)
"""Sleep's direction, KL(p || q), under the exact posterior."""


def fitted(routine: tuple[Phase, ...], settings: Settings, chained: bool = False) -> tuple[Tensor, Tensor]:
    """Fit a guide at x = 1 and return the posterior and the guide as tables."""
    pair = house(settings, chained)
    optimizers = {"phi": torch.optim.SGD(pair.group("phi"), lr=settings.lr)}
    fit(torch.ones(1, dtype=torch.float64), routine, pair, optimizers, steps=settings.steps, progress=False)
    return tables(pair, 1.0)


def measure(settings: Settings, run_all: Any = map) -> dict[str, Any]:
    """Return the posterior, the three fitted guides, and what each pays in both directions of KL (nats)."""
    posterior, sleep = fitted(SLEEP, settings)
    guides = {
        "factorial, KL(p || q)": sleep,
        "factorial, KL(q || p)": fitted(WAKE, settings)[1],
        "chained, KL(q || p)": fitted(WAKE, settings, chained=True)[1],
    }
    flat = posterior.reshape(-1)
    return {
        "posterior": posterior,
        "guides": guides,
        "correlation": correlation(posterior),
        "mutual information": mutual_information(posterior).item(),
        "kl(p || q)": {name: kullback_leibler_divergence(flat, q.reshape(-1)).item() for name, q in guides.items()},
        "kl(q || p)": {name: kullback_leibler_divergence(q.reshape(-1), flat).item() for name, q in guides.items()},
    }


def line_of_figures(found: dict[str, Any]) -> str:
    """Say the correlation and the gaps."""
    forward, reverse = list(found["kl(p || q)"].values()), list(found["kl(q || p)"].values())
    return (
        f"posterior correlation {found['correlation']:.3f}; gap of the factorial guide KL(p || q) {forward[0]:.4f} nats "
        f"(mutual information {found['mutual information']:.4f}), KL(q || p) {reverse[1]:.4f} nats; of the chained one "
        f"{reverse[2]:.1e}"
    )


def draw(found: dict[str, Any]) -> Figure:
    """Draw the posterior and the guides as tables, and their gaps."""
    figure, axes = panels(5, width=2.25, height=2.7)
    shown = {"exact posterior": found["posterior"], **found["guides"]}
    for axis, (name, table) in zip(axes, shown.items(), strict=False):
        axis.grid(False)
        axis.imshow(table.numpy(), cmap="Blues", vmin=0, vmax=1)
        for truck in (0, 1):
            for quake in (0, 1):
                value = table[truck, quake].item()
                axis.text(
                    quake, truck, f"{value:.3f}", ha="center", va="center", color="white" if value > 0.5 else "black"
                )
        axis.set(xticks=[0, 1], yticks=[0, 1], xlabel="quake")
        axis.set_title(name.replace(", ", "\n"))
        axis.spines[["left", "bottom"]].set_visible(False)
    axes[0].set_ylabel("truck")
    last = axes[-1]
    gaps = [found["kl(p || q)"]["factorial, KL(p || q)"], *list(found["kl(q || p)"].values())[1:]]
    last.bar([0, 1, 2], gaps, color=[ORANGE, BLUE, GREEN], width=0.6)
    last.set(xticks=[0, 1, 2], ylabel="gap (nats)")
    last.set_xticklabels(["factorial\nKL(p || q)", "factorial\nKL(q || p)", "chained"], fontsize=7, rotation=35)
    last.set_title("what independence\ncosts")
    return figure
