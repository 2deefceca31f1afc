"""Annealed importance sampling with Hamiltonian dynamics in latent space, and bidirectional Monte Carlo.

    log f_b(z) = (1 - b) log f_0(z) + b log p(x, z),  f_0 = p(z) or q(z|x),  0 = b_0 < ... < b_T = 1
    log w = sum_t log f_{b_t}(z_{t-1}) - log f_{b_{t-1}}(z_{t-1}),  E[w] = p(x), so E[log mean_s w_s] <= log p(x)

Run backwards from an exact posterior sample, which data simulated from the model come with, E[1/w] = 1/p(x): an upper bound.
Sources: Neal (2001), Annealed importance sampling; Grosse, Ghahramani and Adams (2015), arXiv:1511.02543; Wu, Burda,
Salakhutdinov and Grosse (2017), arXiv:1611.04273, whose settings are the defaults.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from unigen.engines.probes import check_dreams
from unigen.engines.programs import Programs, device_of
from unigen.engines.pure import capture
from unigen.evaluate.figure import Bounds, Figure, Refused, mean_figure
from unigen.evaluate.latents import (
    LatentSpace,
    check_densities,
    check_observations,
    check_runs,
    frozen,
    pieces_of,
    recycled,
)
from unigen.names import nearest
from unigen.pair import Pair, PairError, Unsupported
from unigen.pairs.rbm import BoltzmannMachine

__all__ = [
    "Annealing",
    "annealed_log_likelihood",
    "bidirectional_monte_carlo",
    "check_annealable",
    "inverse_temperatures",
    "simulate",
    "transition",
]

MOST_CHAINS_AT_ONCE = 4096
PILOT_LEVELS, PILOT_SWEEPS, PILOT_CHAINS = 60, 2, 64
SCHEDULES, STARTS, ENGINES = ("linear", "sigmoid"), ("guide", "prior"), ("eager", "xla")


@dataclass(frozen=True)
class Annealing:
    """The settings of annealed importance sampling.

    ``distributions``: T, the intermediate ones. ``chains``: S a datum, in parallel. ``leapfrogs``: steps of a trajectory, one
    trajectory a distribution. ``start``: f_0, the ``"guide"`` where the pair has one, or the ``"prior"``. ``acceptance``: what
    the step sizes are tuned to on a pilot run. ``schedule``: of b, ``"sigmoid"`` or ``"linear"``. ``engine``: ``"eager"``, torch,
    or ``"xla"``, which compiles the sweep first (``Refused`` for a pair that cannot be lowered).
    """

    distributions: int = 1000
    chains: int = 16
    leapfrogs: int = 10
    start: str = "guide"
    acceptance: float = 0.65
    schedule: str = "sigmoid"
    engine: str = "eager"

    def __post_init__(self) -> None:
        for name in ("distributions", "chains", "leapfrogs"):
            if getattr(self, name) < 1:
                raise ValueError(f"annealing with {name}={getattr(self, name)}; give at least 1")
        if not 0 < self.acceptance < 1:
            raise ValueError(f"annealing with acceptance={self.acceptance}; give a rate between 0 and 1")
        for name, options in (("start", STARTS), ("schedule", SCHEDULES), ("engine", ENGINES)):
            if getattr(self, name) not in options:
                raise ValueError(
                    f"annealing with {name}={getattr(self, name)!r}; {nearest(getattr(self, name), options)}"
                )

    def __str__(self) -> str:
        said = f"{self.distributions} distributions, {self.chains} chains, {self.leapfrogs} leapfrogs"
        return said if self.engine == "eager" else f"{said}, engine {self.engine}"


def inverse_temperatures(distributions: int, schedule: str = "sigmoid") -> Tensor:
    """Return b_0 = 0 < ... < b_T = 1, float64 (T + 1,); the sigmoid's runs from -4 to 4 (Grosse et al. 2015)."""
    grid = torch.linspace(0, 1, distributions + 1, dtype=torch.float64)
    if schedule == "linear":
        return grid
    curve = torch.sigmoid(8 * grid - 4)
    return ((curve - curve[0]) / (curve[-1] - curve[0])).clamp(0, 1)


# -- one path of distributions, and a transition that leaves one of them invariant --------------------------------------


class State(NamedTuple):
    """Where the chains are: u (S, N, d), and there log f_0 and log p(x, z), each (S, N)."""

    u: Tensor
    log_start: Tensor
    log_joint: Tensor


