"""Elementwise operations: arithmetic, comparisons, special functions, activations and the derivatives that torch names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy import special

from unigen.engines.operations.table import operation

__all__: list[str] = []

_SAME: dict[str, Callable[..., Any]] = {
    "abs": jnp.abs, "neg": jnp.negative, "exp": jnp.exp, "exp2": jnp.exp2, "expm1": jnp.expm1, "log": jnp.log,
    "log1p": jnp.log1p, "log2": jnp.log2, "log10": jnp.log10, "sqrt": jnp.sqrt, "rsqrt": jax.lax.rsqrt, "sin": jnp.sin,
    "cos": jnp.cos, "tan": jnp.tan, "asin": jnp.arcsin, "acos": jnp.arccos, "atan": jnp.arctan, "sinh": jnp.sinh,
    "cosh": jnp.cosh, "tanh": jnp.tanh, "asinh": jnp.arcsinh, "acosh": jnp.arccosh, "atanh": jnp.arctanh,
    "sigmoid": jax.nn.sigmoid, "erf": special.erf, "erfc": special.erfc, "erfinv": special.erfinv,
    "lgamma": special.gammaln, "digamma": special.digamma, "floor": jnp.floor, "ceil": jnp.ceil, "trunc": jnp.trunc,
    "reciprocal": jnp.reciprocal, "isnan": jnp.isnan,
    "isinf": jnp.isinf, "logical_not": jnp.logical_not, "bitwise_not": jnp.bitwise_not,
    "special_log_ndtr": special.log_ndtr, "special_ndtri": special.ndtri, "i0": special.i0,
    "special_i0e": special.i0e, "special_i1": special.i1, "special_i1e": special.i1e, "relu": jax.nn.relu,
    "maximum": jnp.maximum, "minimum": jnp.minimum, "atan2": jnp.arctan2, "hypot": jnp.hypot,
    "logical_and": jnp.logical_and, "logical_or": jnp.logical_or, "logical_xor": jnp.logical_xor,
    "bitwise_and": jnp.bitwise_and, "bitwise_or": jnp.bitwise_or, "bitwise_xor": jnp.bitwise_xor,
    "bitwise_left_shift": jnp.left_shift, "bitwise_right_shift": jnp.right_shift,
    "__and__": jnp.bitwise_and, "__or__": jnp.bitwise_or, "__xor__": jnp.bitwise_xor, "__lshift__": jnp.left_shift,
    "__rshift__": jnp.right_shift, "mul": jnp.multiply, "fmod": jnp.fmod, "remainder": jnp.remainder,
    "logaddexp": jnp.logaddexp, "fmax": jnp.fmax, "fmin": jnp.fmin, "copysign": jnp.copysign, "pow": jnp.power,
    "frac": lambda x: x - jnp.trunc(x), "floor_divide": jnp.floor_divide,
}  # fmt: skip

for _name, _function in _SAME.items():
    operation(_name)(_function)


@operation("sign", "sgn")
def _sign(x: Any) -> Any:
    return jnp.where(x > 0, 1, jnp.where(x < 0, -1, 0))  # 0 of what is no number


def _compares(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a comparison as torch makes it: a float of no dimension has the precision of what it is compared with."""

    def compare(x: Any, y: Any) -> Any:
        x, y = jnp.asarray(x), jnp.asarray(y)
        if (x.ndim == 0) != (y.ndim == 0) and all(jnp.issubdtype(each.dtype, jnp.floating) for each in (x, y)):
            x, y = x.astype((y if x.ndim == 0 else x).dtype), y.astype((x if y.ndim == 0 else y).dtype)
        return function(x, y)

    return compare


for _name, _function in {
    "eq": jnp.equal, "ne": jnp.not_equal, "lt": jnp.less, "le": jnp.less_equal, "gt": jnp.greater, "ge": jnp.greater_equal,
}.items():  # fmt: skip
    operation(_name)(_compares(_function))


# -- arithmetic --------------------------------------------------------------------------------------------------------


