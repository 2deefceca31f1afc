"""The partition function of a restricted Boltzmann machine, exactly or by annealed importance sampling, and its likelihood.

    log p_b(v) = (1 - b) a'v + b v'v_bias + sum_j log(1 + exp(b (c_j + v'W_j))),  Z_0 = 2^H prod_i (1 + exp(a_i))

The base p_0 is independent bits with log odds a; block Gibbs leaves each p_b invariant. E[w] = Z / Z_0, so log Z is bounded
from below in expectation, and log p(x) = log p~(x) - log Z from above.
Source: Salakhutdinov and Murray (2008), On the quantitative analysis of deep belief networks.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus
from tqdm.auto import tqdm

from unigen.evaluate.annealing import inverse_temperatures
from unigen.evaluate.figure import Figure, Refused, mean_figure
from unigen.evaluate.latents import check_observations
from unigen.evaluate.modes import evaluating
from unigen.pair import Pair
from unigen.pairs.rbm import MOST_UNITS, BoltzmannMachine, RestrictedBoltzmann
from unigen.streams import isolated

__all__ = ["boltzmann_log_likelihood", "log_partition"]


@torch.no_grad()
def log_partition(
    pair: Pair,
    mean: Tensor | None = None,
    distributions: int = 5000,
    chains: int = 100,
    exact: bool = True,
    seed: int = 0,
    progress: bool = False,
) -> Figure:
    """Find log Z: by enumeration where the smaller layer has at most 20 units, else a lower bound by annealing.

    mean: (D,) in [0, 1], the training mean, whose logit is the base's log odds; None takes the visible bias. distributions,
    chains: of the annealing. exact: whether to enumerate where that can be done. The interval is log(Z -+ 3 standard errors
    of the mean weight). ValueError for an annealing without distributions or chains.
    """
    for name, count in (("distributions", distributions), ("chains", chains)):
        if count < 1:
            raise ValueError(f"the annealing of log Z with {name}={count}; give at least 1")
    if not isinstance(pair.model, BoltzmannMachine):
        raise Refused("the partition function of this pair is 1 or not to be had: only an RBM's is annealed")
    machine = pair.model.distribution
    device = machine.weight.device
    if exact and min(machine.weight.shape) <= MOST_UNITS:
        value = float(machine.log_partition())
        return Figure("log Z", value, "exact", "nats", 1, 0.0, how=f"enumeration of {min(machine.weight.shape)} units")
    with isolated(seed, device), evaluating(pair):
        log_weight, base = _anneal(machine, mean, distributions, chains, progress)
    total = torch.logsumexp(log_weight, 0) - math.log(chains)
    weights = (log_weight - total).exp()  # of mean 1
    error = float(weights.std() / math.sqrt(chains)) if chains > 1 else math.inf
    value = float(base + total)
    interval = (value + math.log1p(-3 * error) if 3 * error < 1 else -math.inf, value + math.log1p(3 * error))
    share = float(weights.max() / chains)
    how = f"annealed importance sampling from independent bits, {distributions} distributions, {chains} chains"
    warning = f"one chain has {share:.0%} of the weight" if share > 0.5 or chains == 1 else ""
    return Figure("log Z", value, "lower bound", "nats", chains, error, interval, how, warning=warning)


def _anneal(
    machine: RestrictedBoltzmann, mean: Tensor | None, distributions: int, chains: int, progress: bool
) -> tuple[Tensor, Tensor]:
    """Return log w, float64 (S,), and log Z_0."""
    weight, visible, hidden = (part.detach() for part in (machine.weight, machine.visible, machine.hidden))
    base = visible if mean is None else torch.logit(mean.to(visible).clamp(0.005, 0.995))
    grid = inverse_temperatures(distributions, "linear").tolist()
    log_weight = torch.zeros(chains, dtype=torch.float64, device=weight.device)
    v = torch.bernoulli(torch.sigmoid(base).expand(chains, -1))
    drive = v @ weight + hidden
    for b, before in tqdm(
        zip(grid[1:], grid, strict=False), total=distributions, desc="log Z", disable=not progress, leave=False
    ):
        gain = softplus(b * drive).sum(-1).double() - softplus(before * drive).sum(-1).double()
        log_weight += gain + (b - before) * (v @ (visible - base)).double()
        h = torch.bernoulli(torch.sigmoid(b * drive))
        v = torch.bernoulli(torch.sigmoid((1 - b) * base + b * (h @ weight.T + visible)))
        drive = v @ weight + hidden
    return log_weight, softplus(base).double().sum() + len(hidden) * math.log(2)


@torch.no_grad()
def boltzmann_log_likelihood(pair: Pair, x: Any, partition: Figure) -> Figure:
    """Return log p(x) = log p~(x) - log Z over rows x (N, D), given log Z; an upper bound where log Z is a lower one.

    x: the data, as ``pair.bind`` takes them.
    """
    if not isinstance(pair.model, BoltzmannMachine):
        raise Refused("this pair's density has no partition function; call log_likelihood or annealed_log_likelihood")
    data = pair.bind(x)
    check_observations(pair, data)
    with evaluating(pair):
        per_datum = pair.model.distribution.log_prob(data["x"]).double() - partition.value
    kind = "exact" if partition.kind == "exact" else "upper bound"
    found = mean_figure("log p(x)", per_datum, kind, how=f"log Z by {partition.how}", warning=partition.warning)
    if partition.kind == "exact" or found.standard_error is None:
        return found
    return dataclasses.replace(found, standard_error=math.hypot(found.standard_error, partition.standard_error or 0.0))
