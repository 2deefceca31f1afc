"""Tensors made from numbers: zeros, ones, ranges. What an empty tensor holds is unknown in torch; here it holds zeros."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from unigen.engines.operations.table import jax_dtype, operation

__all__: list[str] = []


def _dtype(dtype: Any, default: Any = "float32") -> Any:
    return jnp.dtype(default) if dtype is None else jax_dtype(dtype)


@operation("zeros", "empty", "empty_strided", "_efficientzerotensor")
def _zeros(sizes: Any, *_: Any, dtype: Any = None, **__: Any) -> Any:
    return jnp.zeros(tuple(sizes), _dtype(dtype))


@operation("ones")
def _ones(sizes: Any, *, dtype: Any = None, **_: Any) -> Any:
    return jnp.ones(tuple(sizes), _dtype(dtype))


@operation("full")
def _full(sizes: Any, value: Any, *, dtype: Any = None, **_: Any) -> Any:
    return jnp.full(tuple(sizes), value, None if dtype is None else _dtype(dtype))


@operation("zeros_like", "empty_like")
def _zeros_like(x: Any, *, dtype: Any = None, **_: Any) -> Any:
    return jnp.zeros(x.shape, _dtype(dtype, x.dtype))


@operation("ones_like")
def _ones_like(x: Any, *, dtype: Any = None, **_: Any) -> Any:
    return jnp.ones(x.shape, _dtype(dtype, x.dtype))


@operation("full_like")
def _full_like(x: Any, value: Any, *, dtype: Any = None, **_: Any) -> Any:
    return jnp.full(x.shape, value, _dtype(dtype, x.dtype))


@operation("new_zeros", "new_empty", "new_empty_strided")
def _new_zeros(x: Any, sizes: Any, *_: Any, dtype: Any = None, **__: Any) -> Any:
    return jnp.zeros(tuple(sizes), _dtype(dtype, x.dtype))


@operation("new_ones")
def _new_ones(x: Any, sizes: Any, *, dtype: Any = None, **_: Any) -> Any:
    return jnp.ones(tuple(sizes), _dtype(dtype, x.dtype))


@operation("new_full")
def _new_full(x: Any, sizes: Any, value: Any, *, dtype: Any = None, **_: Any) -> Any:
    return jnp.full(tuple(sizes), value, _dtype(dtype, x.dtype))


@operation("scalar_tensor")
def _scalar_tensor(value: Any, **_: Any) -> Any:
    return jnp.asarray(value)


@operation("arange.default")
def _arange(end: Any, *, dtype: Any = None, **_: Any) -> Any:
    return jnp.arange(end, dtype=None if dtype is None else _dtype(dtype))


@operation("arange.start", "arange.start_step")
def _arange_from(start: Any, end: Any, step: Any = 1, *, dtype: Any = None, **_: Any) -> Any:
    return jnp.arange(start, end, step, dtype=None if dtype is None else _dtype(dtype))


@operation("eye.default")
def _eye(size: int, *, dtype: Any = None, **_: Any) -> Any:
    return jnp.eye(size, dtype=_dtype(dtype))
