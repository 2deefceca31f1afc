"""Planning: refuse what is wrong with a comparison before anything is written, and build the pair of every run.

``plan`` checks every setting, loads the data and tries every routine on its pair; ``build_pair`` is a pure function of the
plan, the routine and the seed, so that every routine of a seed starts from the same weights.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unigen import data as datasets
from unigen.data import Dataset, Loader, spread
from unigen.datachecks import BINARIZATIONS
from unigen.engines import ENGINES
from unigen.engines.checks import check
from unigen.names import nearest
from unigen.networks import Baseline, Critic, Networks, networks
from unigen.networks.mlp import ACTIVATIONS
from unigen.pair import Pair
from unigen.pairs import Likelihood, adversarial, deep_latent, flow, latent, mixture, rbm, sigmoid_belief
from unigen.pairs.likelihoods import LIKELIHOODS
from unigen.phases import Optimizer, Phase, Routine
from unigen.routines import by_name
from unigen.runs import slug_of
from unigen.settings import Settings, UsageError, check_bounds
from unigen.stored import check_data, check_path, check_same, read_comparison
from unigen.streams import isolated

__all__ = ["PAIRS", "Arm", "Plan", "build_pair", "plan", "plan_of", "psi_networks", "shared_networks"]

ON_BITS = (
    "vae",
    "iwae(5)",
    "wake_sleep",
    "reweighted_wake_sleep(5)",
    "aavae",
    "gan",
    "wgan_gp",
    "mmd",
    "em",
    "persistent_contrastive_divergence",
)
ON_REALS = ("vae", "iwae(5)", "wake_sleep", "gan", "wgan_gp", "mmd", "em", "maximum_likelihood")
PAIRS = ("auto", "latent", "deep_latent", "sigmoid_belief", "mixture", "adversarial", "rbm", "flow")
_OPTIONS = {
    "data": datasets.NAMES,
    "pair": PAIRS,
    "networks": ("mlp", "conv"),
    "activation": tuple(ACTIVATIONS),
    "likelihood": ("auto", *LIKELIHOODS),
    "binarization": BINARIZATIONS,
    "engine": tuple(ENGINES),
}
_LIKELIHOODS = {"sigmoid_belief": ("bernoulli",), "rbm": ("bernoulli",), "mixture": ("bernoulli", "normal")}  # else all
_MOST, _WEIGHTS, _SLUG = 10_000, 2**28, 100


@dataclass
class Arm:
    """One routine of a comparison with its pair family."""

    name: str
    slug: str
    routine: Routine
    pair: str


@dataclass
class Plan:
    """A comparison whose every setting has been checked."""

    settings: Settings
    command: str
    dataset: Dataset
    likelihood: str
    device: str
    arms: list[Arm]
    directory: Path

    @property
    def test(self) -> Tensor:
        """The test rows that are evaluated, (n, D), on the plan's device."""
        return spread(self.dataset.test, self.settings.test_size).to(self.device)

    def measure(self, arm: Arm) -> str:
        """What log p(x) of an arm's model is of: "density", "mass", or "" where the model is implicit."""
        masses = {
            "sigmoid_belief": True,
            "rbm": True,
            "mixture": self.likelihood == "bernoulli",
            "flow": False,
        }
        if arm.pair == "adversarial":
            return ""
        return "mass" if masses.get(arm.pair, self.likelihood != "normal") else "density"

    def optimizer(self, arm: Arm) -> Optimizer:
        """The optimizer of a run: the routine's own, with the learning rate of the settings where there is one."""
        own = arm.routine.optimizer
        return dataclasses.replace(own, lr=self.settings.learning_rate or own.lr)


# -- planning ----------------------------------------------------------------------------------------------------------


def plan(settings: Settings, command: str = "unigen compare") -> Plan:
    """Check every setting, load the data, and try every routine on its pair; nothing is written.

    Raises ``UsageError`` for a wrong setting or pairing, ``unigen.data.DataError`` for data that cannot be had.
    """
    try:
        return _plan(settings, command)
    except datasets.DataError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from None


def plan_of(directory: Path) -> Plan:
    """Return the plan of the comparison that a directory holds, on the CPU and on the data that it was trained on.

    Raises ``UsageError`` where there is none, its settings cannot be, or the data here are others, and
    ``unigen.data.DataError`` for data that cannot be had.
    """
    settings, config = read_comparison(directory)
    try:
        planned = plan(dataclasses.replace(settings, out=None, device="cpu"))
    except UsageError as error:
        raise UsageError(f"{directory / 'config.json'} is not right: {error}") from None
    check_data(directory, config, settings.data, planned.dataset.fingerprint)
    return planned