class Path:
    """The way from f_0 to the joint over a latent space; ``slopes`` evaluates both ends and the slope of log f_b.

    The evaluation is captured once as a graph of tensor operations, which spares the programs' handlers at every step; a
    program that has no such graph runs as it is, to the same numbers.
    """

    def __init__(self, space: LatentSpace, start: str) -> None:
        self.space = space
        self.start = "guide" if start == "guide" and space.has_guide() else "prior"
        self.slopes: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]] = self._slopes

    def ends(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return log f_0 and log p(x, z) at u (S, N, d), each (S, N)."""
        prior, likelihood = self.space.log_model(u)
        return (self.space.log_guide(u) if self.start == "guide" else prior), prior + likelihood

    def _slopes(self, u: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            leaf = u.detach().requires_grad_()
            log_start, log_joint = self.ends(leaf)
            (slope,) = torch.autograd.grad(((1 - b) * log_start + b * log_joint).sum(), leaf)
        return log_start.detach(), log_joint.detach(), slope

    def at(self, u: Tensor) -> State:
        """Return the state at u (S, N, d)."""
        if self.slopes == self._slopes:
            with contextlib.suppress(Unsupported):
                self.slopes = capture(self._slopes, [u, u.new_tensor(0.5)], "annealing")
        with torch.no_grad():
            return State(u, *self.ends(u))

    def begin(self) -> State:
        """Draw from f_0."""
        return self.at(self.space.from_guide() if self.start == "guide" else self.space.from_prior())


def transition(
    path: Path, state: State, b: Tensor, step: Tensor, scale: Tensor, leapfrogs: int
) -> tuple[State, Tensor]:
    """Move by one Hamiltonian trajectory that leaves f_b invariant; return the state and the acceptance rate, (S, N).

    ``b``: (). ``step``: (N,), spread by a fifth either way, so that no trajectory closes on itself. ``scale``: (d,), the
    square root of the inverse mass. Nothing here depends on the values of tensors: it can be captured as a graph.
    """
    u = state.u
    jitter = 0.8 + 0.4 * torch.rand(u.shape[:2], dtype=u.dtype, device=u.device)
    size = (step * jitter).unsqueeze(-1) * scale  # (S, N, d)
    momentum = torch.randn_like(u)
    here = (1 - b) * state.log_start + b * state.log_joint - 0.5 * momentum.square().sum(-1)
    for index in range(leapfrogs + 1):
        log_start, log_joint, slope = path.slopes(u, b)
        momentum = momentum + (0.5 if index in (0, leapfrogs) else 1.0) * size * slope
        if index < leapfrogs:
            u = u + size * momentum
    there = (1 - b) * log_start + b * log_joint - 0.5 * momentum.square().sum(-1)
    # a trajectory that has left the finite numbers compares as false, and is rejected
    accepted = torch.rand_like(here).log() < there - here
    rate = torch.nan_to_num((there - here).clamp(max=0).exp(), nan=0.0)
    moved = State(
        torch.where(accepted.unsqueeze(-1), u, state.u),
        torch.where(accepted, log_start, state.log_start),
        torch.where(accepted, log_joint, state.log_joint),
    )
    return moved, rate


class Tuned(NamedTuple):
    """Step sizes (T, N) and scales (T, d) for the distributions 1 to T."""

    steps: Tensor
    scales: Tensor


def _pilot(pair: Pair, data: dict[str, Any], settings: Annealing, rows: int, bar: Any) -> Tuned:
    """Tune on a coarse run of other chains: the step of each datum to the acceptance, the scales to the spread of chains.

    What is tuned depends on no chain of the run that it is for, so that run's kernels are fixed, and its bounds hold.
    """
    chains = max(settings.chains, 2, -(-PILOT_CHAINS // rows))
    path = Path(LatentSpace(pair, data, chains), settings.start)
    state = path.begin()
    levels = min(PILOT_LEVELS, settings.distributions)
    grid = inverse_temperatures(levels, settings.schedule).to(state.u)
    spread = state.u.var(0).mean(0)
    log_step = state.u.new_full((rows,), math.log(0.3))
    steps, scales = [], []
    for level in range(levels + 1):
        for sweep in range(PILOT_SWEEPS if level else 20):  # at f_0 exact samples find the first step size
            scale = spread.sqrt().clamp_min(1e-4)
            state, rate = transition(path, state, grid[level], log_step.exp(), scale, settings.leapfrogs)
            gain = 0.5 if level else 2.0 / (1 + sweep) ** 0.6
            log_step = (log_step + gain * (rate.mean(0) - settings.acceptance)).clamp(-12.0, 1.0)
            spread = 0.8 * spread + 0.2 * state.u.var(0).mean(0)
            bar.update()
        if level:
            steps.append(log_step)
            scales.append(spread.sqrt().clamp_min(1e-4))
    # level l of the pilot stands at b((l + 1) / levels), distribution t of the run at b(t / T)
    return Tuned(_spread_over(torch.stack(steps), settings).exp(), _spread_over(torch.stack(scales), settings))


def _spread_over(coarse: Tensor, settings: Annealing) -> Tensor:
    """Interpolate rows at (l + 1) / levels linearly to t / T for t = 1 to T."""
    levels = len(coarse)
    place = torch.arange(1, settings.distributions + 1, device=coarse.device) / settings.distributions * levels - 1
    place = place.clamp(0, levels - 1).to(coarse)
    low = place.floor().long()
    part = (place - low).unsqueeze(-1)
    return coarse[low] * (1 - part) + coarse[(low + 1).clamp(max=levels - 1)] * part


def _anneal(
    path: Path, state: State, settings: Annealing, tuned: Tuned, reverse: bool, bar: Any
) -> tuple[Tensor, float]:
    """Return log w (S, N), float64, and the mean acceptance; ``reverse`` runs from the joint to f_0."""
    grid = inverse_temperatures(settings.distributions, settings.schedule).to(state.u.device)
    if settings.engine == "xla":
        from unigen.evaluate.annealing_xla import record, sweep  # imports jax

        try:
            tape = record(_plain(path, settings.leapfrogs), state, tuned.steps[0], tuned.scales[0])
            return sweep(tape, state, grid, tuned.steps, tuned.scales, reverse, bar)
        except Unsupported as error:
            raise Refused(f"annealing by xla: {error}") from None
    log_weight = torch.zeros_like(state.log_joint, dtype=torch.float64)
    total = state.u.new_zeros(())
    order = range(settings.distributions, 0, -1) if reverse else range(1, settings.distributions + 1)
    for t in order:
        arguments = (grid[t].to(state.u), tuned.steps[t - 1], tuned.scales[t - 1], settings.leapfrogs)
        if reverse:
            state, rate = transition(path, state, *arguments)
        log_weight += (grid[t] - grid[t - 1]) * (state.log_joint.double() - state.log_start.double())
        if not reverse:
            state, rate = transition(path, state, *arguments)
        total = total + rate.mean()
        bar.update()
    return log_weight, float(total) / settings.distributions


def _plain(path: Path, leapfrogs: int) -> Callable[..., tuple[State, Tensor]]:
    """Return the transition on the programs themselves, not on their captured graph, as a function of tensors."""
    own = copy.copy(path)
    own.slopes = own._slopes
    return lambda now, b, step, scale: transition(own, State(*now), b, step, scale, leapfrogs)


# -- figures -----------------------------------------------------------------------------------------------------------


def annealed_log_likelihood(
    pair: Pair, x: Any, settings: Annealing | None = None, seed: int = 0, progress: bool = False
) -> Figure:
    """Bound log p(x) of every datum from below by annealed importance sampling, tight as T grows.

    x: the data, as ``pair.bind`` takes them. settings: see ``Annealing``. progress: whether to show a bar.
    Refused (``Refused``) for pairs without a density or with discrete latents. Random streams, weights, modes and chains
    of the pair are left as they are.
    """
    settings = settings or Annealing()
    check_annealable(pair)
    data = pair.bind(x)
    check_observations(pair, data)
    pieces = pieces_of(pair, data, max(1, MOST_CHAINS_AT_ONCE // settings.chains))
    found, rates, start = [], [], settings.start
    with frozen(pair, seed, device_of(data)), _bar(settings, len(pieces), "annealing", progress) as bar:
        check_densities(pair, data)
        for piece in pieces:
            space = LatentSpace(pair, piece, settings.chains)
            tuned = _pilot(pair, piece, settings, space.rows, bar)
            path = Path(space, settings.start)
            log_weight, rate = _anneal(path, path.begin(), settings, tuned, False, bar)
            found.append(log_weight)
            rates.append(rate * space.rows)
            start = path.start
    return _figure(torch.cat(found, 1), sum(rates), settings, start)


def _figure(log_weight: Tensor, rates: float, settings: Annealing, start: str, where: str = "") -> Figure:
    chains, rows = log_weight.shape
    per_datum = torch.logsumexp(log_weight, 0) - math.log(chains)
    lone = (
        (torch.softmax(log_weight, 0).square().sum(0).reciprocal() < 1.5).double().mean().item() if chains > 2 else 0.0
    )
    warning = f"one chain has nearly all the weight for {lone:.0%} of the data" if lone > 0.5 else ""
    how = f"annealed importance sampling from the {start}, {settings}, acceptance {rates / rows:.2f}"
    name = f"log p(x), {where}" if where else "log p(x)"
    return mean_figure(name, per_datum, "lower bound", how=how, warning=warning)


def bidirectional_monte_carlo(
    pair: Pair, like: Any, n: int = 100, settings: Annealing | None = None, seed: int = 0, progress: bool = False
) -> Bounds:
    """Bound log p(x) of n data simulated from the model from both sides; the gap bounds the error of the annealing there.

    like: data that give dimension, dtype, device and covariates; a pair that is one datum simulates one. The rest, and what
    is refused, is as in ``annealed_log_likelihood``.
    """
    settings = settings or Annealing()
    check_annealable(pair)
    data = pair.bind(like)
    lower, upper, rates, start = [], [], [], settings.start
    with frozen(pair, seed, device_of(data)):
        check_densities(pair, data)
        total = n if Programs(pair).layout(data).batched else 1
        most = max(1, MOST_CHAINS_AT_ONCE // settings.chains)
        with _bar(settings, -(-total // most), "bidirectional", progress, runs=2) as bar:
            for first in range(0, total, most):
                values, simulated = simulate(pair, data, first, min(most, total - first))
                space = LatentSpace(pair, simulated, settings.chains)
                tuned = _pilot(pair, simulated, settings, space.rows, bar)
                path = Path(space, settings.start)
                forward, rate = _anneal(path, path.begin(), settings, tuned, False, bar)
                back, _ = _anneal(path, path.at(space.pack(values)), settings, tuned, True, bar)
                lower.append(forward)
                upper.append(torch.logsumexp(-back, 0))
                rates.append(rate * space.rows)
                start = path.start
    below = _figure(torch.cat(lower, 1), sum(rates), settings, start, "simulated data")
    from_above = math.log(settings.chains) - torch.cat(upper)
    above = mean_figure("log p(x), simulated data", from_above, "upper bound", how=f"backwards, {below.how}")
    assert below.per_datum is not None
    gap = mean_figure(
        "gap of the bounds", from_above.cpu() - below.per_datum, "upper bound", how=f"both ways, {below.how}"
    )
    return Bounds(below, above, gap)


def simulate(pair: Pair, data: dict[str, Any], first: int, rows: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Draw (z, x) from the model: the latents by site, and data by argument with ``rows`` rows; covariates are recycled."""
    data = recycled(pair, data, first, rows)
    try:
        with torch.no_grad():
            check_dreams(Programs(pair), data)
            sites = Programs(pair).run("model", data, dream=True, detach=True)
        simulated = {name: sites[name].value if name in sites else value for name, value in data.items()}
        check_runs(pair, simulated)
    except PairError as error:
        raise Refused(f"data cannot be simulated: {error}") from None
    return {site.name: site.value for site in sites.values() if not site.observed}, simulated


def check_annealable(pair: Pair) -> None:
    """Refuse a pair whose density is not to be had, with what to do instead."""
    if isinstance(pair.model, BoltzmannMachine):
        raise Refused("an RBM has no latent site to anneal over; its partition function is annealed by log_partition")
    if pair.likelihood == "none":
        raise Refused(
            "an implicit model has no likelihood without an observation model; gaussian_observation_log_likelihood adds "
            "Gaussian noise to its decoder, under that name (Wu et al. 2017)"
        )


def _bar(settings: Annealing, pieces: int, what: str, progress: bool, runs: int = 1) -> Any:
    pilot = 20 + PILOT_SWEEPS * min(PILOT_LEVELS, settings.distributions)
    return tqdm(total=pieces * (pilot + runs * settings.distributions), desc=what, disable=not progress, leave=False)
