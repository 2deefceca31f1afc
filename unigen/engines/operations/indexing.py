"""Reading and writing at positions that are data: index, gather, scatter, embedding, sorting, searching.

Torch refuses a position outside its tensor; here what is read from there, and all of a tensor that is written there, is not
a number, which training stops at.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy

from unigen.engines.operations.table import operation

__all__: list[str] = []


def _wrapped(index: Any, size: int) -> Any:
    return jnp.where(index < 0, index + size, index)


def _unwrapped(index: Any, size: int) -> Any:
    """Return positions that do not count from the end, where JAX would: negative ones are outside."""
    return jnp.where(index < 0, size, index)


def _written(result: Any, index: Any, least: int, size: int) -> Any:
    """Return what was written at positions, not a number where one of them is not in [least, size)."""
    if not jnp.issubdtype(result.dtype, jnp.inexact):
        return result
    return jnp.where(((index >= least) & (index < size)).all(), result, jnp.nan)


def _picks(x: Any, indices: Any) -> tuple[Any, ...]:
    """Return indices for JAX, one a dimension: None becomes a full slice, which keeps torch's order of dimensions."""
    filled = [slice(None) if index is None else index for index in indices]
    return tuple(filled) + (slice(None),) * (x.ndim - len(filled))


@operation("index", "_unsafe_index")
def _index(x: Any, indices: Any) -> Any:
    return x.at[_picks(x, indices)].get(mode="fill")


@operation("index_put", "_unsafe_index_put", "_index_put_impl")
def _index_put(x: Any, indices: Any, values: Any, accumulate: bool = False, unsafe: bool = False) -> Any:
    if any(index is not None and index.dtype == bool for index in indices):
        (mask,) = (index for index in indices if index is not None)
        before = next(i for i, index in enumerate(indices) if index is not None)
        trailing = x.ndim - before - mask.ndim
        if any(size > 1 for size in values.shape[: max(values.ndim - trailing, 0)]):
            raise NotImplementedError("write of several values at a mask, of which each takes its own")
        values = values.reshape(values.shape[max(values.ndim - trailing, 0) :])
        mask = mask.reshape((1,) * before + mask.shape + (1,) * trailing)
        return jnp.where(mask, x + values if accumulate else values, x).astype(x.dtype)
    place = x.at[_picks(x, indices)]
    values = values.astype(x.dtype)
    result = place.add(values, mode="drop") if accumulate else place.set(values, mode="drop")
    for dim, index in enumerate(indices):
        result = result if index is None else _written(result, index, -x.shape[dim], x.shape[dim])
    return result


@operation("index_select")
def _index_select(x: Any, dim: int, index: Any) -> Any:
    if x.ndim == 0:
        return x
    return jnp.take(x, _unwrapped(index, x.shape[dim]), dim % x.ndim, mode="fill")


def _rows(x: Any, dim: int, index: Any) -> tuple[Any, ...]:
    return (slice(None),) * (dim % x.ndim) + (index,)


@operation("index_add")
def _index_add(x: Any, dim: int, index: Any, source: Any, *, alpha: Any = 1) -> Any:
    result = x.at[_rows(x, dim, index)].add(alpha * source, mode="drop")
    return _written(result, index, 0, x.shape[dim])


@operation("index_copy")
def _index_copy(x: Any, dim: int, index: Any, source: Any) -> Any:
    return _written(x.at[_rows(x, dim, index)].set(source, mode="drop"), index, 0, x.shape[dim])


@operation("index_fill")
def _index_fill(x: Any, dim: int, index: Any, value: Any) -> Any:
    filled = x.at[_rows(x, dim, index)].set(jnp.asarray(value, x.dtype), mode="drop")
    return _written(filled, index, -x.shape[dim], x.shape[dim])


def _along(index: Any, dim: int) -> tuple[Any, ...]:
    """Return positions like ``index`` in every dimension but ``dim``, where they are ``index`` itself."""
    grid = list(numpy.ogrid[tuple(slice(size) for size in index.shape)]) if index.ndim else []
    if grid:
        grid[dim % index.ndim] = index
    return tuple(grid)


@operation("gather")
def _gather(x: Any, dim: int, index: Any, *, sparse_grad: bool = False) -> Any:
    if index.ndim == 0 or x.ndim == 0:
        return jnp.broadcast_to(x.reshape(-1)[0], index.shape) if x.ndim == 0 else x[index]
    return x.at[_along(_unwrapped(index, x.shape[dim]), dim)].get(mode="fill")


@operation("scatter.src", "scatter.value")
def _scatter(x: Any, dim: int, index: Any, source: Any) -> Any:
    source = jnp.asarray(source, x.dtype)
    if x.ndim == 0:
        return source.reshape(-1)[0]
    result = x.at[_along(index, dim)].set(_cut(source, index), mode="drop")
    return _written(result, index, 0, x.shape[dim])


