"""The continuous latents of a pair as one unconstrained vector u, (S, N, d): S chains for each of N data.

Samplers move u; ``LatentSpace`` runs the pair's programs there. A density in u is that of the values plus the log of the
Jacobian of u -> values, per datum.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import biject_to

from unigen.datachecks import DataError
from unigen.engines.checks import check_observed
from unigen.engines.draw import Draw, check_local
from unigen.engines.probes import check_masks, check_particles, mixed_rows
from unigen.engines.programs import (
    RAISED,
    Programs,
    device_of,
    in_evaluation_mode,
    lengths_of,
    reason_of,
    swapped,
    taken,
)
from unigen.engines.pure import unvalidated
from unigen.engines.sites import Site, check_sampler, family_of, log_prob_at, support_of
from unigen.evaluate.figure import Refused
from unigen.evaluate.modes import evaluating
from unigen.pair import Pair, PairError
from unigen.streams import isolated

__all__ = [
    "LatentSpace",
    "check_densities",
    "check_not_empty",
    "check_observations",
    "check_runs",
    "columns_of",
    "frozen",
    "observations",
    "pieces_of",
    "recycled",
    "rows_of",
]


@contextlib.contextmanager
def frozen(pair: Pair, seed: int, device: torch.device | str) -> Iterator[None]:
    """Evaluate: random streams of their own, evaluation mode, no parameter takes part in a gradient, no checks of values."""
    fixed = {id(parameter): parameter.detach() for parameter in pair.parameters()}
    with isolated(seed, device), evaluating(pair), swapped(pair, fixed), unvalidated():
        yield


def check_not_empty(data: Mapping[str, Any]) -> None:
    """Refuse data of no rows, of which every figure would be a mean of nothing."""
    if 0 in lengths_of(data):
        raise Refused(f"the data have no rows ({', '.join(data)}); give at least one")


@torch.no_grad()
def rows_of(pair: Pair, data: Mapping[str, Any]) -> int:
    """Return how many data there are: the size of the batch plate, or 1 for a pair that is one datum. Refused for none."""
    check_not_empty(data)
    programs, lengths = Programs(pair), set(lengths_of(data))
    if not programs.layout(data).batched:
        return 1
    if len(lengths) == 1:
        return lengths.pop()
    with isolated(0, device_of(data)), in_evaluation_mode(pair):  # arguments of several lengths: the plate says which
        sites = [*programs.run("guide", data).values(), *programs.run("model", data).values()]
    return int(next(frame.size for site in sites for frame in site.frames if frame.name == pair.batch_plate))


def pieces_of(pair: Pair, data: Mapping[str, Any], rows: int) -> list[dict[str, Any]]:
    """Cut a batch into pieces of at most ``rows`` data; a tensor without one row a datum goes whole into each.

    Programs that run on the whole alone, as an autoguide that has a parameter for each datum, get it in one piece, and so do
    those whose data are no argument.
    """
    total = rows_of(pair, data)
    if total <= rows or total not in lengths_of(data):
        return [dict(data)]
    pieces = [taken(data, total, slice(start, start + rows)) for start in range(0, total, rows)]
    try:
        check_runs(pair, pieces[0])
    except PairError:
        return [dict(data)]
    return pieces


@torch.no_grad()
def check_runs(pair: Pair, data: dict[str, Any]) -> dict[str, dict[str, Site]]:
    """Return the sites of the guide on these data, and of the model at its values; ``PairError`` where they cannot run."""
    found: dict[str, dict[str, Site]] = {}
    programs = Programs(pair)
    for which in ("guide", "model"):
        try:
            with isolated(0, device_of(data)), in_evaluation_mode(pair):
                values = {name: site.value for name, site in found.get("guide", {}).items() if site.latent}
                found[which] = programs.run(which, data, values=values)
        except PairError:
            raise
        except RAISED as error:
            what = f"{next(iter(lengths_of(data)), 1)} rows of data" + " and the guide's values" * (which == "model")
            raise PairError(f"the {which} cannot run on {what}: {reason_of(error)}") from error
    return found


def columns_of(site: Site, batch_plate: str | None, value: Tensor | None = None) -> Tensor:
    """Return a site's value as columns: (S, N, d), or (N, d) without particles, (S, d) or (d,) for a pair of one datum."""
    places = _places(site, batch_plate)
    value = site.value if value is None else value
    moved = value.movedim(places, tuple(range(len(places))))
    return moved.reshape(*moved.shape[: len(places)], -1)


