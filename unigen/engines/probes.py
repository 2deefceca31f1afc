"""Run the two programs once more, to see what no shape tells: whether dreams are of the model, and particles or data mix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from pyro.distributions import Delta, MaskedDistribution
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import constraints

from unigen.engines.programs import RAISED, Programs, device_of, in_evaluation_mode, lengths_of, taken
from unigen.engines.sites import Site, base_of, check_sampler, element_support, family_of
from unigen.pair import PairError
from unigen.streams import isolated

__all__ = [
    "check_data_first",
    "check_dreams",
    "check_enumerable",
    "check_masks",
    "check_particles",
    "check_values",
    "mixed_rows",
]

PARTICLES = 2


@torch.no_grad()
def check_dreams(programs: Programs, data: Mapping[str, Any]) -> None:
    """Refuse a model whose dreams depend on the data that they stand in for: they are not of its joint density.

    Dreamt twice from the same random numbers, on the data and on the first dream, x is the same. A program that dreams other
    rows than it is given, as an adversarial pair adds generated ones, is left out. Where a site observes something else than the
    argument of its name, such as its logarithm, a dream would take the place of what it is no draw of.
    """
    with isolated(0, device_of(data)):
        sites = programs.run("model", data)
    check_sampler(sites.values())
    for name, site in sites.items():
        if site.observed and isinstance(data.get(name), Tensor) and not _observes(site, data[name]):
            raise PairError(
                f"site '{name}' observes something else than the argument '{name}', so that what the model draws is on another "
                "scale than the data that it stands in for; transform the data before they are given, or the distribution (by "
                "dist.TransformedDistribution), or use routines without a sleep phase (vae, iwae, "
                "reweighted_wake_sleep(sleep=False))"
            )
    with isolated(0, device_of(data)):
        dreamt = programs.dream(data)
    same = {name: value for name, value in dreamt.items() if value.shape == getattr(data[name], "shape", None)}
    with isolated(0, device_of(data)):
        again = programs.dream({**data, **same}) if same else {}
    for name, value in same.items():
        if not _close(value, again[name]):
            raise PairError(
                f"what the model draws for '{name}' depends on the data, so it is no draw of p(z, x): a decoder is given the "
                "true values (teacher forcing), or an argument is read where its sample statement's value is meant; give the "
                "site a distribution that samples step by step, read what sample statements return, or use routines without "
                "a sleep phase (vae, iwae, reweighted_wake_sleep(sleep=False))"
            )


def _observes(site: Site, given: Tensor) -> bool:
    """Say whether a site's value is that of the argument; what a mask may leave out of its density can be another."""
    if site.value.shape != given.shape:
        return False
    masked = site.mask is not None or isinstance(base_of(site.fn), MaskedDistribution)
    return masked or _close(site.value, given.to(site.value.dtype))