def _plan(settings: Settings, command: str) -> Plan:
    check_bounds(settings)
    given = [name for name in ("steps", "epochs", "seconds") if getattr(settings, name) is not None]
    if len(given) > 1:
        raise ValueError(f"a run has one budget, but --{given[0]} and --{given[1]} were given; drop one")
    if not given:
        settings = dataclasses.replace(settings, steps=1000)
    if not settings.seeds or len(set(settings.seeds)) < len(settings.seeds):
        raise ValueError(f"--seeds wants different numbers from 0; got {' '.join(map(str, settings.seeds)) or 'none'}")
    for name, options in _OPTIONS.items():
        value = getattr(settings, name)
        if value not in options and value is not None:
            raise ValueError(f"--{name} {value!r:.80}: {nearest(value[:80], options)}")
    device = _device(settings.device)
    for name in settings.routines:
        _check_extent(name, by_name(name))
    if settings.out is not None:
        check_path(Path(settings.out), "--out")
    dataset = datasets.load(
        settings.data, settings.data_root, binarization=settings.binarization, dequantize=settings.dequantize
    )
    binary = dataset.binarization != "none" or dataset.levels == 2
    continuous = dataset.levels is None or dataset.dequantize
    natural = "bernoulli" if binary else "normal" if continuous else "discretized_logistic"
    likelihood = natural if settings.likelihood == "auto" else settings.likelihood
    if likelihood == "bernoulli" and not binary:
        raise ValueError(
            f"--likelihood bernoulli wants binary data, but {settings.data} is not; use {natural}, or --binarization"
        )
    if likelihood == "discretized_logistic" and (binary or continuous):
        raise ValueError(
            f"--likelihood discretized_logistic wants grey levels, but this {settings.data} has none; use {natural}"
        )
    names = settings.routines or (ON_REALS if continuous else ON_BITS)
    settings = dataclasses.replace(settings, latent=settings.latent or (2 if dataset.shape == (2,) else 20))
    _check_size(settings, dataset)
    arms, kept = [], []
    for name in names:
        routine = by_name(name)
        family = routine.pairs[0] if settings.pair == "auto" else settings.pair
        if family not in routine.pairs:
            raise ValueError(f"routine {name} does not run on --pair {family}; it runs on {', '.join(routine.pairs)}")
        unsuited = _unsuited(family, binary, continuous, settings.likelihood)
        if unsuited and settings.routines:
            raise ValueError(f"routine {name} on the pair {family} {unsuited}")
        if not unsuited:
            kept.append(name)
            arms.append(Arm(routine.name, slug_of(routine.name), routine, family))
    settings = dataclasses.replace(settings, routines=tuple(kept))
    if len({arm.slug for arm in arms}) < len(arms):
        raise ValueError(f"--routines names a routine twice: {' '.join(names)}; drop one")
    directory = Path(settings.out) if settings.out else Path("runs", f"{settings.data}-{datetime.now():%Y%m%d-%H%M%S}")
    check_same(directory, settings, dataset.fingerprint)
    planned = Plan(settings, command, dataset, likelihood, device, arms, directory)
    probe = Loader(dataset, min(settings.batch_size, len(dataset.train)), seed=0, device=device).at(0)[:8]
    for arm in arms:
        where = f"routine {arm.name} on the pair {arm.pair}"
        try:
            check(arm.routine, build_pair(planned, arm, settings.seeds[0]), probe)
        except datasets.DataError:
            raise
        except KeyError as error:  # torch refuses some names, such as one with a dot
            raise ValueError(f"{where}: a network cannot be called so: {error.args[0]}") from None
        except (ValueError, MemoryError, RuntimeError) as error:
            raise ValueError(f"{where}: {str(error).strip().splitlines()[0] if str(error) else 'too large'}") from None
    return planned


def _unsuited(family: str, binary: bool, continuous: bool, likelihood: str) -> str:
    """Say why a family does not go with these data or with the likelihood that was named, or "" where it does."""
    if family in ("sigmoid_belief", "rbm") and not binary:
        return "wants binary data; use --binarization static or dynamic"
    if family == "flow" and not continuous:
        return "wants continuous data; use --dequantize --binarization none"
    known = _LIKELIHOODS.get(family, LIKELIHOODS)
    if likelihood != "auto" and likelihood not in known:
        return f"has no --likelihood {likelihood}, only {' and '.join(known)}; leave out one of the two"
    return ""


def _check_extent(name: str, routine: Routine) -> None:
    """Refuse a routine of settings that no run would end with, before it is tried."""
    for entry, value in _leaves(routine.phases):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"routine {name:.80}: {entry} is {value}; give a finite number")
        if isinstance(value, int) and value > _MOST:
            raise ValueError(f"routine {name:.80}: {entry} is {value}; give at most {_MOST}")
    if len(slug_of(routine.name)) > _SLUG:
        raise ValueError(f"routine {name:.80}: its name has more than {_SLUG} characters, too many for a directory's")