def _places(site: Site, batch_plate: str | None) -> tuple[int, ...]:
    """Return the dimensions of the value that hold particles and data, counted from its end."""
    by_name = {frame.name: frame.dim for frame in site.frames}
    return tuple(by_name[name] - len(site.fn.event_shape) for name in ("_particles", batch_plate) if name in by_name)


def recycled(pair: Pair, data: dict[str, Any], first: int, rows: int) -> dict[str, Any]:
    """Return data of so many rows from the ``first`` on, over and over; those of a pair of one datum as they are."""
    total = rows_of(pair, data)
    if not Programs(pair).layout(data).batched:
        return data
    return taken(data, total, (first + torch.arange(rows, device=device_of(data))) % total)


def check_densities(pair: Pair, data: dict[str, Any]) -> dict[str, Any]:
    """Refuse a pair with a site whose log density is scaled, as to anneal a KL term, or is not of one datum and particle.

    Returns the first rows, which it has looked at.
    """
    some = pieces_of(pair, data, 100)[0]
    programs, rows = Programs(pair), rows_of(pair, some)
    for which, sites in check_runs(pair, some).items():
        for site in sites.values():
            if site.weightless:
                continue
            if programs.layout(some).batched:
                check_local(site, pair.batch_plate)
            scale = torch.as_tensor(site.scale)
            if bool((scale != 1).any()):
                raise Refused(
                    f"the log density of site '{site.name}' in the {which} is scaled by {scale.flatten()[0].item():g}, as by "
                    "poutine.scale or a subsampled plate, so the joint density is not that of a distribution and has no "
                    "log p(x); evaluate with a scale of 1"
                )
            _check_rows(site, pair.batch_plate, rows)
    check_masks(programs, some)
    check_particles(programs, some)
    if mixed := mixed_rows(programs, some):
        raise Refused(mixed)
    return some


def observations(pair: Pair, data: Mapping[str, Any]) -> Iterator[Site]:
    """Yield the model's sites that have data, of one piece of the data after the other."""
    for piece in pieces_of(pair, data, 1000):
        yield from (site for site in check_runs(pair, piece)["model"].values() if site.observed)


@torch.no_grad()
def check_observations(pair: Pair, data: Mapping[str, Any]) -> None:
    """Refuse data, in whichever row, that their distribution cannot take (``DataError``)."""
    for site in observations(pair, data):
        check_observed(site)
        try:
            log_prob_at(site.fn, site.value)
        except ValueError as error:
            raise DataError(
                f"data '{site.name}' have values that their distribution refuses, also where a mask leaves them out; put others "
                "there, as x.nan_to_num() does"
            ) from error


def _check_rows(site: Site, batch_plate: str | None, rows: int) -> None:
    """Refuse data whose rows are not along their first dimension, as those of sequences with time first."""
    for frame in site.frames:
        if frame.name == batch_plate and frame.size not in (rows, 1):
            raise Refused(
                f"site '{site.name}' is of {frame.size} data, by the plate {frame.name!r}, but the data have {rows} rows; "
                "evaluation finds a datum in each row, along the first dimension, so give them so and let the programs transpose"
            )


class _Part(NamedTuple):
    """One latent site within u: its transform, the shape of its unconstrained value, and where chains and data are in it."""

    name: str
    transform: Any
    shape: torch.Size
    places: tuple[int, ...]
    size: int


