"""Reference posteriors: NumPyro's samplers on the density of any explicit pair or Pyro model, p(z | x) ∝ p(z, x).

The model is run once by torch, lowered to JAX (``unigen.engines.lowering``) in float64, and sampled in unconstrained space:
no second copy of it is written. Samplers: ``nuts`` (Hoffman & Gelman 2014), ``hmc`` (Duane et al. 1987; Neal 2011), and two
without gradient, whose chains are the walkers of one ensemble: ``aies`` (stretch moves, Goodman & Weare 2010, and
differential evolution, ter Braak 2006) and ``ess`` (ensemble slice sampling, Karamanis & Beutler 2021), all as NumPyro has
them (Phan, Pradhan & Jankowiak 2019). R-hat and effective sample sizes: Vehtari et al. 2021, by ArviZ.
"""

from __future__ import annotations

import importlib
import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

import numpy
import torch
from torch import Tensor

from unigen.datachecks import integer
from unigen.names import nearest
from unigen.pair import Pair, PairError, Unsupported

__all__ = ["SAMPLERS", "Posterior", "sample"]

SAMPLERS = ("nuts", "hmc", "aies", "ess")
ENSEMBLES = ("aies", "ess")
# options of NumPyro that are decided here
RESERVED = ("model", "potential_fn", "init_strategy", "randomize_split", "forward_mode_differentiation")
STARTS = 100  # tries for a start of finite density, as Stan has them


@dataclass(frozen=True, eq=False)
class Posterior:
    """Draws from p(z | x), and what they are worth.

    ``draws``: by site, latent and deterministic, float64 (chains, draws, *shape). ``rhat``, ``ess``, ``ess_tail``: by site,
    (*shape): rank-normalized split R-hat (NaN for one chain), bulk and tail effective sample size; all NaN for a constant.
    ``diverging``: (chains, draws), which transitions of nuts or hmc left the energy's level; None for an ensemble.
    """

    sampler: str
    draws: Mapping[str, Tensor]
    rhat: Mapping[str, Tensor]
    ess: Mapping[str, Tensor]
    ess_tail: Mapping[str, Tensor]
    diverging: Tensor | None = None

    @property
    def divergences(self) -> int:
        """How many transitions diverged: any at all means that a part of the posterior may be missing."""
        return 0 if self.diverging is None else int(self.diverging.sum())

    def to_arviz(self) -> Any:
        """Return the draws, and which diverged, as ``arviz.InferenceData``."""
        return _inference_data(self.draws, self.diverging)

    def __str__(self) -> str:
        rhat, ess = (
            [value for site in by_site.values() for value in site.flatten().tolist() if not math.isnan(value)]
            for by_site in (self.rhat, self.ess)
        )
        chains, draws = next(iter(self.draws.values())).shape[:2]
        constant = [name for name, value in self.draws.items() if bool(_constant(value).any())]
        return (
            f"{self.sampler}: {chains} chains of {draws} draws, R-hat at most {max(rhat, default=math.nan):.4f}, "
            f"ESS at least {min(ess, default=math.nan):.0f}, {self.divergences} divergences"
            + f"; constant, in part or whole: {', '.join(constant)}"
            * bool(constant)
        )