def _check_size(settings: Settings, dataset: Dataset) -> None:
    """Refuse networks that are too large for this machine before one is built."""
    dimension, latent = dataset.train.shape[1], settings.latent or 20
    wanted = {
        "hidden": (max(dimension, latent), *settings.hidden, max(dimension, latent)),
        "latent": (dimension, latent),
        "layers": (dimension, *settings.layers),
        "components": (dimension, settings.components),
        "units": (dimension, settings.units),
    }
    for name, widths in wanted.items():
        weights = sum(one * other for one, other in pairwise(widths))
        if weights > _WEIGHTS:
            raise ValueError(f"--{name} asks for {weights} weights; give widths of at most {_WEIGHTS} in all")


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise ValueError(f"--device {name!r}: {nearest(kind, ('auto', 'cpu', 'cuda'))}")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name} is not there: torch sees {torch.cuda.device_count()} CUDA devices; use cpu")
    return name


# -- building ----------------------------------------------------------------------------------------------------------


def shared_networks(planned: Plan, seed: int, latent: int | None = None) -> Networks:
    """Return the network set that latent and adversarial pairs share, a pure function of the seed.

    ``latent``: the width of z, where it is not that of the settings.
    """
    settings, dataset = planned.settings, planned.dataset
    return networks(
        settings.networks,
        dataset.shape,
        latent or settings.latent or 20,
        hidden=settings.hidden,
        activation=settings.activation,
        mean=dataset.mean if dataset.levels is not None or dataset.binarization != "none" else None,
        seed=seed,
    )


def build_pair(planned: Plan, arm: Arm, seed: int) -> Pair:
    """Return a new pair for one run, on the plan's device; equal seeds give equal weights."""
    settings, dataset, family = planned.settings, planned.dataset, arm.pair
    dimension = dataset.train.shape[1]
    if family in ("latent", "adversarial"):
        shared = shared_networks(planned, seed)
        likelihood = Likelihood(planned.likelihood, dataset.levels, bounded=dataset.shape != (2,))
        psi: dict[str, nn.Module] = {}
        for name in psi_networks(arm.routine.phases):
            psi[name] = Baseline(dimension) if name == "baseline" else Critic(shared)
        pair = (latent if family == "latent" else adversarial)(shared, likelihood, psi)
    elif family == "deep_latent":
        shared = shared_networks(planned, seed, settings.layers[0])
        likelihood = Likelihood(planned.likelihood, dataset.levels, bounded=dataset.shape != (2,))
        inner = tuple(max(1, units // 2) for units in settings.hidden)
        pair = deep_latent(shared, settings.layers[1:], inner, likelihood, activation=settings.activation)
    elif family == "sigmoid_belief":
        psi = _predictions(arm, dimension, seed, baselines=len(settings.layers))
        pair = sigmoid_belief(dimension, settings.layers, mean=dataset.mean, seed=seed, psi=psi)
    elif family == "mixture":
        kind = "bernoulli" if planned.likelihood == "bernoulli" else "normal"
        psi = _predictions(arm, dimension, seed)
        pair = mixture(settings.components, dataset.train, likelihood=kind, seed=seed, psi=psi)
    elif family == "rbm":
        pair = rbm(dimension, settings.units, mean=dataset.mean, seed=seed)
    else:
        start = dataset.train
        if (
            dataset.dequantize and dataset.levels
        ):  # as trained on: a pixel at the edge is noise of one level, no constant
            with isolated(seed):
                start = start + torch.rand_like(start) / dataset.levels
        psi = _predictions(arm, dimension, seed)
        pair = flow(dimension, hidden=settings.hidden, start=start, seed=seed, psi=psi)
    return pair.to(planned.device)


def _predictions(arm: Arm, dimension: int, seed: int, baselines: int = 1) -> dict[str, nn.Module]:
    """Return the psi networks that a routine reads, of x and with one output; ``baselines``: the outputs of a baseline."""
    with isolated(seed):
        return {
            name: Baseline(dimension, outputs=baselines if name == "baseline" else 1)
            for name in psi_networks(arm.routine.phases)
        }


def psi_networks(phases: tuple[Phase, ...]) -> list[str]:
    """Return the names of the psi networks that phases read, in order."""
    return list(dict.fromkeys(name for entry, name in _leaves(phases) if entry == "network" and isinstance(name, str)))


def _leaves(part: Any) -> Iterator[tuple[str, Any]]:
    """Yield the name and value of every field of every dataclass in a tree of tuples and dataclasses."""
    for item in part if isinstance(part, tuple) else ():
        yield from _leaves(item)
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        for entry in dataclasses.fields(part):
            value = getattr(part, entry.name)
            yield entry.name, value
            yield from _leaves(value)
