"""Mode collapse on a ring of eight Gaussians, and what packing, importance weighting and the WGAN do to it.

All methods start from the same weights, a generator whose samples lie close together, and take the same number of updates of either
network with the same Adam(1e-3, (0.9, 0.999)), whose momentum lets the plain GAN chase its discriminator from mode to mode. A
run is spread over exp(H) modes, H the entropy of the mode nearest to each of its samples, near or far, and over fewer than half
of the modes it has collapsed. A sample is good within 0.15 of a mode (its neighbours are 0.77 away; the published radius of 0.03
asks for a longer budget); with fewer than a tenth of them good, a run is not at the ring, whether it has collapsed or not. The
null is a fresh sample of the data, scored in the same way.

Packing needs nothing new: a pack of m points is one row of m D numbers, the generator maps m latents by one network, and the
discriminator sees the row (Lin, Khetan, Fanti and Oh 2018). The budget is a small part of the published one, so the figures
are about how soon a method spreads, not where it ends.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from failures.drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, panels, seeds
from unigen import Pair, fit
from unigen.data import Loader, load
from unigen.densities import ring
from unigen.evaluate import mixture_metrics, sample
from unigen.networks import MLPTrunk, Networks
from unigen.networks.mlp import MLP
from unigen.optimizers import optimizers_for
from unigen.pairs import Likelihood, adversarial
from unigen.phases import Optimizer
from unigen.routines import by_name
from unigen.streams import isolated


@dataclass(frozen=True)
class Settings:
    """``updates`` of the two networks together in a run, ``records`` of the scores on ``points`` samples.

    ``near``: what is near a mode. ``batch``: rows, or packs, of data.
    """

    updates: int = 4000
    records: int = 8
    seeds: tuple[int, ...] = (2, 3, 4, 5, 6)  # 0 and 1 served to choose the budget
    near: float = 0.15
    batch: int = 64
    points: int = 2500


METHODS = {
    "GAN": ("gan", 1, RED),
    "GAN, packs of 2": ("gan", 2, ORANGE),
    "GAN, packs of 4": ("gan", 4, PURPLE),
    "IWGAN, 5 particles": ("iwgan(5)", 1, GREEN),
    "WGAN, clipped at 0.05": ("wgan(0.05)", 1, SKY),
    "WGAN, penalty 1": ("wgan_gp(1.0)", 1, BLUE),
}


class Packed(nn.Module):
    """A pack of samples, [G(z_1), ..., G(z_m)]: z (..., m L) -> x (..., m D), every member by the same generator."""

    def __init__(self, generator: nn.Module, members: int) -> None:
        super().__init__()
        self.generator, self.members = generator, members

    def forward(self, z: Tensor) -> Tensor:
        """Map packs of latents to packs of data."""
        return self.generator(z.unflatten(-1, (self.members, -1))).flatten(-2)


@dataclass(frozen=True)
class Packs:
    """Batches of packs: rows (N m, D) of a loader as (N, m D)."""

    rows: Any
    members: int

    def at(self, index: int) -> Tensor:
        """Return the batch of a global index."""
        batch = self.rows.at(index)
        return batch.reshape(len(batch) // self.members, -1)


def packed_pair(members: int, seed: int, hidden: int = 64, latent: int = 2) -> Pair:
    """Return the GAN over packs of points on the plane; its generator does not depend on ``members``."""
    with isolated(seed):
        generator = MLP(latent, (hidden, hidden), 2, "relu")
        with torch.no_grad():
            generator.output.weight.mul_(0.1)  # samples start close together
        trunk = MLPTrunk(2 * members, (hidden, hidden), "leaky_relu")
    networks = Networks(Packed(generator, members), trunk, latent * members, (2 * members,), hidden, seed)
    return adversarial(networks, Likelihood("normal", bounded=False))


def scores(points: Tensor, near: float) -> tuple[float, float]:
    """Return over how many modes all samples are spread, exp(H) of the nearest mode, and the share of good samples."""
    found = mixture_metrics(points, ring().means, math.inf, hq=1.0)
    modes = found.modes * math.exp(-found.reverse_kullback_leibler)  # H = log(modes) - KL(shares || uniform)
    return modes, mixture_metrics(points, ring().means, near, hq=1.0).high_quality


def one_run(job: tuple[str, int, Settings]) -> tuple[Tensor, Tensor]:
    """Train once; return the scores (records, 2) and the last samples (points, 2)."""
    method, seed, settings = job
    name, members, _ = METHODS[method]
    routine, data = by_name(name), load("ring", size=20_000, seed=seed)
    pair = packed_pair(members, seed)
    optimizers = optimizers_for(routine, pair, Optimizer("Adam", 1e-3))
    path: list[tuple[float, float]] = []
    points = torch.zeros(0, 2)

    def record(state: Any, history: Any) -> None:
        nonlocal points
        packs = math.ceil(settings.points / members)
        points = sample(pair, packs, torch.zeros(1, 2 * members), seed=1).x.reshape(-1, 2)[: settings.points]
        path.append(scores(points, settings.near))

    steps = settings.updates // sum(phase.steps for phase in routine)
    with isolated(seed):
        loader = Packs(Loader(data, settings.batch * members, seed=seed, drop_last=True), members)
        fit(
            loader, routine, pair, optimizers,
            steps=steps, record_every=max(1, steps // settings.records), callbacks=[record], progress=False,
        )  # fmt: skip
    return torch.tensor(path[: settings.records], dtype=torch.float64), points


def null(settings: Settings) -> tuple[float, float]:
    """Return the scores of a fresh sample of the data."""
    return scores(ring().sample(settings.points, torch.Generator().manual_seed(9)), settings.near)


def p_value(ours: Tensor, theirs: Tensor) -> float:
    """Return the exact two-sided permutation p-value of a difference in means of two samples (n,).

    >>> p_value(torch.tensor([1.0, 2.0]), torch.tensor([8.0, 9.0]))
    0.3333333333333333
    """
    pooled = torch.cat([ours, theirs])
    chosen = torch.tensor(list(itertools.combinations(range(len(pooled)), len(ours))))
    sums = pooled[chosen].sum(1)
    differences = (sums / len(ours) - (pooled.sum() - sums) / len(theirs)).abs()
    return (differences >= differences[0] - 1e-9).double().mean().item()


def measure(settings: Settings, run_all: Any = map) -> dict[str, Any]:
    """Return scores (seeds, records, 2) and the first seed's samples by method, and the null's scores."""
    jobs = [(method, seed, settings) for method in METHODS for seed in settings.seeds]
    runs = list(run_all(one_run, jobs))
    by_method = {}
    for index, method in enumerate(METHODS):
        mine = runs[index * len(settings.seeds) : (index + 1) * len(settings.seeds)]
        by_method[method] = (torch.stack([path for path, _ in mine]), mine[0][1])
    return {"runs": by_method, "null": null(settings), "updates": settings.updates}


def collapsed(modes: Tensor) -> int:
    """Return how many seeds are spread over fewer than half of the modes."""
    return int((modes < len(ring().means) / 2).sum())


def away(good: Tensor) -> int:
    """Return how many seeds are not at the ring: fewer than a tenth of their samples are good."""
    return int((good < 0.1).sum())


def line_of_figures(found: dict[str, Any]) -> str:
    """Say over how many modes the runs are spread at the end, and how each method differs from the plain GAN."""
    plain = found["runs"]["GAN"][0][:, -1, 0]
    parts = []
    for method, (path, _) in found["runs"].items():
        modes, good = path[:, -1].unbind(-1)
        part = f"{method} {modes.mean():.2f} ({modes.min():.2f} to {modes.max():.2f}; of {len(modes)} seeds {collapsed(modes)} "
        part += f"collapsed, {away(good)} not at the ring; good {good.mean():.2f}"
        parts.append(part + (")" if method == "GAN" else f"; p {p_value(plain, modes):.3f})"))
    count = len(plain)
    return (
        f"modes after {found['updates']} updates, mean of {seeds(count)}, p exact against the GAN (least possible "
        f"{2 / math.comb(2 * count, count):.3f}): {'; '.join(parts)}; null {found['null'][0]:.2f} (good {found['null'][1]:.2f})"
    )


def draw(found: dict[str, Any]) -> Figure:
    """Draw the modes that samples are spread over against updates, and one seed's samples of each method."""
    runs = found["runs"]
    figure, axes = panels(1 + len(runs), width=1.75, height=3.0, width_ratios=[2.6] + [1] * len(runs))
    first = axes[0]
    for method, (path, _) in runs.items():
        x = torch.linspace(0, found["updates"], path.shape[1] + 1)[1:]
        first.plot(x, path[:, :, 0].mean(0), color=METHODS[method][2], linewidth=2)
        first.fill_between(
            x, path[:, :, 0].amin(0), path[:, :, 0].amax(0), color=METHODS[method][2], alpha=0.12, linewidth=0
        )
    first.axhline(found["null"][0], color=GREY, linestyle=":", linewidth=1.5)
    first.text(found["updates"], found["null"][0] + 0.12, "the data themselves", fontsize=7, color=GREY, ha="right")
    first.set(xlabel="updates", ylabel="modes, exp(H)", ylim=(0, 8.8))
    first.set_title(f"mean and range of {seeds(len(next(iter(runs.values()))[0]))}")
    means = ring().means
    for axis, (method, (_, points)) in zip(axes[1:], runs.items(), strict=True):
        axis.scatter(means[:, 0], means[:, 1], s=60, facecolors="none", edgecolors=GREY, linewidths=0.8)
        axis.scatter(points[:600, 0], points[:600, 1], s=1.2, color=METHODS[method][2], linewidths=0)
        axis.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal", xticks=[], yticks=[])
        axis.set_title(method.replace(", ", "\n"), color=METHODS[method][2])
    return figure