@operation("scatter_add")
def _scatter_add(x: Any, dim: int, index: Any, source: Any) -> Any:
    if x.ndim == 0:
        return x + source.reshape(-1)[0]
    result = x.at[_along(index, dim)].add(_cut(source, index), mode="drop")
    return _written(result, index, 0, x.shape[dim])


@operation("scatter_reduce.two")
def _scatter_reduce(x: Any, dim: int, index: Any, source: Any, reduce: str, *, include_self: bool = True) -> Any:
    neutral = {"sum": 0, "prod": 1, "amax": -jnp.inf, "amin": jnp.inf}
    if reduce not in neutral:
        raise NotImplementedError(f"scatter_reduce of {reduce}")
    at, source = _along(index, dim), _cut(source, index)
    start = x if include_self else x.at[at].set(neutral[reduce], mode="drop")
    place = start.at[at]
    ways = {"sum": place.add, "prod": place.multiply, "amax": place.max, "amin": place.min}
    return _written(ways[reduce](source, mode="drop"), index, 0, x.shape[dim])


def _cut(source: Any, index: Any) -> Any:
    return source if source.ndim == 0 else source[tuple(slice(size) for size in index.shape)]


@operation("embedding")
def _embedding(weight: Any, index: Any, *_: Any) -> Any:
    return jnp.take(weight, _unwrapped(index, weight.shape[0]), 0, mode="fill")


@operation("embedding_dense_backward")
def _embedding_backward(grad: Any, index: Any, rows: int, padding: int, by_frequency: bool) -> Any:
    if by_frequency:
        raise NotImplementedError("embedding whose gradient is scaled by frequency")
    if padding >= 0:
        grad = jnp.where((index == padding)[..., None], 0, grad)
    return jnp.zeros((rows, grad.shape[-1]), grad.dtype).at[index].add(grad, mode="drop")


@operation("take")
def _take(x: Any, index: Any) -> Any:
    return jnp.take(x.reshape(-1), _wrapped(index, x.size), mode="fill")


@operation("put")
def _put(x: Any, index: Any, source: Any, accumulate: bool = False) -> Any:
    place = x.reshape(-1).at[index.reshape(-1)]
    new = source.reshape(-1)
    result = (place.add(new, mode="drop") if accumulate else place.set(new, mode="drop")).reshape(x.shape)
    return _written(result, index, -x.size, x.size)


# -- order -------------------------------------------------------------------------------------------------------------


@operation("sort")
def _sort(x: Any, dim: int = -1, descending: bool = False, *, stable: bool = False) -> Any:
    if x.ndim == 0:
        return x, jnp.zeros((), int)
    order = jnp.argsort(x, dim, stable=True, descending=descending)
    return jnp.take_along_axis(x, order, dim), order


@operation("sort.stable")
def _sort_stable(x: Any, *, stable: Any = None, dim: int = -1, descending: bool = False) -> Any:
    return _sort(x, dim, descending)


@operation("topk")
def _topk(x: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    if x.ndim == 0:
        return x, jnp.zeros((), int)
    values, order = _sort(x, dim, largest)
    return tuple(jax.lax.slice_in_dim(part, 0, k, axis=dim % x.ndim) for part in (values, order))


@operation("kthvalue")
def _kthvalue(x: Any, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    if x.ndim == 0:
        return x, jnp.zeros((), int)
    order = jnp.take(jnp.argsort(x, dim, stable=True), jnp.array([k - 1]), dim)
    value = jnp.take_along_axis(x, order, dim)
    return (value, order) if keepdim else (value.squeeze(dim), order.squeeze(dim))


@operation("median.dim")
def _median(x: Any, dim: int = -1, keepdim: bool = False) -> Any:
    """Of an even number the lower of the two; not a number where one of them is none."""
    if x.ndim == 0:
        return x, jnp.zeros((), int)
    value, order = _kthvalue(x, (x.shape[dim] + 1) // 2, dim, keepdim)
    none = jnp.isnan(x)
    some = none.any(dim, keepdims=keepdim)
    return jnp.where(some, jnp.nan, value), jnp.where(some, none.argmax(dim, keepdims=keepdim), order)


@operation("median.default")
def _median_of_all(x: Any) -> Any:
    return _median(x.reshape(-1))[0]


@operation("searchsorted.Tensor")
def _searchsorted(
    boundaries: Any, x: Any, *, out_int32: bool = False, right: bool = False, side: Any = None, sorter: Any = None
) -> Any:
    if sorter is not None:
        raise NotImplementedError("searchsorted with a sorter")
    way = side or ("right" if right else "left")
    if boundaries.ndim == 1:
        return jnp.searchsorted(boundaries, x, way)
    rows, values = boundaries.reshape(-1, boundaries.shape[-1]), x.reshape(-1, x.shape[-1])
    return jax.vmap(lambda row, value: jnp.searchsorted(row, value, way))(rows, values).reshape(x.shape)


@operation("bucketize.Tensor")
def _bucketize(x: Any, boundaries: Any, *, out_int32: bool = False, right: bool = False) -> Any:
    return jnp.searchsorted(boundaries, x, "right" if right else "left")