class LatentSpace:
    """The latents of a pair for ``chains`` S a datum of ``data``, the model's arguments by name.

    Refused for discrete sites, and for sites whose support depends on other sites. Call within ``frozen``.
    """

    def __init__(self, pair: Pair, data: dict[str, Any], chains: int) -> None:
        self.pair, self.data, self.chains = pair, data, chains
        self.programs = Programs(pair)
        self.rows = rows_of(pair, data)
        self._draw = Draw(self.programs, data, particles=chains, first="guide")
        with torch.no_grad():
            sites = self.programs.run("model", data, particles=chains)
        self._prior = [site for site in sites.values() if not site.observed]
        if not self._prior:
            raise Refused("this pair has no latent to move: its likelihood is exact, or not to be had")
        for site in self._prior:
            check_continuous(site)
        self.parts = [self._part(site) for site in self._prior]
        self.size = sum(part.size for part in self.parts)

    def _part(self, site: Site) -> _Part:
        places = _places(site, self.pair.batch_plate)
        transform = biject_to(support_of(site.fn))
        unconstrained = transform.inv(site.value)
        # an event of another shape than its value's (a simplex) keeps the dimensions of its batch where they are
        places = tuple(place + site.value.dim() - unconstrained.dim() for place in places)
        shape = unconstrained.shape
        return _Part(site.name, transform, shape, places, unconstrained.numel() // (self.chains * self.rows))

    @property
    def names(self) -> list[str]:
        """The latent sites, in the order of u."""
        return [part.name for part in self.parts]

    def labels(self) -> list[str]:
        """Return a name for each coordinate of u: ``z[0]``, or ``z`` where the site has one."""
        return [
            part.name if part.size == 1 else f"{part.name}[{index}]"
            for part in self.parts
            for index in range(part.size)
        ]

    def pack(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return u (S, N, d) of values by site, each with its chains and data."""
        columns = []
        for part in self.parts:
            u = part.transform.inv(values[part.name]).expand(part.shape)
            columns.append(u.movedim(part.places, tuple(range(len(part.places)))).reshape(self.chains, self.rows, -1))
        return torch.cat(columns, -1)

    def unpack(self, u: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the values by site and log |det d values / d u|, (S, N), at u (S, N, d)."""
        values, log_jacobian = {}, u.new_zeros(u.shape[:2])
        for part, column in zip(self.parts, u.split([part.size for part in self.parts], -1), strict=True):
            front = tuple(range(len(part.places)))
            moved = torch.empty(part.shape, device="meta").movedim(part.places, front).shape
            free = column.reshape(moved).movedim(front, part.places)
            values[part.name] = part.transform(free)
            jacobian = part.transform.log_abs_det_jacobian(free, values[part.name])
            summed = free.dim() - jacobian.dim()  # dimensions of the event, which the transform has summed over
            jacobian = jacobian.movedim(tuple(place + summed for place in part.places), front)
            log_jacobian = log_jacobian + jacobian.reshape(*u.shape[:2], -1).sum(-1)
        return values, log_jacobian

    def from_prior(self) -> Tensor:
        """Draw u (S, N, d) from the model's prior."""
        return self._drawn("model")

    def from_guide(self) -> Tensor:
        """Draw u (S, N, d) from the guide."""
        return self._drawn("guide")

    def _drawn(self, which: str, exactly: bool = True) -> Tensor:
        with torch.no_grad():
            sites = self.programs.run(which, self.data, particles=self.chains)
            if exactly:
                check_sampler(site for site in sites.values() if not site.observed)
            return self.pack({name: sites[name].value for name in self.names})

    def has_guide(self) -> bool:
        """Say whether the guide infers the latents of the model, and has a density at values that are not its own samples."""
        with torch.random.fork_rng(devices=[d for d in [device_of(self.data)] if d.type == "cuda"]), torch.no_grad():
            sites = self.programs.run("guide", self.data).values()
            if {site.name for site in sites if site.latent} != set(self.names):
                return False
            try:
                return bool(torch.isfinite(self.log_guide(self._drawn("model", exactly=False))).all())
            except PairError:  # a flow without an inverse, or an autoguide
                return False

    def log_model(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(u) and log p(x|u), each (S, N)."""
        values, log_jacobian = self.unpack(u)
        sites = self.programs.run("model", self.data, values=values, particles=self.chains, grad=True)
        prior, likelihood = log_jacobian, torch.zeros_like(log_jacobian)
        for site in sites.values():
            if site.weightless:
                continue
            density = self._draw.per_datum(site, site.value).reshape(u.shape[:2])
            if site.observed:
                likelihood = likelihood + density
            else:
                prior = prior + density
        return prior, likelihood

    def log_guide(self, u: Tensor) -> Tensor:
        """Return log q(u|x), (S, N)."""
        values, total = self.unpack(u)
        for site in self.programs.run("guide", self.data, values=values, particles=self.chains, grad=True).values():
            if not (site.weightless or site.observed):
                total = total + self._draw.per_datum(site, site.value).reshape(u.shape[:2])
        return total


def check_continuous(site: Site) -> None:
    """Refuse a latent site in which a gradient cannot move: discrete, or of a support with no one map from the real numbers."""
    support = support_of(site.fn)
    if support.is_discrete:
        raise Refused(
            f"site '{site.name}' ({family_of(site.fn)}) is discrete, and annealed importance sampling here moves by "
            "Hamiltonian dynamics; the importance-weighted bound stands in its place"
        )
    try:
        biject_to(support)
    except NotImplementedError:
        raise Refused(
            f"site '{site.name}' ({family_of(site.fn)}) has a support without a smooth map from the real numbers; register one "
            "with torch.distributions.biject_to, or read the importance-weighted bound"
        ) from None
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    for bound in vars(support).values():
        if isinstance(bound, Tensor) and not bool((bound == bound.flatten()[0]).all()):
            raise Refused(
                f"the support of site '{site.name}' is not the same everywhere, so it has no one unconstrained form; "
                "scale a standard site inside the program, or read the importance-weighted bound"
            )