def _scaled(x: Any, alpha: Any) -> Any:
    return x if alpha == 1 else x * alpha


@operation("add")
def _add(x: Any, y: Any, alpha: Any = 1) -> Any:
    if jnp.result_type(x, y) == jnp.dtype(bool):
        return jnp.logical_or(x, y)
    return jnp.add(x, _scaled(y, alpha))


@operation("sub")
def _sub(x: Any, y: Any, alpha: Any = 1) -> Any:
    return jnp.subtract(x, _scaled(y, alpha))


@operation("rsub")
def _rsub(x: Any, y: Any, alpha: Any = 1) -> Any:
    return jnp.subtract(y, _scaled(x, alpha))


@operation("div")
def _div(x: Any, y: Any, *, rounding_mode: str | None = None) -> Any:
    if rounding_mode is None:
        return jnp.true_divide(x, y)
    if rounding_mode == "floor":
        return jnp.floor_divide(x, y)
    both = jnp.result_type(x, y)
    if jnp.issubdtype(both, jnp.integer):
        return jax.lax.div(*jnp.broadcast_arrays(jnp.asarray(x, both), jnp.asarray(y, both)))
    return jnp.trunc(jnp.true_divide(x, y))


@operation("round")
def _round(x: Any, *, decimals: int = 0) -> Any:
    return jnp.round(x, decimals)


@operation("polygamma")
def _polygamma(n: int, x: Any) -> Any:
    return special.digamma(x) if n == 0 else special.polygamma(jnp.asarray(n), x)


@operation("xlogy", "special_xlogy")
def _xlogy(x: Any, y: Any) -> Any:
    return jnp.where(jnp.equal(x, 0) & ~jnp.isnan(y), 0.0, x * jnp.log(y))


@operation("lerp")
def _lerp(start: Any, end: Any, weight: Any) -> Any:
    return jnp.where(jnp.abs(weight) < 0.5, start + weight * (end - start), end - (end - start) * (1 - weight))


@operation("addcmul")
def _addcmul(x: Any, one: Any, other: Any, *, value: Any = 1) -> Any:
    return x + value * one * other


@operation("addcdiv")
def _addcdiv(x: Any, one: Any, other: Any, *, value: Any = 1) -> Any:
    return x + value * (one / other)


@operation("where")
def _where(condition: Any, x: Any, y: Any) -> Any:
    return jnp.where(condition.astype(bool), x, y)


@operation("clamp", "clip")
def _clamp(x: Any, min: Any = None, max: Any = None) -> Any:
    x = x if min is None else jnp.maximum(x, min)
    return x if max is None else jnp.minimum(x, max)


@operation("clamp_min")
def _clamp_min(x: Any, least: Any) -> Any:
    return jnp.maximum(x, least)


@operation("clamp_max")
def _clamp_max(x: Any, most: Any) -> Any:
    return jnp.minimum(x, most)


@operation("masked_fill")
def _masked_fill(x: Any, mask: Any, value: Any) -> Any:
    return jnp.where(mask, jnp.asarray(value).astype(x.dtype), x)


@operation("nan_to_num")
def _nan_to_num(x: Any, nan: Any = None, posinf: Any = None, neginf: Any = None) -> Any:
    return jnp.nan_to_num(x, nan=0.0 if nan is None else nan, posinf=posinf, neginf=neginf)


# -- activations and their derivatives -----------------------------------------------------------------------------------


@operation("leaky_relu")
def _leaky_relu(x: Any, slope: Any = 0.01) -> Any:
    return jnp.where(x > 0, x, slope * x)


@operation("leaky_relu_backward")
def _leaky_relu_backward(grad: Any, x: Any, slope: Any, is_result: bool) -> Any:
    return jnp.where(x > 0, grad, slope * grad)


@operation("threshold")
def _threshold(x: Any, threshold: Any, value: Any) -> Any:
    return jnp.where(x <= threshold, value, x)


@operation("threshold_backward")
def _threshold_backward(grad: Any, x: Any, threshold: Any) -> Any:
    return jnp.where(x <= threshold, jnp.zeros((), grad.dtype), grad)


