"""A fixed constraint moves a statistic of a flow to its target, and costs likelihood.

The two moons lie half to the left and half to the right of their median. The constraint f(x) = 1[x_1 > median] asks for a
share m = 0.7 on the right. Training alternates maximum likelihood with posterior regularization's M-step on
q* ~ p exp(alpha f). Where both phases weigh the same, the fixed point is p = (data + q*) / 2, so the share obeys

    m = (d + q) / 2,    q = m e^alpha / (m e^alpha + 1 - m),    alpha = logit(2 m - d) - logit(m),

d = 1/2 the data's share: alpha follows from the target before training. At the fixed point the cost in likelihood is
KL(data || p) = -log(2 sqrt(m (1 - m))) = 0.087 nats. (Ganchev et al. 2010; Hu et al. 2018b.)

Run: python experiments/posterior_regularization.py
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from published import check_numbers, command_line, made_folder
from torch import Tensor

from unigen import Routine, fit, routines
from unigen.data import Loader, load
from unigen.durable import write_json
from unigen.evaluate import log_likelihood, sample
from unigen.optimizers import Falling, optimizers_for
from unigen.pairs import flow
from unigen.phases import Optimizer
from unigen.settings import BOUNDS, UsageError
from unigen.streams import isolated


@dataclass
class Settings:
    target: float = 0.7
    """The share of samples that the constraint asks for on the right, between a quarter and three quarters."""
    steps: int = 3000
    """Steps of the constrained run; the free run takes twice as many, so that both move theta equally often."""
    batch_size: int = 500
    """Data in a batch, and dreams that the constraint weighs."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds, each a pair of runs: without and with the constraint."""
    out: str | None = None
    """Write the numbers to this JSON file too."""


def strength(target: float, share: float) -> float:
    """Return alpha = logit(2 target - share) - logit(target), for which the fixed point has the target share.

    >>> round(strength(0.7, 0.5), 4)
    1.3499
    """
    wanted = 2 * target - share
    if not 0 < wanted < 1:
        raise UsageError(
            f"--target: with the data's share {share:g} a target lies between {share / 2:g} and {(1 + share) / 2:g}"
        )
    return math.log(wanted / (1 - wanted)) - math.log(target / (1 - target))


def run(routine: Routine, settings: Settings, steps: int, seed: int, middle: float) -> tuple[float, float]:
    """Train a flow and return (share on the right, exact test log-likelihood in nats)."""
    data = load("moons")
    loader = Loader(data, settings.batch_size, seed=seed)
    pair = flow(2, start=data.train, seed=seed)
    optimizers = optimizers_for(routine, pair, Optimizer("Adam", 1e-3))
    with isolated(seed):
        label = f"{routine.name}, seed {seed}" if sys.stderr.isatty() else False
        fit(loader, routine, pair, optimizers, steps=steps, schedule=Falling(1e-5), progress=label)
    made = sample(pair, 50_000, data.test, seed=seed).x
    return float((made[:, 0] > middle).float().mean()), log_likelihood(pair, data.test).value


def main(settings: Settings) -> dict[str, float]:
    """Train with and without the constraint; print and return means over seeds."""
    data = load("moons")
    middle = float(data.train[:, 0].median())
    share = float((data.train[:, 0] > middle).float().mean())
    alpha = strength(settings.target, share)
    check_numbers(settings, steps=BOUNDS["steps"], batch_size=(1, len(data.train)), seeds=BOUNDS["seeds"])
    if settings.out:
        made_folder(Path(settings.out), file=True)

    def right(draw) -> Tensor:
        return (draw["x"][..., 0] > middle).to(draw["x"])

    regularized = routines.posterior_regularization(right, alpha, learn=False, base=routines.maximum_likelihood)
    rows = []
    for seed in settings.seeds:
        free = run(routines.maximum_likelihood, settings, 2 * settings.steps, seed, middle)
        rows.append((*free, *run(regularized, settings, settings.steps, seed, middle)))
        print(
            f"seed {seed}: share {rows[-1][0]:.3f} -> {rows[-1][2]:.3f}, log-likelihood {rows[-1][1]:.3f} -> {rows[-1][3]:.3f}"
        )
    means = torch.tensor(rows).mean(0).tolist()
    found = {
        "target": settings.target,
        "alpha": alpha,
        "share without": means[0],
        "share with": means[2],
        "log-likelihood without": means[1],
        "log-likelihood with": means[3],
        "cost in nats": means[1] - means[3],
        "cost at the fixed point": -math.log(2 * math.sqrt(settings.target * (1 - settings.target))),
    }
    for name, value in found.items():
        print(f"{name:<24} {value:8.4f}")
    if settings.out:
        write_json(Path(settings.out), found)
    return found


if __name__ == "__main__":
    sys.exit(
        command_line(
            "posterior_regularization", Settings, __doc__, lambda settings, _: main(settings) and 0, sys.argv[1:]
        )
    )
