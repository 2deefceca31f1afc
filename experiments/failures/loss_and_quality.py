"""The loss that tracks quality, and the one that does not: a critic's gap against a discriminator's loss.

A generator on the line starts far from its data and learns. At each record the exact W1 between 5000 samples and 5000 data says how
good it is, and each method's own loss is written down:

* WGAN, weights clipped: the critic's gap E_data f - E_g f, which estimates a multiple of W1;
* GAN: log 2 + E log q(y|x), the discriminator's estimate of the Jensen-Shannon divergence.

Spearman's rank correlation of loss and W1 over a run, for every seed, is the figure. The run is the approach: the supports are
apart for most of it, where Jensen-Shannon is log 2 whatever the distance. Close to the data the differences in W1 are small, and
a clipped critic of this size no longer ranks them either: nothing is claimed there.
(Arjovsky, Chintala and Bottou 2017.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from failures.drawing import BLUE, ORANGE, panels
from unigen import PHI, Phase, Sleep, fit, routines
from unigen.divergences import wasserstein_1
from unigen.engines.eager import objective
from unigen.evaluate import sample
from unigen.networks import MLPTrunk, Networks
from unigen.networks.mlp import MLP
from unigen.objectives import critic_gap, log_q
from unigen.optimizers import optimizers_for
from unigen.pairs import Likelihood, adversarial
from unigen.phases import Optimizer
from unigen.streams import isolated


@dataclass(frozen=True)
class Settings:
    """``steps`` of the generator, by rate ``lr``, and ten of its adversary for each; ``head_start``: steps of the adversary before.
    ``records`` of the losses; ``start``: how far away the generator starts."""

    steps: int = 250
    records: int = 40
    start: float = 10.0
    head_start: int = 300
    lr: float = 3e-4
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)


ROUTINES = {"WGAN": (routines.wgan(clip=0.1), critic_gap), "GAN": (routines.gan, log_q)}


def data(n: int, seed: int) -> Tensor:
    """Return rows (n, 1) of two modes at -1 and 1."""
    generator = torch.Generator().manual_seed(seed)
    side = 2.0 * torch.randint(2, (n, 1), generator=generator) - 1
    return side + 0.3 * torch.randn(n, 1, generator=generator)


def spearman(x: Tensor, y: Tensor) -> float:
    """Return the rank correlation of two samples (n,) without ties.

    >>> spearman(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([3.0, 5.0, 50.0]))
    1.0
    """
    ranks = torch.stack([x.argsort().argsort().double(), y.argsort().argsort().double()])
    return round(torch.corrcoef(ranks)[0, 1].item(), 12)


def one_run(job: tuple[str, int, Settings]) -> Tensor:
    """Train once; return rows (records, 2) of W1 and the method's loss."""
    name, seed, settings = job
    routine, loss = ROUTINES[name]
    fresh = data(5000, 1000 + seed)
    with isolated(seed):
        generator = MLP(2, (32, 32), 1, "tanh", torch.tensor([settings.start]))
        networks = Networks(generator, MLPTrunk(1, (32, 32), "leaky_relu"), 2, (1,), 32, seed)
        pair: Any = adversarial(networks, Likelihood("normal", bounded=False))
        phases = (replace(routine[0], steps=10), routine[1])
        optimizers = optimizers_for(phases, pair, Optimizer("RMSprop", 2e-3))  # as published for the WGAN
        optimizers["theta"].param_groups[0]["lr"] = (
            settings.lr
        )  # slow, so that the adversary is near its best throughout
        rows: list[tuple[float, float]] = []

        def record(state: Any, history: Any) -> None:
            made = sample(pair, len(fresh), fresh, seed=state.step).x
            with isolated(state.step), torch.no_grad():
                value, _ = objective(Phase(loss, Sleep(), PHI), pair, fresh)
            own = value.item() + (math.log(2) if name == "GAN" else 0.0)
            rows.append((wasserstein_1(made[:, 0], fresh[:, 0]).item(), own))

        batches = list(data(20_000, seed).split(100))
        fit(batches, (routine[0],), pair, optimizers, steps=settings.head_start, progress=False)
        every = max(1, settings.steps // settings.records)
        fit(
            batches, phases, pair, optimizers,
            steps=settings.steps, record_every=every, callbacks=[record], progress=False,
        )  # fmt: skip
    return torch.tensor(rows, dtype=torch.float64)


def measure(settings: Settings, run_all: Any = map) -> dict[str, Any]:
    """Return, by method, a list of (records, 2) tables of W1 and loss, a seed each."""
    jobs = [(name, seed, settings) for name in ROUTINES for seed in settings.seeds]
    runs = list(run_all(one_run, jobs))
    count = len(settings.seeds)
    return {name: runs[index * count : (index + 1) * count] for index, name in enumerate(ROUTINES)}


def correlations(found: dict[str, Any]) -> dict[str, list[float]]:
    """Return Spearman's correlation of W1 and loss for every run."""
    return {name: [spearman(run[:, 0], run[:, 1]) for run in runs] for name, runs in found.items()}


def line_of_figures(found: dict[str, Any]) -> str:
    """Say the rank correlations."""
    return "Spearman's correlation of W1 and loss: " + "; ".join(
        f"{name} {', '.join(f'{value:.3f}' for value in values)} ({sum(v > 0.9 for v in values)} of {len(values)} seeds above 0.9)"
        for name, values in correlations(found).items()
    )


def draw(found: dict[str, Any]) -> Figure:
    """Draw loss against W1, every record of every seed, joined in time."""
    figure, axes = panels(2)
    labels = {"WGAN": "critic's gap", "GAN": "estimate of Jensen-Shannon (nats)"}
    for axis, (name, color) in zip(axes, (("WGAN", BLUE), ("GAN", ORANGE)), strict=True):
        for run in found[name]:
            axis.plot(run[:, 0], run[:, 1], "-", color=color, linewidth=0.6, alpha=0.5)
            axis.plot(run[:, 0], run[:, 1], ".", color=color, markersize=3.5)
        axis.set(xlabel="exact $W_1$ of samples and data", ylabel=labels[name])
        values = correlations(found)[name]
        axis.set_title(f"{name}: rank correlation {min(values):.2f} to {max(values):.2f}")
    return figure