@operation("elu")
def _elu(x: Any, alpha: Any = 1, scale: Any = 1, input_scale: Any = 1) -> Any:
    return jnp.where(x > 0, x * scale, jnp.expm1(jnp.minimum(x, 0) * input_scale) * (alpha * scale))


@operation("elu_backward")
def _elu_backward(grad: Any, alpha: Any, scale: Any, input_scale: Any, is_result: bool, x: Any) -> Any:
    low = x + alpha * scale if is_result else alpha * scale * jnp.exp(jnp.minimum(x, 0) * input_scale)
    return jnp.where(x > 0, grad * scale, grad * input_scale * low)


@operation("softplus")
def _softplus(x: Any, beta: Any = 1, threshold: Any = 20) -> Any:
    scaled = x * beta
    return jnp.where(scaled > threshold, x, jnp.log1p(jnp.exp(jnp.minimum(scaled, threshold))) / beta)


@operation("softshrink_backward", "hardshrink_backward")
def _softshrink_backward(grad: Any, x: Any, threshold: Any) -> Any:
    return jnp.where(jnp.abs(x) > threshold, grad, 0)


@operation("softplus_backward")
def _softplus_backward(grad: Any, x: Any, beta: Any, threshold: Any) -> Any:
    scaled = x * beta
    return jnp.where(scaled > threshold, grad, grad * jax.nn.sigmoid(scaled))


@operation("log_sigmoid_forward")
def _log_sigmoid(x: Any) -> Any:
    return jnp.minimum(x, 0) - jnp.log1p(jnp.exp(-jnp.abs(x))), None  # what torch keeps there differs by device


@operation("log_sigmoid_backward")
def _log_sigmoid_backward(grad: Any, x: Any, buffer: Any) -> Any:
    return grad * jax.nn.sigmoid(-x)


@operation("binary_cross_entropy_with_logits")
def _cross_entropy(x: Any, target: Any, weight: Any = None, pos_weight: Any = None, reduction: int = 1) -> Any:
    log_sigmoid, _ = _log_sigmoid(x)
    factor = 1.0 if pos_weight is None else (pos_weight - 1) * target + 1
    loss = (1 - target) * x - factor * log_sigmoid
    loss = loss if weight is None else loss * weight
    return (loss, jnp.mean(loss), jnp.sum(loss))[reduction]


@operation("silu")
def _silu(x: Any) -> Any:
    return x * jax.nn.sigmoid(x)


@operation("silu_backward")
def _silu_backward(grad: Any, x: Any) -> Any:
    s = jax.nn.sigmoid(x)
    return grad * s * (1 + x * (1 - s))


@operation("gelu")
def _gelu(x: Any, *, approximate: str = "none") -> Any:
    return jax.nn.gelu(x, approximate=approximate == "tanh")


@operation("gelu_backward")
def _gelu_backward(grad: Any, x: Any, *, approximate: str = "none") -> Any:
    return jax.vjp(lambda x: jax.nn.gelu(x, approximate=approximate == "tanh"), x)[1](grad)[0]


@operation("hardtanh")
def _hardtanh(x: Any, least: Any = -1, most: Any = 1) -> Any:
    return jnp.clip(x, least, most)


@operation("hardtanh_backward")
def _hardtanh_backward(grad: Any, x: Any, least: Any, most: Any) -> Any:
    return jnp.where((x <= least) | (x >= most), jnp.zeros((), grad.dtype), grad)


@operation("tanh_backward")
def _tanh_backward(grad: Any, y: Any) -> Any:
    return grad * (1 - y * y)


@operation("sigmoid_backward")
def _sigmoid_backward(grad: Any, y: Any) -> Any:
    return grad * (y * (1 - y))


@operation("logit")
def _logit(x: Any, eps: Any = None) -> Any:
    x = x if eps is None else jnp.clip(x, eps, 1 - eps)
    return jnp.log(x / (1 - x))
