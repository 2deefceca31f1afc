"""The latents of a model as one unconstrained vector u, and the density of u: log p(z(u), x) + log |det dz/du|.

Each latent z is Pyro's own ``biject_to(support)`` of its piece of u, applied at its sample statement while the model runs, so
that a support may depend on other latents. The density is that of the whole data set: one number, whatever the plates.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions import Delta, MaskedDistribution, Unit
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution, biject_to

from unigen.datachecks import DataError
from unigen.engines.checks import check_observed, check_real
from unigen.engines.inverses import forget
from unigen.engines.programs import RAISED, swapped
from unigen.engines.sites import Site, base_of, family_of, is_bounded, is_deterministic, log_prob_at, support_of
from unigen.evaluate.modes import evaluating
from unigen.pair import Pair, PairError

__all__ = ["Evaluation", "Unconstrained", "in_double"]

FIRST_RUNS = 10  # tries for a point where the model runs: it may be singular at the middle of its supports


class Evaluation(NamedTuple):
    """The model at one u: log densities by site (the last one of the Jacobian), and values of latent and deterministic sites."""

    densities: dict[str, Tensor]
    values: dict[str, Tensor]

    @property
    def log_density(self) -> Tensor:
        """The sum of the densities, ()."""
        return torch.stack(list(self.densities.values())).sum()


class _Lift(Messenger):
    """Give each latent its value from u, and record the densities; entered outside the model, so after its plates.

    Without u, in the first run, the pieces are found: each is at the middle of its support for the seed 0, or random by another.
    """

    def __init__(self, u: Tensor | None, pieces: Mapping[str, torch.Size], seed: int = 0) -> None:
        super().__init__()
        self.free: dict[str, Tensor] = {}
        self.spread, self.stream = 2.0 * (seed > 0), torch.Generator().manual_seed(seed)
        sizes = [shape.numel() for shape in pieces.values()]
        self.given = {} if u is None else dict(zip(pieces, u.split(sizes), strict=True))
        self.shapes = pieces
        self.densities: dict[str, Tensor] = {}
        self.values: dict[str, Tensor] = {}
        self.log_jacobian = torch.zeros(()) if u is None else u.new_zeros(())

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) or msg["is_observed"]:
            return
        name, fn = msg["name"], msg["fn"]
        if not self.given:
            _check_latent(name, fn, msg["mask"])
        transform = biject_to(support_of(fn))
        shape = torch.Size(transform.inverse_shape(fn.shape()))
        if not self.given:
            free = self.spread * (2 * torch.rand(shape, generator=self.stream) - 1)
        elif name not in self.given or self.shapes[name] != shape:
            raise PairError(
                f"site '{name}' is not in every run of the model with one shape, so its latents are no vector of a fixed "
                "length; give the model the same sample statements whatever their values"
            )
        else:
            free = self.given[name].reshape(shape)
        self.free[name] = free
        value = transform(free)
        self.log_jacobian = self.log_jacobian + transform.log_abs_det_jacobian(free, value).sum()
        msg["value"], msg["done"] = value, True

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        name, fn = msg["name"], msg["fn"]
        if name in self.values or name in self.densities:
            raise PairError(f"site '{name}' is sampled twice by the model; give each sample statement its own name")
        deterministic = is_deterministic(fn)
        if not msg["is_observed"] or deterministic:
            self.values[name] = msg["value"]
        if deterministic:
            return
        for frame in msg["cond_indep_stack"]:
            if frame.full_size is not None and frame.full_size != frame.size:
                raise PairError(
                    f"site '{name}' is in the subsampled plate '{frame.name}', and a posterior needs all of the data; write "
                    f"pyro.plate('{frame.name}', {frame.full_size})"
                )
        if not getattr(fn, "normalized", True):
            raise PairError(
                f"site '{name}' ({family_of(fn)}) has an unnormalized density, which hides how its normalizer depends on the "
                "latents; sample a model of normalized sites"
            )
        if msg["is_observed"] and not self.given and not isinstance(fn, Unit):
            # its shape alone, as of what is masked: a support may move with the latents
            check_observed(Site(name, fn, msg["value"], True, (), msg["scale"], mask=True, auxiliary=False))
        forget(fn)  # data are the same tensor in every run, and latents may be the weights of a flow
        try:
            with _trusted(fn) if self.given or is_bounded(fn) else nullcontext():
                density = scale_and_mask(log_prob_at(fn, msg["value"]), msg["scale"], msg["mask"])
        except PairError:
            raise
        except ValueError as error:
            raise PairError(
                f"site '{name}' has no density at its value: {' '.join(str(error).split())}; check the data for NaN and for "
                "values outside of the support"
            ) from error
        except RuntimeError as error:
            if msg["value"].dtype is torch.bool:  # torch has no arithmetic of it
                raise DataError(f"data '{name}' is a bool tensor; give numbers, as by {name}.double()") from None
            if not isinstance(error, NotImplementedError):
                raise
            raise PairError(
                f"site '{name}' ({family_of(fn)}) is implicit: it has no density to sample by ({str(error) or 'no log_prob'})"
            ) from None
        self.densities[name] = density.sum()


@contextmanager
def _trusted(fn: Any) -> Iterator[None]:
    """Leave out the checks of a distribution that was made outside of the run: they read values."""
    parts = [fn]
    for part in parts:
        parts += [value for value in vars(part).values() if isinstance(value, Distribution)]
    before = [(part, part._validate_args) for part in parts]
    for part in parts:
        part._validate_args = False
    try:
        yield
    finally:
        for part, checks in before:
            part._validate_args = checks


def _check_latent(name: str, fn: Any, mask: Any) -> None:
    """Refuse a latent that no vector of real numbers stands for. A mask of False altogether is a flat density by intent."""
    base = base_of(fn)
    if isinstance(base_of(base.base_dist if isinstance(base, MaskedDistribution) else base), Delta):
        raise PairError(
            f"latent site '{name}' is a point mass (Delta), which is no variable of its own; write "
            f"pyro.deterministic('{name}', value)"
        )
    try:
        support = support_of(fn)
        discrete = support.is_discrete
        if not discrete:
            transform = biject_to(support)
            free = torch.zeros(torch.Size(transform.inverse_shape(fn.shape())))
            transform.log_abs_det_jacobian(free, transform(free))
    except NotImplementedError:
        raise PairError(
            f"site '{name}' ({family_of(fn)}) has a support without a smooth map from the real numbers; register one with "
            "torch.distributions.biject_to, or write the site as a transform of a real one"
        ) from None
    if discrete:
        raise PairError(
            f"site '{name}' ({family_of(fn)}) is discrete, and these samplers move in real numbers; sum it out in the model "
            "(a MixtureSameFamily, or pyro.factor of the logsumexp over its values)"
        )
    for part in (mask, base._mask if isinstance(base, MaskedDistribution) else None):
        if isinstance(part, Tensor) and not bool(part.all()):
            raise PairError(
                f"latent site '{name}' is masked in part, and a masked element has no density to sample by; leave those "
                "elements out of the site, and mask only what is observed"
            )


@contextmanager
def in_double(pair: Pair) -> Iterator[None]:
    """Run a pair in float64 on the CPU: parameters and buffers held fixed, evaluation mode, random streams untouched.

    So too a module that the model wraps in Pyro's handlers, such as ``poutine.condition``, and ``pyro.param``.
    """
    inside: Any = inspect.unwrap(pair.model)
    parts = [pair, Pair(inside)] if inside is not pair.model and isinstance(inside, torch.nn.Module) else [pair]
    store, default = pyro.get_param_store(), torch.get_default_dtype()
    state = store.get_state()
    fixed = {name: _double(value) for name, value in state["params"].items()}
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(store.scope({"params": fixed, "constraints": state["constraints"]}))
        for part in parts:
            tensors = [*part.parameters(), *part.buffers()]
            stack.enter_context(evaluating(part))
            stack.enter_context(swapped(part, {id(tensor): _double(tensor) for tensor in tensors}))
        stack.callback(torch.set_default_dtype, default)
        torch.set_default_dtype(torch.float64)
        yield


def _double(tensor: Any) -> Any:
    if not isinstance(tensor, Tensor):
        return tensor
    tensor = (tensor.clone() if tensor.is_inference() else tensor.detach()).cpu()
    return tensor.double() if tensor.is_floating_point() else tensor


def _required(program: Any) -> list[str]:
    """Return the arguments that a program has no default for."""
    function = program.forward if isinstance(program, torch.nn.Module) else program
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is inspect.Parameter.empty and parameter.kind in named
    ]


class Unconstrained:
    """The latents of ``pair.model`` given data as one vector u of length ``size``; call its methods within ``in_double``.

    ``point``: a u at which the model runs, 0 where it does there.

    Raises ``PairError`` for a model that has no such density: data missing, no latent, discrete, implicit, unnormalized or
    masked sites, a subsampled plate; ``DataError`` for data that a site would have to repeat.
    """

    def __init__(self, pair: Pair, data: Any) -> None:
        self.pair = pair
        data = pair.bind(data)
        given = [name for name, value in data.items() if value is not None]
        for name in _required(pair.model):
            if name not in given:
                raise PairError(
                    f"the model takes data {name!r}, which are missing; got {', '.join(given) or 'none'}, expected "
                    f"{', '.join(pair.arguments)}"
                )
        for name, value in data.items():
            if isinstance(value, Tensor):
                check_real(name, value)
        self.data = {name: _double(value) for name, value in data.items()}
        with torch.no_grad():
            lift = self._first_run()
        self.pieces = {name: free.shape for name, free in lift.free.items()}
        if not self.pieces:
            raise PairError("the model has no latent site: there is no posterior to sample")
        for name in self.pieces:
            if name in pair.arguments:
                raise PairError(f"site '{name}' has no data; give {name!r}")
        if not any(shape.numel() for shape in self.pieces.values()):
            raise PairError(
                f"the latent sites {', '.join(self.pieces)} have no elements: there is no posterior to sample"
            )
        self.point = torch.cat([free.reshape(-1) for free in lift.free.values()])
        self.size = len(self.point)
        self.shapes = {name: value.shape for name, value in lift.values.items()}

    def _first_run(self) -> _Lift:
        """Run the model at the middle of every support or, where it cannot run there, at a few other points."""
        errors = []
        for seed in range(FIRST_RUNS):
            try:
                return self._run(None, seed)
            except (PairError, DataError):
                raise
            except RAISED as error:
                errors.append(error)
        reason = " ".join(str(errors[0]).split()) or type(errors[0]).__name__
        remedy = "check the data for NaN and for values outside of their sites' supports"
        if "dtype" in reason or "scalar type" in reason:
            remedy = "hold its tensors as parameters or buffers, or make them float64"
        elif any(isinstance(value, Tensor) and not value.numel() for value in self.data.values()):
            remedy = "give at least one datum"
        raise PairError(f"the model cannot run on these data in float64: {reason}; {remedy}") from errors[0]

    def _run(self, u: Tensor | None, seed: int = 0) -> _Lift:
        with _Lift(u, getattr(self, "pieces", {}), seed) as lift:
            self.pair.model(**self.data)
        return lift

    def evaluate(self, u: Tensor) -> Evaluation:
        """Run the model at u, (size,)."""
        lift = self._run(u)
        return Evaluation({**lift.densities, "the change of variables": lift.log_jacobian}, lift.values)

    def log_density(self, u: Tensor) -> Tensor:
        """Return log p(z(u), x) + log |det dz/du|, ()."""
        return self.evaluate(u).log_density

    def values(self, u: Tensor) -> Tensor:
        """Return the values of latent and deterministic sites at u, one after the other as ``shapes`` says."""
        return torch.cat([value.reshape(-1).to(u.dtype) for value in self.evaluate(u).values.values()])

    def split(self, values: Tensor) -> dict[str, Tensor]:
        """Cut what ``values`` returns, (..., M), by site: (..., *shape)."""
        columns = values.split([shape.numel() for shape in self.shapes.values()], -1)
        named = zip(self.shapes.items(), columns, strict=True)
        return {name: column.reshape(*values.shape[:-1], *shape) for (name, shape), column in named}
