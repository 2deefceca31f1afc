"""Sums, products, extremes, moments and running sums along dimensions, and the softmax."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from unigen.engines.operations.table import jax_dtype, operation

__all__: list[str] = []


def _axes(dim: Any) -> Any:
    """Torch's dim: None or an empty list means every dimension."""
    if dim is None or (isinstance(dim, list | tuple) and len(dim) == 0):
        return None
    return tuple(dim) if isinstance(dim, list | tuple) else dim


def _as(x: Any, dtype: Any) -> Any:
    return x if dtype is None else x.astype(jax_dtype(dtype))


def _summable(x: Any, dtype: Any) -> Any:
    """Return numbers as torch accumulates them: whole ones in 64 bits."""
    return _as(x, "int64" if dtype is None and not jnp.issubdtype(x.dtype, jnp.inexact) else dtype)


def _of_a_number(x: Any) -> bool:
    return x.ndim == 0


@operation("sum")
def _sum(x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    if _of_a_number(x):
        return _as(x, dtype)
    return jnp.sum(_as(x, dtype), _axes(dim), keepdims=keepdim)


@operation("mean")
def _mean(x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    return _as(x, dtype) if _of_a_number(x) else jnp.mean(_as(x, dtype), _axes(dim), keepdims=keepdim)


@operation("prod")
def _prod(x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    return _as(x, dtype) if _of_a_number(x) else jnp.prod(_as(x, dtype), _axes(dim), keepdims=keepdim)


@operation("amax")
def _amax(x: Any, dim: Any = (), keepdim: bool = False) -> Any:
    return x if _of_a_number(x) else jnp.max(x, _axes(dim), keepdims=keepdim)


@operation("amin")
def _amin(x: Any, dim: Any = (), keepdim: bool = False) -> Any:
    return x if _of_a_number(x) else jnp.min(x, _axes(dim), keepdims=keepdim)


@operation("any")
def _any(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    return x.astype(bool) if _of_a_number(x) else jnp.any(x, _axes(dim), keepdims=keepdim)


@operation("all")
def _all(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    return x.astype(bool) if _of_a_number(x) else jnp.all(x, _axes(dim), keepdims=keepdim)


def _arg(function: Any, x: Any, dim: Any, keepdim: bool) -> Any:
    return jnp.zeros((), int) if _of_a_number(x) else function(x, dim, keepdims=keepdim)


@operation("argmax")
def _argmax(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    return _arg(jnp.argmax, x, dim, keepdim)


@operation("argmin")
def _argmin(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    return _arg(jnp.argmin, x, dim, keepdim)


@operation("max.default")
def _max_of_all(x: Any) -> Any:
    return jnp.max(x)


@operation("min.default")
def _min_of_all(x: Any) -> Any:
    return jnp.min(x)


@operation("max.dim")
def _max(x: Any, dim: int, keepdim: bool = False) -> Any:
    return _amax(x, dim, keepdim), _arg(jnp.argmax, x, dim, keepdim)


@operation("min.dim")
def _min(x: Any, dim: int, keepdim: bool = False) -> Any:
    return _amin(x, dim, keepdim), _arg(jnp.argmin, x, dim, keepdim)


# -- moments -----------------------------------------------------------------------------------------------------------


def _variance(x: Any, dim: Any, correction: Any, keepdim: bool) -> Any:
    correction = 1 if correction is None else correction
    axes = _axes(dim)
    mean = jnp.mean(x, axes, keepdims=True)
    count = x.size // max(mean.size, 1)
    squares = jnp.sum(jnp.square(x - mean), axes, keepdims=keepdim)
    return squares / max(count - correction, 0) if count > correction else squares / 0.0


@operation("var.correction")
def _var(x: Any, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    return _variance(x, dim, correction, keepdim)


@operation("std.correction")
def _std(x: Any, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    return jnp.sqrt(_variance(x, dim, correction, keepdim))


@operation("var_mean.correction")
def _var_mean(x: Any, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    return _variance(x, dim, correction, keepdim), jnp.mean(x, _axes(dim), keepdims=keepdim)


@operation("std_mean.correction")
def _std_mean(x: Any, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    return jnp.sqrt(_variance(x, dim, correction, keepdim)), jnp.mean(x, _axes(dim), keepdims=keepdim)


@operation("linalg_vector_norm")
def _vector_norm(x: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    x, axes, size = _as(x, dtype), _axes(dim), jnp.abs(x)
    if ord == float("inf"):
        return jnp.max(size, axes, keepdims=keepdim)
    if ord == -float("inf"):
        return jnp.min(size, axes, keepdims=keepdim)
    if ord == 0:
        return jnp.sum(x != 0, axes, keepdims=keepdim)
    if ord == 2:
        return jnp.sqrt(jnp.sum(jnp.square(x), axes, keepdims=keepdim))
    return jnp.sum(size**ord, axes, keepdims=keepdim) ** (1 / ord)


# -- along a dimension -------------------------------------------------------------------------------------------------


@operation("cumsum")
def _cumsum(x: Any, dim: int, *, dtype: Any = None) -> Any:
    return _summable(x, dtype) if _of_a_number(x) else jnp.cumsum(_summable(x, dtype), dim)


@operation("cumprod")
def _cumprod(x: Any, dim: int, *, dtype: Any = None) -> Any:
    return _summable(x, dtype) if _of_a_number(x) else jnp.cumprod(_summable(x, dtype), dim)


@operation("logcumsumexp")
def _logcumsumexp(x: Any, dim: int) -> Any:
    return x if _of_a_number(x) else jax.lax.cumlogsumexp(x, dim % x.ndim)


@operation("logsumexp")
def _logsumexp(x: Any, dim: Any, keepdim: bool = False) -> Any:
    return x if _of_a_number(x) else jax.scipy.special.logsumexp(x, _axes(dim), keepdims=keepdim)


@operation("_softmax")
def _softmax(x: Any, dim: int, half_to_float: bool) -> Any:
    return jnp.ones_like(x) if _of_a_number(x) else jax.nn.softmax(x, dim)


@operation("_log_softmax")
def _log_softmax(x: Any, dim: int, half_to_float: bool) -> Any:
    return jnp.zeros_like(x) if _of_a_number(x) else jax.nn.log_softmax(x, dim)


@operation("_softmax_backward_data")
def _softmax_backward(grad: Any, y: Any, dim: int, dtype: Any) -> Any:
    if _of_a_number(y):
        return jnp.zeros_like(y)
    return y * grad - y * jnp.sum(grad * y, dim, keepdims=True)


@operation("_log_softmax_backward_data")
def _log_softmax_backward(grad: Any, y: Any, dim: int, dtype: Any) -> Any:
    if _of_a_number(y):
        return jnp.zeros_like(y)
    return grad - jnp.exp(y) * jnp.sum(grad, dim, keepdims=True)
