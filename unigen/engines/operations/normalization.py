"""Layer, group and batch normalization, (x - mean) / sqrt(var + eps) * weight + bias, with their derivatives.

Batch normalization in training writes its running mean and variance, which follow the results.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from unigen.engines.operations.table import operation

__all__: list[str] = []


def _scaled(y: Any, weight: Any, bias: Any) -> Any:
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


@operation("native_layer_norm")
def _layer_norm(x: Any, shape: Any, weight: Any, bias: Any, eps: float) -> Any:
    axes = tuple(range(x.ndim - len(shape), x.ndim))
    mean = x.mean(axes, keepdims=True)
    scale = jax.lax.rsqrt(jnp.square(x - mean).mean(axes, keepdims=True) + eps)
    return _scaled((x - mean) * scale, weight, bias), mean, scale


@operation("native_layer_norm_backward")
def _layer_norm_backward(
    grad: Any, x: Any, shape: Any, mean: Any, scale: Any, weight: Any, bias: Any, wanted: Any
) -> Any:
    inner = tuple(range(x.ndim - len(shape), x.ndim))
    outer = tuple(range(x.ndim - len(shape)))
    y = (x - mean) * scale
    return _normalized_backward(grad, y, scale, weight, inner, outer, wanted)


def _normalized_backward(
    grad: Any, y: Any, scale: Any, weight: Any, inner: Any, outer: Any, wanted: Any, flat: Any = None
) -> Any:
    """Differentiate weight * y + bias, y = (x - mean) * scale, mean and scale those of ``inner``."""
    by_y = grad if weight is None else grad * weight
    by_x = scale * (by_y - by_y.mean(inner, keepdims=True) - y * (by_y * y).mean(inner, keepdims=True))
    by_weight, by_bias = (grad * y).sum(outer), grad.sum(outer)
    return tuple(part if want else None for part, want in zip((by_x, by_weight, by_bias), wanted, strict=True))


@operation("_weight_norm_interface")
def _weight_norm(v: Any, g: Any, dim: int = 0) -> Any:
    axes = tuple(axis for axis in range(v.ndim) if axis != dim % v.ndim)
    norm = jnp.sqrt(jnp.square(v).sum(axes, keepdims=True))
    return v * (g / norm), norm


@operation("_weight_norm_interface_backward")
def _weight_norm_backward(grad: Any, v: Any, g: Any, norm: Any, dim: int) -> Any:
    return jax.vjp(lambda v, g: _weight_norm(v, g, dim)[0], v, g)[1](grad)


# -- groups of channels: x is (N, C, ...), seen as (N, groups, C / groups, ...) ----------------------------------------


@operation("native_group_norm")
def _group_norm(x: Any, weight: Any, bias: Any, n: int, c: int, size: int, groups: int, eps: float) -> Any:
    rows = x.reshape(n, groups, -1)
    mean = rows.mean(-1)
    scale = jax.lax.rsqrt(jnp.square(rows - mean[..., None]).mean(-1) + eps)
    y = ((rows - mean[..., None]) * scale[..., None]).reshape(x.shape)
    channel = (-1, *(1,) * (x.ndim - 2))
    weight, bias = (None if part is None else part.reshape(channel) for part in (weight, bias))
    return _scaled(y, weight, bias), mean, scale


@operation("native_group_norm_backward")
def _group_norm_backward(
    grad: Any, x: Any, mean: Any, scale: Any, weight: Any, n: int, c: int, size: int, groups: int, wanted: Any
) -> Any:
    y = ((x.reshape(n, groups, -1) - mean[..., None]) * scale[..., None]).reshape(n, c, -1)
    grad_rows = grad.reshape(n, c, -1)
    by_weight, by_bias = (grad_rows * y).sum((0, 2)), grad_rows.sum((0, 2))
    by_y = grad_rows if weight is None else grad_rows * weight[:, None]
    by_y, y = by_y.reshape(n, groups, -1), y.reshape(n, groups, -1)
    by_x = scale[..., None] * (by_y - by_y.mean(-1, keepdims=True) - y * (by_y * y).mean(-1, keepdims=True))
    parts = (by_x.reshape(x.shape), by_weight, by_bias)
    return tuple(part if want else None for part, want in zip(parts, wanted, strict=True))


# -- batches -----------------------------------------------------------------------------------------------------------


def _over_batch(x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: Any, eps: Any) -> Any:
    axes, channel = (0, *range(2, x.ndim)), (-1, *(1,) * (x.ndim - 2))
    if training:
        count = x.size // x.shape[1]
        batch_mean = x.mean(axes)
        batch_var = jnp.square(x - batch_mean.reshape(channel)).mean(axes)
        scale = jax.lax.rsqrt(batch_var + eps)
        if mean is not None:
            mean = (1 - momentum) * mean + momentum * batch_mean
        if var is not None:
            var = (1 - momentum) * var + momentum * batch_var * (count / max(count - 1, 1))
        saved = batch_mean, scale
        centre = batch_mean
    else:
        centre, scale = mean, jax.lax.rsqrt(var + eps)
        saved = jnp.zeros(0, x.dtype), jnp.zeros(0, x.dtype)
    y = (x - centre.reshape(channel)) * scale.reshape(channel)
    weight, bias = (None if part is None else part.reshape(channel) for part in (weight, bias))
    return _scaled(y, weight, bias), *saved, *(part for part in (mean, var) if part is not None)


@operation("native_batch_norm", "_native_batch_norm_legit", writes=(3, 4))
def _batch_norm(*arguments: Any) -> Any:
    return _over_batch(*arguments)


@operation("native_batch_norm_backward")
def _batch_norm_backward(
    grad: Any, x: Any, weight: Any, mean: Any, var: Any, saved_mean: Any, saved_scale: Any, training: bool, eps: Any,
    wanted: Any,
) -> Any:  # fmt: skip
    axes, channel = (0, *range(2, x.ndim)), (-1, *(1,) * (x.ndim - 2))
    centre = saved_mean if training else mean
    scale = saved_scale if training else jax.lax.rsqrt(var + eps)
    scale = scale.reshape(channel)
    y = (x - centre.reshape(channel)) * scale
    weight = None if weight is None else weight.reshape(channel)
    if training:
        return _normalized_backward(grad, y, scale, weight, axes, axes, wanted)
    by_x = scale * (grad if weight is None else grad * weight)
    parts = (by_x, (grad * y).sum(axes), grad.sum(axes))
    return tuple(part if want else None for part, want in zip(parts, wanted, strict=True))