@torch.inference_mode(False)
def sample(
    model: Pair | Callable[..., Any],
    data: Any = (),
    *,
    sampler: str = "nuts",
    chains: int | None = None,
    warmup: int = 1000,
    draws: int = 1000,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> Posterior:
    """Draw from p(z | x) ∝ p(z, x), every parameter held fixed, and return the draws by site.

    Arguments:
        model: a pair (its model is sampled; the guide is not read) or any Pyro model, whose latents may be global or in
            plates, real or constrained (by Pyro's ``biject_to``); the latents of all data given are sampled jointly.
        data: the model's arguments: a tensor, a tuple in order, or a dict by name; the whole data set, not a batch of it.
        sampler: ``"nuts"``, ``"hmc"``, ``"aies"`` or ``"ess"``.
        chains: 4 where not given; for an ensemble, its walkers: an even number, at least and by default twice the number
            of dimensions + 2. Walkers depend on each other, so that their R-hat and ESS are too good by some.
        warmup: transitions before the first draw, in which step sizes and mass matrices are adapted.
        draws: draws a chain.
        seed: of a random stream of its own; torch's streams stay as they are.
        progress: whether to show a bar.
        options: of NumPyro's kernel, such as ``target_accept_prob=0.95`` or ``dense_mass=True``.

    Returns a ``Posterior``. A divergence, or R-hat above 1.01, says that the draws are not to be trusted.

    Raises ``PairError`` for a model without such a density (a discrete, implicit, unnormalized or partly masked site, data
    missing, a subsampled plate, an operation that cannot be lowered, no start of finite density); ``ValueError`` for data of
    another shape than their site and for other arguments; ``ImportError`` where ArviZ is missing.

    >>> import pyro, pyro.distributions as dist
    >>> def model(x):
    ...     w = pyro.sample("w", dist.Normal(0.0, 1.0))
    ...     with pyro.plate("rows", len(x)):
    ...         pyro.sample("x", dist.Normal(w, 0.5), obs=x)
    >>> posterior = sample(model, torch.ones(6), warmup=200, draws=500)  # p(w | x) = N(0.96, 0.2^2)
    >>> posterior.draws["w"].shape, abs(float(posterior.draws["w"].mean()) - 0.96) < 0.1
    (torch.Size([4, 500]), True)
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler={sampler!r}: {nearest(sampler, SAMPLERS)}")
    warmup, draws = integer("warmup", warmup, 0), integer("draws", draws, 4)
    seed = integer("seed", seed, 0, 2**63 - 1)
    jax, kernels = _needed("jax"), _needed("numpyro.infer", "numpyro")
    _needed("arviz")
    kernel = getattr(kernels, sampler.upper())
    known = set(inspect.signature(kernel.__init__).parameters) - {"self", *RESERVED}
    for name in options:
        if name not in known:
            raise ValueError(f"{sampler} has no option {name!r}; {nearest(name, known)}")
    _check_options(options)

    from unigen.engines.lowering import lower, precision
    from unigen.engines.tape import EAGERLY, ELSEWHERE
    from unigen.engines.unconstrained import Unconstrained, in_double

    pair = model if isinstance(model, Pair) else Pair(model)
    with in_double(pair), precision():
        latents = Unconstrained(pair, data)
        dimensions = {f"{name}_dim_{i}" for name, shape in latents.shapes.items() for i in range(len(shape))}
        for name in {"chain", "draw", *dimensions} & latents.shapes.keys():
            raise PairError(f"site '{name}' has the name of a dimension of the draws; give it another")
        try:
            log_density, values = lower(latents.log_density, latents.point), lower(latents.values, latents.point)
        except Unsupported as error:
            reason = str(error)
            for remedy in (ELSEWHERE, EAGERLY):  # of training; there is no other sampler
                reason = reason.removesuffix(remedy).removesuffix(", or ").removesuffix("; ")
            raise Unsupported(reason) from error

    chains = _chains(chains, sampler, latents.size)
    options = _mass_matrix(options, latents.size)
    with precision():
        first, second = jax.random.split(jax.random.key(seed))
        start = _start(log_density, chains, latents.size, first)
        if start is None:
            with in_double(pair), torch.no_grad():
                found = latents.evaluate(latents.point).densities
            bad = [f"'{name}' ({float(value):g})" for name, value in found.items() if not bool(value.isfinite())]
            where = f"; where the model was run first it is not finite at {', '.join(bad)}" if bad else ""
            raise PairError(
                f"the log density has no finite value and gradient at {STARTS} random starts{where}; check the data for NaN "
                "and for values outside of their sites' supports"
            )

        @jax.jit  # NumPyro starts chains outside of jit, where each operation of the density would be compiled by itself
        def potential(u: Any) -> Any:
            return -log_density(u)

        run = _run_ensemble if sampler in ENSEMBLES else _run_chains
        u, diverging = run(kernels, sampler, potential, options, start, chains, warmup, draws, second, progress)
        flat = jax.jit(partial(jax.lax.map, values, batch_size=256))(u.reshape(-1, latents.size))
        drawn = torch.tensor(jax.device_get(flat)).reshape(chains, draws, -1)
    by_site = {name: value.contiguous() for name, value in latents.split(drawn).items()}
    divergent = None if diverging is None else torch.tensor(jax.device_get(diverging))
    rhat, ess, ess_tail = _diagnostics(by_site)
    return Posterior(sampler, by_site, rhat, ess, ess_tail, divergent)


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuse options with which a kernel would fail, or never move."""
    numbers = {"target_accept_prob": 1.0, "step_size": math.inf, "trajectory_length": math.inf, "init_mu": math.inf}
    given = {k: v for k, v in options.items() if v is not None or k not in ("trajectory_length", "num_steps")}
    for name in numbers.keys() & given.keys():
        value, high = given[name], numbers[name]
        if not (isinstance(value, Real) and 0 < float(value) < high):
            limits = "above 0 and below 1" if high == 1 else "above 0"
            raise ValueError(f"{name} is {value!r}, expected a number {limits}.")
    for name in {"num_steps", "max_steps", "max_iter"} & given.keys():
        integer(name, given[name], 1)
    depths = options.get("max_tree_depth", 1)
    for depth in depths if isinstance(depths, tuple) else (depths,):
        integer("max_tree_depth", depth, 1)
    if not isinstance(options.get("dense_mass", False), bool):
        raise ValueError(
            f"dense_mass is {options['dense_mass']!r}, expected True or False: all latents are one vector here."
        )
    if not callable(options.get("kinetic_fn") or abs):
        raise ValueError(f"kinetic_fn is {options['kinetic_fn']!r}, expected a function.")
    moves = options.get("moves") or {abs: 1.0}
    weights = list(moves.values()) if isinstance(moves, dict) and all(map(callable, moves)) else []
    if not any(weights) or not all(isinstance(weight, Real) and 0 <= float(weight) < math.inf for weight in weights):
        raise ValueError(f"moves is {moves!r}, expected a dict from NumPyro's moves of this sampler to their weights.")


def _mass_matrix(options: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Return the options with the inverse mass matrix, where one is given, as float64; refuse one that is none."""
    given, dense = options.get("inverse_mass_matrix"), options.get("dense_mass", False)
    if given is None:
        return dict(options)
    try:
        matrix = numpy.asarray(given, dtype=float)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"inverse_mass_matrix is {given!r}, expected an array of numbers.") from None
    expected = (size, size) if dense else (size,)
    if matrix.shape != expected:
        raise ValueError(
            f"inverse_mass_matrix has shape {matrix.shape}, expected an array {expected}, by dense_mass={dense}: all latents are "
            "one vector here."
        )
    finite = numpy.isfinite(matrix).all() and (not dense or numpy.allclose(matrix, matrix.T))
    if not finite or (numpy.linalg.eigvalsh(matrix) if dense else matrix).min() <= 0:
        kind = "a symmetric matrix that is positive definite" if dense else "numbers above 0"
        raise ValueError(f"inverse_mass_matrix is {given!r}, expected {kind}.")
    return {**options, "inverse_mass_matrix": matrix}


def _needed(module: str, package: str = "") -> Any:
    """Import a library that only this file needs."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # ArviZ announces its next version once a day
            return importlib.import_module(module)
    except ImportError as error:
        package = package or module
        raise ImportError(
            f"reference posteriors need {package}, which cannot be imported ({error}): install unigen with its extra, .[reference]"
        ) from error


def _chains(chains: int | None, sampler: str, size: int) -> int:
    """Return the number of chains, or of an ensemble's walkers."""
    if sampler not in ENSEMBLES:
        return 4 if chains is None else integer("chains", chains, 1)
    least = 2 * size + 2
    chains = least if chains is None else integer("chains", chains, 1)
    if chains < least or chains % 2:
        raise ValueError(
            f"chains={chains}: {sampler} moves one half of its walkers by the other, so {size} dimensions need an even "
            f"number of at least {least}"
        )
    return chains


def _start(log_density: Any, chains: int, size: int, key: Any) -> Any:
    """Return starts in (-2, 2) of unconstrained space, (chains, size), with finite density and gradient, or None."""
    import jax
    import jax.numpy as jnp

    @jax.jit
    def usable(u: Any) -> Any:
        value, slope = jax.vmap(jax.value_and_grad(log_density))(u)
        return jnp.isfinite(value) & jnp.isfinite(slope).all(-1)

    start = jnp.zeros((chains, size))
    done = jnp.zeros(chains, bool)
    for number in range(STARTS):
        proposal = jax.random.uniform(jax.random.fold_in(key, number), (chains, size), minval=-2.0, maxval=2.0)
        start, done = jnp.where(done[:, None], start, proposal), done | usable(proposal)
        if bool(done.all()):
            return start
    return None


def _run_chains(
    kernels: Any,
    sampler: str,
    potential: Any,
    options: Mapping[str, Any],
    start: Any,
    chains: int,
    warmup: int,
    draws: int,
    key: Any,
    progress: bool,
) -> tuple[Any, Any]:
    """Run independent chains and return u (chains, draws, size) and which transitions diverged (chains, draws)."""
    how: dict[str, Any] = dict(options)
    if sampler == "hmc":  # NumPyro's 2 pi takes a Gaussian once around, back to where it started
        how.setdefault("trajectory_length", None if "num_steps" in how else math.pi / 2)
    kernel = getattr(kernels, sampler.upper())(potential_fn=potential, **how)
    mcmc = kernels.MCMC(
        kernel,
        num_warmup=warmup,
        num_samples=draws,
        num_chains=chains,
        chain_method="vectorized",
        progress_bar=progress,
    )
    mcmc.run(key, init_params=start if chains > 1 else start[0])
    diverging = mcmc.get_extra_fields(group_by_chain=True)["diverging"]
    return mcmc.get_samples(group_by_chain=True), diverging


def _run_ensemble(
    kernels: Any,
    sampler: str,
    potential: Any,
    options: Mapping[str, Any],
    start: Any,
    chains: int,
    warmup: int,
    draws: int,
    key: Any,
    progress: bool,
) -> tuple[Any, Any]:
    """Run the walkers of one ensemble and return u (walkers, draws, size).

    Walkers keep their places: split at random, as NumPyro's slice sampler does, they would change chains at every step, and
    R-hat and ESS would say nothing. The slice sampler's scale stays what it is at the end of the warmup: tuned on by every
    state, as NumPyro would, it would leave another distribution invariant.
    """
    import jax

    how: dict[str, Any] = {**options, "randomize_split": False}
    if sampler == "aies" and "moves" not in how:
        how["moves"] = {kernels.AIES.DEMove(): 0.5, kernels.AIES.StretchMove(): 0.5}
    first, second = jax.random.split(key)
    common = {"num_chains": chains, "chain_method": "vectorized", "progress_bar": progress, "num_warmup": 0}
    if warmup:
        mcmc = kernels.MCMC(_ensemble(kernels, sampler, potential, how), num_samples=warmup, **common)
        mcmc.run(first, init_params=start)
        start = mcmc.last_state.z
        if sampler == "ess":
            how["init_mu"] = float(mcmc.last_state.inner_state.mu)
    if sampler == "ess":
        how["tune_mu"] = False
    mcmc = kernels.MCMC(_ensemble(kernels, sampler, potential, how), num_samples=draws, **common)
    mcmc.run(second, init_params=start)
    return mcmc.get_samples(group_by_chain=True), None


def _ensemble(kernels: Any, sampler: str, potential: Any, options: Mapping[str, Any]) -> Any:
    return getattr(kernels, sampler.upper())(potential_fn=potential, **options)


def _inference_data(draws: Mapping[str, Tensor], diverging: Tensor | None = None) -> Any:
    arviz = _needed("arviz")
    statistics = {} if diverging is None else {"diverging": diverging.numpy()}
    return arviz.from_dict(
        posterior={name: value.numpy() for name, value in draws.items()}, sample_stats=statistics or None
    )


def _constant(draws: Tensor) -> Tensor:
    """Say which elements of (chains, draws, *shape) have one value in all draws, (*shape)."""
    return (draws == draws[:1, :1]).flatten(0, 1).all(0)


def _diagnostics(draws: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Return R-hat, bulk and tail ESS by site."""
    arviz = _needed("arviz")
    inference = _inference_data(draws)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "invalid value encountered", RuntimeWarning
        )  # R-hat of an element that is constant
        found = (arviz.rhat(inference), arviz.ess(inference), arviz.ess(inference, method="tail"))
    return [
        {name: torch.tensor(part[name].values).where(~_constant(value), math.nan) for name, value in draws.items()}
        for part in found
    ]