@torch.no_grad()
def check_data_first(programs: Programs, data: Mapping[str, Any], objective: str) -> None:
    """Refuse a model whose y is not 1 in the first half of the plate and 0 in the second, as objectives of two halves want."""
    with isolated(0, device_of(data)):
        y = programs.run("model", data)["y"].value
    if not bool(((y > 0.5) == (torch.arange(y.shape[-1], device=y.device) < y.shape[-1] // 2)).all()):
        raise PairError(
            f"{objective} takes the first half of the plate for data and the second for samples, where y is not 1 and 0; draw y "
            "from Stratified (unigen.pairs.likelihoods), or use gan, wgan or f_gan"
        )


@torch.no_grad()
def check_particles(programs: Programs, data: Mapping[str, Any]) -> None:
    """Refuse a program in which particles meet: where one of two has another density beside the other than it has alone."""
    parts = [partial(torch.select, index=particle) for particle in range(PARTICLES)]
    for which, name in _another_density(programs, data, data, ("_particles", PARTICLES), PARTICLES, parts):
        raise PairError(
            f"site '{name}' of the {which} has another density beside a second particle than alone, because the program "
            "mixes particles, which stand before the data: softmax(dim=1), normalize() or a mean over dimension 0 do; count "
            "dimensions from the end, as dim=-1"
        )


@torch.no_grad()
def mixed_rows(programs: Programs, data: Mapping[str, Any]) -> str | None:
    """Return a sentence on a program in which data meet: where half a batch has another density than beside the other half.

    In evaluation mode, so that batch norm by its running statistics is left out; of batches of at least four rows, and not
    of adversarial pairs, whose discriminators may look at a batch.
    """
    rows = max(lengths_of(data), default=0)
    if rows < 4 or programs.pair.likelihood == "none" or not programs.layout(data).batched:
        return None
    start = rows // 2
    part = taken(data, rows, slice(start, rows))
    parts = [partial(torch.narrow, start=start, length=rows - start)]
    for which, name in _another_density(programs, data, part, (str(programs.pair.batch_plate), rows), None, parts):
        return (
            f"site '{name}' of the {which} has another density in half a batch than in the whole, because the program mixes "
            "data: softmax(dim=0), nn.LSTM without batch_first=True or a mean over rows do; let each row depend on itself alone"
        )
    return None


@torch.no_grad()
def check_masks(programs: Programs, data: Mapping[str, Any]) -> None:
    """Refuse latents that a mask takes out of one of the two densities alone, or out of both while the model still reads them.

    Padding, which both programs mask and nothing reads, leaves p(z, x) / q(z|x) a ratio of densities of what is left.
    """
    with in_evaluation_mode(programs.pair), isolated(0, device_of(data)):
        guide = programs.run("guide", data)
        model = programs.run("model", data, values={name: site.value for name, site in guide.items() if site.latent})
        masks = {name: _mask(site) for name, site in model.items() if site.latent}
        if all(bool(_mask(site).all()) for site in [*guide.values(), *model.values()] if site.latent):
            return
        for name, mask in masks.items():
            if name in guide and not torch.equal(*torch.broadcast_tensors(mask, _mask(guide[name]))):
                raise PairError(
                    f"site '{name}' is masked otherwise in the guide than in the model, so that some of its elements count in one "
                    "density alone; put both sample statements under the same mask"
                )
        drawn = programs.run("model", data)
        values = {name: site.value for name, site in model.items() if site.latent}
        same = programs.run("model", data, values=values)
        for name, mask in masks.items():
            event = mask.reshape(*mask.shape, *[1] * len(model[name].fn.event_shape))
            values[name] = torch.where(event, values[name], drawn[name].value)
        again = programs.run("model", data, values=values)
        for name in model.keys() & again.keys():
            if _differs(again[name], model[name], same[name]):
                masked = ", ".join(f"'{latent}'" for latent, mask in masks.items() if not bool(mask.all()))
                raise PairError(
                    f"site '{name}' of the model reads elements of {masked} that a mask takes out of their density, so that "
                    "p(z, x) is no density and has no log p(x); mask what reads them too, or leave them unmasked"
                )


@torch.no_grad()
def check_enumerable(programs: Programs, data: Mapping[str, Any]) -> None:
    """Refuse latents that are masked in part: a sum over their values counts each value of a masked element anew."""
    with isolated(0, device_of(data)):
        for which in ("guide", "model"):
            for name, site in programs.run(which, data).items():
                if site.latent and not bool(_mask(site).all()):
                    raise PairError(
                        f"site '{name}' of the {which} is masked in part, and a sum over its values would count masked elements "
                        "too; leave them out of the site, or take samples (nvil, vimco, reweighted_wake_sleep)"
                    )


@torch.no_grad()
def check_values(programs: Programs, data: Mapping[str, Any]) -> None:
    """Refuse latents that have other values in the guide, whose values are summed, than in the model, where that is known."""
    with isolated(0, device_of(data)):
        guide, model = programs.run("guide", data), programs.run("model", data)
    for name in guide.keys() & model.keys():
        ours, theirs = _values(guide[name]), _values(model[name])
        if ours is None or (theirs is None and not _endless(model[name].fn)):
            continue
        if theirs is None or not torch.equal(ours.double(), theirs.to(ours.device).double()):
            raise PairError(
                f"site '{name}' has {len(ours)} values in the guide ({family_of(guide[name].fn)}) and "
                f"{'no finite number' if theirs is None else len(theirs)} in the model ({family_of(model[name].fn)}), and a sum "
                "over the guide's values is p(x) only where they are the model's; give both the same values"
            )


def _endless(fn: Any) -> bool:
    """Say whether an element of a distribution counts without end, as that of a Poisson one does."""
    try:
        return isinstance(element_support(fn), type(constraints.nonnegative_integer))
    except NotImplementedError:  # it does not say
        return False


def _values(site: Site) -> Tensor | None:
    """Return the values of an element of a site, (M, size), None where they are not finitely many, or not the same for all."""
    fn = base_of(site.fn)
    if not getattr(fn, "has_enumerate_support", False):
        return None
    try:
        values = fn.enumerate_support(expand=False)
    except NotImplementedError:
        return None
    return values.reshape(len(values), -1)


def _mask(site: Site) -> Tensor:
    """Return which elements of a site its density counts."""
    counts = torch.ones(site.fn.batch_shape, dtype=torch.bool, device=site.value.device)
    for mask in (site.mask, getattr(site.fn, "_mask", None)):
        if mask is not None:
            counts = counts & torch.as_tensor(mask, device=counts.device)
    return counts


def _another_density(
    programs: Programs,
    data: Mapping[str, Any],
    part: Mapping[str, Any],
    frame: tuple[str, int],
    particles: int | None,
    parts: Sequence[Callable[..., Tensor]],
) -> Iterator[tuple[str, str]]:
    """Yield program and name of the sites whose density at the same values is another on a part of a batch than beside the rest.

    frame: name and size of the plate whose dimension ``parts`` take their part from. Programs run in evaluation mode. One that
    draws numbers of its own cannot be told from one that mixes, and is left out; so are point masses, and densities that own
    samples alone have.
    """
    values: dict[str, Tensor] = {}
    with in_evaluation_mode(programs.pair), isolated(0, device_of(data)):
        for which in ("guide", "model"):
            beside = programs.run(which, data, values=values, particles=particles)
            places = {name: _place(site, frame) for name, site in beside.items()}
            values = {name: site.value for name, site in beside.items() if not site.observed}
            for alone in parts:
                own = dict(values)
                try:
                    for name, site in programs.run(which, part).items():
                        place = places.get(name)
                        if name in own and place is not None:
                            value = alone(own[name], dim=place - len(beside[name].fn.event_shape))
                            own[name] = value.reshape(site.value.shape)
                    first, second = (programs.run(which, part, values=own) for _ in range(2))
                except RAISED:  # a program of one size of batch
                    return
                for name in beside.keys() & first.keys() & second.keys():
                    place = places[name]
                    if place is not None and _differs(
                        beside[name], first[name], second[name], partial(alone, dim=place)
                    ):
                        yield which, name


def _differs(
    found: Site, expected: Site, again: Site, part: Callable[[Tensor], Tensor] = lambda density: density
) -> bool:
    """Say whether (a part of) a site's density is another than expected, of a program that twice gave the expected one."""
    densities = [_density(site) for site in (found, expected, again)]
    if any(density is None for density in densities):
        return False
    other, one, repeated = (density for density in densities if density is not None)
    return _close(one, repeated) and not _close(part(other), one)


def _place(site: Site, frame: tuple[str, int]) -> int | None:
    """Return the dimension of a site's density that is in a plate of this name and size."""
    return next((own.dim for own in site.frames if (own.name, own.size) == frame), None)


def _density(site: Site) -> Tensor | None:
    """Return the log density of a site at its value, element by element; None where it says nothing."""
    if site.weightless or isinstance(base_of(site.fn), Delta):
        return None
    try:
        density = scale_and_mask(site.fn.log_prob(site.value), site.scale, site.mask)
    except (NotImplementedError, KeyError):
        return None
    return density.expand(torch.broadcast_shapes(density.shape, site.fn.batch_shape))


def _close(one: Tensor, other: Tensor) -> bool:
    """Say whether numbers are the same but for rounding, of half precision and of TensorFloat-32 on a GPU too."""
    if not one.is_floating_point():
        return torch.equal(one, other)
    coarse = torch.get_autocast_dtype(one.device.type) if torch.is_autocast_enabled(one.device.type) else one.dtype
    tolerance = max(1e-6, min(1e3 * torch.finfo(coarse).eps, 0.1), 4e-3 * one.is_cuda)
    return torch.allclose(one, other.to(one.dtype), rtol=tolerance, atol=tolerance, equal_nan=True)
