"""The examination: one call that gives every trained pair the same figures, and says of each what kind of number it is.

What a pair cannot give is refused in a sentence. Nothing of the pair changes: weights, modes, chains and random streams are
as they were.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from unigen.data import Dataset, spread
from unigen.engines.programs import Programs, device_of, lengths_of, reason_of, taken
from unigen.engines.sites import base_of, support_of
from unigen.evaluate.annealing import Annealing, annealed_log_likelihood, bidirectional_monte_carlo
from unigen.evaluate.boltzmann import boltzmann_log_likelihood, log_partition
from unigen.evaluate.calibration import Calibration, simulation_based_calibration
from unigen.evaluate.classifier import Predictor
from unigen.evaluate.dreams import Samples, sample
from unigen.evaluate.figure import Figure, Refusal, Refused, bits_per_dimension
from unigen.evaluate.latents import check_not_empty, pieces_of, rows_of
from unigen.evaluate.likelihood import (
    bound_figure,
    bound_of,
    enumerated_log_likelihood,
    importance_weighted_curve,
    importance_weighted_sandwich,
    log_importance_weights,
    warning_of_densities,
)
from unigen.evaluate.modes import evaluating
from unigen.evaluate.observation import gaussian_observation_log_likelihood
from unigen.evaluate.pareto import figures_of_k_hat, pareto_k_hat
from unigen.evaluate.posterior import active_units, against_nuts, posterior_gap
from unigen.evaluate.sample_figures import GROUPS
from unigen.evaluate.sample_metrics import sample_metrics
from unigen.pair import Pair, PairError
from unigen.pairs.likelihoods import DiscretizedLogistic
from unigen.pairs.rbm import BoltzmannMachine
from unigen.settings import UsageError
from unigen.streams import isolated

__all__ = ["Examination", "Protocol", "evaluate"]

LEAST = {
    "simulated": 2,
    "calibration": 16,
    "nuts": 2,
    "validation": 2,
    "samples": 2 * GROUPS,
}  # for a figure with an error
MOST_SUMMED = 1024  # joint values of discrete latents that are summed where the pair does not offer it by itself


@dataclass(frozen=True)
class Protocol:
    """What is done to every pair alike; its defaults take a minute or two a pair of MNIST's size on a core.

    ``test``: data for likelihoods and samples. ``particles``: K of the importance-weighted bound, whose curve has the powers of
    ten below. ``annealed``: how many of these data annealing is run on. ``annealing``: how. ``simulated``: data for bounds from
    both sides. ``partition``, ``partition_chains``: of an RBM's annealing. ``calibration``: simulations of the guide's.
    ``nuts``: data whose posteriors NUTS draws, for the guide to be compared with. ``validation``: data that observation noise
    is tuned on. ``samples``: how many. The last five may be 0, for no such figure, as ``nuts`` is where nothing is said.
    Fewer rows than there are stand at equal distances: the first ones are no fair sample of a file that is sorted. Raises
    ``UsageError``, a ``ValueError``, for numbers too small for their figures.
    """

    test: int = 1000
    particles: int = 500
    annealed: int = 100
    annealing: Annealing = field(default_factory=lambda: Annealing(distributions=200, chains=8))
    simulated: int = 50
    partition: int = 5000
    partition_chains: int = 100
    calibration: int = 500
    nuts: int = 0
    validation: int = 50
    samples: int = 1000

    def __post_init__(self) -> None:
        for name in ("test", "particles", "annealed", "partition", "partition_chains"):
            if getattr(self, name) < 1:
                raise UsageError(f"an examination with {name}={getattr(self, name)}; give at least 1")
        for name, least in LEAST.items():
            if getattr(self, name) != 0 and getattr(self, name) < least:
                raise UsageError(
                    f"an examination with {name}={getattr(self, name)}; give at least {least}, or 0 for none"
                )


@dataclass(frozen=True)
class Examination:
    """The figures of a pair, and what was refused; ``samples`` and ``calibration``: what some of the figures are of."""

    figures: tuple[Figure, ...]
    refusals: tuple[Refusal, ...]
    samples: Samples | None = field(default=None, repr=False, compare=False)
    calibration: Calibration | None = field(default=None, repr=False, compare=False)

    def __getitem__(self, name: str) -> Figure:
        """Return the first figure of this name."""
        for figure in self.figures:
            if figure.name == name:
                return figure
        why = next((refusal.why for refusal in self.refusals if refusal.name == name), "no such figure")
        raise KeyError(f"{name}: {why}")

    def as_json(self) -> dict[str, Any]:
        """Return figures and refusals as JSON has them."""
        return {
            "figures": [figure.as_json() for figure in self.figures],
            "refusals": [vars(refusal) for refusal in self.refusals],
        }


def evaluate(
    pair: Pair,
    data: Dataset | Any,
    protocol: Protocol | None = None,
    *,
    validation: Tensor | None = None,
    classifier: Predictor | None = None,
    device: str | torch.device = "cpu",
    quick: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> Examination:
    """Give a trained pair the whole examination: likelihood, posterior and samples, as far as the pair allows.

    data: a ``Dataset``, whose test rows are taken, or data as ``pair.bind`` takes them; figures of samples, which need data
    of the same law, are of a ``Dataset`` only. validation: rows that observation noise is tuned on, by default the
    dataset's. classifier: of the dataset's labels, by default that of its features. device: where the pair is. quick: only what
    takes a second or two, which is no annealing, no simulated data, no calibration, no exact Wasserstein distance and no
    memorization; a likelihood is then of the kind that the pair itself offers. progress: whether to show bars.

    >>> from unigen.pairs import rbm
    >>> bits = torch.bernoulli(torch.full((20, 6), 0.5))
    >>> evaluate(rbm(6, 4), bits)["log p(x)"].kind
    'exact'
    """
    if not isinstance(protocol, Protocol | None):
        kind = type(protocol).__name__
        raise PairError(f"the protocol is a {kind}; data of several arguments are one tuple: evaluate(pair, (x, y))")
    protocol = protocol or Protocol()
    dataset = data if isinstance(data, Dataset) else None
    x = spread(dataset.test, protocol.test).to(device) if dataset else _some(pair, data, protocol.test)[0]
    check_not_empty(pair.bind(x))
    held_out = validation if validation is not None else dataset.validation if dataset else None
    if held_out is not None and not len(held_out):
        held_out = None
    room = _Room(pair, x, held_out, protocol, quick, seed, progress)
    parts: list[tuple[str, Callable[[], Iterator[Figure]]]] = []
    if isinstance(pair.model, BoltzmannMachine):
        parts.append(("log p(x)", room.boltzmann))
    elif pair.likelihood == "none" and quick:
        parts.append(("log p(x)", room.implicit))
    elif pair.likelihood == "none":
        parts += [("log p(x)", room.annealed), ("log p(x) with Gaussian observation noise", room.observation)]
    else:
        if pair.likelihood == "exact" or not quick:
            parts.append(("exact log p(x)", room.exact))
        if pair.likelihood == "bound":
            parts.append(("importance-weighted bounds", room.weighted))
            if not quick:
                parts += [("annealed log p(x)", room.annealed), ("bounds on simulated data", room.both_sides)]
        parts += [("KL(q || posterior)", room.divergence), ("active units", room.active)]
        if not quick:
            parts.append(("calibration", room.calibrated))
            if protocol.nuts:
                parts.append(("guide against NUTS", room.by_nuts))
    if dataset and protocol.samples:
        parts.append(("samples", lambda: room.samples(dataset, classifier)))
    warning_of = cache(partial(warning_of_densities, pair, x))  # once, where there is a likelihood at all
    figures: list[Figure] = []
    refusals: list[Refusal] = []
    for name, part in tqdm(parts, desc="examination", disable=not progress, leave=False):
        try:
            found = list(part())
        except ValueError as refused:  # Refused and PairError among them
            refusals.append(Refusal(name, reason_of(refused)))
            continue
        room.found += found
        figures += [_noted(figure, pair, x, dataset, warning_of) for figure in found]
    if any(figure.kind == "exact" and figure.name == "log p(x)" for figure in figures):
        refusals = [refusal for refusal in refusals if "log p(x)" not in refusal.name]
    else:
        refusals = [refusal for refusal in refusals if refusal.name != "exact log p(x)"]
    return Examination(tuple(figures), tuple(refusals), room.made, room.calibration)


def _some(pair: Pair, data: Any, rows: int) -> tuple[Any, Tensor]:
    """Return rows of data at equal distances, and their numbers; the whole where a batch is one datum, such as a series."""
    named = pair.bind(data)
    total = rows_of(pair, named)
    index = spread(torch.arange(total), rows)
    if len(index) == total or total not in lengths_of(named):
        return data, torch.arange(total)
    return data[index] if isinstance(data, Tensor) else taken(named, total, index), index


def _noted(figure: Figure, pair: Pair, x: Any, dataset: Dataset | None, warning_of: Callable[[bool], str]) -> Figure:
    """Add to a log-likelihood its bits per dimension, and a warning of densities that are none."""
    if figure.name != "ELBO" and not figure.name.startswith("log p(x)"):
        return figure
    if pair.likelihood != "none" and not isinstance(pair.model, BoltzmannMachine):
        warnings = filter(None, (figure.warning, warning_of("simulated" in figure.name)))
        figure = dataclasses.replace(figure, warning="; ".join(warnings))
    return _with_bits(figure, pair, x, dataset)


def _with_bits(figure: Figure, pair: Pair, x: Any, dataset: Dataset | None) -> Figure:
    """Add bits per dimension to a log-likelihood of rows: masses of bits or grey levels, and densities of dequantized ones."""
    if not isinstance(x, Tensor) or x.dim() < 2:
        return figure
    spread = dataset.levels if dataset and dataset.dequantize else None
    if dataset and dataset.levels and not spread and _is_density(pair, x):
        return figure  # a density at the corners of a cube has no bits
    dimension = x[0].numel() if Programs(pair).layout(pair.bind(x)).batched else x.numel()
    bits = bits_per_dimension(figure.value, dimension, spread)
    return dataclasses.replace(figure, bits_per_dimension=bits)


def _is_density(pair: Pair, x: Tensor) -> bool:
    """Say whether the data's log p(x) is of a density, and not of a mass."""
    if isinstance(pair.model, BoltzmannMachine):
        return False
    if pair.likelihood == "none":
        return True
    with torch.no_grad(), isolated(0, x.device), evaluating(pair):
        sites = Programs(pair).run("model", pieces_of(pair, pair.bind(x), 1)[0]).values()
    observed = [site.fn for site in sites if site.observed]
    return not all(support_of(fn).is_discrete or isinstance(base_of(fn), DiscretizedLogistic) for fn in observed)


