"""Operations that move numbers without computing any: views, joins, paddings, copies, and writes through a view."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy
import torch

from unigen.engines.operations.table import find, jax_dtype, operation

__all__: list[str] = []


@operation("alias", "detach", "clone", "lift_fresh", "lift_fresh_copy", "contiguous", "view_of", "_conj", "positive")
def _same(x: Any, *_: Any, **__: Any) -> Any:
    return x


@operation("_to_copy", "to", "_autocast_to_full_precision")
def _cast(x: Any, *more: Any, dtype: Any = None, **_: Any) -> Any:
    dtype = next((part for part in more if isinstance(part, torch.dtype)), dtype)
    if dtype is None:
        return x
    if jnp.issubdtype(x.dtype, jnp.floating) and not dtype.is_floating_point and str(dtype) != "torch.bool":
        x = jnp.trunc(x)
    return x.astype(jax_dtype(dtype))


@operation("view.default", "_unsafe_view", "reshape", "_reshape_alias")
def _view(x: Any, sizes: Any, *_: Any) -> Any:
    return jnp.reshape(x, tuple(sizes))


@operation("expand")
def _expand(x: Any, sizes: Any, *, implicit: bool = False) -> Any:
    lead = len(sizes) - x.ndim
    return jnp.broadcast_to(x, tuple(x.shape[i - lead] if size == -1 else size for i, size in enumerate(sizes)))


@operation("permute")
def _permute(x: Any, dims: Any) -> Any:
    return jnp.transpose(x, tuple(dims))


@operation("t")
def _t(x: Any) -> Any:
    return x.T


@operation("transpose", "swapaxes")
def _transpose(x: Any, one: int, other: int) -> Any:
    return x if x.ndim == 0 else jnp.swapaxes(x, one, other)


@operation("unsqueeze")
def _unsqueeze(x: Any, dim: int) -> Any:
    return jnp.expand_dims(x, dim)


@operation("squeeze")
def _squeeze(x: Any, dim: Any = None) -> Any:
    dims = range(x.ndim) if dim is None else dim if isinstance(dim, list | tuple) else (dim,)
    return jnp.squeeze(x, tuple({d % x.ndim for d in dims if x.ndim and x.shape[d] == 1}))


@operation("select.int")
def _select(x: Any, dim: int, index: int) -> Any:
    return x[(slice(None),) * (dim % x.ndim) + (index,)]


@operation("slice.Tensor")
def _slice(x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    return x[(slice(None),) * (dim % x.ndim) + (slice(start, end, step),)]


@operation("split.Tensor", "unsafe_split.Tensor")
def _split(x: Any, size: int, dim: int = 0) -> Any:
    length = x.shape[dim]
    return tuple(_slice(x, dim, at, min(at + size, length)) for at in range(0, max(length, 1), max(size, 1)))


@operation("split_with_sizes", "unsafe_split_with_sizes")
def _split_with_sizes(x: Any, sizes: Any, dim: int = 0) -> Any:
    ends = numpy.cumsum(sizes)
    return tuple(_slice(x, dim, int(end) - size, int(end)) for size, end in zip(sizes, ends, strict=True))


@operation("unbind")
def _unbind(x: Any, dim: int = 0) -> Any:
    return tuple(_select(x, dim, index) for index in range(x.shape[dim]))


@operation("diagonal")
def _diagonal(x: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    return jnp.diagonal(x, offset, dim1, dim2)


@operation("unigen.strided")
def _strided(x: Any, sizes: Any, strides: Any, start: int, own_strides: Any, own_start: int) -> Any:
    """Return ``as_strided``: the entries at ``start`` + sum_d i_d strides_d in the memory where x lies by its own strides."""

    def addresses(sizes: Any, strides: Any, start: int) -> Any:
        grid = numpy.full(tuple(sizes), start)
        for axis, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
            grid += (numpy.arange(size) * stride).reshape(-1, *(1,) * (len(sizes) - axis - 1))
        return grid

    held, wanted = addresses(x.shape, own_strides, own_start).reshape(-1), addresses(sizes, strides, start)
    order = numpy.argsort(held, kind="stable")
    place = numpy.minimum(numpy.searchsorted(held[order], wanted), max(len(held) - 1, 0))
    if wanted.size and not bool((held[order][place] == wanted).all()):
        raise NotImplementedError("as_strided beyond the tensor it is taken of")
    flat = order[place] if wanted.size else numpy.zeros(wanted.shape, int)
    same = flat.size == x.size and bool((flat.reshape(-1) == numpy.arange(x.size)).all())
    return x.reshape(tuple(sizes)) if same else x.reshape(-1)[flat]


@operation("unfold")
def _unfold(x: Any, dim: int, size: int, step: int) -> Any:
    if x.ndim == 0:
        return x.reshape(1)[:size]
    starts = numpy.arange(0, x.shape[dim] - size + 1, step)
    windows = jnp.take(x, starts[:, None] + numpy.arange(size), dim % x.ndim)
    return jnp.moveaxis(windows, dim % x.ndim + 1, -1)


@operation("cat", "concat")
def _cat(parts: Any, dim: int = 0) -> Any:
    return jnp.concatenate([part for part in parts if part.shape != (0,)] or parts, dim)


@operation("stack")
def _stack(parts: Any, dim: int = 0) -> Any:
    return jnp.stack(parts, dim)


@operation("flip")
def _flip(x: Any, dims: Any) -> Any:
    return jnp.flip(x, tuple(dims))


@operation("roll")
def _roll(x: Any, shifts: Any, dims: Any = ()) -> Any:
    return jnp.roll(x, tuple(shifts), tuple(dims)) if len(dims) else jnp.roll(x, tuple(shifts)[0])


@operation("repeat")
def _repeat(x: Any, repeats: Any) -> Any:
    return jnp.tile(x, tuple(repeats))


@operation("tril")
def _tril(x: Any, diagonal: int = 0) -> Any:
    return jnp.tril(x, diagonal)


@operation("triu")
def _triu(x: Any, diagonal: int = 0) -> Any:
    return jnp.triu(x, diagonal)


@operation("diag_embed")
def _diag_embed(x: Any, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Any:
    size = x.shape[-1] + abs(offset)
    row = numpy.arange(x.shape[-1])
    full = jnp.zeros((*x.shape[:-1], size, size), x.dtype)
    full = full.at[..., row - min(offset, 0), row + max(offset, 0)].set(x)
    return jnp.moveaxis(full, (-2, -1), (dim1, dim2))


@operation("constant_pad_nd")
def _pad(x: Any, pad: Any, value: Any = 0) -> Any:
    widths = [(0, 0)] * x.ndim
    for place in range(len(pad) // 2):
        widths[-1 - place] = (pad[2 * place], pad[2 * place + 1])
    cut = tuple(slice(max(-low, 0), size - max(-high, 0)) for (low, high), size in zip(widths, x.shape, strict=True))
    return jnp.pad(x[cut], [(max(low, 0), max(high, 0)) for low, high in widths], constant_values=value)


# -- derivatives of views, and writes through them ---------------------------------------------------------------------


def _picked(view: Callable[[Any], Any], sizes: Any) -> numpy.ndarray[Any, Any]:
    """Return which entries of a tensor of these sizes a view shows, as flat numbers."""
    flat = numpy.arange(math.prod(sizes)).reshape(tuple(sizes))
    with jax.ensure_compile_time_eval():
        return numpy.asarray(view(flat))


@operation("select_backward")
def _select_backward(grad: Any, sizes: Any, dim: int, index: int) -> Any:
    full = jnp.zeros(tuple(sizes), grad.dtype)
    return full.at[(slice(None),) * (dim % len(sizes)) + (index,)].set(grad)


@operation("slice_backward")
def _slice_backward(grad: Any, sizes: Any, dim: int, start: Any, end: Any, step: int) -> Any:
    full = jnp.zeros(tuple(sizes), grad.dtype)
    return full.at[(slice(None),) * (dim % len(sizes)) + (slice(start, end, step),)].set(grad)


@operation("diagonal_backward")
def _diagonal_backward(grad: Any, sizes: Any, offset: int, dim1: int, dim2: int) -> Any:
    entries = _picked(lambda flat: numpy.diagonal(flat, offset, dim1, dim2), sizes)
    return jnp.zeros(math.prod(sizes), grad.dtype).at[entries].set(grad).reshape(tuple(sizes))


@operation("unfold_backward")
def _unfold_backward(grad: Any, sizes: Any, dim: int, size: int, step: int) -> Any:
    entries = _picked(lambda flat: _unfold_of(flat, dim, size, step), sizes)
    return jnp.zeros(math.prod(sizes), grad.dtype).at[entries].add(grad).reshape(tuple(sizes))


def _unfold_of(flat: Any, dim: int, size: int, step: int) -> Any:
    starts = numpy.arange(0, flat.shape[dim] - size + 1, step)
    windows = numpy.take(flat, starts[:, None] + numpy.arange(size), dim % flat.ndim)
    return numpy.moveaxis(windows, dim % flat.ndim + 1, -1)


@operation("select_scatter")
def _select_scatter(x: Any, source: Any, dim: int, index: int) -> Any:
    return x.at[(slice(None),) * (dim % x.ndim) + (index,)].set(source)


@operation("diagonal_scatter")
def _diagonal_scatter(x: Any, source: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    entries = _picked(lambda flat: numpy.diagonal(flat, offset, dim1, dim2), x.shape)
    return x.reshape(-1).at[entries].set(source).reshape(x.shape)


@operation("slice_scatter")
def _slice_scatter(x: Any, source: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    return x.at[(slice(None),) * (dim % x.ndim) + (slice(start, end, step),)].set(source)


@operation("unigen.write_view")
def _write_view(whole: Any, value: Any, name: str, arguments: Any, named: Any, index: int) -> Any:
    """Return ``whole`` after its view by the operation ``name`` has become ``value``."""
    if name.startswith(("aten.alias", "aten.detach")):
        return value
    if name.startswith(("aten.view.", "aten._unsafe_view", "aten.unsqueeze", "aten.squeeze", "aten.reshape")):
        return value.reshape(whole.shape)
    entry = find(name)
    if entry is None:
        raise NotImplementedError(f"entry for the view {name}")

    def view(flat: Any) -> Any:
        result = entry.function(jnp.asarray(flat), *arguments, **dict(named))
        return result[index] if isinstance(result, tuple) else result

    entries = _picked(view, whole.shape)
    return whole.reshape(-1).at[entries.reshape(-1)].set(value.reshape(-1)).reshape(whole.shape)


@operation("copy")
def _copy(x: Any, source: Any, non_blocking: bool = False) -> Any:
    return jnp.broadcast_to(_truncated(source, x.dtype), x.shape)


@operation("fill")
def _fill(x: Any, value: Any) -> Any:
    return jnp.broadcast_to(_truncated(jnp.asarray(value), x.dtype), x.shape)


def _truncated(x: Any, dtype: Any) -> Any:
    return x.astype(dtype)


@operation("zero")
def _zero(x: Any) -> Any:
    return jnp.zeros_like(x)


@operation("replication_pad1d_backward", "replication_pad2d_backward", "replication_pad3d_backward")
def _replication_pad_backward(grad: Any, x: Any, padding: Any) -> Any:
    widths = [(0, 0)] * (x.ndim - len(padding) // 2) + list(zip(padding[::2], padding[1::2], strict=True))[::-1]
    return jax.vjp(lambda x: jnp.pad(x, widths, mode="edge"), x)[1](grad)[0]
