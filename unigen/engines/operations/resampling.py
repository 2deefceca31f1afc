"""Upsampling, and sampling at the points of a grid (spatial transformers), with their derivatives."""

from __future__ import annotations

import itertools
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy
import torch

from unigen.engines.operations.linear_algebra import product
from unigen.engines.operations.table import operation

__all__ = ["along"]


def along(x: Any, axis: int, weights: Any) -> Any:
    """Return the products of an axis of ``x`` of size n with weights (n, m), of size m there."""
    rows = jnp.moveaxis(x, axis, -1)
    return jnp.moveaxis(product(rows, weights.astype(x.dtype)), -1, axis)


def _by_input(forward: Any) -> Any:
    """Return the derivative of an upsampling by its input: the same arguments, but that the input's sizes stand before the last."""

    def backward(grad: Any, sizes: Any, input_sizes: Any, *more: Any) -> Any:
        x = jnp.zeros(tuple(input_sizes), grad.dtype)
        return jax.vjp(lambda x: forward(x, sizes, *more), x)[1](grad)[0]

    return backward


# -- upsampling --------------------------------------------------------------------------------------------------------


def _nearest(x: Any, sizes: Any, *scales: Any, middle: float = 0.0) -> Any:
    for axis, out in enumerate(sizes, 2):
        size = x.shape[axis]
        scale = 1 / scales[axis - 2] if scales and scales[axis - 2] else size / out
        x = jnp.take(x, numpy.minimum(((numpy.arange(out) + middle) * scale).astype(int), size - 1), axis)
    return x


def _interpolated(x: Any, sizes: Any, align_corners: bool, *scales: Any, kind: str = "upsample_linear1d") -> Any:
    for axis, out in enumerate(sizes, 2):
        scale = scales[axis - 2] if scales else None
        x = along(x, axis, _weights(kind, x.shape[axis], int(out), bool(align_corners), scale))
    return x


@lru_cache(maxsize=256)
def _weights(kind: str, size: int, out: int, align_corners: bool, scale: float | None) -> Any:
    """Return torch's own weights along one axis, (size, out): what it makes of the unit vectors."""
    units = torch.eye(size, dtype=torch.float64)[:, None]
    if kind == "upsample_linear1d":
        found = torch.ops.aten.upsample_linear1d(units, [out], align_corners, scale)
    else:
        # two columns: of one, torch's antialiasing takes the rows for columns
        columns = units[..., None].expand(-1, -1, -1, 2).contiguous()
        found = getattr(torch.ops.aten, kind)(columns, [out, 2], align_corners, scale, None)[..., 0]
    return found[:, 0].numpy()


for _dimensions in (1, 2, 3):
    for _kind, _middle in (("upsample_nearest", 0.0), ("_upsample_nearest_exact", 0.5)):
        _forward = partial(_nearest, middle=_middle)
        operation(f"{_kind}{_dimensions}d.default")(_forward)
        operation(f"{_kind}{_dimensions}d_backward.default")(_by_input(_forward))

for _name in ("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"):
    operation(f"{_name}.default")(_interpolated)
    operation(f"{_name}_backward.default")(_by_input(_interpolated))

for _name in ("upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"):
    _forward = partial(_interpolated, kind=_name)
    operation(f"{_name}.default")(_forward)
    operation(f"{_name}_backward.default")(_by_input(_forward))


# -- at the points of a grid -------------------------------------------------------------------------------------------

BILINEAR, NEAREST = 0, 1  # and bicubic
ZEROS, BORDER = 0, 1  # and reflection


@operation("grid_sampler_2d.default", "grid_sampler_3d.default")
def _grid_sampler(x: Any, grid: Any, mode: int, padding: int, align_corners: bool) -> Any:
    sizes, batch = x.shape[2:], x.shape[:2]
    taps = [
        _taps(grid[..., -1 - axis], size, mode, padding, align_corners)  # the grid has the last axis first
        for axis, size in enumerate(sizes)
    ]
    flat, total = x.reshape(*batch, -1), jnp.zeros((), x.dtype)
    for chosen in itertools.product(*taps):
        weight, place = jnp.ones((), x.dtype), jnp.zeros((), jnp.int32)
        for (index, part), size in zip(chosen, sizes, strict=True):
            weight = weight * jnp.where((index >= 0) & (index <= size - 1), part, 0)
            place = place * size + jnp.clip(index, 0, size - 1).astype(jnp.int32)
        there = jnp.take_along_axis(flat, place.reshape(len(x), 1, -1), 2).reshape(*batch, *place.shape[1:])
        total = total + there * weight[:, None]
    return total


def _taps(g: Any, size: int, mode: int, padding: int, align_corners: bool) -> list[tuple[Any, Any]]:
    """Return the places that are read along an axis, whole numbers, and their weights, for coordinates from -1 to 1."""
    place = (g + 1) / 2 * (size - 1) if align_corners else ((g + 1) * size - 1) / 2
    within = partial(_within, size=size, padding=padding, align_corners=align_corners)
    if mode == NEAREST:
        return [(jnp.round(within(place)), jnp.ones_like(place))]
    if mode == BILINEAR:
        place = within(place)
        low = jnp.floor(place)
        return [(low, low + 1 - place), (low + 1, place - low)]
    low = jnp.floor(place)
    return [(within(low + offset), _cubic(jnp.abs(place - low - offset))) for offset in (-1, 0, 1, 2)]


def _cubic(t: Any, a: float = -0.75) -> Any:
    """Return Keys's kernel of cubic convolution at distances up to 2."""
    return jnp.where(t <= 1, ((a + 2) * t - (a + 3)) * t * t + 1, ((t - 5) * t + 8) * a * t - 4 * a)


def _within(place: Any, size: int, padding: int, align_corners: bool) -> Any:
    """Return where a coordinate outside is read; at an edge and beyond it has no derivative, as in torch."""
    if padding == ZEROS:
        return place
    if padding != BORDER:
        start, span = (0.0, size - 1.0) if align_corners else (-0.5, float(size))
        away = jnp.abs(place - start)
        extra, turns = away % span if span else away * 0, jnp.floor(away / (span or 1))
        place = start + jnp.where(turns % 2 == 0, extra, span - extra)
    return jnp.where(place <= 0, 0, jnp.where(place >= size - 1, size - 1, place))


@operation("grid_sampler_2d_backward.default", "grid_sampler_3d_backward.default")
def _grid_sampler_backward(
    grad: Any, x: Any, grid: Any, mode: int, padding: int, align_corners: bool, wanted: Any
) -> Any:
    back = jax.vjp(lambda x, grid: _grid_sampler(x, grid, mode, padding, align_corners), x, grid)[1](grad)
    return tuple(part if want else None for part, want in zip(back, wanted, strict=True))