class _Room:
    """One pair under examination: each method yields figures, or raises ``Refused``."""

    def __init__(
        self,
        pair: Pair,
        x: Any,
        validation: Tensor | None,
        protocol: Protocol,
        quick: bool,
        seed: int,
        progress: bool,
    ) -> None:
        self.pair, self.x, self.validation, self.protocol, self.quick = pair, x, validation, protocol, quick
        self.seed, self.progress = seed, progress
        self.device = device_of(pair.bind(x))
        self.found: list[Figure] = []
        self.rows: Tensor | None = None  # the numbers of the data that were annealed, None where all count
        self.made: Samples | None = None
        self.calibration: Calibration | None = None

    def _known(self, *names: str) -> Figure | None:
        return next((figure for name in names for figure in self.found if figure.name == name), None)

    def implicit(self) -> Iterator[Figure]:
        raise Refused(
            "an implicit model has no density; unigen evaluate DIR anneals one under Gaussian observation noise, by that name"
        )

    def boltzmann(self) -> Iterator[Figure]:
        protocol = self.protocol
        if self.quick and self.pair.likelihood != "exact":
            raise Refused("the partition function of this RBM is not enumerable; unigen evaluate DIR anneals it")
        mean = None if self.validation is None else self.validation.mean(0).to(self.device)
        partition = log_partition(
            self.pair, mean, protocol.partition, protocol.partition_chains, seed=self.seed, progress=self.progress
        )
        yield partition
        yield boltzmann_log_likelihood(self.pair, self.x, partition)

    def exact(self) -> Iterator[Figure]:
        most = 2**16 if self.pair.likelihood == "exact" else MOST_SUMMED
        yield enumerated_log_likelihood(self.pair, self.x, most)

    def weighted(self) -> Iterator[Figure]:
        most = self.protocol.particles
        curve = sorted({1, most, *(k for k in (10, 100, 1000) if k < most)})

        def kept(weights: Tensor) -> Tensor:
            bounds = [bound_of(weights, k) for k in curve]
            return torch.stack([*bounds, pareto_k_hat(weights)] if most >= 25 else bounds)

        found = log_importance_weights(self.pair, self.x, most, self.seed, kept)
        for k, per_datum in zip(curve, found, strict=False):
            yield bound_figure(per_datum, k, most)
        if most >= 25:
            yield from figures_of_k_hat(found[-1], most)

    def annealed(self) -> Iterator[Figure]:
        if self._known("log p(x)") is None:
            x, rows = _some(self.pair, self.x, self.protocol.annealed)
            found = annealed_log_likelihood(self.pair, x, self.protocol.annealing, self.seed, self.progress)
            self.rows = rows
            yield found

    def observation(self) -> Iterator[Figure]:
        if self.validation is None or not self.protocol.validation:
            raise Refused("observation noise is tuned on validation data, which were not given")
        held_out = spread(self.validation, self.protocol.validation).to(self.device)
        x = self.pair.bind(_some(self.pair, self.x, self.protocol.annealed)[0])[self.pair.arguments[0]]
        yield gaussian_observation_log_likelihood(
            self.pair, x, held_out, self.protocol.annealing, seed=self.seed, progress=self.progress
        )

    def both_sides(self) -> Iterator[Figure]:
        n = self.protocol.simulated
        if n < 2:
            raise Refused("no data were to be simulated")
        like, _ = _some(self.pair, self.x, n)
        try:
            yield from bidirectional_monte_carlo(self.pair, like, n, self.protocol.annealing, self.seed, self.progress)
        except Refused:
            yield from importance_weighted_sandwich(self.pair, like, n, self.protocol.particles, self.seed)

    def divergence(self) -> Iterator[Figure]:
        elbo, evidence = self._known("ELBO"), self._known("log p(x)", f"log p(x), K = {self.protocol.particles}")
        if elbo is None:
            weights = log_importance_weights(self.pair, self.x, 100, self.seed)
            (elbo,) = importance_weighted_curve(weights, (1,))
        if evidence is not None:
            yield posterior_gap(evidence, elbo, self.rows)

    def active(self) -> Iterator[Figure]:
        yield active_units(self.pair, self.x, seed=self.seed).figure

    def calibrated(self) -> Iterator[Figure]:
        n = self.protocol.calibration
        if n < 16:
            raise Refused("calibration needs at least 16 simulations, and fewer were asked for")
        like, _ = _some(self.pair, self.x, n)
        self.calibration = simulation_based_calibration(self.pair, like, n, coordinates=16, seed=self.seed)
        yield from self.calibration.figures()

    def by_nuts(self) -> Iterator[Figure]:
        x, _ = _some(self.pair, self.x, self.protocol.nuts)
        yield from against_nuts(self.pair, x, seed=self.seed, progress=self.progress)

    def samples(self, dataset: Dataset, classifier: Predictor | None) -> Iterator[Figure]:
        n = min(self.protocol.samples, len(dataset.test))
        self.made = made = sample(self.pair, n, _some(self.pair, self.x, n)[0], seed=self.seed)
        if not bool(torch.isfinite(made.x).all()):
            raise Refused("some samples are not finite, so they are at no distance from the data")
        permutations = None if self.quick else 200
        found = sample_metrics(
            dataset, made.x.cpu(), classifier=classifier, permutations=permutations, quick=self.quick, seed=self.seed
        )
        yield from found.values()
