"""Convolutions, transposed ones too, pooling, and their derivatives, in any number of spatial dimensions.

On a CPU a convolution is a matrix product over patches: inside a loop, and with strides in its derivative, XLA's own is some
ten times slower there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy

from unigen.engines.operations.linear_algebra import EXACT, product
from unigen.engines.operations.resampling import along
from unigen.engines.operations.table import operation

__all__: list[str] = []


def _numbers(spatial: int) -> Any:
    letters = "DHW"[-spatial:]
    return f"NC{letters}", f"OI{letters}", f"NC{letters}"


def _per_dimension(value: Any, spatial: int) -> list[int]:
    value = list(value)
    return value * spatial if len(value) == 1 else value


def _patches(x: Any, kernel: Sequence[int], stride: Any, pads: Any, dilation: Any, out: Sequence[int]) -> Any:
    """Return what the kernel covers at each place: (N, ..., C), channels last, becomes (N, *out, prod(kernel) C)."""
    x, parts = jnp.pad(x, [(0, 0), *pads, (0, 0)]), []
    for offset in itertools.product(*map(range, kernel)):
        starts = [o * d for o, d in zip(offset, dilation, strict=True)]
        ends = [start + s * (size - 1) + 1 for start, s, size in zip(starts, stride, out, strict=True)]
        parts.append(jax.lax.slice(x, (0, *starts, 0), (len(x), *ends, x.shape[-1]), (1, *stride, 1)))
    return jnp.concatenate(parts, -1)


def _by_patches(x: Any, weight: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, extra: Any) -> Any:
    """A convolution of one group as one matrix product; the transposed one is the transpose of that of its result."""
    kernel, last = weight.shape[2:], x.ndim - 1
    x, pads = jnp.moveaxis(x, 1, last), [(p, p) for p in padding]
    at = list(zip(x.shape[1:last], kernel, stride, padding, dilation, extra, strict=True))
    if not transposed:
        out = [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d, _ in at]
        matrix = jnp.moveaxis(weight, (0, 1), (last, last - 1)).reshape(-1, len(weight))
        rows = _patches(x, kernel, stride, pads, dilation, out).reshape(-1, len(matrix))
        y = product(rows, matrix).reshape(len(x), *out, -1)
    else:
        out = [(size - 1) * s - 2 * p + d * (k - 1) + e + 1 for size, k, s, p, d, e in at]
        matrix = jnp.moveaxis(weight, 1, last).reshape(len(weight), -1)
        rows = product(x.reshape(-1, len(weight)), matrix)
        spread = partial(_patches, kernel=kernel, stride=stride, pads=pads, dilation=dilation, out=x.shape[1:last])
        like = jax.ShapeDtypeStruct((len(x), *out, weight.shape[1]), rows.dtype)
        (y,) = jax.linear_transpose(spread, like)(rows.reshape(*x.shape[:last], -1))
    return jnp.moveaxis(y, last, 1)


def _by_xla(
    x: Any, weight: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, extra: Any, groups: int = 1
) -> Any:
    spatial = weight.ndim - 2
    numbers = _numbers(spatial)
    if not transposed:
        pads = [(p, p) for p in padding]
        return jax.lax.conv_general_dilated(
            x, weight, stride, pads, [1] * spatial, dilation, numbers, groups, precision=EXACT
        )
    # the derivative of a convolution: stretch the input, turn the kernel round
    reach = [d * (size - 1) for d, size in zip(dilation, weight.shape[2:], strict=True)]
    pads = [(r - p, r - p + e) for r, p, e in zip(reach, padding, extra, strict=True)]
    turned = jnp.flip(weight, tuple(range(2, weight.ndim)))
    inputs, outputs = weight.shape[:2]
    turned = turned.reshape(groups, inputs // groups, outputs, *weight.shape[2:]).swapaxes(1, 2)
    turned = turned.reshape(groups * outputs, inputs // groups, *weight.shape[2:])
    return jax.lax.conv_general_dilated(
        x, turned, [1] * spatial, pads, stride, dilation, numbers, groups, precision=EXACT
    )


@operation("convolution")
def _convolution(
    x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, extra: Any, groups: int
) -> Any:
    spatial = weight.ndim - 2
    stride, padding, dilation, extra = (_per_dimension(v, spatial) for v in (stride, padding, dilation, extra))
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "transposed": transposed, "extra": extra}
    if groups == 1 and 0 not in weight.shape and 0 not in x.shape:
        y = jax.lax.platform_dependent(
            x, weight, cpu=partial(_by_patches, **settings), default=partial(_by_xla, **settings)
        )
    else:
        y = _by_xla(x, weight, **settings, groups=groups)
    return y if bias is None else y + bias.reshape(-1, *(1,) * spatial)


@operation("convolution_backward")
def _convolution_backward(
    grad: Any, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, extra: Any,
    groups: int, wanted: Any,
) -> Any:  # fmt: skip
    def forward(x: Any, weight: Any) -> Any:
        return _convolution(x, weight, None, stride, padding, dilation, transposed, extra, groups)

    by_x, by_weight = jax.vjp(forward, x, weight)[1](grad)
    by_bias = jnp.sum(grad, (0, *range(2, grad.ndim)))
    return tuple(part if want else None for part, want in zip((by_x, by_weight, by_bias), wanted, strict=True))


# -- pooling -----------------------------------------------------------------------------------------------------------


def _windows(sizes: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, out: Any) -> Any:
    """Return, for each place of the result, the flat positions in the padded input of what its window covers."""
    offsets = numpy.zeros((1, 1), int)
    padded = [size + 2 * p for size, p in zip(sizes, padding, strict=True)]
    # the last window may reach past the padding (ceil_mode)
    ends = [(o - 1) * s + d * (k - 1) + 1 for o, s, d, k in zip(out, stride, dilation, kernel, strict=True)]
    padded = [max(size, end) for size, end in zip(padded, ends, strict=True)]
    for o, s, d, k, size in zip(out, stride, dilation, kernel, padded, strict=True):
        offsets = _crossed(offsets, size, numpy.arange(o)[:, None] * s + numpy.arange(k)[None] * d)
    return offsets, padded


def _crossed(offsets: Any, size: int, places: Any) -> Any:
    """Return flat positions (windows, cells) with one more axis, of this size, in which the windows have these places."""
    rows, columns = numpy.multiply(offsets.shape, places.shape)
    return (offsets[:, None, :, None] * size + places[None, :, None]).reshape(rows, columns)


def _gathered(x: Any, spatial: int, kernel: Any, stride: Any, padding: Any, dilation: Any, out: Any, fill: Any) -> Any:
    """Return (..., places, offsets): every window of the padded input."""
    sizes = x.shape[-spatial:]
    offsets, padded = _windows(sizes, kernel, stride, padding, dilation, out)
    pads = [(p, big - size - p) for p, big, size in zip(padding, padded, sizes, strict=True)]
    wide = jnp.pad(x, [(0, 0)] * (x.ndim - spatial) + pads, constant_values=fill)
    return wide.reshape(*x.shape[:-spatial], -1)[..., offsets]


def _out(size: int, k: int, s: int, p: int, d: int, ceil: bool) -> int:
    span = size + 2 * p - d * (k - 1) - 1
    out = (-(-span // s) if ceil else span // s) + 1
    return out - 1 if ceil and (out - 1) * s >= size + p else out


def _geometry(x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool, spatial: int = 2) -> Any:
    kernel = _per_dimension(kernel, spatial)
    stride = _per_dimension(stride, spatial) if len(stride) else kernel
    padding, dilation = _per_dimension(padding, spatial), _per_dimension(dilation, spatial)
    out = [_out(*at, ceil) for at in zip(x.shape[-spatial:], kernel, stride, padding, dilation, strict=True)]
    return kernel, stride, padding, dilation, out


def _max_pool(
    x: Any, kernel: Any, stride: Any = (), padding: Any = (0,), dilation: Any = (1,), ceil: bool = False, *, spatial: int
) -> Any:  # fmt: skip
    kernel, stride, padding, dilation, out = _geometry(x, kernel, stride, padding, dilation, ceil, spatial)
    at = (spatial, kernel, stride, padding, dilation, out)
    lead, sizes = x.shape[:-spatial], x.shape[-spatial:]
    windows = _gathered(x, *at, -jnp.inf)
    flat = jnp.arange(math.prod(sizes)).reshape(sizes)
    positions = jnp.broadcast_to(_gathered(flat, *at, -1), windows.shape)
    best = jnp.argmax(windows, -1, keepdims=True)
    value = jnp.take_along_axis(windows, best, -1).reshape(*lead, *out)
    return value, jnp.take_along_axis(positions, best, -1).reshape(*lead, *out)


def _max_pool_backward(grad: Any, x: Any, *geometry_and_indices: Any, spatial: int) -> Any:
    lead, sizes = x.shape[:-spatial], x.shape[-spatial:]
    rows = grad.reshape(math.prod(lead), -1)
    at = geometry_and_indices[-1].reshape(rows.shape)
    flat = jnp.zeros((len(rows), math.prod(sizes)), grad.dtype)
    return flat.at[numpy.arange(len(rows))[:, None], at].add(rows).reshape(x.shape)


def _avg_pool(
    x: Any, kernel: Any, stride: Any = (), padding: Any = (0,), ceil: bool = False, with_padding: bool = True,
    divisor: Any = None, *, spatial: int,
) -> Any:  # fmt: skip
    kernel, stride, padding, dilation, out = _geometry(x, kernel, stride, padding, (1,), ceil, spatial)
    at = (spatial, kernel, stride, padding, dilation, out)
    total = _gathered(x, *at, 0).sum(-1).reshape(*x.shape[:-spatial], *out)
    if divisor is not None:
        return total / divisor
    cells = jnp.ones(x.shape[-spatial:], x.dtype)
    if with_padding:  # the cells of the padding count, those past it do not
        cells = jnp.pad(cells, [(p, p) for p in padding], constant_values=1)
        at = (spatial, kernel, stride, [0] * spatial, dilation, out)
    return total / _gathered(cells, *at, 0).sum(-1).reshape(*out)


def _avg_pool_backward(grad: Any, x: Any, *geometry: Any, spatial: int) -> Any:
    return jax.vjp(lambda x: _avg_pool(x, *geometry, spatial=spatial), x)[1](grad)[0]


def _shares(size: int, out: int) -> list[tuple[int, int]]:
    """Return where each of the windows that share an axis starts and ends."""
    return [(place * size // out, -(-(place + 1) * size // out)) for place in range(out)]


def _adaptive(x: Any, sizes: Any) -> Any:
    for axis, out in enumerate(sizes, -len(sizes)):
        weights = numpy.zeros((x.shape[axis], out))
        for place, (start, end) in enumerate(_shares(*weights.shape)):
            weights[start:end, place] = 1 / (end - start)
        x = along(x, axis, weights)
    return x


def _adaptive_max(x: Any, sizes: Any) -> Any:
    lead = x.shape[: -len(sizes)]
    at = numpy.zeros((1, 1), int)
    for size, out in zip(x.shape[-len(sizes) :], sizes, strict=True):
        start, end = numpy.array(_shares(size, out)).T[..., None]
        at = _crossed(at, size, numpy.minimum(start + numpy.arange((end - start).max()), end - 1))  # narrow ones repeat
    windows = x.reshape(*lead, -1)[..., at]
    best = jnp.argmax(windows, -1, keepdims=True)
    positions = jnp.take_along_axis(jnp.broadcast_to(at, windows.shape), best, -1)
    return jnp.take_along_axis(windows, best, -1).reshape(*lead, *sizes), positions.reshape(*lead, *sizes)


def _adaptive_backward(grad: Any, x: Any, *, spatial: int) -> Any:
    return jax.vjp(lambda x: _adaptive(x, grad.shape[-spatial:]), x)[1](grad)[0]


for _spatial in (2, 3):
    operation(f"max_pool{_spatial}d_with_indices")(partial(_max_pool, spatial=_spatial))
    operation(f"max_pool{_spatial}d_with_indices_backward", f"adaptive_max_pool{_spatial}d_backward")(
        partial(_max_pool_backward, spatial=_spatial)
    )
    operation(f"avg_pool{_spatial}d")(partial(_avg_pool, spatial=_spatial))
    operation(f"avg_pool{_spatial}d_backward")(partial(_avg_pool_backward, spatial=_spatial))
    operation(f"adaptive_max_pool{_spatial}d")(_adaptive_max)
    operation(f"_adaptive_avg_pool{_spatial}d")(_adaptive)
    operation(f"_adaptive_avg_pool{_spatial}d_backward")(partial(_adaptive_backward, spatial=_spatial))
