"""Whether a density jumps as a latent moves: a gradient along the path of its noise sees slopes, and no jumps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import biject_to

from unigen.engines.draw import Draw
from unigen.engines.programs import RAISED, Programs, device_of, in_evaluation_mode, lengths_of, taken
from unigen.engines.sites import Site, base_of
from unigen.streams import isolated

__all__ = ["jumps"]

LINES = 16  # of one draw, where the batch has as many rows
FIRST, LAST = -1.0, 2.0  # of a line through two draws, which lie at 0 and 1
POINTS, ROUNDS = 33, 3  # each round looks into two intervals of the one before
LEAST = 1e-3  # nats
ROUNDING = 1e3  # units of rounding of a density, which is a sum of many terms
RESOLVED = 4  # units of rounding between two values that differ by more than rounding
MOST = 2**22  # numbers of data that are no rows, of which some could be taken

Key = tuple[str, str]  # program and site
VALUES = ("", "")


@torch.no_grad()
def jumps(programs: Programs, data: Mapping[str, Any]) -> str | None:
    """Return a sentence on a density that jumps as the guide's reparameterized values move, None where none is seen.

    The values of some rows move along the straight line through two draws of the guide, where they are unconstrained. Where a
    density is least linear its interval is divided, and divided again: what is continuous becomes linear, and a jump stays.
    Programs run in evaluation mode, on many copies of a row at once.
    """
    device = device_of(data)
    batched, total = programs.layout(data).batched, max(lengths_of(data), default=1)
    size = sum(value.numel() for value in data.values() if isinstance(value, Tensor))
    if programs.pair.likelihood == "none" or (not batched and size > MOST):
        return None
    rows = min(total, LINES) if batched else 1
    data = taken(data, total, slice(rows)) if batched else data
    try:
        with in_evaluation_mode(programs.pair):
            for seed in range(1 if rows == LINES else 2):
                draws = []
                for each in (2 * seed, 2 * seed + 1):
                    with isolated(each, device):
                        draws.append(programs.run("guide", data))
                values = {name: site.value for name, site in draws[0].items() if site.latent}
                model = programs.run("model", data, values=values)  # knows the support of an autoguide's point mass
                lines = {name: (model[name], draws[1][name]) for name in values}
                auto = any(site.auxiliary for site in draws[0].values())  # has no density at given values
                run = partial(
                    _densities,
                    programs,
                    data,
                    rows if batched else None,
                    lines,
                    ["model"] if auto else ["guide", "model"],
                )
                moving = [name for name in lines if _moves(draws[0][name])]
                if not moving or not _repeats(run, rows, device):
                    return None
                if together := _jump(partial(run, moving), rows, device):
                    alone = ((name, _jump(partial(run, [name]), rows, device)) for name in moving)
                    return next(
                        (_sentence(name, *found) for name, found in alone if found),
                        _sentence(", ".join(moving), *together),
                    )
    except RAISED:  # a program of one size of batch, or one that refuses a value between two that it has drawn
        pass
    return None


def _sentence(latent: str, which: str, site: str, size: float) -> str:
    return (
        f"the density of site '{site}' of the {which} jumps by {size:.2g} nats as '{latent}' moves, and the gradient along the "
        "path of its noise sees no jumps, so that it is biased; make what is computed from it continuous, or take another "
        "estimator, as vae(estimator=score_function) does"
    )


def _moves(site: Site) -> bool:
    return site.value.is_floating_point() and (site.fn.has_rsample or isinstance(base_of(site.fn), Delta))


def _densities(
    programs: Programs,
    data: Mapping[str, Any],
    rows: int | None,
    lines: Mapping[str, tuple[Site, Site]],
    which_run: Collection[str],
    moving: Collection[str],
    t: Tensor,
) -> dict[Key, Tensor]:
    """Return the densities, (P, R), where these latents are at t, (P, R), of their lines, and the others at 0.

    Their values, (P, R, numbers), come along as those of ``VALUES``. The P copies of each row are rows of one batch; data that
    have no rows go P times through the programs.
    """
    if rows is None and len(t) > 1:
        parts = [_densities(programs, data, rows, lines, which_run, moving, each) for each in t.split(1)]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    values = {}
    for name, (start, end) in lines.items():
        values[name] = _between(start, end, t if name in moving else torch.zeros_like(t), batched=rows is not None)
    if rows is not None:
        data = taken(data, rows, torch.arange(rows, device=t.device).repeat(len(t)))
    flat = [values[name].reshape(*t.shape, -1) for name in moving] or [t.unsqueeze(-1)]
    draw, found = Draw(programs, data, None, "guide", values), {VALUES: torch.cat(flat, -1)}
    for which in which_run:
        with isolated(0, t.device):
            sites = programs.run(which, data, values=values)
        for name, site in sites.items():
            if not (site.weightless or isinstance(base_of(site.fn), Delta)):
                found[which, name] = draw.per_datum(site, site.value).expand(t.numel()).view(t.shape)
    return found


def _between(start: Site, end: Site, t: Tensor, batched: bool) -> Tensor:
    """Return the values of a site, (P * R, ...), or (...) where they have no rows, at t, (P, R), of the line between two draws."""
    transform = biject_to(start.fn.support)
    first, last = transform.inv(start.value), transform.inv(end.value)
    t = t.to(first.dtype).reshape(*t.shape, *[1] * (first.dim() - 1)) if batched else t.to(first.dtype).squeeze()
    value = transform(first + t * (last - first))
    return value.flatten(0, 1) if batched else value


def _repeats(run: Callable[..., dict[Key, Tensor]], rows: int, device: torch.device) -> bool:
    """Say whether copies of a row have the same densities, as where no program draws numbers of its own."""
    found = run([], torch.zeros(POINTS, rows, device=device))
    return all(torch.allclose(each, each[:1].expand_as(each)) for key, each in found.items() if key != VALUES)


def _jump(run: Callable[[Tensor], dict[Key, Tensor]], rows: int, device: torch.device) -> tuple[str, str, float] | None:
    """Return program and site of the density that jumps most, and by how much, None where none does."""
    centre, width = torch.full((rows,), (FIRST + LAST) / 2, device=device), (LAST - FIRST) / 2
    steps = torch.linspace(-1, 1, POINTS, device=device).unsqueeze(1)
    bends: list[dict[Key, Tensor]] = []
    for _ in range(ROUNDS):
        t = centre + width * steps
        found = run(t)
        resolved = _resolved(found.pop(VALUES))
        bends.append({key: torch.where(resolved, _bend(density), 0) for key, density in found.items()})
        place = torch.stack([*bends[-1].values()]).amax(0).argmax(0)
        centre, width = t[place + 1, torch.arange(rows, device=device)], 2 * width / (POINTS - 1)
    jumps = []
    for key, bend in bends[-1].items():
        size, before = bend.amax(0), bends[-3][key].amax(0)
        rounding = ROUNDING * torch.finfo(bend.dtype).eps * found[key].abs().nan_to_num(0, 0, 0).amax(0)
        stays = (size > 0.5 * before) & (size > LEAST + rounding)
        jumps.append((float(torch.where(stays, size, 0).max()), key))
    most, (which, site) = max(jumps)
    return (which, site, most) if most else None


def _resolved(values: Tensor) -> Tensor:
    """Return at which inner points, (P - 2, R), each value is apart from its neighbours by more than rounding, or stays."""
    apart = (values[1:] - values[:-1]).abs() > RESOLVED * torch.finfo(values.dtype).eps * values[1:].abs()
    apart = (apart | (values == values[:1]).all(0)).all(-1)
    return apart[1:] & apart[:-1]


def _bend(density: Tensor) -> Tensor:
    """Return how far each inner point of (P, R) lies from the line through its neighbours, 0 where that is no number."""
    return (density[:-2] - 2 * density[1:-1] + density[2:]).abs().nan_to_num(0, 0, 0)
